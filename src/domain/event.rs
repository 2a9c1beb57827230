//! Events and publications.

use std::time::SystemTime;

use bytes::Bytes;

use super::{Channel, ConnectionId, Position, PublicationId, UserId};

/// An event's data: JSON text with the bytes it came with, on one line.
///
/// Invariant: one valid JSON value in UTF-8 without line breaks. JSON strings cannot hold raw line breaks (RFC 8259, 7),
/// so one can only stand between tokens, where a blank says the same; event streams and line protocols need one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload(Bytes);

impl Payload {
    /// Wraps text that the caller's parser accepted as one JSON value.
    pub fn from_json(json: &str) -> Self {
        let mut bytes = json.as_bytes().to_vec();
        for byte in &mut bytes {
            if matches!(byte, b'\n' | b'\r') {
                *byte = b' ';
            }
        }
        Self(bytes.into())
    }

    /// Wraps what another node took from a payload. `None`: it is no text on one line, so no node of ours wrote it.
    pub fn restore(bytes: Bytes) -> Option<Self> {
        let is_line = std::str::from_utf8(&bytes).is_ok_and(|text| !text.is_empty() && !text.contains(['\n', '\r']));
        is_line.then_some(Self(bytes))
    }

    /// The JSON text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("a payload is made from `str`")
    }

    /// The JSON text's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Labels of an event: a flat JSON object of strings, kept as the text it came as, on one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tags(Payload);

impl Tags {
    /// Wraps text that the caller's parser accepted as an object of strings.
    pub fn from_json(json: &str) -> Self {
        Self(Payload::from_json(json))
    }

    /// Wraps what another node took from tags; see [`Payload::restore`].
    pub fn restore(bytes: Bytes) -> Option<Self> {
        Payload::restore(bytes).map(Self)
    }

    /// The JSON object's text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

/// What a producer repeats so that a retry is stored once: 1 to [`IdempotencyKey::MAX_BYTES`] bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(Box<str>);

/// A text that is no idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`key` has 1 to {} bytes", IdempotencyKey::MAX_BYTES)]
pub struct InvalidKey;

impl IdempotencyKey {
    /// The longest key, in bytes.
    pub const MAX_BYTES: usize = 64;

    /// Checks a key's length.
    pub fn new(raw: &str) -> Result<Self, InvalidKey> {
        match (1..=Self::MAX_BYTES).contains(&raw.len()) {
            true => Ok(Self(raw.into())),
            false => Err(InvalidKey),
        }
    }

    /// The key's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a producer publishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its name; `None` stands for the default.
    pub name: Option<Box<str>>,
    /// Its content.
    pub data: Payload,
    /// Its labels.
    pub tags: Option<Tags>,
}

impl Event {
    /// The name of an event that was published without one.
    pub const DEFAULT_NAME: &'static str = "message";
    /// The longest name, in bytes.
    pub const MAX_NAME_BYTES: usize = 200;

    /// The name that subscribers see.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(Self::DEFAULT_NAME)
    }
}

/// Milliseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// The wall clock's time.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

/// Who published, as subscribers may see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publisher {
    /// The user; `None` for an anonymous one.
    pub user: Option<UserId>,
    /// The connection, where the channel shows connections.
    pub connection: Option<ConnectionId>,
}

/// An event that the broker accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// Its id.
    pub id: PublicationId,
    /// Where it was published.
    pub channel: Channel,
    /// What was published.
    pub event: Event,
    /// When it was accepted.
    pub time: UnixMillis,
    /// Its place in the channel's history; `None` where none is kept.
    pub position: Option<Position>,
    /// Who published it, where the channel shows that.
    pub from: Option<Publisher>,
    /// A connection that does not get it.
    pub exclude: Option<ConnectionId>,
}
