//! The hub's figures, gathered when somebody asks.

use std::sync::Arc;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};

use crate::hub::{Counters, Hub, Times};

/// Shows what the shards count.
#[derive(Debug)]
pub struct HubFigures(HubRef);

struct HubRef(Arc<Hub>);

impl std::fmt::Debug for HubRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hub")
    }
}

impl HubFigures {
    /// Shows what the shards of `hub` count.
    pub fn new(hub: Arc<Hub>) -> Self {
        Self(HubRef(hub))
    }

    fn sum(&self, figure: impl Fn(&Counters) -> usize) -> u64 {
        self.0.0.all_counters().map(figure).sum::<usize>() as u64
    }
}

impl Collector for HubFigures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut gauge = |name: &str, help: &str, value: u64| {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        gauge("subscriptions", "Subscriptions now", self.sum(|counters| counters.subscriptions.get()))?;
        // A channel with subscribers on two shards counts twice.
        gauge("channels", "Channels with subscribers now, per shard", self.sum(|counters| counters.channels.get()))?;
        gauge("send_queue_bytes", "Bytes that wait for slow connections", self.0.0.queued_bytes() as u64)?;
        gauge("shard_inbox", "Pushes that wait for a shard", self.0.0.waiting() as u64)?;
        let lag = self.0.0.all_counters().map(|counters| counters.lag_micros.get()).max().unwrap_or(0);
        gauge(
            "shard_lag_microseconds",
            "How late the slowest shard's timer was at worst in the last minute",
            lag as u64,
        )?;
        let mut counter = |name: &str, help: &str, value: u64| {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)
        };
        let deliveries = self.sum(|counters| counters.deliveries.get());
        counter("deliveries", "Publications handed to connections", deliveries)?;
        let violations = self.sum(|counters| counters.violations.get());
        counter("protocol_violations", "Connections ended for what they sent", violations)?;
        self.slow(&mut encoder)?;
        self.delivery_time(encoder)
    }
}

impl HubFigures {
    fn slow(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let caught_up = self.sum(|counters| counters.caught_behind.get());
        let disconnected = self.sum(|counters| counters.slow_disconnected.get());
        let help = "Subscriptions that fell behind, and connections that were ended for it";
        let kind = prometheus_client::metrics::MetricType::Counter;
        let mut metric = encoder.encode_descriptor("slow_connections", help, None, kind)?;
        for (outcome, value) in [("catch_up", caught_up), ("disconnected", disconnected)] {
            let labels = [("outcome", outcome)];
            ConstCounter::new(value).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn delivery_time(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut counts = [0; Times::BOUNDS.len() + 1];
        let mut sum = 0.0;
        for counters in self.0.0.all_counters() {
            let (own, own_sum) = counters.delivery_time.read();
            counts.iter_mut().zip(own).for_each(|(count, own)| *count += own);
            sum += own_sum;
        }
        let bounds = Times::BOUNDS.into_iter().chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds.zip(counts).collect();
        let help = "From the broker's acceptance to the write to a shard's last subscriber";
        let kind = prometheus_client::metrics::MetricType::Histogram;
        let mut metric = encoder.encode_descriptor("delivery_seconds", help, None, kind)?;
        metric.encode_histogram::<prometheus_client::encoding::NoLabelSet>(sum, counts.iter().sum(), &buckets, None)
    }
}
