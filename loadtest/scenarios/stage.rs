//! What all scenarios share: connecting a crowd, publishing at a pace or with so much under way, waiting for the rest.
//!
//! A scenario is a few calls on a [`Stage`]: gather, add publishers, mark, drive, drain, mark, finish.

use std::sync::atomic::{AtomicBool, Ordering};

use super::ledger::Ledger;
use crate::{
    clients::{Clock, Crowd, Door},
    monitor::{Mark, Monitor, Second},
    server::{Running, ServerError, Target},
    stamp::{Fill, Stamp, Template},
};

/// Nanoseconds without any progress after which what is missing is given up.
const STALLED_AFTER: u64 = 5_000_000_000;
/// How long connecting everybody may take.
const GATHERED_WITHIN: u64 = 120_000_000_000;
/// Publications sent between two looks at the sockets.
const BURST: usize = 256;

/// Why a turn gave no result.
#[derive(Debug, thiserror::Error)]
pub enum TurnError {
    #[error("interrupted")]
    Interrupted,
    #[error("only {live} of {wanted} clients could connect and subscribe: {}", problems.join("; "))]
    NotGathered { live: usize, wanted: usize, problems: Vec<String> },
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error("the generator failed")]
    Io(#[from] std::io::Error),
}

/// What the whole run shares.
pub struct Context<'a> {
    /// Set when the run is to end early.
    pub stop: &'a AtomicBool,
    pub clock: Clock,
    /// The path of the upgrade.
    pub path: &'a str,
    /// Handshakes under way at once.
    pub at_once: usize,
}

/// What is published and to whom.
#[derive(Clone, Debug)]
pub struct Load {
    pub channels: u32,
    /// Subscribers of each channel.
    pub subscribers: u32,
    pub publishers: u32,
    pub pace: Pace,
    /// Publications that may be under way at once; without a limit, any number.
    pub under_way: Option<usize>,
    pub data_bytes: usize,
    pub fill: Fill,
    pub compression: bool,
    /// Whether the channels keep history.
    pub has_history: bool,
}

impl Load {
    /// The namespace whose channels are as wanted; [`crate::server`] configures both.
    pub fn namespace(&self) -> &'static str {
        if self.has_history { "kept" } else { "load" }
    }
}

/// How fast publications follow each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    Never,
    /// As soon as one more may be under way.
    Free,
    /// So many a second over all channels, at even distances.
    PerSecond(f64),
}

/// One turn in progress.
pub struct Stage<'a> {
    pub ledger: Ledger,
    pub crowd: Crowd,
    pub server: Running,
    context: &'a Context<'a>,
    monitor: Monitor,
    load: Load,
    first_publisher: usize,
    templates: Vec<Template>,
    /// The channel of the next publication.
    turn: u32,
    next_due: u64,
    /// Publishers with queued frames.
    queued: Vec<usize>,
    /// What had come, and when something last did.
    progress: (u64, u64),
}

impl<'a> Stage<'a> {
    /// Starts the server.
    pub fn open(
        context: &'a Context<'a>,
        target: &Target,
        load: &Load,
        label: String,
        noun: &'static str,
    ) -> Result<Self, TurnError> {
        let server = target.start()?;
        let door = Door {
            address: server.address,
            path: context.path.to_owned(),
            compression: load.compression,
            namespace: load.namespace(),
        };
        let has_offsets = load.has_history && !matches!(target, Target::Floor { .. });
        let crowd = Crowd::new(door, context.clock, has_offsets)?;
        let monitor = Monitor::begin(label, noun, server.pid, context.clock.now());
        let mut ledger = Ledger::new(load.channels);
        ledger.slots.set_limit(load.under_way);
        Ok(Self {
            ledger,
            crowd,
            server,
            context,
            monitor,
            load: load.clone(),
            first_publisher: 0,
            templates: Vec::new(),
            turn: 0,
            next_due: 0,
            queued: Vec::new(),
            progress: (0, 0),
        })
    }

