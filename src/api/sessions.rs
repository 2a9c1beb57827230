//! Connections: who is connected, and what the application's servers ask of them.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Api, JsonText, Named, Problem, Query, Server,
    caller::Managing,
    channels::known,
    parse,
    schema::{BodyRefused, ChannelRefused, Refused},
};
use crate::{
    broker::{Deed, Dismissal, Target},
    domain::{ChannelName, ConnectionId, ErrorCode, Refusal, UserId},
    node::ConnectionInfo,
    protocol::native::{MAX_DEPTH, Text},
};

/// How many connections come if no number is named, and the most that come.
const DEFAULT_LIMIT: u64 = 100;
const MAX_LIMIT: u64 = 1000;

/// Connections, in no order.
#[derive(Serialize, ToSchema)]
pub struct Connections {
    connections: Vec<ConnectionView>,
}

/// One connection.
#[derive(Serialize, ToSchema)]
#[schema(as = Connection, examples(json!({
    "connection": "c_0000000000000000000001", "user": "alice", "node": "web-1", "channels": ["room:1"], "seconds": 60,
})))]
pub struct ConnectionView {
    /// Its id.
    connection: String,
    /// Its user; missing for an anonymous one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    user: Option<String>,
    /// The node that it is on.
    node: String,
    /// What it is subscribed to.
    channels: Vec<String>,
    /// Seconds since it came.
    seconds: u64,
}

/// How many connections were asked on the node that answers. What others do it does not wait for.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({"connections": 2})))]
pub struct Asked {
    /// How many are on this node; 0 where there is none here.
    connections: usize,
}

/// Which channels.
#[derive(Deserialize, ToSchema)]
#[schema(as = ChannelNames, examples(json!({"channel": "room:1"})))]
pub struct ChannelsRequest<'a> {
    /// The channel; either this or `channels`.
    #[serde(borrow, default)]
    #[schema(value_type = String, required = false)]
    channel: Option<Text<'a>>,
    /// Several channels, at most 100.
    #[serde(borrow, default)]
    #[schema(value_type = Vec<String>, required = false, max_items = 100)]
    channels: Option<Vec<Text<'a>>>,
}

/// The most channels of one request.
const MAX_CHANNELS: usize = 100;

fn names(api: &Api, text: &str) -> Result<Vec<ChannelName>, Refusal> {
    let bad_request = |message: String| Refusal::new(ErrorCode::BadRequest, message);
    let ChannelsRequest { channel, channels } = parse(text, MAX_DEPTH)?;
    let raw = match (channel, channels) {
        (Some(channel), None) => vec![channel],
        (None, Some(channels)) if (1..=MAX_CHANNELS).contains(&channels.len()) => channels,
        (None, Some(_)) => return Err(bad_request(format!("`channels` has 1 to {MAX_CHANNELS} channels"))),
        (None, None) => return Err(bad_request("`channel` or `channels` is missing".into())),
        (Some(_), Some(_)) => return Err(bad_request("`channel` and `channels` exclude each other".into())),
    };
    let parsed = raw.iter().map(|Text(raw)| {
        let name: ChannelName = raw.parse().map_err(|error| bad_request(format!("`channel`: {error}")))?;
        known(api, &name)?;
        Ok(name)
    });
    parsed.collect()
}

/// With which code to disconnect: `?code=`.
fn reason(query: &Query) -> Result<Deed, Refusal> {
    match query.text("code")? {
        None | Some("forbidden") => Ok(Deed::Disconnect(Dismissal::Forbidden)),
        Some("token_revoked") => Ok(Deed::Disconnect(Dismissal::TokenRevoked)),
        Some(_) => Err(Refusal::new(ErrorCode::BadRequest, "`code` is `forbidden` or `token_revoked`")),
    }
}

/// List connections
#[utoipa::path(
    get, path = "/v1/connections", tag = "Connections", operation_id = "listConnections",
    params(
        ("user" = Option<String>, Query, description = "Only this user's.", example = "alice"),
        ("limit" = Option<u64>, Query, description = "At most this many; 100 if left out.", minimum = 1, maximum = 1000),
    ),
    responses((status = 200, description = "The connections.", body = Connections), Refused),
    security(("api_key" = [])),
)]
pub async fn list(
    State(api): State<Api>,
    server: Server<Managing>,
    query: Query,
) -> Result<Json<Connections>, Problem> {
    let user = query.parsed::<UserId>("user")?;
    let limit = query.number("limit", 1..=MAX_LIMIT)?.unwrap_or(DEFAULT_LIMIT);
    let view = |info: ConnectionInfo| ConnectionView {
        connection: info.id.to_string(),
        user: info.user.map(|user| user.as_str().to_owned()),
        node: api.node.id().to_string(),
        channels: info.channels,
        seconds: info.seconds,
    };
    let connections = api.node.connections(server.app(), user, limit as usize).await;
    Ok(Json(Connections { connections: connections.into_iter().map(view).collect() }))
}

