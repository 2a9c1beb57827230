//! Binding: one listener per address and shard, sharing the port.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};

use super::RunError;
use crate::config::{Config, TlsConfig};

/// Connections that the kernel may hold until we accept them.
const BACKLOG: i32 = 4096;
/// How often the certificate's files are looked at.
const CERTIFICATE_LOOK: Duration = Duration::from_secs(30);

/// All listeners.
pub(super) struct Sockets {
    /// For each shard, one for each address.
    pub per_shard: Vec<Vec<TcpListener>>,
    /// The addresses, with the ports that were chosen.
    pub addresses: Vec<SocketAddr>,
    /// For `/metrics`.
    pub metrics: Option<TcpListener>,
}

impl Sockets {
    /// Binds everything that the configuration names.
    pub fn bind(config: &Config, shards: usize) -> Result<Self, RunError> {
        let mut per_shard: Vec<Vec<TcpListener>> = (0..shards).map(|_| Vec::new()).collect();
        let mut addresses = Vec::new();
        for wanted in &config.listen {
            let failed = |source| RunError::Listen { address: wanted.to_string(), source };
            // Bound alone first: with a shared port the kernel would let a second server take half of our clients. Of its
            // own choice it gives nobody a port that somebody has, shared or not; and somebody could take it in between.
            if wanted.port() != 0 {
                drop(listener(*wanted, false).map_err(failed)?);
            }
            let first = listener(*wanted, true).map_err(failed)?;
            let address = first.local_addr().map_err(failed)?;
            let others = (1..shards).map(|_| listener(address, true));
            for (listeners, socket) in per_shard.iter_mut().zip(std::iter::once(Ok(first)).chain(others)) {
                listeners.push(socket.map_err(failed)?);
            }
            addresses.push(address);
        }
        Ok(Self { per_shard, addresses, metrics: metrics(config)? })
    }
}

fn metrics(config: &Config) -> Result<Option<TcpListener>, RunError> {
    if config.metrics_listen.is_empty() {
        return Ok(None);
    }
    let bound = config.metrics_listen.parse().map_err(io::Error::other).and_then(|address| listener(address, false));
    match bound {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if config.is_development() => {
            tracing::warn!(address = config.metrics_listen, %error, "no metrics: the address cannot be listened on");
            Ok(None)
        }
        Err(source) => Err(RunError::Listen { address: config.metrics_listen.clone(), source }),
    }
}

fn listener(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A certificate that is loaded anew when its files change, or when somebody asks.
pub(super) struct Certificate {
    pub current: watch::Receiver<Arc<ServerConfig>>,
    pub asked: Arc<Notify>,
    pub watching: JoinHandle<()>,
}

impl Certificate {
    /// Loads what the configuration names, if it names one.
    pub fn of(config: &Config) -> Result<Option<Self>, RunError> {
        let Some(tls) = config.tls.clone() else { return Ok(None) };
        let (tx, current) = watch::channel(load(&tls).map_err(RunError::Tls)?);
        let asked = Arc::new(Notify::new());
        let watching = tokio::spawn(watch_files(tls, tx, asked.clone()));
        Ok(Some(Self { current, asked, watching }))
    }
}

async fn watch_files(tls: TlsConfig, tx: watch::Sender<Arc<ServerConfig>>, asked: Arc<Notify>) {
    let mut seen = changed_at(&tls);
    let mut interval = tokio::time::interval(CERTIFICATE_LOOK);
    loop {
        let must = tokio::select! {
            _ = interval.tick() => false,
            () = asked.notified() => true,
        };
        let now = changed_at(&tls);
        if now == seen && !must {
            continue;
        }
        seen = now;
        match load(&tls) {
            Ok(config) => {
                tracing::info!("certificate loaded anew");
                tx.send_replace(config);
            }
            Err(error) => tracing::error!(error, "the new certificate cannot be used; the old one stays"),
        }
    }
}

fn changed_at(tls: &TlsConfig) -> [Option<SystemTime>; 2] {
    [&tls.cert, &tls.key].map(|file| fs::metadata(file).and_then(|metadata| metadata.modified()).ok())
}

fn load(tls: &TlsConfig) -> Result<Arc<ServerConfig>, String> {
    let named = |file: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
    let chain = CertificateDer::pem_file_iter(&tls.cert).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|error| named(&tls.cert, &error))?;
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|error| named(&tls.key, &error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| error.to_string())?.with_no_client_auth();
    let mut config = builder.with_single_cert(chain, key).map_err(|error| named(&tls.cert, &error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
