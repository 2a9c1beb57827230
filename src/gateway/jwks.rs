//! Keys that an issuer publishes at a URL, as a JWK set.
//!
//! One task per URL fetches them: at once, every few minutes, sooner after a failure, and when a token names a key that
//! is not in the set, but for that reason at most once in 30 s whatever comes. A failure keeps the last good set. The
//! task lives as long as its [`Jwks`]; callers only look keys up, and wait for a fetch where that may help.
//! Start at [`Jwks::find`].

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    task::AbortHandle,
    time::{Instant, sleep, timeout},
};
use tracing::{debug, info, warn};

use super::auth::{
    TokenError,
    key::{Algorithm, Key},
};

/// The largest answer, in bytes.
const MAX_BODY_BYTES: usize = 256 * 1024;
/// The most keys in it.
const MAX_KEYS: usize = 64;

/// When keys are fetched, and how long anybody waits for them.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    /// From one fetch to the next.
    every: Duration,
    /// From a failure to the next try: this, and doubling up to [`Pace::pause`].
    retry: Duration,
    /// The least time between two fetches for unknown keys.
    pause: Duration,
    /// For one fetch, from its first byte to its last.
    deadline: Duration,
    /// For a caller, whatever is under way.
    patience: Duration,
}

impl Pace {
    pub(super) const DEFAULT: Self = Self {
        every: Duration::from_secs(300),
        retry: Duration::from_secs(1),
        pause: Duration::from_secs(30),
        deadline: Duration::from_secs(5),
        patience: Duration::from_secs(3),
    };
}

/// The keys at one URL.
pub(super) struct Jwks {
    shared: Arc<Shared>,
    /// The last fetch that was asked for: when, and its number.
    asked: Mutex<Option<(Instant, u64)>>,
    pace: Pace,
    task: AbortHandle,
}

/// What the fetching task and its callers both see.
struct Shared {
    keys: ArcSwap<Vec<Arc<Key>>>,
    progress: watch::Sender<Progress>,
    wake: Notify,
}

/// How far the task is. Fetches are counted from 1.
#[derive(Clone, Copy, Default)]
struct Progress {
    started: u64,
    finished: u64,
    failed: bool,
}

/// Why a URL is no place to fetch keys from.
#[derive(Debug, thiserror::Error)]
pub(super) enum InvalidUrl {
    #[error("is no URL such as \"https://issuer.example/.well-known/jwks.json\"")]
    Form,
    #[error("must be https, or http to this machine's loopback")]
    Plain,
    #[error("must not hold a name or a password")]
    Credentials,
    #[error("needs the system's root certificates: {0}")]
    Roots(std::io::Error),
}

/// Why a fetch failed.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("no answer: {0}")]
    Connection(String),
    #[error("status {0}, and redirects are not followed")]
    Status(StatusCode),
    #[error("the body broke off, or has more than {MAX_BODY_BYTES} bytes")]
    Body,
    #[error("no JWK set")]
    Form,
    #[error("{count} keys, more than {MAX_KEYS}")]
    TooMany { count: usize },
    #[error("not done within {0:?}")]
    Late(Duration),
}

impl Jwks {
    /// Begins to fetch keys from `url`, on `background`.
    pub(super) fn start(url: &str, background: &Handle, pace: Pace) -> Result<Self, InvalidUrl> {
        let source = Source::new(url)?;
        let shared = Arc::new(Shared {
            keys: ArcSwap::default(),
            progress: watch::Sender::new(Progress { started: 1, ..Progress::default() }),
            wake: Notify::new(),
        });
        let task = background.spawn(refresh(source, Arc::clone(&shared), pace)).abort_handle();
        Ok(Self { shared, asked: Mutex::new(None), pace, task })
    }

    /// The keys that a token with `algorithm` and `kid` may be signed with, of those that are known.
    pub(super) fn known(&self, algorithm: Algorithm, kid: Option<&str>) -> Vec<Arc<Key>> {
        self.shared.keys.load().iter().filter(|key| key.is_meant(algorithm, kid)).cloned().collect()
    }

    /// The same, or those of a new set if that has to be fetched first. Never empty.
    ///
    /// # Errors
    /// There is no such key, or nobody can say as the fetch failed or did not end in time.
    pub(super) async fn find(&self, algorithm: Algorithm, kid: Option<&str>) -> Result<Vec<Arc<Key>>, TokenError> {
        let search = async {
            loop {
                let found = self.known(algorithm, kid);
                if !found.is_empty() {
                    return Ok(found);
                }
                let Some(fetch) = self.fetch_to_await() else {
                    let failed = self.shared.progress.borrow().failed;
                    return Err(if failed { TokenError::KeysUnavailable } else { TokenError::UnknownKey });
                };
                let mut progress = self.shared.progress.subscribe();
                if progress.wait_for(|progress| fetch <= progress.finished).await.is_err() {
                    return Err(TokenError::KeysUnavailable); // The task is gone, with the whole runtime.
                }
            }
        };
        timeout(self.pace.patience, search).await.unwrap_or(Err(TokenError::KeysTimeout))
    }

