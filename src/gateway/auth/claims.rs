//! What a token says, read strictly: the three parts, the header, and the claims of either kind of token.
//!
//! Nothing here knows a key. [`Parts::split`] is done before the signature is checked and trusts nothing;
//! [`read`] is done after it. A claim that is there but is not what it should be is refused, never passed over: `null`
//! for `exp` is not a token without an end. Claims that we do not know are the issuer's own business.

use aws_lc_rs::digest;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::{SubscriptionGrant, TokenError, Verified, key::MAX_KID_BYTES};
use crate::domain::{Action, Actions, ChannelName, Grant, Identity, Pattern, Payload, Stamp, TokenId, UserId};

/// The longest token, in bytes.
pub(super) const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// The most entries of `allow`.
const MAX_GRANTS: usize = 64;
/// The most channel patterns in all of them; all are compared with a channel's name, in the worst case.
const MAX_PATTERNS: usize = 256;
/// The longest `info`, in bytes: it is sent with every member of a channel.
const MAX_INFO_BYTES: usize = 4 * 1024;
/// The deepest `info`: it is parsed by other clients.
const MAX_INFO_DEPTH: usize = 32;
/// The most audiences that one token names.
const MAX_AUDIENCES: usize = 64;
/// The last second of the year 9999; whatever ends later was not meant as seconds.
const MAX_TIME: u64 = 253_402_300_799;

/// A token's parts, with its header read.
pub(super) struct Parts<'a> {
    /// What is signed: header and payload as they came.
    pub(super) message: &'a str,
    pub(super) signature: &'a str,
    pub(super) header: Header,
    payload: &'a str,
}

/// What of a header is read. The URLs and keys that it may name (`jku`, `x5u`, `jwk`, `x5c`) are not.
#[derive(Deserialize)]
pub(super) struct Header {
    pub(super) alg: String,
    #[serde(default, deserialize_with = "present")]
    pub(super) kid: Option<String>,
    #[serde(default, deserialize_with = "present")]
    typ: Option<String>,
    /// Extensions that a reader must understand to accept the token (RFC 7515, 4.1.11): there are none here.
    #[serde(default, deserialize_with = "present")]
    crit: Option<serde::de::IgnoredAny>,
}

impl<'a> Parts<'a> {
    pub(super) fn split(token: &'a str) -> Result<Self, TokenError> {
        if MAX_TOKEN_BYTES < token.len() {
            return Err(TokenError::TooLong { bytes: token.len() });
        }
        let three = TokenError::Malformed("it is not three parts with dots between them");
        let Some((message, signature)) = token.rsplit_once('.') else { return Err(three) };
        let Some((header, payload)) = message.split_once('.') else { return Err(three) };
        if payload.contains('.') {
            return Err(three);
        }
        if signature.is_empty() {
            return Err(TokenError::Malformed("it has no signature"));
        }
        let header = decode(header, "its header is not base64url of UTF-8 text")?;
        let header: Header =
            object(&header).ok_or(TokenError::Malformed("its header is not a JSON object with `alg`"))?;
        header.check()?;
        Ok(Self { message, signature, header, payload })
    }
}

impl Header {
    fn check(&self) -> Result<(), TokenError> {
        if self.crit.is_some() {
            return Err(TokenError::Critical);
        }
        if let Some(bytes) = self.kid.as_ref().map(String::len).filter(|bytes| MAX_KID_BYTES < *bytes) {
            return Err(TokenError::Kid { bytes });
        }
        // The same issuer signs other things with the same keys, such as logout tokens (RFC 8725, 3.11).
        let kind = self.typ.as_deref().unwrap_or("JWT").to_ascii_lowercase();
        match kind.strip_prefix("application/").unwrap_or(&kind) {
            "jwt" | "at+jwt" => Ok(()),
            _ => Err(TokenError::Type),
        }
    }
}

/// Who must have made a token and for whom; `None` for anybody.
pub(super) struct Expected<'a> {
    pub(super) audience: Option<&'a str>,
    pub(super) issuer: Option<&'a str>,
}

