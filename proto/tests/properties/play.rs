//! A session and whatever may happen to it, drawn from bytes: frames of who holds a key and of who holds none, time that
//! passes and that is set, changes, a store that settles and refuses. After each step the session must have done what the
//! model says, and the device's end must have understood it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use doorward_proto::close::Close;
use doorward_proto::downlink::Message;
use doorward_proto::ids::{KeyVersion, MessageId};
use doorward_proto::key::{Key, Keyring};
use doorward_proto::limits::Rate;
use doorward_proto::link::Link;
use doorward_proto::schema::Schemas;
use doorward_proto::session::{Grant, Output, PendingKey, Receipt, Session, Settings};
use doorward_proto::time::{Moment, NumericDate};
use doorward_proto::verdict::{Refusal, Verdict};
use serde_json::Value;
use zeroize::Zeroizing;

use super::choices::Choices;
use super::model::{Expected, Leaky, Model, Operation, fits_form, open};
use super::support::{DEVICE, EPOCH, POLICY, Stored, device, grant, key, keyring, payload, policy, settings};

#[path = "frames.rs"]
pub(crate) mod frames;
#[path = "happenings.rs"]
mod happenings;

/// Longer stories say nothing that shorter ones do not.
const MOST_STEPS: usize = 400;
const STRIKE_WINDOW: Duration = Duration::from_secs(60);
/// What the default policy allows this device.
const ITS_OWN: &[&str] = &["devices/press-7"];
const TO_HEAR: &[&str] = &["devices/press-7", "fleets/hall"];

/// What became of a `seq` that was used up.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Undecided,
    /// To be acked with the next flush.
    Settled,
    Refused,
}

pub(crate) struct Play {
    session: Session,
    link: Link,
    model: Model,
    now: Moment,
    grant: Grant,
    /// The publishes that the store has not decided on.
    receipts: VecDeque<(Receipt, u64)>,
    fates: BTreeMap<u64, Fate>,
    acked: BTreeSet<u64>,
    /// Filters, each with the `seq` of its subscribe.
    subscriptions: BTreeMap<String, u64>,
    renewing: Option<u64>,
    renews_from: Duration,
    strikes: Vec<Duration>,
    most_strikes: usize,
    most_subscriptions: usize,
    /// Every frame that came, to come again.
    frames: Vec<String>,
    proven: bool,
    closed: bool,
    /// Publishes that were handed to the store since the last look.
    stored: Vec<(Receipt, [String; 3])>,
    /// `error` and `ref` of each reject since the last look.
    rejects: Vec<(String, Option<u64>)>,
    downlink: u64,
}

/// What a story came to: how often each thing happened.
pub(crate) type Tally = BTreeMap<&'static str, u64>;

/// Plays a story to its end.
pub(crate) fn play(bytes: &[u8]) -> Tally {
    let mut choices = Choices(bytes);
    let mut play = Play::begin(choices.byte());
    let mut tally = Tally::new();
    for _ in 0..MOST_STEPS {
        if choices.is_over() || play.closed {
            break;
        }
        let what = play.step(&mut choices);
        *tally.entry(what).or_default() += 1;
    }
    play.end();
    tally
}

/// The form of [`fits_form`] as a gateway brings one. It is asked last: for no channel that the policy denies.
#[derive(Debug)]
struct Form;

fn form() -> Arc<dyn Schemas> {
    Arc::new(Form)
}

impl Schemas for Form {
    fn check(&self, channel: &str, data: &str) -> Result<(), String> {
        assert!(channel == ITS_OWN[0] || channel.starts_with("devices/press-7/"), "asked for {channel}");
        if fits_form(channel, data) { Ok(()) } else { Err("it is an object".to_owned()) }
    }
}

fn moment(monotonic: Duration, wall: Duration) -> Moment {
    Moment { monotonic, wall: NumericDate::since_epoch(wall) }
}

