//! Several nodes and one Redis: everything works across them, and what happens to Redis is either not noticed or told.

mod presence;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::support::{
    Client, DEADLINE, TestServer,
    proxy::{BOTH, ChaosProxy},
    redis::{RedisServer, sentinel::RedisSentinel},
    within,
};

async fn node(url: &str) -> TestServer {
    TestServer::with(|config| {
        config.broker.url = url.into();
        // Enough for whatever a busy machine takes to come back: what is trimmed is told, and is no loss.
        let chat = config.namespaces.get_mut("chat").expect("there is one");
        chat.history.as_mut().expect("it keeps one").size = 10_000;
    })
    .await
}

async fn two_nodes(redis: &RedisServer) -> (TestServer, TestServer) {
    (node(&redis.url()).await, node(&redis.url()).await)
}

/// Publishes, again and again with the same key while the broker is away.
async fn publish_patiently(client: &mut Client, channel: &str, data: impl Into<Value>) -> Value {
    let data = data.into();
    let publish = json!({ "type": "publish", "channel": channel, "key": format!("k{data}"), "data": data });
    let publishing = async {
        loop {
            let answer = client.request(publish.clone()).await;
            match (answer["type"].as_str(), answer["code"].as_str()) {
                (Some("published"), _) => return answer,
                (_, Some("unavailable" | "timeout")) => sleep(Duration::from_millis(100)).await,
                _ => panic!("{answer}"),
            }
        }
    };
    within("a publication", publishing).await
}

/// The next publications of this many, and no other frames between.
async fn next(client: &mut Client, count: usize) -> Vec<Value> {
    let mut data = Vec::new();
    let heard = async {
        while data.len() < count {
            data.push(client.next_publication().await);
        }
    };
    // Pings keep coming, so the deadline is for all of them.
    if tokio::time::timeout(DEADLINE, heard).await.is_err() {
        let told = client.heard("subscribed");
        panic!("{count} publications were awaited, {} came, the last {:?}; told: {told:?}", data.len(), data.last());
    }
    data
}

async fn until_ready(server: &TestServer) {
    let ready = async {
        while server.get("/readyz").await.status != 200 {
            sleep(Duration::from_millis(50)).await;
        }
    };
    within("the node to be ready", ready).await;
}

#[tokio::test]
async fn what_is_published_on_one_node_arrives_on_every_other() {
    let redis = RedisServer::start().await;
    let (one, two) = two_nodes(&redis).await;
    let (mut ann, mut bob) = (one.connect("ann").await, two.connect("bob").await);
    for channel in ["chat:1", "plain"] {
        ann.subscribe(channel).await;
        bob.subscribe(channel).await;
        let published = bob.publish(channel, json!({ "n": 9007199254740993u64 })).await;
        for client in [&mut ann, &mut bob] {
            let message = client.next_message().await;
            assert_eq!(message["id"], published["publication"]);
            assert_eq!(message["data"], json!({ "n": 9007199254740993u64 }));
        }
    }
    let history = bob.expect("history", json!({ "type": "history", "channel": "chat:1" })).await;
    assert_eq!(history["messages"].as_array().unwrap().len(), 1);
    let members = ann.expect("presence", json!({ "type": "presence", "channel": "chat:1" })).await;
    let users: Vec<_> = members["members"].as_array().unwrap().iter().map(|member| &member["user"]).collect();
    assert_eq!(users, ["ann", "bob"]);
}

#[tokio::test]
async fn a_client_resumes_on_another_node_and_a_key_is_known_there() {
    let redis = RedisServer::start().await;
    let (one, two) = two_nodes(&redis).await;
    let (mut ann, mut bob) = (one.connect("ann").await, two.connect("bob").await);
    ann.subscribe("chat:1").await;
    bob.publish("chat:1", 1).await;
    assert_eq!(ann.next_publication().await, 1);
    let positions = ann.lose_connection().await;
    let publish = json!({ "type": "publish", "channel": "chat:1", "data": 2, "key": "same" });
    let first = bob.expect("published", publish.clone()).await;
    let mut bob_elsewhere = one.connect("bob").await;
    let again = bob_elsewhere.expect("published", publish).await;
    assert_eq!((&first["publication"], &first["offset"]), (&again["publication"], &again["offset"]));
    bob.publish("chat:1", 3).await;
    let mut ann = two.connect("ann").await;
    assert_eq!(ann.recover("chat:1", positions).await, [2, 3]);
}

#[tokio::test]
async fn joins_and_leaves_are_seen_on_every_node_once() {
    let redis = RedisServer::start().await;
    let (one, two) = two_nodes(&redis).await;
    let mut ann = one.connect("ann").await;
    ann.expect("subscribed", json!({ "type": "subscribe", "channel": "chat:1", "presence": true })).await;
    let mut bob = two.connect("bob").await;
    bob.subscribe("chat:1").await;
    assert_eq!(ann.next_of("join").await["member"]["user"], "bob");
    bob.lose_connection().await;
    assert_eq!(ann.next_of("leave").await["member"]["user"], "bob");
}

