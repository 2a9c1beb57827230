//! The floor: the least that a broadcaster over sockets can do, to compare ourselves with in the same minutes.
//!
//! One thread, one epoll, and for each publication one `send(2)` to each subscriber, or one for up to n publications
//! that came in one read. It understands just enough of the native protocol for the clients of a load test, trusts
//! every byte, limits nothing, and sends frames as long as the server's. No server can be much below it without
//! sending less often. It runs as a process of its own, `loadtest floor`.

use std::{
    collections::HashMap,
    io::{self, Read},
    net::{TcpListener, TcpStream},
    os::fd::OwnedFd,
};

use rustix::{
    event::epoll::{self, EventFlags},
    net::SendFlags,
};
use slab::Slab;

use crate::{
    frames::{self, Unfinished, opcode},
    stamp,
};

const SCRATCH_BYTES: usize = 256 << 10;
const EVENTS: usize = 512;
const BACKLOG: i32 = 4096;
/// The listener's number among the events; connections count from 0.
const LISTENER: u64 = u64::MAX;
/// The answer to every upgrade: the clients of a load test all send the same key.
const UPGRADED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: fanwire.v1\r\n\r\n";
/// What stands behind `data` in a message, as long as what Fanwire puts there.
const MESSAGE_END: &[u8] = br#","id":"01JD0000000000000000000000","time":1764000000123}"#;

struct Connection {
    stream: TcpStream,
    is_upgraded: bool,
    head: Vec<u8>,
    unfinished: Unfinished,
    channel: Option<usize>,
    /// What the socket did not take.
    backlog: Vec<u8>,
}

#[derive(Default)]
struct Channel {
    subscribers: Vec<usize>,
    /// Frames that wait for the next send, and how many they are.
    pending: Vec<u8>,
    frames: usize,
}

struct Floor {
    epoll: OwnedFd,
    connections: Slab<Connection>,
    names: HashMap<Vec<u8>, usize>,
    channels: Vec<Channel>,
    /// Channels with pending frames.
    touched: Vec<usize>,
    /// Answers to the connection that is being read, and how many they are.
    answers: Vec<u8>,
    answered: usize,
    frames_per_send: usize,
    message: Vec<u8>,
}

/// Serves until the process is ended; at most `frames_per_send` publications go out in one send.
pub fn serve(listener: TcpListener, frames_per_send: usize) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    // More room than std's 128: a storm would otherwise lose packets, and a lost SYN comes again after a second.
    rustix::net::listen(&listener, BACKLOG)?;
    let mut floor = Floor {
        epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        connections: Slab::new(),
        names: HashMap::new(),
        channels: Vec::new(),
        touched: Vec::new(),
        answers: Vec::new(),
        answered: 0,
        frames_per_send: frames_per_send.max(1),
        message: Vec::new(),
    };
    epoll::add(&floor.epoll, &listener, epoll::EventData::new_u64(LISTENER), EventFlags::IN)?;
    let mut scratch = vec![0; SCRATCH_BYTES];
    let mut events = Vec::with_capacity(EVENTS);
    loop {
        events.clear();
        match epoll::wait(&floor.epoll, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            let (number, flags) = (event.data.u64(), event.flags);
            match number {
                LISTENER => floor.accept(&listener)?,
                number => floor.serve(number as usize, flags, &mut scratch),
            }
        }
    }
}

