//! What the application's servers see of this node and ask of its connections.

use std::collections::{BTreeMap, HashSet};

use super::Node;
use crate::{
    broker::BrokerError,
    domain::{AppId, Channel, ChannelName, ConnectionId, HistoryQuery, Position, UserId},
    hub::{Connection, Control},
};

/// Which connections are meant.
#[derive(Clone, Debug)]
pub enum Target {
    /// All of a user.
    User(UserId),
    /// One.
    Connection(ConnectionId),
}

impl Target {
    fn is(&self, connection: &Connection) -> bool {
        match self {
            Self::User(user) => connection.identity().is_some_and(|identity| identity.user == *user),
            Self::Connection(id) => connection.id() == *id,
        }
    }
}

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

impl Node {
    /// Asks something of connections; returns how many were asked.
    pub async fn ask(&self, app: &AppId, target: Target, control: Control) -> usize {
        let app = app.clone();
        let asked = self.hub.on_every_shard(move |shard| {
            let wanted = |connection: &std::rc::Rc<Connection>| *connection.app() == app && target.is(connection);
            let connections: Vec<_> = shard.connections().into_iter().filter(wanted).collect();
            connections.iter().for_each(|connection| connection.ask(control.clone()));
            connections.len()
        });
        asked.await.into_iter().sum()
    }

    /// At most `limit` connections of an app, of one user only if `user` is given.
    pub async fn connections(&self, app: &AppId, user: Option<UserId>, limit: usize) -> Vec<ConnectionInfo> {
        let app = app.clone();
        let gathered = self.hub.on_every_shard(move |shard| {
            let wanted = |connection: &std::rc::Rc<Connection>| {
                *connection.app() == app && user.as_ref().is_none_or(|user| Target::User(user.clone()).is(connection))
            };
            shard.connections().into_iter().filter(wanted).take(limit).map(|each| info(&each)).collect::<Vec<_>>()
        });
        gathered.await.into_iter().flatten().take(limit).collect()
    }

    /// At most `limit` subscribed channels of an app whose names begin with `prefix`, by name.
    pub async fn channels(&self, app: &AppId, prefix: &str, limit: usize) -> BTreeMap<String, ChannelStats> {
        let (app, prefix) = (app.clone(), prefix.to_owned());
        let gathered = self.hub.on_every_shard(move |shard| {
            let mut channels = Vec::new();
            shard.for_each_channel(|local| {
                let channel = local.channel();
                if channel.app() == app.as_str() && channel.name().starts_with(&prefix) {
                    channels.push((channel.name().to_owned(), local.subscribers(), users(local)));
                }
            });
            channels
        });
        let mut merged = BTreeMap::<String, (usize, HashSet<UserId>)>::new();
        for (name, subscribers, users) in gathered.await.into_iter().flatten() {
            let entry = merged.entry(name).or_default();
            entry.0 += subscribers;
            entry.1.extend(users);
        }
        let stats = |(subscribers, users): (usize, HashSet<UserId>)| ChannelStats {
            subscribers,
            users: users.len(),
            position: None,
        };
        merged.into_iter().take(limit).map(|(name, entry)| (name, stats(entry))).collect()
    }

    /// One channel in numbers.
    ///
    /// # Errors
    /// The broker's failure.
    pub async fn channel(&self, app: &AppId, name: &ChannelName) -> Result<ChannelStats, BrokerError> {
        let channel = Channel::new(app, name);
        let wanted = channel.clone();
        let gathered = self
            .hub
            .on_every_shard(move |shard| shard.channel(&wanted).map(|local| (local.subscribers(), users(&local))));
        let mut stats = ChannelStats::default();
        let mut all = HashSet::new();
        for (subscribers, users) in gathered.await.into_iter().flatten() {
            stats.subscribers += subscribers;
            all.extend(users);
        }
        stats.users = all.len();
        let retention = self.gateway.namespace(name).and_then(|namespace| super::retention(&namespace));
        if let Some(retention) = retention {
            let query = HistoryQuery { limit: 0, ..HistoryQuery::default() };
            stats.position = Some(self.broker.history(&channel, retention, query).await?.top);
        }
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
