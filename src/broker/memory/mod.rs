//! The broker inside this process: history, relay and presence in tables. The default.
//!
//! Channels are spread over stripes, each with its own lock. A publication is appended and relayed under its stripe's
//! lock, which is what makes the two one step and gives the channel its order.
//!
//! What histories and idempotency keys may hold is bounded over all channels. Room is taken before anything is stored,
//! so the bound holds; a channel makes room out of its own history only, the oldest first.
//!
//! Locks, where two are held: a stripe's first, then the hub's table of interest (inside [`Listener::relayed`]). Nothing
//! takes them the other way round.

mod stream;

use std::{
    collections::{HashMap, hash_map},
    hash::BuildHasher,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use foldhash::fast::RandomState;
use futures_util::future::{self, BoxFuture, FutureExt};

use self::stream::{Stream, kept_size, key_size};
use super::{
    Accepted, Broker, BrokerError, Commander, History, Listener, Order, PresenceStore, Relayed, Retention, Submission,
};
use crate::domain::{Channel, ConnectionId, HistoryQuery, Member, Publication, Revocation};

const STRIPES: usize = 64;

/// The broker inside this process.
pub struct MemoryBroker {
    stripes: Box<[Mutex<Stripe>]>,
    hasher: RandomState,
    listener: Arc<dyn Listener>,
    /// Bytes that histories and idempotency keys hold, over all stripes. Never above `max_bytes`.
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
    /// A broker that relays to `listener` and holds at most `max_bytes` of history and idempotency keys. What each of them
    /// takes is estimated.
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
                    self.accounted(kept, 0, |kept| kept.expire(now));
                    if *listeners == 0 && kept.is_forgettable(now) {
                        self.held_bytes.fetch_sub(kept.held_bytes(), Ordering::Relaxed);
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

    /// The channel's history, new where there is none. `None`: there is no room for a new one.
    fn stream<'a>(&self, stripe: &'a mut Stripe, channel: &Channel, now: Instant) -> Option<&'a mut Stream> {
        let create = || {
            let stream = Stream::new(channel, rand::random(), now);
            self.take_room(stream.held_bytes()).then_some(stream)
        };
        let stream = match stripe.entry(channel.clone()) {
            hash_map::Entry::Occupied(known) => &mut known.into_mut().stream,
            hash_map::Entry::Vacant(unknown) => {
                let stream = Some(create()?);
                &mut unknown.insert(Entry { stream, ..Entry::default() }).stream
            }
        };
        if stream.is_none() {
            *stream = Some(create()?);
        }
        stream.as_mut()
    }

    /// Counts `bytes` as held. False: there is no room for them.
    fn take_room(&self, bytes: usize) -> bool {
        let taken = |held: usize| held.checked_add(bytes).filter(|sum| *sum <= self.max_bytes);
        self.held_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).is_ok()
    }

    /// Counts `bytes` as held and gives up the stream's oldest publications for them, as many as it takes; none where all
    /// of them would not do.
    fn make_room(&self, stream: &mut Stream, bytes: usize) -> Result<(), BrokerError> {
        if self.max_bytes.saturating_add(stream.kept_bytes()) < self.held_bytes() + bytes {
            return Err(full());
        }
        while !self.take_room(bytes) {
            // Other channels may have taken what was free.
            if !self.accounted(stream, 0, Stream::give_up_oldest) {
                return Err(full());
            }
        }
        Ok(())
    }

    /// Lets `change` work on a stream and keeps the sum of held bytes true, in which `taken` of what it adds are already.
    fn accounted<T>(&self, stream: &mut Stream, taken: usize, change: impl FnOnce(&mut Stream) -> T) -> T {
        let before = stream.held_bytes() + taken;
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
        let bytes = retention.map_or(0, |_| kept_size(&event)) + key.as_ref().map_or(0, key_size);
        let publication = |channel, position| Publication { id, channel, event, time, position, from, exclude };
        let mut stripe = self.stripe(&channel);
        if retention.is_none() && key.is_none() {
            self.listener.relayed(Relayed::Publication(Arc::new(publication(channel, None))));
            return Ok(Accepted { id, position: None });
        }
        let now = Instant::now();
        let stream = self.stream(&mut stripe, &channel, now).ok_or_else(full)?;
        self.accounted(stream, 0, |stream| stream.expire(now));
        if let Some(first) = key.as_ref().and_then(|key| stream.accepted_before(key)) {
            return Ok(first);
        }
        self.make_room(stream, bytes)?;
        let position = retention.map(|_| stream.next_position());
        let accepted = Accepted { id, position };
        let publication = Arc::new(publication(channel, position));
        self.accounted(stream, bytes, |stream| {
            if let Some(retention) = retention {
                stream.append(publication.clone(), retention, now);
            }
            if let Some(key) = key {
                stream.remember(key, accepted, now);
            }
        });
        self.listener.relayed(Relayed::Publication(publication));
        Ok(accepted)
    }

    fn read(&self, channel: &Channel, retention: Retention, query: HistoryQuery) -> History {
        let now = Instant::now();
        let mut stripe = self.stripe(channel);
        match self.stream(&mut stripe, channel, now) {
            Some(stream) => {
                self.accounted(stream, 0, |stream| stream.expire(now));
                stream.read(retention, query, now)
            }
            // There is no room to remember that it is empty, so it gets an epoch for this once.
            None => Stream::new(channel, rand::random(), now).read(retention, query, now),
        }
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
            let top = self.accounted(stream, 0, |stream| stream.restart(rand::random()));
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

impl Commander for MemoryBroker {
    fn order(&self, order: Order) -> BoxFuture<'_, Result<(), BrokerError>> {
        self.listener.relayed(Relayed::Order(order, Duration::ZERO));
        future::ready(Ok(())).boxed()
    }

    fn revoke(&self, revocation: Revocation) -> BoxFuture<'_, Result<(), BrokerError>> {
        self.listener.relayed(Relayed::Revoked(revocation));
        future::ready(Ok(())).boxed()
    }

    fn load_revocations(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        // The node has the only table there is; it ends with the process.
        future::ready(Ok(())).boxed()
    }
}

