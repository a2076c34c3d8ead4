//! The writer: one transaction after the other.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use doorward_proto::close::Close;
use doorward_proto::session::Receipt;
use serde_json::value::RawValue;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::queue::{Queue, Taken};
use super::size::Size;
use super::{Handle, Job, Message, Routes, Sink, Stored};
use crate::clock;
use crate::gateway::Sight;
use crate::gateway::mailbox::{Ending, Outcome};
use crate::registry::{Batch, Claim, Fate, NewMessage, Registry, RegistryError};
use crate::traces::{Commit, MessageTrace};

/// Messages for subscriptions before those who get them have a turn to send them on: far fewer than a mailbox holds.
const MAX_DELIVERED: u32 = 64;
/// A claim that is older has waited for something: an outage, or a gap after which it is made again.
const LATE: Duration = Duration::from_secs(1);
/// Between tries of a transaction that failed.
const RETRY: Duration = Duration::from_millis(200);

/// What the writer works with.
pub(crate) struct Writer {
    pub(crate) sink: Arc<Sink>,
    pub(crate) registry: Arc<dyn Registry>,
    pub(crate) routes: Arc<Routes>,
    /// Told when a session has lost its place without knowing, and when the store has failed.
    pub(crate) look_at_feed: Arc<Notify>,
    pub(crate) sight: Arc<Sight>,
    /// Of the next transaction.
    pub(crate) size: Size,
    /// When the store last failed, on the monotonic clock, if it has not written since.
    pub(crate) failed: Option<Duration>,
    /// Whether it has been said that it does not write: each change is a line in the log.
    pub(crate) away: bool,
}

/// Who waits for a message of a batch, in the order of its messages.
struct Waiting {
    receipt: Receipt,
    session: Arc<Handle>,
    since: Duration,
    trace: Option<Box<MessageTrace>>,
}

/// A transaction that has been committed.
struct Committed {
    fates: Vec<Fate>,
    began: Duration,
    ended: Duration,
}

/// Writes until it is stopped and nothing waits any more.
pub(crate) async fn run(mut writer: Writer, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = writer.sink.filled() => {}
            () = stop.cancelled() => {
                if writer.sink.is_empty() {
                    return;
                }
            }
        }
        // Before anything is taken: what is in the queue at the end of a transaction is judged by the next one.
        writer.sink.begin();
        let taken = writer.sink.take(writer.size);
        let goes_on = writer.write(taken, &stop).await;
        writer.sink.end();
        if !goes_on {
            return;
        }
    }
}

