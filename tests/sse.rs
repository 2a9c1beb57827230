//! Stories of event streams: what a browser's `EventSource` sees, and what happens to those that misbehave.

mod limits;
mod resume;

use serde_json::{Value, json};

use crate::support::two_apps::{TwoApps, token, token_for};

#[tokio::test]
async fn a_stream_begins_with_its_channels_and_goes_on_with_their_publications() {
    let server = TwoApps::start().await;
    let mut stream = server.stream("/v1/events?channel=room:1&channel=plain&app=shop").await;
    assert_eq!(stream.header("content-type"), Some("text/event-stream"));
    assert_eq!(stream.header("cache-control"), Some("no-cache"));
    assert_eq!(stream.header("x-accel-buffering"), Some("no"));
    assert_eq!(stream.header("content-encoding"), None);
    assert_eq!(stream.next_block().await.unwrap().retry, Some(2000));
    let subscribed = stream.next().await;
    let frame = subscribed.json();
    assert_eq!(
        (subscribed.name.as_str(), &frame["channel"], &frame["offset"]),
        ("subscribed", &json!("room:1"), &json!(0))
    );
    assert!(subscribed.id.is_some_and(|id| !id.is_empty()) && frame["epoch"].is_string());
    let plain = stream.next().await;
    assert_eq!((plain.name.as_str(), plain.id.is_none()), ("subscribed", true), "no history, no position");
    let published = server.publish("shop", "room:1", json!({"text": "hi"})).await;
    let event = stream.next().await;
    assert_eq!(event.name, "message");
    let frame = event.json();
    assert_eq!((&frame["type"], &frame["data"]), (&json!("message"), &json!({"text": "hi"})));
    assert_eq!((&frame["id"], &frame["offset"]), (&published["publication"], &json!(1)));
    assert!(event.id.is_some_and(|id| id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))));
    server.publish("shop", "plain", json!("there")).await;
    let event = stream.next().await;
    assert_eq!((&event.json()["data"], event.id), (&json!("there"), None));
}

#[tokio::test]
async fn what_is_not_allowed_is_refused_before_the_stream_begins() {
    let server = TwoApps::with(|config| config.connection.max_subscriptions = 3).await;
    let ann = token("shop", "ann");
    let late = token_for("shop", json!({"sub": "ann"}), -5);
    let nobody = token_for("shop", json!({"sub": "eve"}), 600);
    for (query, expected) in [
        ("app=shop".into(), (400, "bad_request")),
        ("app=shop&channel=".into(), (400, "bad_request")),
        ("app=shop&channel=a%20b".into(), (400, "bad_request")),
        ("app=shop&channel=room:1&last=1001".into(), (400, "bad_request")),
        ("app=shop&channel=room:1&after=nonsense".into(), (400, "bad_request")),
        ("app=shop&channel=room:1&channel=room:2&after=k:1".into(), (400, "bad_request")),
        ("app=shop&channel=room:1&last=1&after=k:1".into(), (400, "bad_request")),
        ("app=shop&channel=user:1".into(), (401, "unauthorized")),
        ("app=shop&channel=plain&token=nonsense".into(), (401, "unauthorized")),
        (format!("app=shop&channel=plain&token={late}"), (401, "token_expired")),
        (format!("app=bank&channel=token:1&token={ann}"), (401, "unauthorized")),
        ("app=nobody&channel=plain".into(), (401, "unauthorized")),
        ("channel=plain".into(), (401, "unauthorized")),
        (format!("app=shop&channel=token:1&token={nobody}"), (403, "forbidden")),
        (format!("app=shop&channel=nobody:1&token={ann}"), (403, "forbidden")),
        ("app=shop&channel=a&channel=b&channel=c&channel=d".into(), (403, "limit_exceeded")),
        ("app=shop&channel=nowhere:1".into(), (404, "unknown_channel")),
        ("app=shop&channel=plain&presence=true".into(), (409, "presence_disabled")),
    ] {
        let (status, code) = server.get(&format!("/v1/events?{query}")).send().await.problem();
        assert_eq!((status, code.as_str()), expected, "{query}");
    }
    let foreign = server.get("/v1/events?app=shop&channel=plain").header("Origin", "https://evil.example").send().await;
    assert_eq!(foreign.problem(), (403, "forbidden".into()));
    let named = server.get("/v1/events?app=shop&channel=room:1&channel=user:1").send().await.json();
    assert_eq!(named["channel"], "user:1", "the refusal names its channel");
    let head = server.call("HEAD", "/v1/events?app=shop&channel=plain").send().await;
    assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")));
    assert_eq!(server.node().hub().connections(), 0);
}

#[tokio::test]
async fn the_newest_publications_or_those_after_a_position_come_first() {
    let server = TwoApps::start().await;
    let mut epoch = Value::Null;
    for n in 1..=5 {
        epoch = server.publish("shop", "room:1", json!(n)).await["epoch"].clone();
    }
    let mut last = server.stream("/v1/channels/room%3A1/events?app=shop&last=2").await;
    assert_eq!(last.expect("subscribed").await["offset"], 3);
    assert_eq!((last.publication().await, last.publication().await), (json!(4), json!(5)));
    let path = format!("/v1/channels/room%3A1/events?app=shop&after={}:3", epoch.as_str().unwrap());
    let mut after = server.stream(&path).await;
    let subscribed = after.expect("subscribed").await;
    assert_eq!((&subscribed["recovered"], &subscribed["offset"]), (&json!(true), &json!(3)));
    assert_eq!((after.publication().await, after.publication().await), (json!(4), json!(5)));
    let mut lost = server.stream("/v1/channels/room%3A1/events?app=shop&after=elsewhere:3").await;
    assert_eq!(lost.expect("subscribed").await["recovered"], false);
    for n in 1..=5 {
        assert_eq!(lost.publication().await, n);
    }
}

#[tokio::test]
async fn a_stream_is_a_member_and_may_watch_others() {
    let server = TwoApps::start().await;
    let (ann, bob) = (token("shop", "ann"), token("shop", "bob"));
    let mut watching = server.stream(&format!("/v1/events?channel=token:1&app=shop&presence=true&token={ann}")).await;
    assert_eq!(watching.expect("subscribed").await["members"][0]["user"], "ann");
    let mut other = server.stream(&format!("/v1/events?channel=token:1&app=shop&token={bob}")).await;
    assert!(other.expect("subscribed").await.get("members").is_none());
    assert_eq!(watching.expect("join").await["member"]["user"], "bob");
    drop(other);
    assert_eq!(watching.expect("leave").await["member"]["user"], "bob");
}

#[tokio::test]
async fn a_client_that_goes_away_is_gone_at_once() {
    let server = TwoApps::start().await;
    let stream = server.stream("/v1/events?channel=room:1&app=shop").await;
    server.until("the connection", |node| node.hub().connections() == 1).await;
    let started = std::time::Instant::now();
    drop(stream);
    server.until("the end of the connection", |node| node.hub().connections() == 0).await;
    // Not only at the next comment, 25 s later.
    assert!(started.elapsed() < std::time::Duration::from_secs(10), "{:?}", started.elapsed());
    let channels = server.get("/v1/channels").key("shop-full").send().await.json();
    assert_eq!(channels, json!({"channels": []}));
}
