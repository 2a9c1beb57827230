//! The broker inside this process: history, relay and presence in tables. The default.
//!
//! Channels are spread over stripes, each with its own lock. A publication is appended and relayed under its stripe's
//! lock, which is what makes the two one step and gives the channel its order.
//!
//! Locks, where two are held: a stripe's first, then the hub's table of interest (inside [`Listener::relayed`]). Nothing
//! takes them the other way round.

mod stream;

use std::{
    collections::HashMap,
    hash::BuildHasher,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use foldhash::fast::RandomState;
use futures_util::future::{self, BoxFuture, FutureExt};

use self::stream::Stream;
use super::{Accepted, Broker, BrokerError, History, Listener, PresenceStore, Relayed, Retention, Submission};
use crate::domain::{Channel, ConnectionId, HistoryQuery, Member, Publication};

const STRIPES: usize = 64;

/// The broker inside this process.
pub struct MemoryBroker {
    stripes: Box<[Mutex<Stripe>]>,
    hasher: RandomState,
    listener: Arc<dyn Listener>,
    /// Bytes that histories and idempotency keys hold, over all stripes.
    held_bytes: AtomicUsize,
    max_bytes: usize,
}

type Stripe = HashMap<Channel, Entry, RandomState>;

/// What is known of one channel.
#[derive(Default)]
struct Entry {
    stream: Option<Stream>,
    members: Vec<Member>,
    listeners: usize,
}

impl Entry {
    fn is_idle(&self) -> bool {
        self.stream.is_none() && self.members.is_empty() && self.listeners == 0
    }
}

impl MemoryBroker {
    /// A broker that relays to `listener` and holds at most about `max_bytes` of history and idempotency keys.
    pub fn new(listener: Arc<dyn Listener>, max_bytes: usize) -> Self {
        let stripes = (0..STRIPES).map(|_| Mutex::new(Stripe::default())).collect();
        Self { stripes, hasher: RandomState::default(), listener, held_bytes: AtomicUsize::new(0), max_bytes }
    }

    /// Bytes that histories and idempotency keys hold.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes.load(Ordering::Relaxed)
    }

    /// Forgets what has expired, one stripe at a time. To be called every few seconds.
    pub fn sweep(&self, now: Instant) {
        for stripe in &self.stripes {
            let mut stripe = lock(stripe);
            stripe.retain(|_, entry| {
                let Entry { stream, listeners, .. } = entry;
                if let Some(kept) = stream {
                    self.accounted(kept, |kept| kept.expire(now));
                    if *listeners == 0 && kept.is_forgettable(now) {
                        *stream = None;
                    }
                }
                !entry.is_idle()
            });
            if stripe.capacity() > 64 && stripe.len() < stripe.capacity() / 4 {
                stripe.shrink_to_fit();
            }
        }
    }

    fn stripe(&self, channel: &Channel) -> MutexGuard<'_, Stripe> {
        lock(&self.stripes[self.hasher.hash_one(channel) as usize % STRIPES])
    }

    /// Lets `change` work on a stream and keeps the sum of held bytes true.
    fn accounted<T>(&self, stream: &mut Stream, change: impl FnOnce(&mut Stream) -> T) -> T {
        let before = stream.held_bytes();
        let result = change(stream);
        let after = stream.held_bytes();
        if before <= after {
            self.held_bytes.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.held_bytes.fetch_sub(before - after, Ordering::Relaxed);
        }
        result
    }

    fn accept(&self, submission: Submission) -> Result<Accepted, BrokerError> {
        let Submission { channel, event, id, time, from, exclude, key, retention } = submission;
        let publication = |channel, position| Publication { id, channel, event, time, position, from, exclude };
        let mut stripe = self.stripe(&channel);
        if retention.is_none() && key.is_none() {
            self.listener.relayed(Relayed::Publication(Arc::new(publication(channel, None))));
            return Ok(Accepted { id, position: None });
        }
        let now = Instant::now();
        let entry = stripe.entry(channel.clone()).or_default();
        let stream = entry.stream.get_or_insert_with(|| Stream::new(rand::random(), now));
        self.accounted(stream, |stream| {
            stream.expire(now);
            if let Some(first) = key.as_ref().and_then(|key| stream.accepted_before(key)) {
                return Ok(first);
            }
            if self.max_bytes <= self.held_bytes() && !stream.make_room() {
                return Err(BrokerError::Unavailable("its memory is full (broker.max_memory)".into()));
            }
            let position = retention.map(|_| stream.next_position());
            let publication = Arc::new(publication(channel, position));
            if let Some(retention) = retention {
                stream.append(publication.clone(), retention, now);
            }
            let accepted = Accepted { id, position };
            if let Some(key) = key {
                stream.remember(key, accepted, now);
            }
            self.listener.relayed(Relayed::Publication(publication));
            Ok(accepted)
        })
    }

    fn read(&self, channel: &Channel, retention: Retention, query: HistoryQuery) -> History {
        let now = Instant::now();
        let mut stripe = self.stripe(channel);
        let entry = stripe.entry(channel.clone()).or_default();
        let stream = entry.stream.get_or_insert_with(|| Stream::new(rand::random(), now));
        self.accounted(stream, |stream| {
            stream.expire(now);
            stream.read(retention, query, now)
        })
    }

    fn enter(&self, channel: &Channel, member: Member) {
        let mut stripe = self.stripe(channel);
        let members = &mut stripe.entry(channel.clone()).or_default().members;
        match members.iter_mut().find(|known| known.connection == member.connection) {
            Some(known) => *known = member,
            None => {
                members.push(member.clone());
                self.listener.relayed(Relayed::Join(channel.clone(), member));
            }
        }
    }

    fn take_out(&self, channel: &Channel, connection: ConnectionId) {
        let mut stripe = self.stripe(channel);
        let Some(entry) = stripe.get_mut(channel) else { return };
        let Some(at) = entry.members.iter().position(|member| member.connection == connection) else { return };
        let member = entry.members.remove(at);
        if entry.is_idle() {
            stripe.remove(channel);
        }
        self.listener.relayed(Relayed::Leave(channel.clone(), member));
    }
}

