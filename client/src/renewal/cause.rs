//! Why sessions end: whether another certificate could help.

use doorward_proto::close::Close;

use crate::connection::{ConnectError, Ended};

/// What a connection, or the attempt at one, ended by: whether another certificate could help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The certificate was turned away.
    Certificate,
    /// Nobody knows: a TLS alert can get lost.
    Unclear,
    /// The gateway cannot ask its registry: it may know the older certificate, and not the newer one.
    Away,
    /// Something else.
    Other,
}

impl From<&ConnectError> for Cause {
    fn from(error: &ConnectError) -> Self {
        match error {
            ConnectError::Alert(_) => Self::Certificate,
            ConnectError::Refused(refused) => match &refused.problem {
                Some(problem) if problem.word().starts_with("certificate-") => Self::Certificate,
                // Somebody between the device and the gateway.
                None if matches!(refused.status, 401 | 403) => Self::Unclear,
                Some(problem) if problem.word() == "unavailable" => Self::Away,
                _ => Self::Other,
            },
            ConnectError::Network { .. } | ConnectError::Timeout(_) | ConnectError::Protocol(_) => {
                Self::Unclear
            }
            _ => Self::Other,
        }
    }
}

impl From<&Ended> for Cause {
    fn from(ended: &Ended) -> Self {
        match ended {
            Ended::Closed { close: Close::Suspended | Close::CertificateExpired } | Ended::Alert(_) => {
                Self::Certificate
            }
            Ended::Lost(_) => Self::Unclear,
            _ => Self::Other,
        }
    }
}
