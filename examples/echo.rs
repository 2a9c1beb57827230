//! Says back whatever it hears, over the socket code that the server itself runs on: handshake, reader, deflate, send
//! queue, pings and closes. `tests/autobahn/run` runs the conformance cases against it.
//!
//! `cargo run --release --example echo -- 127.0.0.1:9001`

use std::{cell::RefCell, error::Error, rc::Rc, sync::Arc, time::Duration};

use fanwire::{
    config::WhenSlow,
    domain::{AppId, ConnectionId, DisconnectReason, Format},
    hub::{Connection, End, Hub, Limits, Shard, Socket, Wake},
    protocol,
    session::{Ending, Flow},
    transport::{
        handshake::Handshake,
        websocket::{Conversation, Dialogue},
    },
    wire::{self, CloseCode, Deflater, Message, Opcode, frame},
};
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Empty;
use hyper::{Request, body::Bytes, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{LocalSet, spawn_local},
};

/// The largest case sends 16 MiB in one message, another one 65,536 fragments.
const LIMITS: wire::Limits = wire::Limits { max_message: 16 << 20, max_fragments: 1 << 17 };

fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9001".into());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, run(&address))
}

async fn run(address: &str) -> Result<(), Box<dyn Error>> {
    let limits = Limits { send_queue: 64 << 20, when_slow: WhenSlow::Disconnect, ping: Duration::from_secs(3600) };
    let (hub, mut inboxes) = Hub::new(1, limits, protocol::encode);
    let shard = Shard::new(hub, 0);
    spawn_local(shard.clone().run(inboxes.remove(0)));
    spawn_local(shard.clone().tick());
    let listener = TcpListener::bind(address).await?;
    println!("echoing on {}", listener.local_addr()?);
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        spawn_local(greet(shard.clone(), socket));
    }
}

/// Reads the handshake's request; what is no handshake is answered by its connection's end.
async fn greet(shard: Rc<Shard>, socket: TcpStream) {
    let service = service_fn(|request| std::future::ready(answer(&shard, request)));
    let connection = http1::Builder::new().serve_connection(TokioIo::new(socket), service).with_upgrades();
    if let Err(error) = connection.await {
        eprintln!("handshake failed: {error}");
    }
}

fn answer(
    shard: &Rc<Shard>,
    mut request: Request<Incoming>,
) -> Result<Response<Empty<Bytes>>, Box<dyn Error + Send + Sync>> {
    let handshake = Handshake::check(request.method(), request.headers(), true)?;
    let (shard, upgrade, deflated) = (shard.clone(), hyper::upgrade::on(&mut request), handshake.extensions.is_some());
    spawn_local(async move {
        let upgraded = upgrade.await.expect("the 101 is sent");
        let parts = upgraded.downcast::<TokioIo<TcpStream>>().expect("the socket is plain");
        let connection = adopt(&shard, parts.io.into_inner(), deflated);
        let echo = Echo { connection, deflater: deflated.then(|| RefCell::new(Deflater::new())) };
        Conversation::new(echo, LIMITS, deflated).serve(None, Vec::from(&parts.read_buf[..]).into()).await;
    });
    let mut response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, handshake.accept);
    if let Some(extensions) = handshake.extensions {
        response = response.header(header::SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_static(extensions));
    }
    Ok(response.body(Empty::new())?)
}

fn adopt(shard: &Rc<Shard>, socket: TcpStream, deflated: bool) -> Rc<Connection> {
    let app: AppId = "echo".parse().expect("these are letters");
    let format = if deflated { Format::NativeDeflated } else { Format::Native };
    shard.adopt(ConnectionId::from_bits(rand::random()), app, format, Socket::Tcp(socket))
}

/// Says back what it hears.
struct Echo {
    connection: Rc<Connection>,
    /// Where permessage-deflate was agreed.
    deflater: Option<RefCell<Deflater>>,
}

impl Dialogue for Echo {
    type Request = (Opcode, Arc<[u8]>);

    fn connection(&self) -> &Rc<Connection> {
        &self.connection
    }

    fn understand(&self, message: Message<'_>, requests: &mut Vec<Self::Request>) -> Result<(), CloseCode> {
        match message {
            Message::Text(text) => requests.push((Opcode::Text, text.as_bytes().into())),
            Message::Binary(bytes) => requests.push((Opcode::Binary, bytes.into())),
            Message::Ping(_) | Message::Pong(_) | Message::Close { .. } => {}
        }
        Ok(())
    }

    async fn open(&mut self, _: Option<&str>) -> Flow {
        Ok(())
    }

    async fn request(&mut self, (opcode, payload): Self::Request) -> Flow {
        self.connection.send(match &self.deflater {
            None => frame::encode(opcode, false, &payload),
            Some(deflater) => {
                let mut deflated = Vec::new();
                deflater.borrow_mut().compress(&payload, &mut deflated);
                frame::encode(opcode, true, &deflated)
            }
        });
        Ok(())
    }

    async fn woken(&mut self, wake: Wake) -> Flow {
        match wake {
            Wake::End(End::Broken) => Err(Ending::Gone),
            Wake::End(End::Slow) => Err(Ending::Disconnect(DisconnectReason::Slow)),
            Wake::End(End::Silent) => Err(Ending::Disconnect(DisconnectReason::PingTimeout)),
            Wake::Readable | Wake::Alarm | Wake::Overdue | Wake::Control | Wake::CaughtUp => Ok(()),
        }
    }

    async fn close(self, _: &str) {
        self.connection.shard().release(&self.connection);
    }
}
