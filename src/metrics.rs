//! One counter for each verdict, connection and session. Labels come from enums, so there are as many as there are and
//! no peer can make more.

pub(crate) mod quarantine;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use doorward_proto::close::Close;
use doorward_proto::verdict::Refusal;

use crate::identity::Problem;

pub use quarantine::QuarantineTotals;

/// What has happened since the start.
#[derive(Debug, Default)]
pub struct Counters {
    over_limit: AtomicU64,
    clock_behind: AtomicU64,
    gone: AtomicU64,
    handshake_timeouts: AtomicU64,
    tls_refused: AtomicU64,
    refused: [AtomicU64; Problem::ALL.len()],
    opened: AtomicU64,
    proven: AtomicU64,
    closed: [AtomicU64; Close::ALL.len()],
    accepted: AtomicU64,
    ignored: AtomicU64,
    rejected: [AtomicU64; Refusal::ALL.len()],
    cuts: Histogram,
}

/// Times in buckets that double or so: what an operator promises and what went wrong are both in it.
#[derive(Debug, Default)]
struct Histogram {
    buckets: [AtomicU64; BUCKETS.len()],
    count: AtomicU64,
    sum_us: AtomicU64,
}

/// Upper bounds, in milliseconds.
const BUCKETS: [u64; 14] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 60_000];

impl Histogram {
    fn record(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKETS.iter().position(|bound| us <= bound * 1000);
        add(bucket.and_then(|at| self.buckets.get(at)));
        add(Some(&self.count));
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }
}

/// Times so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Times {
    /// How many took at most so long: the bound in milliseconds, and the number of those within it.
    pub within_ms: Vec<(u64, u64)>,
    /// How many there were.
    pub count: u64,
    /// All together.
    pub sum: Duration,
}

/// How long what ends has still to go, in seconds; what has ended is below zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expiries {
    /// The gateway's own certificate.
    pub server_certificate: i64,
    /// Each device CA, by its subject.
    pub device_cas: Vec<(String, i64)>,
    /// Each list of `tls.crls`, by its issuer: until the next one is due.
    pub revocation_lists: Vec<(String, i64)>,
    /// The soonest of the certificates that proven sessions came by.
    pub session_certificates: Option<i64>,
}

impl fmt::Display for Expiries {
    /// In days, the soonest of each kind: for a log line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let days = |seconds: i64| seconds.div_euclid(86_400);
        let soonest = |all: &[(String, i64)]| all.iter().map(|(_, left)| *left).min();
        write!(f, "server certificate {}d", days(self.server_certificate))?;
        for (what, left) in [
            ("device CA", soonest(&self.device_cas)),
            ("revocation list", soonest(&self.revocation_lists)),
            ("certificate of a session", self.session_certificates),
        ] {
            if let Some(left) = left {
                write!(f, ", {what} {}d", days(left))?;
            }
        }
        Ok(())
    }
}

/// The counters at a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Totals {
    /// Connections closed at once, over `limits.connections`.
    pub over_limit: u64,
    /// Connections closed at once, because the clock is behind the build.
    pub clock_behind: u64,
    /// Peers that went away before their request.
    pub gone: u64,
    /// Handshakes that ran out of time.
    pub handshake_timeouts: u64,
    /// Handshakes that TLS refused.
    pub tls_refused: u64,
    /// Upgrades refused, all problems together.
    pub refused: u64,
    /// Sessions opened.
    pub opened: u64,
    /// Sessions proven.
    pub proven: u64,
    /// Sessions closed.
    pub closed: u64,
    /// Messages accepted.
    pub accepted: u64,
    /// Messages rejected, all errors together.
    pub rejected: u64,
}

fn add(counter: Option<&AtomicU64>) {
    if let Some(counter) = counter {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl Counters {
    pub(crate) fn over_limit(&self) {
        add(Some(&self.over_limit));
    }
    pub(crate) fn clock_behind(&self) {
        add(Some(&self.clock_behind));
    }
    pub(crate) fn gone(&self) {
        add(Some(&self.gone));
    }
    pub(crate) fn handshake_timeout(&self) {
        add(Some(&self.handshake_timeouts));
    }
    pub(crate) fn tls_refused(&self) {
        add(Some(&self.tls_refused));
    }
    pub(crate) fn refused(&self, problem: Problem) {
        add(Problem::ALL.iter().position(|p| *p == problem).and_then(|at| self.refused.get(at)));
    }
    pub(crate) fn opened(&self) {
        add(Some(&self.opened));
    }
    pub(crate) fn proven(&self) {
        add(Some(&self.proven));
    }
    pub(crate) fn closed(&self, close: Close) {
        add(Close::ALL.iter().position(|c| *c == close).and_then(|at| self.closed.get(at)));
    }
    pub(crate) fn accepted(&self) {
        add(Some(&self.accepted));
    }
    pub(crate) fn ignored(&self) {
        add(Some(&self.ignored));
    }
    pub(crate) fn rejected(&self, refusal: Refusal) {
        add(Refusal::ALL.iter().position(|r| *r == refusal).and_then(|at| self.rejected.get(at)));
    }

    /// A session has ended because of a change in the registry, so long after the change was made.
    pub(crate) fn cut(&self, after: Duration) {
        self.cuts.record(after);
    }

    /// From a change in the registry, as its row says, to the close of the session that it ends.
    #[must_use]
    pub fn cuts(&self) -> Times {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut total = 0;
        let within = |(bound, bucket): (&u64, &AtomicU64)| {
            total += get(bucket);
            (*bound, total)
        };
        Times {
            within_ms: BUCKETS.iter().zip(&self.cuts.buckets).map(within).collect(),
            count: get(&self.cuts.count),
            sum: Duration::from_micros(get(&self.cuts.sum_us)),
        }
    }

    /// The counters now.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let sum = |counters: &[AtomicU64]| counters.iter().map(get).sum();
        Totals {
            over_limit: get(&self.over_limit),
            clock_behind: get(&self.clock_behind),
            gone: get(&self.gone),
            handshake_timeouts: get(&self.handshake_timeouts),
            tls_refused: get(&self.tls_refused),
            refused: sum(&self.refused),
            opened: get(&self.opened),
            proven: get(&self.proven),
            closed: sum(&self.closed),
            accepted: get(&self.accepted),
            rejected: sum(&self.rejected),
        }
    }

    /// How many upgrades were refused for one problem, by its label.
    #[must_use]
    pub fn refused_for(&self, label: &str) -> u64 {
        let at = Problem::ALL.iter().position(|problem| problem.label() == label);
        at.and_then(|at| self.refused.get(at)).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// How many messages were rejected for one reason.
    #[must_use]
    pub fn rejected_for(&self, refusal: Refusal) -> u64 {
        let at = Refusal::ALL.iter().position(|r| *r == refusal);
        at.and_then(|at| self.rejected.get(at)).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// How many sessions were closed for one reason.
    #[must_use]
    pub fn closed_for(&self, close: Close) -> u64 {
        let at = Close::ALL.iter().position(|c| *c == close);
        at.and_then(|at| self.closed.get(at)).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }
}
