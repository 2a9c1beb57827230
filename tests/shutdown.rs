//! The end of a server process: told to everybody, spread out, and clean.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::support::{ChildServer, Client, RawSocket, within};

/// Less than the drain's grace of 5 s for sockets that stay open, and much for a process that has nothing to wait for.
const AT_ONCE: Duration = Duration::from_secs(4);

#[tokio::test]
async fn everybody_is_told_to_come_back_elsewhere_and_when() {
    let mut server =
        ChildServer::start("[shutdown]\ndrain = \"6s\"\n[namespace.chat]\nsubscribe = \"anyone\"\npublish = \"user\"");
    let mut clients = Vec::new();
    for n in 0..20 {
        let mut client = server.connect(&format!("user{n}")).await;
        client.subscribe("chat:1").await;
        clients.push(client);
    }
    assert_eq!(server.get("/readyz").await.status, 200);
    let started = Instant::now();
    server.signal(Signal::TERM);
    let ends = futures_util::future::join_all(clients.iter_mut().map(async |client: &mut Client| {
        let ended = client.ended().await;
        (ended, started.elapsed())
    }))
    .await;
    let mut delays = Vec::new();
    for (ended, _) in &ends {
        assert_eq!((ended.code, ended.reason.as_str()), (Some(1001), "draining"));
        let disconnect = ended.disconnect();
        assert_eq!((&disconnect["code"], &disconnect["reconnect"]), (&json!("draining"), &json!(true)));
        delays.push(disconnect["delay"].as_f64().unwrap());
    }
    assert!(delays.iter().all(|delay| (0.0..=3.0).contains(delay)), "{delays:?}");
    delays.sort_by(f64::total_cmp);
    delays.dedup();
    assert!(10 < delays.len(), "each has a delay of its own: {delays:?}");
    let told = || ends.iter().map(|(_, at)| *at);
    let spread = told().max().unwrap() - told().min().unwrap();
    assert!(Duration::from_secs(2) < spread, "spread over 6 s, not over {spread:?}");
    let status = server.exit().await;
    assert!(status.success(), "{status}: {}", server.log());
    let took = started.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
}

#[tokio::test]
async fn while_it_drains_it_is_not_ready_and_lets_nobody_in() {
    let mut server = ChildServer::start(
        "[shutdown]\ndrain = \"3s\"\n[namespace.\"\"]\nsubscribe = \"anyone\"\npublish = \"anyone\"",
    );
    let mut clients = Vec::new();
    for n in 0..6 {
        clients.push(server.connect(&format!("user{n}")).await);
    }
    server.signal(Signal::TERM);
    refuses_connections(&server).await;
    let ends = futures_util::future::join_all(clients.iter_mut().map(Client::ended)).await;
    assert!(ends.iter().all(|ended| ended.code == Some(1001)));
    assert!(server.exit().await.success());
}

#[tokio::test]
async fn a_server_without_clients_ends_at_once() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut server = ChildServer::start("");
        let started = Instant::now();
        server.signal(signal);
        assert!(server.exit().await.success(), "{}", server.log());
        let took = started.elapsed();
        assert!(took < AT_ONCE, "{signal:?}: {took:?}");
    }
}

#[tokio::test]
async fn a_request_under_way_is_answered_before_it_ends() {
    let api_keys =
        "[shutdown]\ndrain = \"0s\"\n[[app]]\nid = \"shop\"\nkey = \"shop\"\napi_keys = [\"the-shop-s-key\"]";
    let mut server = ChildServer::start(&format!("[namespace.\"\"]\npublish = \"anyone\"\n{api_keys}"));
    let body = r#"{"channel":"plain","data":"said while it stops"}"#;
    let (first, second) = body.split_at(20);
    let mut socket = RawSocket::connect(server.address()).await;
    let head = format!(
        "POST /v1/publish HTTP/1.1\r\nHost: fanwire\r\nAuthorization: Bearer the-shop-s-key\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\nExpect: 100-continue\r\n\r\n",
        body.len()
    );
    socket.send(head.as_bytes()).await;
    assert_eq!(socket.next_head().await.status, 100, "it waits for the body");
    socket.send(first.as_bytes()).await;
    server.signal(Signal::TERM);
    refuses_connections(&server).await;
    socket.send(second.as_bytes()).await;
    let answer = socket.next_answer().await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("connection"), Some("close"), "{answer:?}");
    let answered = Instant::now();
    assert!(server.exit().await.success(), "{}", server.log());
    let took = answered.elapsed();
    assert!(took < AT_ONCE, "nothing is left to wait for: {took:?}");
}

#[tokio::test]
async fn idle_connections_do_not_hold_it_up() {
    let mut server = ChildServer::start("");
    let mut kept_alive = RawSocket::connect(server.address()).await;
    kept_alive.send(b"GET /healthz HTTP/1.1\r\nHost: fanwire\r\n\r\n").await;
    let answer = kept_alive.next_head().await;
    assert_eq!(answer.status, 200);
    kept_alive.next_body(answer.header("content-length").map_or(0, |length| length.parse().unwrap())).await;
    let _silent = RawSocket::connect(server.address()).await;
    let started = Instant::now();
    server.signal(Signal::TERM);
    assert!(server.exit().await.success(), "{}", server.log());
    let took = started.elapsed();
    assert!(took < AT_ONCE, "{took:?}");
}

/// Completes once the listeners are closed.
async fn refuses_connections(server: &ChildServer) {
    within("new connections to be refused", async {
        while tokio::net::TcpStream::connect(server.address()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn no_token_and_no_payload_ever_reaches_a_log() {
    let mut server = ChildServer::start(
        "[log]\nlevel = \"trace\"\n[namespace.chat]\nsubscribe = \"anyone\"\npublish = \"anyone\"\nhistory = { size = 10, ttl = \"1h\" }",
    );
    let token = crate::support::user("ann");
    let mut ann = server.client().token(&token).connect().await;
    ann.subscribe("chat:1").await;
    ann.publish("chat:1", "PAYLOAD-TEXT").await;
    ann.next_publication().await;
    for way in [
        server.client().token("QUERY-SECRET"),
        server.client().header("Authorization", "Bearer HEADER-SECRET"),
        server.client().header("Sec-WebSocket-Protocol", "fanwire.v1, bearer.PROTOCOL-SECRET"),
    ] {
        assert_eq!(way.open().await.ended().await.code, Some(4100));
    }
    ann.refused(json!({ "type": "auth", "token": "FRAME-SECRET" })).await;
    server.get("/healthz?token=PATH-SECRET").await;
    ann.close().await;
    server.signal(Signal::TERM);
    assert!(server.exit().await.success());
    let log = server.log();
    assert!(log.contains("session ended"), "the log is there: {log}");
    let signature = token.rsplit('.').next().unwrap();
    for secret in ["SECRET", "PAYLOAD-TEXT", signature, crate::support::SECRET] {
        let line = log.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret}");
    }
}
