//! A bare socket: bad handshakes, and frames that no library would send.

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Answer, within};

/// The key of RFC 6455's own example, and what answers it.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// The kinds of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    Continuation = 0,
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

/// One frame as it came.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    /// FIN, reserved bits and opcode.
    pub first: u8,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl Frame {
    /// The frame at the front, if it is whole, and its length.
    pub fn parse(bytes: &[u8]) -> Option<(Self, usize)> {
        let [first, second, ..] = *bytes else { return None };
        assert_eq!(second & 0x80, 0, "a server's frames are not masked");
        let (length, head) = match second {
            126 => (u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().expect("two bytes"))), 4),
            127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().expect("eight bytes")), 10),
            short => (u64::from(short), 2),
        };
        let end = head + usize::try_from(length).expect("it fits in memory");
        Some((Self { first, payload: bytes.get(head..end)?.to_vec() }, end))
    }

    /// Without the bits around it.
    pub fn opcode(&self) -> u8 {
        self.first & 0x0f
    }

    /// Whether its payload is compressed (RSV1).
    pub fn is_compressed(&self) -> bool {
        self.first & 0x40 != 0
    }

    /// The code of a close frame.
    pub fn close_code(&self) -> Option<u16> {
        let code: [u8; 2] = self.payload.get(..2)?.try_into().expect("two bytes");
        (self.opcode() == Opcode::Close as u8).then(|| u16::from_be_bytes(code))
    }
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#04x} {:?}", self.first, String::from_utf8_lossy(&self.payload))
    }
}

/// One socket, and what has come on it.
pub struct RawSocket {
    socket: TcpStream,
    bytes: Vec<u8>,
}

impl RawSocket {
    /// Connects and says nothing.
    pub async fn connect(address: SocketAddr) -> Self {
        let socket = within("a connection", TcpStream::connect(address)).await.expect("the server listens");
        socket.set_nodelay(true).expect("the socket is open");
        Self { socket, bytes: Vec::new() }
    }

    /// Sends bytes as they are.
    pub async fn send(&mut self, bytes: &[u8]) {
        within("the bytes to leave", self.socket.write_all(bytes)).await.expect("the socket takes bytes");
    }

