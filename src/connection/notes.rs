//! What an operator is told of a session.

use super::Connection;
use crate::fold::{Kind, Sample};
use crate::gateway::events::Event;
use crate::registry::EventKind;

impl Connection {
    /// Whether a line of the log about this session is written now.
    pub(super) fn may_say(&self, kind: Kind, reason: &'static str) -> bool {
        let sample = || Sample::new(&self.handle.id, self.peer, self.handle.device.as_str());
        self.gateway.folds.may_say(&self.gateway.counters, kind, reason, sample)
    }

    /// Notes a security event of this session.
    pub(super) fn note(&self, kind: EventKind, detail: &str) {
        self.gateway.note(Event {
            kind,
            device: Some(&self.handle.device),
            reason: "",
            peer: &self.peer,
            detail: &format_args!("{detail}; session {}", self.handle.id),
        });
    }
}
