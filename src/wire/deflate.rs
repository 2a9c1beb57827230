//! RFC 7692, permessage-deflate: negotiation, compress once for all, inflate with a cap.
//!
//! No context is taken over in either direction, so a compressed frame means the same to every subscriber and is made
//! once, and neither side keeps anything for a connection between two messages. A thread has one [`Deflater`] and one
//! [`Inflater`]. Begin at [`negotiate`].

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::Violation;

/// What every message in a raw DEFLATE stream with a sync flush ends with, and what RFC 7692 7.2.1 leaves out.
const TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];

/// The tail, and an empty final block behind it. Only a message that is whole ends the stream there.
const TAIL_AND_END: [u8; 9] = [0x00, 0x00, 0xff, 0xff, 0x01, 0x00, 0x00, 0xff, 0xff];

/// Final blocks that one message may hold. One is usual for senders that use them at all (RFC 7692 7.2.3.4); each costs
/// a reset, which two bytes must not buy without end.
const MAX_FINAL_BLOCKS: usize = 64;

/// Bytes of inflated message that an [`Inflater`] keeps room for between messages.
const KEPT_BYTES: usize = 64 * 1024;

/// The first room for an inflated message, in bytes.
const FIRST_BYTES: usize = 4 * 1024;

/// That compression was agreed on, and in which words to say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// The value of the answer's `Sec-WebSocket-Extensions`.
    pub response: &'static str,
}

/// A `Sec-WebSocket-Extensions` that does not follow the grammar of RFC 6455 9.1: the handshake must fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Sec-WebSocket-Extensions is malformed")]
pub struct MalformedOffers;

/// Answers a client's `Sec-WebSocket-Extensions`, given each header line's value in order. None: no compression.
///
/// The client's first acceptable offer is taken. An offer is passed over if it has a parameter that is unknown, that
/// comes twice, or whose value RFC 7692 7.1 does not allow, and if it wants a smaller window of us than the one that
/// frames for all are made with. The work is linear in the header's length.
///
/// # Errors
/// [`MalformedOffers`]: answer the handshake with 400.
pub fn negotiate<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Option<Agreement>, MalformedOffers> {
    let mut agreement = None;
    for line in lines {
        let mut parser = Parser { rest: line.trim_matches(BLANK) };
        // An element of a list may be empty (RFC 9110 5.6.1.2).
        while !parser.at_end() {
            if parser.take(',') {
                continue;
            }
            let accepted = parser.offer()?;
            agreement = agreement.or(accepted);
            if !parser.at_end() && !parser.take(',') {
                return Err(MalformedOffers);
            }
        }
    }
    Ok(agreement)
}

const BLANK: [char; 2] = [' ', '\t'];

/// What is left of a header line, without blanks at its front.
struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn at_end(&self) -> bool {
        self.rest.is_empty()
    }

    fn take(&mut self, separator: char) -> bool {
        let taken = self.rest.strip_prefix(separator);
        self.rest = taken.map_or(self.rest, |rest| rest.trim_start_matches(BLANK));
        taken.is_some()
    }

    fn token(&mut self) -> Result<&'a str, MalformedOffers> {
        let end = self.rest.find(|c| !is_token_char(c)).unwrap_or(self.rest.len());
        let (token, rest) = self.rest.split_at(end);
        self.rest = rest.trim_start_matches(BLANK);
        if token.is_empty() { Err(MalformedOffers) } else { Ok(token) }
    }

    /// A token, or one in quotes. What was quoted still has its backslashes.
    fn value(&mut self) -> Result<&'a str, MalformedOffers> {
        let Some(quoted) = self.rest.strip_prefix('"') else { return self.token() };
        let mut escaped = false;
        let end = quoted.find(|c| match (escaped, c) {
            (false, '"') => true,
            _ => {
                escaped = !escaped && c == '\\';
                false
            }
        });
        let (value, rest) = quoted.split_at(end.ok_or(MalformedOffers)?);
        if value.is_empty() || !unescaped(value).all(is_token_char) {
            return Err(MalformedOffers);
        }
        self.rest = rest[1..].trim_start_matches(BLANK);
        Ok(value)
    }

    /// One extension with its parameters, to the end of its last one; what we agree to if it is ours and acceptable.
    fn offer(&mut self) -> Result<Option<Agreement>, MalformedOffers> {
        let mut acceptable = self.token()? == "permessage-deflate";
        let mut seen = Parameters::default();
        while self.take(';') {
            let name = self.token()?;
            let value = if self.take('=') { Some(self.value()?) } else { None };
            acceptable &= seen.note(name, value);
        }
        Ok(acceptable.then(|| seen.agreement()))
    }
}

