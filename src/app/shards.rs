//! One thread per shard, each with a runtime of its own.

use std::{io, sync::Arc, thread};

use tokio::{
    net::TcpListener,
    sync::{mpsc::UnboundedReceiver, watch},
    task::{LocalSet, spawn_local},
};

use crate::{
    http::{Listening, metrics_router, router, serve},
    hub::{Item, Shard},
    node::Node,
    telemetry::Metrics,
    transport::{Door, DoorSettings, OpenSockets},
};

/// What every shard's thread needs.
#[derive(Clone)]
pub(super) struct Shared {
    pub node: Arc<Node>,
    pub settings: Arc<DoorSettings>,
    pub tls: Option<watch::Receiver<Arc<rustls::ServerConfig>>>,
    pub metrics: Arc<Metrics>,
    pub open: OpenSockets,
    pub closing: watch::Receiver<bool>,
}

/// The threads, until they are stopped.
pub(super) struct ShardThreads {
    threads: Vec<thread::JoinHandle<()>>,
    stop: watch::Sender<bool>,
}

impl ShardThreads {
    /// Starts a thread for each inbox, which serves the listeners with the same number; the first also the figures.
    pub fn start(
        shared: Shared,
        inboxes: Vec<UnboundedReceiver<Item>>,
        listeners: Vec<Vec<std::net::TcpListener>>,
        mut metrics: Option<std::net::TcpListener>,
    ) -> io::Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let threads = inboxes.into_iter().zip(listeners).enumerate().map(|(index, (inbox, listeners))| {
            let listeners = Listeners { clients: listeners, metrics: metrics.take() };
            let (shared, stopped) = (shared.clone(), stopped.clone());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            thread::Builder::new().name(format!("shard-{index}")).spawn(move || {
                LocalSet::new().block_on(&runtime, run(shared, index, inbox, listeners, stopped));
                // Whatever is left has had its time.
                runtime.shutdown_background();
            })
        });
        Ok(Self { threads: threads.collect::<io::Result<_>>()?, stop })
    }

    /// Stops and joins them.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        let joined = tokio::task::spawn_blocking(move || {
            for thread in self.threads {
                if thread.join().is_err() {
                    tracing::error!("a shard's thread panicked");
                }
            }
        });
        if joined.await.is_err() {
            tracing::error!("the shards could not be joined");
        }
    }
}

/// What one shard's thread listens on.
struct Listeners {
    clients: Vec<std::net::TcpListener>,
    metrics: Option<std::net::TcpListener>,
}

async fn run(
    shared: Shared,
    index: usize,
    inbox: UnboundedReceiver<Item>,
    listeners: Listeners,
    mut stopped: watch::Receiver<bool>,
) {
    let shard = Shard::new(shared.node.hub().clone(), index);
    let door = Door { node: shared.node.clone(), shard: index, settings: shared.settings.clone() };
    let listening = |listener, router, tls| Listening {
        listener,
        router,
        tls,
        max_connections: shared.settings.max_connections,
        open: shared.open.clone(),
        closing: shared.closing.clone(),
    };
    let router = router(door);
    for listener in listeners.clients.into_iter().filter_map(usable) {
        spawn_local(serve(listening(listener, router.clone(), shared.tls.clone())));
    }
    if let Some(listener) = listeners.metrics.and_then(usable) {
        spawn_local(serve(listening(listener, metrics_router(shared.metrics.clone()), None)));
    }
    spawn_local(shard.clone().tick());
    tokio::select! {
        () = shard.run(inbox) => {}
        _ = stopped.wait_for(|stopped| *stopped) => {}
    }
}

fn usable(listener: std::net::TcpListener) -> Option<TcpListener> {
    TcpListener::from_std(listener).inspect_err(|error| tracing::error!(%error, "a listener could not be used")).ok()
}
