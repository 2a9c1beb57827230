//! The checker, checked: it finds nothing in right histories, and in each wrong one what is wrong with it.

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IteratorRandom};

use super::{
    Attempt, EventId, Floor, History, Outcome, Position, Rule, Saw, check,
    simulation::{KEPT, PLAIN, history},
};

/// How many right histories are made up.
const SEEDS: u64 = 100;

/// Of how many histories a mutant must at least be possible, for its test to mean something.
const MUTATED: usize = 25;

#[test]
fn right_histories_have_no_fault() {
    let (mut deliveries, mut announced, mut outcomes) = (0, 0, [0; 3]);
    for seed in 0..SEEDS {
        let report = check(&history(seed), Floor::default());
        assert!(report.violations.is_empty(), "seed {seed}: {report}");
        deliveries += report.deliveries;
        announced += report.announced.len();
        outcomes = std::array::from_fn(|n| outcomes[n] + report.outcomes[n]);
    }
    // What is made up has everything in it.
    let enough = [deliveries, announced, outcomes[0], outcomes[1], outcomes[2]].map(|count| SEEDS as usize <= count);
    assert_eq!(enough, [true; 5], "{deliveries} deliveries, {announced} announced, {outcomes:?}");
}

/// Makes a wrong history of a right one, or says that it cannot be done with this one.
type Mutant = fn(&mut History, &mut StdRng) -> Option<()>;

/// Every wrong history breaks this rule.
fn each_breaks(rule: Rule, mutant: Mutant) {
    let mut mutated = 0;
    for seed in 0..SEEDS {
        let (mut history, mut random) = (history(seed), StdRng::seed_from_u64(seed));
        if mutant(&mut history, &mut random).is_some() {
            mutated += 1;
            let report = check(&history, Floor::default());
            assert!(report.breaks(rule), "seed {seed}: {report}");
        }
    }
    assert!(MUTATED <= mutated, "only {mutated} of {SEEDS} histories could be made wrong");
}

#[test]
fn an_accepted_event_that_the_last_to_stand_there_never_saw_is_lost() {
    each_breaks(Rule::Lost, |history, random| {
        let accepted = accepted(history);
        let lost = random_sighting(history, random, |history, n, at| {
            let sightings = &history.subscribers[n].sightings;
            at + 1 == sightings.len() && accepted.iter().any(|(_, _, event, _)| seen(history, n, at) == Some(*event))
        })?;
        // It may have been accepted in an epoch that has gone since.
        let position = position(history, lost.0, lost.1)?;
        accepted.iter().find(|(_, at, ..)| *at == position)?;
        history.subscribers[lost.0].sightings.remove(lost.1);
        Some(())
    });
}

#[test]
fn an_accepted_event_that_was_never_stored_is_lost() {
    each_breaks(Rule::Lost, |history, _| {
        let seen: Vec<_> = all_seen(history).collect();
        let top = top_of_somebody_live(history)?;
        let end = history.attempts.iter().map(|attempt| attempt.ended).max()?;
        let unknown = |attempt: &&mut Attempt| {
            attempt.outcome == Outcome::Unknown && &*attempt.channel == KEPT && !seen.contains(&attempt.event)
        };
        let attempt = history.attempts.iter_mut().find(unknown)?;
        let position = Position { offset: top.offset + 1, ..top };
        (attempt.ended, attempt.outcome) = (end, Outcome::Accepted(Some(position)));
        Some(())
    });
}

#[test]
fn an_epoch_that_a_subscriber_is_never_told_of_is_lost() {
    each_breaks(Rule::Lost, |history, _| {
        let accepted = accepted(history);
        for n in 1..4 {
            let sightings = &history.subscribers[n].sightings;
            let Some((told, epoch)) = sightings.iter().enumerate().rev().find_map(|(at, _)| {
                let (now, before) = (position(history, n, at)?, position(history, n, at.checked_sub(1)?)?);
                (now.epoch != before.epoch).then_some((at, now.epoch))
            }) else {
                continue;
            };
            let since = sightings[0].at;
            if accepted.iter().any(|(attempt, at, ..)| {
                at.epoch == epoch
                    && since <= history.attempts[*attempt].started
                    && sightings[told - 1].at < history.attempts[*attempt].started
            }) {
                history.subscribers[n].sightings.truncate(told);
                return Some(());
            }
        }
        None
    });
}

