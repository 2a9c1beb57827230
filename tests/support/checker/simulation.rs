//! Right histories, made up: what a correct server, clients that come and go, and a broker that forgets now and then
//! could have produced. The checker must find nothing in them.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{Attempt, EventId, History, Outcome, Position, Saw, Sighting, Subscriber};

/// The channel with history.
pub(super) const KEPT: &str = "chat:1";
/// The channel without.
pub(super) const PLAIN: &str = "plain";

const PUBLISHERS: u32 = 4;
const SUBSCRIBERS: usize = 4;
/// How many events a publisher may have under way at once.
const UNDER_WAY: usize = 3;

/// A history without a fault, the same for the same seed.
pub(super) fn history(seed: u64) -> History {
    let mut world = World::new(seed);
    for _ in 0..600 {
        world.step();
    }
    world.finish();
    world.history
}

/// One server with two channels, and everybody around it.
struct World {
    random: StdRng,
    now: Duration,
    history: History,
    /// How many epochs there have been.
    epochs: u32,
    /// The stored events of this epoch; the first has offset 1.
    log: Vec<EventId>,
    /// How many of the first ones are not kept any more.
    trimmed: usize,
    publishers: Vec<Publisher>,
    /// The subscribers of the history that are connected; all others are simple.
    connected: Vec<bool>,
    /// Given up by their publishers, and not in yet.
    abandoned: Vec<usize>,
}

#[derive(Default)]
struct Publisher {
    seq: u32,
    connection: u64,
    /// Attempts, in the order in which they were sent, each with where it went once it is in.
    under_way: VecDeque<(usize, Option<Stored>)>,
}

/// Where something was stored: nowhere in particular in the channel without history.
type Stored = Option<Position>;

impl World {
    fn new(seed: u64) -> Self {
        let subscriber = |n| Subscriber {
            name: format!("s{n}").into(),
            channel: Arc::from(if n < SUBSCRIBERS { KEPT } else { PLAIN }),
            sightings: Vec::new(),
        };
        let subscribers = (0..2 * SUBSCRIBERS).map(subscriber).collect();
        Self {
            random: StdRng::seed_from_u64(seed),
            now: Duration::ZERO,
            history: History { attempts: Vec::new(), subscribers },
            epochs: 1,
            log: Vec::new(),
            trimmed: 0,
            publishers: (0..PUBLISHERS).map(|_| Publisher::default()).collect(),
            connected: vec![false; 2 * SUBSCRIBERS],
            abandoned: Vec::new(),
        }
    }

    fn step(&mut self) {
        self.now += Duration::from_millis(self.random.random_range(1..10));
        let publisher = self.random.random_range(0..PUBLISHERS);
        let subscriber = self.random.random_range(0..2 * SUBSCRIBERS);
        match self.random.random_range(0..100) {
            0..20 => self.begin(publisher),
            20..40 => self.store(publisher),
            40..55 => self.answer(publisher),
            55..57 => self.break_publisher(publisher),
            57..59 => self.store_abandoned(),
            59..92 => drop(self.deliver(subscriber)),
            92..95 => self.disconnect(subscriber),
            95..98 => self.trim(),
            _ => self.lose_epoch(),
        }
    }

    /// Everybody comes to an end, except for one subscriber that has gone for good.
    fn finish(&mut self) {
        for publisher in 0..PUBLISHERS {
            while !self.publishers[publisher as usize].under_way.is_empty() {
                self.now += Duration::from_millis(1);
                self.store(publisher);
                self.answer(publisher);
            }
        }
        self.disconnect(0);
        for subscriber in 1..SUBSCRIBERS {
            while self.deliver(subscriber) {}
        }
    }

    fn begin(&mut self, n: u32) {
        let plain = self.random.random_bool(0.2);
        let publisher = &mut self.publishers[n as usize];
        if publisher.under_way.len() == UNDER_WAY {
            return;
        }
        publisher.seq += 1;
        publisher.under_way.push_back((self.history.attempts.len(), None));
        self.history.attempts.push(Attempt {
            event: EventId { publisher: n + 1, seq: publisher.seq },
            channel: Arc::from(if plain { PLAIN } else { KEPT }),
            started: self.now,
            ended: self.now,
            connection: Some(publisher.connection),
            outcome: Outcome::Unknown,
        });
    }

    /// Stores the first of a publisher's events that is not in yet.
    fn store(&mut self, n: u32) {
        let Some(at) = self.publishers[n as usize].under_way.iter().position(|(_, stored)| stored.is_none()) else {
            return;
        };
        let attempt = self.publishers[n as usize].under_way[at].0;
        if self.random.random_bool(0.1) {
            self.end(attempt, Outcome::Refused);
            self.publishers[n as usize].under_way.remove(at);
            return;
        }
        let stored = self.append(attempt);
        self.publishers[n as usize].under_way[at].1 = Some(stored);
    }

