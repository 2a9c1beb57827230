//! Payloads to the bytes of a format: what stands between a codec and a socket.

use bytes::Bytes;

use crate::{
    domain::Format,
    wire::{deflate::Deflater, frame},
};

/// Payloads below this are not worth deflating: the header and the time cost more than the bytes saved.
const MIN_DEFLATED: usize = 256;

/// Payloads above this are sent plain: deflating them would hold up the shard for longer than it may.
const MAX_DEFLATED: usize = 96 << 10;

/// One shard's means of framing: scratch buffers, and the compressor that all its connections share.
pub(super) struct Framer {
    payload: Vec<u8>,
    deflated: Vec<u8>,
    deflater: Deflater,
}

impl Framer {
    pub fn new() -> Self {
        Self { payload: Vec::new(), deflated: Vec::new(), deflater: Deflater::new() }
    }

    /// What `encode` writes, as one frame of `format`. Nothing written is no frame.
    pub fn frame(&mut self, format: Format, encode: impl FnOnce(&mut Vec<u8>)) -> Bytes {
        self.payload.clear();
        encode(&mut self.payload);
        let frame = match format {
            _ if self.payload.is_empty() => Bytes::new(),
            Format::Native => frame::text(&self.payload),
            Format::NativeEvents => Bytes::copy_from_slice(&self.payload),
            Format::NativeDeflated => self.deflated(),
        };
        if self.payload.capacity() > 1 << 20 {
            self.payload = Vec::new();
            self.deflated = Vec::new();
        }
        frame
    }

    /// The payload deflated, or plain where that is no longer or takes too long.
    fn deflated(&mut self) -> Bytes {
        if !(MIN_DEFLATED..=MAX_DEFLATED).contains(&self.payload.len()) {
            return frame::text(&self.payload);
        }
        self.deflated.clear();
        self.deflater.compress(&self.payload, &mut self.deflated);
        match self.deflated.len() < self.payload.len() {
            true => frame::encode(frame::Opcode::Text, true, &self.deflated),
            false => frame::text(&self.payload),
        }
    }
}
