//! Orders to all nodes, in a stream that each node reads from where it stands.
//!
//! What is published on the way is only that there is something to read, so an order is neither lost nor done twice with
//! the relay: a node that did not hear of it looks every [`LOOK`] anyway, and finds it once Redis is back. Ids are times
//! of Redis' own clock, which makes an order's age known whatever a node's clock says. Start at [`Orders::run`].

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use redis::Value;
use tokio::sync::Notify;
use tracing::warn;

use super::{
    RedisBroker,
    keys::Keys,
    outbox::millis,
    script::Script,
    server::{Live, Server},
    wire::{self, Told},
};
use crate::{
    broker::{BrokerError, Commander, Listener, ORDERS_KEPT, Order, Relayed},
    domain::Revocation,
};

/// How often a node looks for orders that it did not hear of.
const LOOK: Duration = Duration::from_secs(2);
/// Orders in one answer.
const BATCH: usize = 200;
/// About how many orders are kept, the newest.
pub(super) const MOST: usize = 100_000;
/// Before the first order.
const BEGINNING: &str = "0-0";

/// The orders of all nodes.
pub(super) struct Orders {
    pub(super) server: Arc<Server>,
    pub(super) keys: Keys,
    pub(super) listener: Arc<dyn Listener>,
    /// There may be something to read.
    pub heard: Arc<Notify>,
}

/// What was read.
struct Page {
    /// The id of the last order in it.
    last: String,
    is_full: bool,
}

impl Orders {
    pub fn new(server: Arc<Server>, keys: Keys, listener: Arc<dyn Listener>) -> Arc<Self> {
        Arc::new(Self { server, keys, listener, heard: Arc::default() })
    }

    /// Reads for ever, and hands on. A node that starts reads all that is kept: it may have let connections in while
    /// Redis was away, and who came after an order is not meant by it.
    pub async fn run(self: Arc<Self>) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut last, mut loaded) = (BEGINNING.to_owned(), None);
        loop {
            tokio::select! {
                _ = look.tick() => {}
                () = self.heard.notified() => {}
            }
            // What cannot be read now is read the next time. What was revoked while this node was away may be longer ago
            // than orders are kept.
            let generation = self.server.live().map(|live| live.generation).ok();
            if generation.is_some() && generation != loaded && self.load().await.is_ok() {
                loaded = generation;
            }
            while let Ok(Some(page)) = self.read(&last).await {
                last = page.last;
                if !page.is_full {
                    break;
                }
            }
        }
    }

    /// Hands on what comes after the order with the id `last`; `None` where there is nothing.
    async fn read(&self, last: &str) -> Result<Option<Page>, BrokerError> {
        let read = |live: &Live| Script::Orders.call(live.dialect, &[self.keys.orders()]).arg(last).arg(BATCH).take();
        let Value::Array(answer) = self.server.ask(read).await? else { return Ok(None) };
        let mut texts = answer.into_iter().map(|value| match value {
            Value::BulkString(bytes) => Bytes::from(bytes),
            _ => Bytes::new(),
        });
        let now = texts.next().and_then(|now| std::str::from_utf8(&now).ok()?.parse().ok()).unwrap_or(0);
        let mut page = None;
        let mut count = 0;
        while let (Some(id), Some(order)) = (texts.next(), texts.next()) {
            count += 1;
            let Ok(id) = std::str::from_utf8(&id) else { continue };
            match wire::told(order) {
                Some(Told::Order(order)) => self.listener.relayed(Relayed::Order(order, age(id, now))),
                Some(Told::Revoked(revocation)) => self.listener.relayed(Relayed::Revoked(revocation)),
                None => warn!(id, "an order of another version cannot be read, and is not done here"),
            }
            page = Some(Page { last: id.to_owned(), is_full: count == BATCH });
        }
        Ok(page)
    }
}

impl Commander for RedisBroker {
    fn order(&self, order: Order) -> BoxFuture<'_, Result<(), BrokerError>> {
        async move {
            let (keys, text) = ([self.keys.orders()], wire::write_order(&order));
            let tell = |live: &Live| {
                let mut call = Script::Order.call(live.dialect, &keys);
                call.arg(&text).arg(millis(ORDERS_KEPT)).arg(MOST).arg(self.keys.control());
                call
            };
            self.server.ask(tell).await.map(drop)
        }
        .boxed()
    }

    fn revoke(&self, revocation: Revocation) -> BoxFuture<'_, Result<(), BrokerError>> {
        self.orders.revoke(revocation)
    }

    fn load_revocations(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        self.orders.load().boxed()
    }
}

/// How old an order with this id is, when Redis' clock says `now`.
fn age(id: &str, now: u64) -> Duration {
    let given = id.split('-').next().and_then(|time| time.parse().ok()).unwrap_or(now);
    Duration::from_millis(now.saturating_sub(given))
}
