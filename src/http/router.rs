//! Every path in one screen.

use std::sync::Arc;

use axum::{Router, middleware::from_fn, routing::get};

use super::{assets, health, layers, upgrade};
use crate::{telemetry::Metrics, transport::Door};

/// Everything that the main listeners serve.
pub fn router(door: Door) -> Router {
    let mut router = Router::new()
        .route("/v1/ws", get(upgrade::websocket))
        .route("/healthz", get(health::live))
        .route("/readyz", get(health::ready));
    for path in assets::paths() {
        router = router.route(path, get(assets::serve));
    }
    router.layer(from_fn(layers::deadline)).layer(from_fn(layers::security_headers)).with_state(door)
}

/// What the listener for figures serves.
pub fn metrics_router(metrics: Arc<Metrics>) -> Router {
    Router::new().route("/metrics", get(health::metrics)).with_state(metrics)
}
