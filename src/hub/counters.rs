//! What a shard counts. Each is written by one thread and read by whoever looks at the metrics.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

/// One shard's figures.
#[derive(Default)]
pub struct Counters {
    /// Connections now.
    pub connections: Figure,
    /// Subscriptions now.
    pub subscriptions: Figure,
    /// Channels with subscribers now.
    pub channels: Figure,
    /// Publications handed to connections.
    pub deliveries: Figure,
    /// How long publications took from the broker to the last socket of the shard.
    pub delivery_time: Times,
    /// Bytes that wait in send queues, as of the last tick of the timer.
    pub queued_bytes: Figure,
    /// Subscriptions that fell behind and were told to catch up from history.
    pub caught_behind: Figure,
    /// Connections that were ended for being slow.
    pub slow_disconnected: Figure,
    /// Connections that were ended for what they sent: broken frames, and messages too large or too slow.
    pub violations: Figure,
    /// How late the timer was at worst in the last minute, in µs.
    pub lag_micros: Figure,
}

/// A number that goes up and down.
#[derive(Default)]
pub struct Figure(AtomicUsize);

impl Figure {
    /// Adds `n`.
    pub fn add(&self, n: usize) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Takes `n` off.
    pub fn sub(&self, n: usize) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }

    /// Replaces it.
    pub fn set(&self, n: usize) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// Reads it.
    pub fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// A histogram of durations.
#[derive(Default)]
pub struct Times {
    buckets: [AtomicU64; Self::BOUNDS.len() + 1],
    sum_nanos: AtomicU64,
}

impl Times {
    /// Upper bounds of the buckets, in seconds; one more holds the rest.
    pub const BOUNDS: [f64; 12] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5];

    /// Counts one duration.
    pub fn observe(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = Self::BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(Self::BOUNDS.len());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_nanos.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How many fell into each bucket, and their sum in seconds.
    pub fn read(&self) -> ([u64; Self::BOUNDS.len() + 1], f64) {
        let counts = std::array::from_fn(|bucket| self.buckets[bucket].load(Ordering::Relaxed));
        (counts, self.sum_nanos.load(Ordering::Relaxed) as f64 / 1e9)
    }
}
