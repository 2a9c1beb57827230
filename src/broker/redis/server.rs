//! One primary: finding it, the connection for commands, and what happens when that breaks.
//!
//! Whoever uses the connection and sees it fail says so ([`Server::failed`]); the supervisor ([`Server::supervise`])
//! connects again, with pauses that grow to [`MAX_PAUSE`]. A connection that answers nothing in [`ANSWER`] has failed.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo, Pipeline, ProtocolVersion, PushInfo, PushKind,
    RedisConnectionInfo, RedisError, Value, aio::MultiplexedConnection,
};
use tokio::sync::watch;
use tracing::{info, warn};

use super::{
    keys::Keys,
    outbox::fresh_epoch,
    script::{self, Dialect, Script},
};
use crate::{
    broker::BrokerError,
    config::{BrokerKind, BrokerUrl},
};

/// How long a command may take before its connection counts as broken.
pub(super) const ANSWER: Duration = Duration::from_secs(2);
/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(2);
/// How long a node that knows of nothing leaves the word to those that do.
const WITNESSES: Duration = Duration::from_secs(1);
/// The longest pause between two attempts, short since a returned Redis is to be found within 2 s.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// A primary, wherever it is just now.
pub(super) struct Server {
    url: BrokerUrl,
    state: watch::Sender<State>,
    keys: Keys,
    /// When this node last heard from it.
    heard: Mutex<Option<Instant>>,
}

/// Compares what a server that was started anew has with what is known to have been there.
pub(super) type Examine = Box<dyn Fn(MultiplexedConnection) -> BoxFuture<'static, Verdict> + Send + Sync>;

/// Whether it can be asked.
#[derive(Clone)]
pub(super) enum State {
    /// Nobody knows yet.
    Starting,
    /// Since its last sign of life it could not be reached, and why.
    Away(Arc<str>),
    /// It can.
    Live(Box<Live>),
}

/// A connection that works, as far as is known.
#[derive(Clone)]
pub(super) struct Live {
    /// Which connection it is: a failure is told with it, so that a late report does not end a newer one.
    pub generation: u64,
    pub connection: MultiplexedConnection,
    pub dialect: Dialect,
    /// For batches of publications, which may wait for replicas.
    pub publishing: MultiplexedConnection,
    /// The era that all nodes are in: it ends where Redis may have lost acknowledged publications.
    pub era: Arc<str>,
    /// The primary's replication id, new with each start and each failover.
    replication: Arc<str>,
    /// Where it was found, for a connection that listens.
    client: Client,
}

/// What `INFO` says about a server's past.
struct Past {
    is_primary: bool,
    /// Its replication id.
    replication: Arc<str>,
    /// Whether it had another one before, as a replica that took over has, and a primary that loaded a snapshot.
    had_another: bool,
    uptime: Duration,
}

/// What a server has of what was acknowledged in its former life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All that this node knows of, which is something.
    Whole,
    /// Something is missing, or may be.
    Lost,
    /// This node knows of nothing that should be there.
    Unknown,
}

impl Server {
    pub fn new(url: BrokerUrl, keys: Keys) -> Arc<Self> {
        let state = watch::Sender::new(State::Starting);
        Arc::new(Self { url, state, keys, heard: Mutex::new(None) })
    }

    /// The connection.
    ///
    /// # Errors
    /// There is none just now.
    pub fn live(&self) -> Result<Live, BrokerError> {
        match &*self.state.borrow() {
            State::Live(live) => Ok(live.as_ref().clone()),
            State::Starting => Err(BrokerError::Unavailable("not connected to Redis yet".into())),
            State::Away(why) => Err(BrokerError::Unavailable(why.to_string())),
        }
    }

    /// The connection. While nobody knows yet whether there is one, that is waited for.
    pub async fn known(&self) -> Result<Live, BrokerError> {
        let is_starting = matches!(*self.state.borrow(), State::Starting);
        match is_starting {
            true => self.live_within(2 * CONNECT).await,
            false => self.live(),
        }
    }

