//! Who is in a channel, and who comes and goes.

use std::time::Duration;

use fanwire::config::{ByteSize, HistoryConfig, NamespaceConfig, Rate, Span};
use serde_json::{Value, json};

use crate::support::{TestServer, subscription, token};

fn watch(channel: &str) -> Value {
    json!({ "type": "subscribe", "channel": channel, "presence": true })
}

#[tokio::test]
async fn who_watches_sees_members_come_and_go() {
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    let subscribed = ann.expect("subscribed", watch("chat:1")).await;
    assert_eq!(subscribed["members"], json!([{ "connection": ann.connection(), "user": "ann" }]));
    let mut bob = server.client().token(&token(json!({ "sub": "bob", "info": { "name": "Bob" } }))).connect().await;
    let member = json!({ "connection": bob.connection(), "user": "bob", "info": { "name": "Bob" } });
    bob.subscribe("chat:1").await;
    let join = ann.next_frame().await;
    assert_eq!(join, json!({ "type": "join", "channel": "chat:1", "member": member }), "and not one's own before");
    bob.expect("unsubscribed", json!({ "type": "unsubscribe", "channel": "chat:1" })).await;
    let leave = ann.next_frame().await;
    assert_eq!(leave, json!({ "type": "leave", "channel": "chat:1", "member": member }));
    bob.subscribe("chat:1").await;
    assert_eq!(ann.next_frame().await["type"], "join");
    bob.lose_connection().await;
    assert_eq!(ann.next_frame().await, leave);
    assert!(ann.until_quiet().await.is_empty());
}

#[tokio::test]
async fn who_does_not_watch_is_a_member_all_the_same() {
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    let subscribed = ann.subscribe("chat:1").await;
    assert!(subscribed.get("members").is_none());
    let mut bob = server.connect("bob").await;
    let subscribed = bob.expect("subscribed", watch("chat:1")).await;
    assert_eq!(subscribed["members"].as_array().unwrap().len(), 2);
    bob.publish("chat:1", "hi").await;
    let frames = ann.until_quiet().await;
    assert!(frames.iter().all(|frame| frame["type"] == "message"), "no joins for who did not ask: {frames:?}");
    assert_eq!(frames.len(), 1);
}

#[tokio::test]
async fn members_are_connections_and_users_are_counted_once() {
    let server = TestServer::start().await;
    let mut clients = Vec::new();
    for name in ["ann", "ann", "bob"] {
        let mut client = server.connect(name).await;
        client.subscribe("chat:1").await;
        clients.push(client);
    }
    let mut somebody = server.connect_anonymously().await;
    somebody.subscribe("chat:1").await;
    let presence = clients[2].expect("presence", json!({ "type": "presence", "channel": "chat:1" })).await;
    let members = presence["members"].as_array().unwrap();
    let known: Vec<_> =
        members.iter().map(|member| (member["connection"].as_str().unwrap(), member["user"].as_str())).collect();
    let (ids, anonymous) =
        (clients.iter().map(crate::support::Client::connection).collect::<Vec<_>>(), somebody.connection());
    let expected = [(&*ids[0], Some("ann")), (&*ids[1], Some("ann")), (&*ids[2], Some("bob")), (&*anonymous, None)];
    assert_eq!(known, expected);
    assert_eq!((&presence["users"], &presence["channel"]), (&json!(2), &json!("chat:1")));
    // One may look without being there.
    let mut eve = server.connect("eve").await;
    let presence = eve.expect("presence", json!({ "type": "presence", "channel": "chat:1" })).await;
    assert_eq!(presence["members"].as_array().unwrap().len(), 4);
    let empty = eve.expect("presence", json!({ "type": "presence", "channel": "chat:2" })).await;
    assert_eq!((&empty["members"], &empty["users"]), (&json!([]), &json!(0)));
}

#[tokio::test]
async fn a_channel_without_presence_says_so() {
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    assert_eq!(ann.refused(json!({ "type": "presence", "channel": "plain" })).await, "presence_disabled");
    assert_eq!(ann.refused(watch("plain")).await, "presence_disabled");
    ann.subscribe("plain").await;
}

