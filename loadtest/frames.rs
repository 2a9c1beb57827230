//! RFC 6455 frames, as far as a load generator needs them: found in place, without copying what came whole.
//!
//! [`scan`] finds one frame at the start of some bytes; [`Unfinished`] carries a frame that a read cut in two over to
//! the next read. Any split of the same bytes gives the same frames (a property test holds it to that). Fragmented
//! messages are refused: no server measured here sends them.

use std::ops::Range;

/// Opcodes (RFC 6455, 5.2).
pub mod opcode {
    pub const TEXT: u8 = 1;
    pub const CLOSE: u8 = 8;
    pub const PING: u8 = 9;
    pub const PONG: u8 = 10;
}

/// The largest frame that is believed; a longer one means that the stream is out of step.
const MAX_PAYLOAD_BYTES: u64 = 16 << 20;

/// One whole frame inside a buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub opcode: u8,
    /// RSV1: the payload is deflated (RFC 7692).
    pub deflated: bool,
    /// The key of a masked frame; the payload is still masked.
    pub mask: Option<[u8; 4]>,
    /// Where the payload lies in the buffer.
    pub payload: Range<usize>,
}

/// Why bytes are not a stream of frames that a load test expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("a fragmented message")]
    Fragmented,
    #[error("reserved bits are set")]
    ReservedBits,
    #[error("a frame of {bytes} bytes")]
    TooLong { bytes: u64 },
}

/// The frame at the start of `bytes`, or `None` where more of it must come first.
pub fn scan(bytes: &[u8]) -> Result<Option<Frame>, Violation> {
    let [first, second, rest @ ..] = bytes else { return Ok(None) };
    let opcode = first & 0x0f;
    if first & 0x80 == 0 || opcode == 0 {
        return Err(Violation::Fragmented);
    }
    if first & 0x30 != 0 {
        return Err(Violation::ReservedBits);
    }
    let (length, mut at) = match (second & 0x7f, rest) {
        (126, [high, low, ..]) => (u64::from(u16::from_be_bytes([*high, *low])), 4),
        (127, [a, b, c, d, e, f, g, h, ..]) => (u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]), 10),
        (126 | 127, _) => return Ok(None),
        (short, _) => (u64::from(short), 2),
    };
    if MAX_PAYLOAD_BYTES < length {
        return Err(Violation::TooLong { bytes: length });
    }
    let mut mask = None;
    if second & 0x80 != 0 {
        let Some(key) = bytes.get(at..at + 4) else { return Ok(None) };
        mask = Some([key[0], key[1], key[2], key[3]]);
        at += 4;
    }
    let payload = at..at + length as usize;
    if bytes.len() < payload.end {
        return Ok(None);
    }
    Ok(Some(Frame { opcode, deflated: first & 0x40 != 0, mask, payload }))
}

/// The beginning of a frame whose end has not been read yet.
#[derive(Debug, Default)]
pub struct Unfinished {
    kept: Vec<u8>,
}

impl Unfinished {
    /// Calls `each` with every whole frame of what was kept and `fresh`, in order, and keeps the unfinished end.
    ///
    /// The usual case, nothing kept and nothing left over, copies nothing.
    pub fn feed(&mut self, fresh: &[u8], mut each: impl FnMut(&Frame, &[u8])) -> Result<(), Violation> {
        if self.kept.is_empty() {
            let used = walk(fresh, &mut each)?;
            self.kept.extend_from_slice(&fresh[used..]);
            return Ok(());
        }
        let mut whole = std::mem::take(&mut self.kept);
        whole.extend_from_slice(fresh);
        let used = walk(&whole, &mut each)?;
        self.kept = whole.split_off(used);
        Ok(())
    }
}

