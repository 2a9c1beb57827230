//! A client of the native protocol over an independent WebSocket library.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use fanwire::node::Node;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{self, Message, client::IntoClientRequest, http::HeaderValue},
};

use super::{token, within};

/// A connection that is still to be made.
pub struct Connecting {
    address: SocketAddr,
    name: String,
    query: Vec<String>,
    headers: Vec<(&'static str, String)>,
    receive_buffer: Option<usize>,
    tls: Option<tokio_rustls::TlsConnector>,
    node: Option<Arc<Node>>,
}

impl Connecting {
    /// To a server in this process.
    pub fn to_node(address: SocketAddr, node: Arc<Node>) -> Self {
        Self { node: Some(node), ..Self::to(address) }
    }

    /// To the server at `address`, anonymously.
    pub fn to(address: SocketAddr) -> Self {
        let (query, headers) = (Vec::new(), Vec::new());
        Self { address, name: "somebody".into(), query, headers, receive_buffer: None, tls: None, node: None }
    }

    /// As this user, by a token in the query.
    pub fn user(self, user: &str) -> Self {
        let token = token::user(user);
        self.named(user).token(&token)
    }

    /// With this token in the query.
    pub fn token(self, token: &str) -> Self {
        self.query("token", token)
    }

    /// With one more member of the query, which needs no escapes.
    pub fn query(mut self, name: &str, value: &str) -> Self {
        self.query.push(format!("{name}={value}"));
        self
    }

