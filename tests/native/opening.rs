//! How a connection begins: the welcome, and who one is.

use serde_json::json;

use crate::support::{Connecting, SECRET, TestServer, now, subscription, token, user};

#[tokio::test]
async fn the_welcome_says_all_that_a_client_must_know() {
    let server = TestServer::start().await;
    let expires = now() + 3600;
    let ann = server.client().token(&token(json!({ "sub": "ann", "exp": expires }))).connect().await;
    let welcome = ann.welcome();
    assert!(ann.connection().starts_with("c_") && ann.connection().len() == 24, "{welcome}");
    assert_eq!(welcome["user"], "ann");
    assert_eq!(welcome["node"], server.node().id().as_str());
    assert_eq!(welcome["ping"], 25);
    assert_eq!(welcome["expires"], expires);
    assert_eq!(welcome["server"], concat!("fanwire/", env!("CARGO_PKG_VERSION")));

    let somebody = server.connect_anonymously().await;
    assert!(somebody.welcome().get("user").is_none() && somebody.welcome().get("expires").is_none());
    assert_ne!(somebody.connection(), ann.connection());
}

#[tokio::test]
async fn a_token_may_come_in_four_ways() {
    let server = TestServer::start().await;
    let ann = user("ann");
    let ways: [Connecting; 3] = [
        server.client().token(&ann),
        server.client().header("Authorization", format!("Bearer {ann}")),
        server.client().header("Sec-WebSocket-Protocol", format!("fanwire.v1, bearer.{ann}")),
    ];
    for way in ways {
        let client = way.connect().await;
        assert_eq!(client.welcome()["user"], "ann");
    }
    let mut client = server.connect_anonymously().await;
    let authenticated = client.expect("authenticated", json!({ "type": "auth", "token": ann })).await;
    assert_eq!(authenticated["user"], "ann");
    assert!(authenticated.get("expires").is_none());
    client.subscribe("user:1").await;
}

#[tokio::test]
async fn the_sub_protocol_is_chosen_only_where_it_was_offered() {
    let server = TestServer::start().await;
    let offered = server.client().header("Sec-WebSocket-Protocol", "other, fanwire.v1").connect().await;
    assert_eq!(offered.protocol(), Some("fanwire.v1"));
    assert_eq!(server.connect_anonymously().await.protocol(), None);
    for offer in ["other", "FANWIRE.V1", "fanwire.v2"] {
        let mut socket = server.raw().await;
        let answer = socket.upgrade("/v1/ws", &[("Sec-WebSocket-Protocol", offer)]).await;
        assert_eq!(answer.header("sec-websocket-protocol"), None, "{offer}");
        assert_eq!(socket.next_json().await["type"], "welcome", "{offer}");
    }
    let mut socket = server.raw().await;
    let bearer = format!("bearer.{}", user("ann"));
    let answer = socket.upgrade("/v1/ws", &[("Sec-WebSocket-Protocol", &bearer)]).await;
    assert_eq!(answer.header("sec-websocket-protocol"), None, "a token never comes back");
    assert_eq!(socket.next_json().await["user"], "ann");
}

#[tokio::test]
async fn who_cannot_be_let_in_is_told_inside_and_before_anything_else() {
    let server = TestServer::start().await;
    let expired = token(json!({ "sub": "ann", "exp": now() - 1 }));
    let foreign = fanwire::gateway::mint("another secret of forty bytes, for tests", &json!({ "sub": "ann" })).unwrap();
    let signed = user("ann");
    let forged = format!("{}AAAA", &signed[..signed.len() - 4]);
    for (client, code, name, reconnect) in [
        (server.client().token(&foreign), 4100, "unauthorized", false),
        (server.client().token(&forged), 4100, "unauthorized", false),
        (server.client().token("nonsense"), 4100, "unauthorized", false),
        (server.client().token(""), 4100, "unauthorized", false),
        (server.client().token(&subscription("ann", "chat:1")), 4100, "unauthorized", false),
        (server.client().token(&token(json!({}))), 4100, "unauthorized", false),
        (server.client().header("Authorization", "Bearer x.y.z"), 4100, "unauthorized", false),
        (server.client().token(&expired), 4200, "token_expired", true),
        (server.client().query("app", "nowhere"), 4103, "unknown_app", false),
        (server.client().query("app", "nowhere").token(&signed), 4103, "unknown_app", false),
    ] {
        let ended = client.open().await.ended().await;
        assert_eq!((ended.code, ended.reason.as_str()), (Some(code), name));
        assert_eq!(ended.frames.len(), 1, "{:?}", ended.frames);
        assert_eq!(ended.disconnect()["code"], name);
        assert_eq!(ended.disconnect()["reconnect"], reconnect);
        assert!(ended.disconnect()["message"].is_string());
    }
    server.connect("ann").await;
    server.client().query("app", "default").user("ann").connect().await;
}

#[tokio::test]
async fn commands_that_come_with_the_handshake_are_done_after_the_welcome() {
    let server = TestServer::start().await;
    let mut socket = server.raw().await;
    let mut bytes = format!(
        "GET /v1/ws HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        server.address()
    )
    .into_bytes();
    bytes.extend(crate::support::masked(0x81, br#"{"type":"ping","id":"early"}"#));
    socket.send(&bytes).await;
    assert_eq!(socket.next_head().await.status, 101);
    assert_eq!(socket.next_json().await["type"], "welcome");
    assert_eq!(socket.next_text().await, r#"{"type":"pong","id":"early"}"#);
}

#[tokio::test]
async fn in_development_mode_everybody_may_do_everything() {
    let server = TestServer::development().await;
    let mut ann = server.connect_anonymously().await;
    ann.subscribe("whatever:1").await;
    let subscribed = ann.subscribe("room:1").await;
    assert_eq!(subscribed["offset"], 0);
    ann.publish("room:1", "hi").await;
    assert_eq!(ann.next_publication().await, "hi");
    let ended = server.client().token(&fanwire::gateway::mint(SECRET, &json!({ "sub": "ann" })).unwrap()).open().await;
    let mut ended = ended;
    assert_eq!(ended.ended().await.code, Some(4100), "there is no key that a token could be checked with");
}
