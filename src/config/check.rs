//! Rules that no single key can hold: ranges with a reason, and keys that must fit each other.
//!
//! Every fault is told at once. A rule across keys keeps silent where one of its keys is already faulty.

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use tracing_subscriber::EnvFilter;

use super::{BrokerKind, BrokerUrl, Config, finding::Report, keys::join, nearest::nearest};
use crate::domain::ChannelName;

mod apps;

/// Checks a whole configuration.
pub(super) fn check(config: &Config, report: &mut Report) {
    addresses(config, report);
    process(config, report);
    broker(config, report);
    http(config, report);
    connection(config, report);
    namespaces(config, report);
    apps::check(&config.apps, report);
    development(config, report);
}

fn addresses(config: &Config, report: &mut Report) {
    if !report.sound(&["listen", "metrics_listen"]) {
        return;
    }
    if config.listen.is_empty() {
        report.fault("listen", "names no address");
    }
    let mut seen: Vec<&SocketAddr> = Vec::new();
    for address in config.listen.iter().filter(|address| address.port() != 0) {
        if seen.contains(&address) {
            report.fault("listen", format!("names {address} twice"));
        }
        seen.push(address);
    }
    if config.metrics_listen.parse().is_ok_and(|metrics: SocketAddr| seen.contains(&&metrics)) {
        report.fault("metrics_listen", "is an address of `listen` too: metrics have a listener of their own");
    }
}

fn process(config: &Config, report: &mut Report) {
    if 1024 < config.workers {
        report.fault("workers", "is more than 1024: 0 is one per core");
    }
    let name = &config.node_name;
    if 64 < name.len() || name.contains(|c: char| c.is_control() || c.is_whitespace()) {
        report.fault("node_name", "takes at most 64 bytes, without white space and control characters");
    }
    if !config.admin_keys.is_empty() {
        report.fault("admin_keys", "the admin page comes with a later version: leave this out");
    }
    if let Some(problem) = level_problem(&config.log.level) {
        report.fault("log.level", problem);
    }
    if 3600 < config.shutdown.drain.0.as_secs() {
        report.fault("shutdown.drain", "is more than an hour");
    }
    if let Some(tls) = &config.tls {
        pem_file("tls.cert", &tls.cert, &["CERTIFICATE"], report);
        pem_file("tls.key", &tls.key, &["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"], report);
    }
}

/// Why `level` is no filter. A word alone is a target to tracing, so that `inof` would log all of a module of that name.
fn level_problem(level: &str) -> Option<String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let slip = level.split(',').map(str::trim).find_map(|word| {
        let known = LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
        nearest(word, LEVELS).filter(|_| !known)
    });
    match (slip, EnvFilter::builder().parse(level)) {
        (Some(slip), _) => Some(format!("has a level that tracing does not know; nearest known: `{slip}`")),
        (None, Err(_)) => Some("is no filter of tracing, such as \"info\" or \"info,fanwire::hub=debug\"".into()),
        (None, Ok(_)) => None,
    }
}

fn broker(config: &Config, report: &mut Report) {
    let broker = &config.broker;
    if broker.max_memory.0 < 1 << 20 {
        report.fault("broker.max_memory", "takes \"1MiB\" and more");
    }
    let is_prefix = |c: char| c.is_ascii_alphanumeric() || "_-.:".contains(c);
    if !(1..=64).contains(&broker.prefix.len()) || !broker.prefix.chars().all(is_prefix) {
        report.fault("broker.prefix", "takes 1 to 64 letters, digits, `_`, `-`, `.` and `:`");
    }
    within("broker.queue_while_away", broker.queue_while_away.0, 1 << 20, 1 << 30, "1MiB", "1GiB", report);
    // A repeated publication is recognised for five minutes.
    if !(Duration::from_millis(100)..=Duration::from_secs(240)).contains(&broker.queue_deadline.0) {
        report.fault("broker.queue_deadline", "takes from \"100ms\" to \"4m\"");
    }
    if 16 < broker.replica_acks {
        report.fault("broker.replica_acks", "is more than 16");
    }
    if report.sound(&["broker.url"]) {
        match broker.url.parse() {
            Ok(url) => broker_at(&url, config, report),
            Err(problem) => report.fault("broker.url", problem.to_string()),
        }
    }
}

