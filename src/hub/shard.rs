//! The loop of one core: takes what its inbox holds, walks the subscribers, writes.
//!
//! This is the hot path, third of three. A turn takes what is there (up to 256 pushes) and never waits for more, so that
//! overload makes bigger batches and not longer queues: a channel's publications are joined into one buffer, encoded once
//! per format, and written to each socket in one piece. After 256 writes the shard yields. Start at [`Shard::run`].

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use foldhash::fast::RandomState;
use futures_util::FutureExt;
use slab::Slab;
use tokio::{sync::mpsc::UnboundedReceiver, task::yield_now};
use tracing::error;

use super::{
    Counters, Hub, Item, Limits,
    channels::{Channels, List, Local, Subscriber},
    connection::{Connection, End, Pong, Socket, Written},
    framing::Framer,
    outgoing::Outgoing,
    wheel::Wheel,
};
use crate::{
    config::WhenSlow,
    domain::{AppId, Channel, ConnectionId, Format, Position, Push},
    wire::{deflate::Inflater, frame},
};

/// The most that one turn takes from the inbox.
const TURN: usize = 256;
/// The most subscribers between two yields.
const WRITES: usize = 256;
/// The most bytes that publications are joined into.
const MAX_JOINED: usize = 128 << 10;
/// How long after a ping something must be heard.
const PONG_TIMEOUT: Duration = Duration::from_secs(10);
/// What one read may bring.
pub const SCRATCH_BYTES: usize = 64 << 10;
/// What the unfinished messages of all of a shard's connections may take together.
const MAX_UNFINISHED: usize = 128 << 20;

/// One core's share of the connections. Lives on one thread.
pub struct Shard {
    hub: Arc<Hub>,
    index: usize,
    connections: RefCell<Slab<Rc<Connection>>>,
    channels: RefCell<Channels>,
    framer: RefCell<Framer>,
    wheel: RefCell<Wheel>,
    scratch: RefCell<Box<[u8]>>,
    inflater: RefCell<Inflater>,
    unfinished_bytes: Cell<usize>,
    /// Writes since the last yield.
    writes: Cell<usize>,
}

impl Shard {
    /// How often send queues are summed up for the metrics: about every six seconds.
    const TICKS_BETWEEN_SUMS: u32 = 16;
    /// For how long the largest lag is told: about half a minute, and as long again.
    const TICKS_OF_LAG: u32 = 64;

    /// The shard with this number.
    pub fn new(hub: Arc<Hub>, index: usize) -> Rc<Self> {
        let wheel = Wheel::new(hub.limits().ping);
        Rc::new(Self {
            hub,
            index,
            connections: RefCell::default(),
            channels: RefCell::default(),
            framer: RefCell::new(Framer::new()),
            wheel: RefCell::new(wheel),
            scratch: RefCell::new(vec![0; SCRATCH_BYTES].into()),
            inflater: RefCell::new(Inflater::new()),
            unfinished_bytes: Cell::new(0),
            writes: Cell::new(0),
        })
    }

    /// Limits of each connection.
    pub fn limits(&self) -> &Limits {
        self.hub.limits()
    }

    /// The hub that it is a part of.
    pub fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// What it counts.
    pub fn counters(&self) -> &Counters {
        self.hub.counters(self.index)
    }

    /// Lends the buffer that all reads go through, and the decompressor, until `work` is done.
    pub fn with_scratch<T>(&self, work: impl FnOnce(&mut [u8], &mut Inflater) -> T) -> T {
        work(&mut self.scratch.borrow_mut(), &mut self.inflater.borrow_mut())
    }

    /// Notes that a connection's unfinished message has grown or shrunk. False: all of them together are too much.
    pub fn account_unfinished(&self, before: usize, after: usize) -> bool {
        let sum = self.unfinished_bytes.get() - before + after;
        self.unfinished_bytes.set(sum);
        after <= before || sum <= MAX_UNFINISHED
    }

    /// Takes a connection in: from here on it is counted, pinged and can be subscribed.
    pub fn adopt(self: &Rc<Self>, id: ConnectionId, app: AppId, format: Format, socket: Socket) -> Rc<Connection> {
        let connection = Rc::new(Connection::new(id, app, self, format, socket));
        let slot = self.connections.borrow_mut().insert(connection.clone()) as u32;
        connection.place_in(slot);
        self.counters().connections.add(1);
        let ping = self.limits().ping;
        // Spread over the round, so that a connect storm does not become a ping storm.
        connection.check_at.set(self.schedule(slot, ping.mul_f64(0.5 + rand::random::<f64>() / 2.0)));
        connection
    }

