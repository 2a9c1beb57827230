//! Reading histories, and filling gaps from them.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt;
use redis::Value;
use tokio::{sync::mpsc::UnboundedReceiver, task::JoinSet};
use tracing::{debug, warn};

use super::{
    keys::{Keys, NUMBERING},
    outbox::{fresh_epoch, millis, numbering_ttl},
    relay::{Name, Table},
    script::Script,
    server::{Live, Server},
    wire,
};
use crate::{
    broker::{BrokerError, History, Listener, MAX_HISTORY_BYTES, Retention},
    domain::{Channel, HistoryQuery, Offset},
    telemetry::Metrics,
};

/// Gaps that are filled side by side.
const SIDE_BY_SIDE: usize = 16;
/// How often reading may bring nothing new before a gap is given up.
const FRUITLESS: usize = 20;
/// How long until a gap that could not be filled is tried again.
const AGAIN: Duration = Duration::from_millis(250);
/// A retention that takes nothing away: gaps are filled with all that Redis still has.
const ALL: Retention = Retention { size: 1 << 40, ttl: Duration::from_secs(100 * 365 * 24 * 3600) };

/// Reads histories.
#[derive(Clone)]
pub(super) struct Reader {
    pub server: Arc<Server>,
    pub keys: Keys,
}

impl Reader {
    /// A part of a channel's history.
    ///
    /// # Errors
    /// Redis is away, or says something that is no history.
    pub async fn read(
        &self,
        channel: &Channel,
        retention: Retention,
        query: HistoryQuery,
    ) -> Result<History, BrokerError> {
        let answer = self.server.ask(|live| self.command(live, channel, retention, query)).await?;
        history(channel, answer).ok_or_else(|| BrokerError::Unavailable("Redis' answer is no history of ours".into()))
    }

    /// The command that makes sure that a channel's numbering lives on, for a channel that is listened to.
    pub fn touch(&self, live: &Live, channel: &Channel) -> redis::Cmd {
        self.command(live, channel, ALL, HistoryQuery { limit: 0, ..HistoryQuery::default() })
    }

    fn command(&self, live: &Live, channel: &Channel, retention: Retention, query: HistoryQuery) -> redis::Cmd {
        let keys = [self.keys.numbering(channel), self.keys.stream(channel)];
        let mut call = Script::Read.call(live.dialect, &keys);
        let number =
            |offset: Option<Offset>| offset.map(|offset| offset.0.min(1 << 53).to_string()).unwrap_or_default();
        call.arg(self.keys.relay(channel)).arg("PUBLISH").arg(fresh_epoch()).arg(&live.era[..]);
        call.arg(numbering_ttl(if retention == ALL { Duration::ZERO } else { retention.ttl })).arg(millis(NUMBERING));
        call.arg(retention.size).arg(millis(retention.ttl)).arg(number(query.after)).arg(number(query.before));
        call.arg(query.limit).arg(u8::from(query.reverse)).arg(MAX_HISTORY_BYTES).arg(self.keys.era());
        call
    }
}

/// What the script answers.
fn history(channel: &Channel, answer: Value) -> Option<History> {
    let Value::Array(parts) = answer else { return None };
    let mut parts = parts.into_iter().map(|part| match part {
        Value::BulkString(bytes) => Bytes::from(bytes),
        _ => Bytes::new(),
    });
    let top = wire::position(&parts.next()?, &parts.next()?)?;
    let trimmed = wire::position(b"0", &parts.next()?)?.offset;
    let mut publications = Vec::with_capacity(parts.len() / 2);
    while let (Some(offset), Some(body)) = (parts.next(), parts.next()) {
        let position = crate::domain::Position { offset: wire::position(b"0", &offset)?.offset, ..top };
        publications.push(Arc::new(wire::publication(channel, Some(position), body)?));
    }
    Some(History { top, trimmed, publications })
}

/// Fills gaps for ever, some side by side, each channel once.
pub(super) async fn fill_gaps(
    table: Arc<Table>,
    reader: Reader,
    listener: Arc<dyn Listener>,
    metrics: Arc<Metrics>,
    mut gaps: UnboundedReceiver<Name>,
) {
    let mut filling = JoinSet::new();
    while let Some(name) = gaps.recv().await {
        while SIDE_BY_SIDE <= filling.len() {
            // Each says itself what became of it.
            let _ = filling.join_next().await;
        }
        let filler = Filler { table: table.clone(), reader: reader.clone(), listener: listener.clone() };
        let metrics = metrics.clone();
        filling.spawn(async move {
            let filled = AssertUnwindSafe(filler.fill(&name)).catch_unwind().await;
            match filled {
                Ok(Filling::Closed(publications)) => metrics.gap(publications),
                Ok(Filling::Away) => filler.later(name),
                // Whatever it is, it would be the same again.
                Ok(Filling::Stuck) | Err(_) => filler.table.give_up(&name),
            }
        });
    }
}

/// What became of a gap.
enum Filling {
    Closed(usize),
    /// Redis cannot be asked just now.
    Away,
    /// History cannot be read there.
    Stuck,
}

struct Filler {
    table: Arc<Table>,
    reader: Reader,
    listener: Arc<dyn Listener>,
}

impl Filler {
    async fn fill(&self, name: &Name) -> Filling {
        let (mut filled, mut fruitless) = (0, 0);
        while fruitless < FRUITLESS {
            self.listener.room().await;
            let Some((channel, last)) = self.table.gap(name) else { return Filling::Closed(filled) };
            let query = HistoryQuery {
                limit: HistoryQuery::MAX_LIMIT,
                after: Some(last.map_or(Offset(0), |last| last.offset)),
                ..HistoryQuery::default()
            };
            match self.reader.read(&channel, ALL, query).await {
                Ok(history) => match self.table.fill(name, last, history) {
                    None => return Filling::Closed(filled),
                    Some(count) => filled += count,
                },
                Err(error) if self.reader.server.live().is_err() => {
                    debug!(channel = channel.key(), %error, "a gap cannot be filled yet");
                    return Filling::Away;
                }
                Err(error) => warn!(channel = channel.key(), %error, "a gap cannot be filled"),
            }
            // A part that brought nothing new is tried again, but not for ever.
            let now = self.table.gap(name).and_then(|(_, last)| last);
            if now == last {
                fruitless += 1;
                tokio::time::sleep(AGAIN).await;
            }
        }
        Filling::Stuck
    }

    /// Has it tried again when Redis may be back, without standing in the way of others.
    fn later(self, name: Name) {
        tokio::spawn(async move {
            tokio::time::sleep(AGAIN).await;
            self.table.try_again(&name);
        });
    }
}
