//! What stands in a call's path.

use std::{fmt::Display, str::FromStr};

use axum::extract::{FromRequestParts, RawPathParams};
use http::request::Parts;

use super::Problem;
use crate::domain::{ChannelName, ConnectionId, ErrorCode, Refusal, UserId};

/// Something that a path names, percent-encoded: `/` is written `%2F` there.
pub trait Segment: FromStr<Err: Display> {
    /// What the route calls it.
    const NAME: &'static str;
}

impl Segment for ChannelName {
    const NAME: &'static str = "channel";
}

impl Segment for UserId {
    const NAME: &'static str = "user";
}

impl Segment for ConnectionId {
    const NAME: &'static str = "connection";
}

/// What the path names.
pub struct Named<T>(pub T);

impl<T: Segment, S: Send + Sync> FromRequestParts<S> for Named<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let bad = |why: String| Refusal::new(ErrorCode::BadRequest, why);
        if has_bad_escape(parts.uri.path()) {
            return Err(bad("the path has a `%` without two hexadecimal digits after it".into()).into());
        }
        let captured = RawPathParams::from_request_parts(parts, state).await;
        let captured = captured.map_err(|_| bad("the path is not UTF-8".into()))?;
        let raw = captured.iter().find(|(name, _)| *name == T::NAME).map_or("", |(_, value)| value);
        match raw.parse() {
            Ok(named) => Ok(Self(named)),
            Err(error) => Err(bad(format!("`{}`: {error}", T::NAME)).into()),
        }
    }
}

/// Whether some `%` begins no escape (RFC 3986, 2.1).
pub fn has_bad_escape(text: &str) -> bool {
    let is_hex = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_hexdigit);
    let bytes = text.as_bytes();
    bytes
        .iter()
        .enumerate()
        .any(|(at, byte)| *byte == b'%' && !(is_hex(bytes.get(at + 1)) && is_hex(bytes.get(at + 2))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_escape_has_two_digits() {
        assert!(!has_bad_escape("/a%2Fb%2f/c") && !has_bad_escape(""));
        for bad in ["%", "%2", "%2g", "%%20", "a%zz", "%é0"] {
            assert!(has_bad_escape(bad), "{bad}");
        }
    }
}
