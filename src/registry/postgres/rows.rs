//! Rows into the registry's types. Columns go by name, so a query may order them as it reads best.

use std::sync::Arc;
use std::time::Duration;

use doorward_pki::Fingerprint;
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::super::shared::{count, device_id, fingerprint, fleet_id, key_version, message_id, unreadable};
use super::super::{
    CertificateRecord, CertificateStatus, DeviceStatus, DeviceSummary, KeyState, Presence, Record, Result,
    SealedKey, Standing, StoredMessage,
};

pub(super) fn get<'r, T>(row: &'r PgRow, column: &str) -> Result<T>
where
    T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    row.try_get(column).map_err(|error| unreadable(&error))
}

pub(super) fn fingerprint_of(row: &PgRow) -> Result<Fingerprint> {
    fingerprint(get(row, "fingerprint")?)
}

/// `device, fleet, device_status, device_reason, policy, limits, schemas` and what a certificate is worth.
pub(super) fn record(row: &PgRow) -> Result<Record> {
    Ok(Record {
        device: device_id(get(row, "device")?)?,
        fleet: fleet_id(get(row, "fleet")?)?,
        status: DeviceStatus::read(get(row, "device_status")?)?,
        reason: get(row, "device_reason")?,
        certificate: Standing {
            not_after: get(row, "not_after")?,
            status: CertificateStatus::read(get(row, "status")?)?,
            valid_until: get(row, "valid_until")?,
            reason: get(row, "reason")?,
            supersedes: get(row, "supersedes")?,
            rotate_by: get(row, "rotate_by")?,
        },
        keys: Vec::new(),
        policy: Arc::from(get::<&str>(row, "policy")?),
        limits: Arc::from(get::<&str>(row, "limits")?),
        schemas: Arc::from(get::<&str>(row, "schemas")?),
    })
}

pub(super) fn certificate(row: &PgRow) -> Result<CertificateRecord> {
    Ok(CertificateRecord {
        fingerprint: fingerprint_of(row)?,
        serial: get(row, "serial")?,
        issuer: get(row, "issuer")?,
        der: get(row, "der")?,
        not_before: get(row, "not_before")?,
        not_after: get(row, "not_after")?,
        status: CertificateStatus::read(get(row, "status")?)?,
        valid_until: get(row, "valid_until")?,
        reason: get(row, "reason")?,
    })
}

/// `None` where an outer join found no key.
pub(super) fn key(row: &PgRow) -> Result<Option<SealedKey>> {
    let Some(version) = get::<Option<i32>>(row, "version")? else {
        return Ok(None);
    };
    Ok(Some(SealedKey {
        version: key_version(version.into())?,
        sealed: get(row, "sealed")?,
        state: KeyState::read(get(row, "state")?)?,
        grace_until: get(row, "grace_until")?,
        grace: Duration::from_secs(count(get(row, "grace_seconds")?)),
    }))
}

pub(super) fn summary(row: &PgRow) -> Result<DeviceSummary> {
    Ok(DeviceSummary {
        id: device_id(get(row, "id")?)?,
        fleet: fleet_id(get(row, "fleet")?)?,
        status: DeviceStatus::read(get(row, "status")?)?,
        reason: get(row, "reason")?,
        created: get(row, "created")?,
        certificate_expires: get(row, "certificate_expires")?,
        key: get::<Option<i32>>(row, "key")?.map(|version| key_version(version.into())).transpose()?,
        last_seen: get(row, "last_seen")?,
    })
}

pub(super) fn presence(row: &PgRow) -> Result<Presence> {
    Ok(Presence {
        device: device_id(get(row, "device")?)?,
        fleet: fleet_id(get(row, "fleet")?)?,
        gateway: get(row, "gateway")?,
        session: get(row, "session")?,
        epoch: get(row, "epoch")?,
        since: get(row, "since")?,
        last_seen: get(row, "last_seen")?,
        peer: get(row, "peer")?,
    })
}

pub(super) fn message(row: &PgRow) -> Result<StoredMessage> {
    Ok(StoredMessage {
        position: get(row, "position")?,
        device: device_id(get(row, "device")?)?,
        id: message_id(get(row, "id")?)?,
        channel: get(row, "channel")?,
        data: get(row, "data")?,
        at: get(row, "at")?,
        received_at: get(row, "received_at")?,
    })
}
