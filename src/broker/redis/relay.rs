//! The receiving side: what this node hears of which channel, and what it hands on.
//!
//! This is the hot path, second of three, where several nodes share a Redis. [`Table::hear`] runs in the task that reads
//! the connection: it decodes, keeps the channel's order and hands on, and never waits, since Redis cuts off who reads
//! slowly. What is missing is read by `history.rs`. `listen.rs` keeps the connection and its subscriptions.
//!
//! One lock guards the table. It is held while something is handed on ([`Listener::relayed`]), which takes the hub's table
//! of interest; nothing takes them the other way round.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use foldhash::fast::RandomState;
use tokio::sync::{Notify, mpsc as queue, oneshot};

use super::{
    keys::Keys,
    order::{Arrival, Filled, Order},
    wire::Message,
};
use crate::{
    broker::{History, Listener, Relayed},
    domain::{Channel, Position, Publication},
};

/// How long a channel is still listened to after its last subscriber left: people reload pages.
const LINGER: Duration = Duration::from_secs(3);

/// A channel's relay, as Redis names it.
pub(super) type Name = Arc<[u8]>;

/// All channels that this node hears, or wants to.
pub(super) struct Table {
    listener: Arc<dyn Listener>,
    keys: Keys,
    entries: Mutex<Entries>,
    /// Something is to be subscribed.
    pub wanted: Notify,
    gaps: queue::UnboundedSender<Name>,
    /// Messages that could not be read, and those without history for which there was no room.
    dropped: AtomicU64,
}

#[derive(Default)]
struct Entries {
    by_name: HashMap<Name, Entry, RandomState>,
    /// Those that are to be subscribed, in the order in which they were wanted.
    unsubscribed: VecDeque<Name>,
}

/// One channel.
struct Entry {
    name: Name,
    channel: Channel,
    listeners: usize,
    /// Redis has confirmed that it is subscribed on the present connection, and where it stood then is known.
    is_confirmed: bool,
    /// It has been, on this connection or one before.
    was_confirmed: bool,
    waiting: Vec<oneshot::Sender<()>>,
    order: Order,
    unused_since: Option<Instant>,
}

impl Table {
    pub fn new(listener: Arc<dyn Listener>, keys: Keys) -> (Arc<Self>, queue::UnboundedReceiver<Name>) {
        let (gaps, found) = queue::unbounded_channel();
        let entries = Mutex::default();
        let (wanted, dropped) = (Notify::new(), AtomicU64::new(0));
        (Arc::new(Self { listener, keys, entries, wanted, gaps, dropped }), found)
    }

    /// Counts one more that listens. What is returned completes once the channel is heard; `None`: it is already.
    pub fn listen(&self, channel: &Channel) -> Option<oneshot::Receiver<()>> {
        let name = self.name(channel);
        let mut entries = self.entries();
        let Entries { by_name, unsubscribed } = &mut *entries;
        let entry = by_name.entry(name.clone()).or_insert_with(|| {
            unsubscribed.push_back(name.clone());
            Entry {
                name,
                channel: channel.clone(),
                listeners: 0,
                is_confirmed: false,
                was_confirmed: false,
                waiting: Vec::new(),
                order: Order::default(),
                unused_since: None,
            }
        });
        entry.listeners += 1;
        entry.unused_since = None;
        if entry.is_confirmed {
            return None;
        }
        let (tx, rx) = oneshot::channel();
        entry.waiting.retain(|waiting| !waiting.is_closed());
        entry.waiting.push(tx);
        self.wanted.notify_one();
        Some(rx)
    }

    /// Counts one less that listens.
    pub fn ignore(&self, channel: &Channel) {
        let mut entries = self.entries();
        let name = self.name(channel);
        let Some(entry) = entries.by_name.get_mut(&name) else { return };
        entry.listeners = entry.listeners.saturating_sub(1);
        if entry.listeners == 0 {
            entry.unused_since = Some(Instant::now());
            // Who asks for many names while Redis is away leaves nothing behind.
            if !entry.was_confirmed {
                entries.by_name.remove(&name);
            }
        }
    }

