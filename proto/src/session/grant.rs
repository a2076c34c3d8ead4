//! What a session may do, and what holds for all sessions of a gateway.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use crate::close::Close;
use crate::downlink::{LimitsChange, Rekey, Welcome};
use crate::ids::{DeviceId, FleetId, KeyVersion};
use crate::key::{KEY_BYTES, Key, Keyring};
use crate::limits::Limits;
use crate::policy::Policy;
use crate::schema::Schemas;
use crate::time::NumericDate;

/// What the registry says of a device, ready for use.
#[derive(Debug, Clone)]
pub struct Grant {
    /// The device.
    pub device: DeviceId,
    /// Its fleet.
    pub fleet: FleetId,
    /// The key versions that it may sign with.
    pub keyring: Keyring,
    /// The key that the gateway signs with.
    pub signer: Key,
    /// The fleet's policy.
    pub policy: Arc<Policy>,
    /// What its messages' data must be like, where the fleet says so.
    pub schemas: Option<Arc<dyn Schemas>>,
    /// The session's limits.
    pub limits: Limits,
    /// When the certificate expires.
    pub certificate_expires: NumericDate,
    /// When the certificate's grace ends, for a superseded one.
    pub grace_ends: Option<NumericDate>,
    /// When the gateway begins to ask for a renewal, where it does.
    pub renew_from: Option<NumericDate>,
    /// Until when an operator wants the certificate renewed, if one does.
    pub rotate_by: Option<NumericDate>,
    /// The certificate has expired, and this session can do nothing but renew it, until `grace_ends`.
    pub late: bool,
    /// A key version that the device is to be given and has not confirmed.
    pub pending: Option<Box<PendingKey>>,
}

/// A key on its way to its device.
#[derive(Clone)]
pub struct PendingKey {
    /// Its version, which is in the keyring, too.
    pub version: KeyVersion,
    /// Its bytes.
    pub key: Zeroizing<[u8; KEY_BYTES]>,
    /// How long the older one holds once this one is confirmed.
    pub grace: Duration,
}

impl fmt::Debug for PendingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PendingKey(version {}, redacted)", self.version)
    }
}

impl PendingKey {
    pub(super) fn rekey(&self) -> Rekey {
        Rekey {
            version: self.version,
            key: Zeroizing::new(URL_SAFE_NO_PAD.encode(self.key.as_slice())),
            grace: self.grace.as_secs(),
        }
    }
}

impl Grant {
    /// When the certificate stops holding, and how the session ends then.
    pub(super) fn certificate_end(&self) -> (NumericDate, Close) {
        match self.grace_ends {
            Some(end) if self.late => (end, Close::CertificateExpired),
            Some(end) if end < self.certificate_expires => (end, Close::Suspended),
            _ => (self.certificate_expires, Close::CertificateExpired),
        }
    }

    pub(super) fn welcome(&self, gateway: &str) -> Welcome {
        Welcome {
            max_message_bytes: self.limits.max_message_bytes,
            max_skew: self.limits.max_skew.as_secs_f64(),
            heartbeat: self.limits.heartbeat.as_secs_f64(),
            rate: self.limits.rate,
            key: self.signer.version(),
            certificate_expires: self.certificate_expires,
            gateway: gateway.to_owned(),
        }
    }

    /// What of the members of `welcome` differs from what the device was told.
    pub(super) fn changes_since(&self, told: &Self) -> LimitsChange {
        let (was, is) = (&told.limits, &self.limits);
        LimitsChange {
            max_message_bytes: changed(was.max_message_bytes, is.max_message_bytes),
            max_skew: changed(was.max_skew, is.max_skew).map(|skew| skew.as_secs_f64()),
            heartbeat: changed(was.heartbeat, is.heartbeat).map(|heartbeat| heartbeat.as_secs_f64()),
            rate: changed(was.rate, is.rate),
            key: changed(told.signer.version(), self.signer.version()),
            certificate_expires: changed(told.certificate_expires, self.certificate_expires),
        }
    }
}

fn changed<T: PartialEq>(was: T, is: T) -> Option<T> {
    (was != is).then_some(is)
}

/// What holds for all sessions of a gateway.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The gateway's name.
    pub gateway: Arc<str>,
    /// How long a strike counts.
    pub strike_window: Duration,
    /// How long a session may stay unproven.
    pub proof_within: Duration,
    /// The most subscriptions of a session.
    pub max_subscriptions: usize,
}

impl Settings {
    /// The protocol's defaults, under this gateway's name.
    #[must_use]
    pub fn new(gateway: Arc<str>) -> Self {
        Self {
            gateway,
            strike_window: Duration::from_secs(60),
            proof_within: Duration::from_secs(30),
            max_subscriptions: 32,
        }
    }
}
