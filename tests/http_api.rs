//! Stories of the HTTP API: the application's servers by key, clients by token, and everybody who is neither.

mod document;
mod hostile;
mod logs;
mod tenants;

use serde_json::{Value, json};

use crate::support::two_apps::{TwoApps, token, token_for};

#[tokio::test]
async fn a_server_publishes_and_a_client_reads_the_same_bytes() {
    let server = TwoApps::start().await;
    let mut stream = server.stream("/v1/channels/room%3A1/events?app=shop").await;
    stream.expect("subscribed").await;
    let data = r#"{"n":9007199254740993,"b":1,"a":2,"a":3, "s":"\u00e9\n", "f":1.0e400,"deep":[[[]]]}"#;
    let body = format!(r#"{{"channel":"room:1","event":"odd","data":{data},"tags":{{"lang":"en"}}}}"#);
    let answer = server.post("/v1/publish", body).key("shop-full").send().await;
    let result = &answer.json()["results"][0];
    assert_eq!((answer.status, &result["channel"], &result["offset"]), (200, &json!("room:1"), &json!(1)));
    assert!(result["publication"].as_str().unwrap().len() == 26 && result["epoch"].is_string());
    let event = stream.next().await;
    assert!(event.data.contains(&format!(r#""event":"odd","data":{data},"#)), "{}", event.data);
    assert!(event.data.contains(r#""tags":{"lang":"en"}"#) && !event.data.contains("from"));
    let history = server.get("/v1/channels/room%3A1/history").key("shop-full").send().await;
    assert!(history.body.contains(&format!(r#""data":{data},"#)), "{}", history.body);
}

#[tokio::test]
async fn several_channels_are_done_or_refused_one_by_one() {
    let server = TwoApps::start().await;
    let body = json!({"channels": ["room:1", "shop:1", "plain", "a b"], "data": 1}).to_string();
    let answer = server.post("/v1/publish", body).key("shop-publish").send().await;
    assert_eq!(answer.status, 200);
    let results = answer.json()["results"].clone();
    assert_eq!(results[0]["offset"], 1);
    assert_eq!((&results[1]["channel"], &results[1]["error"]["code"]), (&json!("shop:1"), &json!("unknown_channel")));
    assert!(results[2]["publication"].is_string() && results[2].get("offset").is_none());
    assert_eq!((&results[3]["channel"], &results[3]["error"]["code"]), (&json!("a b"), &json!("bad_request")));
}

#[tokio::test]
async fn a_batch_is_done_in_order_and_one_bad_publication_spoils_no_other() {
    let server = TwoApps::start().await;
    let mut publications: Vec<Value> = (0..100).map(|n| json!({"channel": "room:1", "data": n})).collect();
    publications[10] = json!({"channel": "room:1"});
    publications[20] = json!({"channel": "nowhere:1", "data": 20});
    publications[30] = json!("no object");
    publications[40] = json!({"channels": ["room:1"], "data": 40});
    publications[50] = json!({"channel": "room:1", "data": 50, "exclude": "somebody"});
    let body = json!({"publications": publications}).to_string();
    let answer = server.post("/v1/batch", body).key("shop-publish").send().await;
    let results = answer.json()["results"].as_array().unwrap().clone();
    assert_eq!((answer.status, results.len()), (200, 100));
    let refused: Vec<_> = (0..100)
        .filter(|at| results[*at].get("error").is_some())
        .map(|at| (at, &results[at]["error"]["code"]))
        .collect();
    let bad = json!("bad_request");
    assert_eq!(refused, [(10, &bad), (20, &json!("unknown_channel")), (30, &bad), (40, &bad), (50, &bad)]);
    let history = server.get("/v1/channels/room%3A1/history?limit=1000").key("shop-read").send().await.json();
    let kept: Vec<_> = history["messages"].as_array().unwrap().iter().map(|message| message["data"].clone()).collect();
    let expected: Vec<_> = (0..100).filter(|n| ![10, 20, 30, 40, 50].contains(n)).map(|n| json!(n)).collect();
    assert_eq!(kept, expected);
    for (count, status) in [(0, 400), (1000, 200), (1001, 400)] {
        let publications = vec![json!({"channel": "plain", "data": 1}); count];
        let body = json!({"publications": publications}).to_string();
        assert_eq!(server.post("/v1/batch", body).key("shop-full").send().await.status, status, "{count}");
    }
}

#[tokio::test]
async fn a_retry_with_the_same_key_is_stored_once() {
    let server = TwoApps::start().await;
    let call = |key: &str| {
        server.post("/v1/publish", json!({"channel": "room:1", "data": 1, "key": "order-1"}).to_string()).key(key)
    };
    let first = call("shop-full").send().await.json();
    let again = call("shop-publish").send().await.json();
    assert_eq!(first, again, "all API keys of an app are one");
    let token = token("shop", "ann");
    let body = json!({"data": 1, "key": "order-1"}).to_string();
    let client = |token: &str| server.post("/v1/channels/room%3A1/publish?app=shop", body.clone()).key(token);
    let own = client(&token).send().await.json();
    assert_eq!(own["offset"], 2, "a user's key is the user's own");
    assert_eq!(client(&token).send().await.json(), own);
    let top = server.get("/v1/channels/room%3A1").key("shop-full").send().await.json();
    assert_eq!(top["offset"], 2);
}

#[tokio::test]
async fn an_excluded_connection_does_not_get_it() {
    let server = TwoApps::start().await;
    let mut first = server.stream("/v1/channels/room%3A1/events?app=shop").await;
    first.expect("subscribed").await;
    let connections = server.get("/v1/connections").key("shop-manage").send().await.json();
    let id = connections["connections"][0]["connection"].as_str().unwrap().to_owned();
    let mut second = server.stream("/v1/channels/room%3A1/events?app=shop").await;
    second.expect("subscribed").await;
    let body = json!({"channel": "room:1", "data": "not for the first", "exclude": id}).to_string();
    assert_eq!(server.post("/v1/publish", body).key("shop-full").send().await.status, 200);
    server.publish("shop", "room:1", json!("for all")).await;
    assert_eq!(first.publication().await, "for all");
    assert_eq!(second.publication().await, "not for the first");
    assert_eq!(second.publication().await, "for all");
}

#[tokio::test]
async fn channels_are_listed_and_looked_at() {
    let server = TwoApps::start().await;
    let ann = token("shop", "ann");
    let mut streams = Vec::new();
    for path in ["/v1/events?channel=room:1&channel=room:2", "/v1/events?channel=room:1", "/v1/events?channel=other"] {
        let mut stream = server.get(&format!("{path}&app=shop&token={ann}")).stream().await;
        stream.expect("subscribed").await;
        streams.push(stream);
    }
    let mut anonymous = server.stream("/v1/events?channel=room:1&app=shop").await;
    anonymous.expect("subscribed").await;
    server.publish("shop", "room:1", json!(1)).await;
    let list = |query: &str| server.get(&format!("/v1/channels?{query}")).key("shop-read").send();
    let all = list("").await.json();
    let names = |list: &Value| -> Vec<String> {
        list["channels"].as_array().unwrap().iter().map(|each| each["channel"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&all), ["other", "room:1", "room:2"]);
    assert_eq!(names(&list("prefix=room%3A&limit=1").await.json()), ["room:1"]);
    assert_eq!(names(&list("prefix=room:&after=room:1").await.json()), ["room:2"]);
    assert_eq!(names(&list("prefix=nothing").await.json()), [""; 0]);
    let room = &all["channels"][1];
    assert_eq!((&room["subscribers"], &room["users"], &room["offset"]), (&json!(3), &json!(1), &json!(1)));
    assert!(all["channels"][0].get("epoch").is_none(), "no history, no epoch");
    let looked_at = server.get("/v1/channels/room%3A1").key("shop-read").send().await.json();
    assert_eq!(&looked_at, room);
    let quiet = server.get("/v1/channels/room%3Aquiet").key("shop-read").send().await.json();
    assert_eq!((&quiet["subscribers"], &quiet["offset"]), (&json!(0), &json!(0)));
    let unknown = server.get("/v1/channels/nowhere%3A1").key("shop-read").send().await;
    assert_eq!(unknown.problem(), (404, "unknown_channel".into()));
}

#[tokio::test]
async fn many_channels_are_listed_page_by_page_with_what_all_shards_and_no_other_app_know_of_them() {
    const CHANNELS: usize = 120;
    let name = |n: usize| format!("room:{n}");
    let server = TwoApps::with(|config| config.limits.frames_per_connection = fanwire::config::Rate::NONE).await;
    // The kernel spreads connections over the shards. Two connections are one user; each is in every nth channel.
    let mut clients = Vec::new();
    while clients.len() < 8 || server.node().hub().all_counters().any(|shard| shard.connections.get() < 2) {
        let (nth, token) = (clients.len() % 8 + 1, token("shop", &format!("user{}", clients.len() / 2)));
        let mut client = server.client("shop").token(&token).connect().await;
        for n in (0..CHANNELS).step_by(nth) {
            client.subscribe(&name(n)).await;
        }
        clients.push((client, nth));
    }
    let mut other = server.client("bank").connect().await;
    other.subscribe("room:0").await;
    other.subscribe("room:elsewhere").await;
    let mut names: Vec<_> = (0..CHANNELS).collect();
    names.sort_by_key(|n| name(*n));
    let in_it =
        |n: usize| clients.iter().enumerate().filter(move |(_, (_, nth))| n.is_multiple_of(*nth)).map(|(who, _)| who);
    let expected: Vec<_> = names
        .into_iter()
        .map(|n| {
            let users: std::collections::BTreeSet<_> = in_it(n).map(|who| who / 2).collect();
            json!([name(n), in_it(n).count(), users.len()])
        })
        .collect();
    for limit in [1000, CHANNELS, 50, 7, 1] {
        let (mut listed, mut after) = (Vec::new(), String::new());
        loop {
            let path = format!("/v1/channels?prefix=room:&limit={limit}&after={after}");
            let page = server.get(&path).key("shop-read").send().await.json()["channels"].as_array().unwrap().clone();
            assert!(page.len() <= limit);
            let Some(last) = page.last() else { break };
            after = last["channel"].as_str().unwrap().to_owned();
            listed.extend(page.iter().map(|each| json!([each["channel"], each["subscribers"], each["users"]])));
        }
        assert_eq!(listed, expected, "{limit} at a time");
    }
}

#[tokio::test]
async fn history_is_read_in_parts_and_dropped() {
    let server = TwoApps::start().await;
    for n in 1..=5 {
        server.publish("shop", "room:1", json!(n)).await;
    }
    let read = async |query: &str| {
        let answer = server.get(&format!("/v1/channels/room%3A1/history?{query}")).key("shop-read").send().await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let messages = answer.json()["messages"].as_array().unwrap().clone();
        messages.iter().map(|message| message["offset"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(read("").await, [1, 2, 3, 4, 5]);
    assert_eq!(read("limit=2").await, [1, 2]);
    assert_eq!(read("after=1&before=4").await, [2, 3]);
    assert_eq!(read("reverse=true&limit=2").await, [5, 4]);
    assert_eq!(read("limit=0").await, [0; 0]);
    let mut stream = server.stream("/v1/channels/room%3A1/events?app=shop").await;
    let epoch = stream.expect("subscribed").await["epoch"].clone();
    let dropped = server.delete("/v1/channels/room%3A1/history").key("shop-manage").send().await;
    assert_eq!((dropped.status, dropped.body.as_str()), (204, ""));
    let subscribed = stream.expect("subscribed").await;
    assert_eq!((&subscribed["recovered"], &subscribed["offset"]), (&json!(false), &json!(0)));
    assert_ne!(subscribed["epoch"], epoch);
    assert_eq!(read("").await, [0; 0]);
    for (path, expected) in [
        ("/v1/channels/plain/history", (409, "history_disabled")),
        ("/v1/channels/nowhere%3A1/history", (404, "unknown_channel")),
        ("/v1/channels/plain/presence", (409, "presence_disabled")),
        ("/v1/channels/nowhere%3A1/presence", (404, "unknown_channel")),
    ] {
        let (status, code) = server.get(path).key("shop-read").send().await.problem();
        assert_eq!((status, code.as_str()), expected, "{path}");
    }
    let nothing = server.delete("/v1/channels/plain/history").key("shop-manage").send().await;
    assert_eq!(nothing.problem(), (409, "history_disabled".into()));
}

#[tokio::test]
async fn members_are_listed_to_servers_and_to_clients_that_may_know() {
    let server = TwoApps::start().await;
    let ann = token_for(
        "shop",
        json!({"sub": "ann", "info": {"name": "Ann"}, "allow": [{"channels": ["token:1"], "do": ["subscribe", "presence"]}]}),
        600,
    );
    let mut stream = server.stream(&format!("/v1/channels/token%3A1/events?app=shop&token={ann}")).await;
    stream.expect("subscribed").await;
    let members = server.get("/v1/channels/token%3A1/presence").key("shop-read").send().await.json();
    assert_eq!((&members["users"], &members["members"][0]["user"]), (&json!(1), &json!("ann")));
    assert_eq!(members["members"][0]["info"], json!({"name": "Ann"}));
    let presence = "/v1/channels/token%3A1/presence?app=shop";
    assert_eq!(server.get(presence).key(&ann).send().await.json(), members);
    assert_eq!(server.get(presence).send().await.problem(), (401, "unauthorized".into()));
    let nobody = token_for("shop", json!({"sub": "eve"}), 600);
    assert_eq!(server.get(presence).key(&nobody).send().await.problem(), (403, "forbidden".into()));
    assert_eq!(server.get("/v1/channels/token%3A1/history?app=shop").key(&ann).send().await.problem().0, 403);
    let open = server.get("/v1/channels/room%3A1/presence?app=shop").send().await;
    assert_eq!(open.json(), json!({"channel": "room:1", "members": [], "users": 0}));
    drop(stream);
    server.until("the member to leave", |node| node.hub().connections() == 0).await;
    let members = server.get("/v1/channels/token%3A1/presence").key("shop-read").send().await.json();
    assert_eq!(members["members"], json!([]));
}

#[tokio::test]
async fn users_are_subscribed_unsubscribed_and_disconnected() {
    let server = TwoApps::start().await;
    let ann = token("shop", "ann/é");
    let mut stream = server.stream(&format!("/v1/events?channel=plain&app=shop&token={ann}")).await;
    stream.expect("subscribed").await;
    let ask = |what: &str, body: Value| {
        server.post(&format!("/v1/users/ann%2F%C3%A9/{what}"), body.to_string()).key("shop-manage").send()
    };
    let asked = ask("subscribe", json!({"channels": ["room:1", "nobody:1"]})).await;
    assert_eq!((asked.status, asked.json()), (200, json!({"connections": 1})));
    assert_eq!(stream.expect("subscribed").await["channel"], "room:1");
    assert_eq!(stream.expect("subscribed").await["channel"], "nobody:1");
    assert_eq!(ask("subscribe", json!({"channel": "nowhere:1"})).await.problem(), (404, "unknown_channel".into()));
    assert_eq!(ask("subscribe", json!({})).await.problem(), (400, "bad_request".into()));
    server.publish("shop", "room:1", json!("hello")).await;
    assert_eq!(stream.publication().await, "hello");
    assert_eq!(ask("unsubscribe", json!({"channel": "room:1"})).await.json(), json!({"connections": 1}));
    let unsubscribed = stream.expect("unsubscribed").await;
    assert_eq!((&unsubscribed["channel"], &unsubscribed["code"]), (&json!("room:1"), &json!("forbidden")));
    let connections = server.get("/v1/connections?user=ann%2F%C3%A9").key("shop-manage").send().await.json();
    let connection = &connections["connections"][0];
    assert_eq!((&connection["user"], &connection["node"]), (&json!("ann/é"), &json!("test-node")));
    assert_eq!(connection["channels"], json!(["plain", "nobody:1"]));
    assert_eq!(
        server.get("/v1/connections?user=bob").key("shop-manage").send().await.json(),
        json!({"connections": []})
    );
    let asked = server.post("/v1/users/ann%2F%C3%A9/disconnect", "").key("shop-manage").send().await;
    assert_eq!(asked.json(), json!({"connections": 1}));
    let end = stream.expect("disconnect").await;
    assert_eq!((&end["code"], &end["reconnect"]), (&json!("forbidden"), &json!(false)));
    assert!(stream.next_block().await.is_none());
    assert_eq!(ask("disconnect?code=nonsense", json!({})).await.problem().0, 400);
    assert_eq!(ask("disconnect", json!({})).await.json(), json!({"connections": 0}));
}

#[tokio::test]
async fn what_a_server_subscribes_needs_no_right_of_the_user_s_now_or_later() {
    let server = TwoApps::start().await;
    let may = |channels: &[&str]| {
        let allow = json!([{"channels": channels, "do": ["subscribe"]}]);
        token_for("shop", json!({"sub": "ann", "allow": allow}), 600)
    };
    let mut ann = server.client("shop").token(&may(&["token:own", "token:shared"])).connect().await;
    ann.subscribe("token:own").await;
    ann.subscribe("token:shared").await;
    // None of them is open to her by her token alone, but the one that she is in already.
    let channels = ["nobody:1", "token:given", "token:shared"];
    let body = json!({"channels": channels}).to_string();
    let asked = server.post("/v1/users/ann/subscribe", body).key("shop-manage").send().await;
    assert_eq!(asked.json(), json!({"connections": 1}));
    for channel in &channels[..2] {
        assert_eq!(ann.next_of("subscribed").await["channel"], *channel);
    }
    let members = server.get("/v1/channels/token%3Agiven/presence").key("shop-read").send().await.json();
    assert_eq!(members["members"][0]["user"], "ann", "it is she who is there");
    for (kind, channel) in [("publish", "nobody:1"), ("publish", "token:given"), ("history", "token:given")] {
        let command = json!({"type": kind, "channel": channel, "data": 1});
        assert_eq!(ann.refused(command).await, "forbidden", "{kind} in {channel} is not given with it");
    }
    // A new token without any right ends what was hers, and not what the server made or asked for.
    ann.expect("authenticated", json!({"type": "auth", "token": may(&[])})).await;
    let frames = ann.until_quiet().await;
    assert_eq!(frames.len(), 1, "{frames:?}");
    assert_eq!((&frames[0]["type"], &frames[0]["channel"]), (&json!("unsubscribed"), &json!("token:own")));
    for channel in channels {
        server.publish("shop", channel, json!(channel)).await;
        assert_eq!(ann.next_publication().await, channel);
    }
    // She may leave all the same.
    ann.expect("unsubscribed", json!({"type": "unsubscribe", "channel": "nobody:1"})).await;
    assert_eq!(ann.refused(json!({"type": "subscribe", "channel": "nobody:1"})).await, "forbidden");
}

#[tokio::test]
async fn one_connection_is_ended() {
    let server = TwoApps::start().await;
    let mut stream = server.stream("/v1/events?channel=room:1&app=shop").await;
    stream.expect("subscribed").await;
    let connections = server.get("/v1/connections").key("shop-manage").send().await.json();
    let id = connections["connections"][0]["connection"].as_str().unwrap().to_owned();
    let path = format!("/v1/connections/{id}?code=token_revoked");
    assert_eq!(server.delete(&path).key("shop-manage").send().await.json(), json!({"connections": 1}));
    assert_eq!(stream.expect("disconnect").await["code"], "token_revoked");
    server.until("the connection to be gone", |node| node.hub().connections() == 0).await;
    assert_eq!(server.delete(&path).key("shop-manage").send().await.json(), json!({"connections": 0}));
    let nonsense = server.delete("/v1/connections/nonsense").key("shop-manage").send().await;
    assert_eq!(nonsense.problem(), (400, "bad_request".into()));
}

#[tokio::test]
async fn nodes_are_listed() {
    let server = TwoApps::start().await;
    let nodes = server.get("/v1/nodes").key("shop-manage").send().await.json();
    let node = &nodes["nodes"][0];
    assert_eq!((&node["node"], &node["version"]), (&json!("test-node"), &json!(env!("CARGO_PKG_VERSION"))));
    assert_eq!((&node["connections"], &node["draining"]), (&json!(0), &json!(false)));
}

#[tokio::test]
async fn clients_publish_what_the_namespace_lets_them() {
    let server = TwoApps::start().await;
    let with = token("shop", "ann");
    let without = token_for("shop", json!({"sub": "bob"}), 600);
    let late = token_for("shop", json!({"sub": "ann"}), -5);
    let subscription = token_for("shop", json!({"sub": "ann", "channel": "token:1", "do": ["publish"]}), 600);
    for (channel, key, expected) in [
        ("plain", None, (200, "")),
        ("room:1", None, (200, "")),
        ("user:1", None, (401, "unauthorized")),
        ("user:1", Some(&without), (200, "")),
        ("token:1", Some(&without), (403, "forbidden")),
        ("token:1", Some(&with), (200, "")),
        ("nobody:1", Some(&with), (403, "forbidden")),
        ("nowhere:1", Some(&with), (404, "unknown_channel")),
        ("plain", Some(&late), (401, "token_expired")),
        ("plain", Some(&subscription), (401, "unauthorized")),
        ("plain", Some(&"shop-full".to_owned()), (401, "unauthorized")),
    ] {
        let path = format!("/v1/channels/{}/publish?app=shop", channel.replace(':', "%3A"));
        let call = server.post(&path, r#"{"data":{"text":"hi"},"event":"chat"}"#);
        let answer = key.map_or(call.clone(), |key| call.key(key)).send().await;
        match expected {
            (200, _) => assert_eq!((answer.status, &answer.json()["channel"]), (200, &json!(channel)), "{answer:?}"),
            (status, code) => assert_eq!(answer.problem(), (status, code.into()), "{channel} {key:?}"),
        }
    }
    let in_query = format!("/v1/channels/token%3A1/publish?app=shop&token={with}");
    assert_eq!(server.post(&in_query, r#"{"data":1}"#).send().await.status, 200);
    let history = server.get("/v1/channels/token%3A1/history").key("shop-read").send().await.json();
    assert_eq!(history["messages"][0]["from"], json!({"user": "ann"}));
    let app = server.post("/v1/channels/plain/publish?app=nobody", r#"{"data":1}"#).send().await;
    assert_eq!(app.problem(), (401, "unauthorized".into()));
    assert_eq!(app.header("www-authenticate"), Some("Bearer"));
}

#[tokio::test]
async fn a_namespace_s_rate_holds_for_clients_that_call() {
    let server = TwoApps::with(|config| {
        config.namespaces.get_mut("room").unwrap().publish_rate = "2/60s".parse().unwrap();
    })
    .await;
    let publish = |token: Option<&str>| {
        let call = server.post("/v1/channels/room%3A1/publish?app=shop", r#"{"data":1}"#);
        token.map_or(call.clone(), |token| call.key(token)).send()
    };
    let ann = token("shop", "ann");
    for token in [None, Some(ann.as_str())] {
        assert_eq!((publish(token).await.status, publish(token).await.status), (200, 200), "{token:?}");
        let refused = publish(token).await;
        assert_eq!(refused.problem(), (429, "rate_limited".into()), "{token:?}");
        let (header, seconds) =
            (refused.header("retry-after").unwrap(), refused.json()["retry_after"].as_f64().unwrap());
        assert!(header.parse::<f64>().unwrap() == seconds.ceil() && (0.0..=30.0).contains(&seconds), "{refused:?}");
    }
    server.publish("shop", "room:1", json!("servers have no such limit")).await;
}

#[tokio::test]
async fn in_development_mode_nobody_needs_a_key() {
    let server = TwoApps::development().await;
    let answer = server.post("/v1/publish", r#"{"channel":"room:1","data":"hi"}"#).send().await;
    assert_eq!((answer.status, &answer.json()["results"][0]["offset"]), (200, &json!(1)));
    assert_eq!(server.get("/v1/channels/room%3A1/history").send().await.json()["messages"][0]["data"], "hi");
    // A page whose name was made to point here (DNS rebinding) is told apart by its `Host`.
    let rebound = format!(
        "GET /v1/channels HTTP/1.1\r\nHost: evil.example:{}\r\nConnection: close\r\n\r\n",
        server.address().port()
    );
    let refused = crate::support::exchange(server.address(), rebound.as_bytes()).await;
    assert_eq!(refused.problem(), (403, "forbidden".into()));
}
