//! Members in Redis, each under its node's lease.
//!
//! A node holds a lease, renewed every [`RENEW`]. Each member's entry names the lease under which it was entered, and the
//! lease's own set names the channels in which it may have members. When a lease runs out, whoever notices first marks it
//! as ended and takes its members out, channel by channel, in one step with the leave that all nodes are told
//! (`lua/sweep.lua`): so each leaves once, however many nodes sweep. A node that was only paused finds its lease ended: it
//! takes a new one and enters its members again. What could not be taken out while Redis was away is left to the old
//! lease in the same way.
//!
//! After an outage all leases may have run out together, though all nodes live. So a node sweeps only after it has held
//! its own for [`SETTLED`], by which time every living node has renewed.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use redis::Value;
use tracing::{info, warn};

use super::{
    RedisBroker,
    keys::Keys,
    outbox::millis,
    script::Script,
    server::{Live, Server},
    wire,
};
use crate::{
    broker::{BrokerError, PresenceStore},
    domain::{AppId, Channel, ChannelName, ConnectionId, Member},
};

/// How long a lease lives after it was last renewed.
const LEASE: Duration = Duration::from_secs(10);
/// How often it is renewed, and others are looked at.
const RENEW: Duration = Duration::from_millis(2500);
/// For how long a node must have held its lease before it sweeps others.
const SETTLED: Duration = Duration::from_secs(6);
/// For how long an ended lease is remembered: longer than any process is paused and goes on.
const REMEMBERED: Duration = Duration::from_secs(60 * 60);
/// How often channels without members of this node are taken from its lease's set.
const TIDY: Duration = Duration::from_secs(60);
/// Channels in one command.
const BATCH: usize = 200;

/// This node's members, and the lease that they stand under.
pub(super) struct Leases {
    server: Arc<Server>,
    keys: Keys,
    /// This process; its leases are numbered.
    life: String,
    state: Mutex<State>,
    /// Held while the lease's set of channels is changed.
    claiming: tokio::sync::Mutex<()>,
    /// A member could not be taken out: a new lease has to leave it behind.
    has_ghosts: AtomicBool,
}

#[derive(Default)]
struct State {
    number: u64,
    members: HashMap<Channel, HashMap<ConnectionId, Member>>,
    claimed: HashSet<Channel>,
    /// The number of the lease under which all members are known to stand.
    entered: Option<u64>,
}

impl Leases {
    pub fn new(server: Arc<Server>, keys: Keys, life: &str) -> Arc<Self> {
        let (state, claiming) = (Mutex::default(), tokio::sync::Mutex::default());
        let has_ghosts = AtomicBool::new(false);
        Arc::new(Self { server, keys, life: life.to_owned(), state, claiming, has_ghosts })
    }

