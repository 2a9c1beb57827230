//! The load generator: `cargo run --release --example loadtest -- <scenario>`.
//!
//! It starts a Fanwire of its own on one processor, drives it from the other with thousands of connections on a single
//! thread, checks that every delivery came once and in order, and prints what it cost. Beside it runs the floor
//! ([`floor`]), the least that any broadcaster can do. `loadtest/README.md` says how to run each scenario and how to
//! read the figures. Linux only: it reads `/proc` and uses epoll. Begin reading at [`run`], then [`scenarios`].

mod audit;
mod clients;
mod flags;
mod floor;
mod frames;
mod histogram;
mod inflate;
mod monitor;
mod page;
mod report;
mod scenarios;
mod server;
mod stamp;
mod usage;

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use clap::Parser;

use self::{
    clients::Clock,
    flags::{Common, Experiment, Flags},
    report::{Machine, Record, Report},
    scenarios::{Context, TurnError},
};

fn main() -> ExitCode {
    let flags = Flags::parse();
    let outcome = match flags.floor() {
        Some(frames_per_send) => server::run_floor(frames_per_send).map(|()| true).map_err(Failure::Io),
        None => run(&flags),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(failure) => {
            eprintln!("{}", with_sources(&failure));
            ExitCode::from(2)
        }
    }
}

/// Why there is no report, or none on disk.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Flags(#[from] flags::FlagsError),
    #[error(transparent)]
    Turn(#[from] TurnError),
    #[error("cannot read or write")]
    Io(#[from] std::io::Error),
}

/// Runs a scenario and reports; returns whether all was delivered as it should be.
fn run(flags: &Flags) -> Result<bool, Failure> {
    let experiment = flags.experiment()?;
    let common = flags.common();
    server::pin(server::CLIENT_CPU);
    // A timer may otherwise be late by 50 µs, which latencies would show.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
    let stop = stop_on_signal()?;
    let context = Context { stop: &stop, clock: Clock::start(), path: &experiment.path, at_once: common.at_once };
    let mut report = Report {
        scenario: experiment.name.to_owned(),
        command: flags::command_line(std::env::args()),
        machine: Machine::here(),
        contestants: experiment.contestants.iter().map(Record::of).collect(),
    };
    let outcome = take_turns(&experiment, common, &context, &mut report);
    if report.turns().next().is_none() {
        outcome?;
        return Ok(false);
    }
    print!("{}", report.table());
    if let Some(path) = &common.json {
        report.write_json(path)?;
    }
    if let Some(path) = &common.html {
        std::fs::write(path, page::render(&report))?;
    }
    outcome?;
    Ok(!report.is_failed())
}

/// Every contestant once in each turn, forwards and backwards in alternation, so that a drift of the machine hits all.
fn take_turns(
    experiment: &Experiment,
    common: &Common,
    context: &Context<'_>,
    report: &mut Report,
) -> Result<(), TurnError> {
    for turn in 0..common.turns {
        let mut order: Vec<usize> = (0..experiment.contestants.len()).collect();
        if turn % 2 == 1 {
            order.reverse();
        }
        for index in order {
            let result = experiment.contestants[index].run(context, turn)?;
            report.contestants[index].turns.push(result);
        }
    }
    Ok(())
}

/// A flag that SIGINT and SIGTERM set: the turn then ends as if it had failed, which also ends the server it started.
fn stop_on_signal() -> std::io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        let signal = tokio::signal::unix::signal;
        (signal(tokio::signal::unix::SignalKind::interrupt())?, signal(tokio::signal::unix::SignalKind::terminate())?)
    };
    let flag = Arc::clone(&stop);
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        flag.store(true, Ordering::Relaxed);
    });
    Ok(stop)
}

/// An error and what caused it, on one line.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::{
        scenarios::{Act, Contestant, Load, Pace, Turn},
        server::Target,
        stamp::Fill,
    };

    /// One short turn against a floor in a thread of this process; it serves until the tests end.
    fn turn(load: Load, act: Act, frames_per_send: usize) -> Turn {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || floor::serve(listener, frames_per_send).unwrap());
        let target = Target::Elsewhere { address, pid: None };
        let contestant = Contestant { label: "floor", target, load, act, warm_up: 0.05, seconds: 0.3 };
        let stop = AtomicBool::new(false);
        let context = Context { stop: &stop, clock: Clock::start(), path: "/v1/ws", at_once: 16 };
        contestant.run(&context, 0).unwrap()
    }

    fn load() -> Load {
        Load {
            channels: 4,
            subscribers: 5,
            publishers: 2,
            pace: Pace::PerSecond(500.0),
            under_way: None,
            data_bytes: 200,
            fill: Fill::Letters,
            compression: false,
            has_history: false,
        }
    }

    fn value(turn: &Turn, name: &str) -> f64 {
        turn.figures.iter().find(|figure| figure.name == name).unwrap().value
    }

    #[test]
    fn a_paced_run_delivers_everything_once_and_in_order() {
        let turn = turn(load(), Act::Deliver { is_one_stopped: false }, 1);
        assert!(!turn.is_failed(), "{turn:?}");
        let publications = turn.audit.expected / 5;
        assert!((150..=176).contains(&publications), "{publications} publications in 0.35 s at 500 a second");
        assert!(0.0 < value(&turn, "latency p50"));
    }

    #[test]
    fn publications_under_way_follow_each_other_at_once() {
        let load = Load { pace: Pace::Free, under_way: Some(8), ..load() };
        let turn = turn(load, Act::Deliver { is_one_stopped: false }, 8);
        assert!(!turn.is_failed() && 1000 < turn.audit.expected, "{turn:?}");
    }

    #[test]
    fn many_connect_and_each_is_served() {
        let turn = turn(Load { pace: Pace::Never, publishers: 1, ..load() }, Act::Connect, 1);
        assert!(!turn.is_failed(), "{turn:?}");
        assert_eq!((turn.audit.expected, turn.audit.delivered), (20, 20));
        assert!(0.0 < value(&turn, "handshakes"));
    }

    #[test]
    fn acknowledgements_are_counted_and_audited() {
        let load = Load { channels: 3, subscribers: 0, publishers: 3, ..load() };
        let turn = turn(load, Act::Acknowledge { under_way: 4 }, 4);
        assert!(!turn.is_failed(), "{turn:?}");
        assert!(100 < turn.audit.expected && turn.audit.expected == turn.audit.delivered);
    }

    #[test]
    fn a_reader_that_stopped_catches_up_with_what_waited() {
        let turn = turn(load(), Act::Deliver { is_one_stopped: true }, 1);
        assert!(!turn.is_failed(), "{turn:?}");
        assert!(turn.notes[0].contains("caught up"), "{:?}", turn.notes);
    }
}
