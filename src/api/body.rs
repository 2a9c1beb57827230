//! Request bodies: JSON, of bounded size and depth, within bounded time.

use std::{future::poll_fn, pin::Pin, time::Duration};

use axum::{
    body::{Body, HttpBody},
    extract::{FromRequest, Request},
};
use http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use tokio::time::timeout;

use super::{Api, Problem};
use crate::{
    domain::{ErrorCode, Refusal},
    protocol::native::depth_exceeds,
};

/// How long a body may take to come.
const BODY_DEADLINE: Duration = Duration::from_secs(10);
/// How much of a body that is too large is read and thrown away, so that the client reads our answer instead of losing
/// it to a reset.
const MAX_DISCARDED_BYTES: usize = 8 << 20;
/// And for how long.
const DISCARD_DEADLINE: Duration = Duration::from_secs(2);

/// A body that says it is JSON, as text.
///
/// Taken are `application/json`, a body without a `Content-Type`, and `application/x-www-form-urlencoded`, which is what
/// `curl -d` calls everything. What it really is, [`parse`] finds out.
pub struct JsonText(pub String);

impl FromRequest<Api> for JsonText {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Api) -> Result<Self, Problem> {
        let (parts, mut body) = request.into_parts();
        if !is_json(&parts.headers) {
            let refusal =
                Refusal::new(ErrorCode::BadRequest, "the body is JSON: send `Content-Type: application/json`");
            return Err(Problem::with_status(StatusCode::UNSUPPORTED_MEDIA_TYPE, refusal));
        }
        let bytes = match timeout(BODY_DEADLINE, read(&mut body, api.max_body)).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(Unread::TooLarge)) => {
                if !parts.headers.contains_key(header::EXPECT) {
                    // Whatever comes of it, the answer is the same.
                    let _ = timeout(DISCARD_DEADLINE, discard(&mut body)).await;
                }
                let message = format!("the body has more than {} bytes (`http.max_body`)", api.max_body);
                return Err(Refusal::new(ErrorCode::TooLarge, message).into());
            }
            Ok(Err(Unread::Broken)) => {
                return Err(Refusal::new(ErrorCode::BadRequest, "the body broke off").into());
            }
            Err(_) => {
                let refusal = Refusal::new(ErrorCode::Timeout, "the body took too long to come");
                return Err(Problem::with_status(StatusCode::REQUEST_TIMEOUT, refusal));
            }
        };
        let not_text = |_| Refusal::new(ErrorCode::BadRequest, "the body is not UTF-8");
        Ok(Self(String::from_utf8(bytes).map_err(not_text)?))
    }
}

/// Why a body could not be read.
enum Unread {
    TooLarge,
    Broken,
}

async fn read(body: &mut Body, limit: usize) -> Result<Vec<u8>, Unread> {
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if limit < announced {
        return Err(Unread::TooLarge);
    }
    let mut bytes = Vec::with_capacity(announced);
    while let Some(frame) = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await {
        let Ok(data) = frame.map_err(|_| Unread::Broken)?.into_data() else { continue };
        if limit < bytes.len() + data.len() {
            return Err(Unread::TooLarge);
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

async fn discard(body: &mut Body) {
    let mut left = MAX_DISCARDED_BYTES;
    while let Some(Ok(frame)) = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await {
        match left.checked_sub(frame.data_ref().map_or(0, |data| data.len())) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let mut kinds = headers.get_all(header::CONTENT_TYPE).iter();
    let (kind, None) = (kinds.next(), kinds.next()) else { return false };
    let Some(kind) = kind else { return true };
    let Ok(kind) = kind.to_str() else { return false };
    let mut parts = kind.split(';').map(str::trim);
    let known = ["application/json", "application/x-www-form-urlencoded"];
    let named = parts.next().is_some_and(|name| known.iter().any(|known| name.eq_ignore_ascii_case(known)));
    named
        && parts.filter_map(|part| part.split_once('=')).all(|(name, value)| {
            !name.eq_ignore_ascii_case("charset") || value.trim_matches('"').eq_ignore_ascii_case("utf-8")
        })
}

/// Reads a body as a `T`; arrays and objects may stand `depth` deep in each other.
///
/// # Errors
/// `bad_request`, with what is wrong and where.
pub fn parse<'a, T: Deserialize<'a>>(text: &'a str, depth: usize) -> Result<T, Refusal> {
    if depth_exceeds(text, depth) {
        let message = format!("arrays and objects stand more than {depth} deep in each other");
        return Err(Refusal::new(ErrorCode::BadRequest, message));
    }
    // serde would take an array too, its items as the members in their order.
    if text.trim_start().starts_with('[') {
        return Err(Refusal::new(ErrorCode::BadRequest, "not what is asked for: an array in place of an object"));
    }
    serde_json::from_str(text).map_err(|error| {
        let message = match error.classify() {
            serde_json::error::Category::Data => format!("not what is asked for: {error}"),
            _ => format!("not JSON: {error}"),
        };
        Refusal::new(ErrorCode::BadRequest, message)
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn json_by_other_names_is_taken_and_the_rest_is_not() {
        let with = |kind: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.extend(kind.map(|kind| (header::CONTENT_TYPE, HeaderValue::from_static(kind))));
            is_json(&headers)
        };
        for kind in ["application/json", "APPLICATION/JSON; Charset=\"UTF-8\"", "application/x-www-form-urlencoded"] {
            assert!(with(Some(kind)), "{kind}");
        }
        assert!(with(None));
        for kind in ["text/plain", "application/json; charset=latin1", "application/jsonx", "", "multipart/form-data"] {
            assert!(!with(Some(kind)), "{kind}");
        }
    }
}
