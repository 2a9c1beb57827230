//! Which publication comes next in a channel: what is known of its order on this node. Pure; the relay acts on it.

use std::{collections::VecDeque, sync::Arc};

use crate::domain::{Epoch, Offset, Position, Publication};

/// The most publications that wait for a gap before them to be filled; more are read from history.
const MAX_WAITING: usize = 1024;
/// The most epochs that are remembered as left.
const MAX_LEFT: usize = 4;

/// How far a channel has been handed to this node's subscribers.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// The last publication that was handed on; `None` while nothing is known of the channel.
    last: Option<Position>,
    /// Something is missing after `last` and is being read from history; what comes meanwhile waits.
    gap: Option<Gap>,
    /// Where `last` stood when the top was last found to be ahead of it.
    suspected: Option<Position>,
    /// Epochs before the present one, newest last: what was relayed in them may come after history told of the next.
    left: VecDeque<Epoch>,
}

#[derive(Debug, Default)]
struct Gap {
    waiting: VecDeque<Arc<Publication>>,
}

/// What to do with a publication that came.
#[derive(Debug, PartialEq)]
pub(super) enum Arrival {
    /// Hand it on.
    Next,
    /// It has been handed on before, or waits for a gap to be filled.
    Nothing,
    /// Something is missing before it, and nobody reads it yet: read history after [`Order::last`].
    Gap,
    /// Tell that the channel counts anew in its epoch; then ask again.
    Anew,
}

/// What to do after a part of history was read.
#[derive(Debug, PartialEq)]
pub(super) enum Filled {
    /// Hand these on; the gap is closed.
    Closed(Vec<Arc<Publication>>),
    /// Hand these on and read on.
    More(Vec<Arc<Publication>>),
    /// What is missing is gone from history: subscribers who stood at this position have to be told.
    Lost(Position),
    /// The channel counts anew: tell it, and read on.
    Anew,
}

impl Order {
    pub fn last(&self) -> Option<Position> {
        self.last
    }

    pub fn is_filling(&self) -> bool {
        self.gap.is_some()
    }

    /// Notes where the channel stood when the node began to listen, unless more is known by now. `again`: it listened
    /// before, when there was nothing. True: then something is missing.
    pub fn begin(&mut self, top: Option<Position>, again: bool) -> bool {
        let Some(top) = top else { return false };
        if self.last.is_some() || self.gap.is_some() {
            return false;
        }
        let is_missing = again && Offset(0) < top.offset;
        self.last = Some(if is_missing { Position { offset: Offset(0), ..top } } else { top });
        is_missing && self.suspect()
    }

    /// Gives up what is missing and what waits behind it. Where subscribers stand then; `None`: nothing is missing.
    pub fn give_up(&mut self) -> Option<Position> {
        let gap = self.gap.take()?;
        let last = self.last;
        if let Some(newest) = gap.waiting.iter().filter_map(|publication| publication.position).next_back() {
            self.last = Some(newest);
        }
        last
    }

    /// Notes that the channel counts anew, as was relayed. False: that is known, or older than what is known, or nobody
    /// can have had a position before.
    pub fn restart(&mut self, epoch: Epoch) -> bool {
        let is_known = self.last.is_some_and(|last| last.epoch == epoch) || self.left.contains(&epoch);
        !is_known && self.enter(epoch)
    }

    /// False: nobody can have had a position before.
    fn enter(&mut self, epoch: Epoch) -> bool {
        self.left.retain(|left| *left != epoch);
        let before = self.last.replace(Position { epoch, offset: Offset(0) });
        if let Some(gap) = &mut self.gap {
            gap.waiting.clear();
        }
        let Some(before) = before else { return false };
        if self.left.len() == MAX_LEFT {
            self.left.pop_front();
        }
        self.left.push_back(before.epoch);
        true
    }

