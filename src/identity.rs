//! Who a device is: from the certificate it presented to the record in the registry, in the order of
//! docs/protocol.md §1; the first failure refuses.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use doorward_pki::identity::{Fingerprint, Leaf, printable};
use doorward_proto::close::Close;
use doorward_proto::ids::{FleetId, KeyVersion};
use doorward_proto::key::{Key, Keyring};
use doorward_proto::limits::{FleetLimits, Limits};
use doorward_proto::policy::Policy;
use doorward_proto::schema::Schemas;
use doorward_proto::session::{Grant, PendingKey};
use doorward_proto::time::NumericDate;

use crate::clock;
use crate::master::MasterKeys;
use crate::registry::{CertificateStatus, DeviceStatus, KeyState, Record, SealedKey};
use crate::schema::SchemaSet;

/// Why a device is not let in: the `type` of the problem document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Problem {
    DeviceRevoked,
    DeviceSuspended,
    CertificateUnknown,
    CertificateUnfit,
    CertificateMismatch,
    CertificateRevoked,
    CertificateSuperseded,
    CertificateExpired,
    KeyUnknown,
    Origin,
    Malformed,
    NotFound,
    UpgradeRequired,
    TooMany,
    Draining,
    Unavailable,
}

impl Problem {
    /// Every problem.
    pub(crate) const ALL: [Self; 16] = [
        Self::DeviceRevoked,
        Self::DeviceSuspended,
        Self::CertificateUnknown,
        Self::CertificateUnfit,
        Self::CertificateMismatch,
        Self::CertificateRevoked,
        Self::CertificateSuperseded,
        Self::CertificateExpired,
        Self::KeyUnknown,
        Self::Origin,
        Self::Malformed,
        Self::NotFound,
        Self::UpgradeRequired,
        Self::TooMany,
        Self::Draining,
        Self::Unavailable,
    ];

    /// The last part of `urn:doorward:problem:…`, and the label in logs and counters.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::DeviceRevoked => "device-revoked",
            Self::DeviceSuspended => "device-suspended",
            Self::CertificateUnknown => "certificate-unknown",
            Self::CertificateUnfit => "certificate-unfit",
            Self::CertificateMismatch => "certificate-mismatch",
            Self::CertificateRevoked => "certificate-revoked",
            Self::CertificateSuperseded => "certificate-superseded",
            Self::CertificateExpired => "certificate-expired",
            Self::KeyUnknown => "key-unknown",
            Self::Origin => "origin",
            Self::Malformed => "malformed",
            Self::NotFound => "not-found",
            Self::UpgradeRequired => "upgrade-required",
            Self::TooMany => "too-many",
            Self::Draining => "draining",
            Self::Unavailable => "unavailable",
        }
    }

    /// The HTTP status.
    pub(crate) const fn status(self) -> u16 {
        match self {
            Self::CertificateUnknown
            | Self::CertificateUnfit
            | Self::CertificateMismatch
            | Self::KeyUnknown => 401,
            Self::DeviceRevoked
            | Self::DeviceSuspended
            | Self::CertificateRevoked
            | Self::CertificateSuperseded
            | Self::CertificateExpired
            | Self::Origin => 403,
            Self::Malformed => 400,
            Self::NotFound => 404,
            Self::UpgradeRequired => 426,
            Self::TooMany => 429,
            Self::Draining | Self::Unavailable => 503,
        }
    }

    /// Whether it is what a record says of the very certificate that was shown: until the record changes, it says so again.
    pub(crate) const fn is_of_record(self) -> bool {
        matches!(
            self,
            Self::DeviceRevoked
                | Self::DeviceSuspended
                | Self::CertificateRevoked
                | Self::CertificateSuperseded
                | Self::CertificateExpired
        )
    }

    /// How a live session ends to which this has become true.
    pub(crate) const fn close(self) -> Close {
        match self {
            Self::DeviceRevoked => Close::Revoked,
            Self::CertificateExpired => Close::CertificateExpired,
            Self::KeyUnknown => Close::Kicked,
            // A policy or a key that cannot be read: not the device's doing, and not for an hour.
            Self::Unavailable => Close::Internal,
            _ => Close::Suspended,
        }
    }
}