    /// Lets a connection go, out of the count and out of sight. It must have left its channels before.
    pub fn release(&self, connection: &Rc<Connection>) {
        let mut connections = self.connections.borrow_mut();
        if connections.try_remove(connection.slot() as usize).is_some() {
            self.counters().connections.sub(1);
        }
        if connections.is_empty() {
            connections.shrink_to_fit();
        }
    }

    /// Every connection.
    pub fn connections(&self) -> Vec<Rc<Connection>> {
        self.connections.borrow().iter().map(|(_, connection)| connection.clone()).collect()
    }

    /// Lets `each` see every channel that has subscribers here.
    pub fn for_each_channel(&self, mut each: impl FnMut(&Local)) {
        self.channels.borrow().iter().for_each(|local| each(local));
    }

    /// One channel, if it has subscribers here.
    pub fn channel(&self, channel: &Channel) -> Option<Rc<Local>> {
        self.channels.borrow().get(channel).cloned()
    }

    /// What `encode` writes, as one frame of `format`.
    pub fn frame(&self, format: Format, encode: impl FnOnce(&mut Vec<u8>)) -> Bytes {
        self.framer.borrow_mut().frame(format, encode)
    }

    /// A push for one connection alone, as a frame.
    pub fn frame_push(&self, format: Format, push: &Push) -> Bytes {
        self.frame(format, |out| self.hub.encode(format, push, out))
    }

    /// The bytes of a push that may go to many connections.
    pub fn encoded(&self, format: Format, push: &Outgoing) -> Bytes {
        push.encoded(format, |push| self.frame_push(format, push)).clone()
    }

    /// As [`Shard::schedule`], but adds nothing where the same tick is wished for again.
    pub(super) fn schedule_anew(&self, slot: u32, delay: Duration, before: u32) -> u32 {
        let mut wheel = self.wheel.borrow_mut();
        match wheel.due(delay) == before {
            true => before,
            false => wheel.schedule(slot, delay),
        }
    }

    /// How long until a tick that is to come.
    pub(super) fn time_until(&self, due: u32) -> Duration {
        let wheel = self.wheel.borrow();
        wheel.tick() * due.wrapping_sub(wheel.now())
    }

    pub(super) fn schedule(&self, slot: u32, delay: Duration) -> u32 {
        self.wheel.borrow_mut().schedule(slot, delay)
    }

    pub(super) fn enter(&self, channel: &Channel) -> (Rc<Local>, bool) {
        let mut channels = self.channels.borrow_mut();
        let (local, is_new) = channels.enter(channel);
        self.counters().channels.set(channels.len());
        (local, is_new && self.hub.interest().enter(channel, self.index))
    }

    /// True: no shard of this node has subscribers there any more.
    pub(super) fn leave(&self, channel: &Channel) -> bool {
        let mut channels = self.channels.borrow_mut();
        channels.remove(channel);
        self.counters().channels.set(channels.len());
        self.hub.interest().leave(channel, self.index)
    }

    /// Serves until the hub is gone.
    pub async fn run(self: Rc<Self>, mut inbox: UnboundedReceiver<Item>) {
        let mut items = Vec::with_capacity(TURN);
        let mut pushes = Vec::with_capacity(TURN);
        loop {
            if inbox.recv_many(&mut items, TURN).await == 0 {
                return;
            }
            self.hub.taken(self.index, items.len());
            for item in items.drain(..) {
                match item {
                    Item::Push(push) => pushes.push(push),
                    Item::Task(task) => {
                        self.deliver_or_survive(&mut pushes).await;
                        if catch_unwind(AssertUnwindSafe(|| task(&self))).is_err() {
                            error!("a task panicked on its shard; the shard goes on");
                        }
                    }
                }
            }
            self.deliver_or_survive(&mut pushes).await;
        }
    }

    /// Delivers; a panic costs these pushes and nothing else.
    async fn deliver_or_survive(&self, pushes: &mut Vec<Arc<Outgoing>>) {
        if AssertUnwindSafe(self.deliver(pushes)).catch_unwind().await.is_err() {
            error!(pushes = pushes.len(), "a delivery panicked; the shard goes on");
            pushes.clear();
        }
    }

