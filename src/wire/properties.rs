//! What holds for the reader whatever comes: properties over all messages, all splits, all bytes.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::Index;

use super::frame::append_masked;
use super::{CloseCode, Deflater, Inflater, Limits, Message, Opcode, Reader, Violation, frame};

const LIMITS: Limits = Limits { max_message: 3000, max_fragments: 8 };

/// A message that outlives its read.
#[derive(Clone, Debug, PartialEq)]
enum Owned {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<CloseCode>, String),
}

impl From<Message<'_>> for Owned {
    fn from(message: Message<'_>) -> Self {
        match message {
            Message::Text(text) => Self::Text(text.into()),
            Message::Binary(bytes) => Self::Binary(bytes.into()),
            Message::Ping(payload) => Self::Ping(payload.into()),
            Message::Pong(payload) => Self::Pong(payload.into()),
            Message::Close { code, reason } => Self::Close(code, reason.into()),
        }
    }
}

/// How a client sends one message: compressed or not, cut where, under which mask, with what between the fragments.
#[derive(Clone, Debug)]
struct Sending {
    message: Owned,
    compressed: bool,
    cuts: Vec<Index>,
    mask: [u8; 4],
    between: Option<Owned>,
}

impl Sending {
    /// Appends its frames to `out`, and what a reader makes of them to `expected`.
    fn send(&self, out: &mut Vec<u8>, expected: &mut Vec<Owned>) {
        let (opcode, payload) = match &self.message {
            Owned::Text(text) => (Opcode::Text, text.as_bytes()),
            Owned::Binary(bytes) => (Opcode::Binary, &bytes[..]),
            control => {
                send_control(control, self.mask, out);
                return expected.push(control.clone());
            }
        };
        let mut deflated = Vec::new();
        if self.compressed {
            Deflater::new().compress(payload, &mut deflated);
        }
        let payload = if self.compressed { &deflated[..] } else { payload };
        let mut cuts: Vec<usize> = self.cuts.iter().map(|cut| cut.index(payload.len() + 1)).collect();
        cuts.sort_unstable();
        let mut start = 0;
        for (i, end) in cuts.iter().copied().chain([payload.len()]).enumerate() {
            let first = i == 0;
            let opcode = if first { opcode } else { Opcode::Continuation };
            let fin = i == cuts.len();
            append_masked(out, opcode, fin, first && self.compressed, self.mask, &payload[start..end]);
            if let Some(control) = self.between.as_ref().filter(|_| !fin) {
                send_control(control, self.mask, out);
                expected.push(control.clone());
            }
            start = end;
        }
        expected.push(self.message.clone());
    }
}

fn send_control(control: &Owned, mask: [u8; 4], out: &mut Vec<u8>) {
    match control {
        Owned::Ping(payload) => append_masked(out, Opcode::Ping, true, false, mask, payload),
        Owned::Pong(payload) => append_masked(out, Opcode::Pong, true, false, mask, payload),
        Owned::Close(Some(code), reason) => {
            append_masked(out, Opcode::Close, true, false, mask, &frame::close(*code, reason)[2..]);
        }
        Owned::Close(None, _) => append_masked(out, Opcode::Close, true, false, mask, b""),
        Owned::Text(_) | Owned::Binary(_) => unreachable!("not a control frame"),
    }
}

fn control() -> impl Strategy<Value = Owned> {
    prop_oneof![
        vec(any::<u8>(), 0..=125).prop_map(Owned::Ping),
        vec(any::<u8>(), 0..=125).prop_map(Owned::Pong),
        ((3000_u16..5000).prop_map(CloseCode::new), "\\PC{0,30}").prop_map(|(code, why)| Owned::Close(code, why)),
        Just(Owned::Close(None, String::new())),
    ]
}

fn sending() -> impl Strategy<Value = Sending> {
    let message = prop_oneof![
        3 => "\\PC{0,300}".prop_map(Owned::Text),
        1 => "[a-c]{0,3000}".prop_map(Owned::Text),
        2 => vec(any::<u8>(), 0..3000).prop_map(Owned::Binary),
        1 => control(),
    ];
    (message, any::<bool>(), vec(any::<Index>(), 0..LIMITS.max_fragments), any::<[u8; 4]>(), option::of(control()))
        .prop_map(|(message, compressed, cuts, mask, between)| Sending { message, compressed, cuts, mask, between })
}

