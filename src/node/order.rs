//! What the application wants of connections: given here for all nodes, and done here for this one's. And which
//! tokens count no more.

use std::{rc::Rc, time::Duration};

use super::{Node, refusal};
use crate::{
    broker::{BrokerError, Deed, Order, Target},
    domain::{AppId, Refusal, Revocation},
    hub::{Connection, Control, Hub},
};

/// How much younger than an order a connection may be and still be meant by it: two primaries' clocks differ a little.
const TOLERANCE: Duration = Duration::from_millis(500);

impl Node {
    /// Has every node do something with those of its connections that are meant. Returns how many those are on this one;
    /// nobody waits for the others, nor until it is done.
    ///
    /// # Errors
    /// The broker's failure; it may be done all the same if that is a timeout.
    pub async fn order(&self, app: &AppId, target: Target, deed: Deed) -> Result<usize, Refusal> {
        let (own, whom) = (app.clone(), target.clone());
        let meant = self.hub.on_every_shard(move |shard| {
            shard.connections().iter().filter(|connection| is_meant(connection, &own, &whom)).count()
        });
        let meant: usize = meant.await.into_iter().sum();
        self.broker.order(Order { app: app.clone(), target, deed }).await.map_err(refusal)?;
        Ok(meant)
    }
}

impl Node {
    /// Revokes tokens on every node: they are refused from now on, and connections with them end.
    ///
    /// # Errors
    /// There are too many already, or the broker's failure.
    pub async fn revoke(&self, revocation: Revocation) -> Result<(), Refusal> {
        self.gateway.admit_revocation()?;
        self.broker.revoke(revocation.clone()).await.map_err(refusal)?;
        // Whoever asked may count on it here at once; the connections end as on every other node.
        self.gateway.revoke(revocation);
        Ok(())
    }

    /// Learns what was revoked before this node started.
    ///
    /// # Errors
    /// The broker's failure, or that it did not answer in `deadline`.
    pub async fn load_revocations(&self, deadline: Duration) -> Result<(), BrokerError> {
        let loading = tokio::time::timeout(deadline, self.broker.load_revocations());
        loading.await.unwrap_or(Err(BrokerError::Unanswered))
    }
}

/// Does an order that was given this long ago. Who came since is not meant: it may have been let in again.
pub(super) fn carry_out(hub: &Hub, order: Order, age: Duration) {
    for shard in 0..hub.shards() {
        let order = order.clone();
        hub.on_shard(shard, move |shard| {
            let was_there = |connection: &Connection| age <= connection.started().elapsed() + TOLERANCE;
            let connections: Vec<Rc<Connection>> = shard.connections();
            let meant = connections.iter().filter(|connection| is_meant(connection, &order.app, &order.target));
            meant.filter(|connection| was_there(connection)).for_each(|connection| ask(connection, &order.deed));
        });
    }
}

fn ask(connection: &Connection, deed: &Deed) {
    match deed {
        Deed::Disconnect(dismissal) => connection.ask(Control::Disconnect((*dismissal).into(), None)),
        Deed::Subscribe(channels) => channels.iter().cloned().map(Control::Subscribe).for_each(|it| connection.ask(it)),
        Deed::Unsubscribe(channels) => {
            channels.iter().cloned().map(Control::Unsubscribe).for_each(|it| connection.ask(it));
        }
    }
}

/// Whether a connection is one of those that are meant.
pub(super) fn is_meant(connection: &Connection, app: &AppId, target: &Target) -> bool {
    let is_target = || match target {
        Target::User(user) => connection.identity().is_some_and(|identity| identity.user == *user),
        Target::Connection(id) => connection.id() == *id,
    };
    connection.app() == app && is_target()
}
