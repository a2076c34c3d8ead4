//! A session goes by what its gateway goes by, also when that changes.

use std::sync::{Arc, PoisonError};

use doorward_proto::ids::FleetId;
use doorward_proto::limits::Limits;
use doorward_proto::session::Grant;
use doorward_proto::time::Moment;

use super::Connection;
use crate::gateway::{Gateway, Live};

/// The limits of a session by a configuration. Its WebSocket was made for messages so long, and takes none that are longer.
pub(super) fn limits(gateway: &Gateway, live: &Live, grant: &Grant, longest: usize) -> Limits {
    of_fleet(gateway, live, &grant.fleet, longest).unwrap_or(grant.limits)
}

fn of_fleet(gateway: &Gateway, live: &Live, fleet: &FleetId, longest: usize) -> Option<Limits> {
    let mut limits = gateway.granter.fleet_limits(fleet)?.over(live.limits);
    limits.max_message_bytes = limits.max_message_bytes.min(longest);
    Some(limits)
}

impl Connection {
    /// What the device may do has changed. The grant may have been made before the configuration changed: the limits are
    /// those of now, in whatever order the two have come.
    pub(super) fn update(&mut self, mut grant: Grant, now: Moment) {
        grant.limits = limits(&self.gateway, &self.live, &grant, self.longest);
        self.session.update(grant, now);
    }

    /// The gateway goes by another configuration.
    pub(super) fn reconfigure(&mut self, now: Moment) {
        self.live = self.gateway.live();
        let fleet = self.handle.fleet.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(limits) = of_fleet(&self.gateway, &self.live, &fleet, self.longest) {
            self.session.reconfigure(limits, Arc::clone(&self.live.settings), now);
        }
    }
}
