//! The connection that hears: what is wanted and what is confirmed, and whether anything comes through at all.
//!
//! A subscription counts as heard once Redis has confirmed it *and* the channel's position was read after that: from
//! there on a jump in the offsets shows what was missed. A probe goes round every [`PROBE`] (published on the connection
//! for commands, heard on this one); two that do not come back end the connection, since a half-open one is silent.
//! Start at [`Ear::run`].

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use redis::{
    Pipeline, PushInfo, PushKind, RedisError, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};
use tokio::sync::{Notify, oneshot, watch};
use tracing::{debug, warn};

use super::{
    history::Reader,
    keys::Keys,
    outbox::{fresh_epoch, numbering_ttl},
    relay::{Name, Table},
    script::Script,
    server::{ANSWER, Live, Server, State, describe, pause},
    wire,
};
use crate::{
    broker::BrokerError,
    domain::{Channel, Position},
};

/// How often a probe goes round.
const PROBE: Duration = Duration::from_millis(2500);
/// How often the tops of all channels are compared with what was heard.
const LOOK: Duration = Duration::from_secs(2);
/// How often the numberings of quiet channels are kept alive.
const TOUCH: Duration = Duration::from_secs(15 * 60);
/// How often unused channels are let go.
const TIDY: Duration = Duration::from_secs(1);
/// A connection that lasted this long was a good one.
const STABLE: Duration = Duration::from_millis(250);
/// Channels in one command.
const BATCH: usize = 500;

/// The receiving side of one primary.
pub(super) struct Ear {
    server: Arc<Server>,
    table: Arc<Table>,
    reader: Reader,
    keys: Keys,
    probes: Arc<Probes>,
    /// Told whenever there may be orders to read.
    orders: Arc<Notify>,
    /// Whether it hears; false from the moment on when it is known not to.
    hears: watch::Sender<bool>,
}

/// Probes under way.
struct Probes {
    name: String,
    numbers: AtomicU64,
    awaited: Mutex<HashMap<u64, oneshot::Sender<()>>>,
}

/// Why a connection is given up.
struct Deaf(String);

impl From<RedisError> for Deaf {
    fn from(error: RedisError) -> Self {
        Self(describe(&error))
    }
}

impl From<BrokerError> for Deaf {
    fn from(error: BrokerError) -> Self {
        Self(error.to_string())
    }
}

impl Ear {
    pub fn new(server: Arc<Server>, table: Arc<Table>, keys: Keys, node: &str, orders: Arc<Notify>) -> Arc<Self> {
        let name = keys.probe(node);
        let probes = Arc::new(Probes { name, numbers: AtomicU64::new(0), awaited: Mutex::default() });
        let reader = Reader { server: server.clone(), keys: keys.clone() };
        Arc::new(Self { server, table, reader, keys, probes, orders, hears: watch::Sender::new(false) })
    }

    /// Sends a probe round and tells how long it took.
    ///
    /// # Errors
    /// It cannot be sent, or did not come back in [`ANSWER`].
    pub async fn probe(&self) -> Result<Duration, BrokerError> {
        self.server.known().await?;
        let mut hears = self.hears.subscribe();
        if tokio::time::timeout(ANSWER, hears.wait_for(|hears| *hears)).await.is_err() {
            return Err(BrokerError::Unavailable("this node does not hear what Redis relays".into()));
        }
        let (number, came) = self.probes.expect();
        let sent = Instant::now();
        let name = &self.probes.name;
        let publish = |_: &Live| redis::cmd("PUBLISH").arg(name).arg(number).take();
        let asked = self.server.ask(publish).await;
        let heard = match asked {
            Ok(_) => tokio::time::timeout(ANSWER, came).await.is_ok_and(|heard| heard.is_ok()),
            Err(_) => false,
        };
        self.probes.forget(number);
        asked?;
        match heard {
            true => Ok(sent.elapsed()),
            false => Err(BrokerError::Unanswered),
        }
    }

    /// Hears for ever.
    pub async fn run(self: Arc<Self>) {
        let mut state = self.server.watch();
        let mut attempt = 0;
        loop {
            let live = match state.wait_for(|state| matches!(state, State::Live(_))).await {
                Ok(state) => state.clone(),
                Err(_) => return,
            };
            let State::Live(live) = live else { continue };
            self.table.forget_subscriptions();
            let began = Instant::now();
            let Err(Deaf(why)) = self.hear(&live).await;
            self.hears.send_replace(false);
            if STABLE <= began.elapsed() {
                attempt = 0;
            }
            match attempt {
                0 => warn!(%why, "what Redis relays is not heard just now; it will be read from history"),
                _ => debug!(%why, "the connection that listens to Redis ended again"),
            }
            tokio::time::sleep(pause(attempt, rand::random())).await;
            attempt += 1;
        }
    }