/// The parameters of RFC 7692 7.1 that an offer had so far.
#[derive(Default)]
struct Parameters {
    server_no_context_takeover: bool,
    client_no_context_takeover: bool,
    server_max_window_bits: bool,
    client_max_window_bits: bool,
}

impl Parameters {
    /// Notes one parameter. False: the offer must be declined.
    fn note(&mut self, name: &str, value: Option<&str>) -> bool {
        let bits = value.and_then(window_bits);
        let (seen, valid) = match name {
            "server_no_context_takeover" => (&mut self.server_no_context_takeover, value.is_none()),
            "client_no_context_takeover" => (&mut self.client_no_context_takeover, value.is_none()),
            // Frames for all are made with the largest window.
            "server_max_window_bits" => (&mut self.server_max_window_bits, bits == Some(15)),
            // Only a hint of what the client could do; we inflate with the largest window.
            "client_max_window_bits" => (&mut self.client_max_window_bits, value.is_none() || bits.is_some()),
            _ => return false,
        };
        let first = !std::mem::replace(seen, true);
        first && valid
    }

    fn agreement(&self) -> Agreement {
        let response = match self.server_max_window_bits {
            false => "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
            // Who asked for it must see it in the answer (RFC 7692 7.1.2.1).
            true => {
                "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=15"
            }
        };
        Agreement { response }
    }
}

/// 8 to 15, in decimal without leading zeros.
fn window_bits(raw: &str) -> Option<u8> {
    let mut characters = unescaped(raw);
    match (characters.next(), characters.next(), characters.next()) {
        (Some('8'), None, None) => Some(8),
        (Some('9'), None, None) => Some(9),
        (Some('1'), Some(unit @ '0'..='5'), None) => Some(10 + (unit as u8 - b'0')),
        _ => None,
    }
}

fn unescaped(raw: &str) -> impl Iterator<Item = char> {
    let mut characters = raw.chars();
    std::iter::from_fn(move || match characters.next()? {
        '\\' => characters.next(),
        character => Some(character),
    })
}

/// RFC 9110 5.6.2.
fn is_token_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

/// Compresses messages, each on its own. One for each thread: it takes 380 KB.
#[derive(Debug)]
pub struct Deflater {
    stream: Compress,
}

impl Deflater {
    /// A compressor at level 1: for 512 bytes of JSON level 2 takes 2.5 times as long and saves an eighth (measured).
    pub fn new() -> Self {
        Self { stream: Compress::new(Compression::new(1), false) }
    }

    /// Appends `payload`, compressed, to `out`: what goes into a frame with the compression bit.
    pub fn compress(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        if payload.is_empty() {
            // An empty stored block without the tail (RFC 7692 7.2.3.6).
            out.push(0x00);
            return;
        }
        self.stream.reset();
        let start = out.len();
        out.reserve(payload.len() / 2 + 64);
        loop {
            let rest = &payload[self.stream.total_in() as usize..];
            self.stream
                .compress_vec(rest, out, FlushCompress::Sync)
                .expect("a fresh stream without a dictionary deflates any bytes");
            // Room that was left means that all is flushed (zlib's manual on deflate).
            if out.len() < out.capacity() {
                break;
            }
            out.reserve(rest.len() / 2 + 64);
        }
        if out[start..].ends_with(&TAIL) {
            out.truncate(out.len() - TAIL.len());
        }
    }
}

impl Default for Deflater {
    fn default() -> Self {
        Self::new()
    }
}

/// Inflates messages, each on its own, into room of its own. One for each thread: it takes 48 KB besides.
#[derive(Debug)]
pub struct Inflater {
    stream: Decompress,
    out: Vec<u8>,
}

