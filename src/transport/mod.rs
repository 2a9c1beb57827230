//! What lies between a socket and a session: frames in, frames out, a close.

pub mod handshake;
pub mod sse;
pub mod websocket;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::{hub::Hub, node::Node};

/// What every way in needs; one for each shard, so that a connection stays on the thread that accepted it.
#[derive(Clone)]
pub struct Door {
    /// The node.
    pub node: Arc<Node>,
    /// The shard whose thread this is.
    pub shard: usize,
    /// Settings of the ways in.
    pub settings: Arc<DoorSettings>,
}

/// Settings of the ways in.
#[derive(Clone, Debug)]
pub struct DoorSettings {
    /// The largest frame or message from a client, in bytes.
    pub max_frame: usize,
    /// Whether permessage-deflate is agreed to.
    pub compression: bool,
    /// The most sockets at once, over all shards and whatever is spoken on them.
    pub max_connections: usize,
    /// The largest request body, in bytes.
    pub max_body: usize,
    /// Whether TLS ends in this process.
    pub tls: bool,
}

impl Door {
    /// This node's connections.
    pub fn hub(&self) -> &Arc<Hub> {
        self.node.hub()
    }
}

/// The address at the other end of the socket that a request came by; a request extension.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// How many sockets this node holds, over all shards and whatever is spoken on them.
#[derive(Clone, Debug, Default)]
pub struct OpenSockets(Arc<AtomicUsize>);

impl OpenSockets {
    /// Counts one more, unless there are `most` already.
    pub fn open(&self, most: usize) -> Option<OpenSocket> {
        let one_more = |open| (open < most).then_some(open + 1);
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).ok()?;
        Some(OpenSocket(Arc::new(Counted(self.0.clone()))))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }
}

/// A socket's place in the count, until the last clone is gone; a request extension, for who takes the socket over.
#[derive(Clone, Debug)]
pub struct OpenSocket(#[expect(dead_code, reason = "held for its end")] Arc<Counted>);

#[derive(Debug)]
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
