//! A histogram of durations with a bounded relative error, in the manner of HdrHistogram.
//!
//! Each power of two is divided into 128 equal buckets, so a value read back is at most 0.8 % above what was recorded.
//! Recording is one shift and one addition, and allocates nothing.

use std::time::Duration;

/// Buckets to each power of two, as a power of two.
const PRECISION_BITS: u32 = 7;
const BUCKETS_PER_DOUBLING: usize = 1 << PRECISION_BITS;
/// Nanoseconds up to 2^42, which is over an hour; what is longer counts as that.
const LONGEST_BITS: u32 = 42;
const BUCKETS: usize = (LONGEST_BITS - PRECISION_BITS + 1) as usize * BUCKETS_PER_DOUBLING;

/// Counts of durations, in nanoseconds.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Box<[u64]>,
    total: u64,
    longest: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS].into_boxed_slice(), total: 0, longest: 0 }
    }
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&mut self, nanoseconds: u64) {
        self.counts[bucket(nanoseconds)] += 1;
        self.total += 1;
        self.longest = self.longest.max(nanoseconds);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.counts.fill(0);
        self.total = 0;
        self.longest = 0;
    }

    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.total
    }

    /// The longest duration, exactly.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.longest)
    }

    /// The duration that `share` (in `0.0..=1.0`) of all were no longer than; zero while nothing was counted.
    pub fn quantile(&self, share: f64) -> Duration {
        let wanted = ((self.total as f64 * share).ceil() as u64).clamp(1, self.total.max(1));
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if wanted <= seen {
                return Duration::from_nanos(upper_edge(index).min(self.longest));
            }
        }
        Duration::ZERO
    }
}

fn bucket(nanoseconds: u64) -> usize {
    let value = nanoseconds.min((1 << LONGEST_BITS) - 1);
    if value < BUCKETS_PER_DOUBLING as u64 {
        return value as usize;
    }
    let shift = value.ilog2() - PRECISION_BITS;
    (shift as usize + 1) * BUCKETS_PER_DOUBLING + ((value >> shift) as usize - BUCKETS_PER_DOUBLING)
}

/// The largest value that falls into the bucket.
fn upper_edge(index: usize) -> u64 {
    if index < BUCKETS_PER_DOUBLING {
        return index as u64;
    }
    let shift = (index / BUCKETS_PER_DOUBLING - 1) as u32;
    let lower = ((index % BUCKETS_PER_DOUBLING + BUCKETS_PER_DOUBLING) as u64) << shift;
    lower + (1 << shift) - 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn quantiles_are_within_a_hundredth_of_the_sorted_values(
            mut values in prop::collection::vec(0u64..10_000_000_000, 1..400),
            share in 0.0f64..=1.0,
        ) {
            let mut histogram = Histogram::default();
            values.iter().for_each(|&value| histogram.record(value));
            values.sort_unstable();
            let rank = ((values.len() as f64 * share).ceil() as usize).clamp(1, values.len());
            let exact = values[rank - 1];
            let read = histogram.quantile(share).as_nanos() as u64;
            prop_assert!(exact <= read, "{read} is below {exact}");
            prop_assert!(read as f64 <= exact as f64 * 1.008 + 1.0, "{read} is far above {exact}");
        }

        #[test]
        fn every_value_lies_in_its_bucket(value in 0u64..1 << LONGEST_BITS) {
            let index = bucket(value);
            prop_assert!(value <= upper_edge(index));
            prop_assert!(index == 0 || upper_edge(index - 1) < value);
        }
    }

    #[test]
    fn what_was_forgotten_does_not_count() {
        let mut histogram = Histogram::default();
        [3, 700, 12_345, u64::MAX].into_iter().for_each(|value| histogram.record(value));
        assert_eq!((histogram.count(), histogram.max()), (4, Duration::from_nanos(u64::MAX)));
        assert_eq!(histogram.quantile(0.25), Duration::from_nanos(3));
        histogram.clear();
        assert_eq!((histogram.count(), histogram.quantile(0.5), histogram.max()), (0, Duration::ZERO, Duration::ZERO));
    }
}
