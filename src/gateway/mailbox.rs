//! What the rest of the gateway tells a session: bounded, and gathered until the session looks.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use doorward_proto::close::Close;
use doorward_proto::downlink::Message;
use doorward_proto::session::{Grant, Receipt};
use doorward_proto::time::NumericDate;
use doorward_proto::verdict::Refusal;
use tokio::sync::Notify;

use crate::sink::Stored;

/// Messages of subscriptions that wait for one session; one more and it reads too slowly.
const MAX_DELIVERIES: usize = 256;
/// Bytes of them; one alone may be larger.
pub(crate) const MAX_DELIVERY_BYTES: usize = 256 << 10;

/// What became of a publish.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It is durable.
    Stored(Stored),
    /// Nothing of it was kept; trying again may help.
    Unavailable(Receipt),
    /// The database refuses this very message.
    Unstorable(Receipt),
    /// It will never be answered: the session is not the device's newest, or the device is not active.
    Fenced,
}

/// What waits for a session. It stays empty, and without memory, while nothing happens.
#[derive(Debug, Default)]
pub(crate) struct Mail {
    /// Fates of publishes. Never more than the session has undecided.
    pub(crate) outcomes: Vec<Outcome>,
    /// What the device may do now: only the newest word counts.
    pub(crate) grant: Option<Box<Grant>>,
    /// What has become of its `renew`: one at a time.
    pub(crate) renewal: Option<Box<Renewed>>,
    /// The gateway goes by another configuration.
    pub(crate) reconfigured: bool,
    /// The session ends. The first reason stands.
    pub(crate) close: Option<Ending>,
}

/// The answer to a `renew`, by its `seq`.
#[derive(Debug)]
pub(crate) struct Renewed {
    pub(crate) reference: u64,
    /// The chain, PEM, and the leaf's end; or the refusal, in words too, and when to ask again.
    pub(crate) answer: Result<(String, NumericDate), (Refusal, String, Option<u64>)>,
}

/// How a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ending {
    /// Why.
    pub(crate) close: Close,
    /// When to come back, in seconds.
    pub(crate) retry_after: Option<u64>,
    /// Publishes under way are answered first.
    pub(crate) gently: bool,
}

impl Ending {
    /// At once.
    pub(crate) fn now(close: Close) -> Self {
        Self { close, retry_after: None, gently: false }
    }
}

/// A session's mailbox.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    inside: Mutex<Inside>,
    notify: Notify,
    /// The session ends at once: asked before every frame.
    over: AtomicBool,
}

#[derive(Debug, Default)]
struct Inside {
    mail: Mail,
    /// What its subscriptions brought, until the session has room for it.
    deliveries: VecDeque<Arc<Message>>,
    delivery_bytes: usize,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Inside> {
        // Every change to the mail is one assignment or push: a panic elsewhere leaves it whole.
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that waits, but for what subscriptions brought.
    pub(crate) fn take(&self) -> Mail {
        std::mem::take(&mut self.lock().mail)
    }

    /// Whether the session is to end before another frame is looked at.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// The next message of a subscription.
    pub(crate) fn next_delivery(&self) -> Option<Arc<Message>> {
        let mut inside = self.lock();
        let message = inside.deliveries.pop_front();
        inside.delivery_bytes -= message.as_deref().map_or(0, bytes);
        if inside.deliveries.is_empty() {
            inside.deliveries = VecDeque::new();
        }
        message
    }

    /// Returns when something may be waiting.
    pub(crate) async fn mail(&self) {
        self.notify.notified().await;
    }

    /// The fate of a publish. The session is woken by [`Mailbox::wake`], once for many.
    pub(crate) fn put_outcome(&self, outcome: Outcome) {
        self.lock().mail.outcomes.push(outcome);
    }

    /// Wakes the session.
    pub(crate) fn wake(&self) {
        self.notify.notify_one();
    }

    /// What the device may do now.
    pub(crate) fn put_grant(&self, grant: Grant) {
        self.lock().mail.grant = Some(Box::new(grant));
        self.wake();
    }

    /// The answer to its `renew`.
    pub(crate) fn put_renewal(&self, renewed: Renewed) {
        self.lock().mail.renewal = Some(Box::new(renewed));
        self.wake();
    }

    /// The gateway goes by another configuration now.
    pub(crate) fn put_reconfigured(&self) {
        self.lock().mail.reconfigured = true;
        self.wake();
    }

    /// A message of a subscription.
    pub(crate) fn put_delivery(&self, message: Arc<Message>) {
        let mut inside = self.lock();
        let waiting = inside.delivery_bytes + bytes(&message);
        let fits = waiting <= MAX_DELIVERY_BYTES || inside.deliveries.is_empty();
        if inside.deliveries.len() < MAX_DELIVERIES && fits {
            inside.delivery_bytes = waiting;
            inside.deliveries.push_back(message);
        } else {
            inside.mail.close.get_or_insert(Ending::now(Close::SlowReader));
        }
        drop(inside);
        self.wake();
    }

    /// The end. A hard ending takes the place of a gentle one, otherwise the first stands.
    pub(crate) fn put_ending(&self, ending: Ending) {
        let mut inside = self.lock();
        if inside.mail.close.is_none_or(|was| was.gently && !ending.gently) {
            inside.mail.close = Some(ending);
        }
        if !ending.gently {
            self.over.store(true, Ordering::SeqCst);
        }
        drop(inside);
        self.wake();
    }
}

/// What a message takes while it waits.
fn bytes(message: &Message) -> usize {
    message.data.get().len() + message.ch.len() + size_of::<Message>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_subscription_brings_is_bounded_by_bytes_too() {
        let message = |length: usize| {
            Arc::new(Message {
                ch: "a".to_owned(),
                data: serde_json::value::to_raw_value(&"x".repeat(length)).unwrap(),
                id: doorward_proto::ids::MessageId::new("m").unwrap(),
                from: doorward_proto::ids::DeviceId::new("d").unwrap(),
            })
        };
        let mailbox = Mailbox::default();
        // One alone may be larger than all together.
        mailbox.put_delivery(message(2 * MAX_DELIVERY_BYTES));
        assert_eq!(mailbox.take().close, None);
        assert!(mailbox.next_delivery().is_some());
        for _ in 0..4 {
            mailbox.put_delivery(message(MAX_DELIVERY_BYTES / 5));
        }
        assert_eq!(mailbox.take().close, None);
        mailbox.put_delivery(message(MAX_DELIVERY_BYTES / 4));
        assert_eq!(mailbox.take().close, Some(Ending::now(Close::SlowReader)));
        while mailbox.next_delivery().is_some() {}
        assert_eq!(mailbox.lock().delivery_bytes, 0);
    }
}
