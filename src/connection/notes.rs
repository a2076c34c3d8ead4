//! What an operator is told of a session.

use std::fmt;
use std::time::Duration;

use doorward_proto::time::Moment;
use doorward_proto::verdict::{Refusal, Verdict};
use tracing::debug;

use super::Connection;
use crate::fold::{Kind, Sample};
use crate::gateway::events::Event;
use crate::registry::EventKind;
use crate::skew::Off;

impl Connection {
    /// Whether a line of the log about this session is written now.
    pub(super) fn may_say(&self, kind: Kind, reason: &'static str) -> bool {
        let sample = || Sample::new(&self.handle.id, self.peer, self.handle.device.as_str());
        self.gateway.folds.may_say(&self.gateway.counters, kind, reason, sample)
    }

    /// Notes a security event of this session.
    pub(super) fn note(&self, kind: EventKind, detail: &dyn fmt::Display) {
        self.gateway.note(Event {
            kind,
            device: Some(&self.handle.device),
            reason: "",
            peer: &self.peer,
            detail: &format_args!("{detail}; session {}", self.handle.id),
        });
    }

    /// What a message of this length came to.
    pub(super) fn note_verdict(&mut self, verdict: Verdict, length: usize, now: Moment) {
        if verdict != Verdict::Accepted {
            self.pace.refused(length, self.session.limits(), now.monotonic);
        }
        match verdict {
            Verdict::Accepted => self.accepted(),
            Verdict::Refused(refusal) => self.refused(refusal),
            Verdict::Ignored => self.gateway.counters.ignored(),
        }
    }

    /// A message was refused.
    fn refused(&mut self, refusal: Refusal) {
        self.gateway.counters.rejected(refusal);
        self.pass.trail.message_refused(refusal);
        debug!(connection = %self.handle.id, device = %self.handle.device, error = refusal.as_str(), "message refused");
        if let Some(kind) = EventKind::of(refusal) {
            match (refusal, self.session.skew()) {
                (Refusal::Stale, Some(skew)) => self.note(kind, &Off(skew.last_ms)),
                _ => self.note(kind, &"a message was refused"),
            }
        }
        // A late session may do nothing but renew: what else it tries, a device does that has missed its time. And one
        // subscription too many breaks no policy.
        if !self.session.is_late() && !self.session.had_no_room() {
            let (section, proven) = (&self.live.config.quarantine, self.session.is_proven());
            self.gateway.offended(section, &self.handle, self.peer, proven, refusal);
        }
    }

    /// A message was accepted. Once a session: its clock is still let in, and may soon not be.
    fn accepted(&mut self) {
        self.gateway.counters.accepted();
        let Some(skew) = self.session.skew() else { return };
        let off = Duration::from_millis(skew.last_ms.unsigned_abs());
        if !self.said_skew && off > self.session.limits().max_skew / 2 {
            self.said_skew = true;
            self.note(EventKind::ClockSkew, &Off(skew.last_ms));
        }
    }
}
