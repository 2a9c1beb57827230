//! What went missing, came twice, came out of order, or was never published.
//!
//! Publications of a channel are numbered 0, 1, 2 … by [`Audit::published`]; each subscriber must be handed every number
//! of its channel once and in order. The right case costs one comparison and allocates nothing; only mistakes are
//! remembered. The audit is itself tested with seeded mistakes, below: an audit that finds nothing proves nothing
//! otherwise.

use std::ops::Range;

use serde::Serialize;

/// How many mistakes are described in words.
const EXAMPLES: usize = 5;

/// Follows what every subscriber is handed.
#[derive(Debug)]
pub struct Audit {
    /// Per channel, how many publications there were.
    published: Vec<u32>,
    subscribers: Vec<Subscriber>,
    verdict: Verdict,
}

#[derive(Debug)]
struct Subscriber {
    channel: u32,
    /// The number that must come next.
    next: u32,
    /// The newest offset in the channel's history, where it keeps one.
    offset: Option<u64>,
    /// Skipped numbers before `next`: lost, unless they still come.
    missing: Vec<Range<u32>>,
    /// The server said that it gave this one up, so what it misses is not lost silently.
    excused: bool,
}

/// What the audit found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Deliveries that had to come.
    pub expected: u64,
    /// Deliveries that came, mistaken ones included.
    pub delivered: u64,
    pub lost: u64,
    pub doubled: u64,
    /// Came after a later one of the same channel.
    pub out_of_order: u64,
    /// Never published, or published to another channel.
    pub phantom: u64,
    /// Offsets in history that did not rise by exactly one.
    pub wrong_offsets: u64,
    /// Missed by subscribers that were told so.
    pub announced: u64,
    /// The first mistakes, in words.
    pub examples: Vec<String>,
}

impl Verdict {
    /// Whether every delivery came once and in order.
    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.doubled == 0 && self.out_of_order == 0 && self.phantom == 0 && self.wrong_offsets == 0
    }

    fn note(&mut self, example: impl FnOnce() -> String) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(example());
        }
    }
}

impl Audit {
    /// An audit of channels `0..channels`, without subscribers yet.
    pub fn new(channels: u32) -> Self {
        Self { published: vec![0; channels as usize], subscribers: Vec::new(), verdict: Verdict::default() }
    }

    /// Adds a subscriber of `channel`, who must be handed everything from the next publication on.
    pub fn subscribe(&mut self, channel: u32) -> usize {
        let next = self.published[channel as usize];
        self.subscribers.push(Subscriber { channel, next, offset: None, missing: Vec::new(), excused: false });
        self.subscribers.len() - 1
    }

    /// Counts a publication and returns its number in the channel.
    pub fn published(&mut self, channel: u32) -> u32 {
        let count = &mut self.published[channel as usize];
        *count += 1;
        *count - 1
    }

    /// Takes note that `subscriber` was handed publication `number` of `channel`; returns whether it was owed this one.
    pub fn delivered(&mut self, subscriber: usize, channel: u32, number: u32) -> bool {
        self.verdict.delivered += 1;
        if let Some(state) = self.subscribers.get_mut(subscriber)
            && (number, channel) == (state.next, state.channel)
            && number < self.published[channel as usize]
        {
            state.next += 1;
            return true;
        }
        self.mistaken(subscriber, channel, number)
    }

    /// Takes note of the `offset` that a delivery carried.
    pub fn offset(&mut self, subscriber: usize, offset: u64) {
        if let Some(before) = self.subscribers.get_mut(subscriber).and_then(|state| state.offset.replace(offset))
            && offset != before + 1
        {
            self.verdict.wrong_offsets += 1;
            self.verdict.note(|| format!("subscriber {subscriber}: offset {offset} came after {before}"));
        }
    }

    /// Takes note that the server said openly that it gave up on `subscriber`.
    pub fn excuse(&mut self, subscriber: usize) {
        self.subscribers[subscriber].excused = true;
    }

    /// How many deliveries have come.
    pub fn deliveries(&self) -> u64 {
        self.verdict.delivered
    }

    /// What `subscriber` still misses of all that was published so far.
    pub fn misses(&self, subscriber: usize) -> u64 {
        let state = &self.subscribers[subscriber];
        let tail = self.published[state.channel as usize].saturating_sub(state.next);
        u64::from(tail) + state.missing.iter().map(|gap| u64::from(gap.end - gap.start)).sum::<u64>()
    }

    /// Adds up. Whatever has not come by now is lost.
    pub fn finish(mut self) -> Verdict {
        for index in 0..self.subscribers.len() {
            let misses = self.misses(index);
            let state = &self.subscribers[index];
            self.verdict.expected += u64::from(self.published[state.channel as usize]);
            if misses == 0 {
                continue;
            }
            if state.excused {
                self.verdict.announced += misses;
                continue;
            }
            self.verdict.lost += misses;
            let first = state.missing.first().map_or(state.next, |gap| gap.start);
            let channel = state.channel;
            self.verdict
                .note(|| format!("subscriber {index}: {misses} of channel {channel} never came, first number {first}"));
        }
        self.verdict
    }

    /// Sorts a delivery that is not the one to come next into what it is.
    #[cold]
    fn mistaken(&mut self, subscriber: usize, channel: u32, number: u32) -> bool {
        let known = self.published.get(channel as usize).copied().unwrap_or(0);
        let state = self.subscribers.get_mut(subscriber).filter(|state| state.channel == channel && number < known);
        let Some(state) = state else {
            self.verdict.phantom += 1;
            self.verdict.note(|| format!("client {subscriber}: number {number} of channel {channel} was not for it"));
            return false;
        };
        if state.next < number {
            state.missing.push(state.next..number);
            state.next = number + 1;
            return true;
        }
        match take(&mut state.missing, number) {
            true => {
                self.verdict.out_of_order += 1;
                let next = state.next;
                self.verdict.note(|| format!("subscriber {subscriber}: number {number} came after {}", next - 1));
                true
            }
            false => {
                self.verdict.doubled += 1;
                self.verdict.note(|| format!("subscriber {subscriber}: number {number} came twice"));
                false
            }
        }
    }
}

