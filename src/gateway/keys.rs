//! Tells the registry which devices have signed with a key that was pending.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use doorward_proto::ids::{DeviceId, KeyVersion};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Gateway;
use crate::registry::RegistryError;

/// Between tries while the registry does not answer.
const RETRY: Duration = Duration::from_secs(1);

/// What waits to be told: one for each device, and so no more than there are devices.
#[derive(Debug, Default)]
pub(crate) struct ConfirmedKeys {
    waiting: Mutex<HashMap<DeviceId, KeyVersion>>,
    news: Notify,
}

impl ConfirmedKeys {
    fn lock(&self) -> MutexGuard<'_, HashMap<DeviceId, KeyVersion>> {
        // Each change is one insert or remove.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn put(&self, device: &DeviceId, version: KeyVersion) {
        self.lock().insert(device.clone(), version);
        self.news.notify_one();
    }

    fn next(&self) -> Option<(DeviceId, KeyVersion)> {
        self.lock().iter().next().map(|(device, version)| (device.clone(), *version))
    }

    /// It has been told; what has come since stays.
    fn done(&self, device: &DeviceId, version: KeyVersion) {
        let mut waiting = self.lock();
        if waiting.get(device) == Some(&version) {
            waiting.remove(device);
        }
    }
}

/// Runs until it is stopped. What has not been told by then, the next message with that key tells.
pub(super) async fn run(gateway: Arc<Gateway>, stop: CancellationToken) {
    let told = async {
        loop {
            gateway.confirmed_keys.news.notified().await;
            while let Some((device, version)) = gateway.confirmed_keys.next() {
                tell(&gateway, &device, version).await;
            }
        }
    };
    tokio::select! {
        () = told => {}
        () = stop.cancelled() => {}
    }
}

async fn tell(gateway: &Gateway, device: &DeviceId, version: KeyVersion) {
    match gateway.registry.confirm_key(device, version).await {
        Ok(true) => {
            info!(%device, %version, "the device has its new key; the grace of the one before it begins")
        }
        Ok(false) => {}
        Err(RegistryError::Unavailable(_) | RegistryError::Unknown(_)) => {
            tokio::time::sleep(RETRY).await;
            return;
        }
        // Retired or suspended meanwhile: the registry's word counts.
        Err(error) => {
            warn!(%device, %version, %error, "a key that a device has signed with is not confirmed")
        }
    }
    gateway.confirmed_keys.done(device, version);
}
