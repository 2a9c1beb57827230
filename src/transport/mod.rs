//! What lies between a socket and a session: frames in, frames out, a close.

pub mod handshake;
pub mod sse;
pub mod websocket;

use std::{net::SocketAddr, sync::Arc};

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
    /// The most connections at once.
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
