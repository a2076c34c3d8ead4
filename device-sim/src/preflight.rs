//! What this machine can reach, asked before the first connection fails of it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::plan::Failure;

/// Files beside the connections: the runtime's, the program's, the attackers'.
const OTHER_FILES: u64 = 256;
/// Linux's default, where the machine does not say.
const DEFAULT_PORTS: (u32, u32) = (32_768, 60_999);

/// The addresses to connect from; empty where the system chooses.
#[derive(Debug)]
pub(crate) struct Sources(Vec<IpAddr>);

impl Sources {
    pub(crate) fn of(&self, connection: usize) -> Option<IpAddr> {
        self.0.get(connection.checked_rem(self.0.len())?).copied()
    }
}

/// An attacker's address, apart from the honest devices': a gateway may hold attacks against an address.
pub(crate) fn attackers_source(gateway: SocketAddr, attacker: usize) -> Option<IpAddr> {
    let (high, low) = (u8::try_from(attacker / 250).ok()?, u8::try_from(attacker % 250).ok()?);
    is_loopback_v4(gateway).then(|| Ipv4Addr::new(127, 77, high, low + 1).into())
}

fn is_loopback_v4(gateway: SocketAddr) -> bool {
    gateway.is_ipv4() && gateway.ip().is_loopback()
}

/// Raises the limit of open files.
pub(crate) fn files(connections: usize) -> Result<(), Failure> {
    let needed = u64::try_from(connections).unwrap_or(u64::MAX).saturating_add(OTHER_FILES);
    let allowed = rlimit::increase_nofile_limit(needed).unwrap_or(0);
    if allowed < needed {
        return Err(Failure::Machine(format!(
            "this process may open {allowed} files and {connections} devices need {needed}; raise the hard limit (ulimit -Hn, or LimitNOFILE= of systemd), or take at most {} devices",
            allowed.saturating_sub(OTHER_FILES)
        )));
    }
    Ok(())
}

/// Raises the limit of open files and spreads the sources.
pub(crate) fn check(
    connections: usize,
    gateway: SocketAddr,
    source_addresses: Option<u16>,
) -> Result<Sources, Failure> {
    files(connections)?;
    let ports = ports();
    let least = connections.div_ceil(ports);
    let loopback = is_loopback_v4(gateway);
    let addresses = match source_addresses.map(usize::from) {
        Some(0) => return Err(Failure::Machine("--source-addresses must be at least 1".to_owned())),
        Some(more) if more > 1 && !loopback => {
            return Err(Failure::Machine(format!(
                "--source-addresses spreads over 127.0.0.0/8, and {} is not there; leave the option out",
                gateway.ip()
            )));
        }
        Some(given) => given,
        None if loopback => least,
        None => 1,
    };
    if addresses < least {
        return Err(Failure::Machine(format!(
            "{addresses} source address(es) have {} ports free for {connections} connections; {}",
            addresses * ports,
            if loopback {
                format!("give --source-addresses {least} or more")
            } else {
                "widen net.ipv4.ip_local_port_range, or run from several machines".to_owned()
            }
        )));
    }
    // One address is the system's own choice: it picks ports better than a bind does.
    let spread = (addresses > 1).then(|| (0..addresses).map(source).collect());
    Ok(Sources(spread.unwrap_or_default()))
}

fn source(number: usize) -> IpAddr {
    let byte = |value: usize| u8::try_from(value % 250).unwrap_or(0);
    Ipv4Addr::new(127, byte(number / 62_500), byte(number / 250), byte(number) + 1).into()
}

/// The ports of one address that can be counted on: what other programs hold is left to them.
fn ports() -> usize {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut numbers = text.split_whitespace().filter_map(|number| number.parse::<u32>().ok());
    let (low, high) = match (numbers.next(), numbers.next()) {
        (Some(low), Some(high)) if low <= high => (low, high),
        _ => DEFAULT_PORTS,
    };
    usize::try_from((high - low + 1) / 10 * 9).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8443);

    #[test]
    fn what_cannot_be_reached_is_said_before() {
        let far = SocketAddr::new(Ipv4Addr::new(192, 0, 2, 1).into(), 8443);
        assert!(check(10, far, Some(2)).unwrap_err().to_string().contains("127.0.0.0/8"));
        assert!(check(10, LOOPBACK, Some(0)).is_err());
        let files = check(100_000_000, LOOPBACK, None).unwrap_err().to_string();
        assert!(files.contains("ulimit"), "{files}");
        assert_eq!(check(10, far, None).unwrap().of(3), None);
    }

    #[test]
    fn sources_are_loopback_addresses_and_differ() {
        let sources = check(1000, LOOPBACK, Some(600)).unwrap();
        let all: std::collections::BTreeSet<IpAddr> = (0..600).filter_map(|n| sources.of(n)).collect();
        assert_eq!(all.len(), 600);
        assert!(all.iter().all(IpAddr::is_loopback));
        assert_eq!(sources.of(0), sources.of(600));
    }
}
