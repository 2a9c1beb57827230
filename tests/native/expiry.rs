//! Tokens that end, and their renewal.

use std::time::Duration;

use fanwire::config::{ByteSize, HistoryConfig, NamespaceConfig, Rate, Span};
use serde_json::json;

use crate::support::{TestServer, now, token, user};

/// How many seconds late an end may come on a busy machine.
const LATE: u64 = 10;

fn until(user: &str, expires: u64) -> String {
    token(json!({ "sub": user, "exp": expires }))
}

#[tokio::test]
async fn the_end_of_a_token_ends_a_live_connection() {
    let server = TestServer::start().await;
    let expires = now() + 4;
    let mut ann = server.client().token(&until("ann", expires)).connect().await;
    ann.subscribe("chat:1").await;
    let ended = ann.ended().await;
    let at = now();
    assert_eq!((ended.code, ended.reason.as_str()), (Some(4200), "token_expired"));
    assert_eq!(ended.disconnect()["code"], "token_expired");
    assert_eq!(ended.disconnect()["reconnect"], true);
    assert!(expires <= at && at <= expires + LATE, "ended at {at}, the token at {expires}");
}

#[tokio::test]
async fn a_token_from_an_auth_frame_ends_the_connection_too() {
    let server = TestServer::start().await;
    let mut ann = server.connect_anonymously().await;
    let expires = now() + 4;
    let authenticated = ann.expect("authenticated", json!({ "type": "auth", "token": until("ann", expires) })).await;
    assert_eq!(authenticated["expires"], expires);
    assert_eq!(ann.ended().await.code, Some(4200));
    assert!(expires <= now() && now() <= expires + LATE);
}

#[tokio::test]
async fn a_renewed_token_lets_the_connection_live_on() {
    let server = TestServer::start().await;
    let expires = now() + 4;
    let mut ann = server.client().token(&until("ann", expires)).connect().await;
    ann.subscribe("user:1").await;
    ann.expect("authenticated", json!({ "type": "auth", "token": until("ann", now() + 3600) })).await;
    // That nothing happens can only be waited out.
    while now() < expires + 2 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ann.publish("user:1", "still here").await;
    assert_eq!(ann.next_publication().await, "still here");
}

#[tokio::test]
async fn a_token_is_renewed_for_the_same_user_only() {
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    assert_eq!(ann.refused(json!({ "type": "auth", "token": user("bob") })).await, "forbidden");
    ann.subscribe("chat:1").await;
    ann.publish("chat:1", 1).await;
    assert_eq!(ann.next_message().await["from"]["user"], "ann");
}

#[tokio::test]
async fn a_bad_token_changes_nothing_and_again_and_again_it_ends_the_connection() {
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    let bad = json!({ "type": "auth", "token": "nonsense" });
    let expired = json!({ "type": "auth", "token": until("ann", now() - 5) });
    assert_eq!(ann.refused(bad.clone()).await, "unauthorized");
    assert_eq!(ann.refused(expired).await, "token_expired");
    ann.subscribe("user:1").await;
    // A good one in between makes it a new count.
    ann.expect("authenticated", json!({ "type": "auth", "token": user("ann") })).await;
    for _ in 0..4 {
        assert_eq!(ann.refused(bad.clone()).await, "unauthorized");
    }
    assert_eq!(ann.refused(bad).await, "unauthorized");
    let ended = ann.ended().await;
    assert_eq!((ended.code, &ended.disconnect()["code"]), (Some(4100), &json!("unauthorized")));
}

#[tokio::test]
async fn subscription_tokens_that_are_refused_again_and_again_end_the_connection_too() {
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    let subscribe = json!({ "type": "subscribe", "channel": "token:1", "token": "nonsense" });
    for _ in 0..5 {
        assert_eq!(ann.refused(subscribe.clone()).await, "unauthorized");
    }
    assert_eq!(ann.ended().await.code, Some(4100));
}

