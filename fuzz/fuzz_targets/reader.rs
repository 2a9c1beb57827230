//! Any bytes, in any pieces, to the frame reader: no panic, no limit passed, and the same messages however they are cut.
//!
//! The first byte chooses the size of the pieces and whether compression was agreed; the rest is what the client sent.

#![no_main]

use std::mem::take;

use fanwire::wire::{Inflater, Limits, Message, Reader, Violation};
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits = Limits { max_message: 4096, max_fragments: 8 };

fuzz_target!(|bytes: &[u8]| {
    let Some((&choice, bytes)) = bytes.split_first() else { return };
    let compression = choice & 1 == 1;
    let whole = read(bytes, usize::MAX, compression);
    let pieces = read(bytes, usize::from(choice >> 1) + 1, compression);
    assert_eq!(whole, pieces, "a split changes nothing");
});

/// What a reader makes of `bytes` in pieces of `piece_bytes`.
fn read(bytes: &[u8], piece_bytes: usize, compression: bool) -> (Vec<String>, Option<Violation>) {
    let (mut reader, mut inflater, mut messages) = (Reader::new(compression), Inflater::new(), Vec::new());
    for piece in bytes.chunks(piece_bytes) {
        let mut scratch = piece.to_vec();
        let mut input = &mut scratch[..];
        loop {
            match reader.next(&mut input, &LIMITS, &mut inflater) {
                Ok(Some(message)) => messages.push(checked(message)),
                Ok(None) => break,
                Err(violation) => return (messages, Some(violation)),
            }
        }
        assert!(take(&mut input).is_empty(), "all of a read is consumed");
        assert!(reader.buffered_bytes() < 2 * LIMITS.max_message, "memory is bounded");
    }
    (messages, None)
}

fn checked(message: Message<'_>) -> String {
    let (bytes, most) = match message {
        Message::Text(text) => (text.len(), LIMITS.max_message),
        Message::Binary(bytes) => (bytes.len(), LIMITS.max_message),
        Message::Ping(payload) | Message::Pong(payload) => (payload.len(), 125),
        Message::Close { reason, .. } => (reason.len(), 123),
    };
    assert!(bytes <= most, "limits hold");
    format!("{message:?}")
}
