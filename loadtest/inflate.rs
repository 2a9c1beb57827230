//! Inflating deliveries (RFC 7692, no context takeover), each distinct one once.
//!
//! A server that compresses once for all sends the same bytes to every subscriber, so what a deflated payload says is
//! remembered by its bytes: the audit sees every delivery, and the generator inflates one in a thousand.

use std::collections::HashMap;

use flate2::{Decompress, FlushDecompress, Status};

use crate::stamp::Stamp;

/// Payloads remembered before all are forgotten; more than are ever under way.
const REMEMBERED: usize = 4096;
/// The longest text that is inflated.
const MAX_TEXT_BYTES: usize = 1 << 20;
/// What a sender cut off the end of each message (RFC 7692, 7.2.1).
const TAIL: [u8; 4] = [0, 0, 255, 255];

/// Why a deflated payload could not be read.
#[derive(Debug, thiserror::Error)]
pub enum InflateError {
    #[error("a deflated payload is broken: {0}")]
    Broken(#[from] flate2::DecompressError),
    #[error("a deflated payload of {bytes} bytes ends early or is longer than {MAX_TEXT_BYTES} bytes")]
    Length { bytes: usize },
}

/// Inflates payloads and remembers those that were deliveries.
pub struct Inflater {
    stream: Decompress,
    known: HashMap<Box<[u8]>, (Stamp, Option<u64>), foldhash::fast::RandomState>,
}

impl Default for Inflater {
    fn default() -> Self {
        Self { stream: Decompress::new(false), known: HashMap::default() }
    }
}

impl Inflater {
    /// What was remembered of this payload: the stamp and offset of the delivery that it is.
    pub fn known(&self, payload: &[u8]) -> Option<(Stamp, Option<u64>)> {
        self.known.get(payload).copied()
    }

    /// Remembers what a payload says.
    pub fn remember(&mut self, payload: &[u8], stamp: Stamp, offset: Option<u64>) {
        if REMEMBERED <= self.known.len() {
            self.known.clear();
        }
        self.known.insert(payload.into(), (stamp, offset));
    }

    /// The text of a payload.
    pub fn inflate(&mut self, payload: &[u8]) -> Result<Vec<u8>, InflateError> {
        self.stream.reset(false);
        let whole = [payload, &TAIL].concat();
        let mut text = Vec::with_capacity(4 * whole.len() + 64);
        loop {
            let used = self.stream.total_in() as usize;
            let status = self.stream.decompress_vec(&whole[used..], &mut text, FlushDecompress::Sync)?;
            let is_read = self.stream.total_in() as usize == whole.len() && text.len() < text.capacity();
            if is_read || status == Status::StreamEnd {
                return Ok(text);
            }
            if MAX_TEXT_BYTES <= text.capacity() || (text.len() < text.capacity() && status == Status::BufError) {
                return Err(InflateError::Length { bytes: payload.len() });
            }
            text.reserve(text.capacity());
        }
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};
    use proptest::prelude::*;

    use super::*;

    fn deflate(text: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(2 * text.len() + 64);
        Compress::new(Compression::fast(), false).compress_vec(text, &mut out, FlushCompress::Sync).unwrap();
        assert!(out.ends_with(&TAIL));
        out.truncate(out.len() - TAIL.len());
        out
    }

    proptest! {
        #[test]
        fn what_was_deflated_comes_back(text in prop::collection::vec(0u8..4, 0..20_000)) {
            let mut inflater = Inflater::default();
            for _ in 0..2 {
                prop_assert_eq!(inflater.inflate(&deflate(&text)).unwrap(), text.clone());
            }
        }

        #[test]
        fn no_bytes_panic_or_hang(payload in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Inflater::default().inflate(&payload);
        }
    }

    #[test]
    fn a_bomb_is_refused() {
        let bomb = deflate(&vec![0; 8 << 20]);
        assert!(matches!(Inflater::default().inflate(&bomb), Err(InflateError::Length { .. })));
    }

    #[test]
    fn a_known_payload_is_recognised() {
        let mut inflater = Inflater::default();
        let stamp = Stamp { at: 1, channel: 2, number: 3, slot: 4 };
        assert_eq!(inflater.known(b"abc"), None);
        inflater.remember(b"abc", stamp, Some(9));
        assert_eq!(inflater.known(b"abc"), Some((stamp, Some(9))));
    }
}
