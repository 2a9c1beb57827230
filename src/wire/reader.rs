//! Bytes to messages: fragments, masks, UTF-8 as it comes, every limit.
//!
//! One [`Reader`] per connection, one input buffer and one [`Inflater`] per thread. A read's bytes are handed to
//! [`Reader::next`] until it returns none; by then all of them are consumed, and what was not whole is kept inside.
//!
//! ```
//! # use fanwire::wire::*;
//! # let mut read = [0x89, 0x80, 1, 2, 3, 4];
//! let (limits, mut reader, mut inflater) = (Limits::default(), Reader::new(false), Inflater::new());
//! let mut input = &mut read[..];
//! while let Some(message) = reader.next(&mut input, &limits, &mut inflater)? {
//!     assert_eq!(message, Message::Ping(b""));
//! }
//! # Ok::<(), Violation>(())
//! ```

use std::mem;

use super::frame::{Header, MAX_HEADER_BYTES, Opcode, unmask};
use super::{CloseCode, Inflater, Violation, close};

/// What one message may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest message, in bytes, after inflating. Before inflating, an eighth more is let through: what does not
    /// compress grows by that much at most.
    pub max_message: usize,
    /// The most frames that one message may come in.
    pub max_fragments: usize,
}

impl Limits {
    /// The most bytes of one message, as they come.
    fn for_bytes(&self, compressed: bool) -> usize {
        if compressed { self.max_message.saturating_add(self.max_message / 8 + 16) } else { self.max_message }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_message: 64 * 1024, max_fragments: 1024 }
    }
}

