//! One counter for each verdict, connection and session. Labels come from enums, so there are as many as there are and
//! no peer can make more.
//!
//! A new counter is a field of [`Counters`] (an `AtomicU64`, a `PerLabel` or a `Histogram`), a method that counts, and
//! a line in `Counters::collect`, which names it. Those of a part of its own stand in a file of their own, as those of
//! the store do.

mod door;
mod expiries;
pub(crate) mod family;
mod histogram;
pub(crate) mod page;
pub(crate) mod process;
pub(crate) mod store;
pub(crate) mod traces;

pub(crate) mod quarantine;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use doorward_proto::close::Close;
use doorward_proto::verdict::Refusal;

use crate::identity::Problem;
use crate::registry::EventKind;

pub use door::DoorCounters;
pub(crate) use door::Turned;
pub use expiries::Expiries;
pub(crate) use family::TlsRefusal;
use family::{Early, PerLabel};
use histogram::Histogram;
pub use histogram::Times;
use page::Page;

pub use quarantine::QuarantineTotals;

/// What has happened since the start.
#[derive(Debug, Default)]
pub struct Counters {
    connections: AtomicU64,
    early: PerLabel<Early>,
    accept_failures: AtomicU64,
    handshaking: AtomicU64,
    tls_refused: PerLabel<TlsRefusal>,
    refused: PerLabel<Problem>,
    opened: AtomicU64,
    proven: AtomicU64,
    closed: PerLabel<Close>,
    accepted: AtomicU64,
    ignored: AtomicU64,
    rejected: PerLabel<Refusal>,
    cuts: Histogram,
    changes: Histogram,
    oldest_transaction_ms: AtomicU64,
    events: PerLabel<EventKind>,
    folded: AtomicU64,
    door: DoorCounters,
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

/// A connection that has not come through the door, as long as it is held.
#[derive(Debug)]
pub(crate) struct Handshaking<'a>(&'a AtomicU64);

