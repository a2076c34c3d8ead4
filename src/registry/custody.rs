//! Custody of the devices' keys: which master keys have sealed them, which of them gateways hold, and how one takes another's
//! place.

use async_trait::async_trait;
use doorward_proto::ids::{DeviceId, KeyVersion};
use time::OffsetDateTime;

use super::Result;

/// A key as the registry keeps it, whatever its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRow {
    /// Whose it is.
    pub device: DeviceId,
    /// Which version.
    pub version: KeyVersion,
    /// The key, sealed by a master key.
    pub sealed: Vec<u8>,
}

/// A key that another master key has sealed.
#[derive(Debug, Clone)]
pub struct Resealed {
    /// As it was read.
    pub was: KeyRow,
    /// The same key, sealed by the other one.
    pub sealed: Vec<u8>,
}

/// A gateway that may serve, and the master keys that it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its name.
    pub gateway: String,
    /// The program's version.
    pub version: String,
    /// Until when it may serve, whatever becomes of it.
    pub serves_until: OffsetDateTime,
    /// Their ids. `None`: this run has not said.
    pub keys: Option<Vec<String>>,
}

/// The registry's part in the life of master keys. Ids are those of [`doorward_pki::MasterKey::id`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MasterKeyUse {
    /// How many keys each has sealed, in the order of ids. What is no sealed key at all counts for what its bytes say.
    pub sealed: Vec<(String, u64)>,
    /// The one that takes the current one's place, from when that has begun until it is finished.
    pub next: Option<String>,
    /// Those whose place was taken.
    pub retired: Vec<String>,
}

/// The part of the registry that concerns master keys.
#[async_trait]
pub trait Custody {
    /// Notes the master keys that this run of a gateway holds. `false` where the name has become another run's.
    async fn note_master_keys(&self, name: &str, instance: &str, ids: &[String]) -> Result<bool>;
    /// The gateways that may serve, in the order of names.
    async fn master_key_holders(&self) -> Result<Vec<Holder>>;
    /// Which master keys are in use, and which are not any more.
    async fn master_keys(&self) -> Result<MasterKeyUse>;
    /// Notes that a master key takes the current one's place. `Some`: another one is about to, has sealed keys already, and
    /// nothing is changed. [`RegistryError::Refused`](super::RegistryError::Refused) for one that is retired.
    async fn begin_rewrap(&self, next: &str) -> Result<Option<String>>;
    /// A page of the keys that this master key has not sealed, retired ones too, in the order of devices and versions.
    async fn not_sealed_by(
        &self,
        id: &str,
        after: Option<&(DeviceId, KeyVersion)>,
        limit: u32,
    ) -> Result<Vec<KeyRow>>;
    /// Puts keys that were sealed again in the place of those that were read, all in one transaction. A row that has changed
    /// since stays as it is. How many were put.
    async fn reseal(&self, keys: &[Resealed]) -> Result<u64>;
    /// Retires the old master key, if no more than `most` keys are left that it has sealed: from then on nobody can store a
    /// key that it has sealed. How many are left.
    async fn finish_rewrap(&self, old: &str, next: &str, most: u64) -> Result<u64>;
}

/// Ids as the column keeps them.
pub(super) fn split(ids: &str) -> Vec<String> {
    ids.split_whitespace().map(str::to_owned).collect()
}
