//! A server in this process, on a port of its own.

use std::{
    net::SocketAddr,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use fanwire::{
    app::App,
    config::{Access, AppConfig, Config, HistoryConfig, NamespaceConfig, Span},
    gateway::GatewayError,
    node::Node,
};
use tokio::sync::{mpsc as queue, oneshot};

use super::{Answer, Client, Connecting, DEADLINE, RawSocket, token};

/// A server on 127.0.0.1 and a free port, with two shards and a runtime of its own. Dropping it shuts it down.
pub struct TestServer {
    address: SocketAddr,
    node: Arc<Node>,
    config: Config,
    orders: queue::UnboundedSender<Order>,
    thread: Option<JoinHandle<()>>,
}

/// What the server's thread is asked to do.
enum Order {
    Reload(Box<Config>, oneshot::Sender<Result<(), GatewayError>>),
    Stop,
}

impl TestServer {
    /// A server with one app (its secret is [`super::SECRET`]) and these namespaces:
    ///
    /// | namespace | subscribe, publish | history | presence, publishers |
    /// | --- | --- | --- | --- |
    /// | `` | anyone | no | no |
    /// | `chat` | anyone | 100, 1 h | yes |
    /// | `user` | user | 10, 1 h | no |
    /// | `token` | token | 10, 1 h | yes |
    /// | `nobody` | nobody | no | no |
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// The same after `change`.
    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Self::config();
        change(&mut config);
        match Self::try_with(config).await {
            Ok(server) => server,
            Err(error) => panic!("the server did not start: {error}"),
        }
    }

    /// A server in development mode: no keys, and everybody may do everything.
    pub async fn development() -> Self {
        Self::with(|config| {
            config.apps.clear();
            config.namespaces.clear();
        })
        .await
    }

    /// A server with exactly this configuration.
    ///
    /// # Errors
    /// Why it did not start.
    pub async fn try_with(config: Config) -> Result<Self, String> {
        let (started_tx, started) = oneshot::channel();
        let (orders, orders_rx) = queue::unbounded_channel();
        let own = config.clone();
        let thread = std::thread::spawn(move || serve(own, started_tx, orders_rx));
        match super::within("the server to start", started).await.expect("the server's thread lives") {
            Ok((address, node)) => Ok(Self { address, node, config, orders, thread: Some(thread) }),
            Err(error) => Err(error),
        }
    }

    /// What [`TestServer::start`] starts with.
    pub fn config() -> Config {
        let history = |size| Some(HistoryConfig { size, ttl: Span(Duration::from_secs(3600)) });
        let open = |access| NamespaceConfig { subscribe: access, publish: access, ..NamespaceConfig::default() };
        let watched = |namespace| NamespaceConfig { presence: true, show_publisher: true, ..namespace };
        let namespaces = [
            ("", open(Access::Anyone)),
            ("chat", NamespaceConfig { history: history(100), ..watched(open(Access::Anyone)) }),
            ("user", NamespaceConfig { history: history(10), ..open(Access::User) }),
            ("token", NamespaceConfig { history: history(10), ..watched(open(Access::Token)) }),
            ("nobody", open(Access::Nobody)),
        ];
        let mut config = Config {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
            workers: 2,
            metrics_listen: String::new(),
            apps: vec![AppConfig { secret: Some(token::SECRET.into()), ..AppConfig::default() }],
            namespaces: namespaces.map(|(name, namespace)| (name.into(), namespace)).into(),
            ..Config::default()
        };
        config.shutdown.drain = Span(Duration::ZERO);
        config
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The node inside, for what no port tells.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// A client of this user, welcomed.
    pub async fn connect(&self, user: &str) -> Client {
        self.client().user(user).connect().await
    }

    /// A client without a token, welcomed.
    pub async fn connect_anonymously(&self) -> Client {
        self.client().connect().await
    }

    /// A client that is still to be dressed.
    pub fn client(&self) -> Connecting {
        Connecting::to_node(self.address, self.node.clone())
    }

    /// A bare socket.
    pub async fn raw(&self) -> RawSocket {
        RawSocket::connect(self.address).await
    }

    /// A bare socket after a good handshake and the welcome.
    pub async fn raw_websocket(&self) -> RawSocket {
        let mut socket = self.raw().await;
        socket.upgrade("/v1/ws", &[]).await;
        let welcome = socket.next_text().await;
        assert!(welcome.contains(r#""type":"welcome""#), "the first frame was {welcome}");
        socket
    }

    /// What a plain GET of `path` answers.
    pub async fn get(&self, path: &str) -> Answer {
        super::get(self.address, path).await
    }

    /// Changes the configuration as SIGHUP would.
    ///
    /// # Errors
    /// What is wrong with it; then nothing has changed.
    pub async fn reload(&mut self, change: impl FnOnce(&mut Config)) -> Result<(), GatewayError> {
        let mut config = self.config.clone();
        change(&mut config);
        let (tx, rx) = oneshot::channel();
        let order = Order::Reload(Box::new(config.clone()), tx);
        assert!(self.orders.send(order).is_ok(), "the server runs");
        super::within("the reload", rx).await.expect("the server's thread lives")?;
        self.config = config;
        Ok(())
    }

    /// Completes once `fact` is true of the node.
    pub async fn until(&self, what: &str, fact: impl Fn(&Node) -> bool) {
        let looking = async {
            while !fact(&self.node) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        super::within(what, looking).await;
    }

    /// Shuts down without waiting for it.
    pub fn begin_stop(&self) {
        // A server that has stopped already needs no telling.
        let _ = self.orders.send(Order::Stop);
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.begin_stop();
        let Some(thread) = self.thread.take() else { return };
        let deadline = Instant::now() + DEADLINE;
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        let problem = match thread.is_finished() {
            false => Some("the server did not shut down in time"),
            true => thread.join().is_err().then_some("the server's thread panicked"),
        };
        if let Some(problem) = problem.filter(|_| !std::thread::panicking()) {
            panic!("{problem}");
        }
    }
}

type Started = Result<(SocketAddr, Arc<Node>), String>;

/// The server's thread: its own runtime, until it is told to stop.
fn serve(config: Config, started: oneshot::Sender<Started>, mut orders: queue::UnboundedReceiver<Order>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime").block_on(async move {
        let mut app = match App::start(config).await {
            Ok(app) => app,
            Err(error) => return drop(started.send(Err(error.to_string()))),
        };
        if started.send(Ok((app.addresses()[0], app.node().clone()))).is_err() {
            return app.shut_down().await;
        }
        while let Some(Order::Reload(config, done)) = orders.recv().await {
            // Whoever asked may have given up.
            let _ = done.send(app.reload(*config));
        }
        app.shut_down().await;
    });
}
