//! The WebSocket handshake (RFC 6455, 4.2): checks and the answer.

use aws_lc_rs::digest;
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue, Method, header};

use crate::{gateway::opening::offered_protocols, protocol::native, wire::deflate};

/// A handshake that can be answered with 101.
pub struct Handshake {
    /// For `Sec-WebSocket-Accept`.
    pub accept: HeaderValue,
    /// The sub-protocol that was chosen.
    pub protocol: Option<&'static str>,
    /// For `Sec-WebSocket-Extensions`; there is one only for permessage-deflate.
    pub extensions: Option<&'static str>,
}

/// Why a request is no handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// It is a plain request.
    #[error("this path speaks WebSocket: send `Upgrade: websocket`")]
    NoUpgrade,
    /// Another version of the protocol.
    #[error("the WebSocket version is 13")]
    Version,
    /// No key, or one that is not 16 bytes in base64.
    #[error("Sec-WebSocket-Key is 16 bytes in base64")]
    Key,
    /// Extensions that cannot be read.
    #[error("Sec-WebSocket-Extensions cannot be read")]
    Extensions,
}

impl Handshake {
    /// Checks a request. `compression`: whether permessage-deflate may be agreed.
    ///
    /// # Errors
    /// Which part is wrong.
    pub fn check(method: &Method, headers: &HeaderMap, compression: bool) -> Result<Self, HandshakeError> {
        if method != Method::GET
            || !has_token(headers, header::UPGRADE, "websocket")
            || !has_token(headers, header::CONNECTION, "upgrade")
        {
            return Err(HandshakeError::NoUpgrade);
        }
        if headers.get(header::SEC_WEBSOCKET_VERSION).map(HeaderValue::as_bytes) != Some(b"13") {
            return Err(HandshakeError::Version);
        }
        let mut keys = headers.get_all(header::SEC_WEBSOCKET_KEY).iter();
        let (Some(key), None) = (keys.next(), keys.next()) else { return Err(HandshakeError::Key) };
        if !STANDARD.decode(key.as_bytes()).is_ok_and(|bytes| bytes.len() == 16) {
            return Err(HandshakeError::Key);
        }
        let offers = headers.get_all(header::SEC_WEBSOCKET_EXTENSIONS).iter();
        let offers: Result<Vec<_>, _> = offers.map(HeaderValue::to_str).collect();
        let offers = offers.map_err(|_| HandshakeError::Extensions)?;
        let agreement = deflate::negotiate(offers.into_iter()).map_err(|_| HandshakeError::Extensions)?;
        Ok(Self {
            accept: accept(key.as_bytes()),
            protocol: offered_protocols(headers)
                .any(|offer| offer == native::SUBPROTOCOL)
                .then_some(native::SUBPROTOCOL),
            extensions: agreement.filter(|_| compression).map(|agreement| agreement.response),
        })
    }
}

/// RFC 6455, 4.2.2, step 5.4.
fn accept(key: &[u8]) -> HeaderValue {
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key);
    context.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let encoded = STANDARD.encode(context.finish());
    HeaderValue::from_str(&encoded).expect("base64 is a header value")
}

/// Whether a list header has a token, whatever its case (RFC 9110, 5.6.1).
fn has_token(headers: &HeaderMap, name: header::HeaderName, token: &str) -> bool {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|item| item.trim().eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_that_of_the_rfc() {
        assert_eq!(accept(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    fn request(change: impl FnOnce(&mut HeaderMap)) -> Result<Handshake, HandshakeError> {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("upgrade", "WebSocket"),
            ("connection", "keep-alive, Upgrade"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        change(&mut headers);
        Handshake::check(&Method::GET, &headers, true)
    }

    #[test]
    fn what_is_no_handshake_is_told_apart() {
        assert!(request(|_| {}).is_ok());
        let without = |name: &'static str| request(|headers| drop(headers.remove(name))).err();
        assert_eq!(without("upgrade"), Some(HandshakeError::NoUpgrade));
        assert_eq!(without("connection"), Some(HandshakeError::NoUpgrade));
        assert_eq!(without("sec-websocket-version"), Some(HandshakeError::Version));
        assert_eq!(without("sec-websocket-key"), Some(HandshakeError::Key));
        for key in ["", "AAAA", "not base64 at all!!!!!!!", "dGhlIHNhbXBsZSBub25jZQ"] {
            let refused = request(|headers| drop(headers.insert("sec-websocket-key", HeaderValue::from_static(key))));
            assert_eq!(refused.err(), Some(HandshakeError::Key), "{key}");
        }
    }

    #[test]
    fn the_sub_protocol_is_chosen_only_if_offered() {
        let offering = |offer: &'static str| {
            request(|headers| drop(headers.insert("sec-websocket-protocol", HeaderValue::from_static(offer))))
        };
        assert_eq!(offering("bearer.x.y.z, fanwire.v1").unwrap().protocol, Some("fanwire.v1"));
        assert_eq!(offering("chat").unwrap().protocol, None);
    }
}
