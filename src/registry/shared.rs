//! What both implementations decide in the same way.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use doorward_pki::Fingerprint;
use doorward_proto::ids::{DeviceId, FleetId, KeyVersion, MessageId};
use sqlx::Transaction;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{Database, SqlSafeStr};

use super::{
    Act, CertificateStatus, Change, Claim, Credential, DeviceStatus, Done, Fate, IssuerUse, KeyState,
    MemberState, NewDevice, NewMessage, RegistryError, Result, RotationState, SchemaError, Share,
};

/// How often a transaction that lost against another is tried.
pub(super) const ATTEMPTS: u32 = 5;
/// How many changes [`super::Registry::read_changes`] brings at once.
pub(super) const PAGE: i64 = 1000;

/// How far a call has come. A deadline that passes before the commit means that nothing has happened; one that passes
/// in it means that nobody knows.
#[derive(Debug, Default)]
pub(super) struct Phase {
    committing: AtomicBool,
}

impl Phase {
    pub(super) async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        match tokio::time::timeout(limit, work).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let words = format!("no answer within {} s", limit.as_secs());
                Err(if self.committing.load(Ordering::Relaxed) {
                    RegistryError::Unknown(words)
                } else {
                    RegistryError::Unavailable(words)
                })
            }
        }
    }

    /// Commits. After an error that says that the server rolled back the call may be tried again.
    pub(super) async fn commit<DB: Database>(
        &self,
        transaction: Transaction<'_, DB>,
    ) -> Result<(), sqlx::Error> {
        self.committing.store(true, Ordering::Relaxed);
        transaction.commit().await?;
        Ok(())
    }

    pub(super) fn again(&self) {
        self.committing.store(false, Ordering::Relaxed);
    }
}

/// Reads under a deadline: nothing to commit.
pub(super) async fn within<T>(limit: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    Phase::default().within(limit, work).await
}

/// Migrations, numbered from 1. Both backends have the same numbers.
pub(super) fn migrator(texts: &[(&'static str, &'static str)]) -> Migrator {
    let numbered = (1..).zip(texts).map(|(version, (name, sql))| {
        Migration::new(version, (*name).into(), MigrationType::Simple, sql.into_sql_str(), false)
    });
    Migrator::with_migrations(numbered.collect())
}

/// Judges the newest applied migration against the newest that this binary has.
pub(super) fn judge_schema(found: Option<i64>, migrator: &Migrator) -> Result<(), SchemaError> {
    let needed = migrator.iter().map(|migration| migration.version).max().unwrap_or(0);
    match found {
        None => Err(SchemaError::Missing),
        Some(found) if found < needed => Err(SchemaError::Older { found, needed }),
        Some(found) if found > needed => Err(SchemaError::Newer { found, needed }),
        Some(_) => Ok(()),
    }
}

/// The status that an act leads to; [`Done::Already`] where it is so. To suspend a device that is in quarantine is to suspend
/// it for good.
pub(super) fn decide(
    id: &DeviceId,
    status: DeviceStatus,
    quarantined: bool,
    act: Act,
) -> Result<Result<DeviceStatus, Done>> {
    let next = match act {
        Act::Revoke => DeviceStatus::Revoked,
        _ if status == DeviceStatus::Revoked => return Err(revoked(id)),
        Act::Suspend => DeviceStatus::Suspended,
        Act::Resume => DeviceStatus::Active,
    };
    Ok(if next == status && !quarantined { Err(Done::Already) } else { Ok(next) })
}

pub(super) fn revoked(id: &DeviceId) -> RegistryError {
    RegistryError::Refused(format!(
        "device '{id}' is revoked, and that is final; register the hardware anew under another id"
    ))
}

/// A batch's claims, one a device: of several the last wins, and all of them count as sessions.
pub(super) fn last_claims(claims: &[Claim]) -> Vec<(&Claim, i64)> {
    let mut last: HashMap<&DeviceId, (usize, i64)> = HashMap::with_capacity(claims.len());
    for (place, claim) in claims.iter().enumerate() {
        let entry = last.entry(&claim.device).or_insert((place, 0));
        *entry = (place, entry.1 + 1);
    }
    let mut places: Vec<_> = last.into_values().collect();
    // One order for all writers: two that claim the same devices wait for each other and never deadlock.
    places.sort_by(|a, b| claims[a.0].device.cmp(&claims[b.0].device));
    places.into_iter().map(|(place, count)| (&claims[place], count)).collect()
}

