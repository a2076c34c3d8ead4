//! A new key on its way to the device.

use super::{Output, Session};
use crate::ids::KeyVersion;
use crate::time::Moment;

impl Session {
    /// The first message that is signed with the pending key says that the device holds it.
    pub(super) fn confirm_key(&mut self, version: KeyVersion) {
        if self.grant.pending.as_ref().is_some_and(|pending| pending.version == version) && !self.confirmed {
            (self.handed_out, self.confirmed) = (Some(version), true);
            self.outputs.push_back(Output::Confirmed(version));
        }
    }

    /// Says `rekey` where a key is pending: once a session, and only to whom has shown the key before.
    pub(super) fn hand_out_key(&mut self, now: Moment) {
        let Some(pending) = self.grant.pending.as_ref().filter(|_| self.proven) else { return };
        if self.handed_out != Some(pending.version) {
            let rekey = pending.rekey();
            (self.handed_out, self.confirmed) = (Some(rekey.version), false);
            self.say("rekey", &rekey, now);
        }
    }
}
