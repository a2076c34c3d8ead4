//! A frame's way through the checks, each of which consumes what the one before made.

use super::{Accepted, Output, Publish, Session, Skew};
use crate::GATEWAY;
use crate::close::Close;
use crate::downlink::Reject;
use crate::envelope::{Envelope, Verified};
use crate::json;
use crate::policy::Who;
use crate::time::{Moment, NumericDate};
use crate::uplink::{Members, Operation};
use crate::verdict::Refusal;

/// A verified message of this session, in time and in sequence. Only [`Session::freshen`] makes one.
pub(super) struct Fresh<'a> {
    members: Members<'a>,
    seq: u64,
}

impl Fresh<'_> {
    pub(super) fn seq(&self) -> u64 {
        self.seq
    }
}

/// A refusal on its way out.
pub(super) struct No {
    pub(super) reference: Option<u64>,
    pub(super) refusal: Refusal,
    pub(super) detail: String,
    pub(super) retry_after: Option<u64>,
}

impl No {
    pub(super) fn new(reference: Option<u64>, refusal: Refusal, detail: impl Into<String>) -> Self {
        Self { reference, refusal, detail: detail.into(), retry_after: None }
    }
}

impl Session {
    /// The checks up to `seq`, which uses it up, then those after it.
    pub(super) fn judge(&mut self, frame: &str, now: Moment) -> Result<(), No> {
        let envelope = Envelope::split(frame).map_err(|why| No::new(None, Refusal::BadEnvelope, why))?;
        let Some(key) = self.grant.keyring.find(envelope.version(), now.wall) else {
            let detail = format!("key version {} is not one of this device's that hold", envelope.version());
            return Err(No::new(None, Refusal::BadKey, detail));
        };
        let version = envelope.version();
        let verified = envelope
            .verify(key)
            .map_err(|refusal| No::new(None, refusal, "the HMAC does not fit the key of this version"))?;
        let fresh = self.freshen(&verified, now)?;
        self.last_received = fresh.seq;
        if !self.proven {
            self.proven = true;
            self.outputs.push_back(Output::Proven);
            self.tell_changes(now);
        }
        self.confirm_key(version);
        self.hand_out_key(now);
        self.ask_to_renew(now);
        self.act(&fresh, frame.len(), now)
    }

    /// JSON, parties, session, time, sequence.
    fn freshen<'a>(&mut self, verified: &'a Verified, now: Moment) -> Result<Fresh<'a>, No> {
        let text = verified.text().map_err(|why| No::new(None, Refusal::BadMessage, why))?;
        let mut members = Members::default();
        members.read(text).map_err(|why| No::new(members.seq(), Refusal::BadMessage, why))?;
        let seq = members.seq();
        let no = |refusal, detail: String| Err(No::new(seq, refusal, detail));
        let missing =
            |what: &str| No::new(seq, Refusal::BadMessage, format!("'{what}' is missing or not a string"));

        let iss = members.iss.and_then(json::string).ok_or_else(|| missing("iss"))?;
        let aud = members.aud.and_then(json::string).ok_or_else(|| missing("aud"))?;
        if iss != self.grant.device.as_str() || aud != GATEWAY {
            return no(
                Refusal::WrongParty,
                format!("'iss' must be '{}' and 'aud' '{GATEWAY}'", self.grant.device),
            );
        }
        let sid = members.sid.and_then(json::string).ok_or_else(|| missing("sid"))?;
        if *sid != *self.sid {
            return no(
                Refusal::WrongSession,
                "'sid' is not the challenge of this session's welcome".to_owned(),
            );
        }
        let Some(iat) = members.iat.and_then(|raw| NumericDate::parse(raw.get())) else {
            return no(Refusal::BadMessage, "'iat' is missing or not a NumericDate".to_owned());
        };
        let way = now.monotonic.saturating_sub(self.opened);
        self.skew = Some(Skew::seen(self.skew, iat, now.wall, way));
        let off = iat.distance(now.wall);
        if off > self.grant.limits.max_skew {
            let side = if iat < now.wall { "behind" } else { "ahead of" };
            let detail = format!("'iat' is {:.3} s {side} the gateway's clock", off.as_secs_f64());
            return no(Refusal::Stale, detail);
        }
        let Some(seq) = seq else {
            return no(
                Refusal::BadMessage,
                "'seq' is missing or not a whole number from 1 to 2^53-1".to_owned(),
            );
        };
        if seq <= self.last_received {
            let detail = format!("'seq' {seq} is not greater than {}", self.last_received);
            return Err(No::new(Some(seq), Refusal::Replayed, detail));
        }
        Ok(Fresh { members, seq })
    }

    /// Rates, the operation's members, policy, schemas; then the operation.
    fn act(&mut self, fresh: &Fresh<'_>, bytes: usize, now: Moment) -> Result<(), No> {
        let seq = fresh.seq;
        let no = |refusal, detail: &str| Err(No::new(Some(seq), refusal, detail));
        if let Err(over) = self.usage.message(bytes, now.monotonic) {
            let retry_after = Some(over.wait.as_secs() + 1);
            return Err(No { retry_after, ..No::new(Some(seq), Refusal::RateLimited, over.what) });
        }
        let operation =
            fresh.members.operation().map_err(|why| No::new(Some(seq), Refusal::BadMessage, why))?;
        if self.grant.late && !matches!(operation, Operation::Renew(_) | Operation::Hello) {
            return no(
                Refusal::Forbidden,
                "this certificate has expired: its session can do nothing but renew it",
            );
        }
        let who = Who { device: &self.grant.device, fleet: &self.grant.fleet };
        match operation {
            Operation::Publish { channel, .. } if !self.grant.policy.may_publish(who, &channel) => {
                return no(Refusal::Forbidden, "the policy denies publishing to this channel");
            }
            Operation::Publish { id, channel, data, at } => {
                if let Some(schemas) = &self.grant.schemas
                    && let Err(why) = schemas.check(&channel, data.get())
                {
                    return no(Refusal::BadMessage, &why);
                }
                self.undecided += 1;
                let publish = Publish {
                    device: self.grant.device.clone(),
                    id,
                    channel: channel.into_owned().into(),
                    data: data.get().into(),
                    at,
                    received: now.wall,
                };
                self.outputs.push_back(Output::Store(Accepted::new(fresh, publish)));
                return Ok(());
            }
            Operation::Subscribe(filter) => {
                if let Err(why) = self.subscribe(filter, seq) {
                    return no(Refusal::Forbidden, why);
                }
            }
            Operation::Unsubscribe(filter) => self.unsubscribe(filter),
            Operation::Renew(csr) => return self.renew(seq, csr.into(), now),
            // No command is waiting for it: acked and dropped.
            Operation::Hello | Operation::Result => {}
        }
        self.settled.push(seq);
        Ok(())
    }

    pub(super) fn reject(&mut self, no: No, now: Moment) {
        let No { reference, refusal, detail, retry_after } = no;
        let error = refusal.as_str().to_owned();
        self.say("reject", &Reject { reference, error, detail, retry_after }, now);
        if refusal.is_strike() {
            let (most, window) = (self.grant.limits.strikes, self.settings.strike_window);
            if self.usage.strike(most, window, now.monotonic) {
                self.end(Close::Strikes, None, now);
            }
        }
    }
}
