//! The names under which a gateway is reached.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use rcgen::SanType;

use crate::identity::printable;

/// A DNS name, perhaps with a wildcard as its first label, or an IP address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Host {
    /// A DNS name in lowercase, without a final dot.
    Dns(String),
    /// An address.
    Ip(IpAddr),
}

/// Why a text is not a host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not a host: {reason}")]
pub struct HostError {
    text: String,
    reason: &'static str,
}

impl FromStr for Host {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Ip(address));
        }
        match fault(text) {
            None => Ok(Self::Dns(text.to_ascii_lowercase())),
            Some(reason) => Err(HostError { text: printable(text), reason }),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Ip(address) => address.fmt(f),
        }
    }
}

impl Host {
    pub(super) fn to_san(&self) -> Result<SanType, rcgen::Error> {
        Ok(match self {
            Self::Dns(name) => SanType::DnsName(name.as_str().try_into()?),
            Self::Ip(address) => SanType::IpAddress(*address),
        })
    }
}

/// What is wrong with a DNS name (RFC 1123 §2.1; underscores are tolerated, as container networks use them).
fn fault(text: &str) -> Option<&'static str> {
    let concrete = text.strip_prefix("*.").unwrap_or(text);
    let last = concrete.rsplit('.').next().unwrap_or_default();
    if text.is_empty() {
        Some("it is empty")
    } else if text.contains("://") || text.contains(['/', ':', '[', ']']) {
        Some("give the name or address alone, without scheme, port, path or brackets")
    } else if !text.is_ascii() {
        Some("write an international name in its ASCII form (xn--…)")
    } else if concrete.contains('*') {
        Some("a wildcard is the whole first label, as in *.example.com")
    } else if text.len() > 253 {
        Some("a DNS name has at most 253 characters")
    } else if !concrete.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        Some("a DNS name has letters, digits, hyphens and dots alone")
    } else if concrete.split('.').any(|label| !(1..=63).contains(&label.len())) {
        Some("each part between dots has 1 to 63 characters, and there is no dot at the end")
    } else if concrete.split('.').any(|label| label.starts_with('-') || label.ends_with('-')) {
        Some("no part between dots begins or ends with a hyphen")
    } else if last.bytes().all(|b| b.is_ascii_digit()) {
        Some("it ends in a number and is not an IPv4 address")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses() {
        for name in ["localhost", "gw.example.com", "*.example.com", "a_b.local", "x--y.z9", "1.example"] {
            assert_eq!(name.parse(), Ok(Host::Dns(name.to_owned())), "{name}");
        }
        assert_eq!("GW.Example".parse(), Ok(Host::Dns("gw.example".to_owned())));
        for address in ["127.0.0.1", "::1", "2001:db8::7"] {
            assert_eq!(address.parse(), Ok(Host::Ip(address.parse().unwrap())), "{address}");
            assert_eq!(address.parse::<Host>().unwrap().to_string(), address);
        }
    }

    #[test]
    fn what_is_no_host_is_refused_with_a_reason() {
        for (bad, reason) in [
            ("", "empty"),
            (" ", "letters"),
            ("gw example", "letters"),
            ("gw\n", "letters"),
            ("wss://gw", "scheme"),
            ("gw:8443", "port"),
            ("[::1]", "brackets"),
            ("gw/x", "path"),
            ("grüezi.ch", "ASCII"),
            ("*", "wildcard"),
            ("*.*.com", "wildcard"),
            ("g*.example", "wildcard"),
            ("gw.*.com", "wildcard"),
            ("*.", "1 to 63"),
            ("gw..com", "1 to 63"),
            ("gw.com.", "1 to 63"),
            (&format!("{}.com", "x".repeat(64)), "1 to 63"),
            (&"x.".repeat(130), "253"),
            ("-gw.com", "hyphen"),
            ("gw-.com", "hyphen"),
            ("256.1.1.1", "number"),
            ("1.2.3", "number"),
        ] {
            let error = bad.parse::<Host>().unwrap_err().to_string();
            assert!(error.contains(reason) && !error.contains('\n'), "{bad:?}: {error}");
        }
    }
}