/// One whole message, or one control frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A message of text.
    Text(&'a str),
    /// A message of bytes.
    Binary(&'a [u8]),
    /// Wants a pong with the same payload.
    Ping(&'a [u8]),
    /// Answers a ping, or was sent unasked.
    Pong(&'a [u8]),
    /// The client ends the connection. Nothing after this counts.
    Close {
        /// Why, if it says so.
        code: Option<CloseCode>,
        /// Why, for people.
        reason: &'a str,
    },
}

/// Takes one connection's messages out of its bytes.
///
/// Two words while no frame and no message is unfinished; the rest is on the heap, and only as long as it is needed.
#[derive(Debug)]
pub struct Reader {
    compression: bool,
    unfinished: Option<Box<Unfinished>>,
}

/// What outlives one read.
#[derive(Debug, Default)]
struct Unfinished {
    /// The beginning of a header whose end has not come.
    head: [u8; MAX_HEADER_BYTES],
    head_bytes: usize,
    /// The frame whose payload has not come whole.
    frame: Option<Frame>,
    /// What came of the payload of an unfinished control frame.
    control: Vec<u8>,
    /// The message whose last frame has not come whole.
    message: Option<Assembly>,
    /// What the last message that was returned borrows from.
    returned: Vec<u8>,
    /// Whether [`Reader::progress`] has told of it.
    told: bool,
}

/// How it stands with what is unfinished after a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing is: all that came was whole.
    Whole,
    /// A message, or a frame of its own, has begun since this was asked last.
    Begun,
    /// The one that had begun before is still not whole.
    GoesOn,
}

/// A frame under way.
#[derive(Clone, Copy, Debug)]
struct Frame {
    header: Header,
    /// Its payload's length in bytes, within the limits.
    length: usize,
    /// Bytes of its payload that came before.
    seen: usize,
}

/// A message that comes in several pieces. Compressed ones stay compressed until they are whole: an inflater for each
/// connection would cost 48 KB.
#[derive(Debug)]
struct Assembly {
    opcode: Opcode,
    compressed: bool,
    fragments: usize,
    bytes: Vec<u8>,
    /// How many of the bytes are known to be whole characters.
    checked: usize,
}

impl Reader {
    /// A reader for a new connection. `compression`: whether permessage-deflate was agreed.
    pub const fn new(compression: bool) -> Self {
        Self { compression, unfinished: None }
    }

    /// Takes the next message off the front of `input`. None: all of it is consumed, and more is needed.
    ///
    /// A message that stands whole in `input` borrows from there, a compressed one from `inflater`, any other one from
    /// the reader, which lets go of it on the next call.
    ///
    /// # Errors
    /// After a [`Violation`] the connection must be closed with its code; the reader is of no further use.
    pub fn next<'m, 'i: 'm>(
        &'m mut self,
        input: &mut &'i mut [u8],
        limits: &Limits,
        inflater: &'m mut Inflater,
    ) -> Result<Option<Message<'m>>, Violation> {
        self.release();
        inflater.release();
        let (opcode, compressed) = loop {
            let Some(Frame { header, length, seen }) = self.frame(input, limits)? else { return Ok(None) };
            let piece = split_front(input, length - seen);
            unmask(piece, header.mask, seen);
            let ended = seen + piece.len() == length;
            let control = header.opcode.is_control();
            let alone = header.fin && header.opcode != Opcode::Continuation;
            if alone && seen == 0 && ended {
                return message(header.opcode, header.compressed, piece, limits, inflater).map(Some);
            }
            let unfinished = self.unfinished.get_or_insert_default();
            if !ended {
                unfinished.frame = Some(Frame { header, length, seen: seen + piece.len() });
                if piece.is_empty() {
                    return Ok(None);
                }
            }
            if control {
                unfinished.control.extend_from_slice(piece);
            } else {
                let assembly = unfinished.message.get_or_insert_with(|| Assembly::new(&header));
                assembly.fragments += usize::from(seen == 0);
                assembly.push(piece, header.fin.then_some(length - seen), limits)?;
            }
            if !ended {
                return Ok(None);
            }
            if control {
                unfinished.returned = mem::take(&mut unfinished.control);
                break (header.opcode, false);
            }
            if header.fin
                && let Some(assembly) = unfinished.message.take()
            {
                unfinished.returned = assembly.bytes;
                break (assembly.opcode, assembly.compressed);
            }
        };
        let returned = self.unfinished.as_ref().map_or(&[][..], |unfinished| &unfinished.returned);
        message(opcode, compressed, returned, limits, inflater).map(Some)
    }

    /// Bytes of heap held for what is unfinished, and for the last message until the next call.
    pub fn buffered_bytes(&self) -> usize {
        self.unfinished.as_ref().map_or(0, |unfinished| {
            let message = unfinished.message.as_ref().map_or(0, |message| message.bytes.capacity());
            size_of::<Unfinished>() + unfinished.control.capacity() + message + unfinished.returned.capacity()
        })
    }

    /// How it stands with what is unfinished, once [`Reader::next`] has returned none: what may be asked to end in time.
    /// Control frames amid a message change nothing.
    pub fn progress(&mut self) -> Progress {
        let Some(unfinished) = &mut self.unfinished else { return Progress::Whole };
        match mem::replace(&mut unfinished.told, true) {
            true => Progress::GoesOn,
            false => Progress::Begun,
        }
    }

    /// Lets go of the message that the last call returned, and of everything if nothing is under way.
    fn release(&mut self) {
        if let Some(unfinished) = &mut self.unfinished {
            unfinished.returned = Vec::new();
            if unfinished.head_bytes == 0 && unfinished.frame.is_none() && unfinished.message.is_none() {
                self.unfinished = None;
            }
        }
    }

    /// The frame under way, or else the one whose header ends in `input`.
    fn frame(&mut self, input: &mut &mut [u8], limits: &Limits) -> Result<Option<Frame>, Violation> {
        if let Some(frame) = self.unfinished.as_mut().and_then(|unfinished| unfinished.frame.take()) {
            return Ok(Some(frame));
        }
        let Some(header) = self.header(input)? else { return Ok(None) };
        let length = self.admit(&header, limits)?;
        Ok(Some(Frame { header, length, seen: 0 }))
    }

    /// The next header, off the front of `input` and of what was kept of an earlier one.
    fn header(&mut self, input: &mut &mut [u8]) -> Result<Option<Header>, Violation> {
        let kept = self.unfinished.as_ref().map_or(0, |unfinished| unfinished.head_bytes);
        if kept == 0
            && let Some((header, taken)) = Header::parse(input, self.compression)?
        {
            split_front(input, taken);
            return Ok(Some(header));
        }
        if input.is_empty() {
            return Ok(None);
        }
        let unfinished = self.unfinished.get_or_insert_default();
        let added = input.len().min(MAX_HEADER_BYTES - kept);
        unfinished.head[kept..kept + added].copy_from_slice(&input[..added]);
        let parsed = Header::parse(&unfinished.head[..kept + added], self.compression)?;
        // A header that goes on has fewer bytes than fit, so `added` was all of the input.
        let taken = parsed.map_or(added, |(_, taken)| taken - kept);
        split_front(input, taken);
        unfinished.head_bytes = if parsed.is_some() { 0 } else { kept + added };
        Ok(parsed.map(|(header, _)| header))
    }

    /// The length of a frame that may come now and may be so long. Asked before any of it is kept.
    fn admit(&self, header: &Header, limits: &Limits) -> Result<usize, Violation> {
        let too_big = Violation::TooBig { limit: limits.max_message };
        let length = usize::try_from(header.length).map_err(|_| too_big)?;
        let message = self.unfinished.as_ref().and_then(|unfinished| unfinished.message.as_ref());
        let (compressed, fragments, bytes) = match (header.opcode, message) {
            (Opcode::Close | Opcode::Ping | Opcode::Pong, _) => return Ok(length),
            (Opcode::Continuation, None) => return Err(Violation::UnexpectedContinuation),
            (Opcode::Text | Opcode::Binary, Some(_)) => return Err(Violation::Interleaved),
            (Opcode::Text | Opcode::Binary, None) => (header.compressed, 0, 0),
            (Opcode::Continuation, Some(message)) => (message.compressed, message.fragments, message.bytes.len()),
        };
        if limits.max_fragments <= fragments {
            return Err(Violation::TooManyFragments { limit: limits.max_fragments });
        }
        match limits.for_bytes(compressed).checked_sub(bytes) {
            Some(room) if length <= room => Ok(length),
            _ => Err(too_big),
        }
    }
}

