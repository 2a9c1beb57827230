//! What every request passes, in this order: a panic becomes 500; security headers; a time limit; a body limit.

use std::time::Duration;

use axum::{
    extract::Request,
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, header};

use super::error::Problem;
use crate::domain::{ErrorCode, Refusal};

/// How long one request may take, its body included.
const REQUEST_DEADLINE: Duration = Duration::from_secs(30);

/// Answers 504 where a request takes too long. Streams count only until their head is answered.
pub async fn deadline(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_DEADLINE, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem(Refusal::new(ErrorCode::Timeout, "the request took too long")).into_response(),
    }
}

/// Headers that make browsers careful with what we serve.
pub async fn security_headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}
