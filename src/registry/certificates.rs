//! Which certificates there are, and what revoking one comes to.

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
}

/// What became of a certificate and of those that were renewed from it.
#[derive(Debug, Clone)]
pub struct RevokedCertificates {
    /// Those that were not revoked before.
    pub serials: Vec<String>,
    /// The act.
    pub acted: Acted,
}
