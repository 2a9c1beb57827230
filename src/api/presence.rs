//! Who is in a channel.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::header;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Api, Named, Problem, Reader,
    schema::{ChannelRefused, KeepsNone, Member, Refused},
};
use crate::{
    domain::ChannelName,
    protocol::native::{Json, member},
};

/// Who is in a channel.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({
    "channel": "room:1",
    "members": [{"connection": "c_0000000000000000000001", "user": "alice", "info": {"name": "Alice"}}],
    "users": 1,
})))]
pub struct Presence {
    /// Which channel.
    channel: String,
    /// Its members, one for each subscribed connection.
    members: Vec<Member>,
    /// How many distinct users they are.
    users: u64,
}

/// List members
///
/// For servers, and for clients whom the namespace lets.
#[utoipa::path(
    get, path = "/v1/channels/{channel}/presence", tag = "Channels", operation_id = "presence",
    params(
        ("channel" = String, Path, description = "The channel, percent-encoded.", example = "room:1"),
        ("token" = Option<String>, Query, description = "A client's token, for who cannot set headers."),
        ("app" = Option<String>, Query, description = "For clients: the app's public key."),
    ),
    responses((status = 200, description = "Its members.", body = Presence), Refused, ChannelRefused, KeepsNone),
    security(("api_key" = []), ("token" = []), ("token_in_query" = []), ()),
)]
pub async fn members(
    State(api): State<Api>,
    reader: Reader,
    Named(channel): Named<ChannelName>,
) -> Result<Response, Problem> {
    let (members, users) = api.node.members(&reader.caller(), &channel).await?;
    let mut body = Vec::new();
    Json::object(&mut body, |json| {
        json.text("channel", channel.as_str()).list("members", &members, member).value("users", users);
    });
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}
