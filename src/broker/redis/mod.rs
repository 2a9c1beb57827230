//! The broker in Redis: publications, history and presence shared by any number of nodes.
//!
//! | part | what it does |
//! | --- | --- |
//! | `server.rs` | finds the primary, keeps a connection to it, notices when its past was lost |
//! | `outbox.rs`, `lua/publish.lua` | publishes: offset, history, idempotency and relay in one step, in batches |
//! | `listen.rs` | subscribes, probes, and looks for what was missed |
//! | `relay.rs`, `order.rs` | hears, and hands on in order   ← hot path, 2nd of 3 |
//! | `history.rs`, `lua/read.lua` | reads histories, fills gaps |
//! | `presence.rs` | members under leases; those of dead nodes are swept |
//! | `orders.rs`, `revocations.rs` | what the application wants of connections on any node; tokens that count no more |
//! | `examine.rs` | what `fanwire doctor` looks at |
//! | `keys.rs`, `wire.rs`, `script.rs` | names, bytes, and how scripts are called |
//!
//! While Redis is away, connections stay, publications wait in the outbox, and everything else is refused as unavailable.
//! After its return each channel that is listened to is compared with what was heard of it, and what is missing is read.
//! `redis` is named in this folder only.

pub mod examine;
mod history;
mod keys;
mod listen;
mod order;
mod orders;
mod outbox;
mod presence;
mod relay;
mod revocations;
mod script;
mod server;
mod wire;

use std::{sync::Arc, time::Duration};

use futures_util::future::{BoxFuture, FutureExt};
use redis::aio::MultiplexedConnection;
use tokio::task::{JoinHandle, JoinSet};

use self::{
    history::Reader,
    keys::Keys,
    listen::Ear,
    orders::Orders,
    outbox::{Limits, Outbox, fresh_epoch, numbering_ttl},
    presence::Leases,
    relay::Table,
    script::Script,
    server::{Server, Verdict},
};
use super::{Accepted, Broker, BrokerError, BrokerFigures, History, Listener, Retention, Submission};
use crate::{
    config::{BrokerConfig, BrokerUrl},
    domain::{Channel, HistoryQuery, NodeId, Position},
    telemetry::Metrics,
};

/// How long subscribing waits for Redis before it is refused.
const LISTEN: Duration = Duration::from_secs(5);
/// Channels whose tops are compared to find out whether a Redis that was started anew has lost something.
const WITNESSES: usize = 1000;

/// The broker in Redis.
pub struct RedisBroker {
    server: Arc<Server>,
    outbox: Outbox,
    table: Arc<Table>,
    ear: Arc<Ear>,
    orders: Arc<Orders>,
    reader: Reader,
    leases: Arc<Leases>,
    keys: Keys,
    /// What serves it; it ends with it.
    _owner: AbortOnDrop,
}

impl RedisBroker {
    /// Begins to connect to the Redis at `url`. Must be called on a runtime.
    pub fn start(
        url: BrokerUrl,
        config: &BrokerConfig,
        node: &NodeId,
        listener: Arc<dyn Listener>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let keys = Keys::new(&config.prefix);
        let server = Server::new(url, keys.clone());
        let limits = Limits {
            bytes: config.queue_while_away.0,
            deadline: config.queue_deadline.0,
            replica_acks: config.replica_acks,
        };
        // A process is not the same after a restart: its numbers begin anew.
        let life = fresh_epoch();
        let settings = outbox::Settings { keys: keys.clone(), field: format!("n{life}"), limits };
        let (outbox, courier) = Outbox::new(server.clone(), settings);
        let (table, gaps) = Table::new(listener.clone(), keys.clone());
        let orders = Orders::new(server.clone(), keys.clone(), listener.clone());
        let ear =
            Ear::new(server.clone(), table.clone(), keys.clone(), &format!("{node}-{life}"), orders.heard.clone());
        let reader = Reader { server: server.clone(), keys: keys.clone() };
        let (heard, acknowledged, names) = (table.clone(), courier.acknowledged(), keys.clone());
        let examine = server.clone().supervise(Box::new(move |connection| {
            let mut witnesses = acknowledged.all();
            witnesses.extend(heard.last_heard().into_iter().take(WITNESSES));
            examine_past(witnesses, names.clone(), connection).boxed()
        }));
        let leases = Leases::new(server.clone(), keys.clone(), &life);
        let mut tasks = JoinSet::new();
        tasks.spawn(examine);
        tasks.spawn(courier.run());
        tasks.spawn(ear.clone().run());
        tasks.spawn(orders.clone().run());
        tasks.spawn(leases.clone().run());
        tasks.spawn(history::fill_gaps(table.clone(), reader.clone(), listener, metrics, gaps));
        let owner = AbortOnDrop(tokio::spawn(outlive(tasks)));
        Arc::new(Self { server, outbox, table, ear, orders, reader, leases, keys, _owner: owner })
    }
}