#[tokio::test]
async fn a_subscription_token_says_what_others_see_in_its_channel() {
    let server = TestServer::start().await;
    let mut bob = server.client().token(&token(json!({ "sub": "bob", "info": { "name": "Bob" } }))).connect().await;
    let named = token(json!({
        "sub": "bob", "channel": "token:1", "do": ["subscribe", "presence"], "info": { "name": "Robert" },
    }));
    let mut subscribe = watch("token:1");
    subscribe["token"] = named.into();
    let subscribed = bob.expect("subscribed", subscribe).await;
    assert_eq!(subscribed["members"][0]["info"], json!({ "name": "Robert" }));
    let unnamed = json!({ "type": "subscribe", "channel": "token:2", "token": subscription("bob", "token:2") });
    bob.expect("subscribed", unnamed).await;
    let presence = token(json!({ "sub": "eve", "allow": [{ "channels": ["token:2"], "do": ["presence"] }] }));
    let mut eve = server.client().token(&presence).connect().await;
    let members = eve.expect("presence", json!({ "type": "presence", "channel": "token:2" })).await;
    assert_eq!(members["members"][0]["info"], json!({ "name": "Bob" }), "its connection's own");
}

#[tokio::test]
async fn each_join_and_each_leave_comes_once_however_many_come_at_once() {
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    ann.expect("subscribed", watch("chat:1")).await;
    for _ in 0..3 {
        let mut clients = Vec::new();
        for n in 0..20 {
            clients.push(server.connect(&format!("user{n}")).await);
        }
        let subscribing = clients.iter_mut().map(|client| client.subscribe("chat:1"));
        futures_util::future::join_all(subscribing).await;
        let mut ids: Vec<_> = clients.iter().map(crate::support::Client::connection).collect();
        ids.sort();
        for kind in ["join", "leave"] {
            let mut seen = Vec::new();
            for _ in 0..20 {
                let frame = ann.next_frame().await;
                assert_eq!(frame["type"], kind);
                seen.push(frame["member"]["connection"].as_str().unwrap().to_owned());
            }
            seen.sort();
            assert_eq!(seen, ids);
            for client in std::mem::take(&mut clients) {
                client.lose_connection().await;
            }
        }
    }
    assert!(ann.until_quiet().await.is_empty());
}

#[tokio::test]
async fn who_missed_more_joins_than_are_held_back_is_told_the_members_anew() {
    let server = TestServer::with(|config| {
        config.connection.send_queue = ByteSize(64 << 10);
        config.limits.frames_per_connection = Rate::NONE;
        let history = Some(HistoryConfig { size: 20_000, ttl: Span(Duration::from_secs(3600)) });
        let chat = config.namespaces["chat"].clone();
        config.namespaces.insert("kept".into(), NamespaceConfig { history, ..chat });
    })
    .await;
    let mut slow = server.client().user("slow").receive_buffer(4096).connect().await;
    slow.expect("subscribed", watch("kept:1")).await;
    let mut bob = server.connect("bob").await;
    let filling = "x".repeat(1000);
    let mut count = 0;
    let fell_behind = || server.node().hub().all_counters().any(|counters| 0 < counters.caught_behind.get());
    while !fell_behind() {
        bob.publish("kept:1", json!([count, filling])).await;
        count += 1;
    }
    // Carol stays, which nobody could know from the joins and leaves that are thrown away.
    let mut carol = server.connect("carol").await;
    for _ in 0..25 {
        let (join, leave) = ("subscribe", "unsubscribe");
        let turns = (0..200).map(|n| json!({ "type": if n % 2 == 0 { join } else { leave }, "channel": "kept:1" }));
        carol.send(&turns.collect()).await;
    }
    carol.subscribe("kept:1").await;
    let again = slow.next_of("subscribed").await;
    let frames = slow.until_quiet().await;
    let users: Vec<_> = again["members"].as_array().unwrap().iter().map(|member| member["user"].clone()).collect();
    assert_eq!(users, ["slow", "carol"]);
    assert_eq!(
        (&again["recovered"], &again["offset"], again.get("id")),
        (&json!(true), &json!(count), None),
        "after what was missed"
    );
    let offsets: Vec<_> = frames.iter().map(|frame| frame["offset"].as_u64()).collect();
    assert_eq!(offsets, (1..=count).map(Some).collect::<Vec<_>>(), "messages and nothing else");
    // From there on it hears of everybody again.
    carol.expect("unsubscribed", json!({ "type": "unsubscribe", "channel": "kept:1" })).await;
    assert_eq!(slow.next_frame().await["type"], "leave");
    assert!(slow.until_quiet().await.is_empty());
}