    /// Holds the lease and sweeps those of dead nodes, for ever.
    pub async fn run(self: Arc<Self>) {
        let mut interval = tokio::time::interval(RENEW);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut held_since, mut tidied) = (None, Instant::now());
        loop {
            interval.tick().await;
            match self.hold().await {
                Ok(true) => drop(held_since.get_or_insert_with(Instant::now)),
                // A pause of this process, too, is one in which the others may have been paused.
                Ok(false) => held_since = None,
                Err(_) => {
                    held_since = None;
                    continue;
                }
            }
            // What fails now is done the next time.
            if held_since.is_some_and(|since| SETTLED <= since.elapsed()) {
                let _ = self.sweep_others().await;
            }
            if TIDY <= tidied.elapsed() && self.tidy().await.is_ok() {
                tidied = Instant::now();
            }
        }
    }

    /// Renews the lease; one that has ended, or leaves somebody behind, is replaced. False: it was not held all the time.
    async fn hold(&self) -> Result<bool, BrokerError> {
        if self.has_ghosts.swap(false, Ordering::Relaxed) {
            self.replace(&self.lease());
        }
        let mut was_held = true;
        loop {
            let lease = self.lease();
            match self.open(&lease).await? {
                1 if self.state().entered == Some(number(&lease)) => return Ok(was_held),
                -1 => {
                    warn!(
                        lease,
                        "this node was silent for so long that its members were taken out; they are entered again"
                    );
                    self.replace(&lease);
                    was_held = false;
                }
                _ => {
                    self.enter_all(&lease).await?;
                    self.state().entered = Some(number(&lease));
                    was_held = false;
                }
            }
        }
    }

    /// Registers a lease, so that whoever finds it ended sweeps it, and holds it. -1: it has ended.
    async fn open(&self, lease: &str) -> Result<i64, BrokerError> {
        self.server.ask(|_| redis::cmd("ZADD").arg(self.keys.leases()).arg(0).arg(lease).take()).await?;
        let keys = [self.keys.lease(lease), self.keys.ended(lease)];
        let hold = |live: &Live| Script::Hold.call(live.dialect, &keys).arg(millis(LEASE)).take();
        self.server.ask(hold).await.map(int)
    }

    /// Enters all members under a lease. Who is in already stays in, and nobody is told. The lease before it is held on
    /// meanwhile, lest others sweep those who have not been moved yet.
    async fn enter_all(&self, lease: &str) -> Result<(), BrokerError> {
        let members: Vec<_> = {
            let mut state = self.state();
            state.claimed.clear();
            let of = |(channel, members): (&Channel, &HashMap<ConnectionId, Member>)| {
                members.values().map(|member| (channel.clone(), member.clone())).collect::<Vec<_>>()
            };
            state.members.iter().flat_map(of).collect()
        };
        let mut renewed = Instant::now();
        for (channel, member) in members {
            if RENEW <= renewed.elapsed() {
                let before = number(lease).checked_sub(1).map(|number| format!("{}.{number}", self.life));
                for lease in before.iter().map(String::as_str).chain([lease]) {
                    self.open(lease).await?;
                }
                renewed = Instant::now();
            }
            if self.has(&channel, member.connection) {
                self.enter(&channel, &member).await?;
                // It may have left meanwhile, and its leave came first.
                if !self.has(&channel, member.connection) {
                    self.take_out(&channel, member.connection).await?;
                }
            }
        }
        Ok(())
    }

    /// Enters one member; under a new lease where the present one has ended.
    async fn enter(&self, channel: &Channel, member: &Member) -> Result<(), BrokerError> {
        let (connection, entry) = (member.connection.to_string(), wire::write_member(member));
        loop {
            let lease = self.lease();
            let mut result = self.claim(&lease, channel).await?;
            if result == 1 {
                let join = |live: &Live| {
                    let mut call = Script::Join.call(live.dialect, &[self.keys.members(channel)]);
                    call.arg(self.keys.relay(channel)).arg("PUBLISH").arg(&connection).arg(&lease).arg(&entry);
                    call
                };
                result = int(self.server.ask(join).await?);
            }
            match result {
                // The renewal enters the others again.
                -1 => self.replace(&lease),
                -2 => drop(self.open(&lease).await?),
                // Else it stands under a lease that was replaced meanwhile.
                _ if self.lease() == lease => return Ok(()),
                _ => {}
            }
        }
    }

    async fn take_out(&self, channel: &Channel, connection: ConnectionId) -> Result<(), BrokerError> {
        let leave = |live: &Live| {
            let mut call = Script::Leave.call(live.dialect, &[self.keys.members(channel)]);
            call.arg(self.keys.relay(channel)).arg("PUBLISH").arg(connection.to_string()).arg(millis(REMEMBERED));
            call
        };
        self.server.ask(leave).await.map(drop)
    }

    /// Notes a channel in the lease's set, before anybody is entered there. -1: the lease has ended, -2: it is not held.
    async fn claim(&self, lease: &str, channel: &Channel) -> Result<i64, BrokerError> {
        if self.state().claimed.contains(channel) {
            return Ok(1);
        }
        let _claiming = self.claiming.lock().await;
        let keys = [self.keys.lease(lease), self.keys.ended(lease), self.keys.channels_of(lease)];
        let claim = |live: &Live| Script::Claim.call(live.dialect, &keys).arg(channel.key()).take();
        let result = int(self.server.ask(claim).await?);
        let mut state = self.state();
        if result == 1 && state.number == number(lease) {
            state.claimed.insert(channel.clone());
        }
        Ok(result)
    }

    /// Takes channels without members of this node from the lease's set.
    async fn tidy(&self) -> Result<(), BrokerError> {
        let _claiming = self.claiming.lock().await;
        let lease = self.lease();
        let unused: Vec<_> = {
            let mut state = self.state();
            let State { members, claimed, .. } = &mut *state;
            claimed.extract_if(|channel| !members.contains_key(channel)).collect()
        };
        for batch in unused.chunks(BATCH) {
            let channels: Vec<_> = batch.iter().map(Channel::key).collect();
            let forget = |_: &Live| redis::cmd("SREM").arg(self.keys.channels_of(&lease)).arg(&channels).take();
            self.server.ask(forget).await?;
        }
        Ok(())
    }

    /// Takes out the members of every lease that has run out.
    async fn sweep_others(&self) -> Result<(), BrokerError> {
        let own = self.lease();
        let all = self.server.ask(|_| redis::cmd("ZRANGE").arg(self.keys.leases()).arg(0).arg(-1).take()).await?;
        for lease in texts(all).into_iter().filter(|lease| *lease != own) {
            let keys = [self.keys.lease(&lease), self.keys.ended(&lease)];
            let fence = |live: &Live| Script::Fence.call(live.dialect, &keys).arg(millis(REMEMBERED)).take();
            if int(self.server.ask(fence).await?) == 1 {
                self.sweep(&lease).await?;
            }
        }
        Ok(())
    }

    async fn sweep(&self, lease: &str) -> Result<(), BrokerError> {
        let channels_of = self.keys.channels_of(lease);
        let channels = texts(self.server.ask(|_| redis::cmd("SMEMBERS").arg(&channels_of).take()).await?);
        let mut swept = 0;
        for channel in channels.iter().filter_map(|key| channel(key)) {
            let sweep = |live: &Live| {
                let mut call = Script::Sweep.call(live.dialect, &[self.keys.members(&channel)]);
                call.arg(self.keys.relay(&channel)).arg("PUBLISH").arg(lease).arg(millis(REMEMBERED));
                call
            };
            swept += int(self.server.ask(sweep).await?);
        }
        self.server.ask(|_| redis::cmd("DEL").arg(&channels_of).take()).await?;
        self.server.ask(|_| redis::cmd("ZREM").arg(self.keys.leases()).arg(lease).take()).await?;
        info!(lease, members = swept, channels = channels.len(), "took out the members of a node that is gone");
        Ok(())
    }

    fn lease(&self) -> String {
        format!("{}.{}", self.life, self.state().number)
    }

    /// Goes on to the next lease, unless somebody did.
    fn replace(&self, ended: &str) {
        let mut state = self.state();
        if state.number == number(ended) {
            state.number += 1;
            state.claimed.clear();
        }
    }

    fn has(&self, channel: &Channel, connection: ConnectionId) -> bool {
        self.state().members.get(channel).is_some_and(|members| members.contains_key(&connection))
    }

    fn remove(&self, channel: &Channel, connection: ConnectionId) {
        let mut state = self.state();
        let Some(members) = state.members.get_mut(channel) else { return };
        members.remove(&connection);
        if members.is_empty() {
            state.members.remove(channel);
        }
    }

    /// Changed in one piece, so what a panic left behind is still whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PresenceStore for RedisBroker {
    fn join<'a>(&'a self, channel: &'a Channel, member: Member) -> BoxFuture<'a, Result<(), BrokerError>> {
        async move {
            let (leases, connection) = (&self.leases, member.connection);
            leases.state().members.entry(channel.clone()).or_default().insert(connection, member.clone());
            let entered = leases.enter(channel, &member).await;
            if let Err(error) = entered {
                leases.remove(channel, connection);
                // It may be in all the same.
                leases.has_ghosts.store(true, Ordering::Relaxed);
                return Err(error);
            }
            Ok(())
        }
        .boxed()
    }

    fn leave<'a>(&'a self, channel: &'a Channel, connection: ConnectionId) -> BoxFuture<'a, Result<(), BrokerError>> {
        async move {
            self.leases.remove(channel, connection);
            let left = self.leases.take_out(channel, connection).await;
            if left.is_err() {
                // It leaves with the lease, once Redis is back.
                self.leases.has_ghosts.store(true, Ordering::Relaxed);
            }
            left
        }
        .boxed()
    }

    fn members<'a>(&'a self, channel: &'a Channel) -> BoxFuture<'a, Result<Vec<Member>, BrokerError>> {
        async move { Ok(members(self.server.ask(|_| redis::cmd("HVALS").arg(self.keys.members(channel)).take()).await?)) }
            .boxed()
    }
}

