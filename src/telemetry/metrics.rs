//! Every metric: its name, unit and meaning in one list, and the text exposition.

use std::sync::Mutex;

use prometheus_client::{
    collector::Collector,
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::Registry,
};

use crate::domain::{AppId, ErrorCode};

/// This node's figures, and where collectors of further ones are registered.
pub struct Metrics {
    registry: Mutex<Registry>,
    publications: Family<PublicationLabels, Counter>,
    refusals: Family<RefusalLabels, Counter>,
    rate_limited: Family<LimitLabels, Counter>,
    connections: Family<ConnectionLabels, Gauge>,
    gaps: Counter,
    gap_publications: Counter,
}

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
            registry: Mutex::new(Registry::with_prefix("fanwire")),
            publications: Family::default(),
            refusals: Family::default(),
            rate_limited: Family::default(),
            connections: Family::default(),
            gaps: Counter::default(),
            gap_publications: Counter::default(),
        };
        metrics.register_all();
        metrics
    }

    fn register_all(&self) {
        let registry = &mut self.registry();
        registry.register("publications", "Publications accepted by the broker", self.publications.clone());
        registry.register("refusals", "Commands and requests refused, by error code", self.refusals.clone());
        registry.register("rate_limited", "Refusals by a rate limit, by limit", self.rate_limited.clone());
        registry.register("connections", "Connections now", self.connections.clone());
        registry.register("broker_gaps", "Subscriptions that were told of a gap", self.gaps.clone());
        let help = "Publications sent after a gap, in place of those that were missed";
        registry.register("broker_gap_publications", help, self.gap_publications.clone());
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The version that runs", build);
    }

    fn registry(&self) -> std::sync::MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Adds figures that somebody else keeps.
    pub fn collect(&self, collector: Box<dyn Collector>) {
        self.registry().register_collector(collector);
    }

    /// Everything in OpenMetrics text.
    pub fn render(&self) -> String {
        let mut out = String::new();
        text::encode(&mut out, &self.registry()).expect("writing to a string does not fail");
        out
    }

    /// Counts a publication. `namespace` must come from a bounded set.
    pub fn publication(&self, app: &AppId, namespace: &str, source: &'static str) {
        let labels = PublicationLabels { app: app.to_string(), namespace: namespace.to_owned(), source };
        self.publications.get_or_create(&labels).inc();
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

    /// Counts a subscription that was told of a gap, and what it got instead.
    pub fn gap(&self, publications: usize) {
        self.gaps.inc();
        self.gap_publications.inc_by(publications as u64);
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