/// Reads the claims of a token whose signature is good, at `now` in seconds since 1970.
pub(super) fn read(parts: &Parts<'_>, expected: &Expected<'_>, now: u64) -> Result<Verified, TokenError> {
    let payload = decode(parts.payload, "its payload is not base64url of UTF-8 text")?;
    let claims: Claims<'_> =
        object(&payload).ok_or(TokenError::Malformed("its payload is not a JSON object that names each claim once"))?;
    let (expires, issued) = claims.times(now)?;
    let stamp = Stamp { id: claims.id(parts)?, issued };
    claims.made_for(expected)?;
    let user = claims.user()?;
    let info = claims.info()?;
    let Some(channel) = claims.channel else {
        let user = user.ok_or(TokenError::Claim { claim: "sub", problem: "is missing" })?;
        return Ok(Verified::Connection(Identity { user, info, expires, grants: claims.grants()?, stamp }));
    };
    let channel: String = value("channel", "is no text", channel)?;
    let channel: ChannelName =
        channel.parse().map_err(|_| TokenError::Claim { claim: "channel", problem: "is no channel name" })?;
    let subscribe = || Actions::default().with(Action::Subscribe);
    let actions = claims.actions.map_or_else(|| Ok(subscribe()), |raw| actions("do", raw))?;
    Ok(Verified::Subscription { user, channel, grant: SubscriptionGrant { actions, info, expires }, stamp })
}

/// The claims that we know, each still as its text, so that a refusal can name the one it is about.
#[derive(Deserialize)]
struct Claims<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    sub: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    exp: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    nbf: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    iat: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    aud: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    iss: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    jti: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    channel: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present", rename = "do")]
    actions: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    allow: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    info: Option<&'a RawValue>,
}

/// One entry of `allow`. A member that we do not know might narrow it, so it is refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGrant<'a> {
    channels: Vec<String>,
    #[serde(borrow, rename = "do")]
    actions: &'a RawValue,
}

impl Claims<'_> {
    /// Whether the token holds at `now`; until when it does, and when it was issued.
    ///
    /// `exp` is exact, for new connections as for live ones. A token may come from a clock that is ahead of ours by
    /// [`super::LEEWAY_SECONDS`], so that one made this very moment is good.
    fn times(&self, now: u64) -> Result<(Option<u64>, Option<u64>), TokenError> {
        let time = |claim, raw: Option<&RawValue>| raw.map(|raw| seconds(claim, raw)).transpose();
        let expires = time("exp", self.exp)?;
        let issued = time("iat", self.iat)?;
        for (claim, at) in [("nbf", time("nbf", self.nbf)?), ("iat", issued)] {
            if let Some(at) = at.filter(|at| now.saturating_add(super::LEEWAY_SECONDS) < *at) {
                return Err(TokenError::NotYet { claim, at });
            }
        }
        match expires.filter(|at| *at <= now) {
            Some(at) => Err(TokenError::Expired { at }),
            None => Ok((expires, issued)),
        }
    }

    /// Which token it is. Not by its signature, of which some algorithms have several for one text.
    fn id(&self, parts: &Parts<'_>) -> Result<TokenId, TokenError> {
        Ok(match self.jti {
            Some(raw) => id_of_jti(&value::<String>("jti", "is no text", raw)?),
            None => id_of("token", parts.message),
        })
    }

    fn made_for(&self, expected: &Expected<'_>) -> Result<(), TokenError> {
        if let Some(issuer) = expected.issuer {
            let problem = "is missing, and this app asks for one";
            let named = self.iss.ok_or(TokenError::Claim { claim: "iss", problem })?;
            if value::<String>("iss", "is no text", named)? != issuer {
                return Err(TokenError::Issuer);
            }
        }
        if let Some(audience) = expected.audience {
            let problem = "is missing, and this app asks for one";
            let named = self.aud.ok_or(TokenError::Claim { claim: "aud", problem })?;
            if !audiences(named)?.iter().any(|named| named == audience) {
                return Err(TokenError::Audience);
            }
        }
        Ok(())
    }

    fn user(&self) -> Result<Option<UserId>, TokenError> {
        let Some(raw) = self.sub else { return Ok(None) };
        let user: String = value("sub", "is no text", raw)?;
        let problem = "is not 1 to 255 bytes without control characters";
        user.parse().map(Some).map_err(|_| TokenError::Claim { claim: "sub", problem })
    }

    fn info(&self) -> Result<Option<Payload>, TokenError> {
        let Some(raw) = self.info.map(RawValue::get).filter(|raw| *raw != "null") else { return Ok(None) };
        match () {
            () if MAX_INFO_BYTES < raw.len() => Err(TokenError::Claim { claim: "info", problem: "is too long" }),
            () if MAX_INFO_DEPTH < depth(raw) => Err(TokenError::Claim { claim: "info", problem: "is too deep" }),
            () => Ok(Some(Payload::from_json(raw))),
        }
    }

    fn grants(&self) -> Result<Vec<Grant>, TokenError> {
        let wrong = |problem| TokenError::Claim { claim: "allow", problem };
        let Some(raw) = self.allow else { return Ok(Vec::new()) };
        let problem = "is no list of objects with `channels` and `do`";
        let raw: Vec<&RawValue> = value("allow", problem, raw)?;
        let raw: Option<Vec<RawGrant<'_>>> = raw.into_iter().map(|raw| object(raw.get())).collect();
        let raw = raw.ok_or_else(|| wrong(problem))?;
        if MAX_GRANTS < raw.len() {
            return Err(wrong("has more than 64 entries"));
        }
        if MAX_PATTERNS < raw.iter().map(|grant| grant.channels.len()).sum() {
            return Err(wrong("has more than 256 channel patterns"));
        }
        raw.into_iter()
            .map(|grant| {
                let channels: Result<Vec<Pattern>, _> = grant.channels.iter().map(|raw| raw.parse()).collect();
                let channels = channels.map_err(|_| wrong("has a text that is no channel pattern"))?;
                Ok(Grant { channels, actions: actions("allow", grant.actions)? })
            })
            .collect()
    }
}

