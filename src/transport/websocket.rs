//! WebSocket: the upgrade, then reading frames for a session and ending as RFC 6455 says.
//!
//! The upgraded connection is taken apart to its bare socket, which the shard reads from and writes to itself. Where that
//! cannot be (TLS in process), a generic reader and writer stand in, with the same queue and the same rules. Start at
//! [`adopt`], then [`Conversation::run`].

use std::{collections::VecDeque, io, net::Shutdown, panic::AssertUnwindSafe, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt;
use hyper::upgrade::{OnUpgrade, Parts, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    net::TcpStream,
    task::{spawn_local, yield_now},
    time::timeout,
};
use tracing::debug;

use super::{Door, DoorSettings, OpenSocket};
use crate::{
    domain::{ConnectionId, DisconnectReason, Format, Push, Request},
    gateway::{App, opening::Opening},
    hub::{Connection, Shard, Socket, Wake},
    protocol::native::Native,
    session::{Ending, Flow, Session},
    telemetry::Transport,
    wire::{CloseCode, Limits, Message, Progress, Reader, Violation, frame},
};

/// How long the client may take from our 101 on to let us have the socket.
const UPGRADE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a client may take for a message from its first byte to its last, the time aside in which nothing is read of it:
/// what is unfinished takes memory that all of a shard's connections share.
const MESSAGE_DEADLINE: Duration = Duration::from_secs(10);
/// How long the last frames may take to leave.
const FLUSH_DEADLINE: Duration = Duration::from_secs(5);
/// How long the kernel may take to take the close frame of a peer that took nothing.
const LAST_WORD_DEADLINE: Duration = Duration::from_secs(1);
/// What is decoded of one read, in commands and in bytes of text, before others on the shard have their turn: one read of
/// compressed frames may inflate to 500 times its size.
const MAX_TURN_REQUESTS: usize = 256;
const MAX_TURN_BYTES: usize = 128 << 10;
/// How long, and how much, is still read after our close, so that it is not lost to a reset.
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);
const DRAIN_BYTES: usize = 1 << 20;

/// Why a connection was closed that did not end a message in time.
const TOO_LONG: &str = "message took too long";
/// The most pings of one read that are answered.
const MAX_PONGS: usize = 16;

static NATIVE: Native = Native;

/// A handshake that was answered with 101, on its way to the shard.
pub struct Accepted {
    /// Where the socket comes from.
    pub upgrade: OnUpgrade,
    /// App and token.
    pub opening: Opening,
    /// Whether permessage-deflate was agreed.
    pub deflated: bool,
    /// The socket's place in the count of this node's sockets; kept until its last frames are out.
    pub open: Option<OpenSocket>,
}

/// What a socket's messages are said to: a session; in `examples/echo.rs`, where the conformance cases are run against
/// this very code, something that says them back.
pub trait Dialogue {
    /// What a message asks for.
    type Request;

    /// The connection that it is held over.
    fn connection(&self) -> &Rc<Connection>;

    /// Appends what a message asks for.
    ///
    /// # Errors
    /// The code to close with: such messages are not spoken here.
    fn understand(&self, message: Message<'_>, requests: &mut Vec<Self::Request>) -> Result<(), CloseCode>;

    /// Says the first word, given the token that the connection came with.
    fn open(&mut self, token: Option<&str>) -> impl Future<Output = Flow>;

    /// Does what was asked, and answers it.
    fn request(&mut self, request: Self::Request) -> impl Future<Output = Flow>;

    /// Does what the hub woke the connection for.
    fn woken(&mut self, wake: Wake) -> impl Future<Output = Flow>;

    /// Leaves everything. The last thing that is called.
    fn close(self, reason: &str) -> impl Future<Output = ()>;
}

impl Dialogue for Session {
    type Request = Request;

    fn connection(&self) -> &Rc<Connection> {
        self.connection()
    }

    fn understand(&self, message: Message<'_>, requests: &mut Vec<Request>) -> Result<(), CloseCode> {
        match message {
            Message::Text(text) => self.codec().decode(text, requests),
            _ => return Err(CloseCode::UNSUPPORTED_DATA),
        }
        Ok(())
    }

    fn open(&mut self, token: Option<&str>) -> impl Future<Output = Flow> {
        self.open(token)
    }

    fn request(&mut self, request: Request) -> impl Future<Output = Flow> {
        self.request(request)
    }

