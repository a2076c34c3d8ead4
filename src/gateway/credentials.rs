//! Tells the registry which devices have shown a credential that is to take an older one's place: a message signed with a
//! pending key, a proven session by a renewed certificate.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use doorward_pki::Fingerprint;
use doorward_proto::ids::{DeviceId, KeyVersion};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Gateway;
use crate::registry::RegistryError;

/// Between tries while the registry does not answer.
const RETRY: Duration = Duration::from_secs(1);

/// What a device has shown.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Shown {
    /// It has signed with a key that was pending.
    Key(KeyVersion),
    /// A session by a certificate that was renewed from another has been proven.
    Certificate(Fingerprint),
}

/// What waits to be told: a few for each device that is here, and so no more than sessions times that.
#[derive(Debug, Default)]
pub(crate) struct ShownCredentials {
    waiting: Mutex<HashSet<(DeviceId, Shown)>>,
    news: Notify,
}

impl ShownCredentials {
    fn lock(&self) -> MutexGuard<'_, HashSet<(DeviceId, Shown)>> {
        // Each change is one insert or remove.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn put(&self, device: &DeviceId, shown: Shown) {
        self.lock().insert((device.clone(), shown));
        self.news.notify_one();
    }

    fn next(&self) -> Option<(DeviceId, Shown)> {
        self.lock().iter().next().cloned()
    }

    fn done(&self, told: &(DeviceId, Shown)) {
        self.lock().remove(told);
    }
}

/// Runs until it is stopped. What has not been told by then, the device's next session tells.
pub(super) async fn run(gateway: Arc<Gateway>, stop: CancellationToken) {
    let told = async {
        loop {
            gateway.shown.news.notified().await;
            while let Some(shown) = gateway.shown.next() {
                tell(&gateway, shown).await;
            }
        }
    };
    tokio::select! {
        () = told => {}
        () = stop.cancelled() => {}
    }
}

async fn tell(gateway: &Gateway, shown: (DeviceId, Shown)) {
    let device = &shown.0;
    let told = match &shown.1 {
        Shown::Key(version) => gateway.registry.confirm_key(device, *version).await,
        Shown::Certificate(certificate) => gateway.registry.confirm_certificate(certificate).await,
    };
    match (told, &shown.1) {
        (Ok(true), Shown::Key(version)) => {
            info!(%device, %version, "the device has its new key; the grace of the one before it begins");
        }
        (Ok(true), Shown::Certificate(certificate)) => {
            info!(%device, %certificate, "the device has its new certificate; the grace of the one before it begins");
        }
        (Ok(false), _) => {}
        (Err(RegistryError::Unavailable(_) | RegistryError::Unknown(_)), _) => {
            tokio::time::sleep(RETRY).await;
            return;
        }
        // Retired, revoked or suspended meanwhile: the registry's word counts.
        (Err(error), _) => warn!(%device, %error, "a credential that a device has shown is not confirmed"),
    }
    gateway.shown.done(&shown);
}
