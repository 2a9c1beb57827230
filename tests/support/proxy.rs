//! A chaos proxy: passes bytes between clients and a target, and does to them what networks do.
//!
//! What it does is changed while connections are open, and all of them feel it at once: [`ChaosProxy::delay`],
//! [`ChaosProxy::limit`], [`ChaosProxy::chop`], [`ChaosProxy::hold`], [`ChaosProxy::swallow`]; [`ChaosProxy::heal`] ends
//! all that. [`ChaosProxy::cut`], [`ChaosProxy::reset`] and [`ChaosProxy::half_close`] happen to those that are open
//! then. A byte's way: `take` reads it and says when it is due, `give` writes it when it is.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use rand::Rng;
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpSocket, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{mpsc as queue, watch},
    task::{JoinHandle, JoinSet, yield_now},
    time::{Instant, sleep_until, timeout},
};

use super::{port::Port, within};

/// How many reads may be on their way at once in one direction; then the proxy stops reading.
const ON_THE_WAY: usize = 64;

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// What clients send.
    ToTarget,
    /// What the target answers.
    ToClient,
}

/// A proxy on 127.0.0.1. Dropping it closes everything.
pub struct ChaosProxy {
    port: Port,
    orders: watch::Sender<Orders>,
    listening: watch::Receiver<bool>,
    open: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

/// What is to be done to bytes and connections.
#[derive(Clone, Debug)]
struct Orders {
    target: SocketAddr,
    ways: [Toxics; 2],
    refuse: bool,
    /// How many times connections were ended, and how they were the last time.
    ends: u64,
    end: End,
    /// How many times each way was closed.
    half_closes: [u64; 2],
}

/// What is done to the bytes of one way.
#[derive(Clone, Copy, Debug, Default)]
struct Toxics {
    delay: Duration,
    jitter: Duration,
    bytes_per_second: Option<usize>,
    chop: bool,
    hold: bool,
    swallow: bool,
}

#[derive(Clone, Copy, Debug)]
enum End {
    Cut,
    Reset,
}

impl ChaosProxy {
    /// One that leads to `target` and does nothing yet.
    pub async fn to(target: SocketAddr) -> Self {
        let port = Port::claim();
        let address = SocketAddr::from(([127, 0, 0, 1], port.number()));
        let ways = [Toxics::default(); 2];
        let orders = Orders { target, ways, refuse: false, ends: 0, end: End::Cut, half_closes: [0; 2] };
        let (orders, orders_rx) = watch::channel(orders);
        let (listening_tx, listening) = watch::channel(false);
        let open = Arc::<AtomicUsize>::default();
        let task = tokio::spawn(serve(address, orders_rx, listening_tx, open.clone()));
        let proxy = Self { port, orders, listening, open, task };
        proxy.until_listening(true).await;
        proxy
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port()))
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// How many connections it has open.
    pub fn connections(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Leads new connections elsewhere.
    pub fn aim(&self, target: SocketAddr) {
        self.orders.send_modify(|orders| orders.target = target);
    }

    /// Every byte comes this much later, and up to `jitter` later than that, in order.
    pub fn delay(&self, delay: Duration, jitter: Duration) {
        self.change(&BOTH, |toxics| (toxics.delay, toxics.jitter) = (delay, jitter));
    }

    /// No more than this many bytes a second pass, on each connection and way.
    pub fn limit(&self, bytes_per_second: usize) {
        self.change(&BOTH, |toxics| toxics.bytes_per_second = Some(bytes_per_second));
    }

    /// Every byte is written alone.
    pub fn chop(&self) {
        self.change(&BOTH, |toxics| toxics.chop = true);
    }

    /// Nothing passes these ways, an end of the connection neither, until [`ChaosProxy::heal`]; then everything does: a
    /// network that is down for a while.
    pub fn hold(&self, ways: &[Way]) {
        self.change(ways, |toxics| toxics.hold = true);
    }

    /// Bytes on these ways vanish. What a connection that has lost some is good for afterwards is its own affair.
    pub fn swallow(&self, ways: &[Way]) {
        self.change(ways, |toxics| toxics.swallow = true);
    }

    /// Refuses new connections as a dead server does, and completes when it does so. Open ones go on.
    pub async fn refuse(&self) {
        self.orders.send_modify(|orders| orders.refuse = true);
        self.until_listening(false).await;
    }

    /// Ends whatever was ordered to last, and completes when new connections are accepted again.
    pub async fn heal(&self) {
        self.orders.send_modify(|orders| {
            orders.ways = [Toxics::default(); 2];
            orders.refuse = false;
        });
        self.until_listening(true).await;
    }

    /// Ends all connections with a FIN to both sides.
    pub fn cut(&self) {
        self.end(End::Cut);
    }

    /// Ends all connections with a RST to both sides.
    pub fn reset(&self) {
        self.end(End::Reset);
    }

    /// Ends one way of all connections, with a FIN after what is on its way; the other one goes on.
    pub fn half_close(&self, way: Way) {
        self.orders.send_modify(|orders| orders.half_closes[way as usize] += 1);
    }

    fn end(&self, end: End) {
        self.orders.send_modify(|orders| {
            orders.ends += 1;
            orders.end = end;
        });
    }

    fn change(&self, ways: &[Way], change: impl Fn(&mut Toxics)) {
        self.orders.send_modify(|orders| ways.iter().for_each(|way| change(&mut orders.ways[*way as usize])));
    }

    async fn until_listening(&self, wanted: bool) {
        let mut listening = self.listening.clone();
        let _ = within("the proxy to obey", listening.wait_for(|listening| *listening == wanted)).await;
    }
}

/// Both ways.
pub const BOTH: [Way; 2] = [Way::ToTarget, Way::ToClient];

impl Drop for ChaosProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Listens whenever it may, and owns all connections.
async fn serve(
    address: SocketAddr,
    mut orders: watch::Receiver<Orders>,
    listening: watch::Sender<bool>,
    open: Arc<AtomicUsize>,
) {
    let mut connections = JoinSet::new();
    loop {
        if orders.wait_for(|orders| !orders.refuse).await.is_err() {
            return;
        }
        let listener = listen(address);
        listening.send_replace(true);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = orders.wait_for(|orders| orders.refuse) => break,
                Some(_) = connections.join_next() => continue,
            };
            if let Ok((client, _)) = accepted {
                connections.spawn(connect(client, orders.clone(), Counted::new(&open)));
            }
        }
        drop(listener);
        listening.send_replace(false);
    }
}