impl Broker for MemoryBroker {
    fn publish(&self, submission: Submission) -> BoxFuture<'_, Result<Accepted, BrokerError>> {
        future::ready(self.accept(submission)).boxed()
    }

    fn history<'a>(
        &'a self,
        channel: &'a Channel,
        retention: Retention,
        query: HistoryQuery,
    ) -> BoxFuture<'a, Result<History, BrokerError>> {
        future::ready(Ok(self.read(channel, retention, query))).boxed()
    }

    fn drop_history<'a>(&'a self, channel: &'a Channel) -> BoxFuture<'a, Result<(), BrokerError>> {
        let mut stripe = self.stripe(channel);
        if let Some(stream) = stripe.get_mut(channel).and_then(|entry| entry.stream.as_mut()) {
            let top = self.accounted(stream, |stream| stream.restart(rand::random()));
            self.listener.relayed(Relayed::Reset(channel.clone(), top));
        }
        future::ready(Ok(())).boxed()
    }

    fn listen<'a>(&'a self, channel: &'a Channel) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.stripe(channel).entry(channel.clone()).or_default().listeners += 1;
        future::ready(Ok(())).boxed()
    }

    fn ignore(&self, channel: &Channel) {
        let mut stripe = self.stripe(channel);
        let Some(entry) = stripe.get_mut(channel) else { return };
        entry.listeners = entry.listeners.saturating_sub(1);
        if let Some(stream) = &mut entry.stream {
            stream.touch(Instant::now());
        }
        if entry.is_idle() {
            stripe.remove(channel);
        }
    }

    fn probe(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        future::ready(Ok(())).boxed()
    }
}

impl PresenceStore for MemoryBroker {
    fn join<'a>(&'a self, channel: &'a Channel, member: Member) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.enter(channel, member);
        future::ready(Ok(())).boxed()
    }

    fn leave<'a>(&'a self, channel: &'a Channel, connection: ConnectionId) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.take_out(channel, connection);
        future::ready(Ok(())).boxed()
    }

    fn members<'a>(&'a self, channel: &'a Channel) -> BoxFuture<'a, Result<Vec<Member>, BrokerError>> {
        let members = self.stripe(channel).get(channel).map(|entry| entry.members.clone()).unwrap_or_default();
        future::ready(Ok(members)).boxed()
    }
}

/// A stripe is changed in one piece under its lock, so one that a panic left behind is still whole.
fn lock(stripe: &Mutex<Stripe>) -> MutexGuard<'_, Stripe> {
    stripe.lock().unwrap_or_else(PoisonError::into_inner)
}
