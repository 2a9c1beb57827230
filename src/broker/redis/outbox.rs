//! Publications on their way into Redis, and those that wait while it is away.
//!
//! One task per primary drains what waits into one pipeline and answers each publisher when Redis has. So order holds for
//! each channel, and load makes larger batches, not longer queues. What was sent and not answered is sent again on the
//! next connection, before anything newer: the script knows it by the node's own number (see `lua/publish.lua`), however
//! late the first copy arrives. Start at [`Outbox::offer`], then [`Courier::run`].

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use foldhash::fast::RandomState;
use redis::{Cmd, Pipeline, Value, aio::ConnectionLike};
use tokio::sync::{mpsc as queue, oneshot};

use super::{
    keys::{Keys, NUMBERING},
    script::{self, Script},
    server::{ANSWER, Live, Server, State, describe},
    wire,
};
use crate::{
    broker::{Accepted, BrokerError, IDEMPOTENCY_WINDOW, Submission},
    domain::{Channel, Position, PublicationId},
};

/// The most publications in one batch.
const BATCH: usize = 512;
/// The most bytes in one batch, unless a single publication has more.
const BATCH_BYTES: usize = 4 << 20;
/// What a waiting publication takes beside its data, about.
const ENTRY_BYTES: usize = 512;
/// How often what waits is looked through for what has waited too long.
const LOOK: Duration = Duration::from_millis(50);
/// How long Redis may wait for its replicas; less than a command may take.
const REPLICAS: Duration = Duration::from_millis(1500);

/// The way into the task.
pub(super) struct Outbox {
    tx: queue::UnboundedSender<Entry>,
    limits: Limits,
    /// Bytes that wait or are under way.
    bytes: Arc<AtomicUsize>,
}

/// What bounds it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes that may wait.
    pub bytes: usize,
    /// How long each may wait.
    pub deadline: Duration,
    /// Replicas that must have a publication before it counts as published.
    pub replica_acks: usize,
}

/// What publishing is told of its surroundings.
pub(super) struct Settings {
    pub keys: Keys,
    /// The field in which this node's numbers stand.
    pub field: String,
    pub limits: Limits,
}

/// One publication.
struct Entry {
    submission: Submission,
    body: Bytes,
    /// This node's number for it: each is above the last. 0 until it is first sent.
    number: u64,
    came: Instant,
    /// It was sent on a connection that broke before the answer.
    in_doubt: bool,
    room: Room,
    answer: oneshot::Sender<Result<Accepted, BrokerError>>,
}

/// The bytes that an entry takes, given back when it is gone.
struct Room {
    bytes: usize,
    all: Arc<AtomicUsize>,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The task.
pub(super) struct Courier {
    rx: queue::UnboundedReceiver<Entry>,
    waiting: VecDeque<Entry>,
    server: Arc<Server>,
    settings: Settings,
    numbers: u64,
    acknowledged: Arc<Acknowledged>,
}

/// The last positions that this node has acknowledged, in some channels: what must still be there after a restart of
/// Redis. Half of them are forgotten when they become too many.
#[derive(Default)]
pub(super) struct Acknowledged(Mutex<HashMap<Channel, Position, RandomState>>);

impl Acknowledged {
    const MOST: usize = 1024;

    fn note(&self, channel: &Channel, position: Position) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if Self::MOST <= known.len() && !known.contains_key(channel) {
            let mut keep = false;
            known.retain(|_, _| {
                keep = !keep;
                keep
            });
        }
        known.insert(channel.clone(), position);
    }

    /// All of them.
    pub fn all(&self) -> Vec<(Channel, Position)> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().map(|(channel, position)| (channel.clone(), *position)).collect()
    }
}

impl Outbox {
    pub fn new(server: Arc<Server>, settings: Settings) -> (Self, Courier) {
        let (tx, rx) = queue::unbounded_channel();
        let limits = settings.limits;
        let acknowledged = Arc::default();
        let courier = Courier { rx, waiting: VecDeque::new(), server, settings, numbers: 0, acknowledged };
        (Self { tx, limits, bytes: Arc::default() }, courier)
    }

    /// Bytes that wait or are under way.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Puts a publication in; what becomes of it is answered.
    ///
    /// # Errors
    /// There is no room.
    pub fn offer(
        &self,
        submission: Submission,
    ) -> Result<oneshot::Receiver<Result<Accepted, BrokerError>>, BrokerError> {
        let body = match submission.retention.is_some() || submission.key.is_some() {
            true => wire::body(&submission),
            false => wire::passing(&submission),
        };
        let bytes = body.len() + ENTRY_BYTES;
        let taken = |held: usize| (held + bytes <= self.limits.bytes).then_some(held + bytes);
        if self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).is_err() {
            return Err(BrokerError::Unavailable("Redis is away or slow, and broker.queue_while_away is full".into()));
        }
        let room = Room { bytes, all: self.bytes.clone() };
        let (answer, answered) = oneshot::channel();
        let entry =
            Entry { submission, body: body.into(), number: 0, came: Instant::now(), in_doubt: false, room, answer };
        self.tx.send(entry).map_err(|_| BrokerError::Unavailable("this node is shutting down".into()))?;
        Ok(answered)
    }
}

