//! Sends what waits, one request after the other. Whether a collector takes it is nobody's concern but this task's.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::collector::{Answer, Collector};
use super::span::attribute;
use super::wire::{ExportRequest, Resource, ResourceSpans, Scope, ScopeSpans, Value};
use super::{Dropped, Span, Traces};
use crate::clock;

/// How often what waits is sent, however little it is.
const EVERY: Duration = Duration::from_secs(1);
/// How often a request is tried.
const TRIES: u32 = 4;
/// Before the second try, where the collector does not say when; before each further one twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// A line about the collector is written no more often.
const SAID_EVERY: Duration = Duration::from_secs(60);
/// How long an ending gateway waits for what has not been sent.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);

/// A task that sends traces.
pub(crate) struct Exporting {
    task: JoinHandle<()>,
    stop: CancellationToken,
    traces: Arc<Traces>,
}

impl Exporting {
    /// Begins. `None` where another has begun: there is one for a gateway's life.
    pub(crate) fn start(traces: &Arc<Traces>) -> Option<Self> {
        let collector = traces.collector.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        info!(collector = collector.place(), "sending traces");
        let stop = CancellationToken::new();
        let exporter = Exporter { traces: Arc::clone(traces), collector, failing: false, said: None };
        let task = tokio::spawn(exporter.run(stop.clone()));
        Some(Self { task, stop, traces: Arc::clone(traces) })
    }

    /// Sends what is left, for as long as that may take.
    pub(crate) async fn end(mut self) {
        let before = self.traces.counters.lost();
        self.stop.cancel();
        let ended = tokio::time::timeout(FLUSH_WITHIN, &mut self.task).await;
        if ended.is_err() {
            self.task.abort();
        }
        if ended.is_err() || self.traces.counters.lost() > before {
            warn!("the collector did not take the last traces; the gateway ends without them");
        }
    }
}

struct Exporter {
    traces: Arc<Traces>,
    collector: Collector,
    failing: bool,
    /// When a line was last written, on the monotonic clock.
    said: Option<Duration>,
}

impl Exporter {
    async fn run(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = self.traces.queue.filled() => {}
                () = tokio::time::sleep(EVERY) => {}
                () = stop.cancelled() => {}
            }
            // Before the last look: what is put behind it has come too late.
            let last = stop.is_cancelled();
            loop {
                let spans = self.traces.queue.take();
                if spans.is_empty() {
                    break;
                }
                self.deliver(spans, &stop).await;
            }
            if last {
                return;
            }
        }
    }

    async fn deliver(&mut self, spans: Vec<Span>, stop: &CancellationToken) {
        let how_many = spans.len();
        let body = self.encode(spans);
        let mut pause = FIRST_PAUSE;
        for left in (0..TRIES).rev() {
            match self.collector.send(body.clone()).await {
                Answer::Taken { rejected, why } => {
                    let rejected = usize::try_from(rejected).unwrap_or(how_many).min(how_many);
                    self.traces.counters.sent(how_many - rejected);
                    self.traces.counters.dropped(Dropped::Rejected, rejected);
                    if rejected > 0 {
                        self.fails(&format!("it does not take all spans: {why}"));
                    } else if std::mem::take(&mut self.failing) {
                        let dropped = self.traces.counters.lost();
                        info!(
                            collector = self.collector.place(),
                            dropped, "the collector takes traces again"
                        );
                    }
                    return;
                }
                Answer::Refused(why) => {
                    self.traces.counters.dropped(Dropped::Rejected, how_many);
                    return self.fails(&why);
                }
                Answer::Away { why, retry_after } => {
                    self.fails(&why);
                    // An ending gateway does not wait for a better time.
                    if left == 0 || stop.is_cancelled() {
                        break;
                    }
                    tokio::select! {
                        () = tokio::time::sleep(retry_after.unwrap_or(pause)) => {}
                        () = stop.cancelled() => {}
                    }
                    pause *= 2;
                }
            }
        }
        self.traces.counters.dropped(Dropped::Undelivered, how_many);
    }

    /// Said when it begins, and not again while it lasts; a collector that comes and goes is a line a minute.
    fn fails(&mut self, why: &str) {
        let now = clock::now().monotonic;
        let may = self.said.is_none_or(|said| now.saturating_sub(said) >= SAID_EVERY);
        if !std::mem::replace(&mut self.failing, true) && may {
            self.said = Some(now);
            warn!(
                collector = self.collector.place(),
                reason = why,
                "the collector does not take traces: they wait up to traces.queue, then are dropped and counted \
                 (doorward_traces_dropped_total); devices notice nothing"
            );
        }
    }

    fn encode(&self, spans: Vec<Span>) -> Bytes {
        let version = env!("CARGO_PKG_VERSION");
        let text = |key, text: &str| attribute(key, Value::Text(text.to_owned()));
        let resource = Resource {
            attributes: vec![
                text("service.name", "doorward"),
                text("service.version", version),
                text("service.instance.id", &self.traces.gateway),
            ],
        };
        let scope = Scope { name: "doorward".to_owned(), version: version.to_owned() };
        let request = ExportRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(resource),
                scope_spans: vec![ScopeSpans { scope: Some(scope), spans }],
            }],
        };
        request.encode_to_vec().into()
    }
}
