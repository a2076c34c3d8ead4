//! A token bucket in one number: the time at which it is full again (GCRA, ITU-T I.371 Annex A). Nothing has to be refilled,
//! and how long somebody has to wait is a subtraction.

use std::time::Duration;

/// Times are nanoseconds of the monotonic clock: enough for five hundred years.
pub(crate) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// What a bucket is measured by. A bucket does not know its own: where another one takes its place, [`Bucket::rebase`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    /// What one token takes to come back.
    interval: u64,
    /// What a whole bucket takes.
    whole: u64,
}

impl Rate {
    /// So many a second, and so many at once.
    pub(crate) fn per_second(rate: usize, burst: usize) -> Self {
        let interval = 1_000_000_000 / u64::try_from(rate.max(1)).unwrap_or(u64::MAX);
        Self::of(interval.max(1), burst)
    }

    /// So many within a time: as many at once, and as many again when that has passed.
    pub(crate) fn within(count: usize, time: Duration) -> Self {
        let interval = nanos(time) / u64::try_from(count.max(1)).unwrap_or(u64::MAX);
        Self::of(interval.max(1), count)
    }

    /// One each so many seconds, and so many at once.
    pub(crate) const fn every(seconds: u64, burst: u64) -> Self {
        let interval = seconds * 1_000_000_000;
        Self { interval, whole: interval * burst }
    }

    fn of(interval: u64, burst: usize) -> Self {
        let burst = u64::try_from(burst.max(1)).unwrap_or(u64::MAX);
        Self { interval, whole: interval.saturating_mul(burst) }
    }

    /// How many tokens a bucket has.
    pub(crate) fn burst(self) -> u64 {
        self.whole / self.interval
    }
}

/// A bucket, full to begin with.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bucket {
    full_at: u64,
}

impl Bucket {
    /// How long the next token lets wait. Nothing is taken.
    pub(crate) fn wait(self, rate: Rate, now: u64) -> u64 {
        let after = self.full_at.max(now).saturating_add(rate.interval);
        after.saturating_sub(now.saturating_add(rate.whole))
    }

    /// Takes the next token, also one that has to be waited for.
    pub(crate) fn take(&mut self, rate: Rate, now: u64) {
        self.take_many(rate, 1, now);
    }

    /// Takes one if it is there.
    pub(crate) fn try_take(&mut self, rate: Rate, now: u64) -> bool {
        let there = self.wait(rate, now) == 0;
        if there {
            self.take(rate, now);
        }
        there
    }

    /// Takes so many at once.
    pub(crate) fn take_many(&mut self, rate: Rate, count: u64, now: u64) {
        if count > 0 {
            self.full_at = self.full_at.max(now).saturating_add(rate.interval.saturating_mul(count));
        }
    }

    /// Another rate from now on. Tokens that are out stay out, as many as the new bucket holds, and come back at the new rate.
    pub(crate) fn rebase(&mut self, old: Rate, new: Rate, now: u64) {
        if old != new && !self.is_full(now) {
            let out = self.taken(old, now).min(new.burst());
            self.full_at = now.saturating_add(new.interval.saturating_mul(out));
        }
    }

    /// How many tokens there are.
    pub(crate) fn left(self, rate: Rate, now: u64) -> u64 {
        rate.whole.saturating_sub(self.full_at.saturating_sub(now)) / rate.interval
    }

    /// How many tokens are out.
    pub(crate) fn taken(self, rate: Rate, now: u64) -> u64 {
        self.full_at.saturating_sub(now).div_ceil(rate.interval)
    }

    /// Whether there is nothing to remember.
    pub(crate) fn is_full(self, now: u64) -> bool {
        self.full_at <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_burst_then_the_rate() {
        let (rate, mut bucket, now) = (Rate::per_second(10, 5), Bucket::default(), 1000 * SECOND);
        for n in 0..5 {
            assert_eq!(
                (bucket.wait(rate, now), bucket.taken(rate, now), bucket.left(rate, now)),
                (0, n, 5 - n)
            );
            bucket.take(rate, now);
        }
        assert_eq!(bucket.wait(rate, now), SECOND / 10);
        // Who queues waits a tenth of a second longer each.
        bucket.take(rate, now);
        assert_eq!(bucket.wait(rate, now), SECOND / 5);
        assert_eq!(bucket.wait(rate, now + SECOND / 5), 0);
        assert!(!bucket.is_full(now + SECOND / 2) && bucket.is_full(now + SECOND));
        let (rate, mut bucket) = (Rate::every(6, 20), Bucket::default());
        assert_eq!((0..100).filter(|_| bucket.try_take(rate, now)).count(), 20);
        assert!(!bucket.try_take(rate, now + 6 * SECOND - 1) && bucket.try_take(rate, now + 6 * SECOND));
    }

    #[test]
    fn another_rate_keeps_the_tokens_that_are_out_and_not_their_time() {
        let (slow, fast, now) = (Rate::per_second(1, 20), Rate::per_second(100, 50), 1000 * SECOND);
        let mut bucket = Bucket::default();
        bucket.rebase(slow, fast, now);
        assert!(bucket.is_full(now));
        // Twenty, and five that wait.
        bucket.take_many(slow, 25, now);
        bucket.rebase(slow, fast, now);
        assert_eq!((bucket.taken(fast, now), bucket.wait(fast, now)), (25, 0));
        assert!(bucket.is_full(now + SECOND / 4), "at the new rate");
        bucket.take_many(fast, 10, now);
        bucket.rebase(fast, slow, now);
        assert_eq!(bucket.taken(slow, now), 20, "no more than the new one holds");
        assert_eq!(bucket.wait(slow, now), SECOND);
        let before = bucket.full_at;
        bucket.rebase(slow, slow, now);
        assert_eq!(bucket.full_at, before);
    }

    #[test]
    fn the_longest_times_and_the_smallest_rates_do_not_overflow() {
        let rate = Rate::within(1, Duration::MAX);
        let mut bucket = Bucket::default();
        bucket.take(rate, 5);
        assert!(bucket.wait(rate, 5) > 0 || rate.burst() == 1);
        assert_eq!(Rate::per_second(0, 0).burst(), 1);
    }
}
