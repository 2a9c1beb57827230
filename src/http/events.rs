//! `GET /v1/events` and `GET /v1/channels/{channel}/events`: the checks before an event stream, and its head.

use axum::{
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, Method, header};

use super::upgrade::admit;
use crate::{
    api::{
        Client, Named, Problem, Query,
        schema::{ChannelRefused, KeepsNone, Refused},
    },
    domain::{ChannelName, ErrorCode, HistoryQuery, Offset, Position, Refusal, Start},
    transport::{Door, sse::Stream},
};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Asks nginx and its kin not to hold events back.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Listen to channels
///
/// A stream of server-sent events. Each publication is one event without a name: `data:` is its `message` frame, `id:`
/// the stream's position in all of its channels, so that `Last-Event-ID` resumes without a gap or a double. Events named
/// `subscribed`, `unsubscribed`, `join`, `leave` and `disconnect` are the frames of those names. All that can be refused
/// is refused by status before the stream begins.
#[utoipa::path(
    get, path = "/v1/events", tag = "Clients", operation_id = "events",
    params(
        ("channel" = Vec<String>, Query, description = "The channels; once for each, 1 to 256.", example = json!(["room:1"])),
        ("token" = Option<String>, Query, description = "The token, since an `EventSource` cannot set headers."),
        ("app" = Option<String>, Query, description = "The app's public key; may be left out where there is one app."),
        ("last" = Option<u64>, Query, description = "The newest this many of each channel first, unless the stream \
            resumes.", minimum = 0, maximum = 1000),
        ("after" = Option<String>, Query, description = "`EPOCH:OFFSET`, for a stream of one channel: what comes after \
            it first, unless the stream resumes by `Last-Event-ID`.", example = "k3f9:42"),
        ("presence" = Option<bool>, Query, description = "Members in `subscribed`, then `join` and `leave` events."),
        ("last_event_id" = Option<String>, Query, description = "In place of the header, for who cannot set it."),
        ("Last-Event-ID" = Option<String>, Header, description = "The `id` of the last event that came; a text that is \
            none counts as none."),
    ),
    responses(
        (status = 200, description = "The stream.", content_type = "text/event-stream", body = String,
            example = "id:AVVzb21lcG9zaXRpb24\ndata:{\"type\":\"message\",\"channel\":\"room:1\",\"event\":\"message\",\
                \"data\":\"hi\",\"id\":\"01KA8T3M5E6ZJ0V8W2Q4RXY7BN\",\"offset\":43,\"time\":1764000000123}\n\n"),
        Refused, ChannelRefused, KeepsNone,
    ),
    security(("token" = []), ("token_in_query" = []), ()),
)]
pub async fn of_several(State(door): State<Door>, query: Query, request: Request) -> Result<Response, Problem> {
    let mut channels = Vec::new();
    for raw in query.all("channel") {
        let channel = raw.parse().map_err(|error| bad_request(format!("`channel`: {error}")))?;
        if !channels.contains(&channel) {
            channels.push(channel);
        }
    }
    if channels.is_empty() {
        return Err(bad_request("`channel` is missing: `?channel=a&channel=b`").into());
    }
    stream(door, request, &query, channels).await
}

/// Listen to a channel
///
/// As `GET /v1/events`, of one channel.
#[utoipa::path(
    get, path = "/v1/channels/{channel}/events", tag = "Clients", operation_id = "channelEvents",
    params(
        ("channel" = String, Path, description = "The channel, percent-encoded.", example = "room:1"),
        ("token" = Option<String>, Query, description = "The token, since an `EventSource` cannot set headers."),
        ("app" = Option<String>, Query, description = "The app's public key; may be left out where there is one app."),
        ("last" = Option<u64>, Query, description = "The newest this many first, unless the stream resumes.",
            minimum = 0, maximum = 1000),
        ("after" = Option<String>, Query, description = "`EPOCH:OFFSET`: what comes after it first, unless the stream \
            resumes by `Last-Event-ID`.", example = "k3f9:42"),
        ("presence" = Option<bool>, Query, description = "Members in `subscribed`, then `join` and `leave` events."),
        ("last_event_id" = Option<String>, Query, description = "In place of the header, for who cannot set it."),
        ("Last-Event-ID" = Option<String>, Header, description = "The `id` of the last event that came."),
    ),
    responses(
        (status = 200, description = "The stream.", content_type = "text/event-stream", body = String),
        Refused, ChannelRefused, KeepsNone,
    ),
    security(("token" = []), ("token_in_query" = []), ()),
)]
pub async fn of_one(
    State(door): State<Door>,
    Named(channel): Named<ChannelName>,
    query: Query,
    request: Request,
) -> Result<Response, Problem> {
    stream(door, request, &query, vec![channel]).await
}

async fn stream(door: Door, request: Request, query: &Query, channels: Vec<ChannelName>) -> Result<Response, Problem> {
    admit(&door, &request)?;
    let start = start(query, channels.len())?;
    let (parts, _) = request.into_parts();
    let presence = query.flag("presence")?;
    let header = parts.headers.get(LAST_EVENT_ID).map(|id| id.to_str().unwrap_or_default());
    let position = header.or(query.text("last_event_id")?).map(str::to_owned);
    let Client { app, identity, .. } = Client::identify(door.node.gateway(), &parts).await?;
    let stream = Stream { app, identity, channels, start, position, presence };
    stream.check(&door.node)?;
    let body = match parts.method {
        Method::HEAD => Body::empty(),
        _ => stream.open(&door),
    };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (X_ACCEL_BUFFERING, HeaderValue::from_static("no")),
    ];
    Ok((headers, body).into_response())
}

/// Where a stream starts that does not resume.
fn start(query: &Query, channels: usize) -> Result<Start, Refusal> {
    let last = query.number("last", 0..=HistoryQuery::MAX_LIMIT as u64)?;
    match (query.text("after")?, last) {
        (None, None) => Ok(Start::Live),
        (None, Some(last)) => Ok(Start::Last(last as usize)),
        (Some(_), Some(_)) => Err(bad_request("`after` and `last` exclude each other")),
        (Some(_), None) if channels != 1 => Err(bad_request("`after` is for a stream of one channel")),
        (Some(after), None) => {
            let parts = after.split_once(':').map(|(epoch, offset)| (epoch, offset.parse::<u64>()));
            let Some((epoch, Ok(offset))) = parts else { return Err(bad_request("`after` is `EPOCH:OFFSET`")) };
            let position = |epoch| Position { epoch, offset: Offset(offset) };
            Ok(Start::After(epoch.parse().ok().map(position)))
        }
    }
}

fn bad_request(message: impl Into<String>) -> Refusal {
    Refusal::new(ErrorCode::BadRequest, message)
}
