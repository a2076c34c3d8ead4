//! Networks, as `ADDRESS/LENGTH` (RFC 4632, RFC 4291 §2.3).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A network, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    first: IpAddr,
    length: u8,
}

impl Network {
    /// Whether an address is in it. An IPv4-mapped one counts as IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        first(address.to_canonical(), self.length) == Some(self.first)
    }
}

/// The first address of a network of this length; `None` where the address is not so long.
fn first(address: IpAddr, length: u8) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32_u32.checked_sub(length.into())?).unwrap_or(0);
            Some(IpAddr::V4((v4.to_bits() & mask).into()))
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128_u32.checked_sub(length.into())?).unwrap_or(0);
            Some(IpAddr::V6((v6.to_bits() & mask).into()))
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("'{text}' is not a network like '10.0.0.0/8' or 'fd00::/8', nor an address");
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        if address != address.to_canonical() {
            return Err(format!("'{text}' is an IPv4 address in IPv6 clothes: write it as IPv4"));
        }
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let length = match length {
            Some(length) => length.parse().ok().filter(|length| *length <= longest).ok_or_else(wrong)?,
            None => longest,
        };
        let start = first(address, length).ok_or_else(wrong)?;
        if start != address {
            return Err(format!("'{text}' has bits behind its length: did you mean '{start}/{length}'?"));
        }
        Ok(Self { first: start, length })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.length)
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(network: &str, address: &str) -> bool {
        network.parse::<Network>().unwrap().contains(address.parse().unwrap())
    }

    #[test]
    fn an_address_is_in_its_network_and_in_no_other() {
        assert!(has("10.0.0.0/8", "10.255.1.2") && !has("10.0.0.0/8", "11.0.0.0"));
        assert!(has("10.1.2.3", "10.1.2.3") && !has("10.1.2.3", "10.1.2.4"));
        assert!(has("0.0.0.0/0", "255.1.1.1") && !has("0.0.0.0/0", "2001:db8::1"));
        assert!(has("fd00::/8", "fdff::1") && !has("fd00::/8", "fe00::1") && !has("fd00::/8", "10.0.0.1"));
        assert!(has("::/0", "2001:db8::1") && !has("::/0", "::ffff:10.0.0.1"));
        assert!(has("10.0.0.0/8", "::ffff:10.0.0.1"));
    }

    #[test]
    fn what_is_no_network_is_told_why() {
        for (text, words) in [
            ("10.0.0.0/33", "not a network"),
            ("10.0.0/8", "not a network"),
            ("10.0.0.0/", "not a network"),
            ("fd00::/129", "not a network"),
            ("10.0.0.1/8", "did you mean '10.0.0.0/8'"),
            ("::ffff:10.0.0.0/104", "write it as IPv4"),
        ] {
            let error = text.parse::<Network>().unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