/// A refusal: what the device is told, and what the log says.
#[derive(Debug, Clone)]
pub(crate) struct Denied {
    pub(crate) problem: Problem,
    pub(crate) detail: String,
    /// When to come back, in seconds, where that is known.
    pub(crate) retry_after: Option<u64>,
    /// It has been refused as often as is worth asking the registry: this is what was said before.
    pub(crate) again: bool,
}

impl Denied {
    pub(crate) fn new(problem: Problem, detail: impl Into<String>) -> Self {
        Self { problem, detail: detail.into(), retry_after: None, again: false }
    }

    /// What was said of this certificate a moment ago, and again and again.
    pub(crate) fn again(problem: Problem) -> Self {
        let detail = format!(
            "{}, as this certificate was told before; it comes back far too often, and is not looked up each time",
            problem.label().replace('-', " ")
        );
        Self { again: true, ..Self::new(problem, detail) }
    }
}

/// Judges a certificate and the record behind it: steps 2 to 6.
pub(crate) fn judge(
    leaf: &Leaf,
    record: Option<&Record>,
    now: NumericDate,
    late: Duration,
) -> Result<(), Denied> {
    let Some(record) = record else {
        let detail = "this certificate is signed by a device CA, but nobody has recorded it";
        return Err(Denied::new(Problem::CertificateUnknown, detail));
    };
    let mismatch = |detail: String| Err(Denied::new(Problem::CertificateMismatch, detail));
    match leaf.common_name() {
        Ok(name) if name == record.device.as_str() => {}
        Ok(name) => {
            return mismatch(format!(
                "the subject's common name is '{}', the record's is another",
                printable(name)
            ));
        }
        Err(error) => return mismatch(error.to_string()),
    }
    if let Err(unfit) = leaf.fit_for_device() {
        return Err(Denied::new(Problem::CertificateUnfit, unfit.to_string()));
    }
    judge_record(record, now, late)
}

/// The part of the judgement that changes with the record and the time: steps 5 and 6. A certificate that has expired less
/// than `late` ago opens a session that can do nothing but renew it.
pub(crate) fn judge_record(record: &Record, now: NumericDate, late: Duration) -> Result<(), Denied> {
    let certificate = &record.certificate;
    let because = |reason: &Option<String>| reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    match (certificate.status, certificate.valid_until) {
        (CertificateStatus::Revoked, _) => {
            let detail = format!("this certificate is revoked{}", because(&certificate.reason));
            return Err(Denied::new(Problem::CertificateRevoked, detail));
        }
        (CertificateStatus::Superseded, end) if end.is_none_or(|end| now >= clock::numeric(end)) => {
            let detail = "a newer certificate has taken this one's place, and its grace is over";
            return Err(Denied::new(Problem::CertificateSuperseded, detail));
        }
        _ => {}
    }
    let ended = clock::numeric(certificate.not_after);
    if now >= ended && now.as_duration() >= ended.as_duration().saturating_add(late) {
        let mut detail = format!("this certificate expired on {}", date(certificate.not_after));
        if !late.is_zero() {
            let late = humantime::format_duration(late);
            detail.push_str(&format!(", and could renew itself for {late} after that"));
        }
        return Err(Denied::new(Problem::CertificateExpired, detail));
    }
    match record.status {
        DeviceStatus::Active => Ok(()),
        DeviceStatus::Suspended => {
            let detail = format!("device '{}' is suspended{}", record.device, because(&record.reason));
            Err(Denied::new(Problem::DeviceSuspended, detail))
        }
        DeviceStatus::Revoked => {
            let detail = format!("device '{}' is revoked{}", record.device, because(&record.reason));
            Err(Denied::new(Problem::DeviceRevoked, detail))
        }
    }
}

fn date(time: time::OffsetDateTime) -> String {
    time.format(&time::format_description::well_known::Rfc3339).unwrap_or_else(|_| time.to_string())
}

/// The longest session of a certificate that has expired.
const LATE_SESSION: Duration = Duration::from_secs(900);

