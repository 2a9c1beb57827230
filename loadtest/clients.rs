//! Virtual clients: thousands of WebSockets on one thread, one epoll and one large scratch buffer.
//!
//! Cheapness is the aim, since a generator that is slower than its server measures itself. A readable socket is read
//! once into the scratch buffer; frames are found in place ([`crate::frames`]) and deliveries read without parsing JSON
//! ([`crate::stamp`]); nothing is allocated for a delivery. What happens is told to a [`Watcher`], which the compiler
//! sees through. Start at [`Crowd::open`] and [`Crowd::poll`].

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{event::Timespec, event::epoll};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    frames::{self, Unfinished, opcode},
    inflate::Inflater,
    stamp::{self, Reader, Stamp},
};

/// Bytes that one read takes at most.
const SCRATCH_BYTES: usize = 256 << 10;
/// Events taken from the kernel in one go.
const EVENTS: usize = 512;
/// Unsent bytes of one client above which a publisher should wait.
const BACKLOG_BYTES: usize = 1 << 20;
/// Ports that clients of one loopback address are given, below those that the kernel gives out itself. Left to choose,
/// the kernel looks through thousands of taken ports for each connection.
const PORTS: std::ops::Range<u16> = 4_096..32_768;
/// Ports that may turn out to be taken, one after another.
const PORT_ATTEMPTS: usize = 64;
/// The longest answer to an upgrade that is read.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// RFC 6455's own sample key and its answer: one key for all saves the generator a digest for each connection.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// One clock for a whole run, in nanoseconds since its start.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Nanoseconds since the start.
    pub fn now(self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

/// Where and how clients connect.
#[derive(Clone, Debug)]
pub struct Door {
    pub address: SocketAddr,
    /// The path of the upgrade, with its query.
    pub path: String,
    /// Whether permessage-deflate is offered.
    pub compression: bool,
    /// The namespace of all channels.
    pub namespace: &'static str,
}

/// One publication as it came to one subscriber.
#[derive(Clone, Copy, Debug)]
pub struct Delivery {
    pub stamp: Stamp,
    /// In channels with history.
    pub offset: Option<u64>,
    /// When it was read.
    pub now: u64,
}

/// Why a client is gone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum End {
    #[error("could not connect: {0}")]
    Refused(String),
    #[error("the upgrade was answered `{0}`")]
    NotUpgraded(String),
    #[error("closed by the server with code {code} `{reason}`")]
    Closed { code: u16, reason: String },
    #[error("the connection broke: {0}")]
    Broken(String),
}

/// Is told what happens to the clients. Everything defaults to nothing but what must not pass silently.
pub trait Watcher {
    /// The client is connected and, if it has a channel, subscribed; all this took `took` nanoseconds.
    fn live(&mut self, _client: usize, _took: u64) {}
    /// A publication came.
    fn delivered(&mut self, _client: usize, _delivery: &Delivery) {}
    /// The publication `id` of this client was acknowledged.
    fn acknowledged(&mut self, _client: usize, _id: u64, _offset: Option<u64>, _now: u64) {}
    /// The server refused a command; `code` is the error's.
    fn refused(&mut self, client: usize, code: &str);
    /// The client is gone, though nobody here closed it.
    fn ended(&mut self, client: usize, end: End);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    Upgrading,
    Subscribing,
    Live,
    Gone,
}

#[derive(Debug)]
struct Client {
    stream: Option<TcpStream>,
    state: State,
    channel: Option<u32>,
    opened_at: u64,
    unfinished: Unfinished,
    /// The answer to the upgrade, as far as it has come.
    head: Vec<u8>,
    /// What is yet to be sent; `sent` of it is.
    outbox: Vec<u8>,
    sent: usize,
}

/// All clients of a run.
pub struct Crowd {
    door: Door,
    clock: Clock,
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    scratch: Box<[u8]>,
    clients: Vec<Client>,
    conversation: Conversation,
    /// Which of the clients' own addresses is next: counts through [`PORTS`] of 127.0.0.2, then of 127.0.0.3 …
    next_source: usize,
    /// Bytes read from all sockets.
    received_bytes: u64,
}

/// What is shared in understanding what servers say.
struct Conversation {
    clock: Clock,
    reader: Reader,
    inflater: Inflater,
    has_history: bool,
    mask: u32,
}

