//! A Redis cluster whose slots move.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{RedisServer, Reply};
use crate::support::DEADLINE;

/// Every Redis cluster has this many slots.
const SLOTS: usize = 16_384;

/// Three masters without replicas, which share the slots evenly.
pub struct RedisCluster {
    masters: Vec<RedisServer>,
    ids: Vec<String>,
}

impl RedisCluster {
    /// Three masters that all say the cluster is well.
    pub async fn three_masters() -> Self {
        let mut masters: Vec<RedisServer> = Vec::new();
        let mut ids = Vec::new();
        for n in 0..3 {
            let master = RedisServer::with(|options| {
                options.cluster = true;
                options.append_only = true;
                options.lines = vec!["cluster-node-timeout 2000".into()];
            })
            .await;
            let (first, last) = (n * SLOTS / 3, (n + 1) * SLOTS / 3 - 1);
            master.cli(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]).await;
            // Without an epoch of its own, each would have to fight for one with the others.
            master.cli(&["CLUSTER", "SET-CONFIG-EPOCH", &(n + 1).to_string()]).await;
            if let Some(other) = masters.first() {
                master.cli(&["CLUSTER", "MEET", "127.0.0.1", &other.port().to_string()]).await;
            }
            ids.push(master.cli(&["CLUSTER", "MYID"]).await);
            masters.push(master);
        }
        let cluster = Self { masters, ids };
        cluster.until_well().await;
        cluster
    }

    /// What `broker.url` is for it.
    pub fn url(&self) -> String {
        let hosts: Vec<_> = self.masters.iter().map(|master| format!("127.0.0.1:{}", master.port())).collect();
        format!("redis+cluster://{}", hosts.join(","))
    }

    /// Its masters.
    pub fn masters(&mut self) -> &mut [RedisServer] {
        &mut self.masters
    }

    /// Completes once every master says that all slots are served and that it knows both others.
    pub async fn until_well(&self) {
        for master in &self.masters {
            let well = |info: &str| info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3");
            master.until("the cluster to be well", &["CLUSTER", "INFO"], well).await;
        }
    }

    /// The slot of a key or sharded channel.
    pub async fn slot(&self, key: &str) -> u16 {
        self.masters[0].cli(&["CLUSTER", "KEYSLOT", key]).await.parse().expect("a slot is a number")
    }

    /// Which of the masters serves `slot`, as it says itself.
    pub async fn owner(&self, slot: u16) -> usize {
        for (n, master) in self.masters.iter().enumerate() {
            // Each one's own line ends with its slots.
            let nodes = master.cli(&["CLUSTER", "NODES"]).await;
            let own = nodes.lines().find(|line| line.contains("myself")).expect("a node knows itself");
            if own.split(' ').skip(8).any(|slots| includes(slots, slot)) {
                return n;
            }
        }
        panic!("nobody serves slot {slot}");
    }

    /// Moves `slot` with its keys to the master `to`, as an operator would: keys first, under traffic, then the word of
    /// it. Completes once every master knows.
    pub async fn move_slot(&self, slot: u16, to: usize) {
        let from = self.owner(slot).await;
        if from == to {
            return;
        }
        let (source, target) = (&self.masters[from], &self.masters[to]);
        let (slot_text, port) = (slot.to_string(), target.port().to_string());
        target.cli(&["CLUSTER", "SETSLOT", &slot_text, "IMPORTING", &self.ids[from]]).await;
        source.cli(&["CLUSTER", "SETSLOT", &slot_text, "MIGRATING", &self.ids[to]]).await;
        loop {
            let keys = source.ask(&["CLUSTER", "GETKEYSINSLOT", &slot_text, "100"]).await;
            let keys = keys.expect("it answers").texts();
            if keys.is_empty() {
                break;
            }
            let mut migrate = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "1000", "KEYS"];
            migrate.extend(keys.iter().map(String::as_str));
            source.cli(&migrate).await;
        }
        // The new owner first: it must never be that nobody thinks the slot is its own.
        for n in [to, from, 3 - to - from] {
            self.masters[n].cli(&["CLUSTER", "SETSLOT", &slot_text, "NODE", &self.ids[to]]).await;
        }
        self.until_all_say(slot, to).await;
    }

    /// Completes once every master names `owner` as that of `slot`.
    async fn until_all_say(&self, slot: u16, owner: usize) {
        let (started, port) = (Instant::now(), i64::from(self.masters[owner].port()));
        for master in &self.masters {
            loop {
                let slots = master.ask(&["CLUSTER", "SLOTS"]).await.expect("it answers");
                let named = slots.several().iter().map(Reply::several).any(|range| {
                    let between = |at: i64| matches!(range[..2], [Reply::Integer(first), Reply::Integer(last)] if (first..=last).contains(&at));
                    between(slot.into()) && range[2].several()[1] == Reply::Integer(port)
                });
                if named {
                    break;
                }
                assert!(started.elapsed() < DEADLINE, "not every master knows who has slot {slot}: {slots}");
                sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

/// Whether `slots`, such as `7` or `0-5460`, include `slot`. A slot on its way, such as `[7->-id]`, is not counted.
fn includes(slots: &str, slot: u16) -> bool {
    let (first, last) = slots.split_once('-').unwrap_or((slots, slots));
    match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(first), Ok(last)) => (first..=last).contains(&slot),
        _ => false,
    }
}

mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slot_moves_with_its_keys_and_its_sharded_channels() {
        let cluster = RedisCluster::three_masters().await;
        let slot = cluster.slot("{room}").await;
        let from = cluster.owner(slot).await;
        let to = (from + 1) % 3;
        for n in 0..250 {
            cluster.masters[from].cli(&["SET", &format!("{{room}}{n}"), &n.to_string()]).await;
        }
        let mut listener = cluster.masters[from].connect().await.unwrap();
        listener.command(&["SSUBSCRIBE", "{room}news"]).await.unwrap();

        cluster.move_slot(slot, to).await;
        assert_eq!(cluster.owner(slot).await, to);
        assert_eq!(cluster.masters[to].cli(&["GET", "{room}249"]).await, "249");
        let moved = cluster.masters[from].ask(&["GET", "{room}249"]).await.unwrap();
        assert_eq!(moved, Reply::Error(format!("MOVED {slot} 127.0.0.1:{}", cluster.masters[to].port())));
        assert_eq!(listener.next().await.unwrap().texts(), ["sunsubscribe", "{room}news", "0"], "unasked");

        cluster.move_slot(slot, from).await;
        assert_eq!(cluster.masters[from].cli(&["GET", "{room}0"]).await, "0");
    }

    #[tokio::test]
    async fn a_master_that_was_killed_comes_back_with_its_slots() {
        let mut cluster = RedisCluster::three_masters().await;
        let owner = cluster.owner(0).await;
        let key = "{06S}"; // Slot 0.
        assert_eq!(cluster.slot(key).await, 0);
        cluster.masters[owner].cli(&["SET", key, "kept"]).await;
        cluster.masters()[owner].kill();
        cluster.masters()[owner].restart().await;
        cluster.until_well().await;
        assert_eq!(cluster.owner(0).await, owner);
        assert_eq!(cluster.masters[owner].cli(&["GET", key]).await, "kept");
    }
}
