//! The shape of frames: ids, arrays, what is no command, and how it is told.

use serde_json::{Value, json};

use crate::support::TestServer;

#[tokio::test]
async fn an_id_comes_back_as_it_was() {
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    for id in [
        "0",
        "-1",
        "9223372036854775807",
        "-9223372036854775808",
        r#""""#,
        r#""é \" x""#,
        &format!("{:?}", "x".repeat(64)),
    ] {
        ann.send_text(&format!(r#"{{"type":"ping","id":{id}}}"#)).await;
        assert_eq!(ann.next_text().await, format!(r#"{{"type":"pong","id":{id}}}"#));
        ann.send_text(&format!(r#"{{"type":"nonsense","id":{id}}}"#)).await;
        assert!(ann.next_text().await.starts_with(&format!(r#"{{"type":"error","id":{id},"code":"bad_request""#)));
    }
    ann.send_text(r#"{"type":"ping"}"#).await;
    assert_eq!(ann.next_text().await, r#"{"type":"pong"}"#);
    for id in ["1.5", "1e3", "9223372036854775808", "true", "[]", "{}", &format!("{:?}", "x".repeat(65))] {
        ann.send_text(&format!(r#"{{"type":"ping","id":{id}}}"#)).await;
        let error: Value = serde_json::from_str(&ann.next_text().await).unwrap();
        assert_eq!((&error["code"], error.get("id")), (&json!("bad_request"), None), "{id}");
    }
}

#[tokio::test]
async fn an_array_is_done_in_order_and_answered_in_single_objects() {
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    ann.send(&json!([
        { "type": "subscribe", "channel": "chat:1", "id": "a" },
        { "type": "publish", "channel": "chat:1", "data": 1, "id": "b" },
        { "type": "nonsense", "id": "c" },
        { "type": "publish", "channel": "chat:1", "data": 2 },
        { "type": "unsubscribe", "channel": "chat:1", "id": "d" },
        7,
        { "type": "ping", "id": "e" },
    ]))
    .await;
    let mut answers = Vec::new();
    let mut messages = Vec::new();
    while answers.len() < 6 {
        let frame = ann.next_frame().await;
        match frame["type"].as_str().unwrap() {
            "message" => messages.push(frame["data"].clone()),
            kind => answers.push((kind.to_owned(), frame["id"].clone())),
        }
    }
    let expected = [
        ("subscribed", json!("a")),
        ("published", json!("b")),
        ("error", json!("c")),
        ("unsubscribed", json!("d")),
        ("error", Value::Null),
        ("pong", json!("e")),
    ];
    assert_eq!(answers, expected.map(|(kind, id)| (kind.to_owned(), id)));
    assert!(messages.len() <= 2 && messages == [json!(1), json!(2)][..messages.len()], "{messages:?}");
}

#[tokio::test]
async fn what_is_no_command_is_answered_and_the_connection_stays() {
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    let deep = format!(r#"{{"type":"publish","channel":"plain","data":{}{}}}"#, "[".repeat(32), "]".repeat(32));
    for text in [
        "",
        " ",
        "nonsense",
        "{",
        "{}",
        "[]",
        "[[]]",
        "null",
        "7",
        r#""ping""#,
        r#"{"type":7}"#,
        r#"{"type":null}"#,
        r#"{"type":"PING"}"#,
        r#"{"type":"call","method":"x","data":1}"#,
        r#"{"type":"consume","channel":"plain","group":"g"}"#,
        r#"{"type":"ack","delivery":"x"}"#,
        r#"{"type":"message","channel":"plain","data":1}"#,
        r#"{"type":"ping","type":"ping"}"#,
        r#"{"type":"publish","channel":"plain","data":1,"data":2}"#,
        r#"{"type":"ping"}{"type":"ping"}"#,
        r#"{"type":"ping",}"#,
        r#"{"type":"publish","channel":"plain","data":NaN}"#,
        r#"{"type":"publish","channel":"plain","data":01}"#,
        r#"{"type":"publish","channel":"plain","data":'x'}"#,
        r#"{"type":"subscribe"}"#,
        r#"{"type":"subscribe","channel":7}"#,
        r#"{"type":"subscribe","channel":"plain","presence":1}"#,
        r#"{"type":"subscribe","channel":"plain","last":-1}"#,
        r#"{"type":"subscribe","channel":"plain","last":1001}"#,
        r#"{"type":"auth"}"#,
        r#"{"type":"auth","token":7}"#,
        &deep,
        &"[".repeat(60_000),
        "\u{feff}{\"type\":\"ping\"}",
    ] {
        ann.send_text(text).await;
        let error: Value = serde_json::from_str(&ann.next_text().await).unwrap();
        assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!("bad_request")), "{text:.80}");
        let message = error["message"].as_str().unwrap();
        assert!(!message.is_empty() && message.len() < 300, "{text:.80}: {message}");
    }
    ann.expect("pong", json!({ "type": "ping", "data": { "type": "x" }, "unknown": [1], "Type": 1 })).await;
}

#[tokio::test]
async fn an_error_names_its_command_and_its_channel() {
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    let subscribe = json!({ "type": "subscribe", "channel": "nobody:1" });
    let error = ann.expect("error", subscribe).await;
    assert_eq!((&error["code"], &error["channel"]), (&json!("forbidden"), &json!("nobody:1")));
    let unknown = ann.expect("error", json!({ "type": "publish", "channel": "nowhere:1", "data": 1 })).await;
    assert_eq!((&unknown["code"], &unknown["channel"]), (&json!("unknown_channel"), &json!("nowhere:1")));
    let bad = ann.expect("error", json!({ "type": "publish", "channel": "chat:1" })).await;
    assert_eq!((&bad["code"], &bad["channel"]), (&json!("bad_request"), &json!("chat:1")));
}

#[tokio::test]
async fn a_command_s_token_comes_back_in_no_error() {
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    for command in [
        r#"{"type":"auth","token":"SECRET-TEXT"}"#,
        r#"{"type":"subscribe","channel":"token:1","token":"SECRET-TEXT"}"#,
        r#"{"type":"auth","token":"SECRET-TEXT","id":1.5}"#,
        r#"{"type":"auth","token":["SECRET-TEXT"]}"#,
        r#"{"type":"subscribe","channel":"chat:1","after":"SECRET-TEXT"}"#,
    ] {
        ann.send_text(command).await;
        let text = ann.next_text().await;
        assert!(text.contains(r#""type":"error""#), "{command}: {text}");
        if command.contains("token") {
            assert!(!text.contains("SECRET"), "{command}: {text}");
        }
    }
}