    /// The next of those that are to be subscribed.
    pub fn unsubscribed(&self, count: usize) -> Vec<Name> {
        let mut entries = self.entries();
        let Entries { by_name, unsubscribed } = &mut *entries;
        let mut names = Vec::new();
        while names.len() < count
            && let Some(name) = unsubscribed.pop_front()
        {
            if by_name.contains_key(&name) {
                names.push(name);
            }
        }
        if unsubscribed.is_empty() {
            unsubscribed.shrink_to(1024);
        }
        names
    }

    /// Notes that they are subscribed, and where they stood: what is published from now on is heard.
    pub fn confirm(&self, names: &[Name], tops: &[Option<Position>]) {
        let mut entries = self.entries();
        for (name, top) in names.iter().zip(tops) {
            if let Some(entry) = entries.by_name.get_mut(name) {
                let was_confirmed = std::mem::replace(&mut entry.was_confirmed, true);
                entry.is_confirmed = true;
                // What had no position then, and has one now, was published while this node did not hear.
                if entry.order.begin(*top, was_confirmed) {
                    self.found_gap(name);
                }
                // Whoever waited may have given up.
                entry.waiting.drain(..).for_each(|waiting| waiting.send(()).unwrap_or_default());
            }
        }
    }

    /// Notes that the connection is gone: everything is to be subscribed again.
    pub fn forget_subscriptions(&self) {
        let mut entries = self.entries();
        let Entries { by_name, unsubscribed } = &mut *entries;
        by_name.values_mut().for_each(|entry| entry.is_confirmed = false);
        *unsubscribed = by_name.keys().cloned().collect();
    }

    /// Takes out the channels that nobody has listened to for a while.
    pub fn unused(&self) -> Vec<Name> {
        let mut entries = self.entries();
        let is_unused = |entry: &Entry| entry.unused_since.is_some_and(|since| LINGER <= since.elapsed());
        let unused = entries.by_name.extract_if(|_, entry| entry.is_confirmed && is_unused(entry));
        unused.map(|(name, _)| name).collect()
    }

    /// How many channels are wanted, and how many of them are not heard just now.
    pub fn counts(&self) -> (usize, usize) {
        let entries = self.entries();
        let unconfirmed = entries.by_name.values().filter(|entry| !entry.is_confirmed).count();
        (entries.by_name.len(), unconfirmed)
    }

    /// Messages that could not be read, or found no room.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Each channel that is heard, with its last position.
    pub fn heard(&self) -> Vec<(Name, Channel, Option<Position>)> {
        let entries = self.entries();
        let heard = entries.by_name.iter().filter(|(_, entry)| entry.is_confirmed && !entry.order.is_filling());
        heard.map(|(name, entry)| (name.clone(), entry.channel.clone(), entry.order.last())).collect()
    }

    /// Each channel of which something was heard, with its last position.
    pub fn last_heard(&self) -> Vec<(Channel, Position)> {
        let entries = self.entries();
        entries.by_name.values().filter_map(|entry| Some((entry.channel.clone(), entry.order.last()?))).collect()
    }

    /// The channels of these names, with their last positions.
    pub fn known(&self, names: &[Name]) -> Vec<Option<(Channel, Option<Position>)>> {
        let entries = self.entries();
        let known = |name| entries.by_name.get(name).map(|entry| (entry.channel.clone(), entry.order.last()));
        names.iter().map(known).collect()
    }

    /// Compares with a channel's top, as read when `last` was its last; `surely` where nothing can be on its way.
    pub fn compare(&self, name: &Name, last: Option<Position>, top: Position, surely: bool) {
        let mut entries = self.entries();
        let Some(entry) = entries.by_name.get_mut(name) else { return };
        let is_ahead = last.is_some_and(|last| last.epoch != top.epoch || last.offset < top.offset);
        if (entry.order.is_behind(last, top) || (surely && is_ahead)) && entry.order.suspect() {
            self.found_gap(name);
        }
    }

    /// Has a channel's history read after what was handed on.
    pub fn doubt(&self, name: &Name) {
        let mut entries = self.entries();
        if entries.by_name.get_mut(name).is_some_and(|entry| entry.order.suspect()) {
            self.found_gap(name);
        }
    }