fn listen(address: SocketAddr) -> TcpListener {
    let socket = TcpSocket::new_v4().expect("a socket");
    // Connections of before may still be closing.
    socket.set_reuseaddr(true).expect("a new socket takes options");
    socket.bind(address).and_then(|()| socket.listen(1024)).expect("the port is ours")
}

/// Counts a connection for as long as it lives.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Self(open.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One connection, from the client's to its end.
async fn connect(mut client: TcpStream, mut orders: watch::Receiver<Orders>, _counted: Counted) {
    let (target, ends) = {
        let orders = orders.borrow();
        (orders.target, orders.ends)
    };
    let Ok(mut target) = TcpStream::connect(target).await else {
        return reset(&client);
    };
    for socket in [&client, &target] {
        socket.set_nodelay(true).expect("the socket is open");
    }
    let end = {
        let ((from_client, to_client), (from_target, to_target)) = (client.split(), target.split());
        let up = pass(from_client, to_target, Way::ToTarget, orders.clone());
        let down = pass(from_target, to_client, Way::ToClient, orders.clone());
        tokio::select! {
            passed = async { tokio::try_join!(up, down) } => match passed {
                Ok(_) => return,
                Err(_) => End::Reset,
            },
            ordered = orders.wait_for(|orders| orders.ends != ends) => ordered.map_or(End::Cut, |orders| orders.end),
        }
    };
    match end {
        End::Reset => [&client, &target].into_iter().for_each(reset),
        End::Cut => {
            tokio::join!(finish(&mut client), finish(&mut target));
        }
    }
}

/// Makes the socket's end a RST.
fn reset(socket: &TcpStream) {
    // It may have been reset by the other side already.
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// Sends a FIN, and reads what the other side still has to say: otherwise the kernel would send a RST.
async fn finish(socket: &mut TcpStream) {
    let finishing = async {
        socket.shutdown().await?;
        tokio::io::copy(socket, &mut tokio::io::sink()).await
    };
    let _ = timeout(Duration::from_secs(2), finishing).await;
}

/// Passes bytes one way until their end, which it passes on, or until one side is broken.
async fn pass(from: ReadHalf<'_>, to: WriteHalf<'_>, way: Way, orders: watch::Receiver<Orders>) -> io::Result<()> {
    let (tx, rx) = queue::channel(ON_THE_WAY);
    tokio::try_join!(take(from, tx, way, orders.clone()), give(to, rx, way, orders)).map(drop)
}

/// Reads, and says when what was read is due.
async fn take(
    mut from: ReadHalf<'_>,
    tx: queue::Sender<(Instant, Bytes)>,
    way: Way,
    mut orders: watch::Receiver<Orders>,
) -> io::Result<()> {
    let half_closes = orders.borrow().half_closes[way as usize];
    let mut due = Instant::now();
    loop {
        let mut bytes = BytesMut::with_capacity(16 * 1024);
        let read = tokio::select! {
            read = from.read_buf(&mut bytes) => read,
            _ = orders.wait_for(|orders| orders.half_closes[way as usize] != half_closes) => Ok(0),
        };
        match read {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) => {
                // A reset passes no network that is down either.
                let _ = orders.wait_for(|orders| !orders.ways[way as usize].hold).await;
                return Err(error);
            }
        }
        let Toxics { delay, jitter, .. } = orders.borrow().ways[way as usize];
        let late = delay + jitter.mul_f64(rand::rng().random());
        due = due.max(Instant::now() + late);
        if tx.send((due, bytes.freeze())).await.is_err() {
            return Ok(());
        }
    }
}

