//! Publishing: what comes back, and what subscribers see of it.

use fanwire::config::{ByteSize, NamespaceConfig};
use serde_json::{Value, json};

use crate::support::TestServer;

#[tokio::test]
async fn only_who_gives_an_id_is_answered() {
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    ann.subscribe("plain").await;
    ann.send(&json!({ "type": "publish", "channel": "plain", "data": "quiet" })).await;
    let frames = ann.until_quiet().await;
    assert_eq!(frames.len(), 1, "{frames:?}");
    assert_eq!(frames[0]["data"], "quiet");
    let published = ann.expect("published", json!({ "type": "publish", "channel": "plain", "data": 1 })).await;
    let message = ann.next_message().await;
    assert_eq!(published["publication"], message["id"]);
    assert_eq!(published["channel"], "plain");
    // Errors come even to who gave none.
    ann.send(&json!({ "type": "publish", "channel": "nobody:1", "data": 1 })).await;
    let error = ann.next_frame().await;
    assert_eq!((&error["type"], &error["code"], error.get("id")), (&json!("error"), &json!("forbidden"), None));
}

#[tokio::test]
async fn a_message_has_everything_its_publisher_said() {
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    ann.subscribe("chat:1").await;
    let publish = json!({
        "type": "publish", "channel": "chat:1", "data": { "text": "hi" }, "event": "said \"so\"",
        "tags": { "lang": "en", "": "é" },
    });
    let before = crate::support::now() * 1000;
    let published = ann.expect("published", publish).await;
    let message = ann.next_message().await;
    let time = message["time"].as_u64().unwrap();
    assert!(before <= time && time <= (crate::support::now() + 1) * 1000, "{time} is now, in milliseconds");
    assert_eq!(message["id"].as_str().unwrap().len(), 26);
    let expected = json!({
        "type": "message", "channel": "chat:1", "event": "said \"so\"", "data": { "text": "hi" },
        "id": published["publication"], "offset": 1, "time": time,
        "from": { "user": "ann", "connection": ann.connection() }, "tags": { "lang": "en", "": "é" },
    });
    assert_eq!(message, expected);
    ann.publish("chat:1", Value::Null).await;
    let plain = ann.next_message().await;
    assert_eq!((&plain["event"], plain.get("tags"), &plain["data"]), (&json!("message"), None, &Value::Null));
}

