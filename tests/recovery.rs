//! Losing and resuming at random moments: no hole, no double, no silence about what is gone.
//!
//! Inside one thread, sessions, a shard and a broker that hesitates between any two steps are interleaved at random, many
//! thousand times; then the same over real sockets, fewer times. A failure prints its seed.

use std::{cell::Cell, rc::Rc, sync::Arc, time::Duration};

use fanwire::{
    broker::{
        Accepted, Broker, BrokerError, Commander, History, Listener, Order, PresenceStore, Relayed, Retention,
        Submission, memory::MemoryBroker,
    },
    config::{Config, HistoryConfig, NamespaceConfig, Rate, Span, WhenSlow},
    domain::{
        Channel, Command, ConnectionId, Epoch, Format, HistoryQuery, Member, NodeId, Offset, Position, Publish,
        Request, Revocation, Start, Subscribe,
    },
    gateway::{App, Gateway},
    hub::{Connection, End, Hub, Limits, Shard, Socket},
    node::{Caller, CallerKind, Deliver, Node},
    protocol::{self, native::NativeEvents},
    session::Session,
    telemetry::{Metrics, Transport},
};
use futures_util::{FutureExt, future::BoxFuture};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tokio::task::{LocalSet, spawn_local, yield_now};

use crate::support::{TestServer, within};

/// Subscriptions that are interleaved with publications in one run of the tests.
const SUBSCRIPTIONS: usize = 10_000;
const READERS: usize = 4;
const PUBLICATIONS: u64 = 40;

/// A broker that lets others go first, before and after everything it does.
struct Hesitant {
    inner: MemoryBroker,
    seed: std::sync::atomic::AtomicU64,
}

impl Hesitant {
    async fn hesitate(&self) {
        let seed = self.seed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        for _ in 0..StdRng::seed_from_u64(seed).random_range(0..4) {
            yield_now().await;
        }
    }
}

impl PresenceStore for Hesitant {
    fn join<'a>(&'a self, channel: &'a Channel, member: Member) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.inner.join(channel, member)
    }

    fn leave<'a>(&'a self, channel: &'a Channel, connection: ConnectionId) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.inner.leave(channel, connection)
    }

    fn members<'a>(&'a self, channel: &'a Channel) -> BoxFuture<'a, Result<Vec<Member>, BrokerError>> {
        self.inner.members(channel)
    }
}

impl Commander for Hesitant {
    fn order(&self, order: Order) -> BoxFuture<'_, Result<(), BrokerError>> {
        self.inner.order(order)
    }

    fn revoke(&self, revocation: Revocation) -> BoxFuture<'_, Result<(), BrokerError>> {
        self.inner.revoke(revocation)
    }

    fn load_revocations(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        self.inner.load_revocations()
    }
}

impl Broker for Hesitant {
    fn publish(&self, submission: Submission) -> BoxFuture<'_, Result<Accepted, BrokerError>> {
        async move {
            self.hesitate().await;
            let accepted = self.inner.publish(submission).await;
            self.hesitate().await;
            accepted
        }
        .boxed()
    }

    fn history<'a>(
        &'a self,
        channel: &'a Channel,
        retention: Retention,
        query: HistoryQuery,
    ) -> BoxFuture<'a, Result<History, BrokerError>> {
        async move {
            self.hesitate().await;
            let history = self.inner.history(channel, retention, query).await;
            self.hesitate().await;
            history
        }
        .boxed()
    }

    fn drop_history<'a>(&'a self, channel: &'a Channel) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.inner.drop_history(channel)
    }

    fn listen<'a>(&'a self, channel: &'a Channel) -> BoxFuture<'a, Result<(), BrokerError>> {
        async move {
            self.hesitate().await;
            self.inner.listen(channel).await
        }
        .boxed()
    }

    fn ignore(&self, channel: &Channel) {
        self.inner.ignore(channel);
    }

    fn probe(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        self.inner.probe()
    }
}

/// A listener that is known only after its broker.
struct Later(std::sync::OnceLock<Arc<Deliver>>);

impl Listener for Later {
    fn relayed(&self, relayed: Relayed) {
        self.0.get().expect("the hub is there before anybody publishes").relayed(relayed);
    }
}

/// One node in one thread.
#[derive(Clone)]
struct World {
    node: Arc<Node>,
    app: Arc<App>,
    shard: Rc<Shard>,
    subscriptions: Rc<Cell<usize>>,
}

static EVENTS: NativeEvents = NativeEvents;