    /// The number of the fetch after which an unknown key may be known: the very first; one that somebody else asked
    /// for; one that is asked for now; or none, in the pause after the last of those.
    fn fetch_to_await(&self) -> Option<u64> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let progress = *self.shared.progress.borrow();
        match *asked {
            _ if progress.finished == 0 => Some(1),
            Some((_, fetch)) if progress.finished < fetch => Some(fetch),
            Some((at, _)) if at.elapsed() < self.pace.pause => None,
            _ => {
                // One that is under way may have begun before the key was published, so it is the one after it.
                let fetch = progress.started + 1;
                *asked = Some((Instant::now(), fetch));
                self.shared.wake.notify_one();
                Some(fetch)
            }
        }
    }
}

impl Drop for Jwks {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Fetches again and again. The first fetch counts as started before this runs, so that no caller asks for a second.
async fn refresh(source: Source, shared: Arc<Shared>, pace: Pace) {
    let mut failures = 0_u32;
    loop {
        let result = timeout(pace.deadline, source.fetch()).await.unwrap_or(Err(FetchError::Late(pace.deadline)));
        let failed = result.is_err();
        match result {
            Ok(keys) => {
                info!(host = source.host(), keys = keys.len(), "JWK set fetched");
                shared.keys.store(Arc::new(keys));
                failures = 0;
            }
            Err(error) => {
                let kept = shared.keys.load().len();
                warn!(host = source.host(), %error, kept, "JWK set not fetched, the last good one stays");
                failures = failures.saturating_add(1);
            }
        }
        shared.progress.send_modify(|progress| {
            progress.finished = progress.started;
            progress.failed = failed;
        });
        let rest = match failures {
            0 => pace.every,
            _ => pace.retry.saturating_mul(1 << (failures - 1).min(16)).min(pace.pause),
        };
        tokio::select! {
            () = sleep(rest) => {}
            () = shared.wake.notified() => {}
        }
        shared.progress.send_modify(|progress| progress.started += 1);
    }
}

/// A URL and what is needed to fetch from it.
struct Source {
    url: Uri,
    client: Client<HttpsConnector<HttpConnector>, Empty<bytes::Bytes>>,
}

impl Source {
    fn new(url: &str) -> Result<Self, InvalidUrl> {
        let url: Uri = url.parse().map_err(|_| InvalidUrl::Form)?;
        let (Some(scheme), Some(authority)) = (url.scheme_str(), url.authority()) else {
            return Err(InvalidUrl::Form);
        };
        if authority.as_str().contains('@') {
            return Err(InvalidUrl::Credentials);
        }
        let encrypted = match scheme {
            "https" => true,
            "http" if is_loopback(authority.host()) => false,
            "http" => return Err(InvalidUrl::Plain),
            _ => return Err(InvalidUrl::Form),
        };
        // This client follows no redirects, and nothing here does it in its place. It keeps no idle connections.
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector(encrypted)?);
        Ok(Self { url, client })
    }

    fn host(&self) -> &str {
        self.url.host().unwrap_or_default()
    }

    async fn fetch(&self) -> Result<Vec<Arc<Key>>, FetchError> {
        let request = Request::get(self.url.clone())
            .header(header::ACCEPT, "application/jwk-set+json, application/json")
            .header(header::USER_AGENT, concat!("fanwire/", env!("CARGO_PKG_VERSION")))
            .body(Empty::new())
            .map_err(|error| FetchError::Connection(error.to_string()))?;
        let answer = self.client.request(request).await.map_err(|error| FetchError::Connection(chain(&error)))?;
        if answer.status() != StatusCode::OK {
            return Err(FetchError::Status(answer.status()));
        }
        let body = Limited::new(answer.into_body(), MAX_BODY_BYTES).collect().await;
        read(&body.map_err(|_| FetchError::Body)?.to_bytes())
    }
}

/// The keys of a JWK set (RFC 7517, 5). Those of other kinds and for other uses are passed over.
fn read(body: &[u8]) -> Result<Vec<Arc<Key>>, FetchError> {
    #[derive(Deserialize)]
    struct Set<'a> {
        #[serde(borrow)]
        keys: Vec<&'a RawValue>,
    }
    let set: Set<'_> = serde_json::from_slice(body).map_err(|_| FetchError::Form)?;
    if MAX_KEYS < set.keys.len() {
        return Err(FetchError::TooMany { count: set.keys.len() });
    }
    let mut keys = Vec::new();
    for (at, raw) in set.keys.iter().enumerate() {
        match Key::from_jwk(raw.get()) {
            Ok(found) => keys.extend(found.into_iter().map(Arc::new)),
            Err(error) => debug!(at, %error, "key of a JWK set passed over"),
        }
    }
    Ok(keys)
}

fn connector(encrypted: bool) -> Result<HttpsConnector<HttpConnector>, InvalidUrl> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the default provider has the default versions' suites");
    let tls = match encrypted {
        true => tls.with_native_roots().map_err(InvalidUrl::Roots)?.with_no_client_auth(),
        false => tls.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth(),
    };
    let builder = HttpsConnectorBuilder::new().with_tls_config(tls);
    let builder = if encrypted { builder.https_only() } else { builder.https_or_http() };
    Ok(builder.enable_http1().build())
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost") || bare.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// An error and what caused it: the client's own text is only "client error (Connect)".
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests;
