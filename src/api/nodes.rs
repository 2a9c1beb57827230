//! The nodes that serve.

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::{Api, Server, caller::Managing, schema::Refused};

/// The nodes that serve.
#[derive(Serialize, ToSchema)]
pub struct Nodes {
    nodes: Vec<NodeView>,
}

/// One node.
#[derive(Serialize, ToSchema)]
#[schema(as = Node, examples(json!({
    "node": "web-1", "version": "0.1.0", "seconds": 3600, "draining": false, "connections": 120,
    "load": {"subscriptions": 340, "waiting": 0, "queued_bytes": 0, "lag_seconds": 0.0001},
})))]
pub struct NodeView {
    /// Its name.
    node: String,
    /// The version that it runs.
    version: &'static str,
    /// Seconds since it started.
    seconds: u64,
    /// Whether it is shutting down.
    draining: bool,
    /// Connections of all apps.
    connections: usize,
    /// How busy it is.
    load: Load,
}

/// How busy a node is.
#[derive(Serialize, ToSchema)]
pub struct Load {
    /// Subscriptions of all connections.
    subscriptions: usize,
    /// Pushes that wait for a core.
    waiting: usize,
    /// Bytes that wait for slow connections.
    queued_bytes: usize,
    /// How late the busiest core's timer was at its last tick, in seconds.
    lag_seconds: f64,
}

/// List nodes
#[utoipa::path(
    get, path = "/v1/nodes", tag = "Connections", operation_id = "listNodes",
    responses((status = 200, description = "The nodes that serve.", body = Nodes), Refused),
    security(("api_key" = [])),
)]
pub async fn list(State(api): State<Api>, _: Server<Managing>) -> Json<Nodes> {
    let view = |info: crate::node::NodeInfo| NodeView {
        node: info.id.to_string(),
        version: env!("CARGO_PKG_VERSION"),
        seconds: info.seconds,
        draining: info.draining,
        connections: info.connections,
        load: Load {
            subscriptions: info.subscriptions,
            waiting: info.waiting,
            queued_bytes: info.queued_bytes,
            lag_seconds: info.lag.as_secs_f64(),
        },
    };
    Json(Nodes { nodes: api.node.nodes().into_iter().map(view).collect() })
}
