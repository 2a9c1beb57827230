//! Apps on one server never meet.

use fanwire::{config::AppConfig, gateway::mint};
use serde_json::{Value, json};

use crate::support::{Client, TestServer};

const SECRETS: [&str; 2] = ["the red secret of at least 32 bytes, test", "the blue secret of at least 32 bytes, tst"];

async fn two_apps() -> TestServer {
    TestServer::with(|config| {
        config.apps = ["red", "blue"]
            .into_iter()
            .zip(SECRETS)
            .map(|(id, secret)| AppConfig {
                id: id.into(),
                key: format!("{id}-key"),
                secret: Some(secret.into()),
                ..AppConfig::default()
            })
            .collect();
    })
    .await
}

fn everything(secret: &str) -> String {
    let claims = json!({ "sub": "ann", "allow": [
        { "channels": ["**"], "do": ["subscribe", "publish", "presence", "history"] },
    ] });
    mint(secret, &claims).unwrap()
}

async fn members_of(server: &TestServer) -> [Client; 2] {
    [
        server.client().query("app", "red-key").token(&everything(SECRETS[0])).named("red").connect().await,
        server.client().query("app", "blue-key").token(&everything(SECRETS[1])).named("blue").connect().await,
    ]
}

#[tokio::test]
async fn the_same_channel_of_two_apps_is_two_channels() {
    let server = two_apps().await;
    let [mut red, mut blue] = members_of(&server).await;
    for channel in ["plain", "chat:1", "user:1", "token:1"] {
        let watch = json!({ "type": "subscribe", "channel": channel, "presence": channel.starts_with(['c', 't']) });
        let own = red.expect("subscribed", watch.clone()).await;
        let other = blue.expect("subscribed", watch).await;
        assert!(own["epoch"].is_null() || own["epoch"] != other["epoch"], "{channel}");
        if let Some(members) = other["members"].as_array() {
            assert_eq!(members.len(), 1, "{channel}");
        }
        // The same user name, the same idempotency key.
        let publish = |data: &str| json!({ "type": "publish", "channel": channel, "data": data, "key": "k" });
        red.expect("published", publish("red")).await;
        blue.expect("published", publish("blue")).await;
        assert_eq!(red.next_publication().await, "red");
        assert_eq!(blue.next_publication().await, "blue");
        assert!(red.until_quiet().await.is_empty() && blue.until_quiet().await.is_empty());
    }
    for channel in ["chat:1", "token:1"] {
        let history = blue.expect("history", json!({ "type": "history", "channel": channel })).await;
        let data: Vec<_> = history["messages"].as_array().unwrap().iter().map(|each| each["data"].clone()).collect();
        assert_eq!(data, ["blue"]);
        let presence = blue.expect("presence", json!({ "type": "presence", "channel": channel })).await;
        assert_eq!(presence["members"].as_array().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_position_of_one_app_is_none_of_the_other() {
    let server = two_apps().await;
    let [mut red, mut blue] = members_of(&server).await;
    let mut published = red.publish("chat:1", "red").await;
    let after = json!({ "epoch": published["epoch"].take(), "offset": 0 });
    let subscribe = json!({ "type": "subscribe", "channel": "chat:1", "after": after });
    let subscribed = blue.expect("subscribed", subscribe.clone()).await;
    assert_eq!(subscribed["recovered"], false);
    assert_eq!(blue.messages_until_quiet("chat:1").await, [Value::Null; 0]);
    assert_eq!(red.expect("subscribed", subscribe).await["recovered"], true);
    assert_eq!(red.next_publication().await, "red");
}

#[tokio::test]
async fn a_token_is_good_in_its_own_app_only() {
    let server = two_apps().await;
    for (app, secret) in [("red-key", SECRETS[1]), ("blue-key", SECRETS[0])] {
        let ended = server.client().query("app", app).token(&everything(secret)).open().await.ended().await;
        assert_eq!(ended.code, Some(4100), "{app}");
    }
    let [mut red, _blue] = members_of(&server).await;
    let renewal = json!({ "type": "auth", "token": everything(SECRETS[1]) });
    assert_eq!(red.refused(renewal).await, "unauthorized");
    let foreign = mint(SECRETS[1], &json!({ "sub": "ann", "channel": "nobody:1" })).unwrap();
    let subscribe = json!({ "type": "subscribe", "channel": "token:1", "token": foreign });
    assert_eq!(red.refused(subscribe).await, "unauthorized");
    // Of several apps none is meant where none is named and none is called `default`.
    let ended = server.client().token(&everything(SECRETS[0])).open().await.ended().await;
    assert_eq!((ended.code, &ended.disconnect()["code"]), (Some(4103), &json!("unknown_app")));
}
