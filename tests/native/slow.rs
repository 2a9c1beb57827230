//! Readers that do not keep up: they hurt nobody else, and are told.

use std::time::Duration;

use fanwire::config::{ByteSize, Config, HistoryConfig, NamespaceConfig, Rate, Span, WhenSlow};
use serde_json::{Value, json};

use crate::support::{Client, TestServer};

/// Room for one connection's queue; small, so that it is full soon.
const QUEUE: usize = 64 << 10;

/// What the story needs of the server: little room, and a history that keeps `size`. And no pings: on a busy machine a
/// reader stalls for longer than it may be silent after one.
fn narrow(config: &mut Config, size: usize) {
    config.connection.send_queue = ByteSize(QUEUE);
    config.connection.ping = Span(Duration::from_secs(600));
    config.limits.frames_per_connection = Rate::NONE;
    let history = Some(HistoryConfig { size, ttl: Span(Duration::from_secs(3600)) });
    let chat = config.namespaces["chat"].clone();
    config.namespaces.insert("kept".into(), NamespaceConfig { history, ..chat });
}

/// A client that reads little at a time, subscribed.
async fn stalled(server: &TestServer, channel: &str) -> Client {
    let mut slow = server.client().user("slow").receive_buffer(4096).connect().await;
    slow.subscribe(channel).await;
    slow
}

/// Publishes until there is no doubt that a stalled reader's kernel buffers and queue are full: 1 KiB `count` times.
/// `reader` reads along and must get everything.
async fn flood(publisher: &mut Client, reader: &mut Client, channel: &str, count: u64) {
    let filling = "x".repeat(1000);
    for chunk in 0..count / 50 {
        let frames =
            (0..50).map(|n| json!({ "type": "publish", "channel": channel, "data": [chunk * 50 + n, filling] }));
        publisher.send(&frames.collect()).await;
        for n in 0..50 {
            assert_eq!(reader.next_publication().await[0], chunk * 50 + n, "others are not disturbed");
        }
    }
}

/// The same until a connection is given up for being slow; returns how many were published. What the slow one is told
/// waits for it a few seconds only.
async fn flood_until_given_up(server: &TestServer, publisher: &mut Client, reader: &mut Client, channel: &str) -> u64 {
    let (filling, mut count) = ("x".repeat(1000), 0);
    while server.node().hub().all_counters().all(|counters| counters.slow_disconnected.get() == 0) {
        assert!(count < 20_000, "20 MB fit in no kernel buffer of 4 KiB");
        for n in count..count + 50 {
            publisher.send(&json!({ "type": "publish", "channel": channel, "data": [n, filling] })).await;
        }
        for n in count..count + 50 {
            assert_eq!(reader.next_publication().await[0], n, "others are not disturbed");
        }
        count += 50;
    }
    count
}

