//! A connection's subscriptions: live, held back, or fallen behind.
//!
//! A live subscription is a place in its channel's dense list ([`super::channels`]). One that stands apart still has its
//! place, but the walk only leaves its pushes here: held back until what came before is sent, or, after the connection
//! fell behind, not kept at all where history has them.

use std::{rc::Rc, sync::Arc};

use super::{
    channels::{Local, Subscriber},
    connection::Connection,
    outgoing::Outgoing,
};
use crate::domain::{Channel, Epoch, Format, Offset, Position};

/// The most pushes that a held subscription keeps; above that its channel's history is read again.
const MAX_HELD: usize = 4096;

/// One connection's standing wish for one channel's pushes, as its slot keeps it.
pub(super) struct Subscription {
    local: Rc<Local>,
    place: u32,
    apart: Option<Box<Apart>>,
    /// Which lifetime of the channel's numbering the client has been told of.
    epoch: Option<Epoch>,
}

/// A subscription that pushes do not reach just now.
#[derive(Default)]
struct Apart {
    /// Set where the connection fell behind: the last position that it was sent.
    behind: Option<Position>,
    /// What is held back.
    held: Vec<Arc<Outgoing>>,
    /// More came than is held back.
    overflowed: bool,
}

/// More came than can be held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overflowed;

impl Connection {
    /// Subscribes, with pushes held back until [`Connection::release`]. True: the node's first subscriber there.
    pub fn subscribe(self: &Rc<Self>, channel: &Channel, watches: bool) -> bool {
        let shard = self.shard();
        let (local, is_first) = shard.enter(channel);
        let place = local.add(Subscriber {
            connection: self.clone(),
            apart: true,
            settling: false,
            sent_to: 0,
            sent_in: 0,
            watches,
        });
        let mut subscriptions = self.subscriptions.borrow_mut();
        if subscriptions.is_empty() {
            subscriptions.reserve_exact(1);
        }
        subscriptions.push(Subscription { local, place, apart: Some(Box::default()), epoch: None });
        shard.counters().subscriptions.add(1);
        is_first
    }

    /// Ends a subscription. True: it was the node's last one there.
    pub fn unsubscribe(&self, channel: &Channel) -> bool {
        let at = self.subscriptions.borrow().iter().position(|each| each.local.channel() == channel);
        let Some(at) = at else { return false };
        let Subscription { local, place, .. } = self.subscriptions.borrow_mut().swap_remove(at);
        local.take_out(self.format(), place);
        let shard = self.shard();
        shard.counters().subscriptions.sub(1);
        local.subscribers() == 0 && shard.leave(channel)
    }

    /// How many subscriptions it holds.
    pub fn subscriptions(&self) -> usize {
        self.subscriptions.borrow().len()
    }

    /// The channels it is subscribed to.
    pub fn channels(&self) -> Vec<Channel> {
        self.subscriptions.borrow().iter().map(|each| each.local.channel().clone()).collect()
    }

    /// Whether a subscription gets joins and leaves.
    pub fn watches(&self, channel: &Channel) -> bool {
        let watches = |each: &mut Subscription, format| each.local.with(format, each.place, |each| each.watches);
        self.with_subscription(channel, watches).flatten().unwrap_or(false)
    }

    /// Notes which lifetime of a channel's numbering the client has been told of.
    pub fn tell_epoch(&self, channel: &Channel, epoch: Option<Epoch>) {
        self.with_subscription(channel, |each, _| each.epoch = epoch);
    }

    /// Which lifetime of a channel's numbering the client has been told of.
    pub fn told_epoch(&self, channel: &Channel) -> Option<Epoch> {
        self.with_subscription(channel, |each, _| each.epoch).flatten()
    }

    /// Holds a subscription's pushes back from now on.
    pub fn hold(&self, channel: &Channel) {
        self.with_subscription(channel, |each, format| {
            let apart = each.apart.get_or_insert_default();
            apart.behind = None;
            each.local.with(format, each.place, |subscriber| subscriber.apart = true);
        });
    }

    /// Has a subscription that stands apart read history once more before it is released.
    pub fn read_again(&self, channel: &Channel) {
        self.with_subscription(channel, |each, _| {
            if let Some(apart) = &mut each.apart {
                apart.overflowed = true;
            }
        });
    }

    /// Takes what was held back; the subscription stays apart.
    ///
    /// # Errors
    /// [`Overflowed`]: more came than can be held, and it is gone: read history again.
    pub fn take_held(&self, channel: &Channel) -> Result<Vec<Arc<Outgoing>>, Overflowed> {
        let taken = self.with_subscription(channel, |each, _| {
            let apart = each.apart.as_deref_mut()?;
            let held = std::mem::take(&mut apart.held);
            Some(if std::mem::take(&mut apart.overflowed) { Err(Overflowed) } else { Ok(held) })
        });
        taken.flatten().unwrap_or_else(|| Ok(Vec::new()))
    }

