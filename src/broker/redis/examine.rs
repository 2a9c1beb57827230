//! Looks at a Redis as an operator would before trusting it, for `fanwire doctor`.
//!
//! Nothing is changed: what has to be tried is tried on a key that lives for seconds. Each server has [`PATIENCE`] for all
//! of it; what was found until then counts. Sentinels are asked for the primary, a cluster for all of its primaries.
//! Start at [`examine`]; how settings are judged is in `settings`, what our user may do in `rights`.

mod rights;
mod settings;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime},
};

use futures_util::{StreamExt, future::join_all, stream};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo,
    RedisError, RedisResult, Value, aio::MultiplexedConnection,
};
use tokio::time::timeout;

use crate::config::{BrokerConfig, BrokerKind, BrokerUrl};

/// How long one server may take for all answers.
const PATIENCE: Duration = Duration::from_secs(5);
/// Servers that are looked at side by side.
const SIDE_BY_SIDE: usize = 16;
/// A round trip that publications should not have to wait for.
const SLOW: Duration = Duration::from_millis(10);

/// What is to be thought of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It works, and could be better.
    Advice,
    /// It does not work, or will not when it matters.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is to be thought of it.
    pub verdict: Verdict,
    /// What was looked at.
    pub what: &'static str,
    /// What was seen, and what to do. Holds no password.
    pub text: String,
}

impl Finding {
    fn good(what: &'static str, text: impl Into<String>) -> Self {
        Self { verdict: Verdict::Good, what, text: text.into() }
    }

    fn advice(what: &'static str, text: impl Into<String>) -> Self {
        Self { verdict: Verdict::Advice, what, text: text.into() }
    }

    fn bad(what: &'static str, text: impl Into<String>) -> Self {
        Self { verdict: Verdict::Bad, what, text: text.into() }
    }
}

/// Looks at the Redis at `url`, to be used with `config`; nothing is found of `memory:`.
pub async fn examine(url: &BrokerUrl, config: &BrokerConfig) -> Vec<Finding> {
    let examiner = Examiner { url, config };
    match &url.kind {
        BrokerKind::Memory => Vec::new(),
        BrokerKind::Standalone => match url.hosts.first() {
            Some((host, port)) => examiner.server(host, *port).await,
            None => Vec::new(),
        },
        BrokerKind::Sentinel { master } => examiner.sentinels(master).await,
        BrokerKind::Cluster => examiner.cluster().await,
    }
}

struct Examiner<'a> {
    url: &'a BrokerUrl,
    config: &'a BrokerConfig,
}

