//! Running until a signal says otherwise: SIGTERM and SIGINT drain, SIGHUP loads the configuration anew.

use std::{io, net::SocketAddr};

use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, warn};

use super::{App, RunError};
use crate::{
    config::{Config, Sources},
    telemetry::Log,
};

/// Threads for slow work: fetching keys, metrics, signals.
const BACKGROUND_THREADS: usize = 2;

/// Serves with `config` until SIGTERM or SIGINT. `sources` is where a SIGHUP loads from; what `log` drops is among the
/// metrics.
///
/// # Errors
/// The server could not start, or a second signal cut its drain short.
pub fn run(config: Config, sources: &Sources, log: &Log) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(BACKGROUND_THREADS)
        .thread_name("background")
        .enable_all()
        .build()?;
    let ran = runtime.block_on(serve(config, sources, log));
    runtime.shutdown_background();
    ran
}

async fn serve(config: Config, sources: &Sources, log: &Log) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let development = config.is_development();
    let tls = config.tls.is_some();
    let mut app = App::start(config).await?;
    app.node().metrics().count_dropped_lines(log.dropped());
    greet(&app, development, tls);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hang_up.recv() => reload(&mut app, sources),
        }
    }
    // A second signal is meant: whoever presses Ctrl-C twice does not want to wait.
    tokio::select! {
        () = app.shut_down() => Ok(()),
        _ = terminate.recv() => Err(cut_short()),
        _ = interrupt.recv() => Err(cut_short()),
    }
}

fn cut_short() -> RunError {
    RunError::System(io::Error::new(io::ErrorKind::Interrupted, "a second signal ended the drain"))
}

/// Loads the configuration anew; a faulty one is refused whole.
fn reload(app: &mut App, sources: &Sources) {
    match Config::load(sources) {
        Ok(loaded) => {
            loaded.warnings.iter().for_each(|warning| warn!(%warning, "configuration"));
            if let Err(fault) = app.reload(loaded.config) {
                error!(%fault, "the new configuration was refused; the old one stays");
            }
        }
        Err(faults) => error!(%faults, "the new configuration was refused; the old one stays"),
    }
}

/// Says where to look.
fn greet(app: &App, development: bool, tls: bool) {
    let (http, ws) = if tls { ("https", "wss") } else { ("http", "ws") };
    println!("fanwire {} is node {}", env!("CARGO_PKG_VERSION"), app.node().id());
    if development {
        println!("DEVELOPMENT MODE: no keys are configured, so anybody who reaches it may do everything.");
    }
    for address in app.addresses() {
        println!("listening on {http}://{address}");
    }
    if let Some(metrics) = app.metrics_address() {
        println!("metrics on http://{metrics}/metrics");
    }
    let Some(first) = app.addresses().first().map(reachable) else { return };
    println!();
    println!("  chat     open {http}://{first}/ in two windows");
    println!("  API      {http}://{first}/docs");
    if !development {
        println!();
        return;
    }
    println!(
        "  watch    echo '{{\"type\":\"subscribe\",\"channel\":\"room:lobby\"}}' | websocat -n {ws}://{first}/v1/ws"
    );
    println!(
        "  publish  curl {http}://{first}/v1/publish -d '{{\"channel\":\"room:lobby\",\"data\":{{\"text\":\"hello\"}}}}'"
    );
    println!();
}

/// An address that a browser on this machine can open.
fn reachable(address: &SocketAddr) -> SocketAddr {
    match (address.ip().is_unspecified(), address) {
        (false, address) => *address,
        (true, SocketAddr::V4(_)) => SocketAddr::from(([127, 0, 0, 1], address.port())),
        (true, SocketAddr::V6(_)) => SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, address.port())),
    }
}