/// The number of a lease of this process.
fn number(lease: &str) -> u64 {
    lease.rsplit_once('.').and_then(|(_, number)| number.parse().ok()).unwrap_or(0)
}

fn int(value: Value) -> i64 {
    match value {
        Value::Int(number) => number,
        _ => 0,
    }
}

fn texts(value: Value) -> Vec<String> {
    let values = match value {
        Value::Array(values) | Value::Set(values) => values,
        _ => Vec::new(),
    };
    let text = |value| match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).ok(),
        _ => None,
    };
    values.into_iter().filter_map(text).collect()
}

/// A channel from its key, as it stands in a lease's set.
fn channel(key: &str) -> Option<Channel> {
    let (app, name) = key.split_once(':')?;
    Some(Channel::new(&app.parse::<AppId>().ok()?, &name.parse::<ChannelName>().ok()?))
}

/// The members in an answer, in the order of their numbers.
fn members(answer: Value) -> Vec<Member> {
    let Value::Array(values) = answer else { return Vec::new() };
    let mut numbered: Vec<(u64, Member)> = values.into_iter().filter_map(numbered).collect();
    numbered.sort_unstable_by_key(|(number, _)| *number);
    numbered.into_iter().map(|(_, member)| member).collect()
}

/// A member with its number; `None` for what else stands among them: the counter, and marks of ended leases.
fn numbered(value: Value) -> Option<(u64, Member)> {
    let Value::BulkString(bytes) = value else { return None };
    let mut bytes = Bytes::from(bytes);
    let number = until_blank(&mut bytes)?;
    until_blank(&mut bytes)?;
    Some((std::str::from_utf8(&number).ok()?.parse().ok()?, wire::member(bytes)?))
}

fn until_blank(bytes: &mut Bytes) -> Option<Bytes> {
    let blank = bytes.iter().take(64).position(|byte| *byte == b' ')?;
    let text = bytes.split_to(blank);
    drop(bytes.split_to(1));
    Some(text)
}
