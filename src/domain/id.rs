//! Ids of connections, nodes, publications and commands.

use std::{fmt, str::FromStr, sync::Arc};

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const CROCKFORD: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// A text that is no id of the expected kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an id")]
pub struct InvalidId;

/// One connection, unique over all nodes; `c_` and 22 characters.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectionId(u128);

impl ConnectionId {
    /// An id from random bits.
    pub fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    /// The bits that it was made from.
    pub fn to_bits(self) -> u128 {
        self.0
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut rest, mut digits) = (self.0, [b'0'; 22]);
        for digit in digits.iter_mut().rev() {
            *digit = BASE62[(rest % 62) as usize];
            rest /= 62;
        }
        f.write_str("c_")?;
        f.write_str(std::str::from_utf8(&digits).expect("digits are ASCII"))
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ConnectionId {
    type Err = InvalidId;

    fn from_str(raw: &str) -> Result<Self, Self::Err> {
        let digits = raw.strip_prefix("c_").filter(|digits| digits.len() == 22).ok_or(InvalidId)?;
        digits
            .bytes()
            .try_fold(0u128, |sum, byte| {
                let digit = BASE62.iter().position(|candidate| *candidate == byte)?;
                sum.checked_mul(62)?.checked_add(digit as u128)
            })
            .map(Self)
            .ok_or(InvalidId)
    }
}

/// One running server process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeId(Arc<str>);

impl NodeId {
    /// A node called `name`.
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// The id's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One publication: a ULID (<https://github.com/ulid/spec>), so that ids sort by time of acceptance.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicationId(u128);

impl PublicationId {
    /// The id of a publication accepted at `millis` since 1970, made unique by 80 random bits.
    pub fn new(millis: u64, random: u128) -> Self {
        Self(u128::from(millis) << 80 | random & ((1 << 80) - 1))
    }

    /// The id with these bits, as another node made it.
    pub fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    /// Its bits.
    pub fn to_bits(self) -> u128 {
        self.0
    }

    /// Its 26 characters.
    pub fn encode(&self) -> [u8; 26] {
        let mut digits = [0; 26];
        for (at, digit) in digits.iter_mut().enumerate() {
            *digit = CROCKFORD[(self.0 >> (5 * (25 - at)) & 31) as usize];
        }
        digits
    }
}

impl FromStr for PublicationId {
    type Err = InvalidId;

    fn from_str(raw: &str) -> Result<Self, Self::Err> {
        if raw.len() != 26 || raw.as_bytes()[0] > b'7' {
            return Err(InvalidId);
        }
        let digit = |byte| CROCKFORD.iter().position(|candidate| *candidate == byte);
        let bits = raw.bytes().try_fold(0u128, |bits, byte| Some(bits << 5 | digit(byte)? as u128));
        bits.map(Self).ok_or(InvalidId)
    }
}

impl fmt::Display for PublicationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.encode()).expect("digits are ASCII"))
    }
}

impl fmt::Debug for PublicationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a client put beside a command to find its answer again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandId {
    /// A JSON integer.
    Number(i64),
    /// At most [`CommandId::MAX_BYTES`] bytes of text.
    Text(Box<str>),
}

impl CommandId {
    /// The longest textual id, in bytes.
    pub const MAX_BYTES: usize = 64;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn publication_ids_sort_by_time() {
        let id = |millis| PublicationId::new(millis, u128::MAX).to_string();
        assert!(id(1) < id(2) && id(999) < id(1_000_000));
        assert_eq!(id(1).len(), 26);
    }

    proptest! {
        #[test]
        fn a_connection_id_survives_its_text(bits: u128) {
            let id = ConnectionId::from_bits(bits);
            prop_assert_eq!(id.to_string().parse::<ConnectionId>(), Ok(id));
        }

        #[test]
        fn no_text_makes_the_parser_panic(raw in ".{0,40}") {
            let _ = raw.parse::<ConnectionId>();
        }
    }
}
