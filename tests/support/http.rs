//! Plain HTTP requests, each on a connection of its own.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{EventStream, within};

/// A GET.
pub async fn get(address: SocketAddr, path: &str) -> Answer {
    Call::new(address, "GET", path).send().await
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
    /// To `address`, without a body.
    pub fn new(address: SocketAddr, method: &str, path: &str) -> Self {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\n");
        Self { address, head, body: Vec::new(), connection: "close" }
    }

    /// With this body.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// With one more header.
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

    /// Sends it on a connection of its own.
    pub async fn send(self) -> Answer {
        exchange(self.address, &self.bytes()).await
    }

    /// Sends it and keeps the stream that it is answered with.
    pub async fn stream(mut self) -> EventStream {
        self.connection = "keep-alive";
        EventStream::open(self.address, &self.bytes()).await
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
    /// The status.
    pub status: u16,
    /// The head, as it came.
    pub head: String,
    /// The body, put together where it came in chunks.
    pub body: String,
}

impl Answer {
    /// Takes a whole answer apart.
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

    /// One header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in the body of {self:?}"))
    }

    /// The `code` of a problem document.
    pub fn code(&self) -> String {
        self.problem().1
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

/// One header's value in a head.
pub(super) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let lines = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    lines.filter(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next()
}

/// Takes one whole chunk of a body (RFC 9112, 7.1) off the front.
pub(super) fn chunk(raw: &mut Vec<u8>) -> Option<String> {
    let line = raw.windows(2).position(|pair| pair == b"\r\n")?;
    let size = usize::from_str_radix(std::str::from_utf8(&raw[..line]).unwrap(), 16).unwrap();
    if raw.len() < line + 2 + size + 2 || size == 0 {
        return None;
    }
    let text = String::from_utf8(raw[line + 2..line + 2 + size].to_vec()).unwrap();
    raw.drain(..line + 2 + size + 2);
    Some(text)
}
