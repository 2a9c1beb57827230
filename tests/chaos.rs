//! Faults at random, one after the other, while a crowd publishes and subscribes: nothing is lost, doubled, out of order
//! or made up, and what is lost with the broker itself is told.
//!
//! Which faults, how long and in which order follows from a seed. Each test has its own seeds and takes some seconds; with
//! `FANWIRE_CHAOS_SECONDS` it takes that many, with `FANWIRE_SEED` it has that seed (`make soak` sets both). A failure
//! prints its seed and what was done when. Start at [`Trial::run`].

use std::{fmt, time::Duration};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tokio::time::{Instant, sleep};

use crate::support::{
    checker::{Floor, Report, recorder::Recorder},
    fleet::{
        Fleet,
        crowd::{Crowd, Workload},
    },
    proxy::{BOTH, ChaosProxy, Way},
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

/// One run with one seed.
struct Trial {
    seed: u64,
    random: StdRng,
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
    /// A trial on nodes with these brokers. Nothing has gone wrong yet.
    async fn begin(seed: u64, broker_urls: &[String], workload: Workload) -> Self {
        let fleet = Fleet::start(broker_urls).await;
        let crowd = Crowd::gather(&fleet, workload).await;
        let random = StdRng::seed_from_u64(seed);
        Self { seed, random, fleet, crowd, workload, started: Instant::now(), log: Vec::new() }
    }

    /// Lets `faults` happen for this long, and lets everybody recover.
    async fn run(mut self, faults: &[Fault], length: Duration) -> Outcome {
        while self.started.elapsed() < length {
            let calm = Duration::from_millis(self.random.random_range(200..1500));
            sleep(calm).await;
            let fault = *faults.choose(&mut self.random).expect("there are faults");
            self.suffer(fault).await;
        }
        self.note("calm".into());
        let floor = self.floor(length);
        let recorder: Recorder = self.crowd.recorder().clone();
        self.crowd.disperse().await;
        Outcome { seed: self.seed, report: recorder.check(floor), log: self.log }
    }

    async fn suffer(&mut self, fault: Fault) {
        let node = self.random.random_range(0..self.fleet.size());
        let lasts = Duration::from_millis(self.random.random_range(100..3000));
        self.note(format!("{fault:?}, node {node}, {lasts:?}"));
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
            Fault::StopNode => {
                // Up to eight seconds: at four, clients lose patience.
                self.fleet.stop(node);
                sleep(lasts.mul_f64(8.0 / 3.0)).await;
                self.fleet.cont(node);
            }
            Fault::SlowReader => {
                let subscriber = self.random.random_range(0..self.workload.subscribers());
                self.crowd.slow(Some(subscriber));
                sleep(lasts).await;
                self.crowd.slow(None);
            }
            Fault::Front(network) => disturb(self.fleet.front(node), network, lasts).await,
        }
    }

    fn note(&mut self, what: String) {
        let line = format!("{:8.3} s: {what}", self.started.elapsed().as_secs_f64());
        println!("{line}");
        self.log.push(line);
    }

    /// What must have happened at least for the run to mean something: a tenth of what would without faults.
    fn floor(&self, length: Duration) -> Floor {
        let publishers = self.workload.http + self.workload.sockets;
        let accepted = length.div_duration_f64(self.workload.every) as usize * publishers / 10;
        Floor { accepted, deliveries: accepted * self.workload.subscribers, live: self.workload.subscribers() }
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_one_node_nothing_that_the_network_does_loses_anything() {
    let (seeds, length) = plan(&[1], 10);
    let mut faults = vec![Fault::StopNode, Fault::SlowReader];
    faults.extend(NETWORK.map(Fault::Front));
    for seed in seeds {
        println!("seed {seed}");
        let outcome = Trial::begin(seed, &["memory:".into()], Workload::default()).await.run(&faults, length).await;
        assert!(outcome.report.violations.is_empty() && outcome.report.announced.is_empty(), "{outcome}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_forgets_with_its_end_always_tells() {
    let (seeds, length) = plan(&[2], 10);
    let faults = [Fault::KillNode, Fault::TerminateNode, Fault::Front(Network::Cut), Fault::Front(Network::Delay)];
    // A broker that forgets keys takes what is sent again for something new, and only where there is history can it say so.
    let workload = Workload { plain_channels: 0, ..Workload::default() };
    for seed in seeds {
        println!("seed {seed}");
        let outcome = Trial::begin(seed, &["memory:".into()], workload).await.run(&faults, length).await;
        assert!(outcome.report.violations.is_empty(), "{outcome}");
    }
}
