//! Two shards are one server.

use serde_json::json;

use crate::support::{Client, TestServer};

/// Clients until every shard has at least three of them.
async fn on_every_shard(server: &TestServer) -> Vec<Client> {
    let mut clients = Vec::new();
    let enough = || server.node().hub().all_counters().all(|counters| 3 <= counters.connections.get());
    while !enough() {
        assert!(clients.len() < 100, "the kernel spreads connections over the shards");
        clients.push(server.connect(&format!("user{}", clients.len())).await);
    }
    clients
}

#[tokio::test]
async fn subscribers_on_all_shards_see_one_order() {
    let server = TestServer::start().await;
    assert_eq!(server.node().hub().shards(), 2);
    let mut clients = on_every_shard(&server).await;
    for client in &mut clients {
        client.subscribe("chat:1").await;
    }
    let publishing = clients.iter_mut().enumerate().map(async |(who, client)| {
        for n in 0..40 {
            client.publish("chat:1", json!([who, n])).await;
        }
    });
    futures_util::future::join_all(publishing).await;
    let total = clients.len() * 40;
    let mut first = None;
    for client in &mut clients {
        let messages = client.messages_until_quiet("chat:1").await;
        let offsets: Vec<_> = messages.iter().map(|message| message["offset"].as_u64().unwrap()).collect();
        assert_eq!(offsets, (1..=total as u64).collect::<Vec<_>>());
        let data: Vec<_> = messages.into_iter().map(|mut message| message["data"].take()).collect();
        assert_eq!(*first.get_or_insert_with(|| data.clone()), data, "one order for all");
    }
    let order = first.unwrap();
    for who in 0..clients.len() {
        let own: Vec<_> = order.iter().filter(|data| data[0] == who).map(|data| data[1].as_u64().unwrap()).collect();
        assert_eq!(own, (0..40).collect::<Vec<_>>(), "each publisher's own order");
    }
}

#[tokio::test]
async fn the_last_subscriber_of_a_shard_takes_nothing_from_the_other() {
    let server = TestServer::start().await;
    let mut clients = on_every_shard(&server).await;
    for client in &mut clients {
        client.subscribe("plain").await;
    }
    // One by one they go; who stays goes on getting everything, whichever shard empties first.
    let mut publisher = server.connect("publisher").await;
    while let Some(mut leaving) = clients.pop() {
        leaving.expect("unsubscribed", json!({ "type": "unsubscribe", "channel": "plain" })).await;
        let left = clients.len();
        publisher.publish("plain", left).await;
        for client in &mut clients {
            assert_eq!(client.next_publication().await, left);
        }
        assert!(leaving.until_quiet().await.is_empty());
    }
}

#[tokio::test]
async fn a_second_server_on_the_same_port_is_refused() {
    let server = TestServer::start().await;
    let mut config = TestServer::config();
    config.listen = vec![server.address()];
    let refused = TestServer::try_with(config).await.err().expect("the port is taken");
    assert!(refused.contains(&server.address().to_string()), "{refused}");
    // All connections still come to the first one.
    for _ in 0..10 {
        assert_eq!(server.connect("ann").await.welcome()["node"], server.node().id().as_str());
    }
}
