//! What the application's servers want of connections: on every node, whichever was asked and whatever happens between.

use std::time::Duration;

use fanwire::config::ApiKeyConfig;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::support::{
    Answer, Call, Client, TestServer, now,
    proxy::{BOTH, ChaosProxy},
    redis::RedisServer,
    token, user, within,
};

/// What a refused token is refused with by HTTP, and how a connection with one ends.
const REVOKED: (u16, &str) = (401, "token_revoked");
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
    redis.cli(&["EVAL", copy, "1", "fanwire:o:{control}"]).await;
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
    redis.cli(&["EVAL", copy, "1", "fanwire:o:{control}"]).await;
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

/// A token of Ann's with these claims besides.
fn ann(claims: Value) -> String {
    let mut all = json!({ "sub": "ann", "exp": now() + 600 });
    all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
    token(all)
}

async fn revoke(server: &TestServer, path: &str, body: Value) {
    let answer = call(server, "POST", path, body).await;
    assert_eq!(answer.status, 204, "{}", answer.body);
}

/// Every way in is closed to a token; `anew` opens them.
async fn is_refused_everywhere(server: &TestServer, old: &str, anew: &str) {
    let ended = server.client().token(old).open().await.ended().await;
    assert_eq!((ended.code, &ended.disconnect()["code"]), (Some(4201), &json!("token_revoked")));
    assert_eq!(ended.disconnect()["reconnect"], true);
    let mut client = server.client().token(anew).connect().await;
    assert_eq!(client.refused(json!({ "type": "auth", "token": old })).await, "token_revoked");
    client.expect("pong", json!({ "type": "ping" })).await;
    let (status, code) = REVOKED;
    let stream = Call::new(server.address(), "GET", "/v1/channels/plain/events").key(old).send().await;
    assert_eq!(stream.problem(), (status, code.into()));
    assert_eq!(stream.header("www-authenticate"), Some("Bearer"));
    for (token, expected) in [(old, 401), (anew, 200)] {
        let publish = Call::new(server.address(), "POST", "/v1/channels/plain/publish").key(token);
        assert_eq!(publish.body(r#"{"data":1}"#).send().await.status, expected);
    }
}

/// A user's old tokens are revoked on one node, and count on neither.
async fn revokes_users(one: &TestServer, two: &TestServer) {
    let (old, anew) = (ann(json!({ "iat": now() - 100 })), ann(json!({ "iat": now() + 10 })));
    let (mut here, mut there) = (one.client().token(&old).connect().await, two.client().token(&old).connect().await);
    let mut stream = Call::new(two.address(), "GET", "/v1/channels/plain/events").key(&old).stream().await;
    stream.expect("subscribed").await;
    let mut renewed = two.client().token(&old).connect().await;
    renewed.expect("authenticated", json!({ "type": "auth", "token": anew })).await;
    let mut bob = two.connect("bob").await;
    revoke(one, "/v1/users/ann/revoke", json!({})).await;
    for client in [&mut here, &mut there] {
        assert_eq!(end(client).await, (Some(4201), json!("token_revoked")));
    }
    assert_eq!(stream.expect("disconnect").await["code"], "token_revoked");
    for server in [one, two] {
        is_refused_everywhere(server, &old, &anew).await;
        // One that does not say when it was issued may be old.
        assert_eq!(server.client().token(&ann(json!({}))).open().await.ended().await.code, Some(4201));
    }
    let channel = json!({ "iat": now() - 100, "channel": "token:1" });
    let subscribe = json!({ "type": "subscribe", "channel": "token:1", "token": ann(channel) });
    assert_eq!(renewed.refused(subscribe).await, "token_revoked");
    bob.expect("pong", json!({ "type": "ping" })).await;
    // Only those before a time, where one is named.
    revoke(one, &format!("/v1/users/carol/revoke?before={}", now() - 50), json!({})).await;
    let carol = |issued| token(json!({ "sub": "carol", "iat": issued }));
    assert_eq!(one.client().token(&carol(now() - 51)).open().await.ended().await.code, Some(4201));
    one.client().token(&carol(now() - 49)).connect().await;
}

/// Single tokens are revoked on one node, by their `jti` or themselves.
async fn revokes_tokens(one: &TestServer, two: &TestServer) {
    let by_jti = ann(json!({ "jti": "first" }));
    let itself = ann(json!({ "iat": now() - 7 }));
    let kept = ann(json!({ "jti": "second" }));
    let mut gone = two.client().token(&by_jti).connect().await;
    let mut gone_too = two.client().token(&itself).connect().await;
    let mut stays = two.client().token(&kept).connect().await;
    revoke(one, "/v1/tokens/revoke", json!({ "jti": "first", "exp": now() + 600 })).await;
    assert_eq!(end(&mut gone).await, (Some(4201), json!("token_revoked")));
    revoke(one, "/v1/tokens/revoke", json!({ "token": itself })).await;
    assert_eq!(end(&mut gone_too).await, (Some(4201), json!("token_revoked")));
    // Once more, and one that has ended, is no fault.
    revoke(one, "/v1/tokens/revoke", json!({ "token": itself })).await;
    revoke(one, "/v1/tokens/revoke", json!({ "token": token(json!({ "sub": "ann", "exp": now() - 5 })) })).await;
    for server in [one, two] {
        is_refused_everywhere(server, &by_jti, &kept).await;
        is_refused_everywhere(server, &itself, &kept).await;
    }
    stays.expect("pong", json!({ "type": "ping" })).await;
    for nonsense in [
        json!({}),
        json!({ "jti": "a" }),
        json!({ "jti": "a", "exp": now(), "token": itself }),
        json!({ "token": "a.b.c" }),
        json!({ "jti": "a", "exp": u64::MAX }),
    ] {
        let answer = call(one, "POST", "/v1/tokens/revoke", nonsense.clone()).await;
        assert_eq!(answer.problem(), (400, "bad_request".into()), "{nonsense}");
    }
    for query in ["before=0", "before=99999999999", "until=1", "until=x"] {
        let answer = call(one, "POST", &format!("/v1/users/ann/revoke?{query}"), json!({})).await;
        assert_eq!(answer.problem(), (400, "bad_request".into()), "{query}");
    }
}

#[tokio::test]
async fn tokens_are_revoked_on_one_node_without_redis() {
    let server = node("memory:").await;
    revokes_tokens(&server, &server).await;
    revokes_users(&server, &server).await;
}

#[tokio::test]
async fn tokens_are_revoked_on_every_node() {
    let redis = RedisServer::start().await;
    let (one, two) = (node(&redis.url()).await, node(&redis.url()).await);
    revokes_tokens(&one, &two).await;
    revokes_users(&one, &two).await;
}

#[tokio::test]
async fn a_reload_forgets_no_revocation() {
    let mut server = node("memory:").await;
    revoke(&server, "/v1/users/ann/revoke", json!({})).await;
    server.reload(|_| {}).await.unwrap();
    assert_eq!(server.client().user("ann").open().await.ended().await.code, Some(4201));
}

#[tokio::test]
async fn a_node_that_starts_knows_what_was_revoked_before() {
    let redis = RedisServer::start().await;
    let one = node(&redis.url()).await;
    let many = (0..2500).map(|n| json!({ "jti": format!("t{n}"), "exp": now() + 600 }));
    for body in many {
        revoke(&one, "/v1/tokens/revoke", body).await;
    }
    revoke(&one, "/v1/users/ann/revoke", json!({})).await;
    drop(one);
    let two = node(&redis.url()).await;
    let jti = |n: usize| token(json!({ "sub": "bob", "jti": format!("t{n}") }));
    for token in [jti(0), jti(1234), jti(2499), user("ann")] {
        assert_eq!(two.client().token(&token).open().await.ended().await.code, Some(4201));
    }
    two.client().token(&jti(2500)).connect().await;
}

#[tokio::test]
async fn a_node_that_started_without_redis_ends_what_it_let_in_once_it_knows() {
    let redis = RedisServer::start().await;
    let proxy = ChaosProxy::to(redis.address()).await;
    let one = node(&redis.url()).await;
    revoke(&one, "/v1/users/ann/revoke", json!({})).await;
    // Longer ago than orders are kept.
    redis.cli(&["DEL", "fanwire:o:{control}"]).await;
    proxy.refuse().await;
    let far = node(&redis.url_at(proxy.port())).await;
    let (mut ann, mut bob) = (far.connect("ann").await, far.connect("bob").await);
    ann.expect("pong", json!({ "type": "ping" })).await;
    proxy.heal().await;
    assert_eq!(end(&mut ann).await, (Some(4201), json!("token_revoked")));
    bob.expect("pong", json!({ "type": "ping" })).await;
}

#[tokio::test]
async fn what_was_revoked_while_a_node_was_cut_off_holds_there_too() {
    let redis = RedisServer::start().await;
    let proxy = ChaosProxy::to(redis.address()).await;
    let (one, far) = (node(&redis.url()).await, node(&redis.url_at(proxy.port())).await);
    let mut ann = far.connect("ann").await;
    proxy.hold(&BOTH);
    revoke(&one, "/v1/users/ann/revoke", json!({})).await;
    redis.cli(&["DEL", "fanwire:o:{control}"]).await;
    proxy.cut();
    proxy.heal().await;
    assert_eq!(end(&mut ann).await, (Some(4201), json!("token_revoked")));
}

#[tokio::test]
async fn while_redis_is_away_nothing_is_revoked_and_what_was_still_is() {
    let mut redis = RedisServer::start().await;
    let one = node(&redis.url()).await;
    revoke(&one, "/v1/users/ann/revoke", json!({})).await;
    let mut bob = one.connect("bob").await;
    redis.kill();
    within("the node to notice", async {
        while one.get("/readyz").await.status != 503 {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let answer = call(&one, "POST", "/v1/users/bob/revoke", json!({})).await;
    assert_eq!(answer.problem(), (503, "unavailable".into()));
    assert_eq!(one.client().user("ann").open().await.ended().await.code, Some(4201));
    bob.expect("pong", json!({ "type": "ping" })).await;
}

#[tokio::test]
async fn what_is_over_is_taken_out_of_redis() {
    let redis = RedisServer::start().await;
    let one = node(&redis.url()).await;
    revoke(&one, "/v1/tokens/revoke", json!({ "jti": "short", "exp": now() + 2 })).await;
    revoke(&one, "/v1/tokens/revoke", json!({ "jti": "long", "exp": now() + 600 })).await;
    assert_eq!(redis.cli(&["HLEN", "fanwire:v:{control}"]).await.trim(), "2");
    sleep(Duration::from_millis(3100)).await;
    revoke(&one, "/v1/tokens/revoke", json!({ "jti": "third", "exp": now() + 60 })).await;
    assert_eq!(redis.cli(&["HLEN", "fanwire:v:{control}"]).await.trim(), "2");
    let left: u64 = redis.cli(&["TTL", "fanwire:v:{control}"]).await.trim().parse().unwrap();
    assert!((590..=602).contains(&left), "it ends with the last of them: {left} s");
}
