//! What is subscribed to.

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Api, Named, Problem, Query, Server,
    caller::Reading,
    schema::{ChannelRefused, Refused},
};
use crate::{
    domain::{ChannelName, ErrorCode, Refusal},
    node::ChannelStats,
};

/// How many channels come if no number is named, and the most that come.
const DEFAULT_LIMIT: u64 = 100;
const MAX_LIMIT: u64 = 1000;

/// Channels with subscribers, by name.
#[derive(Serialize, ToSchema)]
pub struct ChannelList {
    channels: Vec<ChannelInfo>,
}

/// One channel in numbers, over all nodes.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({"channel": "room:1", "subscribers": 3, "users": 2, "epoch": "k3f9", "offset": 43})))]
pub struct ChannelInfo {
    /// Its name.
    channel: String,
    /// Subscribed connections.
    subscribers: usize,
    /// Distinct users among them; anonymous ones count as none.
    users: usize,
    /// The epoch of its history; only where history is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    epoch: Option<String>,
    /// The newest offset; 0 before the first publication.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    offset: Option<u64>,
}

impl ChannelInfo {
    fn new(channel: String, stats: ChannelStats) -> Self {
        Self {
            channel,
            subscribers: stats.subscribers,
            users: stats.users,
            epoch: stats.position.map(|position| position.epoch.to_string()),
            offset: stats.position.map(|position| position.offset.0),
        }
    }
}

/// List channels
///
/// Those that somebody is subscribed to, by name. For the next page name the last one in `after`.
#[utoipa::path(
    get, path = "/v1/channels", tag = "Channels", operation_id = "listChannels",
    params(
        ("prefix" = Option<String>, Query, description = "Only names that begin with this.", example = "room:"),
        ("after" = Option<String>, Query, description = "Only names that sort behind this one."),
        ("limit" = Option<u64>, Query, description = "At most this many; 100 if left out.", minimum = 1, maximum = 1000),
    ),
    responses((status = 200, description = "The channels.", body = ChannelList), Refused),
    security(("api_key" = [])),
)]
pub async fn list(State(api): State<Api>, server: Server<Reading>, query: Query) -> Result<Json<ChannelList>, Problem> {
    let prefix = query.text("prefix")?.unwrap_or_default();
    let after = query.text("after")?.unwrap_or_default();
    let limit = query.number("limit", 1..=MAX_LIMIT)?.unwrap_or(DEFAULT_LIMIT);
    let channels = api.node.channels(server.app(), prefix, after, limit as usize).await?;
    let channels = channels.into_iter().map(|(name, stats)| ChannelInfo::new(name, stats)).collect();
    Ok(Json(ChannelList { channels }))
}

/// Look at a channel
///
/// Also one that nobody is subscribed to: it may have a history.
#[utoipa::path(
    get, path = "/v1/channels/{channel}", tag = "Channels", operation_id = "channel",
    params(("channel" = String, Path, description = "The channel, percent-encoded.", example = "room:1")),
    responses((status = 200, description = "The channel in numbers.", body = ChannelInfo), Refused, ChannelRefused),
    security(("api_key" = [])),
)]
pub async fn one(
    State(api): State<Api>,
    server: Server<Reading>,
    Named(channel): Named<ChannelName>,
) -> Result<Json<ChannelInfo>, Problem> {
    known(&api, &channel)?;
    let stats = api.node.channel(server.app(), &channel).await?;
    Ok(Json(ChannelInfo::new(channel.as_str().to_owned(), stats)))
}

/// Whether a channel's namespace exists.
pub(super) fn known(api: &Api, channel: &ChannelName) -> Result<(), Refusal> {
    match api.node.gateway().namespace(channel) {
        Some(_) => Ok(()),
        None => {
            let message = format!("there is no namespace `{}`", channel.namespace());
            Err(Refusal::new(ErrorCode::UnknownChannel, message).in_channel(channel))
        }
    }
}
