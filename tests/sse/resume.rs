//! Coming back: `Last-Event-ID` is the stream's position in all of its channels.

use serde_json::json;

use crate::support::{EventStream, two_apps::TwoApps};

const CHANNELS: [&str; 3] = ["room:1", "room:2", "room:3"];

async fn reopen(server: &TwoApps, path: &str, id: &str) -> EventStream {
    server.get(path).header("Last-Event-ID", id).stream().await
}

#[tokio::test]
async fn a_stream_cut_anywhere_goes_on_without_a_gap_or_a_double_in_any_channel() {
    let server = TwoApps::start().await;
    let path = "/v1/events?channel=room:1&channel=room:2&channel=room:3&app=shop&last=1000";
    let mut seen: Vec<Vec<u64>> = vec![Vec::new(); CHANNELS.len()];
    let mut id = String::new();
    let mut published = [0_u64; 3];
    for round in 0..40_u64 {
        let mut stream = match id.is_empty() {
            true => server.stream(path).await,
            false => reopen(&server, path, &id).await,
        };
        // While nobody listens, and while somebody does.
        for step in 0..6_u64 {
            let at = ((round * 7 + step * 5) % 3) as usize;
            published[at] += 1;
            server.publish("shop", CHANNELS[at], json!(published[at])).await;
        }
        // Cut after some of what is there, sometimes before the first channel's `subscribed`.
        let mut taken = 0;
        while taken < round % 11 {
            let event = stream.next().await;
            taken += 1;
            if event.name == "subscribed" {
                assert_ne!(event.json()["recovered"], json!(false), "{event:?}");
            } else {
                let frame = event.json();
                let at = CHANNELS.iter().position(|name| frame["channel"] == *name).unwrap();
                seen[at].push(frame["data"].as_u64().unwrap());
            }
            id.clone_from(&stream.last_id);
            let expected: u64 = published.iter().sum();
            if seen.iter().map(|seen| seen.len() as u64).sum::<u64>() == expected {
                break;
            }
        }
    }
    let mut stream = reopen(&server, path, &id).await;
    while seen.iter().map(|seen| seen.len() as u64).sum::<u64>() < published.iter().sum() {
        let event = stream.next().await;
        if event.name == "message" {
            let frame = event.json();
            let at = CHANNELS.iter().position(|name| frame["channel"] == *name).unwrap();
            seen[at].push(frame["data"].as_u64().unwrap());
        }
    }
    for (at, seen) in seen.iter().enumerate() {
        assert_eq!(*seen, (1..=published[at]).collect::<Vec<_>>(), "{}", CHANNELS[at]);
    }
}

#[tokio::test]
async fn other_channels_beside_change_nothing_for_those_that_stay() {
    let server = TwoApps::start().await;
    let mut stream = server.stream("/v1/events?channel=room:1&channel=room:2&app=shop").await;
    for _ in 0..2 {
        stream.expect("subscribed").await;
    }
    server.publish("shop", "room:2", json!(1)).await;
    assert_eq!(stream.publication().await, 1);
    server.publish("shop", "room:2", json!(2)).await;
    server.publish("shop", "room:3", json!("before")).await;
    let mut changed = reopen(&server, "/v1/events?channel=room:3&channel=room:2&app=shop", &stream.last_id).await;
    let new = changed.expect("subscribed").await;
    assert_eq!((&new["channel"], new.get("recovered")), (&json!("room:3"), None), "it begins with what comes next");
    assert_eq!(changed.expect("subscribed").await["recovered"], true);
    assert_eq!(changed.publication().await, 2);
}

#[tokio::test]
async fn a_nonsense_id_is_like_none() {
    let server = TwoApps::start().await;
    server.publish("shop", "room:1", json!(1)).await;
    let long = "A".repeat(8000);
    for id in ["", "nonsense", "AQ", "AQAAAA", "-_-_", "\"quoted\"", "%00", "k3f9:4", &long] {
        let mut stream = reopen(&server, "/v1/channels/room%3A1/events?app=shop", id).await;
        let subscribed = stream.expect("subscribed").await;
        assert_eq!((subscribed.get("recovered"), &subscribed["offset"]), (None, &json!(1)), "{id:.40}");
    }
}

#[tokio::test]
async fn who_cannot_set_the_header_names_the_id_in_the_query() {
    let server = TwoApps::start().await;
    let mut stream = server.stream("/v1/channels/room%3A1/events?app=shop").await;
    stream.expect("subscribed").await;
    let id = stream.last_id.clone();
    server.publish("shop", "room:1", json!("missed")).await;
    let path = format!("/v1/channels/room%3A1/events?app=shop&last=0&last_event_id={id}");
    let mut again = server.stream(&path).await;
    assert_eq!(again.expect("subscribed").await["recovered"], true);
    assert_eq!(again.publication().await, "missed");
    // A browser that comes back repeats the address, old id and all, and sets the header, which is newer.
    let mut third = reopen(&server, &path, &again.last_id).await;
    assert_eq!(third.expect("subscribed").await["offset"], 1);
}

#[tokio::test]
async fn what_history_no_longer_has_is_told() {
    let server = TwoApps::start().await;
    let mut stream = server.stream("/v1/channels/room%3A1/events?app=shop").await;
    stream.expect("subscribed").await;
    for n in 1..=150 {
        server.publish("shop", "room:1", json!(n)).await;
    }
    let mut again = reopen(&server, "/v1/channels/room%3A1/events?app=shop", &stream.last_id).await;
    let id = again.last_id.clone();
    assert_eq!(id, "");
    let subscribed = again.expect("subscribed").await;
    assert_eq!((&subscribed["recovered"], &subscribed["offset"]), (&json!(false), &json!(50)));
    for n in 51..=150 {
        assert_eq!(again.publication().await, n);
    }
    let dropped = server.delete("/v1/channels/room%3A1/history").key("shop-full").send().await;
    assert_eq!(dropped.status, 204);
    assert_eq!(again.expect("subscribed").await["recovered"], false);
    server.publish("shop", "room:1", json!("anew")).await;
    assert_eq!(again.publication().await, "anew");
    let mut third = reopen(&server, "/v1/channels/room%3A1/events?app=shop", &again.last_id).await;
    let subscribed = third.expect("subscribed").await;
    assert_eq!(
        (&subscribed["recovered"], &subscribed["offset"]),
        (&json!(true), &json!(1)),
        "the id has the new epoch"
    );
}
