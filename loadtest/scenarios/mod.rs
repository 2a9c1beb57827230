//! The scenarios: what each does in one turn, and which figures it gives.
//!
//! A scenario has contestants (the floor and the server, or the server with and without something), which take turns
//! in the same minutes, so that what the machine does besides falls on all alike. [`Contestant::run`] is one turn.

mod acknowledge;
mod connect;
mod deliver;
mod ledger;
mod stage;

use serde::Serialize;

use self::ledger::Ledger;
pub use self::stage::{Context, Load, Pace, TurnError};
use crate::{
    audit::Verdict,
    histogram::Histogram,
    monitor::{Mark, Second, milliseconds, share},
    server::{Running, Target},
};

/// Busy for more than this share of the time, the generator itself was the limit.
const BOTTLENECK: f64 = 0.9;
/// The points of a latency curve.
const CURVE: [f64; 22] = [
    0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9998,
    0.9999, 0.99999, 1.0,
];

/// One of those that are compared.
#[derive(Clone, Debug)]
pub struct Contestant {
    pub label: &'static str,
    pub target: Target,
    pub load: Load,
    pub act: Act,
    /// Seconds before and of the measurement.
    pub warm_up: f64,
    pub seconds: f64,
}

/// What happens in a turn.
#[derive(Clone, Copy, Debug)]
pub enum Act {
    /// Publishes to subscribers; `is_one_stopped`: the first of them stops reading meanwhile.
    Deliver { is_one_stopped: bool },
    /// Connects many and watches them.
    Connect,
    /// Publishes with acknowledgements, so many under way for each publisher.
    Acknowledge { under_way: usize },
}

/// What one turn gave.
#[derive(Clone, Debug, Serialize)]
pub struct Turn {
    pub figures: Vec<Figure>,
    /// Observations that are not figures.
    pub notes: Vec<String>,
    /// Shares of all deliveries, and within how many milliseconds they came.
    pub latency: Vec<(f64, f64)>,
    pub timeline: Vec<Second>,
    pub audit: Verdict,
    pub problems: Vec<String>,
    pub problem_count: u64,
    /// The generator had work nearly all the time, so the figures are its own rather than the server's.
    pub is_client_bottleneck: bool,
}

/// One measured value.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Figure {
    pub name: &'static str,
    pub unit: &'static str,
    pub value: f64,
    pub better: Better,
}

/// How a figure is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    Less,
    More,
    /// Says how far the other figures can be trusted, and is compared with nothing.
    Neither,
}

impl Contestant {
    /// Runs one turn from starting the server to stopping it.
    pub fn run(&self, context: &Context<'_>, turn: usize) -> Result<Turn, TurnError> {
        let label = format!("{} {}", self.label, turn + 1);
        match self.act {
            Act::Deliver { is_one_stopped } => deliver::run(self, context, label, is_one_stopped),
            Act::Connect => connect::run(self, context, label),
            Act::Acknowledge { under_way } => acknowledge::run(self, context, label, under_way),
        }
    }
}

impl Turn {
    /// Whether something was lost, doubled, swapped or invented, or went wrong otherwise.
    pub fn is_failed(&self) -> bool {
        !self.audit.is_clean() || 0 < self.problem_count
    }

    fn conclude(ledger: Ledger, timeline: Vec<Second>, figures: Vec<Figure>, client_busy: f64) -> Self {
        Self {
            figures,
            notes: Vec::new(),
            latency: curve(&ledger.latency),
            timeline,
            audit: ledger.audit.finish(),
            problems: ledger.problems,
            problem_count: ledger.problem_count,
            is_client_bottleneck: BOTTLENECK < client_busy,
        }
    }
}

/// A figure of which less is better.
fn less(name: &'static str, unit: &'static str, value: f64) -> Figure {
    Figure { name, unit, value, better: Better::Less }
}

/// A figure of which more is better.
fn more(name: &'static str, unit: &'static str, value: f64) -> Figure {
    Figure { name, unit, value, better: Better::More }
}

/// A figure about the measurement itself.
fn aside(name: &'static str, unit: &'static str, value: f64) -> Figure {
    Figure { name, unit, value, better: Better::Neither }
}

/// What the server and the generator spent between two marks: for each of `count`, and in shares.
fn spent(before: &Mark, after: &Mark, count: u64) -> Vec<Figure> {
    let elapsed = after.elapsed(before);
    let mut figures = Vec::new();
    if let Some(spent) = after.server_spent(before) {
        let each = |duration: std::time::Duration| duration.as_secs_f64() * 1e6 / count.max(1) as f64;
        figures.push(less("server CPU each", "µs", each(spent.cpu())));
        figures.push(less("… in user mode", "µs", each(spent.user)));
        figures.push(less("… in system mode", "µs", each(spent.system)));
        figures.push(aside("server CPU", "%", 100.0 * share(spent.cpu(), elapsed)));
        figures.push(aside("server kept waiting", "%", 100.0 * share(spent.waited, elapsed)));
    }
    figures.push(aside("client CPU", "%", 100.0 * after.client_share(before)));
    let waited = share(after.client_spent(before).waited, elapsed);
    figures.push(aside("client kept waiting", "%", 100.0 * waited));
    figures
}

/// How long the server took from its start until it was ready, where we started it.
fn readiness(server: &Running) -> Option<Figure> {
    server.ready_after.map(|after| less("start to ready", "ms", milliseconds(after)))
}

/// The usual percentiles, in milliseconds.
fn percentiles(latency: &Histogram) -> Vec<Figure> {
    let at = |name, quantile| less(name, "ms", milliseconds(latency.quantile(quantile)));
    vec![
        at("latency p50", 0.5),
        at("latency p90", 0.9),
        at("latency p99", 0.99),
        at("latency p99.9", 0.999),
        less("latency max", "ms", milliseconds(latency.max())),
    ]
}

fn curve(latency: &Histogram) -> Vec<(f64, f64)> {
    match latency.count() {
        0 => Vec::new(),
        _ => CURVE.iter().map(|&quantile| (quantile, milliseconds(latency.quantile(quantile)))).collect(),
    }
}
