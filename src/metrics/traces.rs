//! What has become of traces.

use std::sync::atomic::{AtomicU64, Ordering};

use super::family::{Label, PerLabel};
use super::page::Page;

/// Why a span did not reach the collector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dropped {
    /// As many wait as `traces.queue` allows.
    QueueFull,
    /// The collector was away, or did not answer, for as long as it is tried.
    Undelivered,
    /// The collector does not want it.
    Rejected,
    /// More traces than `traces.per_second`: each counts as one, and none of its spans was made.
    OverRate,
}

impl Label for Dropped {
    const ALL: &'static [Self] = &[Self::QueueFull, Self::Undelivered, Self::Rejected, Self::OverRate];

    fn label(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Undelivered => "undelivered",
            Self::Rejected => "rejected",
            Self::OverRate => "over_rate",
        }
    }
}

/// Of one gateway, since the start.
#[derive(Debug, Default)]
pub(crate) struct TraceCounters {
    sent: AtomicU64,
    dropped: PerLabel<Dropped>,
}

impl TraceCounters {
    pub(crate) fn sent(&self, spans: usize) {
        self.sent.fetch_add(spans as u64, Ordering::Relaxed);
    }

    pub(crate) fn dropped(&self, why: Dropped, how_many: usize) {
        for _ in 0..how_many {
            self.dropped.add(why);
        }
    }

    /// Spans that were made and did not reach the collector.
    pub(crate) fn lost(&self) -> u64 {
        self.dropped.sum() - self.dropped.get(Dropped::OverRate)
    }

    /// With the spans that wait now.
    pub(crate) fn collect(&self, page: &mut Page, waiting: usize) {
        page.counter(
            "doorward_traces_sent_total",
            "Spans that the collector has taken.",
            self.sent.load(Ordering::Relaxed),
        );
        page.counters(
            "doorward_traces_dropped_total",
            "Spans that did not reach the collector; and traces over traces.per_second, of which no span was made.",
            "reason",
            &self.dropped,
        );
        page.gauge("doorward_traces_queue_spans", "Spans that wait for the collector.", waiting as f64);
    }
}
