//! Our own language: one JSON object a frame, simple enough to type by hand. See `docs/protocol-native.md`.

mod decode;
mod encode;
pub mod events;

pub use decode::{MAX_DEPTH, PublishBody, Text, depth_exceeds, parse_publish, present};
pub use encode::{Json, member, publication, refusal};

use super::Codec;
use crate::domain::{CommandId, Push, Reply, Request};

/// The WebSocket sub-protocol that names this language.
pub const SUBPROTOCOL: &str = "fanwire.v1";

/// The codec of our own language.
#[derive(Clone, Copy, Debug, Default)]
pub struct Native;

/// The same language as an event stream, on which no commands come.
#[derive(Clone, Copy, Debug, Default)]
pub struct NativeEvents;

impl Codec for NativeEvents {
    fn name(&self) -> &'static str {
        "native"
    }

    fn decode(&self, _frame: &str, _requests: &mut Vec<Request>) {}

    fn encode_reply(&self, _id: Option<&CommandId>, reply: &Reply, out: &mut Vec<u8>) {
        events::reply(reply, out);
    }

    fn encode_push(&self, push: &Push, out: &mut Vec<u8>) {
        events::push(push, out);
    }
}

impl Codec for Native {
    fn name(&self) -> &'static str {
        "native"
    }

    fn decode(&self, frame: &str, requests: &mut Vec<Request>) {
        decode::frame(frame, requests);
    }

    fn encode_reply(&self, id: Option<&CommandId>, reply: &Reply, out: &mut Vec<u8>) {
        encode::reply(id, reply, out);
    }

    fn encode_push(&self, push: &Push, out: &mut Vec<u8>) {
        encode::push(push, out);
    }
}
