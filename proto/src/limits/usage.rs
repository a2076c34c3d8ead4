//! What a device has used of its limits.

use std::time::Duration;

use super::{Bucket, Limits};

/// What a device has used of its limits. It outlives the session: whoever comes back finds what it had left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    messages: Bucket,
    bytes: Bucket,
    /// When strikes were earned, on the monotonic clock; never more than end a session.
    strikes: Vec<Duration>,
    /// How long the last of them counts.
    window: Duration,
}

/// Over a rate: for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Over {
    pub(crate) what: &'static str,
    pub(crate) wait: Duration,
}

impl Usage {
    /// Nothing yet.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        Self {
            messages: Bucket::new(limits.rate),
            bytes: Bucket::new(limits.bytes),
            strikes: Vec::new(),
            window: Duration::ZERO,
        }
    }

    /// Other limits from now on.
    pub(crate) fn set(&mut self, limits: &Limits, now: Duration) {
        self.messages.set(limits.rate, now);
        self.bytes.set(limits.bytes, now);
    }

    /// A message of so many bytes. One that is refused uses up nothing.
    pub(crate) fn message(&mut self, bytes: usize, now: Duration) -> Result<(), Over> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let (wait, wait_bytes) = (self.messages.wait(1, now), self.bytes.wait(bytes, now));
        if wait.is_zero() && wait_bytes.is_zero() {
            self.messages.charge(1, now);
            self.bytes.charge(bytes, now);
            return Ok(());
        }
        let what =
            if wait_bytes.is_zero() { "over the device's rate" } else { "over the device's bytes a second" };
        Err(Over { what, wait: wait.max(wait_bytes) })
    }

    /// One more strike; whether it is one too many.
    pub(crate) fn strike(&mut self, most: usize, window: Duration, now: Duration) -> bool {
        self.window = window;
        self.strikes.retain(|at| now.saturating_sub(*at) < window);
        if self.strikes.len() >= most {
            // Those of an earlier session: only the newest say how long they count.
            self.strikes.drain(..=self.strikes.len() - most);
        }
        self.strikes.push(now);
        self.strikes.len() >= most
    }

    pub(crate) fn forget_strikes(&mut self) {
        self.strikes.clear();
    }

    /// Takes in what another session of the device has used. Both began with the same: where one has used more, that counts.
    pub fn join(&mut self, other: &Self, now: Duration) {
        self.messages.join(&other.messages, now);
        self.bytes.join(&other.bytes, now);
        if other.strikes.len() > self.strikes.len() {
            self.strikes.clone_from(&other.strikes);
        }
        self.window = self.window.max(other.window);
    }

    /// Whether nothing of it counts any more.
    #[must_use]
    pub fn is_over(&self, now: Duration) -> bool {
        let counts = |at: &Duration| now.saturating_sub(*at) < self.window;
        self.messages.is_full(now) && self.bytes.is_full(now) && !self.strikes.last().is_some_and(counts)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Rate;
    use super::*;

    const NOW: Duration = Duration::from_secs(1000);
    const WINDOW: Duration = Duration::from_secs(60);

    fn limits() -> Limits {
        Limits {
            rate: Rate { per_second: 10, burst: 10 },
            bytes: Rate { per_second: 1000, burst: 2000 },
            ..Limits::default()
        }
    }

    #[test]
    fn what_one_rate_refuses_uses_up_nothing_of_the_other() {
        let mut usage = Usage::new(&limits());
        assert_eq!(usage.message(2000, NOW), Ok(()));
        for _ in 0..20 {
            let over = usage.message(500, NOW).unwrap_err();
            assert_eq!(
                (over.what, over.wait),
                ("over the device's bytes a second", Duration::from_millis(500))
            );
        }
        for _ in 0..9 {
            assert_eq!(usage.message(0, NOW), Ok(()), "nine of ten are left");
        }
        assert_eq!(usage.message(0, NOW).unwrap_err().what, "over the device's rate");
    }

    #[test]
    fn a_message_longer_than_the_burst_is_not_refused_for_ever() {
        let mut usage = Usage::new(&limits());
        assert_eq!(usage.message(5000, NOW), Ok(()));
        let wait = usage.message(5000, NOW).unwrap_err().wait;
        assert_eq!(wait, Duration::from_secs(5));
        assert_eq!(usage.message(5000, NOW + wait), Ok(()));
    }

    #[test]
    fn what_one_session_has_used_and_earned_counts_in_the_next() {
        let mut first = Usage::new(&limits());
        for _ in 0..10 {
            first.message(10, NOW).unwrap();
        }
        for _ in 0..4 {
            assert!(!first.strike(5, WINDOW, NOW));
        }
        let mut next = Usage::new(&limits());
        next.join(&first, NOW);
        assert!(next.message(10, NOW).is_err());
        assert!(next.strike(5, WINDOW, NOW), "the fifth");
        assert!(next.strike(5, WINDOW, NOW + WINDOW / 2), "and each that comes as soon");
        assert_eq!(next.strikes.len(), 5, "never more are kept");
        assert!(!next.strike(5, WINDOW, NOW + WINDOW));
        assert!(!next.is_over(NOW + WINDOW) && next.is_over(NOW + WINDOW * 2));
    }

    #[test]
    fn fewer_strikes_than_were_earned_may_be_allowed_now() {
        let mut usage = Usage::new(&limits());
        for _ in 0..4 {
            usage.strike(5, WINDOW, NOW);
        }
        assert!(usage.strike(2, WINDOW, NOW));
        assert_eq!(usage.strikes.len(), 2);
    }
}