impl Play {
    fn begin(kind: u8) -> Self {
        let now = moment(Duration::from_secs(1000), Duration::from_secs(EPOCH));
        let mut grant = grant();
        grant.limits.max_message_bytes = 2048;
        if kind & 1 == 1 {
            grant.limits.rate.burst = 5;
            grant.limits.rate.per_second = 2;
        }
        if kind & 64 == 64 {
            // Some three messages at once, and one in two seconds: fewer than the other rate lets through.
            grant.limits.bytes = Rate { per_second: 200, burst: 1000 };
        }
        grant.schemas = (kind & 128 == 128).then(form);
        if kind & 6 == 6 {
            grant.late = true;
            grant.grace_ends = Some(NumericDate::since_epoch(Duration::from_secs(EPOCH + 900)));
        }
        let mut settings = Settings::clone(&settings());
        assert_eq!(settings.strike_window, STRIKE_WINDOW);
        if kind & 24 != 24 {
            // Else most stories are short.
            grant.limits.strikes = 500;
        }
        if kind & 32 == 32 {
            settings.max_subscriptions = 1;
        }
        let (most_strikes, most_subscriptions) = (grant.limits.strikes, settings.max_subscriptions);
        let mut session = Session::open(grant.clone(), Arc::new(settings), [kind; 16], now);
        let Some(Output::Send(welcome)) = session.poll() else { panic!("no welcome") };
        let mut link = Link::new(device(), keyring(&[1, 2]), Default::default());
        link.receive(&welcome, now).expect("a welcome that the device takes");
        let sid = payload(&welcome)["sid"].as_str().expect("a sid").to_owned();
        let model = Model {
            device: DEVICE,
            sid,
            max_bytes: grant.limits.max_message_bytes,
            max_skew: grant.limits.max_skew,
            keys: vec![(1, [1; 32], None)],
            messages: Leaky::new(grant.limits.rate, now.monotonic),
            bytes: Leaky::new(grant.limits.bytes, now.monotonic),
            why: None,
            last: 0,
            late: grant.late,
            publish_below: ITS_OWN,
            formed: grant.schemas.is_some(),
        };
        Self {
            session,
            link,
            model,
            now,
            grant,
            receipts: VecDeque::new(),
            fates: BTreeMap::new(),
            acked: BTreeSet::new(),
            subscriptions: BTreeMap::new(),
            renewing: None,
            renews_from: Duration::ZERO,
            strikes: Vec::new(),
            most_strikes,
            most_subscriptions,
            frames: vec![welcome],
            proven: false,
            closed: false,
            stored: Vec::new(),
            rejects: Vec::new(),
            downlink: 1,
        }
    }

    fn step(&mut self, choices: &mut Choices<'_>) -> &'static str {
        match choices.below(32) {
            0..=15 => {
                let frame = self.frame(choices);
                self.receive(frame)
            }
            16..=18 => {
                let frame = self.frames[choices.below(self.frames.len().min(256))].clone();
                self.receive(frame);
                "replayed"
            }
            19 => {
                let frame = String::from_utf8_lossy(choices.piece()).into_owned();
                self.receive(frame)
            }
            20..=22 => self.pass(choices),
            23 => self.update(choices),
            24..=26 => self.decide(choices),
            27 => {
                self.session.flush(self.now);
                self.look();
                "flushes"
            }
            28 => {
                self.session.tick(self.now);
                self.look();
                "ticks"
            }
            29 => self.deliver(choices),
            30 => self.answer_renewal(choices),
            _ => self.close(choices),
        }
    }

    /// One frame comes: exactly one verdict, the model's.
    fn receive(&mut self, frame: String) -> &'static str {
        let (end, _) = certificate_end(&self.grant);
        let ignored = self.session.closing().is_some() || self.now.wall >= end;
        let too_long = frame.len() > self.model.max_bytes;
        let before = self.model.clone();
        let verdict = self.session.receive(&frame, self.now);
        if ignored {
            assert_eq!(verdict, Verdict::Ignored, "{frame}");
            self.look();
            return "ignored";
        }
        if too_long {
            assert_eq!(verdict, Verdict::Refused(Refusal::BadEnvelope));
            assert_eq!(self.session.closing(), Some(Close::TooBig));
            self.look();
            assert_eq!(self.rejects, [], "a message that is too long has no reject");
            return "too long";
        }
        let judgement = self.model.judge(&frame, self.now);
        let used = (self.model.last > before.last).then_some(self.model.last);
        let expected = match judgement.expected {
            Expected::Refused(refusal) => Err(refusal),
            Expected::Operation(operation) => self.act(operation, self.model.last),
        };
        match expected {
            Ok(()) => assert_eq!(verdict, Verdict::Accepted, "{frame}"),
            Err(refusal) => assert_eq!(verdict, Verdict::Refused(refusal), "{frame}"),
        }
        self.look();
        self.check_answer(expected, judgement.reference, used);
        if used.is_some() {
            assert!(self.proven, "a message that passed every check up to 'seq' proves the session (R-18)");
        }
        if self.frames.len() < 256 {
            self.frames.push(frame);
        }
        match expected {
            Ok(()) => "accepted",
            Err(Refusal::RateLimited) => self.model.why.unwrap_or("renews too often"),
            Err(refusal) => self.model.why.unwrap_or(refusal.as_str()),
        }
    }

