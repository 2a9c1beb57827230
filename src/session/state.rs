//! What a session remembers: identity, subscriptions, and what it has used of its limits.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    config::Rate,
    domain::{Actions, Channel, ChannelName, Identity},
    gateway::TokenBucket,
    hub::until,
};

/// How often a session may break limits before it is ended: more often than a client that subscribes to all it may in
/// one go.
const PATIENCE: Rate = Rate(Some((1000, Duration::from_secs(10))));
/// How many tokens in a row may be refused before a session is ended.
const MAX_BAD_TOKENS: u8 = 5;

/// What a session remembers.
pub(super) struct State {
    pub identity: Option<Arc<Identity>>,
    pub subscriptions: Vec<Held>,
    frames: TokenBucket,
    patience: TokenBucket,
    publishes: Vec<(Box<str>, TokenBucket)>,
    bad_tokens: u8,
}

/// One subscription, as its session remembers it.
pub(super) struct Held {
    pub name: ChannelName,
    pub channel: Channel,
    /// Whether the application's servers made it: then the client's own rights do not count.
    pub by_server: bool,
    /// What a subscription token allows there.
    pub granted: Option<Actions>,
    /// When that ends, in seconds since 1970.
    pub expires: Option<u64>,
    /// Whether the connection is a member of the channel's presence.
    pub is_member: bool,
}

/// Patience has run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooOften;

impl State {
    pub fn new(now: Instant) -> Self {
        let bucket = TokenBucket::full(now);
        Self {
            identity: None,
            subscriptions: Vec::new(),
            frames: bucket,
            patience: bucket,
            publishes: Vec::new(),
            bad_tokens: 0,
        }
    }

    /// Takes one command off the budget.
    pub fn take_frame(&mut self, rate: Rate, now: Instant) -> Result<(), Duration> {
        self.frames.take(rate, now)
    }

    /// Takes one publication off a namespace's budget.
    pub fn take_publish(&mut self, namespace: &str, rate: Rate, now: Instant) -> Result<(), Duration> {
        if rate == Rate::NONE {
            return Ok(());
        }
        let at = self.publishes.iter().position(|(known, _)| **known == *namespace).unwrap_or_else(|| {
            self.publishes.push((namespace.into(), TokenBucket::full(now)));
            self.publishes.len() - 1
        });
        self.publishes[at].1.take(rate, now)
    }

    /// Notes a broken limit.
    pub fn broke_a_limit(&mut self, now: Instant) -> Result<(), TooOften> {
        self.patience.take(PATIENCE, now).map_err(|_| TooOften)
    }

    /// Notes a refused token.
    pub fn refused_token(&mut self) -> Result<(), TooOften> {
        self.bad_tokens += 1;
        if self.bad_tokens < MAX_BAD_TOKENS { Ok(()) } else { Err(TooOften) }
    }

    /// Notes an accepted token.
    pub fn accepted_token(&mut self) {
        self.bad_tokens = 0;
    }

    pub fn held(&self, name: &ChannelName) -> Option<&Held> {
        self.subscriptions.iter().find(|held| held.name == *name)
    }

    pub fn held_mut(&mut self, name: &ChannelName) -> Option<&mut Held> {
        self.subscriptions.iter_mut().find(|held| held.name == *name)
    }

    pub fn granted(&self, name: &ChannelName) -> Option<Actions> {
        self.held(name)?.granted
    }

    /// How long until the next token ends; `None` if none does.
    pub fn next_end(&self) -> Option<Duration> {
        let own = self.identity.as_ref().and_then(|identity| identity.expires);
        let ends = self.subscriptions.iter().filter_map(|held| held.expires);
        ends.chain(own).min().map(until)
    }
}