    fn woken(&mut self, wake: Wake) -> impl Future<Output = Flow> {
        self.woken(wake)
    }

    fn close(self, reason: &str) -> impl Future<Output = ()> {
        self.close(reason)
    }
}

/// Has the door's shard take the connection over.
pub fn adopt(door: &Door, accepted: Accepted) {
    let (node, settings) = (door.node.clone(), door.settings.clone());
    door.hub().on_shard(door.shard, move |shard| {
        let shard = shard.clone();
        // A task of its own, so that nothing of the handshake stays in memory with the connection.
        spawn_local(async move {
            let Accepted { upgrade, opening, deflated, open } = accepted;
            let Ok(Ok(upgraded)) = timeout(UPGRADE_DEADLINE, upgrade).await else { return };
            let Opening { app, token } = opening;
            let entrance = Entrance { shard, node, settings, app, token, deflated, open };
            match upgraded.downcast::<TokioIo<TcpStream>>() {
                Ok(Parts { io, read_buf, .. }) => {
                    // Copied, since it is a slice of a larger buffer that would otherwise live on.
                    let first = Vec::from(&read_buf[..]).into_boxed_slice();
                    drop(read_buf);
                    spawn_local(Box::pin(entrance.enter_tcp(io.into_inner(), first)));
                }
                Err(upgraded) => drop(spawn_local(Box::pin(entrance.enter_generic(upgraded)))),
            }
        });
    });
}

/// All that is needed to begin.
struct Entrance {
    shard: Rc<Shard>,
    node: Arc<crate::node::Node>,
    settings: Arc<DoorSettings>,
    app: Option<Arc<App>>,
    token: Option<Box<str>>,
    deflated: bool,
    open: Option<OpenSocket>,
}

impl Entrance {
    async fn enter_tcp(mut self, socket: TcpStream, first: Box<[u8]>) {
        let (token, open) = (self.token.take(), self.open.take());
        match self.begin(Socket::Tcp(socket)) {
            Ok(conversation) => conversation.serve(token.as_deref(), first).await,
            Err(turned_away) => finish(&turned_away).await,
        }
        drop(open);
    }

    async fn enter_generic(mut self, upgraded: Upgraded) {
        let (token, open) = (self.token.take(), self.open.take());
        let (read, write) = tokio::io::split(TokioIo::new(upgraded));
        let (connection, conversation) = match self.begin(Socket::remote()) {
            Ok(conversation) => (conversation.dialogue.connection().clone(), Some(conversation)),
            Err(turned_away) => (turned_away, None),
        };
        let writer = spawn_local(write_out(connection, write));
        if let Some(conversation) = conversation {
            conversation.serve_generic(token.as_deref(), read).await;
        }
        // The queue is closed by now, so the writer ends with it; whoever does not read by then is let go.
        let abort = writer.abort_handle();
        if timeout(FLUSH_DEADLINE, writer).await.is_err() {
            abort.abort();
        }
        drop(open);
    }

    /// Begins a conversation. Where there is no such app, or the node is ending, it is over at once: what is returned then
    /// has only to be sent.
    fn begin(self, socket: Socket) -> Result<Conversation<Session>, Rc<Connection>> {
        let Self { shard, node, settings, app, deflated, .. } = self;
        let format = if deflated { Format::NativeDeflated } else { Format::Native };
        let id = ConnectionId::from_bits(rand::random());
        // Who was let in just before the drain might have come too late to be told by it.
        if node.is_draining() {
            return Err(turn_away(&shard, id, format, socket, DisconnectReason::Draining));
        }
        let Some(app) = app else {
            return Err(turn_away(&shard, id, format, socket, DisconnectReason::UnknownApp));
        };
        let connection = shard.adopt(id, app.id.clone(), format, socket);
        let limits = Limits { max_message: settings.max_frame, ..Limits::default() };
        let session = Session::new(node, app, connection, &NATIVE, Transport::WebSocket);
        Ok(Conversation::new(session, limits, deflated))
    }
}

/// Tells a connection why it cannot be; nothing else ever happens on it.
fn turn_away(
    shard: &Rc<Shard>,
    id: ConnectionId,
    format: Format,
    socket: Socket,
    reason: DisconnectReason,
) -> Rc<Connection> {
    let nobody = "unknown".parse().expect("these are letters");
    let connection = shard.adopt(id, nobody, format, socket);
    connection.send(shard.frame_push(format, &Push::Disconnect { reason, delay: None }));
    connection.send(close_frame(Close::ByServer(reason)));
    connection.close_queue();
    shard.release(&connection);
    connection
}

/// A dialogue, and what turns its bytes into messages.
pub struct Conversation<D> {
    dialogue: D,
    reader: Reader,
    limits: Limits,
    /// Bytes of an unfinished message, as the shard has them on its account.
    unfinished: usize,
}

/// How a WebSocket ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Close {
    /// The socket is gone.
    Gone,
    /// The client closed; it gets its code back.
    ByClient(Option<CloseCode>),
    /// The client broke a rule.
    Violation(CloseCode),
    /// The client did not end a message in time.
    Overdue,
    /// The server ends it.
    ByServer(DisconnectReason),
}

