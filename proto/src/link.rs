//! The device's half: what it has said and not yet seen answered, over as many sessions as it takes.
//!
//! A publish stays in the link until the gateway has answered for it. When a session ends, what was not answered is
//! signed anew in the next one under the same `id`; the gateway stores it once.

mod outbox;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::value::RawValue;

use crate::channel::Filter;
use crate::downlink::{Bye, Certificate, Claims, Command, Downlink, Message, Reject, Rekey, Rotate, Welcome};
use crate::envelope::Envelope;
use crate::ids::{DeviceId, MessageId};
use crate::key::{Key, Keyring};
use crate::time::{Moment, NumericDate};
use crate::uplink::{CommandStatus, MAX_SEQ};
use crate::verdict::Refusal;
use crate::{GATEWAY, json};

pub use outbox::Outgoing;
use outbox::{Body, Pending};

/// How often a message that was `stale` is signed again with the time that the refusal told.
const STALE_RETRIES: u8 = 3;

/// What the gateway brought.
#[derive(Debug, Clone)]
pub enum Event {
    /// The session stands.
    Welcome(Welcome),
    /// The limits of the session, as they are now.
    Limits(Welcome),
    /// A publish is durable.
    Acked(MessageId),
    /// A publish was refused for good, or could not be sent at all.
    Refused {
        /// Its id.
        id: MessageId,
        /// Why.
        refusal: Option<Refusal>,
        /// In words.
        detail: String,
    },
    /// Another message of this device was refused: a subscribe, a result, or one that could not be told.
    Rejected(Reject),
    /// A subscription stands.
    Subscribed(Filter),
    /// What a subscription brings.
    Message(Message),
    /// An order.
    Command(Command),
    /// A new key, to be stored and then handed to [`Link::add_key`].
    Rekey(Rekey),
    /// A request to renew.
    Rotate(Rotate),
    /// A renewed certificate.
    Certificate(Certificate),
    /// [`Link::renew`] brings no certificate.
    NotRenewed {
        /// Why.
        refusal: Option<Refusal>,
        /// In words.
        detail: String,
    },
    /// The gateway is about to close.
    Bye(Bye),
}

/// A check of the device's own has failed: it closes with 4000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the gateway's message fails the device's check of {0}")]
pub struct Violation(pub &'static str);

/// The link holds as many unanswered messages as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("as many messages as may wait are waiting for an answer")]
pub struct Full;

/// What a link may hold.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Unanswered publishes, sent or not.
    pub outbox: usize,
    /// Publishes sent and not yet answered.
    pub window: usize,
    /// The longest message taken from the gateway, in bytes.
    pub max_message_bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { outbox: 1024, window: 64, max_message_bytes: 1 << 20 }
    }
}

/// The device's end.
#[derive(Debug)]
pub struct Link {
    device: DeviceId,
    keyring: Keyring,
    bounds: Bounds,
    session: Option<Session>,
    /// The gateway's time when it was last told, and this device's clock then.
    clock: Option<(NumericDate, Duration)>,
    filters: BTreeSet<Filter>,
    waiting: VecDeque<Pending>,
    sent: BTreeMap<u64, Pending>,
    events: VecDeque<Event>,
}

#[derive(Debug)]
struct Session {
    sid: String,
    welcome: Welcome,
    last_received: u64,
    last_sent: u64,
    heard: Duration,
    /// The certificate had expired when the session began: it can do nothing but renew.
    late: bool,
}

impl Link {
    /// A link with the keys that the device holds.
    #[must_use]
    pub fn new(device: DeviceId, keyring: Keyring, bounds: Bounds) -> Self {
        Self {
            device,
            keyring,
            bounds,
            session: None,
            clock: None,
            filters: BTreeSet::new(),
            waiting: VecDeque::new(),
            sent: BTreeMap::new(),
            events: VecDeque::new(),
        }
    }

    /// Whose link it is.
    #[must_use]
    pub fn device(&self) -> &DeviceId {
        &self.device
    }

    /// The welcome of the session, with the limits as they are now; `None` before it.
    #[must_use]
    pub fn welcome(&self) -> Option<&Welcome> {
        self.session.as_ref().map(|session| &session.welcome)
    }

    /// The challenge of the session.
    #[must_use]
    pub fn sid(&self) -> Option<&str> {
        self.session.as_ref().map(|session| &*session.sid)
    }

    /// What the gateway's clock says now, by what it said last; `None` before the first `welcome`.
    #[must_use]
    pub fn gateway_time(&self, now: Moment) -> Option<NumericDate> {
        let (time, then) = self.clock?;
        let since = now.monotonic.saturating_sub(then);
        Some(NumericDate::since_epoch(time.as_duration().saturating_add(since)))
    }

