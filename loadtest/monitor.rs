//! Once a second: where a turn stands, on the terminal and in the timeline of the report.

use std::{
    io::{IsTerminal, stderr},
    time::Duration,
};

use serde::Serialize;

use crate::{
    histogram::Histogram,
    usage::{Spent, Usage},
};

const SECOND: u64 = 1_000_000_000;

/// One second of a turn.
#[derive(Clone, Debug, Serialize)]
pub struct Second {
    /// Seconds since the turn began.
    pub at: f64,
    /// Deliveries, acknowledgements or handshakes in this second.
    pub count: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// Shares of one processor, in per cent.
    pub server_cpu: f64,
    pub client_cpu: f64,
    pub resident_mib: f64,
}

/// A reading of everything at one moment; two of them make a measurement.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mark {
    pub at: u64,
    pub server: Option<Usage>,
    pub client: Usage,
    pub count: u64,
    pub received_bytes: u64,
}

impl Mark {
    /// Reads everything now. A server whose process is unknown or gone has no usage.
    pub fn read(at: u64, pid: Option<u32>, count: u64, received_bytes: u64) -> Self {
        let server = pid.and_then(|pid| Usage::of_process(pid).ok());
        Self { at, server, client: Usage::of_this_thread().unwrap_or_default(), count, received_bytes }
    }

    /// The time since `before`.
    pub fn elapsed(&self, before: &Self) -> Duration {
        Duration::from_nanos(self.at.saturating_sub(before.at))
    }

    /// What the server used since `before`, if that is known.
    pub fn server_spent(&self, before: &Self) -> Option<Spent> {
        Some(self.server?.since(&before.server?))
    }

    /// What this thread used since `before`, as a share of the time.
    pub fn client_share(&self, before: &Self) -> f64 {
        share(self.client_spent(before).cpu(), self.elapsed(before))
    }

    /// What this thread used since `before`.
    pub fn client_spent(&self, before: &Self) -> Spent {
        self.client.since(&before.client)
    }

    /// For which share of the time this thread had work: running, or kept from it by others on its processor.
    pub fn client_busy(&self, before: &Self) -> f64 {
        let spent = self.client_spent(before);
        share(spent.cpu() + spent.waited, self.elapsed(before))
    }
}

/// Looks once a second.
pub struct Monitor {
    label: String,
    /// What is counted, such as `deliveries`.
    noun: &'static str,
    pid: Option<u32>,
    began: u64,
    last: Mark,
    timeline: Vec<Second>,
    is_terminal: bool,
}

impl Monitor {
    /// Begins at `now`.
    pub fn begin(label: String, noun: &'static str, pid: Option<u32>, now: u64) -> Self {
        let last = Mark::read(now, pid, 0, 0);
        Self { label, noun, pid, began: now, last, timeline: Vec::new(), is_terminal: stderr().is_terminal() }
    }

    /// When the next look is due.
    pub fn next_at(&self) -> u64 {
        self.last.at + SECOND
    }

    /// Looks, if a second has passed; `second` holds the latencies since the last look and is emptied.
    pub fn look(&mut self, now: u64, count: u64, connected: usize, second: &mut Histogram) {
        if now < self.next_at() {
            return;
        }
        let mark = Mark::read(now, self.pid, count, 0);
        let elapsed = mark.elapsed(&self.last);
        let spent = mark.server_spent(&self.last).unwrap_or_default();
        let entry = Second {
            at: (now - self.began) as f64 / SECOND as f64,
            count: (count - self.last.count) as f64 / elapsed.as_secs_f64(),
            p50_ms: milliseconds(second.quantile(0.5)),
            p99_ms: milliseconds(second.quantile(0.99)),
            server_cpu: 100.0 * share(spent.cpu(), elapsed),
            client_cpu: 100.0 * mark.client_share(&self.last),
            resident_mib: mark.server.map_or(0.0, |usage| usage.resident_bytes as f64 / f64::from(1 << 20)),
        };
        self.last = mark;
        second.clear();
        self.print(&entry, connected);
        self.timeline.push(entry);
    }

    /// Ends the line and hands over the timeline.
    pub fn finish(self) -> Vec<Second> {
        if self.is_terminal {
            eprint!("\r\x1b[K");
        }
        self.timeline
    }

    fn print(&self, second: &Second, connected: usize) {
        let (start, end) = if self.is_terminal { ("\r\x1b[K", "") } else { ("", "\n") };
        let Second { at, count, p50_ms, p99_ms, server_cpu, client_cpu, resident_mib } = second;
        eprint!(
            "{start}{label} {at:3.0} s  {connected} connected  {count:8.0} {noun}/s  p50 {p50_ms:.2} ms  p99 {p99_ms:.2} ms  \
             server {server_cpu:.0} %  client {client_cpu:.0} %  {resident_mib:.1} MiB{end}",
            label = self.label,
            noun = self.noun,
        );
    }
}

/// How much of `whole` is `part`.
pub fn share(part: Duration, whole: Duration) -> f64 {
    part.as_secs_f64() / whole.as_secs_f64().max(1e-9)
}

/// As a fraction of milliseconds.
pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
