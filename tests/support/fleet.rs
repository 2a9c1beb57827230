//! Several nodes, each the real program in a process of its own, on one broker; and a crowd that publishes and subscribes
//! through whichever of them live.
//!
//! Start at [`Fleet::start`], then [`crowd::Crowd::gather`]. What is done to nodes is done here: killed, told to end,
//! stopped, started anew; what happens between it and its clients is done with its [`Fleet::front`]. What happens to
//! Redis and on the way there is done with [`super::redis`] and [`super::proxy`]: a node is led through a proxy by giving
//! it the proxy's address.

pub mod crowd;
mod link;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rand::seq::IteratorRandom;
use rustix::process::Signal;
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};

use super::{Answer, ChildServer, DEADLINE, get, proxy::ChaosProxy};

/// Nodes, and where they are. Dropping it kills them.
pub struct Fleet {
    nodes: Vec<Node>,
    directory: Directory,
}

struct Node {
    config: String,
    /// The process; none where it has been killed or has ended.
    server: Option<ChildServer>,
    /// What clients come through.
    front: ChaosProxy,
}

impl Fleet {
    /// One node for each of these values of `broker.url`. All are ready.
    ///
    /// Channels `chat:…` have history (1000, one hour) and presence, channels `plain:…` have neither.
    pub async fn start(broker_urls: &[String]) -> Self {
        let mut fleet = Self { nodes: Vec::new(), directory: Directory::default() };
        for (n, url) in broker_urls.iter().enumerate() {
            // Where it leads is known when the node has started.
            let front = ChaosProxy::to(SocketAddr::from(([127, 0, 0, 1], 1))).await;
            fleet.nodes.push(Node { config: configuration(n, url), server: None, front });
            fleet.directory.write(|addresses| addresses.push(None));
            fleet.restart(n).await;
        }
        for n in 0..broker_urls.len() {
            fleet.until_ready(n).await;
        }
        fleet
    }

    /// How many nodes there are, dead ones too.
    pub fn size(&self) -> usize {
        self.nodes.len()
    }

    /// Where the living nodes are; it is kept true.
    pub fn directory(&self) -> Directory {
        self.directory.clone()
    }

    /// Whether a node has a process.
    pub fn lives(&self, n: usize) -> bool {
        self.nodes[n].server.is_some()
    }

    /// What a node has logged since it was last started.
    pub fn log(&self, n: usize) -> String {
        self.nodes[n].server.as_ref().map(ChildServer::log).unwrap_or_default()
    }

    /// What a plain GET of `path` answers.
    pub async fn get(&self, n: usize, path: &str) -> Answer {
        get(self.server(n).address(), path).await
    }

    /// What clients come through to a node.
    pub fn front(&self, n: usize) -> &ChaosProxy {
        &self.nodes[n].front
    }

    /// Kills a node as a crash would.
    pub fn kill(&mut self, n: usize) {
        self.directory.set(n, None);
        self.nodes[n].server = None;
    }

    /// Tells a node to end, and completes when it has. It is out of the directory at once, as a load balancer would take
    /// it out. It must end well.
    pub async fn terminate(&mut self, n: usize) {
        self.directory.set(n, None);
        let Some(mut server) = self.nodes[n].server.take() else { return };
        server.signal(Signal::TERM);
        let status = server.exit().await;
        assert!(status.success(), "node {n} ended with {status}: {}", server.log());
    }

    /// Makes a node stand still, with its connections open.
    pub fn stop(&self, n: usize) {
        self.server(n).signal(Signal::STOP);
    }

    /// Makes it go on.
    pub fn cont(&self, n: usize) {
        self.server(n).signal(Signal::CONT);
    }

    /// Starts a node anew, on another port; kills it before, if it lives. Completes when it listens.
    pub async fn restart(&mut self, n: usize) {
        self.kill(n);
        let config = self.nodes[n].config.clone();
        let server = spawn_blocking(move || ChildServer::start(&config)).await.expect("the node starts");
        let node = &mut self.nodes[n];
        node.front.aim(server.address());
        self.directory.set(n, Some(node.front.address()));
        node.server = Some(server);
    }

