//! What stands around a device in the registry, for whoever asks why it cannot connect.

use async_trait::async_trait;
use doorward_proto::ids::{DeviceId, FleetId};
use time::OffsetDateTime;

use super::{GatewayStatus, Result};

/// Changes that a gateway has not confirmed are counted so far.
pub const MOST_BEHIND: u32 = 1000;

/// What is neither the device's nor its fleet's own, and yet decides.
#[derive(Debug)]
pub struct Insight {
    /// The gateways that ever served, in the order of names.
    pub gateways: Vec<Follower>,
    /// Whether a gateway has suspended it, and until when if that ends by itself.
    pub quarantine: Option<Option<OffsetDateTime>>,
    /// The database's clock.
    pub now: OffsetDateTime,
}

/// A gateway, and how far behind the registry it is.
#[derive(Debug, Clone)]
pub struct Follower {
    /// As it is listed. `confirmed` says whether the last change to the device and its fleet has taken effect there.
    pub status: GatewayStatus,
    /// Changes of any kind that it has not confirmed yet, up to [`MOST_BEHIND`].
    pub behind: u64,
    /// When the oldest of them was made.
    pub since: Option<OffsetDateTime>,
}

/// The part of the registry that explains.
#[async_trait]
pub trait Insights {
    /// What stands around a device of this fleet.
    async fn insight(&self, device: &DeviceId, fleet: &FleetId) -> Result<Insight>;
}

/// How far behind a gateway of this name is.
pub(super) type Lag = (String, u64, Option<OffsetDateTime>);

/// One that has been listed and has no lag has been removed in between.
pub(super) fn join(listed: Vec<GatewayStatus>, lags: &[Lag]) -> Vec<Follower> {
    let joined = listed.into_iter().filter_map(|status| {
        let (_, behind, since) = lags.iter().find(|(name, ..)| *name == status.name)?;
        Some(Follower { status, behind: *behind, since: *since })
    });
    joined.collect()
}
