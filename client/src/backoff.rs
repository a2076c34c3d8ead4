//! How long to wait before the next attempt: exponential with full jitter, so that a fleet that lost its gateway at
//! once does not come back at once.

use std::time::Duration;

use doorward_proto::close::Close;

/// What the gateway says is bounded here: a wait of a year is a wait without end.
const LONGEST_ORDER: Duration = Duration::from_secs(24 * 3600);
/// An order to wait is stretched by up to half of it, and by at most this.
const MOST_SPREAD: Duration = Duration::from_secs(600);

/// The shape of the backoff.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackoffOptions {
    /// The longest first wait.
    pub base: Duration,
    /// The longest wait of all.
    pub cap: Duration,
    /// A session that lasted this long was a good one: the next wait is a first wait again.
    pub steady_after: Duration,
}

impl Default for BackoffOptions {
    fn default() -> Self {
        Self {
            base: Duration::from_secs(1),
            cap: Duration::from_secs(3600),
            steady_after: Duration::from_secs(60),
        }
    }
}

/// How many attempts have failed since a session lasted.
#[derive(Debug, Clone)]
pub struct Backoff {
    options: BackoffOptions,
    failures: u32,
}

/// What the gateway said of coming back, with the end of a session or a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Order {
    /// The close code, where there was a close frame of this protocol.
    pub close: Option<Close>,
    /// `retry_after` of a `bye`, or the `Retry-After` of a refusal.
    pub retry_after: Option<Duration>,
}

impl Backoff {
    /// Nothing has failed yet.
    #[must_use]
    pub fn new(options: BackoffOptions) -> Self {
        Self { options, failures: 0 }
    }

    /// A session ended after this long. A short one does not count as a success: a gateway that lets devices in and
    /// drops them again would be stormed by its own fleet.
    pub fn session_lasted(&mut self, lasted: Duration) {
        if lasted >= self.options.steady_after {
            self.failures = 0;
        }
    }

    /// The wait before the next attempt. `random` is uniform in `0..1`.
    pub fn next_wait(&mut self, order: Order, random: f64) -> Duration {
        let random = random.clamp(0.0, 1.0);
        let doubled = self.options.base.saturating_mul(1 << self.failures.min(31));
        self.failures = self.failures.saturating_add(1);
        let own = doubled.min(self.options.cap).mul_f64(random);
        // docs/protocol.md §5: what each close code asks of a device.
        let ordered = order.retry_after.or(match order.close {
            Some(Close::Suspended) => Some(Duration::from_secs(3600)),
            Some(Close::Superseded) => Some(Duration::from_secs(60)),
            _ => None,
        });
        match ordered {
            Some(ordered) => {
                let ordered = ordered.min(LONGEST_ORDER);
                own.max(ordered + (ordered / 2).min(MOST_SPREAD).mul_f64(random))
            }
            None => own,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn backoff() -> Backoff {
        Backoff::new(BackoffOptions { cap: 10 * SECOND, ..BackoffOptions::default() })
    }

    #[test]
    fn waits_double_up_to_the_cap_and_are_jittered_down_to_nothing() {
        let mut backoff = backoff();
        let longest: Vec<Duration> = (0..6).map(|_| backoff.next_wait(Order::default(), 1.0)).collect();
        assert_eq!(longest, [1, 2, 4, 8, 10, 10].map(|n| n * SECOND));
        assert_eq!(backoff.next_wait(Order::default(), 0.0), Duration::ZERO);
        for _ in 0..100 {
            assert_eq!(backoff.next_wait(Order::default(), 0.5), 5 * SECOND, "it never overflows");
        }
    }

    #[test]
    fn only_a_session_that_lasted_resets_it() {
        let mut backoff = backoff();
        for _ in 0..3 {
            backoff.next_wait(Order::default(), 1.0);
        }
        backoff.session_lasted(59 * SECOND);
        assert_eq!(backoff.next_wait(Order::default(), 1.0), 8 * SECOND);
        backoff.session_lasted(60 * SECOND);
        assert_eq!(backoff.next_wait(Order::default(), 1.0), SECOND);
    }

    #[test]
    fn an_order_to_wait_is_kept_and_spread() {
        let order = |close, retry_after| Order { close, retry_after };
        let wait = |order, random| backoff().next_wait(order, random);
        let told = order(Some(Close::GoingAway), Some(20 * SECOND));
        assert_eq!(wait(told, 0.0), 20 * SECOND, "never before it");
        assert_eq!(wait(told, 1.0), 30 * SECOND);
        assert_eq!(wait(order(Some(Close::Superseded), None), 0.0), 60 * SECOND);
        assert_eq!(wait(order(Some(Close::Suspended), None), 0.0), 3600 * SECOND);
        assert_eq!(wait(order(Some(Close::Suspended), Some(SECOND)), 0.0), SECOND);
        assert_eq!(wait(order(Some(Close::Internal), None), 0.0), Duration::ZERO);
        assert_eq!(wait(order(None, Some(Duration::MAX)), 1.0), LONGEST_ORDER + MOST_SPREAD);
    }

    #[test]
    fn a_short_order_does_not_shorten_the_backoff() {
        let mut backoff = backoff();
        for _ in 0..5 {
            backoff.next_wait(Order::default(), 1.0);
        }
        let order = Order { close: None, retry_after: Some(SECOND) };
        assert_eq!(backoff.next_wait(order, 1.0), 10 * SECOND);
    }
}
