//! The system of record: which devices exist, which certificates and keys are theirs, what they may do.
//!
//! One trait, two implementations, one contract suite that both pass (`tests/it/registry.rs`). The gateway asks at
//! admission and follows [`Registry::read_changes`] afterwards; it never asks per message.

pub mod postgres;
pub mod sqlite;

pub(crate) mod cache;
pub(crate) mod lookups;

mod audit;
mod certificates;
pub mod custody;
mod events;
mod gateways;
pub mod insight;
mod messages;
pub mod quarantine;
mod record;
pub mod renewals;
mod rotations;
mod shared;
mod url;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use doorward_pki::identity::Fingerprint;
use doorward_proto::ids::{DeviceId, FleetId, KeyVersion};
use time::OffsetDateTime;

pub use audit::{AuditFilter, AuditHash, AuditHead, AuditRow, Chain, Misfit};
pub use certificates::{
    Cause, CertificateFilter, IssuerUse, NewCrl, NumberedCrl, Renewal, RevokedCertificate,
    RevokedCertificates, RevokedFilter,
};
pub use events::{EventFilter, EventKind, NewEvent, StoredEvent};
pub use gateways::{Acted, Applied, Enrolment, GatewayStatus, Mark};
pub use messages::{Batch, Claim, Fate, MessageFilter, NewMessage, StoredMessage};
pub use record::{
    CertificateRecord, CertificateStatus, DeviceStatus, KeyState, NewKey, Record, Records, SealedKey,
    Standing,
};
pub use rotations::{
    Beat, Candidate, Counts, Credential, Lease, MANY_SESSIONS, Member, MemberFilter, MemberState,
    NewRotation, NoShare, Progress, Rotation, RotationState, Rotations, Share,
};
pub use url::{DatabaseUrl, UrlError};

/// How long a gateway waits for the registry. A session that cannot be judged by then is refused with 503.
pub const QUERY_DEADLINE: Duration = Duration::from_secs(5);
/// How long an operator waits: lists and bulk work are long, and nobody is kept out meanwhile.
pub const OPERATOR_DEADLINE: Duration = Duration::from_secs(60);

/// Whether a database may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// `init`: a SQLite file that does not exist is made, mode 0600.
    Create,
    /// Everything else: a SQLite file that does not exist is an error.
    Existing,
    /// A gateway: its SQLite file may come later, with the disk that it is on; asked before, it is away.
    Expected,
}

/// Opens the registry that a URL names. It makes no connection yet. Call it inside a tokio runtime.
///
/// # Errors
/// [`RegistryError::Unavailable`] for a SQLite file that does not exist (with [`Access::Existing`]) or cannot be made.
pub fn connect(url: &DatabaseUrl, access: Access) -> Result<Arc<dyn Registry>> {
    Ok(match url.target() {
        url::Target::Sqlite(path) => Arc::new(sqlite::Sqlite::open(path, access)?),
        url::Target::Postgres(options) => Arc::new(postgres::Postgres::new(options, url.to_string())),
    })
}

/// Why the registry did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The database cannot be reached or did not answer in time. Nothing is known to have happened.
    #[error("the registry cannot be reached ({0})")]
    Unavailable(String),
    /// The connection was lost while a commit was under way: it may have happened or not.
    #[error("the registry was lost during a commit ({0})")]
    Unknown(String),
    /// There is no such thing.
    #[error("there is no {kind} '{id}'")]
    NotFound {
        /// What was looked for: `device`, `fleet`.
        kind: &'static str,
        /// Its id.
        id: String,
    },
    /// The id is taken (ids that differ only in case are one id).
    #[error("the {kind} '{id}' exists already")]
    Exists {
        /// What exists.
        kind: &'static str,
        /// Its id, as it was asked for.
        id: String,
    },
    /// The state it is in does not allow the act.
    #[error("{0}")]
    Refused(String),
    /// The database role lacks the right.
    #[error("the database role may not do this: {0}")]
    Forbidden(String),
    /// The schema is not the one that this binary was built with.
    #[error("{0}")]
    Schema(#[from] SchemaError),
    /// The database holds something that this binary cannot read.
    #[error("the registry holds something unreadable: {0}")]
    Corrupt(String),
    /// The database refused a statement for a reason that is ours to mend.
    #[error("the registry refused a statement: {0}")]
    Internal(String),
}

