//! Every path in one screen. Those of the API itself are in [`api::server_routes`] and [`api::client_routes`].

use std::sync::Arc;

use axum::{
    Router,
    middleware::{from_fn, from_fn_with_state},
    routing::get,
};

use super::{assets, events, health, layers, openapi, upgrade};
use crate::{
    api::{self, Api},
    telemetry::Metrics,
    transport::Door,
};

/// Everything that the main listeners serve.
pub fn router(door: Door) -> Router {
    let api = Api { node: door.node.clone(), max_body: door.settings.max_body };
    let document = openapi::document();
    let servers = api::server_routes()
        .method_not_allowed_fallback(layers::method_not_allowed)
        .route_layer(from_fn_with_state(door.clone(), layers::known_origin))
        .with_state(api.clone());
    let clients = api::client_routes()
        .with_state(api)
        .route("/v1/events", get(events::of_several))
        .route("/v1/channels/{channel}/events", get(events::of_one))
        // The browser client asks here whether the server is there at all, before it opens a stream.
        .route("/healthz", get(health::live))
        .method_not_allowed_fallback(layers::method_not_allowed)
        .route_layer(from_fn_with_state(door.clone(), layers::cross_origin));
    let mut rest = Router::new()
        .route("/v1/ws", get(upgrade::websocket))
        .route("/v1/openapi.json", get(move || openapi::serve(document.clone())))
        .route("/readyz", get(health::ready));
    for path in assets::paths() {
        rest = rest.route(path, get(assets::serve));
    }
    rest.method_not_allowed_fallback(layers::method_not_allowed)
        .merge(servers)
        .merge(clients)
        .fallback(layers::not_found)
        .layer(from_fn(layers::deadline))
        .layer(from_fn(layers::no_panic))
        .layer(from_fn_with_state(door.clone(), layers::access_log))
        .layer(from_fn(layers::security_headers))
        .with_state(door)
}

/// What the listener for figures serves.
pub fn metrics_router(metrics: Arc<Metrics>) -> Router {
    Router::new().route("/metrics", get(health::metrics)).with_state(metrics)
}