    /// What follows from an operation that is well-formed, by what this session did before; what is kept of it.
    fn act(&mut self, operation: Operation, seq: u64) -> Result<(), Refusal> {
        match operation {
            Operation::Publish { .. } | Operation::Other => {}
            Operation::Subscribe(filter) => {
                let may = TO_HEAR.iter().any(|root| {
                    filter.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                });
                let full = self.subscriptions.len() >= self.most_subscriptions
                    && !self.subscriptions.contains_key(&filter);
                if !may || full || self.model.publish_below.is_empty() {
                    return Err(Refusal::Forbidden);
                }
                self.subscriptions.insert(filter, seq);
            }
            Operation::Unsubscribe(filter) => {
                self.subscriptions.remove(&filter);
            }
            Operation::Renew => {
                if self.renewing.is_some() || self.now.monotonic < self.renews_from {
                    return Err(Refusal::RateLimited);
                }
                self.renewing = Some(seq);
            }
        }
        Ok(())
    }

    /// The answer is the verdict: a reject that names it, or none; a message for the store, or none; strikes.
    fn check_answer(
        &mut self,
        expected: Result<(), Refusal>,
        reference: Option<Option<u64>>,
        used: Option<u64>,
    ) {
        let rejects = std::mem::take(&mut self.rejects);
        match expected {
            Ok(()) => assert_eq!(rejects, [], "what is accepted is not refused"),
            Err(refusal) => {
                let [(error, said)] = rejects.as_slice() else { panic!("one reject, not {rejects:?}") };
                assert_eq!(error, refusal.as_str());
                if let Some(reference) = reference {
                    assert_eq!(*said, reference, "'ref' of {error}");
                }
                if refusal.is_strike() {
                    self.strike();
                }
            }
        }
        let Some(seq) = used else {
            assert!(self.stored.is_empty(), "stored what was not accepted");
            return;
        };
        assert!(!self.fates.contains_key(&seq), "a 'seq' is used once");
        let stored = std::mem::take(&mut self.stored);
        let fate = match (expected, stored.into_iter().next()) {
            (Err(_), None) => Fate::Refused,
            (Ok(()), None) => Fate::Settled,
            (Ok(()), Some((receipt, _))) => {
                self.receipts.push_back((receipt, seq));
                Fate::Undecided
            }
            (Err(_), Some((_, publish))) => panic!("stored and refused: {publish:?}"),
        };
        if self.renewing == Some(seq) {
            // Its answer is the certificate.
            return;
        }
        self.fates.insert(seq, fate);
    }

    fn strike(&mut self) {
        self.strikes.retain(|at| self.now.monotonic.saturating_sub(*at) < STRIKE_WINDOW);
        self.strikes.push(self.now.monotonic);
        let over = self.strikes.len() >= self.most_strikes;
        assert_eq!(
            over,
            self.session.closing() == Some(Close::Strikes),
            "the last strike closes, and no other"
        );
    }

