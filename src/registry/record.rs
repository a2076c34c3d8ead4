//! What admission and a live session need to know of a device.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use doorward_pki::Fingerprint;
use doorward_proto::ids::{DeviceId, FleetId, KeyVersion};
use time::OffsetDateTime;

use super::Result;

/// Whether a device may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DeviceStatus {
    /// It may.
    Active,
    /// Not now; an operator can resume it.
    Suspended,
    /// Never again.
    Revoked,
}

/// Whether a certificate opens the door.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CertificateStatus {
    /// It does, until it expires.
    Active,
    /// A newer one has taken its place; it does until `valid_until`.
    Superseded,
    /// It never does again.
    Revoked,
}

/// The life of an HMAC key version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyState {
    /// Issued, not yet confirmed by a message signed with it.
    Pending,
    /// The newest confirmed one: the gateway signs with it.
    Active,
    /// An older one that still verifies until its grace ends.
    Grace,
    /// Worth nothing.
    Retired,
}

/// A key version as the registry keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedKey {
    /// Which version.
    pub version: KeyVersion,
    /// The key, sealed by the master key.
    pub sealed: Vec<u8>,
    /// Where in its life.
    pub state: KeyState,
    /// When the grace ends, for a key in it.
    pub grace_until: Option<OffsetDateTime>,
    /// How long the one before it holds once this one is confirmed.
    pub grace: Duration,
}

/// A key version to add to a device.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// Its version.
    pub version: KeyVersion,
    /// The key, sealed by the master key.
    pub sealed: Vec<u8>,
    /// How long the one before it holds once this one is confirmed; zero: the others are worth nothing from now on, and this
    /// one is active without being confirmed.
    pub grace: Duration,
}

/// A certificate as the registry keeps it.
#[derive(Debug, Clone)]
pub struct CertificateRecord {
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
    /// Where in its life.
    pub status: CertificateStatus,
    /// The end of its grace, for a superseded one.
    pub valid_until: Option<OffsetDateTime>,
    /// Why it was revoked.
    pub reason: Option<String>,
}

/// What a certificate is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Until when it is valid.
    pub not_after: OffsetDateTime,
    /// Where in its life.
    pub status: CertificateStatus,
    /// The end of its grace, for a superseded one.
    pub valid_until: Option<OffsetDateTime>,
    /// Why it was revoked.
    pub reason: Option<String>,
    /// It was renewed from one that is active still: its first proven session begins that one's grace.
    pub supersedes: bool,
    /// Until when an operator wants it renewed, if one does.
    pub rotate_by: Option<OffsetDateTime>,
}

/// Everything that admission and a live session need to know of a device, by one of its certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The device.
    pub device: DeviceId,
    /// Its fleet.
    pub fleet: FleetId,
    /// Whether it may connect.
    pub status: DeviceStatus,
    /// Why it is suspended or revoked.
    pub reason: Option<String>,
    /// The certificate that was asked for.
    pub certificate: Standing,
    /// All key versions that are not retired, oldest first.
    pub keys: Vec<SealedKey>,
    /// The fleet's policy, as its JSON text.
    pub policy: Arc<str>,
    /// The fleet's limits, as their JSON text.
    pub limits: Arc<str>,
    /// The fleet's schemas by channel filter, as their JSON text.
    pub schemas: Arc<str>,
}

impl Record {
    /// Ends the certificate no later than it says itself, whatever its row says.
    pub(crate) fn end_by(&mut self, leaf_ends: OffsetDateTime) {
        self.certificate.not_after = self.certificate.not_after.min(leaf_ends);
    }
}

/// Records by their certificates. What is missing is in no row; an error is that row's own.
pub type Records = HashMap<Fingerprint, Result<Record>>;
