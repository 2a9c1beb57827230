//! What a connection or a request brings with it: its app and its token.

use std::sync::Arc;

use http::{HeaderMap, Uri, header::AUTHORIZATION, header::SEC_WEBSOCKET_PROTOCOL};
use percent_encoding::percent_decode_str;

use super::{App, Gateway};

/// The prefix of the sub-protocol that carries a token, since browsers cannot set headers.
const BEARER_PROTOCOL: &str = "bearer.";

/// What a connection brings with it.
pub struct Opening {
    /// The app it named; `None`: there is no such app.
    pub app: Option<Arc<App>>,
    /// Its token.
    pub token: Option<Box<str>>,
}

impl Opening {
    /// Reads app and token from query and headers.
    pub fn read(gateway: &Gateway, uri: &Uri, headers: &HeaderMap) -> Self {
        let app = query(uri, "app");
        let token = bearer(headers).map(Into::into);
        let token = token.or_else(|| bearer_protocol(headers).map(Into::into));
        let token = token.or_else(|| query(uri, "token").map(String::into_boxed_str));
        Self { app: gateway.app(app.as_deref()), token }
    }
}

/// The token of an `Authorization: Bearer` header (RFC 6750, 2.1).
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// One value of the query, decoded.
pub fn query(uri: &Uri, key: &str) -> Option<String> {
    query_all(uri, key).next()
}

/// Every value of `key` in the query, decoded.
pub fn query_all<'a>(uri: &'a Uri, key: &'a str) -> impl Iterator<Item = String> + 'a {
    let pairs = uri.query().unwrap_or_default().split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.filter(move |(name, _)| decoded(name) == key).map(|(_, value)| decoded(value))
}

fn decoded(raw: &str) -> String {
    let blanks = raw.replace('+', " ");
    percent_decode_str(&blanks).decode_utf8_lossy().into_owned()
}

/// The sub-protocols that a client offers, in its order.
pub fn offered_protocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim)
}

fn bearer_protocol(headers: &HeaderMap) -> Option<&str> {
    offered_protocols(headers).find_map(|protocol| protocol.strip_prefix(BEARER_PROTOCOL))
}