    /// What to do with a publication at `position`. With `is_full` there is no room to hand it on.
    pub fn arrive(&mut self, publication: &Arc<Publication>, position: Position, is_full: bool) -> Arrival {
        if self.left.contains(&position.epoch) {
            return Arrival::Nothing;
        }
        if let Some(gap) = &mut self.gap {
            match gap.waiting.len() < MAX_WAITING {
                true => gap.waiting.push_back(publication.clone()),
                // History has all of them.
                false => gap.waiting.clear(),
            }
            return Arrival::Nothing;
        }
        match self.last {
            None if position.offset == Offset(1) && !is_full => {}
            None => {
                self.last = Some(Position { offset: Offset(0), ..position });
                return self.open(publication);
            }
            Some(last) if last.epoch != position.epoch => return Arrival::Anew,
            Some(last) if position.offset <= last.offset => return Arrival::Nothing,
            Some(last) if is_full || !last.is_followed_by(&position) => return self.open(publication),
            Some(_) => {}
        }
        self.last = Some(position);
        Arrival::Next
    }

    /// Notes that something is missing. False: that is known already.
    pub fn suspect(&mut self) -> bool {
        let is_new = self.gap.is_none();
        self.gap.get_or_insert_default();
        is_new
    }

    /// Compares with the channel's top, as read at a time when `last` was the last. True: something is missing that is
    /// not just on its way, for it was missing when this was last asked.
    pub fn is_behind(&mut self, last: Option<Position>, top: Position) -> bool {
        let is_ahead = match last {
            Some(last) => last.epoch != top.epoch || last.offset < top.offset,
            None => 0 < top.offset.0,
        };
        if !is_ahead || self.last != last {
            self.suspected = None;
            return false;
        }
        let at = last.unwrap_or(Position { offset: Offset(0), ..top });
        self.suspected.replace(at) == Some(at)
    }

    /// Takes in a part of history that was read after `from`, where [`Order::last`] stood when it was asked for.
    pub fn fill(
        &mut self,
        from: Option<Position>,
        top: Position,
        trimmed: Offset,
        read: Vec<Arc<Publication>>,
    ) -> Filled {
        let last = *self.last.get_or_insert(Position { offset: Offset(0), ..top });
        if from.is_some_and(|from| from.epoch != last.epoch) {
            // The channel counts anew since it was asked for, and the answer may be older than that.
            return Filled::More(Vec::new());
        }
        if last.epoch != top.epoch {
            self.enter(top.epoch);
            return Filled::Anew;
        }
        if last.offset < trimmed {
            self.last = Some(Position { offset: trimmed, ..top });
            return Filled::Lost(last);
        }
        let mut next = Vec::with_capacity(read.len());
        self.follow(read, &mut next);
        let waiting = self.gap.as_mut().map(|gap| std::mem::take(&mut gap.waiting)).unwrap_or_default();
        let newest = waiting.back().and_then(|publication| publication.position);
        self.follow(waiting, &mut next);
        let reached = |position: Position| {
            self.last.is_some_and(|last| last.epoch == position.epoch && position.offset <= last.offset)
        };
        if reached(top) && newest.is_none_or(reached) {
            self.gap = None;
            return Filled::Closed(next);
        }
        Filled::More(next)
    }

    /// Adds to `next` what follows the last without a gap.
    fn follow(&mut self, publications: impl IntoIterator<Item = Arc<Publication>>, next: &mut Vec<Arc<Publication>>) {
        for publication in publications {
            if let (Some(position), Some(last)) = (publication.position, self.last)
                && last.is_followed_by(&position)
            {
                self.last = Some(position);
                next.push(publication);
            }
        }
    }

