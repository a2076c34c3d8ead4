//! A new certificate on its way to the device.

use std::time::Duration;

use super::{Grant, No, Output, Session};
use crate::downlink::{Certificate, Rotate};
use crate::time::{Moment, NumericDate};
use crate::verdict::Refusal;

/// When to ask again while an earlier request waits, and after it was answered, in seconds. Each costs a transaction of the
/// registry's; what cannot even be read is bounded by its strikes.
const PAUSE: u64 = 5;

impl Session {
    /// One request at a time: each is a signature of an issuer's.
    pub(super) fn renew(&mut self, seq: u64, csr: Box<str>, now: Moment) -> Result<(), No> {
        let pause = self.renews_from.saturating_sub(now.monotonic);
        let (detail, wait) = match self.renewing {
            Some(_) => ("an earlier 'renew' of this session has no answer yet", PAUSE),
            None if !pause.is_zero() => {
                ("this session has asked for a certificate already", pause.as_secs() + 1)
            }
            None => ("", 0),
        };
        if wait > 0 {
            return Err(No { retry_after: Some(wait), ..No::new(Some(seq), Refusal::RateLimited, detail) });
        }
        self.renewing = Some(seq);
        self.outputs.push_back(Output::Renew { reference: seq, csr });
        Ok(())
    }

    /// The certificate that a `renew` asked for: `chain` is PEM, leaf first.
    pub fn certify(&mut self, reference: u64, chain: &str, expires: NumericDate, now: Moment) {
        if self.renewing == Some(reference) && self.closing.is_none() {
            self.renewing = None;
            self.renews_from = now.monotonic + Duration::from_secs(PAUSE);
            self.say("certificate", &Certificate { reference, chain: chain.to_owned(), expires }, now);
        }
    }

    /// A `renew` that brings no certificate, or not now.
    pub fn refuse_renewal(
        &mut self,
        reference: u64,
        refusal: Refusal,
        detail: &str,
        retry_after: Option<u64>,
        now: Moment,
    ) {
        if self.renewing == Some(reference) && self.closing.is_none() {
            self.renewing = None;
            if !refusal.is_strike() {
                self.renews_from = now.monotonic + Duration::from_secs(retry_after.unwrap_or(PAUSE));
            }
            self.reject(No { retry_after, ..No::new(Some(reference), refusal, detail) }, now);
        }
    }

    /// The time of a late session does not begin anew with each word of the registry's.
    pub(super) fn keep_end(&self, grant: &mut Grant) {
        if self.grant.late {
            grant.grace_ends = grant.grace_ends.min(self.grant.grace_ends);
        }
    }

    /// When [`Session::tick`] has to ask: not before the session is proven, and again only where less time is left, or an
    /// operator has wished for it since.
    pub(super) fn asks_at(&self) -> Option<NumericDate> {
        let end = self.grant.certificate_end().0;
        let wish = self.grant.rotate_by;
        let asked = self.asked.is_some_and(|(by, wished)| by <= end && (wish.is_none() || wish == wished));
        self.grant.renew_from.filter(|_| self.proven && !asked)
    }

    /// Says `rotate` where it is time to.
    pub(super) fn ask_to_renew(&mut self, now: Moment) {
        if self.asks_at().is_some_and(|at| now.wall >= at) && self.closing.is_none() {
            let (end, wish) = (self.grant.certificate_end().0, self.grant.rotate_by);
            self.asked = Some((end, wish));
            // A wish that is late already is one for now.
            let by = wish.filter(|by| *by > now.wall).map_or(end, |by| by.min(end));
            self.say("rotate", &Rotate { what: "certificate".to_owned(), by }, now);
        }
    }
}
