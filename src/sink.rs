//! Where accepted publishes become durable: one writer, and a transaction that takes whatever has gathered while the
//! last one was synced. The `ack` is made from [`Stored`], and [`Stored`] from a commit alone.

mod lines;
mod queue;
mod size;
mod writer;

use std::sync::Arc;
use std::task::Waker;

use doorward_proto::downlink::Message;
use doorward_proto::session::{Accepted, Durable, Receipt};

use crate::clock;
use crate::gateway::sessions::Handle;
use crate::registry::{Claim, NewEvent, NewMessage};
use crate::route::Routes;
use crate::traces::MessageTrace;

pub(crate) use lines::Backlog;
pub(crate) use queue::{MAX_BYTES, NoRoom, Sink};
pub(crate) use size::Size;
pub(crate) use writer::{Writer, run};

/// Proof that a message outlives a crash: made where a commit has returned, and nowhere else.
#[derive(Debug)]
pub(crate) struct Stored {
    receipt: Receipt,
    trace: Option<Box<MessageTrace>>,
}

impl Durable for Stored {
    fn into_receipt(self) -> Receipt {
        if let Some(mut trace) = self.trace {
            trace.acked();
        }
        self.receipt
    }
}

/// A publish on its way to the store.
#[derive(Debug)]
pub(crate) struct Job {
    message: NewMessage,
    receipt: Receipt,
    session: Arc<Handle>,
    trace: Option<Box<MessageTrace>>,
    /// On the monotonic clock.
    since: std::time::Duration,
}

impl Job {
    /// An accepted publish of a session.
    pub(crate) fn new(
        accepted: Accepted,
        session: &Arc<Handle>,
        mut trace: Option<Box<MessageTrace>>,
    ) -> Self {
        let (publish, receipt) = accepted.into_parts();
        let message = NewMessage {
            device: publish.device,
            session: Arc::clone(&session.id),
            id: publish.id,
            channel: publish.channel,
            data: publish.data,
            at_ms: publish.at.map(|at| at.as_millis()),
            received_ms: publish.received.as_millis(),
        };
        if let Some(trace) = &mut trace {
            trace.accepted(&message);
        }
        Self { message, receipt, session: Arc::clone(session), trace, since: clock::now().monotonic }
    }

    /// Gives the receipt back: nothing was kept.
    pub(crate) fn into_receipt(self) -> Receipt {
        self.receipt
    }
}

impl lines::Waits for Job {
    fn backlog(&self) -> &Backlog {
        &self.session.backlog
    }

    /// What it holds in memory, about.
    fn bytes(&self) -> usize {
        self.message.data.len() + self.message.channel.len() + size_of::<Self>()
    }

    fn since(&self) -> std::time::Duration {
        self.since
    }
}
