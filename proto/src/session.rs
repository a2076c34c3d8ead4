//! The gateway's half of a session: it decides, its caller does the I/O.
//!
//! A frame passes one check after the other, and each check consumes what the one before made:
//! `frame -> Envelope -> Verified -> Fresh -> Accepted`. The fields of each are private and each has one
//! constructor, so a check that is left out does not compile. An [`Accepted`] publish carries a [`Receipt`]; the
//! `ack` is made from that receipt alone, once a [`Durable`] proof brings it back.
//!
//! The session is a live value: [`Session::update`] changes what it may do, [`Session::end`] ends it. After the
//! decision to close no frame is looked at any more.

mod accepted;
mod grant;
mod judge;
mod output;
mod reconfigure;
mod rekey;
mod renew;
mod skew;
mod subscriptions;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

pub use accepted::{Accepted, Durable, Publish, Receipt};
pub use grant::{Grant, PendingKey, Settings};
pub use output::Output;
pub use skew::Skew;

use crate::GATEWAY;
use crate::channel::Filter;
use crate::close::Close;
use crate::downlink::{Ack, Bye, LimitsChange, Message, Signed};
use crate::ids::{DeviceId, KeyVersion};
use crate::limits::{Limits, Usage};
use crate::time::{Moment, NumericDate};
use crate::verdict::{Refusal, Verdict};

use judge::No;

/// The most ranges of one `ack`, which then has some 5 KB: it must not outgrow what the device takes.
const MAX_RANGES: usize = 100;

/// One session of one device, from its upgrade to its close.
#[derive(Debug)]
pub struct Session {
    grant: Grant,
    settings: Arc<Settings>,
    sid: Box<str>,
    proven: bool,
    closing: Option<Close>,
    /// The grant that the device was last told of, where it has changed.
    untold: Option<Box<Grant>>,
    /// The pending key version that this session has brought, or that the device has signed with.
    handed_out: Option<KeyVersion>,
    /// And whether the latter.
    confirmed: bool,
    /// The `renew` that waits for its certificate.
    renewing: Option<u64>,
    /// When the next one is taken, on the monotonic clock.
    renews_from: Duration,
    /// The end of the certificate, and the operator's wish, when this session asked the device to renew.
    asked: Option<(NumericDate, Option<NumericDate>)>,
    last_received: u64,
    last_sent: u64,
    usage: Usage,
    /// With the `seq` of the subscribe that made each.
    subscriptions: BTreeMap<Filter, u64>,
    /// The last message was one subscription too many.
    no_room: bool,
    settled: Vec<u64>,
    undecided: usize,
    skew: Option<Skew>,
    opened: Duration,
    heard: Duration,
    pinged: Duration,
    outputs: VecDeque<Output>,
}

impl Session {
    /// Opens a session with a fresh challenge of 128 random bits, and says `welcome`.
    #[must_use]
    pub fn open(grant: Grant, settings: Arc<Settings>, challenge: [u8; 16], now: Moment) -> Self {
        use base64::Engine as _;
        let sid = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(challenge);
        let mut session = Self {
            usage: Usage::new(&grant.limits),
            grant,
            settings,
            sid: sid.into(),
            proven: false,
            closing: None,
            untold: None,
            handed_out: None,
            confirmed: false,
            renewing: None,
            renews_from: Duration::ZERO,
            asked: None,
            last_received: 0,
            last_sent: 0,
            subscriptions: BTreeMap::new(),
            no_room: false,
            settled: Vec::new(),
            undecided: 0,
            skew: None,
            opened: now.monotonic,
            heard: now.monotonic,
            pinged: now.monotonic,
            outputs: VecDeque::new(),
        };
        let welcome = session.grant.welcome(&session.settings.gateway);
        session.say("welcome", &welcome, now);
        session
    }

    /// Whose session it is.
    #[must_use]
    pub fn device(&self) -> &DeviceId {
        &self.grant.device
    }