/// What stands in a list of new devices a second time. Ids are compared without case.
pub(super) fn repeated(devices: &[NewDevice]) -> Option<RegistryError> {
    let mut ids = HashSet::with_capacity(devices.len());
    let mut certificates = HashSet::with_capacity(devices.len());
    let mut serials = HashSet::with_capacity(devices.len());
    devices.iter().find_map(|device| {
        let certificate = &device.certificate;
        if !ids.insert(device.id.as_str().to_ascii_lowercase()) {
            Some(RegistryError::Exists { kind: "device", id: device.id.to_string() })
        } else if !certificates.insert(certificate.fingerprint)
            || !serials.insert((&certificate.issuer, &certificate.serial))
        {
            Some(RegistryError::Exists { kind: "certificate", id: certificate.serial.clone() })
        } else {
            None
        }
    })
}

/// Rows of ids and fingerprints, in the order of ids, gathered by id.
pub(super) fn gather(
    rows: impl Iterator<Item = Result<(DeviceId, Option<Fingerprint>)>>,
) -> Result<Vec<(DeviceId, Vec<Fingerprint>)>> {
    let mut known: Vec<(DeviceId, Vec<Fingerprint>)> = Vec::new();
    for row in rows {
        let (id, fingerprint) = row?;
        match known.last_mut() {
            Some((last, fingerprints)) if *last == id => fingerprints.extend(fingerprint),
            _ => known.push((id, fingerprint.into_iter().collect())),
        }
    }
    Ok(known)
}

/// Words for people, without the one character that Postgres refuses: an event must not be lost for it.
pub(super) fn clean(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

macro_rules! codes {
    ($type:ident: $($variant:ident = $code:literal),*) => {
        impl $type {
            /// The word for it in the database and on the command line.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $code),* }
            }

            pub(super) fn read(text: &str) -> Result<Self> {
                match text {
                    $($code => Ok(Self::$variant),)*
                    _ => Err(RegistryError::Corrupt(format!("{text:?} where a state is due"))),
                }
            }
        }
    };
}

codes!(DeviceStatus: Active = "active", Suspended = "suspended", Revoked = "revoked");
codes!(CertificateStatus: Active = "active", Superseded = "superseded", Revoked = "revoked");
codes!(KeyState: Pending = "pending", Active = "active", Grace = "grace", Retired = "retired");
codes!(Credential: Key = "key", Certificate = "certificate");
codes!(RotationState: Running = "running", Stopped = "stopped", Done = "done", Undone = "undone");
codes!(
    MemberState: Waiting = "waiting",
    Asked = "asked",
    Proven = "proven",
    Failed = "failed",
    LeftOut = "left_out",
    Withdrawn = "withdrawn"
);

pub(super) fn device_id(text: &str) -> Result<DeviceId> {
    DeviceId::new(text).map_err(|error| RegistryError::Corrupt(format!("the device id {text:?}: {error}")))
}

pub(super) fn issuer_use(issuer: String, live: i64, expired: i64) -> Result<IssuerUse> {
    let count = |number: i64| {
        u64::try_from(number)
            .map_err(|_| RegistryError::Corrupt(format!("{number} certificates of {issuer}")))
    };
    let (live, expired) = (count(live)?, count(expired)?);
    Ok(IssuerUse { issuer, live, expired })
}

pub(super) fn fleet_id(text: &str) -> Result<FleetId> {
    FleetId::new(text).map_err(|error| RegistryError::Corrupt(format!("the fleet id {text:?}: {error}")))
}

pub(super) fn message_id(text: &str) -> Result<MessageId> {
    MessageId::new(text).map_err(|error| RegistryError::Corrupt(format!("the message id {text:?}: {error}")))
}

pub(super) fn share(text: &str) -> Result<Share> {
    text.parse().map_err(|_| RegistryError::Corrupt(format!("{text:?} where a part of a fleet is due")))
}

