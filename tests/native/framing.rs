//! What a WebSocket must do: closes with the right code, pings and pongs, compression.

use std::time::{Duration, Instant};

use fanwire::config::Span;
use serde_json::json;

use crate::support::{Frame, Opcode, RawSocket, TestServer, deflate, inflate, masked};

const FIN: u8 = 0x80;
const RSV1: u8 = 0x40;
const TEXT: u8 = FIN | Opcode::Text as u8;
const CLOSE: u8 = FIN | Opcode::Close as u8;
const PING: u8 = FIN | Opcode::Ping as u8;

#[tokio::test]
async fn every_violation_is_answered_with_its_close_code() {
    let server = TestServer::start().await;
    let too_large = vec![b' '; (64 << 10) + 1];
    let announced = [&[TEXT, 0xff][..], &(1u64 << 40).to_be_bytes(), &[1, 2, 3, 4]].concat();
    let fragments: Vec<u8> = (0..1100).flat_map(|n| masked(u8::from(n == 0), b"x")).collect();
    for (what, bytes, code) in [
        ("binary", masked(FIN | Opcode::Binary as u8, b"{}"), 1003),
        ("too large", masked(TEXT, &too_large), 1009),
        ("announced as too large", announced, 1009),
        ("too large in fragments", [masked(1, &too_large[..40_000]), masked(FIN, &too_large[..40_000])].concat(), 1009),
        ("too many fragments", fragments, 1009),
        ("bad UTF-8", masked(TEXT, b"\"\xff\""), 1007),
        ("bad UTF-8 in a close", masked(CLOSE, b"\x03\xe8\xff"), 1007),
        ("not masked", vec![TEXT, 2, b'{', b'}'], 1002),
        ("reserved bit", masked(TEXT | RSV1, b"{}"), 1002),
        ("reserved opcode", masked(FIN | 3, b"{}"), 1002),
        ("a long ping", masked(PING, &[0; 126]), 1002),
        ("a ping in fragments", masked(PING & !FIN, b""), 1002),
        ("a continuation of nothing", masked(FIN, b"x"), 1002),
        ("a message inside a message", [masked(1, b"{"), masked(TEXT, b"{}")].concat(), 1002),
        ("half a close code", masked(CLOSE, b"\x03"), 1002),
        ("a close code that must not be sent", masked(CLOSE, &1005u16.to_be_bytes()), 1002),
        ("a close code of nobody", masked(CLOSE, &999u16.to_be_bytes()), 1002),
    ] {
        let mut socket = server.raw_websocket().await;
        socket.send(&bytes).await;
        assert_eq!(socket.close_code().await, code, "{what}");
    }
    let mut ann = server.connect("ann").await;
    ann.expect("pong", json!({ "type": "ping" })).await;
}

#[tokio::test]
async fn the_close_is_seen_even_if_much_was_still_unread() {
    let server = TestServer::start().await;
    // Closing a socket with unread input resets it, and a reset takes the close frame with it.
    let after: Vec<u8> = (0..200).flat_map(|_| masked(TEXT, &[b' '; 2000])).collect();
    for _ in 0..100 {
        let mut socket = server.raw_websocket().await;
        let bytes = [masked(FIN | Opcode::Binary as u8, b"x"), after.clone()].concat();
        // The server may stop reading in the midst of it.
        let _ = socket.try_send(&bytes).await;
        assert_eq!(socket.close_code().await, 1003);
    }
}

