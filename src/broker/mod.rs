//! Carries publications between nodes and keeps each channel's history. Start at [`Broker`], the contract.
//!
//! Two implementations: [`memory`], everything in this process, and [`redis`], shared by any number of nodes.
//! `tests/broker_contract.rs` holds both to the contract.

mod control;
pub mod memory;
mod presence;
pub mod redis;

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;

pub use self::{
    control::{Commander, Deed, Dismissal, ORDERS_KEPT, Order, Target},
    presence::PresenceStore,
};
use crate::domain::{
    Channel, ConnectionId, Event, HistoryQuery, IdempotencyKey, Member, Position, Publication, PublicationId,
    Publisher, Revocation, UnixMillis, UserId,
};

/// How much history a channel keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// The newest this many publications.
    pub size: usize,
    /// And none older than this.
    pub ttl: Duration,
}

/// An event on its way into the broker.
#[derive(Clone, Debug)]
pub struct Submission {
    /// Where to.
    pub channel: Channel,
    /// What.
    pub event: Event,
    /// The id it gets, unless its key names a publication that is in already.
    pub id: PublicationId,
    /// When this node took it.
    pub time: UnixMillis,
    /// Who published it, where subscribers may see that.
    pub from: Option<Publisher>,
    /// A connection that does not get it.
    pub exclude: Option<ConnectionId>,
    /// What makes a retry of it recognisable.
    pub key: Option<ScopedKey>,
    /// Whether and how it is kept; `None` for at most once.
    pub retention: Option<Retention>,
}

/// An idempotency key, together with whose it is: nobody can answer for somebody else's publications.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ScopedKey {
    /// Whose key it is.
    pub scope: KeyScope,
    /// The key.
    pub key: IdempotencyKey,
}

/// Whose idempotency key it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KeyScope {
    /// A user's.
    User(UserId),
    /// An anonymous client's; all of them are one.
    Anonymous,
    /// The application's servers'; all API keys are one.
    Server,
}

/// For how long the same key is recognised.
pub const IDEMPOTENCY_WINDOW: Duration = Duration::from_secs(5 * 60);

/// The most bytes of data, names and tags that one answer to [`Broker::history`] holds, unless a single publication has
/// more. An answer becomes one frame, and a thousand publications of 64 KiB would be too much for one.
pub const MAX_HISTORY_BYTES: usize = 256 * 1024;

/// What the broker has done with a submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The publication's id: that of the first one with the same key.
    pub id: PublicationId,
    /// Its place in history, where that is kept.
    pub position: Option<Position>,
}

/// A part of a channel's history.
#[derive(Clone, Debug)]
pub struct History {
    /// The newest position. A channel without publications stands at offset 0 of the epoch of its first one.
    pub top: Position,
    /// The oldest offset that can still be read is the one after this.
    pub trimmed: crate::domain::Offset,
    /// What was asked for, or its first part in the order asked for: see [`Broker::history`].
    pub publications: Vec<Arc<Publication>>,
}

/// What a broker hands to every node that listens.
#[derive(Clone, Debug)]
pub enum Relayed {
    /// A publication.
    Publication(Arc<Publication>),
    /// Somebody entered a channel's presence.
    Join(Channel, Member),
    /// Somebody left it.
    Leave(Channel, Member),
    /// A channel's history was lost or dropped; from here on it counts anew.
    Reset(Channel, Position),
    /// Publications after this position did not reach this node and are gone from history. What history has after them
    /// follows.
    Lost(Channel, Position),
    /// The application wants something of connections, and how long ago it said so: who came since is not meant.
    Order(Order, Duration),
    /// Tokens count no more; it may have been told before.
    Revoked(Revocation),
}

/// The node's side of the relay. Never waits: it is called while the broker holds a channel's order.
pub trait Listener: Send + Sync {
    /// Takes what was relayed. For one channel calls come in order, one at a time.
    fn relayed(&self, relayed: Relayed);

    /// Whether what is handed over now finds room. Where it does not, publications that history keeps are handed over
    /// later, and others are lost.
    fn has_room(&self) -> bool {
        true
    }

    /// Completes once there is room, or after some seconds.
    fn room(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// Why a broker could not do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// It was not done; trying again is safe.
    #[error("the broker cannot take it now: {0}")]
    Unavailable(String),
    /// It was sent and the answer never came, so it may be done or not; retry only with an idempotency key.
    #[error("the broker did not answer in time")]
    Unanswered,
}

/// A broker in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BrokerFigures {
    /// Bytes of publications that wait for it.
    pub queued_bytes: usize,
    /// Channels that this node listens to.
    pub listened: usize,
    /// Those of them that it does not hear just now.
    pub unheard: usize,
    /// Messages that came and could not be read, or found no room.
    pub dropped: u64,
}

/// Relays publications between nodes and keeps each channel's history.
///
/// The contract, checked for every broker by `tests/broker_contract.rs`:
/// - Order: a channel's publications reach each node in offset order, one at a time.
/// - Atomicity: appending to history and relaying are one step.
/// - Offsets: 1, 2, 3 … without a hole within an epoch; an epoch never means two numberings.
/// - Idempotency: the same key of the same scope in the same channel within [`IDEMPOTENCY_WINDOW`] is stored and relayed
///   once, and acknowledged again with the first one's id and position.
/// - Delivery: at most once. Whoever misses one sees the gap in the offsets and reads history.
/// - Channels nobody listens to may be forgotten once their history has expired; then they return with a new epoch.
/// - Room: what is not kept for want of room is refused as [`BrokerError::Unavailable`], not taken and lost. Then also an
///   empty channel may be given an epoch that is not its later one: its readers are told of a gap that is none.
pub trait Broker: PresenceStore + Commander {
    /// Appends a submission to its channel and relays it to every node that listens, this one too.
    ///
    /// # Errors
    /// [`BrokerError::Unavailable`]: not published. [`BrokerError::Unanswered`]: it may be either.
    ///
    /// # Cancellation
    /// Dropping the future leaves the event published whole or not at all.
    fn publish(&self, submission: Submission) -> BoxFuture<'_, Result<Accepted, BrokerError>>;

    /// Reads a part of a channel's history. `retention` is the channel's, which may have become smaller since.
    ///
    /// Fewer than the query's limit may come although there are more: as many as [`MAX_HISTORY_BYTES`] allow, and always
    /// the first. Whoever wants all reads on after the last one until that is [`History::top`] (with `reverse`, before
    /// it, until it follows [`History::trimmed`]).
    fn history<'a>(
        &'a self,
        channel: &'a Channel,
        retention: Retention,
        query: HistoryQuery,
    ) -> BoxFuture<'a, Result<History, BrokerError>>;

    /// Drops a channel's history and starts a new epoch, of which every node that listens is told.
    fn drop_history<'a>(&'a self, channel: &'a Channel) -> BoxFuture<'a, Result<(), BrokerError>>;

    /// Has the channel's publications relayed to this node from now on. Counted: each call needs one [`Broker::ignore`].
    fn listen<'a>(&'a self, channel: &'a Channel) -> BoxFuture<'a, Result<(), BrokerError>>;

    /// Takes one [`Broker::listen`] back.
    fn ignore(&self, channel: &Channel);

    /// Completes once a probe has gone through the broker and come back.
    fn probe(&self) -> BoxFuture<'_, Result<(), BrokerError>>;

    /// What waits and what is listened to.
    fn figures(&self) -> BrokerFigures {
        BrokerFigures::default()
    }
}
