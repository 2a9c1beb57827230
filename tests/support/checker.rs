//! The history checker: given what publishers did and what subscribers saw, finds every broken promise.
//!
//! It knows nothing of how the server works, only what is promised:
//!
//! - [`Rule::Lost`]: what was accepted reaches every subscriber, or that one was told of a loss which covers it.
//! - [`Rule::Doubled`]: nothing comes twice to a subscriber within an epoch, and nothing is stored twice in one.
//! - [`Rule::Hole`]: offsets rise by one; a jump is announced, and `recovered` is only said where it is true.
//! - [`Rule::Disagreement`]: all subscribers and answers agree which event has which offset.
//! - [`Rule::Order`]: what was accepted before another one was begun has the smaller offset; likewise what was sent
//!   before it on one connection; an epoch that was replaced does not come back.
//! - [`Rule::Phantom`]: nobody sees what was refused, never published, or not published yet.
//! - [`Rule::Void`]: enough happened for all this to mean something.
//!
//! Events name themselves in their data ([`EventId`]). A run is recorded by a [`recorder::Recorder`];
//! [`check`] judges it. That the checker finds what it should is tested with right histories, and with wrong ones made
//! from them (`mutants.rs`).

mod mutants;
pub mod recorder;
mod rules;
mod simulation;

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc, time::Duration};

pub use self::rules::check;

/// One event of one publisher, which counts its own from 1 in the order in which it sends them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId {
    /// Who published it.
    pub publisher: u32,
    /// Its number among that one's.
    pub seq: u32,
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.publisher, self.seq)
    }
}

impl FromStr for EventId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts =
            text.split_once('/').and_then(|(publisher, seq)| Some((publisher.parse().ok()?, seq.parse().ok()?)));
        parts.map(|(publisher, seq)| Self { publisher, seq }).ok_or_else(|| format!("`{text}` names no event"))
    }
}

/// Where an event is, or a subscriber stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position {
    /// The epoch.
    pub epoch: Arc<str>,
    /// The offset in it.
    pub offset: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch, self.offset)
    }
}

/// All that happened in one run. Times are since its start.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// What publishers did, by the time it was begun.
    pub attempts: Vec<Attempt>,
    /// What subscribers saw.
    pub subscribers: Vec<Subscriber>,
}

/// One event that somebody tried to publish, with all its repetitions under the same key.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The event.
    pub event: EventId,
    /// Where to.
    pub channel: Arc<str>,
    /// When it was first sent.
    pub started: Duration,
    /// When the outcome was known.
    pub ended: Duration,
    /// The connection over which it was sent, if without waiting for the answers to those before it.
    pub connection: Option<u64>,
    /// What became of it.
    pub outcome: Outcome,
}

/// What a publisher knows of its event at the end.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It is in; with its position in channels that have history.
    Accepted(Option<Position>),
    /// It is not in and will never be.
    Refused,
    /// It may be either.
    Unknown,
}

/// One subscriber of one channel, over all its connections.
#[derive(Clone, Debug)]
pub struct Subscriber {
    /// What violations call it.
    pub name: Arc<str>,
    /// The channel.
    pub channel: Arc<str>,
    /// What it saw, in order.
    pub sightings: Vec<Sighting>,
}

/// Something that a subscriber saw.
#[derive(Clone, Debug)]
pub struct Sighting {
    /// When.
    pub at: Duration,
    /// What.
    pub saw: Saw,
}

/// What a subscriber may see. Positions are absent in channels without history.
#[derive(Clone, Debug)]
pub enum Saw {
    /// It stands here now; whether without a loss since it last stood somewhere.
    Subscribed {
        /// Where.
        position: Option<Position>,
        /// Whether the server says that nothing is missing.
        recovered: bool,
    },
    /// An event.
    Message {
        /// Where the event is.
        position: Option<Position>,
        /// Which one.
        event: EventId,
    },
    /// Its connection ended.
    Disconnected,
}

/// A promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rule {
    /// Accepted, and neither seen nor announced as lost.
    Lost,
    /// Seen or stored twice.
    Doubled,
    /// A jump that nobody announced.
    Hole,
    /// Two events in one place, or one event in two.
    Disagreement,
    /// The later one came first.
    Order,
    /// Seen, though it should not exist.
    Phantom,
    /// Too little happened.
    Void,
}

/// A promise that was broken, and how.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Which one.
    pub rule: Rule,
    /// How, for people.
    pub text: String,
}

/// A loss that a subscriber was told of.
#[derive(Clone, Debug)]
pub struct Announced {
    /// Who was told.
    pub subscriber: Arc<str>,
    /// When.
    pub at: Duration,
    /// Where it stood.
    pub from: Position,
    /// Where it stands now.
    pub to: Position,
}

/// What must at least have happened for a run to mean something.
#[derive(Clone, Copy, Debug, Default)]
pub struct Floor {
    /// Events that were accepted.
    pub accepted: usize,
    /// Events that were seen, counted once for each subscriber.
    pub deliveries: usize,
    /// Subscribers that are connected at the end.
    pub live: usize,
}

/// The judgement of a run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Every broken promise.
    pub violations: Vec<Violation>,
    /// Every loss that was announced: no violation, but to be explained by what was done to the server.
    pub announced: Vec<Announced>,
    /// How many events were accepted, refused, and neither.
    pub outcomes: [usize; 3],
    /// How many events were seen, counted once for each subscriber.
    pub deliveries: usize,
    /// How many subscribers are connected at the end.
    pub live: usize,
}

impl Report {
    /// Whether this promise was broken.
    pub fn breaks(&self, rule: Rule) -> bool {
        self.violations.iter().any(|violation| violation.rule == rule)
    }
}

/// How many violations of one rule are written out.
const SHOWN: usize = 10;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [accepted, refused, unknown] = self.outcomes;
        writeln!(
            f,
            "{accepted} accepted, {refused} refused, {unknown} unknown; {} deliveries; {} live; {} losses announced; \
             {} violations",
            self.deliveries,
            self.live,
            self.announced.len(),
            self.violations.len()
        )?;
        let mut by_rule = BTreeMap::<Rule, Vec<&str>>::new();
        for violation in &self.violations {
            by_rule.entry(violation.rule).or_default().push(&violation.text);
        }
        for (rule, texts) in by_rule {
            texts.iter().take(SHOWN).try_for_each(|text| writeln!(f, "{rule:?}: {text}"))?;
            if SHOWN < texts.len() {
                writeln!(f, "{rule:?}: and {} more", texts.len() - SHOWN)?;
            }
        }
        Ok(())
    }
}
