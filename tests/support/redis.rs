//! A real `redis-server` for one test: on a port of its own, in a folder of its own, killed with the test.
//!
//! It can be killed, stopped, restarted with or without what it held, and asked anything. Start at
//! [`RedisServer::start`]; several of them together are [`sentinel::RedisSentinel`] and
//! [`cluster::RedisCluster`].

pub mod cluster;
pub mod resp;
pub mod sentinel;

use std::{
    fs::{self, File},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustix::process::{Pid, Signal, kill_process};
use rustls::{ClientConfig, RootCertStore, pki_types::CertificateDer};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;

pub use self::resp::{Reply, Resp};
use super::{DEADLINE, port::Port};

/// How long a Redis may take for one answer before a question to it counts as failed.
const ANSWER: Duration = Duration::from_secs(2);

/// What tests themselves log in with where others need a password of their own.
const OWN_PASSWORD: &str = "the tests' own password";

/// How a Redis is to be. The default keeps nothing when it ends and lets everybody in.
#[derive(Clone, Debug, Default)]
pub struct RedisOptions {
    /// Whether everything it has answered is still there after it was killed: an append-only file, synced each time.
    pub append_only: bool,
    /// The most bytes it may use, and what it then does, such as `allkeys-lru`.
    pub max_memory: Option<(usize, &'static str)>,
    /// The password that everybody needs.
    pub password: Option<String>,
    /// The only user that [`RedisServer::url`] names; nobody gets in without a password then.
    pub user: Option<RedisUser>,
    /// Whether it listens with TLS, and only so.
    pub tls: bool,
    /// More lines for its configuration.
    pub lines: Vec<String>,
    /// Whether it is a node of a cluster.
    cluster: bool,
    /// Whether it is a sentinel.
    sentinel: bool,
}

/// A user with less than all rights.
#[derive(Clone, Debug)]
pub struct RedisUser {
    /// Its name.
    pub name: String,
    /// Its password.
    pub password: String,
    /// What it may do, as `ACL SETUSER` takes it, such as `~fanwire* &fanwire* +@all`.
    pub rules: String,
}

/// A Redis server. Dropping it kills it.
pub struct RedisServer {
    options: RedisOptions,
    port: Port,
    child: Child,
    certificate: Option<Certificate>,
    folder: TempDir,
}

/// What a Redis with TLS shows, and what believes it.
struct Certificate {
    file: PathBuf,
    connector: TlsConnector,
}

impl RedisServer {
    /// One that keeps nothing.
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// One that is as `change` wants it.
    pub async fn with(change: impl FnOnce(&mut RedisOptions)) -> Self {
        let mut options = RedisOptions::default();
        change(&mut options);
        for _ in 0..10 {
            match Self::try_start(options.clone()).await {
                Ok(server) => return server,
                Err(log) if log.contains("Address already in use") => {}
                Err(log) => panic!("redis-server did not start: {log}"),
            }
        }
        panic!("ten ports in a row were taken");
    }

    /// One, unless it ends by itself; then what it logged.
    async fn try_start(options: RedisOptions) -> Result<Self, String> {
        let port = if options.cluster { Port::claim_with_bus() } else { Port::claim() };
        let folder = tempfile::tempdir().expect("a folder");
        let certificate = options.tls.then(|| Certificate::make(folder.path()));
        let config = configuration(&options, &port, folder.path());
        fs::write(folder.path().join("redis.conf"), config).expect("the folder takes files");
        let child = spawn(&options, folder.path());
        let mut server = Self { options, port, child, certificate, folder };
        server.ready().await?;
        Ok(server)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port()))
    }

    /// What `broker.url` is for it.
    pub fn url(&self) -> String {
        self.url_at(self.port())
    }

    /// The same through something else on this machine that leads to it, such as a proxy.
    pub fn url_at(&self, port: u16) -> String {
        let scheme = if self.options.tls { "rediss" } else { "redis" };
        let login = match (&self.options.user, &self.options.password) {
            (Some(user), _) => format!("{}:{}@", user.name, user.password),
            (None, Some(password)) => format!(":{password}@"),
            (None, None) => String::new(),
        };
        // The certificate is for both names.
        format!("{scheme}://{login}127.0.0.1:{port}/0")
    }

    /// The certificate to trust, in PEM, where it has one.
    pub fn certificate(&self) -> Option<&Path> {
        self.certificate.as_ref().map(|certificate| certificate.file.as_path())
    }

    /// What it has logged so far, over all its lives.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Asks it, with all rights, on a connection of its own.
    ///
    /// # Errors
    /// What is wrong with the connection, or that no answer came in two seconds.
    pub async fn ask(&self, command: &[&str]) -> io::Result<Reply> {
        let asking = async { self.connect().await?.command(command).await };
        timeout(ANSWER, asking).await?
    }

    /// Asks it, and returns the answer as `redis-cli` would show it. It must answer, and must not refuse.
    pub async fn cli(&self, command: &[&str]) -> String {
        match self.ask(command).await {
            Ok(Reply::Error(error)) => panic!("{command:?} was refused: {error}"),
            Ok(reply) => reply.to_string(),
            Err(error) => panic!("{command:?} was not answered: {error}; {}", self.log()),
        }
    }

    /// A connection to it, with all rights.
    ///
    /// # Errors
    /// Why it cannot be had.
    pub async fn connect(&self) -> io::Result<Resp> {
        let tls = self.certificate.as_ref().map(|certificate| &certificate.connector);
        let mut connection = Resp::connect(self.address(), tls).await?;
        if let Some(password) = self.options.default_password() {
            connection.command(&["AUTH", password]).await?;
        }
        Ok(connection)
    }

    /// Completes once the answer to `command` is as wanted.
    pub async fn until(&self, what: &str, command: &[&str], wanted: impl Fn(&str) -> bool) {
        let started = Instant::now();
        let mut last = String::new();
        while started.elapsed() < DEADLINE {
            last = match self.ask(command).await {
                Ok(reply) => reply.to_string(),
                Err(error) => error.to_string(),
            };
            if wanted(&last) {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("waited {DEADLINE:?} for {what}: {command:?} last answered {last}; {}", self.log());
    }

    /// Kills it as a crash would.
    pub fn kill(&mut self) {
        self.child.kill().expect("the process is ours");
        self.child.wait().expect("the process is ours");
    }

    /// Makes it stand still, with its connections open.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
    }

    /// Makes it go on.
    pub fn cont(&self) {
        self.signal(Signal::CONT);
    }

    /// Kills it and starts it again on the same port with what it kept, which is everything if it is append-only, and
    /// else nothing.
    pub async fn restart(&mut self) {
        // It may have been killed already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.child = spawn(&self.options, self.folder.path());
        if let Err(log) = self.ready().await {
            panic!("redis-server did not come back: {log}");
        }
    }

    /// The same without anything that it kept.
    pub async fn restart_empty(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // What is not there need not be removed.
        let _ = fs::remove_dir_all(self.folder.path().join("appendonlydir"));
        let _ = fs::remove_file(self.folder.path().join("dump.rdb"));
        self.restart().await;
    }

    /// Makes it a copy of `primary` and waits until it is one.
    pub async fn replica_of(&self, primary: &RedisServer) {
        if let Some(password) = primary.options.default_password() {
            self.cli(&["CONFIG", "SET", "masterauth", password]).await;
        }
        self.cli(&["REPLICAOF", "127.0.0.1", &primary.port().to_string()]).await;
        self.until_linked().await;
    }

    /// Completes once it hears from its primary.
    pub async fn until_linked(&self) {
        let linked = |info: &str| info.contains("master_link_status:up");
        self.until("the replica to be linked", &["INFO", "replication"], linked).await;
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a process has an id");
        kill_process(pid, signal).expect("the process is ours");
    }

    /// Completes once it answers; fails with its log where it has ended.
    async fn ready(&mut self) -> Result<(), String> {
        let started = Instant::now();
        loop {
            if self.child.try_wait().expect("the process is ours").is_some() {
                return Err(self.log());
            }
            // Not all of its answers are good: it may still be reading what it kept.
            if self.ask(&["PING"]).await.is_ok_and(|reply| reply == Reply::Text("PONG".into())) {
                return Ok(());
            }
            assert!(started.elapsed() < DEADLINE, "waited {DEADLINE:?} for redis-server: {}", self.log());
            sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl RedisOptions {
    /// What whoever names no user must know.
    fn default_password(&self) -> Option<&str> {
        match (&self.password, &self.user) {
            (Some(password), _) => Some(password),
            (None, Some(_)) => Some(OWN_PASSWORD),
            (None, None) => None,
        }
    }
}

impl Certificate {
    /// A new one, with its files in `folder`.
    fn make(folder: &Path) -> Self {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names).expect("names as they should be");
        let file = folder.join("cert.pem");
        fs::write(&file, cert.pem()).expect("the folder takes files");
        fs::write(folder.join("key.pem"), signing_key.serialize_pem()).expect("the folder takes files");
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(cert.der().to_vec())).expect("our own certificate");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.expect("the provider has them").with_root_certificates(roots).with_no_client_auth();
        Self { file, connector: TlsConnector::from(Arc::new(config)) }
    }
}

/// The text of its configuration file.
fn configuration(options: &RedisOptions, port: &Port, folder: &Path) -> String {
    let (number, path) = (port.number(), folder.display());
    let mut lines = vec![
        "bind 127.0.0.1".to_owned(),
        "protected-mode no".into(),
        format!("dir {path}"),
        match options.tls {
            false => format!("port {number}"),
            true => format!(
                "port 0\ntls-port {number}\ntls-auth-clients no\ntls-cert-file {path}/cert.pem\n\
                 tls-key-file {path}/key.pem\ntls-ca-cert-file {path}/cert.pem"
            ),
        },
    ];
    if !options.sentinel {
        // Without `repl-diskless-sync-delay` a replica would be kept waiting for others for five seconds.
        lines.push("save \"\"\nenable-debug-command local\nrepl-diskless-sync-delay 0\nappendfsync always".into());
        lines.push(format!("appendonly {}", if options.append_only { "yes" } else { "no" }));
    }
    if options.cluster {
        lines.push("cluster-enabled yes\ncluster-config-file nodes.conf".into());
    }
    if let Some((bytes, policy)) = options.max_memory {
        lines.push(format!("maxmemory {bytes}\nmaxmemory-policy {policy}"));
    }
    if let Some(password) = options.default_password() {
        lines.push(format!("requirepass \"{password}\""));
    }
    if let Some(user) = &options.user {
        lines.push(format!("user {} on >{} {}", user.name, user.password, user.rules));
    }
    lines.extend(options.lines.iter().cloned());
    lines.join("\n") + "\n"
}

fn spawn(options: &RedisOptions, folder: &Path) -> Child {
    let log = File::options().create(true).append(true).open(folder.join("log")).expect("the folder takes files");
    let mut command = Command::new("redis-server");
    command.arg(folder.join("redis.conf")).args(options.sentinel.then_some("--sentinel"));
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("a second handle")).stderr(log);
    command.spawn().unwrap_or_else(|error| panic!("redis-server: {error}; `make tools` installs it"))
}

mod tests {
    use super::*;

    #[tokio::test]
    async fn an_append_only_redis_keeps_what_it_was_told() {
        let mut redis = RedisServer::with(|options| options.append_only = true).await;
        redis.cli(&["SET", "greeting", "hello there"]).await;
        redis.kill();
        redis.ask(&["PING"]).await.expect_err("it is gone");
        redis.restart().await;
        assert_eq!(redis.cli(&["GET", "greeting"]).await, "hello there");
        redis.restart_empty().await;
        assert_eq!(redis.ask(&["GET", "greeting"]).await.unwrap(), Reply::Nil);
    }

    #[tokio::test]
    async fn any_other_redis_forgets() {
        let mut redis = RedisServer::start().await;
        redis.cli(&["SET", "greeting", "hello"]).await;
        let port = redis.port();
        redis.restart().await;
        assert_eq!(redis.port(), port);
        assert_eq!(redis.cli(&["DBSIZE"]).await, "0");
    }

    #[tokio::test]
    async fn one_that_is_stopped_answers_when_it_goes_on() {
        let redis = RedisServer::start().await;
        redis.stop();
        let mut connection = redis.connect().await.expect("the kernel still accepts");
        let mut waiting = tokio::spawn(async move { connection.command(&["INCR", "n"]).await });
        timeout(Duration::from_millis(100), &mut waiting).await.expect_err("it stands still");
        redis.cont();
        assert_eq!(waiting.await.unwrap().unwrap(), Reply::Integer(1));
    }

    #[tokio::test]
    async fn a_user_may_do_what_its_rules_say() {
        let rules = "~fanwire:* +@all -flushall".to_owned();
        let ann = RedisUser { name: "ann".into(), password: "pw".into(), rules };
        let redis = RedisServer::with(|options| options.user = Some(ann)).await;
        assert_eq!(redis.url(), format!("redis://ann:pw@127.0.0.1:{}/0", redis.port()));
        let mut connection = Resp::connect(redis.address(), None).await.unwrap();
        let mut ask = async |command: &[&str]| connection.command(command).await.unwrap().to_string();
        assert!(ask(&["PING"]).await.starts_with("NOAUTH"), "nobody gets in without a password");
        assert_eq!(ask(&["AUTH", "ann", "pw"]).await, "OK");
        assert_eq!(ask(&["SET", "fanwire:x", "1"]).await, "OK");
        assert!(ask(&["SET", "other", "1"]).await.starts_with("NOPERM"));
        assert!(ask(&["FLUSHALL"]).await.starts_with("NOPERM"));
        assert_eq!(redis.cli(&["FLUSHALL"]).await, "OK", "tests may do everything");
    }

    #[tokio::test]
    async fn with_tls_there_is_nothing_else() {
        let redis = RedisServer::with(|options| {
            options.tls = true;
            options.password = Some("pw".into());
        })
        .await;
        assert_eq!(redis.cli(&["ECHO", "hello"]).await, "hello");
        assert_eq!(redis.url(), format!("rediss://:pw@127.0.0.1:{}/0", redis.port()));
        assert!(redis.certificate().is_some_and(Path::exists));
        let mut plain = Resp::connect(redis.address(), None).await.unwrap();
        assert!(plain.command(&["PING"]).await.is_err());
    }

    #[tokio::test]
    async fn a_full_one_evicts() {
        let redis = RedisServer::with(|options| options.max_memory = Some((3 << 20, "allkeys-lru"))).await;
        let value = "x".repeat(10_000);
        for n in 0..400 {
            redis.cli(&["SET", &format!("key{n}"), &value]).await;
        }
        let left: u32 = redis.cli(&["DBSIZE"]).await.parse().unwrap();
        assert!((1..400).contains(&left), "{left} are left");
    }

    #[tokio::test]
    async fn a_replica_has_what_its_primary_has() {
        let primary = RedisServer::with(|options| options.password = Some("pw".into())).await;
        primary.cli(&["SET", "n", "1"]).await;
        let replica = RedisServer::with(|options| options.password = Some("pw".into())).await;
        replica.replica_of(&primary).await;
        assert_eq!(replica.cli(&["GET", "n"]).await, "1");
        primary.cli(&["SET", "n", "2"]).await;
        replica.until("the new one to arrive", &["GET", "n"], |n| n == "2").await;
    }

    #[tokio::test]
    async fn answers_of_every_kind_are_read() {
        let redis = RedisServer::start().await;
        let script = "return {1, 'two', {3, redis.status_reply('four')}, false}";
        let reply = redis.ask(&["EVAL", script, "0"]).await.unwrap();
        let inner = Reply::Several(vec![Reply::Integer(3), Reply::Text("four".into())]);
        assert_eq!(reply.several()[1..], [Reply::Text("two".into()), inner, Reply::Nil]);
        assert_eq!(reply.to_string(), "1\ntwo\n3\nfour\n");
        let refused = redis.ask(&["NO", "SUCH", "COMMAND"]).await.unwrap();
        assert!(matches!(&refused, Reply::Error(error) if error.contains("unknown command")), "{refused:?}");
        redis.cli(&["HSET", "h", "a", "1", "b", "ünï\r\ncode"]).await;
        let hash = redis.ask(&["HGETALL", "h"]).await.unwrap();
        assert_eq!(hash.field("b").as_deref(), Some("ünï\r\ncode"));
        assert_eq!(hash.field("c"), None);
    }

    #[tokio::test]
    async fn a_subscription_brings_what_is_published() {
        let redis = RedisServer::start().await;
        let mut listener = redis.connect().await.unwrap();
        let confirmed = listener.command(&["SUBSCRIBE", "news"]).await.unwrap();
        assert_eq!(confirmed.to_string(), "subscribe\nnews\n1");
        assert_eq!(redis.cli(&["PUBLISH", "news", "hello"]).await, "1");
        assert_eq!(listener.next().await.unwrap().texts(), ["message", "news", "hello"]);
    }
}
