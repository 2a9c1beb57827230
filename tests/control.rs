//! What the application's servers want of connections: on every node, whichever was asked and whatever happens between.

use std::time::Duration;

use fanwire::config::ApiKeyConfig;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::support::{
    Answer, Call, Client, TestServer,
    proxy::{BOTH, ChaosProxy},
    redis::RedisServer,
    within,
};

const KEY: &str = "the application's own key";

async fn node(broker: &str) -> TestServer {
    TestServer::with(|config| {
        config.broker.url = broker.into();
        config.apps[0].api_keys.push(ApiKeyConfig::Full(KEY.into()));
    })
    .await
}

async fn call(server: &TestServer, method: &str, path: &str, body: Value) -> Answer {
    Call::new(server.address(), method, path).key(KEY).body(body.to_string()).send().await
}

async fn post(server: &TestServer, path: &str, body: Value) -> Value {
    let answer = call(server, "POST", path, body).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

/// Why the connection ended.
async fn end(client: &mut Client) -> (Option<u16>, Value) {
    let ended = client.ended().await;
    (ended.code, ended.disconnect()["code"].clone())
}

/// Ann on two nodes, and Bob on the second: all of hers are steered by the first.
async fn steers_users(one: &TestServer, two: &TestServer) {
    let (mut here, mut there) = (one.connect("ann").await, two.connect("ann").await);
    let mut bob = two.connect("bob").await;
    let subscribed = post(one, "/v1/users/ann/subscribe", json!({ "channels": ["plain", "nobody:1"] })).await;
    for client in [&mut here, &mut there] {
        assert_eq!(client.next_of("subscribed").await["channel"], "plain");
        assert_eq!(client.next_of("subscribed").await["channel"], "nobody:1");
    }
    post(one, "/v1/users/ann/unsubscribe", json!({ "channel": "plain" })).await;
    for client in [&mut here, &mut there] {
        assert_eq!(client.next_of("unsubscribed").await["channel"], "plain");
    }
    let disconnected = post(one, "/v1/users/ann/disconnect?code=token_revoked", json!({})).await;
    assert_eq!(disconnected, subscribed, "each says how many are on the node that was asked");
    for client in [&mut here, &mut there] {
        assert_eq!(end(client).await, (Some(4201), json!("token_revoked")));
    }
    // What a client has loses nothing by what is asked of another.
    bob.expect("pong", json!({ "type": "ping" })).await;
    // She may come back at once: what was asked is not asked again.
    let mut ann = two.connect("ann").await;
    sleep(Duration::from_millis(2500)).await;
    ann.expect("pong", json!({ "type": "ping" })).await;
    let path = format!("/v1/connections/{}", ann.connection());
    assert_eq!(call(one, "DELETE", &path, json!({})).await.status, 200);
    assert_eq!(end(&mut ann).await, (Some(4101), json!("forbidden")));
    bob.expect("pong", json!({ "type": "ping" })).await;
}

#[tokio::test]
async fn users_are_steered_on_one_node_without_redis() {
    let server = node("memory:").await;
    steers_users(&server, &server).await;
}

#[tokio::test]
async fn users_are_steered_on_every_node() {
    let redis = RedisServer::start().await;
    let (one, two) = (node(&redis.url()).await, node(&redis.url()).await);
    steers_users(&one, &two).await;
}

#[tokio::test]
async fn an_order_that_a_node_did_not_hear_is_done_when_it_is_back() {
    let redis = RedisServer::start().await;
    let proxy = ChaosProxy::to(redis.address()).await;
    let (one, far) = (node(&redis.url()).await, node(&redis.url_at(proxy.port())).await);
    let mut ann = far.connect("ann").await;
    proxy.hold(&BOTH);
    post(&one, "/v1/users/ann/disconnect", json!({})).await;
    sleep(Duration::from_secs(1)).await;
    // Who comes after it is not meant by it.
    let mut later = far.connect("ann").await;
    ann.expect("pong", json!({ "type": "ping" })).await;
    proxy.cut();
    proxy.heal().await;
    assert_eq!(end(&mut ann).await, (Some(4101), json!("forbidden")));
    later.expect("pong", json!({ "type": "ping" })).await;
}

#[tokio::test]
async fn a_relay_that_breaks_again_and_again_loses_no_order() {
    const COUNT: usize = 40;
    let redis = RedisServer::start().await;
    let (one, two) = (node(&redis.url()).await, node(&redis.url()).await);
    let mut ann = two.connect("ann").await;
    for n in 0..COUNT {
        if n % 5 == 0 {
            redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        }
        post(&one, "/v1/users/ann/subscribe", json!({ "channel": format!("chat:{n}") })).await;
    }
    for n in 0..COUNT {
        assert_eq!(ann.next_of("subscribed").await["channel"], format!("chat:{n}"), "in the order given, each once");
    }
}

#[tokio::test]
async fn orders_that_nothing_told_of_are_found() {
    let redis = RedisServer::start().await;
    let (one, two) = (node(&redis.url()).await, node(&redis.url()).await);
    let mut ann = two.connect("ann").await;
    // The same order once more, without the message that says so.
    post(&one, "/v1/users/ann/subscribe", json!({ "channel": "chat:1" })).await;
    ann.next_of("subscribed").await;
    ann.expect("unsubscribed", json!({ "type": "unsubscribe", "channel": "chat:1" })).await;
    let copy = "local entry = redis.call('XRANGE', KEYS[1], '-', '+')[1][2]
        redis.call('XADD', KEYS[1], '*', entry[1], entry[2])";
    redis.cli(&["EVAL", copy, "1", "fanwire:o"]).await;
    assert_eq!(ann.next_of("subscribed").await["channel"], "chat:1");
}

#[tokio::test]
async fn a_flushed_redis_takes_orders_on() {
    let redis = RedisServer::start().await;
    let (one, two) = (node(&redis.url()).await, node(&redis.url()).await);
    let mut ann = two.connect("ann").await;
    post(&one, "/v1/users/ann/subscribe", json!({ "channel": "plain" })).await;
    ann.next_of("subscribed").await;
    ann.expect("unsubscribed", json!({ "type": "unsubscribe", "channel": "plain" })).await;
    // An order that is ahead of the clock, so that those that follow have ids that are older than what was read: as after
    // a failover to a server whose clock is behind.
    let copy = "local entry = redis.call('XRANGE', KEYS[1], '-', '+')[1][2]
        redis.call('XADD', KEYS[1], '9999999999999-1', entry[1], entry[2])";
    redis.cli(&["EVAL", copy, "1", "fanwire:o"]).await;
    assert_eq!(ann.next_of("subscribed").await["channel"], "plain");
    redis.cli(&["FLUSHALL"]).await;
    post(&one, "/v1/users/ann/disconnect", json!({})).await;
    assert_eq!(end(&mut ann).await, (Some(4101), json!("forbidden")));
}

#[tokio::test]
async fn while_redis_is_away_orders_are_refused_and_not_kept() {
    let mut redis = RedisServer::start().await;
    let one = node(&redis.url()).await;
    let mut ann = one.connect("ann").await;
    redis.kill();
    within("the node to notice", async {
        while one.get("/readyz").await.status != 503 {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    for (method, path, body) in [
        ("POST", "/v1/users/ann/disconnect", json!({})),
        ("POST", "/v1/users/ann/subscribe", json!({ "channel": "plain" })),
        ("DELETE", &format!("/v1/connections/{}", ann.connection())[..], json!({})),
    ] {
        let answer = call(&one, method, path, body).await;
        assert_eq!(answer.problem(), (503, "unavailable".into()), "{path}");
        assert!(answer.json()["retry_after"].as_f64().is_some_and(|wait| 0.0 < wait), "{}", answer.body);
    }
    redis.restart().await;
    within("the node to be ready", async {
        while one.get("/readyz").await.status != 200 {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    sleep(Duration::from_millis(2500)).await;
    ann.expect("pong", json!({ "type": "ping" })).await;
    post(&one, "/v1/users/ann/disconnect", json!({})).await;
    assert_eq!(end(&mut ann).await, (Some(4101), json!("forbidden")));
}