/// What goes with the broker at `url`, and what does not.
fn broker_at(url: &BrokerUrl, config: &Config, report: &mut Report) {
    if url.kind == BrokerKind::Memory && config.broker.replica_acks != 0 && report.sound(&["broker.replica_acks"]) {
        report.fault("broker.replica_acks", "is for Redis: `memory:` has no replicas, leave this out");
    }
    if url.kind == BrokerKind::Cluster {
        report.warn("broker.url", "Redis Cluster comes with a later version: the server does not start with it");
    }
    let exposed: Vec<_> = url.exposed().collect();
    if !exposed.is_empty() {
        let problem = format!(
            "sends the password and everything published unencrypted to {}: use rediss://, unless the whole way there is yours",
            exposed.join(", ")
        );
        report.warn("broker.url", problem);
    }
}

fn http(config: &Config, report: &mut Report) {
    for (at, origin) in config.http.allowed_origins.iter().enumerate() {
        if origin != "*" && !is_origin(origin) {
            let problem =
                "takes an origin such as \"https://example.com\": scheme, host and, if unusual, port; no path";
            report.fault(format!("http.allowed_origins[{at}]"), problem);
        }
    }
    if config.http.allowed_origins.iter().any(|origin| origin == "*") {
        report.warn("http.allowed_origins", "lets pages of any site connect");
    }
    for (at, network) in config.http.trusted_proxies.iter().enumerate() {
        if network.prefix_len() == 0 {
            let problem = format!("{network} is everybody: any client may then claim any address");
            report.warn(format!("http.trusted_proxies[{at}]"), problem);
        }
    }
    within("http.max_body", config.http.max_body.0, 1 << 10, 1 << 30, "1KiB", "1GiB", report);
}

/// A scheme, a host and perhaps a port, as browsers send them: in lower case, and nothing after.
fn is_origin(text: &str) -> bool {
    let Ok(uri) = text.parse::<http::Uri>() else { return false };
    let scheme = uri.scheme_str().is_some_and(|scheme| text.starts_with(scheme));
    let host = uri.host().is_some_and(|host| !host.is_empty() && !host.contains('*'));
    let bare = uri
        .authority()
        .is_some_and(|authority| text.ends_with(authority.as_str()) && !authority.as_str().contains('@'));
    scheme && host && bare && text == text.to_lowercase()
}

fn connection(config: &Config, report: &mut Report) {
    let connection = &config.connection;
    let ping = connection.ping.0;
    if !(1..=3600).contains(&ping.as_secs()) || ping.subsec_nanos() != 0 {
        report.fault("connection.ping", "takes whole seconds, from \"1s\" to \"1h\"");
    }
    within("connection.max_frame", connection.max_frame.0, 1 << 10, 64 << 20, "1KiB", "64MiB", report);
    within("connection.send_queue", connection.send_queue.0, 4 << 10, 1 << 30, "4KiB", "1GiB", report);
    if connection.max_subscriptions == 0 {
        report.fault("connection.max_subscriptions", "is 0: nobody could subscribe to anything");
    }
    if report.sound(&["connection.send_queue", "connection.max_frame"]) && connection.send_queue < connection.max_frame
    {
        let problem = format!(
            "{} is less than connection.max_frame, {}: one publication could make every subscriber slow",
            connection.send_queue, connection.max_frame
        );
        report.fault("connection.send_queue", problem);
    }
}

fn within(key: &str, value: usize, least: usize, most: usize, least_text: &str, most_text: &str, report: &mut Report) {
    if !(least..=most).contains(&value) {
        report.fault(key, format!("takes from \"{least_text}\" to \"{most_text}\""));
    }
}

/// What a message frame holds besides its `data`, at the most.
const ENVELOPE: usize = 4 << 10;
/// The most publications that a channel keeps: they are in memory.
const MAX_HISTORY: usize = 1_000_000;

fn namespaces(config: &Config, report: &mut Report) {
    for (name, namespace) in &config.namespaces {
        let key = join("namespace", name);
        if name.contains(':') || format!("{name}:x").parse::<ChannelName>().is_err() {
            let problem =
                "is no namespace: a name has no `:`, no white space, no control characters and at most 253 bytes";
            report.fault(key, problem);
            continue;
        }
        if let Some(history) = namespace.history {
            if history.size == 0 {
                report.fault(format!("{key}.history.size"), "is 0: leave `history` out to keep nothing");
            } else if MAX_HISTORY < history.size {
                report
                    .fault(format!("{key}.history.size"), format!("is more than {MAX_HISTORY}: history is in memory"));
            }
            if history.ttl.0.is_zero() {
                report.fault(format!("{key}.history.ttl"), "is 0: leave `history` out to keep nothing");
            } else if 365 * 24 * 3600 < history.ttl.0.as_secs() {
                report.fault(format!("{key}.history.ttl"), "is more than 365d");
            }
        }
        let (max_data, max_key) = (namespace.max_data, format!("{key}.max_data"));
        if max_data.0 == 0 {
            report.fault(max_key, "is 0: nothing could be published");
        } else if report.sound(&["connection.send_queue"]) && config.connection.send_queue.0 < max_data.0 + ENVELOPE {
            let queue = config.connection.send_queue;
            let problem = format!("{max_data} and its frame do not fit into connection.send_queue, {queue}");
            report.fault(max_key, problem);
        } else if config.connection.max_frame.max(config.http.max_body) < max_data {
            report.warn(max_key, "can never be reached: connection.max_frame and http.max_body are smaller");
        }
    }
}

