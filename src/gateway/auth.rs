//! Tokens: who somebody is, and what a token lets them do.
//!
//! An [`App`] checks tokens with its own keys only. The order is: shape, algorithm, key, signature, claims; nothing that
//! a token says is believed before its signature is good. The algorithm comes from the configuration, for each key one;
//! a token that names a key is checked with the key of that name alone; URLs and keys inside a token are not looked at.
//! Start at [`App::authenticate`].

mod claims;
pub(super) mod key;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arc_swap::ArcSwap;

use self::{
    claims::{Expected, Parts},
    key::{Algorithm, Key},
};
use super::{jwks::Jwks, revocations::Revocations};
use crate::domain::{
    Actions, AppId, ChannelName, ErrorCode, Identity, Payload, Refusal, Stamp, TokenId, UnixMillis, UserId,
};

/// How far in the future `nbf` and `iat` may lie, in seconds, for the clocks of issuers that are ahead of ours.
///
/// `exp` has no leeway: the second that it names ends a live connection too, so one that came with a token past its end
/// would be closed at once.
pub const LEEWAY_SECONDS: u64 = 30;

/// The most keys that a token is tried with if it names none: a check takes up to a quarter of a millisecond.
const MAX_TRIALS: usize = 4;

/// A tenant, as far as the door knows it. It stays the same through reloads; its keys do not.
pub struct App {
    /// Its id.
    pub id: AppId,
    rules: ArcSwap<TokenRules>,
    revocations: Arc<Revocations>,
}

/// How an app's tokens are checked.
#[derive(Clone, Default)]
pub(super) struct TokenRules {
    /// What is accepted; keys for anything else are never used.
    pub(super) algorithms: Vec<Algorithm>,
    /// From the configuration.
    pub(super) keys: Vec<Arc<Key>>,
    /// From a URL.
    pub(super) jwks: Option<Arc<Jwks>>,
    /// The `aud` that a token must have.
    pub(super) audience: Option<String>,
    /// The `iss` that a token must have.
    pub(super) issuer: Option<String>,
}

/// What a good token is; its `channel` tells the two kinds apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verified {
    /// Says who a connection is.
    Connection(Identity),
    /// Lets a connection do something in one channel.
    Subscription {
        /// Whose connection; `None` for an anonymous one.
        user: Option<UserId>,
        /// Which channel.
        channel: ChannelName,
        /// What.
        grant: SubscriptionGrant,
        /// By which the token may be revoked.
        stamp: Stamp,
    },
}

/// What a subscription token allows in its channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionGrant {
    /// What may be done.
    pub actions: Actions,
    /// What others may see of the member, instead of what the connection's token says.
    pub info: Option<Payload>,
    /// When it ends, in seconds since 1970.
    pub expires: Option<u64>,
}

/// Why a token is refused, precisely: for whoever runs the server. It quotes nothing of a token but its algorithm.
///
/// Clients get [`TokenError::refusal`], which does not tell an unknown key from a bad signature.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // The messages are the documentation.
pub enum TokenError {
    #[error("this app has no key to check tokens with (set a `secret`, `public_keys` or a `jwks_url`)")]
    NoKeys,
    #[error("it has {bytes} bytes, more than {}", claims::MAX_TOKEN_BYTES)]
    TooLong { bytes: usize },
    #[error("{0}")]
    Malformed(&'static str),
    #[error("its `kid` has {bytes} bytes, more than {}", key::MAX_KID_BYTES)]
    Kid { bytes: usize },
    #[error("its `crit` asks for extensions that do not exist here")]
    Critical,
    #[error("its `typ` is neither `JWT` nor `at+jwt`: it is made for something else")]
    Type,
    #[error("its algorithm {named:?} is not among `tokens.algorithms`")]
    Algorithm { named: String },
    #[error("no key has its algorithm and `kid`")]
    UnknownKey,
    #[error("it names no key (`kid`), and there are more than {MAX_TRIALS} that it could mean")]
    ManyKeys,
    #[error("its signature is not by the key that it should be by")]
    Signature,
    #[error("its `{claim}` {problem}")]
    Claim { claim: &'static str, problem: &'static str },
    #[error("it expired at {at}, in seconds since 1970")]
    Expired { at: u64 },
    #[error("it was revoked")]
    Revoked,
    #[error("its `{claim}` is {at}, which is in the future")]
    NotYet { claim: &'static str, at: u64 },
    #[error("its `aud` does not name this app's `tokens.audience`")]
    Audience,
    #[error("its `iss` is not this app's `tokens.issuer`")]
    Issuer,
    #[error("it is a subscription token (it has a `channel`), which says nothing about a connection")]
    ForSubscription,
    #[error("it is a connection token (it has no `channel`), which is no token for a channel")]
    ForConnection,
    #[error("its `channel` is another one")]
    OtherChannel,
    #[error("its `sub` is not the connection's user")]
    OtherUser,
    #[error("it may be by a new key, and the JWK set cannot be fetched")]
    KeysUnavailable,
    #[error("it may be by a new key, and the JWK set did not come in time")]
    KeysTimeout,
}

impl TokenError {
    /// Whether the token was good until it ended or was revoked; a new one will do.
    pub fn is_over(&self) -> bool {
        matches!(self, Self::Expired { .. } | Self::Revoked)
    }

    /// What a client is told.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Expired { .. } => Refusal::new(ErrorCode::TokenExpired, "the token has expired"),
            Self::Revoked => Refusal::new(ErrorCode::TokenRevoked, "the token was revoked"),
            Self::KeysUnavailable => {
                Refusal::new(ErrorCode::Unavailable, "the keys to check the token with cannot be fetched")
            }
            Self::KeysTimeout => {
                Refusal::new(ErrorCode::Timeout, "the keys to check the token with did not come in time")
            }
            _ => Refusal::new(ErrorCode::Unauthorized, "the token was refused"),
        }
    }
}

