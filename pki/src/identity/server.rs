//! What a gateway's own certificate says: enough to make the next one like it.

use std::net::IpAddr;

use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME;

use super::{LeafError, common_names, extension, parse};
use crate::authority::Host;

/// A server's certificate, read. It checks no signature and no date.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerCertificate {
    /// The subject's first common name, where it is text.
    pub name: Option<String>,
    /// The names and addresses that it is for.
    pub hosts: Vec<Host>,
    /// It is for something else besides, which [`Host`] cannot say.
    pub other_names: bool,
    /// The first second of its validity, in Unix time.
    pub not_before: i64,
    /// The last second of its validity, in Unix time.
    pub not_after: i64,
}

impl ServerCertificate {
    /// Reads a certificate from DER.
    ///
    /// # Errors
    /// [`LeafError`] where the bytes are no certificate, or its names cannot be read.
    pub fn parse(der: &[u8]) -> Result<Self, LeafError> {
        const NAMES: &str = "subject alternative name";
        let certificate = parse(der)?;
        let (mut hosts, mut other_names) = (Vec::new(), false);
        match extension(&certificate, &OID_X509_EXT_SUBJECT_ALT_NAME, NAMES)? {
            None => {}
            Some(ParsedExtension::SubjectAlternativeName(names)) => {
                for name in &names.general_names {
                    match host(name) {
                        Some(host) => hosts.push(host),
                        None => other_names = true,
                    }
                }
            }
            Some(_) => return Err(LeafError::Extension(NAMES)),
        }
        Ok(Self {
            name: common_names(certificate.subject()).into_iter().next().flatten(),
            hosts,
            other_names,
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
        })
    }

    /// Two thirds of its validity, in Unix time: from then on it is to be renewed.
    #[must_use]
    pub const fn renew_from(&self) -> i64 {
        let lifetime = self.not_after.saturating_sub(self.not_before);
        self.not_before.saturating_add(lifetime / 3 * 2)
    }
}

fn host(name: &GeneralName<'_>) -> Option<Host> {
    match name {
        GeneralName::DNSName(name) => name.parse().ok(),
        GeneralName::IPAddress(bytes) => {
            let four = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let address = four.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from)).ok()?;
            Some(Host::Ip(address))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{authorities, device, key, now, serial};
    use time::Duration;

    #[test]
    fn says_for_whom_it_is_and_when_it_is_to_be_renewed() {
        let (_, issuing) = authorities();
        let hosts: Vec<Host> =
            ["gw.example", "*.example", "10.0.0.7", "::1"].map(|host| host.parse().unwrap()).into();
        let days = Duration::days(300);
        let der = issuing.issue_gateway("gw-1", &hosts, &key(), serial(), now(), days).unwrap().der;
        let read = ServerCertificate::parse(&der).unwrap();
        assert_eq!((read.name.as_deref(), &read.hosts, read.other_names), (Some("gw-1"), &hosts, false));
        let lifetime = 300 * 86_400 + 300;
        assert_eq!(read.not_after - read.not_before, lifetime);
        assert_eq!(read.renew_from(), read.not_before + lifetime / 3 * 2);
        // A device's has a URI, which is no host.
        let device = ServerCertificate::parse(&device(&issuing, "press-7").der).unwrap();
        assert!(device.other_names && device.hosts.is_empty());
        assert!(ServerCertificate::parse(b"junk").is_err());
    }
}
