//! Subscribing and its end.

use serde_json::json;

use crate::support::TestServer;

#[tokio::test]
async fn subscribers_get_what_is_published_from_then_on() {
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    let mut bob = server.connect("bob").await;
    bob.publish("chat:1", "too early").await;
    let subscribed = ann.subscribe("chat:1").await;
    assert_eq!((&subscribed["channel"], &subscribed["offset"]), (&json!("chat:1"), &json!(1)));
    assert!(subscribed["epoch"].is_string());
    assert!(subscribed.get("recovered").is_none() && subscribed.get("members").is_none(), "{subscribed}");
    for n in 2..=20 {
        let published = bob.publish("chat:1", n).await;
        assert_eq!((&published["offset"], &published["epoch"]), (&json!(n), &subscribed["epoch"]));
    }
    for n in 2..=20 {
        let message = ann.next_message().await;
        assert_eq!(
            (&message["data"], &message["offset"], &message["channel"]),
            (&json!(n), &json!(n), &json!("chat:1"))
        );
    }
    assert!(bob.until_quiet().await.is_empty(), "who only publishes gets nothing");
}

#[tokio::test]
async fn a_channel_without_history_has_no_positions() {
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    for start in [json!({}), json!({ "last": 5 })] {
        let mut subscribe = json!({ "type": "subscribe", "channel": "plain" });
        subscribe.as_object_mut().unwrap().extend(start.as_object().unwrap().clone());
        let subscribed = ann.expect("subscribed", subscribe).await;
        assert!(subscribed.get("epoch").is_none() && subscribed.get("offset").is_none(), "{subscribed}");
        let published = ann.publish("plain", 1).await;
        assert!(published.get("epoch").is_none() && published.get("offset").is_none(), "{published}");
        let message = ann.next_message().await;
        assert!(message.get("offset").is_none() && message["id"] == published["publication"], "{message}");
        ann.expect("unsubscribed", json!({ "type": "unsubscribe", "channel": "plain" })).await;
    }
}

#[tokio::test]
async fn a_channel_has_the_epoch_of_its_first_publication_before_it() {
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    let subscribed = ann.subscribe("chat:new").await;
    assert_eq!(subscribed["offset"], 0);
    let published = ann.publish("chat:new", "first").await;
    assert_eq!((&published["epoch"], &published["offset"]), (&subscribed["epoch"], &json!(1)));
}

#[tokio::test]
async fn the_newest_publications_come_first_where_they_are_asked_for() {
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    for n in 1..=6 {
        ann.publish("chat:1", n).await;
    }
    for (last, expected) in [(0, 7..7), (1, 6..7), (4, 3..7), (6, 1..7), (1000, 1..7)] {
        let subscribe = json!({ "type": "subscribe", "channel": "chat:1", "last": last });
        let subscribed = ann.expect("subscribed", subscribe).await;
        assert_eq!(subscribed["offset"], expected.start - 1, "the position just before the first message");
        assert!(subscribed.get("recovered").is_none(), "{subscribed}");
        let messages = ann.messages_until_quiet("chat:1").await;
        let offsets: Vec<_> = messages.iter().map(|message| message["offset"].as_u64().unwrap()).collect();
        assert_eq!(offsets, expected.collect::<Vec<u64>>());
        ann.expect("unsubscribed", json!({ "type": "unsubscribe", "channel": "chat:1" })).await;
    }
}

#[tokio::test]
async fn a_cached_channel_sends_its_newest_publication_to_each_new_subscriber() {
    let server = TestServer::with(|config| {
        let plain = config.namespaces[""].clone();
        config.namespaces.insert("price".into(), fanwire::config::NamespaceConfig { cache: true, ..plain });
    })
    .await;
    let mut ann = server.connect("ann").await;
    assert!(ann.subscribe("price:x").await["offset"].is_number());
    for n in 1..=3 {
        ann.publish("price:x", n).await;
    }
    let mut bob = server.connect("bob").await;
    bob.subscribe("price:x").await;
    assert_eq!(bob.next_publication().await, 3);
    ann.publish("price:x", 4).await;
    assert_eq!(bob.next_publication().await, 4);
    assert!(bob.until_quiet().await.is_empty());
}

