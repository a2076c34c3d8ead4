//! The questions, in the order in which a gateway asks them.

use doorward_proto::ids::KeyVersion;
use doorward_proto::policy::{Action, Policy, Who};

use super::certificates::Refusal;
use super::{CLOCKS_DIFFER, Facts};
use crate::cli::output;
use crate::clock;
use crate::identity::{self, Denied, Problem};
use crate::registry::{DeviceStatus, KeyState, Record};
use crate::schema::SchemaSet;

/// What one question came to.
#[derive(Debug, Clone)]
pub(super) struct Check {
    pub(super) topic: &'static str,
    pub(super) state: State,
    pub(super) what: String,
    /// What mends it.
    pub(super) next: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// In order.
    Fine,
    /// In order, and worth a look.
    Note,
    /// It keeps the device out, or from publishing.
    Wrong(Bars),
    /// It cannot be asked from here.
    Unknown,
}

/// What a fault keeps the device from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bars {
    Connect,
    Publish,
}

impl State {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Fine => "ok",
            Self::Note => "note",
            Self::Wrong(_) => "wrong",
            Self::Unknown => "unknown",
        }
    }
}

impl Check {
    pub(super) fn new(topic: &'static str, state: State, what: impl Into<String>) -> Self {
        Self { topic, state, what: what.into(), next: None }
    }

    pub(super) fn fine(topic: &'static str, what: impl Into<String>) -> Self {
        Self::new(topic, State::Fine, what)
    }

    pub(super) fn next(self, next: impl Into<String>) -> Self {
        Self { next: Some(next.into()), ..self }
    }
}

const NO_CONNECT: State = State::Wrong(Bars::Connect);

impl Facts {
    /// All checks; the first that is wrong is what has to be mended first.
    pub(super) fn checks(&self, gateway: Option<&str>) -> Vec<Check> {
        let revoked = self.detail.summary.status == DeviceStatus::Revoked;
        let mut checks = vec![self.chain(), self.certificate()];
        // Nothing else is worth mending for one that is revoked for good.
        checks.insert(if revoked { 0 } else { 2 }, self.device());
        checks.extend([self.key(), self.device_clock(), self.policy(), self.schemas(), self.limits()]);
        checks.extend(self.gateways(gateway));
        checks.extend([self.session(), self.events(), self.clock()]);
        if revoked {
            // No command mends what belongs to it.
            checks.iter_mut().skip(1).for_each(|check| check.next = None);
        }
        checks
    }

    /// What the gateway would answer: its own words, not ours.
    pub(super) fn answer(&self) -> Option<Denied> {
        let judged = self.certificates.first()?;
        match &judged.refusal {
            Some(Refusal::InTls(_)) => None,
            Some(Refusal::Denied(denied)) => Some(denied.clone()),
            None => {
                let record = self.record.as_ref()?;
                let late = self.lateness();
                identity::judge_record(record, self.now, late)
                    .and_then(|()| identity::signs_with(record, None, self.now).map(drop))
                    .err()
            }
        }
    }

    fn lateness(&self) -> std::time::Duration {
        self.own.lateness(self.limits.as_ref().unwrap_or(&Default::default()))
    }

    fn id(&self) -> &str {
        self.detail.summary.id.as_str()
    }

    fn new_certificate(&self) -> String {
        format!("doorward device rotate-cert {} --out DIR", self.id())
    }

    fn chain(&self) -> Check {
        const TOPIC: &str = "chain";
        let door = match &self.door {
            Ok(door) => door,
            Err(why) => {
                let words = format!("whose certificates are let in cannot be asked here: {why}");
                return Check::new(TOPIC, State::Unknown, words)
                    .next("run it on the gateway's home (--home)");
            }
        };
        let Some(judged) = self.certificates.first() else {
            return Check::new(TOPIC, State::Note, "there is no certificate to follow");
        };
        match &judged.refusal {
            Some(Refusal::InTls(words)) => {
                let ca = &judged.row.issuer;
                let what = format!(
                    "certificate {} (signed by CA {ca}) is refused in TLS: {words}; trusted are: {}",
                    judged.row.serial,
                    door.cas()
                );
                Check::new(TOPIC, NO_CONNECT, what).next(format!(
                    "{} (a certificate by this home's CA), or name its CA in tls.device_cas of config.toml",
                    self.new_certificate()
                ))
            }
            _ => Check::fine(TOPIC, format!("leads to a CA of tls.device_cas ({})", door.cas())),
        }
    }

