//! A published message's way: judged, stored, acknowledged. Many messages share a transaction, which is a trace of its own that
//! they are linked with.

use std::sync::Arc;
use std::time::Duration;

use doorward_proto::verdict::Refusal;

use super::span::{Epoch, Times};
use super::{Context, Span, Traces};
use crate::clock;
use crate::gateway::sessions::Handle;
use crate::metrics::family::Label as _;
use crate::registry::{Fate, NewMessage};

/// A transaction names so many of its messages; there may be a thousand in it.
const MOST_LINKS: usize = 32;

/// Stored, but nobody was there to be told.
const UNACKED: &str = "unacked";

/// A message that was chosen to be traced. Dropped, it ends, as what it has come to.
#[derive(Debug)]
pub(crate) struct MessageTrace {
    traces: Arc<Traces>,
    context: Context,
    session: Arc<Handle>,
    /// The admission of its session, if that was traced.
    came: Option<Context>,
    epoch: Epoch,
    began: Duration,
    state: State,
}

#[derive(Debug)]
enum State {
    /// It may be no publish: then it leaves no trace.
    Judged,
    /// On its way to the store.
    Accepted(Publish),
    /// A transaction has been committed with it in it.
    Committed(Publish, Commit, Fate),
    /// Its session has made the ack.
    Acked(Publish, Commit, Fate),
    /// Nobody knows whether it is stored.
    Unknown(Publish),
}

/// What may be said of a publish. Its data is none of that.
#[derive(Debug)]
struct Publish {
    channel: Box<str>,
    bytes: usize,
    /// Since when.
    accepted: Duration,
}

/// A transaction that has been committed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Commit {
    context: Option<Context>,
    ended: Duration,
}

impl MessageTrace {
    pub(super) fn new(
        traces: &Arc<Traces>,
        context: Context,
        session: &Arc<Handle>,
        came: Option<Context>,
    ) -> Self {
        let now = clock::now();
        Self {
            traces: Arc::clone(traces),
            context,
            session: Arc::clone(session),
            came,
            epoch: Epoch::of(now),
            began: now.monotonic,
            state: State::Judged,
        }
    }

    /// It is a publish, and goes to the store.
    pub(crate) fn accepted(&mut self, message: &NewMessage) {
        self.state = State::Accepted(Publish {
            channel: message.channel.clone(),
            bytes: message.data.len(),
            accepted: clock::now().monotonic,
        });
    }

    /// A transaction was committed with it in it.
    pub(crate) fn committed(&mut self, commit: Commit, fate: Fate) {
        self.state = match std::mem::replace(&mut self.state, State::Judged) {
            State::Accepted(publish) => State::Committed(publish, commit, fate),
            other => other,
        };
    }

    /// Its session makes the ack now.
    pub(crate) fn acked(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Judged) {
            State::Committed(publish, commit, fate) => State::Acked(publish, commit, fate),
            other => other,
        };
    }

    /// Nobody knows whether it is stored.
    pub(crate) fn unknown(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Judged) {
            State::Accepted(publish) => State::Unknown(publish),
            other => other,
        };
    }

    /// It was refused when it was judged. Nothing of it may be believed but in whose session it came.
    pub(super) fn refused(mut self: Box<Self>, refusal: Refusal) {
        self.state = State::Judged;
        let times = self.times(self.began, clock::now().monotonic);
        let why = "the message was refused";
        let span = self
            .root(times.ended)
            .with("doorward.certificate.device", self.session.device.as_str())
            .failed(refusal.as_str(), why);
        let part = Span::part(self.context, "verify", times).failed(refusal.as_str(), why);
        self.traces.put(vec![span, part]);
    }

    fn times(&self, began: Duration, ended: Duration) -> Times {
        Times { epoch: self.epoch, began, ended }
    }

    fn root(&self, ended: Duration) -> Span {
        Span::root(self.context, "message", self.times(self.began, ended))
            .with("doorward.connection", &self.session.id)
            .linked(self.came)
    }

    fn part(&self, name: &str, began: Duration, ended: Duration) -> Span {
        Span::part(self.context, name, self.times(began, ended))
    }
}

impl Drop for MessageTrace {
    fn drop(&mut self) {
        let now = clock::now().monotonic;
        let (publish, commit, failed) = match std::mem::replace(&mut self.state, State::Judged) {
            State::Judged => return,
            State::Accepted(publish) => {
                (publish, None, Some(("not_stored", "nothing of the message was kept")))
            }
            State::Unknown(publish) => {
                (publish, None, Some(("unknown", "the store did not say whether it was kept")))
            }
            State::Committed(publish, commit, fate) => {
                let failed = match fate {
                    Fate::Stored | Fate::Duplicate => {
                        (UNACKED, "stored, and its session has ended before the ack")
                    }
                    Fate::Fenced | Fate::Unstorable => (fate.label(), "the store did not take the message"),
                };
                (publish, Some((commit, fate)), Some(failed))
            }
            State::Acked(publish, commit, fate) => (publish, Some((commit, fate)), None),
        };
        let mut root = self
            .root(now)
            .with("doorward.device", self.session.device.as_str())
            .with("messaging.destination.name", &publish.channel)
            .with_number("messaging.message.body.size", publish.bytes);
        let verify = self.part("verify", self.began, publish.accepted);
        let stored = commit.map_or(now, |(commit, _)| commit.ended);
        let mut store = self.part("store", publish.accepted, stored);
        let mut spans = Vec::with_capacity(4);
        if let Some((commit, fate)) = commit {
            store = store.with("doorward.fate", fate.label()).linked(commit.context);
            if failed.is_none() {
                spans.push(self.part("ack", commit.ended, now));
            }
        }
        if let Some((label, detail)) = failed {
            root = root.failed(label, detail);
            if label != UNACKED {
                store = store.failed(label, detail);
            }
        }
        spans.extend([root, verify, store]);
        self.traces.put(spans);
    }
}

impl Commit {
    /// A transaction of so many messages, with those of them that are traced: none of them, and it leaves no trace.
    pub(crate) fn new<'a>(
        traced: impl Iterator<Item = &'a MessageTrace>,
        messages: usize,
        began: Duration,
        ended: Duration,
    ) -> Self {
        let mut traced = traced.peekable();
        let Some(first) = traced.peek() else { return Self { context: None, ended } };
        let (traces, epoch) = (Arc::clone(&first.traces), first.epoch);
        let context = Context::root();
        if let Some(context) = context {
            let mut span = Span::own(context, "store.commit", Times { epoch, began, ended })
                .with_number("doorward.batch.messages", messages)
                .linked(traced.by_ref().take(MOST_LINKS).map(|trace| trace.context));
            span.dropped_links_count = u32::try_from(traced.count()).unwrap_or(u32::MAX);
            traces.put(vec![span]);
        }
        Self { context, ended }
    }
}