    /// Turns the wheel for ever.
    pub async fn tick(self: Rc<Self>) {
        let tick = self.wheel.borrow().tick();
        let mut interval = tokio::time::interval(tick);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
        let (mut due, mut worst, mut worst_before) = (Vec::new(), 0, 0);
        loop {
            let at = interval.tick().await;
            // The worst of the last minute or so, since nobody looks just when it happens.
            worst = worst.max(at.elapsed().as_micros() as usize);
            self.counters().lag_micros.set(worst.max(worst_before));
            self.wheel.borrow_mut().turn(&mut due);
            let now = self.wheel.borrow().now();
            if now.is_multiple_of(Self::TICKS_OF_LAG) {
                worst_before = std::mem::take(&mut worst);
            }
            if now.is_multiple_of(Self::TICKS_BETWEEN_SUMS) {
                let queued = self.connections.borrow().iter().map(|(_, connection)| connection.queued_bytes()).sum();
                self.counters().queued_bytes.set(queued);
            }
            for entry in due.drain(..) {
                let connection = self.connections.borrow().get(entry.slot as usize).cloned();
                let Some(connection) = connection else { continue };
                if connection.alarm_at.get() == now {
                    connection.ring();
                }
                if connection.message_at.get() == now {
                    connection.message_is_due();
                }
                if connection.check_at.get() == now {
                    self.check(&connection);
                }
            }
        }
    }

    /// Pings a connection once in every interval, whatever else it says and hears: clients count on it. Ends one that
    /// was not heard for [`PONG_TIMEOUT`] after a ping.
    ///
    /// It is looked at after a ping and after a pong's time, whichever is sooner; with an interval shorter than a pong's
    /// time the second look comes at the end of that.
    fn check(&self, connection: &Rc<Connection>) {
        let interval = self.limits().ping;
        let next = match connection.pong() {
            Pong::Awaited { late } if late || PONG_TIMEOUT <= interval => return connection.end(End::Silent),
            Pong::Awaited { .. } => {
                connection.is_late();
                PONG_TIMEOUT - interval
            }
            Pong::Answered { late: false } if PONG_TIMEOUT < interval => interval - PONG_TIMEOUT,
            Pong::Answered { .. } | Pong::Unasked => self.ping(connection),
        };
        connection.check_at.set(self.schedule(connection.slot(), next));
    }

    /// Pings, and says when to look at the connection again.
    fn ping(&self, connection: &Rc<Connection>) -> Duration {
        match connection.format() {
            // A stream of events never answers; TCP finds out whether it lives.
            Format::NativeEvents => {
                if connection.queued_bytes() == 0 {
                    connection.send(Bytes::from_static(b":\n\n"));
                }
                self.limits().ping
            }
            Format::Native | Format::NativeDeflated => {
                // Behind more than may wait a ping would come too late to mean anything; taking bytes is a sign of life.
                if connection.queued_bytes() <= self.limits().send_queue {
                    connection.send(frame::ping(b""));
                }
                connection.note_ping();
                self.limits().ping.min(PONG_TIMEOUT)
            }
        }
    }

    /// Delivers pushes, each channel's in order.
    async fn deliver(&self, pushes: &mut Vec<Arc<Outgoing>>) {
        match &pushes[..] {
            [] => return,
            [push] => self.walk(std::slice::from_ref(push)).await,
            [first, rest @ ..] if rest.iter().all(|push| push.channel() == first.channel()) => {
                self.deliver_channel(pushes).await;
            }
            _ => {
                for group in by_channel(pushes) {
                    self.deliver_channel(&group).await;
                }
            }
        }
        pushes.clear();
    }

    /// Delivers pushes of one channel, as few writes as order and size allow.
    async fn deliver_channel(&self, pushes: &[Arc<Outgoing>]) {
        let mut rest = pushes;
        while !rest.is_empty() {
            let (run, later) = rest.split_at(run_length(rest));
            self.walk(run).await;
            rest = later;
        }
    }

    /// Sends a run of one channel's pushes to all its subscribers.
    async fn walk(&self, run: &[Arc<Outgoing>]) {
        let Some(local) = self.channel(run[0].channel()) else { return };
        let walk = Walk { shard: self, local: &local, run, excluding: run.iter().any(|push| push.exclude().is_some()) };
        let mut sent = 0;
        {
            let _walking = local.walk();
            for format in Format::ALL {
                sent += walk.send(format).await;
            }
        }
        let counters = self.counters();
        counters.deliveries.add(sent * run.len());
        let now = Instant::now();
        for push in run {
            counters.delivery_time.observe(now.saturating_duration_since(push.accepted()));
        }
        self.yield_after_writes(sent).await;
    }

    /// Lets others have their turn once enough was written, over however many channels. A push that nobody gets costs
    /// something too.
    async fn yield_after_writes(&self, writes: usize) {
        let done = self.writes.get() + writes.max(1);
        self.writes.set(done % WRITES);
        if WRITES <= done {
            yield_now().await;
        }
    }
}

/// One run of pushes on its way through one channel's lists.
struct Walk<'a> {
    shard: &'a Shard,
    local: &'a Local,
    run: &'a [Arc<Outgoing>],
    /// Whether some connection does not get some of it.
    excluding: bool,
}

