//! What has become of connections before TLS.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a connection is closed before its first byte counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turned {
    /// More new connections than an address may make.
    AddressRate,
    /// More than a network may make.
    NetworkRate,
    /// More handshakes under way than an address may have.
    AddressHandshakes,
    /// More than a network may have.
    NetworkHandshakes,
    /// The address has failed too often.
    Blocked,
    /// As many wait for their turn as may.
    Waiting,
    /// The last places are for addresses that have proven themselves.
    Reserved,
    /// A proxy that did not say for whom it connects.
    NotProxied,
    /// The process has as many files open as it may.
    NoDescriptors,
}

impl Turned {
    pub(crate) const ALL: [Self; 9] = [
        Self::AddressRate,
        Self::NetworkRate,
        Self::AddressHandshakes,
        Self::NetworkHandshakes,
        Self::Blocked,
        Self::Waiting,
        Self::Reserved,
        Self::NotProxied,
        Self::NoDescriptors,
    ];

    /// The label in logs and counters.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::AddressRate => "address_rate",
            Self::NetworkRate => "network_rate",
            Self::AddressHandshakes => "address_handshakes",
            Self::NetworkHandshakes => "network_handshakes",
            Self::Blocked => "blocked",
            Self::Waiting => "waiting",
            Self::Reserved => "reserved",
            Self::NotProxied => "not_proxied",
            Self::NoDescriptors => "no_descriptors",
        }
    }
}

/// What has happened at the door since the start.
#[derive(Debug, Default)]
pub struct DoorCounters {
    turned: [AtomicU64; Turned::ALL.len()],
    slowed: AtomicU64,
    failures: AtomicU64,
    blocks: AtomicU64,
}

impl DoorCounters {
    pub(crate) fn turned(&self, why: Turned) {
        let at = Turned::ALL.iter().position(|turned| *turned == why);
        super::add(at.and_then(|at| self.turned.get(at)));
    }
    pub(crate) fn slow_down(&self) {
        super::add(Some(&self.slowed));
    }
    pub(crate) fn failure(&self) {
        super::add(Some(&self.failures));
    }
    pub(crate) fn block(&self) {
        super::add(Some(&self.blocks));
    }

    /// Connections closed before TLS, by the label of the reason: every reason there is.
    pub fn closed(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Turned::ALL.iter().map(|turned| turned.label()).zip(self.turned.iter().map(get))
    }

    /// How many were closed before TLS for one reason, by its label.
    #[must_use]
    pub fn closed_for(&self, label: &str) -> u64 {
        self.closed().find(|(other, _)| *other == label).map_or(0, |(_, count)| count)
    }

    /// Connections that had to wait before their handshake went on.
    #[must_use]
    pub fn slowed(&self) -> u64 {
        self.slowed.load(Ordering::Relaxed)
    }

    /// Handshakes that counted against their address.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// How often an address was blocked.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Relaxed)
    }
}