    /// Completes once a node says that it is ready.
    pub async fn until_ready(&self, n: usize) {
        let started = Instant::now();
        loop {
            let answer = self.get(n, "/readyz").await;
            if answer.status == 200 {
                return;
            }
            assert!(started.elapsed() < DEADLINE, "node {n} is not ready: {answer:?}; {}", self.log(n));
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn server(&self, n: usize) -> &ChildServer {
        self.nodes[n].server.as_ref().unwrap_or_else(|| panic!("node {n} is dead"))
    }
}

/// Where the living nodes are. Clones see the same.
#[derive(Clone, Default)]
pub struct Directory(Arc<Mutex<Vec<Option<SocketAddr>>>>);

impl Directory {
    /// Any living node, if there is one.
    pub fn any(&self) -> Option<SocketAddr> {
        self.write(|addresses| addresses.iter().copied().flatten().choose(&mut rand::rng()))
    }

    fn set(&self, n: usize, address: Option<SocketAddr>) {
        self.write(|addresses| addresses[n] = address);
    }

    fn write<T>(&self, change: impl FnOnce(&mut Vec<Option<SocketAddr>>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A node's configuration. Pings are frequent, since what stands still must be noticed in the time of a test.
fn configuration(n: usize, broker_url: &str) -> String {
    format!(
        r#"
        node_name = "node{n}"
        [broker]
        url = "{broker_url}"
        [connection]
        ping = "1s"
        [limits]
        frames_per_connection = ""
        [shutdown]
        drain = "2s"
        [namespace.chat]
        subscribe = "anyone"
        publish = "user"
        history = {{ size = 1000, ttl = "1h" }}
        presence = true
        publish_rate = ""
        [namespace.plain]
        subscribe = "anyone"
        publish = "user"
        publish_rate = ""
        "#
    )
}

mod tests {
    use super::{
        crowd::{Crowd, Workload},
        *,
    };
    use crate::support::checker::Rule;

    fn memory() -> [String; 1] {
        ["memory:".to_owned()]
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_node_that_stands_still_for_a_while_loses_nothing() {
        let mut fleet = Fleet::start(&memory()).await;
        let crowd = Crowd::gather(&fleet, Workload::default()).await;
        crowd.until_deliveries(300).await;
        fleet.stop(0);
        sleep(Duration::from_millis(300)).await;
        fleet.cont(0);
        crowd.until_deliveries(1000).await;
        let report = crowd.disperse().await;
        assert!(report.violations.is_empty() && report.announced.is_empty(), "{report}");
        assert_eq!(report.live, Workload::default().subscribers(), "{report}");
        fleet.terminate(0).await;
        assert!(!fleet.lives(0));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_node_that_forgets_everything_tells_everybody() {
        let mut fleet = Fleet::start(&memory()).await;
        // What is sent again would be new to it.
        let workload = Workload { plain_channels: 0, ..Workload::default() };
        let crowd = Crowd::gather(&fleet, workload).await;
        crowd.until_deliveries(200).await;
        fleet.kill(0);
        fleet.restart(0).await;
        crowd.until_deliveries(1000).await;
        let report = crowd.disperse().await;
        assert!(report.violations.is_empty(), "{report}");
        assert_eq!(report.announced.len(), workload.subscribers(), "each was told, once: {report}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn two_nodes_that_share_nothing_are_found_out() {
        let urls = [memory(), memory()].concat();
        let fleet = Fleet::start(&urls).await;
        assert_eq!(fleet.size(), 2);
        let crowd = Crowd::gather(&fleet, Workload::default()).await;
        crowd.until_deliveries(200).await;
        let report = crowd.disperse_within(Duration::ZERO).await;
        assert!(report.breaks(Rule::Lost), "{report}");
        assert!(report.breaks(Rule::Order), "there were two epochs at once: {report}");
    }
}
