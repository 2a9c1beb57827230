//! Event streams, read as a browser reads them.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    http::{chunk, header},
    within,
};

/// An event stream, read as a browser reads it.
pub struct EventStream {
    socket: TcpStream,
    raw: Vec<u8>,
    text: String,
    head: String,
    /// What a browser would send as `Last-Event-ID`.
    pub last_id: String,
}

/// One event: its name (`message` without one), its data as text, and the id that it came with.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its name.
    pub name: String,
    /// Its data.
    pub data: String,
    /// Its id.
    pub id: Option<String>,
    /// When to come back, in milliseconds.
    pub retry: Option<u64>,
    /// Whether it has a comment.
    pub comment: bool,
}

impl Event {
    /// Its data as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }
}

impl EventStream {
    /// Sends a request, which must be answered with a stream.
    pub(super) async fn open(address: SocketAddr, request: &[u8]) -> Self {
        let mut socket = within("a connection", TcpStream::connect(address)).await.expect("the server listens");
        within("the request to leave", socket.write_all(request)).await.expect("the socket takes bytes");
        let (raw, text, head, last_id) = (Vec::new(), String::new(), String::new(), String::new());
        let mut stream = Self { socket, raw, text, head, last_id };
        within("the head of the stream", stream.read_head()).await;
        assert!(stream.head.starts_with("HTTP/1.1 200"), "{}{}", stream.head, String::from_utf8_lossy(&stream.raw));
        stream
    }

    /// One header's value.
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