impl Courier {
    /// What it has acknowledged.
    pub fn acknowledged(&self) -> Arc<Acknowledged> {
        self.acknowledged.clone()
    }

    /// Carries until the outbox is gone.
    pub async fn run(mut self) {
        let mut state = self.server.watch();
        let mut arrived = Vec::with_capacity(BATCH);
        loop {
            if self.waiting.is_empty() && self.rx.recv_many(&mut arrived, BATCH).await == 0 {
                return;
            }
            while arrived.len() < BATCH
                && let Ok(entry) = self.rx.try_recv()
            {
                arrived.push(entry);
            }
            self.waiting.extend(arrived.drain(..));
            self.drop_overdue();
            let live = match &*state.borrow_and_update() {
                State::Live(live) => Some(live.as_ref().clone()),
                State::Away(_) | State::Starting => None,
            };
            let made_way = match live {
                Some(live) => self.carry(live).await,
                None => false,
            };
            if !made_way {
                tokio::select! {
                    _ = state.changed() => {}
                    count = self.rx.recv_many(&mut arrived, BATCH) => if count == 0 { return },
                    () = tokio::time::sleep(LOOK) => {}
                }
            }
        }
    }

    /// Takes out what has waited too long, the oldest of which stands first.
    fn drop_overdue(&mut self) {
        let deadline = self.settings.limits.deadline;
        while self.waiting.front().is_some_and(|entry| deadline <= entry.came.elapsed()) {
            let Some(entry) = self.waiting.pop_front() else { return };
            let error = match entry.in_doubt {
                true => BrokerError::Unanswered,
                false => BrokerError::Unavailable(match self.server.live() {
                    Err(error) => error.to_string(),
                    Ok(_) => "Redis was away for longer than broker.queue_deadline".into(),
                }),
            };
            entry.answer(Err(error));
        }
    }

    /// Sends one batch and answers its publishers. False: it is to be tried again, later.
    async fn carry(&mut self, mut live: Live) -> bool {
        let count = self.batch();
        let mut pipeline = Pipeline::with_capacity(count + 1);
        for entry in self.waiting.iter_mut().take(count) {
            if entry.number == 0 {
                self.numbers += 1;
                entry.number = self.numbers;
            }
            pipeline.add_command(command(&self.settings, &live, entry));
        }
        let replicas = self.settings.limits.replica_acks;
        if 0 < replicas {
            pipeline.cmd("WAIT").arg(replicas).arg(REPLICAS.as_millis() as u64);
        }
        let commands = pipeline.len();
        let sent = live.publishing.req_packed_commands(&pipeline, 0, commands);
        // The crate has the same time limit; this one is for a pipeline that cannot even be handed over.
        let answers = match tokio::time::timeout(2 * ANSWER, sent).await {
            Ok(Ok(answers)) if answers.len() == commands => answers,
            broken => {
                let why = match broken {
                    Ok(Err(error)) => describe(&error),
                    _ => "no answer".into(),
                };
                self.doubt(count, &live, &why);
                return false;
            }
        };
        self.server.heard_of();
        self.settle(count, answers, &mut live).await
    }

    /// How many of those that wait make one batch.
    fn batch(&self) -> usize {
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            bytes += entry.room.bytes;
            bytes <= BATCH_BYTES
        };
        self.waiting.iter().take(BATCH).take_while(fits).count().max(1)
    }

    /// The connection broke with `count` under way: those that may be sent again wait in front.
    fn doubt(&mut self, count: usize, live: &Live, why: &str) {
        self.server.failed(live.generation, why);
        let mut again = VecDeque::with_capacity(count);
        for mut entry in self.waiting.drain(..count) {
            entry.in_doubt = true;
            // Without history and key nobody could tell whether it is in: at most once.
            match entry.submission.retention.is_some() || entry.submission.key.is_some() {
                true => again.push_back(entry),
                false => entry.answer(Err(BrokerError::Unanswered)),
            }
        }
        again.append(&mut self.waiting);
        self.waiting = again;
    }

    /// Answers the publishers of a batch. What Redis cannot take just now waits on, in its order.
    async fn settle(&mut self, count: usize, mut answers: Vec<Value>, live: &mut Live) -> bool {
        let replicated = match 0 < self.settings.limits.replica_acks {
            true => enough_replicas(answers.pop(), self.settings.limits.replica_acks),
            false => true,
        };
        let mut again = VecDeque::new();
        let (mut unknown, mut elsewhere) = (false, false);
        for (entry, answer) in self.waiting.drain(..count).collect::<Vec<_>>().into_iter().zip(answers) {
            match outcome(&entry, answer) {
                Outcome::Done(result) if replicated => {
                    if let Ok(Accepted { position: Some(position), .. }) = &result {
                        self.acknowledged.note(&entry.submission.channel, *position);
                    }
                    entry.answer(result);
                }
                // It is in, but not where it would survive.
                Outcome::Done(Ok(_)) => entry.answer(Err(BrokerError::Unanswered)),
                Outcome::Done(refused) => entry.answer(refused),
                Outcome::Unknown => {
                    unknown = true;
                    again.push_back(entry);
                }
                Outcome::Later => {
                    elsewhere = true;
                    again.push_back(entry);
                }
            }
        }
        again.append(&mut self.waiting);
        self.waiting = again;
        if unknown && self.server.load(live).await.is_err() {
            return false;
        }
        if elsewhere {
            self.server.failed(live.generation, "it cannot be written to");
        }
        !elsewhere
    }
}

