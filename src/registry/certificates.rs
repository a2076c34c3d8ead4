//! Which certificates there are, what revoking one comes to, and what a revocation list is made of.

use std::time::Duration;

use doorward_pki::Fingerprint;
use doorward_proto::ids::DeviceId;
use time::OffsetDateTime;

use super::Acted;

/// Which certificates.
#[derive(Debug, Clone, Default)]
pub struct CertificateFilter {
    /// Of this device alone.
    pub device: Option<DeviceId>,
    /// With this serial alone, 32 hex digits; two authorities may have drawn the same.
    pub serial: Option<String>,
    /// Those that are not revoked, still valid and end before.
    pub expiring_before: Option<OffsetDateTime>,
    /// Signed by the authority with this key id alone.
    pub issuer: Option<String>,
    /// Those alone by which a device may still come in, as [`IssuerUse::live`] counts them; for so long after its end a
    /// certificate may still renew itself, unless its fleet says otherwise.
    pub live: Option<Duration>,
}

/// What depends on an authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerUse {
    /// Its key id, hex.
    pub issuer: String,
    /// Certificates by which a device may still come in: active, or superseded and in their grace; not expired, or not for
    /// so long that they could not renew themselves; of a device that is not revoked. A suspended one may be resumed.
    pub live: u64,
    /// Active ones of such devices that have been expired for longer.
    pub expired: u64,
}

/// What became of a certificate and of those that were renewed from it.
#[derive(Debug, Clone)]
pub struct RevokedCertificates {
    /// Those that were not revoked before.
    pub serials: Vec<String>,
    /// The act.
    pub acted: Acted,
}

/// A revocation list to be made.
#[derive(Debug, Clone)]
pub struct NewCrl {
    /// The key id of the authority that will sign it, hex.
    pub issuer: String,
    /// A number that is known to be taken, from another place than the registry; 0: none.
    pub above: i64,
    /// How long it holds.
    pub valid: time::Duration,
    /// Whether superseded certificates are in it too.
    pub superseded: bool,
}

/// A list's number, which no other list of its authority has, and its times, in whole seconds of the database's clock.
#[derive(Debug, Clone)]
pub struct NumberedCrl {
    /// Its number.
    pub number: i64,
    /// What was revoked before is in the list.
    pub this_update: OffsetDateTime,
    /// When the next one will be made at the latest.
    pub next_update: OffsetDateTime,
}

/// A page of what a revocation list names.
#[derive(Debug, Clone)]
pub struct RevokedFilter {
    /// Signed by the authority with this key id.
    pub issuer: String,
    /// Not expired then.
    pub at: OffsetDateTime,
    /// Superseded ones too, in their grace and after it.
    pub superseded: bool,
    /// After this serial, in the order of serials; the first page is after the empty one.
    pub after: String,
    /// How many at most.
    pub limit: u32,
}

/// A certificate that holds no more, or not for long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevokedCertificate {
    /// 32 hex digits.
    pub serial: String,
    /// Since when.
    pub since: OffsetDateTime,
    /// Why.
    pub cause: Cause,
}

/// Why a certificate is in a revocation list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// It is revoked, or its device is, with the operator's words.
    Revoked(Option<String>),
    /// Another has taken its place.
    Superseded,
}

/// A status as a row has it.
pub(super) struct Status {
    pub(super) revoked: bool,
    pub(super) since: Option<OffsetDateTime>,
    pub(super) reason: Option<String>,
}

impl RevokedCertificate {
    /// Of a certificate and its device, either of which may be revoked: what came first counts. A time that somebody has
    /// kept from being noted is the beginning of its validity, before which nobody could use it.
    pub(super) fn judge(
        serial: String,
        not_before: OffsetDateTime,
        certificate: Status,
        device: Status,
    ) -> Self {
        let superseded = certificate.since;
        let first = [certificate, device]
            .into_iter()
            .filter(|status| status.revoked)
            .map(|status| (status.since.unwrap_or(not_before), status.reason))
            .min_by_key(|(since, _)| *since);
        match first {
            Some((since, reason)) => Self { serial, since, cause: Cause::Revoked(reason) },
            None => Self { serial, since: superseded.unwrap_or(not_before), cause: Cause::Superseded },
        }
    }
}

/// How a certificate takes another's place.
#[derive(Debug, Clone)]
pub struct Renewal {
    /// The certificate that it is renewed from, if one holds.
    pub from: Option<Fingerprint>,
    /// How long that one holds once a session by the new one has been proven; zero: not from now on, nor does any other of
    /// the device.
    pub grace: Duration,
}
