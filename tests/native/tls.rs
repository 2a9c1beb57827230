//! The same conversation, encrypted in process.

use std::sync::Arc;

use fanwire::config::TlsConfig;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{ClientConfig, RootCertStore, pki_types::CertificateDer};
use serde_json::json;
use tempfile::TempDir;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Connecting, TestServer, user};

/// A server with a certificate, and what a client needs to believe it.
struct Encrypted {
    server: TestServer,
    connector: TlsConnector,
    _folder: TempDir,
}

impl Encrypted {
    async fn start() -> Self {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let files = ["cert.pem", "key.pem"].map(|name| folder.path().join(name));
        std::fs::write(&files[0], cert.pem()).unwrap();
        std::fs::write(&files[1], signing_key.serialize_pem()).unwrap();
        let [cert_file, key_file] = files;
        let server = TestServer::with(|config| config.tls = Some(TlsConfig { cert: cert_file, key: key_file })).await;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(cert.der().to_vec())).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(roots).with_no_client_auth();
        Self { server, connector: TlsConnector::from(Arc::new(config)), _folder: folder }
    }

    fn client(&self, name: &str) -> Connecting {
        self.server.client().named(name).token(&user(name)).tls(self.connector.clone())
    }
}

#[tokio::test]
async fn the_conversation_over_tls_is_the_same() {
    let encrypted = Encrypted::start().await;
    let mut ann = encrypted.client("ann").connect().await;
    let mut bob = encrypted.client("bob").connect().await;
    let subscribe = json!({ "type": "subscribe", "channel": "chat:1", "presence": true });
    assert_eq!(ann.expect("subscribed", subscribe).await["members"][0]["user"], "ann");
    bob.subscribe("chat:1").await;
    assert_eq!(ann.next_frame().await["type"], "join");
    // From one byte to the largest frame.
    for length in [1, 1000, 16_000, 60_000] {
        bob.publish("chat:1", "x".repeat(length)).await;
        assert_eq!(ann.next_publication().await, "x".repeat(length));
        assert_eq!(bob.next_publication().await, "x".repeat(length));
    }
    let position = ann.lose_connection().await;
    bob.publish("chat:1", "missed").await;
    let mut ann = encrypted.client("ann").connect().await;
    assert_eq!(ann.recover("chat:1", position).await, ["missed"]);
    ann.send_message(Message::Ping("hello".into())).await;
    assert_eq!(ann.next_raw().await, Message::Pong("hello".into()));
    assert_eq!(ann.close().await, Some(1005));
}

#[tokio::test]
async fn ends_are_told_over_tls_too() {
    let encrypted = Encrypted::start().await;
    let mut ann = encrypted.client("ann").connect().await;
    ann.send_message(Message::binary("x")).await;
    assert_eq!(ann.ended().await.code, Some(1003));
    let ended = encrypted.server.client().tls(encrypted.connector.clone()).token("nonsense").open().await.ended().await;
    assert_eq!((ended.code, &ended.disconnect()["code"]), (Some(4100), &json!("unauthorized")));
    let nowhere = encrypted.server.client().tls(encrypted.connector.clone()).query("app", "nowhere");
    assert_eq!(nowhere.open().await.ended().await.code, Some(4103));
    encrypted.server.until("the connections to be gone", |node| node.hub().connections() == 0).await;
}

#[tokio::test]
async fn a_slow_reader_over_tls_catches_up_too() {
    let encrypted = Encrypted::start().await;
    let mut slow = encrypted.client("slow").receive_buffer(4096).connect().await;
    slow.subscribe("chat:1").await;
    let mut bob = encrypted.client("bob").connect().await;
    for n in 0..100 {
        bob.publish("chat:1", json!([n, "x".repeat(50_000)])).await;
    }
    for n in 0..100 {
        assert_eq!(slow.next_publication().await[0], n);
    }
}

#[tokio::test]
async fn a_plain_connection_to_an_encrypted_port_gets_nothing() {
    let encrypted = Encrypted::start().await;
    let mut socket = encrypted.server.raw().await;
    socket.send(b"GET /v1/ws HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    while !socket.ends().await {}
    encrypted.client("ann").connect().await;
}