#[tokio::test]
async fn data_comes_out_with_the_bytes_that_went_in() {
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    let mut bob = server.connect("bob").await;
    ann.subscribe("chat:1").await;
    for data in [
        "9007199254740993",
        "-9223372036854775809",
        "123456789012345678901234567890",
        "1.0",
        "1e400",
        "-0.0",
        "1E+2",
        "0.1000000000000000055511151231257827",
        r#"{"b":1,"a":2,"a":3}"#,
        r#"{"":{"":[]}}"#,
        r#""\u00e9\n\u0000\ud83d\ude00\/\"""#,
        r#""\ud800""#,
        "\"é😀\u{7f}\u{2028}\"",
        r#"{"type":"message","offset":-1}"#,
        "null",
        "[[[[[[[[[[1]]]]]]]]]]",
    ] {
        bob.send_text(&format!(r#"{{"type":"publish","channel":"chat:1","data": {data} }}"#)).await;
        let text = ann.next_text().await;
        let (_, rest) = text.split_once(r#","data":"#).unwrap();
        assert!(rest.starts_with(&format!(r#"{data},"id":""#)), "{data} came out in {text}");
        // History has the same bytes.
        bob.send_text(r#"{"type":"history","channel":"chat:1","limit":1,"reverse":true}"#).await;
        assert!(bob.next_text().await.contains(&format!(r#""data":{data},"id":""#)), "{data}");
    }
    // White space between tokens apart.
    bob.send_text("{\"type\":\"publish\",\"channel\":\"chat:1\",\"data\":{\r\n \"a\" :\n\t[1 , 2]}}").await;
    let text: String = ann.next_text().await.split_whitespace().collect();
    assert!(text.contains(r#""data":{"a":[1,2]},"#), "{text}");
}

#[tokio::test]
async fn every_subscriber_gets_the_same_bytes() {
    let server = TestServer::start().await;
    let (mut ann, mut bob) = (server.connect("ann").await, server.connect_anonymously().await);
    ann.subscribe("chat:1").await;
    bob.subscribe("chat:1").await;
    ann.send(&json!({ "type": "publish", "channel": "chat:1", "data": 1 })).await;
    assert_eq!(ann.next_text().await, bob.next_text().await);
}

#[tokio::test]
async fn the_publisher_is_shown_where_the_namespace_shows_it_and_its_connection_where_presence_is_on() {
    let server = TestServer::with(|config| {
        let plain = config.namespaces[""].clone();
        config.namespaces.insert("signed".into(), NamespaceConfig { show_publisher: true, ..plain.clone() });
        config.namespaces.insert("seen".into(), NamespaceConfig { presence: true, ..plain });
    })
    .await;
    let mut ann = server.connect("ann").await;
    let mut somebody = server.connect_anonymously().await;
    for (channel, named, anonymous) in [
        ("plain", None, None),
        ("seen:1", None, None),
        ("signed:1", Some(json!({ "user": "ann" })), None),
        (
            "chat:1",
            Some(json!({ "user": "ann", "connection": ann.connection() })),
            Some(json!({ "connection": somebody.connection() })),
        ),
    ] {
        ann.subscribe(channel).await;
        ann.publish(channel, 1).await;
        assert_eq!(ann.next_message().await.get("from"), named.as_ref(), "{channel}");
        somebody.publish(channel, 2).await;
        assert_eq!(ann.next_message().await.get("from"), anonymous.as_ref(), "{channel}, anonymous");
    }
}

#[tokio::test]
async fn without_echo_the_publishing_connection_misses_that_one_offset() {
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    let mut other_ann = server.connect("ann").await;
    ann.subscribe("chat:1").await;
    other_ann.subscribe("chat:1").await;
    ann.publish("chat:1", 1).await;
    let silent = json!({ "type": "publish", "channel": "chat:1", "data": 2, "echo": false });
    assert_eq!(ann.expect("published", silent).await["offset"], 2);
    ann.publish("chat:1", 3).await;
    let offsets = |messages: Vec<Value>| messages.iter().map(|message| message["offset"].clone()).collect::<Vec<_>>();
    assert_eq!(offsets(ann.messages_until_quiet("chat:1").await), [1, 3]);
    assert_eq!(offsets(other_ann.messages_until_quiet("chat:1").await), [1, 2, 3]);
}

#[tokio::test]
async fn the_same_key_is_stored_once_and_acknowledged_again() {
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    let mut ann_again = server.connect("ann").await;
    let mut bob = server.connect("bob").await;
    let (mut somebody, mut anybody) = (server.connect_anonymously().await, server.connect_anonymously().await);
    for channel in ["chat:1", "plain"] {
        let publish = |data: i64| json!({ "type": "publish", "channel": channel, "data": data, "key": "k" });
        ann.subscribe(channel).await;
        let mut first = ann.expect("published", publish(1)).await;
        let mut retried = ann_again.expect("published", publish(2)).await;
        (first["id"], retried["id"]) = (Value::Null, Value::Null);
        assert_eq!(first, retried, "the same user, another connection");
        let others = bob.expect("published", publish(3)).await;
        assert_ne!(others["publication"], first["publication"], "another user's key is another key");
        let anonymous = somebody.expect("published", publish(4)).await;
        let same = anybody.expect("published", publish(5)).await;
        assert_eq!(anonymous["publication"], same["publication"], "all anonymous ones are one");
        let other_key = json!({ "type": "publish", "channel": channel, "data": 6, "key": "K" });
        ann.expect("published", other_key).await;
        let data: Vec<_> = ann.messages_until_quiet(channel).await.iter().map(|each| each["data"].clone()).collect();
        assert_eq!(data, [1, 3, 4, 6], "{channel}");
    }
    let elsewhere = json!({ "type": "publish", "channel": "chat:2", "data": 7, "key": "k" });
    assert_eq!(ann.expect("published", elsewhere).await["offset"], 1, "another channel");
}

#[tokio::test]
async fn a_key_that_comes_many_times_at_once_is_stored_once() {
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    ann.subscribe("chat:1").await;
    let mut twins = Vec::new();
    for _ in 0..8 {
        twins.push(server.connect("bob").await);
    }
    for key in 0..20 {
        let publishing = twins.iter_mut().map(|twin| {
            let publish = json!({ "type": "publish", "channel": "chat:1", "data": key, "key": format!("k{key}") });
            twin.expect("published", publish)
        });
        let published = futures_util::future::join_all(publishing).await;
        assert!(published.iter().all(|each| each["publication"] == published[0]["publication"]));
        assert!(published.iter().all(|each| each["offset"] == key + 1));
    }
    let data: Vec<_> = ann.messages_until_quiet("chat:1").await.iter().map(|each| each["data"].clone()).collect();
    assert_eq!(data, (0..20).map(Value::from).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_is_too_large_or_no_event_is_refused() {
    let server = TestServer::with(|config| {
        config.namespaces.get_mut("chat").unwrap().max_data = ByteSize(100);
    })
    .await;
    let mut ann = server.connect("ann").await;
    ann.subscribe("chat:1").await;
    let publish = |data: Value| json!({ "type": "publish", "channel": "chat:1", "data": data });
    ann.expect("published", publish("x".repeat(98).into())).await;
    assert_eq!(ann.next_publication().await, "x".repeat(98));
    assert_eq!(ann.refused(publish("x".repeat(99).into())).await, "too_large");
    for (member, value) in [
        ("data", None),
        ("key", Some(json!(""))),
        ("key", Some(json!("x".repeat(65)))),
        ("key", Some(json!(1))),
        ("event", Some(json!(""))),
        ("event", Some(json!("x".repeat(201)))),
        ("event", Some(json!(["x"]))),
        ("tags", Some(json!([]))),
        ("tags", Some(json!({ "a": 1 }))),
        ("tags", Some(json!({ "a": { "b": "c" } }))),
        ("tags", Some(json!({ "a": "x".repeat(4096) }))),
        ("echo", Some(json!("no"))),
        ("channel", None),
        ("channel", Some(json!(""))),
        ("channel", Some(json!("chat:a b"))),
        ("channel", Some(json!("chat:\n"))),
        ("channel", Some(json!("x".repeat(256)))),
    ] {
        let mut command = publish(json!(1));
        match &value {
            Some(value) => command[member] = value.clone(),
            None => drop(command.as_object_mut().unwrap().remove(member)),
        }
        assert_eq!(ann.refused(command).await, "bad_request", "{member}: {value:?}");
    }
    assert!(ann.until_quiet().await.is_empty(), "nothing of it was published");
    let longest = format!("chat:{}", "x".repeat(250));
    ann.publish(&longest, 1).await;
}

#[tokio::test]
async fn a_full_memory_is_told_and_nothing_is_lost_of_what_was_acknowledged() {
    let server = TestServer::with(|config| {
        config.broker.max_memory = ByteSize::kibibytes(64);
        config.namespaces.get_mut("chat").unwrap().history.as_mut().unwrap().size = 10_000;
    })
    .await;
    let mut ann = server.connect("ann").await;
    let mut acknowledged = 0;
    for n in 0..100 {
        ann.publish("chat:1", "x".repeat(1000)).await;
        acknowledged = n + 1;
    }
    assert_eq!(acknowledged, 100, "a full history gives up its oldest for the newest");
    let history = ann.expect("history", json!({ "type": "history", "channel": "chat:1" })).await;
    let kept = history["messages"].as_array().unwrap();
    assert!((10..=50).contains(&kept.len()), "{} of 1.3 KB are kept in 64 KiB", kept.len());
    assert_eq!(kept.last().unwrap()["offset"], 100);
    let elsewhere = json!({ "type": "publish", "channel": "chat:2", "data": "x".repeat(2000) });
    let refused = ann.expect("error", elsewhere).await;
    assert_eq!(refused["code"], "unavailable");
    assert!(refused["retry_after"].is_number(), "{refused}");
    ann.publish("plain", "what is not kept needs no room").await;
}
