//! The rules, each a walk over the whole history.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use super::{
    Announced, Attempt, EventId, Floor, History, Outcome, Position, Report, Rule, Saw, Sighting, Subscriber, Violation,
};

/// Judges a run.
pub fn check(history: &History, floor: Floor) -> Report {
    let mut report = Report::default();
    for attempt in &history.attempts {
        let outcome = match attempt.outcome {
            Outcome::Accepted(_) => 0,
            Outcome::Refused => 1,
            Outcome::Unknown => 2,
        };
        report.outcomes[outcome] += 1;
    }
    let journeys: Vec<_> = history.subscribers.iter().map(|subscriber| travel(subscriber, &mut report)).collect();
    let accepted = accepted_by_channel(history);
    check_losses(&accepted, &journeys, &mut report);
    check_places(history, &mut report);
    check_order(history, &accepted, &mut report);
    check_phantoms(history, &mut report);
    check_floor(floor, &mut report);
    report
}

impl Report {
    fn add(&mut self, rule: Rule, text: String) {
        self.violations.push(Violation { rule, text });
    }
}

/// Where one subscriber has been.
struct Journey<'a> {
    subscriber: &'a Subscriber,
    /// When it was first subscribed.
    since: Option<Duration>,
    /// Where it stands, or stood last.
    held: Option<Position>,
    /// The epochs that it has been in.
    epochs: HashSet<Arc<str>>,
    /// When it was last told of a loss.
    told: Option<Duration>,
    /// Whether it is connected.
    live: bool,
    /// What it has seen, by epoch; by none in channels without history.
    seen: HashSet<(Option<Arc<str>>, EventId)>,
    /// In channels without history, the last event of each publisher.
    last: HashMap<u32, u32>,
}

/// Follows one subscriber from sighting to sighting.
fn travel<'a>(subscriber: &'a Subscriber, report: &mut Report) -> Journey<'a> {
    let mut journey = Journey {
        subscriber,
        since: None,
        held: None,
        epochs: HashSet::new(),
        told: None,
        live: false,
        seen: HashSet::new(),
        last: HashMap::new(),
    };
    for Sighting { at, saw } in &subscriber.sightings {
        match saw {
            Saw::Subscribed { position, recovered } => {
                journey.live = true;
                journey.since.get_or_insert(*at);
                if let Some(position) = position {
                    journey.subscribed(*at, position, *recovered, report);
                }
            }
            Saw::Message { position, event } => {
                report.deliveries += 1;
                journey.message(*at, position.as_ref(), *event, report);
            }
            Saw::Disconnected => journey.live = false,
        }
    }
    report.live += usize::from(journey.live);
    journey
}

impl Journey<'_> {
    fn subscribed(&mut self, at: Duration, position: &Position, recovered: bool, report: &mut Report) {
        let new_epoch = self.epochs.insert(position.epoch.clone());
        let Some(held) = self.held.replace(position.clone()) else { return };
        let who = self.who(at);
        if recovered {
            if held != *position {
                report.add(
                    Rule::Hole,
                    format!("{who} was told that it has recovered at {position}, but stood at {held}"),
                );
            }
            return;
        }
        self.told = Some(at);
        if held.epoch != position.epoch {
            if !new_epoch {
                report.add(
                    Rule::Order,
                    format!("{who} stood at {held} and was put back into an old epoch, at {position}"),
                );
            }
        } else if position.offset < held.offset {
            report.add(Rule::Doubled, format!("{who} stood at {held} and was put back to {position}"));
        }
        report.announced.push(Announced {
            subscriber: self.subscriber.name.clone(),
            at,
            from: held,
            to: position.clone(),
        });
    }

    fn message(&mut self, at: Duration, position: Option<&Position>, event: EventId, report: &mut Report) {
        let who = || self.who(at);
        if !self.live {
            report.add(Rule::Phantom, format!("{} saw {event} without being subscribed", who()));
        }
        let Some(position) = position else {
            if self.last.insert(event.publisher, event.seq).is_some_and(|last| event.seq < last) {
                report
                    .add(Rule::Order, format!("{} saw {event} after a later one of the same publisher", self.who(at)));
            }
            if !self.seen.insert((None, event)) {
                report.add(Rule::Doubled, format!("{} saw {event} again", self.who(at)));
            }
            return;
        };
        if let Some(held) = &self.held {
            if held.epoch != position.epoch || held.offset + 1 < position.offset {
                report.add(Rule::Hole, format!("{} stood at {held} and saw {event} at {position}", who()));
            } else if position.offset <= held.offset {
                report.add(Rule::Doubled, format!("{} stood at {held} and saw {event} at {position}", who()));
            }
        }
        if !self.seen.insert((Some(position.epoch.clone()), event)) {
            report.add(Rule::Doubled, format!("{} saw {event} again, at {position}", self.who(at)));
        }
        self.epochs.insert(position.epoch.clone());
        self.held = Some(position.clone());
    }

    fn who(&self, at: Duration) -> String {
        format!("{} of {} at {at:.3?}", self.subscriber.name, self.subscriber.channel)
    }

    /// How an event that was accepted after this subscriber had come is lost to it, if it is.
    fn loses(&self, attempt: &Attempt, position: &Position) -> Option<String> {
        let (held, since) = (self.held.as_ref()?, self.since?);
        if !self.live {
            return None;
        }
        if held.epoch == position.epoch {
            // Everything up to where it stands it has seen, or it was told, or there is a hole that is reported.
            return (held.offset < position.offset).then(|| format!("stands at {held}"));
        }
        let left = self.epochs.contains(&position.epoch);
        let told = self.told.is_some_and(|told| attempt.started <= told);
        (!left && !told && since <= attempt.started).then(|| format!("stands at {held} and was never told otherwise"))
    }
}

