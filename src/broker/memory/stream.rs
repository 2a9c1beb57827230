//! One channel's history: a ring with an epoch, and the idempotency keys of the last minutes.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    broker::{Accepted, History, IDEMPOTENCY_WINDOW, Retention, ScopedKey},
    domain::{Epoch, HistoryQuery, Offset, Position, Publication},
};

/// What a stored publication takes beside its data: the ring's entry, its names and allocations, about.
const ENTRY_BYTES: usize = 320;
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
    held_bytes: usize,
    used: Instant,
    ttl: Duration,
}

struct Kept {
    at: Instant,
    publication: Arc<Publication>,
}

impl Stream {
    pub fn new(epoch: u64, now: Instant) -> Self {
        Self {
            epoch: Epoch::from_bits(epoch),
            top: Offset(0),
            kept: VecDeque::new(),
            keys: HashMap::default(),
            keys_by_age: VecDeque::new(),
            held_bytes: 0,
            used: now,
            ttl: Duration::ZERO,
        }
    }

    pub fn held_bytes(&self) -> usize {
        self.held_bytes
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
        self.held_bytes += size(&publication);
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
        self.held_bytes += key_size(&key);
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

    /// Gives up the oldest publication for a new one, where memory is short. False: there is none to give up.
    pub fn make_room(&mut self) -> bool {
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
        let young = |kept: &&Kept| now.saturating_duration_since(kept.at) < retention.ttl;
        let readable = self.kept.iter().rev().take(retention.size).take_while(young).count() as u64;
        let trimmed = Offset(self.top.0 - readable);
        let first = query.after.map_or(0, |after| after.0).max(trimmed.0).min(self.top.0);
        let end = query.before.map_or(self.top.0, |before| before.0.saturating_sub(1)).min(self.top.0);
        // The publications wanted have the offsets first + 1 to end.
        let skipped = self.top.0 - self.kept.len() as u64;
        let wanted = (first - skipped) as usize..end.max(first).saturating_sub(skipped) as usize;
        let publications = self.kept.range(wanted).map(|kept| kept.publication.clone());
        let publications = match query.reverse {
            false => publications.take(query.limit).collect(),
            true => publications.rev().take(query.limit).collect(),
        };
        History { top, trimmed, publications }
    }

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.kept.pop_front() {
            self.held_bytes -= size(&oldest.publication);
        }
        if self.kept.is_empty() {
            self.kept.shrink_to(4);
        }
    }

    fn drop_oldest_key(&mut self) {
        if let Some((_, key)) = self.keys_by_age.pop_front() {
            self.held_bytes -= key_size(&key);
            self.keys.remove(&key);
        }
        if self.keys.is_empty() {
            self.keys.shrink_to_fit();
            self.keys_by_age.shrink_to_fit();
        }
    }
}

fn size(publication: &Publication) -> usize {
    let tags = publication.event.tags.as_ref().map_or(0, |tags| tags.as_str().len());
    publication.event.data.as_bytes().len() + tags + publication.event.name().len() + ENTRY_BYTES
}

fn key_size(key: &ScopedKey) -> usize {
    key.key.as_str().len() + 160
}