/// Removes `number` from the gaps; returns whether it was in one.
fn take(missing: &mut Vec<Range<u32>>, number: u32) -> bool {
    let Some(index) = missing.iter().position(|gap| gap.contains(&number)) else { return false };
    let gap = missing.remove(index);
    for rest in [number + 1..gap.end, gap.start..number] {
        if !rest.is_empty() {
            missing.insert(index, rest);
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    use super::*;

    const CHANNELS: u32 = 3;
    const SUBSCRIBERS: usize = 9;
    const PUBLICATIONS: u32 = 40;

    /// What every subscriber was handed, as (channel, number).
    type Deliveries = Vec<Vec<(u32, u32)>>;

    fn honest() -> Deliveries {
        (0..SUBSCRIBERS).map(|index| (0..PUBLICATIONS).map(|n| (index as u32 % CHANNELS, n)).collect()).collect()
    }

    fn audit(deliveries: &Deliveries) -> Verdict {
        let mut audit = Audit::new(CHANNELS);
        for index in 0..SUBSCRIBERS {
            audit.subscribe(index as u32 % CHANNELS);
        }
        for channel in 0..CHANNELS {
            for _ in 0..PUBLICATIONS {
                audit.published(channel);
            }
        }
        for (subscriber, numbers) in deliveries.iter().enumerate() {
            for &(channel, number) in numbers {
                audit.delivered(subscriber, channel, number);
            }
        }
        audit.finish()
    }

    /// The counts alone: lost, doubled, out of order, phantom.
    fn counts(verdict: &Verdict) -> [u64; 4] {
        [verdict.lost, verdict.doubled, verdict.out_of_order, verdict.phantom]
    }

    /// Makes one mistake at a random place and expects the audit to find just this one.
    fn every_seed_finds(expected: [u64; 4], mistake: impl Fn(&mut Vec<(u32, u32)>, &mut SmallRng)) {
        for seed in 0..500 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut deliveries = honest();
            mistake(&mut deliveries[rng.random_range(0..SUBSCRIBERS)], &mut rng);
            let verdict = audit(&deliveries);
            assert_eq!(counts(&verdict), expected, "seed {seed}: {verdict:?}");
            assert!(!verdict.is_clean() && verdict.examples.len() == 1, "seed {seed}: {verdict:?}");
        }
    }

    #[test]
    fn an_honest_run_is_clean() {
        let verdict = audit(&honest());
        assert!(verdict.is_clean(), "{verdict:?}");
        assert_eq!((verdict.expected, verdict.delivered), (360, 360));
    }

    #[test]
    fn a_lost_delivery_is_found() {
        every_seed_finds([1, 0, 0, 0], |numbers, rng| {
            numbers.remove(rng.random_range(0..numbers.len()));
        });
    }

    #[test]
    fn a_doubled_delivery_is_found_wherever_the_second_comes() {
        every_seed_finds([0, 1, 0, 0], |numbers, rng| {
            let first = rng.random_range(0..numbers.len());
            let again = rng.random_range(first + 1..=numbers.len());
            numbers.insert(again, numbers[first]);
        });
    }

    #[test]
    fn two_swapped_deliveries_are_found() {
        every_seed_finds([0, 0, 1, 0], |numbers, rng| {
            let first = rng.random_range(0..numbers.len() - 1);
            numbers.swap(first, first + 1);
        });
    }

    #[test]
    fn a_phantom_is_found() {
        every_seed_finds([0, 0, 0, 1], |numbers, rng| {
            let (channel, number) = match rng.random_range(0..3) {
                0 => ((numbers[0].0 + 1) % CHANNELS, rng.random_range(0..PUBLICATIONS)),
                1 => (numbers[0].0, PUBLICATIONS + rng.random_range(0..1000)),
                _ => (CHANNELS + 7, 0),
            };
            let at = rng.random_range(0..=numbers.len());
            numbers.insert(at, (channel, number));
        });
    }

    #[test]
    fn several_mistakes_at_once_are_told_apart() {
        let mut deliveries = honest();
        deliveries[0].drain(5..15);
        deliveries[1].extend_from_within(0..3);
        deliveries[2].reverse();
        let verdict = audit(&deliveries);
        assert_eq!(counts(&verdict), [10, 3, u64::from(PUBLICATIONS) - 1, 0], "{verdict:?}");
        assert_eq!(verdict.examples.len(), EXAMPLES);
    }

    #[test]
    fn an_excused_subscriber_misses_openly() {
        let mut audit = Audit::new(1);
        let subscriber = audit.subscribe(0);
        for _ in 0..10 {
            audit.published(0);
        }
        audit.delivered(subscriber, 0, 0);
        assert_eq!(audit.misses(subscriber), 9);
        audit.excuse(subscriber);
        let verdict = audit.finish();
        assert!(verdict.is_clean());
        assert_eq!((verdict.lost, verdict.announced), (0, 9));
    }

    #[test]
    fn offsets_must_rise_by_one() {
        let mut audit = Audit::new(1);
        let subscriber = audit.subscribe(0);
        for offset in [41, 42, 43] {
            audit.offset(subscriber, offset);
        }
        audit.offset(subscriber, 45);
        audit.offset(subscriber, 45);
        let verdict = audit.finish();
        assert_eq!(verdict.wrong_offsets, 2);
        assert!(!verdict.is_clean());
    }
}
