//! OpenTelemetry traces, where a collector is configured: how each connection was let in or not, and what became of some of the
//! published messages. Made by hand and not by `tracing` spans: what is not sampled costs a comparison, what is costs a few
//! words of memory until it ends, and no subscriber of a whole process stands on a message's way.
//!
//! Nothing waits for a collector. A trace that has ended goes into a bounded queue or is counted as dropped
//! (`doorward_traces_dropped_total`); a task of its own sends what is there.

mod admission;
mod collector;
mod exporter;
mod message;
mod queue;
mod span;
mod trail;
mod wire;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::info;

use crate::bucket::{Bucket, Rate, nanos};
use crate::clock;
use crate::config::{Config, TracesSection};
use crate::home::{FileError, Home};
use crate::metrics::page::Page;
use crate::metrics::traces::{Dropped, TraceCounters};

pub(crate) use admission::Phase;
pub(crate) use collector::Endpoint;
pub(crate) use exporter::Exporting;
pub(crate) use message::{Commit, MessageTrace};
pub(crate) use trail::Trail;

use collector::Collector;
use queue::Queue;
use span::Context;
use wire::Span;

/// Spans of one request.
pub(crate) const BATCH: usize = 512;
/// More than what a span takes in memory, or a trace while it is under way: their words are bounded, and most have few.
pub(crate) const SPAN_BYTES: usize = 2048;
/// What others set to send their traces somewhere. Not read here: the file says where a gateway's data goes.
const NOT_READ: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];

/// Why traces cannot be sent as configured.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// `traces.endpoint`. A configuration that was checked has none of these.
    #[error("traces.endpoint: {0}")]
    Endpoint(String),
    /// The file of `traces.ca`.
    #[error("traces.ca: {0}")]
    File(#[from] FileError),
    /// It holds something else.
    #[error("traces.ca: {path}: {reason}; name a file with the certificates of the collector's CAs, in PEM")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// A gateway's traces.
#[derive(Debug)]
pub(crate) struct Traces {
    queue: Queue,
    /// Connections that may be traced, and messages: neither uses up what is the other's.
    connections: Mutex<Bucket>,
    messages: Mutex<Bucket>,
    counters: TraceCounters,
    /// Taken by the exporter, which is one.
    collector: Mutex<Option<Collector>>,
    /// The gateway's name.
    gateway: Arc<str>,
}

impl Traces {
    /// `None` where no collector is configured.
    pub(crate) fn new(config: &Config, home: &Home) -> Result<Option<Arc<Self>>, TracesError> {
        let TracesSection { endpoint, queue, .. } = &config.traces;
        if endpoint.is_empty() {
            for name in NOT_READ.into_iter().filter(|name| std::env::var_os(name).is_some()) {
                info!("{name} is set, and not read: nothing is traced before traces.endpoint says where to");
            }
            return Ok(None);
        }
        Ok(Some(Arc::new(Self {
            queue: Queue::new(*queue, BATCH),
            connections: Mutex::default(),
            messages: Mutex::default(),
            counters: TraceCounters::default(),
            collector: Mutex::new(Some(Collector::new(&config.traces, home)?)),
            gateway: config.gateway.name.as_str().into(),
        })))
    }

    /// Whether they could be sent as configured.
    pub(crate) fn check(config: &Config, home: &Home) -> Result<(), TracesError> {
        if config.traces.endpoint.is_empty() {
            return Ok(());
        }
        Collector::new(&config.traces, home).map(drop)
    }

    /// Begins a connection's trace, or does not.
    fn of_connection(&self, section: &TracesSection) -> Option<Context> {
        self.begin(&self.connections, section.connections, section.per_second)
    }

    /// The same of a message's.
    fn of_message(&self, section: &TracesSection) -> Option<Context> {
        self.begin(&self.messages, section.messages, section.per_second)
    }

    /// By its share, and by how many are begun.
    fn begin(&self, begun: &Mutex<Bucket>, share: f64, per_second: usize) -> Option<Context> {
        // From 0 to below 1: a share of 1 is everything, a share of 0 nothing.
        if fastrand::f64() >= share {
            return None;
        }
        let (rate, now) = (Rate::per_second(per_second, per_second), nanos(clock::now().monotonic));
        let may = begun.lock().unwrap_or_else(PoisonError::into_inner).try_take(rate, now);
        if !may {
            self.counters.dropped(Dropped::OverRate, 1);
            return None;
        }
        Context::root()
    }

    /// A trace, or a part of one, has ended.
    fn put(&self, spans: Vec<Span>) {
        let how_many = spans.len();
        if !self.queue.push(spans) {
            self.counters.dropped(Dropped::QueueFull, how_many);
        }
    }

    /// What is measured of them; also where there are none.
    pub(crate) fn collect(traces: Option<&Arc<Self>>, page: &mut Page) {
        match traces {
            Some(traces) => traces.counters.collect(page, traces.queue.len()),
            None => TraceCounters::default().collect(page, 0),
        }
    }
}