#[tokio::test]
async fn a_close_is_answered_with_its_own_code() {
    let server = TestServer::start().await;
    for code in [1000u16, 1001, 3000, 4999] {
        let mut socket = server.raw_websocket().await;
        socket.send_frame(CLOSE, &[&code.to_be_bytes()[..], b"bye"].concat()).await;
        assert_eq!(socket.close_code().await, code);
    }
    let mut socket = server.raw_websocket().await;
    socket.send_frame(CLOSE, b"").await;
    let close = socket.next_frame().await;
    assert_eq!((close.first, close.payload.len()), (CLOSE, 0));
    assert!(socket.ends().await);
    // What was asked before the close is still done, what comes after it is not.
    let mut socket = server.raw_websocket().await;
    let ping = |id: u8| masked(TEXT, format!(r#"{{"type":"ping","id":{id}}}"#).as_bytes());
    socket.send(&[ping(1), masked(CLOSE, &1000u16.to_be_bytes()), ping(2)].concat()).await;
    assert_eq!(socket.next_text().await, r#"{"type":"pong","id":1}"#);
    assert_eq!(socket.close_code().await, 1000);
    server.until("the connections to be gone", |node| node.hub().connections() == 0).await;
}

#[tokio::test]
async fn a_ping_is_answered_with_its_payload() {
    let server = TestServer::start().await;
    let mut socket = server.raw_websocket().await;
    for payload in [&b""[..], b"\xff\x00hello", &[7; 125]] {
        socket.send_frame(PING, payload).await;
        let pong = socket.next_frame().await;
        assert_eq!((pong.first, &pong.payload[..]), (FIN | Opcode::Pong as u8, payload));
    }
    // A pong that nobody asked for is let pass; a ping inside a message is answered before the message.
    let text = br#"{"type":"ping"}"#;
    let bytes =
        [masked(FIN | Opcode::Pong as u8, b"x"), masked(1, &text[..5]), masked(PING, b"in"), masked(FIN, &text[5..])];
    socket.send(&bytes.concat()).await;
    assert_eq!(socket.next_frame().await.payload, b"in");
    assert_eq!(socket.next_text().await, r#"{"type":"pong"}"#);
}

#[tokio::test]
async fn a_message_may_come_in_any_pieces() {
    let server = TestServer::start().await;
    let mut socket = server.raw_websocket().await;
    let text = r#"{"type":"ping","id":"é😀"}"#;
    let bytes: Vec<u8> = text
        .bytes()
        .enumerate()
        .flat_map(|(at, byte)| {
            let first = u8::from(at == 0) | if at + 1 == text.len() { FIN } else { 0 };
            masked(first, &[byte])
        })
        .collect();
    for byte in bytes {
        socket.send(&[byte]).await;
    }
    assert_eq!(socket.next_text().await, r#"{"type":"pong","id":"é😀"}"#);
}

/// The next frame that is no ping: those come whenever their time has come.
async fn next_but_pings(socket: &mut RawSocket) -> String {
    loop {
        let frame = socket.next_frame().await;
        if frame.first != PING {
            assert_eq!(frame.first, TEXT, "{frame:?}");
            return String::from_utf8(frame.payload).unwrap();
        }
    }
}

#[tokio::test]
async fn the_server_pings_and_who_answers_stays() {
    let server = TestServer::with(|config| config.connection.ping = Span(Duration::from_secs(1))).await;
    let mut socket = server.raw_websocket().await;
    let started = Instant::now();
    for _ in 0..3 {
        let ping = socket.next_frame().await;
        assert_eq!(ping.first, PING);
        socket.send_frame(FIN | Opcode::Pong as u8, &ping.payload).await;
    }
    assert!(started.elapsed() < Duration::from_secs(20), "about one a second, {:?}", started.elapsed());
    socket.send_text(r#"{"type":"ping"}"#).await;
    assert_eq!(next_but_pings(&mut socket).await, r#"{"type":"pong"}"#);
}

#[tokio::test]
async fn who_does_not_answer_a_ping_is_let_go() {
    let server = TestServer::with(|config| config.connection.ping = Span(Duration::from_secs(1))).await;
    let started = Instant::now();
    let mut socket = server.raw_websocket().await;
    let mut watcher = server.connect("ann").await;
    watcher.expect("subscribed", json!({ "type": "subscribe", "channel": "chat:1", "presence": true })).await;
    socket.send_text(r#"{"type":"subscribe","channel":"chat:1"}"#).await;
    assert_eq!(watcher.next_frame().await["type"], "join");
    assert!(next_but_pings(&mut socket).await.contains(r#""type":"subscribed""#));
    assert_eq!(socket.next_frame().await.first, PING);
    let silent = async {
        let disconnect = socket.next_json().await;
        let lived = started.elapsed();
        assert_eq!((&disconnect["code"], &disconnect["reconnect"]), (&json!("ping_timeout"), &json!(true)));
        assert_eq!(socket.close_code().await, 4000);
        assert!((10..25).contains(&lived.as_secs()), "10 s after a ping, {lived:?}");
    };
    // The watcher waits as long, but answers pings meanwhile.
    let ((), left) = tokio::join!(silent, watcher.next_frame());
    assert_eq!(left["type"], "leave");
}

#[tokio::test]
async fn pings_come_in_every_interval_whatever_else_is_said() {
    let server = TestServer::with(|config| config.connection.ping = Span(Duration::from_secs(1))).await;
    let started = Instant::now();
    let mut socket = server.raw_websocket().await;
    let mut pings = 0;
    while pings < 4 {
        socket.send_text(r#"{"type":"ping"}"#).await;
        if socket.next_frame().await.first == PING {
            pings += 1;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The first comes after half an interval at the earliest.
    let took = started.elapsed();
    assert!((3..20).contains(&took.as_secs()), "one a second: 4 pings in {took:?}");
}

/// A raw socket with permessage-deflate agreed.
async fn deflated(server: &TestServer) -> RawSocket {
    let mut socket = server.raw().await;
    let offer = "permessage-deflate; client_max_window_bits";
    let answer = socket.upgrade("/v1/ws", &[("Sec-WebSocket-Extensions", offer)]).await;
    let agreed = answer.header("sec-websocket-extensions").unwrap();
    assert!(agreed.starts_with("permessage-deflate") && agreed.contains("server_no_context_takeover"), "{agreed}");
    socket
}

fn text_of(frame: &Frame) -> String {
    let payload = if frame.is_compressed() { inflate(&frame.payload) } else { frame.payload.clone() };
    String::from_utf8(payload).unwrap()
}

#[tokio::test]
async fn frames_of_256_bytes_and_more_are_compressed_where_that_was_agreed() {
    let server = TestServer::start().await;
    let mut socket = deflated(&server).await;
    assert!(text_of(&socket.next_frame().await).contains("welcome"));
    // A client's compressed frame.
    let command = br#"{"type":"subscribe","channel":"chat:1","id":1}"#;
    socket.send_frame(TEXT | RSV1, &deflate(command)).await;
    let subscribed = socket.next_frame().await;
    assert!(text_of(&subscribed).contains("subscribed"));
    let mut plain = server.connect("ann").await;
    plain.subscribe("chat:1").await;
    for length in [1, 50, 300, 5000, 60_000] {
        let data = "abcdefgh".repeat(length / 8 + 1);
        plain.send(&json!({ "type": "publish", "channel": "chat:1", "data": data })).await;
        let uncompressed = plain.next_text().await;
        let frame = socket.next_frame().await;
        assert_eq!(text_of(&frame), uncompressed, "both sides get the same text");
        assert_eq!(frame.is_compressed(), 256 <= uncompressed.len(), "{} bytes", uncompressed.len());
        assert!(!frame.is_compressed() || frame.payload.len() < uncompressed.len());
    }
    // In fragments, with a ping between them; the compression bit stands on the first alone.
    let command = deflate(br#"{"type":"ping","id":"in pieces"}"#);
    let bytes = [masked(1 | RSV1, &command[..7]), masked(PING, b""), masked(FIN, &command[7..])];
    socket.send(&bytes.concat()).await;
    assert_eq!(socket.next_frame().await.opcode(), Opcode::Pong as u8);
    assert_eq!(text_of(&socket.next_frame().await), r#"{"type":"pong","id":"in pieces"}"#);
    // And one that is not compressed at all.
    socket.send_text(r#"{"type":"ping","id":2}"#).await;
    assert_eq!(text_of(&socket.next_frame().await), r#"{"type":"pong","id":2}"#);
}

#[tokio::test]
async fn what_does_not_inflate_or_inflates_too_far_ends_the_connection() {
    let server = TestServer::start().await;
    for (payload, code) in [
        (deflate(&vec![b' '; 32 << 20]), 1009),
        (deflate(&vec![b' '; (64 << 10) + 1]), 1009),
        (b"\xff\xff\xff".to_vec(), 1007),
        (deflate(b"\xff\xfe"), 1007),
    ] {
        let mut socket = deflated(&server).await;
        let _ = socket.try_send(&masked(TEXT | RSV1, &payload)).await;
        assert_eq!(socket.close_code().await, code);
    }
}

#[tokio::test]
async fn compression_is_agreed_only_where_it_is_configured_and_offered_rightly() {
    let server = TestServer::with(|config| config.connection.compression = false).await;
    let mut socket = server.raw().await;
    let answer = socket.upgrade("/v1/ws", &[("Sec-WebSocket-Extensions", "permessage-deflate")]).await;
    assert_eq!(answer.header("sec-websocket-extensions"), None);
    let server = TestServer::start().await;
    for (offer, agreed) in [
        ("permessage-deflate", true),
        ("x-webkit-deflate-frame, permessage-deflate", true),
        ("permessage-deflate; nonsense", false),
        ("permessage-deflate; nonsense, permessage-deflate", true),
        ("permessage-bzip2", false),
    ] {
        let mut socket = server.raw().await;
        let answer = socket.upgrade("/v1/ws", &[("Sec-WebSocket-Extensions", offer)]).await;
        assert_eq!(answer.header("sec-websocket-extensions").is_some(), agreed, "{offer}");
    }
    let mut socket = server.raw().await;
    socket.send_handshake("/v1/ws", &[("Sec-WebSocket-Extensions", "permessage-deflate; =")]).await;
    assert_eq!(socket.next_head().await.status, 400);
}
