//! Writes down what publishers and subscribers of a run do and see, while they do.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{Attempt, EventId, Floor, History, Outcome, Position, Report, Rule, Saw, Sighting, Subscriber, check};

/// The record of a run. Clones write into the same one.
#[derive(Clone)]
pub struct Recorder {
    started: Instant,
    history: Arc<Mutex<History>>,
}

impl Recorder {
    /// An empty one, whose time begins now.
    pub fn start() -> Self {
        Self { started: Instant::now(), history: Arc::default() }
    }

    /// Time since the start.
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// `event` is sent to `channel` for the first time now.
    pub fn publishes(&self, event: EventId, channel: &Arc<str>) -> Publishing {
        let now = self.now();
        let attempt = Attempt {
            event,
            channel: channel.clone(),
            started: now,
            ended: now,
            connection: None,
            outcome: Outcome::Unknown,
        };
        let index = self.write(|history| {
            history.attempts.push(attempt);
            history.attempts.len() - 1
        });
        Publishing { recorder: self.clone(), index, unanswered: false }
    }

    /// A subscriber of `channel` that has not seen anything yet.
    pub fn subscribes(&self, name: impl Into<Arc<str>>, channel: &Arc<str>) -> Watching {
        let subscriber = Subscriber { name: name.into(), channel: channel.clone(), sightings: Vec::new() };
        let index = self.write(|history| {
            history.subscribers.push(subscriber);
            history.subscribers.len() - 1
        });
        Watching { recorder: self.clone(), index, position: None }
    }

    /// The judgement of what is recorded so far.
    pub fn check(&self, floor: Floor) -> Report {
        self.write(|history| check(history, floor))
    }

    /// Completes once every subscriber is connected and has seen what was accepted, or after `patience`: then what is
    /// missing is lost. To be called when nobody publishes any more.
    pub async fn settle(&self, patience: Duration) {
        let until = Instant::now() + patience;
        while !self.is_settled() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn is_settled(&self) -> bool {
        let report = self.check(Floor::default());
        !report.breaks(Rule::Lost) && self.write(|history| history.subscribers.len() == report.live)
    }

    fn write<T>(&self, change: impl FnOnce(&mut History) -> T) -> T {
        change(&mut self.history.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// An event on its way. Without a word on its outcome, that is unknown.
pub struct Publishing {
    recorder: Recorder,
    index: usize,
    unanswered: bool,
}

impl Publishing {
    /// It is sent over this connection, without waiting for the answers to those before it.
    pub fn over(&mut self, connection: u64) {
        self.write(|attempt| attempt.connection = Some(connection));
    }

    /// It was sent and not answered, and may be sent again: when it comes in is anybody's guess.
    pub fn unanswered(&mut self) {
        self.unanswered = true;
        self.write(|attempt| attempt.connection = None);
    }

    /// It is in.
    pub fn accepted(self, position: Option<Position>) {
        self.ends(Outcome::Accepted(position));
    }

    /// It is not in, unless an earlier try that was not answered has brought it in.
    pub fn refused(self) {
        let outcome = if self.unanswered { Outcome::Unknown } else { Outcome::Refused };
        self.ends(outcome);
    }

    fn ends(&self, outcome: Outcome) {
        let now = self.recorder.now();
        self.write(|attempt| (attempt.ended, attempt.outcome) = (now, outcome));
    }

    fn write(&self, change: impl FnOnce(&mut Attempt)) {
        self.recorder.write(|history| change(&mut history.attempts[self.index]));
    }
}

/// A subscriber, over all its connections.
pub struct Watching {
    recorder: Recorder,
    index: usize,
    position: Option<Position>,
}

impl Watching {
    /// Where it stands, which is what it resumes after.
    pub fn position(&self) -> Option<&Position> {
        self.position.as_ref()
    }

    /// A `subscribed` frame came.
    pub fn subscribed(&mut self, position: Option<Position>, recovered: bool) {
        self.position.clone_from(&position);
        self.saw(Saw::Subscribed { position, recovered });
    }

    /// A `message` frame came, with its offset where there is history.
    pub fn message(&mut self, offset: Option<u64>, event: EventId) {
        let position = offset.zip(self.position.as_ref()).map(|(offset, held)| Position { offset, ..held.clone() });
        if position.is_some() {
            self.position.clone_from(&position);
        }
        self.saw(Saw::Message { position, event });
    }

    /// Its connection ended.
    pub fn disconnected(&self) {
        self.saw(Saw::Disconnected);
    }

    fn saw(&self, saw: Saw) {
        let sighting = Sighting { at: self.recorder.now(), saw };
        self.recorder.write(|history| history.subscribers[self.index].sightings.push(sighting));
    }
}

mod tests {
    use super::*;

    fn at(offset: u64) -> Option<Position> {
        Some(Position { epoch: "e".into(), offset })
    }

    fn event(seq: u32) -> EventId {
        EventId { publisher: 1, seq }
    }

    #[tokio::test]
    async fn what_is_recorded_is_what_is_checked() {
        let recorder = Recorder::start();
        let channel = Arc::from("chat:1");
        let mut ann = recorder.subscribes("ann", &channel);
        ann.subscribed(at(0), false);
        recorder.publishes(event(1), &channel).accepted(at(1));
        let mut second = recorder.publishes(event(2), &channel);
        second.unanswered();
        second.refused();
        recorder.publishes(event(3), &channel).refused();
        let report = recorder.check(Floor { accepted: 1, deliveries: 0, live: 1 });
        assert_eq!(report.outcomes, [1, 1, 1], "what was not answered once may be in");
        assert!(report.breaks(Rule::Lost), "{report}");
        ann.message(Some(1), event(1));
        assert_eq!(ann.position(), at(1).as_ref());
        recorder.settle(crate::support::DEADLINE).await;
        let report = recorder.check(Floor { accepted: 2, deliveries: 2, live: 2 });
        assert_eq!(report.violations.len(), 3, "{report}");
        assert!(report.violations.iter().all(|violation| violation.rule == Rule::Void), "{report}");
        ann.message(Some(2), event(3));
        assert!(recorder.check(Floor::default()).breaks(Rule::Phantom));
    }

    #[tokio::test]
    async fn settling_has_an_end() {
        let recorder = Recorder::start();
        let channel = Arc::from("chat:1");
        recorder.subscribes("ann", &channel).subscribed(at(0), false);
        recorder.publishes(event(1), &channel).accepted(at(1));
        recorder.settle(Duration::from_millis(150)).await;
        assert!(Duration::from_millis(150) <= recorder.now());
        assert!(recorder.check(Floor::default()).breaks(Rule::Lost));
    }
}