impl Assembly {
    fn new(header: &Header) -> Self {
        Self { opcode: header.opcode, compressed: header.compressed, fragments: 0, bytes: Vec::new(), checked: 0 }
    }

    /// Appends a piece. `rest` is how much the message still has, this piece included, if that is known.
    fn push(&mut self, piece: &[u8], rest: Option<usize>, limits: &Limits) -> Result<(), Violation> {
        let needed = self.bytes.len() + piece.len();
        if self.bytes.capacity() < needed {
            // Doubling keeps the copying linear, and what came pays for it; neither goes beyond what may still come.
            let most = rest.map_or(limits.for_bytes(self.compressed), |rest| self.bytes.len() + rest);
            let target = needed.max(self.bytes.capacity().saturating_mul(2).min(most));
            self.bytes.reserve_exact(target - self.bytes.len());
        }
        self.bytes.extend_from_slice(piece);
        if self.opcode == Opcode::Text && !self.compressed { self.check() } else { Ok(()) }
    }

    /// Refuses what cannot become UTF-8 any more. A character whose end has not come may still become one.
    fn check(&mut self) -> Result<(), Violation> {
        match std::str::from_utf8(&self.bytes[self.checked..]) {
            Ok(text) => self.checked += text.len(),
            Err(error) if error.error_len().is_none() => self.checked += error.valid_up_to(),
            Err(_) => return Err(Violation::Utf8),
        }
        Ok(())
    }
}

/// A whole message, or a control frame, from its bytes. Text that was checked piece by piece is checked once more: the
/// proof cannot be kept beside bytes that still grow without `unsafe`. A mebibyte in 16 reads takes 0.5 ms in all.
fn message<'m>(
    opcode: Opcode,
    compressed: bool,
    bytes: &'m [u8],
    limits: &Limits,
    inflater: &'m mut Inflater,
) -> Result<Message<'m>, Violation> {
    let bytes = if compressed { inflater.inflate(bytes, limits.max_message)? } else { bytes };
    match opcode {
        Opcode::Text => std::str::from_utf8(bytes).map(Message::Text).map_err(|_| Violation::Utf8),
        // A message never has the opcode of its continuations.
        Opcode::Binary | Opcode::Continuation => Ok(Message::Binary(bytes)),
        Opcode::Ping => Ok(Message::Ping(bytes)),
        Opcode::Pong => Ok(Message::Pong(bytes)),
        Opcode::Close => close::parse(bytes).map(|(code, reason)| Message::Close { code, reason }),
    }
}

