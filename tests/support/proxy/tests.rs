//! Each thing that the proxy does, done.

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
    proxy.swallow(&BOTH);
    client.write_all(b"lost").await.unwrap();
    proxy.reset();
    proxy.heal().await;
    // The client has not noticed yet.
    let _ = client.write_all(b"and what follows").await;
    assert_eq!(end(&mut client).await, Err(io::ErrorKind::ConnectionReset));
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
    // What it has not accepted yet would be refused too.
    round_trip(&mut client, b"hello").await;
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
