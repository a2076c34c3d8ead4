//! Devices that a gateway suspends by itself.

use std::time::Duration;

use async_trait::async_trait;
use doorward_proto::ids::DeviceId;

use super::Result;

/// The actor in the audit, whichever gateway it is.
pub(super) const ACTOR: &str = "gateway";

/// The part of the registry that gateways may act on: a narrow door.
#[async_trait]
pub trait Quarantine {
    /// Suspends an active device for so long, or until somebody resumes it. Whether it did: what is suspended already or revoked
    /// stays as it is, and so does a device that is not there.
    async fn quarantine(
        &self,
        id: &DeviceId,
        gateway: &str,
        reason: &str,
        lasts: Option<Duration>,
    ) -> Result<bool>;
    /// Resumes the devices whose quarantine is over, whichever gateway began it; at most a thousand. How many.
    async fn end_quarantines(&self) -> Result<u64>;
}
