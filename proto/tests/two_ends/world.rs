//! A device, a gateway, a network that loses and delays, a store that stalls, and somebody who sends again what he has
//! seen. Everything is drawn from one seed; time is a number.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use doorward_proto::channel::Filter;
use doorward_proto::close::Close;
use doorward_proto::downlink::Message;
use doorward_proto::ids::MessageId;
use doorward_proto::limits::Rate;
use doorward_proto::link::{Bounds, Event as Brought, Link, Outgoing};
use doorward_proto::session::{Output, Session};
use doorward_proto::time::{Moment, NumericDate};
use doorward_proto::verdict::{Refusal, Verdict};

use super::store::{self, Fate, Job, Store};
use super::support::{DEVICE, Stored, at_duration, device, grant, keyring, payload, settings};

const MESSAGES: usize = 200;

/// Until then things go wrong; afterwards all must come right.
const TROUBLE: Duration = Duration::from_secs(600);

#[path = "adversary.rs"]
mod adversary;

use adversary::Captured;

enum Event {
    Publish,
    Connect,
    Cut,
    Adversary,
    Up { connection: u64, frame: String, honest: bool },
    Down { connection: u64, frame: String, honest: bool },
    Ping(u64),
    Pong(u64),
    Closed(u64),
    Done(Job),
}

/// What became of a `seq` at the gateway.
enum Fact {
    Answered,
    Undecided,
    Refused,
    Kept(MessageId),
}

struct Connection {
    session: Session,
    facts: BTreeMap<u64, Fact>,
    /// A byte stream: nothing overtakes what was sent before it.
    up_clear: Duration,
    down_clear: Duration,
    /// The device has gone, and the gateway may not know it yet.
    severed: bool,
}

/// How often things happened.
pub(crate) type Tally = BTreeMap<&'static str, u64>;

