//! `[addresses]`: what an address may do before anybody behind it is known.

use serde::{Deserialize, Serialize};

use super::{Span, Wrong, check_counts, check_spans};

/// `[addresses]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AddressesSection {
    /// New connections a second of one address…
    pub rate: usize,
    /// …and at once.
    pub burst: usize,
    /// Connections of one address that are not through the handshake.
    pub handshakes: usize,
    /// New connections a second of one network…
    pub network_rate: usize,
    /// …and at once.
    pub network_burst: usize,
    /// Connections of one network that are not through the handshake.
    pub network_handshakes: usize,
    /// So many failures of one address…
    pub failures: usize,
    /// …within this time block it…
    pub failure_window: Span,
    /// …for this time at first, and twice as long each time…
    pub block: Span,
    /// …up to this.
    pub block_at_most: Span,
    /// Connections that wait for their turn.
    pub waiting: usize,
    /// Addresses that are remembered.
    pub remembered: usize,
}

impl Default for AddressesSection {
    fn default() -> Self {
        Self {
            rate: 200,
            burst: 4000,
            handshakes: 2000,
            network_rate: 1000,
            network_burst: 20_000,
            network_handshakes: 8000,
            failures: 30,
            failure_window: Span::seconds(300),
            block: Span::seconds(30),
            block_at_most: Span::seconds(3600),
            waiting: 1000,
            remembered: 65_536,
        }
    }
}

impl AddressesSection {
    pub(super) fn check(&self) -> Result<(), Wrong> {
        const MOST: &str = "it must be 1 to 1048576";
        check_counts(&[
            ("addresses.rate", self.rate, 1, 1 << 20, MOST),
            ("addresses.burst", self.burst, 1, 1 << 20, MOST),
            ("addresses.handshakes", self.handshakes, 1, 1 << 20, MOST),
            ("addresses.network_rate", self.network_rate, 1, 1 << 20, MOST),
            ("addresses.network_burst", self.network_burst, 1, 1 << 20, MOST),
            ("addresses.network_handshakes", self.network_handshakes, 1, 1 << 20, MOST),
            ("addresses.failures", self.failures, 2, 1 << 16, "it must be 2 to 65536"),
            ("addresses.waiting", self.waiting, 1, 1 << 16, "it must be 1 to 65536"),
            ("addresses.remembered", self.remembered, 1024, 16 << 20, "it must be 1024 to 16777216"),
        ])?;
        check_spans(&[
            ("addresses.failure_window", self.failure_window, 1, 86_400, "it must be 1s to 1d"),
            ("addresses.block", self.block, 1, 86_400, "it must be 1s to 1d"),
            ("addresses.block_at_most", self.block_at_most, 1, 86_400, "it must be 1s to 1d"),
        ])?;
        if self.block_at_most.0 < self.block.0 {
            let value = humantime::format_duration(self.block_at_most.0).to_string();
            let reason = "it must not be less than addresses.block".to_owned();
            return Err(Wrong { key: "addresses.block_at_most", value, reason });
        }
        Ok(())
    }
}
