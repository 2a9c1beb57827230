//! Faults at random, one after the other, while a crowd publishes and subscribes: nothing is lost, doubled, out of order
//! or made up, and what is lost with the broker itself is told.
//!
//! Which faults, how long and in which order follows from a seed. Each test has its own seeds and takes some seconds; with
//! `FANWIRE_CHAOS_SECONDS` it takes that many, with `FANWIRE_SEED` it has that seed (`make soak` sets both). A failure
//! prints its seed and what was done when. Start at [`Trial::run`].

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use rand::{
    Rng, SeedableRng,
    rngs::StdRng,
    seq::{IndexedRandom, IteratorRandom},
};
use tokio::time::{Instant, sleep};

use crate::support::{
    checker::{Announced, Floor, Report, recorder::Recorder},
    fleet::{
        Fleet,
        crowd::{Crowd, Workload},
    },
    proxy::{BOTH, ChaosProxy, Way},
    redis::{RedisServer, sentinel::RedisSentinel},
};

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// A node is killed, and started anew.
    KillNode,
    /// A node is told to end, and started anew.
    TerminateNode,
    /// A node stands still.
    StopNode,
    /// A subscriber does not read.
    SlowReader,
    /// The way between clients and a node.
    Front(Network),
    /// The way between a node and Redis.
    Back(Network),
    /// Redis is killed, and started anew with what it had.
    KillRedis,
    /// Redis stands still.
    StopRedis,
    /// Redis closes the connections on which nodes hear, several times.
    CloseRelay,
    /// Redis closes those on which they ask.
    CloseCommands,
    /// Redis forgets everything.
    Flush,
    /// Redis is killed, and started anew with nothing.
    Empty,
    /// Redis' primary dies, and its replica takes over, which may lack the last publications.
    Failover,
    /// Redis' primary stands still until its replica has taken over, and goes on as if nothing had been.
    Split,
}

/// What happens on a way.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Network {
    Delay,
    Limit,
    Chop,
    Hold,
    HoldAnswers,
    Swallow,
    Cut,
    Reset,
    HalfClose,
    Refuse,
}

const NETWORK: [Network; 10] = [
    Network::Delay,
    Network::Limit,
    Network::Chop,
    Network::Hold,
    Network::HoldAnswers,
    Network::Swallow,
    Network::Cut,
    Network::Reset,
    Network::HalfClose,
    Network::Refuse,
];

/// What the nodes share.
enum Shared {
    /// Nothing: there is one node.
    Memory,
    /// One Redis, each node on a way of its own.
    Redis(Box<RedisServer>, Vec<Arc<ChaosProxy>>),
    /// A primary and its replica under a sentinel, which says where they are: there is no way between.
    Sentinel(Box<RedisSentinel>),
}

/// One run with one seed.
struct Trial {
    seed: u64,
    random: StdRng,
    shared: Shared,
    fleet: Fleet,
    crowd: Crowd,
    workload: Workload,
    started: Instant,
    log: Vec<String>,
}

/// What became of a trial.
struct Outcome {
    seed: u64,
    report: Report,
    log: Vec<String>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}: {}{}", self.seed, self.report, self.log.join("\n"))
    }
}

impl Trial {
    /// A trial on this many nodes. Nothing has gone wrong yet.
    async fn begin(seed: u64, shared: Shared, nodes: usize, workload: Workload) -> Self {
        println!("seed {seed}");
        let fleet = Fleet::start(&shared.urls(nodes)).await;
        let crowd = Crowd::gather(&fleet, workload).await;
        let random = StdRng::seed_from_u64(seed);
        Self { seed, random, shared, fleet, crowd, workload, started: Instant::now(), log: Vec::new() }
    }