    /// Hears until the connection, or that for commands, breaks.
    async fn hear(&self, live: &Live) -> Result<std::convert::Infallible, Deaf> {
        let ended = Arc::new(Notify::new());
        let (table, probes, end) = (self.table.clone(), self.probes.clone(), ended.clone());
        let (control, orders) = (self.keys.control(), self.orders.clone());
        let ear = move |push| hear(push, &table, &probes, &end, (&control, &orders));
        let mut connection = self.server.listening(live, ear).await?;
        connection.subscribe(&[self.probes.name.as_str(), &self.keys.control()]).await?;
        self.orders.notify_one();
        let mut state = self.server.watch();
        let mut tidy = tokio::time::interval(TIDY);
        let mut look = tokio::time::interval(LOOK);
        let mut probe = tokio::time::interval(PROBE);
        let mut touch = tokio::time::interval(TOUCH);
        look.reset();
        touch.reset();
        loop {
            self.subscribe(&mut connection, live).await?;
            self.hears.send_replace(true);
            tokio::select! {
                () = ended.notified() => return Err(Deaf("it was closed".into())),
                why = replaced(&mut state, live.generation) => return Err(Deaf(why)),
                () = self.table.wanted.notified() => {}
                _ = tidy.tick() => self.unsubscribe(&mut connection).await?,
                _ = look.tick() => self.look(live).await?,
                _ = touch.tick() => self.touch(live).await?,
                _ = probe.tick() => self.probe_or_end(live).await?,
            }
        }
    }

    /// Two probes that do not come back are enough.
    async fn probe_or_end(&self, live: &Live) -> Result<(), Deaf> {
        if let Err(first) = self.probe().await
            && self.probe().await.is_err()
        {
            self.server.failed(live.generation, &format!("a probe did not come back: {first}"));
            return Err(Deaf("probes do not come back".into()));
        }
        Ok(())
    }

    /// Subscribes what is wanted and is not yet.
    async fn subscribe(&self, connection: &mut MultiplexedConnection, live: &Live) -> Result<(), Deaf> {
        loop {
            let names = self.table.unsubscribed(BATCH);
            if names.is_empty() {
                return Ok(());
            }
            let bytes: Vec<&[u8]> = names.iter().map(|name| &name[..]).collect();
            connection.subscribe(&bytes).await?;
            // From here on everything is heard; what came before shows by the positions.
            let known = self.table.known(&names);
            // Nobody wants these any more.
            let strays = names.iter().zip(&known).filter(|(_, known)| known.is_none());
            let strays: Vec<&[u8]> = strays.map(|(name, _)| &name[..]).collect();
            if !strays.is_empty() {
                connection.unsubscribe(&strays).await?;
            }
            let channels: Vec<_> = known.iter().map(|known| known.as_ref().map(|(channel, _)| channel)).collect();
            let tops = self.tops(live, &channels).await?;
            let positions: Vec<_> = tops.iter().map(|top| top.position).collect();
            for ((name, known), top) in names.iter().zip(&known).zip(&tops) {
                if let Some((channel, Some(last))) = known {
                    self.compare(live, name, channel, *last, *top, true).await?;
                }
            }
            self.table.confirm(&names, &positions);
        }
    }

    async fn unsubscribe(&self, connection: &mut MultiplexedConnection) -> Result<(), Deaf> {
        let names = self.table.unused();
        for batch in names.chunks(BATCH) {
            let bytes: Vec<&[u8]> = batch.iter().map(|name| &name[..]).collect();
            connection.unsubscribe(&bytes).await?;
        }
        Ok(())
    }

    /// Compares every channel's top with what was heard of it: a relayed message may be lost with nothing after it.
    async fn look(&self, live: &Live) -> Result<(), Deaf> {
        let remembered = self.server.remember_era(live).exec_async(&mut live.connection.clone()).await;
        remembered.map_err(|error| Deaf(self.server.failure(live, &error).to_string()))?;
        for batch in self.table.heard().chunks(BATCH) {
            let channels: Vec<_> = batch.iter().map(|(_, channel, _)| Some(channel)).collect();
            let tops = self.tops(live, &channels).await?;
            for ((name, channel, last), top) in batch.iter().zip(tops) {
                if let Some(last) = last {
                    self.compare(live, name, channel, *last, top, false).await?;
                } else if let Some(position) = top.position {
                    self.table.compare(name, None, position, false);
                }
            }
        }
        Ok(())
    }

    /// Keeps the numberings of channels alive to which nothing is published.
    async fn touch(&self, live: &Live) -> Result<(), Deaf> {
        let mut connection = live.connection.clone();
        for batch in self.table.heard().chunks(BATCH) {
            let mut pipeline = Pipeline::with_capacity(batch.len());
            for (_, channel, _) in batch.iter().filter(|(_, _, last)| last.is_some()) {
                pipeline.add_command(self.reader.touch(live, channel));
            }
            let touched = connection.req_packed_commands(&pipeline, 0, pipeline.len()).await;
            touched.map_err(|error| Deaf(self.server.failure(live, &error).to_string()))?;
        }
        Ok(())
    }

