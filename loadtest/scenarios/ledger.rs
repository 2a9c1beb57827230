//! What is written down while a scenario runs: deliveries, their latencies, who is connected, and what went wrong.

use crate::{
    audit::Audit,
    clients::{Delivery, End, Watcher},
    histogram::Histogram,
};

/// Problems kept in words; a thousand clients often have the same one.
const PROBLEMS: usize = 5;

/// Everything that clients tell during one turn.
///
/// Client `n` is the audit's subscriber `n`; clients beyond those only publish.
pub struct Ledger {
    pub audit: Audit,
    pub slots: Slots,
    /// Clients that are connected and subscribed.
    pub live: usize,
    /// From opening a connection to its subscription.
    pub handshakes: Histogram,
    /// From publishing to one subscriber's read, or to the acknowledgement.
    pub latency: Histogram,
    /// From publishing to the last subscriber's read.
    pub completion: Histogram,
    /// The latencies of this second alone.
    pub second: Histogram,
    /// Only what was published from then on is recorded.
    pub measure_from: u64,
    /// A client that was told to stop reading: its latencies are its own fault.
    pub stopped: Option<usize>,
    /// How the stopped client ended, if it did.
    pub stopped_end: Option<End>,
    pub acknowledgements: Acknowledgements,
    pub problems: Vec<String>,
    /// All problems, also those that are not kept in words.
    pub problem_count: u64,
}

impl Ledger {
    /// An empty ledger for so many channels.
    pub fn new(channels: u32) -> Self {
        Self {
            audit: Audit::new(channels),
            slots: Slots::default(),
            live: 0,
            handshakes: Histogram::default(),
            latency: Histogram::default(),
            completion: Histogram::default(),
            second: Histogram::default(),
            measure_from: u64::MAX,
            stopped: None,
            stopped_end: None,
            acknowledgements: Acknowledgements::default(),
            problems: Vec::new(),
            problem_count: 0,
        }
    }

    /// Writes down something that must not happen.
    pub fn problem(&mut self, problem: String) {
        self.problem_count += 1;
        if self.problems.len() < PROBLEMS {
            self.problems.push(problem);
        }
    }

    fn record(&mut self, at: u64, now: u64) {
        if self.measure_from <= at {
            let took = now.saturating_sub(at);
            self.latency.record(took);
            self.second.record(took);
        }
    }
}

impl Watcher for Ledger {
    fn live(&mut self, _client: usize, took: u64) {
        self.live += 1;
        self.handshakes.record(took);
    }

    fn delivered(&mut self, client: usize, delivery: &Delivery) {
        let stamp = &delivery.stamp;
        if let Some(offset) = delivery.offset {
            self.audit.offset(client, offset);
        }
        let is_owed = self.audit.delivered(client, stamp.channel, stamp.number);
        if self.stopped == Some(client) {
            return;
        }
        self.record(stamp.at, delivery.now);
        if is_owed && self.slots.arrived(stamp.slot) && self.measure_from <= stamp.at {
            self.completion.record(delivery.now.saturating_sub(stamp.at));
        }
    }

    fn acknowledged(&mut self, client: usize, id: u64, offset: Option<u64>, now: u64) {
        if let Some(offset) = offset {
            self.audit.offset(client, offset);
        }
        if self.audit.delivered(client, client as u32, id as u32) {
            let at = self.acknowledgements.arrived(client, id);
            self.record(at, now);
        }
    }

    fn refused(&mut self, client: usize, code: &str) {
        self.problem(format!("client {client} was refused: {code}"));
    }

    fn ended(&mut self, client: usize, end: End) {
        if self.stopped != Some(client) {
            return self.problem(format!("client {client}: {end}"));
        }
        match end {
            End::Closed { .. } => self.audit.excuse(client),
            _ => self.problem(format!("the stopped reader was cut off without being told why: {end}")),
        }
        self.stopped_end = Some(end);
    }
}

/// Publications under way, each with how many deliveries it still waits for.
#[derive(Debug, Default)]
pub struct Slots {
    waiting: Vec<u32>,
    free: Vec<u32>,
    limit: Option<usize>,
}

impl Slots {
    /// Sets how many may be under way at once; without a limit, any number.
    pub fn set_limit(&mut self, limit: Option<usize>) {
        self.limit = limit;
    }

    /// Whether one more publication may be under way.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty() || self.limit.is_none_or(|limit| self.waiting.len() < limit)
    }

    /// Takes a slot for a publication that `deliveries` subscribers are to get.
    pub fn take(&mut self, deliveries: u32) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.waiting.push(0);
            self.waiting.len() as u32 - 1
        });
        self.waiting[slot as usize] = deliveries;
        slot
    }

    /// How many publications are under way.
    pub fn under_way(&self) -> usize {
        self.waiting.len() - self.free.len()
    }

    /// One delivery came; returns whether it was the last of its publication.
    fn arrived(&mut self, slot: u32) -> bool {
        match self.waiting.get_mut(slot as usize) {
            Some(waiting) if 0 < *waiting => {
                *waiting -= 1;
                if *waiting == 0 {
                    self.free.push(slot);
                }
                *waiting == 0
            }
            _ => false,
        }
    }
}

/// When each publisher sent what is not acknowledged yet, and who may send more.
#[derive(Debug, Default)]
pub struct Acknowledgements {
    under_way: usize,
    sent: Vec<Box<[u64]>>,
    /// Publishers with acknowledgements since the last look, and how many each has.
    credits: Vec<u32>,
    touched: Vec<usize>,
}

impl Acknowledgements {
    /// Prepares for so many publishers with so many publications under way each.
    pub fn prepare(&mut self, publishers: usize, under_way: usize) {
        self.under_way = under_way;
        self.sent = vec![vec![0; under_way].into_boxed_slice(); publishers];
        self.credits = vec![0; publishers];
    }

    /// Takes note of when a publication was sent.
    pub fn sent(&mut self, publisher: usize, id: u64, at: u64) {
        self.sent[publisher][id as usize % self.under_way] = at;
    }

    /// A publisher that may send, with how many.
    pub fn take_credit(&mut self) -> Option<(usize, u32)> {
        let publisher = self.touched.pop()?;
        Some((publisher, std::mem::take(&mut self.credits[publisher])))
    }

    fn arrived(&mut self, publisher: usize, id: u64) -> u64 {
        if self.credits[publisher] == 0 {
            self.touched.push(publisher);
        }
        self.credits[publisher] += 1;
        self.sent[publisher][id as usize % self.under_way]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_free_again_after_its_last_delivery() {
        let mut slots = Slots::default();
        slots.set_limit(Some(2));
        let (first, second) = (slots.take(2), slots.take(1));
        assert!(!slots.has_room());
        assert!(!slots.arrived(first));
        assert!(slots.arrived(second));
        assert!(!slots.arrived(second), "a double frees nothing");
        assert!(!slots.arrived(99), "nor does a phantom");
        assert_eq!((slots.under_way(), slots.has_room()), (1, true));
        assert_eq!(slots.take(5), second);
    }

    #[test]
    fn credits_come_back_with_acknowledgements() {
        let mut acknowledgements = Acknowledgements::default();
        acknowledgements.prepare(2, 4);
        for id in 0..4 {
            acknowledgements.sent(1, id, 100 + id);
        }
        assert_eq!(acknowledgements.take_credit(), None);
        assert_eq!(acknowledgements.arrived(1, 0), 100);
        assert_eq!(acknowledgements.arrived(1, 3), 103);
        assert_eq!(acknowledgements.take_credit(), Some((1, 2)));
        assert_eq!(acknowledgements.take_credit(), None);
    }
}