impl Inflater {
    /// An inflater with the largest window.
    pub fn new() -> Self {
        Self { stream: Decompress::new(false), out: Vec::new() }
    }

    /// The message that `compressed` stands for, if it has at most `max_message` bytes.
    ///
    /// Inflates in steps and stops one byte after the limit, so that a small frame cannot fill the memory.
    ///
    /// # Errors
    /// [`Violation::TooBig`] or [`Violation::Corrupt`].
    pub fn inflate(&mut self, compressed: &[u8], max_message: usize) -> Result<&[u8], Violation> {
        self.out.clear();
        self.stream.reset(false);
        // Nothing at all is not a DEFLATE stream, but some send it for an empty message, and it can mean nothing else.
        if compressed.is_empty() {
            return Ok(&self.out);
        }
        let mut final_blocks = 0;
        let mut rest = compressed;
        while self.run(&mut rest, max_message)? == Status::StreamEnd {
            if rest.is_empty() {
                return Ok(&self.out);
            }
            final_blocks += 1;
            if MAX_FINAL_BLOCKS < final_blocks {
                return Err(Violation::Corrupt);
            }
            self.stream.reset(false);
        }
        let mut tail = &TAIL_AND_END[..];
        match self.run(&mut tail, max_message)? {
            Status::StreamEnd if tail.is_empty() => Ok(&self.out),
            _ => Err(Violation::Corrupt),
        }
    }

    /// Bytes of heap held for inflated messages.
    pub fn held_bytes(&self) -> usize {
        self.out.capacity()
    }

    /// Gives back what a large message took. The reader calls this before each message.
    pub(super) fn release(&mut self) {
        if KEPT_BYTES < self.out.capacity() {
            self.out = Vec::new();
        }
    }

    /// Inflates until `input` is used up, or the stream ends.
    fn run(&mut self, input: &mut &[u8], max_message: usize) -> Result<Status, Violation> {
        let most = max_message.saturating_add(1);
        loop {
            if self.out.len() == self.out.capacity() {
                let target = (self.out.capacity() * 2).clamp(FIRST_BYTES, most.max(FIRST_BYTES));
                self.out.reserve_exact(target - self.out.len());
            }
            let before = self.stream.total_in();
            let status = self.stream.decompress_vec(input, &mut self.out, FlushDecompress::None);
            let status = status.map_err(|_| Violation::Corrupt)?;
            *input = &input[(self.stream.total_in() - before) as usize..];
            if max_message < self.out.len() {
                return Err(Violation::TooBig { limit: max_message });
            }
            let has_room = self.out.len() < self.out.capacity();
            match status {
                Status::StreamEnd => return Ok(status),
                _ if has_room && input.is_empty() => return Ok(status),
                Status::BufError if has_room => return Err(Violation::Corrupt),
                _ => {}
            }
        }
    }
}

impl Default for Inflater {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
    const WITH_BITS: &str =
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=15";

