//! Shapes that the OpenAPI document names and that are written by hand elsewhere: frames, and refusals by status.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::{
    IntoResponses, PartialSchema, ToSchema,
    openapi::{ContentBuilder, HeaderBuilder, ObjectBuilder, Ref, RefOr, Response, ResponseBuilder, Schema, Type},
};

use crate::domain::ErrorCode;

/// An error code.
pub struct Code;

impl PartialSchema for Code {
    fn schema() -> RefOr<Schema> {
        let names = ErrorCode::ALL.map(ErrorCode::name);
        ObjectBuilder::new()
            .schema_type(Type::String)
            .enum_values(Some(names))
            .description(Some("What went wrong. `docs/http-api.md` says what each code means."))
            .into()
    }
}

impl ToSchema for Code {}

/// One publication, as subscribers get it.
#[derive(Serialize, ToSchema)]
pub struct Message {
    /// Always `message`.
    #[serde(rename = "type")]
    #[schema(examples("message"))]
    kind: String,
    /// Where it was published.
    #[schema(examples("room:1"))]
    channel: String,
    /// The event's name; `message` if it was published without one.
    #[schema(examples("chat"))]
    event: String,
    /// What was published, byte for byte.
    #[schema(value_type = serde_json::Value, examples(json!({"text": "hi"})))]
    data: String,
    /// The publication's id; ids sort by time.
    #[schema(examples("01KA8T3M5E6ZJ0V8W2Q4RXY7BN"))]
    id: String,
    /// Its number in the channel, from 1; only where history is kept.
    #[schema(nullable = false, examples(43))]
    offset: Option<u64>,
    /// When it was accepted, in milliseconds since 1970.
    #[schema(examples(1_764_000_000_123_u64))]
    time: u64,
    /// Who published it, where the namespace shows that.
    #[schema(nullable = false)]
    from: Option<Publisher>,
    /// Labels, as they were published.
    #[schema(nullable = false)]
    tags: Option<BTreeMap<String, String>>,
}

/// Who published something.
#[derive(Serialize, ToSchema)]
pub struct Publisher {
    /// The user; missing for an anonymous one.
    #[schema(nullable = false, examples("alice"))]
    user: Option<String>,
    /// The connection, where the channel has presence.
    #[schema(nullable = false, examples("c_0000000000000000000001"))]
    connection: Option<String>,
}

/// One connection in a channel's presence.
#[derive(Serialize, ToSchema)]
pub struct Member {
    /// The subscribed connection.
    #[schema(examples("c_0000000000000000000001"))]
    connection: String,
    /// Its user; missing for an anonymous one.
    #[schema(nullable = false, examples("alice"))]
    user: Option<String>,
    /// What its token says about it.
    #[schema(nullable = false, value_type = Option<serde_json::Value>, examples(json!({"name": "Alice"})))]
    info: Option<String>,
}

/// What any call may be refused with.
pub struct Refused;
/// What a call that names a channel may be refused with besides.
pub struct ChannelRefused;
/// What a call may be refused with besides that needs history or presence.
pub struct KeepsNone;
/// What a call with a body may be refused with besides.
pub struct BodyRefused;

impl IntoResponses for Refused {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        problems(&[
            ("400", "`bad_request`: something cannot be understood; `detail` names it"),
            (
                "401",
                "`unauthorized`: no key or token, or one that is refused; `token_expired`, `token_revoked`: fetch a new one",
            ),
            ("403", "`forbidden`: the key, the token or the page's origin does not allow it; `limit_exceeded`"),
            ("429", "`rate_limited`: too often; `Retry-After` says when to try again"),
            ("500", "`internal`: an error on our side"),
            ("503", "`unavailable`: it was not done; try again"),
            ("504", "`timeout`: it may have been done; retry with the same `key`"),
        ])
    }
}

impl IntoResponses for ChannelRefused {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        problems(&[("404", "`unknown_channel`: no such namespace")])
    }
}

impl IntoResponses for KeepsNone {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        problems(&[("409", "`history_disabled` or `presence_disabled`: the namespace keeps none")])
    }
}

impl IntoResponses for BodyRefused {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        problems(&[
            ("408", "`timeout`: the body took too long to come, nothing was done"),
            ("413", "`too_large`: the body, or `data`, has more bytes than it may"),
            ("415", "`bad_request`: the body says that it is no JSON"),
        ])
    }
}

fn problems(statuses: &[(&str, &str)]) -> BTreeMap<String, RefOr<Response>> {
    let content = || ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let problem = |(status, why): &(&str, &str)| {
        let mut response = ResponseBuilder::new().description(*why).content("application/problem+json", content());
        if matches!(*status, "429" | "503") {
            let seconds = HeaderBuilder::new().schema(ObjectBuilder::new().schema_type(Type::Integer));
            response = response.header("Retry-After", seconds.description(Some("Seconds to wait.")).build());
        }
        ((*status).to_owned(), RefOr::T(response.build()))
    };
    statuses.iter().map(problem).collect()
}
