//! Two apps side by side: no key and no token of the one reaches the other; and no key does more than it may.

use serde_json::{Value, json};

use crate::support::{
    Call,
    two_apps::{TwoApps, token},
};

/// Every call of the server API, with the scope that it needs.
fn calls(server: &TwoApps) -> Vec<(&'static str, Call)> {
    let publish = json!({"channel": "room:1", "data": 1}).to_string();
    vec![
        ("publish", server.post("/v1/publish", publish.clone())),
        ("publish", server.post("/v1/batch", format!(r#"{{"publications":[{publish}]}}"#))),
        ("read", server.get("/v1/channels")),
        ("read", server.get("/v1/channels/room%3A1")),
        ("read", server.get("/v1/channels/room%3A1/history")),
        ("read", server.get("/v1/channels/room%3A1/presence")),
        ("manage", server.delete("/v1/channels/room%3A1/history")),
        ("manage", server.get("/v1/connections")),
        ("manage", server.delete("/v1/connections/c_0000000000000000000001")),
        ("manage", server.get("/v1/nodes")),
        ("manage", server.post("/v1/users/ann/disconnect", "")),
        ("manage", server.post("/v1/users/ann/subscribe", r#"{"channel":"room:1"}"#)),
        ("manage", server.post("/v1/users/ann/unsubscribe", r#"{"channel":"room:1"}"#)),
    ]
}

#[tokio::test]
async fn a_narrow_key_does_what_it_is_for_and_nothing_else() {
    let server = TwoApps::start().await;
    for scope in ["publish", "read", "manage"] {
        for (needed, call) in calls(&server) {
            let head = String::from_utf8(call.bytes()).unwrap().lines().next().unwrap().to_owned();
            let answer = call.key(&format!("shop-{scope}")).send().await;
            match scope == needed {
                true => assert!(matches!(answer.status, 200 | 204), "{head} with {scope}: {answer:?}"),
                false => assert_eq!(answer.problem(), (403, "forbidden".into()), "{head} with {scope}"),
            }
        }
    }
}

#[tokio::test]
async fn no_call_is_answered_without_a_key() {
    let server = TwoApps::start().await;
    let ann = token("shop", "ann");
    for (_, call) in calls(&server) {
        let head = String::from_utf8(call.bytes()).unwrap().lines().next().unwrap().to_owned();
        let for_clients = head.contains("/presence") || head.starts_with("GET /v1/channels/room%3A1/history");
        for key in
            ["", "shop-ful", "shop-full2", "SHOP-FULL", "bearer", "the secret of shop, which is long enough to be one"]
        {
            let wrong = call.clone().key(key).send().await;
            assert_eq!(wrong.problem(), (401, "unauthorized".into()), "{head} with {key:?}");
            assert_eq!(wrong.header("www-authenticate"), Some("Bearer"));
        }
        if !for_clients {
            assert_eq!(call.clone().send().await.problem(), (401, "unauthorized".into()), "{head}");
            assert_eq!(
                call.clone().key(&ann).send().await.problem(),
                (401, "unauthorized".into()),
                "{head} with a token"
            );
            let basic = call.header("Authorization", "Basic c2hvcC1mdWxs").send().await;
            assert_eq!(basic.problem(), (401, "unauthorized".into()), "{head}");
        }
    }
}

#[tokio::test]
async fn the_same_channel_of_two_apps_is_two_channels() {
    let server = TwoApps::start().await;
    let (ann, eve) = (token("shop", "ann"), token("bank", "ann"));
    let mut shop = server.stream(&format!("/v1/events?channel=token:1&app=shop&presence=true&token={ann}")).await;
    let mut bank = server.stream(&format!("/v1/events?channel=token:1&app=bank&presence=true&token={eve}")).await;
    let members = |frame: &Value| frame["members"].as_array().unwrap().len();
    assert_eq!(members(&shop.expect("subscribed").await), 1);
    assert_eq!(members(&bank.expect("subscribed").await), 1);
    server.publish("shop", "token:1", json!("of the shop")).await;
    server.publish("bank", "token:1", json!("of the bank")).await;
    assert_eq!(shop.publication().await, "of the shop");
    assert_eq!(bank.publication().await, "of the bank");
    for (app, other) in [("shop", "bank"), ("bank", "shop")] {
        let key = format!("{app}-full");
        let get = async |path: &str| server.get(path).key(&key).send().await.json();
        let history = get("/v1/channels/token%3A1/history").await;
        assert_eq!(history["messages"].as_array().unwrap().len(), 1);
        assert_eq!(history["messages"][0]["data"], format!("of the {app}"));
        assert_eq!(get("/v1/channels/token%3A1").await["subscribers"], 1);
        assert_eq!(get("/v1/channels").await["channels"].as_array().unwrap().len(), 1);
        assert_eq!(get("/v1/channels/token%3A1/presence").await["members"].as_array().unwrap().len(), 1);
        assert_eq!(get("/v1/connections").await["connections"].as_array().unwrap().len(), 1);
        let theirs = server.get("/v1/connections").key(&format!("{other}-full")).send().await.json();
        let theirs = theirs["connections"][0]["connection"].as_str().unwrap().to_owned();
        let asked = server.delete(&format!("/v1/connections/{theirs}")).key(&key).send().await;
        assert_eq!(asked.json(), json!({"connections": 0}), "{app} cannot end what is {other}'s");
    }
    let dropped = server.delete("/v1/channels/token%3A1/history").key("shop-full").send().await;
    assert_eq!(dropped.status, 204);
    assert_eq!(shop.expect("subscribed").await["recovered"], false);
    let kept = server.get("/v1/channels/token%3A1/history").key("bank-full").send().await.json();
    assert_eq!(kept["messages"].as_array().unwrap().len(), 1, "what the bank keeps is not the shop's to drop");
    let body = r#"{"channel":"token:2"}"#;
    let asked = server.post("/v1/users/ann/subscribe", body).key("bank-full").send().await.json();
    assert_eq!(asked, json!({"connections": 1}), "one user `ann` each");
    assert_eq!(bank.expect("subscribed").await["channel"], "token:2");
    let asked = server.post("/v1/users/ann/disconnect", "").key("shop-full").send().await.json();
    assert_eq!(asked, json!({"connections": 1}));
    assert_eq!(shop.expect("disconnect").await["code"], "forbidden");
    server.publish("bank", "token:1", json!("still here")).await;
    assert_eq!(bank.publication().await, "still here");
}

#[tokio::test]
async fn a_token_of_one_app_is_nothing_to_another() {
    let server = TwoApps::start().await;
    for (own, named) in [("shop", "bank"), ("bank", "shop")] {
        let token = token(own, "ann");
        for path in ["history", "presence", "events"] {
            let call = server.get(&format!("/v1/channels/token%3A1/{path}?app={named}"));
            assert_eq!(call.key(&token).send().await.problem(), (401, "unauthorized".into()), "{path}");
        }
        let call = server.post(&format!("/v1/channels/token%3A1/publish?app={named}"), r#"{"data":1}"#);
        assert_eq!(call.key(&token).send().await.problem(), (401, "unauthorized".into()));
        let several = server.get(&format!("/v1/events?channel=token:1&app={named}&token={token}"));
        assert_eq!(several.send().await.problem(), (401, "unauthorized".into()));
    }
}

#[tokio::test]
async fn an_idempotency_key_is_its_app_s_own() {
    let server = TwoApps::start().await;
    let body = json!({"channel": "room:1", "data": 1, "key": "k"}).to_string();
    let shop = server.post("/v1/publish", body.clone()).key("shop-full").send().await.json();
    let bank = server.post("/v1/publish", body).key("bank-full").send().await.json();
    assert_ne!(shop["results"][0]["publication"], bank["results"][0]["publication"]);
    assert_eq!(bank["results"][0]["offset"], 1);
}