    /// How many publishes have no answer yet.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        let publishes = |pending: &&Pending| matches!(pending.body, Body::Publish(_));
        self.waiting.iter().filter(publishes).count() + self.sent.values().filter(publishes).count()
    }

    /// Another key version, stored by the caller: it signs from now on. A device with nothing to say shows it at once: until
    /// then the gateway cannot know that it has it.
    pub fn add_key(&mut self, key: Key) {
        self.keyring.add(key, None);
        if self.session.is_some() && self.waiting.is_empty() {
            self.waiting.push_back(Pending::new(Body::Hello));
        }
    }

    /// A publish, to be sent as soon as a session allows it.
    ///
    /// # Errors
    /// [`Full`] when the outbox is; nothing was taken.
    pub fn publish(&mut self, publish: Outgoing) -> Result<(), Full> {
        if self.waiting.len() + self.sent.len() >= self.bounds.outbox {
            return Err(Full);
        }
        self.waiting.push_back(Pending::new(Body::Publish(publish)));
        Ok(())
    }

    /// A subscription, renewed in each session until [`Link::unsubscribe`].
    pub fn subscribe(&mut self, filter: Filter) {
        if self.filters.insert(filter.clone()) && self.session.is_some() {
            self.waiting.push_back(Pending::new(Body::Subscribe(filter)));
        }
    }

    /// The end of a subscription.
    pub fn unsubscribe(&mut self, filter: &Filter) {
        if self.filters.remove(filter) && self.session.is_some() {
            self.waiting.push_back(Pending::new(Body::Unsubscribe(filter.clone())));
        }
    }

    /// The answer to a command.
    ///
    /// # Errors
    /// [`Full`] when the outbox is; nothing was taken.
    pub fn result(
        &mut self,
        id: MessageId,
        status: CommandStatus,
        data: Option<Box<RawValue>>,
    ) -> Result<(), Full> {
        if self.waiting.len() + self.sent.len() >= self.bounds.outbox {
            return Err(Full);
        }
        self.waiting.push_back(Pending::new(Body::Result { id, status, data }));
        Ok(())
    }

    /// Asks for a certificate in this session: `csr` is PKCS#10 in PEM. One that still waits is asked for no more. Without a
    /// session nothing happens, and with its end a request is forgotten.
    pub fn renew(&mut self, csr: &str) {
        if self.session.is_some() {
            self.waiting.retain(|pending| !matches!(pending.body, Body::Renew(_)));
            self.waiting.push_back(Pending::new(Body::Renew(csr.into())));
        }
    }

    /// The connection is gone. What has no answer waits for the next session.
    pub fn disconnected(&mut self) {
        self.session = None;
        let unanswered = std::mem::take(&mut self.sent).into_values();
        let mut waiting: VecDeque<Pending> = unanswered.filter(Pending::outlives_a_session).collect();
        waiting.extend(self.waiting.drain(..).filter(Pending::outlives_a_session));
        self.waiting = waiting;
    }

    /// Takes a text frame of the gateway, after the checks of R-16.
    ///
    /// # Errors
    /// [`Violation`]: close with 4000 and call [`Link::disconnected`].
    pub fn receive(&mut self, frame: &str, now: Moment) -> Result<(), Violation> {
        if frame.len() > self.bounds.max_message_bytes {
            return Err(Violation("its size"));
        }
        let envelope = Envelope::split(frame).map_err(|_| Violation("its envelope"))?;
        // The device accepts each version that it holds, whatever its own clock says.
        let key = self
            .keyring
            .find(envelope.version(), NumericDate::default())
            .ok_or(Violation("its key version"))?;
        let verified = envelope.verify(key).map_err(|_| Violation("its signature"))?;
        let text = verified.text().map_err(Violation)?;
        let claims: Claims = serde_json::from_str(text).map_err(|_| Violation("its claims"))?;
        if claims.iss != GATEWAY || claims.aud != self.device.as_str() {
            return Err(Violation("'iss' and 'aud'"));
        }
        if claims.sid.is_empty() || claims.sid.chars().count() > 64 {
            return Err(Violation("'sid'"));
        }
        if !(1..=MAX_SEQ).contains(&claims.seq) {
            return Err(Violation("'seq'"));
        }
        if let Some(session) = &mut self.session {
            if claims.sid != session.sid {
                return Err(Violation("'sid'"));
            }
            if claims.seq <= session.last_received {
                return Err(Violation("'seq'"));
            }
            session.last_received = claims.seq;
            session.heard = now.monotonic;
        }
        let operation = claims.operation(text).map_err(|_| Violation("its members"))?;
        self.take(operation, &claims, now)
    }

    /// Anything else came from the gateway: a ping, a pong.
    pub fn heard(&mut self, now: Moment) {
        if let Some(session) = &mut self.session {
            session.heard = now.monotonic;
        }
    }

    /// The next thing that the gateway brought.
    pub fn poll(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The next frame to send, signed for this session; `None` before its welcome, and while the window is full.
    pub fn transmit(&mut self, now: Moment) -> Option<String> {
        let iat = self.gateway_time(now)?;
        let session = self.session.as_mut()?;
        let key = self.keyring.newest()?;
        while self.sent.len() < self.bounds.window {
            // What a late session would refuse for good waits for the next one.
            let may_go = |pending: &Pending| !session.late || pending.body.may_be_late();
            let ready = self.waiting.iter().position(|one| one.not_before <= now.monotonic && may_go(one))?;
            let pending = self.waiting.remove(ready)?;
            let seq = session.last_sent + 1;
            let frame = key.sign(&pending.body.payload(self.device.as_str(), &session.sid, seq, iat));
            if frame.len() > session.welcome.max_message_bytes {
                // Sent, it would end this session with 1009, and every later one.
                self.events.extend(too_long(pending.body));
                continue;
            }
            session.last_sent = seq;
            self.sent.insert(seq, pending);
            return Some(frame);
        }
        None
    }

    /// When something is due: a retry ([`Link::transmit`] will have a frame), or the gateway has been silent for too
    /// long ([`Link::is_silent`] will say so).
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        let session = self.session.as_ref()?;
        let silent = session.heard + patience(&session.welcome);
        if self.sent.len() >= self.bounds.window {
            // Nothing can be sent before an answer makes room: a retry that is due would only wake its caller.
            return Some(silent);
        }
        let retries = self.waiting.iter().map(|pending| pending.not_before);
        Some(retries.filter(|at| *at > Duration::ZERO).fold(silent, Duration::min))
    }

    /// Whether nothing was heard for two heartbeats and a half: reconnect.
    #[must_use]
    pub fn is_silent(&self, now: Moment) -> bool {
        self.session
            .as_ref()
            .is_some_and(|session| now.monotonic >= session.heard + patience(&session.welcome))
    }

    fn take(&mut self, operation: Downlink, claims: &Claims, now: Moment) -> Result<(), Violation> {
        let Some(session) = &mut self.session else {
            let Downlink::Welcome(welcome) = operation else {
                return Err(Violation("the order: a session begins with 'welcome'"));
            };
            self.clock = Some((claims.iat, now.monotonic));
            self.begin(claims, welcome, now);
            return Ok(());
        };
        match operation {
            Downlink::Welcome(_) => return Err(Violation("the order: one 'welcome' a session")),
            Downlink::Limits(change) => {
                let limits = &mut session.welcome;
                limits.max_message_bytes = change.max_message_bytes.unwrap_or(limits.max_message_bytes);
                limits.max_skew = change.max_skew.unwrap_or(limits.max_skew);
                limits.heartbeat = change.heartbeat.unwrap_or(limits.heartbeat);
                limits.rate = change.rate.unwrap_or(limits.rate);
                limits.key = change.key.unwrap_or(limits.key);
                limits.certificate_expires = change.certificate_expires.unwrap_or(limits.certificate_expires);
                self.events.push_back(Event::Limits(limits.clone()));
            }
            Downlink::Ack(ack) => {
                for (first, last) in ack.acks {
                    self.acked(first, last)?;
                }
            }
            Downlink::Reject(reject) => self.rejected(reject, claims, now),
            Downlink::Command(command) => self.events.push_back(Event::Command(command)),
            Downlink::Message(message) => self.events.push_back(Event::Message(message)),
            Downlink::Rekey(rekey) => self.events.push_back(Event::Rekey(rekey)),
            Downlink::Rotate(rotate) => self.events.push_back(Event::Rotate(rotate)),
            Downlink::Certificate(certificate) => {
                self.sent.remove(&certificate.reference);
                self.events.push_back(Event::Certificate(certificate));
            }
            Downlink::Bye(bye) => self.events.push_back(Event::Bye(bye)),
            Downlink::Unknown => {}
        }
        Ok(())
    }

    fn begin(&mut self, claims: &Claims, welcome: Welcome, now: Moment) {
        let late = welcome.certificate_expires <= claims.iat;
        self.session = Some(Session {
            sid: claims.sid.clone(),
            welcome: welcome.clone(),
            last_received: claims.seq,
            last_sent: 0,
            heard: now.monotonic,
            late,
        });
        for pending in &mut self.waiting {
            (pending.not_before, pending.stale) = (Duration::ZERO, 0);
        }
        for filter in &self.filters {
            self.waiting.push_front(Pending::new(Body::Subscribe(filter.clone())));
        }
        if late || self.waiting.is_empty() {
            self.waiting.push_back(Pending::new(Body::Hello));
        }
        self.events.push_back(Event::Welcome(welcome));
    }

    fn acked(&mut self, first: u64, last: u64) -> Result<(), Violation> {
        if first > last {
            return Err(Violation("an ack's range"));
        }
        // One at a time: a range is as long as the other end says, what waits for it is bounded.
        while let Some(seq) = self.sent.range(first..=last).next().map(|(seq, _)| *seq) {
            match self.sent.remove(&seq).map(|pending| pending.body) {
                Some(Body::Publish(publish)) => self.events.push_back(Event::Acked(publish.id)),
                Some(Body::Subscribe(filter)) => self.events.push_back(Event::Subscribed(filter)),
                _ => {}
            }
        }
        Ok(())
    }

    fn rejected(&mut self, reject: Reject, claims: &Claims, now: Moment) {
        let refusal = Refusal::from_word(&reject.error);
        if matches!(refusal, Some(Refusal::Replayed | Refusal::WrongSession | Refusal::WrongParty)) {
            // Not about a message of this link's, whose `seq` it may share: somebody sent a captured one again. The
            // answer to this link's own is still to come.
            self.events.push_back(Event::Rejected(reject));
            return;
        }
        let pending = reject.reference.and_then(|seq| self.sent.remove(&seq));
        let Some(mut pending) = pending else {
            self.events.push_back(Event::Rejected(reject));
            return;
        };
        match refusal {
            Some(Refusal::Stale) if pending.stale < STALE_RETRIES => {
                self.clock = Some((claims.iat, now.monotonic));
                pending.stale += 1;
                self.waiting.push_front(pending);
            }
            Some(Refusal::RateLimited | Refusal::Unavailable) => {
                pending.not_before = now.monotonic + Duration::from_secs(reject.retry_after.unwrap_or(1));
                self.waiting.push_front(pending);
            }
            _ => match pending.body {
                Body::Publish(publish) => {
                    self.events.push_back(Event::Refused { id: publish.id, refusal, detail: reject.detail });
                }
                Body::Subscribe(filter) => {
                    self.filters.remove(&filter);
                    self.events.push_back(Event::Rejected(reject));
                }
                Body::Renew(_) => {
                    self.events.push_back(Event::NotRenewed { refusal, detail: reject.detail });
                }
                _ => self.events.push_back(Event::Rejected(reject)),
            },
        }
    }
}

