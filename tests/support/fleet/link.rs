//! A client's connection to a node that may die at any moment: nothing here panics, whatever the node does.

use std::{net::SocketAddr, time::Duration};

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};

use crate::support::user;

/// How long a client goes on when it hears nothing, not even a ping, of which one comes each second.
const PATIENCE: Duration = Duration::from_secs(4);

/// The connection is of no use any more.
#[derive(Debug)]
pub(super) struct Gone;

/// One connection, welcomed.
pub(super) struct Link(WebSocketStream<TcpStream>);

impl Link {
    /// Connects as `name`, with this much room for what is not read, if it matters.
    pub(super) async fn connect(address: SocketAddr, name: &str, receive_buffer: Option<u32>) -> Result<Self, Gone> {
        let opening = async {
            let socket = TcpSocket::new_v4().ok()?;
            if let Some(bytes) = receive_buffer {
                socket.set_recv_buffer_size(bytes).ok()?;
            }
            let tcp = socket.connect(address).await.ok()?;
            tcp.set_nodelay(true).ok()?;
            let url = format!("ws://{address}/v1/ws?token={}", user(name));
            let (socket, _) = client_async(url, tcp).await.ok()?;
            Some(Self(socket))
        };
        let mut link = timeout(PATIENCE, opening).await.ok().flatten().ok_or(Gone)?;
        match link.next().await?["type"].as_str() {
            Some("welcome") => Ok(link),
            _ => Err(Gone),
        }
    }

    /// Sends a frame.
    pub(super) async fn send(&mut self, frame: &Value) -> Result<(), Gone> {
        match timeout(PATIENCE, self.0.send(Message::text(frame.to_string()))).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(Gone),
        }
    }

    /// The next frame.
    ///
    /// # Cancellation
    /// Nothing is lost where this is dropped.
    pub(super) async fn next(&mut self) -> Result<Value, Gone> {
        loop {
            match timeout(PATIENCE, self.0.next()).await {
                Ok(Some(Ok(Message::Text(text)))) => return serde_json::from_str(&text).map_err(|_| Gone),
                // The library answers pings by itself.
                Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => {}
                _ => return Err(Gone),
            }
        }
    }
}
