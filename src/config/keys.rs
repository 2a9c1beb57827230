//! Every key there is: its shape and what it does, told once.
//!
//! The file is checked against this table, an environment variable finds its key in it, and `fanwire config`, the
//! example file and `docs/configuration.md` are written from it. Defaults are not here: they are those of `Config`.
//! Start at [`ROOT`]. A unit test compares the table with what `Config` serialises.

use super::nearest::nearest;

/// A key of a table.
pub(super) struct Key {
    pub name: &'static str,
    pub shape: Shape,
    /// Its effect and unit, in whole sentences.
    pub doc: &'static str,
    /// What the example file shows for a key without a telling default, as TOML.
    pub example: Option<&'static str>,
    /// Whether its table is incomplete without it.
    pub required: bool,
}

/// What may stand at a key.
pub(super) enum Shape {
    One(Kind),
    /// A list of values. `bare`: a single one may stand without its brackets.
    Many {
        of: Kind,
        bare: bool,
    },
    /// A group that is there whether it is written or not.
    Group(&'static [Key]),
    /// A group that means something by being absent.
    Optional(&'static [Key]),
    /// A list of groups, each in `[[double brackets]]`.
    Groups(&'static [Key]),
    /// A list of secrets, any of which may be a group instead.
    Secrets(&'static [Key]),
    /// Groups by names that the operator chooses.
    Named(&'static [Key]),
}

/// What one value may be.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Text,
    /// A text that is masked wherever it is shown.
    Secret,
    Bool,
    /// A whole number of `0` or more.
    Number,
    Address,
    /// An address, or `""` for none.
    AddressOrNone,
    Network,
    Duration,
    Size,
    Rate,
    /// A file's path.
    File,
    Choice(&'static [&'static str]),
}

/// The algorithms of tokens that can be accepted.
pub(super) const ALGORITHMS: &[&str] =
    &["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"];
/// Those of them that have a public key.
pub(super) const PUBLIC_ALGORITHMS: &[&str] =
    &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"];

/// The secret of the example file, which everybody knows, as TOML.
pub(super) const EXAMPLE_SECRET: &str = "\"at-least-32-random-bytes-that-nobody-knows\"";

const ACCESS: &[&str] = &["anyone", "user", "token", "nobody"];

const fn key(name: &'static str, shape: Shape, doc: &'static str) -> Key {
    Key { name, shape, doc, example: None, required: false }
}

const fn one(name: &'static str, kind: Kind, doc: &'static str) -> Key {
    key(name, Shape::One(kind), doc)
}

const fn many(name: &'static str, of: Kind, doc: &'static str) -> Key {
    key(name, Shape::Many { of, bare: false }, doc)
}

impl Key {
    const fn example(self, example: &'static str) -> Self {
        Self { example: Some(example), ..self }
    }

    const fn required(self) -> Self {
        Self { required: true, ..self }
    }
}

impl Shape {
    /// The keys of the group or groups that stand here.
    pub fn keys(&self) -> Option<&'static [Key]> {
        match self {
            Self::One(_) | Self::Many { .. } => None,
            Self::Group(keys) | Self::Optional(keys) | Self::Groups(keys) | Self::Secrets(keys) | Self::Named(keys) => {
                Some(keys)
            }
        }
    }
}

impl Kind {
    /// What is expected, for messages and the reference.
    pub fn expected(self) -> String {
        match self {
            Self::Text => "a text".into(),
            Self::Secret => "a secret text".into(),
            Self::Bool => "`true` or `false`".into(),
            Self::Number => "a whole number".into(),
            Self::Address => "an address and port such as \"127.0.0.1:8080\"".into(),
            Self::AddressOrNone => "an address and port such as \"127.0.0.1:9464\", or \"\" for none".into(),
            Self::Network => "a network such as \"10.0.0.0/8\"".into(),
            Self::Duration => "a duration such as \"25s\" (ms, s, m, h, d)".into(),
            Self::Size => "a size such as \"64KiB\" (B, KiB, MiB, GiB)".into(),
            Self::Rate => "a rate such as \"200/1s\" (burst/period), or \"\" for none".into(),
            Self::File => "a file's path".into(),
            Self::Choice(choices) => {
                let quoted: Vec<_> = choices.iter().map(|choice| format!("\"{choice}\"")).collect();
                format!("one of {}", quoted.join(", "))
            }
        }
    }
}

/// Everything that can be set.
pub(super) static ROOT: &[Key] = &[
    key(
        "listen",
        Shape::Many { of: Kind::Address, bare: true },
        "Where clients and servers connect; several as a list. A port of 0 lets the system choose one, which is printed.",
    ),
    one("workers", Kind::Number, "Shards, each a thread with its own connections; 0 for one per core."),
    one(
        "metrics_listen",
        Kind::AddressOrNone,
        "Where `/metrics` is served, apart from clients; \"\" for nowhere. In development mode a taken port is only a warning.",
    ),
    one("node_name", Kind::Text, "What this node is called; \"\" for the host's name and a random end."),
    many("admin_keys", Kind::Secret, "Keys for the admin page, which comes with a later version: leave this empty."),
    key("tls", Shape::Optional(TLS), "TLS in this process; absent for plain, as behind a proxy that ends TLS."),
    key("log", Shape::Group(LOG), "Log lines."),
    key("broker", Shape::Group(BROKER), "What carries publications between nodes and keeps history."),
    key("http", Shape::Group(HTTP), "The HTTP side."),
    key("connection", Shape::Group(CONNECTION), "Each connection."),
    key(
        "limits",
        Shape::Group(LIMITS),
        "Limits of this node. A rate is a bucket of `burst`, refilled evenly over its period.",
    ),
    key("shutdown", Shape::Group(SHUTDOWN), "How the process ends."),
    key(
        "app",
        Shape::Groups(APP),
        "The tenants, each with its own keys and channels; absent: one app, `default`. While no app has a secret, public key, \
         JWKS URL or API key, the server is in development mode: everybody may do everything, on loopback only.",
    ),
    key(
        "namespace",
        Shape::Named(NAMESPACE),
        "What channels may do, by the part of their name before the first `:`; `\"\"` is for names without one.",
    ),
];

static TLS: &[Key] = &[
    one("cert", Kind::File, "The certificate chain, a PEM file; reloaded when it changes.")
        .example("\"cert.pem\"")
        .required(),
    one("key", Kind::File, "Its private key, a PEM file.").example("\"key.pem\"").required(),
];

static LOG: &[Key] = &[
    one("format", Kind::Choice(&["text", "json"]), "The form of a line: for people, or one JSON object each."),
    one(
        "level",
        Kind::Text,
        "Which lines are written, in the filter syntax of tracing, such as \"info,fanwire::hub=debug\".",
    ),
];

static BROKER: &[Key] = &[
    one(
        "url",
        Kind::Text,
        "\"memory:\", the broker inside this process: history lives as long as it does, and it is the only node. Or a Redis \
         that all nodes share: redis://user:password@host:6379/0, rediss:// for TLS, redis+sentinel://h1:26379,h2:26379/mymaster, \
         redis+cluster://h1:6379,h2:6379 (not served yet).",
    ),
    one(
        "prefix",
        Kind::Text,
        "What all names of ours in Redis begin with, keys and relay channels: 1 to 64 letters, digits, `_`, `-`, `.` and `:`. Two \
         installations on one Redis need different ones, in different databases too: Pub/Sub knows no databases.",
    ),
    one(
        "replica_acks",
        Kind::Number,
        "Replicas of Redis that must have a publication before it is acknowledged; at most 16. 0: as durable as the primary alone.",
    ),
    one(
        "queue_while_away",
        Kind::Size,
        "Bytes of publications that wait while Redis is away, in order; what comes above it is refused as `unavailable`.",
    ),
    one(
        "queue_deadline",
        Kind::Duration,
        "How long a publication waits for Redis before it is answered with an error, from 100ms to 4m.",
    ),
    one("max_memory", Kind::Size, "Bytes that histories and idempotency keys may hold in the memory broker."),
];

static HTTP: &[Key] = &[
    many(
        "allowed_origins",
        Kind::Text,
        "Pages that may connect besides those of the same origin, such as [\"https://example.com\"]; [\"*\"] for any.",
    ),
    many("trusted_proxies", Kind::Network, "Networks whose `address_header` is believed, such as [\"10.0.0.0/8\"]."),
    one(
        "address_header",
        Kind::Choice(&["X-Forwarded-For", "Forwarded"]),
        "The header in which a trusted proxy names the client's address. The other one is the client's own, and ignored.",
    ),
    one("max_body", Kind::Size, "The largest request body; a larger one is answered 413."),
];

static CONNECTION: &[Key] = &[
    one(
        "ping",
        Kind::Duration,
        "The interval between pings, in whole seconds; nothing heard for 10 s after one ends the connection with 4000. Keep it \
         under the idle timeout of what stands in front.",
    ),
    one(
        "max_frame",
        Kind::Size,
        "The largest frame or message from a client; a larger one ends the connection with 1009.",
    ),
    one("max_subscriptions", Kind::Number, "Subscriptions that one connection may hold at once."),
    one("send_queue", Kind::Size, "Bytes that may wait for one slow connection."),
    one(
        "when_slow",
        Kind::Choice(&["catch_up", "disconnect"]),
        "What happens to a connection whose send queue is full: it is served from history at its own pace (channels without \
         history disconnect it), or it is closed with 4001.",
    ),
    one("compression", Kind::Bool, "Whether permessage-deflate is offered, for frames of 256 bytes and more."),
];

static LIMITS: &[Key] = &[
    one("connections", Kind::Number, "Connections at once; 0 for as many as file descriptors allow."),
    one(
        "connections_per_address",
        Kind::Rate,
        "New connections of one client address (IPv6: of one /64), such as \"100/10s\".",
    ),
    one("frames_per_connection", Kind::Rate, "Commands of one connection; each command of an array counts."),
];

static SHUTDOWN: &[Key] = &[one(
    "drain",
    Kind::Duration,
    "On SIGTERM connections are closed spread over this, each told to reconnect; \"0s\" closes all at once.",
)];

static APP: &[Key] = &[
    one("id", Kind::Text, "Its id, in metrics and logs: 1 to 64 letters, digits, `_`, `-` and `.`."),
    one("key", Kind::Text, "Its public key: what clients name in `?app=`."),
    one(
        "secret",
        Kind::Secret,
        "Signs HS256, HS384 and HS512 tokens; at least 32 random bytes. `FANWIRE_SECRET` sets that of the first app.",
    )
    .example(EXAMPLE_SECRET),
    key(
        "api_keys",
        Shape::Secrets(API_KEY),
        "Keys for the server API, each a text that may do everything, or a table that narrows it.",
    ),
    key("tokens", Shape::Group(TOKENS), "How clients' tokens are checked."),
];

static API_KEY: &[Key] = &[
    one("key", Kind::Secret, "The key.").required(),
    many(
        "allow",
        Kind::Choice(&["publish", "read", "manage"]),
        "What it may be used for: publish and batch; read channels, history and presence; drop history, and act on users, \
         connections and nodes.",
    )
    .required(),
];

static TOKENS: &[Key] = &[
    many(
        "algorithms",
        Kind::Choice(ALGORITHMS),
        "Accepted algorithms, each with keys of its own type only: HS with the secret, the others with public keys.",
    ),
    one("audience", Kind::Text, "The `aud` that a token must have; \"\" for any."),
    one("issuer", Kind::Text, "The `iss` that a token must have; \"\" for any."),
    key("public_keys", Shape::Groups(PUBLIC_KEY), "Public keys from files."),
    one(
        "jwks_url",
        Kind::Text,
        "Where a set of public keys (a JWKS, RFC 7517) is fetched and kept fresh; \"\" for nowhere.",
    ),
];

static PUBLIC_KEY: &[Key] = &[
    one("kid", Kind::Text, "What a token's header calls it.").example("\"2026-01\"").required(),
    one("algorithm", Kind::Choice(PUBLIC_ALGORITHMS), "The one algorithm that it is for.")
        .example("\"ES256\"")
        .required(),
    one("file", Kind::File, "The public key, a PEM file.").example("\"2026-01.pub.pem\"").required(),
];

static NAMESPACE: &[Key] = &[
    one(
        "subscribe",
        Kind::Choice(ACCESS),
        "Who may subscribe: anyone; a user (any valid token); whoever has a token that allows it; nobody.",
    ),
    one("publish", Kind::Choice(ACCESS), "Who may publish; servers with an API key always may."),
    one("presence", Kind::Bool, "Whether members may be listed and watched.").example("true"),
    one("show_publisher", Kind::Bool, "Whether messages say `from` whom they are.").example("true"),
    one("cache", Kind::Bool, "Whether the newest publication is sent to each new subscriber."),
    one("max_data", Kind::Size, "The largest `data` of a publication; a larger one is refused as `too_large`."),
    one("publish_rate", Kind::Rate, "Publications of one connection.").example("\"50/1s\""),
    key("history", Shape::Optional(HISTORY), "What each channel keeps for those who come back; absent for nothing."),
];

static HISTORY: &[Key] = &[
    one("size", Kind::Number, "Publications that are kept: the newest this many.").example("100").required(),
    one("ttl", Kind::Duration, "And none that is older than this.").example("\"1h\"").required(),
];

/// The key called `name`.
pub(super) fn find(keys: &'static [Key], name: &str) -> Option<&'static Key> {
    keys.iter().find(|key| key.name == name)
}

/// The known key that `name`, which is unknown in the table at `path`, most likely means: its full name.
///
/// The same name in another table comes first, then a slip of the pen in this table, then one in another.
pub(super) fn nearest_key(path: &str, keys: &'static [Key], name: &str) -> Option<String> {
    let mut everywhere = Vec::new();
    collect(ROOT, "", &mut everywhere);
    let elsewhere = |name: &str| everywhere.iter().find(|(_, key)| key.name == name).map(|(full, _)| full.clone());
    elsewhere(name)
        .or_else(|| nearest(name, keys.iter().map(|key| key.name)).map(|found| join(path, found)))
        .or_else(|| nearest(name, everywhere.iter().map(|(_, key)| key.name)).and_then(elsewhere))
}

/// Every key with its full name; a list's items are `[]`, a chosen name is `NAME`.
pub(super) fn collect(keys: &'static [Key], path: &str, all: &mut Vec<(String, &'static Key)>) {
    for key in keys {
        let full = join(path, key.name);
        let below = match &key.shape {
            Shape::Groups(_) | Shape::Secrets(_) => format!("{full}[]"),
            Shape::Named(_) => format!("{full}.NAME"),
            _ => full.clone(),
        };
        all.push((full, key));
        if let Some(keys) = key.shape.keys() {
            collect(keys, &below, all);
        }
    }
}

/// The full name of `name` in the table at `path`; quoted where TOML would ask for it, and cut where it is endless.
pub(super) fn join(path: &str, name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    let short: String = name.chars().take(64).collect();
    let name = if bare && short.len() == name.len() { short } else { format!("{short:?}") };
    if path.is_empty() { name } else { format!("{path}.{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misplaced_key_is_found_where_it_belongs() {
        assert_eq!(nearest_key("http", HTTP, "max_frame").as_deref(), Some("connection.max_frame"));
        assert_eq!(nearest_key("http", HTTP, "max_bodi").as_deref(), Some("http.max_body"));
        assert_eq!(nearest_key("", ROOT, "listne").as_deref(), Some("listen"));
        assert_eq!(nearest_key("", ROOT, "aggregate"), None);
    }

    #[test]
    fn names_are_quoted_where_they_must_be() {
        assert_eq!(join("namespace", ""), "namespace.\"\"");
        assert_eq!(join("namespace", "a\u{1b}"), "namespace.\"a\\u{1b}\"");
        assert_eq!(join("", "listen"), "listen");
    }
}