impl Crowd {
    /// Nobody yet. `has_history`: deliveries carry offsets, which are then read.
    pub fn new(door: Door, clock: Clock, has_history: bool) -> io::Result<Self> {
        let conversation = Conversation {
            clock,
            reader: Reader::default(),
            inflater: Inflater::default(),
            has_history,
            mask: 0x9e37_79b9,
        };
        Ok(Self {
            door,
            clock,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(EVENTS),
            scratch: vec![0; SCRATCH_BYTES].into_boxed_slice(),
            clients: Vec::new(),
            conversation,
            // Somewhere else in each turn, so that the ports of the turn before can rest.
            next_source: rand::random_range(0..PORTS.len()),
            received_bytes: 0,
        })
    }

    /// Starts to connect one more client, which will subscribe to `channel`; returns its number.
    ///
    /// A small `receive_buffer` makes a client that stops reading be felt sooner.
    pub fn open(&mut self, channel: Option<u32>, receive_buffer: Option<usize>) -> io::Result<usize> {
        let number = self.clients.len();
        let socket = Socket::new(Domain::for_address(self.door.address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        if self.door.address.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST) {
            self.bind(&socket)?;
        }
        match socket.connect(&self.door.address.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
        let stream = TcpStream::from(socket);
        self.watch(&stream, number)?;
        self.clients.push(Client {
            stream: Some(stream),
            state: State::Connecting,
            channel,
            opened_at: self.clock.now(),
            unfinished: Unfinished::default(),
            head: Vec::new(),
            outbox: Vec::new(),
            sent: 0,
        });
        Ok(number)
    }

    /// Waits until `deadline` for something to happen, and tells `watcher` what did; returns at once after that.
    pub fn poll(&mut self, deadline: u64, watcher: &mut impl Watcher) -> io::Result<()> {
        let wait = Duration::from_nanos(deadline.saturating_sub(self.clock.now()));
        let timeout = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() };
        self.events.clear();
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for index in 0..self.events.len() {
            let (number, flags) = (self.events[index].data.u64() as usize, self.events[index].flags);
            self.serve(number, flags, watcher);
        }
        Ok(())
    }

    /// Sends a text frame for a client; what the socket does not take at once follows when it can.
    pub fn queue(&mut self, number: usize, text: &[u8]) {
        let mask = self.conversation.next_mask();
        frames::append_masked(&mut self.clients[number].outbox, opcode::TEXT, text, mask);
    }

    /// Writes what was queued for a client, all in one write where the socket takes it.
    pub fn flush(&mut self, number: usize, watcher: &mut impl Watcher) {
        if let Err(end) = self.clients[number].flush() {
            self.end(number, end, watcher);
        }
    }

    /// Whether so much waits to be sent that a publisher should hold back.
    pub fn is_backlogged(&self, number: usize) -> bool {
        let client = &self.clients[number];
        BACKLOG_BYTES < client.outbox.len() - client.sent
    }

    /// Stops reading from a client, whose socket then fills up.
    pub fn stop_reading(&mut self, number: usize) -> io::Result<()> {
        match &self.clients[number].stream {
            Some(stream) => Ok(epoll::delete(&self.epoll, stream)?),
            None => Ok(()),
        }
    }

    /// Reads from a stopped client again.
    pub fn resume_reading(&mut self, number: usize) -> io::Result<()> {
        match &self.clients[number].stream {
            Some(stream) => self.watch(stream, number),
            None => Ok(()),
        }
    }

    /// Bytes read from all sockets so far.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    /// Says goodbye on every connection, as far as the sockets take it, and closes them.
    pub fn close(mut self) {
        for client in &mut self.clients {
            if let Some(stream) = client.stream.take() {
                let mut close = Vec::with_capacity(8);
                frames::append_masked(&mut close, opcode::CLOSE, &1000u16.to_be_bytes(), [1, 2, 3, 4]);
                let _ = (&stream).write(&close);
            }
        }
    }

    /// Binds a client to the next address and port that are free.
    fn bind(&mut self, socket: &Socket) -> io::Result<()> {
        socket.set_reuse_address(true)?;
        let mut attempt = 0;
        loop {
            let host = Ipv4Addr::new(127, 0, 0, 2 + (self.next_source / PORTS.len()) as u8);
            let port = PORTS.start + (self.next_source % PORTS.len()) as u16;
            self.next_source += 1;
            attempt += 1;
            match socket.bind(&SocketAddr::from((host, port)).into()) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempt < PORT_ATTEMPTS => {}
                bound => return bound,
            }
        }
    }

