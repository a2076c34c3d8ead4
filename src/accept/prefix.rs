//! What counts as one address, and as one network.
//!
//! A customer of an IPv6 provider has at least a /64 and moves about in it as he likes (RFC 4291 §2.5.1, RFC 6177), so that
//! is one address here, and a /48, a whole site, one network. Of IPv4 it is the address and its /24.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IPv4 stands beside IPv6 in one number: below 0:ffff::/32, which is nobody's.
const V4: u64 = 0xffff_0000_0000;

/// An address or a network, as a table knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Prefix {
    /// The first 64 bits of IPv6, or [`V4`] and the address.
    bits: u64,
    network: bool,
}

impl Prefix {
    /// Whom an address belongs to: itself, or its /64. An IPv4-mapped one is IPv4 (RFC 4291 §2.5.5.2).
    pub(crate) fn host(address: IpAddr) -> Self {
        let bits = match address.to_canonical() {
            IpAddr::V4(v4) => V4 | u64::from(v4.to_bits()),
            IpAddr::V6(v6) => u64::try_from(v6.to_bits() >> 64).unwrap_or(u64::MAX),
        };
        Self { bits, network: false }
    }

    /// The network around it: the /24, or the /48.
    pub(crate) fn network(self) -> Self {
        let mask = if self.is_v4() { !0xff } else { !0xffff };
        Self { bits: self.bits & mask, network: true }
    }

    /// The first address of it.
    pub(crate) fn first(self) -> IpAddr {
        if self.is_v4() {
            return Ipv4Addr::from_bits(u32::try_from(self.bits & u64::from(u32::MAX)).unwrap_or(0)).into();
        }
        Ipv6Addr::from_bits(u128::from(self.bits) << 64).into()
    }

    fn is_v4(self) -> bool {
        self.bits >> 32 == V4 >> 32
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.first();
        match (self.is_v4(), self.network) {
            (true, false) => write!(f, "{address}"),
            (true, true) => write!(f, "{address}/24"),
            (false, false) => write!(f, "{address}/64"),
            (false, true) => write!(f, "{address}/48"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Prefix {
        Prefix::host(text.parse().unwrap())
    }

    #[test]
    fn an_ipv4_address_is_one_and_so_is_an_ipv6_64() {
        assert_ne!(host("192.0.2.1"), host("192.0.2.2"));
        assert_eq!(host("192.0.2.1").network(), host("192.0.2.254").network());
        assert_ne!(host("192.0.2.1").network(), host("192.0.3.1").network());
        assert_eq!(host("2001:db8:1:2::1"), host("2001:db8:1:2:ffff::9"));
        assert_ne!(host("2001:db8:1:2::1"), host("2001:db8:1:3::1"));
        assert_eq!(host("2001:db8:1:2::1").network(), host("2001:db8:1:ffff::1").network());
        assert_ne!(host("2001:db8:1::1").network(), host("2001:db8:2::1").network());
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_address_that_it_maps() {
        assert_eq!(host("::ffff:192.0.2.1"), host("192.0.2.1"));
        assert_ne!(host("::1"), host("0.0.0.1"));
    }

    #[test]
    fn each_is_shown_as_what_it_covers() {
        assert_eq!(host("192.0.2.1").to_string(), "192.0.2.1");
        assert_eq!(host("192.0.2.1").network().to_string(), "192.0.2.0/24");
        assert_eq!(host("2001:db8:1:2::1").to_string(), "2001:db8:1:2::/64");
        assert_eq!(host("2001:db8:1:2::1").network().to_string(), "2001:db8:1::/48");
    }
}
