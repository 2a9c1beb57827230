//! The end of all connections, spread out so that the other nodes are not stormed.

use std::{rc::Rc, sync::Arc, time::Duration};

use tokio::{
    task::spawn_local,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    domain::DisconnectReason,
    hub::{Connection, Control, Hub},
};

/// How long a client is told to wait at most before it connects elsewhere.
const MAX_DELAY: Duration = Duration::from_secs(3);
/// How long connections may take to end after they were told.
const GRACE: Duration = Duration::from_secs(5);

/// Tells every connection to go, spread evenly over `drain`, and waits until they have gone.
pub(super) async fn connections(hub: &Arc<Hub>, drain: Duration) {
    let started = Instant::now();
    let told = hub.on_every_shard(move |shard| {
        let connections = shard.connections();
        let count = connections.len();
        spawn_local(tell(connections, started, drain));
        count
    });
    let told: usize = told.await.into_iter().sum();
    if told == 0 {
        return;
    }
    let deadline = started + drain + GRACE;
    while 0 < hub.connections() && Instant::now() < deadline {
        sleep(Duration::from_millis(10)).await;
    }
}

/// One shard's share, each connection in its turn.
async fn tell(connections: Vec<Rc<Connection>>, started: Instant, drain: Duration) {
    let count = connections.len().max(1) as f64;
    let max_delay = MAX_DELAY.min(drain);
    for (at, connection) in connections.into_iter().enumerate() {
        // The first one goes at once, the last one a moment before the end.
        sleep_until(started + drain.mul_f64(at as f64 / count)).await;
        let delay = max_delay.mul_f64(rand::random());
        connection.ask(Control::Disconnect(DisconnectReason::Draining, Some(delay)));
    }
}