    /// With one more header.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// What failures call it.
    pub fn named(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    /// With little room for what it does not read, so that it is slow soon.
    pub fn receive_buffer(mut self, bytes: usize) -> Self {
        self.receive_buffer = Some(bytes);
        self
    }

    /// Encrypted.
    pub fn tls(mut self, connector: tokio_rustls::TlsConnector) -> Self {
        self.tls = Some(connector);
        self
    }

    /// Connects and takes the welcome.
    pub async fn connect(self) -> Client {
        let mut client = self.open().await;
        client.welcome = client.next_frame().await;
        assert_eq!(client.welcome["type"], "welcome", "{}: the first frame is {}", client.name, client.welcome);
        client
    }

    /// Connects and takes nothing yet.
    pub async fn open(self) -> Client {
        let name = self.name.clone();
        match self.try_open().await {
            Ok(client) => client,
            Err(error) => panic!("{name} could not connect: {error}"),
        }
    }

    /// Connects, or says why the handshake failed.
    pub async fn try_open(self) -> Result<Client, tungstenite::Error> {
        let (tcp, twin) = self.dial().await.map_err(tungstenite::Error::Io)?;
        let scheme = if self.tls.is_some() { "wss" } else { "ws" };
        let url = format!("{scheme}://{}/v1/ws?{}", self.address, self.query.join("&"));
        let mut request = url.into_client_request()?;
        for (name, value) in &self.headers {
            request.headers_mut().append(*name, HeaderValue::from_str(value).expect("a header's value"));
        }
        let handshake = async {
            let io: Box<dyn Io> = match &self.tls {
                None => Box::new(tcp),
                Some(tls) => {
                    let name = "localhost".try_into().expect("a name");
                    Box::new(tls.connect(name, tcp).await.map_err(tungstenite::Error::Io)?)
                }
            };
            client_async(request, io).await
        };
        let (socket, response) = within(format!("{}'s handshake", self.name), handshake).await?;
        let protocol = response.headers().get("sec-websocket-protocol");
        Ok(Client {
            name: self.name,
            node: self.node,
            socket,
            tcp: twin,
            protocol: protocol.map(|value| value.to_str().expect("a sub-protocol is text").to_owned()),
            welcome: Value::Null,
            heard: VecDeque::new(),
            last: VecDeque::new(),
            positions: Positions::default(),
            commands: 0,
        })
    }

    /// A socket, and a second handle to it.
    async fn dial(&self) -> std::io::Result<(TcpStream, socket2::Socket)> {
        let socket = match self.address {
            SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
            SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
        };
        if let Some(bytes) = self.receive_buffer {
            socket.set_recv_buffer_size(u32::try_from(bytes).expect("a small buffer"))?;
        }
        let tcp = within(format!("{}'s connection", self.name), socket.connect(self.address)).await?;
        tcp.set_nodelay(true)?;
        let twin = socket2::SockRef::from(&tcp).try_clone()?;
        Ok((tcp, twin))
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// How many of the last frames a failure shows.
const SHOWN: usize = 8;

/// One client. It answers pings while it waits for something.
pub struct Client {
    name: String,
    node: Option<Arc<Node>>,
    socket: WebSocketStream<Box<dyn Io>>,
    tcp: socket2::Socket,
    protocol: Option<String>,
    welcome: Value,
    /// Frames that came while another one was awaited.
    heard: VecDeque<Value>,
    /// The last frames, as they came, for failures.
    last: VecDeque<String>,
    positions: Positions,
    commands: u64,
}

/// Where a client stands in each channel: epoch and offset.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Positions(BTreeMap<String, (String, u64)>);

impl Positions {
    /// Where it stands in `channel`, as `after` wants it.
    pub fn of(&self, channel: &str) -> Value {
        match self.0.get(channel) {
            Some((epoch, offset)) => json!({ "epoch": epoch, "offset": offset }),
            None => panic!("no position in {channel}, only {self:?}"),
        }
    }

    fn note(&mut self, frame: &Value) {
        let (Some(channel), Some(offset)) = (frame["channel"].as_str(), frame["offset"].as_u64()) else { return };
        match (frame["type"].as_str(), frame["epoch"].as_str()) {
            (Some("subscribed"), Some(epoch)) => drop(self.0.insert(channel.into(), (epoch.into(), offset))),
            (Some("message"), _) => {
                self.0.entry(channel.into()).and_modify(|at| at.1 = offset);
            }
            _ => {}
        }
    }
}

/// How a connection ended.
#[derive(Debug)]
pub struct Ended {
    /// The close code; `None` where the socket ended without a close frame.
    pub code: Option<u16>,
    /// The close frame's reason; without a close frame, what broke.
    pub reason: String,
    /// Every frame since the last one that was awaited.
    pub frames: Vec<Value>,
}

impl Ended {
    /// The `disconnect` frame, which is the last one.
    pub fn disconnect(&self) -> &Value {
        match self.frames.last() {
            Some(frame) if frame["type"] == "disconnect" => frame,
            _ => panic!("no disconnect frame at the end of {:?}", self.frames),
        }
    }
}

impl Client {
    /// The welcome.
    pub fn welcome(&self) -> &Value {
        &self.welcome
    }

    /// Its connection's id.
    pub fn connection(&self) -> String {
        self.welcome["connection"].as_str().expect("a welcome names the connection").to_owned()
    }

    /// The sub-protocol that the server chose.
    pub fn protocol(&self) -> Option<&str> {
        self.protocol.as_deref()
    }

    /// Where it stands in each channel.
    pub fn positions(&self) -> &Positions {
        &self.positions
    }

    // Commands.

    /// Subscribes, and returns the `subscribed` frame.
    pub async fn subscribe(&mut self, channel: &str) -> Value {
        self.expect("subscribed", json!({ "type": "subscribe", "channel": channel })).await
    }

    /// Subscribes after a position, and returns the data of what was missed.
    pub async fn recover(&mut self, channel: &str, positions: Positions) -> Vec<Value> {
        let after = positions.of(channel);
        let subscribe = json!({ "type": "subscribe", "channel": channel, "after": after });
        let subscribed = self.expect("subscribed", subscribe).await;
        assert_eq!(subscribed["recovered"], true, "{}: {subscribed}", self.name);
        self.messages_until_quiet(channel).await.into_iter().map(|mut message| message["data"].take()).collect()
    }

    /// Publishes, and returns the `published` frame.
    pub async fn publish(&mut self, channel: &str, data: impl Into<Value>) -> Value {
        let publish = json!({ "type": "publish", "channel": channel, "data": data.into() });
        self.expect("published", publish).await
    }

    /// Sends a command under a new id and returns its answer, whatever it is. What comes before it waits.
    pub async fn request(&mut self, mut command: Value) -> Value {
        self.commands += 1;
        command["id"] = self.commands.into();
        let id = command["id"].clone();
        self.send(&command).await;
        self.take(&format!("the answer to {command}"), |frame| frame["id"] == id).await
    }

    /// Sends a command and returns its answer, which must be of this type.
    pub async fn expect(&mut self, kind: &str, command: Value) -> Value {
        let answer = self.request(command.clone()).await;
        assert_eq!(answer["type"], kind, "{}: {command} was answered {answer}", self.name);
        answer
    }

    /// Sends a command that must be refused, and returns the error's code.
    pub async fn refused(&mut self, command: Value) -> String {
        let answer = self.expect("error", command).await;
        assert!(answer["message"].is_string(), "an error explains itself: {answer}");
        answer["code"].as_str().expect("an error has a code").to_owned()
    }

    // Frames.

    /// Sends a frame.
    pub async fn send(&mut self, frame: &Value) {
        self.send_text(&frame.to_string()).await;
    }

    /// Sends a frame's text as it is.
    pub async fn send_text(&mut self, text: &str) {
        self.send_message(Message::text(text)).await;
    }

    /// Sends any kind of WebSocket message.
    pub async fn send_message(&mut self, message: Message) {
        let sent = within(format!("{} to send", self.name), self.socket.send(message)).await;
        if let Err(error) = sent {
            panic!("{} could not send: {error}; {}", self.name, self.came());
        }
    }

    /// The data of the next publication. Other frames wait.
    pub async fn next_publication(&mut self) -> Value {
        self.next_of("message").await["data"].take()
    }

    /// The next `message` frame. Other frames wait.
    pub async fn next_message(&mut self) -> Value {
        self.next_of("message").await
    }

    /// The next frame of this type. Other frames wait.
    pub async fn next_of(&mut self, kind: &str) -> Value {
        self.take(&format!("a {kind} frame"), |frame| frame["type"] == kind).await
    }

    /// The next frame.
    pub async fn next_frame(&mut self) -> Value {
        self.take("a frame", |_| true).await
    }

    /// The next frame's bytes. Nothing may be waiting.
    pub async fn next_text(&mut self) -> String {
        assert!(self.heard.is_empty(), "{}: frames wait: {:?}", self.name, self.heard);
        match self.hear("a frame").await {
            Heard::Text(text) => text,
            Heard::End(ended) => panic!("{} awaited a frame and the connection ended: {ended:?}", self.name),
        }
    }

    /// The `message` frames of `channel` that were published, or missed, up to now. Others wait.
    pub async fn messages_until_quiet(&mut self, channel: &str) -> Vec<Value> {
        let frames = self.until_quiet().await.into_iter();
        let (wanted, others) = frames.partition(|frame| frame["type"] == "message" && frame["channel"] == channel);
        self.heard = VecDeque::from_iter::<Vec<_>>(others);
        wanted
    }

    /// Every frame that is on its way to this client, of all that was acknowledged to others or sent by itself.
    ///
    /// A session does one command after the other, so after a pong all is done that this client asked for, and what came
    /// of it is in the shards' inboxes. Answers do not pass through those, so they are emptied before the second pong,
    /// which then comes after everything.
    pub async fn until_quiet(&mut self) -> Vec<Value> {
        let node = self.node.clone().expect("only a server in this process can be asked for this");
        self.ping().await;
        within("the shards' inboxes to be empty", node.hub().on_every_shard(|_| ())).await;
        self.ping().await;
        self.heard.drain(..).collect()
    }

    /// Takes the answer to a ping; what comes before it waits.
    async fn ping(&mut self) {
        self.expect("pong", json!({ "type": "ping" })).await;
    }

    /// The frames of a kind that came and that nobody has taken.
    pub fn heard(&self, kind: &str) -> Vec<&Value> {
        self.heard.iter().filter(|frame| frame["type"] == kind).collect()
    }

    /// Takes the first frame that is `wanted`; those before it wait.
    pub async fn take(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        if let Some(at) = self.heard.iter().position(&wanted) {
            return self.heard.remove(at).expect("it is there");
        }
        loop {
            match self.hear(what).await {
                Heard::Text(text) => {
                    let frame: Value = match serde_json::from_str(&text) {
                        Ok(frame) => frame,
                        Err(error) => panic!("{} got a frame that is no JSON ({error}): {text}", self.name),
                    };
                    self.positions.note(&frame);
                    if wanted(&frame) {
                        return frame;
                    }
                    self.heard.push_back(frame);
                }
                Heard::End(ended) => {
                    panic!("{} awaited {what} and the connection ended: {ended:?}; {}", self.name, self.came())
                }
            }
        }
    }

    /// The end of the connection, with all frames before it.
    pub async fn ended(&mut self) -> Ended {
        let mut frames: Vec<Value> = self.heard.drain(..).collect();
        loop {
            match self.hear("the end of the connection").await {
                Heard::Text(text) => frames.push(serde_json::from_str(&text).expect("frames are JSON")),
                Heard::End((code, reason)) => return Ended { code, reason, frames },
            }
        }
    }

    /// The next WebSocket message of any kind.
    pub async fn next_raw(&mut self) -> Message {
        match within(format!("{}: any WebSocket message", self.name), self.socket.next()).await {
            Some(Ok(message)) => message,
            end => panic!("{} awaited a WebSocket message and got {end:?}; {}", self.name, self.came()),
        }
    }

    async fn hear(&mut self, what: &str) -> Heard {
        // Pings keep coming where nothing else does.
        let deadline = tokio::time::Instant::now() + super::DEADLINE;
        loop {
            let next = match tokio::time::timeout_at(deadline, self.socket.next()).await {
                Ok(next) => next,
                Err(_) => panic!("{} waited {:?} for {what}; {}", self.name, super::DEADLINE, self.came()),
            };
            match next {
                Some(Ok(Message::Text(text))) => {
                    if self.last.len() == SHOWN {
                        self.last.pop_front();
                    }
                    self.last.push_back(text.chars().take(200).collect());
                    return Heard::Text(text.to_string());
                }
                Some(Ok(Message::Close(frame))) => {
                    // The library answers the close when it is polled once more.
                    let _ = tokio::time::timeout(Duration::from_secs(5), self.socket.next()).await;
                    let (code, reason) =
                        frame.map_or((1005, String::new()), |frame| (frame.code.into(), frame.reason.to_string()));
                    return Heard::End((Some(code), reason));
                }
                Some(Ok(Message::Binary(bytes))) => panic!("{} got a binary message: {bytes:?}", self.name),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Heard::End((None, error.to_string())),
                None => return Heard::End((None, String::new())),
            }
        }
    }

    /// What a failure says about the past.
    fn came(&self) -> String {
        let mut text = match self.last.is_empty() {
            true => "nothing had come".to_owned(),
            false => "the last frames were:".to_owned(),
        };
        for frame in &self.last {
            let _ = write!(text, "\n  {frame}");
        }
        text
    }

    // Ends.

    /// Breaks the connection as a lost network does: no close frame, a reset. Returns where the client stands.
    pub async fn lose_connection(self) -> Positions {
        self.tcp.set_linger(Some(Duration::ZERO)).expect("the socket is open");
        self.positions
    }

    /// Closes politely and waits until the server has closed too. Returns its code.
    pub async fn close(mut self) -> Option<u16> {
        within(format!("{} to close", self.name), self.socket.close(None)).await.expect("the socket is open");
        self.ended().await.code
    }
}

enum Heard {
    Text(String),
    End((Option<u16>, String)),
}