    /// Connects every subscriber and waits until all are subscribed. Subscribers are dealt to the channels in turn.
    ///
    /// A `receive_buffer` is the first subscriber's alone: it is the one that will stop reading.
    pub fn gather(&mut self, receive_buffer: Option<usize>) -> Result<(), TurnError> {
        let wanted = self.load.channels as usize * self.load.subscribers as usize;
        for number in 0..wanted {
            self.ledger.audit.subscribe(number as u32 % self.load.channels);
        }
        let channels = self.load.channels as usize;
        self.open_all(wanted, |number| (Some((number % channels) as u32), receive_buffer.filter(|_| number == 0)))?;
        self.first_publisher = wanted;
        Ok(())
    }

    /// Connects the publishers. `acknowledged`: each publication asks for an answer.
    pub fn add_publishers(&mut self, acknowledged: bool) -> Result<(), TurnError> {
        let Load { publishers, data_bytes, fill, .. } = self.load;
        let template = || Template::new(self.load.namespace(), data_bytes, fill, acknowledged);
        self.templates = (0..publishers).map(|_| template()).collect();
        self.open_all(publishers as usize, |_| (None, None))
    }

    /// Nanoseconds of the run's clock.
    pub fn now(&self) -> u64 {
        self.context.clock.now()
    }

    /// Changes the pace; returns what it was.
    pub fn set_pace(&mut self, pace: Pace) -> Pace {
        std::mem::replace(&mut self.load.pace, pace)
    }

    /// Reads everything now.
    pub fn mark(&self) -> Mark {
        Mark::read(self.now(), self.server.pid, self.ledger.audit.deliveries(), self.crowd.received_bytes())
    }

    /// Starts to record: what was published before does not count.
    pub fn measure(&mut self) -> Mark {
        self.ledger.measure_from = self.now();
        self.ledger.latency.clear();
        self.ledger.second.clear();
        self.mark()
    }

    /// Publishes at the load's pace and reads for `seconds`; returns early where nothing comes any more.
    pub fn drive(&mut self, seconds: f64) -> Result<(), TurnError> {
        let until = self.now() + (seconds * 1e9) as u64;
        self.next_due = self.next_due.max(self.now());
        self.progress.1 = self.now();
        loop {
            let now = self.now();
            let is_owed = 0 < self.ledger.slots.under_way();
            if until <= now || is_owed && self.is_stalled() {
                return Ok(());
            }
            self.publish(now);
            self.attend(self.wait_until().min(until))?;
        }
    }

    /// Publishes once into each channel, then drains.
    pub fn publish_to_all(&mut self) -> Result<(), TurnError> {
        for _ in 0..self.load.channels {
            let now = self.now();
            self.publish_one(now);
            self.flush();
        }
        self.drain()
    }

    /// Reads until everything under way has come, or nothing comes any more.
    pub fn drain(&mut self) -> Result<(), TurnError> {
        self.wait_for(|stage| stage.ledger.slots.under_way() == 0)
    }

    /// Reads until `is_done`, or nothing comes any more.
    pub fn wait_for(&mut self, is_done: impl Fn(&Self) -> bool) -> Result<(), TurnError> {
        self.progress.1 = self.now();
        while !is_done(self) && !self.is_stalled() {
            self.attend(self.now() + 50_000_000)?;
        }
        Ok(())
    }

    /// Lets each publisher have `under_way` publications unacknowledged, and sends the first ones.
    pub fn begin_exchange(&mut self, under_way: usize) {
        let publishers = self.templates.len();
        self.ledger.acknowledgements.prepare(publishers, under_way);
        for publisher in 0..publishers {
            self.send_acknowledged(publisher, under_way);
        }
    }

    /// Answers each acknowledgement with another publication for `seconds`.
    pub fn exchange(&mut self, seconds: f64) -> Result<(), TurnError> {
        let until = self.now() + (seconds * 1e9) as u64;
        self.progress.1 = self.now();
        while self.now() < until && !self.is_stalled() {
            while let Some((publisher, credits)) = self.ledger.acknowledgements.take_credit() {
                self.send_acknowledged(publisher, credits as usize);
            }
            self.attend(until)?;
        }
        Ok(())
    }

    /// Ends the connections and the server; returns the ledger and the timeline.
    pub fn finish(self) -> Result<(Ledger, Vec<Second>), TurnError> {
        let timeline = self.monitor.finish();
        self.crowd.close();
        self.server.stop()?;
        Ok((self.ledger, timeline))
    }

