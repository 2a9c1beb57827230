//! Publishing: one event to one channel or several, many events at once, and a client's own.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::task::yield_now;
use utoipa::ToSchema;

use super::{
    Api, Client, JsonText, Named, Problem, Server,
    caller::Publishing,
    parse,
    schema::{BodyRefused, ChannelRefused, Code, Refused},
};
use crate::{
    domain::{ChannelName, ConnectionId, ErrorCode, Event, IdempotencyKey, Publish, Published, Refusal},
    node::{Caller, Node},
    protocol::native::{MAX_DEPTH, PublishBody, Text, parse_publish, present},
};

/// The most publications of one batch, and the most channels of one publication.
const MAX_AT_ONCE: usize = 1000;
/// How many are done before others on the same shard get their turn.
const TURN: usize = 64;

/// Defines a request that says what to publish: its own members first, then those that every such request has.
///
/// A macro, since `#[serde(flatten)]` would take the data through a buffer and could not keep its bytes.
macro_rules! publish_request {
    ($(#[$meta:meta])* $name:ident { $($own:tt)* }) => {
        #[derive(Deserialize, ToSchema)]
        $(#[$meta])*
        pub struct $name<'a> {
            $($own)*
            /// The event's name, `message` if left out.
            #[serde(borrow, default)]
            #[schema(value_type = String, required = false, min_length = 1, max_length = 200)]
            event: Option<Text<'a>>,
            /// Any JSON; it reaches subscribers byte for byte.
            #[serde(borrow, default, deserialize_with = "present")]
            #[schema(value_type = serde_json::Value, required = true)]
            data: Option<&'a RawValue>,
            /// Idempotency key: within 5 minutes the same one in the same channel is stored once and acknowledged again.
            /// Each user has its own; so have all servers of an app together.
            #[serde(borrow, default)]
            #[schema(value_type = String, required = false, min_length = 1, max_length = 64)]
            key: Option<Text<'a>>,
            /// Labels: a flat object of strings.
            #[serde(borrow, default)]
            #[schema(value_type = std::collections::BTreeMap<String, String>, required = false)]
            tags: Option<&'a RawValue>,
        }
    };
}

publish_request! {
    /// What to publish, and where.
    #[schema(as = Publish, examples(json!({
        "channel": "room:1",
        "event": "chat",
        "data": {"text": "hi"},
        "key": "order-17",
        "tags": {"lang": "en"},
    })))]
    PublishRequest {
        /// The channel; either this or `channels`.
        #[serde(borrow, default)]
        #[schema(value_type = String, required = false)]
        channel: Option<Text<'a>>,
        /// Several channels, at most 1000. Each is done or refused by itself, in order.
        #[serde(borrow, default)]
        #[schema(value_type = Vec<String>, required = false, max_items = 1000)]
        channels: Option<Vec<Text<'a>>>,
        /// A connection that does not get it.
        #[serde(borrow, default)]
        #[schema(value_type = String, required = false)]
        exclude: Option<Text<'a>>,
    }
}

publish_request! {
    /// What a client publishes; the channel stands in the path.
    #[schema(as = ClientPublish, examples(json!({"event": "chat", "data": {"text": "hi"}, "key": "m-17"})))]
    ClientPublishRequest {}
}

/// Many publications.
#[derive(Deserialize, ToSchema)]
#[schema(as = Batch, examples(json!({"publications": [
    {"channel": "room:1", "data": "one"},
    {"channel": "room:2", "data": {"two": 2}, "event": "count"},
]})))]
pub struct BatchRequest<'a> {
    /// At most 1000, each with one `channel`. They are done in order.
    #[serde(borrow)]
    #[schema(value_type = Vec<PublishRequest>, max_items = 1000)]
    publications: Vec<&'a RawValue>,
}

/// What became of each publication, in the order of the request.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({"results": [
    {"channel": "room:1", "publication": "01KA8T3M5E6ZJ0V8W2Q4RXY7BN", "offset": 43, "epoch": "k3f9"},
    {"channel": "shop:1", "error": {"code": "unknown_channel", "message": "there is no namespace `shop`"}},
]})))]
pub struct Results {
    results: Vec<Outcome>,
}

/// What became of one publication.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum Outcome {
    /// It is published.
    Accepted(Accepted),
    /// It is not.
    Rejected(Rejected),
}

