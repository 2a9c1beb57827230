//! A server with two apps side by side, each with keys of every scope: what the stories of the HTTP side are told of.

use std::net::SocketAddr;

use fanwire::{
    config::{ApiKeyConfig, ApiScope, AppConfig, Config, NarrowApiKey},
    gateway::mint,
    node::Node,
};
use serde_json::{Value, json};

use super::{Call, Connecting, EventStream, TestServer, now};

/// A [`TestServer`] whose apps are `shop` and `bank`, each with the API keys `<app>-full`, `<app>-publish`, `<app>-read` and
/// `<app>-manage`. Its node is called `test-node`.
///
/// Its namespaces are those of [`TestServer::start`], except that `chat` is called `room` and each history keeps 100.
pub struct TwoApps(TestServer);

impl TwoApps {
    /// With nothing changed.
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// In development mode: no keys, and everybody may do everything.
    pub async fn development() -> Self {
        Self::with(|config| {
            config.apps.clear();
            config.namespaces.clear();
        })
        .await
    }

    /// The same after `change`.
    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let server = TestServer::with(|config| {
            config.node_name = "test-node".into();
            config.apps = ["shop", "bank"].map(app).into();
            let room = config.namespaces.remove("chat").expect("it is there");
            config.namespaces.insert("room".into(), room);
            for history in config.namespaces.values_mut().filter_map(|namespace| namespace.history.as_mut()) {
                history.size = 100;
            }
            change(config);
        });
        Self(server.await)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.0.address()
    }

    /// The node inside, for what no port tells.
    pub fn node(&self) -> &Node {
        self.0.node()
    }

    /// A WebSocket of `app`, still to be dressed.
    pub fn client(&self, app: &str) -> Connecting {
        self.0.client().query("app", app)
    }

    /// Begins to shut down, without waiting for the end.
    pub fn begin_stop(&self) {
        self.0.begin_stop();
    }

    /// A GET.
    pub fn get(&self, path: &str) -> Call {
        self.call("GET", path)
    }

    /// A POST of this body.
    pub fn post(&self, path: &str, body: impl Into<Vec<u8>>) -> Call {
        self.call("POST", path).body(body)
    }

    /// A DELETE.
    pub fn delete(&self, path: &str) -> Call {
        self.call("DELETE", path)
    }

    /// Any request.
    pub fn call(&self, method: &str, path: &str) -> Call {
        Call::new(self.address(), method, path)
    }

    /// Publishes with the app's full key; answers with the one result.
    pub async fn publish(&self, app: &str, channel: &str, data: Value) -> Value {
        let body = json!({"channel": channel, "data": data}).to_string();
        let answer = self.post("/v1/publish", body).key(&format!("{app}-full")).send().await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["results"][0].clone()
    }

    /// Opens an event stream, which must be granted.
    pub async fn stream(&self, path: &str) -> EventStream {
        self.get(path).stream().await
    }

    /// Completes once `fact` is true of the node.
    pub async fn until(&self, what: &str, fact: impl Fn(&Node) -> bool) {
        self.0.until(what, fact).await;
    }
}

fn app(id: &str) -> AppConfig {
    let narrow =
        |name: &str, scope| ApiKeyConfig::Narrow(NarrowApiKey { key: format!("{id}-{name}"), allow: vec![scope] });
    AppConfig {
        id: id.into(),
        key: id.into(),
        secret: Some(secret(id)),
        api_keys: vec![
            ApiKeyConfig::Full(format!("{id}-full")),
            narrow("publish", ApiScope::Publish),
            narrow("read", ApiScope::Read),
            narrow("manage", ApiScope::Manage),
        ],
        ..AppConfig::default()
    }
}

fn secret(app: &str) -> String {
    format!("the secret of {app}, which is long enough to be one")
}

/// A token of `app` that lasts `seconds`.
pub fn token_for(app: &str, claims: Value, seconds: i64) -> String {
    let mut claims = claims;
    claims["exp"] = now().saturating_add_signed(seconds).into();
    mint(&secret(app), &claims).unwrap()
}

/// A token of `app` for `user`, who may do everything in channels of the namespace `token`.
pub fn token(app: &str, user: &str) -> String {
    let allow = json!([{"channels": ["token:**"], "do": ["subscribe", "publish", "presence", "history"]}]);
    token_for(app, json!({"sub": user, "allow": allow}), 600)
}
