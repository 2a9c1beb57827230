//! Client languages: frames to commands, and replies and pushes to frames. Pure: bytes in, vocabulary out.
//!
//! A codec never awaits and knows no session, so it is tested with recorded transcripts and random bytes alone. Start
//! at [`Codec`]; [`native`] is our own language.

pub mod native;

use crate::domain::{CommandId, Format, Push, Reply, Request};

/// Turns one client language into the vocabulary and back.
pub trait Codec: Send + Sync {
    /// What logs and metrics call it.
    fn name(&self) -> &'static str;

    /// Appends the commands of one frame to `requests`, in order. What cannot be understood becomes a refused request.
    fn decode(&self, frame: &str, requests: &mut Vec<Request>);

    /// Appends the frame that answers the command called `id`; nothing where the language has no answer for it.
    fn encode_reply(&self, id: Option<&CommandId>, reply: &Reply, out: &mut Vec<u8>);

    /// Appends the frame that says `push`.
    fn encode_push(&self, push: &Push, out: &mut Vec<u8>);
}

/// Writes a push as the payload of a format.
pub fn encode(format: Format, push: &Push, out: &mut Vec<u8>) {
    match format {
        Format::Native | Format::NativeDeflated => native::Native.encode_push(push, out),
        Format::NativeEvents => native::NativeEvents.encode_push(push, out),
    }
}