/// Short for a result of the registry.
pub type Result<T, E = RegistryError> = std::result::Result<T, E>;

/// A schema other than this binary's. `init` mends the first two.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// No schema at all.
    #[error("the registry has no schema; run 'doorward init' to make it")]
    Missing,
    /// Made by an older version.
    #[error(
        "the registry's schema is version {found}, this doorward needs {needed}; run 'doorward init' to migrate it"
    )]
    Older {
        /// The newest migration that was applied.
        found: i64,
        /// The newest migration of this binary.
        needed: i64,
    },
    /// Made by a newer version.
    #[error(
        "the registry's schema is version {found}, this doorward knows up to {needed}; install the newer doorward"
    )]
    Newer {
        /// The newest migration that was applied.
        found: i64,
        /// The newest migration of this binary.
        needed: i64,
    },
}

/// A device to register, with its first certificate and first key. The three commit together.
#[derive(Debug, Clone)]
pub struct NewDevice {
    /// Its id.
    pub id: DeviceId,
    /// Its fleet, which must exist.
    pub fleet: FleetId,
    /// Its certificate (status `active`).
    pub certificate: NewCertificate,
    /// Its HMAC key, version 1, sealed (state `active`: the first bundle's key counts as confirmed).
    pub sealed_key: Vec<u8>,
}

/// A certificate to record.
#[derive(Debug, Clone)]
pub struct NewCertificate {
    /// SHA-256 of the DER.
    pub fingerprint: Fingerprint,
    /// 32 hex digits.
    pub serial: String,
    /// The key id of the authority that signed it, hex.
    pub issuer: String,
    /// The certificate itself.
    pub der: Vec<u8>,
    /// From when.
    pub not_before: OffsetDateTime,
    /// Until when.
    pub not_after: OffsetDateTime,
}

/// A fleet, as operators see it.
#[derive(Debug, Clone)]
pub struct Fleet {
    /// Its id.
    pub id: FleetId,
    /// Its policy, as its JSON text.
    pub policy: String,
    /// Its limits, as their JSON text.
    pub limits: String,
    /// Its schemas by channel filter, as their JSON text.
    pub schemas: String,
    /// How many devices belong to it, by status: active, suspended, revoked.
    pub devices: [u64; 3],
    /// When it was made.
    pub created: OffsetDateTime,
}

/// A line of the list of devices.
#[derive(Debug, Clone)]
pub struct DeviceSummary {
    /// Its id.
    pub id: DeviceId,
    /// Its fleet.
    pub fleet: FleetId,
    /// Whether it may connect.
    pub status: DeviceStatus,
    /// Why not.
    pub reason: Option<String>,
    /// When it was registered.
    pub created: OffsetDateTime,
    /// The end of its newest active certificate.
    pub certificate_expires: Option<OffsetDateTime>,
    /// Its newest active key version.
    pub key: Option<KeyVersion>,
    /// When a gateway last heard it.
    pub last_seen: Option<OffsetDateTime>,
}

/// A device with all that is its.
#[derive(Debug, Clone)]
pub struct DeviceDetail {
    /// The line of the list.
    pub summary: DeviceSummary,
    /// All certificates, newest first.
    pub certificates: Vec<CertificateRecord>,
    /// All key versions, retired ones too, oldest first.
    pub keys: Vec<SealedKey>,
    /// Its presence, where a gateway has ever seen it proven.
    pub presence: Option<Presence>,
}

