//! What a device has used of its limits: shared by its sessions, and kept after the last of them until nothing of it
//! counts any more. Whoever reconnects finds what was left, and not a bucket that is full again.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use doorward_pki::identity::Fingerprint;
use doorward_proto::limits::{Bucket, Connects, Usage};
use doorward_proto::session::Session;
use doorward_proto::time::Moment;

use crate::bucket::{self, Rate, nanos};
use crate::gateway::quarantine::Offence;
use crate::identity::Problem;

/// How long the place is known from which a device was last heard: one that reports once a day comes back to it.
const HOME_FOR: Duration = Duration::from_secs(48 * 3600);
/// A certificate that its record refuses is looked up so often: 20 times, then every 10 seconds. A device that backs off, or
/// stops as it is told, never comes as often.
const REFUSALS: Rate = Rate::every(10, 20);
/// Certificates of one device that are refused and remembered: it seldom has more than an old one and a new one.
const MOST_REFUSED: usize = 4;

/// One device's. Of this gateway: at another one it has its limits again.
#[derive(Debug, Default)]
pub(crate) struct Spent {
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    /// Of sessions; none before the first has sent anything.
    usage: Option<Usage>,
    attempts: Attempts,
    offences: Offences,
    refused: Vec<Refused>,
}

/// A certificate of the device's that its record refuses. Each counts for itself: who has stolen an old one cannot have the new
/// one refused. Whoever has got as far has shown the certificate's private key.
#[derive(Debug)]
struct Refused {
    certificate: Fingerprint,
    problem: Problem,
    looked_up: bucket::Bucket,
}

impl Spent {
    fn lock(&self) -> MutexGuard<'_, Inside> {
        // Whole after each statement.
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a session has used so far.
    pub(crate) fn note(&self, session: &Session, now: Moment) {
        // By the limits that the session has now.
        let (mut usage, mut inside) = (session.usage(), self.lock());
        if let Some(known) = &inside.usage {
            usage.join(known, now.monotonic);
        }
        inside.usage = Some(usage);
        if let Some((_, until)) = &mut inside.attempts.home {
            *until = now.monotonic + HOME_FOR;
        }
    }

    /// Tells a session what the others have used.
    pub(crate) fn tell(&self, session: &mut Session, now: Moment) {
        if let Some(usage) = &self.lock().usage {
            session.take_in(usage, now);
        }
    }

    /// The device connects; or how long it has to wait before it may.
    pub(crate) fn connect(&self, from: IpAddr, connects: Connects, now: Duration) -> Result<(), Duration> {
        self.lock().attempts.take(place(from), connects, now)
    }

    /// A session from there has been proven. Whether it had been another place before.
    pub(crate) fn proven(&self, from: IpAddr, now: Duration) -> bool {
        let from = place(from);
        let before = self.lock().attempts.home.replace((from, now + HOME_FOR));
        before.is_none_or(|(before, _)| before != from)
    }

    /// Where it was proven last, and for how long that is known still.
    pub(crate) fn home(&self, now: Duration) -> Option<(IpAddr, Duration)> {
        let (home, until) = self.lock().attempts.home?;
        Some((home, until.saturating_sub(now))).filter(|(_, left)| !left.is_zero())
    }

    /// An earlier run has known it for so long; what has been proven since counts more.
    pub(super) fn recall(&self, from: IpAddr, left: Duration, now: Duration) {
        self.lock().attempts.home.get_or_insert((place(from), now + left.min(HOME_FOR)));
    }

    /// The registry was asked, and the record refuses this certificate of the device's.
    pub(crate) fn refuse(&self, certificate: &Fingerprint, problem: Problem, now: Duration) {
        let (mut inside, now) = (self.lock(), nanos(now));
        inside.refused.retain(|other| !other.looked_up.is_full(now));
        if let Some(known) = inside.refused.iter_mut().find(|other| other.certificate == *certificate) {
            known.problem = problem;
            known.looked_up.take(REFUSALS, now);
        } else if inside.refused.len() < MOST_REFUSED {
            let mut looked_up = bucket::Bucket::default();
            looked_up.take(REFUSALS, now);
            inside.refused.push(Refused { certificate: *certificate, problem, looked_up });
        }
    }

