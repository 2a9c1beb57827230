//! `GET /v1/ws`: the checks before a WebSocket, and the 101.

use std::time::Duration;

use axum::{
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper::upgrade::OnUpgrade;

use super::error::Problem;
use crate::{
    domain::{ErrorCode, Refusal},
    transport::{
        Door, Peer,
        handshake::{Handshake, HandshakeError},
        opening::Opening,
        websocket::{Accepted, adopt},
    },
};

/// Answers the handshake and hands the socket over.
pub async fn websocket(State(door): State<Door>, mut request: Request) -> Response {
    let handshake = match Handshake::check(request.method(), request.headers(), door.settings.compression) {
        Ok(handshake) => handshake,
        Err(error) => return refused(error),
    };
    if let Err(refusal) = admit(&door, &request) {
        door.node.metrics().refusal(refusal.code);
        return Problem(refusal).into_response();
    }
    let Some(upgrade) = request.extensions_mut().remove::<OnUpgrade>() else {
        return Problem(Refusal::new(ErrorCode::BadRequest, "this connection cannot be upgraded")).into_response();
    };
    let opening = Opening::read(&door.node, request.uri(), request.headers());
    adopt(&door, Accepted { upgrade, opening, deflated: handshake.extensions.is_some() });
    switching(handshake)
}

/// Everything that is refused by status, since no page could read it anyway.
fn admit(door: &Door, request: &Request) -> Result<(), Refusal> {
    let gateway = door.node.gateway();
    gateway.check_origin(request.headers(), door.settings.tls)?;
    let away = |why: &str| Refusal::new(ErrorCode::Unavailable, why).retry_after(Duration::from_secs(1));
    if door.node.is_draining() {
        return Err(away("this node is shutting down"));
    }
    if door.settings.max_connections <= door.hub().connections() {
        return Err(away("this node holds as many connections as it may"));
    }
    match request.extensions().get::<Peer>() {
        Some(Peer(peer)) => gateway.admit(gateway.client_address(peer.ip(), request.headers())),
        None => Ok(()),
    }
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
    let problem = Problem(Refusal::new(ErrorCode::BadRequest, error.to_string()));
    if !matches!(error, HandshakeError::NoUpgrade | HandshakeError::Version) {
        return problem.into_response();
    }
    // RFC 6455, 4.2.2, step 4; RFC 9110, 15.5.22.
    let mut response = problem.with_status(StatusCode::UPGRADE_REQUIRED);
    let headers = response.headers_mut();
    headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    response
}
