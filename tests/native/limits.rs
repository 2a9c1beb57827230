//! Rates, and what happens to who does not keep to them.

use std::time::{Duration, Instant};

use fanwire::config::{ByteSize, HistoryConfig, NamespaceConfig, Rate, Span};
use serde_json::{Value, json};
use tokio::time::{sleep, sleep_until};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::frame::{
        Frame,
        coding::{Data, OpCode},
    },
};

use crate::support::{Client, Opcode, RawSocket, TestServer, masked, within};

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

/// How long a message may take: early by a tick of the wheel (a 64th of the ping interval, here almost a second), late
/// by what a busy machine is.
const MESSAGE_TIME: std::ops::Range<Duration> = Duration::from_secs(9)..Duration::from_secs(25);
/// A text message that goes on, and the frame that ends it.
const TEXT: u8 = Opcode::Text as u8;
const END: u8 = 0x80 | Opcode::Continuation as u8;

/// The server's close frame for a message that did not end in time, after pings and pongs.
async fn is_cut_off(socket: &mut RawSocket, since: Instant) {
    let close = loop {
        let frame = socket.next_frame().await;
        if frame.opcode() == Opcode::Close as u8 {
            break frame;
        }
    };
    let took = since.elapsed();
    assert_eq!((close.close_code(), &close.payload[2..]), (Some(1008), &b"message took too long"[..]));
    assert!(MESSAGE_TIME.contains(&took), "it took {took:?}");
}

/// Sends pieces a second apart until the server cuts it off.
async fn drip(server: &TestServer, pieces: impl Iterator<Item = Vec<u8>>) {
    let mut socket = server.raw_websocket().await;
    let since = Instant::now();
    for piece in pieces.take(10) {
        socket.send(&piece).await;
        sleep(Duration::from_secs(1)).await;
    }
    is_cut_off(&mut socket, since).await;
}

/// Says part of something and nothing more.
async fn fall_silent(server: &TestServer, bytes: Vec<u8>) {
    let mut socket = server.raw_websocket().await;
    let since = Instant::now();
    socket.send(&bytes).await;
    is_cut_off(&mut socket, since).await;
}

/// Two messages in a row, each within its time, both together not.
async fn take_time_for_each(server: &TestServer) {
    let mut socket = server.raw_websocket().await;
    let (begin, end) = (masked(TEXT, br#"{"type":"ping","#), masked(END, br#""id":1}"#));
    let start = tokio::time::Instant::now();
    socket.send(&begin).await;
    sleep_until(start + Duration::from_secs(7)).await;
    socket.send(&[&end[..], &begin[..]].concat()).await;
    assert_eq!(socket.next_json().await["type"], "pong");
    sleep_until(start + Duration::from_secs(14)).await;
    socket.send(&end).await;
    assert_eq!(socket.next_json().await["type"], "pong");
}

#[tokio::test]
async fn a_message_has_ten_seconds_from_its_first_byte_to_its_last() {
    // No pings of the server's in between.
    let server = TestServer::with(|config| config.connection.ping = Span(Duration::from_secs(60))).await;
    let one_byte_each = masked(0x80 | TEXT, &[b' '; 30]).into_iter().map(|byte| vec![byte]);
    let with_pings = (0..).map(|n| match n {
        0 => masked(TEXT, b"{"),
        _ => [masked(Opcode::Continuation as u8, b" "), masked(0x80 | Opcode::Ping as u8, b"")].concat(),
    });
    tokio::join!(
        drip(&server, one_byte_each),
        drip(&server, with_pings),
        fall_silent(&server, masked(TEXT, b"{")),
        fall_silent(&server, masked(0x80 | TEXT, b"{}")[..3].to_vec()),
        fall_silent(&server, masked(0x80 | Opcode::Ping as u8, b"ping")[..8].to_vec()),
        take_time_for_each(&server),
    );
    let figures: usize = server.node().hub().all_counters().map(|counters| counters.violations.get()).sum();
    assert_eq!(figures, 5);
}

/// A piece of a message, by a client that reads and writes as a library does.
async fn send_piece(client: &mut Client, text: &'static str, opcode: Data, is_last: bool) {
    client.send_message(Message::Frame(Frame::message(text, OpCode::Data(opcode), is_last))).await;
}

/// While the server waits for a slow reader it reads nothing, so the time of what the reader has begun stands still.
#[tokio::test]
async fn a_reader_that_the_server_waits_for_has_no_message_held_against_it() {
    let server = TestServer::with(|config| {
        config.connection.send_queue = ByteSize(64 << 10);
        // Who does not read for a while is not to be taken for silent.
        config.connection.ping = Span(Duration::from_secs(120));
        config.limits.frames_per_connection = Rate::NONE;
        let history = Some(HistoryConfig { size: 20_000, ttl: Span(Duration::from_secs(3600)) });
        let chat = config.namespaces["chat"].clone();
        config.namespaces.insert("kept".into(), NamespaceConfig { history, ..chat });
    })
    .await;
    let mut behind = server.client().user("behind").receive_buffer(4096).connect().await;
    behind.subscribe("kept:1").await;
    let mut bob = server.connect("bob").await;
    let (count, filling) = (8000, "x".repeat(1000));
    for n in 0..count {
        bob.send(&json!({ "type": "publish", "channel": "kept:1", "data": [n, filling] })).await;
    }
    bob.expect("pong", json!({ "type": "ping" })).await;
    // One is behind and will be caught up, the other asks for much; both have begun to say something.
    send_piece(&mut behind, r#"{"type":"ping","#, Data::Text, false).await;
    let mut greedy = server.client().user("greedy").receive_buffer(4096).connect().await;
    for _ in 0..40 {
        greedy.send(&json!({ "type": "history", "channel": "kept:1", "limit": 1000 })).await;
    }
    send_piece(&mut greedy, r#"{"type":"ping","#, Data::Text, false).await;
    for n in 0..1000 {
        assert_eq!(behind.next_publication().await[0], n);
    }
    // Longer than a message may take.
    sleep(Duration::from_secs(13)).await;
    for n in 1000..count {
        assert_eq!(behind.next_publication().await[0], n);
    }
    for client in [&mut behind, &mut greedy] {
        send_piece(client, r#""id":1}"#, Data::Continue, true).await;
        assert_eq!(client.next_of("pong").await["id"], 1);
    }
    assert!(
        0 < server.node().hub().all_counters().map(|each| each.caught_behind.get()).sum::<usize>(),
        "one was behind"
    );
}