    fn answer(lines: &[&'static str]) -> Result<Option<&'static str>, MalformedOffers> {
        negotiate(lines.iter().copied()).map(|agreement| agreement.map(|agreement| agreement.response))
    }

    #[test]
    fn acceptable_offers_are_accepted() {
        for line in [
            "permessage-deflate",
            "permessage-deflate; client_max_window_bits",
            "permessage-deflate; client_max_window_bits=8",
            "permessage-deflate;client_max_window_bits=\"1\\5\"",
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
            " \tpermessage-deflate\t;\tclient_max_window_bits\t=\t15\t",
            ",, permessage-deflate,",
            "x-webkit-deflate-frame, permessage-deflate",
            "permessage-deflate; server_max_window_bits=9, permessage-deflate",
            "permessage-deflate; mystery, permessage-deflate; client_max_window_bits",
            "foo; bar=\"baz\"; qux, permessage-deflate",
        ] {
            assert_eq!(answer(&[line]), Ok(Some(PLAIN)), "{line}");
        }
        assert_eq!(answer(&["permessage-deflate; server_max_window_bits=15"]), Ok(Some(WITH_BITS)));
        assert_eq!(answer(&["permessage-deflate; server_max_window_bits=\"15\""]), Ok(Some(WITH_BITS)));
        assert_eq!(answer(&["foo", "", "permessage-deflate; mystery", "permessage-deflate"]), Ok(Some(PLAIN)));
        let first = "permessage-deflate; server_max_window_bits=15, permessage-deflate";
        assert_eq!(answer(&[first]), Ok(Some(WITH_BITS)), "the client's order counts");
    }

    #[test]
    fn other_offers_are_declined() {
        for line in [
            "",
            " , ",
            "permessage-bzip2",
            "Permessage-Deflate",
            "permessage-deflate; mystery",
            "permessage-deflate; server_no_context_takeover=1",
            "permessage-deflate; client_no_context_takeover=true",
            "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
            "permessage-deflate; client_max_window_bits; client_max_window_bits=10",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; server_max_window_bits=14",
            "permessage-deflate; server_max_window_bits=8",
            "permessage-deflate; server_max_window_bits=16",
            "permessage-deflate; client_max_window_bits=7",
            "permessage-deflate; client_max_window_bits=16",
            "permessage-deflate; client_max_window_bits=08",
            "permessage-deflate; client_max_window_bits=+9",
            "permessage-deflate; client_max_window_bits=150",
            "permessage-deflate; client_max_window_bits=99999999999999999999",
        ] {
            assert_eq!(answer(&[line]), Ok(None), "{line}");
        }
    }

    #[test]
    fn what_is_no_header_fails_the_handshake() {
        for line in [
            "permessage-deflate;",
            ";",
            "=",
            "permessage-deflate; =15",
            "permessage-deflate; client_max_window_bits=",
            "permessage-deflate; client_max_window_bits=\"\"",
            "permessage-deflate; client_max_window_bits=\"15",
            "permessage-deflate; client_max_window_bits=\"1 5\"",
            "permessage-deflate; client_max_window_bits=\"15\\",
            "permessage-deflate; client_max_window_bits=15 16",
            "permessage-deflate permessage-deflate",
            "permessage-deflate; é",
            "permessage-deflate, \"quoted\"",
        ] {
            assert_eq!(answer(&[line]), Err(MalformedOffers), "{line}");
            assert_eq!(answer(&["permessage-deflate", line]), Err(MalformedOffers), "{line}");
        }
    }

    /// Bytes that do not compress, the same each time: xorshift (Marsaglia, 2003).
    fn noise(length: usize) -> Vec<u8> {
        let mut state = 2_463_534_242_u32;
        let mut step = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        };
        std::iter::repeat_with(&mut step).take(length).collect()
    }

    fn deflated(payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        Deflater::new().compress(payload, &mut out);
        out
    }

    #[test]
    fn what_was_deflated_inflates_again() {
        let noise = noise(100_000);
        let json = r#"{"type":"message","channel":"chat:lobby","offset":17}"#.repeat(100);
        let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
        for payload in [b"", &b"x"[..], b"Hello", &noise, json.as_bytes(), &[0; 1 << 20]] {
            let mut out = b"before".to_vec();
            deflater.compress(payload, &mut out);
            assert!(out.starts_with(b"before"));
            assert_eq!(inflater.inflate(&out[6..], payload.len()), Ok(payload));
            // A client without our framing: RFC 7692 7.2.2 to the letter.
            let whole = [&out[6..], &TAIL].concat();
            let mut by_the_rfc = Vec::with_capacity(payload.len() + 1);
            Decompress::new(false).decompress_vec(&whole, &mut by_the_rfc, FlushDecompress::Sync).unwrap();
            assert_eq!(by_the_rfc, payload);
        }
        assert!(deflated(json.as_bytes()).len() < json.len() / 20);
        assert_eq!(deflated(b""), [0]);
    }

    #[test]
    fn noise_grows_but_less_than_the_reader_lets_through() {
        for length in [1, 2, 16, 100, 1000, 10_000, 100_000] {
            let bytes = deflated(&noise(length)).len();
            assert!(length < bytes && bytes <= length + length / 8 + 16, "{length} to {bytes}");
        }
    }

    #[test]
    fn a_message_never_leans_on_the_one_before() {
        let (mut deflater, payload) = (Deflater::new(), b"the same words, and the same words again");
        let (mut first, mut second) = (Vec::new(), Vec::new());
        deflater.compress(payload, &mut first);
        deflater.compress(payload, &mut second);
        assert_eq!(first, second);

        // `second` as a client with context takeover would send it: a reference into the message before.
        let mut taken_over = Compress::new(Compression::new(6), false);
        let mut out = Vec::with_capacity(1000);
        taken_over.compress_vec(payload, &mut out, FlushCompress::Sync).unwrap();
        let end_of_first = out.len();
        taken_over.compress_vec(payload, &mut out, FlushCompress::Sync).unwrap();
        let mut inflater = Inflater::new();
        assert_eq!(inflater.inflate(&out[..end_of_first - 4], 100), Ok(&payload[..]));
        assert_eq!(inflater.inflate(&out[end_of_first..out.len() - 4], 100), Err(Violation::Corrupt));
        assert_eq!(inflater.inflate(&first, 100), Ok(&payload[..]), "an error leaves nothing behind");
    }

    #[test]
    fn a_bomb_stops_one_byte_after_the_limit() {
        let bomb = deflated(&vec![0; 32 << 20]);
        assert!(bomb.len() < 1 << 19);
        let mut inflater = Inflater::new();
        for limit in [0, 1, 4095, 4096, 65_536, 1 << 20] {
            assert_eq!(inflater.inflate(&bomb, limit), Err(Violation::TooBig { limit }));
            assert!(inflater.held_bytes() <= (limit + 1).max(FIRST_BYTES));
        }
        inflater.release();
        assert_eq!(inflater.held_bytes(), 0, "large room is not kept");
        assert_eq!(inflater.inflate(&deflated(&[7; 10]), usize::MAX), Ok(&[7; 10][..]));
        inflater.release();
        assert_eq!(inflater.held_bytes(), FIRST_BYTES, "small room is");
    }

    #[test]
    fn every_size_around_the_steps_inflates() {
        let mut inflater = Inflater::new();
        for length in (FIRST_BYTES - 40..FIRST_BYTES + 40).chain(2 * FIRST_BYTES - 40..2 * FIRST_BYTES + 40) {
            for payload in [vec![0; length], noise(length)] {
                inflater.out = Vec::new();
                assert_eq!(inflater.inflate(&deflated(&payload), length), Ok(&payload[..]), "{length}");
            }
        }
    }

    #[test]
    fn a_cut_message_is_corrupt() {
        let whole = deflated(&(0..2000_u32).flat_map(|i| (i * i).to_le_bytes()).collect::<Vec<u8>>());
        let mut inflater = Inflater::new();
        assert!(inflater.inflate(&whole, 9000).is_ok());
        for cut in 1..whole.len() {
            assert_eq!(inflater.inflate(&whole[..cut], 9000), Err(Violation::Corrupt), "{cut}");
        }
        assert_eq!(inflater.inflate(b"", 9000), Ok(&b""[..]));
    }

    #[test]
    fn final_blocks_end_a_message_or_go_on_but_not_for_ever() {
        let final_hello: &[u8] = b"\xf3\x48\xcd\xc9\xc9\x07\x00";
        let mut inflater = Inflater::new();
        assert_eq!(inflater.inflate(&final_hello[..6], 5), Err(Violation::Corrupt), "it would end inside the tail");
        assert_eq!(inflater.inflate(&[final_hello, b"\0"].concat(), 5), Ok(&b"Hello"[..]));
        assert_eq!(inflater.inflate(final_hello, 5), Ok(&b"Hello"[..]), "zlib's own ending alone");
        assert_eq!(inflater.inflate(&[final_hello, final_hello].concat(), 10), Ok(&b"HelloHello"[..]));
        assert_eq!(inflater.inflate(&[final_hello, final_hello].concat(), 9), Err(Violation::TooBig { limit: 9 }));
        assert_eq!(inflater.inflate(&b"\x03\x00".repeat(1 << 16), 5), Err(Violation::Corrupt));
    }
}
