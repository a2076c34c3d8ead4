//! When a device sends: at the times that were meant, and never faster than the gateway has said it may.

use std::time::Duration;

use doorward_proto::limits::Rate;

/// How a device's messages are spread over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// The next one as soon as the window allows.
    Free,
    /// Open loop: one each interval, the first after `first`. What is late is measured from when it was due.
    Every { first: Duration, interval: Duration },
    /// Open loop: as many at once as window and rate allow, each period of at least a second.
    Bursts { size: u32 },
}

/// The pace of one device, and the rate that its gateway stated.
#[derive(Debug)]
pub(crate) struct Pacer {
    pace: Pace,
    began: Duration,
    count: u32,
    /// When the gateway's bucket would be full again, as this device reckons.
    full_at: Duration,
}

/// Below the stated rate, because messages that left evenly may arrive in a bunch.
const RATE_MARGIN: f64 = 0.95;

fn allowed_burst(rate: Rate) -> u32 {
    (rate.burst / 4 * 3).max(1)
}

fn per_message(rate: Rate) -> Duration {
    Duration::from_secs(1).div_f64(f64::from(rate.per_second.max(1)) * RATE_MARGIN)
}

impl Pacer {
    pub(crate) fn new(pace: Pace) -> Self {
        Self { pace, began: Duration::ZERO, count: 0, full_at: Duration::ZERO }
    }

    pub(crate) fn begin(&mut self, at: Duration) {
        self.began = at;
    }

    /// When the next message was meant to go; `None` for whenever it can.
    pub(crate) fn intended(&self, rate: Rate) -> Option<Duration> {
        match self.pace {
            Pace::Free => None,
            Pace::Every { first, interval } => Some(self.began + first + interval.saturating_mul(self.count)),
            Pace::Bursts { size } => {
                let size = size.min(allowed_burst(rate)).max(1);
                let period = (per_message(rate) * size).max(Duration::from_secs(1));
                Some(self.began + period.saturating_mul(self.count / size))
            }
        }
    }

    /// The earliest moment at which the next message may go.
    pub(crate) fn due(&self, rate: Rate) -> Duration {
        let ahead = per_message(rate) * allowed_burst(rate).saturating_sub(1);
        let allowed = self.full_at.saturating_sub(ahead);
        self.intended(rate).unwrap_or(self.began).max(allowed)
    }

    /// One message goes. Gives the time that its latency is measured from.
    pub(crate) fn take(&mut self, rate: Rate, now: Duration) -> Duration {
        let intended = self.intended(rate).unwrap_or(now);
        self.full_at = self.full_at.max(now) + per_message(rate);
        self.count = self.count.saturating_add(1);
        intended
    }

    /// How many were meant to go before `ended` and did not.
    pub(crate) fn unsent(&mut self, rate: Rate, ended: Duration) -> u64 {
        let sent = self.count;
        let mut unsent = 0;
        while self.intended(rate).is_some_and(|at| at < ended) && unsent < 10_000_000 {
            self.count = self.count.saturating_add(1);
            unsent += 1;
        }
        self.count = sent;
        unsent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 100, burst: 40 };
    const SECOND: Duration = Duration::from_secs(1);

    /// How many go in the first `seconds`, looked at each millisecond.
    fn sent(pacer: &mut Pacer, seconds: u32) -> u32 {
        for milli in 0..seconds * 1000 {
            let now = SECOND + Duration::from_millis(u64::from(milli));
            while pacer.due(RATE) <= now {
                pacer.take(RATE, now);
            }
        }
        pacer.count
    }

    #[test]
    fn a_free_device_keeps_to_the_stated_rate() {
        let mut pacer = Pacer::new(Pace::Free);
        pacer.begin(SECOND);
        let sent = sent(&mut pacer, 10);
        assert!((950..=30 + 951).contains(&sent), "{sent}");
    }

    #[test]
    fn an_open_loop_measures_from_when_it_was_meant() {
        let interval = Duration::from_millis(100);
        let mut pacer = Pacer::new(Pace::Every { first: Duration::ZERO, interval });
        pacer.begin(SECOND);
        assert_eq!(pacer.take(RATE, 5 * SECOND), SECOND, "four seconds late");
        assert_eq!(pacer.take(RATE, 5 * SECOND), SECOND + interval);
        assert_eq!(pacer.unsent(RATE, 2 * SECOND), 8);
        assert_eq!(pacer.count, 2);
    }

    #[test]
    fn bursts_fit_the_bucket() {
        let mut pacer = Pacer::new(Pace::Bursts { size: 1000 });
        pacer.begin(SECOND);
        assert_eq!(sent(&mut pacer, 3), 90, "three bursts of three quarters of the bucket");
    }
}
