//! One suite that every broker must pass; see the contract at `broker::Broker`.
//!
//! [`holds`] is given a factory and knows nothing of what it makes. A broker's own test calls it with its factory.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use fanwire::{
    broker::{
        Accepted, Broker, Deed, Dismissal, History, KeyScope, Listener, MAX_HISTORY_BYTES, Order, Relayed, Retention,
        ScopedKey, Submission, Target, memory::MemoryBroker, redis::RedisBroker,
    },
    config::BrokerConfig,
    domain::{
        Channel, ConnectionId, Event, HistoryQuery, IdempotencyKey, Member, NodeId, Offset, Payload, Position,
        PublicationId, Revocation, Revoked, TokenId, UnixMillis,
    },
    telemetry::Metrics,
};
use tokio::sync::Notify;

use crate::support::{redis::RedisServer, within};

/// Makes a broker that relays to this listener; each a world of its own.
trait Factory: Fn(Arc<dyn Listener>) -> Arc<dyn Broker> {}

impl<F: Fn(Arc<dyn Listener>) -> Arc<dyn Broker>> Factory for F {}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_memory_broker_holds_the_contract() {
    holds(|listener| Arc::new(MemoryBroker::new(listener, 64 << 20))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_redis_broker_holds_the_contract() {
    let redis = RedisServer::start().await;
    holds(|listener| on_redis(&redis.url(), listener)).await;
}

/// A broker on this Redis, with a prefix of its own.
fn on_redis(url: &str, listener: Arc<dyn Listener>) -> Arc<dyn Broker> {
    let prefix = format!("test-{:x}", rand::random::<u64>());
    let config = BrokerConfig { url: url.into(), prefix, ..BrokerConfig::default() };
    let node = NodeId::new("node");
    RedisBroker::start(url.parse().unwrap(), &config, &node, listener, Arc::new(Metrics::new()))
}

/// The whole contract.
async fn holds(factory: impl Factory) {
    let factory = &factory;
    order_holds_under_concurrent_publishers(World::new(factory)).await;
    appending_and_relaying_are_one_step(World::new(factory)).await;
    offsets_have_no_hole_and_no_end(World::new(factory)).await;
    an_empty_channel_has_its_epoch_already(World::new(factory)).await;
    history_keeps_the_newest(World::new(factory)).await;
    history_forgets_by_age(World::new(factory)).await;
    history_is_read_in_parts(World::new(factory)).await;
    an_answer_is_bounded_in_bytes(World::new(factory)).await;
    an_answer_holds_one_whatever_its_size(World::new(factory)).await;
    without_retention_nothing_is_kept(World::new(factory)).await;
    a_key_is_stored_once(World::new(factory)).await;
    a_key_is_stored_once_under_concurrency(World::new(factory)).await;
    members_join_and_leave_once(World::new(factory)).await;
    a_dropped_history_begins_a_new_epoch(World::new(factory)).await;
    channels_are_apart(World::new(factory)).await;
    listening_is_counted(World::new(factory)).await;
    orders_come_once_and_in_order(World::new(factory)).await;
    revocations_come_among_the_orders(World::new(factory)).await;
    within("the probe", World::new(factory).broker.probe()).await.unwrap();
}

/// One broker and what it relayed.
struct World {
    broker: Arc<dyn Broker>,
    recorder: Arc<Recorder>,
    channel: Channel,
}

#[derive(Default)]
struct Recorder {
    relayed: Mutex<Vec<Relayed>>,
    came: Notify,
}

impl Listener for Recorder {
    fn relayed(&self, relayed: Relayed) {
        self.relayed.lock().unwrap().push(relayed);
        self.came.notify_waiters();
    }
}

const KEPT: Retention = Retention { size: 1000, ttl: Duration::from_secs(3600) };

fn channel(name: &str) -> Channel {
    Channel::new(&"app".parse().unwrap(), &name.parse().unwrap())
}

fn submission(channel: &Channel, data: impl std::fmt::Display, retention: Option<Retention>) -> Submission {
    Submission {
        channel: channel.clone(),
        event: Event { name: None, data: Payload::from_json(&data.to_string()), tags: None },
        id: PublicationId::new(1, rand::random()),
        time: UnixMillis(1),
        from: None,
        exclude: None,
        key: None,
        retention,
    }
}

fn keyed(channel: &Channel, data: u64, scope: KeyScope, key: &str) -> Submission {
    let key = Some(ScopedKey { scope, key: IdempotencyKey::new(key).unwrap() });
    Submission { key, ..submission(channel, data, Some(KEPT)) }
}

fn member(bits: u128, user: Option<&str>) -> Member {
    Member { connection: ConnectionId::from_bits(bits), user: user.map(|user| user.parse().unwrap()), info: None }
}

impl World {
    fn new(factory: &impl Factory) -> Self {
        let recorder = Arc::new(Recorder::default());
        Self { broker: factory(recorder.clone()), recorder, channel: channel("room:1") }
    }

    async fn listen(&self) {
        within("listening", self.broker.listen(&self.channel)).await.unwrap();
    }

    async fn publish(&self, data: u64) -> Accepted {
        self.submit(submission(&self.channel, data, Some(KEPT))).await
    }

    async fn submit(&self, submission: Submission) -> Accepted {
        within("a publication", self.broker.publish(submission)).await.unwrap()
    }

    async fn read(&self, query: HistoryQuery) -> History {
        self.read_within(KEPT, query).await
    }

    async fn read_within(&self, retention: Retention, query: HistoryQuery) -> History {
        within("history", self.broker.history(&self.channel, retention, query)).await.unwrap()
    }

    /// What was relayed, once it is `count` or more.
    async fn relayed(&self, count: usize) -> Vec<Relayed> {
        let waiting = async {
            loop {
                let came = self.recorder.came.notified();
                let relayed = self.recorder.relayed.lock().unwrap().clone();
                if count <= relayed.len() {
                    return relayed;
                }
                came.await;
            }
        };
        within(format!("{count} things to be relayed"), waiting).await
    }

    /// Offset and data of what was relayed, all of it publications.
    async fn publications(&self, count: usize) -> Vec<(u64, String)> {
        let publication = |relayed| match relayed {
            Relayed::Publication(publication) => publication,
            other => panic!("a publication was awaited, {other:?} came"),
        };
        self.relayed(count).await.into_iter().map(|relayed| entry(&publication(relayed))).collect()
    }
}

fn entry(publication: &fanwire::domain::Publication) -> (u64, String) {
    let offset = publication.position.map_or(0, |position| position.offset.0);
    (offset, publication.event.data.as_str().to_owned())
}

fn offsets(history: &History) -> Vec<u64> {
    history.publications.iter().map(|publication| entry(publication).0).collect()
}

fn offset(accepted: &Accepted) -> u64 {
    accepted.position.unwrap().offset.0
}

async fn order_holds_under_concurrent_publishers(world: World) {
    const PUBLISHERS: u64 = 8;
    const EACH: u64 = 100;
    world.listen().await;
    let publishing = (0..PUBLISHERS).map(|publisher| {
        let (broker, channel) = (world.broker.clone(), world.channel.clone());
        tokio::spawn(async move {
            let mut last = 0;
            for n in 0..EACH {
                let data = publisher * 1000 + n;
                let accepted = broker.publish(submission(&channel, data, Some(KEPT))).await.unwrap();
                assert!(last < offset(&accepted), "one publisher's publications are in its order");
                last = offset(&accepted);
            }
        })
    });
    for publisher in publishing.collect::<Vec<_>>() {
        within("a publisher", publisher).await.unwrap();
    }
    let relayed = world.publications((PUBLISHERS * EACH) as usize).await;
    let numbers: Vec<_> = relayed.iter().map(|(offset, _)| *offset).collect();
    assert_eq!(numbers, (1..=PUBLISHERS * EACH).collect::<Vec<_>>(), "relayed in the order of offsets");
    for publisher in 0..PUBLISHERS {
        let data = relayed.iter().map(|(_, data)| data.parse::<u64>().unwrap());
        let own: Vec<_> = data.filter(|data| data / 1000 == publisher).map(|data| data % 1000).collect();
        assert_eq!(own, (0..EACH).collect::<Vec<_>>());
    }
    // History has the same at the same places.
    let history = world.read(HistoryQuery { limit: 1000, ..HistoryQuery::default() }).await;
    assert_eq!(history.publications.iter().map(|each| entry(each)).collect::<Vec<_>>(), relayed);
}

async fn appending_and_relaying_are_one_step(world: World) {
    world.listen().await;
    let (broker, channel) = (world.broker.clone(), world.channel.clone());
    let publishing = tokio::spawn(async move {
        for n in 0..300u64 {
            broker.publish(submission(&channel, n, Some(KEPT))).await.unwrap();
        }
    });
    // Whatever history shows has been, or will be, relayed; whatever was relayed is in history.
    loop {
        let relayed_before = world.recorder.relayed.lock().unwrap().len() as u64;
        let top = world.read(HistoryQuery { limit: 0, ..HistoryQuery::default() }).await.top.offset.0;
        assert!(relayed_before <= top, "{relayed_before} were relayed and history stands at {top}");
        world.publications(top as usize).await;
        if top == 300 {
            break;
        }
        tokio::task::yield_now().await;
    }
    within("the publisher", publishing).await.unwrap();
}

async fn offsets_have_no_hole_and_no_end(world: World) {
    let first = world.publish(0).await.position.unwrap();
    for n in 2..=50 {
        let position = world.publish(n).await.position.unwrap();
        assert_eq!(position, Position { epoch: first.epoch, offset: Offset(n) });
    }
    // A publication that is not kept takes no offset.
    let passing = world.submit(submission(&world.channel, 0, None)).await;
    assert_eq!(passing.position, None);
    assert_eq!(offset(&world.publish(51).await), 51);
}

async fn an_empty_channel_has_its_epoch_already(world: World) {
    let empty = world.read(HistoryQuery::default()).await;
    assert_eq!((empty.top.offset, empty.trimmed, empty.publications.len()), (Offset(0), Offset(0), 0));
    assert_eq!(world.read(HistoryQuery::default()).await.top, empty.top, "reading again changes nothing");
    let first = world.publish(1).await.position.unwrap();
    assert_eq!(first, Position { epoch: empty.top.epoch, offset: Offset(1) });
}

async fn history_keeps_the_newest(world: World) {
    let five = Retention { size: 5, ..KEPT };
    for n in 1..=8u64 {
        world.submit(submission(&world.channel, n, Some(five))).await;
    }
    let all = HistoryQuery { limit: 1000, ..HistoryQuery::default() };
    let history = world.read_within(five, all).await;
    assert_eq!((history.top.offset, history.trimmed, offsets(&history)), (Offset(8), Offset(3), vec![4, 5, 6, 7, 8]));
    // A reader whose retention has become smaller sees less.
    let history = world.read_within(Retention { size: 2, ..KEPT }, all).await;
    assert_eq!((history.trimmed, offsets(&history)), (Offset(6), vec![7, 8]));
}

async fn history_forgets_by_age(world: World) {
    let brief = Retention { size: 100, ttl: Duration::from_millis(80) };
    let epoch = world.submit(submission(&world.channel, 1, Some(brief))).await.position.unwrap().epoch;
    world.submit(submission(&world.channel, 2, Some(brief))).await;
    let expired = async {
        loop {
            let history = world.read_within(brief, HistoryQuery::default()).await;
            if history.publications.is_empty() {
                return history;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let history = within("both to expire", expired).await;
    assert_eq!(history.top, Position { epoch, offset: Offset(2) }, "the numbering outlives what it numbered");
    assert_eq!(history.trimmed, Offset(2));
    let next = world.submit(submission(&world.channel, 3, Some(brief))).await.position.unwrap();
    assert_eq!(next, Position { epoch, offset: Offset(3) });
}

async fn history_is_read_in_parts(world: World) {
    for n in 1..=10 {
        world.publish(n).await;
    }
    let some = |after: Option<u64>, before: Option<u64>, limit, reverse| HistoryQuery {
        limit,
        after: after.map(Offset),
        before: before.map(Offset),
        reverse,
    };
    for (query, expected) in [
        (some(None, None, 3, false), vec![1, 2, 3]),
        (some(None, None, 3, true), vec![10, 9, 8]),
        (some(None, None, 0, false), vec![]),
        (some(Some(7), None, 100, false), vec![8, 9, 10]),
        (some(Some(7), None, 2, false), vec![8, 9]),
        (some(Some(7), None, 2, true), vec![10, 9]),
        (some(Some(10), None, 100, false), vec![]),
        (some(Some(u64::MAX), None, 100, false), vec![]),
        (some(Some(0), Some(3), 100, false), vec![1, 2]),
        (some(None, Some(0), 100, false), vec![]),
        (some(None, Some(1), 100, true), vec![]),
        (some(None, Some(u64::MAX), 1, true), vec![10]),
        (some(Some(3), Some(7), 100, true), vec![6, 5, 4]),
        (some(Some(7), Some(3), 100, false), vec![]),
    ] {
        let history = world.read(query).await;
        assert_eq!(offsets(&history), expected, "{query:?}");
        assert_eq!((history.top.offset, history.trimmed), (Offset(10), Offset(0)));
    }
}

async fn an_answer_is_bounded_in_bytes(world: World) {
    const COUNT: u64 = 30;
    let large = format!("\"{}\"", "x".repeat(60_000));
    for _ in 0..COUNT {
        world.submit(submission(&world.channel, &large, Some(KEPT))).await;
    }
    let all = HistoryQuery { limit: 1000, ..HistoryQuery::default() };
    let bytes = |history: &History| -> usize {
        history.publications.iter().map(|publication| publication.event.data.as_bytes().len()).sum()
    };
    let mut oldest_first = Vec::new();
    while oldest_first.last() != Some(&COUNT) {
        let after = oldest_first.last().copied().map(Offset);
        let history = world.read(HistoryQuery { after, ..all }).await;
        assert_eq!((history.top.offset, history.trimmed), (Offset(COUNT), Offset(0)));
        assert!((1..=MAX_HISTORY_BYTES).contains(&bytes(&history)), "{}", bytes(&history));
        oldest_first.extend(offsets(&history));
    }
    assert_eq!(oldest_first, (1..=COUNT).collect::<Vec<_>>(), "reading on misses nothing");
    let mut newest_first = Vec::new();
    while newest_first.last() != Some(&1) {
        let before = newest_first.last().copied().map(Offset);
        let history = world.read(HistoryQuery { before, reverse: true, ..all }).await;
        assert!((1..=MAX_HISTORY_BYTES).contains(&bytes(&history)), "{}", bytes(&history));
        newest_first.extend(offsets(&history));
    }
    assert_eq!(newest_first, (1..=COUNT).rev().collect::<Vec<_>>());
}

async fn an_answer_holds_one_whatever_its_size(world: World) {
    let huge = format!("\"{}\"", "x".repeat(MAX_HISTORY_BYTES));
    for data in ["1", &huge, &huge, "4"] {
        world.submit(submission(&world.channel, data, Some(KEPT))).await;
    }
    for (after, expected) in [(0, [1]), (1, [2]), (2, [3]), (3, [4])] {
        let history = world.read(HistoryQuery { after: Some(Offset(after)), ..HistoryQuery::default() }).await;
        assert_eq!(offsets(&history), expected);
    }
    let none = world.read(HistoryQuery { limit: 0, ..HistoryQuery::default() }).await;
    assert_eq!(offsets(&none), [0; 0]);
}

async fn without_retention_nothing_is_kept(world: World) {
    world.listen().await;
    for n in 0..3u64 {
        assert_eq!(world.submit(submission(&world.channel, n, None)).await.position, None);
    }
    let data: Vec<_> = world.publications(3).await.into_iter().map(|(_, data)| data).collect();
    assert_eq!(data, ["0", "1", "2"]);
    assert_eq!(world.read(HistoryQuery::default()).await.publications.len(), 0);
}

async fn a_key_is_stored_once(world: World) {
    world.listen().await;
    let user = |name: &str| KeyScope::User(name.parse().unwrap());
    let first = world.submit(keyed(&world.channel, 1, user("ann"), "k")).await;
    assert_eq!(world.submit(keyed(&world.channel, 2, user("ann"), "k")).await, first);
    let mut ids = vec![first.id];
    let elsewhere = channel("room:2");
    for other in [
        keyed(&world.channel, 3, user("ann"), "K"),
        keyed(&world.channel, 4, user("bob"), "k"),
        keyed(&world.channel, 5, KeyScope::Anonymous, "k"),
        keyed(&world.channel, 6, KeyScope::Server, "k"),
        keyed(&elsewhere, 7, user("ann"), "k"),
    ] {
        ids.push(world.submit(other).await.id);
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 6, "another key, user, kind or channel is another publication");
    let data: Vec<_> = world.publications(5).await.into_iter().map(|(_, data)| data).collect();
    assert_eq!(data[..5], ["1", "3", "4", "5", "6"].map(str::to_owned));
    // Where nothing is kept, keys are kept all the same.
    let passing = |data| Submission { retention: None, ..keyed(&world.channel, data, user("eve"), "k") };
    let first = world.submit(passing(8)).await;
    assert_eq!((world.submit(passing(9)).await, first.position), (first, None));
}

async fn a_key_is_stored_once_under_concurrency(world: World) {
    world.listen().await;
    for round in 0..50 {
        let racing: Vec<_> = (0..8)
            .map(|n| {
                let submission = keyed(&world.channel, n, KeyScope::Server, &format!("k{round}"));
                let broker = world.broker.clone();
                tokio::spawn(async move { broker.publish(submission).await.unwrap() })
            })
            .collect();
        let mut accepted = Vec::new();
        for each in racing {
            accepted.push(within("a publisher", each).await.unwrap());
        }
        assert!(accepted.iter().all(|each| *each == accepted[0]), "{accepted:?}");
        assert_eq!(offset(&accepted[0]), round + 1);
    }
    assert_eq!(world.publications(50).await.len(), 50);
}

async fn members_join_and_leave_once(world: World) {
    world.listen().await;
    let (ann, bob) = (member(1, Some("ann")), member(2, None));
    let join =
        async |member: &Member| within("a join", world.broker.join(&world.channel, member.clone())).await.unwrap();
    let leave = async |member: &Member| {
        within("a leave", world.broker.leave(&world.channel, member.connection)).await.unwrap();
    };
    let members = async || within("the members", world.broker.members(&world.channel)).await.unwrap();
    leave(&ann).await;
    assert_eq!(members().await, []);
    join(&ann).await;
    join(&bob).await;
    let renamed = Member { info: Some(Payload::from_json("1")), ..ann.clone() };
    join(&renamed).await;
    assert_eq!(members().await, [renamed.clone(), bob.clone()], "joining again changes the entry");
    leave(&ann).await;
    leave(&ann).await;
    assert_eq!(members().await, std::slice::from_ref(&bob));
    join(&ann).await;
    let named = |relayed: Relayed| match relayed {
        Relayed::Join(_, member) => ("join", member),
        Relayed::Leave(_, member) => ("leave", member),
        other => panic!("a join or leave was awaited, {other:?} came"),
    };
    let relayed: Vec<_> = world.relayed(4).await.into_iter().map(named).collect();
    assert_eq!(relayed, [("join", ann.clone()), ("join", bob), ("leave", renamed), ("join", ann)]);
}

async fn a_dropped_history_begins_a_new_epoch(world: World) {
    world.listen().await;
    let before = world.publish(1).await.position.unwrap();
    within("the drop", world.broker.drop_history(&world.channel)).await.unwrap();
    let history = world.read(HistoryQuery::default()).await;
    assert_ne!(history.top.epoch, before.epoch);
    assert_eq!((history.top.offset, history.publications.len()), (Offset(0), 0));
    let after = world.publish(2).await.position.unwrap();
    assert_eq!(after, Position { epoch: history.top.epoch, offset: Offset(1) });
    let relayed = world.relayed(3).await;
    let [Relayed::Publication(_), Relayed::Reset(channel, top), Relayed::Publication(_)] = &relayed[..] else {
        panic!("a publication, the reset and a publication were awaited: {relayed:?}");
    };
    assert_eq!((channel, *top), (&world.channel, history.top));
}

async fn orders_come_once_and_in_order(world: World) {
    let user = |name: &str| Target::User(name.parse().unwrap());
    let mut given = Vec::new();
    for n in 0..20 {
        given.push((user(&format!("user {n}")), Deed::Subscribe(vec![format!("chat:{n}").parse().unwrap()])));
    }
    given.push((user("ann"), Deed::Unsubscribe(vec!["a".parse().unwrap(), "b".parse().unwrap()])));
    given.push((user("ann"), Deed::Disconnect(Dismissal::Forbidden)));
    given.push((Target::Connection(ConnectionId::from_bits(7)), Deed::Disconnect(Dismissal::TokenRevoked)));
    for (target, deed) in &given {
        let order = Order { app: "app".parse().unwrap(), target: target.clone(), deed: deed.clone() };
        within("an order", world.broker.order(order)).await.unwrap();
    }
    let relayed = world.relayed(given.len()).await;
    let orders = relayed.into_iter().map(|relayed| match relayed {
        Relayed::Order(order, age) => {
            assert!(age < Duration::from_secs(5), "{age:?}");
            (order.target, order.deed)
        }
        other => panic!("an order was awaited, {other:?} came"),
    });
    assert_eq!(orders.collect::<Vec<_>>(), given);
}

async fn revocations_come_among_the_orders(world: World) {
    let revocation = |tokens| Revocation { app: "app".parse().unwrap(), tokens, until: 253_402_300_799 };
    let of_user = revocation(Revoked::User("ann of: Kent".parse().unwrap(), 1_764_000_000));
    let of_one = revocation(Revoked::Token(TokenId::from_bits(7)));
    for revocation in [&of_user, &of_one] {
        within("a revocation", world.broker.revoke(revocation.clone())).await.unwrap();
    }
    let given = |relayed: Vec<Relayed>| {
        let of = |relayed| match relayed {
            Relayed::Revoked(revocation) => revocation,
            other => panic!("a revocation was awaited, {other:?} came"),
        };
        relayed.into_iter().map(of).collect::<Vec<_>>()
    };
    // The first may be among those that are read at the beginning, too.
    let come = |relayed: &[Relayed]| {
        let all = given(relayed.to_vec());
        all.contains(&of_user) && all.contains(&of_one)
    };
    within("both", async {
        let mut count = 2;
        while !come(&world.relayed(count).await) {
            count += 1;
        }
    })
    .await;
    within("loading", world.broker.load_revocations()).await.unwrap();
}

async fn channels_are_apart(world: World) {
    let other = Channel::new(&"other".parse().unwrap(), &"room:1".parse().unwrap());
    let own = world.publish(1).await.position.unwrap();
    let theirs = world.submit(submission(&other, 2, Some(KEPT))).await.position.unwrap();
    assert_ne!(own.epoch, theirs.epoch, "another app's channel of the same name");
    assert_eq!(theirs.offset, Offset(1));
    within("a join", world.broker.join(&other, member(1, None))).await.unwrap();
    assert_eq!(within("the members", world.broker.members(&world.channel)).await.unwrap(), []);
    within("the drop", world.broker.drop_history(&other)).await.unwrap();
    assert_eq!(offsets(&world.read(HistoryQuery::default()).await), [1]);
}

async fn listening_is_counted(world: World) {
    world.listen().await;
    world.listen().await;
    world.broker.ignore(&world.channel);
    world.publish(1).await;
    assert_eq!(world.publications(1).await.len(), 1, "it is still listened to");
    world.broker.ignore(&world.channel);
    // One more than there were listeners.
    world.broker.ignore(&world.channel);
    world.listen().await;
    let before = world.recorder.relayed.lock().unwrap().len();
    world.publish(2).await;
    assert_eq!(world.publications(before + 1).await.last().unwrap().1, "2");
}

#[tokio::test]
async fn the_memory_broker_forgets_channels_that_nobody_can_ask_for() {
    use std::time::Instant;
    let recorder = Arc::new(Recorder::default());
    let broker = MemoryBroker::new(recorder, 64 << 20);
    let read = async |channel: &Channel| broker.history(channel, KEPT, HistoryQuery::default()).await.unwrap().top;
    let (quiet, heard) = (channel("quiet"), channel("heard"));
    let brief = Retention { size: 10, ttl: Duration::from_secs(60) };
    broker.listen(&heard).await.unwrap();
    for channel in [&quiet, &heard] {
        broker.publish(submission(channel, 1, Some(brief))).await.unwrap();
    }
    let (quiet_before, heard_before) = (read(&quiet).await, read(&heard).await);
    let full = broker.held_bytes();
    let now = Instant::now();
    broker.sweep(now + Duration::from_secs(120));
    let empty = broker.held_bytes();
    assert!(0 < empty && empty < full, "what has expired takes no memory, its numbering does: {empty} of {full}");
    assert_eq!(read(&quiet).await, quiet_before, "the numbering stays for a while");
    broker.sweep(now + Duration::from_secs(3600));
    assert!(broker.held_bytes() < empty, "what is forgotten takes none: {}", broker.held_bytes());
    assert_eq!(read(&heard).await, heard_before, "where somebody listens it stays");
    let quiet_after = read(&quiet).await;
    assert_eq!(quiet_after.offset, Offset(0));
    assert_ne!(quiet_after.epoch, quiet_before.epoch);
}