/// Calls `each` with every whole frame of `bytes` and the frame's bytes; returns how many bytes they took.
fn walk(bytes: &[u8], each: &mut impl FnMut(&Frame, &[u8])) -> Result<usize, Violation> {
    let mut used = 0;
    while let Some(frame) = scan(&bytes[used..])? {
        each(&frame, &bytes[used..used + frame.payload.end]);
        used += frame.payload.end;
    }
    Ok(used)
}

/// Appends one masked frame, as a client must send it (RFC 6455, 5.3).
pub fn append_masked(out: &mut Vec<u8>, opcode: u8, payload: &[u8], mask: [u8; 4]) {
    append_header(out, opcode, payload.len(), 0x80);
    out.extend_from_slice(&mask);
    let start = out.len();
    out.extend_from_slice(payload);
    apply_mask(&mut out[start..], mask);
}

/// Appends one unmasked frame, as a server sends it.
pub fn append_unmasked(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    append_header(out, opcode, payload.len(), 0);
    out.extend_from_slice(payload);
}

fn append_header(out: &mut Vec<u8>, opcode: u8, length: usize, masked: u8) {
    out.push(0x80 | opcode);
    if length < 126 {
        out.push(masked | length as u8);
    } else if let Ok(length) = u16::try_from(length) {
        out.push(masked | 126);
        out.extend_from_slice(&length.to_be_bytes());
    } else {
        out.push(masked | 127);
        out.extend_from_slice(&(length as u64).to_be_bytes());
    }
}

/// Masks or unmasks `payload` in place; `mask` counts from its first byte.
pub fn apply_mask(payload: &mut [u8], mask: [u8; 4]) {
    let wide = u64::from_ne_bytes([mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3]]);
    let mut words = payload.chunks_exact_mut(8);
    for word in &mut words {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(word);
        word.copy_from_slice(&(u64::from_ne_bytes(bytes) ^ wide).to_ne_bytes());
    }
    for (byte, key) in words.into_remainder().iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Message = (u8, bool, Vec<u8>);

    fn encode(messages: &[Message]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (opcode, masked, payload) in messages {
            match masked {
                true => append_masked(&mut bytes, *opcode, payload, [7, 0, 255, 90]),
                false => append_unmasked(&mut bytes, *opcode, payload),
            }
        }
        bytes
    }

    fn messages() -> impl Strategy<Value = Vec<Message>> {
        let length = prop_oneof![0usize..200, 60_000usize..70_000];
        let payload = (length, any::<u8>()).prop_map(|(length, first)| (0..length).map(|i| first ^ i as u8).collect());
        prop::collection::vec((prop_oneof![Just(1u8), Just(2), Just(9)], any::<bool>(), payload), 0..6)
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_frames(messages in messages(), cuts in prop::collection::vec(any::<usize>(), 0..12)) {
            let bytes = encode(&messages);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % (bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut unfinished = Unfinished::default();
            let mut seen: Vec<Message> = Vec::new();
            for pair in cuts.windows(2) {
                unfinished.feed(&bytes[pair[0]..pair[1]], |frame, bytes| {
                    let mut payload = bytes[frame.payload.clone()].to_vec();
                    if let Some(mask) = frame.mask {
                        apply_mask(&mut payload, mask);
                    }
                    seen.push((frame.opcode, frame.mask.is_some(), payload));
                }).unwrap();
            }
            prop_assert_eq!(seen, messages);
            prop_assert!(unfinished.kept.is_empty());
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = scan(&bytes);
        }
    }

    #[test]
    fn what_a_server_must_not_send_is_named() {
        assert_eq!(scan(&[0x01, 0x00]), Err(Violation::Fragmented));
        assert_eq!(scan(&[0x80, 0x00]), Err(Violation::Fragmented));
        assert_eq!(scan(&[0xa1, 0x00]), Err(Violation::ReservedBits));
        let huge = [0x81, 127, 0, 0, 1, 0, 0, 0, 0, 0];
        assert_eq!(scan(&huge), Err(Violation::TooLong { bytes: 1 << 40 }));
    }
}
