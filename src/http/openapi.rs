//! The OpenAPI 3.1 document, put together from what each handler says of itself.

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderValue, header};
use utoipa::{
    Modify, OpenApi,
    openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme},
};

use super::{events, health, upgrade};
use crate::api::{channels, history, nodes, presence, problem, publish, revocations, schema, sessions};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Fanwire",
        description = "The HTTP side of a Fanwire server. The application's servers publish, look and steer with an API key; \
            clients publish and listen with their token.\n\nErrors are problem documents (RFC 9457) whose `code` is one of \
            a closed list. `X-Request-Id` is taken from the request, or made, and comes back with every answer.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    tags(
        (name = "Publishing", description = "From the application's servers."),
        (name = "Channels", description = "What is subscribed to, who is there, and what was published."),
        (name = "Connections", description = "Who is connected, and on which node."),
        (name = "Clients", description = "With a client's token, or anonymous where the namespace lets `anyone`."),
        (name = "Health", description = "For load balancers, and this document."),
    ),
    paths(
        publish::publish, publish::batch, publish::publish_as_client,
        channels::list, channels::one, history::read, history::delete, presence::members,
        sessions::list, sessions::disconnect, sessions::disconnect_user, sessions::subscribe_user,
        sessions::unsubscribe_user, revocations::revoke_user, revocations::revoke_token, nodes::list,
        events::of_several, events::of_one, upgrade::websocket,
        health::live, health::ready, serve,
    ),
    components(schemas(problem::ProblemDocument, schema::Code, schema::Message, schema::Publisher, schema::Member)),
    modifiers(&Keys),
)]
struct Document;

/// How callers say who they are.
struct Keys;

impl Modify for Keys {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        let bearer =
            |description: &str| HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(description));
        let key = bearer("An API key of the app (`api_keys` in the configuration). Development mode asks for none.");
        components.add_security_scheme("api_key", SecurityScheme::Http(key.build()));
        let token = bearer("A client's token: a JWT, signed with the app's secret or one of its keys.");
        components.add_security_scheme("token", SecurityScheme::Http(token.bearer_format("JWT").build()));
        let query = ApiKeyValue::with_description("token", "The same token, for who cannot set headers.");
        components.add_security_scheme("token_in_query", SecurityScheme::ApiKey(ApiKey::Query(query)));
    }
}

/// The document's text.
pub fn document() -> Bytes {
    let text = Document::openapi().to_json().expect("the document is made of plain values");
    text.into()
}

/// This document
#[utoipa::path(
    get, path = "/v1/openapi.json", tag = "Health", operation_id = "openapi",
    responses((status = 200, description = "An OpenAPI 3.1 document.", body = serde_json::Value)),
)]
pub async fn serve(document: Bytes) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, document).into_response()
}
