//! What a session may cost, and the token bucket that holds its rate.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The limits that a gateway states in `welcome`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The longest message in either direction, in bytes of the text.
    pub max_message_bytes: usize,
    /// How far a message's `iat` may lie from the gateway's clock.
    pub max_skew: Duration,
    /// How often the gateway pings; what is silent for two and a half of it is gone.
    pub heartbeat: Duration,
    /// Messages a second, and at once.
    pub rate: Rate,
}

/// A rate of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Messages a second, in the long run.
    pub per_second: u32,
    /// Messages at once, after a silence.
    pub burst: u32,
}

impl Limits {
    /// After how long a silence the other end is given up: two heartbeats and a half.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.heartbeat.saturating_mul(5) / 2
    }
}

/// A token bucket. It starts full.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    rate: Rate,
    /// When the bucket would have been full: a bucket is one number (the generic cell rate algorithm).
    full_at: Duration,
}

impl Bucket {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, full_at: Duration::ZERO }
    }

    /// Another rate from now on; what was used stays used.
    pub(crate) fn set(&mut self, rate: Rate) {
        self.rate = rate;
    }

    /// Takes one token, or says how long to wait for it.
    pub(crate) fn take(&mut self, now: Duration) -> Result<(), Duration> {
        let per_token = Duration::from_secs(1) / self.rate.per_second.max(1);
        let full_at = self.full_at.max(now) + per_token;
        let allowed = now + per_token * self.rate.burst.max(1);
        if full_at > allowed {
            return Err(full_at - allowed);
        }
        self.full_at = full_at;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_a_burst_and_then_its_rate() {
        let mut bucket = Bucket::new(Rate { per_second: 10, burst: 3 });
        let now = Duration::from_secs(100);
        for _ in 0..3 {
            assert_eq!(bucket.take(now), Ok(()));
        }
        assert_eq!(bucket.take(now), Err(Duration::from_millis(100)));
        assert_eq!(bucket.take(now + Duration::from_millis(99)), Err(Duration::from_millis(1)));
        assert_eq!(bucket.take(now + Duration::from_millis(100)), Ok(()));
        let rested = now + Duration::from_secs(60);
        assert_eq!((0..10).filter(|_| bucket.take(rested).is_ok()).count(), 3, "never more than the burst");
    }
}
