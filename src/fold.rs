//! Log lines that peers bring about are folded: the first ones of a kind are written as they come, the rest are counted, and
//! once a minute one line says how many they were and who was the first. Whatever peers do, the log grows no faster than
//! docs/operations.md says ("The log budget").
//!
//! A line belongs to a kind and a reason, and both are words of this program: what a peer sends makes no new ones.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::info;

use crate::bucket::{Bucket, Rate, nanos};
use crate::clock;
use crate::metrics::Counters;

/// How often what was folded is said.
pub(crate) const EVERY: Duration = Duration::from_secs(60);
/// Lines of one kind and reason that are written at once, and how many more a minute.
const OF_A_REASON: Rate = Rate::every(6, 20);
/// The same for each of the three parties together, so that none of them silences another.
const OF_A_PARTY: Rate = Rate::every(2, 60);
/// Kinds and reasons that are told apart. There are fewer in this program.
const MOST: usize = 256;
/// A sample's words are cut here: a subject is whatever somebody put into a certificate.
const MOST_WORDS: usize = 200;

/// What a line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    OverLimit,
    ClockBehind,
    Turned,
    NotProxied,
    Blocked,
    Timeout,
    Tls,
    Refused,
    Unreadable,
    Proven,
    Closed,
    Clone,
    Quarantine,
}

/// Who can bring lines about.
#[derive(Debug, Clone, Copy)]
enum Party {
    /// Whoever can reach the port.
    Strangers,
    /// Who has a certificate of a device CA.
    Holders,
    /// Who has been let in.
    Devices,
}

impl Kind {
    /// As its own lines say it.
    const fn words(self) -> &'static str {
        match self {
            Self::OverLimit => "closed: as many connections as limits.connections allows",
            Self::ClockBehind => "closed: the clock is behind the build",
            Self::Turned => "closed before TLS",
            Self::NotProxied => "refused: of gateway.proxy_networks, and no header of the PROXY protocol",
            Self::Blocked => "address blocked: too many failures, and no proven session from there",
            Self::Timeout => "refused: not through the handshake in time",
            Self::Tls => "refused in TLS",
            Self::Refused => "refused",
            Self::Unreadable => "the device's record cannot be read",
            Self::Proven => "session proven",
            Self::Closed => "session closed",
            Self::Clone => "possible clone",
            Self::Quarantine => "quarantine",
        }
    }

    const fn party(self) -> Party {
        match self {
            Self::OverLimit
            | Self::ClockBehind
            | Self::Turned
            | Self::NotProxied
            | Self::Blocked
            | Self::Timeout
            | Self::Tls => Party::Strangers,
            Self::Refused | Self::Unreadable => Party::Holders,
            Self::Proven | Self::Closed | Self::Clone | Self::Quarantine => Party::Devices,
        }
    }
}

/// Who brought a line about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) connection: String,
    pub(crate) peer: String,
    pub(crate) subject: String,
}

impl Sample {
    pub(crate) fn new(connection: &str, peer: impl ToString, subject: &str) -> Self {
        let subject = subject.chars().take(MOST_WORDS).collect();
        Self { connection: connection.to_owned(), peer: peer.to_string(), subject }
    }
}

#[derive(Debug, Default)]
struct Repeats {
    lines: Bucket,
    /// Since the last summary.
    count: u64,
    first: Option<Sample>,
}

/// Lines that were folded, to be said as one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    kind: Kind,
    reason: &'static str,
    count: u64,
    first: Option<Sample>,
}