    /// Stores an attempt; in the channel without history, whoever is there sees it at once, or never.
    fn append(&mut self, attempt: usize) -> Stored {
        let Attempt { event, channel, .. } = &self.history.attempts[attempt];
        let event = *event;
        if &**channel == KEPT {
            self.log.push(event);
            return Some(self.top());
        }
        for subscriber in SUBSCRIBERS..2 * SUBSCRIBERS {
            if self.connected[subscriber] && self.random.random_bool(0.9) {
                self.see(subscriber, Saw::Message { position: None, event });
            }
        }
        None
    }

    /// Answers the first of a publisher's events that is in, or lets the answer be lost.
    fn answer(&mut self, n: u32) {
        let under_way = &mut self.publishers[n as usize].under_way;
        let Some((attempt, Some(stored))) = under_way.front().cloned() else { return };
        under_way.pop_front();
        let answered = self.random.random_bool(0.9);
        self.end(attempt, if answered { Outcome::Accepted(stored) } else { Outcome::Unknown });
    }

    /// A publisher loses its connection, and does not learn of anything that was under way.
    fn break_publisher(&mut self, n: u32) {
        let publisher = &mut self.publishers[n as usize];
        publisher.connection += 1;
        let lost = std::mem::take(&mut publisher.under_way);
        // In the channel without history, what comes late would come in the wrong order: there it does not come.
        let late = lost.into_iter().filter(|(_, stored)| stored.is_none()).map(|(attempt, _)| attempt);
        self.abandoned.extend(late.filter(|attempt| &*self.history.attempts[*attempt].channel == KEPT));
    }

    /// What nobody waits for any more may still come in.
    fn store_abandoned(&mut self) {
        if let Some(attempt) = self.abandoned.pop() {
            self.append(attempt);
        }
    }

    /// Gives a subscriber the next thing there is for it; returns whether there was any.
    fn deliver(&mut self, n: usize) -> bool {
        let held = self.held(n);
        if !self.connected[n] {
            self.connected[n] = true;
            let (position, recovered) = match (held, n < SUBSCRIBERS) {
                (_, false) => (None, false),
                (Some(held), true) if self.has_all_after(&held) => (Some(held), true),
                (_, true) => (Some(self.some_position()), false),
            };
            self.see(n, Saw::Subscribed { position, recovered });
            return true;
        }
        let Some(held) = held else { return false };
        if held.epoch != self.epoch() || held.offset < self.trimmed as u64 {
            // Nothing is left to go on from: it is told, unasked.
            let position = Some(self.some_position());
            self.see(n, Saw::Subscribed { position, recovered: false });
            return true;
        }
        let Some(event) = self.log.get(held.offset as usize).copied() else { return false };
        self.see(n, Saw::Message { position: Some(Position { offset: held.offset + 1, ..held }), event });
        true
    }

    fn disconnect(&mut self, n: usize) {
        if std::mem::take(&mut self.connected[n]) {
            self.see(n, Saw::Disconnected);
        }
    }

    fn trim(&mut self) {
        self.trimmed = self.random.random_range(self.trimmed..=self.log.len());
    }

    /// The broker forgets: everything, or after a failover the newest events only.
    fn lose_epoch(&mut self) {
        if self.random.random_bool(0.5) {
            self.epochs += 1;
            let kept = if self.random.random() { 0 } else { self.random.random_range(0..=self.log.len()) };
            self.log.truncate(kept);
            self.trimmed = self.trimmed.min(kept);
        }
    }

    fn epoch(&self) -> Arc<str> {
        format!("e{}", self.epochs).into()
    }

    fn top(&self) -> Position {
        Position { epoch: self.epoch(), offset: self.log.len() as u64 }
    }

    /// Where somebody may be put: at the newest event, or before some that are kept, but never back.
    fn some_position(&mut self) -> Position {
        let offset = self.random.random_range(self.trimmed..=self.log.len()) as u64;
        Position { offset, ..self.top() }
    }

    fn has_all_after(&self, held: &Position) -> bool {
        held.epoch == self.epoch() && self.trimmed as u64 <= held.offset
    }

    fn held(&self, n: usize) -> Option<Position> {
        let positions = self.history.subscribers[n].sightings.iter().rev().filter_map(|sighting| match &sighting.saw {
            Saw::Subscribed { position, .. } | Saw::Message { position, .. } => position.clone(),
            Saw::Disconnected => None,
        });
        positions.take(1).next()
    }

    fn see(&mut self, n: usize, saw: Saw) {
        self.history.subscribers[n].sightings.push(Sighting { at: self.now, saw });
    }

    fn end(&mut self, attempt: usize, outcome: Outcome) {
        let attempt = &mut self.history.attempts[attempt];
        (attempt.ended, attempt.outcome) = (self.now, outcome);
    }
}
