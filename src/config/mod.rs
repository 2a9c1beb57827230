//! Settings, as plain groups that are handed to whoever needs them.
//!
//! Every group has a `Default` that works and refuses keys it does not know. Start at [`Config`]; where its values come
//! from is told in `load`, what each key does in `keys`, and what may not stand beside what in `check`.

mod broker_url;
mod check;
mod environment;
mod finding;
mod keys;
mod load;
mod namespace;
mod nearest;
mod print;
mod tree;
mod units;
mod validate;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

pub use broker_url::{BrokerKind, BrokerUrl, InvalidBrokerUrl};
pub use finding::{ConfigErrors, Finding, Origin};
pub use load::{Flags, Loaded, Sources};
pub use namespace::{Access, HistoryConfig, NamespaceConfig};
pub use print::MASK;
pub use units::{ByteSize, InvalidUnit, Rate, Span};

/// Everything that can be set. Its `Debug` is its commented form, in which secrets are masked.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where clients and servers connect; a port of 0 lets the system choose.
    #[serde(with = "units::one_or_many")]
    pub listen: Vec<SocketAddr>,
    /// Shards, each a thread; 0 for one per core.
    pub workers: usize,
    /// Where `/metrics` is served; `""` for nowhere.
    pub metrics_listen: String,
    /// What this node is called; `""` for the host's name and a random end.
    pub node_name: String,
    /// Keys for the admin page.
    pub admin_keys: Vec<String>,
    /// TLS in process; absent for plain.
    pub tls: Option<TlsConfig>,
    /// Log lines.
    pub log: LogConfig,
    /// What carries publications between nodes.
    pub broker: BrokerConfig,
    /// The HTTP side.
    pub http: HttpConfig,
    /// Each connection.
    pub connection: ConnectionConfig,
    /// Limits of this node.
    pub limits: LimitsConfig,
    /// How the process ends.
    pub shutdown: ShutdownConfig,
    /// The tenants; none for the one `default` app.
    #[serde(rename = "app")]
    pub apps: Vec<AppConfig>,
    /// What channels may do, by the part of their name before the first `:`.
    #[serde(rename = "namespace")]
    pub namespaces: std::collections::BTreeMap<String, NamespaceConfig>,
    /// Whether development mode may serve on any address. Only `--insecure` sets it.
    #[serde(skip)]
    pub insecure: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 8080))],
            workers: 0,
            metrics_listen: "127.0.0.1:9464".into(),
            node_name: String::new(),
            admin_keys: Vec::new(),
            tls: None,
            log: LogConfig::default(),
            broker: BrokerConfig::default(),
            http: HttpConfig::default(),
            connection: ConnectionConfig::default(),
            limits: LimitsConfig::default(),
            shutdown: ShutdownConfig::default(),
            apps: Vec::new(),
            namespaces: std::collections::BTreeMap::new(),
            insecure: false,
        }
    }
}

impl Config {
    /// Whether no app has any key: then anonymous clients may do everything, and only on loopback.
    pub fn is_development(&self) -> bool {
        !self.apps.iter().any(AppConfig::has_keys)
    }
}

/// TLS in process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The certificate chain, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// Log lines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// Their form.
    pub format: LogFormat,
    /// Which are written, in tracing's filter syntax.
    pub level: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".into() }
    }
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines, one object a line.
    Json,
}

/// What carries publications between nodes. Its `Debug` shows no password.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BrokerConfig {
    /// `memory:`, or where Redis is: a [`BrokerUrl`].
    pub url: String,
    /// What the names of all keys and relay channels in Redis begin with.
    pub prefix: String,
    /// Replicas of Redis that must have a publication before it counts as published.
    pub replica_acks: usize,
    /// Bytes of publications that wait while Redis is away.
    pub queue_while_away: ByteSize,
    /// How long one waits.
    pub queue_deadline: Span,
    /// Bytes that histories and idempotency keys may hold in the memory broker.
    pub max_memory: ByteSize,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        Self {
            url: "memory:".into(),
            prefix: "fanwire".into(),
            replica_acks: 0,
            queue_while_away: ByteSize::mebibytes(64),
            queue_deadline: Span(Duration::from_secs(10)),
            max_memory: ByteSize::mebibytes(1024),
        }
    }
}

/// The HTTP side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// Pages that may connect besides those of the same origin, such as `https://example.com`; `*` for any.
    pub allowed_origins: Vec<String>,
    /// Networks whose `address_header` is believed.
    pub trusted_proxies: Vec<ipnet::IpNet>,
    /// The header in which a trusted proxy names the client's address: `X-Forwarded-For` or `Forwarded`.
    pub address_header: AddressHeader,
    /// The largest request body.
    pub max_body: ByteSize,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            allowed_origins: Vec::new(),
            trusted_proxies: Vec::new(),
            address_header: AddressHeader::XForwardedFor,
            max_body: ByteSize::mebibytes(1),
        }
    }
}

