//! The command line: scenarios, their flags and defaults, and what an experiment is made of.

use std::{
    net::{SocketAddr, ToSocketAddrs},
    path::PathBuf,
};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    report::Record,
    scenarios::{Act, Contestant, Load, Pace},
    server::Target,
    stamp::{Fill, MIN_DATA_BYTES},
};

/// Where Fanwire's own protocol is spoken.
const PATH: &str = "/v1/ws";
/// Publications that a channel with history keeps, where a scenario needs them again.
const HISTORY: usize = 10_000;
/// Publications that the floor may join in one send where any number may be under way.
const FRAMES_PER_SEND: usize = 64;

/// Drives a real-time server with thousands of connections, audits every delivery and says what it cost.
#[derive(Debug, Parser)]
#[command(name = "loadtest")]
pub struct Flags {
    #[command(subcommand)]
    scenario: Scenario,
    #[command(flatten)]
    common: Common,
}

/// What every scenario takes.
#[derive(Debug, Args)]
pub struct Common {
    /// Turns of each contestant; take at least 6 before you believe a ratio
    #[arg(long, global = true, default_value_t = 1)]
    pub turns: usize,
    /// Seconds that are measured
    #[arg(long, global = true)]
    seconds: Option<f64>,
    /// Seconds of load before the measurement
    #[arg(long, global = true, default_value_t = 1.0)]
    warm_up: f64,
    /// Bytes of `data` in each publication
    #[arg(long, global = true)]
    payload: Option<usize>,
    /// Handshakes under way at once
    #[arg(long, global = true, default_value_t = 256)]
    pub at_once: usize,
    /// Measure only one side of the comparison
    #[arg(long, global = true)]
    only: Option<Only>,
    /// Publications that one send of the floor may carry; as many as are under way if left out
    #[arg(long, global = true)]
    floor_frames_per_send: Option<usize>,
    /// A server that runs already, such as ws://127.0.0.1:8080/v1/ws
    #[arg(long, global = true)]
    url: Option<String>,
    /// That server's process, to know its processor time and memory
    #[arg(long, global = true, requires = "url")]
    pid: Option<u32>,
    /// The server that is started otherwise
    #[arg(long, global = true, default_value = "target/release/fanwire")]
    server: PathBuf,
    /// Write the report as JSON
    #[arg(long, global = true)]
    pub json: Option<PathBuf>,
    /// Write the report as a page with plots
    #[arg(long, global = true)]
    pub html: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Only {
    Floor,
    Server,
}

#[derive(Debug, Subcommand)]
enum Scenario {
    /// One publisher, many subscribers of one channel
    FanOut {
        #[arg(long, default_value_t = 1000)]
        subscribers: u32,
        /// Publications a second; 0: as fast as `--under-way` allows
        #[arg(long, default_value_t = 50.0)]
        rate: f64,
        /// Publications that may be under way at once; 1: no two can share a write; 0: any number
        #[arg(long, default_value_t = 1)]
        under_way: usize,
        /// Publish to a channel that keeps history
        #[arg(long)]
        history: bool,
    },
    /// Many channels with a few subscribers each
    ManyToMany {
        #[arg(long, default_value_t = 1000)]
        channels: u32,
        /// Subscribers of each channel
        #[arg(long, default_value_t = 10)]
        subscribers: u32,
        /// Publications a second over all channels; 0: as fast as `--under-way` allows
        #[arg(long, default_value_t = 1000.0)]
        rate: f64,
        /// Publications that may be under way at once; 0: any number
        #[arg(long, default_value_t = 0)]
        under_way: usize,
        #[arg(long, default_value_t = 1)]
        publishers: u32,
        /// Publish to channels that keep history
        #[arg(long)]
        history: bool,
    },
    /// What a connection with one subscription costs while nothing happens
    Idle {
        #[arg(long, default_value_t = 10_000)]
        connections: u32,
        /// Channels that the subscriptions are spread over
        #[arg(long, default_value_t = 1)]
        channels: u32,
    },
    /// Connections with a subscription each, as fast as they come
    ConnectStorm {
        #[arg(long, default_value_t = 10_000)]
        connections: u32,
        /// Channels that the subscriptions are spread over
        #[arg(long, default_value_t = 1)]
        channels: u32,
    },
    /// As many connections as descriptors allow, held and served
    Hold {
        #[arg(long, default_value_t = 19_000)]
        connections: u32,
        /// Publications a second to all of them
        #[arg(long, default_value_t = 1.0)]
        rate: f64,
    },
    /// Publishers that wait for answers
    PublishAcknowledge {
        #[arg(long, default_value_t = 50)]
        publishers: u32,
        /// Unanswered publications of each publisher
        #[arg(long, default_value_t = 64)]
        under_way: usize,
    },
    /// One subscriber of many stops reading: what the others feel
    SlowReader {
        #[arg(long, default_value_t = 1000)]
        subscribers: u32,
        #[arg(long, default_value_t = 50.0)]
        rate: f64,
        /// Publish to a channel that keeps history, from which the stopped one can catch up
        #[arg(long)]
        history: bool,
    },
    /// permessage-deflate against none
    Compression {
        #[arg(long, default_value_t = 1000)]
        subscribers: u32,
        #[arg(long, default_value_t = 50.0)]
        rate: f64,
    },
    /// Serve as the floor itself, on a free port that is printed
    Floor {
        /// Publications that one send may carry
        #[arg(long, default_value_t = 1)]
        frames_per_send: usize,
    },
}

/// Why the flags make no experiment.
#[derive(Debug, thiserror::Error)]
pub enum FlagsError {
    #[error("`{url}` is not a ws:// address")]
    Url { url: String },
    #[error("`{address}` is not on this machine; a load test may only be aimed at the loopback interface")]
    NotLoopback { address: SocketAddr },
    #[error("`--payload` needs at least {MIN_DATA_BYTES} bytes for what the audit writes into it")]
    Payload,
    #[error("{0}")]
    Senseless(&'static str),
    #[error("nothing is left to measure: `--only floor` has no floor to run in this scenario")]
    NothingLeft,
}

/// A scenario with its contestants, ready to run.
#[derive(Debug)]
pub struct Experiment {
    pub name: &'static str,
    pub path: String,
    pub contestants: Vec<Contestant>,
}

/// A scenario before its contestants are known.
struct Plan {
    name: &'static str,
    load: Load,
    act: Act,
    seconds: f64,
}

impl Flags {
    /// The frames to a send, if this process is to be the floor.
    pub fn floor(&self) -> Option<usize> {
        match self.scenario {
            Scenario::Floor { frames_per_send } => Some(frames_per_send),
            _ => None,
        }
    }