impl Examiner<'_> {
    /// Everything about one server, each finding with its address.
    async fn server(&self, host: &str, port: u16) -> Vec<Finding> {
        const WHAT: &str = "redis";
        let mut findings = Vec::new();
        match timeout(PATIENCE, self.look(host, port, &mut findings)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => findings.push(Finding::bad(WHAT, describe(&error, self.url))),
            Err(_) => findings.push(Finding::bad(WHAT, silence(self.url))),
        }
        let address = address(host, port);
        findings.into_iter().map(|finding| Finding { text: format!("{address} {}", finding.text), ..finding }).collect()
    }

    async fn look(&self, host: &str, port: u16, findings: &mut Vec<Finding>) -> RedisResult<()> {
        let (pushed, pushes) = tokio::sync::mpsc::unbounded_channel();
        let settings = AsyncConnectionConfig::new().set_push_sender(pushed);
        let mut connection = self.connect(host, port, true, settings).await?;
        findings.push(round_trip(&mut connection).await?);
        let info = match redis::cmd("INFO").arg("everything").query_async::<String>(&mut connection).await {
            Ok(text) => Info::read(&text),
            // What is missing is told below, with the rights.
            Err(error) if error.code() == Some("NOPERM") => Info::default(),
            Err(error) => return Err(error),
        };
        let readable = Settings::read(&mut connection).await?;
        findings.extend(settings::judge(&info, &readable, self.url, self.config));
        findings.extend(clock(&mut connection).await?);
        let rights = rights::Rights { url: self.url, prefix: &self.config.prefix, functions: info.has_functions() };
        findings.extend(rights.look(&mut connection, pushes).await?);
        Ok(())
    }

    /// Asks every Sentinel of the URL, then looks at the primary that they name.
    async fn sentinels(&self, master: &str) -> Vec<Finding> {
        const WHAT: &str = "redis sentinel";
        let asked = self.url.hosts.iter().map(|(host, port)| async move {
            match timeout(PATIENCE, self.ask_sentinel(host, *port, master)).await {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(error)) => Err(format!("{} {}", address(host, *port), describe(&error, self.url))),
                Err(_) => Err(format!("{} {}", address(host, *port), silence(self.url))),
            }
        });
        let (mut findings, mut named) = (Vec::new(), Vec::new());
        for (answer, (host, port)) in join_all(asked).await.into_iter().zip(&self.url.hosts) {
            let own = address(host, *port);
            match answer {
                Ok(Watched { primary: Some(primary), quorum }) => {
                    findings.extend(quorum.map(|problem| Finding::advice(WHAT, format!("{own} says: {problem}"))));
                    named.push(primary);
                }
                Ok(Watched { primary: None, .. }) => {
                    findings.push(Finding::bad(WHAT, format!("{own} watches nothing called `{master}`")));
                }
                Err(problem) => findings.push(Finding::advice(WHAT, problem)),
            }
        }
        let Some((host, port)) = named.first().cloned() else {
            findings.push(Finding::bad(WHAT, format!("none names a primary called `{master}`")));
            return findings;
        };
        findings.insert(0, agreement(WHAT, master, &named, self.url.hosts.len()));
        findings.extend(self.server(&host, port).await);
        findings
    }

    async fn ask_sentinel(&self, host: &str, port: u16, master: &str) -> RedisResult<Watched> {
        let mut connection = self.connect(host, port, false, AsyncConnectionConfig::new()).await?;
        let mut ask = redis::cmd("SENTINEL");
        let primary = ask.arg("get-master-addr-by-name").arg(master).query_async(&mut connection).await?;
        let check = redis::cmd("SENTINEL").arg("CKQUORUM").arg(master).exec_async(&mut connection).await;
        let quorum = check.err().filter(|error| error.code() == Some("NOQUORUM")).map(|error| error.to_string());
        Ok(Watched { primary, quorum })
    }

    /// Asks the first node that answers for the others, then looks at every primary.
    async fn cluster(&self) -> Vec<Finding> {
        const WHAT: &str = "redis cluster";
        let mut findings = Vec::new();
        for (host, port) in &self.url.hosts {
            let problem = match timeout(PATIENCE, self.ask_cluster(host, *port)).await {
                Ok(Ok((state, primaries))) => {
                    findings.push(Finding { text: format!("{} {}", address(host, *port), state.text), ..state });
                    let looked = stream::iter(&primaries).map(|(host, port)| self.server(host, *port));
                    let looked: Vec<_> = looked.buffered(SIDE_BY_SIDE).collect().await;
                    findings.extend(looked.into_iter().flatten());
                    return findings;
                }
                Ok(Err(error)) => describe(&error, self.url),
                Err(_) => silence(self.url),
            };
            findings.push(Finding::advice(WHAT, format!("{} {problem}", address(host, *port))));
        }
        findings.push(Finding::bad(WHAT, "no node of the URL tells of a cluster"));
        findings
    }

    async fn ask_cluster(&self, host: &str, port: u16) -> RedisResult<(Finding, Vec<(String, u16)>)> {
        let mut connection = self.connect(host, port, true, AsyncConnectionConfig::new()).await?;
        let text: String = redis::cmd("CLUSTER").arg("INFO").query_async(&mut connection).await?;
        let slots: Value = redis::cmd("CLUSTER").arg("SLOTS").query_async(&mut connection).await?;
        let primaries = primaries(&slots, host);
        Ok((settings::cluster(&Info::read(&text), primaries.len()), primaries))
    }

    /// A connection; `is_server`: not a Sentinel, which has no databases and nobody of ours as its user.
    async fn connect(
        &self,
        host: &str,
        port: u16,
        is_server: bool,
        settings: AsyncConnectionConfig,
    ) -> RedisResult<MultiplexedConnection> {
        let url = self.url;
        let host = host.to_owned();
        let address = match url.tls {
            true => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
            false => ConnectionAddr::Tcp(host, port),
        };
        let mut login = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3);
        if is_server {
            login = login.set_db(i64::from(url.database));
            if let Some(username) = &url.username {
                login = login.set_username(username);
            }
            if let Some(password) = &url.password {
                login = login.set_password(password);
            }
        }
        // Whoever calls this waits for PATIENCE in all.
        let settings = settings.set_connection_timeout(None).set_response_timeout(None);
        let client = Client::open(address.into_connection_info()?.set_redis_settings(login))?;
        client.get_multiplexed_async_connection_with_config(&settings).await
    }
}

