//! Composition: opens the broker, builds hub, gateway, node and router, runs the shards, and drains them in reverse.

mod drain;
mod run;
mod shards;
mod sockets;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    task::JoinHandle,
};
use tracing::info;

pub use self::run::run;
use self::{
    shards::{ShardThreads, Shared},
    sockets::{Certificate, Sockets},
};
use crate::{
    broker::{Broker, memory::MemoryBroker},
    config::{BrokerKind, BrokerUrl, Config, InvalidBrokerUrl},
    domain::NodeId,
    gateway::{Gateway, GatewayError},
    http::{BrokerStatus, HubFigures},
    hub::{self, Hub, MAX_SHARDS},
    node::{Deliver, Node},
    protocol,
    telemetry::Metrics,
    transport::{DoorSettings, OpenSockets},
};

/// How often the memory broker forgets what has expired.
const SWEEP: Duration = Duration::from_secs(5);
/// How often the broker is asked for a sign of life.
const PROBE: Duration = Duration::from_secs(5);
/// How long a start waits to learn which tokens are revoked.
const REVOCATIONS: Duration = Duration::from_secs(5);
/// Descriptors that are kept free of connections: files, the broker, upstreams.
const RESERVED_DESCRIPTORS: u64 = 64;

/// Why the server could not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which address.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// The broker's URL cannot be understood.
    #[error("broker.url: {0}")]
    Broker(#[from] InvalidBrokerUrl),
    /// Publications are not spread over several primaries yet.
    #[error("broker.url: Redis Cluster comes with a later version; use one Redis, or Sentinel")]
    Cluster,
    /// Keys cannot be loaded.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    /// The certificate cannot be used.
    #[error("tls: {0}")]
    Tls(String),
    /// The operating system refused something.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// A server that runs.
pub struct App {
    node: Arc<Node>,
    /// What it was started with: what a reload cannot change stays as it is here.
    started_with: Config,
    open: OpenSockets,
    addresses: Vec<SocketAddr>,
    metrics_address: Option<SocketAddr>,
    shards: ShardThreads,
    closing: watch::Sender<bool>,
    background: Vec<JoinHandle<()>>,
    renew_certificate: Option<Arc<Notify>>,
}

impl App {
    /// Builds everything and begins to serve. Must be called on a multi-thread runtime, which gets the slow work.
    ///
    /// # Errors
    /// [`RunError`]: nothing is left running.
    pub async fn start(config: Config) -> Result<Self, RunError> {
        let workers = workers(&config);
        let sockets = Sockets::bind(&config, workers)?;
        let metrics = Arc::new(Metrics::new());
        let limits = hub::Limits {
            send_queue: config.connection.send_queue.0,
            when_slow: config.connection.when_slow,
            ping: config.connection.ping.0,
        };
        let (hub, inboxes) = Hub::new(workers, limits, protocol::encode);
        metrics.collect(Box::new(HubFigures::new(hub.clone())));
        let id = node_id(&config);
        let gateway = Gateway::new(&config, Handle::current())?;
        let deliver = Deliver::new(hub.clone(), gateway.clone());
        let (broker, mut background) = open_broker(&config, &id, deliver, &metrics)?;
        metrics.collect(Box::new(BrokerStatus::new(broker.clone())));
        let max_subscriptions = config.connection.max_subscriptions;
        let node = Node::new(id, hub, broker, gateway, metrics.clone(), max_subscriptions);
        if let Err(error) = node.load_revocations(REVOCATIONS).await {
            let what =
                "what was revoked is not known yet: tokens count if they are signed well, until the broker is there";
            tracing::warn!(%error, "{what}");
        }
        let (closing, is_closing) = watch::channel(false);
        let settings = DoorSettings {
            max_frame: config.connection.max_frame.0,
            compression: config.connection.compression,
            max_connections: max_connections(&config)?,
            max_body: config.http.max_body.0,
            tls: config.tls.is_some(),
        };
        let certificate = Certificate::of(&config)?;
        background.push(tokio::spawn(probe(node.clone())));
        let (tls, renew_certificate) = match certificate {
            Some(Certificate { current, asked, watching }) => {
                background.push(watching);
                (Some(current), Some(asked))
            }
            None => (None, None),
        };
        let Sockets { per_shard, addresses, metrics: metrics_listener } = sockets;
        let metrics_address = metrics_listener.as_ref().and_then(|listener| listener.local_addr().ok());
        let (settings, open) = (Arc::new(settings), OpenSockets::default());
        let shared = Shared { node: node.clone(), settings, tls, metrics, open: open.clone(), closing: is_closing };
        let shards = ShardThreads::start(shared, inboxes, per_shard, metrics_listener)?;
        let started_with = config;
        Ok(Self {
            node,
            started_with,
            open,
            addresses,
            metrics_address,
            shards,
            closing,
            background,
            renew_certificate,
        })
    }

    /// Where clients connect, with the ports that were chosen.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Where `/metrics` is.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// The node.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Takes over what may change while the server runs: apps, keys, namespaces and limits.
    ///
    /// # Errors
    /// What is wrong with it; then nothing has changed.
    pub fn reload(&mut self, config: Config) -> Result<(), GatewayError> {
        for key in unchangeable(&self.started_with, &config) {
            tracing::warn!(key, "takes effect at the next start only");
        }
        self.node.gateway().reload(&config)?;
        if let Some(renew) = &self.renew_certificate {
            renew.notify_one();
        }
        info!("configuration reloaded");
        Ok(())
    }

    /// Ends in order: nobody new, then every connection is told and closed, spread over `shutdown.drain`, and every request
    /// under way is answered.
    pub async fn shut_down(self) {
        let drain = self.started_with.shutdown.drain.0;
        info!(connections = self.node.hub().connections(), sockets = self.open.count(), ?drain, "draining");
        self.node.begin_drain();
        // Readiness and listeners: a load balancer that asks is told, one that does not is refused.
        self.closing.send_replace(true);
        drain::sockets(self.node.hub(), &self.open, drain).await;
        for task in self.background {
            task.abort();
            // It was told to stop, and says so.
            let _ = task.await;
        }
        self.shards.stop().await;
        info!("stopped");
    }
}

/// Keys whose change a reload cannot honour.
fn unchangeable(old: &Config, new: &Config) -> Vec<&'static str> {
    let changed = [
        ("listen", old.listen != new.listen),
        ("workers", old.workers != new.workers),
        ("metrics_listen", old.metrics_listen != new.metrics_listen),
        ("node_name", old.node_name != new.node_name),
        ("tls", old.tls != new.tls),
        ("log", old.log != new.log),
        ("broker", old.broker != new.broker),
        ("http.max_body", old.http.max_body != new.http.max_body),
        ("connection", old.connection != new.connection),
        ("limits.connections", old.limits.connections != new.limits.connections),
        ("shutdown", old.shutdown != new.shutdown),
    ];
    changed.into_iter().filter(|(_, changed)| *changed).map(|(key, _)| key).collect()
}

