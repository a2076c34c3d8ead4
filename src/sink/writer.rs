//! The writer: one transaction after the other.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use doorward_proto::close::Close;
use doorward_proto::session::Receipt;
use serde_json::value::RawValue;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::queue::Queue;
use super::{Handle, Message, Routes, Sink, Stored};
use crate::clock;
use crate::gateway::mailbox::{Ending, Outcome};
use crate::registry::{Batch, Fate, NewMessage, Registry, RegistryError};

/// Publishes of one transaction.
const MAX_BATCH: usize = 1024;
/// Messages for subscriptions before those who get them have a turn to send them on: far fewer than a mailbox holds.
const MAX_DELIVERED: u32 = 64;
/// Between tries of a transaction that failed.
const RETRY: Duration = Duration::from_millis(200);

/// What the writer works with.
pub(crate) struct Writer {
    pub(crate) sink: Arc<Sink>,
    pub(crate) registry: Arc<dyn Registry>,
    pub(crate) routes: Arc<Routes>,
    /// How long a publish may wait before it is `unavailable`.
    pub(crate) patience: Duration,
    /// Told when a session has lost its place without knowing.
    pub(crate) suspects: Arc<Notify>,
}

/// Who waits for a message of a batch, in the order of its messages.
struct Waiting {
    receipt: Receipt,
    session: Arc<Handle>,
    since: Duration,
}

/// Writes until it is stopped and nothing waits any more.
pub(crate) async fn run(writer: Writer, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = writer.sink.filled() => {}
            () = stop.cancelled() => {
                if writer.sink.is_empty() {
                    return;
                }
            }
        }
        let queue = writer.sink.take(MAX_BATCH);
        if !writer.write(queue, &stop).await {
            return;
        }
    }
}

impl Writer {
    /// Writes one batch, trying again while that may help. `false` when it was stopped before the store came back.
    async fn write(&self, queue: Queue, stop: &CancellationToken) -> bool {
        let (mut batch, mut waiting) = split(queue);
        // Once a commit's outcome is unknown it stays so until a try succeeds: nobody may be told that nothing was kept.
        let mut ambiguous = false;
        let mut warned = false;
        loop {
            let error = match self.registry.write(&batch).await {
                Ok(fates) => {
                    if warned {
                        warn!("the store is back");
                    }
                    self.tell(fates, std::mem::take(&mut batch.messages), waiting).await;
                    return true;
                }
                Err(error) => error,
            };
            if !warned {
                warned = true;
                warn!(%error, messages = batch.messages.len(), "the store does not write; publishes wait, then are refused as unavailable");
            }
            ambiguous |= matches!(error, RegistryError::Unknown(_));
            if !matches!(error, RegistryError::Unknown(_) | RegistryError::Unavailable(_)) {
                error!(%error, "the store refused a batch");
            }
            let now = clock::now().monotonic;
            let old = now.saturating_sub(self.patience);
            if ambiguous && waiting.iter().any(|w| w.since < old) {
                lost(std::mem::take(&mut waiting));
                batch.messages.clear();
                ambiguous = false;
            } else if !ambiguous && waiting.iter().any(|w| w.since < old) {
                unavailable(waiting.drain(..).map(|w| (w.receipt, w.session)));
                batch.messages.clear();
            }
            unavailable(self.sink.take_older(old).into_iter().map(|job| (job.receipt, job.session)));
            if waiting.is_empty() {
                // Nobody waits for this batch: what else it held joins the next one, where newer word replaces it.
                self.sink.put_back(batch);
                tokio::time::sleep(RETRY).await;
                return !stop.is_cancelled();
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn tell(&self, fates: Vec<Fate>, messages: Vec<NewMessage>, waiting: Vec<Waiting>) {
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
        for ((fate, message), Waiting { receipt, session, .. }) in
            fates.into_iter().zip(messages).zip(waiting)
        {
            let outcome = match fate {
                Fate::Stored | Fate::Duplicate => Outcome::Stored(Stored(receipt)),
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
            self.suspects.notify_one();
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

fn split(queue: Queue) -> (Batch, Vec<Waiting>) {
    let (messages, waiting) = queue
        .jobs
        .into_iter()
        .map(|job| (job.message, Waiting { receipt: job.receipt, session: job.session, since: job.since }))
        .unzip();
    let batch = Batch {
        claims: queue.claims.into_values().collect(),
        messages,
        seen: queue.seen.into_iter().map(|(device, (session, at))| (device, session, at)).collect(),
        releases: queue.releases.into_iter().collect(),
        events: queue.events,
    };
    (batch, waiting)
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
    for Waiting { session, .. } in waiting {
        session.mailbox.put_ending(Ending::now(Close::Internal));
    }
}