/// A task that ends with what holds this.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Owns the tasks. A node without one of them would look alive and be deaf, so a panic in one ends the process: clients
/// go on elsewhere, and whoever started it starts it anew.
async fn outlive(mut tasks: JoinSet<()>) {
    while let Some(ended) = tasks.join_next().await {
        if ended.is_err_and(|error| error.is_panic()) {
            tracing::error!("a task of the Redis broker panicked; this node ends");
            // Time for that line to be written.
            tokio::time::sleep(Duration::from_millis(200)).await;
            std::process::abort();
        }
    }
}

/// What a server that was started anew has of what this node knows to have been there. Channels that count anew since, or
/// are gone altogether, mislead nobody.
async fn examine_past(
    witnesses: Vec<(Channel, Position)>,
    keys: Keys,
    mut connection: MultiplexedConnection,
) -> Verdict {
    let channels: Vec<_> = witnesses.iter().map(|(channel, _)| Some(channel)).collect();
    let Ok(tops) = listen::tops(&keys, &mut connection, &channels, "").await else { return Verdict::Lost };
    let of_same_epoch = |((_, last), top): (&(Channel, Position), listen::Top)| {
        let top = top.position.filter(|top| top.epoch == last.epoch)?;
        Some(last.offset <= top.offset)
    };
    let mut verdict = Verdict::Unknown;
    for is_there in witnesses.iter().zip(tops).filter_map(of_same_epoch) {
        match is_there {
            true => verdict = Verdict::Whole,
            false => return Verdict::Lost,
        }
    }
    verdict
}

impl Broker for RedisBroker {
    fn publish(&self, submission: Submission) -> BoxFuture<'_, Result<Accepted, BrokerError>> {
        let offered = self.outbox.offer(submission);
        async move {
            // The courier answers each, unless it is gone itself.
            offered?.await.unwrap_or_else(|_| Err(BrokerError::Unavailable("this node is shutting down".into())))
        }
        .boxed()
    }

    fn history<'a>(
        &'a self,
        channel: &'a Channel,
        retention: Retention,
        query: HistoryQuery,
    ) -> BoxFuture<'a, Result<History, BrokerError>> {
        self.reader.read(channel, retention, query).boxed()
    }

    fn drop_history<'a>(&'a self, channel: &'a Channel) -> BoxFuture<'a, Result<(), BrokerError>> {
        let keys = [self.keys.numbering(channel), self.keys.stream(channel)];
        let relay = self.keys.relay(channel);
        async move {
            let renew = |live: &server::Live| {
                let mut call = Script::Renew.call(live.dialect, &keys);
                call.arg(&relay).arg("PUBLISH").arg(fresh_epoch()).arg(&live.era[..]).arg(self.keys.era());
                call.arg(numbering_ttl(Duration::ZERO));
                call
            };
            self.server.ask(renew).await.map(drop)
        }
        .boxed()
    }

    fn listen<'a>(&'a self, channel: &'a Channel) -> BoxFuture<'a, Result<(), BrokerError>> {
        let heard = self.table.listen(channel);
        async move {
            let Some(heard) = heard else { return Ok(()) };
            let listening = async {
                self.server.known().await?;
                heard.await.map_err(|_| BrokerError::Unanswered)
            };
            let listened = tokio::time::timeout(LISTEN, listening).await.unwrap_or(Err(BrokerError::Unanswered));
            listened.inspect_err(|_| self.table.ignore(channel))
        }
        .boxed()
    }

    fn ignore(&self, channel: &Channel) {
        self.table.ignore(channel);
    }

    fn probe(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        async { self.ear.probe().await.map(drop) }.boxed()
    }

    fn figures(&self) -> BrokerFigures {
        let (listened, unheard) = self.table.counts();
        BrokerFigures { queued_bytes: self.outbox.bytes(), listened, unheard, dropped: self.table.dropped() }
    }
}
