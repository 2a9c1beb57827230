//! One push for many connections, encoded at most once per format.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use bytes::Bytes;

use crate::domain::{Channel, ConnectionId, Format, Position, Push};

/// One push on its way to many sessions, encoded at most once per wire format.
pub struct Outgoing {
    channel: Channel,
    push: Push,
    accepted: Instant,
    encoded: [OnceLock<Bytes>; Format::COUNT],
}

impl Outgoing {
    /// A push for the subscribers of `channel`.
    pub fn new(channel: Channel, push: Push) -> Arc<Self> {
        Arc::new(Self { channel, push, accepted: Instant::now(), encoded: Default::default() })
    }

    /// Whose subscribers get it.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// What is said.
    pub fn push(&self) -> &Push {
        &self.push
    }

    /// When this node had it.
    pub fn accepted(&self) -> Instant {
        self.accepted
    }

    /// The push as bytes of `format`. `encode` runs for the first caller of a format; others wait those microseconds.
    pub fn encoded(&self, format: Format, encode: impl FnOnce(&Push) -> Bytes) -> &Bytes {
        self.encoded[format as usize].get_or_init(|| encode(&self.push))
    }

    /// Whether only those who watch presence get it.
    pub(super) fn is_presence(&self) -> bool {
        matches!(self.push, Push::Join { .. } | Push::Leave { .. })
    }

    /// A connection that does not get it.
    pub(super) fn exclude(&self) -> Option<ConnectionId> {
        match &self.push {
            Push::Publication(publication) => publication.exclude,
            // Everybody knows of itself.
            Push::Join { member, .. } => Some(member.connection),
            _ => None,
        }
    }

    /// Its place in history, if it has one.
    pub fn position(&self) -> Option<Position> {
        match &self.push {
            Push::Publication(publication) => publication.position,
            _ => None,
        }
    }
}
