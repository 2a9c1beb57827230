//! Live, ready, and the figures.

use std::sync::Arc;

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};

use crate::{protocol::native::Json, telemetry::Metrics, transport::Door};

/// Is the process alive?
#[utoipa::path(
    get, path = "/healthz", tag = "Health", operation_id = "healthz",
    responses((status = 200, description = "It serves.", body = Status, example = json!({"status": "ok"}))),
)]
pub async fn live() -> Response {
    json(StatusCode::OK, |json| {
        json.word("status", "ok");
    })
}

/// Can it serve?
///
/// The broker answers, and the node is not draining.
#[utoipa::path(
    get, path = "/readyz", tag = "Health", operation_id = "readyz",
    responses(
        (status = 200, description = "It can.", body = Status, example = json!({"status": "ready"})),
        (status = 503, description = "It cannot, and why.", body = Status,
            example = json!({"status": "unavailable", "reason": "draining"})),
    ),
)]
pub async fn ready(State(door): State<Door>) -> Response {
    let reason = match door.node.is_draining() {
        true => Err("draining".to_owned()),
        false => door.node.probe().await.map_err(|error| error.to_string()),
    };
    match reason {
        Ok(()) => json(StatusCode::OK, |json| {
            json.word("status", "ready");
        }),
        Err(reason) => json(StatusCode::SERVICE_UNAVAILABLE, |json| {
            json.word("status", "unavailable").text("reason", &reason);
        }),
    }
}

/// How the process is.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct Status {
    /// `ok`, `ready` or `unavailable`.
    status: String,
    /// Why it is unavailable.
    #[schema(nullable = false)]
    reason: Option<String>,
}

/// `GET /metrics`, on a listener of its own.
pub async fn metrics(State(metrics): State<Arc<Metrics>>) -> Response {
    let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], metrics.render()).into_response()
}

fn json(status: StatusCode, members: impl FnOnce(&mut Json<'_>)) -> Response {
    let mut body = Vec::new();
    Json::object(&mut body, members);
    let kind = HeaderValue::from_static("application/json");
    (status, [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], body)
        .into_response()
}
