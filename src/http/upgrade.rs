//! `GET /v1/ws`: the checks before a WebSocket, and the 101.

use std::time::Duration;

use axum::{
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper::upgrade::OnUpgrade;

use crate::{
    api::{Problem, problem::ProblemDocument, schema::Refused},
    domain::{ErrorCode, Refusal},
    gateway::opening::Opening,
    transport::{
        Door, OpenSocket, Peer,
        handshake::{Handshake, HandshakeError},
        websocket::{Accepted, adopt},
    },
};

/// Connect by WebSocket
///
/// Speaks `fanwire.v1`: one JSON object a frame, as `docs/protocol-native.md` says. A bad token, an unknown app or a full
/// one is told inside, by a `disconnect` frame and a close code; what is refused by status is told here.
#[utoipa::path(
    get, path = "/v1/ws", tag = "Clients", operation_id = "connect",
    params(
        ("token" = Option<String>, Query, description = "The token, since a page cannot set headers. The sub-protocol \
            `bearer.<token>` or an `auth` frame do as well, and leave no trace in a proxy's log."),
        ("app" = Option<String>, Query, description = "The app's public key; may be left out where there is one app."),
    ),
    responses(
        (status = 101, description = "The connection is a WebSocket from here on."),
        (status = 426, description = "It is no WebSocket handshake, or one of another version.",
            body = ProblemDocument, content_type = "application/problem+json"),
        Refused,
    ),
    security(("token" = []), ("token_in_query" = []), ()),
)]
pub async fn websocket(State(door): State<Door>, mut request: Request) -> Response {
    let handshake = match Handshake::check(request.method(), request.headers(), door.settings.compression) {
        Ok(handshake) => handshake,
        Err(error) => return refused(error),
    };
    if let Err(refusal) = admit(&door, &request) {
        return Problem::from(refusal).into_response();
    }
    let Some(upgrade) = request.extensions_mut().remove::<OnUpgrade>() else {
        return Problem::from(Refusal::new(ErrorCode::BadRequest, "this connection cannot be upgraded"))
            .into_response();
    };
    let opening = Opening::read(door.node.gateway(), request.uri(), request.headers());
    let open = request.extensions_mut().remove::<OpenSocket>();
    adopt(&door, Accepted { upgrade, opening, deflated: handshake.extensions.is_some(), open });
    switching(handshake)
}

/// Everything that is refused by status, since no page could read it anyway. That there is room was seen to when the
/// socket was accepted.
pub(super) fn admit(door: &Door, request: &Request) -> Result<(), Refusal> {
    let gateway = door.node.gateway();
    gateway.check_origin(request.headers(), door.settings.tls)?;
    if door.node.is_draining() {
        let refusal = Refusal::new(ErrorCode::Unavailable, "this node is shutting down");
        return Err(refusal.retry_after(Duration::from_secs(1)));
    }
    let Some(Peer(peer)) = request.extensions().get() else { return Ok(()) };
    let admitted = gateway.admit(gateway.client_address(peer.ip(), request.headers()));
    admitted.inspect_err(|_| door.node.metrics().rate_limited("connections_per_address"))
}

fn switching(handshake: Handshake) -> Response {
    let mut headers = HeaderMap::with_capacity(5);
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, handshake.accept);
    if let Some(protocol) = handshake.protocol {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    if let Some(extensions) = handshake.extensions {
        headers.insert(header::SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_static(extensions));
    }
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

fn refused(error: HandshakeError) -> Response {
    let refusal = Refusal::new(ErrorCode::BadRequest, error.to_string());
    if matches!(error, HandshakeError::NoUpgrade | HandshakeError::Version) {
        // RFC 6455, 4.2.2, step 4; RFC 9110, 15.5.22.
        let mut response = Problem::with_status(StatusCode::UPGRADE_REQUIRED, refusal).into_response();
        let headers = response.headers_mut();
        headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        return response;
    }
    Problem::from(refusal).into_response()
}
