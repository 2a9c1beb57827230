//! A frame's header, in and out; one payload to one frame (RFC 6455 5.2).
//!
//! The server's frames are not masked, so a frame is encoded once and shared by every subscriber as [`Bytes`]. Begin at
//! [`append`], or at [`Header::parse`] for the way in.

use bytes::Bytes;

use super::{CloseCode, Violation, close};

/// The longest payload of a control frame, in bytes.
pub const MAX_CONTROL_BYTES: usize = 125;

/// The longest header, in bytes: two, a 64-bit length and a mask.
pub const MAX_HEADER_BYTES: usize = 14;

const FIN: u8 = 0x80;
const COMPRESSED: u8 = 0x40;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// More of the message under way.
    Continuation,
    /// A message of UTF-8 begins.
    Text,
    /// A message of bytes begins.
    Binary,
    /// The sender ends the connection.
    Close,
    /// Wants a pong with the same payload.
    Ping,
    /// Answers a ping, or is sent unasked.
    Pong,
}

impl Opcode {
    const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xa => Self::Pong,
            _ => return None,
        })
    }

    const fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0x0,
            Self::Text => 0x1,
            Self::Binary => 0x2,
            Self::Close => 0x8,
            Self::Ping => 0x9,
            Self::Pong => 0xa,
        }
    }

    /// Whether this is a close, ping or pong: short, whole, and allowed between the fragments of a message.
    pub const fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// What stands before a client's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub opcode: Opcode,
    /// Whether this is its message's last frame.
    pub fin: bool,
    /// Whether the message that begins here is compressed (RSV1, RFC 7692 6).
    pub compressed: bool,
    /// The mask the payload is under.
    pub mask: [u8; 4],
    /// The payload's length in bytes, as announced.
    pub length: u64,
}

impl Header {
    /// The header of a client's frame from the front of `bytes`, and how many bytes it takes; none if it goes on beyond
    /// them. What is wrong in the first bytes is said without waiting for the rest. `compression` tells whether
    /// permessage-deflate was agreed.
    #[inline]
    pub fn parse(bytes: &[u8], compression: bool) -> Result<Option<(Self, usize)>, Violation> {
        let Some((&first, rest)) = bytes.split_first() else { return Ok(None) };
        let opcode = Opcode::from_bits(first & 0x0f).ok_or(Violation::ReservedOpcode(first & 0x0f))?;
        let (fin, compressed) = (first & FIN != 0, first & RESERVED == COMPRESSED);
        let begins_message = matches!(opcode, Opcode::Text | Opcode::Binary);
        if first & RESERVED != 0 && !(compressed && compression && begins_message) {
            return Err(Violation::ReservedBits(first));
        }
        if opcode.is_control() && !fin {
            return Err(Violation::FragmentedControl);
        }
        let Some((&second, rest)) = rest.split_first() else { return Ok(None) };
        if second & MASKED == 0 {
            return Err(Violation::Unmasked);
        }
        if opcode.is_control() && MAX_CONTROL_BYTES < usize::from(second & 0x7f) {
            return Err(Violation::LongControl);
        }
        let Some((length, rest)) = parse_length(second & 0x7f, rest)? else { return Ok(None) };
        let Some((&mask, rest)) = rest.split_first_chunk() else { return Ok(None) };
        Ok(Some((Self { opcode, fin, compressed, mask, length }, bytes.len() - rest.len())))
    }
}

/// The length that `short` stands for or that follows in `bytes`, and what is behind it.
#[inline]
fn parse_length(short: u8, bytes: &[u8]) -> Result<Option<(u64, &[u8])>, Violation> {
    let (length, shortest, rest) = match short {
        126 => {
            let Some((length, rest)) = bytes.split_first_chunk() else { return Ok(None) };
            (u16::from_be_bytes(*length).into(), 126, rest)
        }
        127 => {
            let Some((length, rest)) = bytes.split_first_chunk() else { return Ok(None) };
            (u64::from_be_bytes(*length), 1 << 16, rest)
        }
        short => (short.into(), 0, bytes),
    };
    match length {
        length if length >> 63 != 0 => Err(Violation::LengthTopBit),
        length if length < shortest => Err(Violation::OverlongLength(length)),
        length => Ok(Some((length, rest))),
    }
}

