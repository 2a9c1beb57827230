//! The hot path's stations, each alone: decode, publish, encode, fan out. `cargo bench`.
//!
//! For what all of them cost together, over real sockets and beside the raw floor, see `main.rs`.

#![allow(missing_docs, clippy::unwrap_used)]

use std::{
    hint::black_box,
    io::Read,
    net::{TcpListener, TcpStream},
    rc::Rc,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use fanwire::{
    broker::{Broker, Listener, Relayed, Retention, Submission, memory::MemoryBroker},
    config::WhenSlow,
    domain::{
        AppId, Channel, ChannelName, ConnectionId, Event, Format, Payload, Publication, PublicationId, Push, UnixMillis,
    },
    hub::{Hub, Limits, Outgoing, Shard, Socket},
    protocol::{self, Codec, native::Native},
    wire::frame,
};
use futures_util::FutureExt;
use tokio::task::LocalSet;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SUBSCRIBERS: usize = 256;
const DATA: &str =
    r#"{"text":"a hundred bytes of payload, as chat messages have them on average, or so","at":1764000000}"#;

fn channel() -> Channel {
    let name: ChannelName = "room:lobby".parse().unwrap();
    Channel::new(&"default".parse::<AppId>().unwrap(), &name)
}

fn event() -> Event {
    Event { name: None, data: Payload::from_json(DATA), tags: None }
}

fn push() -> Push {
    Push::Publication(Arc::new(Publication {
        id: PublicationId::new(1_764_000_000_000, 1),
        channel: channel(),
        event: event(),
        time: UnixMillis(1_764_000_000_000),
        position: None,
        from: None,
        exclude: None,
    }))
}

/// A frame to a command.
fn decode(criterion: &mut Criterion) {
    let text = format!(r#"{{"type":"publish","id":17,"channel":"room:lobby","data":{DATA}}}"#);
    let mut requests = Vec::new();
    criterion.bench_function("decode", |bench| {
        bench.iter(|| {
            requests.clear();
            Native.decode(black_box(&text), &mut requests);
        });
    });
}

/// A push to a frame.
fn encode(criterion: &mut Criterion) {
    let (push, mut payload) = (push(), Vec::new());
    criterion.bench_function("encode", |bench| {
        bench.iter(|| {
            payload.clear();
            protocol::encode(Format::Native, black_box(&push), &mut payload);
            frame::text(&payload)
        });
    });
}

struct Nobody;

impl Listener for Nobody {
    fn relayed(&self, relayed: Relayed) {
        black_box(relayed);
    }
}

/// A submission to an entry of history.
fn publish(criterion: &mut Criterion) {
    let broker = MemoryBroker::new(Arc::new(Nobody), 1 << 30);
    let submission = |retention| Submission {
        channel: channel(),
        event: event(),
        id: PublicationId::new(1_764_000_000_000, 1),
        time: UnixMillis(1_764_000_000_000),
        from: None,
        exclude: None,
        key: None,
        retention,
    };
    let history = Some(Retention { size: 100, ttl: Duration::from_secs(3600) });
    for (name, retention) in [("publish/without history", None), ("publish/with history", history)] {
        criterion.bench_function(name, |bench| {
            let prepare = || submission(retention);
            bench.iter_batched(prepare, |each| broker.publish(each).now_or_never().unwrap(), BatchSize::SmallInput);
        });
    }
}

/// A publication to the sockets of its subscribers, per delivery.
fn fan_out(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let limits = Limits { send_queue: 1 << 20, when_slow: WhenSlow::Disconnect, ping: Duration::from_secs(3600) };
    let (hub, mut inboxes) = Hub::new(1, limits, protocol::encode);
    let local = LocalSet::new();
    let _entered = runtime.enter();
    let shard = Shard::new(hub.clone(), 0);
    let connections = subscribers(&shard);
    local.spawn_local(shard.clone().run(inboxes.remove(0)));
    let mut group = criterion.benchmark_group("fan out");
    for together in [1, 64] {
        group.throughput(Throughput::Elements((SUBSCRIBERS * together) as u64));
        group.bench_function(format!("{together} together"), |bench| {
            bench.iter_custom(|turns| {
                let mut spent = Duration::ZERO;
                for _ in 0..turns {
                    let pushes: Vec<_> = (0..together).map(|_| Outgoing::new(channel(), push())).collect();
                    let wanted = hub.counters(0).deliveries.get() + SUBSCRIBERS * together;
                    let started = Instant::now();
                    pushes.into_iter().for_each(|push| hub.fan_out(push));
                    local.block_on(&runtime, async {
                        while hub.counters(0).deliveries.get() < wanted {
                            tokio::task::yield_now().await;
                        }
                    });
                    spent += started.elapsed();
                    local.block_on(&runtime, async {
                        for connection in &connections {
                            connection.flushed().await;
                        }
                    });
                }
                spent
            });
        });
    }
}

/// Connections whose other ends are read, and thrown away, by a thread of their own.
fn subscribers(shard: &Rc<Shard>) -> Vec<Rc<fanwire::hub::Connection>> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut ends = Vec::new();
    let connections = (0..SUBSCRIBERS).map(|number| {
        ends.push(TcpStream::connect(address).unwrap());
        let (socket, _) = listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.set_nodelay(true).unwrap();
        let socket = Socket::Tcp(tokio::net::TcpStream::from_std(socket).unwrap());
        let id = ConnectionId::from_bits(number as u128);
        let connection = shard.adopt(id, "default".parse().unwrap(), Format::Native, socket);
        connection.subscribe(&channel(), false);
        connection.release(&channel(), None);
        connection
    });
    let connections = connections.collect();
    thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        ends.iter().for_each(|end| end.set_nonblocking(true).unwrap());
        loop {
            ends.iter_mut().for_each(|end| drop(end.read(&mut buffer)));
            thread::sleep(Duration::from_micros(500));
        }
    });
    connections
}

criterion_group! {
    name = hot_path;
    config = Criterion::default().measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_secs(1));
    targets = decode, encode, publish, fan_out
}
criterion_main!(hot_path);