    /// Lets `faults` happen for this long, and lets everybody recover.
    async fn run(mut self, faults: &[Fault], length: Duration) -> Outcome {
        while self.started.elapsed() < length {
            let calm = Duration::from_millis(self.random.random_range(200..1500));
            sleep(calm).await;
            let fault = *faults.choose(&mut self.random).expect("there are faults");
            let node = self.random.random_range(0..self.fleet.size());
            let lasts = Duration::from_millis(self.random.random_range(100..3000));
            let beside = self.beside(faults);
            let also =
                beside.as_ref().map(|(network, _)| format!(", and {network:?} before Redis")).unwrap_or_default();
            self.note(format!("{fault:?}, node {node}, {lasts:?}{also}"));
            let beside = async {
                if let Some((network, way)) = beside {
                    disturb(&way, network, lasts.mul_f64(1.5)).await;
                }
            };
            tokio::join!(self.suffer(fault, node, lasts), beside);
        }
        self.note("calm".into());
        let floor = self.floor(length);
        let recorder: Recorder = self.crowd.recorder().clone();
        self.crowd.disperse().await;
        let report = recorder.check(floor);
        println!("{:8.3} s: {report}", self.started.elapsed().as_secs_f64());
        self.log.extend((0..self.fleet.size()).map(|n| format!("node {n}:\n{}", self.fleet.log(n))));
        Outcome { seed: self.seed, report, log: self.log }
    }

    /// Now and then a second fault at the same time, if there are any on the ways to Redis.
    fn beside(&mut self, faults: &[Fault]) -> Option<(Network, Arc<ChaosProxy>)> {
        let Shared::Redis(_, ways) = &self.shared else { return None };
        let networks = faults.iter().filter_map(|fault| match fault {
            Fault::Back(network) => Some(*network),
            _ => None,
        });
        let network = networks.choose(&mut self.random)?;
        let way = ways.choose(&mut self.random)?.clone();
        self.random.random_bool(0.4).then_some((network, way))
    }

    async fn suffer(&mut self, fault: Fault, node: usize, lasts: Duration) {
        match fault {
            Fault::KillNode | Fault::TerminateNode | Fault::StopNode => self.hit_node(fault, node, lasts).await,
            Fault::SlowReader => self.slow_one_down(lasts).await,
            Fault::Front(network) => disturb(self.fleet.front(node), network, lasts).await,
            Fault::Back(network) => self.shared.disturb(node, network, lasts).await,
            _ => self.shared.suffer(fault, lasts).await,
        }
    }

    async fn hit_node(&mut self, fault: Fault, node: usize, lasts: Duration) {
        match fault {
            Fault::KillNode => {
                self.fleet.kill(node);
                sleep(lasts / 3).await;
                self.fleet.restart(node).await;
            }
            Fault::TerminateNode => {
                self.fleet.terminate(node).await;
                self.fleet.restart(node).await;
            }
            _ => {
                // Up to eight seconds: at four, clients lose patience.
                self.fleet.stop(node);
                sleep(lasts.mul_f64(8.0 / 3.0)).await;
                self.fleet.cont(node);
            }
        }
    }

    async fn slow_one_down(&mut self, lasts: Duration) {
        let subscriber = self.random.random_range(0..self.workload.subscribers());
        self.crowd.slow(Some(subscriber));
        sleep(lasts).await;
        self.crowd.slow(None);
    }

    fn note(&mut self, what: String) {
        let line = format!("{:8.3} s: {what}", self.started.elapsed().as_secs_f64());
        println!("{line}");
        self.log.push(line);
    }

    /// What must have happened at least for the run to mean something: a twentieth of what would without faults.
    fn floor(&self, length: Duration) -> Floor {
        let publishers = self.workload.publishers();
        let accepted = length.div_duration_f64(self.workload.every) as usize * publishers / 20;
        Floor { accepted, deliveries: accepted * self.workload.subscribers, live: self.workload.subscribers() }
    }
}

impl Shared {
    /// One Redis for this many nodes. One that keeps everything writes it down before it answers.
    async fn redis(nodes: usize, keeps: bool) -> Self {
        let redis = RedisServer::with(|options| options.append_only = keeps).await;
        let mut ways = Vec::new();
        for _ in 0..nodes {
            ways.push(Arc::new(ChaosProxy::to(redis.address()).await));
        }
        Self::Redis(redis.into(), ways)
    }

    async fn sentinel() -> Self {
        Self::Sentinel(RedisSentinel::start(1).await.into())
    }

    /// Each node's `broker.url`.
    fn urls(&self, nodes: usize) -> Vec<String> {
        match self {
            Self::Memory => vec!["memory:".into(); nodes],
            Self::Redis(redis, ways) => ways.iter().map(|way| redis.url_at(way.port())).collect(),
            Self::Sentinel(sentinel) => vec![sentinel.url(); nodes],
        }
    }