    /// Takes what the session wants done, as its caller does.
    fn look(&mut self) {
        while let Some(output) = self.session.poll() {
            assert!(!self.closed, "something comes after the close: {output:?}");
            match output {
                Output::Send(frame) => self.hear(&frame),
                Output::Proven => {
                    assert!(!self.proven && self.model.last > 0, "proven by what?");
                    self.proven = true;
                }
                Output::Store(accepted) => {
                    let (publish, receipt) = accepted.into_parts();
                    assert_eq!(publish.device, device());
                    let parts = [publish.id.to_string(), publish.channel.into(), publish.data.into()];
                    self.stored.push((receipt, parts));
                }
                Output::Confirmed(version) => {
                    assert_eq!(version.get(), 2, "the only one that is ever pending")
                }
                Output::Renew { reference, .. } => assert_eq!(self.renewing, Some(reference)),
                Output::Subscribe(filter) => assert!(self.subscriptions.contains_key(filter.as_str())),
                Output::Unsubscribe(_) | Output::Ping => {}
                Output::Close(close) => {
                    assert_eq!(self.session.closing(), Some(close));
                    self.closed = true;
                }
            }
        }
    }

    /// The device's end takes it, and a stranger reads in it what the gateway has decided.
    fn hear(&mut self, frame: &str) {
        self.link.receive(frame, self.now).expect("what the gateway says passes the device's checks");
        while self.link.poll().is_some() {}
        let keys: Vec<_> = (1..=2).map(|version| (version, bytes(version), None)).collect();
        let body = open(&keys, frame, self.now.wall).expect("signed by a key of the device");
        let said: Value = serde_json::from_slice(&body).expect("JSON");
        self.downlink += 1;
        assert_eq!(said["seq"].as_u64(), Some(self.downlink), "its own count, without gaps");
        assert_eq!((said["sid"].as_str(), said["aud"].as_str()), (Some(&*self.model.sid), Some(DEVICE)));
        match said["op"].as_str().expect("an operation") {
            "reject" => {
                let error = said["error"].as_str().expect("a word").to_owned();
                self.rejects.push((error, said["ref"].as_u64()));
            }
            "ack" => self.acks(&said["acks"]),
            "bye" => {}
            other => assert!(self.proven, "{other} to a session that is not proven (R-19)"),
        }
    }

    /// no range covers what is refused or undecided, and nothing is acked twice.
    fn acks(&mut self, ranges: &Value) {
        for range in ranges.as_array().expect("ranges") {
            let (first, last) = (range[0].as_u64().expect("a seq"), range[1].as_u64().expect("a seq"));
            for (seq, fate) in self.fates.range(first..=last) {
                assert_eq!(*fate, Fate::Settled, "{seq} is acked");
                assert!(self.acked.insert(*seq), "{seq} is acked twice");
            }
        }
    }

    /// Everything is decided: what was accepted is acked, and nothing else was.
    fn end(mut self) {
        while let Some((receipt, seq)) = self.receipts.pop_front() {
            self.fates.insert(seq, Fate::Settled);
            self.session.settle(Stored(receipt));
        }
        let open = self.session.closing().is_none();
        self.session.flush(self.now);
        self.look();
        let settled: BTreeSet<u64> =
            self.fates.iter().filter(|(_, fate)| **fate == Fate::Settled).map(|(seq, _)| *seq).collect();
        assert!(self.acked.is_subset(&settled));
        if open {
            assert_eq!(self.acked, settled, "each message that was accepted is acked");
        }
        assert_eq!(self.session.undecided(), 0);
        assert!(self.model.last == 0 || self.proven);
    }
}

/// The bytes of a version, as `support::key` makes them.
fn bytes(version: u32) -> [u8; 32] {
    [u8::try_from(version).expect("a small number"); 32]
}

fn certificate_end(grant: &Grant) -> (NumericDate, ()) {
    let end = match grant.grace_ends {
        Some(end) if grant.late => end,
        Some(end) => end.min(grant.certificate_expires),
        None => grant.certificate_expires,
    };
    (end, ())
}

/// A key of this version that is not the device's.
fn stranger(version: u32) -> Key {
    Key::new(KeyVersion::from_number(version).expect("a version"), &[0xEE; 32])
}