    /// The connection, if there is one within `deadline`.
    ///
    /// # Errors
    /// There is none.
    pub async fn live_within(&self, deadline: Duration) -> Result<Live, BrokerError> {
        let mut state = self.state.subscribe();
        // It fails only where the sender is gone, and that is here.
        let _ = tokio::time::timeout(deadline, state.wait_for(|state| matches!(state, State::Live(_)))).await;
        self.live()
    }

    /// Whoever waits for it to come or to go.
    pub fn watch(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Notes that the connection of this generation does not work any more.
    pub fn failed(&self, generation: u64, why: &str) {
        self.state.send_if_modified(|state| {
            let is_meant = matches!(state, State::Live(live) if live.generation == generation);
            if is_meant {
                *state = State::Away(format!("Redis is away: {why}").into());
            }
            is_meant
        });
    }

    /// Sends one command.
    ///
    /// # Errors
    /// There is no connection; it broke, so that the command may be done or not; or what the server says.
    pub async fn ask(&self, command: impl Fn(&Live) -> redis::Cmd) -> Result<Value, BrokerError> {
        let mut reloaded = false;
        loop {
            let mut live = self.known().await?;
            let answer = live.connection.send_packed_command(&command(&live)).await;
            match answer.and_then(Value::extract_error) {
                Ok(value) => {
                    self.heard_of();
                    return Ok(value);
                }
                Err(error) if script::is_unknown(&error.to_string()) && !reloaded => {
                    reloaded = true;
                    self.load(&mut live).await?;
                }
                Err(error) => return Err(self.failure(&live, &error)),
            }
        }
    }

    /// Makes the scripts known again, to a server that has forgotten them.
    ///
    /// # Errors
    /// The connection broke, or they are called differently now: it is connected to anew.
    pub async fn load(&self, live: &mut Live) -> Result<(), BrokerError> {
        let loaded = script::load(&mut live.connection).await.map_err(|error| self.failure(live, &error))?;
        if loaded != live.dialect {
            self.failed(live.generation, "functions cannot be loaded any more");
            return Err(BrokerError::Unavailable("Redis is away: its scripts are called differently now".into()));
        }
        Ok(())
    }

    /// What an error means to whoever asked; a broken connection is noted.
    pub fn failure(&self, live: &Live, error: &RedisError) -> BrokerError {
        if error.is_io_error() || error.is_unrecoverable_error() {
            self.failed(live.generation, &describe(error));
            return BrokerError::Unanswered;
        }
        if is_elsewhere(error) {
            self.failed(live.generation, &describe(error));
        }
        BrokerError::Unavailable(format!("Redis says: {}", describe(error)))
    }

    /// Notes a sign of life.
    pub fn heard_of(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Keeps it connected for ever.
    pub async fn supervise(self: Arc<Self>, examine: Examine) {
        let mut state = self.state.subscribe();
        let (mut generation, mut attempt, mut told) = (0, 0, false);
        loop {
            generation += 1;
            match tokio::time::timeout(2 * CONNECT, self.connect(generation, &examine)).await {
                Ok(Ok(live)) => {
                    info!(address = %live.client.get_connection_info().addr(), "connected to Redis");
                    attempt = 0;
                    self.heard_of();
                    self.state.send_replace(State::Live(live.into()));
                    let Ok(why) = away(&mut state).await else { return };
                    warn!(%why, "the connection to Redis broke; publications wait, connections stay");
                    told = true;
                }
                failed => {
                    let why =
                        failed.map_or_else(|_| "it does not answer".into(), |live| live.err().unwrap_or_default());
                    if !std::mem::replace(&mut told, true) {
                        warn!(%why, "Redis cannot be reached; publications wait, connections stay");
                    }
                    self.state.send_replace(State::Away(format!("Redis is away: {why}").into()));
                    tokio::time::sleep(pause(attempt, rand::random())).await;
                    attempt += 1;
                }
            }
        }
    }

    /// A connection that hears what is published; `hear` must not wait.
    pub async fn listening(
        &self,
        live: &Live,
        hear: impl Fn(PushInfo) -> Result<(), ()> + Send + Sync + 'static,
    ) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT))
            .set_response_timeout(Some(ANSWER))
            .set_push_sender(hear);
        live.client.get_multiplexed_async_connection_with_config(&config).await
    }

    async fn connect(self: &Arc<Self>, generation: u64, examine: &Examine) -> Result<Live, String> {
        let client = self.find().await.map_err(|error| describe(&error))?;
        let server = Arc::downgrade(self);
        let ended = move |push: PushInfo| {
            if push.kind == PushKind::Disconnection
                && let Some(server) = server.upgrade()
            {
                server.failed(generation, "it closed the connection");
            }
            Ok::<(), ()>(())
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT))
            .set_response_timeout(Some(ANSWER))
            .set_write_backpressure_boundary(256 << 10)
            .set_push_sender(ended);
        let connected = client.get_multiplexed_async_connection_with_config(&config).await;
        let mut connection = connected.map_err(|error| describe(&error))?;
        let past = Past::ask(&mut connection).await.map_err(|error| describe(&error))?;
        if !past.is_primary {
            return Err("it is a replica".into());
        }
        if past.replication.is_empty() {
            return Err("its INFO tells no master_replid, so a failover could not be noticed".into());
        }
        let publishing = client.get_multiplexed_async_connection_with_config(&config).await;
        let publishing = publishing.map_err(|error| describe(&error))?;
        let dialect = script::load(&mut connection).await.map_err(|error| describe(&error))?;
        let era = self.era(&mut connection, dialect, &past, examine).await?;
        let replication = past.replication;
        Ok(Live { generation, connection, publishing, dialect, era, replication, client })
    }

    /// The era that this primary is in, on which all nodes agree: the first one that knows says.
    async fn era(
        &self,
        connection: &mut MultiplexedConnection,
        dialect: Dialect,
        past: &Past,
        examine: &Examine,
    ) -> Result<Arc<str>, String> {
        let known = match &*self.state.borrow() {
            State::Live(live) => Some(live.era.clone()),
            State::Starting | State::Away(_) => None,
        };
        let candidate = known.unwrap_or_else(|| fresh_epoch().into());
        let asked = Instant::now();
        loop {
            let verdict = match self.is_restart(past) {
                Some(true) => examine(connection.clone()).await,
                // It lived while this node heard another: a replica took over.
                Some(false) => Verdict::Lost,
                None => Verdict::Unknown,
            };
            let word = match verdict {
                Verdict::Whole => "whole",
                Verdict::Lost => "lost",
                Verdict::Unknown if asked.elapsed() < WITNESSES => "",
                // Nobody knows of anything that should be there.
                Verdict::Unknown if past.had_another => "lost",
                Verdict::Unknown => "whole",
            };
            let mut call = Script::Era.call(dialect, &[self.keys.era()]);
            call.arg(&past.replication[..]).arg(word).arg(&candidate[..]);
            let era: String = call.query_async(connection).await.map_err(|error| describe(&error))?;
            if !era.is_empty() {
                return Ok(era.into());
            }
            tokio::time::sleep(WITNESSES / 10).await;
        }
    }

    /// What keeps the era known to nodes that come, if everything else in Redis is gone.
    pub fn remember_era(&self, live: &Live) -> Pipeline {
        let key = self.keys.era();
        let mut pipeline = Pipeline::with_capacity(2);
        pipeline.cmd("HSETNX").arg(&key).arg("era").arg(&live.era[..]);
        pipeline.cmd("HSETNX").arg(&key).arg("run").arg(&live.replication[..]);
        pipeline
    }

    /// Whether the process was started after this node last heard from Redis: then no replica that lagged took over, but
    /// the same data were loaded again. `None`: this node never heard from it.
    fn is_restart(&self, past: &Past) -> Option<bool> {
        let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        // Redis tells whole seconds.
        heard.map(|heard| past.uptime.saturating_sub(Duration::from_secs(1)) < heard.elapsed())
    }

    /// Where the primary is.
    async fn find(&self) -> Result<Client, RedisError> {
        let url = &self.url;
        let Some((host, port)) = url.hosts.first() else {
            return Err((redis::ErrorKind::InvalidClientConfig, "the URL names no host").into());
        };
        let BrokerKind::Sentinel { master } = &url.kind else { return client(url, host, *port, true) };
        let mut last = None;
        for (host, port) in &url.hosts {
            match primary_of(url, host, *port, master).await {
                Ok((host, port)) => return client(url, &host, port, true),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| (redis::ErrorKind::Io, "no sentinel answers").into()))
    }
}