impl App {
    pub(super) fn new(id: AppId, rules: TokenRules, revocations: Arc<Revocations>) -> Self {
        Self { id, rules: ArcSwap::from_pointee(rules), revocations }
    }

    pub(super) fn set_rules(&self, rules: TokenRules) {
        self.rules.store(Arc::new(rules));
    }

    /// Who a connection with `token` is.
    ///
    /// Waits only for a JWK set that has to be fetched, and then 3 s at most.
    ///
    /// # Errors
    /// What is wrong with the token, or that the keys to check it with could not be fetched.
    pub async fn authenticate(&self, token: &str) -> Result<Identity, TokenError> {
        match self.verify(token).await? {
            Verified::Connection(identity) => Ok(identity),
            Verified::Subscription { .. } => Err(TokenError::ForSubscription),
        }
    }

    /// What `token` lets the connection of `user` do in `channel`; `None` for an anonymous one.
    ///
    /// # Errors
    /// As for [`App::authenticate`]; also if the token is for another channel or another user.
    pub async fn authorize(
        &self,
        token: &str,
        channel: &ChannelName,
        user: Option<&UserId>,
    ) -> Result<SubscriptionGrant, TokenError> {
        match self.verify(token).await? {
            Verified::Connection(_) => Err(TokenError::ForConnection),
            Verified::Subscription { channel: other, .. } if other != *channel => Err(TokenError::OtherChannel),
            Verified::Subscription { user: other, .. } if other.as_ref() != user => Err(TokenError::OtherUser),
            Verified::Subscription { grant, .. } => Ok(grant),
        }
    }

    /// What has to be remembered so that `token` counts no more, whatever it is for: which it is, and until when it
    /// would. `None`: it counts no more already.
    ///
    /// # Errors
    /// As for [`App::authenticate`]: it never counted here.
    pub async fn revocable(&self, token: &str) -> Result<Option<(TokenId, Option<u64>)>, TokenError> {
        match self.verify(token).await {
            Ok(Verified::Connection(identity)) => Ok(Some((identity.stamp.id, identity.expires))),
            Ok(Verified::Subscription { stamp, grant, .. }) => Ok(Some((stamp.id, grant.expires))),
            Err(error) if error.is_over() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What `token` is, whatever it is for: what `fanwire token --verify` shows.
    ///
    /// # Errors
    /// As for [`App::authenticate`].
    pub async fn verify(&self, token: &str) -> Result<Verified, TokenError> {
        self.verify_at(token, UnixMillis::now().0 / 1000).await
    }

    async fn verify_at(&self, token: &str, now: u64) -> Result<Verified, TokenError> {
        let rules = self.rules.load_full();
        let parts = Parts::split(token)?;
        let candidates = rules.candidates(&parts).await?;
        if !candidates.iter().any(|key| key.verifies(parts.message, parts.signature)) {
            return Err(TokenError::Signature);
        }
        let expected = Expected { audience: rules.audience.as_deref(), issuer: rules.issuer.as_deref() };
        let verified = claims::read(&parts, &expected, now)?;
        let (user, stamp) = match &verified {
            Verified::Connection(identity) => (Some(&identity.user), identity.stamp),
            Verified::Subscription { user, stamp, .. } => (user.as_ref(), *stamp),
        };
        match self.revocations.cover(&self.id, user, stamp, now) {
            true => Err(TokenError::Revoked),
            false => Ok(verified),
        }
    }
}

impl TokenRules {
    /// The keys that a token may be signed with: one as a rule, never none.
    async fn candidates(&self, parts: &Parts<'_>) -> Result<Vec<Arc<Key>>, TokenError> {
        if self.keys.is_empty() && self.jwks.is_none() {
            return Err(TokenError::NoKeys);
        }
        let algorithm = key::algorithm(&parts.header.alg).filter(|named| self.algorithms.contains(named));
        let algorithm =
            algorithm.ok_or_else(|| TokenError::Algorithm { named: parts.header.alg.chars().take(32).collect() })?;
        let kid = parts.header.kid.as_deref();
        let mut candidates: Vec<_> = self.keys.iter().filter(|key| key.is_meant(algorithm, kid)).cloned().collect();
        if let Some(jwks) = self.jwks.as_ref().filter(|_| !key::is_symmetric(algorithm)) {
            match candidates.is_empty() {
                true => candidates = jwks.find(algorithm, kid).await?,
                false => candidates.extend(jwks.known(algorithm, kid)),
            }
        }
        match candidates.len() {
            0 => Err(TokenError::UnknownKey),
            many if MAX_TRIALS < many => Err(TokenError::ManyKeys),
            _ => Ok(candidates),
        }
    }
}

/// Which token of an app one with this `jti` is.
pub fn token_id(jti: &str) -> TokenId {
    claims::id_of_jti(jti)
}

/// Why no token could be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// Nobody would take a token signed with it.
    #[error("the secret is empty")]
    EmptySecret,
    /// A token's claims are a JSON object.
    #[error("the claims are not a JSON object")]
    NoObject,
    /// The library failed.
    #[error("signing failed: {0}")]
    Signing(String),
}

/// A token with `claims`, signed with `secret` as HS256: what an application's server does, for trying things.
///
/// # Errors
/// An empty secret, or claims that are no object.
pub fn mint(secret: &str, claims: &serde_json::Value) -> Result<String, MintError> {
    match (secret.is_empty(), claims.is_object()) {
        (true, _) => Err(MintError::EmptySecret),
        (_, false) => Err(MintError::NoObject),
        _ => key::sign_hs256(secret, claims).map_err(MintError::Signing),
    }
}
