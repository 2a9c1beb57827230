//! One channel's history: a ring with an epoch, and the idempotency keys of the last minutes.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    broker::{Accepted, History, IDEMPOTENCY_WINDOW, KeyScope, MAX_HISTORY_BYTES, Retention, ScopedKey},
    domain::{Channel, Epoch, Event, HistoryQuery, Offset, Position, Publication},
};

/// What a stored publication takes beside its data: the ring's entry, its names and allocations, about.
const ENTRY_BYTES: usize = 320;
/// What a channel's history takes while it is empty, beside the channel's name: its place in the table, about.
const STREAM_BYTES: usize = 512;
/// What an idempotency key takes beside its texts, about.
const KEY_BYTES: usize = 160;
/// The most idempotency keys that a channel remembers; above that the oldest go before their time.
const MAX_KEYS: usize = 100_000;
/// How long an empty history keeps its numbering after its last use, so that a client that returns resumes cleanly.
const FORGET_AFTER: Duration = Duration::from_secs(5 * 60);

/// A channel's history.
///
/// Invariant: the kept publications have the offsets `top - kept.len() + 1` to `top`.
pub(super) struct Stream {
    epoch: Epoch,
    top: Offset,
    kept: VecDeque<Kept>,
    keys: HashMap<Arc<ScopedKey>, Accepted, foldhash::fast::RandomState>,
    keys_by_age: VecDeque<(Instant, Arc<ScopedKey>)>,
    /// What it takes itself.
    own_bytes: usize,
    kept_bytes: usize,
    key_bytes: usize,
    used: Instant,
    ttl: Duration,
}

struct Kept {
    at: Instant,
    publication: Arc<Publication>,
}

impl Stream {
    pub fn new(channel: &Channel, epoch: u64, now: Instant) -> Self {
        Self {
            epoch: Epoch::from_bits(epoch),
            top: Offset(0),
            kept: VecDeque::new(),
            keys: HashMap::default(),
            keys_by_age: VecDeque::new(),
            own_bytes: STREAM_BYTES + channel.key().len(),
            kept_bytes: 0,
            key_bytes: 0,
            used: now,
            ttl: Duration::ZERO,
        }
    }

    /// Bytes that it takes, with all that it keeps.
    pub fn held_bytes(&self) -> usize {
        self.own_bytes + self.kept_bytes + self.key_bytes
    }

