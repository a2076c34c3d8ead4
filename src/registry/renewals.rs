//! New credentials: certificates that are asked for in a session, from the gateway that hears the device to the issuer that
//! signs; and what a device has shown of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use doorward_pki::Fingerprint;
use doorward_proto::ids::{DeviceId, FleetId, KeyVersion};
use time::OffsetDateTime;

use super::{CertificateStatus, DeviceStatus, NewCertificate, Result};

/// How long a request waits for an issuer. Asked again after that, it waits anew.
pub const REQUEST_HOLDS: Duration = Duration::from_secs(86_400);
/// After a transaction the next one gathers for so long: a fleet that renews costs the one writer two a second of each kind, and
/// messages do not wait behind one for each device. Who comes alone is served at once.
pub const GATHER: Duration = Duration::from_millis(500);
/// The longest CSR that is kept, in bytes; one of P-256 has 300 to 1,000.
pub const MAX_REQUEST_BYTES: usize = 16 * 1024;

/// A device asks for a certificate.
#[derive(Debug, Clone)]
pub struct NewRequest {
    /// The certificate of its session.
    pub certificate: Fingerprint,
    /// SHA-256 of the new key's point, hex.
    pub public_key: String,
    /// PKCS#10, PEM or DER.
    pub csr: Vec<u8>,
    /// Who has heard it.
    pub gateway: Arc<str>,
}

/// What has become of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requested {
    /// It waits for an issuer, under this number.
    Waiting(i64),
    /// Signed and recorded.
    Issued {
        /// The leaf, DER.
        der: Vec<u8>,
        /// What stands above it, PEM.
        chain: String,
        /// The leaf's end.
        not_after: OffsetDateTime,
    },
    /// Not now, with the reason.
    Refused(String),
    /// Never with this key, with the reason: the device needs another one.
    Spent(String),
    /// The device has asked too often today.
    Limited,
}

/// A request that waits, with what an issuer judges it by.
#[derive(Debug, Clone)]
pub struct WaitingRequest {
    /// Its number.
    pub id: i64,
    /// Whose.
    pub device: DeviceId,
    /// In which fleet.
    pub fleet: FleetId,
    /// Whether it may connect.
    pub status: DeviceStatus,
    /// The fleet's limits, as their JSON text.
    pub limits: String,
    /// SHA-256 of the key's point, hex, as the gateway says.
    pub public_key: String,
    /// PKCS#10, PEM or DER.
    pub csr: Vec<u8>,
    /// Who has heard it.
    pub gateway: String,
    /// The certificate that it renews: where in its life, the end of its grace, and its own end.
    pub renews: (CertificateStatus, Option<OffsetDateTime>, OffsetDateTime),
    /// The device's certificates, DER: no key of theirs comes again.
    pub certificates: Vec<Vec<u8>>,
}

/// A request, as operators see it.
#[derive(Debug, Clone)]
pub struct RequestSummary {
    /// Its number.
    pub id: i64,
    /// Whose.
    pub device: DeviceId,
    /// Where it stands: `waiting`, `issued`, `refused`; one that has waited in vain is `expired`.
    pub state: String,
    /// Why it was refused.
    pub reason: Option<String>,
    /// Who has heard it.
    pub gateway: String,
    /// When it was asked, the last time.
    pub asked: OffsetDateTime,
    /// Until when it waits.
    pub expires: OffsetDateTime,
    /// The certificate that it has brought.
    pub issued: Option<String>,
}

/// An issuer's answer to a request.
#[derive(Debug, Clone)]
pub enum Decision {
    /// A certificate, to be recorded as successor to the one that it renews.
    Issue {
        /// Itself.
        certificate: Box<NewCertificate>,
        /// What stands above it, PEM.
        chain: Arc<str>,
        /// How long the older one holds once a session by this one has been proven.
        grace: Duration,
    },
    /// None, with words for the device and the operator.
    Refuse(String),
    /// None, and never for this key.
    RefuseKey(String),
}

/// A credential that is to take an older one's place, and that its device has shown.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Shown {
    /// It has signed with a key that was pending: that becomes the active one, and the grace of the one before it begins.
    Key(KeyVersion),
    /// A session by a certificate that was renewed from another has been proven: those that it was renewed from are superseded,
    /// and their grace begins.
    Certificate(Fingerprint),
}

/// The part of the registry where new credentials take the place of older ones.
#[async_trait]
pub trait Renewals {
    /// Devices have shown their new credentials: for each, in order, whether that is new; or why it is not so, in words. All in
    /// one transaction.
    async fn confirm(&self, shown: &[(DeviceId, Shown)]) -> Result<Vec<Result<bool, String>>>;
    /// Puts requests, all in one transaction; one answer each, in their order. The same key again is the same request.
    async fn request_renewals(&self, requests: &[NewRequest]) -> Result<Vec<Requested>>;
    /// What has become of requests, by their numbers; those that are gone are missing.
    async fn requested(&self, ids: &[i64]) -> Result<HashMap<i64, Requested>>;
    /// The oldest requests that wait, at most `limit`.
    async fn waiting_requests(&self, limit: u32) -> Result<Vec<WaitingRequest>>;
    /// The newest requests, of one device or of all, those that wait alone or all; at most `limit`.
    async fn requests(
        &self,
        device: Option<&DeviceId>,
        waiting: bool,
        limit: u32,
    ) -> Result<Vec<RequestSummary>>;
    /// Whether the role of this registry's connections may answer requests.
    async fn may_issue(&self) -> Result<bool>;
    /// An issuer's answers, all in one transaction: for each why it could not be recorded, if it could not. One that was
    /// answered before stays as it is.
    async fn decide_requests(&self, decisions: &[(i64, Decision)]) -> Result<Vec<Option<String>>>;
}
