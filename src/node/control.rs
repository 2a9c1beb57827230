//! What the application's servers see of this node.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use super::{Node, broker_refusal, order::is_meant};
use crate::{
    broker::Target,
    domain::{AppId, Channel, ChannelName, ConnectionId, HistoryQuery, NodeId, Position, Refusal, UserId},
    hub::Connection,
};

/// One connection, from outside.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// Its id.
    pub id: ConnectionId,
    /// Its user, if it has one.
    pub user: Option<UserId>,
    /// The channels it is subscribed to.
    pub channels: Vec<String>,
    /// Seconds since it came.
    pub seconds: u64,
}

/// One channel in numbers.
#[derive(Clone, Debug, Default)]
pub struct ChannelStats {
    /// Connections that are subscribed.
    pub subscribers: usize,
    /// Distinct users among them.
    pub users: usize,
    /// The newest position, where history is kept.
    pub position: Option<Position>,
}

/// One node in numbers.
#[derive(Clone, Debug)]
pub struct NodeInfo {
    /// Its id.
    pub id: NodeId,
    /// Seconds since it started.
    pub seconds: u64,
    /// Whether it is shutting down.
    pub draining: bool,
    /// Connections of all apps.
    pub connections: usize,
    /// Their subscriptions.
    pub subscriptions: usize,
    /// Pushes that wait for a shard.
    pub waiting: usize,
    /// Bytes that wait for slow connections.
    pub queued_bytes: usize,
    /// How late the slowest shard's timer was at its last tick.
    pub lag: Duration,
}

impl Node {
    /// At most `limit` connections of an app, of one user only if `user` is given.
    pub async fn connections(&self, app: &AppId, user: Option<UserId>, limit: usize) -> Vec<ConnectionInfo> {
        let (app, target) = (app.clone(), user.map(Target::User));
        let gathered = self.hub.on_every_shard(move |shard| {
            let wanted = |connection: &std::rc::Rc<Connection>| match &target {
                Some(target) => is_meant(connection, &app, target),
                None => *connection.app() == app,
            };
            shard.connections().into_iter().filter(wanted).take(limit).map(|each| info(&each)).collect::<Vec<_>>()
        });
        gathered.await.into_iter().flatten().take(limit).collect()
    }

    /// At most `limit` subscribed channels of an app whose names begin with `prefix` and sort behind `after`, by name.
    ///
    /// # Errors
    /// The broker's failure.
    pub async fn channels(
        &self,
        app: &AppId,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<(String, ChannelStats)>, Refusal> {
        let channels: Arc<[Channel]> = self.first_channels(app, prefix, after, limit).await.into();
        let wanted = channels.clone();
        let gathered = self.hub.on_every_shard(move |shard| {
            let here = wanted.iter().enumerate().filter_map(|(at, channel)| Some((at, shard.channel(channel)?)));
            here.map(|(at, local)| (at, local.subscribers(), users(&local))).collect::<Vec<_>>()
        });
        // One that was left by everybody a moment ago stays, with nobody there: a page shorter than asked for is the last.
        let mut counted = vec![(0, HashSet::new()); channels.len()];
        for (at, subscribers, users) in gathered.await.into_iter().flatten() {
            counted[at].0 += subscribers;
            counted[at].1.extend(users);
        }
        let mut stats = Vec::with_capacity(channels.len());
        for (channel, (subscribers, users)) in channels.iter().zip(counted) {
            let name = channel.name().to_owned();
            let position = match name.parse() {
                Ok(name) => self.top(app, &name).await?,
                Err(_) => None,
            };
            stats.push((name, ChannelStats { subscribers, users: users.len(), position }));
        }
        Ok(stats)
    }

    /// The first `limit` subscribed channels, by name. No shard keeps more than that, however many it goes through.
    async fn first_channels(&self, app: &AppId, prefix: &str, after: &str, limit: usize) -> Vec<Channel> {
        let (owner, prefix, after) = (app.clone(), prefix.to_owned(), after.to_owned());
        let gathered = self.hub.on_every_shard(move |shard| {
            let mut first = BTreeMap::<String, Channel>::new();
            shard.for_each_channel(|local| {
                let channel = local.channel();
                let name = channel.name();
                let wanted = channel.app() == owner.as_str() && name.starts_with(&prefix) && *after < *name;
                let is_full = first.len() == limit;
                if !wanted || is_full && first.last_key_value().is_none_or(|(last, _)| **last < *name) {
                    return;
                }
                if is_full {
                    first.pop_last();
                }
                first.insert(name.to_owned(), channel.clone());
            });
            first
        });
        let merged: BTreeMap<_, _> = gathered.await.into_iter().flatten().collect();
        merged.into_values().take(limit).collect()
    }

    /// The newest position of a channel; `None` where no history is kept.
    async fn top(&self, app: &AppId, name: &ChannelName) -> Result<Option<Position>, Refusal> {
        let retention = self.gateway.namespace(name).and_then(|namespace| super::retention(&namespace));
        let Some(retention) = retention else { return Ok(None) };
        let query = HistoryQuery { limit: 0, ..HistoryQuery::default() };
        let history = self.broker.history(&Channel::new(app, name), retention, query).await;
        Ok(Some(history.map_err(|error| broker_refusal(error, name))?.top))
    }

    /// The nodes that serve. One so far: this one.
    pub fn nodes(&self) -> Vec<NodeInfo> {
        let counters = || self.hub.all_counters();
        vec![NodeInfo {
            id: self.id.clone(),
            seconds: self.started.elapsed().as_secs(),
            draining: self.is_draining(),
            connections: self.hub.connections(),
            subscriptions: counters().map(|counters| counters.subscriptions.get()).sum(),
            waiting: self.hub.waiting(),
            queued_bytes: self.hub.queued_bytes(),
            lag: Duration::from_micros(counters().map(|counters| counters.lag_micros.get()).max().unwrap_or(0) as u64),
        }]
    }

    /// One channel in numbers.
    ///
    /// # Errors
    /// The broker's failure.
    pub async fn channel(&self, app: &AppId, name: &ChannelName) -> Result<ChannelStats, Refusal> {
        let channel = Channel::new(app, name);
        let gathered = self
            .hub
            .on_every_shard(move |shard| shard.channel(&channel).map(|local| (local.subscribers(), users(&local))));
        let mut stats = ChannelStats::default();
        let mut all = HashSet::new();
        for (subscribers, users) in gathered.await.into_iter().flatten() {
            stats.subscribers += subscribers;
            all.extend(users);
        }
        stats.users = all.len();
        stats.position = self.top(app, name).await?;
        Ok(stats)
    }
}

fn users(local: &crate::hub::Local) -> HashSet<UserId> {
    let mut users = HashSet::new();
    local.for_each(|connection| users.extend(connection.user()));
    users
}

fn info(connection: &Connection) -> ConnectionInfo {
    ConnectionInfo {
        id: connection.id(),
        user: connection.user(),
        channels: connection.channels().iter().map(|channel| channel.name().to_owned()).collect(),
        seconds: connection.started().elapsed().as_secs(),
    }
}
