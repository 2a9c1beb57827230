//! Publishing to subscribers: fan-out, many-to-many, compression, and one reader that stops.

use super::{
    Contestant, Turn, less, more, percentiles, readiness, spent,
    stage::{Context, Stage, TurnError},
};
use crate::monitor::milliseconds;

/// The receive buffer of a subscriber that is to stop, so that the server feels it soon.
const STOPPED_RECEIVE_BUFFER: usize = 16 << 10;

/// One turn.
pub fn run(
    contestant: &Contestant,
    context: &Context<'_>,
    label: String,
    is_one_stopped: bool,
) -> Result<Turn, TurnError> {
    let mut stage = Stage::open(context, &contestant.target, &contestant.load, label, "deliveries")?;
    stage.gather(is_one_stopped.then_some(STOPPED_RECEIVE_BUFFER))?;
    stage.add_publishers(false)?;
    // From its first publication on nobody waits for the one that will stop.
    stage.ledger.stopped = is_one_stopped.then_some(0);
    stage.drive(contestant.warm_up)?;
    let before = stage.measure();
    if is_one_stopped {
        stage.crowd.stop_reading(0)?;
    }
    stage.drive(contestant.seconds)?;
    stage.drain()?;
    let after = stage.mark();
    let note = if is_one_stopped { Some(resume(&mut stage)?) } else { None };

    let deliveries = after.count - before.count;
    let mut figures = vec![more("deliveries", "/s", deliveries as f64 / after.elapsed(&before).as_secs_f64())];
    figures.extend(spent(&before, &after, deliveries));
    figures.extend(percentiles(&stage.ledger.latency));
    figures.push(less("all served p50", "ms", milliseconds(stage.ledger.completion.quantile(0.5))));
    figures.push(less("all served p99", "ms", milliseconds(stage.ledger.completion.quantile(0.99))));
    let received_bytes = (after.received_bytes - before.received_bytes) as f64;
    figures.push(less("bytes on the wire each", "B", received_bytes / deliveries.max(1) as f64));
    if let (Some(before), Some(after)) = (before.server, after.server) {
        let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        figures.push(less("server memory", "MiB", mebibytes(after.resident_bytes)));
        let grown = mebibytes(after.resident_bytes) - mebibytes(before.resident_bytes);
        figures.push(less("server memory grown", "MiB", grown));
    }
    let client_busy = after.client_busy(&before);
    figures.extend(readiness(&stage.server));
    let (ledger, timeline) = stage.finish()?;
    let mut turn = Turn::conclude(ledger, timeline, figures, client_busy);
    turn.notes.extend(note);
    Ok(turn)
}

/// Lets the stopped subscriber read again and says what became of it: told that it was given up, or caught up whole.
fn resume(stage: &mut Stage<'_>) -> Result<String, TurnError> {
    let missed = stage.ledger.audit.misses(0);
    stage.crowd.resume_reading(0)?;
    stage.wait_for(|stage| stage.ledger.stopped_end.is_some() || stage.ledger.audit.misses(0) == 0)?;
    let still = stage.ledger.audit.misses(0);
    Ok(match &stage.ledger.stopped_end {
        Some(end) => format!("the stopped reader missed {missed} and read {} of them, then: {end}", missed - still),
        None => format!("the stopped reader missed {missed} and caught up with {} of them", missed - still),
    })
}