impl Past {
    async fn ask(connection: &mut MultiplexedConnection) -> Result<Self, RedisError> {
        let text: String = redis::cmd("INFO").query_async(connection).await?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_default().trim()
        };
        Ok(Self {
            is_primary: field("role") == "master",
            replication: field("master_replid").into(),
            had_another: field("master_replid2").bytes().any(|byte| byte != b'0'),
            uptime: Duration::from_secs(field("uptime_in_seconds").parse().unwrap_or(u64::MAX)),
        })
    }
}

/// Waits until the connection is lost, and says why.
async fn away(state: &mut watch::Receiver<State>) -> Result<Arc<str>, watch::error::RecvError> {
    match &*state.wait_for(|state| matches!(state, State::Away(_))).await? {
        State::Away(why) => Ok(why.clone()),
        State::Live(_) | State::Starting => Ok("".into()),
    }
}

/// Asks one sentinel where the primary is.
async fn primary_of(url: &BrokerUrl, host: &str, port: u16, master: &str) -> Result<(String, u16), RedisError> {
    let config =
        AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT / 4)).set_response_timeout(Some(CONNECT / 4));
    let sentinel = client(url, host, port, false)?;
    let mut connection = sentinel.get_multiplexed_async_connection_with_config(&config).await?;
    redis::cmd("SENTINEL").arg("get-master-addr-by-name").arg(master).query_async(&mut connection).await
}