/// Which token one with this `jti` is.
pub(super) fn id_of_jti(jti: &str) -> TokenId {
    id_of("jti", jti)
}

fn id_of(kind: &str, text: &str) -> TokenId {
    let digest = digest::digest(&digest::SHA256, format!("{kind}:{text}").as_bytes());
    let half = digest.as_ref().first_chunk().expect("SHA-256 has 32 bytes");
    TokenId::from_bits(u128::from_be_bytes(*half))
}

fn actions(claim: &'static str, raw: &RawValue) -> Result<Actions, TokenError> {
    let words: Vec<String> = value(claim, "has a `do` that is no list of words", raw)?;
    let known: Option<Actions> = words.iter().map(|word| Action::from_name(word)).collect();
    known.ok_or(TokenError::Claim { claim, problem: "names an action that does not exist" })
}

/// A text, or a list of texts (RFC 7519, 4.1.3).
fn audiences(raw: &RawValue) -> Result<Vec<String>, TokenError> {
    let problem = "is neither a text nor a list of at most 64";
    let list = match raw.get().starts_with('[') {
        true => value("aud", problem, raw)?,
        false => vec![value("aud", problem, raw)?],
    };
    match list.len() <= MAX_AUDIENCES {
        true => Ok(list),
        false => Err(TokenError::Claim { claim: "aud", problem }),
    }
}

fn seconds(claim: &'static str, raw: &RawValue) -> Result<u64, TokenError> {
    let problem = "is no whole number of seconds since 1970";
    let seconds = value(claim, problem, raw)?;
    match seconds <= MAX_TIME {
        true => Ok(seconds),
        false => Err(TokenError::Claim { claim, problem }),
    }
}

fn value<'a, T: Deserialize<'a>>(
    claim: &'static str,
    problem: &'static str,
    raw: &'a RawValue,
) -> Result<T, TokenError> {
    // The parser's own words may quote the claim, and these errors are logged.
    serde_json::from_str(raw.get()).map_err(|_| TokenError::Claim { claim, problem })
}

fn decode(part: &str, problem: &'static str) -> Result<String, TokenError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed(problem))?;
    String::from_utf8(bytes).map_err(|_| TokenError::Malformed(problem))
}

/// `T` from a JSON object; serde's structs would take an array of their members' values too.
pub(super) fn object<'a, T: Deserialize<'a>>(json: &'a str) -> Option<T> {
    json.trim_start().starts_with('{').then(|| serde_json::from_str(json).ok())?
}

/// A member that is there, `null` included: serde's own `Option` takes that for a member that is not.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// How deep the arrays and objects of valid JSON go.
fn depth(json: &str) -> usize {
    let (mut depth, mut deepest, mut in_text, mut escaped) = (0_usize, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_text,
            b'"' => in_text = !in_text,
            b'[' | b'{' if !in_text => depth += 1,
            b']' | b'}' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}