pub(crate) struct World {
    random: fastrand::Rng,
    now: Duration,
    queue: BTreeMap<(Duration, u64), Event>,
    events: u64,
    link: Link,
    clock: (Duration, f64, Duration),
    rate: Rate,
    /// The longest time between two cuts, in milliseconds.
    quiet: u64,
    connections: BTreeMap<u64, Connection>,
    current: Option<u64>,
    store: Store,
    published: BTreeMap<MessageId, (Box<str>, Box<str>)>,
    denied: BTreeSet<MessageId>,
    acked: BTreeSet<MessageId>,
    refused: BTreeSet<MessageId>,
    captured: Vec<Captured>,
    overheard: Vec<String>,
    to_publish: usize,
    tally: Tally,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let bounds = Bounds { outbox: 4096, window: random.usize(1..64), max_message_bytes: 4096 };
        let mut link = Link::new(device(), keyring(&[1]), bounds);
        if random.bool() {
            link.subscribe(Filter::new("devices/press-7/+").unwrap());
        }
        // From a clock that stands at 1970 to one that is a century ahead; from a true one to one that is far too fast.
        let wall = Duration::from_secs(random.choice([0, 1, 1 << 20, 1_763_724_000, 1 << 32]).unwrap());
        let pace = 1.0 + random.choice([0.0, 1e-4, 0.1, -0.3, 0.5, 1.0]).unwrap();
        let start = Duration::from_secs(random.u64(..1 << 30));
        let rate = match random.bool() {
            true => Rate { per_second: 100, burst: 100 },
            false => Rate { per_second: 5, burst: 10 },
        };
        let quiet = random.choice([10_000, 60_000, 1_000_000]).unwrap();
        let mut world = Self {
            random,
            now: Duration::ZERO,
            queue: BTreeMap::new(),
            events: 0,
            link,
            clock: (start, pace, wall),
            rate,
            quiet,
            connections: BTreeMap::new(),
            current: None,
            store: Store::default(),
            published: BTreeMap::new(),
            denied: BTreeSet::new(),
            acked: BTreeSet::new(),
            refused: BTreeSet::new(),
            captured: Vec::new(),
            overheard: Vec::new(),
            to_publish: MESSAGES,
            tally: Tally::new(),
        };
        world.later(0, Event::Connect);
        world.later(0, Event::Publish);
        world.later(20_000, Event::Cut);
        world.later(5_000, Event::Adversary);
        world
    }

    /// Plays the world to its end, and asserts what must hold then; the rest is asserted on the way.
    pub(crate) fn run(mut self) -> Tally {
        let mut steps = 0;
        loop {
            self.settle_down();
            if self.now > TROUBLE && self.to_publish == 0 && self.link.unanswered() == 0 {
                break;
            }
            assert!(self.now < TROUBLE * 4, "{} messages never got their answer", self.link.unanswered());
            steps += 1;
            assert!(steps < 100_000, "somebody spins");
            self.step();
        }
        let wanted: BTreeSet<_> =
            self.published.keys().filter(|id| !self.denied.contains(*id)).cloned().collect();
        assert_eq!(self.acked, wanted, "each message is acked");
        assert_eq!(self.refused, self.denied, "and each one that the policy denies is refused");
        assert_eq!(self.store.len(), wanted.len(), "nothing else is stored");
        self.tally
    }

    fn trouble(&self) -> bool {
        self.now < TROUBLE
    }

    fn later(&mut self, millis: u64, event: Event) {
        self.at(self.now + Duration::from_millis(millis), event);
    }

    fn at(&mut self, time: Duration, event: Event) {
        self.events += 1;
        self.queue.insert((time, self.events), event);
    }

    fn device_now(&self) -> Moment {
        let (start, pace, wall) = self.clock;
        let passed = self.now.mul_f64(pace);
        Moment { monotonic: start + passed, wall: NumericDate::since_epoch(wall + passed) }
    }

    /// To the next event or deadline, whichever comes first.
    fn step(&mut self) {
        let now = at_duration(self.now);
        let (start, pace, _) = self.clock;
        let link = self.link.deadline().map(|at| at.saturating_sub(start).div_f64(pace));
        let deadlines = self.connections.values().map(|c| c.session.deadline(now)).chain(link).min();
        let event = self.queue.first_key_value().map(|((time, _), _)| *time);
        let millisecond = Duration::from_millis(1);
        let deadline = deadlines.map(|at| at.max(self.now + millisecond));
        if let (Some(time), true) = (event, event <= deadline || deadline.is_none()) {
            self.now = time.max(self.now);
            let (_, event) = self.queue.pop_first().unwrap();
            self.happen(event);
        } else {
            self.now = deadline.unwrap();
        }
    }

    /// Both ends do all that they can do now.
    fn settle_down(&mut self) {
        let now = at_duration(self.now);
        let open: Vec<u64> = self.connections.keys().copied().collect();
        for connection in open {
            if let Some(c) = self.connections.get_mut(&connection) {
                if c.session.deadline(now) <= self.now {
                    c.session.tick(now);
                }
                c.session.flush(now);
            }
            self.gateway_acts(connection, 0);
        }
        let device_now = self.device_now();
        while let (Some(connection), Some(frame)) = (self.current, self.link.transmit(device_now)) {
            self.captured.push(Captured { connection, frame: frame.clone(), arrived: false });
            let time = self.transit(connection, true);
            self.at(time, Event::Up { connection, frame, honest: true });
        }
        while let Some(brought) = self.link.poll() {
            self.device_hears(brought);
        }
        if self.current.is_some() && self.link.is_silent(device_now) {
            self.leave();
        }
    }

    /// When what is sent now arrives: mostly soon, sometimes after a minute and a half.
    fn transit(&mut self, connection: u64, up: bool) -> Duration {
        let millis = match self.random.u32(..1000) {
            0 if self.trouble() => self.random.u64(40_000..75_000),
            1..=20 => self.random.u64(100..3_000),
            _ => self.random.u64(1..40),
        };
        let time = self.now + Duration::from_millis(millis);
        let Some(c) = self.connections.get_mut(&connection) else { return time };
        let clear = if up { &mut c.up_clear } else { &mut c.down_clear };
        *clear = time.max(*clear);
        *clear
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Publish => self.publish(),
            Event::Connect => self.connect(),
            Event::Cut if self.trouble() => {
                if self.current.is_some() {
                    count(&mut self.tally, "cuts", true);
                    self.leave();
                }
                let next = self.random.u64(1_000..self.quiet);
                self.later(next, Event::Cut);
            }
            Event::Adversary if self.trouble() => {
                self.attack();
                let next = self.random.choice([10, 1_000, 20_000, 40_000]).unwrap();
                self.later(next, Event::Adversary);
            }
            Event::Cut | Event::Adversary => {}
            Event::Up { connection, frame, honest } => self.arrive_up(connection, &frame, honest),
            Event::Down { connection, frame, honest } => self.arrive_down(connection, &frame, honest),
            Event::Ping(connection) => {
                if self.current == Some(connection) {
                    self.link.heard(self.device_now());
                    let time = self.transit(connection, true);
                    self.at(time, Event::Pong(connection));
                }
            }
            Event::Pong(connection) => {
                if let Some(c) = self.connections.get_mut(&connection).filter(|c| !c.severed) {
                    c.session.heard(at_duration(self.now));
                }
            }
            Event::Closed(connection) => {
                if self.current == Some(connection) {
                    self.leave();
                }
            }
            Event::Done(job) => self.written(job),
        }
    }

    fn publish(&mut self) {
        self.to_publish -= 1;
        count(&mut self.tally, "published", true);
        let denied = self.random.u32(..30) == 0;
        let channel = if denied { "devices/press-8/x" } else { "devices/press-7/temperature" };
        let data = format!("{{\"n\":{}}}", self.to_publish);
        let outgoing = Outgoing::new(self.random.u128(..).to_be_bytes(), channel, &data).unwrap();
        if denied {
            self.denied.insert(outgoing.id.clone());
        }
        self.published.insert(outgoing.id.clone(), (channel.into(), data.into()));
        self.link.publish(outgoing).unwrap();
        if self.to_publish > 0 {
            let pause = self.random.choice([0, 0, 0, 0, 0, 0, 10, 100, 1_000, 15_000]).unwrap();
            self.later(pause, Event::Publish);
        }
    }

    fn connect(&mut self) {
        count(&mut self.tally, "sessions", true);
        let connection = self.tally["sessions"];
        let mut grant = grant();
        grant.limits.rate = self.rate;
        let challenge = self.random.u128(..).to_be_bytes();
        let session = Session::open(grant, settings(), challenge, at_duration(self.now));
        let (up_clear, down_clear) = (self.now, self.now);
        self.connections.insert(
            connection,
            Connection { session, facts: BTreeMap::new(), up_clear, down_clear, severed: false },
        );
        self.current = Some(connection);
    }

    /// The device's end is gone. The gateway's may notice at once, or take what is still on its way, or hear nothing.
    fn leave(&mut self) {
        self.link.disconnected();
        if let Some(connection) = self.current.take() {
            match self.random.u32(..3) {
                0 => drop(self.connections.remove(&connection)),
                1 => {}
                _ => {
                    if let Some(c) = self.connections.get_mut(&connection) {
                        c.severed = true;
                    }
                }
            }
            let pause = self.random.u64(10..5_000);
            self.later(pause, Event::Connect);
        }
    }

    fn arrive_up(&mut self, connection: u64, frame: &str, honest: bool) {
        let Some(c) = self.connections.get_mut(&connection) else { return };
        if c.severed {
            return;
        }
        let verdict = c.session.receive(frame, at_duration(self.now));
        if !honest {
            assert!(verdict != Verdict::Accepted, "accepted what was captured or forged: {frame}");
            self.gateway_acts(connection, 0);
            return;
        }
        let claims = payload(frame);
        let seq = claims["seq"].as_u64().unwrap();
        let fact = match verdict {
            Verdict::Accepted if claims["op"] == "publish" => Fact::Undecided,
            Verdict::Accepted => Fact::Answered,
            Verdict::Refused(refusal) => {
                assert!(!refusal.is_strike(), "an honest device earns a strike: {refusal:?} for {claims}");
                count(&mut self.tally, "stale", refusal == Refusal::Stale);
                count(&mut self.tally, "rate limited", refusal == Refusal::RateLimited);
                Fact::Refused
            }
            Verdict::Ignored => return,
        };
        c.facts.insert(seq, fact);
        if let Some(seen) = self.captured.iter_mut().rev().find(|seen| seen.frame == frame) {
            seen.arrived = true;
        }
        self.gateway_acts(connection, seq);
        if self.trouble() && self.random.u32(..200) == 0 {
            count(&mut self.tally, "replays", true);
            self.later(0, Event::Up { connection, frame: frame.to_owned(), honest: false });
        }
    }

    /// Does what a session wants done. `seq` is that of the message it has just judged.
    fn gateway_acts(&mut self, connection: u64, seq: u64) {
        while let Some(output) = self.connections.get_mut(&connection).and_then(|c| c.session.poll()) {
            match output {
                Output::Send(frame) => {
                    self.check_acks(connection, &frame);
                    let time = self.transit(connection, false);
                    self.at(time, Event::Down { connection, frame, honest: true });
                }
                Output::Proven => {
                    let now = at_duration(self.now);
                    for (_, c) in self.connections.iter_mut().filter(|(other, _)| **other != connection) {
                        c.session.end(Close::Superseded, None, now);
                    }
                }
                Output::Store(accepted) => {
                    let (publish, receipt) = accepted.into_parts();
                    let trouble = self.trouble();
                    let (time, fate) = store::draw(&mut self.random, trouble);
                    self.at(self.now + time, Event::Done(Job { connection, publish, receipt, seq, fate }));
                }
                Output::Subscribe(_)
                | Output::Unsubscribe(_)
                | Output::Confirmed(_)
                | Output::Renew { .. } => {}
                Output::Ping => {
                    let time = self.transit(connection, false);
                    self.at(time, Event::Ping(connection));
                }
                Output::Close(close) => {
                    count(&mut self.tally, "strikes", close == Close::Strikes);
                    let time = self.transit(connection, false);
                    self.at(time, Event::Closed(connection));
                    self.connections.remove(&connection);
                }
            }
        }
    }

    /// Nothing is acked that is not stored, and no range covers what is refused or undecided.
    fn check_acks(&self, connection: u64, frame: &str) {
        let message = payload(frame);
        for range in message["acks"].as_array().into_iter().flatten() {
            for seq in range[0].as_u64().unwrap()..=range[1].as_u64().unwrap() {
                match self.connections[&connection].facts.get(&seq) {
                    Some(Fact::Kept(id)) => assert!(self.store.has(DEVICE, id), "acked, and not stored"),
                    Some(Fact::Answered) | None => {}
                    Some(Fact::Undecided) => panic!("acked while undecided: {seq}"),
                    Some(Fact::Refused) => panic!("acked though refused: {seq}"),
                }
            }
        }
    }

    fn written(&mut self, job: Job) {
        let Job { connection, publish, receipt, seq, fate } = job;
        let now = at_duration(self.now);
        if fate != Fate::Unavailable {
            let published = self.published.get(&publish.id).expect("stored what nobody published");
            assert_eq!(*published, (publish.channel.clone(), publish.data.clone()), "stored something else");
            if self.store.keep(&publish) {
                self.deliver(&publish);
            } else {
                count(&mut self.tally, "second copies", true);
            }
        }
        let Some(c) = self.connections.get_mut(&connection) else { return };
        if fate == Fate::Kept {
            c.facts.insert(seq, Fact::Kept(publish.id));
            c.session.settle(Stored(receipt));
        } else {
            let lost = fate != Fate::Unavailable;
            count(&mut self.tally, "lost outcomes", lost);
            count(&mut self.tally, "unavailable", !lost);
            c.facts.insert(seq, Fact::Refused);
            c.session.refuse(receipt, Refusal::Unavailable, "the store stalls", Some(1), now);
            if fate == Fate::Crash {
                self.connections.remove(&connection);
                self.at(self.now, Event::Closed(connection));
            }
        }
    }

    fn deliver(&mut self, publish: &doorward_proto::session::Publish) {
        let message = Message {
            ch: publish.channel.to_string(),
            data: serde_json::from_str(&publish.data).unwrap(),
            id: publish.id.clone(),
            from: publish.device.clone(),
        };
        for c in self.connections.values_mut() {
            if c.session.subscriptions().any(|filter| filter.matches(&message.ch)) {
                c.session.deliver(&message, at_duration(self.now));
            }
        }
    }

    fn arrive_down(&mut self, connection: u64, frame: &str, honest: bool) {
        if honest {
            self.overheard.push(frame.to_owned());
        }
        if self.current != Some(connection) {
            return;
        }
        let verdict = self.link.receive(frame, self.device_now());
        assert_eq!(verdict.is_ok(), honest, "the device judges {verdict:?} of {}", payload(frame));
        if !honest {
            count(&mut self.tally, "violations", true);
            self.leave();
        }
    }

    fn device_hears(&mut self, brought: Brought) {
        match brought {
            Brought::Acked(id) => {
                assert!(self.store.has(DEVICE, &id), "an ack for what is not stored");
                assert!(self.acked.insert(id), "a second ack for one message");
            }
            Brought::Refused { id, refusal, detail } => {
                assert!(self.denied.contains(&id), "given up: {refusal:?} {detail}");
                self.refused.insert(id);
            }
            Brought::Message(message) => {
                count(&mut self.tally, "delivered", true);
                let (channel, data) = &self.published[&message.id];
                assert_eq!((&*message.ch, message.data.get()), (&**channel, &**data));
                assert!(self.store.has(DEVICE, &message.id));
            }
            _ => {}
        }
    }
}

fn count(tally: &mut Tally, what: &'static str, happened: bool) {
    *tally.entry(what).or_default() += u64::from(happened);
}
