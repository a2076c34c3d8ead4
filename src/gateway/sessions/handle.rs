//! A session as the rest of the gateway sees it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use doorward_pki::identity::Fingerprint;
use doorward_proto::ids::{DeviceId, FleetId, KeyVersion};
use doorward_proto::time::NumericDate;

use super::super::mailbox::Mailbox;
use super::Spent;
use crate::clock;
use crate::registry::Claim;
use crate::sink::Backlog;
use crate::tls::Origin;

/// A session as the rest of the gateway sees it.
#[derive(Debug)]
pub(crate) struct Handle {
    /// Its name in logs and in the registry.
    pub(crate) id: Arc<str>,
    /// Whose.
    pub(crate) device: DeviceId,
    /// In which fleet, when its record was last read.
    pub(crate) fleet: Mutex<FleetId>,
    /// From where.
    pub(crate) peer: SocketAddr,
    /// By which certificate.
    pub(crate) certificate: Fingerprint,
    /// When that ends, as it says itself.
    pub(crate) certificate_ends: time::OffsetDateTime,
    /// When the gateway begins to ask for its renewal by itself.
    pub(crate) asks_from: NumericDate,
    /// Where that comes from.
    pub(crate) origin: Origin,
    /// That was renewed from one that is active still.
    pub(crate) supersedes: bool,
    /// The key version that the gateway was asked to sign with.
    pub(crate) key: Option<KeyVersion>,
    /// Where mail goes.
    pub(crate) mailbox: Mailbox,
    /// When it was last heard, in unix milliseconds.
    pub(crate) heard_ms: AtomicI64,
    /// Publishes of it that wait for the store.
    pub(crate) backlog: Backlog,
    /// The store refused it a message as not the device's newest session: it has to be judged again.
    pub(crate) suspect: AtomicBool,
    /// When the change was made that ends it, on the monotonic clock.
    pub(crate) cut_since: OnceLock<Duration>,
    /// What its device has used of its limits.
    pub(crate) spent: Arc<Spent>,
    /// When it was proven.
    pub(crate) proven_at: OnceLock<time::OffsetDateTime>,
}

impl Handle {
    /// A session that nobody has heard yet.
    pub(crate) fn new(
        id: Arc<str>,
        device: DeviceId,
        fleet: FleetId,
        peer: SocketAddr,
        certificate: Fingerprint,
    ) -> Self {
        Self {
            id,
            device,
            fleet: Mutex::new(fleet),
            peer,
            certificate,
            certificate_ends: time::OffsetDateTime::UNIX_EPOCH,
            asks_from: NumericDate::default(),
            origin: Origin::default(),
            supersedes: false,
            key: None,
            mailbox: Mailbox::default(),
            heard_ms: AtomicI64::new(0),
            backlog: Backlog::default(),
            suspect: AtomicBool::new(false),
            cut_since: OnceLock::new(),
            spent: Arc::default(),
            proven_at: OnceLock::new(),
        }
    }

    pub(super) fn is_in(&self, fleet: &FleetId) -> bool {
        *self.fleet.lock().unwrap_or_else(PoisonError::into_inner) == *fleet
    }

    /// The device's place in the registry, for this session.
    pub(crate) fn claim(&self, gateway: &Arc<str>) -> Claim {
        Claim {
            device: self.device.clone(),
            session: Arc::clone(&self.id),
            gateway: Arc::clone(gateway),
            peer: self.peer.to_string(),
            at: self.proven_at.get().copied().unwrap_or_else(clock::utc),
            late: false,
        }
    }

    /// How long ago the change was made that ends this session.
    pub(crate) fn cut_after(&self) -> Option<Duration> {
        self.cut_since.get().map(|since| clock::now().monotonic.saturating_sub(*since))
    }

    /// The record has been read again.
    pub(crate) fn moved_to(&self, fleet: &FleetId) {
        fleet.clone_into(&mut self.fleet.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