#[tokio::test]
async fn what_a_renewed_token_does_not_allow_any_more_is_unsubscribed() {
    let server = TestServer::start().await;
    let allow =
        |channels: &[&str]| token(json!({ "sub": "ann", "allow": [{ "channels": channels, "do": ["subscribe"] }] }));
    let mut ann = server.client().token(&allow(&["token:1", "token:2"])).connect().await;
    for channel in ["token:1", "token:2", "chat:1"] {
        ann.subscribe(channel).await;
    }
    ann.expect("authenticated", json!({ "type": "auth", "token": allow(&["token:2"]) })).await;
    let unsubscribed = ann.next_of("unsubscribed").await;
    assert_eq!((&unsubscribed["channel"], &unsubscribed["code"]), (&json!("token:1"), &json!("forbidden")));
    let code = ann.refused(json!({ "type": "unsubscribe", "channel": "token:1" })).await;
    assert_eq!(code, "not_subscribed");
    for channel in ["token:2", "chat:1"] {
        ann.expect("unsubscribed", json!({ "type": "unsubscribe", "channel": channel })).await;
    }
}

#[tokio::test]
async fn the_end_of_a_subscription_token_ends_its_subscription_alone() {
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    let expires = now() + 4;
    let own = token(json!({ "sub": "ann", "channel": "token:1", "exp": expires }));
    ann.expect("subscribed", json!({ "type": "subscribe", "channel": "token:1", "token": own })).await;
    ann.subscribe("chat:1").await;
    let unsubscribed = ann.next_of("unsubscribed").await;
    let at = now();
    assert_eq!((&unsubscribed["channel"], &unsubscribed["code"]), (&json!("token:1"), &json!("token_expired")));
    assert!(unsubscribed["message"].is_string() && unsubscribed.get("id").is_none(), "{unsubscribed}");
    assert!(expires <= at && at <= expires + LATE, "ended at {at}, the token at {expires}");
    ann.publish("chat:1", "lives").await;
    assert_eq!(ann.next_publication().await, "lives");
    let late = json!({ "type": "subscribe", "channel": "token:1", "token": own });
    assert_eq!(ann.refused(late).await, "token_expired");
}

#[tokio::test]
async fn the_end_of_a_token_ends_a_reader_that_stalled_while_it_was_caught_up() {
    let server = TestServer::with(|config| {
        config.connection.send_queue = ByteSize(64 << 10);
        config.limits.frames_per_connection = Rate::NONE;
        let history = Some(HistoryConfig { size: 10_000, ttl: Span(Duration::from_secs(3600)) });
        let chat = config.namespaces["chat"].clone();
        config.namespaces.insert("kept".into(), NamespaceConfig { history, ..chat });
    })
    .await;
    let mut bob = server.connect("bob").await;
    let (count, filling) = (8000, "x".repeat(1000));
    let first = bob.publish("kept:1", json!([0])).await;
    for n in 1..count {
        bob.send(&json!({ "type": "publish", "channel": "kept:1", "data": [n, filling] })).await;
    }
    bob.expect("pong", json!({ "type": "ping" })).await;
    let expires = now() + 3;
    let mut ann = server.client().token(&until("ann", expires)).receive_buffer(4096).connect().await;
    ann.send(&json!({
        "type": "subscribe", "channel": "kept:1", "after": { "epoch": first["epoch"], "offset": 1 },
    }))
    .await;
    server.until("the stalled one to be ended", |node| node.hub().connections() == 1).await;
    let at = now();
    assert!(expires <= at && at <= expires + 2, "ended at {at}, the token at {expires}");
    // Nobody waits for a reader for ever: by now what was queued is thrown away, and the kernel has the last word.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let ended = ann.ended().await;
    assert_eq!((ended.code, ended.reason.as_str()), (Some(4200), "token_expired"));
    assert!(ended.frames.len() < count, "it stalled in the middle of the catch-up");
}