/// Writes what is due, as it is ordered then, and at last the end.
async fn give(
    mut to: WriteHalf<'_>,
    mut rx: queue::Receiver<(Instant, Bytes)>,
    way: Way,
    mut orders: watch::Receiver<Orders>,
) -> io::Result<()> {
    // When the next byte may be written if there is a limit.
    let mut next = Instant::now();
    while let Some((due, mut bytes)) = rx.recv().await {
        sleep_until(due).await;
        while !bytes.is_empty() {
            let Ok(toxics) =
                orders.wait_for(|orders| !orders.ways[way as usize].hold).await.map(|orders| orders.ways[way as usize])
            else {
                return Ok(());
            };
            // A fiftieth of a second's bytes at a time.
            let most = toxics.bytes_per_second.map_or(usize::MAX, |limit| (limit / 50).max(1));
            let most = if toxics.chop { 1 } else { most };
            let piece = bytes.split_to(bytes.len().min(most));
            if let Some(limit) = toxics.bytes_per_second {
                sleep_until(next).await;
                next = Instant::now() + Duration::from_secs_f64(piece.len() as f64 / limit as f64);
            }
            if toxics.swallow {
                continue;
            }
            to.write_all(&piece).await?;
            if toxics.chop {
                yield_now().await;
            }
        }
    }
    let _ = orders.wait_for(|orders| !orders.ways[way as usize].hold).await;
    to.shutdown().await
}

mod tests {
    use super::*;