    /// Sends bytes that the other side may not want any more.
    pub async fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        within("the bytes to leave", self.socket.write_all(bytes)).await
    }

    /// Says that nothing more will be sent.
    pub async fn try_shut_down(&mut self) -> std::io::Result<()> {
        self.socket.shutdown().await
    }

    /// Sends a request's head with these headers; those of a handshake come by themselves, unless named here.
    pub async fn send_handshake(&mut self, path: &str, headers: &[(&str, &str)]) {
        let usual = [
            ("Host", self.socket.peer_addr().expect("the socket is connected").to_string()),
            ("Connection", "Upgrade".into()),
            ("Upgrade", "websocket".into()),
            ("Sec-WebSocket-Version", "13".into()),
            ("Sec-WebSocket-Key", KEY.into()),
        ];
        let mut text = format!("GET {path} HTTP/1.1\r\n");
        for (name, value) in usual {
            if !headers.iter().any(|(own, _)| own.eq_ignore_ascii_case(name)) {
                text.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        self.send(text.as_bytes()).await;
    }

    /// Does a whole handshake, which must be answered with 101; returns the answer. A header with an empty value is one
    /// left out.
    pub async fn upgrade(&mut self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.send_handshake(path, headers).await;
        let answer = self.next_head().await;
        assert_eq!(answer.status, 101, "{answer:?}");
        assert_eq!(answer.header("sec-websocket-accept"), Some(ACCEPT), "{answer:?}");
        answer
    }

    /// The head of an answer.
    pub async fn next_head(&mut self) -> Answer {
        loop {
            if let Some(at) = self.bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                let head: Vec<u8> = self.bytes.drain(..at + 4).collect();
                return Answer::parse(&head);
            }
            assert!(self.read("an answer's head").await, "the socket ended before an answer's head: {:?}", self.text());
        }
    }

    /// A body of this many bytes.
    pub async fn next_body(&mut self, length: usize) -> String {
        while self.bytes.len() < length {
            assert!(self.read("an answer's body").await, "the socket ended in an answer's body: {:?}", self.text());
        }
        String::from_utf8(self.bytes.drain(..length).collect()).expect("a body is text")
    }

    /// A whole answer, up to the end of the connection.
    pub async fn next_answer(&mut self) -> Answer {
        while self.read("the end of an answer").await {}
        Answer::parse(&std::mem::take(&mut self.bytes))
    }

    /// Sends one masked frame.
    pub async fn send_frame(&mut self, first: u8, payload: &[u8]) {
        self.send(&masked(first, payload)).await;
    }

    /// Sends a text message.
    pub async fn send_text(&mut self, text: &str) {
        self.send_frame(0x80 | Opcode::Text as u8, text.as_bytes()).await;
    }

    /// The next frame; `None`: the socket ended, or was reset.
    pub async fn try_next_frame(&mut self) -> Option<Frame> {
        loop {
            if let Some((frame, length)) = Frame::parse(&self.bytes) {
                self.bytes.drain(..length);
                return Some(frame);
            }
            if !self.read("a frame").await {
                return None;
            }
        }
    }

    /// The next frame.
    pub async fn next_frame(&mut self) -> Frame {
        match self.try_next_frame().await {
            Some(frame) => frame,
            None => panic!("the socket ended where a frame was awaited; left over: {:?}", self.text()),
        }
    }

    /// The next text; it must not be compressed.
    pub async fn next_text(&mut self) -> String {
        let frame = self.next_frame().await;
        assert_eq!(frame.first, 0x81, "a text frame was awaited, {frame:?} came");
        String::from_utf8(frame.payload).expect("text is UTF-8")
    }

    /// The next text as JSON.
    pub async fn next_json(&mut self) -> Value {
        serde_json::from_str(&self.next_text().await).expect("frames are JSON")
    }

    /// The close code that comes next, frames before it passed over; then the server must end the stream.
    pub async fn close_code(&mut self) -> u16 {
        let code = loop {
            let frame = self.next_frame().await;
            if frame.opcode() == Opcode::Close as u8 {
                break frame.close_code().unwrap_or(1005);
            }
        };
        assert!(self.try_next_frame().await.is_none(), "a frame came after the close");
        code
    }

    /// Whether the server ends the stream next, without a word.
    pub async fn ends(&mut self) -> bool {
        !self.read("the end of the stream").await
    }

    /// Whether nothing comes for a while: for what must not happen, which can only be waited out.
    pub async fn stays_quiet(&mut self, time: Duration) -> bool {
        let mut byte = [0];
        self.bytes.is_empty() && tokio::time::timeout(time, self.socket.peek(&mut byte)).await.is_err()
    }

    /// Reads on; false at the end of the stream.
    async fn read(&mut self, what: &str) -> bool {
        let before = self.bytes.len();
        self.bytes.reserve(64 << 10);
        let read = within(what, self.socket.read_buf(&mut self.bytes)).await;
        read.is_ok() && before < self.bytes.len()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// One masked frame, built by hand.
pub fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..=125 => bytes.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            bytes.push(0x80 | 126);
            bytes.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            bytes.push(0x80 | 127);
            bytes.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    bytes.extend_from_slice(&mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
    bytes
}

/// A message's compressed payload (RFC 7692, 7.2.1), as another library makes it.
pub fn deflate(message: &[u8]) -> Vec<u8> {
    let mut deflater = flate2::Compress::new(flate2::Compression::default(), false);
    let mut out = Vec::with_capacity(message.len() + 64);
    deflater.compress_vec(message, &mut out, flate2::FlushCompress::Sync).expect("there is room");
    assert_eq!(deflater.total_in(), message.len() as u64, "there is room for all of it");
    out.truncate(out.len() - 4);
    out
}

/// What a compressed payload says.
pub fn inflate(payload: &[u8]) -> Vec<u8> {
    let mut inflater = flate2::Decompress::new(false);
    let whole = [payload, b"\0\0\xff\xff"].concat();
    let mut out = Vec::with_capacity(1 << 20);
    inflater.decompress_vec(&whole, &mut out, flate2::FlushDecompress::Sync).expect("it is a DEFLATE stream");
    out
}