    fn watch(&self, stream: &TcpStream, number: usize) -> io::Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        Ok(epoll::add(&self.epoll, stream, epoll::EventData::new_u64(number as u64), flags)?)
    }

    fn serve(&mut self, number: usize, flags: epoll::EventFlags, watcher: &mut impl Watcher) {
        let client = &mut self.clients[number];
        if client.state == State::Connecting {
            if let Err(end) = client.begin(&self.door) {
                return self.end(number, end, watcher);
            }
        } else if client.sent < client.outbox.len()
            && let Err(end) = client.flush()
        {
            return self.end(number, end, watcher);
        }
        let hung_up = flags.intersects(epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR);
        if (hung_up || flags.contains(epoll::EventFlags::IN))
            && let Err(end) = self.read(number, hung_up, watcher)
        {
            self.end(number, end, watcher);
        }
    }

    /// Reads until a read comes back short: then the socket is empty, and the next event tells of more.
    fn read(&mut self, number: usize, hung_up: bool, watcher: &mut impl Watcher) -> Result<(), End> {
        loop {
            let client = &mut self.clients[number];
            let Some(stream) = &mut client.stream else { return Ok(()) };
            let bytes = match stream.read(&mut self.scratch) {
                Ok(0) => return Err(End::Broken("the server hung up without a close frame".into())),
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(End::Broken(error.to_string())),
            };
            self.received_bytes += bytes as u64;
            let fresh = &self.scratch[..bytes];
            match client.state {
                State::Connecting | State::Upgrading => {
                    self.conversation.upgrade(client, number, &self.door, fresh, watcher)?
                }
                _ => self.conversation.hear(client, number, fresh, watcher)?,
            }
            if bytes < self.scratch.len() && !hung_up {
                return Ok(());
            }
        }
    }

    fn end(&mut self, number: usize, end: End, watcher: &mut impl Watcher) {
        let client = &mut self.clients[number];
        client.state = State::Gone;
        if client.stream.take().is_some() {
            watcher.ended(number, end);
        }
    }
}

impl Client {
    /// The socket is connected, or failed to: asks for the upgrade.
    fn begin(&mut self, door: &Door) -> Result<(), End> {
        if let Some(stream) = &self.stream
            && let Some(error) = stream.take_error().map_err(|error| End::Refused(error.to_string()))?
        {
            return Err(End::Refused(error.to_string()));
        }
        let extension = match door.compression {
            true => {
                "Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover; server_no_context_takeover\r\n"
            }
            false => "",
        };
        let Door { address, path, .. } = door;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: fanwire.v1\r\n{extension}\r\n"
        );
        self.outbox.extend_from_slice(request.as_bytes());
        self.state = State::Upgrading;
        self.flush()
    }

    fn flush(&mut self) -> Result<(), End> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        while self.sent < self.outbox.len() {
            match stream.write(&self.outbox[self.sent..]) {
                Ok(bytes) => self.sent += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(End::Broken(error.to_string())),
            }
        }
        self.outbox.clear();
        self.sent = 0;
        Ok(())
    }
}