    /// Those of them that its publications take.
    pub fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }

    pub fn touch(&mut self, now: Instant) {
        self.used = now;
    }

    /// The position that the next publication gets.
    pub fn next_position(&self) -> Position {
        Position { epoch: self.epoch, offset: self.top.next() }
    }

    /// Appends a publication that was made with [`Stream::next_position`].
    pub fn append(&mut self, publication: Arc<Publication>, retention: Retention, now: Instant) {
        self.top = self.top.next();
        self.ttl = retention.ttl;
        self.used = now;
        self.kept_bytes += kept_size(&publication.event);
        self.kept.push_back(Kept { at: now, publication });
        while retention.size < self.kept.len() {
            self.drop_oldest();
        }
    }

    /// The first publication with this key, if it is remembered.
    pub fn accepted_before(&self, key: &ScopedKey) -> Option<Accepted> {
        self.keys.get(key).copied()
    }

    pub fn remember(&mut self, key: ScopedKey, accepted: Accepted, now: Instant) {
        let key = Arc::new(key);
        self.used = now;
        self.key_bytes += key_size(&key);
        self.keys.insert(key.clone(), accepted);
        self.keys_by_age.push_back((now, key));
        if MAX_KEYS < self.keys_by_age.len() {
            self.drop_oldest_key();
        }
    }

    /// Drops publications and keys past their time.
    pub fn expire(&mut self, now: Instant) {
        while self.kept.front().is_some_and(|oldest| self.ttl <= now.saturating_duration_since(oldest.at)) {
            self.drop_oldest();
        }
        let old = |at: Instant| IDEMPOTENCY_WINDOW <= now.saturating_duration_since(at);
        while self.keys_by_age.front().is_some_and(|(at, _)| old(*at)) {
            self.drop_oldest_key();
        }
    }

    /// Gives up the oldest publication where memory is short. False: there is none to give up.
    pub fn give_up_oldest(&mut self) -> bool {
        let can = !self.kept.is_empty();
        if can {
            self.drop_oldest();
        }
        can
    }

    /// Whether nothing is left that anybody could ask for.
    pub fn is_forgettable(&self, now: Instant) -> bool {
        self.kept.is_empty() && self.keys.is_empty() && FORGET_AFTER <= now.saturating_duration_since(self.used)
    }

    /// Drops everything and counts anew under another epoch.
    pub fn restart(&mut self, epoch: u64) -> Position {
        while !self.kept.is_empty() {
            self.drop_oldest();
        }
        self.epoch = Epoch::from_bits(epoch);
        self.top = Offset(0);
        Position { epoch: self.epoch, offset: self.top }
    }

    pub fn read(&mut self, retention: Retention, query: HistoryQuery, now: Instant) -> History {
        self.used = now;
        let top = Position { epoch: self.epoch, offset: self.top };
        // The retention may have shrunk since the newest of these were appended.
        let old = |kept: &Kept| retention.ttl <= now.saturating_duration_since(kept.at);
        let young = self.kept.len() - self.kept.partition_point(old);
        let trimmed = Offset(self.top.0 - young.min(retention.size) as u64);
        let first = query.after.map_or(0, |after| after.0).max(trimmed.0).min(self.top.0);
        let end = query.before.map_or(self.top.0, |before| before.0.saturating_sub(1)).min(self.top.0);
        // The publications wanted have the offsets first + 1 to end.
        let skipped = self.top.0 - self.kept.len() as u64;
        let wanted = (first - skipped) as usize..end.max(first).saturating_sub(skipped) as usize;
        let publications = self.kept.range(wanted).map(|kept| kept.publication.clone());
        let publications = match query.reverse {
            false => within_bounds(publications, query.limit),
            true => within_bounds(publications.rev(), query.limit),
        };
        History { top, trimmed, publications }
    }

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.kept.pop_front() {
            self.kept_bytes -= kept_size(&oldest.publication.event);
        }
        if self.kept.is_empty() {
            self.kept.shrink_to(4);
        }
    }

    fn drop_oldest_key(&mut self) {
        if let Some((_, key)) = self.keys_by_age.pop_front() {
            self.key_bytes -= key_size(&key);
            self.keys.remove(&key);
        }
        if self.keys.is_empty() {
            self.keys.shrink_to_fit();
            self.keys_by_age.shrink_to_fit();
        }
    }
}

/// The first `limit` of `publications`, and fewer where their events would pass [`MAX_HISTORY_BYTES`]; the first comes
/// whatever its size.
fn within_bounds(publications: impl Iterator<Item = Arc<Publication>>, limit: usize) -> Vec<Arc<Publication>> {
    let mut bytes = 0;
    let fits = |publication: &Arc<Publication>| {
        let is_first = bytes == 0;
        // One byte at least, so that only the first is the first.
        bytes += event_size(&publication.event).max(1);
        is_first || bytes <= MAX_HISTORY_BYTES
    };
    publications.take(limit).take_while(fits).collect()
}

/// What keeping an event takes, about.
pub(super) fn kept_size(event: &Event) -> usize {
    event_size(event) + ENTRY_BYTES
}

/// What remembering a key takes, about.
pub(super) fn key_size(key: &ScopedKey) -> usize {
    let user = match &key.scope {
        KeyScope::User(user) => user.as_str().len(),
        KeyScope::Anonymous | KeyScope::Server => 0,
    };
    key.key.as_str().len() + user + KEY_BYTES
}

fn event_size(event: &Event) -> usize {
    let tags = event.tags.as_ref().map_or(0, |tags| tags.as_str().len());
    event.data.as_bytes().len() + tags + event.name().len()
}