impl Writer {
    /// Writes one batch, trying again while that may help. `false` when it was stopped before the store came back.
    async fn write(&mut self, taken: Taken, stop: &CancellationToken) -> bool {
        let Taken { jobs, mixed, rest } = taken;
        let (mut batch, mut waiting) = split(jobs, rest);
        // Once a commit's outcome is unknown it stays so until a try succeeds: nobody may be told that nothing was kept.
        let mut ambiguous = false;
        loop {
            leave_out_the_ended(&mut batch, &mut waiting);
            let error = match self.try_to_write(&batch, mixed).await {
                Ok(committed) => {
                    self.sink.set_stalled(false);
                    self.failed = None;
                    self.sink.set_trouble(None);
                    if std::mem::take(&mut self.away) {
                        info!("the store is back");
                    }
                    self.tell(committed, std::mem::take(&mut batch.messages), waiting).await;
                    return true;
                }
                Err(error) => error,
            };
            if !std::mem::replace(&mut self.away, true) {
                if matches!(error, RegistryError::Unknown(_) | RegistryError::Unavailable(_)) {
                    warn!(%error, "the store does not write; publishes wait, then are refused as unavailable");
                } else {
                    error!(%error, "the store refuses to write; publishes wait, then are refused as unavailable");
                }
            }
            ambiguous |= matches!(error, RegistryError::Unknown(_));
            let now = clock::now().monotonic;
            let old = now.saturating_sub(self.sink.patience());
            if ambiguous && waiting.iter().any(|w| w.since < old) {
                lost(std::mem::take(&mut waiting));
                batch.messages.clear();
                ambiguous = false;
            } else if !ambiguous && waiting.iter().any(|w| w.since < old) {
                self.sink.set_stalled(true);
                unavailable(waiting.drain(..).map(|w| (w.receipt, w.session)));
                batch.messages.clear();
            }
            self.give_up_the_old();
            if waiting.is_empty() {
                // Nobody waits for this batch: what else it held joins the next one, where newer word replaces it.
                self.sink.put_back(batch);
                tokio::time::sleep(RETRY).await;
                return !stop.is_cancelled();
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// While a transaction takes its time, what has queued up behind it is not left without an answer. What has waited out
    /// an outage is stored only once the feed has been read: whoever was cut off meanwhile has no word in it any more.
    async fn try_to_write(&mut self, batch: &Batch, mixed: bool) -> Result<Committed, RegistryError> {
        if self.sight.is_away() || self.failed.is_some_and(|at| !self.sight.looked_since(at)) {
            self.look_at_feed.notify_one();
            return Err(RegistryError::Unavailable("its changes have not been read yet".to_owned()));
        }
        let registry = Arc::clone(&self.registry);
        let began = clock::now().monotonic;
        let mut writing = registry.write(batch);
        let written = loop {
            match tokio::time::timeout(RETRY, &mut writing).await {
                Ok(written) => break written,
                Err(_) => self.give_up_the_old(),
            }
        };
        let now = clock::now().monotonic;
        match &written {
            Ok(_) => {
                let took = now.saturating_sub(began);
                self.size.after(batch, mixed, took);
                self.sink.meters.committed(took);
            }
            Err(error) => {
                self.sink.set_trouble(Some(error.to_string()));
                self.sink.meters.failed();
                self.failed = Some(now);
            }
        }
        written.map(|fates| Committed { fates, began, ended: now })
    }

    /// Nothing was kept of what has waited too long for its turn.
    fn give_up_the_old(&self) {
        let old = clock::now().monotonic.saturating_sub(self.sink.patience());
        let old = self.sink.take_older(old);
        if !old.is_empty() {
            self.sink.set_stalled(true);
        }
        unavailable(old.into_iter().map(|job| (job.receipt, job.session)));
    }

    async fn tell(&self, committed: Committed, messages: Vec<NewMessage>, waiting: Vec<Waiting>) {
        let Committed { fates, began, ended } = committed;
        let traced = waiting.iter().filter_map(|waiting| waiting.trace.as_deref());
        let commit = Commit::new(traced, messages.len(), began, ended);
        let mut woken: Option<Arc<Handle>> = None;
        let mut wake = |session: Option<Arc<Handle>>| {
            if let Some(last) = std::mem::replace(&mut woken, session) {
                last.mailbox.wake();
            }
        };
        let mut last: Option<Arc<Handle>> = None;
        let deliver = !self.routes.is_empty();
        let mut suspect = false;
        let mut delivered = 0;
        let now = clock::now().monotonic;
        for ((fate, message), Waiting { receipt, session, since, mut trace }) in
            fates.into_iter().zip(messages).zip(waiting)
        {
            self.sink.meters.settled(fate, now.saturating_sub(since));
            if let Some(trace) = &mut trace {
                trace.committed(commit, fate);
            }
            let outcome = match fate {
                Fate::Stored | Fate::Duplicate => Outcome::Stored(Stored { receipt, trace }),
                Fate::Unstorable => Outcome::Unstorable(receipt),
                Fate::Fenced => {
                    session.suspect.store(true, Ordering::SeqCst);
                    suspect = true;
                    Outcome::Fenced
                }
            };
            if deliver && fate == Fate::Stored {
                self.deliver(message);
                delivered += 1;
            }
            session.mailbox.put_outcome(outcome);
            if !last.as_ref().is_some_and(|last| Arc::ptr_eq(last, &session)) {
                wake(last.replace(session));
            }
            if delivered == MAX_DELIVERED {
                delivered = 0;
                tokio::task::yield_now().await;
            }
        }
        wake(last);
        wake(None);
        if suspect {
            self.look_at_feed.notify_one();
        }
    }

    fn deliver(&self, message: NewMessage) {
        // The session has checked the text: it is JSON.
        let Ok(data) = RawValue::from_string(message.data.into_string()) else { return };
        self.routes.deliver(&Arc::new(Message {
            ch: message.channel.into_string(),
            data,
            id: message.id,
            from: message.device,
        }));
    }
}

fn split(jobs: Vec<Job>, queue: Queue) -> (Batch, Vec<Waiting>) {
    let (messages, waiting) = jobs
        .into_iter()
        .map(|Job { message, receipt, session, since, trace }| {
            (message, Waiting { receipt, session, since, trace })
        })
        .unzip();
    let late = clock::utc() - LATE;
    let batch = Batch {
        claims: queue.claims.into_values().map(|claim| Claim { late: claim.at < late, ..claim }).collect(),
        messages,
        seen: queue.seen.into_iter().map(|(device, (session, at))| (device, session, at)).collect(),
        releases: queue.releases.into_iter().collect(),
        events: queue.events,
    };
    (batch, waiting)
}

/// Nothing is stored of a session whose end has been decided while its publishes waited. Nobody is told: it is over; what
/// an unknown commit has stored all the same stays, and the device's next try finds it.
fn leave_out_the_ended(batch: &mut Batch, waiting: &mut Vec<Waiting>) {
    if !waiting.iter().any(|w| w.session.mailbox.is_over()) {
        return;
    }
    let (messages, kept) = std::mem::take(&mut batch.messages)
        .into_iter()
        .zip(std::mem::take(waiting))
        .filter(|(_, w)| !w.session.mailbox.is_over())
        .unzip();
    (batch.messages, *waiting) = (messages, kept);
}

/// Nothing of these was kept.
fn unavailable(waiting: impl Iterator<Item = (Receipt, Arc<Handle>)>) {
    for (receipt, session) in waiting {
        session.mailbox.put_outcome(Outcome::Unavailable(receipt));
        session.mailbox.wake();
    }
}

/// Nobody knows what became of these, and nobody may say: their sessions end, and their devices ask again under the
/// same ids.
fn lost(waiting: Vec<Waiting>) {
    for Waiting { session, trace, .. } in waiting {
        if let Some(mut trace) = trace {
            trace.unknown();
        }
        session.mailbox.put_ending(Ending::now(Close::Internal));
    }
}
