//! What is refused before there is a WebSocket, by HTTP status and a problem document.

use std::time::{Duration, Instant};

use crate::support::{Answer, Call, TestServer, within};

async fn answer(server: &TestServer, headers: &[(&str, &str)]) -> Answer {
    let mut socket = server.raw().await;
    socket.send_handshake("/v1/ws", headers).await;
    socket.send(b"").await;
    let head = socket.next_head().await;
    match head.header("content-length").map(|length| length.parse::<usize>().unwrap()) {
        Some(length) => Answer { body: socket.next_body(length).await, ..head },
        None => head,
    }
}

#[tokio::test]
async fn a_bad_handshake_is_told_what_is_wrong_with_it() {
    let server = TestServer::start().await;
    for (what, headers, status) in [
        ("a plain request", [("Upgrade", ""), ("Connection", "keep-alive")], 426),
        ("another protocol", [("Upgrade", "h2c"), ("Connection", "Upgrade")], 426),
        ("an old version", [("Sec-WebSocket-Version", "8"), ("X-A", "b")], 426),
        ("a version to come", [("Sec-WebSocket-Version", "14"), ("X-A", "b")], 426),
        ("no version", [("Sec-WebSocket-Version", ""), ("X-A", "b")], 426),
        ("no key", [("Sec-WebSocket-Key", ""), ("X-A", "b")], 400),
        ("15 bytes of key", [("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAA"), ("X-A", "b")], 400),
        ("a key that is no base64", [("Sec-WebSocket-Key", "!!!!!!!!!!!!!!!!!!!!!!=="), ("X-A", "b")], 400),
        ("broken extensions", [("Sec-WebSocket-Extensions", "a;;b"), ("X-A", "b")], 400),
    ] {
        let answer = answer(&server, &headers).await;
        assert_eq!(answer.status, status, "{what}: {answer:?}");
        if status == 426 {
            assert_eq!(answer.header("sec-websocket-version"), Some("13"), "{what}");
            assert_eq!(answer.header("upgrade"), Some("websocket"), "{what}");
        }
        assert_eq!(answer.code(), "bad_request", "{what}");
    }
    let two_keys =
        [("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="), ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")];
    assert_eq!(answer(&server, &two_keys).await.status, 400);
    assert_eq!(Call::new(server.address(), "POST", "/v1/ws").send().await.status, 405);
    assert_eq!(answer(&server, &[("Connection", "keep-alive, UPGRADE"), ("Upgrade", "WebSocket")]).await.status, 101);
}

#[tokio::test]
async fn only_pages_of_our_own_and_those_that_are_named_may_connect() {
    let server = TestServer::with(|config| {
        config.http.allowed_origins = vec!["https://app.example".into(), "http://localhost:3000".into()];
    })
    .await;
    let (host, port) = (server.address().to_string(), server.address().port());
    let own = format!("http://{host}");
    let origin = async |origin: &str| answer(&server, &[("Origin", origin)]).await;
    for good in [&own, "https://app.example", "https://APP.example:443", "http://localhost:3000"] {
        assert_eq!(origin(good).await.status, 101, "{good}");
    }
    for bad in [
        "https://evil.example".to_owned(),
        format!("http://127.0.0.1:{}", port ^ 1),
        format!("http://{host}.evil.example"),
        "https://app.example.evil".into(),
        "https://xapp.example".into(),
        "http://app.example".into(),
        "https://app.example:8443".into(),
        "null".into(),
        "file://".into(),
        "nonsense".into(),
        "https://app.example/".into(),
        "https://app.example https://evil.example".into(),
        "https://app.example, https://evil.example".into(),
        "https://user@app.example".into(),
    ] {
        let answer = origin(&bad).await;
        assert_eq!((answer.status, answer.code().as_str()), (403, "forbidden"), "{bad}");
    }
    assert_eq!(answer(&server, &[]).await.status, 101, "no page, no origin");
}

#[tokio::test]
async fn a_full_server_says_so_and_has_room_again() {
    let server = TestServer::with(|config| config.limits.connections = 2).await;
    let ann = server.connect("ann").await;
    let _bob = server.connect("bob").await;
    let mut socket = server.raw().await;
    // It may be told before its handshake is read.
    let _ = socket.try_send(b"GET /v1/ws HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let answer = socket.next_answer().await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "unavailable"), "{answer:?}");
    assert!(answer.header("retry-after").is_some());
    ann.close().await;
    // Its place is free once its socket is closed on both sides.
    within("room for another", async {
        while server.client().user("eve").try_open().await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_head_has_a_size() {
    let server = TestServer::start().await;
    let fits = "x".repeat(12 << 10);
    assert_eq!(answer(&server, &[("X-Long", &fits)]).await.status, 101);
    let long = "x".repeat(16 << 10);
    let many: Vec<_> = (0..70).map(|n| format!("X-{n}")).collect();
    let many: Vec<_> = many.iter().map(|name| (name.as_str(), "x")).collect();
    for headers in [&[("X-Long", long.as_str())][..], &many] {
        let mut socket = server.raw().await;
        socket.send_handshake("/v1/ws", headers).await;
        let answer = socket.next_answer().await;
        assert_eq!(answer.status, 431, "{answer:?}");
    }
}

#[tokio::test]
async fn heads_without_end_are_cut_and_disturb_nobody() {
    let server = TestServer::start().await;
    let mut sockets = Vec::new();
    for _ in 0..50 {
        let mut socket = server.raw().await;
        let bomb = format!("GET /v1/ws HTTP/1.1\r\nX-Bomb: {}", "x".repeat(1 << 20));
        // The server stops reading long before its end.
        let _ = socket.try_send(bomb.as_bytes()).await;
        sockets.push(socket);
    }
    server.connect("ann").await.publish("chat:1", "undisturbed").await;
    for mut socket in sockets {
        while !socket.ends().await {}
    }
}

#[tokio::test]
async fn a_handshake_has_ten_seconds_however_it_spends_them() {
    let server = TestServer::start().await;
    // Each time begins before the server can have accepted, so that none is cut too soon.
    let silent = async {
        let started = Instant::now();
        let mut socket = server.raw().await;
        assert!(socket.ends().await, "nothing was asked, nothing is answered");
        started.elapsed()
    };
    let begun = async {
        let started = Instant::now();
        let mut socket = server.raw().await;
        socket.send(b"GET /v1/ws HTTP/1.1\r\nHost: x\r\n").await;
        while !socket.ends().await {}
        started.elapsed()
    };
    let dribbled = async {
        let started = Instant::now();
        let mut socket = server.raw().await;
        let mut head = b"GET /v1/ws HTTP/1.1\r\nX-Slow: ".iter().copied().chain(std::iter::repeat(b'x'));
        while started.elapsed() < Duration::from_secs(30) {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let byte = head.next().expect("there is no end");
            if socket.try_send(&[byte]).await.is_err() {
                break;
            }
        }
        started.elapsed()
    };
    let (silent, begun, dribbled) = tokio::join!(silent, begun, dribbled);
    for (how, time) in [("silent", silent), ("begun", begun), ("byte by byte", dribbled)] {
        // Not much later either: dribbling on buys no more time.
        assert!((9..25).contains(&time.as_secs()), "{how}: cut after {time:?}");
    }
    server.connect("ann").await;
}

#[tokio::test]
async fn a_connection_that_only_asked_for_a_page_is_let_go_too() {
    let server = TestServer::start().await;
    let mut socket = server.raw().await;
    socket.send(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").await;
    let head = socket.next_head().await;
    assert_eq!(head.status, 200);
    socket.next_body(head.header("content-length").unwrap().parse().unwrap()).await;
    let started = Instant::now();
    assert!(socket.ends().await);
    assert!(started.elapsed() < Duration::from_secs(30), "after 10 s, {:?}", started.elapsed());
}