#[test]
fn a_skipped_event_is_a_hole() {
    each_breaks(Rule::Hole, |history, random| {
        let (n, at) = random_sighting(history, random, |history, n, at| {
            &*history.subscribers[n].channel == KEPT
                && seen(history, n, at).is_some()
                && at + 1 < history.subscribers[n].sightings.len()
                && seen(history, n, at + 1).is_some()
        })?;
        history.subscribers[n].sightings.remove(at);
        Some(())
    });
}

#[test]
fn a_loss_that_is_called_a_recovery_is_a_hole() {
    each_breaks(Rule::Hole, |history, random| {
        let (n, at) = random_sighting(history, random, |history, n, at| {
            let unannounced =
                matches!(history.subscribers[n].sightings[at].saw, Saw::Subscribed { recovered: false, .. });
            let before = (0..at).rev().find_map(|at| position(history, n, at));
            unannounced && before.is_some() && before != position(history, n, at)
        })?;
        let Saw::Subscribed { recovered, .. } = &mut history.subscribers[n].sightings[at].saw else { return None };
        *recovered = true;
        Some(())
    });
}

#[test]
fn an_event_that_comes_again_is_doubled() {
    for channel in [KEPT, PLAIN] {
        let mutant: Mutant = match channel {
            KEPT => |history, random| repeat(history, random, KEPT),
            _ => |history, random| repeat(history, random, PLAIN),
        };
        each_breaks(Rule::Doubled, mutant);
    }
}

fn repeat(history: &mut History, random: &mut StdRng, channel: &str) -> Option<()> {
    let (n, at) = random_sighting(history, random, |history, n, at| {
        &*history.subscribers[n].channel == channel && seen(history, n, at).is_some()
    })?;
    let sightings = &mut history.subscribers[n].sightings;
    // Any time later, while it is connected all along.
    let connected =
        sightings[at..].iter().position(|sighting| matches!(sighting.saw, Saw::Disconnected | Saw::Subscribed { .. }));
    let until = connected.map_or(sightings.len(), |connected| at + connected);
    let mut again = sightings[at].clone();
    let later = random.random_range(at + 1..=until);
    again.at = sightings[later - 1].at;
    sightings.insert(later, again);
    Some(())
}

#[test]
fn an_event_that_is_stored_twice_is_in_two_places() {
    each_breaks(Rule::Disagreement, |history, random| {
        let (n, at) = random_sighting(history, random, |history, n, at| {
            position(history, n, at).is_some() && seen(history, n, at).is_some()
        })?;
        let (once, epoch) = (seen(history, n, at)?, position(history, n, at)?.epoch);
        let mut later = (at + 1..history.subscribers[n].sightings.len())
            .filter(|at| position(history, n, *at).is_some_and(|at| at.epoch == epoch));
        let again = later.find_map(|at| seen(history, n, at))?;
        replace_everywhere(history, again, once);
        Some(())
    });
}

#[test]
fn two_events_that_change_places_for_one_subscriber_are_a_disagreement() {
    each_breaks(Rule::Disagreement, |history, random| {
        let accepted = accepted(history);
        let (n, at) = random_sighting(history, random, |history, n, at| {
            let own = position(history, n, at);
            at + 1 < history.subscribers[n].sightings.len()
                && accepted.iter().any(|(_, position, event, _)| {
                    Some(position) == own.as_ref() && seen(history, n, at) == Some(*event)
                })
                && seen(history, n, at + 1).is_some()
        })?;
        let (one, other) = (seen(history, n, at)?, seen(history, n, at + 1)?);
        set(history, n, at, other);
        set(history, n, at + 1, one);
        Some(())
    });
}

#[test]
fn another_event_in_the_same_place_is_a_disagreement() {
    each_breaks(Rule::Disagreement, |history, random| {
        let accepted = accepted(history);
        let (n, at) = random_sighting(history, random, |history, n, at| {
            seen(history, n, at).is_some()
                && accepted.iter().any(|(_, place, ..)| position(history, n, at).as_ref() == Some(place))
        })?;
        let own = seen(history, n, at)?;
        let other =
            history.attempts.iter().map(|attempt| attempt.event).filter(|event| *event != own).choose(random)?;
        set(history, n, at, other);
        Some(())
    });
}