/// Takes up to `most` bytes off the front of `input`.
fn split_front<'i>(input: &mut &'i mut [u8], most: usize) -> &'i mut [u8] {
    let (front, rest) = {
        let whole = mem::take(input);
        let taken = most.min(whole.len());
        whole.split_at_mut(taken)
    };
    *input = rest;
    front
}

#[cfg(test)]
mod tests {
    use super::super::Deflater;
    use super::super::frame::append_masked;
    use super::*;

    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    const LIMITS: Limits = Limits { max_message: 1000, max_fragments: 4 };

    /// One connection with what is shared by all.
    struct Peer {
        reader: Reader,
        inflater: Inflater,
    }

    impl Peer {
        fn new(compression: bool) -> Self {
            Self { reader: Reader::new(compression), inflater: Inflater::new() }
        }

        /// What one read of `bytes` brings, in the words of [`std::fmt::Debug`].
        fn read(&mut self, bytes: &[u8]) -> Result<Vec<String>, Violation> {
            let mut scratch = bytes.to_vec();
            let mut input = &mut scratch[..];
            let mut messages = Vec::new();
            while let Some(message) = self.reader.next(&mut input, &LIMITS, &mut self.inflater)? {
                messages.push(format!("{message:?}"));
            }
            assert!(input.is_empty(), "all of a read is consumed");
            Ok(messages)
        }
    }

    fn frame(opcode: Opcode, fin: bool, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        append_masked(&mut out, opcode, fin, false, MASK, payload);
        out
    }

    fn compressed_frame(opcode: Opcode, fin: bool, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        append_masked(&mut out, opcode, fin, true, MASK, payload);
        out
    }