/// A client of one address. Sentinels have no databases, and no credentials but their own.
fn client(url: &BrokerUrl, host: &str, port: u16, is_server: bool) -> Result<Client, RedisError> {
    let host = host.to_owned();
    let address = match url.tls {
        true => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        false => ConnectionAddr::Tcp(host, port),
    };
    let mut settings = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3);
    if is_server {
        settings = settings.set_db(i64::from(url.database));
        if let Some(username) = &url.username {
            settings = settings.set_username(username);
        }
        if let Some(password) = &url.password {
            settings = settings.set_password(password);
        }
    }
    Client::open(address.into_connection_info()?.set_redis_settings(settings))
}

/// Whether another server has to be asked.
fn is_elsewhere(error: &RedisError) -> bool {
    matches!(error.code(), Some("ERA" | "READONLY" | "MASTERDOWN" | "LOADING" | "UNKILLABLE"))
}

/// An error's text, without anything secret: the crate's errors name addresses and what the server said.
pub(super) fn describe(error: &RedisError) -> String {
    error.to_string()
}

/// The pause before the `attempt`-th attempt (counted from 0): doubling from 50 ms up to [`MAX_PAUSE`], and by `jitter`
/// (0 to 1) between half and the whole of that, so that nodes that lost the same Redis do not return in one instant.
pub(super) fn pause(attempt: u32, jitter: f64) -> Duration {
    let whole = Duration::from_millis(50).saturating_mul(1 << attempt.min(10)).min(MAX_PAUSE);
    whole / 2 + (whole / 2).mul_f64(jitter)
}