    fn certificate(&self) -> Check {
        const TOPIC: &str = "certificate";
        let Some(judged) = self.certificates.first() else {
            return Check::new(TOPIC, NO_CONNECT, "the device has no certificate")
                .next(self.new_certificate());
        };
        let row = &judged.row;
        let (serial, ends) = (&row.serial, output::time(row.not_after));
        match &judged.refusal {
            // Said by the chain.
            Some(Refusal::InTls(_)) => Check::new(TOPIC, State::Note, format!("{serial} until {ends}")),
            Some(refusal @ Refusal::Denied(_)) => {
                let what = format!("certificate {serial}: {}", refusal.words());
                Check::new(TOPIC, NO_CONNECT, what).next(self.new_certificate())
            }
            None if judged.late => {
                let until = clock::date(doorward_proto::time::NumericDate::since_epoch(
                    clock::numeric(row.not_after).as_duration().saturating_add(self.lateness()),
                ));
                let what = format!(
                    "certificate {serial} expired at {ends}; until {} it opens a session that can do nothing but renew it",
                    output::time(until)
                );
                Check::new(TOPIC, State::Wrong(Bars::Publish), what)
                    .next(format!("{}, or let the device renew it", self.new_certificate()))
            }
            None => self.certificate_that_holds(serial, &ends),
        }
    }

    fn certificate_that_holds(&self, serial: &str, ends: &str) -> Check {
        const TOPIC: &str = "certificate";
        let Some(judged) = self.certificates.first() else { return Check::fine(TOPIC, "-") };
        if let Some(grace) = judged.row.valid_until {
            let what = format!(
                "{serial} has been superseded and holds until its grace ends at {}",
                output::time(grace)
            );
            return Check::new(TOPIC, State::Note, what).next("the device should use its newest certificate");
        }
        if judged.asks_from.is_some_and(|from| self.now >= from) {
            let what = format!("{serial} ends at {ends}, and the device has not renewed it");
            return Check::new(TOPIC, State::Note, what).next(self.new_certificate());
        }
        Check::fine(TOPIC, format!("{serial} until {ends}"))
    }

    fn device(&self) -> Check {
        const TOPIC: &str = "device";
        let summary = &self.detail.summary;
        let because = summary.reason.as_deref().map(|why| format!(": {}", output::plain(why)));
        let because = because.unwrap_or_default();
        match summary.status {
            DeviceStatus::Active => Check::fine(TOPIC, format!("active, of fleet '{}'", summary.fleet)),
            DeviceStatus::Suspended => {
                let resume = format!("doorward device resume {}", self.id());
                let what = format!("it is suspended{because}");
                match self.insight.quarantine {
                    Some(Some(until)) => {
                        let until = output::time(until);
                        let what = format!("{what}; it is resumed by itself at {until}");
                        Check::new(TOPIC, NO_CONNECT, what).next(format!(
                            "look at its events; it comes back by itself, or at once by '{resume}'"
                        ))
                    }
                    _ => Check::new(TOPIC, NO_CONNECT, what).next(resume),
                }
            }
            DeviceStatus::Revoked => {
                Check::new(TOPIC, NO_CONNECT, format!("it is revoked for good{because}"))
                    .next("doorward device add ID: register the hardware anew, under another id")
            }
        }
    }

    fn key(&self) -> Check {
        const TOPIC: &str = "key";
        let new_key = format!("doorward device rotate-key {} --grace 0s --out DIR", self.id());
        let Some(record) = &self.record else {
            return Check::new(TOPIC, State::Note, "without a certificate on record no key is asked for");
        };
        let version = match identity::signs_with(record, None, self.now) {
            Ok(version) => version,
            Err(denied) => return Check::new(TOPIC, NO_CONNECT, denied.detail).next(new_key),
        };
        match &self.master {
            Err(why) => {
                let what = format!("whether its keys open cannot be asked here: {why}");
                Check::new(TOPIC, State::Unknown, what)
                    .next("run it on a home that has the master key (--home)")
            }
            Ok(master) => {
                for key in record.keys.iter().filter(|key| key.state != KeyState::Retired) {
                    if let Err(error) = master.open(&record.device, key.version, &key.sealed) {
                        let what = format!("key version {} does not open: {error}", key.version);
                        return Check::new(TOPIC, NO_CONNECT, what)
                            .next(format!("put back the master key that has sealed it, or: {new_key}"));
                    }
                }
                self.keys_that_open(record, version)
            }
        }
    }

    fn keys_that_open(&self, record: &Record, version: KeyVersion) -> Check {
        let of = |state: KeyState| record.keys.iter().find(move |key| key.state == state);
        let mut what = format!("the gateway signs with version {version}");
        if let Some(grace) = of(KeyState::Grace)
            && let Some(until) = grace.grace_until
        {
            what.push_str(&format!("; version {} is taken until {}", grace.version, output::time(until)));
        }
        match of(KeyState::Pending) {
            Some(pending) => {
                what.push_str(&format!("; version {} waits for the device to use it", pending.version));
                Check::new("key", State::Note, what)
            }
            None => Check::fine("key", what),
        }
    }

    fn policy(&self) -> Check {
        const TOPIC: &str = "policy";
        let mend = format!("doorward fleet policy {} FILE", self.fleet.id);
        let policy = match Policy::parse(&self.fleet.policy) {
            Ok(policy) => policy,
            Err(error) => {
                let what = format!("the policy of fleet '{}' cannot be read: {error}", self.fleet.id);
                return Check::new(TOPIC, NO_CONNECT, what).next(mend);
            }
        };
        let who = Who { device: &self.detail.summary.id, fleet: &self.fleet.id };
        let reach = policy.reach(who, Action::Publish);
        if reach.allowed.is_empty() {
            let what = format!("the policy of fleet '{}' lets it publish nothing", self.fleet.id);
            return Check::new(TOPIC, State::Wrong(Bars::Publish), what).next(mend);
        }
        let mut what = format!("it may publish to {}", reach.allowed.join(", "));
        if !reach.except.is_empty() {
            what.push_str(&format!(", but not to {}", reach.except.join(", ")));
        }
        Check::fine(TOPIC, what)
    }

