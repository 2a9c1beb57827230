//! This node's table of connections and their subscriptions, and fan-out: handing one push to every local subscriber.
//!
//! The hub is split into shards, one per core, each on a thread of its own. Only a connection's own shard writes to it, and
//! nothing is locked on the way from a shard's inbox to the socket. The hub knows no client protocol (it is given an
//! [`Encode`]) and no broker, and it never waits. Start at [`Hub::fan_out`], then [`shard::Shard::run`].

mod channels;
pub mod connection;
mod counters;
mod framing;
mod interest;
mod outgoing;
mod send_queue;
pub mod shard;
mod subscription;
mod wheel;

use std::{
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::{
    Notify,
    mpsc::{self, UnboundedReceiver, UnboundedSender},
    oneshot,
};

pub use self::{
    channels::Local,
    connection::{Connection, Control, End, Gone, Socket, Wake, until},
    counters::{Counters, Figure, Times},
    interest::{Interest, MAX_SHARDS},
    outgoing::Outgoing,
    shard::{SCRATCH_BYTES, Shard},
    subscription::Overflowed,
};
use crate::{
    config::WhenSlow,
    domain::{Channel, Format, Push},
};

/// Writes a push as the payload of a format. What a codec does, so that the hub needs to know none.
pub type Encode = fn(Format, &Push, &mut Vec<u8>);

/// Pushes that may wait in a shard's inbox before publishers have to.
const MAX_WAITING: usize = 8_192;

/// Limits of each connection.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes that may wait for one.
    pub send_queue: usize,
    /// What happens to one for which more would wait.
    pub when_slow: WhenSlow,
    /// The interval between pings.
    pub ping: Duration,
}

/// Something to do on a shard's thread.
pub type Task = Box<dyn FnOnce(&Rc<Shard>) + Send>;

/// What a shard's inbox takes.
pub enum Item {
    /// Something to deliver.
    Push(Arc<Outgoing>),
    /// Something to do on the shard's thread, after all that was put in before.
    Task(Task),
}

/// All shards of this node.
pub struct Hub {
    shards: Box<[Entrance]>,
    interest: Interest,
    limits: Limits,
    encode: Encode,
    /// Wakes publishers when an inbox has room again.
    room: Notify,
}

/// The way into a shard.
struct Entrance {
    inbox: UnboundedSender<Item>,
    waiting: AtomicUsize,
    counters: Counters,
}

/// A shard's inbox could not take more in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this node is overloaded")]
pub struct Overloaded;

impl Hub {
    /// A hub of `shards` shards, and their inboxes.
    pub fn new(shards: usize, limits: Limits, encode: Encode) -> (Arc<Self>, Vec<UnboundedReceiver<Item>>) {
        let (entrances, inboxes) = (0..shards.clamp(1, MAX_SHARDS))
            .map(|_| {
                let (inbox, rx) = mpsc::unbounded_channel();
                (Entrance { inbox, waiting: AtomicUsize::new(0), counters: Counters::default() }, rx)
            })
            .unzip::<_, _, Vec<_>, Vec<_>>();
        let hub = Self { shards: entrances.into(), interest: Interest::new(), limits, encode, room: Notify::new() };
        (Arc::new(hub), inboxes)
    }

    /// Hands a push to every local subscriber of its channel. Pushes of one channel must come one after the other; they
    /// reach each subscriber in that order.
    pub fn fan_out(&self, push: Arc<Outgoing>) {
        let mut shards = self.interest.shards(push.channel());
        while shards != 0 {
            let shard = shards.trailing_zeros() as usize;
            shards &= shards - 1;
            self.put(shard, Item::Push(push.clone()));
        }
    }

    /// Waits until every inbox has room, so that publishers cannot outrun the sockets without end.
    ///
    /// # Errors
    /// [`Overloaded`], after `deadline`.
    pub async fn room(&self, deadline: Duration) -> Result<(), Overloaded> {
        if self.has_room() {
            return Ok(());
        }
        let waiting = async {
            loop {
                let notified = self.room.notified();
                if self.has_room() {
                    return;
                }
                notified.await;
            }
        };
        tokio::time::timeout(deadline, waiting).await.map_err(|_| Overloaded)
    }

    /// Runs `task` on every shard's thread and gathers what it returns, in the order of the shards. Shards that have
    /// ended are left out.
    pub async fn on_every_shard<T: Send + 'static>(
        &self,
        task: impl Fn(&Rc<Shard>) -> T + Clone + Send + 'static,
    ) -> Vec<T> {
        let answers: Vec<_> = (0..self.shards.len())
            .map(|shard| {
                let (tx, rx) = oneshot::channel();
                let task = task.clone();
                self.put(
                    shard,
                    Item::Task(Box::new(move |shard| {
                        // Who asked may be gone by now.
                        let _ = tx.send(task(shard));
                    })),
                );
                rx
            })
            .collect();
        let mut gathered = Vec::with_capacity(answers.len());
        for answer in answers {
            gathered.extend(answer.await);
        }
        gathered
    }

    /// Runs `task` on the thread of shard number `shard`.
    pub fn on_shard(&self, shard: usize, task: impl FnOnce(&Rc<Shard>) + Send + 'static) {
        self.put(shard, Item::Task(Box::new(task)));
    }

    /// Limits of each connection.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Which shards want which channel.
    pub fn interest(&self) -> &Interest {
        &self.interest
    }

    /// Whether a channel has subscribers on this node.
    pub fn is_wanted(&self, channel: &Channel) -> bool {
        self.interest.is_wanted(channel)
    }

    /// What the shard with this number counts.
    pub fn counters(&self, shard: usize) -> &Counters {
        &self.shards[shard].counters
    }

    /// What every shard counts.
    pub fn all_counters(&self) -> impl Iterator<Item = &Counters> {
        self.shards.iter().map(|shard| &shard.counters)
    }

    /// Pushes and tasks that wait in the inboxes.
    pub fn waiting(&self) -> usize {
        self.shards.iter().map(|shard| shard.waiting.load(Ordering::Relaxed)).sum()
    }

    /// Bytes that wait for slow connections.
    pub fn queued_bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.counters.queued_bytes.get()).sum()
    }

    /// How many shards it has.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Connections now.
    pub fn connections(&self) -> usize {
        self.shards.iter().map(|shard| shard.counters.connections.get()).sum()
    }

    fn encode(&self, format: Format, push: &Push, out: &mut Vec<u8>) {
        (self.encode)(format, push, out);
    }

    fn put(&self, shard: usize, item: Item) {
        let entrance = &self.shards[shard];
        entrance.waiting.fetch_add(1, Ordering::Relaxed);
        // It fails only after the shard has ended, when nobody is left to deliver to.
        let _ = entrance.inbox.send(item);
    }

    fn taken(&self, shard: usize, items: usize) {
        let before = self.shards[shard].waiting.fetch_sub(items, Ordering::Relaxed);
        if MAX_WAITING <= before {
            self.room.notify_waiters();
        }
    }

    fn has_room(&self) -> bool {
        self.shards.iter().all(|shard| shard.waiting.load(Ordering::Relaxed) < MAX_WAITING)
    }
}