impl Drop for Handshaking<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Counters {
    /// A connection was accepted, whatever becomes of it.
    pub(crate) fn connection(&self) {
        add(&self.connections);
    }
    pub(crate) fn over_limit(&self) {
        self.early.add(Early::OverLimit);
    }
    pub(crate) fn clock_behind(&self) {
        self.early.add(Early::ClockBehind);
    }
    pub(crate) fn gone(&self) {
        self.early.add(Early::Gone);
    }
    pub(crate) fn handshake_timeout(&self) {
        self.early.add(Early::HandshakeTimeout);
    }
    /// `accept` itself has failed.
    pub(crate) fn accept_failed(&self) {
        add(&self.accept_failures);
    }
    /// A handshake is under way until what this returns is dropped.
    pub(crate) fn handshaking(&self) -> Handshaking<'_> {
        add(&self.handshaking);
        Handshaking(&self.handshaking)
    }
    pub(crate) fn tls_refused(&self, why: TlsRefusal) {
        self.tls_refused.add(why);
    }
    pub(crate) fn refused(&self, problem: Problem) {
        self.refused.add(problem);
    }
    pub(crate) fn opened(&self) {
        add(&self.opened);
    }
    pub(crate) fn proven(&self) {
        add(&self.proven);
    }
    pub(crate) fn closed(&self, close: Close) {
        self.closed.add(close);
    }
    pub(crate) fn accepted(&self) {
        add(&self.accepted);
    }
    pub(crate) fn ignored(&self) {
        add(&self.ignored);
    }
    pub(crate) fn rejected(&self, refusal: Refusal) {
        self.rejected.add(refusal);
    }
    /// Something for a security officer has happened.
    pub(crate) fn event(&self, kind: EventKind) {
        self.events.add(kind);
    }
    /// A log line was counted instead of written.
    pub(crate) fn folded(&self) {
        add(&self.folded);
    }

    /// A session has ended because of a change in the registry, so long after the change was made.
    pub(crate) fn cut(&self, after: Duration) {
        self.cuts.record(after);
    }

    /// A change was read from the feed, so long after it was made.
    pub(crate) fn change_read(&self, after: Duration) {
        self.changes.record(after);
    }

    /// Since when the registry's oldest open transaction has been seen, on the monotonic clock.
    pub(crate) fn oldest_transaction(&self, since: Option<Duration>) {
        // 0 is none; a millisecond more does not matter.
        let since = since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX).max(1));
        self.oldest_transaction_ms.store(since, Ordering::Relaxed);
    }

    /// How long it has been seen, by `now`.
    fn oldest_transaction_age(&self, now: Duration) -> Duration {
        match get(&self.oldest_transaction_ms) {
            0 => Duration::ZERO,
            since => now.saturating_sub(Duration::from_millis(since)),
        }
    }

    /// What has become of connections before TLS.
    #[must_use]
    pub fn door(&self) -> &DoorCounters {
        &self.door
    }

    /// From a change in the registry, as its row says, to the close of the session that it ends.
    #[must_use]
    pub fn cuts(&self) -> Times {
        self.cuts.times()
    }

    /// The counters now.
    #[must_use]
    pub fn totals(&self) -> Totals {
        Totals {
            over_limit: self.early.get(Early::OverLimit),
            clock_behind: self.early.get(Early::ClockBehind),
            gone: self.early.get(Early::Gone),
            handshake_timeouts: self.early.get(Early::HandshakeTimeout),
            tls_refused: self.tls_refused.sum(),
            refused: self.refused.sum(),
            opened: get(&self.opened),
            proven: get(&self.proven),
            closed: self.closed.sum(),
            accepted: get(&self.accepted),
            rejected: self.rejected.sum(),
        }
    }

    /// How many upgrades were refused for one problem, by its label.
    #[must_use]
    pub fn refused_for(&self, label: &str) -> u64 {
        self.refused.each().find(|(problem, _)| problem.label() == label).map_or(0, |(_, count)| count)
    }

    /// How many messages were rejected for one reason.
    #[must_use]
    pub fn rejected_for(&self, refusal: Refusal) -> u64 {
        self.rejected.get(refusal)
    }

    /// How many sessions were closed for one reason.
    #[must_use]
    pub fn closed_for(&self, close: Close) -> u64 {
        self.closed.get(close)
    }

    /// Every counter under its name, with its help.
    pub(crate) fn collect(&self, page: &mut Page, now: Duration) {
        page.counter("doorward_connections_total", "TCP connections accepted.", get(&self.connections));
        page.gauge(
            "doorward_handshakes",
            "Connections that have not come through the door yet.",
            get(&self.handshaking) as f64,
        );
        page.counters(
            "doorward_connections_closed_early_total",
            "Connections closed without a word, before or behind TLS.",
            "reason",
            &self.early,
        );
        self.door.collect(page);
        page.counter(
            "doorward_accept_failures_total",
            "Calls of accept that failed, most likely for want of file descriptors.",
            get(&self.accept_failures),
        );
        page.counters(
            "doorward_tls_refused_total",
            "Handshakes that TLS refused.",
            "reason",
            &self.tls_refused,
        );
        page.counters("doorward_upgrades_refused_total", "Upgrades refused.", "problem", &self.refused);
        page.counter("doorward_sessions_opened_total", "Sessions opened.", get(&self.opened));
        page.counter(
            "doorward_sessions_proven_total",
            "Sessions proven by their first signed message.",
            get(&self.proven),
        );
        let codes: Vec<(Close, String)> =
            Close::ALL.into_iter().map(|close| (close, close.code().to_string())).collect();
        page.counters_by("doorward_sessions_closed_total", "Sessions closed.", &self.closed, |close| {
            let code = codes.iter().find(|(one, _)| *one == close).map_or("", |(_, code)| code);
            vec![("code", code), ("reason", close.label())]
        });
        page.counter(
            "doorward_messages_accepted_total",
            "Messages that passed every check, of whatever operation.",
            get(&self.accepted),
        );
        page.counter(
            "doorward_messages_ignored_total",
            "Messages that came after their session had been closed.",
            get(&self.ignored),
        );
        page.counters("doorward_messages_refused_total", "Messages refused.", "error", &self.rejected);
        page.histogram(
            "doorward_session_cut_seconds",
            "From a change in the registry to the end of the session that it ends.",
            &self.cuts(),
        );
        page.histogram(
            "doorward_registry_change_lag_seconds",
            "From a change in the registry to its being read here.",
            &self.changes.times(),
        );
        page.gauge(
            "doorward_registry_oldest_transaction_seconds",
            "How long the oldest open transaction of the registry's database has been seen: it holds up its cleaning.",
            self.oldest_transaction_age(now).as_secs_f64(),
        );
        page.counters(
            "doorward_events_total",
            "Security events, each counted whether it has a row of its own or not.",
            "kind",
            &self.events,
        );
        page.counter(
            "doorward_log_lines_folded_total",
            "Log lines that were counted instead of written.",
            get(&self.folded),
        );
    }
}
