//! Times in buckets that double or so: what an operator promises and what went wrong are both in it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often something took how long.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BUCKETS.len()],
    sum_us: AtomicU64,
    /// Beyond the last bound.
    longer: AtomicU64,
}

/// Upper bounds, in milliseconds.
const BUCKETS: [u64; 14] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 60_000];

/// Times so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Times {
    /// How many took at most so long: the bound in milliseconds, and the number of those within it.
    pub within_ms: Vec<(u64, u64)>,
    /// How many there were.
    pub count: u64,
    /// All together.
    pub sum: Duration,
}

impl Histogram {
    /// It took so long.
    pub(crate) fn record(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let at = BUCKETS.partition_point(|bound| bound * 1000 < us);
        self.buckets.get(at).unwrap_or(&self.longer).fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// All so far. A count is the sum of its buckets: no reader finds one without the other.
    pub(crate) fn times(&self) -> Times {
        let mut count = 0;
        let within_ms = BUCKETS
            .iter()
            .zip(&self.buckets)
            .map(|(bound, bucket)| {
                count += bucket.load(Ordering::Relaxed);
                (*bound, count)
            })
            .collect();
        count += self.longer.load(Ordering::Relaxed);
        Times { within_ms, count, sum: Duration::from_micros(self.sum_us.load(Ordering::Relaxed)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_bucket_whose_bound_it_does_not_pass() {
        let histogram = Histogram::default();
        for us in [0, 1000, 1001, 60_000_000, 60_000_001] {
            histogram.record(Duration::from_micros(us));
        }
        let times = histogram.times();
        assert_eq!(times.within_ms.first(), Some(&(1, 2)));
        assert_eq!(times.within_ms.get(1), Some(&(2, 3)));
        assert_eq!(times.within_ms.last(), Some(&(60_000, 4)));
        assert_eq!((times.count, times.sum), (5, Duration::from_micros(120_002_002)));
    }
}