/// What a Sentinel says of a primary.
struct Watched {
    primary: Option<(String, u16)>,
    /// Why a failover could not be agreed on now.
    quorum: Option<String>,
}

/// Whether all that answered name the same primary.
fn agreement(what: &'static str, master: &str, named: &[(String, u16)], asked: usize) -> Finding {
    let mut different: Vec<_> = named.iter().map(|(host, port)| address(host, *port)).collect();
    let answered = different.len();
    different.sort_unstable();
    different.dedup();
    let places = different.join(", ");
    if different.len() != 1 {
        return Finding::bad(what, format!("`{master}` is {places}, by different Sentinels: look again in a minute"));
    }
    match asked {
        1 => Finding::advice(
            what,
            format!("`{master}` is {places}; one Sentinel in broker.url is one to lose: name all, three at least"),
        ),
        _ => Finding::good(what, format!("`{master}` is {places}, say {answered} of {asked}")),
    }
}

/// The primaries in an answer to `CLUSTER SLOTS`, each once. `asked` is the host of a node that does not know its own.
fn primaries(slots: &Value, asked: &str) -> Vec<(String, u16)> {
    let text = |value: &Value| match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) => text.clone(),
        _ => String::new(),
    };
    let Value::Array(ranges) = slots else { return Vec::new() };
    let mut found = Vec::new();
    for range in ranges {
        // The first slot, the last one, the primary, its replicas.
        let Value::Array(parts) = range else { continue };
        let Some(Value::Array(node)) = parts.get(2) else { continue };
        let [host, Value::Int(port), ..] = &node[..] else { continue };
        let Ok(port) = u16::try_from(*port) else { continue };
        let host = Some(text(host)).filter(|host| !matches!(host.as_str(), "" | "?")).unwrap_or_else(|| asked.into());
        if !found.contains(&(host.clone(), port)) {
            found.push((host, port));
        }
    }
    found
}

async fn round_trip(connection: &mut MultiplexedConnection) -> RedisResult<Finding> {
    const WHAT: &str = "redis";
    let mut times = Vec::new();
    for _ in 0..5 {
        let sent = Instant::now();
        redis::cmd("PING").exec_async(connection).await?;
        times.push(sent.elapsed());
    }
    times.sort_unstable();
    let median = times[times.len() / 2];
    let text = format!("answers in {:.2} ms", median.as_secs_f64() * 1000.0);
    Ok(match median < SLOW {
        true => Finding::good(WHAT, text),
        false => Finding::advice(WHAT, format!("{text}: every publication waits for that; run it nearer to the nodes")),
    })
}

async fn clock(connection: &mut MultiplexedConnection) -> RedisResult<Option<Finding>> {
    let sent = Instant::now();
    let theirs: (u64, u64) = match redis::cmd("TIME").query_async(connection).await {
        Ok(theirs) => theirs,
        Err(error) if error.code() == Some("NOPERM") => return Ok(None),
        Err(error) => return Err(error),
    };
    let halfway = sent.elapsed() / 2;
    let ours = SystemTime::now().checked_sub(halfway).unwrap_or(SystemTime::UNIX_EPOCH);
    let ours = ours.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let theirs = Duration::from_secs(theirs.0).saturating_add(Duration::from_micros(theirs.1));
    Ok(Some(settings::clock(ours.abs_diff(theirs))))
}

/// The fields of an `INFO`.
#[derive(Default)]
struct Info(BTreeMap<String, String>);

impl Info {
    fn read(text: &str) -> Self {
        let fields = text.lines().filter_map(|line| line.split_once(':'));
        Self(fields.map(|(name, value)| (name.into(), value.trim().into())).collect())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.get(name)?.parse().ok()
    }

    /// Major and minor.
    fn version(&self) -> Option<(u64, u64)> {
        let mut parts = self.get("redis_version")?.split('.').map(|part| part.parse().ok());
        Some((parts.next()??, parts.next()??))
    }

    fn has_functions(&self) -> bool {
        self.version().is_none_or(|version| (7, 0) <= version)
    }
}

/// Those settings that are not in `INFO`; `None` where they may not be read.
#[derive(Default)]
struct Settings(Option<BTreeMap<String, String>>);