impl Floor {
    fn accept(&mut self, listener: &TcpListener) -> io::Result<()> {
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let entry = self.connections.vacant_entry();
            epoll::add(&self.epoll, &stream, epoll::EventData::new_u64(entry.key() as u64), EventFlags::IN)?;
            entry.insert(Connection {
                stream,
                is_upgraded: false,
                head: Vec::new(),
                unfinished: Unfinished::default(),
                channel: None,
                backlog: Vec::new(),
            });
        }
    }

    fn serve(&mut self, number: usize, flags: EventFlags, scratch: &mut [u8]) {
        if flags.contains(EventFlags::OUT) {
            self.send(number, &[]);
        }
        if !flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            return;
        }
        let Some(connection) = self.connections.get_mut(number) else { return };
        match connection.stream.read(scratch) {
            Ok(0) => self.forget(number),
            Ok(bytes) if connection.is_upgraded => self.hear(number, &scratch[..bytes]),
            Ok(bytes) => self.upgrade(number, &scratch[..bytes]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.forget(number),
        }
    }

    fn upgrade(&mut self, number: usize, fresh: &[u8]) {
        let connection = &mut self.connections[number];
        if connection.head.is_empty() && fresh.ends_with(b"\r\n\r\n") {
            connection.is_upgraded = true;
        } else {
            connection.head.extend_from_slice(fresh);
            if connection.head.ends_with(b"\r\n\r\n") {
                connection.head = Vec::new();
                connection.is_upgraded = true;
            }
        }
        if connection.is_upgraded {
            self.send(number, UPGRADED);
        }
    }

    fn hear(&mut self, number: usize, fresh: &[u8]) {
        let mut unfinished = std::mem::take(&mut self.connections[number].unfinished);
        let mut text = Vec::new();
        let mut is_closed = false;
        let fed = unfinished.feed(fresh, |frame, bytes| {
            text.clear();
            text.extend_from_slice(&bytes[frame.payload.clone()]);
            frames::apply_mask(&mut text, frame.mask.unwrap_or_default());
            match frame.opcode {
                opcode::TEXT => self.command(number, &text),
                opcode::CLOSE => is_closed = true,
                _ => {}
            }
        });
        self.send_answers(number);
        for channel in std::mem::take(&mut self.touched) {
            self.send_pending(channel);
        }
        if is_closed || fed.is_err() {
            return self.forget(number);
        }
        if let Some(connection) = self.connections.get_mut(number) {
            connection.unfinished = unfinished;
        }
    }

    fn command(&mut self, number: usize, text: &[u8]) {
        let name = stamp::text_member(text, br#""channel":""#).unwrap_or_default();
        match stamp::frame_type(text) {
            "subscribe" => {
                let channel = self.channel(name.as_bytes());
                self.channels[channel].subscribers.push(number);
                self.connections[number].channel = Some(channel);
                let answer = format!(r#"{{"type":"subscribed","id":1,"channel":"{name}"}}"#);
                self.answer(number, answer.as_bytes());
            }
            "publish" => {
                let Some(data) = stamp::find(text, br#""data":"#) else { return };
                let data = &text[data + br#""data":"#.len()..text.len() - 1];
                if let Some(id) = stamp::find(&text[..text.len() - data.len()], br#""id":"#) {
                    let id = std::str::from_utf8(&text[id + 5..id + 15]).unwrap_or_default();
                    let answer = format!(
                        r#"{{"type":"published","id":{id},"channel":"{name}","publication":"01JD0000000000000000000000"}}"#
                    );
                    self.answer(number, answer.as_bytes());
                }
                self.publish(name.as_bytes(), data);
            }
            _ => {}
        }
    }

    fn channel(&mut self, name: &[u8]) -> usize {
        if let Some(&channel) = self.names.get(name) {
            return channel;
        }
        self.channels.push(Channel::default());
        self.names.insert(name.to_vec(), self.channels.len() - 1);
        self.channels.len() - 1
    }

    fn publish(&mut self, name: &[u8], data: &[u8]) {
        let Some(&channel) = self.names.get(name) else { return };
        let message = &mut self.message;
        message.clear();
        for part in [br#"{"type":"message","channel":""#, name, br#"","event":"message","data":"#, data, MESSAGE_END] {
            message.extend_from_slice(part);
        }
        let state = &mut self.channels[channel];
        frames::append_unmasked(&mut state.pending, opcode::TEXT, message);
        state.frames += 1;
        match state.frames {
            count if self.frames_per_send <= count => self.send_pending(channel),
            1 => self.touched.push(channel),
            _ => {}
        }
    }

    fn send_pending(&mut self, channel: usize) {
        let state = &mut self.channels[channel];
        if std::mem::take(&mut state.frames) == 0 {
            return;
        }
        let mut pending = std::mem::take(&mut state.pending);
        for place in 0..self.channels[channel].subscribers.len() {
            self.send(self.channels[channel].subscribers[place], &pending);
        }
        pending.clear();
        self.channels[channel].pending = pending;
    }

    fn answer(&mut self, number: usize, text: &[u8]) {
        frames::append_unmasked(&mut self.answers, opcode::TEXT, text);
        self.answered += 1;
        if self.frames_per_send <= self.answered {
            self.send_answers(number);
        }
    }

    fn send_answers(&mut self, number: usize) {
        self.answered = 0;
        if !self.answers.is_empty() {
            let mut answers = std::mem::take(&mut self.answers);
            self.send(number, &answers);
            answers.clear();
            self.answers = answers;
        }
    }

    /// Sends what is backlogged and then `bytes`; what the socket does not take waits until it is writable.
    fn send(&mut self, number: usize, bytes: &[u8]) {
        let Some(connection) = self.connections.get_mut(number) else { return };
        let was_backlogged = !connection.backlog.is_empty();
        if was_backlogged {
            connection.backlog.extend_from_slice(bytes);
        }
        let wanted = if was_backlogged { connection.backlog.as_slice() } else { bytes };
        let sent = match rustix::net::send(&connection.stream, wanted, SendFlags::NOSIGNAL) {
            Ok(sent) => sent,
            Err(rustix::io::Errno::AGAIN) => 0,
            // Whoever is gone is found out by reading.
            Err(_) => wanted.len(),
        };
        match was_backlogged {
            true => drop(connection.backlog.drain(..sent)),
            false => connection.backlog.extend_from_slice(&bytes[sent..]),
        }
        if was_backlogged != connection.backlog.is_empty() {
            return;
        }
        let interest = if was_backlogged { EventFlags::IN } else { EventFlags::IN | EventFlags::OUT };
        let _ = epoll::modify(&self.epoll, &connection.stream, epoll::EventData::new_u64(number as u64), interest);
    }

    fn forget(&mut self, number: usize) {
        let Some(connection) = self.connections.try_remove(number) else { return };
        if let Some(channel) = connection.channel {
            let subscribers = &mut self.channels[channel].subscribers;
            if let Some(place) = subscribers.iter().position(|&subscriber| subscriber == number) {
                subscribers.swap_remove(place);
            }
        }
    }
}