    /// Sends `count` publications of one publisher into its own channel, in one write.
    fn send_acknowledged(&mut self, publisher: usize, count: usize) {
        for _ in 0..count {
            let at = self.now();
            let number = self.ledger.audit.published(publisher as u32);
            self.ledger.acknowledgements.sent(publisher, number.into(), at);
            let stamp = Stamp { at, channel: publisher as u32, number, slot: 0 };
            let text = self.templates[publisher].stamped(stamp, number.into());
            self.crowd.queue(publisher, text);
        }
        self.crowd.flush(publisher, &mut self.ledger);
    }

    fn open_all(&mut self, count: usize, how: impl Fn(usize) -> (Option<u32>, Option<usize>)) -> Result<(), TurnError> {
        let (before, deadline) = (self.ledger.live, self.now() + GATHERED_WITHIN);
        let mut opened = 0;
        while self.ledger.live - before < count {
            let (now, problems) = (self.now(), self.ledger.problem_count);
            if deadline < now || 0 < problems {
                let problems = self.ledger.problems.clone();
                return Err(TurnError::NotGathered { live: self.ledger.live - before, wanted: count, problems });
            }
            while opened < count && opened - (self.ledger.live - before) < self.context.at_once {
                let (channel, receive_buffer) = how(opened);
                self.crowd.open(channel, receive_buffer)?;
                opened += 1;
            }
            self.attend(now + 100_000_000)?;
        }
        Ok(())
    }

    /// Waits for the sockets until `deadline` at the latest, and looks at the clock.
    fn attend(&mut self, deadline: u64) -> Result<(), TurnError> {
        if self.context.stop.load(Ordering::Relaxed) {
            return Err(TurnError::Interrupted);
        }
        self.crowd.poll(deadline.min(self.monitor.next_at()), &mut self.ledger)?;
        let (now, count) = (self.now(), self.ledger.audit.deliveries());
        self.monitor.look(now, count, self.ledger.live, &mut self.ledger.second);
        if count != self.progress.0 {
            self.progress = (count, now);
        }
        Ok(())
    }

    /// Whether nothing has come for long.
    fn is_stalled(&self) -> bool {
        self.progress.1 + STALLED_AFTER < self.now()
    }

    fn publish(&mut self, now: u64) {
        for _ in 0..BURST {
            let is_due = match self.load.pace {
                Pace::Never => false,
                Pace::Free => true,
                Pace::PerSecond(_) => self.next_due <= now,
            };
            if !is_due || !self.ledger.slots.has_room() || self.crowd.is_backlogged(self.next_publisher()) {
                break;
            }
            let at = match self.load.pace {
                Pace::PerSecond(rate) => {
                    let due = self.next_due;
                    self.next_due += (1e9 / rate) as u64;
                    due
                }
                _ => self.now(),
            };
            self.publish_one(at);
        }
        self.flush();
    }

    /// Queues one publication to the next channel; its latency counts from `at`.
    fn publish_one(&mut self, at: u64) {
        let publisher = self.next_publisher();
        let channel = self.turn;
        self.turn = (self.turn + 1) % self.load.channels;
        let number = self.ledger.audit.published(channel);
        let stopped_here = self.ledger.stopped.is_some_and(|client| client as u32 % self.load.channels == channel);
        let slot = self.ledger.slots.take(self.load.subscribers - u32::from(stopped_here));
        let template = &mut self.templates[publisher - self.first_publisher];
        self.crowd.queue(publisher, template.stamped(Stamp { at, channel, number, slot }, 0));
        if self.queued.last() != Some(&publisher) {
            self.queued.push(publisher);
        }
    }

    /// A channel always has the same publisher, so that its order is known.
    fn next_publisher(&self) -> usize {
        self.first_publisher + (self.turn % self.load.publishers) as usize
    }

    fn flush(&mut self) {
        while let Some(publisher) = self.queued.pop() {
            self.crowd.flush(publisher, &mut self.ledger);
        }
    }

    /// Until when nothing is to be sent.
    fn wait_until(&self) -> u64 {
        match self.load.pace {
            Pace::PerSecond(_) if self.ledger.slots.has_room() => self.next_due,
            _ => u64::MAX,
        }
    }
}
