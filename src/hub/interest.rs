//! Which shards have subscribers of which channel.

use std::{
    collections::HashMap,
    hash::BuildHasher,
    sync::{PoisonError, RwLock, RwLockWriteGuard},
};

use foldhash::fast::RandomState;

use crate::domain::Channel;

const STRIPES: usize = 64;

/// The most shards that a node can have: one bit each.
pub const MAX_SHARDS: usize = 128;

/// A set of shards.
pub(super) type ShardSet = u128;

/// For each channel, the shards that have subscribers of it.
///
/// A broker may hold its own lock while it asks here (see `broker/memory`); nothing here calls out.
pub struct Interest {
    stripes: Box<[RwLock<HashMap<Channel, ShardSet, RandomState>>]>,
    hasher: RandomState,
}

impl Interest {
    pub(super) fn new() -> Self {
        let stripes = (0..STRIPES).map(|_| RwLock::default()).collect();
        Self { stripes, hasher: RandomState::default() }
    }

    /// The shards that want a channel's pushes.
    pub(super) fn shards(&self, channel: &Channel) -> ShardSet {
        let stripe = &self.stripes[self.stripe(channel)];
        stripe.read().unwrap_or_else(PoisonError::into_inner).get(channel).copied().unwrap_or(0)
    }

    /// Whether any shard has a subscriber.
    pub fn is_wanted(&self, channel: &Channel) -> bool {
        self.shards(channel) != 0
    }

    /// True: no shard wanted it before.
    pub(super) fn enter(&self, channel: &Channel, shard: usize) -> bool {
        let mut stripe = self.write(channel);
        let shards = stripe.entry(channel.clone()).or_default();
        let was_empty = *shards == 0;
        *shards |= 1 << shard;
        was_empty
    }

    /// True: no shard wants it any more.
    pub(super) fn leave(&self, channel: &Channel, shard: usize) -> bool {
        let mut stripe = self.write(channel);
        let Some(shards) = stripe.get_mut(channel) else { return false };
        *shards &= !(1 << shard);
        let is_last = *shards == 0;
        if is_last {
            stripe.remove(channel);
        }
        is_last
    }

    fn stripe(&self, channel: &Channel) -> usize {
        self.hasher.hash_one(channel) as usize % STRIPES
    }

    /// An entry is changed in one piece, so what a panic left behind is still whole.
    fn write(&self, channel: &Channel) -> RwLockWriteGuard<'_, HashMap<Channel, ShardSet, RandomState>> {
        self.stripes[self.stripe(channel)].write().unwrap_or_else(PoisonError::into_inner)
    }
}
