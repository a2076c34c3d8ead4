//! What quarantine has come to.

use std::sync::atomic::{AtomicU64, Ordering};

use super::page::Page;

/// Counted since the start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) suspended: AtomicU64,
    pub(crate) would_have: AtomicU64,
    pub(crate) resumed: AtomicU64,
}

/// The counters at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct QuarantineTotals {
    /// Devices that this gateway has suspended.
    pub suspended: u64,
    /// Devices that it would have suspended, but for `quarantine.mode`.
    pub would_have: u64,
    /// Devices that it has resumed because their quarantine was over, whoever began it.
    pub resumed: u64,
}

impl Counters {
    pub(crate) fn collect(&self, page: &mut Page) {
        let totals = self.totals();
        let outcomes =
            [("suspended", totals.suspended), ("dry_run", totals.would_have), ("resumed", totals.resumed)];
        page.counter_for_each(
            "doorward_quarantines_total",
            "Devices suspended for what they sent, those that would have been, and those whose time was over.",
            "outcome",
            outcomes,
        );
    }

    pub(crate) fn totals(&self) -> QuarantineTotals {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        QuarantineTotals {
            suspended: get(&self.suspended),
            would_have: get(&self.would_have),
            resumed: get(&self.resumed),
        }
    }
}