impl World {
    /// A world whose channel `room:1` keeps `kept`, and where `queue` bytes may wait for a reader.
    fn new(seed: u64, kept: usize, queue: usize) -> Self {
        let history = Some(HistoryConfig { size: kept, ttl: Span(Duration::from_secs(3600)) });
        let mut config = Config::default();
        config.namespaces.insert("room".into(), NamespaceConfig { history, ..NamespaceConfig::development("room") });
        config.limits.frames_per_connection = Rate::NONE;
        let limits = Limits { send_queue: queue, when_slow: WhenSlow::CatchUp, ping: Duration::from_secs(3600) };
        let (hub, mut inboxes) = Hub::new(1, limits, protocol::encode);
        let later = Arc::new(Later(std::sync::OnceLock::new()));
        let gateway = Gateway::new(&config, tokio::runtime::Handle::current()).unwrap();
        let _ = later.0.set(Deliver::new(hub.clone(), gateway.clone()));
        let inner = MemoryBroker::new(later, 64 << 20);
        let broker = Arc::new(Hesitant { inner, seed: seed.into() });
        let app = gateway.app(None).unwrap();
        let metrics = Arc::new(Metrics::new());
        let node = Node::new(NodeId::new("here"), hub.clone(), broker, gateway, metrics, 512);
        let shard = Shard::new(hub, 0);
        spawn_local(shard.clone().run(inboxes.remove(0)));
        Self { node, app, shard, subscriptions: Rc::default() }
    }

    /// A session that subscribes and goes on until its connection is broken.
    fn subscribe(&self, start: Start) -> Rc<Connection> {
        self.subscriptions.set(self.subscriptions.get() + 1);
        let id = ConnectionId::from_bits(rand::random());
        let connection = self.shard.adopt(id, self.app.id.clone(), Format::NativeEvents, Socket::remote());
        let session = Session::new(self.node.clone(), self.app.clone(), connection.clone(), &EVENTS, Transport::Events);
        spawn_local(converse(session, start));
        connection
    }

    async fn publish(&self, n: u64) {
        let event = fanwire::domain::Event {
            name: None,
            data: fanwire::domain::Payload::from_json(&n.to_string()),
            tags: None,
        };
        let publish = Publish { channel: "room:1".parse().unwrap(), event, key: None, echo: true };
        let caller = Caller { app: &self.app.id, kind: CallerKind::Server };
        self.node.publish(&caller, publish, None).await.unwrap();
    }
}

async fn converse(mut session: Session, start: Start) {
    let connection = session.connection().clone();
    let subscribe = Subscribe { channel: "room:1".parse().unwrap(), token: None, start, presence: false };
    let request = Request { id: None, command: Ok(Command::Subscribe(subscribe)) };
    let mut flow = session.request(request).await;
    while flow.is_ok() {
        let wake = connection.wake().await;
        flow = session.woken(wake).await;
    }
    connection.close_queue();
    session.close("over").await;
}

/// What a client knows: where it stands.
#[derive(Default)]
struct Reader {
    at: Option<Position>,
    /// Whether it has asked for its position and not been answered yet.
    asked: Option<Position>,
    seen: u64,
}

impl Reader {
    /// Takes what was written: events of an event stream, one after the other, each with its frame as data.
    fn take(&mut self, bytes: &[u8]) {
        let text = std::str::from_utf8(bytes).expect("event streams are text");
        for data in text.lines().filter_map(|line| line.strip_prefix("data:")) {
            let frame: Value = serde_json::from_str(data).expect("frames are JSON");
            match frame["type"].as_str() {
                Some("subscribed") => self.subscribed(&frame),
                Some("message") => self.message(&frame),
                _ => panic!("no such frame was awaited: {frame}"),
            }
        }
    }

    fn subscribed(&mut self, frame: &Value) {
        let epoch: Epoch = frame["epoch"].as_str().unwrap().parse().unwrap();
        let at = Position { epoch, offset: Offset(frame["offset"].as_u64().unwrap()) };
        if let Some(asked) = self.asked.take().filter(|_| frame["recovered"] == true) {
            assert_eq!(at, asked, "a recovery goes on where the client stands");
        }
        if let Some(before) = self.at {
            assert_eq!(before.epoch, epoch);
            assert!(before.offset <= at.offset, "nothing comes twice: {before:?}, {frame}");
            assert!(before.offset == at.offset || frame["recovered"] != true, "a gap is told: {before:?}, {frame}");
        }
        self.at = Some(at);
    }

    fn message(&mut self, frame: &Value) {
        let at = self.at.as_mut().expect("`subscribed` comes first");
        let offset = Offset(frame["offset"].as_u64().unwrap());
        assert_eq!(offset, at.offset.next(), "each is one more: {frame}");
        assert_eq!(frame["data"], offset.0, "and is the one with this offset");
        at.offset = offset;
        self.seen += 1;
    }
}

/// One client that comes, reads, is slow, goes, and comes back, until it has seen the last publication.
async fn wander(world: World, mut random: StdRng) -> u64 {
    let mut reader = Reader::default();
    while reader.at.is_none_or(|at| at.offset.0 < PUBLICATIONS) {
        reader.asked = reader.at;
        let start = reader.at.map_or(Start::Last(random.random_range(0..3)), |at| Start::After(Some(at)));
        let connection = world.subscribe(start);
        let mut patience = random.random_range(0..60);
        while reader.at.is_none_or(|at| at.offset.0 < PUBLICATIONS) {
            if patience == 0 {
                break;
            }
            patience -= 1;
            // It may be slow for a while.
            for _ in 0..random.random_range(0..6) {
                yield_now().await;
            }
            for _ in 0..random.random_range(0..4) {
                match connection.next_frame().now_or_never() {
                    Some(Some(bytes)) => reader.take(&bytes),
                    Some(None) => panic!("the server ended the connection"),
                    None => break,
                }
            }
        }
        connection.end(End::Broken);
    }
    reader.seen
}

