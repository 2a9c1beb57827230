//! Whatever clients send, the server goes on.

use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::json;

use crate::support::{RawSocket, TestServer, masked};

/// How long the noise lasts.
const TIME: Duration = Duration::from_secs(4);
const CLIENTS: usize = 16;
/// How many of each client's connections it lasts at least, on a machine that is busy.
const ENDS: usize = 4;

const WORDS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"",
    "\\",
    "\\u00",
    "null",
    "true",
    "-1",
    "1e999",
    "9007199254740993",
    "type",
    "subscribe",
    "unsubscribe",
    "publish",
    "presence",
    "history",
    "auth",
    "ping",
    "channel",
    "data",
    "token",
    "after",
    "epoch",
    "offset",
    "last",
    "limit",
    "reverse",
    "key",
    "echo",
    "tags",
    "id",
    "chat:1",
    "plain",
    "user:1",
    "ä",
    "😀",
    " ",
    "\n",
    "\0",
];

/// A frame that is now and then one.
fn noise(random: &mut StdRng) -> Vec<u8> {
    let kinds = ["subscribe", "unsubscribe", "publish", "presence", "history", "ping", "auth", "nonsense"];
    let channels = ["chat:1", "chat:2", "plain", "user:1", "token:1", "nowhere:1", "bad name", ""];
    let text = match random.random_range(0..4) {
        0 => (0..random.random_range(0..30)).map(|_| *WORDS.choose(random).unwrap()).collect(),
        _ => json!({
            "type": kinds.choose(random).unwrap(),
            "channel": channels.choose(random).unwrap(),
            "data": WORDS.choose(random).unwrap().repeat(random.random_range(0..400)),
            "token": "x.y.z",
            "id": random.random_range(-5..5),
            "presence": random.random::<bool>(),
            "echo": random.random::<bool>(),
            "limit": random.random_range(0..1002),
        })
        .to_string(),
    };
    let mut bytes = text.into_bytes();
    if random.random_range(0..10) == 0 && !bytes.is_empty() {
        let at = random.random_range(0..bytes.len());
        bytes[at] = random.random();
    }
    let first = match random.random_range(0..20) {
        0 => random.random(),
        1 => 0x89,
        2 => 0x01,
        3 => 0x80,
        _ => 0x81,
    };
    if first & 8 != 0 {
        bytes.truncate(random.random_range(0..130));
    }
    let mut frame = masked(first, &bytes);
    if random.random_range(0..40) == 0 {
        let at = random.random_range(0..frame.len());
        frame[at] = random.random();
    }
    frame
}

/// One client after the other until the time is over. Returns how each ended, by close code.
async fn make_noise(server: &TestServer, seed: u64) -> Vec<Option<u16>> {
    let mut random = StdRng::seed_from_u64(seed);
    let (started, mut ends) = (Instant::now(), Vec::new());
    while started.elapsed() < TIME || ends.len() < ENDS {
        let mut socket: RawSocket = server.raw_websocket().await;
        for _ in 0..random.random_range(1..60) {
            if socket.try_send(&noise(&mut random)).await.is_err() {
                break;
            }
        }
        if random.random_range(0..3) == 0 {
            continue; // It just goes.
        }
        // Whoever it still listens to is told to go.
        let _ = socket.try_send(&masked(0x88, &1000u16.to_be_bytes())).await;
        let _ = socket.try_shut_down().await;
        let mut end = None;
        while let Some(frame) = socket.try_next_frame().await {
            end = frame.close_code().or(end);
        }
        ends.push(end);
    }
    ends
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_ends_connections_and_never_the_server() {
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    ann.subscribe("chat:quiet").await;
    let seed: u64 = rand::random();
    println!("seed {seed}"); // Shown where the test fails.
    let noises = (0..CLIENTS as u64).map(|n| make_noise(&server, seed.wrapping_add(n)));
    let ends: Vec<_> = futures_util::future::join_all(noises).await.concat();
    assert!(CLIENTS * ENDS <= ends.len(), "only {} connections were made", ends.len());
    for end in &ends {
        // 4003 would be a panic of the session.
        assert!(matches!(end, None | Some(1000 | 1002 | 1003 | 1007 | 1009 | 4100 | 4102 | 1005)), "{end:?}");
    }
    assert!(ends.iter().filter(|end| end.is_some()).count() * 2 > ends.len(), "most got a close frame: {ends:?}");
    ann.publish("chat:quiet", "undisturbed").await;
    assert_eq!(ann.next_publication().await, "undisturbed");
    server.until("the noise to be gone", |node| node.hub().connections() == 1).await;
}