    /// A header alone, announcing `length`.
    fn announcement(first: u8, length: u64) -> Vec<u8> {
        let mut out = vec![first, 0xff];
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&MASK);
        out
    }

    #[test]
    fn each_message_that_has_begun_is_told_once() {
        use Progress::{Begun, GoesOn, Whole};
        let (text, end) = (frame(Opcode::Text, false, b"Hel"), frame(Opcode::Continuation, true, b"lo"));
        let (whole, ping) = (frame(Opcode::Text, true, b"Hello"), frame(Opcode::Ping, true, b"x"));
        let mut peer = Peer::new(false);
        let mut after = |bytes: &[u8]| {
            peer.read(bytes).unwrap();
            peer.reader.progress()
        };
        assert_eq!((after(&whole), after(&ping)), (Whole, Whole));
        assert_eq!((after(&text), after(b""), after(&ping[..3]), after(&ping[3..])), (Begun, GoesOn, GoesOn, GoesOn));
        assert_eq!((after(&end[..5]), after(&end[5..])), (GoesOn, Whole));
        assert_eq!((after(&whole[..1]), after(&whole[1..9]), after(&whole[9..])), (Begun, GoesOn, Whole));
        assert_eq!((after(&ping[..1]), after(&ping[1..])), (Begun, Whole));
        // One ends and the next begins in the same read.
        let seam = [&whole[8..], &whole[..8]].concat();
        assert_eq!((after(&whole[..8]), after(&seam), after(&seam), after(&whole[8..])), (Begun, Begun, Begun, Whole));
        let seam = [&end[..], &text[..]].concat();
        assert_eq!((after(&text), after(&seam), after(&ping), after(&end)), (Begun, Begun, GoesOn, Whole));
    }

    #[test]
    fn a_message_whole_in_one_read_is_borrowed_from_it() {
        let mut scratch = frame(Opcode::Text, true, b"Hello");
        let payload = scratch[6..].as_ptr();
        let (mut reader, mut inflater) = (Reader::new(false), Inflater::new());
        let mut input = &mut scratch[..];
        let message = reader.next(&mut input, &LIMITS, &mut inflater).unwrap();
        let Some(Message::Text(text)) = message else { panic!("{message:?}") };
        assert_eq!((text, text.as_ptr()), ("Hello", payload));
        assert_eq!(reader.buffered_bytes(), 0);
    }

    #[test]
    fn an_idle_connection_holds_two_words() {
        assert_eq!(size_of::<Reader>(), 16);
        let mut peer = Peer::new(false);
        let bytes = frame(Opcode::Text, true, b"Hello");
        for cut in 1..bytes.len() {
            assert_eq!(peer.read(&bytes[..cut]), Ok(vec![]));
            assert!(0 < peer.reader.buffered_bytes() && peer.reader.buffered_bytes() < 300);
            assert_eq!(peer.read(&bytes[cut..]), Ok(vec![r#"Text("Hello")"#.into()]));
            assert_eq!(peer.reader.buffered_bytes(), 0);
            assert!(peer.reader.unfinished.is_none());
        }
    }

    #[test]
    fn control_frames_stand_between_fragments() {
        let mut bytes = frame(Opcode::Text, false, "κό".as_bytes());
        bytes.extend(frame(Opcode::Ping, true, b"are you there"));
        bytes.extend(frame(Opcode::Continuation, false, b""));
        bytes.extend(frame(Opcode::Pong, true, b""));
        bytes.extend(frame(Opcode::Continuation, true, "σμε".as_bytes()));
        bytes.extend(frame(Opcode::Close, true, b"\x03\xe8bye"));
        let expected = [
            format!("Ping({:?})", b"are you there"),
            "Pong([])".into(),
            r#"Text("κόσμε")"#.into(),
            r#"Close { code: Some(CloseCode(1000)), reason: "bye" }"#.into(),
        ];
        assert_eq!(Peer::new(false).read(&bytes).unwrap(), expected);
        let mut peer = Peer::new(false);
        let one_by_one: Vec<String> = bytes.iter().flat_map(|byte| peer.read(&[*byte]).unwrap()).collect();
        assert_eq!(one_by_one, expected);
    }

    #[test]
    fn frames_out_of_order_are_refused() {
        let table = [
            (frame(Opcode::Continuation, true, b"x"), Violation::UnexpectedContinuation),
            ([frame(Opcode::Text, false, b"x"), frame(Opcode::Text, true, b"x")].concat(), Violation::Interleaved),
            ([frame(Opcode::Text, false, b""), frame(Opcode::Binary, true, b"")].concat(), Violation::Interleaved),
            (compressed_frame(Opcode::Text, true, b"\0"), Violation::ReservedBits(0xc1)),
            (frame(Opcode::Close, true, b"\x03"), Violation::ShortClose),
            (frame(Opcode::Close, true, b"\x03\xed"), Violation::CloseCode(1005)),
            (frame(Opcode::Close, true, b"\x03\xe8\xc0"), Violation::Utf8),
        ];
        for (bytes, violation) in table {
            assert_eq!(Peer::new(false).read(&bytes), Err(violation));
            let mut peer = Peer::new(false);
            let one_by_one: Result<Vec<_>, _> = bytes.iter().map(|byte| peer.read(&[*byte])).collect();
            assert_eq!(one_by_one, Err(violation));
        }
    }

    #[test]
    fn a_size_is_refused_when_it_is_announced() {
        let too_big = Violation::TooBig { limit: 1000 };
        assert_eq!(Peer::new(false).read(&announcement(0x81, u64::MAX >> 1)), Err(too_big));
        assert_eq!(Peer::new(true).read(&announcement(0xc1, u64::MAX >> 1)), Err(too_big));
        assert_eq!(too_big.close_code(), CloseCode::TOO_BIG);

        let mut peer = Peer::new(false);
        assert_eq!(peer.read(&frame(Opcode::Binary, true, &[1; 1000])).unwrap().len(), 1);
        assert_eq!(peer.read(&frame(Opcode::Binary, true, &[1; 1001])), Err(too_big));

        let mut peer = Peer::new(false);
        assert_eq!(peer.read(&frame(Opcode::Binary, false, &[1; 999])), Ok(vec![]));
        assert_eq!(peer.read(&frame(Opcode::Continuation, false, b"x")), Ok(vec![]));
        assert_eq!(peer.read(&frame(Opcode::Continuation, false, b"")), Ok(vec![]));
        assert_eq!(peer.read(&frame(Opcode::Continuation, true, b"x")[..6]), Err(too_big), "before its payload comes");
    }

    #[test]
    fn fragments_are_counted() {
        let mut peer = Peer::new(false);
        for opcode in [Opcode::Binary, Opcode::Continuation, Opcode::Continuation] {
            assert_eq!(peer.read(&frame(opcode, false, b"")), Ok(vec![]));
        }
        assert_eq!(peer.read(&frame(Opcode::Continuation, true, b"")), Ok(vec!["Binary([])".into()]));
        for opcode in [Opcode::Binary, Opcode::Continuation, Opcode::Continuation, Opcode::Continuation] {
            let bytes = frame(opcode, false, b"xy");
            bytes.iter().for_each(|byte| assert_eq!(peer.read(&[*byte]), Ok(vec![])));
        }
        let too_many = Violation::TooManyFragments { limit: 4 };
        assert_eq!(peer.read(&frame(Opcode::Continuation, true, b"")), Err(too_many));
        assert_eq!(too_many.close_code(), CloseCode::TOO_BIG);
    }

    #[test]
    fn memory_follows_what_came_and_not_what_was_announced() {
        let limits = Limits { max_message: 1 << 30, max_fragments: 1 };
        let (mut reader, mut inflater) = (Reader::new(false), Inflater::new());
        let mut bytes = announcement(0x82, 1 << 30);
        bytes.extend_from_slice(&[0; 1000]);
        assert_eq!(reader.next(&mut &mut bytes[..], &limits, &mut inflater), Ok(None));
        assert!(reader.buffered_bytes() < 1300, "{}", reader.buffered_bytes());
        reader.next(&mut &mut [0; 1000][..], &limits, &mut inflater).unwrap();
        assert!(reader.buffered_bytes() < 2300, "{}", reader.buffered_bytes());
    }

    #[test]
    fn a_message_in_many_pieces_is_neither_copied_nor_checked_over_and_over() {
        let mut peer = Peer::new(false);
        let bytes = frame(Opcode::Text, false, "é".repeat(400).as_bytes());
        let mut sizes = Vec::new();
        // Eight bytes of header, one of payload, then two by two: each piece ends inside a character.
        assert_eq!(peer.read(&bytes[..9]), Ok(vec![]));
        for piece in bytes[9..bytes.len() - 1].chunks(2) {
            assert_eq!(peer.read(piece), Ok(vec![]));
            sizes.push(peer.reader.buffered_bytes());
        }
        sizes.dedup();
        assert!(sizes.len() <= 12, "each growth doubles: {sizes:?}");
        let assembly = peer.reader.unfinished.as_ref().unwrap().message.as_ref().unwrap();
        assert_eq!((assembly.bytes.len(), assembly.checked), (799, 798));
    }

    #[test]
    fn what_was_returned_is_let_go_on_the_next_call() {
        let mut peer = Peer::new(true);
        assert_eq!(peer.read(&frame(Opcode::Text, false, b"begun")), Ok(vec![]));
        let begun = peer.reader.buffered_bytes();
        let ping = frame(Opcode::Ping, true, &[7; 125]);
        assert_eq!(peer.read(&ping[..60]), Ok(vec![]));
        assert_eq!(peer.read(&ping[60..]).unwrap().len(), 1);
        assert_eq!(peer.reader.buffered_bytes(), begun);

        let (limits, mut reader, mut inflater) = (Limits::default(), Reader::new(true), Inflater::new());
        let mut deflated = Vec::new();
        Deflater::new().compress(&vec![0; limits.max_message], &mut deflated);
        let mut bytes = compressed_frame(Opcode::Binary, true, &deflated);
        let mut input = &mut bytes[..];
        assert!(reader.next(&mut input, &limits, &mut inflater).unwrap().is_some());
        assert!(limits.max_message < inflater.held_bytes());
        assert_eq!(reader.next(&mut input, &limits, &mut inflater), Ok(None));
        assert_eq!(inflater.held_bytes(), 0);
    }

    #[test]
    fn bad_text_is_refused_at_its_first_bad_byte() {
        // Autobahn 6.4: a good start, then a code point above U+10FFFF.
        let text = b"\xce\xba\xcf\x8c\xcf\x83\xce\xbc\xce\xb5\xf4\x90\x80\x80edited";
        let bytes = frame(Opcode::Text, true, text);
        let mut peer = Peer::new(false);
        for byte in &bytes[..6 + 11] {
            assert_eq!(peer.read(&[*byte]), Ok(vec![]));
        }
        assert_eq!(peer.read(&bytes[6 + 11..6 + 12]), Err(Violation::Utf8));
        assert_eq!(Violation::Utf8.close_code(), CloseCode::INVALID_PAYLOAD);

        let mut peer = Peer::new(false);
        assert_eq!(peer.read(&frame(Opcode::Text, false, &text[..11])), Ok(vec![]));
        assert_eq!(peer.read(&frame(Opcode::Continuation, false, &text[11..12])), Err(Violation::Utf8));

        let unfinished = [frame(Opcode::Text, false, b"x"), frame(Opcode::Continuation, true, b"\xce")].concat();
        assert_eq!(Peer::new(false).read(&unfinished), Err(Violation::Utf8));
    }

    #[test]
    fn compressed_messages_are_those_of_the_rfc() {
        let hello: &[u8] = b"\xf2\x48\xcd\xc9\xc9\x07\x00";
        let examples: [Vec<u8>; 6] = [
            compressed_frame(Opcode::Text, true, hello),
            [
                compressed_frame(Opcode::Text, false, &hello[..3]),
                frame(Opcode::Ping, true, b""),
                frame(Opcode::Continuation, true, &hello[3..]),
            ]
            .concat(),
            compressed_frame(Opcode::Text, true, b"\x00\x05\x00\xfa\xff\x48\x65\x6c\x6c\x6f\x00"),
            compressed_frame(Opcode::Text, true, b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00"),
            compressed_frame(Opcode::Text, true, b"\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00"),
            frame(Opcode::Text, true, b"Hello"),
        ];
        for bytes in examples {
            assert_eq!(Peer::new(true).read(&bytes).unwrap().last().unwrap(), r#"Text("Hello")"#);
        }
        let empty = compressed_frame(Opcode::Binary, true, b"\0");
        assert_eq!(Peer::new(true).read(&empty).unwrap(), ["Binary([])"]);
    }

    #[test]
    fn a_compressed_message_is_measured_before_and_after_inflating() {
        let too_big = Violation::TooBig { limit: 1000 };
        let mut deflated = Vec::new();
        Deflater::new().compress(&[0; 1001], &mut deflated);
        assert_eq!(Peer::new(true).read(&compressed_frame(Opcode::Binary, true, &deflated)), Err(too_big));
        assert_eq!(Peer::new(true).read(&compressed_frame(Opcode::Binary, false, &[0; 1142])), Err(too_big));

        // A client that stores a message of the largest size instead: six bytes more than the message.
        let stored = [b"\x00\xe8\x03\x17\xfc", &[7; 1000][..], b"\0"].concat();
        let read = Peer::new(true).read(&compressed_frame(Opcode::Binary, true, &stored));
        assert_eq!(read, Ok(vec![format!("Binary({:?})", [7; 1000])]));

        let not_text = Peer::new(true).read(&compressed_frame(Opcode::Text, true, b"\x00\x01\x00\xfe\xff\xff\x00"));
        assert_eq!(not_text, Err(Violation::Utf8));
        let corrupt = Peer::new(true).read(&compressed_frame(Opcode::Text, true, b"\xff\xff\xff"));
        assert_eq!(corrupt, Err(Violation::Corrupt));
        assert_eq!(Violation::Corrupt.close_code(), CloseCode::INVALID_PAYLOAD);
    }
}
