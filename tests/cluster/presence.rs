//! Members while nodes and Redis fail: each leaves once with its node, none because Redis was away.
//!
//! A lease lives for ten seconds, so each of these takes half a minute: they go side by side.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::node;
use crate::support::{ChildServer, Client, TestServer, redis::RedisServer};

const CHANNEL: &str = "chat:1";
/// Within what time members of a dead node must have left.
const LEFT: Duration = Duration::from_secs(20);
/// Long enough for every node to sweep once more.
const AFTERWARDS: Duration = Duration::from_secs(7);

/// Three nodes on one Redis. On the first, a process of its own, are two members; one watches on each of the others.
struct Scene {
    redis: RedisServer,
    victim: ChildServer,
    members: Vec<Client>,
    others: [TestServer; 2],
    watchers: [Client; 2],
}

impl Scene {
    async fn set() -> Self {
        let redis = RedisServer::with(|options| options.append_only = true).await;
        let victim = ChildServer::start(&format!(
            "[broker]\nurl = \"{}\"\n[connection]\nping = \"60s\"\n[namespace.chat]\nsubscribe = \"anyone\"\npresence = true",
            redis.url()
        ));
        let others = [node(&redis.url()).await, node(&redis.url()).await];
        let mut members = Vec::new();
        for name in ["bob", "cid"] {
            let mut member = victim.connect(name).await;
            member.subscribe(CHANNEL).await;
            members.push(member);
        }
        let mut watchers = [others[0].connect("ann").await, others[1].connect("abe").await];
        for watcher in &mut watchers {
            watcher.expect("subscribed", json!({ "type": "subscribe", "channel": CHANNEL, "presence": true })).await;
        }
        assert_eq!(watchers[0].next_of("join").await["member"]["user"], "abe");
        Self { redis, victim, members, others, watchers }
    }

    /// What both watchers hear of members for so long; it must be the same.
    async fn heard_for(&mut self, time: Duration) -> Vec<String> {
        let [one, two] = &mut self.watchers;
        let (heard, by_other) = tokio::join!(changes_for(one, time), changes_for(two, time));
        assert_eq!(heard, by_other);
        heard
    }

    /// Waits for so many changes; they must come in time.
    async fn heard(&mut self, count: usize, time: Duration) -> Vec<String> {
        let started = Instant::now();
        let mut heard = Vec::new();
        while heard.len() < count {
            assert!(started.elapsed() < time, "in {time:?} only {heard:?} came");
            heard.extend(self.heard_for(Duration::from_millis(500)).await);
        }
        heard.sort();
        heard
    }

    async fn users(&mut self) -> Vec<String> {
        let answer = self.watchers[0].expect("presence", json!({ "type": "presence", "channel": CHANNEL })).await;
        let users = answer["members"].as_array().unwrap().iter().map(|member| text(&member["user"]));
        let mut users: Vec<_> = users.collect();
        users.sort();
        users
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Every join and leave in so much time, as `leave bob`, sorted.
async fn changes_for(client: &mut Client, time: Duration) -> Vec<String> {
    let until = Instant::now() + time;
    let mut changes = Vec::new();
    while let Ok(frame) = timeout(until.saturating_duration_since(Instant::now()), client.next_frame()).await {
        if frame["type"] == "join" || frame["type"] == "leave" {
            changes.push(format!("{} {}", text(&frame["type"]), text(&frame["member"]["user"])));
        }
    }
    changes.sort();
    changes
}

async fn members_of_a_killed_node_leave_once() {
    let mut scene = Scene::set().await;
    scene.victim.signal(Signal::KILL);
    let mut bob = scene.others[0].connect("bob").await;
    bob.subscribe(CHANNEL).await;
    assert_eq!(scene.heard(3, LEFT).await, ["join bob", "leave bob", "leave cid"]);
    assert_eq!(scene.heard_for(AFTERWARDS).await, [""; 0], "each left once");
    assert_eq!(scene.users().await, ["abe", "ann", "bob"], "who went on elsewhere is in");
}

async fn members_of_a_node_that_stood_still_leave_and_come_back() {
    let mut scene = Scene::set().await;
    scene.victim.signal(Signal::STOP);
    assert_eq!(scene.heard(2, LEFT).await, ["leave bob", "leave cid"]);
    assert_eq!(scene.users().await, ["abe", "ann"]);
    assert_eq!(scene.heard_for(Duration::from_secs(2)).await, [""; 0]);
    scene.victim.signal(Signal::CONT);
    assert_eq!(scene.heard(2, LEFT).await, ["join bob", "join cid"]);
    assert_eq!(scene.heard_for(AFTERWARDS).await, [""; 0], "each came back once");
    assert_eq!(scene.users().await, ["abe", "ann", "bob", "cid"]);
    let [bob, _cid] = &mut scene.members[..] else { panic!("two members") };
    bob.expect("unsubscribed", json!({ "type": "unsubscribe", "channel": CHANNEL })).await;
    assert_eq!(scene.heard(1, LEFT).await, ["leave bob"]);
}

/// Longer than a lease lives.
const AWAY: Duration = Duration::from_secs(15);

async fn nobody_leaves_because_redis_was_away() {
    let mut scene = Scene::set().await;
    scene.redis.kill();
    sleep(AWAY).await;
    scene.redis.restart().await;
    assert_eq!(scene.heard_for(2 * AFTERWARDS).await, [""; 0]);
    assert_eq!(scene.users().await, ["abe", "ann", "bob", "cid"]);
}

async fn nobody_leaves_because_redis_stood_still() {
    let mut scene = Scene::set().await;
    scene.redis.stop();
    sleep(AWAY).await;
    scene.redis.cont();
    assert_eq!(scene.heard_for(2 * AFTERWARDS).await, [""; 0]);
    assert_eq!(scene.users().await, ["abe", "ann", "bob", "cid"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_leave_once_with_their_node_and_never_because_redis_was_away() {
    tokio::join!(
        members_of_a_killed_node_leave_once(),
        members_of_a_node_that_stood_still_leave_and_come_back(),
        nobody_leaves_because_redis_was_away(),
        nobody_leaves_because_redis_stood_still(),
    );
}