    /// A target that sends back what it reads, and then its end.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = socket.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                    let _ = to.shutdown().await;
                });
            }
        });
        address
    }

    /// A proxy before an echo, and a client of it.
    async fn start() -> (ChaosProxy, TcpStream) {
        let proxy = ChaosProxy::to(echo().await).await;
        let client = dial(&proxy).await;
        (proxy, client)
    }

    async fn dial(proxy: &ChaosProxy) -> TcpStream {
        let client = TcpStream::connect(proxy.address()).await.unwrap();
        client.set_nodelay(true).unwrap();
        client
    }

    /// Sends `bytes`, and returns how long their echo took.
    async fn round_trip(client: &mut TcpStream, bytes: &[u8]) -> Duration {
        let started = Instant::now();
        client.write_all(bytes).await.unwrap();
        assert_eq!(read(client, bytes.len()).await, bytes);
        started.elapsed()
    }

    async fn read(client: &mut TcpStream, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        within("bytes", client.read_exact(&mut bytes)).await.unwrap();
        bytes
    }

    /// Whether nothing comes for a moment.
    async fn is_silent(client: &mut TcpStream) -> bool {
        timeout(Duration::from_millis(100), client.read_u8()).await.is_err()
    }

    /// How reading ends: with how many bytes, or why not.
    async fn end(client: &mut TcpStream) -> Result<usize, io::ErrorKind> {
        let mut bytes = Vec::new();
        let ended = within("the end", client.read_to_end(&mut bytes)).await;
        ended.map_err(|error| error.kind())
    }

    #[tokio::test]
    async fn without_orders_it_changes_nothing() {
        let (proxy, mut client) = start().await;
        let bytes: Vec<u8> = (0..300_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let (mut from, mut to) = client.split();
        let (sent, echoed) = tokio::join!(to.write_all(&bytes), async {
            let mut echoed = vec![0; bytes.len()];
            from.read_exact(&mut echoed).await.map(|_| echoed)
        });
        sent.unwrap();
        assert!(echoed.unwrap() == bytes);
        assert_eq!(proxy.connections(), 1);
        client.shutdown().await.unwrap();
        assert_eq!(end(&mut client).await, Ok(0));
        while proxy.connections() != 0 {
            yield_now().await;
        }
    }

    #[tokio::test]
    async fn it_delays_in_order() {
        let (proxy, mut client) = start().await;
        proxy.delay(Duration::from_millis(20), Duration::from_millis(20));
        let took = round_trip(&mut client, b"hello").await;
        assert!(Duration::from_millis(40) <= took, "{took:?}");
        let started = Instant::now();
        for n in 0..50 {
            client.write_all(&[n]).await.unwrap();
            yield_now().await;
        }
        assert_eq!(read(&mut client, 50).await, (0..50).collect::<Vec<u8>>());
        let took = started.elapsed();
        assert!(took < Duration::from_secs(1), "a delay is no limit: {took:?}");
        proxy.heal().await;
        round_trip(&mut client, b"hello").await;
    }

    #[tokio::test]
    async fn it_limits() {
        let (proxy, mut client) = start().await;
        proxy.limit(100_000);
        let took = round_trip(&mut client, &[7; 20_000]).await;
        assert!(Duration::from_millis(150) <= took, "{took:?}");
    }

    #[tokio::test]
    async fn it_chops() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = ChaosProxy::to(listener.local_addr().unwrap()).await;
        proxy.chop();
        let mut client = dial(&proxy).await;
        let (mut target, _) = listener.accept().await.unwrap();
        client.write_all(b"hello").await.unwrap();
        let mut reads = 0;
        let mut bytes = Vec::new();
        while bytes.len() < 5 {
            target.read_buf(&mut bytes).await.unwrap();
            reads += 1;
        }
        assert_eq!(bytes, b"hello");
        assert!(1 < reads, "it came in one piece");
    }

    #[tokio::test]
    async fn what_it_holds_comes_later() {
        let (proxy, mut client) = start().await;
        for ways in [&BOTH[..], &[Way::ToTarget], &[Way::ToClient]] {
            proxy.hold(ways);
            client.write_all(b"hello").await.unwrap();
            assert!(is_silent(&mut client).await, "{ways:?}");
            proxy.heal().await;
            assert_eq!(read(&mut client, 5).await, b"hello");
        }
        proxy.hold(&[Way::ToTarget]);
        client.write_all(b"the end").await.unwrap();
        client.shutdown().await.unwrap();
        assert!(is_silent(&mut client).await, "an end is held too");
        proxy.heal().await;
        assert_eq!(end(&mut client).await, Ok(7));
    }

    #[tokio::test]
    async fn what_it_swallows_is_gone() {
        let (proxy, mut client) = start().await;
        proxy.swallow(&[Way::ToClient]);
        client.write_all(b"lost").await.unwrap();
        assert!(is_silent(&mut client).await);
        proxy.heal().await;
        round_trip(&mut client, b"hello").await;
    }

    #[tokio::test]
    async fn a_cut_is_an_end_and_a_reset_is_an_error() {
        let (proxy, mut client) = start().await;
        round_trip(&mut client, b"hello").await;
        proxy.cut();
        assert_eq!(end(&mut client).await, Ok(0));
        let mut client = dial(&proxy).await;
        round_trip(&mut client, b"new ones are welcome").await;
        // Though nothing passes, a connection can be ended.
        proxy.hold(&BOTH);
        proxy.reset();
        assert_eq!(end(&mut client).await, Err(io::ErrorKind::ConnectionReset));
    }

    #[tokio::test]
    async fn one_way_can_be_closed_alone() {
        let (proxy, mut client) = start().await;
        round_trip(&mut client, b"hello").await;
        proxy.half_close(Way::ToClient);
        assert_eq!(end(&mut client).await, Ok(0));
        // The other way is open: what is written there is an error only after the echo has learnt that nobody listens.
        client.write_all(b"hello").await.unwrap();

        let mut client = dial(&proxy).await;
        client.write_all(b"hello").await.unwrap();
        assert_eq!(read(&mut client, 5).await, b"hello");
        proxy.half_close(Way::ToTarget);
        assert_eq!(end(&mut client).await, Ok(0), "the echo answers an end with an end");
    }

    #[tokio::test]
    async fn a_dead_target_refuses_and_one_that_moved_is_found() {
        let (proxy, mut client) = start().await;
        proxy.refuse().await;
        let refused = TcpStream::connect(proxy.address()).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        round_trip(&mut client, b"open ones go on").await;
        proxy.aim(echo().await);
        proxy.heal().await;
        round_trip(&mut dial(&proxy).await, b"hello").await;
    }

    #[tokio::test]
    async fn the_end_of_the_target_s_process_is_passed_on() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = ChaosProxy::to(listener.local_addr().unwrap()).await;
        let mut client = dial(&proxy).await;
        let (target, _) = listener.accept().await.unwrap();
        reset(&target);
        drop(target);
        assert_eq!(end(&mut client).await, Err(io::ErrorKind::ConnectionReset));
    }
}
