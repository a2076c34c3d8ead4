//! What has become of connections before TLS.

use std::sync::atomic::{AtomicU64, Ordering};

use super::family::{Label, PerLabel};
use super::page::Page;

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
    /// An address, or its network, has its share of those who wait.
    AddressWaiting,
    /// The last places are for addresses that have proven themselves.
    Reserved,
    /// A known address has its share of those.
    AddressReserved,
    /// A proxy that did not say for whom it connects.
    NotProxied,
    /// The process has as many files open as it may.
    NoDescriptors,
}

impl Label for Turned {
    const ALL: &'static [Self] = &[
        Self::AddressRate,
        Self::NetworkRate,
        Self::AddressHandshakes,
        Self::NetworkHandshakes,
        Self::Blocked,
        Self::Waiting,
        Self::AddressWaiting,
        Self::Reserved,
        Self::AddressReserved,
        Self::NotProxied,
        Self::NoDescriptors,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::AddressRate => "address_rate",
            Self::NetworkRate => "network_rate",
            Self::AddressHandshakes => "address_handshakes",
            Self::NetworkHandshakes => "network_handshakes",
            Self::Blocked => "blocked",
            Self::Waiting => "waiting",
            Self::AddressWaiting => "address_waiting",
            Self::Reserved => "reserved",
            Self::AddressReserved => "address_reserved",
            Self::NotProxied => "not_proxied",
            Self::NoDescriptors => "no_descriptors",
        }
    }
}

/// What has happened at the door since the start.
#[derive(Debug, Default)]
pub struct DoorCounters {
    turned: PerLabel<Turned>,
    slowed: AtomicU64,
    failures: AtomicU64,
    blocks: AtomicU64,
    repeated: AtomicU64,
}

impl DoorCounters {
    pub(crate) fn turned(&self, why: Turned) {
        self.turned.add(why);
    }
    pub(crate) fn slow_down(&self) {
        self.slowed.fetch_add(1, Ordering::Relaxed);
    }
    pub(crate) fn failure(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }
    pub(crate) fn block(&self) {
        self.blocks.fetch_add(1, Ordering::Relaxed);
    }
    pub(crate) fn repeat(&self) {
        self.repeated.fetch_add(1, Ordering::Relaxed);
    }

    /// Connections closed before TLS, by the label of the reason: every reason there is.
    pub fn closed(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.turned.each().map(|(turned, count)| (turned.label(), count))
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

    /// Refusals that were said again without asking the registry.
    #[must_use]
    pub fn repeated(&self) -> u64 {
        self.repeated.load(Ordering::Relaxed)
    }

    pub(super) fn collect(&self, page: &mut Page) {
        page.counters(
            "doorward_connections_turned_away_total",
            "Connections closed without a word before TLS, for a limit of addresses or for want of room.",
            "reason",
            &self.turned,
        );
        page.counter(
            "doorward_connections_slowed_total",
            "Connections that had to wait before their handshake went on.",
            self.slowed(),
        );
        page.counter(
            "doorward_address_failures_total",
            "Handshakes that counted against their address.",
            self.failures(),
        );
        page.counter("doorward_address_blocks_total", "How often an address was blocked.", self.blocks());
        page.counter(
            "doorward_refusals_repeated_total",
            "Refusals of certificates that come back too often, said again without asking the registry.",
            self.repeated(),
        );
    }
}
