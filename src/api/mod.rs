//! Our server API: what the application's servers call with an API key, and what clients call without a socket.
//!
//! A call is read by extractors ([`Server`], [`Client`], [`Segment`], [`Query`], [`JsonText`]), each of which refuses with
//! a [`Problem`] of its own; a handler asks the [`Node`] and writes the answer. Each handler carries its own description
//! for the OpenAPI document, which `http/openapi.rs` puts together. Start at [`server_routes`].

mod body;
mod caller;
pub mod channels;
pub mod history;
pub mod nodes;
mod path;
pub mod presence;
pub mod problem;
pub mod publish;
mod query;
pub mod revocations;
pub mod schema;
pub mod sessions;

use std::sync::Arc;

use axum::{
    Router,
    routing::{delete, get, post},
};

pub use self::{
    body::{JsonText, parse},
    caller::{Client, ClientAddress, Reader, Scope, Server, Whose},
    path::{Named, Segment, has_bad_escape},
    problem::Problem,
    query::Query,
};
use crate::node::Node;

/// What every call needs.
#[derive(Clone)]
pub struct Api {
    /// The node.
    pub node: Arc<Node>,
    /// The largest request body, in bytes.
    pub max_body: usize,
}

/// What the application's servers call.
pub fn server_routes() -> Router<Api> {
    Router::new()
        .route("/v1/publish", post(publish::publish))
        .route("/v1/batch", post(publish::batch))
        .route("/v1/channels", get(channels::list))
        .route("/v1/channels/{channel}", get(channels::one))
        .route("/v1/users/{user}/disconnect", post(sessions::disconnect_user))
        .route("/v1/users/{user}/subscribe", post(sessions::subscribe_user))
        .route("/v1/users/{user}/unsubscribe", post(sessions::unsubscribe_user))
        .route("/v1/users/{user}/revoke", post(revocations::revoke_user))
        .route("/v1/tokens/revoke", post(revocations::revoke_token))
        .route("/v1/connections", get(sessions::list))
        .route("/v1/connections/{connection}", delete(sessions::disconnect))
        .route("/v1/nodes", get(nodes::list))
}

/// What clients call too, from pages of allowed origins among them.
pub fn client_routes() -> Router<Api> {
    Router::new()
        .route("/v1/channels/{channel}/publish", post(publish::publish_as_client))
        .route("/v1/channels/{channel}/presence", get(presence::members))
        .route("/v1/channels/{channel}/history", get(history::read).delete(history::delete))
}