/// A stripe is changed in one piece under its lock, so one that a panic left behind is still whole.
fn lock(stripe: &Mutex<Stripe>) -> MutexGuard<'_, Stripe> {
    stripe.lock().unwrap_or_else(PoisonError::into_inner)
}

fn full() -> BrokerError {
    BrokerError::Unavailable("its memory is full (broker.max_memory)".into())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::{
        broker::{IDEMPOTENCY_WINDOW, KeyScope, ScopedKey},
        domain::{Event, IdempotencyKey, Payload, PublicationId, UnixMillis},
    };

    const MAX_BYTES: usize = 4 << 20;
    const KEPT: Retention = Retention { size: 10_000, ttl: Duration::from_secs(60) };

    #[derive(Default)]
    struct Count(AtomicU64);

    impl Listener for Count {
        fn relayed(&self, _: Relayed) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn broker() -> (MemoryBroker, Arc<Count>) {
        let count = Arc::new(Count::default());
        (MemoryBroker::new(count.clone(), MAX_BYTES), count)
    }

    fn channel(n: usize) -> Channel {
        Channel::new(&"app".parse().unwrap(), &format!("room:{n}").parse().unwrap())
    }

    fn submission(channel: &Channel, bytes: usize, key: Option<String>) -> Submission {
        Submission {
            channel: channel.clone(),
            event: Event { name: None, data: Payload::from_json(&format!("\"{}\"", "x".repeat(bytes))), tags: None },
            id: PublicationId::new(1, rand::random()),
            time: UnixMillis(1),
            from: None,
            exclude: None,
            key: key.map(|key| ScopedKey { scope: KeyScope::Server, key: IdempotencyKey::new(&key).unwrap() }),
            retention: Some(KEPT),
        }
    }

    fn all(broker: &MemoryBroker, channel: &Channel) -> History {
        broker.read(channel, KEPT, HistoryQuery { limit: 1000, ..HistoryQuery::default() })
    }

    #[test]
    fn many_channels_and_one_stay_within_the_bound() {
        let (broker, count) = broker();
        let (mut taken, mut refused) = (0, 0);
        for n in 0..1500 {
            match broker.accept(submission(&channel(n), 60_000, None)) {
                Ok(_) => taken += 1,
                Err(error) => {
                    assert!(matches!(error, BrokerError::Unavailable(_)), "{error}");
                    refused += 1;
                }
            }
            assert!(broker.held_bytes() <= MAX_BYTES, "{n}: {}", broker.held_bytes());
        }
        assert_eq!((taken + refused, count.0.load(Ordering::Relaxed)), (1500, taken));
        assert!((60..=69).contains(&taken), "{taken} of 60 KB fit into 4 MiB");
        // Small ones first, then each large one needs the room of many of them.
        let (broker, _) = self::broker();
        let one = channel(1);
        while broker.held_bytes() + 1000 < MAX_BYTES {
            broker.accept(submission(&one, 400, None)).unwrap();
        }
        let small = all(&broker, &one).top.offset.0;
        for n in 1..=1500 {
            let accepted = broker.accept(submission(&one, 60_000, None)).unwrap();
            assert_eq!(accepted.position.unwrap().offset.0, small + n);
            assert!(broker.held_bytes() <= MAX_BYTES, "{n}: {}", broker.held_bytes());
        }
        assert!(small + 1500 - 70 <= all(&broker, &one).trimmed.0, "all the small ones are gone");
    }

    #[test]
    fn a_refusal_costs_the_channel_nothing() {
        let (broker, _) = broker();
        let one = channel(0);
        broker.accept(submission(&one, 1000, None)).unwrap();
        while broker.accept(submission(&channel(1 + broker.held_bytes()), 60_000, None)).is_ok() {}
        let held = broker.held_bytes();
        broker.accept(submission(&one, 100_000, None)).unwrap_err();
        assert_eq!((all(&broker, &one).publications.len(), broker.held_bytes()), (1, held));
    }

    #[test]
    fn keys_alone_stay_within_the_bound_and_are_freed() {
        let (broker, _) = broker();
        let key_only = |n| Submission { retention: None, ..submission(&channel(n % 7), 10, Some(format!("key-{n}"))) };
        let taken = (0..100_000).take_while(|n| broker.accept(key_only(*n)).is_ok()).count();
        assert!(broker.held_bytes() <= MAX_BYTES && MAX_BYTES - 1000 < broker.held_bytes());
        assert!((20_000..30_000).contains(&taken), "{taken}");
        let repeated = broker.accept(key_only(0));
        assert!(repeated.is_ok(), "what is remembered needs no room");
        broker.sweep(Instant::now() + IDEMPOTENCY_WINDOW);
        assert!(broker.held_bytes() < 10_000, "{}", broker.held_bytes());
        broker.accept(key_only(taken)).unwrap();
    }

    #[test]
    fn reading_empty_channels_stays_within_the_bound() {
        let (broker, _) = broker();
        for n in 0..10_000 {
            assert_eq!(all(&broker, &channel(n)).top.offset.0, 0);
        }
        assert!(broker.held_bytes() <= MAX_BYTES);
        let entries: usize = broker.stripes.iter().map(|stripe| lock(stripe).len()).sum();
        assert!((7000..8200).contains(&entries), "{entries} of 520 bytes fit into 4 MiB");
        assert_eq!(all(&broker, &channel(0)).top, all(&broker, &channel(0)).top, "what has a place keeps its epoch");
        broker.accept(submission(&channel(9999), 10, None)).unwrap_err();
        broker.sweep(Instant::now() + Duration::from_secs(3600));
        assert_eq!(broker.held_bytes(), 0);
        broker.accept(submission(&channel(9999), 10, None)).unwrap();
    }
}
