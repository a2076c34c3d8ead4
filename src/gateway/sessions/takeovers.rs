//! How often a device's place has changed hands lately.

use std::time::Duration;

/// Takeovers of one device within [`TAKEOVER_WINDOW`] that look like two devices with one identity: a device that
/// reconnects because its network is bad takes over from itself, but not that often.
pub(super) const MAX_TAKEOVERS: u32 = 4;
/// A device that lost its session to another of its identity stays away for a minute (4009): it takes over once a minute
/// from a clone that comes back at once. Where they meet at two gateways, each of these sees one takeover a minute.
pub(super) const TAKEOVER_WINDOW: Duration = Duration::from_secs(5 * 60);
/// How long nobody else is let in as this device then. Whoever has the session keeps it.
pub(super) const CLONE_THROTTLE: Duration = Duration::from_secs(60);

/// On the monotonic clock.
#[derive(Debug, Default)]
pub(super) struct Takeovers {
    since: Duration,
    count: u32,
    throttled_until: Option<Duration>,
}

impl Takeovers {
    /// One more; whether that is one too many.
    pub(super) fn add(&mut self, now: Duration) -> bool {
        if !self.counting(now) {
            *self = Self { since: now, ..Self::default() };
        }
        self.count += 1;
        let too_many = self.count >= MAX_TAKEOVERS;
        if too_many {
            *self = Self { throttled_until: Some(now + CLONE_THROTTLE), ..Self::default() };
        }
        too_many
    }

    /// Whether there were any that still count.
    pub(super) fn counting(&self, now: Duration) -> bool {
        self.count > 0 && now.saturating_sub(self.since) < TAKEOVER_WINDOW
    }

    /// How long the device is still to be kept waiting.
    pub(super) fn wait(&self, now: Duration) -> Option<Duration> {
        self.throttled_until.and_then(|until| until.checked_sub(now)).filter(|wait| !wait.is_zero())
    }
}