/// One world until all its readers have seen the end; returns how many subscriptions there were.
async fn one_world(seed: u64) -> usize {
    let mut random = StdRng::seed_from_u64(seed);
    let kept = if random.random() { 1000 } else { random.random_range(2..15) };
    let queue = if random.random() { 1 << 20 } else { random.random_range(200..2000) };
    let world = World::new(seed, kept, queue);
    let readers: Vec<_> = (0..READERS as u64)
        .map(|n| spawn_local(wander(world.clone(), StdRng::seed_from_u64(seed ^ (n + 1) << 32))))
        .collect();
    for n in 1..=PUBLICATIONS {
        for _ in 0..random.random_range(0..10) {
            yield_now().await;
        }
        world.publish(n).await;
    }
    for reader in readers {
        let seen = within(format!("a reader of the world with seed {seed}"), reader).await;
        let seen = seen.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert!(seen <= PUBLICATIONS);
    }
    world.subscriptions.get()
}

#[test]
fn however_losing_resuming_and_publishing_fall_together_there_is_no_hole_and_no_double() {
    let count = std::env::var("FANWIRE_SUBSCRIPTIONS").map_or(SUBSCRIPTIONS, |count| count.parse().unwrap());
    let mut seed = std::env::var("FANWIRE_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("the first seed is {seed} (set FANWIRE_SEED to repeat it)");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut subscriptions = 0;
    while subscriptions < count {
        subscriptions += LocalSet::new().block_on(&runtime, one_world(seed));
        seed = seed.wrapping_add(1);
    }
    println!("{subscriptions} subscriptions");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_real_sockets_too() {
    let server = Arc::new(
        TestServer::with(|config| {
            config.limits.frames_per_connection = Rate::NONE;
            config.namespaces.get_mut("chat").unwrap().history.as_mut().unwrap().size = 10_000;
        })
        .await,
    );
    const TOTAL: u64 = 1500;
    let reading = (0..4).map(|n| {
        let server = server.clone();
        tokio::spawn(async move {
            let mut random = StdRng::seed_from_u64(n);
            let (mut at, mut comings) = (None::<Value>, 0);
            let last = |at: &Option<Value>| at.as_ref().map_or(0, |at| at["offset"].as_u64().unwrap());
            while last(&at) < TOTAL {
                comings += 1;
                let mut client = server.connect("ann").await;
                let mut subscribe = json!({ "type": "subscribe", "channel": "chat:1" });
                match &at {
                    Some(at) => subscribe["after"] = at.clone(),
                    None => subscribe["last"] = 1000.into(),
                }
                let subscribed = client.expect("subscribed", subscribe).await;
                assert_eq!(subscribed["offset"], last(&at));
                at = Some(json!({ "epoch": subscribed["epoch"], "offset": last(&at) }));
                for _ in 0..random.random_range(0..120) {
                    if last(&at) == TOTAL {
                        break;
                    }
                    let message = client.next_message().await;
                    assert_eq!(message["offset"], last(&at) + 1);
                    assert_eq!(message["data"], message["offset"]);
                    at.as_mut().unwrap()["offset"] = message["offset"].clone();
                }
                client.lose_connection().await;
            }
            comings
        })
    });
    let reading: Vec<_> = reading.collect();
    let mut bob = server.connect("bob").await;
    for n in 1..=TOTAL {
        bob.publish("chat:1", n).await;
    }
    for reader in reading {
        let comings = within("a reader", reader).await.unwrap();
        assert!(5 < comings, "it came back {comings} times");
    }
}

#[tokio::test]
async fn a_return_over_many_bytes_misses_nothing() {
    const TOTAL: u64 = 300;
    let server = TestServer::with(|config| {
        config.limits.frames_per_connection = Rate::NONE;
        config.namespaces.get_mut("chat").unwrap().history.as_mut().unwrap().size = 1000;
    })
    .await;
    let mut ann = server.connect("ann").await;
    let start = ann.expect("subscribed", json!({ "type": "subscribe", "channel": "chat:1" })).await;
    ann.lose_connection().await;
    let mut bob = server.connect("bob").await;
    let padding = "x".repeat(60_000);
    for n in 1..=TOTAL {
        bob.publish("chat:1", format!("{n} {padding}")).await;
    }
    let mut ann = server.connect("ann").await;
    let after = json!({ "epoch": start["epoch"], "offset": start["offset"] });
    let subscribe = json!({ "type": "subscribe", "channel": "chat:1", "after": after });
    assert_eq!(ann.expect("subscribed", subscribe).await["recovered"], true);
    for n in 1..=TOTAL {
        let message = ann.next_message().await;
        assert_eq!(message["offset"], n);
        assert!(message["data"].as_str().unwrap().starts_with(&format!("{n} ")));
    }
    bob.publish("chat:1", "live").await;
    assert_eq!(ann.next_message().await["data"], "live");
}