/// Development mode lets everybody do everything, so nobody outside may reach it unless that is meant.
fn development(config: &Config, report: &mut Report) {
    if !config.is_development() || config.insecure || !report.sound(&["app", "listen"]) {
        return;
    }
    for address in config.listen.iter().filter(|address| !address.ip().to_canonical().is_loopback()) {
        let problem = format!(
            "{address} can be reached from outside, and without any key (development mode) everybody may do everything: \
             set FANWIRE_SECRET or a key in [[app]], or listen on 127.0.0.1; --insecure says that this is meant"
        );
        report.fault("listen", problem);
    }
}

/// Checks that `file` can be read and holds a PEM block of one of `kinds`.
fn pem_file(key: &str, file: &Path, kinds: &[&str], report: &mut Report) {
    let shown = file.display();
    let text = match fs::metadata(file).map(|meta| meta.len()) {
        Ok(size) if 1 << 20 < size => return report.fault(key, format!("{shown} has more than 1 MiB: no PEM file")),
        Ok(_) => fs::read_to_string(file),
        Err(error) => Err(error),
    };
    match text {
        Err(error) => report.fault(key, format!("cannot read {shown}: {error}")),
        Ok(text) if !kinds.iter().any(|kind| text.contains(&format!("-----BEGIN {kind}-----"))) => {
            report.fault(key, format!("{shown} holds no PEM block \"BEGIN {}\"", kinds[0]));
        }
        Ok(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::{super::*, *};

    /// The faults and warnings of a configuration in TOML, one a line.
    fn findings(file: &str) -> String {
        let mut report = Report::default();
        check(&toml::from_str(file).unwrap(), &mut report);
        report.faults.iter().chain(&report.warnings).map(|finding| format!("{finding}\n")).collect()
    }

    #[test]
    fn each_rule_names_its_key() {
        let app = "[[app]]\nsecret = 'a-secret-of-more-than-thirty-two-bytes'\n";
        for (file, expected) in [
            ("listen = []", "listen: names no address"),
            ("listen = ['127.0.0.1:1', '127.0.0.1:1']", "listen: names 127.0.0.1:1 twice"),
            ("listen = '127.0.0.1:1'\nmetrics_listen = '127.0.0.1:1'", "metrics_listen: is an address of `listen` too"),
            ("listen = '0.0.0.0:1'", "listen: 0.0.0.0:1 can be reached from outside"),
            ("listen = '[::ffff:10.0.0.1]:1'", "listen: [::ffff:10.0.0.1]:1 can be reached from outside"),
            ("admin_keys = ['k']", "admin_keys: the admin page comes with a later version"),
            ("workers = 2000", "workers: is more than 1024"),
            ("node_name = 'a b'", "node_name: takes at most 64 bytes"),
            ("[log]\nlevel = 'inof'", "log.level: has a level that tracing does not know; nearest known: `info`"),
            ("[log]\nlevel = 'a=b=c'", "log.level: is no filter"),
            ("[shutdown]\ndrain = '2h'", "shutdown.drain: is more than an hour"),
            ("[tls]\ncert = '/nowhere/c'\nkey = '/nowhere/k'", "tls.key: cannot read /nowhere/k"),
            ("[broker]\nmax_memory = '1KiB'", "broker.max_memory: takes \"1MiB\" and more"),
            ("[broker]\nurl = 'nats://u:pw@h'", "broker.url: begins with none of memory:, redis://"),
            (
                "[broker]\nurl = 'redis://u:pw@h:x'",
                "broker.url: has a port that is no number from 1 to 65535, at host 1",
            ),
            ("[broker]\nurl = 'redis://:pw@8.8.8.8'", "broker.url: sends the password and everything published"),
            ("[broker]\nprefix = ''", "broker.prefix: takes 1 to 64"),
            ("[broker]\nprefix = '{a}'", "broker.prefix: takes 1 to 64"),
            ("[broker]\nreplica_acks = 17\nurl = 'redis://h'", "broker.replica_acks: is more than 16"),
            ("[broker]\nreplica_acks = 1", "broker.replica_acks: is for Redis"),
            ("[broker]\nqueue_while_away = '1KiB'", "broker.queue_while_away: takes from \"1MiB\" to \"1GiB\""),
            ("[broker]\nqueue_deadline = '99ms'", "broker.queue_deadline: takes from \"100ms\" to \"4m\""),
            ("[broker]\nqueue_deadline = '11m'", "broker.queue_deadline: takes from"),
            ("[http]\nallowed_origins = ['*', 'https://a.example/x']", "http.allowed_origins[1]: takes an origin"),
            ("[http]\nallowed_origins = ['*']", "http.allowed_origins: lets pages of any site connect"),
            ("[http]\ntrusted_proxies = ['0.0.0.0/0']", "http.trusted_proxies[0]: 0.0.0.0/0 is everybody"),
            ("[http]\nmax_body = '1B'", "http.max_body: takes from \"1KiB\" to \"1GiB\""),
            ("[connection]\nping = '0s'", "connection.ping: takes whole seconds"),
            ("[connection]\nping = '1500ms'", "connection.ping: takes whole seconds"),
            ("[connection]\nping = '2h'", "connection.ping: takes whole seconds"),
            ("[connection]\nmax_subscriptions = 0", "connection.max_subscriptions: is 0"),
            (
                "[connection]\nsend_queue = '32KiB'",
                "connection.send_queue: 32KiB is less than connection.max_frame, 64KiB",
            ),
            ("[namespace.'a:b']", "namespace.\"a:b\": is no namespace"),
            ("[namespace.a]\nhistory = { size = 0, ttl = '1h' }", "namespace.a.history.size: is 0"),
            ("[namespace.a]\nhistory = { size = 1, ttl = '0s' }", "namespace.a.history.ttl: is 0"),
            ("[namespace.a]\nhistory = { size = 1, ttl = '366d' }", "namespace.a.history.ttl: is more than 365d"),
            ("[namespace.a]\nmax_data = '0B'", "namespace.a.max_data: is 0"),
            ("[namespace.a]\nmax_data = '1MiB'", "namespace.a.max_data: 1MiB and its frame do not fit"),
            (
                "[connection]\nsend_queue = '8MiB'\n[namespace.a]\nmax_data = '2MiB'",
                "namespace.a.max_data: can never be reached",
            ),
            ("[[app]]\n[[app]]\nkey = 'b'", "app[1].id: is that of app[0].id too"),
            ("[[app]]\n[[app]]\nid = 'b'", "app[1].key: is that of app[0].key too"),
            ("[[app]]\nid = 'a:b'", "app[0].id: an app id has 1 to 64"),
            ("[[app]]\nkey = 'a b'", "app[0].key: takes 1 to 128 visible"),
            ("[[app]]\nsecret = ''", "app[0].secret: is empty"),
            ("[[app]]\nsecret = '********'", "app[0].secret: is the mask"),
            ("[[app]]\nsecret = 'at-least-32-random-bytes-that-nobody-knows'", "app[0].secret: is that of the example"),
            ("[[app]]\nsecret = 'short'", "app[0].secret: has fewer than 32 bytes"),
            ("[[app]]\nsecret = '-----BEGIN PUBLIC KEY-----'", "app[0].secret: is a PEM"),
            ("[[app]]\napi_keys = ['k', 'k']", "app[0].api_keys[1]: is app[0].api_keys[0] too"),
            ("[[app]]\nsecret = 's'\napi_keys = ['s']", "app[0].api_keys[0]: is app[0].secret too"),
            ("[[app]]\napi_keys = [{ key = 'k', allow = [] }]", "app[0].api_keys[0].allow: is empty"),
        ] {
            let found = findings(file);
            assert!(found.lines().any(|line| line.starts_with(expected)), "{file}: {found}");
        }
        assert_eq!(findings(&format!("listen = '0.0.0.0:80'\n{app}")), "");
        let redis = "[broker]\nurl = 'rediss://u:pw@redis.example'\nprefix = 'a.B-9_:'\nreplica_acks = 2\nqueue_deadline = '4m'";
        assert_eq!(findings(redis), "");
        let two = format!("{app}[[app]]\nid = 'b'\nkey = 'b'");
        assert!(findings(&two).starts_with("app[1]: has no key of any kind"));
    }

    #[test]
    fn algorithms_and_keys_must_fit() {
        let folder = tempfile::tempdir().unwrap();
        let pem = |name: &str, kind: &str| {
            let path = folder.path().join(name);
            fs::write(&path, format!("-----BEGIN {kind}-----\nAAAA\n-----END {kind}-----\n")).unwrap();
            path.display().to_string()
        };
        let (public, private) = (pem("public", "PUBLIC KEY"), pem("private", "PRIVATE KEY"));
        let secret = "secret = 'a-secret-of-more-than-thirty-two-bytes'";
        let jwks = "jwks_url = 'https://a.example/jwks'";
        let es256 = format!("public_keys = [{{ kid = 'k', algorithm = 'ES256', file = '{public}' }}]");
        for (app, tokens, expected) in [
            ("", jwks, "app[0].tokens.algorithms: HS256 needs a secret, and there are only public keys"),
            (
                "",
                es256.as_str(),
                "app[0].tokens.algorithms: HS256 needs a secret, and there are only public keys: name their algorithms in its place, such as [\"ES256\"]",
            ),
            ("", "algorithms = ['HS512']", "app[0].tokens.algorithms: HS512 needs app.secret"),
            ("", "algorithms = ['EdDSA']", "app[0].tokens.algorithms: EdDSA needs a public key"),
            (secret, "algorithms = ['RS256']", "app[0].tokens.algorithms: has no HS algorithm"),
            (secret, "algorithms = []", "app[0].tokens.algorithms: is empty"),
            (secret, jwks, "app[0].tokens.jwks_url: is for nothing"),
            (secret, es256.as_str(), "app[0].tokens.public_keys[0].algorithm: is for ES256"),
            (secret, "jwks_url = 'ftp://a'", "app[0].tokens.jwks_url: takes an address"),
            (secret, "jwks_url = 'https://u:p@a/k'", "app[0].tokens.jwks_url: holds a user name"),
            (secret, "jwks_url = 'http://a.example/k'", "app[0].tokens.jwks_url: is http"),
            (
                secret,
                "public_keys = [{ kid = '', algorithm = 'ES256', file = '/nowhere' }]",
                "app[0].tokens.public_keys[0].file: cannot read",
            ),
            (
                secret,
                "public_keys = [{ kid = '', algorithm = 'ES256', file = '/nowhere' }]",
                "app[0].tokens.public_keys[0].kid: takes 1 to 128",
            ),
        ] {
            let found = findings(&format!("[[app]]\n{app}\n[app.tokens]\n{tokens}"));
            assert!(found.lines().any(|line| line.starts_with(expected)), "{app} {tokens}: {found}");
        }
        let held = findings(&format!(
            "[[app]]\n[app.tokens]\nalgorithms = ['ES256']\npublic_keys = [{{ kid = 'k', algorithm = 'ES256', file = '{private}' }}]"
        ));
        assert!(held.contains("public_keys[0].file: holds a private key"), "{held}");
        for (app, tokens) in [
            (secret, ""),
            ("", format!("algorithms = ['ES256']\n{es256}").as_str()),
            ("", format!("algorithms = ['RS256', 'EdDSA']\n{jwks}").as_str()),
            (secret, format!("algorithms = ['HS256', 'ES256']\n{es256}").as_str()),
            ("api_keys = ['a-key-of-sixteen-bytes']", ""),
        ] {
            assert_eq!(findings(&format!("[[app]]\n{app}\n[app.tokens]\n{tokens}")), "", "{app} {tokens}");
        }
    }

    #[test]
    fn a_rule_across_keys_is_silent_where_one_of_them_is_faulty() {
        let sources = Sources {
            file: None,
            env: vec![("FANWIRE_LISTEN".into(), "0.0.0.0:80".into()), ("FANWIRE_APP__0__SECRT".into(), "x".into())],
            flags: Flags::default(),
        };
        // The unknown variable is a warning: what is left is development mode in the open.
        assert!(Config::load(&sources).is_err());
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("fanwire.toml");
        fs::write(&file, "listen = '0.0.0.0:80'\n[[app]]\nsecrt = 'x'\n").unwrap();
        let errors = Config::load(&Sources { file: Some(file), ..Sources::default() }).unwrap_err();
        let expected = "app[0].secrt: unknown key; nearest known: `app[0].secret` (line 3)";
        assert_eq!(errors.to_string(), expected);
    }
}