    /// What the record said of this certificate, if that has been asked too often to ask again.
    pub(crate) fn still_refused(&self, certificate: &Fingerprint, now: Duration) -> Option<Problem> {
        let inside = self.lock();
        let known = inside.refused.iter().find(|other| other.certificate == *certificate)?;
        (known.looked_up.wait(REFUSALS, nanos(now)) > 0).then_some(known.problem)
    }

    /// The record has changed: it is asked anew.
    pub(super) fn ask_anew(&self) {
        self.lock().refused = Vec::new();
    }

    /// The device has sent what it should not; how many of the kind that makes within the window.
    pub(crate) fn offend(&self, offence: Offence, window: Duration, now: Duration) -> usize {
        self.lock().offences.add(offence, window, now)
    }

    /// What it has sent has been dealt with.
    pub(crate) fn forgive(&self) {
        self.lock().offences = Offences::default();
    }

    /// Whether a full bucket, no strike and no place of late are all that is left.
    pub(super) fn is_over(&self, now: Duration) -> bool {
        let inside = self.lock();
        let full = |bucket: &Option<Bucket>| bucket.as_ref().is_none_or(|bucket| bucket.is_full(now));
        inside.usage.as_ref().is_none_or(|usage| usage.is_over(now))
            && !inside.offences.count(now)
            && inside.refused.iter().all(|refused| refused.looked_up.is_full(nanos(now)))
            && inside.attempts.home.is_none_or(|(_, until)| until <= now)
            && full(&inside.attempts.at_home)
            && full(&inside.attempts.elsewhere)
    }
}

/// Counted from the first of them on, for one window.
#[derive(Debug, Default)]
struct Offences {
    since: Duration,
    window: Duration,
    counts: [usize; Offence::ALL.len()],
}

impl Offences {
    fn add(&mut self, offence: Offence, window: Duration, now: Duration) -> usize {
        if !self.count(now) {
            *self = Self { since: now, ..Self::default() };
        }
        self.window = window;
        let place = Offence::ALL.iter().position(|other| *other == offence);
        place.and_then(|place| self.counts.get_mut(place)).map_or(0, |count| {
            *count += 1;
            *count
        })
    }

    /// Whether there are any that still count.
    fn count(&self, now: Duration) -> bool {
        self.counts.iter().any(|count| *count > 0) && now.saturating_sub(self.since) < self.window
    }
}

/// A device's connections, in two buckets: who has stolen its certificate alone can use up the one for strange places, and
/// the device, where it was proven last, comes in by the other.
#[derive(Debug, Default)]
struct Attempts {
    /// And until when that is known.
    home: Option<(IpAddr, Duration)>,
    at_home: Option<Bucket>,
    elsewhere: Option<Bucket>,
}

impl Attempts {
    fn take(&mut self, from: IpAddr, connects: Connects, now: Duration) -> Result<(), Duration> {
        let bucket = if self.home.is_some_and(|(home, _)| home == from) {
            &mut self.at_home
        } else {
            &mut self.elsewhere
        };
        let rate = connects.rate();
        let bucket = bucket.get_or_insert_with(|| Bucket::new(rate));
        bucket.set(rate, now);
        bucket.take(Connects::TOKENS, now)
    }
}