    /// What every scenario takes.
    pub fn common(&self) -> &Common {
        &self.common
    }

    /// The scenario with its contestants.
    pub fn experiment(&self) -> Result<Experiment, FlagsError> {
        let plan = self.plan();
        check(&plan, &self.common)?;
        let (server, path) = match &self.common.url {
            Some(url) => {
                let (address, path) = parse_url(url)?;
                (Target::Elsewhere { address, pid: self.common.pid }, path)
            }
            None => (Target::Fanwire { binary: self.common.server.clone(), history: HISTORY }, PATH.to_owned()),
        };
        let contestant = |label, target: &Target, load: Load, act| Contestant {
            label,
            target: target.clone(),
            load,
            act,
            warm_up: self.common.warm_up,
            seconds: self.common.seconds.unwrap_or(plan.seconds),
        };
        let (load, act) = (plan.load, plan.act);
        let name = if self.common.url.is_some() { "server" } else { "fanwire" };
        let under_way = match act {
            Act::Acknowledge { under_way } => under_way,
            _ => load.under_way.unwrap_or(FRAMES_PER_SEND),
        };
        let frames_per_send = self.common.floor_frames_per_send.unwrap_or(under_way);
        let floor = contestant("floor", &Target::Floor { frames_per_send }, load.clone(), act);
        let mut contestants = match self.scenario {
            Scenario::SlowReader { .. } => vec![
                contestant("nobody stopped", &server, load.clone(), Act::Deliver { is_one_stopped: false }),
                contestant("one stopped", &server, load, Act::Deliver { is_one_stopped: true }),
            ],
            Scenario::Compression { .. } => vec![
                contestant("plain", &server, Load { compression: false, ..load.clone() }, act),
                contestant("deflated", &server, load, act),
            ],
            Scenario::PublishAcknowledge { .. } => vec![
                floor,
                contestant("without history", &server, load.clone(), act),
                contestant("with history", &server, Load { has_history: true, ..load }, act),
            ],
            _ => vec![floor, contestant(name, &server, load, act)],
        };
        contestants.retain(|contestant| match self.common.only {
            Some(only) => (only == Only::Floor) == matches!(contestant.target, Target::Floor { .. }),
            None => true,
        });
        match contestants.is_empty() {
            true => Err(FlagsError::NothingLeft),
            false => Ok(Experiment { name: plan.name, path, contestants }),
        }
    }

