//! Tokens that count no more, although nothing is wrong with them.

use super::{AppId, UserId};

/// Which token it is: a digest of its `jti`, or of the token itself where it has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TokenId(u128);

impl TokenId {
    /// An id from a digest's bits.
    pub fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    /// The bits that it was made from.
    pub fn to_bits(self) -> u128 {
        self.0
    }
}

/// What counts of a token when tokens are revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Which token it is.
    pub id: TokenId,
    /// When it was issued (`iat`), in seconds since 1970. One that does not say so counts as older than any other.
    pub issued: Option<u64>,
}

/// That some tokens count no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// Whose tokens.
    pub app: AppId,
    /// Which of them.
    pub tokens: Revoked,
    /// In seconds since 1970: from then on all of them have ended by themselves, and nobody has to know any more.
    pub until: u64,
}

/// Which tokens are revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revoked {
    /// All of a user that were issued before this second.
    User(UserId, u64),
    /// One.
    Token(TokenId),
}