impl Settings {
    const NAMES: [&str; 4] =
        ["client-output-buffer-limit", "appendfsync", "min-replicas-to-write", "min-replicas-max-lag"];

    async fn read(connection: &mut MultiplexedConnection) -> RedisResult<Self> {
        let mut all = BTreeMap::new();
        for name in Self::NAMES {
            match redis::cmd("CONFIG").arg("GET").arg(name).query_async::<BTreeMap<String, String>>(connection).await {
                Ok(found) => all.extend(found),
                // Managed services forbid it, or have renamed it away.
                Err(error) if !error.is_io_error() => return Ok(Self(None)),
                Err(error) => return Err(error),
            }
        }
        Ok(Self(Some(all)))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.as_ref()?.get(name).map(String::as_str)
    }
}

fn address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// What no answer may mean. A Redis without TLS waits for the rest of what it takes for a long command.
fn silence(url: &BrokerUrl) -> String {
    let tls = if url.tls { ", or one that does not speak TLS on that port" } else { "" };
    let seconds = PATIENCE.as_secs();
    format!("does not answer within {seconds} s: a firewall in between, a server that stands still{tls}?")
}

/// An error and what to do about it. The crate's errors name addresses and what the server said, never a password.
fn describe(error: &RedisError, url: &BrokerUrl) -> String {
    let text = error.to_string();
    let has = |part: &str| text.contains(part);
    let advice = if has("WRONGPASS") || has("invalid password") || has("invalid username") {
        "user or password in broker.url are not those of Redis; ACL LIST there shows its users"
    } else if has("NOAUTH") || has("Authentication required") {
        "it asks for a password: put user and password into broker.url"
    } else if has("UnknownIssuer") || has("certificate") {
        "its certificate is not trusted here: for an authority of your own set SSL_CERT_FILE"
    } else if has("InvalidContentType") || has("corrupt message") {
        "it does not speak TLS on that port: redis:// in place of rediss://, or its tls-port"
    } else if has("cluster support disabled") {
        "it is no cluster: redis:// in place of redis+cluster://"
    } else if has("LOADING") {
        "it reads its data from disk: look again when it has"
    } else if error.is_connection_refusal() {
        "nothing listens there: is it running, and bound to that address?"
    } else if !url.tls && (error.is_connection_dropped() || has("unexpected end of file")) {
        "it closed the connection: does it speak TLS only? then rediss:// in place of redis://"
    } else {
        return text;
    };
    format!("{text}; {advice}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_primaries_of_a_cluster_are_found_once_each() {
        let node = |host: &str, port| {
            let id = Value::BulkString(b"id".to_vec());
            Value::Array(vec![Value::BulkString(host.as_bytes().to_vec()), Value::Int(port), id])
        };
        let range = |primary, replica| Value::Array(vec![Value::Int(0), Value::Int(1), primary, replica]);
        let slots = Value::Array(vec![
            range(node("a", 1), node("b", 2)),
            range(node("b", 2), node("a", 1)),
            range(node("a", 1), node("b", 2)),
            range(node("", 3), node("b", 2)),
            range(node("c", 70_000), Value::Nil),
            Value::Array(Vec::new()),
            Value::Nil,
        ]);
        let expected = [("a", 1), ("b", 2), ("asked", 3)].map(|(host, port)| (host.to_owned(), port));
        assert_eq!(primaries(&slots, "asked"), expected);
        assert!(primaries(&Value::Nil, "asked").is_empty());
    }

    #[test]
    fn sentinels_must_agree() {
        let at = |port| ("h".to_owned(), port);
        for (named, asked, verdict) in [
            (vec![at(1), at(1)], 3, Verdict::Good),
            (vec![at(1)], 1, Verdict::Advice),
            (vec![at(1), at(2)], 2, Verdict::Bad),
        ] {
            assert_eq!(agreement("", "main", &named, asked).verdict, verdict, "{named:?}");
        }
    }

    #[test]
    fn info_is_read_by_its_names() {
        let info = Info::read("# Server\r\nredis_version:7.0.15\r\nslave0:ip=::1,port=1\r\nodd\r\nn:5\r\n");
        assert_eq!(
            (info.version(), info.number("n"), info.get("slave0")),
            (Some((7, 0)), Some(5), Some("ip=::1,port=1"))
        );
        assert_eq!((info.get("odd"), Info::read("redis_version:x").version()), (None, None));
    }
}