impl From<Ending> for Close {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::Gone => Self::Gone,
            Ending::Disconnect(reason) => Self::ByServer(reason),
        }
    }
}

/// What one read brought.
struct Heard<R> {
    requests: Vec<R>,
    /// The newest pings: RFC 6455, 5.5.3 lets the others go.
    pings: VecDeque<Vec<u8>>,
    close: Option<Close>,
    /// What was read and is not looked at yet, because this is enough for one turn.
    rest: Vec<u8>,
}

impl<D: Dialogue> Conversation<D> {
    /// A conversation in which nothing is said yet. `deflated`: permessage-deflate was agreed.
    pub fn new(dialogue: D, limits: Limits, deflated: bool) -> Self {
        Self { dialogue, reader: Reader::new(deflated), limits, unfinished: 0 }
    }

    /// Talks over the connection's bare socket until the end, that of the socket included. `first` came with the
    /// handshake.
    pub async fn serve(mut self, token: Option<&str>, first: Box<[u8]>) {
        let close = AssertUnwindSafe(self.run(token, first)).catch_unwind().await;
        let close = close.unwrap_or_else(|_| self.panicked());
        // Boxed, like everything that runs once: it would make each idle connection's task as large as itself.
        let connection = Box::pin(self.end(close)).await;
        if close != Close::Gone {
            Box::pin(finish(&connection)).await;
        }
    }

    async fn serve_generic(mut self, token: Option<&str>, read: ReadHalf<TokioIo<Upgraded>>) {
        let close = AssertUnwindSafe(self.run_generic(token, read)).catch_unwind().await;
        let close = close.unwrap_or_else(|_| self.panicked());
        Box::pin(self.end(close)).await;
    }

    fn panicked(&self) -> Close {
        tracing::error!(connection = %self.dialogue.connection().id(), "a session panicked and was ended");
        Close::ByServer(DisconnectReason::Internal)
    }

    /// Says the last word and leaves everything.
    async fn end(self, close: Close) -> Rc<Connection> {
        let connection = self.dialogue.connection().clone();
        if let Close::Violation(_) | Close::Overdue = close {
            connection.shard().counters().violations.add(1);
        }
        if close != Close::Gone {
            connection.send_last(close_frame(close));
        }
        connection.uncork();
        connection.close_queue();
        connection.shard().account_unfinished(self.unfinished, 0);
        self.dialogue.close(&close.name()).await;
        connection
    }

    async fn run(&mut self, token: Option<&str>, mut first: Box<[u8]>) -> Close {
        if let Err(ending) = Box::pin(self.dialogue.open(token)).await {
            return ending.into();
        }
        if !first.is_empty() {
            let heard = self.hear(&mut first);
            drop(std::mem::take(&mut first));
            if let Err(close) = Box::pin(self.answer(heard)).await {
                return close;
            }
        }
        let connection = self.dialogue.connection().clone();
        loop {
            let result = match connection.wake().await {
                Wake::Readable => match self.read(&connection) {
                    Ok(Some(heard)) => Box::pin(self.answer(heard)).await,
                    Ok(None) => Ok(()),
                    Err(close) => Err(close),
                },
                wake => Box::pin(self.woken(wake)).await,
            };
            if let Err(close) = result {
                return close;
            }
        }
    }