/// Applies `mask` to `payload`, which begins `offset` bytes into its frame's payload. Masking and unmasking are the same.
#[inline]
pub fn unmask(payload: &mut [u8], mut mask: [u8; 4], offset: usize) {
    mask.rotate_left(offset % 4);
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = payload.as_chunks_mut();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

/// Appends one whole frame of the server: final, not masked. `compressed` says that `payload` went through the
/// [`Deflater`](super::Deflater). A control frame's payload must not be over [`MAX_CONTROL_BYTES`].
pub fn append(out: &mut Vec<u8>, opcode: Opcode, compressed: bool, payload: &[u8]) {
    debug_assert!(!opcode.is_control() || payload.len() <= MAX_CONTROL_BYTES, "control frames are short");
    out.reserve(MAX_HEADER_BYTES + payload.len());
    append_header(out, first_byte(opcode, true, compressed), 0, payload.len());
    out.extend_from_slice(payload);
}

/// Appends one frame of a client, under `mask`: what the tests, the fuzzing and the load speak to the [`Reader`] with.
///
/// [`Reader`]: super::Reader
pub fn append_masked(out: &mut Vec<u8>, opcode: Opcode, fin: bool, compressed: bool, mask: [u8; 4], payload: &[u8]) {
    append_header(out, first_byte(opcode, fin, compressed), MASKED, payload.len());
    out.extend_from_slice(&mask);
    let start = out.len();
    out.extend_from_slice(payload);
    unmask(&mut out[start..], mask, 0);
}

/// One whole frame, to be shared by all it goes to.
pub fn encode(opcode: Opcode, compressed: bool, payload: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(header_bytes(payload.len()) + payload.len());
    append_header(&mut out, first_byte(opcode, true, compressed), 0, payload.len());
    out.extend_from_slice(payload);
    out.into()
}

/// A text frame, not compressed.
pub fn text(payload: &[u8]) -> Bytes {
    encode(Opcode::Text, false, payload)
}

/// A binary frame, not compressed.
pub fn binary(payload: &[u8]) -> Bytes {
    encode(Opcode::Binary, false, payload)
}

/// A ping. The payload is cut to what a control frame holds.
pub fn ping(payload: &[u8]) -> Bytes {
    encode(Opcode::Ping, false, &payload[..payload.len().min(MAX_CONTROL_BYTES)])
}

/// The answer to a ping of `payload`, which is cut to what a control frame holds.
pub fn pong(payload: &[u8]) -> Bytes {
    encode(Opcode::Pong, false, &payload[..payload.len().min(MAX_CONTROL_BYTES)])
}

/// A close frame. The reason is cut between two characters to [`close::MAX_REASON_BYTES`].
pub fn close(code: CloseCode, reason: &str) -> Bytes {
    let mut payload = Vec::with_capacity(MAX_CONTROL_BYTES);
    payload.extend_from_slice(&code.get().to_be_bytes());
    payload.extend_from_slice(close::cut(reason).as_bytes());
    encode(Opcode::Close, false, &payload)
}

fn first_byte(opcode: Opcode, fin: bool, compressed: bool) -> u8 {
    opcode.bits() | if fin { FIN } else { 0 } | if compressed { COMPRESSED } else { 0 }
}

/// How long the server's header before `length` bytes of payload is.
const fn header_bytes(length: usize) -> usize {
    match length {
        0..=125 => 2,
        126..=0xffff => 4,
        _ => 10,
    }
}

fn append_header(out: &mut Vec<u8>, first: u8, masked: u8, length: usize) {
    match length {
        0..=125 => out.extend_from_slice(&[first, masked | length as u8]),
        126..=0xffff => {
            let [high, low] = (length as u16).to_be_bytes();
            out.extend_from_slice(&[first, masked | 126, high, low]);
        }
        _ => {
            out.extend_from_slice(&[first, masked | 127]);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_frames_have_the_bytes_of_the_rfc() {
        // RFC 6455 5.7.
        assert_eq!(&text(b"Hello")[..], b"\x81\x05Hello");
        assert_eq!(&ping(b"Hello")[..], b"\x89\x05Hello");
        assert_eq!(&pong(b"")[..], b"\x8a\x00");
        assert_eq!(&binary(&[7; 256])[..4], b"\x82\x7e\x01\x00");
        assert_eq!(&binary(&[7; 65_536])[..10], b"\x82\x7f\0\0\0\0\0\x01\0\0");
        // RFC 7692 7.2.3.1.
        assert_eq!(&encode(Opcode::Text, true, b"\xf2\x48\xcd\xc9\xc9\x07\x00")[..2], b"\xc1\x07");
        assert_eq!(&close(CloseCode::GOING_AWAY, "bye")[..], b"\x88\x05\x03\xe9bye");
        assert_eq!(close(CloseCode::NORMAL, &"é".repeat(100)).len(), 2 + 2 + 122);
        assert_eq!(ping(&[0; 300]).len(), 2 + 125);
    }

    #[test]
    fn a_clients_frame_has_the_bytes_of_the_rfc_and_is_read_back() {
        let mut out = Vec::new();
        append_masked(&mut out, Opcode::Text, true, false, [0x37, 0xfa, 0x21, 0x3d], b"Hello");
        assert_eq!(out, b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58");
        let (header, taken) = Header::parse(&out, false).unwrap().unwrap();
        assert_eq!(
            (header.opcode, header.fin, header.compressed, header.length, taken),
            (Opcode::Text, true, false, 5, 6)
        );
        for cut in 0..6 {
            assert_eq!(Header::parse(&out[..cut], false), Ok(None));
        }
    }

    #[test]
    fn lengths_change_their_form_where_they_must() {
        for length in [0, 125, 126, 65_535, 65_536] {
            let mut out = Vec::new();
            append_masked(&mut out, Opcode::Binary, true, false, [0; 4], &vec![0; length]);
            let (header, taken) = Header::parse(&out, false).unwrap().unwrap();
            assert_eq!((header.length, out.len() - taken), (length as u64, length));
            let mut plain = Vec::new();
            append(&mut plain, Opcode::Binary, false, &vec![0; length]);
            assert_eq!(plain.len() + 4, out.len());
            assert_eq!(header_bytes(length), taken - 4);
        }
    }

    #[test]
    fn bad_headers_are_refused_as_soon_as_they_show() {
        let table: [(&[u8], bool, Violation); 15] = [
            (b"\xc1", false, Violation::ReservedBits(0xc1)),
            (b"\xa1", true, Violation::ReservedBits(0xa1)),
            (b"\xd1", true, Violation::ReservedBits(0xd1)),
            (b"\xc0", true, Violation::ReservedBits(0xc0)),
            (b"\xc9", true, Violation::ReservedBits(0xc9)),
            (b"\x83", false, Violation::ReservedOpcode(3)),
            (b"\x8f", false, Violation::ReservedOpcode(15)),
            (b"\x09", false, Violation::FragmentedControl),
            (b"\x81\x05", false, Violation::Unmasked),
            (b"\x89\xfe", false, Violation::LongControl),
            (b"\x88\xff", false, Violation::LongControl),
            (b"\x81\xfe\x00\x7d", false, Violation::OverlongLength(125)),
            (b"\x81\xff\0\0\0\0\0\0\xff\xff", false, Violation::OverlongLength(65_535)),
            (b"\x81\xff\0\0\0\0\0\0\0\0", false, Violation::OverlongLength(0)),
            (b"\x81\xff\x80\0\0\0\0\x01\0\0", false, Violation::LengthTopBit),
        ];
        for (bytes, compression, violation) in table {
            assert_eq!(Header::parse(bytes, compression), Err(violation), "{bytes:02x?}");
            assert_eq!(violation.close_code(), CloseCode::PROTOCOL_ERROR);
            assert_eq!(Header::parse(&bytes[..bytes.len() - 1], compression), Ok(None), "one byte earlier");
        }
    }

    #[test]
    fn unmasking_in_pieces_is_unmasking_at_once() {
        let mask = [1, 20, 200, 77];
        let plain: Vec<u8> = (0..100).collect();
        let by_the_rfc: Vec<u8> = plain.iter().enumerate().map(|(i, byte)| byte ^ mask[i % 4]).collect();
        for cut in 0..plain.len() {
            let mut bytes = by_the_rfc.clone();
            let (left, right) = bytes.split_at_mut(cut);
            unmask(left, mask, 0);
            unmask(right, mask, cut);
            assert_eq!(bytes, plain);
        }
    }
}
