//! Rates, and what happens to who does not keep to them.

use std::time::Duration;

use fanwire::config::Rate;
use serde_json::{Value, json};

use crate::support::{TestServer, within};

fn rate(text: &str) -> Rate {
    text.parse().unwrap()
}

#[tokio::test]
async fn too_many_commands_are_refused_until_the_time_that_was_told() {
    let server = TestServer::with(|config| config.limits.frames_per_connection = rate("5/5s")).await;
    let mut ann = server.connect("ann").await;
    // In one frame, so that no time passes between them.
    let six: Value = (0..6).map(|_| json!({ "type": "ping" })).collect();
    ann.send(&six).await;
    for _ in 0..5 {
        assert_eq!(ann.next_frame().await["type"], "pong");
    }
    let refused = ann.next_frame().await;
    assert_eq!(refused["code"], "rate_limited");
    let wait = refused["retry_after"].as_f64().unwrap();
    assert!(0.0 < wait && wait <= 1.0, "five in five seconds, so one in one: {wait}");
    // The server's own clock is what counts, so the wait is the point of this story.
    tokio::time::sleep(Duration::from_secs_f64(wait) + Duration::from_millis(5)).await;
    ann.expect("pong", json!({ "type": "ping" })).await;
    // Another connection has a rate of its own.
    server.connect("ann").await.expect("pong", json!({ "type": "ping" })).await;
}

#[tokio::test]
async fn each_command_of_an_array_counts_and_so_does_what_is_none() {
    let server = TestServer::with(|config| config.limits.frames_per_connection = rate("4/1h")).await;
    let mut ann = server.connect("ann").await;
    ann.send(&json!([{ "type": "ping" }, {}, { "type": "ping" }, { "type": "ping" }, { "type": "ping" }, { "type": "ping" }])).await;
    let mut kinds = Vec::new();
    for _ in 0..6 {
        let frame = ann.next_frame().await;
        kinds.push(frame["code"].as_str().or(frame["type"].as_str()).unwrap().to_owned());
    }
    assert_eq!(kinds, ["pong", "bad_request", "pong", "pong", "rate_limited", "rate_limited"]);
}

#[tokio::test]
async fn who_breaks_a_limit_again_and_again_is_cut_off() {
    let server = TestServer::with(|config| config.limits.frames_per_connection = rate("1/1h")).await;
    let mut ann = server.connect("ann").await;
    let mut bob = server.connect("bob").await;
    let many: Value = (0..1500).map(|_| json!({ "type": "ping" })).collect();
    ann.send(&many).await;
    let ended = ann.ended().await;
    assert_eq!((ended.code, ended.reason.as_str()), (Some(4102), "limits"));
    let disconnect = ended.disconnect();
    assert_eq!((&disconnect["code"], &disconnect["reconnect"]), (&json!("limits"), &json!(false)));
    let refused = ended.frames.iter().filter(|frame| frame["code"] == "rate_limited").count();
    // A thousand, and one more for each 10 ms that it took.
    assert!((1000..1499).contains(&refused), "{refused} were refused before");
    bob.expect("pong", json!({ "type": "ping" })).await;
}

#[tokio::test]
async fn publications_have_a_rate_by_connection_and_namespace() {
    let server = TestServer::with(|config| {
        config.namespaces.get_mut("chat").unwrap().publish_rate = rate("3/3s");
    })
    .await;
    let mut ann = server.connect("ann").await;
    let publish = |channel: &str| json!({ "type": "publish", "channel": channel, "data": 1 });
    // In one frame, so that no time passes between them. Who gives no id is told of what is refused only.
    let four: Value = ["chat:1", "chat:2", "chat:3", "chat:4"].map(publish).into_iter().collect();
    ann.send(&four).await;
    let refused = ann.next_frame().await;
    assert_eq!((&refused["code"], &refused["channel"]), (&json!("rate_limited"), &json!("chat:4")));
    ann.expect("published", publish("plain")).await;
    server.connect("ann").await.expect("published", publish("chat:4")).await;
    let wait = Duration::from_secs_f64(refused["retry_after"].as_f64().unwrap());
    assert!(wait <= Duration::from_secs(1), "{wait:?}");
    tokio::time::sleep(wait + Duration::from_millis(5)).await;
    ann.expect("published", publish("chat:4")).await;
}

#[tokio::test]
async fn new_connections_have_a_rate_by_address() {
    let server = TestServer::with(|config| config.limits.connections_per_address = rate("2/10s")).await;
    for _ in 0..2 {
        server.connect("ann").await;
    }
    let mut socket = server.raw().await;
    socket.send_handshake("/v1/ws", &[]).await;
    let answer = socket.next_head().await;
    assert_eq!(answer.status, 429, "{answer:?}");
    let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=5).contains(&wait));
    let figures = server.node().metrics().render();
    assert!(figures.contains("fanwire_rate_limited_total{limit=\"connections_per_address\"} 1"), "{figures}");
    let spoofed = crate::support::Connecting::to(server.address()).header("X-Forwarded-For", "10.9.8.7");
    assert!(spoofed.try_open().await.is_err(), "a header from a peer that is not trusted changes nothing");
    within("the address to be let in again", async {
        while server.client().try_open().await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn limits_change_without_losing_a_connection() {
    let mut server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    ann.subscribe("chat:1").await;
    server
        .reload(|config| {
            config.limits.frames_per_connection = rate("2/1h");
            config.namespaces.remove("user");
        })
        .await
        .unwrap();
    assert_eq!(ann.refused(json!({ "type": "subscribe", "channel": "user:1" })).await, "unknown_channel");
    let mut bob = server.connect("bob").await;
    bob.publish("chat:1", "still subscribed").await;
    assert_eq!(ann.next_publication().await, "still subscribed");
    bob.expect("pong", json!({ "type": "ping" })).await;
    assert_eq!(bob.refused(json!({ "type": "ping" })).await, "rate_limited");
    let wrong = server.reload(|config| config.apps[0].tokens.algorithms = vec!["none".into()]).await;
    assert!(wrong.is_err());
    server.connect("ann").await;
}