/// End a connection
///
/// It gets a `disconnect` frame and is closed, whatever node it is on.
#[utoipa::path(
    delete, path = "/v1/connections/{connection}", tag = "Connections", operation_id = "disconnect",
    params(
        ("connection" = String, Path, description = "Its id.", example = "c_0000000000000000000001"),
        ("code" = Option<String>, Query, description = "`forbidden`, after which a client does not come back by itself, \
            or `token_revoked`, after which it fetches a new token first."),
    ),
    responses((status = 200, description = "Whether it is on the node that answers: 1 or 0.", body = Asked), Refused),
    security(("api_key" = [])),
)]
pub async fn disconnect(
    State(api): State<Api>,
    server: Server<Managing>,
    Named(connection): Named<ConnectionId>,
    query: Query,
) -> Result<Json<Asked>, Problem> {
    let connections = api.node.order(server.app(), Target::Connection(connection), reason(&query)?).await?;
    Ok(Json(Asked { connections }))
}

/// Disconnect a user
///
/// All of the user's connections end, on every node, each with a `disconnect` frame.
#[utoipa::path(
    post, path = "/v1/users/{user}/disconnect", tag = "Connections", operation_id = "disconnectUser",
    params(
        ("user" = String, Path, description = "The user's id, percent-encoded.", example = "alice"),
        ("code" = Option<String>, Query, description = "`forbidden`, after which a client does not come back by itself, \
            or `token_revoked`, after which it fetches a new token first."),
    ),
    responses((status = 200, description = "How many connections on this node were asked to go.", body = Asked), Refused),
    security(("api_key" = [])),
)]
pub async fn disconnect_user(
    State(api): State<Api>,
    server: Server<Managing>,
    Named(user): Named<UserId>,
    query: Query,
) -> Result<Json<Asked>, Problem> {
    let connections = api.node.order(server.app(), Target::User(user), reason(&query)?).await?;
    Ok(Json(Asked { connections }))
}

/// Subscribe a user
///
/// All of the user's connections are subscribed, on every node, whatever the token or the namespace allows the user.
#[utoipa::path(
    post, path = "/v1/users/{user}/subscribe", tag = "Connections", operation_id = "subscribeUser",
    params(("user" = String, Path, description = "The user's id, percent-encoded.", example = "alice")),
    request_body = ChannelsRequest,
    responses((status = 200, description = "How many connections on this node were asked.", body = Asked),
        Refused, ChannelRefused, BodyRefused),
    security(("api_key" = [])),
)]
pub async fn subscribe_user(
    State(api): State<Api>,
    server: Server<Managing>,
    Named(user): Named<UserId>,
    JsonText(text): JsonText,
) -> Result<Json<Asked>, Problem> {
    let subscribe = Deed::Subscribe(names(&api, &text)?);
    let connections = api.node.order(server.app(), Target::User(user), subscribe).await?;
    Ok(Json(Asked { connections }))
}

/// Unsubscribe a user
///
/// All of the user's connections are unsubscribed, on every node, and told so.
#[utoipa::path(
    post, path = "/v1/users/{user}/unsubscribe", tag = "Connections", operation_id = "unsubscribeUser",
    params(("user" = String, Path, description = "The user's id, percent-encoded.", example = "alice")),
    request_body = ChannelsRequest,
    responses((status = 200, description = "How many connections on this node were asked.", body = Asked),
        Refused, ChannelRefused, BodyRefused),
    security(("api_key" = [])),
)]
pub async fn unsubscribe_user(
    State(api): State<Api>,
    server: Server<Managing>,
    Named(user): Named<UserId>,
    JsonText(text): JsonText,
) -> Result<Json<Asked>, Problem> {
    let unsubscribe = Deed::Unsubscribe(names(&api, &text)?);
    let connections = api.node.order(server.app(), Target::User(user), unsubscribe).await?;
    Ok(Json(Asked { connections }))
}