    fn plan(&self) -> Plan {
        let load = Load {
            channels: 1,
            subscribers: 1000,
            publishers: 1,
            pace: Pace::Never,
            under_way: None,
            data_bytes: self.common.payload.unwrap_or(128),
            fill: Fill::Letters,
            compression: false,
            has_history: false,
        };
        let act = Act::Deliver { is_one_stopped: false };
        match self.scenario {
            Scenario::FanOut { subscribers, rate, under_way, history } => {
                let load =
                    Load { subscribers, pace: pace(rate), under_way: limit(under_way), has_history: history, ..load };
                Plan { name: "fan-out", load, act, seconds: 10.0 }
            }
            Scenario::ManyToMany { channels, subscribers, rate, under_way, publishers, history } => {
                let (pace, under_way) = (pace(rate), limit(under_way));
                let load = Load { channels, subscribers, publishers, pace, under_way, has_history: history, ..load };
                Plan { name: "many-to-many", load, act, seconds: 10.0 }
            }
            Scenario::Idle { connections, channels } => {
                let load = Load { channels, subscribers: connections / channels.max(1), ..load };
                // Two rounds of pings, the first of which passes over whoever has just connected.
                Plan { name: "idle", load, act: Act::Connect, seconds: 60.0 }
            }
            Scenario::ConnectStorm { connections, channels } => {
                let load = Load { channels, subscribers: connections / channels.max(1), ..load };
                Plan { name: "connect-storm", load, act: Act::Connect, seconds: 0.0 }
            }
            Scenario::Hold { connections, rate } => {
                let load = Load { subscribers: connections, pace: pace(rate), ..load };
                Plan { name: "hold", load, act: Act::Connect, seconds: 30.0 }
            }
            Scenario::PublishAcknowledge { publishers, under_way } => {
                let load = Load { channels: publishers, subscribers: 0, publishers, ..load };
                Plan { name: "publish-acknowledge", load, act: Act::Acknowledge { under_way }, seconds: 10.0 }
            }
            Scenario::SlowReader { subscribers, rate, history } => {
                let data_bytes = self.common.payload.unwrap_or(8192);
                let load = Load { subscribers, pace: pace(rate), data_bytes, has_history: history, ..load };
                Plan { name: "slow-reader", load, act, seconds: 10.0 }
            }
            Scenario::Compression { subscribers, rate } => {
                let data_bytes = self.common.payload.unwrap_or(1024);
                let fill = Fill::Records;
                let load = Load { subscribers, pace: pace(rate), data_bytes, fill, compression: true, ..load };
                Plan { name: "compression", load, act, seconds: 10.0 }
            }
            Scenario::Floor { .. } => Plan { name: "floor", load, act, seconds: 0.0 },
        }
    }
}

impl Record {
    /// A contestant without turns yet.
    pub fn of(contestant: &Contestant) -> Self {
        let Contestant { label, load, act, seconds, target, .. } = contestant;
        let Load { channels, subscribers, publishers, data_bytes, .. } = load;
        let mut words = match act {
            Act::Acknowledge { under_way } => format!("{publishers} publishers, {under_way} under way each"),
            Act::Connect => format!("{} connections", channels * subscribers),
            Act::Deliver { .. } => format!("{publishers} → {channels} × {subscribers}"),
        };
        if let Pace::PerSecond(rate) = load.pace {
            words.push_str(&format!(", {rate}/s"));
        }
        if let Some(limit) = load.under_way {
            words.push_str(&format!(", {limit} under way"));
        }
        if let Target::Floor { frames_per_send } = target {
            words.push_str(&format!(", {frames_per_send} to a send"));
        }
        words.push_str(&format!(", {data_bytes} bytes, {seconds} s"));
        Self { label: (*label).to_owned(), load: words, turns: Vec::new() }
    }
}

fn pace(rate: f64) -> Pace {
    if rate == 0.0 { Pace::Free } else { Pace::PerSecond(rate) }
}

fn limit(under_way: usize) -> Option<usize> {
    (under_way != 0).then_some(under_way)
}

fn check(plan: &Plan, common: &Common) -> Result<(), FlagsError> {
    let Load { channels, subscribers, publishers, pace, under_way, data_bytes, .. } = &plan.load;
    let is_positive = |value: f64| value.is_finite() && 0.0 <= value;
    let acknowledges = matches!(plan.act, Act::Acknowledge { .. });
    let senseless = match plan.act {
        _ if *channels == 0 || *publishers == 0 => "there must be a channel and a publisher",
        _ if *subscribers == 0 && !acknowledges => "there must be a subscriber for each channel",
        _ if common.turns == 0 || common.at_once == 0 => "`--turns` and `--at-once` must not be 0",
        _ if !is_positive(common.warm_up) || !is_positive(common.seconds.unwrap_or(0.0)) => {
            "seconds must not be negative"
        }
        _ if matches!(pace, Pace::PerSecond(rate) if !is_positive(*rate)) => "`--rate` must not be negative",
        _ if *pace == Pace::Free && under_way.is_none() => "`--rate 0` needs a limit by `--under-way`",
        Act::Acknowledge { under_way: 0 } => "`--under-way` must not be 0 here",
        _ if plan.name == "slow-reader" && *subscribers < 2 => "somebody must go on reading: two subscribers at least",
        _ if *data_bytes < MIN_DATA_BYTES => return Err(FlagsError::Payload),
        _ => return Ok(()),
    };
    Err(FlagsError::Senseless(senseless))
}

/// The command line for a report: without the query of a URL, which may hold a token.
pub fn command_line(arguments: impl Iterator<Item = String>) -> String {
    let shown = arguments.map(|argument| match argument.split_once('?') {
        Some((url, _)) if argument.contains("://") => format!("{url}?…"),
        _ => argument,
    });
    shown.collect::<Vec<_>>().join(" ")
}

/// The address and path of a `ws://` URL on this machine.
fn parse_url(url: &str) -> Result<(SocketAddr, String), FlagsError> {
    let wrong = || FlagsError::Url { url: url.to_owned() };
    let rest = url.strip_prefix("ws://").ok_or_else(wrong)?;
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let address = host.to_socket_addrs().map_err(|_| wrong())?.next().ok_or_else(wrong)?;
    if !address.ip().is_loopback() {
        return Err(FlagsError::NotLoopback { address });
    }
    Ok((address, if path.is_empty() { PATH.to_owned() } else { path.to_owned() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn experiment(line: &str) -> Result<Experiment, FlagsError> {
        Flags::try_parse_from(["loadtest"].into_iter().chain(line.split_ascii_whitespace())).unwrap().experiment()
    }

    #[test]
    fn the_command_line_holds_together() {
        <Flags as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn the_floor_sends_as_many_at_once_as_are_under_way() {
        for (line, frames_per_send) in [
            ("fan-out", 1),
            ("fan-out --rate 0 --under-way 64", 64),
            ("fan-out --under-way 0", 64),
            ("fan-out --under-way 0 --floor-frames-per-send 2", 2),
            ("publish-acknowledge --under-way 8", 8),
        ] {
            let contestants = experiment(line).unwrap().contestants;
            let Target::Floor { frames_per_send: found } = contestants[0].target else { panic!("{line}: no floor") };
            assert_eq!(found, frames_per_send, "{line}");
        }
    }

    #[test]
    fn one_side_alone_can_be_measured() {
        assert_eq!(experiment("fan-out --only server").unwrap().contestants[0].label, "fanwire");
        assert_eq!(experiment("idle --only floor").unwrap().contestants[0].label, "floor");
        assert!(matches!(experiment("compression --only floor"), Err(FlagsError::NothingLeft)));
    }

    #[test]
    fn senseless_flags_are_refused() {
        for line in [
            "fan-out --rate 0 --under-way 0",
            "fan-out --rate=-1",
            "fan-out --subscribers 0",
            "slow-reader --subscribers 1",
            "idle --channels 0",
            "fan-out --turns 0",
            "publish-acknowledge --under-way 0",
        ] {
            assert!(matches!(experiment(line), Err(FlagsError::Senseless(_))), "{line}");
        }
        assert!(matches!(experiment("fan-out --payload 10"), Err(FlagsError::Payload)));
    }

    #[test]
    fn a_token_does_not_reach_the_report() {
        let arguments = ["loadtest", "fan-out", "--url", "ws://127.0.0.1:1/v1/ws?token=secret", "--turns=2"];
        let shown = command_line(arguments.iter().map(ToString::to_string));
        assert_eq!(shown, "loadtest fan-out --url ws://127.0.0.1:1/v1/ws?… --turns=2");
    }

    #[test]
    fn only_this_machine_may_be_loaded() {
        let (address, path) = parse_url("ws://127.0.0.1:8080/v1/ws?app=x").unwrap();
        assert_eq!((address.port(), path.as_str()), (8080, "/v1/ws?app=x"));
        assert_eq!(parse_url("ws://127.0.0.1:1").unwrap().1, PATH);
        assert!(matches!(parse_url("ws://192.0.2.1:80/"), Err(FlagsError::NotLoopback { .. })));
        assert!(matches!(parse_url("http://127.0.0.1"), Err(FlagsError::Url { .. })));
    }
}