/// When the gateway begins to ask for a certificate's renewal: from two thirds of its lifetime on, and up to five sixths,
/// each certificate at a moment of its own. A fleet that was issued in one hour does not renew in one hour.
pub(crate) fn asks_from(leaf: &Leaf, fingerprint: &Fingerprint) -> NumericDate {
    let begins = NumericDate::from_seconds(leaf.not_before()).as_duration();
    let lifetime = NumericDate::from_seconds(leaf.not_after()).as_duration().saturating_sub(begins);
    let spread = fingerprint.as_bytes().iter().take(2).fold(0, |sum, byte| sum << 8 | u32::from(*byte));
    let own = lifetime / 6 * spread / (1 << 16);
    NumericDate::since_epoch(begins + lifetime / 3 * 2 + own)
}

/// The key version that a gateway signs a session with: the one that was asked for, else the newest that was confirmed.
pub(crate) fn signs_with(
    record: &Record,
    asked: Option<KeyVersion>,
    now: NumericDate,
) -> Result<KeyVersion, Denied> {
    let confirmed = record.keys.iter().filter(|key| key.state == KeyState::Active).map(|key| key.version);
    let version = asked.or(confirmed.max());
    let holds = |key: &SealedKey| {
        key.state != KeyState::Retired && key.grace_until.is_none_or(|end| now < clock::numeric(end))
    };
    version
        .filter(|version| record.keys.iter().any(|key| key.version == *version && holds(key)))
        .ok_or_else(|| no_key(version))
}

fn no_key(version: Option<KeyVersion>) -> Denied {
    let detail = match version {
        Some(version) => format!("key version {version} is none of this device's that hold"),
        None => "this device has no key that holds; 'doorward device show' lists them".to_owned(),
    };
    Denied::new(Problem::KeyUnknown, detail)
}

/// What a session brings beside its record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    /// The key version that the device asked the gateway to sign with.
    pub(crate) key: Option<KeyVersion>,
    /// When the gateway begins to ask for a renewal by itself.
    pub(crate) asks_from: NumericDate,
}

/// What a fleet allows.
#[derive(Clone)]
pub(crate) struct Rules {
    policy: Arc<Policy>,
    limits: FleetLimits,
    schemas: Option<Arc<dyn Schemas>>,
}

/// A fleet's rules, or that they cannot be read; beside the texts that were.
struct Read {
    texts: [Arc<str>; 3],
    rules: Result<Rules, Denied>,
}

/// What a fleet has where it does not say otherwise: the gateway's own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Own {
    pub(crate) limits: Limits,
    /// How long after its end a certificate may renew itself.
    pub(crate) late: Duration,
}

impl Own {
    /// How long after its end a certificate of such a fleet may renew itself.
    pub(crate) fn lateness(&self, fleet: &FleetLimits) -> Duration {
        fleet.renew_after_expiry.map_or(self.late, |seconds| Duration::from_secs(seconds.into()))
    }
}

/// Turns records into what sessions work with. A fleet's rules are read once and shared.
pub(crate) struct Granter {
    pub(crate) master: Arc<MasterKeys>,
    own: ArcSwap<Own>,
    /// One for each fleet that was seen: bounded by the registry's fleets.
    rules: Mutex<HashMap<FleetId, Read>>,
}

impl Granter {
    pub(crate) fn new(master: Arc<MasterKeys>, own: Own) -> Self {
        Self { master, own: ArcSwap::from_pointee(own), rules: Mutex::default() }
    }

    /// The gateway's own limits are others from now on.
    pub(crate) fn set_own(&self, own: Own) {
        self.own.store(Arc::new(own));
    }

    /// What a fleet says in place of the gateway's limits, as its newest record has it.
    pub(crate) fn fleet_limits(&self, fleet: &FleetId) -> Option<FleetLimits> {
        let known = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(fleet).and_then(|read| read.rules.as_ref().ok()).map(|rules| rules.limits)
    }

    /// How long after its end a certificate of this record's may renew itself.
    pub(crate) fn lateness(&self, record: &Record) -> Result<Duration, Denied> {
        let own = **self.own.load();
        self.rules(record).map(|rules| own.lateness(&rules.limits))
    }