    /// Where a gap begins; `None`: nobody wants the channel any more.
    pub fn gap(&self, name: &Name) -> Option<(Channel, Option<Position>)> {
        let entries = self.entries();
        let entry = entries.by_name.get(name).filter(|entry| entry.order.is_filling())?;
        Some((entry.channel.clone(), entry.order.last()))
    }

    /// Gives up what cannot be read: subscribers are told that it is lost.
    pub fn give_up(&self, name: &Name) {
        let mut entries = self.entries();
        let Some(entry) = entries.by_name.get_mut(name) else { return };
        if let Some(last) = entry.order.give_up() {
            self.listener.relayed(Relayed::Lost(entry.channel.clone(), last));
        }
    }

    /// Has a gap looked at again.
    pub fn try_again(&self, name: &Name) {
        self.found_gap(name);
    }

    /// Hands on what was read after `from`, where a gap began. `None`: it is closed; else how
    /// many publications were handed on.
    pub fn fill(&self, name: &Name, from: Option<Position>, history: History) -> Option<usize> {
        let mut entries = self.entries();
        let entry = entries.by_name.get_mut(name)?;
        match entry.order.fill(from, history.top, history.trimmed, history.publications) {
            Filled::Closed(next) => {
                self.hand_on(next);
                None
            }
            Filled::More(next) => Some(self.hand_on(next)),
            Filled::Lost(last) => {
                self.listener.relayed(Relayed::Lost(entry.channel.clone(), last));
                Some(0)
            }
            Filled::Anew => {
                self.listener.relayed(Relayed::Reset(entry.channel.clone(), history.top));
                Some(0)
            }
        }
    }

    /// Takes what Redis relayed.
    pub fn hear(&self, name: &[u8], message: Bytes) {
        let mut entries = self.entries();
        let Some(entry) = entries.by_name.get_mut(name) else { return };
        let Some(message) = Message::read(&entry.channel, message) else {
            self.drop_one();
            return;
        };
        match message {
            Message::Publication(publication) => self.take(entry, Arc::new(publication)),
            Message::Reset(top) => {
                if entry.order.restart(top.epoch) {
                    self.listener.relayed(Relayed::Reset(entry.channel.clone(), top));
                }
            }
            Message::Join(member) => self.listener.relayed(Relayed::Join(entry.channel.clone(), member)),
            Message::Leave(member) => self.listener.relayed(Relayed::Leave(entry.channel.clone(), member)),
        }
    }

    fn take(&self, entry: &mut Entry, publication: Arc<Publication>) {
        let is_full = !self.listener.has_room();
        let Some(position) = publication.position else {
            match is_full {
                false => self.listener.relayed(Relayed::Publication(publication)),
                true => self.drop_one(),
            }
            return;
        };
        let mut arrival = entry.order.arrive(&publication, position, is_full);
        if arrival == Arrival::Anew {
            entry.order.restart(position.epoch);
            let top = Position { offset: crate::domain::Offset(0), ..position };
            self.listener.relayed(Relayed::Reset(entry.channel.clone(), top));
            arrival = entry.order.arrive(&publication, position, is_full);
        }
        match arrival {
            Arrival::Next => self.listener.relayed(Relayed::Publication(publication)),
            Arrival::Gap => self.found_gap(&entry.name),
            Arrival::Nothing | Arrival::Anew => {}
        }
    }

    fn hand_on(&self, publications: Vec<Arc<Publication>>) -> usize {
        let count = publications.len();
        publications.into_iter().for_each(|publication| self.listener.relayed(Relayed::Publication(publication)));
        count
    }

    fn found_gap(&self, name: &Name) {
        // It fails only at the end, when nobody fills gaps any more.
        let _ = self.gaps.send(name.clone());
    }

    fn drop_one(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    fn name(&self, channel: &Channel) -> Name {
        self.keys.relay(channel).into_bytes().into()
    }

    /// An entry is changed in one piece, so what a panic left behind is still whole.
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