#[test]
fn an_answer_with_the_wrong_offset_is_a_disagreement() {
    each_breaks(Rule::Disagreement, |history, random| {
        let seen: Vec<_> = places_seen(history);
        let (attempt, right, ..) = accepted(history)
            .into_iter()
            .filter(|(_, at, event, _)| seen.contains(&(at.clone(), *event)))
            .choose(random)?;
        let wrong = Position { offset: right.offset + 1, ..right };
        history.attempts[attempt].outcome = Outcome::Accepted(Some(wrong));
        Some(())
    });
}

#[test]
fn an_offset_that_is_used_again_after_a_failover_is_a_disagreement() {
    each_breaks(Rule::Disagreement, |history, _| {
        let mut by_offset = std::collections::HashMap::new();
        let mut reused = false;
        for (position, event) in places_seen(history) {
            reused |= *by_offset.entry(position.offset).or_insert(event) != event;
        }
        for_each_position(history, |position| position.epoch = "e".into());
        reused.then_some(())
    });
}

#[test]
fn events_that_change_places_for_everybody_are_out_of_order() {
    each_breaks(Rule::Order, |history, random| swap(history, random, |one, other| one.ended < other.started));
}

#[test]
fn events_of_one_connection_that_change_places_for_everybody_are_out_of_order() {
    each_breaks(Rule::Order, |history, random| {
        swap(history, random, |one, other| {
            let same = (one.event.publisher, one.connection) == (other.event.publisher, other.connection);
            same && one.event.seq < other.event.seq && other.started < one.ended
        })
    });
}

/// Lets two accepted events of one epoch change places for everybody.
fn swap(history: &mut History, random: &mut StdRng, wanted: fn(&Attempt, &Attempt) -> bool) -> Option<()> {
    let accepted = accepted(history);
    let pairs = accepted.iter().flat_map(|one| accepted.iter().map(move |other| (one, other)));
    let wanted = |one: usize, other: usize| wanted(&history.attempts[one], &history.attempts[other]);
    let (one, other) =
        pairs.filter(|(one, other)| one.1.epoch == other.1.epoch && wanted(one.0, other.0)).choose(random)?;
    history.attempts[one.0].outcome = Outcome::Accepted(Some(other.1.clone()));
    history.attempts[other.0].outcome = Outcome::Accepted(Some(one.1.clone()));
    let nobody = EventId { publisher: 0, seq: 0 };
    for (from, to) in [(one.2, nobody), (other.2, one.2), (nobody, other.2)] {
        replace_everywhere(history, from, to);
    }
    Some(())
}

#[test]
fn without_history_too_a_publisher_s_later_event_that_comes_first_is_out_of_order() {
    each_breaks(Rule::Order, |history, _| {
        for n in 4..8 {
            let events: Vec<_> = (0..history.subscribers[n].sightings.len())
                .filter_map(|at| Some((at, seen(history, n, at)?)))
                .collect();
            let later = |(_, one): &(usize, EventId), (_, other): &(usize, EventId)| {
                one.publisher == other.publisher && one.seq < other.seq
            };
            for one in &events {
                if let Some(other) = events.iter().find(|other| later(one, other)) {
                    set(history, n, one.0, other.1);
                    set(history, n, other.0, one.1);
                    return Some(());
                }
            }
        }
        None
    });
}