fn workers(config: &Config) -> usize {
    match config.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from).min(MAX_SHARDS),
        workers => workers.min(MAX_SHARDS),
    }
}

fn node_id(config: &Config) -> NodeId {
    if !config.node_name.is_empty() {
        return NodeId::new(&config.node_name);
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    let host = if host.is_empty() { "node" } else { host };
    NodeId::new(&format!("{host}-{:06x}", rand::random::<u32>() >> 8))
}

/// Raises the descriptor limit as far as allowed; returns how many connections that leaves room for.
fn max_connections(config: &Config) -> Result<usize, RunError> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit.current != limit.maximum && setrlimit(Resource::Nofile, raised).is_err() {
        tracing::warn!("the descriptor limit could not be raised");
    }
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let room = usize::try_from(descriptors.saturating_sub(RESERVED_DESCRIPTORS)).unwrap_or(usize::MAX);
    match config.limits.connections {
        0 => Ok(room),
        wanted if room < wanted => {
            let why = format!("limits.connections is {wanted}, but descriptors allow {room}; raise `ulimit -n`");
            Err(RunError::System(io::Error::other(why)))
        }
        wanted => Ok(wanted),
    }
}

/// Tasks that last as long as the server.
type Upkeep = Vec<JoinHandle<()>>;

/// The broker that the configuration names, and what keeps it tidy.
fn open_broker(
    config: &Config,
    node: &NodeId,
    deliver: Arc<Deliver>,
    metrics: &Arc<Metrics>,
) -> Result<(Arc<dyn Broker>, Upkeep), RunError> {
    let url: BrokerUrl = config.broker.url.parse()?;
    if url.kind == BrokerKind::Cluster {
        return Err(RunError::Cluster);
    }
    if url.kind == BrokerKind::Memory {
        let broker = Arc::new(MemoryBroker::new(deliver, config.broker.max_memory.0));
        return Ok((broker.clone(), vec![tokio::spawn(sweep(broker))]));
    }
    Ok((crate::broker::redis::RedisBroker::start(url, &config.broker, node, deliver, metrics.clone()), Vec::new()))
}

async fn sweep(broker: Arc<MemoryBroker>) {
    let mut interval = tokio::time::interval(SWEEP);
    loop {
        interval.tick().await;
        broker.sweep(std::time::Instant::now());
    }
}

/// Asks the broker for a sign of life every few seconds, for the figures and for whoever looks at the log.
async fn probe(node: Arc<Node>) {
    let mut interval = tokio::time::interval(PROBE);
    let mut is_well = true;
    loop {
        interval.tick().await;
        let asked = std::time::Instant::now();
        let answer = node.probe().await;
        // Each change is told once.
        match (&answer, std::mem::replace(&mut is_well, answer.is_ok())) {
            (Err(error), true) => tracing::warn!(%error, "the broker does not answer"),
            (Ok(()), false) => info!("the broker answers again"),
            _ => {}
        }
        node.metrics().probed(answer.ok().map(|()| asked.elapsed()));
    }
}
