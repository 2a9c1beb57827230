//! An error as an HTTP answer: a problem document (RFC 9457) with our code in `code`.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};

use crate::{
    domain::{ErrorCode, Refusal},
    protocol::native::Json,
};

/// A refusal as an answer.
pub struct Problem(pub Refusal);

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        self.with_status(status)
    }
}

impl Problem {
    /// The answer under another status than its code has, where HTTP wants a certain one.
    pub fn with_status(self, status: StatusCode) -> Response {
        let Self(refusal) = self;
        let mut body = Vec::new();
        Json::object(&mut body, |json| {
            json.word("type", "about:blank").text("title", status.canonical_reason().unwrap_or_default());
            json.value("status", status.as_u16()).text("detail", &refusal.message).word("code", refusal.code);
            if let Some(channel) = &refusal.channel {
                json.text("channel", channel.as_str());
            }
            if let Some(delay) = refusal.retry_after {
                json.value("retry_after", delay.as_secs_f64());
            }
        });
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(delay) = refusal.retry_after {
            // RFC 9110, 10.2.3: whole seconds.
            headers.insert(header::RETRY_AFTER, HeaderValue::from(delay.as_secs_f64().ceil() as u64));
        }
        if matches!(refusal.code, ErrorCode::Unauthorized | ErrorCode::TokenExpired) {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
