//! Ends that the server makes: a token's, a slow reader's, a drain's.

use std::time::{Duration, Instant};

use fanwire::config::{ByteSize, Span, WhenSlow};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{
    two_apps::{TwoApps, token_for},
    within,
};

#[tokio::test]
async fn a_token_s_end_is_the_stream_s_end() {
    let server = TwoApps::start().await;
    let token = token_for("shop", json!({"sub": "ann"}), 4);
    let mut stream = server.stream(&format!("/v1/events?channel=user:1&app=shop&token={token}")).await;
    stream.expect("subscribed").await;
    let started = Instant::now();
    let end = stream.expect("disconnect").await;
    assert_eq!((&end["code"], &end["reconnect"]), (&json!("token_expired"), &json!(true)));
    assert!(stream.next_block().await.is_none());
    assert!(started.elapsed() < Duration::from_secs(15), "by its own time, {:?}", started.elapsed());
    let again = server.get(&format!("/v1/events?channel=user:1&app=shop&token={token}")).send().await;
    assert_eq!(again.problem(), (401, "token_expired".into()), "an EventSource stops here");
}

#[tokio::test]
async fn a_drain_tells_each_stream_when_to_come_back_and_ends_it() {
    let server = TwoApps::with(|config| config.shutdown.drain = Span(Duration::from_secs(1))).await;
    let mut streams = Vec::new();
    for _ in 0..5 {
        let mut stream = server.stream("/v1/events?channel=room:1&app=shop").await;
        stream.expect("subscribed").await;
        streams.push(stream);
    }
    server.begin_stop();
    for mut stream in streams {
        let event = stream.next().await;
        let end = event.json();
        assert_eq!(
            (event.name.as_str(), &end["code"], &end["reconnect"]),
            ("disconnect", &json!("draining"), &json!(true))
        );
        let delay = end["delay"].as_f64().unwrap() * 1000.0;
        assert!(event.retry.is_some_and(|retry| (retry as f64 - delay).abs() <= 1.0), "{event:?}");
        assert!(stream.next_block().await.is_none());
    }
}

#[tokio::test]
async fn each_stream_takes_one_place_of_the_node_s() {
    let server = TwoApps::with(|config| config.limits.connections = 10).await;
    let mut streams = Vec::new();
    for _ in 0..10 {
        let mut stream = server.stream("/v1/events?channel=room:1&app=shop").await;
        stream.expect("subscribed").await;
        streams.push(stream);
    }
    let refused = server.get("/v1/events?channel=room:1&app=shop").send().await;
    assert_eq!(refused.problem(), (503, "unavailable".into()));
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    streams.pop();
    server.until("the end of the last", |node| node.hub().connections() == 9).await;
    within("a place for another", async {
        while server.get("/healthz").send().await.status != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn plain_connections_of_all_shards_count_together() {
    let server = TwoApps::with(|config| (config.workers, config.limits.connections) = (2, 10)).await;
    let mut held = Vec::new();
    for _ in 0..40 {
        let mut socket = tokio::net::TcpStream::connect(server.address()).await.unwrap();
        socket.write_all(b"GET /healthz HTTP/1.1\r\nHost: fanwire\r\n\r\n").await.unwrap();
        let mut status = [0; 12];
        within("a status", socket.read_exact(&mut status)).await.unwrap();
        held.push((socket, String::from_utf8(status.to_vec()).unwrap()));
    }
    let served = held.iter().filter(|(_, status)| status == "HTTP/1.1 200").count();
    let refused = held.iter().filter(|(_, status)| status == "HTTP/1.1 503").count();
    assert_eq!((served, refused), (10, 30));
}

#[tokio::test]
async fn a_quiet_stream_is_kept_alive_by_comments() {
    let server = TwoApps::with(|config| config.connection.ping = Span(Duration::from_secs(1))).await;
    let mut stream = server.stream("/v1/events?channel=room:1&app=shop").await;
    stream.expect("subscribed").await;
    for _ in 0..3 {
        let block = stream.next_block().await.unwrap();
        assert!(block.comment && block.data.is_empty(), "{block:?}");
    }
}

#[tokio::test]
async fn a_slow_reader_catches_up_from_history_and_holds_up_nobody() {
    let server = TwoApps::with(|config| config.connection.send_queue = ByteSize::kibibytes(64)).await;
    let mut slow = server.stream("/v1/events?channel=room:1&app=shop").await;
    let mut quick = server.stream("/v1/events?channel=room:1&app=shop").await;
    slow.expect("subscribed").await;
    quick.expect("subscribed").await;
    // More than the queue and all buffers between hold; less than the history does.
    let text = "x".repeat(60_000);
    for n in 0..100 {
        server.publish("shop", "room:1", json!({"n": n, "text": text})).await;
        assert_eq!(quick.publication().await["n"], n);
    }
    let behind =
        |node: &fanwire::node::Node| node.hub().all_counters().map(|each| each.caught_behind.get()).sum::<usize>();
    assert!(0 < behind(server.node()), "the slow one fell behind");
    for n in 0..100 {
        assert_eq!(slow.publication().await["n"], n);
    }
    server.publish("shop", "room:1", json!({"n": "live"})).await;
    assert_eq!(slow.publication().await["n"], "live");
}

#[tokio::test]
async fn a_slow_reader_is_cut_where_that_is_asked_for_and_resumes() {
    let server = TwoApps::with(|config| {
        config.connection.send_queue = ByteSize::kibibytes(64);
        config.connection.when_slow = WhenSlow::Disconnect;
    })
    .await;
    let mut slow = server.stream("/v1/events?channel=room:1&app=shop").await;
    slow.expect("subscribed").await;
    let (text, mut count) = ("x".repeat(60_000), 0);
    // Until it is cut, and no longer: what it is told waits for it a few seconds only.
    while server.node().hub().all_counters().all(|counters| counters.slow_disconnected.get() == 0) {
        assert!(count < 100, "6 MB fit in no buffers, and no more are kept");
        server.publish("shop", "room:1", json!({"n": count, "text": text})).await;
        count += 1;
    }
    let mut seen: Vec<_> = Vec::new();
    let rest = slow.rest().await;
    let (end, before) = rest.split_last().unwrap();
    assert_eq!((end.name.as_str(), &end.json()["code"]), ("disconnect", &json!("slow")));
    seen.extend(before.iter().map(|event| event.json()["data"]["n"].as_u64().unwrap()));
    let call = server.get("/v1/events?channel=room:1&app=shop").header("Last-Event-ID", &slow.last_id);
    let mut again = call.stream().await;
    assert_eq!(again.expect("subscribed").await["recovered"], true);
    while seen.len() < count {
        seen.push(again.publication().await["n"].as_u64().unwrap());
    }
    assert_eq!(seen, (0..count as u64).collect::<Vec<_>>());
}