/// Which header names the client's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AddressHeader {
    /// The customary one.
    #[serde(rename = "X-Forwarded-For")]
    XForwardedFor,
    /// RFC 7239.
    Forwarded,
}

/// Each connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConnectionConfig {
    /// The interval between pings; nothing heard for 10 s after one ends the connection with 4000.
    pub ping: Span,
    /// The largest frame or message from a client.
    pub max_frame: ByteSize,
    /// Subscriptions one connection may hold at once.
    pub max_subscriptions: usize,
    /// Bytes that may wait for one slow connection.
    pub send_queue: ByteSize,
    /// What happens to a slow one.
    pub when_slow: WhenSlow,
    /// Whether permessage-deflate is offered, for frames of 256 bytes and more.
    pub compression: bool,
}

impl Default for ConnectionConfig {
    fn default() -> Self {
        Self {
            ping: Span(Duration::from_secs(25)),
            max_frame: ByteSize::kibibytes(64),
            max_subscriptions: 512,
            send_queue: ByteSize::mebibytes(1),
            when_slow: WhenSlow::CatchUp,
            compression: true,
        }
    }
}

/// What happens to a connection whose send queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenSlow {
    /// Nothing is pushed until it has taken what waits; then it gets the rest from history, at its own pace.
    CatchUp,
    /// It is closed with 4001.
    Disconnect,
}

/// Limits of this node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Connections at once; 0 for as many as descriptors allow.
    pub connections: usize,
    /// New connections per client address.
    pub connections_per_address: Rate,
    /// Commands per connection; each command of an array counts.
    pub frames_per_connection: Rate,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self { connections: 0, connections_per_address: Rate::NONE, frames_per_connection: Rate::per_second(200) }
    }
}

/// How the process ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShutdownConfig {
    /// Connections are closed spread over this.
    pub drain: Span,
}

impl Default for ShutdownConfig {
    fn default() -> Self {
        Self { drain: Span(Duration::from_secs(30)) }
    }
}

/// A tenant. Its `Debug` shows no secret.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AppConfig {
    /// Its id, in keys and metrics.
    pub id: String,
    /// Its public key: what clients name.
    pub key: String,
    /// Signs HS256 tokens.
    pub secret: Option<String>,
    /// For the server API.
    pub api_keys: Vec<ApiKeyConfig>,
    /// How tokens are checked.
    pub tokens: TokensConfig,
}

impl Default for AppConfig {
    fn default() -> Self {
        Self {
            id: "default".into(),
            key: "default".into(),
            secret: None,
            api_keys: Vec::new(),
            tokens: TokensConfig::default(),
        }
    }
}

impl AppConfig {
    /// Whether anything can prove who somebody is.
    pub fn has_keys(&self) -> bool {
        self.secret.is_some()
            || !self.api_keys.is_empty()
            || !self.tokens.public_keys.is_empty()
            || !self.tokens.jwks_url.is_empty()
    }
}

/// An API key: its text alone, or with what it may be used for. Its `Debug` shows no key.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ApiKeyConfig {
    /// May do everything.
    Full(String),
    /// May do what is listed.
    Narrow(NarrowApiKey),
}

/// An API key that may not do everything. Its `Debug` shows no key.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NarrowApiKey {
    /// The key.
    pub key: String,
    /// What it may be used for.
    pub allow: Vec<ApiScope>,
}

/// What an API key may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApiScope {
    /// Publish and batch.
    Publish,
    /// Read channels, history and presence.
    Read,
    /// Drop history; disconnect, subscribe and unsubscribe users; list connections and nodes.
    Manage,
}

/// How an app's tokens are checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokensConfig {
    /// Accepted algorithms, each with keys of its type only.
    pub algorithms: Vec<String>,
    /// The `aud` that a token must have; `""` for any.
    pub audience: String,
    /// The `iss` that a token must have; `""` for any.
    pub issuer: String,
    /// Public keys from files.
    pub public_keys: Vec<PublicKeyConfig>,
    /// Where a JWK set is fetched; `""` for nowhere.
    pub jwks_url: String,
}

impl Default for TokensConfig {
    fn default() -> Self {
        Self {
            algorithms: vec!["HS256".into()],
            audience: String::new(),
            issuer: String::new(),
            public_keys: Vec::new(),
            jwks_url: String::new(),
        }
    }
}

/// A public key from a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublicKeyConfig {
    /// What a token's header calls it.
    pub kid: String,
    /// The one algorithm that it is for.
    pub algorithm: String,
    /// PEM.
    pub file: PathBuf,
}
