//! What the stories of the HTTP side need: a server of their own with two apps, plain requests, and event streams.

use std::{
    net::SocketAddr,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fanwire::{
    app::App,
    config::{Access, ApiKeyConfig, ApiScope, AppConfig, Config, HistoryConfig, NamespaceConfig, NarrowApiKey, Span},
    gateway::mint,
    node::Node,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
};

pub use crate::support::within;

/// A server on a free port of 127.0.0.1, with a runtime of its own. Dropping it shuts it down.
///
/// Its apps are `shop` and `bank`, each with the API keys `<app>-full`, `<app>-publish`, `<app>-read` and `<app>-manage`.
///
/// | namespace | subscribe, publish | history | presence, publishers |
/// | --- | --- | --- | --- |
/// | `` | anyone | no | no |
/// | `room` | anyone | 100 | yes |
/// | `user` | user | 100 | no |
/// | `token` | token | 100 | yes |
/// | `nobody` | nobody | no | no |
pub struct Server {
    pub address: SocketAddr,
    pub node: Arc<Node>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn development() -> Self {
        Self::with(|config| {
            config.apps.clear();
            config.namespaces.clear();
        })
        .await
    }

    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = config();
        change(&mut config);
        let (started_tx, started) = oneshot::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            runtime.block_on(async move {
                let app = App::start(config).await.unwrap();
                started_tx.send((app.addresses()[0], app.node().clone())).ok().unwrap();
                let _ = stopped.await;
                app.shut_down().await;
            });
        });
        let (address, node) = within("the server to start", started).await.unwrap();
        Self { address, node, stop: Some(stop), thread: Some(thread) }
    }

    /// Begins to shut down, without waiting for the end.
    pub fn begin_stop(&mut self) {
        drop(self.stop.take());
    }

    pub fn get(&self, path: &str) -> Call {
        self.call("GET", path)
    }

    pub fn post(&self, path: &str, body: impl Into<Vec<u8>>) -> Call {
        self.call("POST", path).body(body)
    }

    pub fn delete(&self, path: &str) -> Call {
        self.call("DELETE", path)
    }

    pub fn call(&self, method: &str, path: &str) -> Call {
        Call::new(self.address, method, path)
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
        within(what, async {
            while !fact(&self.node) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.begin_stop();
        let joined = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || joined.is_none_or(|joined| joined.is_ok()), "the server panicked");
    }
}

fn config() -> Config {
    let history = Some(HistoryConfig { size: 100, ttl: Span(Duration::from_secs(3600)) });
    let open = |access| NamespaceConfig { subscribe: access, publish: access, ..NamespaceConfig::default() };
    let kept = |access| NamespaceConfig { history, ..open(access) };
    let watched = |namespace| NamespaceConfig { presence: true, show_publisher: true, ..namespace };
    let namespaces = [
        ("", open(Access::Anyone)),
        ("room", watched(kept(Access::Anyone))),
        ("user", kept(Access::User)),
        ("token", watched(kept(Access::Token))),
        ("nobody", open(Access::Nobody)),
    ];
    let mut config = Config {
        listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
        workers: 2,
        metrics_listen: String::new(),
        node_name: "test-node".into(),
        apps: ["shop", "bank"].map(app).into(),
        namespaces: namespaces.map(|(name, namespace)| (name.into(), namespace)).into(),
        ..Config::default()
    };
    config.shutdown.drain = Span(Duration::ZERO);
    config
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
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let mut claims = claims;
    claims["exp"] = (now.saturating_add_signed(seconds)).into();
    mint(&secret(app), &claims).unwrap()
}

/// A token of `app` for `user`, who may do everything in channels of the namespace `token`.
pub fn token(app: &str, user: &str) -> String {
    let allow = json!([{"channels": ["token:**"], "do": ["subscribe", "publish", "presence", "history"]}]);
    token_for(app, json!({"sub": user, "allow": allow}), 600)
}

/// A request that is still to be sent.
#[derive(Clone)]
pub struct Call {
    address: SocketAddr,
    head: String,
    body: Vec<u8>,
    connection: &'static str,
}

impl Call {
    pub fn new(address: SocketAddr, method: &str, path: &str) -> Self {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\n");
        Self { address, head, body: Vec::new(), connection: "close" }
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.head += &format!("{name}: {value}\r\n");
        self
    }

    /// With an API key or a token.
    pub fn key(self, key: &str) -> Self {
        self.header("Authorization", &format!("Bearer {key}"))
    }

    /// The request's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let length =
            if self.body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", self.body.len()) };
        let mut bytes = format!("{}{length}Connection: {}\r\n\r\n", self.head, self.connection).into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }

    pub async fn send(self) -> Answer {
        exchange(self.address, &self.bytes()).await
    }

    /// Sends it and keeps the stream that it is answered with.
    pub async fn stream(mut self) -> EventStream {
        self.connection = "keep-alive";
        let mut socket = TcpStream::connect(self.address).await.unwrap();
        socket.write_all(&self.bytes()).await.unwrap();
        let mut stream =
            EventStream { socket, raw: Vec::new(), text: String::new(), head: String::new(), last_id: String::new() };
        within("the head of the stream", stream.read_head()).await;
        assert!(stream.head.starts_with("HTTP/1.1 200"), "{}{}", stream.head, String::from_utf8_lossy(&stream.raw));
        stream
    }
}