/// Where a device is or was connected.
#[derive(Debug, Clone)]
pub struct Presence {
    /// The device.
    pub device: DeviceId,
    /// Its fleet.
    pub fleet: FleetId,
    /// The gateway's name.
    pub gateway: String,
    /// The session; `None` once it has ended.
    pub session: Option<String>,
    /// Counts the device's proven sessions; only the newest may store.
    pub epoch: i64,
    /// Since when.
    pub since: OffsetDateTime,
    /// When the gateway last heard it (written in batches).
    pub last_seen: OffsetDateTime,
    /// The peer's address.
    pub peer: String,
}

/// What a text is to be, by what it is.
pub type ChangeText<'a> = dyn Fn(&str) -> Result<String> + Send + Sync + 'a;

/// A page of a list.
#[derive(Debug, Clone, Default)]
pub struct DeviceFilter {
    /// Of this fleet alone.
    pub fleet: Option<FleetId>,
    /// In this status alone.
    pub status: Option<DeviceStatus>,
    /// After this id, in the order of ids.
    pub after: Option<DeviceId>,
    /// How many at most.
    pub limit: u32,
}

/// What an operator does to a device's status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// `active` to `suspended`.
    Suspend,
    /// `suspended` to `active`.
    Resume,
    /// Anything to `revoked`.
    Revoke,
}

/// Whether an act changed anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// It did.
    Changed,
    /// The state was already so.
    Already,
}

/// What changed in the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The device's row, one of its certificates or one of its keys.
    Device(DeviceId),
    /// The fleet's row.
    Fleet(FleetId),
    /// An operator ends the device's session without more.
    Kick(DeviceId),
    /// The device has been proven at another gateway, and this session of it has lost its place.
    Takeover {
        /// The device.
        device: DeviceId,
        /// The session.
        session: String,
        /// Where the newer one comes from.
        peer: Option<String>,
    },
}

/// A place in the feed of changes, for one follower and one database: a follower takes it from [`Registry::position`],
/// hands it back and leaves its parts alone. `Default` is the feed's beginning.
///
/// In SQLite rows are numbered in the order of their commits and `low` is the last row read. In Postgres a transaction
/// that commits late has rows below some that were read long ago. All that tells them is the transaction id: those
/// below a snapshot's xmin are decided for ever. So `low` is a transaction id there; rows at or above it are read again,
/// and skipped if they are in `seen`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Position {
    /// The restart position: what stands below it (in SQLite: at or below) has been read.
    pub low: i64,
    /// Rows at or above it that were read: transaction id and row id. Empty in SQLite.
    pub seen: BTreeSet<(i64, i64)>,
    /// The highest row id that was read: a feed that ends before it runs backwards.
    pub last: i64,
    /// A row that was read lately, by transaction id (in SQLite: by its time in ms) and row id: a feed without it is
    /// another one.
    pub tail: Option<(i64, i64)>,
}

/// What a look at the feed brought.
#[derive(Debug, Default)]
pub struct News {
    /// In the order of the feed.
    pub changes: Vec<Change>,
    /// How long ago each of them was written, by the database's clock.
    pub ages: Vec<Duration>,
    /// Rows that this position still needed have been pruned, or the feed runs backwards (a restored backup):
    /// everything has to be asked again.
    pub gap: bool,
    /// More is waiting: read again at once.
    pub more: bool,
    /// What has taken effect once all of this has, and no more is waiting.
    pub applied: Applied,
    /// The oldest transaction that is neither committed nor rolled back, where there is one. It delays no change but its
    /// own; what it holds up is the database's cleaning. Nothing in SQLite.
    pub open: Option<i64>,
}

