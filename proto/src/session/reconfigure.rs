//! The gateway's own configuration has changed while the session lives.

use std::sync::Arc;

use super::{Session, Settings};
use crate::limits::Limits;
use crate::time::Moment;

impl Session {
    /// Other limits and settings from now on. The device is told what of `welcome` has changed; subscriptions that it has
    /// stay, also where a new session could not make as many, and strikes that it has earned count by the new window.
    pub fn reconfigure(&mut self, limits: Limits, settings: Arc<Settings>, now: Moment) {
        if self.closing.is_some() {
            return;
        }
        self.settings = settings;
        if self.grant.limits != limits {
            let was = self.grant.clone();
            self.grant.limits = limits;
            self.take_limits(was.limits, now);
            self.untold.get_or_insert_with(|| Box::new(was));
            self.tell_changes(now);
        }
        self.tick(now);
    }

    /// The limits of the grant are others than they were.
    pub(super) fn take_limits(&mut self, was: Limits, now: Moment) {
        self.usage.set(&self.grant.limits, now.monotonic);
        if was.heartbeat != self.grant.limits.heartbeat {
            // Its silence so far was one that the old heartbeat allowed.
            self.heard = now.monotonic;
        }
    }
}