fn numbers(messages: &[Value]) -> Vec<u64> {
    messages.iter().map(|message| message["data"][0].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn a_slow_reader_catches_up_from_history_and_misses_nothing() {
    let server = TestServer::with(|config| narrow(config, 20_000)).await;
    let mut slow = stalled(&server, "kept:1").await;
    let (mut ann, mut bob) = (server.connect("ann").await, server.connect("bob").await);
    ann.subscribe("kept:1").await;
    flood(&mut bob, &mut ann, "kept:1", 8000).await;
    server.until("the queue to be counted", |node| 0 < node.hub().queued_bytes()).await;
    let queued = server.node().hub().queued_bytes();
    assert!(queued <= QUEUE, "{queued} bytes wait, the most is {QUEUE}");
    for n in 0..8000 {
        let message = slow.next_message().await;
        assert_eq!((&message["data"][0], &message["offset"]), (&json!(n), &json!(n + 1)));
    }
    // And it is live again.
    bob.publish("kept:1", json!(["live"])).await;
    assert_eq!(slow.next_publication().await, json!(["live"]));
    assert_eq!(server.node().hub().all_counters().map(|each| each.slow_disconnected.get()).sum::<usize>(), 0);
    assert!(0 < server.node().hub().all_counters().map(|each| each.caught_behind.get()).sum::<usize>(), "it was slow");
}

#[tokio::test]
async fn a_reader_that_is_slow_while_publishing_goes_on_gets_everything_once() {
    let server = TestServer::with(|config| narrow(config, 50_000)).await;
    let mut slow = stalled(&server, "kept:1").await;
    let (mut ann, mut bob) = (server.connect("ann").await, server.connect("bob").await);
    ann.subscribe("kept:1").await;
    let total = 12_000;
    let reading = async {
        let mut expected = 0;
        while expected < total {
            assert_eq!(slow.next_publication().await[0], expected);
            expected += 1;
            if expected % 500 == 0 {
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        }
    };
    tokio::join!(reading, flood(&mut bob, &mut ann, "kept:1", total));
    assert!(slow.until_quiet().await.is_empty());
}

#[tokio::test]
async fn a_reader_that_is_slower_than_its_history_is_told_of_the_gap() {
    let server = TestServer::with(|config| narrow(config, 100)).await;
    let mut slow = stalled(&server, "kept:1").await;
    let (mut ann, mut bob) = (server.connect("ann").await, server.connect("bob").await);
    ann.subscribe("kept:1").await;
    flood(&mut bob, &mut ann, "kept:1", 8000).await;
    let mut frames = Vec::new();
    while frames.last().is_none_or(|frame: &Value| frame["data"][0] != 7999) {
        frames.push(slow.next_frame().await);
    }
    let at = frames.iter().position(|frame| frame["type"] == "subscribed").expect("it is told");
    let (before, after) = (numbers(&frames[..at]), numbers(&frames[at + 1..]));
    assert_eq!(before, (0..before.len() as u64).collect::<Vec<_>>(), "what it got first is without a hole");
    assert_eq!((&frames[at]["recovered"], frames[at].get("id")), (&json!(false), None));
    assert_eq!(after, (7900..8000).collect::<Vec<_>>(), "then the newest that are kept");
    assert_eq!(frames[at]["offset"], 7900);
    bob.publish("kept:1", json!(["live"])).await;
    assert_eq!(slow.next_publication().await, json!(["live"]));
}

#[tokio::test]
async fn a_reader_that_is_slow_for_long_is_not_taken_for_a_silent_one() {
    let server = TestServer::with(|config| {
        narrow(config, 20_000);
        config.connection.send_queue = ByteSize::mebibytes(1);
        config.connection.ping = Span(Duration::from_secs(1));
    })
    .await;
    let mut slow = stalled(&server, "kept:1").await;
    let (mut ann, mut bob) = (server.connect("ann").await, server.connect("bob").await);
    ann.subscribe("kept:1").await;
    // 4 MB, a piece at a time: the server's pings stand far behind what it has still to read.
    let reading = async {
        for n in 0..4000 {
            assert_eq!(slow.next_publication().await[0], n);
            if n % 100 == 0 {
                tokio::time::sleep(Duration::from_millis(400)).await;
            }
        }
    };
    tokio::join!(reading, flood(&mut bob, &mut ann, "kept:1", 4000));
}

#[tokio::test]
async fn where_it_is_configured_a_slow_reader_is_disconnected_and_resumes() {
    let server = TestServer::with(|config| {
        narrow(config, 20_000);
        config.connection.when_slow = WhenSlow::Disconnect;
    })
    .await;
    let mut slow = stalled(&server, "kept:1").await;
    let (mut ann, mut bob) = (server.connect("ann").await, server.connect("bob").await);
    ann.subscribe("kept:1").await;
    let count = flood_until_given_up(&server, &mut bob, &mut ann, "kept:1").await;
    let ended = slow.ended().await;
    assert_eq!(
        (ended.code, ended.reason.as_str()),
        (Some(4001), "slow"),
        "after {} frames of {count}, the last: {:?}",
        ended.frames.len(),
        ended.frames.last().map(|frame| frame.to_string().chars().take(150).collect::<String>())
    );
    assert_eq!((&ended.disconnect()["code"], &ended.disconnect()["reconnect"]), (&json!("slow"), &json!(true)));
    let got = &ended.frames[..ended.frames.len() - 1];
    assert_eq!(numbers(got), (0..got.len() as u64).collect::<Vec<_>>());
    let after = json!({ "epoch": slow.positions().of("kept:1")["epoch"], "offset": got.len() });
    let mut back = server.connect("slow").await;
    let subscribe = json!({ "type": "subscribe", "channel": "kept:1", "after": after });
    assert_eq!(back.expect("subscribed", subscribe).await["recovered"], true);
    assert_eq!(numbers(&back.messages_until_quiet("kept:1").await), (got.len() as u64..count).collect::<Vec<_>>());
}

#[tokio::test]
async fn where_nothing_is_kept_a_slow_reader_is_disconnected() {
    let server = TestServer::with(|config| narrow(config, 100)).await;
    let mut slow = stalled(&server, "plain").await;
    let (mut ann, mut bob) = (server.connect("ann").await, server.connect("bob").await);
    ann.subscribe("plain").await;
    flood_until_given_up(&server, &mut bob, &mut ann, "plain").await;
    let ended = slow.ended().await;
    assert_eq!((ended.code, &ended.disconnect()["code"]), (Some(4001), &json!("slow")));
}

#[tokio::test]
async fn who_asks_without_reading_is_not_listened_to() {
    let server = TestServer::with(|config| narrow(config, 1000)).await;
    let mut bob = server.connect("bob").await;
    for n in 0..200 {
        bob.publish("kept:1", json!([n, "x".repeat(1000)])).await;
    }
    let mut greedy = server.client().user("greedy").receive_buffer(4096).connect().await;
    for _ in 0..100 {
        greedy.send(&json!({ "type": "history", "channel": "kept:1", "limit": 1000 })).await;
    }
    bob.expect("pong", json!({ "type": "ping" })).await;
    // Its answers come once it reads, one after the other, all of them.
    for _ in 0..100 {
        assert_eq!(greedy.next_of("history").await["messages"].as_array().unwrap().len(), 200);
    }
}