    /// Takes back what could not be sent yet, before what was held since.
    pub fn hold_again(&self, channel: &Channel, pushes: Vec<Arc<Outgoing>>) {
        self.with_subscription(channel, |each, _| {
            let apart = each.apart.get_or_insert_default();
            apart.held.splice(0..0, pushes);
        });
    }

    /// What a subscription was sent up to, on a node that last heard the publication at `last`. `None`: it stands apart,
    /// and finds out by itself.
    pub fn sent_until(&self, channel: &Channel, last: Position) -> Option<Position> {
        let until = |subscriber: &mut Subscriber| {
            let further = subscriber.sent_to.wrapping_sub(last.offset.0 as u32);
            let is_further =
                subscriber.settling && subscriber.sent_in == last.epoch.to_bits() as u8 && further < 1 << 31;
            match subscriber.apart {
                true => None,
                false if is_further => Some(Position { offset: Offset(last.offset.0 + u64::from(further)), ..last }),
                false => Some(last),
            }
        };
        self.with_subscription(channel, |each, format| each.local.with(format, each.place, until)).flatten().flatten()
    }

    /// Lets pushes through again, but for those up to `sent`: what history has told already may still wait in the
    /// shard's inbox, or be on its way to this node. Nothing may be held by then: call [`Connection::take_held`] just
    /// before.
    pub fn release(&self, channel: &Channel, sent: Option<Position>) {
        self.with_subscription(channel, |each, format| {
            each.apart = None;
            each.local.with(format, each.place, |subscriber| {
                subscriber.apart = false;
                subscriber.settling = sent.is_some();
                subscriber.sent_to = sent.map_or(0, |sent| sent.offset.0 as u32);
                subscriber.sent_in = sent.map_or(0, |sent| sent.epoch.to_bits() as u8);
            });
        });
    }

    /// The subscriptions that fell behind, each with the last position that was sent.
    pub fn behind(&self) -> Vec<(Channel, Position)> {
        let behind = |each: &Subscription| Some((each.local.channel().clone(), each.apart.as_ref()?.behind?));
        self.subscriptions.borrow().iter().filter_map(behind).collect()
    }

    fn with_subscription<T>(
        &self,
        channel: &Channel,
        change: impl FnOnce(&mut Subscription, Format) -> T,
    ) -> Option<T> {
        let mut subscriptions = self.subscriptions.borrow_mut();
        let each = subscriptions.iter_mut().find(|each| each.local.channel() == channel)?;
        Some(change(each, self.format()))
    }

    /// Notes that the shard's list has moved this connection.
    pub(super) fn moved(&self, channel: &Channel, place: u32) {
        let mut subscriptions = self.subscriptions.borrow_mut();
        if let Some(each) = subscriptions.iter_mut().find(|each| each.local.channel() == channel) {
            each.place = place;
        }
    }

    /// Keeps pushes for a subscription that stands apart.
    pub(super) fn keep_apart(&self, channel: &Channel, pushes: &[Arc<Outgoing>]) {
        let mut subscriptions = self.subscriptions.borrow_mut();
        let each = subscriptions.iter_mut().find(|each| each.local.channel() == channel);
        let Some(apart) = each.and_then(|each| each.apart.as_deref_mut()) else { return };
        // What a connection that fell behind misses of a history, it reads there.
        let wanted = |push: &&Arc<Outgoing>| apart.behind.is_none() || push.position().is_none();
        let wanted = pushes.iter().filter(wanted).filter(|push| push.exclude() != Some(self.id()));
        let before = apart.held.len();
        apart.held.extend(wanted.cloned());
        if MAX_HELD < apart.held.len() {
            apart.held.truncate(before);
            apart.overflowed = true;
        }
    }

    /// Notes that a subscription fell behind after `last`.
    pub(super) fn fall_behind(&self, channel: &Channel, last: Position) {
        let mut subscriptions = self.subscriptions.borrow_mut();
        if let Some(each) = subscriptions.iter_mut().find(|each| each.local.channel() == channel) {
            each.apart = Some(Box::new(Apart { behind: Some(last), ..Apart::default() }));
            self.note_behind();
        }
    }

    /// Whether it is subscribed to `channel`.
    pub fn is_subscribed(&self, channel: &Channel) -> bool {
        self.subscriptions.borrow().iter().any(|each| each.local.channel() == channel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscription_is_small() {
        assert!(size_of::<Subscription>() <= 40);
    }
}
