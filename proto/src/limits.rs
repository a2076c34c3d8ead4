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
    /// After how long a silence the other end is given up: two heartbeats and a half (R-48).
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.heartbeat.saturating_mul(5) / 2
    }
}

/// What a fleet's limits say in place of a gateway's own. What is left out is the gateway's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FleetLimits {
    /// Messages a second of one device, 1 to 1,000,000.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rate_per_second: Option<u32>,
    /// Messages of one device at once, 1 to 1,000,000.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rate_burst: Option<u32>,
    /// The longest message in bytes, at least 1,024. A gateway's own is never exceeded: its buffers are made for that.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub message_bytes: Option<usize>,
    /// How long after its end a certificate may still renew itself, in seconds, up to a year. No limit of a session's: it
    /// opens one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub renew_after_expiry: Option<u32>,
}

/// What is wrong with a fleet's limits.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LimitsError {
    /// Not JSON, not an object, an unknown or repeated member, a value of the wrong kind.
    #[error("not limits: {0}")]
    Malformed(String),
    /// Out of its range.
    #[error("{name} is {value}: it must be {range}")]
    Range {
        /// Which.
        name: &'static str,
        /// What it says.
        value: u64,
        /// What it must be.
        range: &'static str,
    },
}

impl FleetLimits {
    /// Reads a JSON object.
    ///
    /// # Errors
    /// [`LimitsError`] naming what is wrong.
    pub fn parse(text: &str) -> Result<Self, LimitsError> {
        // Else an array would be taken for an object.
        if !text.trim_start().starts_with('{') {
            return Err(LimitsError::Malformed("a JSON object is needed".to_owned()));
        }
        let limits: Self =
            serde_json::from_str(text).map_err(|error| LimitsError::Malformed(error.to_string()))?;
        limits.check()?;
        Ok(limits)
    }

    /// Whether each is within its range.
    ///
    /// # Errors
    /// [`LimitsError::Range`] for the first that is not.
    pub fn check(&self) -> Result<(), LimitsError> {
        let range = |name, value: Option<u64>, least, most, range| match value {
            Some(value) if !(least..=most).contains(&value) => Err(LimitsError::Range { name, value, range }),
            _ => Ok(()),
        };
        let bytes = self.message_bytes.map(|bytes| bytes as u64);
        range("rate_per_second", self.rate_per_second.map(u64::from), 1, 1_000_000, "1 to 1000000")?;
        range("rate_burst", self.rate_burst.map(u64::from), 1, 1_000_000, "1 to 1000000")?;
        range("message_bytes", bytes, 1024, 16 << 20, "1024 to 16777216")?;
        let late = self.renew_after_expiry.map(u64::from);
        range("renew_after_expiry", late, 0, 365 * 86_400, "0 to 31536000 seconds")
    }

    /// A gateway's limits, for a device of this fleet.
    #[must_use]
    pub fn over(&self, gateway: Limits) -> Limits {
        Limits {
            max_message_bytes: self
                .message_bytes
                .map_or(gateway.max_message_bytes, |bytes| bytes.min(gateway.max_message_bytes)),
            rate: Rate {
                per_second: self.rate_per_second.unwrap_or(gateway.rate.per_second),
                burst: self.rate_burst.unwrap_or(gateway.rate.burst),
            },
            ..gateway
        }
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

    /// Another rate from now on. Tokens that were used stay used, as many as the new bucket holds; a new one comes at the
    /// new rate.
    pub(crate) fn set(&mut self, rate: Rate, now: Duration) {
        // Counted in whole tokens, what is left of one would be lost with each change of something else.
        if rate == self.rate {
            return;
        }
        let used =
            self.full_at.saturating_sub(now).as_nanos().div_ceil(per_token(self.rate).as_nanos().max(1));
        let used = u32::try_from(used).unwrap_or(u32::MAX).min(rate.burst.max(1));
        self.full_at = now + per_token(rate) * used;
        self.rate = rate;
    }

    /// Takes one token, or says how long to wait for it.
    pub(crate) fn take(&mut self, now: Duration) -> Result<(), Duration> {
        let per_token = per_token(self.rate);
        let full_at = self.full_at.max(now) + per_token;
        let allowed = now + per_token * self.rate.burst.max(1);
        if full_at > allowed {
            return Err(full_at - allowed);
        }
        self.full_at = full_at;
        Ok(())
    }
}

fn per_token(rate: Rate) -> Duration {
    Duration::from_secs(1) / rate.per_second.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fleet_says_what_it_wants_otherwise_and_no_gateway_is_made_to_take_longer_messages() {
        let gateway = Limits {
            max_message_bytes: 4096,
            max_skew: Duration::from_secs(60),
            heartbeat: Duration::from_secs(30),
            rate: Rate { per_second: 100, burst: 1000 },
        };
        assert_eq!(FleetLimits::parse(" {} ").unwrap().over(gateway), gateway);
        let faster = FleetLimits::parse(r#"{"rate_per_second":500}"#).unwrap().over(gateway);
        assert_eq!(faster.rate, Rate { per_second: 500, burst: 1000 });
        for (bytes, most) in [(1024, 1024), (8192, 4096)] {
            let text = format!(r#"{{"message_bytes":{bytes}}}"#);
            assert_eq!(FleetLimits::parse(&text).unwrap().over(gateway).max_message_bytes, most);
        }
        for text in [
            "",
            "[]",
            "[1,2,3]",
            "null",
            r#"{"rate":1}"#,
            r#"{"rate_per_second":0}"#,
            r#"{"rate_burst":1000001}"#,
            r#"{"message_bytes":1023}"#,
            r#"{"renew_after_expiry":31536001}"#,
            r#"{"rate_burst":"1"}"#,
            r#"{"rate_burst":1,"rate_burst":2}"#,
        ] {
            assert!(FleetLimits::parse(text).is_err(), "{text}");
        }
    }

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

    #[test]
    fn another_rate_keeps_the_tokens_that_were_used_and_not_their_time() {
        let now = Duration::from_secs(100);
        let (slow, fast) = (Rate { per_second: 1, burst: 2 }, Rate { per_second: 1000, burst: 10 });
        let mut bucket = Bucket::new(slow);
        assert!(bucket.take(now).is_ok() && bucket.take(now).is_ok() && bucket.take(now).is_err());
        bucket.set(fast, now);
        assert_eq!((0..20).filter(|_| bucket.take(now).is_ok()).count(), 8);
        bucket.set(slow, now);
        assert_eq!(
            bucket.take(now),
            Err(Duration::from_secs(1)),
            "no longer than the new bucket takes to refill"
        );
        assert_eq!(bucket.take(now + Duration::from_secs(1)), Ok(()));
    }
}
