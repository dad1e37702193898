//! Latencies in buckets of powers of two: two relaxed additions a value, no lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Buckets: bucket `i` holds what took less than 2^i microseconds and did not fit the one before; the last holds all
/// the rest (above 16 s).
pub const BUCKETS: usize = 26;

/// Counts durations.
#[derive(Default, Debug)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

fn bucket_of(duration: Duration) -> usize {
    let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    (64 - us.leading_zeros() as usize).min(BUCKETS - 1)
}

impl Histogram {
    /// Counts one.
    pub fn record(&self, duration: Duration) {
        self.buckets[bucket_of(duration)].fetch_add(1, Ordering::Relaxed);
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// As of now.
    pub fn stats(&self) -> HistogramStats {
        HistogramStats {
            buckets: self.buckets.iter().map(|b| b.load(Ordering::Relaxed)).collect(),
            sum_ns: self.sum_ns.load(Ordering::Relaxed),
        }
    }
}

/// The state of a [`Histogram`] at a moment.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize, Debug)]
pub struct HistogramStats {
    /// Counts, not cumulative; see [`HistogramStats::upper_bound`].
    pub buckets: Vec<u64>,
    /// Sum of all durations, in nanoseconds.
    pub sum_ns: u64,
}

impl HistogramStats {
    /// Exclusive upper bound of a bucket; `None` for the last one, which has none.
    pub fn upper_bound(bucket: usize) -> Option<Duration> {
        (bucket + 1 < BUCKETS).then(|| Duration::from_micros(1 << bucket))
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The duration below which the given part of all lies (0.5: the median), taken as evenly spread within its
    /// bucket; `None` when nothing was counted.
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        let wanted = part.clamp(0.0, 1.0) * self.count() as f64;
        let mut below = 0.0;
        for (i, &count) in self.buckets.iter().enumerate() {
            if count > 0 && below + count as f64 >= wanted {
                let low = if i == 0 { 0 } else { 1u64 << (i - 1) };
                let high = 1u64 << i;
                let us = low as f64 + (high - low) as f64 * ((wanted - below) / count as f64);
                return Some(Duration::from_nanos((us * 1000.0) as u64));
            }
            below += count as f64;
        }
        None
    }

    /// What was counted after `earlier`, a state of the same histogram.
    pub fn since(&self, earlier: &HistogramStats) -> HistogramStats {
        let before = earlier.buckets.iter().copied().chain(std::iter::repeat(0));
        HistogramStats {
            buckets: self.buckets.iter().zip(before).map(|(now, then)| now.saturating_sub(then)).collect(),
            sum_ns: self.sum_ns.saturating_sub(earlier.sum_ns),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_duration_lies_below_the_bound_of_its_bucket_and_not_below_the_one_before() {
        for ns in
            [0, 1, 999, 1000, 1001, 2000, 4_095_999, 4_096_000, 16_777_215_999, 40_000_000_000, u64::MAX]
        {
            let duration = Duration::from_nanos(ns);
            let i = bucket_of(duration);
            let micros = Duration::from_micros(duration.as_micros() as u64);
            assert!(HistogramStats::upper_bound(i).is_none_or(|bound| micros < bound), "{ns} in {i}");
            if i > 0 {
                let lower = HistogramStats::upper_bound(i - 1).unwrap();
                assert!(micros >= lower, "{ns} in {i}");
            }
        }
        assert_eq!(HistogramStats::upper_bound(BUCKETS - 1), None);
        assert_eq!(HistogramStats::upper_bound(BUCKETS - 2), Some(Duration::from_micros(1 << 24)));
    }

    #[test]
    fn quantiles_are_within_their_bucket() {
        let histogram = Histogram::default();
        assert_eq!(histogram.stats().quantile(0.5), None);
        for _ in 0..99 {
            histogram.record(Duration::from_micros(10));
        }
        histogram.record(Duration::from_millis(3));
        let stats = histogram.stats();
        assert_eq!((stats.count(), stats.sum_ns), (100, 99 * 10_000 + 3_000_000));
        let median = stats.quantile(0.5).unwrap();
        assert!(median >= Duration::from_micros(8) && median <= Duration::from_micros(16), "{median:?}");
        let worst = stats.quantile(1.0).unwrap();
        assert!(worst >= Duration::from_micros(2048) && worst <= Duration::from_micros(4096), "{worst:?}");
        assert!(stats.quantile(0.99).unwrap() <= Duration::from_micros(16));
    }

    #[test]
    fn a_difference_holds_what_came_in_between() {
        let histogram = Histogram::default();
        histogram.record(Duration::from_micros(5));
        let before = histogram.stats();
        histogram.record(Duration::from_micros(700));
        let new = histogram.stats().since(&before);
        assert_eq!((new.count(), new.sum_ns), (1, 700_000));
        assert_eq!(new.since(&new).count(), 0);
        assert_eq!(new.since(&HistogramStats::default()), new);
    }
}