    /// A record, ready for use.
    pub(crate) fn grant(&self, record: &Record, asked: Asked, now: NumericDate) -> Result<Grant, Denied> {
        let mut keyring = Keyring::default();
        let mut pending = None;
        for sealed in &record.keys {
            if sealed.state == KeyState::Retired {
                continue;
            }
            let bytes = self.master.open(&record.device, sealed.version, &sealed.sealed).map_err(|error| {
                tracing::error!(device = %record.device, version = %sealed.version, %error, "a key does not open");
                Denied::new(Problem::Unavailable, "the gateway cannot use this device's key; its log says why")
            })?;
            keyring.add(Key::new(sealed.version, &bytes), sealed.grace_until.map(clock::numeric));
            if sealed.state == KeyState::Pending {
                let (version, grace) = (sealed.version, sealed.grace);
                pending = Some(Box::new(PendingKey { version, key: bytes, grace }));
            }
        }
        let version = signs_with(record, asked.key, now)?;
        let signer = keyring.find(version, now).cloned().ok_or_else(|| no_key(Some(version)))?;
        let (rules, own) = (self.rules(record)?, **self.own.load());
        let late = own.lateness(&rules.limits);
        let certificate = &record.certificate;
        let ended = clock::numeric(certificate.not_after);
        let is_late = now >= ended;
        let mut grace_ends = certificate.valid_until.map(clock::numeric);
        if is_late {
            let until = (ended.as_duration().saturating_add(late)).min(now.as_duration() + LATE_SESSION);
            let until = NumericDate::since_epoch(until);
            grace_ends = Some(grace_ends.map_or(until, |ends| ends.min(until)));
        }
        // One that is late, that an operator wants renewed or whose successor is somewhere else: at once.
        let at_once =
            is_late || certificate.rotate_by.is_some() || certificate.status != CertificateStatus::Active;
        Ok(Grant {
            device: record.device.clone(),
            fleet: record.fleet.clone(),
            keyring,
            signer,
            limits: rules.limits.over(own.limits),
            policy: rules.policy,
            schemas: rules.schemas,
            certificate_expires: ended,
            grace_ends,
            renew_from: Some(if at_once { now } else { asked.asks_from }),
            rotate_by: certificate.rotate_by.map(clock::numeric),
            late: is_late,
            pending,
        })
    }

    /// Read once for as long as the texts stay, also what cannot be read: a storm does not read it, and complain, again and
    /// again.
    fn rules(&self, record: &Record) -> Result<Rules, Denied> {
        let mut known = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let texts = [&record.policy, &record.limits, &record.schemas];
        if let Some(read) = known.get(&record.fleet)
            && read.texts.iter().eq(texts)
        {
            return read.rules.clone();
        }
        let rules = read_rules(record);
        known.insert(record.fleet.clone(), Read { texts: texts.map(Arc::clone), rules: rules.clone() });
        rules
    }
}

fn read_rules(record: &Record) -> Result<Rules, Denied> {
    let fleet = &record.fleet;
    let unreadable = |what: &str| {
        Denied::new(
            Problem::Unavailable,
            format!("the gateway cannot read this fleet's {what}; its log says why"),
        )
    };
    let policy = Policy::parse(&record.policy).map_err(|error| {
        tracing::error!(%fleet, %error, "a fleet's policy cannot be read; mend it with 'doorward fleet policy'");
        unreadable("policy")
    })?;
    let limits = FleetLimits::parse(&record.limits).map_err(|error| {
        tracing::error!(%fleet, %error, "a fleet's limits cannot be read; mend them with 'doorward fleet limits'");
        unreadable("limits")
    })?;
    let schemas = SchemaSet::parse(&record.schemas).map_err(|error| {
        tracing::error!(%fleet, %error, "a fleet's schemas cannot be read; mend them with 'doorward fleet schema'");
        unreadable("schemas")
    })?;
    let schemas = (!schemas.is_empty()).then(|| Arc::new(schemas) as Arc<dyn Schemas>);
    Ok(Rules { policy: Arc::new(policy), limits, schemas })
}