    async fn disturb(&self, node: usize, network: Network, lasts: Duration) {
        let Self::Redis(_, ways) = self else { panic!("there is no way to Redis") };
        // Up to nine seconds of silence, which is noticed after seven at the latest.
        let lasts = match network {
            Network::Hold | Network::HoldAnswers => lasts * 3,
            _ => lasts,
        };
        disturb(&ways[node], network, lasts).await;
    }

    async fn suffer(&mut self, fault: Fault, lasts: Duration) {
        if let Self::Sentinel(sentinel) = self {
            return fail_over(sentinel, fault, lasts).await;
        }
        let redis = match self {
            Self::Redis(redis, _) => redis,
            Self::Memory | Self::Sentinel(_) => panic!("{fault:?} needs one Redis"),
        };
        match fault {
            Fault::KillRedis => {
                redis.kill();
                sleep(lasts / 2).await;
                redis.restart().await;
            }
            Fault::StopRedis => {
                redis.stop();
                sleep(Duration::from_secs(1) + lasts.mul_f64(4.0 / 3.0)).await;
                redis.cont();
            }
            Fault::CloseRelay => {
                let until = Instant::now() + lasts;
                while Instant::now() < until {
                    redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
                    sleep(Duration::from_millis(200)).await;
                }
            }
            Fault::CloseCommands => drop(redis.cli(&["CLIENT", "KILL", "TYPE", "normal"]).await),
            Fault::Flush => drop(redis.cli(&["FLUSHALL"]).await),
            Fault::Empty => redis.restart_empty().await,
            _ => panic!("{fault:?} is not Redis'"),
        }
    }
}

async fn fail_over(sentinel: &mut RedisSentinel, fault: Fault, lasts: Duration) {
    match fault {
        Fault::Failover => {
            sentinel.failover().await;
            sleep(lasts).await;
            sentinel.revive().await;
        }
        Fault::Split => sentinel.split().await,
        _ => panic!("{fault:?} needs one Redis"),
    }
}

/// Lets something happen on a way, and puts it right.
async fn disturb(way: &ChaosProxy, network: Network, lasts: Duration) {
    match network {
        Network::Delay => way.delay(Duration::from_millis(50), Duration::from_millis(100)),
        Network::Limit => way.limit(50_000),
        Network::Chop => way.chop(),
        Network::Hold => way.hold(&BOTH),
        Network::HoldAnswers => way.hold(&[Way::ToClient]),
        Network::Swallow => way.swallow(&BOTH),
        Network::Cut => return way.cut(),
        Network::Reset => return way.reset(),
        Network::HalfClose => return way.half_close(Way::ToClient),
        Network::Refuse => {
            way.refuse().await;
            way.reset();
        }
    }
    sleep(lasts).await;
    if network == Network::Swallow {
        // What has lost bytes cannot go on.
        way.reset();
    }
    way.heal().await;
}

/// The seeds and the length of each run: those of the test, unless the environment says otherwise.
fn plan(seeds: &[u64], seconds: u64) -> (Vec<u64>, Duration) {
    let number = |name: &str| {
        let text = std::env::var(name).ok().filter(|text| !text.is_empty());
        text.map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
    };
    let Some(seconds) = number("FANWIRE_CHAOS_SECONDS") else {
        return (seeds.to_vec(), Duration::from_secs(seconds));
    };
    (vec![number("FANWIRE_SEED").unwrap_or_else(rand::random)], Duration::from_secs(seconds))
}

/// The faults of a network on both sides of a node.
fn networks() -> Vec<Fault> {
    NETWORK.iter().flat_map(|network| [Fault::Front(*network), Fault::Back(*network)]).collect()
}

impl Outcome {
    fn assert_kept(&self) {
        assert!(self.report.violations.is_empty(), "{self}");
    }

    /// Each subscriber was told of each loss, and once: there were no more than faults that lose something.
    fn assert_told_once(&self, forgetful: &[Fault]) {
        self.assert_kept();
        let is_forgetful = |line: &&String| forgetful.iter().any(|fault| line.contains(&format!(": {fault:?}, ")));
        let most = self.log.iter().filter(is_forgetful).count();
        assert!(0 < most, "nothing was lost, so this says nothing: {self}");
        let mut told = HashMap::<_, usize>::new();
        self.report.announced.iter().for_each(|loss| *told.entry(&loss.subscriber).or_default() += 1);
        let is_too_often = |loss: &&Announced| most < told[&loss.subscriber];
        let one = self.report.announced.iter().find(is_too_often).map(|loss| &loss.subscriber);
        let its: Vec<_> = self.report.announced.iter().filter(|loss| Some(&loss.subscriber) == one).collect();
        assert!(its.is_empty(), "told more often than {most} times: {its:#?}; {self}");
    }

