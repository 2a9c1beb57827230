//! Publishing with acknowledgements: how many a second, how soon, and each exactly once and in the order sent.

use super::{
    Contestant, Turn, more, percentiles, readiness, spent,
    stage::{Context, Stage, TurnError},
};

/// One turn. Each publisher has a channel of its own; nobody subscribes.
pub fn run(contestant: &Contestant, context: &Context<'_>, label: String, under_way: usize) -> Result<Turn, TurnError> {
    let mut stage = Stage::open(context, &contestant.target, &contestant.load, label, "acknowledged")?;
    for publisher in 0..contestant.load.publishers {
        stage.ledger.audit.subscribe(publisher);
    }
    stage.add_publishers(true)?;
    stage.begin_exchange(under_way);
    stage.exchange(contestant.warm_up)?;
    let before = stage.measure();
    stage.exchange(contestant.seconds)?;
    let after = stage.mark();
    let publishers = contestant.load.publishers as usize;
    stage.wait_for(|stage| (0..publishers).all(|publisher| stage.ledger.audit.misses(publisher) == 0))?;

    let acknowledged = after.count - before.count;
    let mut figures = vec![more("acknowledged", "/s", acknowledged as f64 / after.elapsed(&before).as_secs_f64())];
    figures.extend(spent(&before, &after, acknowledged));
    figures.extend(percentiles(&stage.ledger.latency));
    let client_busy = after.client_busy(&before);
    figures.extend(readiness(&stage.server));
    let (ledger, timeline) = stage.finish()?;
    Ok(Turn::conclude(ledger, timeline, figures, client_busy))
}