    /// Reads what is there, at most a scratch buffer full.
    fn read(&mut self, connection: &Connection) -> Result<Option<Heard<D::Request>>, Close> {
        let shard = connection.shard();
        shard.with_scratch(|scratch, inflater| match connection.try_read(scratch) {
            Ok(None) => Ok(None),
            Ok(Some(0)) | Err(_) => Err(Close::Gone),
            Ok(Some(read)) => Ok(Some(self.decode(&mut scratch[..read], inflater))),
        })
    }

    fn hear(&mut self, bytes: &mut [u8]) -> Heard<D::Request> {
        let shard = self.dialogue.connection().shard();
        shard.with_scratch(|_, inflater| self.decode(bytes, inflater))
    }

    /// Takes the messages out of what was read, as far as they are whole.
    fn decode(&mut self, mut bytes: &mut [u8], inflater: &mut crate::wire::Inflater) -> Heard<D::Request> {
        let mut heard = Heard { requests: Vec::new(), pings: VecDeque::new(), close: None, rest: Vec::new() };
        let mut text_bytes = 0;
        while heard.close.is_none() {
            if MAX_TURN_BYTES <= text_bytes || MAX_TURN_REQUESTS <= heard.requests.len() {
                heard.rest = bytes.to_vec();
                break;
            }
            match self.reader.next(&mut bytes, &self.limits, inflater) {
                Ok(None) => break,
                Ok(Some(Message::Ping(payload))) => {
                    heard.pings.truncate(MAX_PONGS - 1);
                    heard.pings.push_front(payload.to_vec());
                }
                Ok(Some(Message::Pong(_))) => {}
                Ok(Some(Message::Close { code, .. })) => heard.close = Some(Close::ByClient(code)),
                Ok(Some(message)) => {
                    text_bytes += message_bytes(&message);
                    let understood = self.dialogue.understand(message, &mut heard.requests);
                    heard.close = understood.err().map(Close::Violation);
                }
                Err(violation) => heard.close = Some(self.violated(violation)),
            }
        }
        let unfinished = self.reader.buffered_bytes();
        if !self.dialogue.connection().shard().account_unfinished(self.unfinished, unfinished) {
            heard.close.get_or_insert(Close::Violation(CloseCode::TOO_BIG));
        }
        self.unfinished = unfinished;
        heard
    }

    fn violated(&self, violation: Violation) -> Close {
        debug!(connection = %self.dialogue.connection().id(), %violation, "the client broke the WebSocket protocol");
        Close::Violation(violation.close_code())
    }

    /// Does what was asked, a turn's worth at a time, so that one client's read cannot hold up the whole shard.
    async fn answer(&mut self, mut heard: Heard<D::Request>) -> Result<(), Close> {
        loop {
            let mut rest = std::mem::take(&mut heard.rest);
            let goes_on = self.answer_turn(heard).await?;
            if rest.is_empty() || !goes_on {
                self.keep_time();
                return Ok(());
            }
            yield_now().await;
            heard = self.hear(&mut rest);
        }
    }

    /// Sees to it that a message that has begun ends. Its time begins when all that came before it is answered: until then
    /// nothing is read.
    fn keep_time(&mut self) {
        let connection = self.dialogue.connection();
        match self.reader.progress() {
            Progress::Whole => drop(connection.stop_message_time()),
            Progress::Begun => connection.time_message(MESSAGE_DEADLINE),
            Progress::GoesOn => {}
        }
    }

    /// Does what the hub woke the connection for. Nothing is read meanwhile, so a message's time stands still.
    async fn woken(&mut self, wake: Wake) -> Result<(), Close> {
        if wake == Wake::Overdue {
            return Err(Close::Overdue);
        }
        let connection = self.dialogue.connection().clone();
        let left = connection.stop_message_time();
        self.dialogue.woken(wake).await?;
        if let Some(left) = left {
            connection.time_message(left);
        }
        Ok(())
    }

    /// Does a turn's worth of what was asked. What is answered at once goes out in one write. False: the connection is
    /// ending, and the next wake says why.
    async fn answer_turn(&mut self, heard: Heard<D::Request>) -> Result<bool, Close> {
        let connection = self.dialogue.connection().clone();
        connection.cork();
        // Who does not take what waits has no use for pongs behind it.
        let takes_pongs = connection.queued_bytes() == 0;
        for payload in heard.pings.iter().rev().filter(|_| takes_pongs) {
            connection.send(frame::pong(payload));
        }
        for request in heard.requests {
            let doing = self.dialogue.request(request);
            let mut doing = std::pin::pin!(doing);
            // What does not come at once must not hold back what is there.
            match doing.as_mut().now_or_never() {
                Some(done) => done?,
                None => {
                    connection.uncork();
                    doing.await?;
                    connection.cork();
                }
            }
            // Who does not take its answers is not listened to either.
            let most = connection.shard().limits().send_queue / 2;
            if most < connection.queued_bytes() {
                if connection.drained_to(most / 2).await.is_err() {
                    return Ok(false);
                }
                connection.cork();
            }
        }
        connection.uncork();
        match heard.close {
            Some(close) => Err(close),
            None => Ok(true),
        }
    }

