//! Every metric: its name, unit and meaning in one list, and the text exposition.

use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::Gauge,
        histogram::Histogram,
        info::Info,
    },
    registry::Registry,
};

use super::process::Process;
use crate::domain::{AppId, ErrorCode};

/// What every name of ours begins with.
const PREFIX: &str = "fanwire";

/// This node's figures, and where collectors of further ones are registered.
pub struct Metrics {
    registry: Mutex<Registry>,
    publications: Family<PublicationLabels, Counter>,
    refusals: Family<RefusalLabels, Counter>,
    rate_limited: Family<LimitLabels, Counter>,
    connections: Family<ConnectionLabels, Gauge>,
    gaps: Counter,
    positions_lost: Counter,
    gap_publications: Counter,
    broker_up: Gauge,
    broker_round_trip: Histogram,
    dropped_lines: DroppedLines,
    /// Label sets of `publications`, which must not grow with what clients invent.
    namespaces: AtomicUsize,
}

/// The most namespaces that are told apart; in development mode clients can name any number.
const MAX_NAMESPACES: usize = 256;
/// Upper bounds of the broker's round trip, in seconds.
const ROUND_TRIPS: [f64; 10] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PublicationLabels {
    app: String,
    namespace: String,
    source: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabels {
    limit: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConnectionLabels {
    protocol: &'static str,
    transport: &'static str,
}

/// The log's own counter; 0 where it does not run, as in a test.
#[derive(Clone, Debug, Default)]
struct DroppedLines(Arc<OnceLock<Counter>>);

impl Collector for DroppedLines {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let counter = ConstCounter::new(self.0.get().map_or(0, Counter::get));
        let help = "Log lines for which there was no room, since standard error took them too slowly";
        counter.encode(encoder.encode_descriptor("log_lines_dropped", help, None, counter.metric_type())?)
    }
}

/// How a connection's bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A WebSocket.
    WebSocket,
    /// An event stream.
    Events,
}

impl Transport {
    /// What logs and metrics call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Events => "sse",
        }
    }
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let metrics = Self {
            registry: Mutex::new(Registry::default()),
            publications: Family::default(),
            refusals: Family::default(),
            rate_limited: Family::default(),
            connections: Family::default(),
            gaps: Counter::default(),
            positions_lost: Counter::default(),
            gap_publications: Counter::default(),
            broker_up: Gauge::default(),
            broker_round_trip: Histogram::new(ROUND_TRIPS),
            dropped_lines: DroppedLines::default(),
            namespaces: AtomicUsize::new(0),
        };
        metrics.register_all();
        metrics
    }

    fn register_all(&self) {
        let root = &mut self.registry();
        root.register_collector(Box::new(Process));
        let registry = root.sub_registry_with_prefix(PREFIX);
        registry.register("publications", "Publications accepted by the broker", self.publications.clone());
        registry.register("refusals", "Commands and requests refused, by error code", self.refusals.clone());
        registry.register("rate_limited", "Refusals by a rate limit, by limit", self.rate_limited.clone());
        registry.register("connections", "Connections now", self.connections.clone());
        let help = "Times that publications did not reach this node and were read from history";
        registry.register("broker_gaps", help, self.gaps.clone());
        let help = "Publications that were read from history after a gap";
        registry.register("broker_gap_publications", help, self.gap_publications.clone());
        let help = "Subscriptions that were told, unasked, that their position is lost";
        registry.register("positions_lost", help, self.positions_lost.clone());
        registry.register("broker_up", "Whether the last probe came back from the broker", self.broker_up.clone());
        let help = "How long a probe took to the broker and back";
        let unit = prometheus_client::registry::Unit::Seconds;
        registry.register_with_unit("broker_round_trip", help, unit, self.broker_round_trip.clone());
        registry.register_collector(Box::new(self.dropped_lines.clone()));
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The version that runs", build);
    }

    fn registry(&self) -> std::sync::MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Adds figures that somebody else keeps.
    pub fn collect(&self, collector: Box<dyn Collector>) {
        self.registry().sub_registry_with_prefix(PREFIX).register_collector(collector);
    }

    /// Everything in OpenMetrics text.
    pub fn render(&self) -> String {
        let mut out = String::new();
        text::encode(&mut out, &self.registry()).expect("writing to a string does not fail");
        out
    }

    /// Counts a publication.
    pub fn publication(&self, app: &AppId, namespace: &str, source: &'static str) {
        let mut labels = PublicationLabels { app: app.to_string(), namespace: namespace.to_owned(), source };
        if let Some(known) = self.publications.get(&labels) {
            known.inc();
            return;
        }
        if MAX_NAMESPACES <= self.namespaces.fetch_add(1, Ordering::Relaxed) {
            labels.namespace = "…".into();
        }
        self.publications.get_or_create(&labels).inc();
    }

    /// Notes what came of a probe: how long it took, or that it did not come back.
    pub fn probed(&self, took: Option<Duration>) {
        self.broker_up.set(i64::from(took.is_some()));
        if let Some(took) = took {
            self.broker_round_trip.observe(took.as_secs_f64());
        }
    }

    /// Shows what the log counts of lines for which it had no room.
    pub fn count_dropped_lines(&self, dropped: Counter) {
        // There is one log, so that the first one counts.
        let _ = self.dropped_lines.0.set(dropped);
    }

    /// Counts a refusal.
    pub fn refusal(&self, code: ErrorCode) {
        self.refusals.get_or_create(&RefusalLabels { code: code.name() }).inc();
    }

    /// Counts a refusal by a rate limit.
    pub fn rate_limited(&self, limit: &'static str) {
        self.rate_limited.get_or_create(&LimitLabels { limit }).inc();
    }

    /// Counts a connection that came (1) or went (-1).
    pub fn connection(&self, protocol: &'static str, transport: Transport, change: i64) {
        self.connections.get_or_create(&ConnectionLabels { protocol, transport: transport.name() }).inc_by(change);
    }

    /// Counts a gap in what this node heard, and the publications that were read for it.
    pub fn gap(&self, publications: usize) {
        self.gaps.inc();
        self.gap_publications.inc_by(publications as u64);
    }

    /// Counts a subscription that was told that its position is lost.
    pub fn position_lost(&self) {
        self.positions_lost.inc();
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