    fn schemas(&self) -> Check {
        const TOPIC: &str = "schemas";
        match SchemaSet::parse(&self.fleet.schemas) {
            Ok(_) if self.fleet.schemas.trim() == "{}" => {
                Check::fine(TOPIC, "its fleet asks for no form of what it publishes")
            }
            Ok(_) => Check::fine(TOPIC, format!("'doorward fleet schema list {}' shows them", self.fleet.id)),
            Err(error) => {
                let what = format!("the schemas of fleet '{}' cannot be used: {error}", self.fleet.id);
                Check::new(TOPIC, NO_CONNECT, what).next(format!(
                    "doorward fleet schema list {}, and remove or mend the one that is named",
                    self.fleet.id
                ))
            }
        }
    }

    fn limits(&self) -> Check {
        const TOPIC: &str = "limits";
        let fleet = match &self.limits {
            Ok(fleet) => fleet,
            Err(error) => {
                let what = format!("the limits of fleet '{}' cannot be read: {error}", self.fleet.id);
                return Check::new(TOPIC, NO_CONNECT, what)
                    .next(format!("doorward fleet limits {} --rate default", self.fleet.id));
            }
        };
        let limits = fleet.over(self.own.limits);
        let whose = |set: bool| if set { " (the fleet's)" } else { "" };
        Check::fine(
            TOPIC,
            format!(
                "{} messages a second{}, {} at once{}, {} bytes each{}; {} bytes a second{}, {} at once{}; \
                {} connections a minute{}, {} at once{}; {} strikes{}; times up to {} s off",
                limits.rate.per_second,
                whose(fleet.rate_per_second.is_some()),
                limits.rate.burst,
                whose(fleet.rate_burst.is_some()),
                limits.max_message_bytes,
                whose(fleet.message_bytes == Some(limits.max_message_bytes)),
                limits.bytes.per_second,
                whose(fleet.bytes_per_second.is_some()),
                limits.bytes.burst,
                whose(fleet.bytes_burst.is_some()),
                limits.connects.per_minute,
                whose(fleet.connects_per_minute.is_some()),
                limits.connects.burst,
                whose(fleet.connects_burst.is_some()),
                limits.strikes,
                whose(fleet.strikes.is_some_and(|strikes| strikes as usize == limits.strikes)),
                limits.max_skew.as_secs(),
            ),
        )
    }

    fn session(&self) -> Check {
        const TOPIC: &str = "session";
        let Some(presence) = &self.detail.presence else {
            return Check::new(TOPIC, State::Note, "no session of it has ever been proven");
        };
        let (gateway, peer) = (output::plain(&presence.gateway), output::plain(&presence.peer));
        let seen = output::time(presence.last_seen);
        match &presence.session {
            Some(_) => Check::fine(
                TOPIC,
                format!("on {gateway} from {peer} since {}, last seen {seen}", output::time(presence.since)),
            ),
            None => Check::fine(TOPIC, format!("none now; last seen {seen} on {gateway} from {peer}")),
        }
    }

    fn events(&self) -> Check {
        const TOPIC: &str = "events";
        let Some(last) = self.events.last() else { return Check::fine(TOPIC, "none on record") };
        let what = format!(
            "the last: {} at {} on {}, from {}: {}",
            output::plain(&last.kind),
            output::time(last.at),
            output::plain(&last.gateway),
            output::plain(&last.peer),
            output::plain(&last.detail)
        );
        let lately = self.insight.now - last.at < time::Duration::HOUR;
        Check::new(TOPIC, if lately { State::Note } else { State::Fine }, what)
    }

    fn clock(&self) -> Check {
        const TOPIC: &str = "clock";
        if let Err(error) = clock::check() {
            return Check::new(TOPIC, State::Unknown, format!("dates cannot be judged here: {error}"))
                .next("set the clock of this machine");
        }
        if self.ahead.is_zero() {
            let slack = CLOCKS_DIFFER.as_secs();
            return Check::fine(TOPIC, format!("the database's and ours are within {slack} s"));
        }
        let side = if self.ahead.is_negative() { "behind" } else { "ahead of" };
        let what = format!("the database's is {:.1} s {side} ours", self.ahead.as_seconds_f64().abs());
        Check::new(TOPIC, State::Note, what)
            .next("set both by NTP: certificates and messages are judged by the gateway's own clock")
    }
}

impl From<&Denied> for serde_json::Value {
    fn from(denied: &Denied) -> Self {
        let Denied { problem, detail, .. } = denied;
        serde_json::json!({ "status": Problem::status(*problem), "type": problem.label(), "detail": detail })
    }
}