#[tokio::test]
async fn one_subscribes_once_and_unsubscribes_once() {
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    let mut bob = server.connect("bob").await;
    let unsubscribe = json!({ "type": "unsubscribe", "channel": "chat:1" });
    assert_eq!(ann.refused(unsubscribe.clone()).await, "not_subscribed");
    ann.subscribe("chat:1").await;
    let again = ann.expect("error", json!({ "type": "subscribe", "channel": "chat:1" })).await;
    assert_eq!((&again["code"], &again["channel"]), (&json!("already_subscribed"), &json!("chat:1")));
    bob.publish("chat:1", "once").await;
    assert_eq!(ann.messages_until_quiet("chat:1").await.len(), 1);
    let unsubscribed = ann.expect("unsubscribed", unsubscribe.clone()).await;
    assert_eq!(unsubscribed["channel"], "chat:1");
    assert!(unsubscribed.get("code").is_none(), "its own answer has no code: {unsubscribed}");
    assert_eq!(ann.refused(unsubscribe).await, "not_subscribed");
    bob.publish("chat:1", "not to ann").await;
    assert!(ann.until_quiet().await.is_empty());
    ann.subscribe("chat:1").await;
    bob.publish("chat:1", "to ann again").await;
    assert_eq!(ann.next_publication().await, "to ann again");
}

#[tokio::test]
async fn a_connection_holds_only_so_many_subscriptions() {
    let server = TestServer::with(|config| config.limits.frames_per_connection = fanwire::config::Rate::NONE).await;
    let mut ann = server.connect("ann").await;
    let frames: Vec<_> =
        (0..512).map(|n| json!({ "type": "subscribe", "channel": format!("c{n}"), "id": -1 })).collect();
    ann.send(&json!(frames)).await;
    for _ in 0..512 {
        assert_eq!(ann.next_frame().await["type"], "subscribed");
    }
    let one_more = json!({ "type": "subscribe", "channel": "one-more" });
    assert_eq!(ann.refused(one_more.clone()).await, "limit_exceeded");
    ann.expect("unsubscribed", json!({ "type": "unsubscribe", "channel": "c7" })).await;
    ann.expect("subscribed", one_more).await;
    // Each of them works, and the ones beside a gap too.
    for channel in ["c0", "c6", "c8", "c511", "one-more"] {
        ann.publish(channel, channel).await;
        assert_eq!(ann.next_publication().await, channel);
    }
}

#[tokio::test]
async fn the_application_may_subscribe_and_unsubscribe_its_users() {
    use fanwire::broker::{Deed, Dismissal, Target};
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    server.connect("bob").await;
    let (app, channel): (fanwire::domain::AppId, fanwire::domain::ChannelName) =
        ("default".parse().unwrap(), "token:1".parse().unwrap());
    let target = || Target::User("ann".parse().unwrap());
    let order = async |deed| server.node().order(&app, target(), deed).await.unwrap();
    assert_eq!(order(Deed::Subscribe(vec![channel.clone()])).await, 1);
    let subscribed = ann.next_of("subscribed").await;
    assert_eq!((&subscribed["channel"], subscribed.get("id")), (&json!("token:1"), None));
    assert_eq!(order(Deed::Unsubscribe(vec![channel])).await, 1);
    let unsubscribed = ann.next_of("unsubscribed").await;
    assert_eq!((&unsubscribed["channel"], &unsubscribed["code"]), (&json!("token:1"), &json!("forbidden")));
    assert_eq!(order(Deed::Disconnect(Dismissal::Forbidden)).await, 1);
    let ended = ann.ended().await;
    assert_eq!((ended.code, &ended.disconnect()["reconnect"]), (Some(4101), &json!(false)));
}