fn too_long(body: Body) -> Option<Event> {
    let detail = "longer than the gateway's max_message_bytes".to_owned();
    match body {
        Body::Publish(publish) => Some(Event::Refused { id: publish.id, refusal: None, detail }),
        Body::Result { id, .. } => Some(Event::Refused { id, refusal: None, detail }),
        Body::Renew(_) => Some(Event::NotRenewed { refusal: None, detail }),
        Body::Hello | Body::Subscribe(_) | Body::Unsubscribe(_) => None,
    }
}

fn patience(welcome: &Welcome) -> Duration {
    // What the gateway says is bounded here: a wait of a year is a wait without end.
    Duration::try_from_secs_f64(welcome.heartbeat * 2.5)
        .unwrap_or(Duration::from_secs(75))
        .clamp(Duration::from_secs(1), Duration::from_secs(3600))
}

impl Outgoing {
    /// A publish under a random id that the caller drew: 128 bits as base64url.
    ///
    /// # Errors
    /// In words, where `data` is not JSON or the channel not a channel.
    pub fn new(id: [u8; 16], channel: &str, data: &str) -> Result<Self, String> {
        crate::channel::check_channel(channel).map_err(|error| error.to_string())?;
        let data: Box<RawValue> =
            serde_json::from_str(data).map_err(|error| format!("data is not JSON: {error}"))?;
        json::check(&data).map_err(|error| format!("data is not strict JSON: {error}"))?;
        let id = MessageId::new(&URL_SAFE_NO_PAD.encode(id)).map_err(|error| error.to_string())?;
        Ok(Self { id, channel: channel.into(), data, at: None })
    }
}