/// The broker has it.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!(
    {"channel": "room:1", "publication": "01KA8T3M5E6ZJ0V8W2Q4RXY7BN", "offset": 43, "epoch": "k3f9"}
)))]
pub struct Accepted {
    /// Where it was published.
    channel: String,
    /// Its id.
    publication: String,
    /// Its number in the channel; only where history is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    offset: Option<u64>,
    /// The epoch in which that number counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    epoch: Option<String>,
}

/// It was refused.
#[derive(Serialize, ToSchema)]
pub struct Rejected {
    /// Where it would have been published, if that can be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    channel: Option<String>,
    error: Fault,
}

/// Why it was refused.
#[derive(Serialize, ToSchema)]
pub struct Fault {
    /// For programs.
    #[schema(value_type = Code)]
    code: &'static str,
    /// For the developer who reads it.
    message: String,
    /// How long to wait before the next try, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    retry_after: Option<f64>,
}

impl From<Published> for Accepted {
    fn from(published: Published) -> Self {
        Self {
            channel: published.channel.as_str().to_owned(),
            publication: published.publication.to_string(),
            offset: published.position.map(|position| position.offset.0),
            epoch: published.position.map(|position| position.epoch.to_string()),
        }
    }
}

impl Outcome {
    fn new(channel: Option<&str>, result: Result<Published, Refusal>) -> Self {
        match result {
            Ok(published) => Self::Accepted(published.into()),
            Err(refusal) => Self::Rejected(Rejected {
                channel: channel.map(str::to_owned),
                error: Fault {
                    code: refusal.code.name(),
                    message: refusal.message,
                    retry_after: refusal.retry_after.map(|delay| delay.as_secs_f64()),
                },
            }),
        }
    }
}

/// A request whose parts are checked, but for its channels.
struct Checked {
    event: Event,
    key: Option<IdempotencyKey>,
    exclude: Option<ConnectionId>,
}

impl Checked {
    fn new(body: PublishBody<'_>, exclude: Option<Text<'_>>) -> Result<Self, Refusal> {
        let (event, key) = parse_publish(body)?;
        let exclude = exclude.map(|Text(id)| id.parse()).transpose();
        let exclude = exclude.map_err(|_| bad_request("`exclude` is the id of a connection"))?;
        Ok(Self { event, key, exclude })
    }

    async fn publish(&self, node: &Node, caller: &Caller<'_>, channel: &str) -> Result<Published, Refusal> {
        let channel = channel_name(channel)?;
        let publish = Publish { channel, event: self.event.clone(), key: self.key.clone(), echo: true };
        node.publish(caller, publish, self.exclude).await
    }
}

fn bad_request(message: impl Into<String>) -> Refusal {
    Refusal::new(ErrorCode::BadRequest, message)
}

fn channel_name(raw: &str) -> Result<ChannelName, Refusal> {
    raw.parse().map_err(|error| bad_request(format!("`channel`: {error}")))
}

/// Publish an event
///
/// With `channel` it is published there or refused as a whole. With `channels` the answer is 200, and each channel's
/// result says what became of it.
#[utoipa::path(
    post, path = "/v1/publish", tag = "Publishing", operation_id = "publish",
    request_body = PublishRequest,
    responses((status = 200, description = "What became of it, for each channel.", body = Results),
        Refused, ChannelRefused, BodyRefused),
    security(("api_key" = [])),
)]
pub async fn publish(
    State(api): State<Api>,
    server: Server<Publishing>,
    JsonText(text): JsonText,
) -> Result<Json<Results>, Problem> {
    let PublishRequest { channel, channels, event, data, key, tags, exclude } = parse(&text, MAX_DEPTH)?;
    let checked = Checked::new(PublishBody { event, data, key, tags }, exclude)?;
    let caller = server.caller();
    let channels = match (channel, channels) {
        (Some(Text(channel)), None) => {
            let published = checked.publish(&api.node, &caller, &channel).await?;
            return Ok(Json(Results { results: vec![Outcome::Accepted(published.into())] }));
        }
        (None, Some(channels)) if (1..=MAX_AT_ONCE).contains(&channels.len()) => channels,
        (None, Some(_)) => return Err(bad_request(format!("`channels` has 1 to {MAX_AT_ONCE} channels")).into()),
        (None, None) => return Err(bad_request("`channel` or `channels` is missing").into()),
        (Some(_), Some(_)) => return Err(bad_request("`channel` and `channels` exclude each other").into()),
    };
    let mut results = Vec::with_capacity(channels.len());
    for (done, Text(channel)) in channels.iter().enumerate() {
        results.push(Outcome::new(Some(channel), checked.publish(&api.node, &caller, channel).await));
        if done % TURN == TURN - 1 {
            yield_now().await;
        }
    }
    Ok(Json(Results { results }))
}