type Accepted<'a> = HashMap<&'a str, Vec<(&'a Attempt, &'a Position)>>;

/// What was accepted in channels with history, by channel.
fn accepted_by_channel(history: &History) -> Accepted<'_> {
    let mut accepted = Accepted::new();
    for attempt in &history.attempts {
        if let Outcome::Accepted(Some(position)) = &attempt.outcome {
            accepted.entry(&attempt.channel).or_default().push((attempt, position));
        }
    }
    accepted
}

/// Everything accepted was seen, or its loss announced.
fn check_losses(accepted: &Accepted, journeys: &[Journey], report: &mut Report) {
    for journey in journeys {
        let channel = &journey.subscriber.channel;
        for (attempt, position) in accepted.get(&**channel).into_iter().flatten() {
            if let Some(how) = journey.loses(attempt, position) {
                let Attempt { event, started, ended, .. } = attempt;
                report.add(
                    Rule::Lost,
                    format!(
                        "{event}, accepted at {position} of {channel} ({started:.3?} to {ended:.3?}), did not come to \
                         {}, which {how}",
                        journey.subscriber.name
                    ),
                );
            }
        }
    }
}

/// Each place has one event, and each event one place in an epoch, whoever says so.
fn check_places(history: &History, report: &mut Report) {
    let mut events: HashMap<(&str, &Position), (EventId, &str)> = HashMap::new();
    let mut places: HashMap<(&str, &str, EventId), (u64, &str)> = HashMap::new();
    let mut say = |channel, position, event, witness| {
        let &mut (other, first) = events.entry((channel, position)).or_insert((event, witness));
        if other != event {
            let text = format!("{position} of {channel} is {other} to {first} and {event} to {witness}");
            report.add(Rule::Disagreement, text);
        }
        let place = (channel, &*position.epoch, event);
        let &mut (offset, first) = places.entry(place).or_insert((position.offset, witness));
        if offset != position.offset {
            let text = format!("{event} is at {position} of {channel} to {witness}, and at offset {offset} to {first}");
            report.add(Rule::Disagreement, text);
        }
    };
    for attempt in &history.attempts {
        if let Outcome::Accepted(Some(position)) = &attempt.outcome {
            say(&attempt.channel, position, attempt.event, "its publisher");
        }
    }
    for subscriber in &history.subscribers {
        for sighting in &subscriber.sightings {
            if let Saw::Message { position: Some(position), event } = &sighting.saw {
                say(&subscriber.channel, position, *event, &subscriber.name);
            }
        }
    }
}

/// Offsets rise with time, and along each connection; epochs follow one another.
fn check_order(history: &History, accepted: &Accepted, report: &mut Report) {
    for (channel, accepted) in accepted {
        let mut by_epoch = BTreeMap::<&str, Vec<(&Attempt, u64)>>::new();
        for (attempt, position) in accepted {
            by_epoch.entry(&position.epoch).or_default().push((attempt, position.offset));
        }
        for (epoch, accepted) in &by_epoch {
            let place = format!("{channel}, epoch {epoch}");
            check_time(&place, accepted, report);
            check_connections(&place, accepted, report);
            let subscribers = history.subscribers.iter().filter(|subscriber| *subscriber.channel == **channel);
            check_beginnings(epoch, accepted, subscribers, report);
        }
        check_epochs(channel, &by_epoch, report);
    }
}

/// What had been accepted when another one was begun comes before it.
fn check_time(place: &str, accepted: &[(&Attempt, u64)], report: &mut Report) {
    let (mut by_start, mut by_end) = (accepted.to_vec(), accepted.to_vec());
    by_start.sort_by_key(|(attempt, _)| attempt.started);
    by_end.sort_by_key(|(attempt, _)| attempt.ended);
    let mut ended = by_end.into_iter().peekable();
    let mut highest: Option<(&Attempt, u64)> = None;
    for (attempt, offset) in by_start {
        while let Some(before) = ended.next_if(|(before, _)| before.ended < attempt.started) {
            highest = highest.filter(|(_, highest)| before.1 < *highest).or(Some(before));
        }
        if let Some((before, higher)) = highest.filter(|(_, highest)| offset <= *highest) {
            let (one, other) = (attempt.event, before.event);
            let text =
                format!("{place}: {other} was accepted, at {higher}, before {one} was begun, which is at {offset}");
            report.add(Rule::Order, text);
        }
    }
}