#[test]
fn two_epochs_at_once_are_out_of_order() {
    each_breaks(Rule::Order, |history, random| {
        let accepted = accepted(history);
        let (old, new) = accepted
            .iter()
            .flat_map(|old| accepted.iter().map(move |new| (old, new)))
            .filter(|(old, new)| {
                // The old one must be known by another event of its own, from before.
                let known = |other: &&(usize, Position, EventId, Outcome)| {
                    let before = history.attempts[other.0].ended < history.attempts[new.0].started;
                    other.0 != old.0 && other.1.epoch == old.1.epoch && before
                };
                accepted.iter().any(|other| known(&other)) && old.1.epoch != new.1.epoch
            })
            .choose(random)?;
        // It was begun when the new one was there already, and nobody of the old one has seen it.
        for subscriber in &mut history.subscribers {
            subscriber
                .sightings
                .retain(|sighting| !matches!(&sighting.saw, Saw::Message { event, .. } if *event == old.2));
        }
        let after = history.attempts[new.0].ended + Duration::from_millis(1);
        let attempt = &mut history.attempts[old.0];
        (attempt.started, attempt.ended) = (after, after);
        Some(())
    });
}

#[test]
fn an_epoch_that_comes_back_is_out_of_order() {
    each_breaks(Rule::Order, |history, _| {
        for n in 1..4 {
            let (first, last) = (position(history, n, 0), history.subscribers[n].sightings.last()?.clone());
            if first.as_ref().map(|first| &first.epoch) != top_of(history, n).map(|top| top.epoch).as_ref() {
                let again = super::Sighting { saw: Saw::Subscribed { position: first, recovered: false }, ..last };
                history.subscribers[n].sightings.push(again);
                return Some(());
            }
        }
        None
    });
}

#[test]
fn a_position_that_is_ahead_of_what_is_published_next_is_out_of_order() {
    each_breaks(Rule::Order, |history, _| {
        let accepted = accepted(history);
        let (attempt, position, ..) = accepted.last()?;
        let at = history.attempts[*attempt].started.checked_sub(Duration::from_nanos(1))?;
        let saw = Saw::Subscribed { position: Some(position.clone()), recovered: false };
        let sightings = vec![super::Sighting { at, saw }];
        let (name, channel) = ("ahead".into(), KEPT.into());
        history.subscribers.push(super::Subscriber { name, channel, sightings });
        Some(())
    });
}

#[test]
fn what_was_refused_and_is_seen_is_a_phantom() {
    each_breaks(Rule::Phantom, |history, random| {
        let (n, at) = random_sighting(history, random, |history, n, at| seen(history, n, at).is_some())?;
        attempt_of(history, seen(history, n, at)?)?.outcome = Outcome::Refused;
        Some(())
    });
}

#[test]
fn what_nobody_published_is_a_phantom() {
    each_breaks(Rule::Phantom, |history, random| {
        let (n, at) = random_sighting(history, random, |history, n, at| seen(history, n, at).is_some())?;
        let event = seen(history, n, at)?;
        history.attempts.retain(|attempt| attempt.event != event);
        Some(())
    });
}

#[test]
fn what_went_to_another_channel_is_a_phantom() {
    each_breaks(Rule::Phantom, |history, random| {
        let (n, at) = random_sighting(history, random, |history, n, at| seen(history, n, at).is_some())?;
        attempt_of(history, seen(history, n, at)?)?.channel = "elsewhere".into();
        Some(())
    });
}

#[test]
fn what_is_seen_before_it_is_published_is_a_phantom() {
    each_breaks(Rule::Phantom, |history, random| {
        let (n, at) = random_sighting(history, random, |history, n, at| seen(history, n, at).is_some())?;
        let time = history.subscribers[n].sightings[at].at;
        attempt_of(history, seen(history, n, at)?)?.started = time + Duration::from_nanos(1);
        Some(())
    });
}

#[test]
fn too_little_means_nothing() {
    let report = check(&history(1), Floor::default());
    assert!(!report.breaks(Rule::Void));
    let enough = Floor { accepted: report.outcomes[0], deliveries: report.deliveries, live: report.live };
    assert!(!check(&history(1), enough).breaks(Rule::Void));
    for more in [
        Floor { accepted: enough.accepted + 1, ..enough },
        Floor { deliveries: enough.deliveries + 1, ..enough },
        Floor { live: enough.live + 1, ..enough },
    ] {
        assert!(check(&history(1), more).breaks(Rule::Void));
    }
}