/// Sends bytes and reads all that is answered.
pub async fn exchange(address: SocketAddr, bytes: &[u8]) -> Answer {
    let answer = async {
        let mut socket = TcpStream::connect(address).await?;
        // A server that has heard enough may close its side before all is written.
        let _ = socket.write_all(bytes).await;
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let first = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
    let answer = within(format_args!("the answer to {first:?}"), answer).await;
    Answer::parse(&answer.unwrap_or_else(|error| panic!("{first:?}: {error}")))
}

/// What a server answered.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no whole head came: {text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut answer = Self { status, head: head.to_owned(), body: body.to_owned() };
        if answer.header("transfer-encoding") == Some("chunked") {
            let mut raw = body.as_bytes().to_vec();
            answer.body = std::iter::from_fn(|| chunk(&mut raw)).collect();
        }
        answer
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in the body of {self:?}"))
    }

    /// The status and the `code` of a problem document, which must be a proper one.
    pub fn problem(&self) -> (u16, String) {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"], self.status, "{self:?}");
        assert!(
            problem["type"].is_string() && problem["title"].is_string() && problem["detail"].is_string(),
            "{self:?}"
        );
        (self.status, problem["code"].as_str().unwrap_or_else(|| panic!("no code in {self:?}")).to_owned())
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let lines = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    lines.filter(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next()
}

/// Takes one whole chunk of a body (RFC 9112, 7.1) off the front.
fn chunk(raw: &mut Vec<u8>) -> Option<String> {
    let line = raw.windows(2).position(|pair| pair == b"\r\n")?;
    let size = usize::from_str_radix(std::str::from_utf8(&raw[..line]).unwrap(), 16).unwrap();
    if raw.len() < line + 2 + size + 2 || size == 0 {
        return None;
    }
    let text = String::from_utf8(raw[line + 2..line + 2 + size].to_vec()).unwrap();
    raw.drain(..line + 2 + size + 2);
    Some(text)
}

/// An event stream, read as a browser reads it.
pub struct EventStream {
    socket: TcpStream,
    raw: Vec<u8>,
    text: String,
    pub head: String,
    /// What a browser would send as `Last-Event-ID`.
    pub last_id: String,
}

/// One event: its name (`message` without one), its data as text, and the id that it came with.
#[derive(Clone, Debug)]
pub struct Event {
    pub name: String,
    pub data: String,
    pub id: Option<String>,
    pub retry: Option<u64>,
    pub comment: bool,
}

impl Event {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }
}

impl EventStream {
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    async fn read_head(&mut self) {
        loop {
            if let Some(end) = self.raw.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                self.head = String::from_utf8(self.raw.drain(..end + 4).collect()).unwrap();
                return;
            }
            assert!(self.read().await, "the head is cut off");
        }
    }

    /// False at the end.
    async fn read(&mut self) -> bool {
        self.socket.read_buf(&mut self.raw).await.unwrap_or(0) != 0
    }

    /// The next block, whatever it is; `None` at the end.
    pub async fn next_block(&mut self) -> Option<Event> {
        within("something on the stream", self.read_block()).await
    }

    async fn read_block(&mut self) -> Option<Event> {
        loop {
            while let Some(text) = chunk(&mut self.raw) {
                self.text += &text;
            }
            if let Some(end) = self.text.find("\n\n") {
                let block: String = self.text.drain(..end + 2).collect();
                return Some(self.understand(&block));
            }
            if self.raw.starts_with(b"0\r\n") || !self.read().await {
                return None;
            }
        }
    }

    /// WHATWG HTML, 9.2.6.
    fn understand(&mut self, block: &str) -> Event {
        let mut event = Event { name: "message".into(), data: String::new(), id: None, retry: None, comment: false };
        for line in block.lines().filter(|line| !line.is_empty()) {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            match field {
                "" => event.comment = true,
                "event" => event.name = value.into(),
                "data" => event.data += value,
                "id" => event.id = Some(value.into()),
                "retry" => event.retry = Some(value.parse().unwrap()),
                other => panic!("the field {other:?} in {block:?}"),
            }
        }
        if let Some(id) = &event.id {
            self.last_id.clone_from(id);
        }
        event
    }

    /// The next event that has data.
    pub async fn next(&mut self) -> Event {
        let event = async {
            loop {
                match self.read_block().await {
                    Some(event) if event.data.is_empty() => {}
                    Some(event) => return event,
                    None => panic!("the stream has ended"),
                }
            }
        };
        within("an event", event).await
    }

    /// The next event's frame; its name must be `name`.
    pub async fn expect(&mut self, name: &str) -> Value {
        let event = self.next().await;
        assert_eq!(event.name, name, "{event:?}");
        event.json()
    }

    /// The `data` of the next publication.
    pub async fn publication(&mut self) -> Value {
        self.expect("message").await["data"].clone()
    }

    /// Reads to the end; returns the events with data that came before it.
    pub async fn rest(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.next_block().await {
            events.extend(Some(event).filter(|event| !event.data.is_empty()));
        }
        events
    }
}