    fn assert_nothing_lost(&self) {
        self.assert_kept();
        assert!(self.report.announced.is_empty(), "{self}: {:?}", self.report.announced);
    }
}

/// Twice as much to do, twice as often, for several nodes.
fn busy() -> Workload {
    Workload { subscribers: 8, every: Duration::from_millis(10), ..Workload::default() }
}

/// A broker that forgets keys takes what is sent again for something new, and only where there is history can it say so.
fn with_history_only(workload: Workload) -> Workload {
    Workload { plain_channels: 0, ..workload }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_one_node_nothing_that_the_network_does_loses_anything() {
    let (seeds, length) = plan(&[1], 10);
    let mut faults = vec![Fault::StopNode, Fault::SlowReader];
    faults.extend(NETWORK.map(Fault::Front));
    for seed in seeds {
        let trial = Trial::begin(seed, Shared::Memory, 1, Workload::default()).await;
        trial.run(&faults, length).await.assert_nothing_lost();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_forgets_with_its_end_always_tells() {
    let (seeds, length) = plan(&[2], 8);
    let faults = [Fault::KillNode, Fault::TerminateNode, Fault::Front(Network::Cut), Fault::Front(Network::Delay)];
    for seed in seeds {
        let trial = Trial::begin(seed, Shared::Memory, 1, with_history_only(Workload::default())).await;
        trial.run(&faults, length).await.assert_told_once(&[Fault::KillNode, Fault::TerminateNode]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_several_nodes_nothing_that_happens_to_them_or_between_loses_anything() {
    let (seeds, length) = plan(&[3], 12);
    let mut faults = networks();
    faults.extend([Fault::KillNode, Fault::TerminateNode, Fault::StopNode, Fault::SlowReader, Fault::CloseRelay]);
    for seed in seeds {
        let shared = Shared::redis(3, true).await;
        let trial = Trial::begin(seed, shared, 3, busy()).await;
        trial.run(&faults, length).await.assert_nothing_lost();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_goes_and_comes_back_loses_nothing() {
    let (seeds, length) = plan(&[4], 12);
    let redis = [Fault::KillRedis, Fault::StopRedis, Fault::CloseRelay, Fault::CloseCommands];
    let others = [Fault::Back(Network::Delay), Fault::Back(Network::Hold), Fault::Back(Network::Reset)];
    let faults: Vec<_> = redis.into_iter().chain(others).collect();
    for seed in seeds {
        let shared = Shared::redis(2, true).await;
        let trial = Trial::begin(seed, shared, 2, busy()).await;
        trial.run(&faults, length).await.assert_nothing_lost();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_forgets_always_tells() {
    let (seeds, length) = plan(&[14], 10);
    // Slow ways too: what Redis relayed before it forgot comes after what it said since.
    let ways = [Network::Delay, Network::Limit, Network::Limit, Network::Hold, Network::HoldAnswers, Network::Reset];
    let mut faults = vec![Fault::Flush, Fault::Flush, Fault::Empty, Fault::CloseRelay, Fault::CloseCommands];
    faults.extend([Fault::KillNode, Fault::StopNode]);
    faults.extend(ways.map(Fault::Back));
    for seed in seeds {
        let shared = Shared::redis(2, false).await;
        let trial = Trial::begin(seed, shared, 2, with_history_only(busy())).await;
        trial.run(&faults, length).await.assert_told_once(&[Fault::Flush, Fault::Empty]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_always_tells() {
    let (seeds, length) = plan(&[18], 8);
    let faults = [Fault::Failover, Fault::Split, Fault::KillNode, Fault::StopNode, Fault::Front(Network::Delay)];
    for seed in seeds {
        let trial = Trial::begin(seed, Shared::sentinel().await, 2, with_history_only(busy())).await;
        trial.run(&faults, length).await.assert_told_once(&[Fault::Failover, Fault::Split]);
    }
}