/// The registry. Every method has a deadline of its own and ends with [`RegistryError::Unavailable`] when it passes.
///
/// A wrong answer is worse than none: an implementation that does not know says so with an error. A `None` from
/// [`Registry::look_up`] means that the registry was read and has no such row.
#[async_trait]
pub trait Registry:
    renewals::Renewals + custody::Custody + quarantine::Quarantine + insight::Insights + Send + Sync + 'static
{
    /// Where it is, without a password: what is known of one registry is worth nothing at another.
    fn place(&self) -> &str;

    /// Makes or migrates the schema. Repeating it changes nothing. Refuses a newer schema.
    async fn migrate(&self) -> Result<Done>;
    /// Refuses any schema but this binary's.
    async fn check_schema(&self) -> Result<()>;

    /// What the role of this registry's connections may do beyond what a gateway needs, in a few words; `None` where
    /// it is a gateway's role, or the database has no roles.
    async fn excess_rights(&self) -> Result<Option<String>>;

    /// The records behind certificates, all from one snapshot. What one row holds keeps no other from being read.
    async fn look_up_all(&self, certificates: &[Fingerprint]) -> Result<Records>;
    /// The record behind a certificate.
    async fn look_up(&self, certificate: &Fingerprint) -> Result<Option<Record>> {
        self.look_up_all(std::slice::from_ref(certificate)).await?.remove(certificate).transpose()
    }

    /// The end of the feed now: changes that commit later will be read from here.
    async fn position(&self) -> Result<Position>;
    /// Changes after a position, which it moves on. At most a thousand at a time. After a gap the position is the
    /// feed's end and `changes` is empty.
    async fn read_changes(&self, position: &mut Position) -> Result<News>;
    /// Returns when there may be news, or after `patience`. For one follower at a time.
    async fn changed(&self, patience: Duration) -> Result<()>;

    /// Writes a batch in one transaction; the answer has one fate for each message, in order.
    /// [`RegistryError::Unknown`] when the commit's outcome is unknown: writing the same batch again is safe.
    async fn write(&self, batch: &Batch) -> Result<Vec<Fate>>;
    /// Takes a gateway's name for this run: before the first device is let in, so that no act overlooks it. Refused while
    /// a gateway of another home may still serve under it: a receipt would leave that one out.
    async fn enrol(&self, gateway: &Enrolment) -> Result<()>;
    /// Reports what has taken effect, and that the gateway lives. `false` where the name has become another run's.
    async fn report(&self, name: &str, instance: &str, applied: &Applied) -> Result<bool>;
    /// The gateway serves nobody any more.
    async fn sign_off(&self, name: &str, instance: &str) -> Result<()>;
    /// Forgets a gateway that is gone for good, though it has not signed off: no receipt counts it any more.
    async fn remove_gateway(&self, name: &str) -> Result<()>;
    /// All gateways that ever served, in the order of names; with a mark, whether each has confirmed it.
    async fn gateways(&self, mark: Option<Mark>) -> Result<Vec<GatewayStatus>>;

    /// Ends what a crashed run of this gateway left in `presence`.
    async fn forget_sessions(&self, gateway: &str) -> Result<u64>;
    /// Deletes up to `limit` messages received before `before`; how many it deleted.
    async fn prune_messages(&self, before: OffsetDateTime, limit: u32) -> Result<u64>;
    /// Deletes up to `limit` changes and events older than `before`; how many it deleted.
    async fn prune_history(&self, before: OffsetDateTime, limit: u32) -> Result<u64>;

    /// Adds a fleet with a policy that the caller has checked.
    async fn add_fleet(&self, id: &FleetId, policy: &str) -> Result<()>;
    /// All fleets, in the order of ids.
    async fn fleets(&self) -> Result<Vec<Fleet>>;
    /// One fleet.
    async fn fleet(&self, id: &FleetId) -> Result<Option<Fleet>>;
    /// Sets a fleet's policy, which the caller has checked.
    async fn set_policy(&self, id: &FleetId, policy: &str) -> Result<Acted>;
    /// Changes a fleet's limits: `change` is given those that it has and says what they are to be, checked. It may be asked
    /// more than once, and nobody else changes them meanwhile.
    async fn change_limits(&self, id: &FleetId, change: &ChangeText<'_>) -> Result<Acted>;
    /// Sets a fleet's limits, which the caller has checked.
    async fn set_limits(&self, id: &FleetId, limits: &str) -> Result<Acted> {
        self.change_limits(id, &|_| Ok(limits.to_owned())).await
    }

    /// Changes a fleet's schemas, as [`Registry::change_limits`] does limits.
    async fn change_schemas(&self, id: &FleetId, change: &ChangeText<'_>) -> Result<Acted>;

    /// Adds devices: all of them or none. [`RegistryError::Exists`] names the first that exists.
    async fn add_devices(&self, devices: &[NewDevice]) -> Result<()>;
    /// Which of these ids exist (compared without case), each with the fingerprints of its certificates.
    async fn known(&self, ids: &[DeviceId]) -> Result<Vec<(DeviceId, Vec<Fingerprint>)>>;
    /// A page of devices.
    async fn devices(&self, filter: &DeviceFilter) -> Result<Vec<DeviceSummary>>;
    /// One device with all that is its.
    async fn device(&self, id: &DeviceId) -> Result<Option<DeviceDetail>>;
    /// Suspends, resumes or revokes. [`RegistryError::Refused`] for any act on a revoked device but `Revoke`.
    async fn set_status(&self, id: &DeviceId, act: Act, reason: Option<&str>) -> Result<Acted>;
    /// Certificates in the order of their ends.
    async fn certificates(&self, filter: &CertificateFilter) -> Result<Vec<(DeviceId, CertificateRecord)>>;
    /// What depends on each authority that has signed a certificate, in the order of key ids. For `late` after its end a
    /// certificate may still renew itself, unless its fleet says otherwise.
    async fn issuers(&self, late: Duration) -> Result<Vec<IssuerUse>>;
    /// Revokes a certificate and, unless `only`, those that were renewed from it.
    async fn revoke_certificate(
        &self,
        certificate: &Fingerprint,
        reason: &str,
        only: bool,
    ) -> Result<RevokedCertificates>;
    /// Gives a revocation list the next number of its authority, for ever, and its times.
    async fn number_crl(&self, crl: &NewCrl) -> Result<NumberedCrl>;
    /// A page of the certificates that are revoked, or whose device is, in the order of serials.
    async fn revoked(&self, filter: &RevokedFilter) -> Result<Vec<RevokedCertificate>>;
    /// Adds a certificate to a device. [`RegistryError::Refused`] for a revoked device.
    async fn add_certificate(
        &self,
        id: &DeviceId,
        certificate: &NewCertificate,
        renewal: &Renewal,
    ) -> Result<Acted>;
    /// Adds a key version to a device, pending until the device signs with it. [`RegistryError::Exists`] where the version is
    /// taken or another one is pending; [`RegistryError::Refused`] for a revoked device.
    async fn add_key(&self, id: &DeviceId, key: &NewKey) -> Result<Acted>;
    /// Rotations of whole fleets.
    fn rotations(&self) -> &dyn Rotations;
    /// Ends the device's session, wherever it is. [`RegistryError::Refused`] for a revoked device.
    async fn kick(&self, id: &DeviceId) -> Result<Acted>;

    /// Live sessions that were heard at or after `fresh`, in the order of device ids.
    async fn sessions(&self, fresh: OffsetDateTime) -> Result<Vec<Presence>>;
    /// Stored messages, in the order of storing.
    async fn messages(&self, filter: &MessageFilter) -> Result<Vec<StoredMessage>>;
    /// Security events, in the order of storing.
    async fn events(&self, filter: &EventFilter) -> Result<Vec<StoredEvent>>;
    /// Rows of the audit, in the order of the chain.
    async fn audit(&self, filter: &AuditFilter) -> Result<Vec<AuditRow>>;
    /// The registry's own note of the chain's end. Rows that it counts are visible to whoever reads them after it.
    async fn audit_head(&self) -> Result<AuditHead>;
}