#[test]
fn a_report_says_what_happened_and_where_to_look() {
    let mut history = history(3);
    let event = all_seen(&history).next().unwrap();
    history.attempts.retain(|attempt| attempt.event != event);
    let text = check(&history, Floor { accepted: 1_000_000, ..Floor::default() }).to_string();
    assert!(text.contains(&format!("saw {event}, which nobody published")), "{text}");
    assert!(text.contains("events were accepted, not 1000000"), "{text}");
}

// What mutants need to know.

/// Every accepted attempt with a position: its index, where, which event, how it ended.
fn accepted(history: &History) -> Vec<(usize, Position, EventId, Outcome)> {
    let attempts = history.attempts.iter().enumerate();
    let accepted = attempts.filter_map(|(n, attempt)| match &attempt.outcome {
        Outcome::Accepted(Some(position)) => Some((n, position.clone(), attempt.event, attempt.outcome.clone())),
        _ => None,
    });
    accepted.collect()
}

/// A sighting for which `wanted` is true: whose, and its index.
fn random_sighting(
    history: &History,
    random: &mut StdRng,
    wanted: impl Fn(&History, usize, usize) -> bool,
) -> Option<(usize, usize)> {
    let subscribers = history.subscribers.iter().enumerate();
    let all = subscribers.flat_map(|(n, subscriber)| (0..subscriber.sightings.len()).map(move |at| (n, at)));
    all.filter(|(n, at)| wanted(history, *n, *at)).choose(random)
}

fn seen(history: &History, n: usize, at: usize) -> Option<EventId> {
    match history.subscribers[n].sightings[at].saw {
        Saw::Message { event, .. } => Some(event),
        _ => None,
    }
}

fn position(history: &History, n: usize, at: usize) -> Option<Position> {
    match &history.subscribers[n].sightings[at].saw {
        Saw::Message { position, .. } | Saw::Subscribed { position, .. } => position.clone(),
        Saw::Disconnected => None,
    }
}

/// Where a subscriber stands at the end.
fn top_of(history: &History, n: usize) -> Option<Position> {
    (0..history.subscribers[n].sightings.len()).rev().find_map(|at| position(history, n, at))
}

/// Where the first subscriber that is connected at the end stands then.
fn top_of_somebody_live(history: &History) -> Option<Position> {
    let live = (0..history.subscribers.len()).find(|n| {
        history.subscribers[*n].sightings.last().is_some_and(|last| !matches!(last.saw, Saw::Disconnected))
    })?;
    top_of(history, live)
}

fn all_seen(history: &History) -> impl Iterator<Item = EventId> {
    let sightings = history.subscribers.iter().flat_map(|subscriber| &subscriber.sightings);
    sightings.filter_map(|sighting| match sighting.saw {
        Saw::Message { event, .. } => Some(event),
        _ => None,
    })
}

fn places_seen(history: &History) -> Vec<(Position, EventId)> {
    let sightings = history.subscribers.iter().flat_map(|subscriber| &subscriber.sightings);
    let places = sightings.filter_map(|sighting| match &sighting.saw {
        Saw::Message { position: Some(position), event } => Some((position.clone(), *event)),
        _ => None,
    });
    places.collect()
}

fn attempt_of(history: &mut History, event: EventId) -> Option<&mut Attempt> {
    history.attempts.iter_mut().find(|attempt| attempt.event == event)
}

fn set(history: &mut History, n: usize, at: usize, new: EventId) {
    if let Saw::Message { event, .. } = &mut history.subscribers[n].sightings[at].saw {
        *event = new;
    }
}

fn replace_everywhere(history: &mut History, old: EventId, new: EventId) {
    for subscriber in &mut history.subscribers {
        for sighting in &mut subscriber.sightings {
            if let Saw::Message { event, .. } = &mut sighting.saw
                && *event == old
            {
                *event = new;
            }
        }
    }
}

fn for_each_position(history: &mut History, change: impl Fn(&mut Position)) {
    for attempt in &mut history.attempts {
        if let Outcome::Accepted(Some(position)) = &mut attempt.outcome {
            change(position);
        }
    }
    for sighting in history.subscribers.iter_mut().flat_map(|subscriber| &mut subscriber.sightings) {
        if let Saw::Message { position: Some(position), .. } | Saw::Subscribed { position: Some(position), .. } =
            &mut sighting.saw
        {
            change(position);
        }
    }
}