impl Conversation {
    /// Part of the answer to the upgrade came, perhaps with the first frames behind it.
    fn upgrade(
        &mut self,
        client: &mut Client,
        number: usize,
        door: &Door,
        fresh: &[u8],
        watcher: &mut impl Watcher,
    ) -> Result<(), End> {
        client.head.extend_from_slice(fresh);
        let Some(end) = stamp::find(&client.head, b"\r\n\r\n") else {
            return match MAX_HEAD_BYTES < client.head.len() {
                true => Err(End::NotUpgraded("headers without an end".into())),
                false => Ok(()),
            };
        };
        let bytes = std::mem::take(&mut client.head);
        let head = String::from_utf8_lossy(&bytes[..end]);
        if !head.starts_with("HTTP/1.1 101") || !head.contains(ACCEPT) {
            return Err(End::NotUpgraded(head.lines().next().unwrap_or_default().to_owned()));
        }
        client.state = State::Subscribing;
        match client.channel {
            Some(channel) => {
                let channel = stamp::channel_name(door.namespace, channel);
                let subscribe = format!(r#"{{"type":"subscribe","id":1,"channel":"{channel}"}}"#);
                frames::append_masked(&mut client.outbox, opcode::TEXT, subscribe.as_bytes(), self.next_mask());
                client.flush()?;
            }
            None => self.is_live(client, number, watcher),
        }
        self.hear(client, number, &bytes[end + 4..], watcher)
    }

    /// Frames came, whole or in part.
    fn hear(
        &mut self,
        client: &mut Client,
        number: usize,
        fresh: &[u8],
        watcher: &mut impl Watcher,
    ) -> Result<(), End> {
        let now = self.clock.now();
        let mut unfinished = std::mem::take(&mut client.unfinished);
        let mut ended = Ok(());
        let fed = unfinished.feed(fresh, |frame, bytes| {
            let payload = &bytes[frame.payload.clone()];
            let heard = match (frame.opcode, frame.deflated) {
                (_, _) if frame.mask.is_some() => Err(End::Broken("the server masked a frame".into())),
                (opcode::TEXT, false) => self.text(client, number, payload, now, watcher),
                (opcode::TEXT, true) => self.deflated(client, number, payload, now, watcher),
                (opcode::PING, _) => {
                    frames::append_masked(&mut client.outbox, opcode::PONG, payload, self.next_mask());
                    client.flush()
                }
                (opcode::CLOSE, _) => Err(closed(payload)),
                _ => Ok(()),
            };
            if ended.is_ok() {
                ended = heard;
            }
        });
        client.unfinished = unfinished;
        ended?;
        fed.map_err(|violation| End::Broken(violation.to_string()))
    }

    /// A deflated frame: inflated once, then known by its bytes, since a server sends everyone the same.
    fn deflated(
        &mut self,
        client: &mut Client,
        number: usize,
        payload: &[u8],
        now: u64,
        watcher: &mut impl Watcher,
    ) -> Result<(), End> {
        if let Some((stamp, offset)) = self.inflater.known(payload) {
            watcher.delivered(number, &Delivery { stamp, offset, now });
            return Ok(());
        }
        let text = self.inflater.inflate(payload).map_err(|error| End::Broken(error.to_string()))?;
        if let Some(stamp) = self.reader.stamp(&text) {
            let offset = if self.has_history { self.reader.offset(&text) } else { None };
            self.inflater.remember(payload, stamp, offset);
        }
        self.text(client, number, &text, now, watcher)
    }

    fn text(
        &mut self,
        client: &mut Client,
        number: usize,
        text: &[u8],
        now: u64,
        watcher: &mut impl Watcher,
    ) -> Result<(), End> {
        if let Some(stamp) = self.reader.stamp(text) {
            let offset = if self.has_history { self.reader.offset(text) } else { None };
            watcher.delivered(number, &Delivery { stamp, offset, now });
            return Ok(());
        }
        match stamp::frame_type(text) {
            "published" => {
                let offset = if self.has_history { self.reader.offset(text) } else { None };
                match self.reader.acknowledged(text) {
                    Some(id) => watcher.acknowledged(number, id, offset, now),
                    None => watcher.refused(number, "an acknowledgement without a known id"),
                }
            }
            "subscribed" if client.state == State::Subscribing => self.is_live(client, number, watcher),
            "error" => watcher.refused(number, stamp::text_member(text, br#""code":""#).unwrap_or("unknown")),
            _ => {}
        }
        Ok(())
    }

    fn is_live(&mut self, client: &mut Client, number: usize, watcher: &mut impl Watcher) {
        client.state = State::Live;
        watcher.live(number, self.clock.now() - client.opened_at);
    }

    /// Another key (xorshift): masking costs the same whatever the key, so it need not be unpredictable here.
    fn next_mask(&mut self) -> [u8; 4] {
        self.mask ^= self.mask << 13;
        self.mask ^= self.mask >> 17;
        self.mask ^= self.mask << 5;
        self.mask.to_ne_bytes()
    }
}

fn closed(payload: &[u8]) -> End {
    match payload {
        [high, low, reason @ ..] => End::Closed {
            code: u16::from_be_bytes([*high, *low]),
            reason: String::from_utf8_lossy(reason).into_owned(),
        },
        _ => End::Closed { code: 1005, reason: String::new() },
    }
}