impl Entry {
    fn answer(self, result: Result<Accepted, BrokerError>) {
        // The publisher may have gone away.
        let _ = self.answer.send(result);
    }
}

/// What became of one publication.
enum Outcome {
    Done(Result<Accepted, BrokerError>),
    /// The server does not know the script.
    Unknown,
    /// The server cannot take it just now, and did not.
    Later,
}

fn outcome(entry: &Entry, answer: Value) -> Outcome {
    let error = match answer.extract_error() {
        Ok(Value::Array(parts)) => return Outcome::Done(accepted(&parts)),
        // A plain publish answers with how many heard it.
        Ok(_) => return Outcome::Done(Ok(Accepted { id: entry.submission.id, position: None })),
        Err(error) => error,
    };
    let text = describe(&error);
    if script::is_unknown(&text) {
        return Outcome::Unknown;
    }
    let passing = ["ERA", "READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "MOVED", "ASK", "UNBLOCKED"];
    match error.code() {
        Some(code) if passing.contains(&code) => Outcome::Later,
        // The first copy may be in all the same.
        _ if entry.in_doubt => Outcome::Done(Err(BrokerError::Unanswered)),
        _ => Outcome::Done(Err(BrokerError::Unavailable(format!("Redis says: {text}")))),
    }
}

/// What the script answers.
fn accepted(parts: &[Value]) -> Result<Accepted, BrokerError> {
    let text = |at: usize| match parts.get(at) {
        Some(Value::BulkString(bytes)) => bytes.as_slice(),
        _ => b"",
    };
    let id = std::str::from_utf8(text(1)).ok().and_then(|id| id.parse::<PublicationId>().ok());
    match (text(0), id) {
        (b"new" | b"known", Some(id)) => {
            let position: Option<Position> = wire::position(text(2), text(3));
            Ok(Accepted { id, position })
        }
        // In, at a place that history does not tell any more.
        _ => Err(BrokerError::Unanswered),
    }
}

fn enough_replicas(answer: Option<Value>, wanted: usize) -> bool {
    matches!(answer, Some(Value::Int(replicas)) if wanted as i64 <= replicas)
}

fn command(settings: &Settings, live: &Live, entry: &Entry) -> Cmd {
    let Settings { keys, field, .. } = settings;
    let Entry { submission, body, number, .. } = entry;
    let Submission { channel, id, key, retention, .. } = submission;
    let relay = keys.relay(channel);
    if retention.is_none() && key.is_none() {
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(relay).arg(&body[..]);
        return publish;
    }
    let mut all = vec![keys.numbering(channel), keys.stream(channel)];
    all.extend(key.as_ref().map(|key| keys.idempotency(channel, key)));
    let (size, ttl) = retention.map_or((0, Duration::ZERO), |retention| (retention.size, retention.ttl));
    let mut call = Script::Publish.call(live.dialect, &all);
    call.arg(relay).arg("PUBLISH").arg(&body[..]).arg(&id.encode()[..]);
    call.arg(size).arg(millis(ttl)).arg(numbering_ttl(ttl)).arg(fresh_epoch());
    call.arg(&live.era[..]).arg(field).arg(*number).arg(millis(IDEMPOTENCY_WINDOW)).arg(keys.era());
    call
}

/// How long a channel's numbering lives, in milliseconds.
pub(super) fn numbering_ttl(ttl: Duration) -> u64 {
    millis(ttl.saturating_add(NUMBERING))
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).clamp(1, 1 << 52)
}

/// An epoch that no channel had yet.
pub(super) fn fresh_epoch() -> String {
    crate::domain::Epoch::from_bits(rand::random()).to_string()
}
