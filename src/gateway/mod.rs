//! The door: decides who may pass, as whom, and how often. It does not act on channels.
//!
//! The questions in the order they are asked: does a page of this origin connect here ([`Gateway::check_origin`]); from
//! where ([`Gateway::client_address`]) and not too often ([`Gateway::admit`]); to which app ([`Gateway::app`]); as whom
//! ([`App::authenticate`], [`Gateway::api_caller`]); and then, for each command, [`access::check`].
//! Everything is answered from settings that [`Gateway::reload`] replaces as a whole; nothing here takes a lock but the
//! table of addresses, once for each connection.

pub mod access;
mod address;
mod auth;
mod jwks;
mod limit;
pub mod opening;
mod origin;
mod revocations;
mod settings;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::{
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use arc_swap::ArcSwap;
use aws_lc_rs::{constant_time::verify_slices_are_equal, digest};
use tokio::runtime::Handle;
use tracing::warn;

use self::settings::Settings;
use crate::{
    config::{ApiScope, Config, NamespaceConfig, Rate},
    domain::{AppId, ChannelName, ErrorCode, Identity, Refusal, Revocation, UnixMillis, UserId},
};

pub use auth::{App, LEEWAY_SECONDS, MintError, SubscriptionGrant, TokenError, Verified, mint, token_id};
pub use limit::TokenBucket;

/// What stands between the outside and the node.
pub struct Gateway {
    settings: ArcSwap<Settings>,
    publications: limit::PublicationLimit,
    /// Where keys are fetched.
    background: Handle,
}

/// Everything that is wrong with the settings, each with its app and key.
#[derive(Debug, thiserror::Error)]
#[error("{}", problems.join("\n"))]
pub struct GatewayError {
    /// A line for each.
    pub problems: Vec<String>,
}

/// Who calls the server API.
#[derive(Clone)]
pub struct ApiCaller {
    /// Whose channels are meant.
    pub app: Arc<App>,
    /// What the key may be used for.
    pub scopes: ApiScopes,
}

/// A set of [`ApiScope`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ApiScopes(u8);

impl ApiScopes {
    /// Every scope.
    pub const ALL: Self = Self(0b111);

    /// Whether `scope` is in the set.
    pub fn contains(self, scope: ApiScope) -> bool {
        self.0 & Self::bit(scope) != 0
    }

    fn bit(scope: ApiScope) -> u8 {
        match scope {
            ApiScope::Publish => 1,
            ApiScope::Read => 2,
            ApiScope::Manage => 4,
        }
    }
}

impl FromIterator<ApiScope> for ApiScopes {
    fn from_iter<I: IntoIterator<Item = ApiScope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |set, scope| set | Self::bit(scope)))
    }
}

impl Gateway {
    /// Loads keys from files and begins to fetch those that are at URLs, on `background`.
    ///
    /// Reads files and the system's root certificates: not for a shard's thread.
    ///
    /// # Errors
    /// Every problem at once: files that cannot be read, keys that do not fit their algorithm, names used twice.
    pub fn new(config: &Config, background: Handle) -> Result<Arc<Self>, GatewayError> {
        let (settings, _) = Settings::new(config, None, &background)?;
        let publications = limit::PublicationLimit::new(Instant::now());
        Ok(Arc::new(Self { settings: ArcSwap::from_pointee(settings), publications, background }))
    }

    /// Replaces the settings, or keeps all of the old ones.
    ///
    /// Apps stay the same [`App`]s, with new keys; one that is gone refuses every token from now on. Fetched keys stay
    /// where their URL does, and so do the counts of addresses where their rate does. Not for a shard's thread.
    ///
    /// # Errors
    /// As for [`Gateway::new`]; and development mode cannot be entered while serving.
    pub fn reload(&self, config: &Config) -> Result<(), GatewayError> {
        let old = self.settings.load_full();
        let (settings, rules) = Settings::new(config, Some(&old), &self.background)?;
        let gone = old.apps.iter().filter(|app| settings.apps.iter().all(|new| new.id != app.id));
        gone.for_each(|app| app.set_rules(auth::TokenRules::default()));
        for (app, rules) in settings.apps.iter().zip(rules) {
            app.set_rules(rules);
        }
        self.settings.store(Arc::new(settings));
        Ok(())
    }

    /// Whether no app has any key, so that anybody may do everything, on loopback.
    pub fn is_development(&self) -> bool {
        self.settings.load().development
    }

    /// The apps whose secret is shorter than its algorithm's tags, and so easier to guess: worth a line at the start.
    pub fn weak_secrets(&self) -> Vec<AppId> {
        self.settings.load().weak_secrets.clone()
    }

    /// The app with the public key `key`; without one the only app, else the one called `default`.
    pub fn app(&self, key: Option<&str>) -> Option<Arc<App>> {
        let settings = self.settings.load();
        match (key, settings.apps.as_slice()) {
            (None, [only]) => Some(Arc::clone(only)),
            (key, _) => settings.by_key.get(key.unwrap_or("default")).cloned(),
        }
    }

    /// The app with this id.
    pub fn app_by_id(&self, id: &str) -> Option<Arc<App>> {
        self.settings.load().apps.iter().find(|app| app.id.as_str() == id).cloned()
    }