    /// What a channel's top says about what was heard until `last`.
    async fn compare(
        &self,
        live: &Live,
        name: &Name,
        channel: &Channel,
        last: Position,
        top: Top,
        surely: bool,
    ) -> Result<(), Deaf> {
        match top.position {
            // Its numbering is gone, or of another era: reading begins it anew.
            None => self.table.doubt(name),
            Some(_) if top.is_lost => self.table.doubt(name),
            Some(position) if position.epoch == last.epoch && position.offset < last.offset => {
                self.renew(live, channel, last).await?;
            }
            Some(position) => self.table.compare(name, Some(last), position, surely),
        }
        Ok(())
    }

    /// Begins the numbering of a channel anew that has lost what was heard of it.
    async fn renew(&self, live: &Live, channel: &Channel, last: Position) -> Result<(), Deaf> {
        warn!(channel = channel.key(), "Redis has lost publications; the channel counts anew");
        let all = [self.keys.numbering(channel), self.keys.stream(channel)];
        let mut call = Script::Renew.call(live.dialect, &all);
        call.arg(self.keys.relay(channel)).arg("PUBLISH").arg(fresh_epoch()).arg(&live.era[..]).arg(self.keys.era());
        call.arg(numbering_ttl(Duration::ZERO)).arg(last.epoch.to_string()).arg(last.offset.0);
        self.server.ask(|_| call.clone()).await?;
        Ok(())
    }

    /// Where channels stand.
    async fn tops(&self, live: &Live, channels: &[Option<&Channel>]) -> Result<Vec<Top>, Deaf> {
        let mut connection = live.connection.clone();
        let tops = tops(&self.keys, &mut connection, channels, &live.era).await;
        tops.map_err(|error| Deaf(self.server.failure(live, &error).to_string()))
    }
}

/// Waits until the connection of this generation is no more, and says why.
async fn replaced(state: &mut watch::Receiver<State>, generation: u64) -> String {
    let is_other = |now: &State| !matches!(now, State::Live(now) if now.generation == generation);
    match state.wait_for(is_other).await.as_deref() {
        Ok(State::Away(why)) => why.to_string(),
        _ => "the connection for commands was replaced".into(),
    }
}

/// A channel's numbering, as it stands.
#[derive(Clone, Copy)]
pub(super) struct Top {
    pub position: Option<Position>,
    /// It belongs to another era, so its end may be lost.
    is_lost: bool,
}

/// Reads where channels stand, without changing anything. `era` is empty where it does not matter.
pub(super) async fn tops(
    keys: &Keys,
    connection: &mut MultiplexedConnection,
    channels: &[Option<&Channel>],
    era: &str,
) -> Result<Vec<Top>, RedisError> {
    let mut pipeline = Pipeline::with_capacity(channels.len());
    for channel in channels.iter().flatten() {
        pipeline.cmd("HMGET").arg(keys.numbering(channel)).arg("e").arg("o").arg("g");
    }
    let answers = connection.req_packed_commands(&pipeline, 0, pipeline.len()).await?;
    let answers: Vec<Value> = answers.into_iter().map(Value::extract_error).collect::<Result<_, _>>()?;
    let mut answers = answers.into_iter();
    let top = |channel: &Option<&Channel>| {
        let answer = channel.and_then(|_| answers.next());
        let Some(Value::Array(fields)) = answer else { return Top { position: None, is_lost: false } };
        let field = |at: usize| match fields.get(at) {
            Some(Value::BulkString(bytes)) => bytes.as_slice(),
            _ => b"",
        };
        let is_lost = !era.is_empty() && field(2) != era.as_bytes();
        Top { position: wire::position(field(0), field(1)), is_lost }
    };
    Ok(channels.iter().map(top).collect())
}

/// Takes what the connection brings. Runs in the task that reads it, and never waits.
fn hear(
    push: PushInfo,
    table: &Table,
    probes: &Probes,
    ended: &Notify,
    (control, orders): (&str, &Notify),
) -> Result<(), ()> {
    match push.kind {
        PushKind::Message => {
            let mut data = push.data.into_iter();
            if let (Some(Value::BulkString(name)), Some(Value::BulkString(message))) = (data.next(), data.next()) {
                match name.as_slice() {
                    name if name == probes.name.as_bytes() => probes.came(&message),
                    name if name == control.as_bytes() => orders.notify_one(),
                    name => table.hear(name, Bytes::from(message)),
                }
            }
        }
        PushKind::Disconnection => ended.notify_one(),
        _ => {}
    }
    Ok(())
}

impl Probes {
    fn expect(&self) -> (u64, oneshot::Receiver<()>) {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (tx, rx) = oneshot::channel();
        self.awaited().insert(number, tx);
        (number, rx)
    }

    fn came(&self, message: &[u8]) {
        let number = std::str::from_utf8(message).ok().and_then(|text| text.parse().ok());
        if let Some(tx) = number.and_then(|number: u64| self.awaited().remove(&number)) {
            // Whoever asked may have given up.
            let _ = tx.send(());
        }
    }

    fn forget(&self, number: u64) {
        self.awaited().remove(&number);
    }

    fn awaited(&self) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<()>>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
