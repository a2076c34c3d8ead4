//! How long what ends has still to go.

use std::fmt;

/// How long what ends has still to go, in seconds; what has ended is below zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expiries {
    /// The gateway's own certificate.
    pub server_certificate: i64,
    /// Each device CA, by its subject.
    pub device_cas: Vec<(String, i64)>,
    /// Each list of `tls.crls`, by its issuer: until the next one is due.
    pub revocation_lists: Vec<(String, i64)>,
    /// The soonest of the certificates that proven sessions came by.
    pub session_certificates: Option<i64>,
}

impl fmt::Display for Expiries {
    /// In days, the soonest of each kind: for a log line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let days = |seconds: i64| seconds.div_euclid(86_400);
        let soonest = |all: &[(String, i64)]| all.iter().map(|(_, left)| *left).min();
        write!(f, "server certificate {}d", days(self.server_certificate))?;
        for (what, left) in [
            ("device CA", soonest(&self.device_cas)),
            ("revocation list", soonest(&self.revocation_lists)),
            ("certificate of a session", self.session_certificates),
        ] {
            if let Some(left) = left {
                write!(f, ", {what} {}d", days(left))?;
            }
        }
        Ok(())
    }
}
