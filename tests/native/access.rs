//! Who may do what: namespaces, capabilities with patterns, subscription tokens.

use serde_json::{Value, json};

use crate::support::{Client, TestServer, subscription, token, user};

/// What becomes of each kind of command on a channel: `ok`, or the error's code.
async fn outcomes(client: &mut Client, channel: &str) -> [String; 4] {
    let mut outcomes = [const { String::new() }; 4];
    for (outcome, kind) in outcomes.iter_mut().zip(["subscribe", "publish", "history", "presence"]) {
        let answer = client.request(json!({ "type": kind, "channel": channel, "data": 1 })).await;
        *outcome = match answer["type"].as_str() {
            Some("error") => answer["code"].as_str().unwrap().to_owned(),
            _ => "ok".to_owned(),
        };
    }
    outcomes
}

#[tokio::test]
async fn each_namespace_says_whom_it_lets_in() {
    let server = TestServer::start().await;
    let allowed = token(json!({ "sub": "ann", "allow": [
        { "channels": ["**"], "do": ["subscribe", "publish", "presence", "history"] },
    ] }));
    let (ok, unauthorized, forbidden) = ("ok", "unauthorized", "forbidden");
    let (no_history, no_presence) = ("history_disabled", "presence_disabled");
    for (channel, anonymous, named, holder) in [
        (
            "plain",
            [ok, ok, no_history, no_presence],
            [ok, ok, no_history, no_presence],
            [ok, ok, no_history, no_presence],
        ),
        ("chat:1", [ok; 4], [ok; 4], [ok; 4]),
        ("user:1", [unauthorized; 4], [ok, ok, ok, no_presence], [ok, ok, ok, no_presence]),
        ("token:1", [unauthorized; 4], [forbidden; 4], [ok; 4]),
        ("nobody:1", [unauthorized; 4], [forbidden; 4], [forbidden; 4]),
        ("unknown:1", ["unknown_channel"; 4], ["unknown_channel"; 4], ["unknown_channel"; 4]),
    ] {
        assert_eq!(outcomes(&mut server.connect_anonymously().await, channel).await, anonymous, "{channel}, anonymous");
        assert_eq!(outcomes(&mut server.connect("ann").await, channel).await, named, "{channel}, a user");
        let mut holder_of_all = server.client().token(&allowed).connect().await;
        assert_eq!(outcomes(&mut holder_of_all, channel).await, holder, "{channel}, allowed everything");
    }
}

#[tokio::test]
async fn capabilities_name_actions_and_patterns() {
    let server = TestServer::start().await;
    let claims = json!({ "sub": "ann", "allow": [
        { "channels": ["token:*"], "do": ["subscribe"] },
        { "channels": ["token:a:**", "token:b"], "do": ["publish", "history"] },
    ] });
    let mut ann = server.client().token(&token(claims)).connect().await;
    for (channel, expected) in [
        ("token:x", ["ok", "forbidden", "forbidden", "forbidden"]),
        ("token:b", ["ok", "ok", "ok", "forbidden"]),
        ("token:a:b", ["forbidden", "ok", "ok", "forbidden"]),
        ("token:a:b:c", ["forbidden", "ok", "ok", "forbidden"]),
        ("token:x:y", ["forbidden"; 4]),
    ] {
        assert_eq!(outcomes(&mut ann, channel).await, expected, "{channel}");
    }
    // Watching members needs the right to see them.
    let watch = json!({ "type": "subscribe", "channel": "token:y", "presence": true });
    assert_eq!(ann.refused(watch).await, "forbidden");
}

#[tokio::test]
async fn who_is_anonymous_may_become_somebody() {
    let server = TestServer::start().await;
    let mut client = server.connect_anonymously().await;
    let subscribe = json!({ "type": "subscribe", "channel": "user:1" });
    assert_eq!(client.refused(subscribe.clone()).await, "unauthorized");
    client.expect("authenticated", json!({ "type": "auth", "token": user("ann") })).await;
    client.expect("subscribed", subscribe).await;
    let token_only = json!({ "type": "subscribe", "channel": "token:1" });
    assert_eq!(client.refused(token_only).await, "forbidden");
}

fn with_token(channel: &str, token: &str) -> Value {
    json!({ "type": "subscribe", "channel": channel, "token": token })
}

#[tokio::test]
async fn a_subscription_token_opens_its_channel_for_its_user() {
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    for (what, token) in [
        ("another channel", subscription("ann", "token:2")),
        ("another user", subscription("bob", "token:1")),
        ("nobody's", token(json!({ "channel": "token:1" }))),
        ("a connection token", user("ann")),
    ] {
        assert_eq!(ann.refused(with_token("token:1", &token)).await, "unauthorized", "{what}");
    }
    let mut ann = server.connect("ann").await;
    ann.expect("subscribed", with_token("token:1", &subscription("ann", "token:1"))).await;
    // Subscribing is all that a token without `do` allows.
    for kind in ["publish", "history", "presence"] {
        let code = ann.refused(json!({ "type": kind, "channel": "token:1", "data": 1 })).await;
        assert_eq!(code, "forbidden", "{kind}");
    }
}

#[tokio::test]
async fn a_subscription_token_may_allow_more_for_as_long_as_the_subscription_lasts() {
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    let all =
        token(json!({ "sub": "ann", "channel": "token:1", "do": ["subscribe", "publish", "history", "presence"] }));
    let mut subscribe = with_token("token:1", &all);
    subscribe["presence"] = true.into();
    let subscribed = ann.expect("subscribed", subscribe).await;
    assert_eq!(subscribed["members"][0]["user"], "ann");
    ann.publish("token:1", "mine").await;
    assert_eq!(ann.next_publication().await, "mine");
    for kind in ["history", "presence"] {
        ann.expect(kind, json!({ "type": kind, "channel": "token:1" })).await;
        assert_eq!(ann.refused(json!({ "type": kind, "channel": "token:2" })).await, "forbidden");
    }
    ann.expect("unsubscribed", json!({ "type": "unsubscribe", "channel": "token:1" })).await;
    let publish = json!({ "type": "publish", "channel": "token:1", "data": 1 });
    assert_eq!(ann.refused(publish).await, "forbidden");
    let mut nothing = server.connect("ann").await;
    let nothing_allowed = token(json!({ "sub": "ann", "channel": "token:1", "do": ["publish"] }));
    assert_eq!(nothing.refused(with_token("token:1", &nothing_allowed)).await, "forbidden");
}

#[tokio::test]
async fn an_anonymous_connection_may_hold_a_subscription_token() {
    let server = TestServer::start().await;
    let mut somebody = server.connect_anonymously().await;
    assert_eq!(somebody.refused(with_token("token:1", &subscription("ann", "token:1"))).await, "unauthorized");
    somebody.expect("subscribed", with_token("token:1", &token(json!({ "channel": "token:1" })))).await;
}
