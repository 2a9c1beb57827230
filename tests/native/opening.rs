//! How a connection begins: the welcome, and who one is.

use crate::support::TestServer;

#[tokio::test]
async fn a_client_that_lost_its_connection_gets_what_it_missed() {
    let server = TestServer::start().await;
    let mut ann = server.connect("ann").await;
    let mut bob = server.connect("bob").await;
    ann.subscribe("chat:lobby").await;
    bob.publish("chat:lobby", "one").await;
    assert_eq!(ann.next_publication().await, "one");
    let position = ann.lose_connection().await;
    bob.publish("chat:lobby", "two").await;
    bob.publish("chat:lobby", "three").await;
    let mut ann = server.connect("ann").await;
    let missed = ann.recover("chat:lobby", position).await;
    assert_eq!(missed, ["two", "three"]);
}