impl Walk<'_> {
    /// Sends to the subscribers of one format; returns how many there were.
    async fn send(&self, format: Format) -> usize {
        let subscribers = self.local.lists.borrow()[format as usize].subscribers.len();
        if subscribers == 0 {
            return 0;
        }
        let bytes = self.joined(format);
        let (mut at, mut sent) = (0, 0);
        loop {
            let end = subscribers.min(at + WRITES);
            sent += self.send_to(&mut self.local.lists.borrow_mut()[format as usize], at..end, &bytes);
            at = end;
            if at == subscribers {
                return sent;
            }
            yield_now().await;
        }
    }

    fn send_to(&self, list: &mut List, places: std::ops::Range<usize>, bytes: &Bytes) -> usize {
        let presence = self.run[0].is_presence();
        let mut sent = 0;
        for subscriber in list.subscribers[places].iter_mut().flatten() {
            if presence && !subscriber.watches {
                continue;
            }
            if subscriber.apart {
                subscriber.connection.keep_apart(self.local.channel(), self.run);
                continue;
            }
            sent += 1;
            if subscriber.settling {
                self.settle(subscriber);
                continue;
            }
            let written = match self.excluding && self.excludes(subscriber.connection.id()) {
                false => subscriber.connection.write(bytes, self.run.len() as u64),
                true => self.send_some(&subscriber.connection, self.run),
            };
            if written == Written::Full {
                self.fall_behind(subscriber, self.run);
            }
        }
        sent
    }

    /// Sends what is new to a subscriber that went live a moment ago.
    fn settle(&self, subscriber: &mut Subscriber) {
        let was_sent = |push: &&Arc<Outgoing>| push.position().is_some_and(|position| subscriber.was_sent(position));
        let (_, new) = self.run.split_at(self.run.iter().take_while(was_sent).count());
        if new.iter().any(|push| push.position().is_some()) {
            subscriber.settling = false;
        }
        if self.send_some(&subscriber.connection, new) == Written::Full {
            self.fall_behind(subscriber, new);
        }
    }

    fn excludes(&self, id: ConnectionId) -> bool {
        self.run.iter().any(|push| push.exclude() == Some(id))
    }

    /// Sends what of a run one connection is not excluded from.
    fn send_some(&self, connection: &Rc<Connection>, run: &[Arc<Outgoing>]) -> Written {
        let wanted = run.iter().filter(|push| push.exclude() != Some(connection.id()));
        let mut bytes = BytesMut::new();
        let mut frames = 0;
        for push in wanted {
            bytes.extend_from_slice(&self.shard.encoded(connection.format(), push));
            frames += 1;
        }
        match frames {
            0 => Written::Taken,
            _ => connection.write(&bytes.freeze(), frames),
        }
    }

    fn fall_behind(&self, subscriber: &mut Subscriber, run: &[Arc<Outgoing>]) {
        let first = run[0].position();
        match (self.shard.limits().when_slow, first) {
            (WhenSlow::CatchUp, Some(Position { epoch, offset })) => {
                let last = Position { epoch, offset: offset.previous() };
                subscriber.apart = true;
                subscriber.connection.fall_behind(self.local.channel(), last);
                self.shard.counters().caught_behind.add(1);
            }
            _ => {
                subscriber.connection.end(End::Slow);
            }
        }
    }

    /// The run's bytes in one buffer.
    fn joined(&self, format: Format) -> Bytes {
        if let [push] = self.run {
            return self.shard.encoded(format, push);
        }
        let mut bytes = BytesMut::with_capacity(self.run.len() * 256);
        for push in self.run {
            bytes.extend_from_slice(&self.shard.encoded(format, push));
        }
        bytes.freeze()
    }
}

/// How many of one channel's pushes, from the first on, can go out as one: alike, and not too much.
fn run_length(pushes: &[Arc<Outgoing>]) -> usize {
    let presence = pushes[0].is_presence();
    let mut bytes = 0;
    let fits = |push: &&Arc<Outgoing>| {
        if let Push::Publication(publication) = push.push() {
            bytes += publication.event.data.as_bytes().len() + 256;
        }
        push.is_presence() == presence && bytes <= MAX_JOINED
    };
    pushes.iter().take_while(fits).count().max(1)
}

/// Pushes by channel: channels in the order of their first push, each channel's pushes in their own.
fn by_channel(pushes: &[Arc<Outgoing>]) -> Vec<Vec<Arc<Outgoing>>> {
    let mut groups: Vec<Vec<Arc<Outgoing>>> = Vec::new();
    let mut group_of: HashMap<&Channel, usize, RandomState> = HashMap::default();
    for push in pushes {
        let group = *group_of.entry(push.channel()).or_insert_with(|| {
            groups.push(Vec::new());
            groups.len() - 1
        });
        groups[group].push(push.clone());
    }
    groups
}
