//! Coming back: what was missed, in order, without a hole and without a double; or word that it is gone.

use fanwire::{
    config::{HistoryConfig, NamespaceConfig, Span},
    node::{Caller, CallerKind},
};
use serde_json::{Value, json};

use crate::support::{Client, TestServer};

/// A server whose channels `short:*` keep five publications.
async fn short_memory() -> TestServer {
    TestServer::with(|config| {
        let history = Some(HistoryConfig { size: 5, ttl: Span(std::time::Duration::from_secs(3600)) });
        let chat = config.namespaces["chat"].clone();
        config.namespaces.insert("short".into(), NamespaceConfig { history, ..chat });
    })
    .await
}

/// Subscribes after a position: `recovered`, the position just before the first message, and the messages' offsets.
async fn after(client: &mut Client, channel: &str, epoch: &Value, offset: u64) -> (Value, Value, Vec<u64>) {
    let after = json!({ "epoch": epoch, "offset": offset });
    let subscribe = json!({ "type": "subscribe", "channel": channel, "after": after });
    let mut subscribed = client.expect("subscribed", subscribe).await;
    let messages = client.messages_until_quiet(channel).await;
    client.expect("unsubscribed", json!({ "type": "unsubscribe", "channel": channel })).await;
    let offsets: Vec<_> = messages.iter().map(|message| message["offset"].as_u64().unwrap()).collect();
    let first = subscribed["offset"].as_u64();
    let expected: Vec<_> = (0..offsets.len() as u64).map(|n| first.unwrap() + 1 + n).collect();
    assert_eq!(offsets, expected, "each message is exactly one more than the position before it");
    (subscribed["recovered"].take(), subscribed["offset"].take(), offsets)
}

#[tokio::test]
async fn a_client_that_lost_its_connection_gets_what_it_missed() {
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    let mut bob = server.connect("bob").await;
    ann.subscribe("chat:lobby").await;
    bob.publish("chat:lobby", "one").await;
    assert_eq!(ann.next_publication().await, "one");
    let position = ann.lose_connection().await;
    bob.publish("chat:lobby", "two").await;
    bob.publish("chat:lobby", "three").await;
    let mut ann = server.connect("ann").await;
    let missed = ann.recover("chat:lobby", position).await;
    assert_eq!(missed, ["two", "three"]);
}

#[tokio::test]
async fn the_edges_of_a_history_are_exact() {
    let server = short_memory().await;
    let mut ann = server.connect("ann").await;
    let epoch = ann.publish("short:1", 1).await["epoch"].take();
    // Nothing is trimmed yet: even the beginning can be resumed from.
    assert_eq!(after(&mut ann, "short:1", &epoch, 0).await, (json!(true), json!(0), vec![1]));
    for n in 2..=8 {
        ann.publish("short:1", n).await;
    }
    // Kept are 4 to 8.
    for offset in [0, 1, 2] {
        let gap = (json!(false), json!(3), vec![4, 5, 6, 7, 8]);
        assert_eq!(after(&mut ann, "short:1", &epoch, offset).await, gap, "after {offset}");
    }
    for offset in 3..=8 {
        let whole = (json!(true), json!(offset), (offset + 1..=8).collect());
        assert_eq!(after(&mut ann, "short:1", &epoch, offset).await, whole, "after {offset}");
    }
    for offset in [9, 1000, u64::MAX] {
        let ahead = (json!(false), json!(3), vec![4, 5, 6, 7, 8]);
        assert_eq!(after(&mut ann, "short:1", &epoch, offset).await, ahead, "after {offset}");
    }
}

#[tokio::test]
async fn a_position_of_another_epoch_is_a_gap() {
    let server = short_memory().await;
    let mut ann = server.connect("ann").await;
    let epoch = ann.publish("short:1", 1).await["epoch"].take();
    let other = ann.publish("short:2", 1).await["epoch"].take();
    assert_ne!(epoch, other);
    for wrong in [other, json!(""), json!("K3F9"), json!("not an epoch, ä"), json!("zzzzzzzzzzzzzzzzzzzzzz")] {
        let gap = (json!(false), json!(0), vec![1]);
        assert_eq!(after(&mut ann, "short:1", &wrong, 1).await, gap, "{wrong}");
    }
    // A channel that nobody has published to.
    let nothing = (json!(false), json!(0), vec![]);
    assert_eq!(after(&mut ann, "short:3", &epoch, 1).await, nothing);
}

