//! What a connection carries of its traces: nothing but empty places where it has none.

use std::net::SocketAddr;
use std::sync::Arc;

use doorward_proto::close::Close;
use doorward_proto::ids::DeviceId;
use doorward_proto::verdict::Refusal;
use rustls::ServerConnection;

use super::admission::{Admission, End, Phase};
use super::{Context, MessageTrace};
use crate::gateway::sessions::Handle;
use crate::gateway::{Gateway, Live};
use crate::identity::Denied;

/// A connection's traces. Dropped, it ends the admission that has not ended: the peer is gone.
#[derive(Debug, Default)]
pub(crate) struct Trail {
    admission: Option<Box<Admission>>,
    /// The message that is judged now, if it was chosen.
    message: Option<Box<MessageTrace>>,
    /// The admission, for its messages to lead to.
    came: Option<Box<Context>>,
}

impl Trail {
    /// A connection begins to be let in.
    pub(crate) fn begin(gateway: &Gateway, connection: &Arc<str>, peer: SocketAddr) -> Self {
        let Some(traces) = &gateway.traces else { return Self::default() };
        let Some(context) = traces.of_connection(&gateway.live().config.traces) else {
            return Self::default();
        };
        Self {
            admission: Some(Box::new(Admission::new(traces, context, connection, peer))),
            message: None,
            came: Some(Box::new(context)),
        }
    }

    /// The next phase begins, and with it the last one ends.
    pub(crate) fn phase(&mut self, phase: Phase) {
        if let Some(admission) = &mut self.admission {
            admission.phase(Some(phase));
        }
    }

    /// The phase has ended, and none follows at once.
    pub(crate) fn pause(&mut self) {
        if let Some(admission) = &mut self.admission {
            admission.phase(None);
        }
    }

    /// TLS is through.
    pub(crate) fn secured(&mut self, tls: &ServerConnection) {
        if let Some(admission) = &mut self.admission {
            admission.secured(tls);
        }
    }

    /// Whom the certificate names. A device CA has signed it, and the peer has its key.
    pub(crate) fn named(&mut self, device: &DeviceId) {
        if let Some(admission) = &mut self.admission {
            admission.named(device);
        }
    }

    /// The device has shown its key: it is let in.
    pub(crate) fn proven(&mut self, device: &DeviceId) {
        self.end(End::Proven(device.clone()));
    }

    /// Its request was refused.
    pub(crate) fn refused(&mut self, denied: &Denied) {
        self.end(End::Refused(denied.problem, denied.detail.clone()));
    }

    /// It was ended otherwise: a word of this program, and more of them.
    pub(crate) fn failed(&mut self, label: &'static str, detail: &'static str) {
        self.end(End::Failed(label, detail));
    }

    /// Its session has ended; that counts where it was never proven.
    pub(crate) fn closed(&mut self, close: Close) {
        self.end(End::Closed(close));
    }

    fn end(&mut self, end: End) {
        if let Some(admission) = self.admission.take() {
            admission.end(end);
        }
    }

    /// A message has come, and is about to be judged.
    pub(crate) fn message(&mut self, gateway: &Gateway, live: &Live, session: &Arc<Handle>) {
        let Some(traces) = &gateway.traces else { return };
        // What was judged before and was no publish is forgotten here.
        self.message = traces.of_message(&live.config.traces).map(|context| {
            Box::new(MessageTrace::new(traces, context, session, self.came.as_deref().copied()))
        });
    }

    /// It was refused.
    pub(crate) fn message_refused(&mut self, refusal: Refusal) {
        if let Some(message) = self.message.take() {
            message.refused(refusal);
        }
    }

    /// It was accepted, and is a publish.
    pub(crate) fn publish(&mut self) -> Option<Box<MessageTrace>> {
        self.message.take()
    }
}

impl Drop for Trail {
    fn drop(&mut self) {
        self.failed("gone", "the peer went away");
    }
}