    fn open(&mut self, publication: &Arc<Publication>) -> Arrival {
        self.gap = Some(Gap { waiting: VecDeque::from([publication.clone()]) });
        Arrival::Gap
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::{Channel, Event, Payload, PublicationId, UnixMillis};

    fn at(epoch: u64, offset: u64) -> Position {
        Position { epoch: Epoch::from_bits(epoch), offset: Offset(offset) }
    }

    fn publication(position: Position) -> Arc<Publication> {
        let channel = Channel::new(&"app".parse().unwrap(), &"room".parse().unwrap());
        let event = Event { name: None, data: Payload::from_json("1"), tags: None };
        let id = PublicationId::from_bits(u128::from(position.offset.0));
        let time = UnixMillis(0);
        Arc::new(Publication { id, channel, event, time, position: Some(position), from: None, exclude: None })
    }

    fn arrive(order: &mut Order, position: Position) -> Arrival {
        order.arrive(&publication(position), position, false)
    }

    #[test]
    fn a_jump_is_a_gap_and_what_follows_waits() {
        let mut order = Order::default();
        order.begin(Some(at(1, 4)), false);
        assert_eq!(arrive(&mut order, at(1, 4)), Arrival::Nothing);
        assert_eq!(arrive(&mut order, at(1, 5)), Arrival::Next);
        assert_eq!(arrive(&mut order, at(1, 7)), Arrival::Gap);
        assert_eq!(arrive(&mut order, at(1, 8)), Arrival::Nothing);
        let filled =
            order.fill(Some(at(1, 5)), at(1, 7), Offset(0), vec![publication(at(1, 6)), publication(at(1, 7))]);
        assert_eq!(filled, Filled::Closed([6, 7, 8].map(|offset| publication(at(1, offset))).into()));
        assert_eq!(arrive(&mut order, at(1, 9)), Arrival::Next);
    }

    #[test]
    fn another_epoch_is_told_before_anything_of_it() {
        let mut order = Order::default();
        order.begin(Some(at(1, 4)), false);
        assert_eq!(arrive(&mut order, at(2, 1)), Arrival::Anew);
        assert!(order.restart(Epoch::from_bits(2)));
        assert_eq!(arrive(&mut order, at(2, 1)), Arrival::Next);
        assert_eq!(arrive(&mut order, at(2, 3)), Arrival::Gap);
    }

    #[test]
    fn what_is_gone_is_told_from_where_subscribers_stand() {
        let mut order = Order::default();
        order.begin(Some(at(1, 4)), false);
        assert_eq!(arrive(&mut order, at(1, 20)), Arrival::Gap);
        assert_eq!(order.fill(Some(at(1, 4)), at(1, 20), Offset(15), Vec::new()), Filled::Lost(at(1, 4)));
        let rest: Vec<_> = (16..=20).map(|offset| publication(at(1, offset))).collect();
        assert_eq!(order.fill(Some(at(1, 15)), at(1, 20), Offset(15), rest.clone()), Filled::Closed(rest));
    }

    #[test]
    fn what_is_relayed_of_an_epoch_that_history_has_left_behind_is_dropped() {
        let mut order = Order::default();
        order.begin(Some(at(1, 4)), false);
        assert!(order.suspect());
        assert_eq!(order.fill(Some(at(1, 4)), at(2, 1), Offset(0), Vec::new()), Filled::Anew);
        let first = publication(at(2, 1));
        let filled = order.fill(Some(at(2, 0)), at(2, 1), Offset(0), vec![first.clone()]);
        assert_eq!(filled, Filled::Closed(vec![first]));
        assert_eq!(arrive(&mut order, at(1, 5)), Arrival::Nothing);
        assert!(!order.restart(Epoch::from_bits(2)), "word of what history has told already");
        assert_eq!(arrive(&mut order, at(2, 1)), Arrival::Nothing, "it was handed on");
        assert_eq!(arrive(&mut order, at(2, 2)), Arrival::Next);
    }

    #[test]
    fn history_that_was_asked_for_before_the_channel_counted_anew_is_read_again() {
        let mut order = Order::default();
        order.begin(Some(at(1, 4)), false);
        assert!(order.suspect());
        assert!(order.restart(Epoch::from_bits(2)));
        let old = order.fill(Some(at(1, 4)), at(1, 5), Offset(0), vec![publication(at(1, 5))]);
        assert_eq!(old, Filled::More(Vec::new()));
        assert_eq!(order.fill(Some(at(2, 0)), at(2, 0), Offset(0), Vec::new()), Filled::Closed(Vec::new()));
        assert_eq!(order.last(), Some(at(2, 0)));
    }

    #[test]
    fn an_epoch_that_redis_has_again_is_not_refused_for_ever() {
        let mut order = Order::default();
        order.begin(Some(at(1, 4)), false);
        assert!(order.restart(Epoch::from_bits(2)));
        assert_eq!(arrive(&mut order, at(1, 3)), Arrival::Nothing);
        assert!(order.suspect(), "the look at the tops finds it");
        assert_eq!(order.fill(Some(at(2, 0)), at(1, 3), Offset(0), Vec::new()), Filled::Anew);
        let all: Vec<_> = (1..=3).map(|offset| publication(at(1, offset))).collect();
        assert_eq!(order.fill(Some(at(1, 0)), at(1, 3), Offset(0), all.clone()), Filled::Closed(all));
        assert_eq!(arrive(&mut order, at(1, 4)), Arrival::Next);
    }

    #[test]
    fn what_came_to_an_empty_channel_while_nobody_heard_is_missing() {
        let mut order = Order::default();
        assert!(!order.begin(None, false));
        assert!(order.begin(Some(at(1, 2)), true), "there was nothing before, and now there is");
        assert_eq!(order.last(), Some(at(1, 0)));
        assert!(!Order::default().begin(Some(at(1, 2)), false), "whoever comes only now has read history");
    }

    #[test]
    fn a_top_ahead_is_a_gap_only_when_nothing_has_come_since() {
        let mut order = Order::default();
        order.begin(Some(at(1, 4)), false);
        assert!(!order.is_behind(order.last(), at(1, 5)), "it may be on its way");
        assert!(order.is_behind(order.last(), at(1, 5)));
        assert!(!order.is_behind(Some(at(1, 3)), at(1, 5)), "more has come since the top was asked for");
        assert!(!order.is_behind(order.last(), at(1, 4)));
    }

    proptest! {
        /// Whatever is lost on the way, and whenever history is read, everything is handed on once and in order.
        #[test]
        fn everything_comes_once_and_in_order(lost in prop::collection::vec(any::<bool>(), 1..200), pages in 1usize..20) {
            let mut order = Order::default();
            order.begin(Some(at(1, 0)), false);
            let (mut handed, mut read_at) = (Vec::new(), None);
            let top = lost.len() as u64;
            for (n, is_lost) in lost.iter().enumerate() {
                let position = at(1, n as u64 + 1);
                if !is_lost {
                    match arrive(&mut order, position) {
                        Arrival::Next => handed.push(position.offset.0),
                        Arrival::Gap => read_at = Some(n + pages),
                        _ => {}
                    }
                }
                while read_at.is_some_and(|at| at <= n) {
                    let from = order.last().unwrap().offset.0;
                    let page: Vec<_> = (from + 1..=position.offset.0).take(pages).map(|o| publication(at(1, o))).collect();
                    let filled = order.fill(order.last(), position, Offset(0), page);
                    let (Filled::Closed(next) | Filled::More(next)) = &filled else { panic!("{filled:?}") };
                    handed.extend(next.iter().map(|each| each.position.unwrap().offset.0));
                    read_at = matches!(filled, Filled::More(_)).then_some(n);
                }
            }
            // The look at the tops finds what nothing came after.
            if order.is_filling() || order.last().unwrap().offset.0 < top {
                order.suspect();
                loop {
                    let from = order.last().unwrap().offset.0;
                    let page: Vec<_> = (from + 1..=top).take(pages).map(|o| publication(at(1, o))).collect();
                    let filled = order.fill(order.last(), at(1, top), Offset(0), page);
                    let (Filled::Closed(next) | Filled::More(next)) = &filled else { panic!("{filled:?}") };
                    handed.extend(next.iter().map(|each| each.position.unwrap().offset.0));
                    if matches!(filled, Filled::Closed(_)) { break }
                }
            }
            prop_assert_eq!(handed, (1..=top).collect::<Vec<_>>());
        }
    }
}
