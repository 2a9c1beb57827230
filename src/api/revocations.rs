//! Tokens that are to count no more.

use axum::extract::State;
use http::StatusCode;
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    Api, JsonText, Named, Problem, Query, Server,
    caller::Managing,
    parse,
    schema::{BodyRefused, Refused},
};
use crate::{
    domain::{ErrorCode, Refusal, Revocation, Revoked, UnixMillis, UserId},
    gateway::token_id,
    protocol::native::{MAX_DEPTH, Text},
};

/// How long a user's revocation is remembered if nothing is said, in seconds: 30 days.
const DEFAULT_MEMORY: u64 = 30 * 24 * 3600;
/// The last second of the year 9999, as for `exp`.
const MAX_TIME: u64 = 253_402_300_799;

/// Which token.
#[derive(Deserialize, ToSchema)]
#[schema(as = TokenToRevoke, examples(json!({"jti": "5e0c1d7a", "exp": 1_764_003_600})))]
pub struct TokenRequest<'a> {
    /// The token itself; either this or `jti` with `exp`.
    #[serde(borrow, default)]
    #[schema(value_type = String, required = false)]
    token: Option<Text<'a>>,
    /// The token's `jti`.
    #[serde(borrow, default)]
    #[schema(value_type = String, required = false)]
    jti: Option<Text<'a>>,
    /// The token's `exp`, in seconds since 1970: so long it is remembered.
    #[serde(default)]
    #[schema(nullable = false)]
    exp: Option<u64>,
}

/// Revoke a user's tokens
///
/// Every token of the user that was issued (`iat`) before `before` is refused on every node from now on, and connections
/// with one end with 4201. A token without `iat` counts as issued before.
#[utoipa::path(
    post, path = "/v1/users/{user}/revoke", tag = "Connections", operation_id = "revokeUser",
    params(
        ("user" = String, Path, description = "The user's id, percent-encoded.", example = "alice"),
        ("before" = Option<u64>, Query, description = "Seconds since 1970; if left out, the end of this second.",
            minimum = 1),
        ("until" = Option<u64>, Query, description = "Seconds since 1970: when the last of these tokens will have ended, \
            and nobody has to remember any more; in 30 days if left out.", minimum = 1),
    ),
    responses((status = 204, description = "It is remembered, and every node is told."), Refused),
    security(("api_key" = [])),
)]
pub async fn revoke_user(
    State(api): State<Api>,
    server: Server<Managing>,
    Named(user): Named<UserId>,
    query: Query,
) -> Result<StatusCode, Problem> {
    let now = UnixMillis::now().0 / 1000;
    let before = query.number("before", 1..=now + 1)?.unwrap_or(now + 1);
    let until = query.number("until", now + 1..=MAX_TIME)?.unwrap_or(now + DEFAULT_MEMORY);
    let revocation = Revocation { app: server.app().clone(), tokens: Revoked::User(user, before), until };
    api.node.revoke(revocation).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Revoke a token
///
/// It is refused on every node from now on, and connections with it end with 4201. One that counts no more already is
/// nothing to be remembered.
#[utoipa::path(
    post, path = "/v1/tokens/revoke", tag = "Connections", operation_id = "revokeToken",
    request_body = TokenRequest,
    responses((status = 204, description = "It is remembered, and every node is told."), Refused, BodyRefused),
    security(("api_key" = [])),
)]
pub async fn revoke_token(
    State(api): State<Api>,
    server: Server<Managing>,
    JsonText(text): JsonText,
) -> Result<StatusCode, Problem> {
    let bad_request = |message: &str| Refusal::new(ErrorCode::BadRequest, message);
    let now = UnixMillis::now().0 / 1000;
    let TokenRequest { token, jti, exp } = parse(&text, MAX_DEPTH)?;
    let (id, until) = match (token, jti, exp) {
        (Some(Text(token)), None, None) => {
            let app = api.node.gateway().app_by_id(server.app().as_str());
            let app = app.ok_or_else(|| bad_request("this app is gone"))?;
            match app.revocable(&token).await {
                Ok(Some((id, expires))) => (id, expires.unwrap_or(MAX_TIME)),
                Ok(None) => return Ok(StatusCode::NO_CONTENT),
                Err(error) if error.refusal().code.is_temporary() => return Err(error.refusal().into()),
                Err(error) => return Err(bad_request(&format!("`token` never counted here: {error}")).into()),
            }
        }
        (None, Some(Text(jti)), Some(exp)) if exp <= MAX_TIME => (token_id(&jti), exp),
        (None, Some(_), Some(_)) => return Err(bad_request("`exp` is no time in seconds since 1970").into()),
        _ => return Err(bad_request("either `token`, or `jti` and `exp`, is what names a token").into()),
    };
    if until <= now {
        return Ok(StatusCode::NO_CONTENT);
    }
    let revocation = Revocation { app: server.app().clone(), tokens: Revoked::Token(id), until };
    api.node.revoke(revocation).await?;
    Ok(StatusCode::NO_CONTENT)
}