    /// Whether a signed message has proven it.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.proven
    }

    /// Why it is closing, if it is.
    #[must_use]
    pub fn closing(&self) -> Option<Close> {
        self.closing
    }

    /// Whether its certificate has expired, so that it may do nothing but renew it.
    #[must_use]
    pub fn is_late(&self) -> bool {
        self.grant.late
    }

    /// What it may cost.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.grant.limits
    }

    /// What goes with the device into its next session: all that it has used of its rates, and its strikes where they have
    /// closed this one, and it was proven: a thief of the certificate alone earns none for the device. Whoever was not closed for
    /// a few begins the next session without them.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let mut usage = self.usage.clone();
        if self.closing != Some(Close::Strikes) || !self.proven {
            usage.forget_strikes();
        }
        usage
    }

    /// Takes in what the device has used in other sessions: before the first frame, or when one of them ends by this one.
    pub fn take_in(&mut self, usage: &Usage, now: Moment) {
        self.usage.join(usage, now.monotonic);
    }

    /// How many publishes wait for their fate.
    #[must_use]
    pub fn undecided(&self) -> usize {
        self.undecided
    }

    /// How far the device's clock is off, once a message of this session has said so: one that is signed with a key of the device
    /// and carries this session's challenge, whether it was in time or not.
    #[must_use]
    pub fn skew(&self) -> Option<Skew> {
        self.skew
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Output> {
        let output = self.outputs.pop_front();
        if self.outputs.is_empty() {
            // An idle session keeps nothing that a busy one needed.
            self.outputs = VecDeque::new();
        }
        output
    }

    /// Judges a frame: exactly one verdict.
    pub fn receive(&mut self, frame: &str, now: Moment) -> Verdict {
        // The certificate's end is asked here too: a timer that fires late must not let a message in.
        if self.closing.is_some() || self.certificate_has_ended(now) {
            return Verdict::Ignored;
        }
        self.heard = now.monotonic;
        self.no_room = false;
        if frame.len() > self.grant.limits.max_message_bytes {
            self.end(Close::TooBig, None, now);
            return Verdict::Refused(Refusal::BadEnvelope);
        }
        match self.judge(frame, now) {
            Ok(()) => Verdict::Accepted,
            Err(no) => {
                let refusal = no.refusal;
                self.reject(no, now);
                Verdict::Refused(refusal)
            }
        }
    }

    /// Anything else was received: a ping, a pong.
    pub fn heard(&mut self, now: Moment) {
        self.heard = now.monotonic;
    }

    /// A publish is durable: its `ack` goes out with the next [`Session::flush`].
    pub fn settle(&mut self, proof: impl Durable) {
        self.undecided = self.undecided.saturating_sub(1);
        self.settled.push(proof.into_receipt().seq());
    }

    /// A publish could not be made durable, and nothing of it was kept.
    pub fn refuse(
        &mut self,
        receipt: Receipt,
        refusal: Refusal,
        detail: &str,
        retry_after: Option<u64>,
        now: Moment,
    ) {
        self.undecided = self.undecided.saturating_sub(1);
        if self.closing.is_none() {
            self.reject(No { retry_after, ..No::new(Some(receipt.seq()), refusal, detail) }, now);
        }
    }

    /// Says all the acks that have gathered, in one message.
    pub fn flush(&mut self, now: Moment) {
        if self.settled.is_empty() || self.closing.is_some() {
            return;
        }
        let mut settled = std::mem::take(&mut self.settled);
        settled.sort_unstable();
        let mut acks: Vec<(u64, u64)> = Vec::new();
        for seq in settled {
            match acks.last_mut() {
                Some((_, last)) if *last + 1 == seq => *last = seq,
                _ => acks.push((seq, seq)),
            }
        }
        for acks in acks.chunks(MAX_RANGES) {
            self.say("ack", &Ack { acks: acks.to_vec() }, now);
        }
    }

    /// Hands a published message to the device. Whether it subscribed is the caller's to know. What is longer than
    /// this device takes is left out: it would have to close over it.
    pub fn deliver(&mut self, message: &Message, now: Moment) {
        if self.closing.is_none() && self.proven {
            let frame = self.sign("message", message, now);
            if frame.len() <= self.grant.limits.max_message_bytes {
                self.outputs.push_back(Output::Send(frame));
            }
        }
    }

    /// What the device may do has changed.
    pub fn update(&mut self, mut grant: Grant, now: Moment) {
        if self.closing.is_some() {
            return;
        }
        if grant.keyring.find(self.grant.signer.version(), now.wall).is_none() {
            // The key that this session is signed with is worth nothing any more, in either direction. The device
            // holds no other for sure, so the last word is still signed with it.
            self.end(Close::Kicked, None, now);
            return;
        }
        if grant.late && !self.grant.late {
            // What is left to an expired certificate begins with a session of its own.
            self.end(Close::CertificateExpired, None, now);
            return;
        }
        self.keep_end(&mut grant);
        let was = std::mem::replace(&mut self.grant, grant);
        self.take_limits(was.limits, now);
        self.untold.get_or_insert_with(|| Box::new(was));
        self.tell_changes(now);
        self.hand_out_key(now);
        self.ask_to_renew(now);
        self.drop_denied_subscriptions(now);
        self.tick(now);
    }

    /// When [`Session::tick`] has something to do, on the monotonic clock.
    #[must_use]
    pub fn deadline(&self, now: Moment) -> Duration {
        let mut next = self.pinged + self.grant.limits.heartbeat;
        next = next.min(self.heard + self.grant.limits.patience());
        if !self.proven {
            next = next.min(self.opened + self.settings.proof_within);
        }
        let (mut end, _) = self.grant.certificate_end();
        end = self.asks_at().map_or(end, |at| end.min(at));
        let left = end.as_duration().saturating_sub(now.wall.as_duration());
        next.min(now.monotonic.saturating_add(left))
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Moment) {
        if self.closing.is_some() {
            return;
        }
        self.ask_to_renew(now);
        if self.certificate_has_ended(now) {
            // Closed.
        } else if !self.proven && now.monotonic >= self.opened + self.settings.proof_within {
            self.end(Close::Unproven, None, now);
        } else if now.monotonic >= self.heard + self.grant.limits.patience() {
            self.end(Close::Silent, None, now);
        } else if now.monotonic >= self.pinged + self.grant.limits.heartbeat {
            self.pinged = now.monotonic;
            self.outputs.push_back(Output::Ping);
        }
    }

    /// Ends the session: pending acks, `bye`, close. The first reason stands.
    pub fn end(&mut self, close: Close, retry_after: Option<u64>, now: Moment) {
        if self.closing.is_some() {
            return;
        }
        self.flush(now);
        if close.has_bye() {
            let retry_after = retry_after.or(match close {
                Close::Suspended => Some(3600),
                Close::Superseded => Some(60),
                _ => None,
            });
            self.say("bye", &Bye { reason: close.reason().to_owned(), retry_after }, now);
        }
        self.closing = Some(close);
        self.outputs.push_back(Output::Close(close));
    }

    /// Ends the session if its certificate holds no more.
    fn certificate_has_ended(&mut self, now: Moment) -> bool {
        let (end, close) = self.grant.certificate_end();
        let ended = now.wall >= end;
        if ended {
            self.end(close, None, now);
        }
        ended
    }

    /// Says `limits` where the device was told otherwise; not before it has proven itself.
    fn tell_changes(&mut self, now: Moment) {
        if !self.proven {
            return;
        }
        let change = self.untold.take().map(|told| self.grant.changes_since(&told)).unwrap_or_default();
        if change != LimitsChange::default() {
            self.say("limits", &change, now);
        }
    }

    fn say<B: serde::Serialize>(&mut self, op: &'static str, body: &B, now: Moment) {
        let frame = self.sign(op, body, now);
        self.outputs.push_back(Output::Send(frame));
    }

    fn sign<B: serde::Serialize>(&mut self, op: &'static str, body: &B, now: Moment) -> String {
        self.last_sent += 1;
        let message = Signed {
            iss: GATEWAY,
            aud: self.grant.device.as_str(),
            sid: &self.sid,
            seq: self.last_sent,
            iat: now.wall,
            op,
            body,
        };
        #[expect(clippy::expect_used, reason = "our own types have string keys and no failing Serialize")]
        let payload = serde_json::to_vec(&message).expect("a downlink message is JSON");
        self.grant.signer.sign(&payload)
    }
}
