//! Tells the registry which devices have shown a credential that is to take an older one's place: a message signed with a
//! pending key, a proven session by a renewed certificate.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use doorward_proto::ids::DeviceId;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Gateway;
use crate::registry::RegistryError;
use crate::registry::renewals::{GATHER, Shown};

/// Between tries while the registry does not answer.
const RETRY: Duration = Duration::from_secs(1);
/// What one transaction tells: a rotated fleet is told in few, and none of them keeps the store waiting for long.
const AT_ONCE: usize = 64;

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

    /// Some of what waits.
    fn some(&self) -> Vec<(DeviceId, Shown)> {
        self.lock().iter().take(AT_ONCE).cloned().collect()
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
            loop {
                let some = gateway.shown.some();
                if some.is_empty() {
                    break;
                }
                tell(&gateway, &some).await;
                tokio::time::sleep(GATHER).await;
            }
        }
    };
    tokio::select! {
        () = told => {}
        () = stop.cancelled() => {}
    }
}

async fn tell(gateway: &Gateway, some: &[(DeviceId, Shown)]) {
    let outcomes = match gateway.registry.confirm(some).await {
        Ok(outcomes) => outcomes,
        Err(RegistryError::Unavailable(_) | RegistryError::Unknown(_)) => {
            tokio::time::sleep(RETRY).await;
            return;
        }
        Err(error) => {
            // A right that is missing, a row that cannot be read: whose it is shows one by one.
            if let [one] = some {
                warn!(device = %one.0, %error, "a credential that a device has shown is not confirmed");
                gateway.shown.done(one);
            } else {
                for one in some {
                    Box::pin(tell(gateway, std::slice::from_ref(one))).await;
                }
            }
            return;
        }
    };
    for (one, outcome) in some.iter().zip(outcomes) {
        let device = &one.0;
        match (outcome, &one.1) {
            (Ok(true), Shown::Key(version)) => {
                info!(%device, %version, "the device has its new key; the grace of the one before it begins");
            }
            (Ok(true), Shown::Certificate(certificate)) => {
                info!(%device, %certificate, "the device has its new certificate; the grace of the one before it begins");
            }
            (Ok(false), _) => {}
            // Retired, revoked or suspended meanwhile: the registry's word counts.
            (Err(why), _) => warn!(%device, %why, "a credential that a device has shown is not confirmed"),
        }
        gateway.shown.done(one);
    }
}