#[tokio::test]
async fn what_is_no_position_is_refused() {
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    for wrong in [
        json!({ "epoch": "x", "offset": -1 }),
        json!({ "epoch": "x", "offset": 1.5 }),
        json!({ "epoch": "x", "offset": "1" }),
        json!({ "epoch": 7, "offset": 1 }),
        json!({ "epoch": "x" }),
        json!({ "offset": 1 }),
        json!(7),
        json!("x:1"),
    ] {
        let code = ann.refused(json!({ "type": "subscribe", "channel": "chat:1", "after": wrong })).await;
        assert_eq!(code, "bad_request", "{wrong}");
    }
    let both = json!({ "type": "subscribe", "channel": "chat:1", "last": 1, "after": { "epoch": "x", "offset": 1 } });
    assert_eq!(ann.refused(both).await, "bad_request");
    ann.subscribe("chat:1").await;
}

#[tokio::test]
async fn where_nothing_is_kept_nothing_is_recovered() {
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    let after = json!({ "epoch": "k3f9", "offset": 3 });
    let subscribed = ann.expect("subscribed", json!({ "type": "subscribe", "channel": "plain", "after": after })).await;
    assert_eq!(subscribed["recovered"], false);
}

#[tokio::test]
async fn more_than_a_page_is_recovered_whole_and_in_order() {
    let server = TestServer::with(|config| {
        config.limits.frames_per_connection = fanwire::config::Rate::NONE;
        let history = Some(HistoryConfig { size: 5000, ttl: Span(std::time::Duration::from_secs(3600)) });
        let chat = config.namespaces["chat"].clone();
        config.namespaces.insert("long".into(), NamespaceConfig { history, ..chat });
    })
    .await;
    let mut ann = server.connect("ann").await;
    let epoch = ann.publish("long:1", 1).await["epoch"].take();
    for chunk in 0..25 {
        let frames = (0..100).map(|n| json!({ "type": "publish", "channel": "long:1", "data": 2 + chunk * 100 + n }));
        ann.send(&frames.collect()).await;
    }
    let (recovered, first, offsets) = after(&mut ann, "long:1", &epoch, 1).await;
    assert_eq!((recovered, first, offsets.len()), (json!(true), json!(1), 2500));
}

#[tokio::test]
async fn a_dropped_history_is_told_to_its_subscribers() {
    let server = short_memory().await;
    let mut ann = server.connect("ann").await;
    let mut bob = server.connect("bob").await;
    let before = ann.subscribe("short:1").await;
    bob.publish("short:1", "old").await;
    assert_eq!(ann.next_publication().await, "old");
    let app = "default".parse().unwrap();
    let caller = Caller { app: &app, kind: CallerKind::Server };
    server.node().drop_history(&caller, &"short:1".parse().unwrap()).await.unwrap();
    let again = ann.next_of("subscribed").await;
    assert_eq!(
        (&again["channel"], &again["recovered"], &again["offset"]),
        (&json!("short:1"), &json!(false), &json!(0))
    );
    assert!(again.get("id").is_none() && again["epoch"] != before["epoch"], "{again}");
    let published = bob.publish("short:1", "new").await;
    assert_eq!((&published["epoch"], &published["offset"]), (&again["epoch"], &json!(1)));
    assert_eq!(ann.next_message().await["offset"], 1);
    assert!(ann.until_quiet().await.is_empty());
}

#[tokio::test]
async fn what_is_missing_by_age_is_told_like_what_is_missing_by_number() {
    let server = TestServer::with(|config| {
        config.limits.frames_per_connection = fanwire::config::Rate::NONE;
        let history = Some(HistoryConfig { size: 100, ttl: Span(std::time::Duration::from_millis(300)) });
        let chat = config.namespaces["chat"].clone();
        config.namespaces.insert("brief".into(), NamespaceConfig { history, ..chat });
    })
    .await;
    let mut ann = server.connect("ann").await;
    let epoch = ann.publish("brief:1", 1).await["epoch"].take();
    ann.publish("brief:1", 2).await;
    // Until both have expired; the epoch stays.
    loop {
        let history = ann.expect("history", json!({ "type": "history", "channel": "brief:1" })).await;
        assert_eq!((&history["epoch"], &history["offset"]), (&epoch, &json!(2)));
        if history["messages"].as_array().unwrap().is_empty() {
            break;
        }
    }
    assert_eq!(after(&mut ann, "brief:1", &epoch, 1).await, (json!(false), json!(2), vec![]));
    assert_eq!(after(&mut ann, "brief:1", &epoch, 2).await, (json!(true), json!(2), vec![]));
    // In one frame, so that the third cannot expire in between.
    let position = json!({ "epoch": epoch, "offset": 2 });
    ann.send(&json!([
        { "type": "publish", "channel": "brief:1", "data": 3 },
        { "type": "subscribe", "channel": "brief:1", "after": position, "id": "resumed" },
    ]))
    .await;
    let subscribed = ann.next_of("subscribed").await;
    assert_eq!((&subscribed["recovered"], &subscribed["offset"]), (&json!(true), &json!(2)));
    assert_eq!(ann.next_message().await["offset"], 3);
}
