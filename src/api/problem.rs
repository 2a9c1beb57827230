//! An error as an HTTP answer: a problem document (RFC 9457) with our code in `code`.

use std::time::Duration;

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;

use super::schema::Code;
use crate::domain::{ErrorCode, Refusal};

/// A refusal as an answer.
#[derive(Clone, Debug)]
pub struct Problem {
    status: StatusCode,
    refusal: Refusal,
}

/// An error: a problem document (RFC 9457).
#[derive(Serialize, ToSchema)]
#[schema(as = Problem, examples(json!({
    "type": "about:blank",
    "title": "Not Found",
    "status": 404,
    "detail": "there is no namespace `shop`",
    "code": "unknown_channel",
    "channel": "shop:1",
})))]
pub struct ProblemDocument<'a> {
    /// Always `about:blank`: `code` says what kind of problem it is.
    #[serde(rename = "type")]
    kind: &'static str,
    /// What the status is called.
    title: &'static str,
    /// The status again.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What is wrong, for the developer who reads it.
    #[schema(value_type = String)]
    detail: &'a str,
    /// What is wrong, for programs. Frames and logs share these names.
    #[schema(value_type = Code)]
    code: &'static str,
    /// The channel that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false)]
    channel: Option<&'a str>,
    /// How long to wait before the next try, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    retry_after: Option<f64>,
}

impl Problem {
    /// A refusal with another status than its code's, where HTTP knows a better one.
    pub fn with_status(status: StatusCode, refusal: Refusal) -> Self {
        Self { status, refusal }
    }

    /// What it is about.
    pub fn refusal(&self) -> &Refusal {
        &self.refusal
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let status = StatusCode::from_u16(refusal.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { status, refusal }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Self { status, refusal } = self;
        let document = ProblemDocument {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or_default(),
            status: status.as_u16(),
            detail: &refusal.message,
            code: refusal.code.name(),
            channel: refusal.channel.as_ref().map(|channel| channel.as_str()),
            retry_after: refusal.retry_after.as_ref().map(Duration::as_secs_f64),
        };
        let mut response = (status, Json(document)).into_response();
        // For who counts refusals and writes the access log.
        response.extensions_mut().insert(refusal.code);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(delay) = refusal.retry_after {
            // RFC 9110, 10.2.3: whole seconds.
            headers.insert(header::RETRY_AFTER, HeaderValue::from(delay.as_secs_f64().ceil() as u64));
        }
        if matches!(refusal.code, ErrorCode::Unauthorized | ErrorCode::TokenExpired | ErrorCode::TokenRevoked) {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