    async fn run_generic(&mut self, token: Option<&str>, mut read: ReadHalf<TokioIo<Upgraded>>) -> Close {
        if let Err(ending) = Box::pin(self.dialogue.open(token)).await {
            return ending.into();
        }
        let connection = self.dialogue.connection().clone();
        let mut buffer = vec![0; 8 << 10];
        loop {
            let result = tokio::select! {
                wake = connection.wake() => Box::pin(self.woken(wake)).await,
                read = read.read(&mut buffer) => match read {
                    Ok(0) | Err(_) => Err(Close::Gone),
                    Ok(read) => {
                        connection.heard();
                        let heard = self.hear(&mut buffer[..read]);
                        Box::pin(self.answer(heard)).await
                    }
                },
            };
            if let Err(close) = result {
                return close;
            }
        }
    }
}

fn message_bytes(message: &Message<'_>) -> usize {
    match message {
        Message::Text(text) => text.len(),
        Message::Binary(bytes) => bytes.len(),
        Message::Ping(_) | Message::Pong(_) | Message::Close { .. } => 0,
    }
}

impl Close {
    /// What logs call it.
    fn name(self) -> String {
        match self {
            Self::Gone => "gone".into(),
            Self::ByClient(Some(code)) => format!("closed by the client with {}", code.get()),
            Self::ByClient(None) => "closed by the client".into(),
            Self::Overdue => format!("{TOO_LONG}, closed with {}", CloseCode::POLICY_VIOLATION.get()),
            Self::Violation(code) => format!("protocol violation, closed with {}", code.get()),
            Self::ByServer(reason) => reason.name().into(),
        }
    }
}

/// The close frame that says why.
fn close_frame(close: Close) -> Bytes {
    match close {
        Close::Gone | Close::ByClient(None) => frame::encode(frame::Opcode::Close, false, b""),
        Close::ByClient(Some(code)) | Close::Violation(code) => frame::close(code, ""),
        Close::Overdue => frame::close(CloseCode::POLICY_VIOLATION, TOO_LONG),
        Close::ByServer(reason) => {
            let code = CloseCode::new(reason.close_code()).expect("our codes may stand on the wire");
            frame::close(code, reason.name())
        }
    }
}

/// Lets the last frames out, then reads on for a while: closing a socket with unread input resets it, and the peer may
/// lose what we said last.
async fn finish(connection: &Rc<Connection>) {
    if timeout(FLUSH_DEADLINE, connection.flushed()).await.is_err() {
        connection.leave_last_word();
        let _ = timeout(LAST_WORD_DEADLINE, connection.flushed()).await;
    }
    let Some(socket) = connection.tcp() else { return };
    if socket2::SockRef::from(socket).shutdown(Shutdown::Write).is_err() {
        return;
    }
    let draining = async {
        let mut left = DRAIN_BYTES;
        while socket.readable().await.is_ok() {
            match connection.shard().with_scratch(|scratch, _| socket.try_read(scratch)) {
                Ok(0) => return,
                Ok(read) if read <= left => left -= read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(_) | Err(_) => return,
            }
        }
    };
    let _ = timeout(DRAIN_DEADLINE, draining).await;
}

/// Writes a connection's queue to something that is no bare socket.
async fn write_out(connection: Rc<Connection>, mut write: WriteHalf<TokioIo<Upgraded>>) {
    while let Some(frame) = connection.next_frame().await {
        let mut written = write.write_all(&frame).await;
        if connection.queued_bytes() == 0 && written.is_ok() {
            // TLS keeps what the socket did not take, and says that it has it.
            written = write.flush().await;
        }
        if written.is_err() {
            connection.end(crate::hub::End::Broken);
            return;
        }
    }
    let _ = write.shutdown().await;
}