/// What was sent over one connection is in the order in which it was sent.
fn check_connections(place: &str, accepted: &[(&Attempt, u64)], report: &mut Report) {
    let mut by_connection = BTreeMap::<(u32, u64), Vec<(u32, u64)>>::new();
    for (attempt, offset) in accepted {
        if let Some(connection) = attempt.connection {
            let key = (attempt.event.publisher, connection);
            by_connection.entry(key).or_default().push((attempt.event.seq, *offset));
        }
    }
    for ((publisher, _), mut sent) in by_connection {
        sent.sort_unstable();
        for pair in sent.windows(2) {
            let [(first, offset), (second, other)] = [pair[0], pair[1]];
            if other <= offset {
                let text = format!(
                    "{place}: {publisher}/{first} was sent before {publisher}/{second}, but is at {offset}, and that at \
                     {other}"
                );
                report.add(Rule::Order, text);
            }
        }
    }
}

/// What is begun after somebody was told a channel's position comes after that position.
fn check_beginnings<'a>(
    epoch: &str,
    accepted: &[(&Attempt, u64)],
    subscribers: impl Iterator<Item = &'a Subscriber>,
    report: &mut Report,
) {
    let mut by_start = accepted.to_vec();
    by_start.sort_by_key(|(attempt, _)| attempt.started);
    // The smallest offset of all that start no earlier.
    let mut lowest = u64::MAX;
    let mut lowest_from: Vec<_> = by_start
        .iter()
        .rev()
        .map(|(_, offset)| {
            lowest = lowest.min(*offset);
            lowest
        })
        .collect();
    lowest_from.reverse();
    for subscriber in subscribers {
        for Sighting { at, saw } in &subscriber.sightings {
            let Saw::Subscribed { position: Some(position), .. } = saw else { continue };
            let later = by_start.partition_point(|(attempt, _)| attempt.started <= *at);
            if let Some(lowest) =
                lowest_from.get(later).filter(|lowest| *position.epoch == *epoch && **lowest <= position.offset)
            {
                let (name, channel) = (&subscriber.name, &subscriber.channel);
                let text =
                    format!("{name} of {channel} was put at {position} at {at:.3?}, and later {lowest} was given out");
                report.add(Rule::Order, text);
            }
        }
    }
}

/// Once an epoch has followed another one, nothing that is begun then goes into the old one.
fn check_epochs(channel: &str, by_epoch: &BTreeMap<&str, Vec<(&Attempt, u64)>>, report: &mut Report) {
    let lives: Vec<_> = by_epoch
        .iter()
        .map(|(epoch, accepted)| {
            let known = accepted.iter().map(|(attempt, _)| attempt.ended).min().unwrap_or_default();
            let alive = accepted.iter().map(|(attempt, _)| attempt.started).max().unwrap_or_default();
            (epoch, known, alive)
        })
        .collect();
    for (n, (one, known, alive)) in lives.iter().enumerate() {
        for (other, other_known, other_alive) in &lives[n + 1..] {
            if known < other_alive && other_known < alive {
                report.add(Rule::Order, format!("{channel} had two epochs at once, {one} and {other}"));
            }
        }
    }
}

/// Nobody sees what does not exist.
fn check_phantoms(history: &History, report: &mut Report) {
    let attempts: HashMap<_, _> = history.attempts.iter().map(|attempt| (attempt.event, attempt)).collect();
    for subscriber in &history.subscribers {
        let (name, channel) = (&subscriber.name, &subscriber.channel);
        for Sighting { at, saw } in &subscriber.sightings {
            let Saw::Message { event, .. } = saw else { continue };
            let problem = match attempts.get(event) {
                None => "which nobody published",
                Some(attempt) if attempt.channel != *channel => "which went elsewhere",
                Some(attempt) if attempt.outcome == Outcome::Refused => "which was refused",
                Some(attempt) if *at < attempt.started => "before it was published",
                Some(_) => continue,
            };
            report.add(Rule::Phantom, format!("{name} of {channel} at {at:.3?} saw {event}, {problem}"));
        }
    }
}

/// Enough happened.
fn check_floor(floor: Floor, report: &mut Report) {
    let counts = [
        (report.outcomes[0], floor.accepted, "events were accepted"),
        (report.deliveries, floor.deliveries, "deliveries were made"),
        (report.live, floor.live, "subscribers are connected at the end"),
    ];
    for (count, floor, what) in counts {
        if count < floor {
            report.add(Rule::Void, format!("only {count} {what}, not {floor}"));
        }
    }
}