#[tokio::test]
async fn a_broken_relay_is_not_noticed_by_anybody() {
    const COUNT: u64 = 400;
    let redis = RedisServer::start().await;
    let (one, two) = two_nodes(&redis).await;
    let (mut ann, mut bob) = (one.connect("ann").await, two.connect("bob").await);
    ann.subscribe("chat:1").await;
    let cutting = async {
        for _ in 0..8 {
            sleep(Duration::from_millis(150)).await;
            redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        }
    };
    let publishing = async {
        for n in 1..=COUNT {
            publish_patiently(&mut bob, "chat:1", n).await;
            sleep(Duration::from_millis(3)).await;
        }
    };
    let ((), (), heard) = tokio::join!(cutting, publishing, next(&mut ann, COUNT as usize));
    assert_eq!(heard, (1..=COUNT).map(Value::from).collect::<Vec<_>>());
}

#[tokio::test]
async fn redis_killed_and_restarted_loses_nothing_and_disconnects_nobody() {
    let mut redis = RedisServer::with(|options| options.append_only = true).await;
    let (one, two) = two_nodes(&redis).await;
    let (mut ann, mut bob) = (one.connect("ann").await, two.connect("bob").await);
    ann.subscribe("chat:1").await;
    publish_patiently(&mut bob, "chat:1", 1).await;
    assert_eq!(ann.next_publication().await, 1);
    redis.kill();
    // It waits in the node, and is acknowledged when it is in.
    bob.send(&json!({ "type": "publish", "channel": "chat:1", "data": 2, "id": "waiting" })).await;
    within("the node to notice", async {
        while one.get("/readyz").await.status != 503 {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let started = Instant::now();
    let refused = ann.refused(json!({ "type": "subscribe", "channel": "chat:2" })).await;
    assert_eq!(refused, "unavailable");
    ann.expect("pong", json!({ "type": "ping" })).await;
    assert!(started.elapsed() < Duration::from_secs(2), "answered at once: {:?}", started.elapsed());
    redis.restart().await;
    let published = bob.take("the answer", |frame| frame["id"] == "waiting").await;
    assert_eq!((&published["type"], &published["offset"]), (&json!("published"), &json!(2)));
    publish_patiently(&mut bob, "chat:1", 3).await;
    assert_eq!(next(&mut ann, 2).await, [2, 3]);
    until_ready(&one).await;
    ann.subscribe("chat:2").await;
}

#[tokio::test]
async fn a_redis_that_stands_still_doubles_nothing() {
    let redis = RedisServer::start().await;
    let (one, two) = two_nodes(&redis).await;
    let (mut ann, mut bob) = (one.connect("ann").await, two.connect("bob").await);
    ann.subscribe("chat:1").await;
    publish_patiently(&mut bob, "chat:1", 0).await;
    redis.stop();
    for n in 1..=20 {
        bob.send(&json!({ "type": "publish", "channel": "chat:1", "data": n, "id": n })).await;
    }
    sleep(Duration::from_secs(4)).await;
    redis.cont();
    for n in 1..=20 {
        let answer = bob.take("an answer", |frame| frame["id"] == n).await;
        assert_eq!(answer["type"], "published", "{answer}");
    }
    publish_patiently(&mut bob, "chat:1", 21).await;
    assert_eq!(next(&mut ann, 22).await, (0..=21).map(Value::from).collect::<Vec<_>>());
}

/// Everything in Redis is gone in one of several ways: each client is told once, and goes on.
async fn is_told_and_goes_on(ann: &mut Client, bob: &mut Client, lost: impl AsyncFnOnce()) {
    let before = ann.subscribe("chat:1").await;
    publish_patiently(bob, "chat:1", 1).await;
    assert_eq!(ann.next_publication().await, 1);
    lost().await;
    let started = Instant::now();
    let told = ann.next_of("subscribed").await;
    assert!(started.elapsed() < Duration::from_secs(8), "told within 5 s of its return, here {:?}", started.elapsed());
    assert_eq!((&told["channel"], &told["recovered"]), (&json!("chat:1"), &json!(false)));
    assert_ne!(told["epoch"], before["epoch"]);
    publish_patiently(bob, "chat:1", 2).await;
    let message = ann.next_message().await;
    assert_eq!((&message["data"], &message["offset"]), (&json!(2), &json!(1)));
}

#[tokio::test]
async fn a_flushed_redis_is_told() {
    let redis = RedisServer::start().await;
    let (one, two) = two_nodes(&redis).await;
    let (mut ann, mut bob) = (one.connect("ann").await, two.connect("bob").await);
    is_told_and_goes_on(&mut ann, &mut bob, async || drop(redis.cli(&["FLUSHALL"]).await)).await;
}

#[tokio::test]
async fn a_redis_that_returns_empty_is_told() {
    let mut redis = RedisServer::start().await;
    let (one, two) = two_nodes(&redis).await;
    let (mut ann, mut bob) = (one.connect("ann").await, two.connect("bob").await);
    is_told_and_goes_on(&mut ann, &mut bob, async || redis.restart_empty().await).await;
}

#[tokio::test]
async fn a_node_that_comes_after_redis_forgot_everything_agrees_with_the_others() {
    let redis = RedisServer::start().await;
    let (one, two) = two_nodes(&redis).await;
    let (mut ann, mut bob) = (one.connect("ann").await, two.connect("bob").await);
    ann.subscribe("chat:1").await;
    publish_patiently(&mut bob, "chat:1", 0).await;
    assert_eq!(ann.next_publication().await, 0);
    redis.cli(&["FLUSHALL"]).await;
    // Before the others have noticed anything.
    let three = node(&redis.url()).await;
    let mut cid = three.connect("cid").await;
    let mut epochs = Vec::new();
    for n in 1..=10 {
        for (client, data) in [(&mut cid, 2 * n - 1), (&mut bob, 2 * n)] {
            epochs.push(publish_patiently(client, "chat:1", data).await["epoch"].clone());
        }
    }
    epochs.dedup();
    assert_eq!(epochs.len(), 1, "all count in one epoch: {epochs:?}");
    let told = ann.next_of("subscribed").await;
    assert_eq!((&told["recovered"], &told["epoch"]), (&json!(false), &epochs[0]));
    let heard = within("the last publication", async {
        let mut heard = Vec::new();
        while heard.last() != Some(&json!(20)) {
            heard.push(ann.next_publication().await);
        }
        heard
    });
    let heard = heard.await;
    assert!(heard.is_sorted_by(|one, other| one.as_u64() < other.as_u64()), "each once, in order: {heard:?}");
    let rest = ann.until_quiet().await;
    assert!(rest.iter().all(|frame| frame["type"] != "subscribed"), "told once: {rest:?}");
}

#[tokio::test]
async fn a_lost_relay_message_is_found_by_the_look_at_the_tops() {
    let redis = RedisServer::start().await;
    let (one, two) = two_nodes(&redis).await;
    let (mut ann, mut bob) = (one.connect("ann").await, two.connect("bob").await);
    ann.subscribe("chat:1").await;
    publish_patiently(&mut bob, "chat:1", 1).await;
    assert_eq!(ann.next_publication().await, 1);
    // The same entry once more, as a publication whose relay was lost.
    let copy = "local entry = redis.call('XRANGE', KEYS[2], '1-0', '1-0')[1][2]
        redis.call('HSET', KEYS[1], 'o', '2')
        redis.call('XADD', KEYS[2], '2-0', entry[1], entry[2], entry[3], entry[4])";
    let keys = ["fanwire:m:{default:chat:1}", "fanwire:s:{default:chat:1}"];
    redis.cli(&["EVAL", copy, "2", keys[0], keys[1]]).await;
    let started = Instant::now();
    let message = ann.next_message().await;
    assert_eq!(message["offset"], 2);
    assert!(started.elapsed() < Duration::from_secs(6), "found within 5 s, here {:?}", started.elapsed());
}

#[tokio::test]
async fn a_half_open_connection_is_noticed_and_what_was_missed_is_read() {
    let redis = RedisServer::start().await;
    let proxy = ChaosProxy::to(redis.address()).await;
    let one = node(&redis.url_at(proxy.port())).await;
    let two = node(&redis.url()).await;
    let (mut ann, mut bob) = (one.connect("ann").await, two.connect("bob").await);
    ann.subscribe("chat:1").await;
    proxy.hold(&BOTH);
    bob.publish("chat:1", 1).await;
    within("the node to notice", async {
        while one.get("/readyz").await.status == 200 {
            sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    bob.publish("chat:1", 2).await;
    proxy.cut();
    proxy.heal().await;
    let started = Instant::now();
    assert_eq!(next(&mut ann, 2).await, [1, 2]);
    assert!(started.elapsed() < Duration::from_secs(4), "read within 2 s, here {:?}", started.elapsed());
}

#[tokio::test]
async fn a_failover_that_loses_publications_is_told_to_everybody() {
    let mut sentinel = RedisSentinel::start(1).await;
    let one = node(&sentinel.url()).await;
    let two = node(&sentinel.url()).await;
    let (mut ann, mut bob) = (one.connect("ann").await, two.connect("bob").await);
    let before = ann.subscribe("chat:1").await;
    // Nobody watches this one while it happens.
    publish_patiently(&mut bob, "chat:unwatched", 1).await;
    publish_patiently(&mut bob, "chat:1", 1).await;
    sentinel.cut_off_replica().await;
    for n in 2..=20 {
        publish_patiently(&mut bob, "chat:1", n).await;
    }
    let lost = publish_patiently(&mut bob, "chat:unwatched", 2).await;
    assert_eq!(next(&mut ann, 20).await.len(), 20);
    sentinel.failover().await;
    let told = ann.next_of("subscribed").await;
    assert_eq!(told["recovered"], false);
    assert_ne!(told["epoch"], before["epoch"]);
    let after = publish_patiently(&mut bob, "chat:unwatched", 3).await;
    assert_ne!(after["epoch"], lost["epoch"], "an offset never means two things");
}
