//! What every request passes, outermost first: security headers; a request id and a line in the access log; a panic
//! becomes 500; a time limit; and, for the API, the page's origin.

use std::{
    panic::AssertUnwindSafe,
    time::{Duration, Instant},
};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use tracing::info;

use crate::{
    api::{ClientAddress, Problem, Whose},
    domain::{ErrorCode, Refusal},
    transport::{Door, Peer},
};

/// How long one request may take, its body included.
const REQUEST_DEADLINE: Duration = Duration::from_secs(30);
/// The longest request id that is taken from a client, in bytes.
const MAX_REQUEST_ID_BYTES: usize = 128;
/// How much of a path is logged, in bytes.
const LOGGED_PATH_BYTES: usize = 256;
/// For how long a browser need not ask again what a page may do, in seconds: the most that Chromium keeps.
const PREFLIGHT_SECONDS: HeaderValue = HeaderValue::from_static("7200");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Answers 504 where a request takes too long. Streams count only until their head is answered.
pub async fn deadline(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_DEADLINE, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::from(Refusal::new(ErrorCode::Timeout, "the request took too long")).into_response(),
    }
}

/// Answers 500 where something panics, so that one bad request ends nobody else's connection.
pub async fn no_panic(request: Request, next: Next) -> Response {
    match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(_) => {
            tracing::error!("a request panicked and was answered with 500");
            Problem::from(Refusal::new(ErrorCode::Internal, "an error on our side")).into_response()
        }
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

/// Gives each request an id, or keeps the one it has; counts refusals; and writes a line for each API call, with the path
/// only: a query may hold a token.
pub async fn access_log(State(door): State<Door>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = request_id(request.headers());
    let (method, uri, whose) = (request.method().clone(), request.uri().clone(), Whose::default());
    request.extensions_mut().insert(whose.clone());
    if let Some(Peer(peer)) = request.extensions().get() {
        let address = door.node.gateway().client_address(peer.ip(), request.headers());
        request.extensions_mut().insert(ClientAddress(address));
    }
    let mut response = next.run(request).await;
    let code = response.extensions().get::<ErrorCode>().copied();
    if let Some(code) = code {
        door.node.metrics().refusal(code);
    }
    let path = uri.path();
    // A WebSocket's session writes lines of its own.
    if path.starts_with("/v1/") && path != "/v1/ws" {
        info!(
            request = id.to_str().unwrap_or_default(),
            %method,
            path = path.get(..LOGGED_PATH_BYTES).unwrap_or(path),
            status = response.status().as_u16(),
            code = code.map(ErrorCode::name),
            app = whose.app().map(|app| app.as_str()),
            ms = started.elapsed().as_micros() as f64 / 1000.0,
            "request answered"
        );
    }
    response.headers_mut().insert(X_REQUEST_ID, id);
    response
}

/// The client's own id where it is a sane one, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let sane = |id: &&HeaderValue| {
        let known = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=@~".contains(byte);
        (1..=MAX_REQUEST_ID_BYTES).contains(&id.len()) && id.as_bytes().iter().all(known)
    };
    let made =
        || HeaderValue::from_str(&format!("{:032x}", rand::random::<u128>())).expect("digits are a header value");
    headers.get(X_REQUEST_ID).filter(sane).cloned().unwrap_or_else(made)
}

/// Refuses what comes from pages of foreign origins. (In development mode the door also looks at `Host`, for GET too.)
pub async fn known_origin(State(door): State<Door>, request: Request, next: Next) -> Response {
    match door.node.gateway().check_origin(request.headers(), door.settings.tls) {
        Ok(()) => next.run(request).await,
        Err(refusal) => Problem::from(refusal).into_response(),
    }
}

/// Lets pages of allowed origins call and read what clients may, without credentials of the browser's own (CORS).
pub async fn cross_origin(State(door): State<Door>, request: Request, next: Next) -> Response {
    let origin = request.headers().get(header::ORIGIN).cloned();
    let preflight = request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
        && origin.is_some();
    let mut response = match door.node.gateway().check_origin(request.headers(), door.settings.tls) {
        Err(refusal) => Problem::from(refusal).into_response(),
        Ok(()) => {
            let mut response = if preflight { allowed() } else { next.run(request).await };
            if let Some(origin) = origin {
                let headers = response.headers_mut();
                headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
                let exposed = HeaderValue::from_static("X-Request-Id, Retry-After");
                headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
            }
            response
        }
    };
    response.headers_mut().append(header::VARY, HeaderValue::from_static("Origin"));
    response
}

/// What a page of an allowed origin may send.
fn allowed() -> Response {
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST")),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            HeaderValue::from_static("Authorization, Content-Type, Last-Event-ID, X-Request-Id"),
        ),
        (header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_SECONDS),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

/// The answer where no route has the path.
pub async fn not_found() -> Problem {
    let refusal = Refusal::new(ErrorCode::UnknownMethod, "there is nothing at this path; see /v1/openapi.json");
    Problem::with_status(StatusCode::NOT_FOUND, refusal)
}

/// The answer where a route has the path but not the method; axum adds `Allow`.
pub async fn method_not_allowed() -> Problem {
    let refusal = Refusal::new(ErrorCode::BadRequest, "this path has other methods, see `Allow`");
    Problem::with_status(StatusCode::METHOD_NOT_ALLOWED, refusal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sane_request_id_is_kept_and_any_other_replaced() {
        let with = |id: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(X_REQUEST_ID, HeaderValue::from_bytes(id.as_bytes()).unwrap());
            request_id(&headers)
        };
        assert_eq!(with("Root=1-5759e988-bd862e3f"), "Root=1-5759e988-bd862e3f");
        for bad in ["", "a b", "x\"y", "é", &"x".repeat(129)] {
            assert!(with(bad).len() == 32 && with(bad) != with(bad), "{bad}");
        }
    }
}
