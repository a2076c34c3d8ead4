//! The token bucket that holds a rate.

use std::time::Duration;

use super::Rate;

/// A token bucket. It starts full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    rate: Rate,
    /// When the bucket would have been full: a bucket is one number (the generic cell rate algorithm).
    full_at: Duration,
}

impl Bucket {
    /// A full bucket.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        Self { rate, full_at: Duration::ZERO }
    }

    /// Another rate from now on. Tokens that were used stay used, as many as the new bucket holds; a new one comes at the
    /// new rate.
    pub fn set(&mut self, rate: Rate, now: Duration) {
        if self.rate != rate {
            let used = tokens(self.full_at.saturating_sub(now), self.rate).min(rate.burst.max(1));
            self.full_at = now + span(used, rate);
            self.rate = rate;
        }
    }

    /// How long until so many tokens can be taken; zero: now. For more than the bucket holds a full one is enough.
    #[must_use]
    pub fn wait(&self, tokens: u32, now: Duration) -> Duration {
        let most = self.rate.burst.max(1);
        let full_at = self.full_at.max(now) + span(tokens.min(most), self.rate);
        full_at.saturating_sub(now + span(most, self.rate))
    }

    /// Takes tokens, or says how long to wait for them. What a full bucket does not hold is owed: the rate holds in the
    /// long run for whatever is larger than a burst, too.
    ///
    /// # Errors
    /// How long to wait.
    pub fn take(&mut self, tokens: u32, now: Duration) -> Result<(), Duration> {
        let wait = self.wait(tokens, now);
        if !wait.is_zero() {
            return Err(wait);
        }
        self.charge(tokens, now);
        Ok(())
    }

    /// Takes tokens that may not be there.
    pub(super) fn charge(&mut self, tokens: u32, now: Duration) {
        self.full_at = self.full_at.max(now) + span(tokens, self.rate);
    }

    /// Of two that began as one the emptier counts; the rate stays this one's.
    pub fn join(&mut self, other: &Self, now: Duration) {
        let mut other = other.clone();
        other.set(self.rate, now);
        self.full_at = self.full_at.max(other.full_at);
    }

    /// Whether it is as good as new.
    #[must_use]
    pub fn is_full(&self, now: Duration) -> bool {
        self.full_at <= now
    }
}

/// How long so many tokens take to come.
fn span(tokens: u32, rate: Rate) -> Duration {
    // At most 2^32 times 10^9: within 64 bits.
    Duration::from_nanos(u64::from(tokens) * 1_000_000_000 / u64::from(rate.per_second.max(1)))
}

/// How many tokens come within a time, the one that is under way among them.
fn tokens(time: Duration, rate: Rate) -> u32 {
    let tokens = (time.as_nanos() * u128::from(rate.per_second.max(1))).div_ceil(1_000_000_000);
    u32::try_from(tokens).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_a_burst_and_then_its_rate() {
        let mut bucket = Bucket::new(Rate { per_second: 10, burst: 3 });
        let now = Duration::from_secs(100);
        for _ in 0..3 {
            assert_eq!(bucket.take(1, now), Ok(()));
        }
        assert_eq!(bucket.take(1, now), Err(Duration::from_millis(100)));
        assert_eq!(bucket.take(1, now + Duration::from_millis(99)), Err(Duration::from_millis(1)));
        assert_eq!(bucket.take(1, now + Duration::from_millis(100)), Ok(()));
        let rested = now + Duration::from_secs(60);
        assert_eq!(
            (0..10).filter(|_| bucket.take(1, rested).is_ok()).count(),
            3,
            "never more than the burst"
        );
    }

    #[test]
    fn another_rate_keeps_the_tokens_that_were_used_and_not_their_time() {
        let now = Duration::from_secs(100);
        let (slow, fast) = (Rate { per_second: 1, burst: 2 }, Rate { per_second: 1000, burst: 10 });
        let mut bucket = Bucket::new(slow);
        assert!(bucket.take(1, now).is_ok() && bucket.take(1, now).is_ok() && bucket.take(1, now).is_err());
        bucket.set(fast, now);
        assert_eq!((0..20).filter(|_| bucket.take(1, now).is_ok()).count(), 8);
        bucket.set(slow, now);
        assert_eq!(
            bucket.take(1, now),
            Err(Duration::from_secs(1)),
            "no longer than the new bucket takes to refill"
        );
        assert_eq!(bucket.take(1, now + Duration::from_secs(1)), Ok(()));
    }

    #[test]
    fn what_is_larger_than_a_burst_takes_a_full_bucket_and_is_paid_for() {
        let mut bucket = Bucket::new(Rate { per_second: 1000, burst: 4000 });
        let now = Duration::from_secs(100);
        assert_eq!(bucket.take(10_000, now), Ok(()));
        assert_eq!(bucket.take(1, now + Duration::from_secs(6)), Err(Duration::from_millis(1)));
        assert_eq!(bucket.take(1, now + Duration::from_millis(6001)), Ok(()));
        assert!(bucket.take(10_000, now + Duration::from_secs(9)).is_err(), "not full again");
        assert_eq!(bucket.take(10_000, now + Duration::from_millis(10_002)), Ok(()));
        assert!(
            !bucket.is_full(now + Duration::from_secs(20)) && bucket.is_full(now + Duration::from_secs(21))
        );
    }

    #[test]
    fn whatever_is_asked_for_and_whenever_no_more_comes_out_than_the_rate_and_a_burst() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..200 {
            let rate = Rate { per_second: random.u32(1..=1 << 30), burst: random.u32(1..=1 << 30) };
            let mut bucket = Bucket::new(rate);
            let start = Duration::from_secs(random.u64(0..1 << 20));
            let (mut now, mut taken, mut largest) = (start, 0, 0);
            for _ in 0..300 {
                let pause = 1 << random.u32(1..32);
                now += Duration::from_nanos(random.u64(0..pause));
                let most = rate.burst.saturating_mul(2) >> random.u32(0..20);
                let tokens = random.u32(0..=most);
                match bucket.take(tokens, now) {
                    Ok(()) => (taken, largest) = (taken + u64::from(tokens), tokens.max(largest)),
                    // Whoever waits as long as it says is served.
                    Err(wait) => assert_eq!(bucket.wait(tokens, now + wait), Duration::ZERO),
                }
                let come = (now - start).as_nanos() * u128::from(rate.per_second) / 1_000_000_000;
                // One that is longer than a burst is let through whole, and owed for. A token may be lost to rounding.
                let most = come + u128::from(rate.burst.max(largest)) + 300;
                assert!(u128::from(taken) <= most, "{taken} of {most} at {rate:?}");
            }
        }
    }

    #[test]
    fn of_two_that_began_as_one_the_emptier_counts() {
        let (rate, now) = (Rate { per_second: 10, burst: 10 }, Duration::from_secs(100));
        let (mut one, mut two) = (Bucket::new(rate), Bucket::new(Rate { per_second: 1, burst: 100 }));
        one.take(3, now).unwrap();
        two.take(7, now).unwrap();
        one.join(&two, now);
        assert_eq!((0..10).filter(|_| one.take(1, now).is_ok()).count(), 3);
        two.join(&one, now);
        two.join(&one, now);
        assert_eq!((0..100).filter(|_| two.take(1, now).is_ok()).count(), 90, "as often as it is said");
    }
}
