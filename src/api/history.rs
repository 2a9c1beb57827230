//! Reading and dropping a channel's history.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Api, Named, Problem, Query, Reader, Server,
    caller::Managing,
    schema::{ChannelRefused, KeepsNone, Message, Refused},
};
use crate::{
    domain::{ChannelName, HistoryQuery, Offset},
    protocol::native::{Json, publication},
};

/// A part of a channel's history.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "channel": "room:1",
    "epoch": "k3f9",
    "offset": 43,
    "messages": [{
        "type": "message", "channel": "room:1", "event": "chat", "data": {"text": "hi"},
        "id": "01KA8T3M5E6ZJ0V8W2Q4RXY7BN", "offset": 43, "time": 1_764_000_000_123_u64,
    }],
})))]
pub struct History {
    /// Which channel.
    channel: String,
    /// The epoch in which offsets count; a new one says that older ones are lost.
    epoch: String,
    /// The newest offset.
    offset: u64,
    /// What was asked for.
    messages: Vec<Message>,
}

/// Read history
///
/// The oldest `limit` publications between `after` and `before`; with `reverse` the newest, newest first. Fewer come
/// where they are large (about 256 KiB an answer, at least one): ask again with `after` until it equals `offset`. For
/// servers, and for clients whom the namespace lets.
#[utoipa::path(
    get, path = "/v1/channels/{channel}/history", tag = "Channels", operation_id = "history",
    params(
        ("channel" = String, Path, description = "The channel, percent-encoded.", example = "room:1"),
        ("limit" = Option<u64>, Query, description = "At most this many; 100 if left out.", minimum = 0, maximum = 1000),
        ("after" = Option<u64>, Query, description = "Only offsets above this one."),
        ("before" = Option<u64>, Query, description = "Only offsets below this one."),
        ("reverse" = Option<bool>, Query, description = "Newest first."),
        ("token" = Option<String>, Query, description = "A client's token, for who cannot set headers."),
        ("app" = Option<String>, Query, description = "For clients: the app's public key."),
    ),
    responses((status = 200, description = "What is kept of it.", body = History), Refused, ChannelRefused, KeepsNone),
    security(("api_key" = []), ("token" = []), ("token_in_query" = []), ()),
)]
pub async fn read(
    State(api): State<Api>,
    reader: Reader,
    Named(channel): Named<ChannelName>,
    query: Query,
) -> Result<Response, Problem> {
    let limit = query.number("limit", 0..=HistoryQuery::MAX_LIMIT as u64)?;
    let query = HistoryQuery {
        limit: limit.map_or(HistoryQuery::DEFAULT_LIMIT, |limit| limit as usize),
        after: query.number("after", 0..=u64::MAX)?.map(Offset),
        before: query.number("before", 0..=u64::MAX)?.map(Offset),
        reverse: query.flag("reverse")?,
    };
    let history = api.node.history(&reader.caller(), &channel, query).await?;
    let mut body = Vec::new();
    Json::object(&mut body, |json| {
        json.text("channel", channel.as_str()).word("epoch", history.position.epoch);
        json.value("offset", history.position.offset);
        json.list("messages", &history.publications, |each, out| publication(each, out));
    });
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// Drop history
///
/// The channel starts a new epoch, and its subscribers are told that their position is lost.
#[utoipa::path(
    delete, path = "/v1/channels/{channel}/history", tag = "Channels", operation_id = "dropHistory",
    params(("channel" = String, Path, description = "The channel, percent-encoded.", example = "room:1")),
    responses((status = 204, description = "It is gone."), Refused, ChannelRefused, KeepsNone),
    security(("api_key" = [])),
)]
pub async fn delete(
    State(api): State<Api>,
    server: Server<Managing>,
    Named(channel): Named<ChannelName>,
) -> Result<StatusCode, Problem> {
    api.node.drop_history(&server.caller(), &channel).await?;
    Ok(StatusCode::NO_CONTENT)
}
