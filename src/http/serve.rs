//! Serving connections on one shard's thread: accept, a time limit on heads, and a polite end.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::spawn_local,
    time::{sleep, timeout},
};
use tower::ServiceExt;
use tracing::{debug, warn};

use crate::transport::{OpenSocket, OpenSockets, Peer};

/// How long a request's head, and a TLS handshake, may take.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// The largest head, in bytes.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// The most headers of a request.
const MAX_HEADERS: usize = 64;
/// Bytes that the kernel may hold for a connection before it says that it takes no more: else a stalled client keeps
/// megabytes there before anybody notices that it is slow.
const UNSENT_BYTES: u32 = 16 << 10;
/// How long what was sent may go unacknowledged, or wait for a peer that takes nothing, before the connection is given up.
/// A WebSocket's pings find that out too; for an event stream, which has no pongs, this is the only way.
const UNACKNOWLEDGED: Duration = Duration::from_secs(35);
/// How long to pause after `accept` failed for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What one listener of one shard needs.
pub struct Listening {
    /// Where clients connect.
    pub listener: TcpListener,
    /// What they get.
    pub router: Router,
    /// TLS in process.
    pub tls: Option<watch::Receiver<Arc<rustls::ServerConfig>>>,
    /// The most sockets at once, over all listeners of this node.
    pub max_connections: usize,
    /// How many there are.
    pub open: OpenSockets,
    /// Turns true when nobody new is to be accepted.
    pub closing: watch::Receiver<bool>,
}

/// Accepts until told to stop; connections go on until they end or their request does.
pub async fn serve(mut listening: Listening) {
    loop {
        let accepted = tokio::select! {
            accepted = listening.listener.accept() => accepted,
            _ = listening.closing.wait_for(|closing| *closing) => return,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!(%error, "accept failed");
                if is_shortage(&error) {
                    warn!("out of file descriptors; accepting pauses");
                    sleep(ACCEPT_PAUSE).await;
                }
                continue;
            }
        };
        let Some(open) = listening.open.open(listening.max_connections) else {
            spawn_local(turn_away(socket));
            continue;
        };
        let (router, tls, closing) = (listening.router.clone(), listening.tls.clone(), listening.closing.clone());
        spawn_local(async move {
            if let Err(error) = serve_connection(socket, Accepted { peer, open }, router, tls, closing).await {
                debug!(%peer, %error, "connection failed");
            }
        });
    }
}

/// What each request is told of the socket that it came by.
struct Accepted {
    peer: SocketAddr,
    open: OpenSocket,
}

/// Why a connection could not be served.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Socket(#[from] io::Error),
    #[error(transparent)]
    Http(#[from] hyper::Error),
    #[error("the TLS handshake took too long")]
    SlowTls,
    #[error("the server stops before the TLS handshake was over")]
    Closing,
}

async fn serve_connection(
    socket: TcpStream,
    accepted: Accepted,
    router: Router,
    tls: Option<watch::Receiver<Arc<rustls::ServerConfig>>>,
    closing: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    socket.set_nodelay(true)?;
    let options = socket2::SockRef::from(&socket);
    options.set_tcp_notsent_lowat(UNSENT_BYTES)?;
    options.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    match tls {
        None => serve_http(socket, accepted, router, closing).await,
        // Boxed: else every plain connection's task would be as large as an encrypted one's.
        Some(config) => Box::pin(serve_tls(socket, accepted, router, config, closing)).await,
    }
}

async fn serve_tls(
    socket: TcpStream,
    accepted: Accepted,
    router: Router,
    config: watch::Receiver<Arc<rustls::ServerConfig>>,
    mut closing: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    let acceptor = tokio_rustls::TlsAcceptor::from(config.borrow().clone());
    let stream = tokio::select! {
        shaken = timeout(HEAD_DEADLINE, acceptor.accept(socket)) => shaken.map_err(|_| ServeError::SlowTls)??,
        // Nothing was asked yet that would have to be answered.
        _ = closing.wait_for(|closing| *closing) => return Err(ServeError::Closing),
    };
    serve_http(stream, accepted, router, closing).await
}

async fn serve_http<S>(
    stream: S,
    accepted: Accepted,
    router: Router,
    mut closing: watch::Receiver<bool>,
) -> Result<(), ServeError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Accepted { peer, open } = accepted;
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        request.extensions_mut().insert(open.clone());
        router.clone().oneshot(request.map(Body::new))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        served = connection.as_mut() => return Ok(served?),
        _ = closing.wait_for(|closing| *closing) => {}
    }
    // A request under way is still answered; the drain waits for it.
    connection.as_mut().graceful_shutdown();
    Ok(connection.await?)
}

/// Says that there is no room, in the little time that it gets.
async fn turn_away(mut socket: TcpStream) {
    const ANSWER: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n\
        content-type: application/problem+json\r\ncontent-length: 120\r\n\r\n";
    let body =
        r#"{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"no room","code":"unavailable"}"#;
    let answer = async {
        let mut bytes = ANSWER.to_vec();
        bytes.extend_from_slice(format!("{body:<120}").as_bytes());
        socket.write_all(&bytes).await?;
        socket.shutdown().await
    };
    // Whoever does not take it in a second goes without.
    let _ = timeout(Duration::from_secs(1), answer).await;
}

/// Whether it is for want of descriptors or memory, which pass.
fn is_shortage(error: &io::Error) -> bool {
    // EMFILE, ENFILE, ENOBUFS, ENOMEM on Linux.
    matches!(error.raw_os_error(), Some(24 | 23 | 105 | 12))
}
