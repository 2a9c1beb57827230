//! The end of all sockets: connections are told to go, spread out so that the other nodes are not stormed; a plain request
//! is answered first.

use std::{rc::Rc, sync::Arc, time::Duration};

use tokio::{
    task::spawn_local,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    domain::DisconnectReason,
    hub::{Connection, Control, Hub},
    transport::OpenSockets,
};

/// How long a client is told to wait at most before it connects elsewhere.
const MAX_DELAY: Duration = Duration::from_secs(3);
/// How long sockets may take to end after the last connection was told.
const GRACE: Duration = Duration::from_secs(5);

/// Tells every connection to go, spread evenly over `drain`, and waits until no socket is open: those with a request under
/// way included, and those whose last frames are still to leave.
pub(super) async fn sockets(hub: &Arc<Hub>, open: &OpenSockets, drain: Duration) {
    let started = Instant::now();
    let told = hub.on_every_shard(move |shard| {
        spawn_local(tell(shard.connections(), started, drain));
    });
    told.await;
    let deadline = started + drain + GRACE;
    // A session may outlive its socket: it leaves its channels first.
    while 0 < open.count() + hub.connections() && Instant::now() < deadline {
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
