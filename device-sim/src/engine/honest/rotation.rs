//! New certificates and keys, as a device takes them while it sends.

use std::time::Duration;

use doorward_client::renewal::{Act, Cause};
use doorward_client::{Credentials, Renew};
use doorward_proto::downlink::{Reject, Rekey};
use doorward_proto::link::Event;
use doorward_proto::time::NumericDate;

use super::{Device, End};
use crate::{clock, peek};

impl Device {
    /// Asks for a certificate when it is time to. `true` where the session is to end for another one.
    pub(super) fn rotates(&mut self, now: Duration) -> bool {
        match self.renewal.poll(now) {
            Some(Act::Ask(request)) => {
                self.link.renew(&request);
                false
            }
            Some(Act::Reconnect) => true,
            None => false,
        }
    }

    /// What the gateway says of it. `true` as above.
    pub(super) fn rotation(&mut self, event: Event) -> bool {
        let (time, now) = (self.gateway_time(), clock::now());
        match event {
            Event::Rotate(rotate) => self.renewal.rotate(&rotate, time, now),
            Event::Certificate(new) => return self.renewal.certificate(&new, time, now).is_some(),
            Event::NotRenewed { refusal, detail } => self.renewal.not_renewed(refusal, &detail, now),
            Event::Rekey(rekey) => self.rekey(&rekey),
            _ => {}
        }
        false
    }

    /// Before the first `welcome` nobody asks.
    pub(super) fn gateway_time(&self) -> NumericDate {
        self.link.gateway_time(self.moment()).unwrap_or_default()
    }

    fn rekey(&mut self, rekey: &Rekey) {
        if rekey.version <= self.key {
            return;
        }
        let credentials = &self.context.members[self.outcome.index].credentials;
        let key = match self.context.renewal_of(credentials).renew {
            Renew::Never => return,
            Renew::Stored => credentials.store_key(rekey),
            Renew::InMemory => Credentials::read_key(rekey).map(Some),
        };
        match key {
            Ok(Some(key)) => {
                self.link.add_key(key);
                self.key = rekey.version;
                self.outcome.rekeyed += 1;
            }
            Ok(None) => {}
            Err(_) => self.outcome.not_rotated += 1,
        }
    }

    /// A session is over: another certificate may be what it takes.
    pub(super) fn ended(&mut self, end: &End) {
        let (cause, words) = match end {
            End::Failed(error) => (Cause::from(error), error.to_string()),
            End::Ended(ended) => (Cause::from(ended), ended.to_string()),
            End::Done | End::Own(..) | End::Reconnect | End::Storm => (Cause::Other, String::new()),
        };
        if self.renewal.ended(cause, &words) {
            // What the gateway said of coming back was said of the other certificate.
            self.retry_after = None;
        }
    }

    /// The refusal of a request for a certificate is no refusal of a message.
    pub(super) fn note_request(&mut self, frame: &str) {
        if self.renewal.is_asked()
            && let Some(seq) = peek::renew(frame)
        {
            self.renewing = Some(seq);
        }
    }

    pub(super) fn is_of_renewal(&self, reject: &Reject) -> bool {
        self.renewing.is_some() && reject.reference == self.renewing
    }

    pub(super) fn count_rotation(&mut self) {
        let status = self.renewal.status().borrow().clone();
        self.outcome.renewed = status.renewed;
        self.outcome.not_rotated += status.failed;
    }
}
