//! Reading what a channel keeps.

use serde_json::{Value, json};

use crate::support::{Client, TestServer};

async fn read(client: &mut Client, query: Value) -> Vec<u64> {
    let mut command = json!({ "type": "history", "channel": "chat:1" });
    command.as_object_mut().unwrap().extend(query.as_object().unwrap().clone());
    let history = client.expect("history", command).await;
    let messages = history["messages"].as_array().unwrap();
    assert!(messages.iter().all(|message| message["type"] == "message" && message["channel"] == "chat:1"));
    assert!(messages.iter().all(|message| message["data"] == message["offset"]), "{history}");
    messages.iter().map(|message| message["offset"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn a_part_of_a_history_is_chosen_by_offsets_number_and_direction() {
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    for n in 1..=12 {
        ann.publish("chat:1", n).await;
    }
    for (query, expected) in [
        (json!({}), (1..=12).collect::<Vec<_>>()),
        (json!({ "limit": 3 }), vec![1, 2, 3]),
        (json!({ "limit": 0 }), vec![]),
        (json!({ "limit": 1000 }), (1..=12).collect()),
        (json!({ "after": 9 }), vec![10, 11, 12]),
        (json!({ "after": 9, "limit": 2 }), vec![10, 11]),
        (json!({ "after": 0, "limit": 1 }), vec![1]),
        (json!({ "after": 12 }), vec![]),
        (json!({ "after": 1000 }), vec![]),
        (json!({ "after": u64::MAX }), vec![]),
        (json!({ "before": 4 }), vec![1, 2, 3]),
        (json!({ "before": 1 }), vec![]),
        (json!({ "before": 0 }), vec![]),
        (json!({ "before": u64::MAX, "after": 11 }), vec![12]),
        (json!({ "after": 3, "before": 6 }), vec![4, 5]),
        (json!({ "after": 5, "before": 6 }), vec![]),
        (json!({ "after": 8, "before": 3 }), vec![]),
        (json!({ "reverse": true, "limit": 3 }), vec![12, 11, 10]),
        (json!({ "reverse": true, "before": 4 }), vec![3, 2, 1]),
        (json!({ "reverse": true, "after": 3, "before": 8, "limit": 2 }), vec![7, 6]),
        (json!({ "reverse": true, "after": 12 }), vec![]),
    ] {
        assert_eq!(read(&mut ann, query.clone()).await, expected, "{query}");
    }
    for wrong in [
        json!({ "limit": 1001 }),
        json!({ "limit": -1 }),
        json!({ "after": "1" }),
        json!({ "after": { "epoch": "x", "offset": 1 } }),
        json!({ "before": 1.5 }),
        json!({ "reverse": 1 }),
    ] {
        let mut command = json!({ "type": "history", "channel": "chat:1" });
        command.as_object_mut().unwrap().extend(wrong.as_object().unwrap().clone());
        assert_eq!(ann.refused(command).await, "bad_request", "{wrong}");
    }
}

#[tokio::test]
async fn a_history_tells_its_epoch_and_its_newest_offset() {
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    let command = json!({ "type": "history", "channel": "chat:1" });
    let empty = ann.expect("history", command.clone()).await;
    assert_eq!((&empty["messages"], &empty["offset"]), (&json!([]), &json!(0)));
    for n in 1..=150 {
        ann.publish("chat:1", n).await;
    }
    let history = ann.expect("history", command).await;
    assert_eq!((&history["epoch"], &history["offset"]), (&empty["epoch"], &json!(150)));
    // A hundred is what the namespace keeps, and what comes where no number is named.
    assert_eq!(history["messages"].as_array().unwrap().len(), 100);
    assert_eq!(read(&mut ann, json!({ "limit": 1 })).await, [51]);
    assert_eq!(read(&mut ann, json!({ "after": 10, "limit": 1 })).await, [51]);
    assert_eq!(read(&mut ann, json!({ "before": 52 })).await, [51]);
    assert_eq!(read(&mut ann, json!({ "before": 51 })).await, [0; 0]);
}

#[tokio::test]
async fn a_channel_that_keeps_nothing_says_so() {
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    let refused = ann.expect("error", json!({ "type": "history", "channel": "plain" })).await;
    assert_eq!((&refused["code"], &refused["channel"]), (&json!("history_disabled"), &json!("plain")));
}