/// An address as one place: of IPv6 the first 64 bits, for the rest is the host's to choose (RFC 8981).
fn place(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1000);
    const CONNECTS: Connects = Connects { per_minute: 6, burst: 3 };

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_device_connects_as_often_as_it_may_and_is_told_when_to_come_back() {
        let spent = Spent::default();
        let connect = |now: Duration| spent.connect(ip("192.0.2.1"), CONNECTS, now);
        assert!((0..3).all(|_| connect(NOW).is_ok()));
        assert_eq!(connect(NOW), Err(Duration::from_secs(10)));
        assert!(!spent.is_over(NOW));
        assert_eq!(connect(NOW + Duration::from_secs(10)), Ok(()));
        assert_eq!(connect(NOW + Duration::from_secs(10)), Err(Duration::from_secs(10)));
        assert!(spent.is_over(NOW + Duration::from_secs(40)), "full again, and forgotten");
    }

    #[test]
    fn who_has_stolen_a_certificate_does_not_keep_the_device_out_that_was_proven() {
        let spent = Spent::default();
        spent.proven(ip("192.0.2.1"), NOW);
        while spent.connect(ip("198.51.100.7"), CONNECTS, NOW).is_ok() {}
        assert!(spent.connect(ip("203.0.113.9"), CONNECTS, NOW).is_err(), "strange places are one");
        assert_eq!(spent.connect(ip("::ffff:192.0.2.1"), CONNECTS, NOW), Ok(()));
        // One that moves about does not get a full bucket with each place.
        assert!((0..2).all(|_| spent.connect(ip("192.0.2.1"), CONNECTS, NOW).is_ok()));
        spent.proven(ip("203.0.113.9"), NOW);
        assert!(spent.connect(ip("203.0.113.9"), CONNECTS, NOW).is_err());
        // Where it was is known for longer than its buckets take to fill: they are not what it is remembered for.
        let later = NOW + Duration::from_secs(3600);
        assert!(!spent.is_over(later) && spent.is_over(NOW + HOME_FOR));
        while spent.connect(ip("198.51.100.7"), CONNECTS, later).is_ok() {}
        assert_eq!(spent.connect(ip("203.0.113.9"), CONNECTS, later), Ok(()));
    }

    #[test]
    fn the_part_of_an_address_that_a_host_chooses_is_no_other_place() {
        assert_eq!(place(ip("2001:db8:1:2:3:4:5:6")), ip("2001:db8:1:2::"));
        assert_ne!(place(ip("2001:db8:1:2::1")), place(ip("2001:db8:1:3::1")));
        assert_eq!(place(ip("192.0.2.1")), ip("192.0.2.1"));
    }

    #[test]
    fn a_refused_certificate_is_looked_up_ever_more_seldom_and_no_other_one_is() {
        let spent = Spent::default();
        let certificate = |n: u8| Fingerprint::of(&[n]);
        let asks = |n: u8, now: Duration| {
            let asked = spent.still_refused(&certificate(n), now).is_none();
            if asked {
                spent.refuse(&certificate(n), Problem::CertificateRevoked, now);
            }
            asked
        };
        assert_eq!((0..100).filter(|_| asks(1, NOW)).count(), 20);
        assert_eq!(spent.still_refused(&certificate(1), NOW), Some(Problem::CertificateRevoked));
        let later = NOW + Duration::from_secs(10);
        assert!(asks(1, later) && !asks(1, later));
        assert!(asks(2, NOW), "each for itself");
        // As many as a device may have; one more is asked for each time, and none is pushed out.
        assert!((3..=4).all(|n| asks(n, NOW)) && (0..100).all(|_| asks(5, NOW)));
        assert!(!asks(1, later) && !spent.is_over(later));
        spent.ask_anew();
        assert!(asks(1, later));
        assert!(spent.is_over(later + Duration::from_secs(10)));
    }

    #[test]
    fn offences_count_for_a_window_from_the_first_on() {
        let (spent, window) = (Spent::default(), Duration::from_secs(600));
        assert_eq!(spent.offend(Offence::Forged, window, NOW), 1);
        assert_eq!(spent.offend(Offence::Replayed, window, NOW), 1, "each kind for itself");
        assert_eq!(spent.offend(Offence::Forged, window, NOW + window / 2), 2);
        assert!(!spent.is_over(NOW + window / 2));
        assert!(spent.is_over(NOW + window));
        assert_eq!(spent.offend(Offence::Forged, window, NOW + window), 1);
        spent.forgive();
        assert!(spent.is_over(NOW + window));
    }
}
