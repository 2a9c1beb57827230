//! Connecting many: a storm of handshakes, what an idle connection costs, and holding as many as descriptors allow.

use std::time::Duration;

use super::{
    Contestant, Turn, aside, less, more, percentiles, readiness,
    stage::{Context, Pace, Stage, TurnError},
};
use crate::monitor::{milliseconds, share};

/// Seconds for a server to settle after it started and after everybody came, before its memory is read.
const SETTLING: f64 = 1.0;

/// One turn.
pub fn run(contestant: &Contestant, context: &Context<'_>, label: String) -> Result<Turn, TurnError> {
    let mut stage = Stage::open(context, &contestant.target, &contestant.load, label, "deliveries")?;
    let pace = stage.set_pace(Pace::Never);
    stage.drive(SETTLING)?;
    let before = stage.mark();
    stage.gather(None)?;
    let gathered = stage.mark();
    stage.drive(SETTLING)?;
    let settled = stage.mark();
    stage.add_publishers(false)?;
    stage.set_pace(pace);
    let held_from = stage.measure();
    stage.drive(contestant.seconds)?;
    let held = stage.mark();
    // Whoever is connected must also be served: one publication into each channel reaches everybody.
    stage.publish_to_all()?;

    let connections = contestant.load.channels as f64 * f64::from(contestant.load.subscribers);
    let elapsed = gathered.elapsed(&before);
    let handshakes = &stage.ledger.handshakes;
    let mut figures = vec![more("handshakes", "/s", connections / elapsed.as_secs_f64())];
    let each = |duration: Duration| duration.as_secs_f64() * 1e6 / connections;
    if let Some(spent) = gathered.server_spent(&before) {
        figures.push(less("server CPU per handshake", "µs", each(spent.cpu())));
        figures.push(less("… in user mode", "µs", each(spent.user)));
        figures.push(less("… in system mode", "µs", each(spent.system)));
    }
    figures.push(less("handshake p50", "ms", milliseconds(handshakes.quantile(0.5))));
    figures.push(less("handshake p99", "ms", milliseconds(handshakes.quantile(0.99))));
    figures.push(less("handshake slowest", "ms", milliseconds(handshakes.max())));
    if let (Some(before), Some(settled)) = (before.server, settled.server) {
        let grown = settled.resident_bytes as f64 - before.resident_bytes as f64;
        figures.push(less("memory per connection", "B", grown / connections));
        figures.push(less("server memory", "MiB", settled.resident_bytes as f64 / f64::from(1 << 20)));
    }
    if let Some(spent) = held.server_spent(&held_from)
        && 0.0 < contestant.seconds
    {
        let elapsed = held.elapsed(&held_from);
        figures.push(less("server CPU while held", "%", 100.0 * share(spent.cpu(), elapsed)));
        let each_second = each(spent.cpu()) / elapsed.as_secs_f64();
        figures.push(less("CPU per connection and second", "µs", each_second));
    }
    if pace != Pace::Never {
        figures.extend(percentiles(&stage.ledger.latency));
    }
    let client_share = gathered.client_share(&before);
    figures.push(aside("client CPU while connecting", "%", 100.0 * client_share));
    let client_busy = gathered.client_busy(&before);
    figures.extend(readiness(&stage.server));
    let (ledger, timeline) = stage.finish()?;
    Ok(Turn::conclude(ledger, timeline, figures, client_busy))
}