/// Publish many events
///
/// Each is done or refused by itself, in order; the answer has one result for each.
#[utoipa::path(
    post, path = "/v1/batch", tag = "Publishing", operation_id = "batch",
    request_body = BatchRequest,
    responses((status = 200, description = "What became of each, in the order of the request.", body = Results),
        Refused, BodyRefused),
    security(("api_key" = [])),
)]
pub async fn batch(
    State(api): State<Api>,
    server: Server<Publishing>,
    JsonText(text): JsonText,
) -> Result<Json<Results>, Problem> {
    // `data` may be as deep as in a publication of its own; the list and its object come on top.
    let BatchRequest { publications } = parse(&text, MAX_DEPTH + 2)?;
    if !(1..=MAX_AT_ONCE).contains(&publications.len()) {
        return Err(bad_request(format!("`publications` has 1 to {MAX_AT_ONCE} publications")).into());
    }
    let caller = server.caller();
    let mut results = Vec::with_capacity(publications.len());
    for (done, publication) in publications.iter().enumerate() {
        results.push(one_of_many(&api.node, &caller, publication.get()).await);
        if done % TURN == TURN - 1 {
            yield_now().await;
        }
    }
    Ok(Json(Results { results }))
}

async fn one_of_many(node: &Node, caller: &Caller<'_>, text: &str) -> Outcome {
    let PublishRequest { channel, channels, event, data, key, tags, exclude } = match parse(text, MAX_DEPTH) {
        Ok(request) => request,
        Err(refusal) => return Outcome::new(None, Err(refusal)),
    };
    let Some(Text(channel)) = channel.filter(|_| channels.is_none()) else {
        return Outcome::new(None, Err(bad_request("a publication of a batch has one `channel`")));
    };
    let result = match Checked::new(PublishBody { event, data, key, tags }, exclude) {
        Ok(checked) => checked.publish(node, caller, &channel).await,
        Err(refusal) => Err(refusal),
    };
    Outcome::new(Some(&channel), result)
}

/// Publish as a client
///
/// What the `publish` frame does, without a socket: with a client's token, or anonymous where the namespace lets
/// `anyone` publish.
#[utoipa::path(
    post, path = "/v1/channels/{channel}/publish", tag = "Clients", operation_id = "publishAsClient",
    params(
        ("channel" = String, Path, description = "The channel, percent-encoded.", example = "room:1"),
        ("token" = Option<String>, Query, description = "The token, for who cannot set headers."),
        ("app" = Option<String>, Query, description = "The app's public key; may be left out where there is one app."),
    ),
    request_body = ClientPublishRequest,
    responses((status = 200, description = "It is published.", body = Accepted),
        Refused, ChannelRefused, BodyRefused),
    security(("token" = []), ("token_in_query" = []), ()),
)]
pub async fn publish_as_client(
    State(api): State<Api>,
    client: Client,
    Named(channel): Named<ChannelName>,
    JsonText(text): JsonText,
) -> Result<Json<Accepted>, Problem> {
    let ClientPublishRequest { event, data, key, tags } = parse(&text, MAX_DEPTH)?;
    let (event, key) = parse_publish(PublishBody { event, data, key, tags })?;
    let user = client.identity.as_ref().map(|identity| &identity.user);
    let gateway = api.node.gateway();
    if let Err(refusal) = gateway.admit_publication(&client.app.id, &channel, user, client.address) {
        api.node.metrics().rate_limited("publish_rate");
        return Err(refusal.into());
    }
    let publish = Publish { channel, event, key, echo: true };
    let published = api.node.publish(&client.caller(), publish, None).await?;
    Ok(Json(published.into()))
}