    /// Whose API key `bearer` is. In development mode there are no keys, and whatever is sent is the default app's.
    ///
    /// Takes the same time whichever key it is, or none: every key's digest is compared, whole.
    ///
    /// # Errors
    /// `unauthorized`.
    pub fn api_caller(&self, bearer: Option<&str>) -> Result<ApiCaller, Refusal> {
        let settings = self.settings.load();
        let unauthorized = |message| Refusal::new(ErrorCode::Unauthorized, message);
        if settings.development {
            let app = self.app(None).ok_or_else(|| unauthorized("several apps and no API key that names one"))?;
            return Ok(ApiCaller { app, scopes: ApiScopes::ALL });
        }
        let bearer = bearer.ok_or_else(|| unauthorized("an API key is needed: `Authorization: Bearer <API key>`"))?;
        let digest = digest::digest(&digest::SHA256, bearer.as_bytes());
        let mut found = None;
        for key in &settings.api_keys {
            if verify_slices_are_equal(&key.digest, digest.as_ref()).is_ok() {
                found = Some(key);
            }
        }
        let key = found.ok_or_else(|| unauthorized("no such API key"))?;
        Ok(ApiCaller { app: Arc::clone(&settings.apps[key.app]), scopes: key.scopes })
    }

    /// The settings of `channel`'s namespace; `None` where there is no such namespace.
    ///
    /// Hot path: one hash, no allocation, no lock.
    pub fn namespace(&self, channel: &ChannelName) -> Option<Arc<NamespaceConfig>> {
        let settings = self.settings.load();
        settings.namespaces.get(channel.namespace()).or(settings.other_namespaces.as_ref()).cloned()
    }

    /// Whether a WebSocket handshake, or an HTTP call that changes something, may come from the page that sends it;
    /// `tls` if it reached us encrypted.
    ///
    /// # Errors
    /// `forbidden`: another page's origin; in development mode also a `Host` that is no loopback name.
    pub fn check_origin(&self, headers: &http::HeaderMap, tls: bool) -> Result<(), Refusal> {
        self.settings.load().origins.check(headers, tls)
    }

    /// Whether the server may be called what a request calls it: in development mode only by a loopback name, so that no
    /// page on the internet can reach it by letting its own name point here (DNS rebinding).
    ///
    /// # Errors
    /// `forbidden`.
    pub fn check_host(&self, headers: &http::HeaderMap) -> Result<(), Refusal> {
        self.settings.load().origins.check_host(headers)
    }

    /// The client's address: `peer`, or what trusted proxies say of it.
    pub fn client_address(&self, peer: IpAddr, headers: &http::HeaderMap) -> IpAddr {
        let settings = self.settings.load();
        let limited = settings.addresses.rate().0.is_some();
        if limited
            && settings.proxies.is_suspicious(peer, headers)
            && !settings.warned_of_proxy.swap(true, Ordering::Relaxed)
        {
            let header = settings.proxies.name();
            warn!(%peer, %header, "not a trusted proxy: its clients count as one address (http.trusted_proxies)");
        }
        settings.proxies.client(peer, headers)
    }

    /// How many commands a connection may send.
    pub fn frames_per_connection(&self) -> Rate {
        self.settings.load().frames_per_connection
    }

    /// Counts a publication that came without a connection, of `user`, or from `address` where there is none: its
    /// namespace's `publish_rate` holds for them as for one connection.
    ///
    /// # Errors
    /// `rate_limited`, with how long to wait.
    pub fn admit_publication(
        &self,
        app: &AppId,
        channel: &ChannelName,
        user: Option<&UserId>,
        address: IpAddr,
    ) -> Result<(), Refusal> {
        let Some(namespace) = self.namespace(channel) else { return Ok(()) };
        let (place, user) = ((app.as_str(), channel.namespace()), user.map(UserId::as_str));
        self.publications.admit(place, user, address, namespace.publish_rate, Instant::now()).map_err(|wait| {
            Refusal::new(ErrorCode::RateLimited, "too many publications").in_channel(channel).retry_after(wait)
        })
    }

    /// Refuses tokens from now on that were revoked.
    pub fn revoke(&self, revocation: Revocation) {
        self.settings.load().revocations.add(revocation, now());
    }

    /// Whether the token that somebody came with was revoked since.
    pub fn is_revoked(&self, app: &AppId, identity: &Identity) -> bool {
        self.settings.load().revocations.cover(app, Some(&identity.user), identity.stamp, now())
    }

    /// Whether one more revocation can be remembered.
    ///
    /// # Errors
    /// `limit_exceeded`.
    pub fn admit_revocation(&self) -> Result<(), Refusal> {
        match self.settings.load().revocations.is_full(now()) {
            true => Err(Refusal::new(
                ErrorCode::LimitExceeded,
                format!("{} revocations are in force, and no more are remembered", revocations::MAX_REVOCATIONS),
            )),
            false => Ok(()),
        }
    }

    /// Counts a new connection from `address`.
    ///
    /// # Errors
    /// `rate_limited`, with how long to wait.
    pub fn admit(&self, address: IpAddr) -> Result<(), Refusal> {
        self.settings.load().addresses.admit(address, Instant::now()).map_err(|wait| {
            Refusal::new(ErrorCode::RateLimited, "too many new connections from this address").retry_after(wait)
        })
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    UnixMillis::now().0 / 1000
}