/// What has been written and what has been folded.
#[derive(Debug, Default)]
pub(crate) struct Folds(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    repeats: HashMap<(Kind, &'static str), Repeats>,
    strangers: Bucket,
    holders: Bucket,
    devices: Bucket,
}

impl Folds {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Counts and samples: whole after each assignment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a line is to be written now; if not, it has been counted. `reason` must be a word of this program.
    pub(crate) fn may_say(
        &self,
        counters: &Counters,
        kind: Kind,
        reason: &'static str,
        who: impl FnOnce() -> Sample,
    ) -> bool {
        let written = self.judge(clock::now().monotonic, kind, reason, who);
        if !written {
            counters.folded();
        }
        written
    }

    fn judge(&self, now: Duration, kind: Kind, reason: &'static str, who: impl FnOnce() -> Sample) -> bool {
        let mut state = self.lock();
        let State { repeats, strangers, holders, devices } = &mut *state;
        let reason =
            if repeats.len() < MOST || repeats.contains_key(&(kind, reason)) { reason } else { "other" };
        let repeats = repeats.entry((kind, reason)).or_default();
        let party = match kind.party() {
            Party::Strangers => strangers,
            Party::Holders => holders,
            Party::Devices => devices,
        };
        let now = nanos(now);
        // Of both or of none.
        if repeats.lines.wait(OF_A_REASON, now) == 0 && party.try_take(OF_A_PARTY, now) {
            repeats.lines.take(OF_A_REASON, now);
            return true;
        }
        repeats.count += 1;
        if repeats.first.is_none() {
            repeats.first = Some(who());
        }
        false
    }

    /// What has been folded since the last call; kinds and reasons that are quiet are forgotten.
    fn take(&self, now: Duration) -> Vec<Summary> {
        let mut summaries = Vec::new();
        self.lock().repeats.retain(|(kind, reason), repeats| {
            let folded = repeats.count > 0;
            if folded {
                let first = repeats.first.take();
                summaries.push(Summary {
                    kind: *kind,
                    reason,
                    count: std::mem::take(&mut repeats.count),
                    first,
                });
            }
            folded || !repeats.lines.is_full(nanos(now))
        });
        summaries
    }

    /// Says what has been folded since the last time: one line for each kind and reason.
    pub(crate) fn say(&self) {
        for Summary { kind, reason, count, first } in self.take(clock::now().monotonic) {
            let sample = first.as_ref();
            info!(
                count,
                reason,
                first_connection = sample.map_or("-", |first| &first.connection),
                first_peer = sample.map_or("-", |first| &first.peer),
                first_subject = sample.map_or("-", |first| &first.subject),
                "folded, more of: {}",
                kind.words()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn sample(n: u32) -> Sample {
        Sample::new("c", format!("192.0.2.{}:1", n % 250), &n.to_string())
    }

    #[test]
    fn the_first_are_written_and_the_rest_are_counted_with_the_first_of_them() {
        let folds = Folds::default();
        let written = (0..1000).filter(|n| folds.judge(SECOND, Kind::Tls, "gone", || sample(*n))).count();
        assert_eq!(written, 20);
        let folded = Summary { kind: Kind::Tls, reason: "gone", count: 980, first: Some(sample(20)) };
        assert_eq!(folds.take(2 * SECOND), [folded]);
        assert_eq!(folds.take(3 * SECOND), [], "said once");
        // Another reason is not theirs to silence.
        assert!(folds.judge(3 * SECOND, Kind::Tls, "unknown_ca", || sample(0)));
    }

    #[test]
    fn one_party_does_not_silence_another() {
        let folds = Folds::default();
        for reason in ["a", "b", "c", "d", "e"] {
            for n in 0..100 {
                folds.judge(SECOND, Kind::Tls, reason, || sample(n));
            }
        }
        assert!(!folds.judge(SECOND, Kind::Timeout, "timeout", || sample(0)), "strangers have had theirs");
        assert!(folds.judge(SECOND, Kind::Refused, "origin", || sample(0)));
        assert!(folds.judge(SECOND, Kind::Closed, "normal", || sample(0)));
    }

    /// The budget of docs/operations.md: a storm of every kind and reason at once, for a day.
    #[test]
    fn a_storm_of_a_day_stays_within_the_budget() {
        let folds = Folds::default();
        let reasons: [&'static str; 66] =
            std::array::from_fn(|n| &*Box::leak(format!("r{n}").into_boxed_str()));
        let kinds = [Kind::Tls, Kind::Refused, Kind::Closed];
        let (mut lines, mut summaries) = (0, 0);
        for minute in 0..24 * 60 {
            for tens in 0..6 {
                let now = SECOND * (minute * 60 + tens * 10);
                for (n, reason) in reasons.iter().enumerate() {
                    for _ in 0..4 {
                        lines += usize::from(folds.judge(now, kinds[n % 3], reason, || sample(0)));
                    }
                }
            }
            summaries += folds.take(SECOND * (minute * 60 + 60)).len();
        }
        assert!(lines <= 3 * (60 + 30 * 24 * 60), "{lines}");
        assert!(summaries <= 66 * 24 * 60, "{summaries}");
        assert!(lines + summaries < 225_000);
        // And of one: the most that a single flood costs.
        let folds = Folds::default();
        let (mut lines, mut summaries) = (0, 0);
        for second in 0..24 * 3600 {
            lines += usize::from(folds.judge(SECOND * second, Kind::Timeout, "timeout", || sample(0)));
            if second % 60 == 59 {
                summaries += folds.take(SECOND * second).len();
            }
        }
        assert!((14_000..=20 + 10 * 24 * 60).contains(&lines), "{lines}");
        assert_eq!(summaries, 24 * 60);
    }

    #[test]
    fn what_is_told_apart_is_bounded_and_what_is_quiet_is_forgotten() {
        let folds = Folds::default();
        for n in 0..1000 {
            let reason: &'static str = Box::leak(n.to_string().into_boxed_str());
            folds.judge(SECOND, Kind::Refused, reason, || sample(0));
        }
        assert!(folds.lock().repeats.len() <= MOST + 1);
        folds.take(SECOND);
        folds.take(600 * SECOND);
        assert_eq!(folds.lock().repeats.len(), 0);
        let long = Sample::new("c", "p", &"x".repeat(100_000));
        assert_eq!(long.subject.len(), MOST_WORDS);
    }
}