pub(super) fn key_version(number: i64) -> Result<KeyVersion> {
    u32::try_from(number)
        .ok()
        .and_then(KeyVersion::from_number)
        .ok_or_else(|| RegistryError::Corrupt(format!("{number} where a key version is due")))
}

pub(super) fn fingerprint(text: &str) -> Result<Fingerprint> {
    text.parse().map_err(|error| RegistryError::Corrupt(format!("the fingerprint {text:?}: {error}")))
}

pub(super) fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// A row of the feed. `None` for one that this binary cannot read: the reader then asks for everything again, because a
/// feed that stops at a bad row would stop every revocation after it.
pub(super) fn change(kind: &str, subject: &str) -> Option<Change> {
    match kind {
        "device" => DeviceId::new(subject).ok().map(Change::Device),
        "fleet" => FleetId::new(subject).ok().map(Change::Fleet),
        "kick" => DeviceId::new(subject).ok().map(Change::Kick),
        "takeover" => {
            // `device/session/peer`, before migration 5 `device/session`.
            let (device, rest) = subject.split_once('/')?;
            let (session, peer) =
                rest.split_once('/').map_or((rest, None), |(session, peer)| (session, Some(peer)));
            Some(Change::Takeover {
                device: DeviceId::new(device).ok()?,
                session: session.to_owned(),
                peer: peer.map(str::to_owned),
            })
        }
        _ => None,
    }
}

/// How old a row is, in seconds of the database's clock, which may have been set back.
pub(super) fn age(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::ZERO)
}

/// A column that does not decode: the schema is not what this binary takes it for.
pub(super) fn unreadable(error: &impl std::fmt::Display) -> RegistryError {
    RegistryError::Corrupt(error.to_string())
}

/// Tells stored from duplicate: `new` says of each allowed message, in the order of the batch, whether its row was made
/// by this transaction. Of two in the batch with one id, the first made it.
pub(super) fn settle<'a>(
    messages: &'a [NewMessage],
    fates: &mut [Fate],
    allowed: impl Iterator<Item = (usize, bool)>,
) -> Option<()> {
    let mut made = HashSet::<(&'a str, &'a str)>::new();
    for (place, new) in allowed {
        let message = messages.get(place)?;
        let first = new && made.insert((message.device.as_str(), message.id.as_str()));
        *fates.get_mut(place)? = if first { Fate::Stored } else { Fate::Duplicate };
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_takeover_is_read_in_its_old_form_too() {
        let device = DeviceId::new("press-7").unwrap();
        for (subject, session, peer) in [
            ("press-7/s1", "s1", None),
            ("press-7/s1/192.0.2.7:4000", "s1", Some("192.0.2.7:4000")),
            ("press-7/s1/[::1]:4000", "s1", Some("[::1]:4000")),
            ("press-7/s1/", "s1", Some("")),
        ] {
            let (session, peer) = (session.to_owned(), peer.map(str::to_owned));
            let due = Change::Takeover { device: device.clone(), session, peer };
            assert_eq!(change("takeover", subject), Some(due), "{subject}");
        }
        assert_eq!(change("takeover", "press-7"), None);
    }

    #[test]
    fn acts_and_states() {
        use DeviceStatus::{Active, Revoked, Suspended};
        let id = DeviceId::new("press-7").unwrap();
        for (status, act, outcome) in [
            (Active, Act::Suspend, Some(Ok(Suspended))),
            (Suspended, Act::Suspend, Some(Err(Done::Already))),
            (Revoked, Act::Suspend, None),
            (Active, Act::Resume, Some(Err(Done::Already))),
            (Suspended, Act::Resume, Some(Ok(Active))),
            (Revoked, Act::Resume, None),
            (Active, Act::Revoke, Some(Ok(Revoked))),
            (Suspended, Act::Revoke, Some(Ok(Revoked))),
            (Revoked, Act::Revoke, Some(Err(Done::Already))),
        ] {
            assert_eq!(decide(&id, status, false, act).ok(), outcome, "{status:?} {act:?}");
        }
    }
}