/// What a reader makes of `bytes` when they come in `pieces`, which are walked again and again until all came.
fn read(bytes: &[u8], pieces: &[usize], compression: bool) -> (Vec<Owned>, Result<usize, Violation>) {
    let (mut reader, mut inflater, mut messages) = (Reader::new(compression), Inflater::new(), Vec::new());
    let mut rest = bytes;
    for piece in pieces.iter().cycle() {
        let (now, later) = rest.split_at((*piece).min(rest.len()));
        let mut scratch = now.to_vec();
        let mut input = &mut scratch[..];
        loop {
            match reader.next(&mut input, &LIMITS, &mut inflater) {
                Ok(Some(message)) => messages.push(message.into()),
                Ok(None) => break,
                Err(violation) => return (messages, Err(violation)),
            }
        }
        assert!(input.is_empty(), "all of a read is consumed");
        assert!(reader.buffered_bytes() <= LIMITS.max_message * 9 / 8 + 16 + 125 + 400, "memory is bounded");
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    (messages, Ok(reader.buffered_bytes()))
}

fn pieces() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![vec(1_usize..20, 1..20), vec(1_usize..2000, 1..20)]
}

proptest! {
    #[test]
    fn any_split_of_any_valid_stream_gives_the_same_messages(sendings in vec(sending(), 0..6), pieces in pieces()) {
        let (mut bytes, mut expected) = (Vec::new(), Vec::new());
        for sending in &sendings {
            sending.send(&mut bytes, &mut expected);
        }
        prop_assert_eq!(read(&bytes, &[usize::MAX], true), (expected.clone(), Ok(0)));
        prop_assert_eq!(read(&bytes, &pieces, true), (expected, Ok(0)));
    }

    #[test]
    fn a_damaged_stream_ends_in_the_same_way_however_it_is_split(
        sendings in vec(sending(), 1..4),
        damage in vec((any::<Index>(), any::<u8>()), 1..4),
        cut in any::<Index>(),
        pieces in pieces(),
        compression: bool,
    ) {
        let mut bytes = Vec::new();
        for sending in &sendings {
            sending.send(&mut bytes, &mut Vec::new());
        }
        for (place, value) in &damage {
            *place.get_mut(&mut bytes) = *value;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        let (whole, whole_end) = read(&bytes, &[usize::MAX], compression);
        let (split, split_end) = read(&bytes, &pieces, compression);
        prop_assert_eq!(whole, split);
        prop_assert_eq!(whole_end.err(), split_end.err());
    }

    #[test]
    fn random_bytes_never_panic_and_never_pass_the_limits(
        bytes in vec(prop_oneof![Just(0x82), Just(0xc1), Just(0x80), Just(0x00), Just(0xff), any::<u8>()], 0..600),
        pieces in pieces(),
        compression: bool,
    ) {
        let (messages, _) = read(&bytes, &pieces, compression);
        for message in messages {
            match message {
                Owned::Text(text) => prop_assert!(text.len() <= LIMITS.max_message),
                Owned::Binary(bytes) => prop_assert!(bytes.len() <= LIMITS.max_message),
                Owned::Ping(payload) | Owned::Pong(payload) => prop_assert!(payload.len() <= 125),
                Owned::Close(_, reason) => prop_assert!(reason.len() <= 123),
            }
        }
    }

    #[test]
    fn offers_never_panic_and_only_ours_is_answered(lines in vec("[ -~]{0,60}|permessage-deflate[;=, \"\\\\a-z_0-9]{0,40}", 0..4)) {
        if let Ok(Some(_)) = super::deflate::negotiate(lines.iter().map(String::as_str)) {
            prop_assert!(lines.iter().any(|line| line.contains("permessage-deflate")));
        }
    }

    #[test]
    fn what_inflates_stays_within_the_limit(bytes in vec(any::<u8>(), 0..200), limit in 0_usize..5000) {
        match Inflater::new().inflate(&bytes, limit) {
            Ok(message) => prop_assert!(message.len() <= limit),
            Err(violation) => prop_assert!([Violation::Corrupt, Violation::TooBig { limit }].contains(&violation), "{violation}"),
        }
    }
}
