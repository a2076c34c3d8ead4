//! What the store's writer counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::family::PerLabel;
use super::histogram::Histogram;
use super::page::Page;
use crate::registry::Fate;

/// Of one sink, since the start.
#[derive(Debug, Default)]
pub(crate) struct StoreMeters {
    commits: Histogram,
    acks: Histogram,
    fates: PerLabel<Fate>,
    failures: AtomicU64,
    stalls: AtomicU64,
    events_dropped: AtomicU64,
}

impl StoreMeters {
    /// A transaction was committed, and took so long.
    pub(crate) fn committed(&self, took: Duration) {
        self.commits.record(took);
    }

    /// A transaction was not.
    pub(crate) fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// What became of a publish, so long after it was accepted.
    pub(crate) fn settled(&self, fate: Fate, after: Duration) {
        self.fates.add(fate);
        if matches!(fate, Fate::Stored | Fate::Duplicate) {
            self.acks.record(after);
        }
    }

    /// Publishes begin to be refused, for they would wait in vain.
    pub(crate) fn stalled(&self) {
        self.stalls.fetch_add(1, Ordering::Relaxed);
    }

    /// An event found no room.
    pub(crate) fn event_dropped(&self, how_many: usize) {
        self.events_dropped.fetch_add(how_many as u64, Ordering::Relaxed);
    }

    pub(crate) fn collect(&self, page: &mut Page) {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        page.histogram(
            "doorward_store_commit_seconds",
            "How long transactions took, from their first statement to the end of their commit.",
            &self.commits.times(),
        );
        page.histogram(
            "doorward_store_ack_seconds",
            "From a publish that was accepted to its commit, which its ack follows.",
            &self.acks.times(),
        );
        page.counters(
            "doorward_store_messages_total",
            "Publishes that went into a transaction that committed, by what became of them.",
            "fate",
            &self.fates,
        );
        page.counter(
            "doorward_store_failures_total",
            "Transactions that failed, or whose outcome is unknown.",
            get(&self.failures),
        );
        page.counter(
            "doorward_store_stalls_total",
            "How often the store began to refuse publishes because it did not write.",
            get(&self.stalls),
        );
        page.counter(
            "doorward_events_dropped_total",
            "Rows of security events that found no room in the store's queue.",
            get(&self.events_dropped),
        );
    }
}
