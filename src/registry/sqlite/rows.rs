//! Rows into the registry's types, and times into text and back.

use std::sync::Arc;
use std::time::Duration;

use doorward_pki::Fingerprint;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use time::format_description::FormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime, UtcOffset};

use super::super::shared::{count, device_id, fingerprint, fleet_id, key_version, message_id, unreadable};
use super::super::{
    CertificateRecord, CertificateStatus, DeviceStatus, DeviceSummary, KeyState, Presence, Record,
    RegistryError, Result, SealedKey, Standing, StoredMessage,
};

/// RFC 3339 in UTC with milliseconds: sorts as time does, and a person can read it.
const STAMP: &[FormatItem<'static>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// A time as the schema keeps it. Years outside 0 to 9999 have no such form.
pub(super) fn stamp(at: OffsetDateTime) -> Result<String> {
    let text = at.to_offset(UtcOffset::UTC).format(STAMP).ok();
    text.filter(|text| text.len() == 24)
        .ok_or_else(|| RegistryError::Internal(format!("the time {at} cannot be stored")))
}

/// The same from unix milliseconds.
pub(super) fn stamp_ms(ms: i64) -> Option<String> {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).ok()?;
    stamp(at).ok()
}

pub(super) fn get<'r, T>(row: &'r SqliteRow, column: &str) -> Result<T>
where
    T: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
{
    row.try_get(column).map_err(|error| unreadable(&error))
}

pub(super) fn moment(row: &SqliteRow, column: &str) -> Result<OffsetDateTime> {
    maybe_moment(row, column)?
        .ok_or_else(|| RegistryError::Corrupt(format!("no time in the column {column}")))
}

pub(super) fn maybe_moment(row: &SqliteRow, column: &str) -> Result<Option<OffsetDateTime>> {
    get::<Option<&str>>(row, column)?
        .map(|text| PrimitiveDateTime::parse(text, STAMP).map(PrimitiveDateTime::assume_utc))
        .transpose()
        .map_err(|error| RegistryError::Corrupt(format!("the time in the column {column}: {error}")))
}

pub(super) fn fingerprint_of(row: &SqliteRow) -> Result<Fingerprint> {
    fingerprint(get(row, "fingerprint")?)
}

/// `device, fleet, device_status, device_reason, policy, limits, schemas` and what a certificate is worth.
pub(super) fn record(row: &SqliteRow) -> Result<Record> {
    Ok(Record {
        device: device_id(get(row, "device")?)?,
        fleet: fleet_id(get(row, "fleet")?)?,
        status: DeviceStatus::read(get(row, "device_status")?)?,
        reason: get(row, "device_reason")?,
        certificate: Standing {
            not_after: moment(row, "not_after")?,
            status: CertificateStatus::read(get(row, "status")?)?,
            valid_until: maybe_moment(row, "valid_until")?,
            reason: get(row, "reason")?,
            supersedes: get(row, "supersedes")?,
            rotate_by: maybe_moment(row, "rotate_by")?,
        },
        keys: Vec::new(),
        policy: Arc::from(get::<&str>(row, "policy")?),
        limits: Arc::from(get::<&str>(row, "limits")?),
        schemas: Arc::from(get::<&str>(row, "schemas")?),
    })
}

pub(super) fn certificate(row: &SqliteRow) -> Result<CertificateRecord> {
    Ok(CertificateRecord {
        fingerprint: fingerprint_of(row)?,
        serial: get(row, "serial")?,
        issuer: get(row, "issuer")?,
        der: get(row, "der")?,
        not_before: moment(row, "not_before")?,
        not_after: moment(row, "not_after")?,
        status: CertificateStatus::read(get(row, "status")?)?,
        valid_until: maybe_moment(row, "valid_until")?,
        reason: get(row, "reason")?,
    })
}

/// `None` where an outer join found no key.
pub(super) fn key(row: &SqliteRow) -> Result<Option<SealedKey>> {
    let Some(version) = get::<Option<i64>>(row, "version")? else {
        return Ok(None);
    };
    Ok(Some(SealedKey {
        version: key_version(version)?,
        sealed: get(row, "sealed")?,
        state: KeyState::read(get(row, "state")?)?,
        grace_until: maybe_moment(row, "grace_until")?,
        grace: Duration::from_secs(count(get(row, "grace_seconds")?)),
    }))
}

pub(super) fn summary(row: &SqliteRow) -> Result<DeviceSummary> {
    Ok(DeviceSummary {
        id: device_id(get(row, "id")?)?,
        fleet: fleet_id(get(row, "fleet")?)?,
        status: DeviceStatus::read(get(row, "status")?)?,
        reason: get(row, "reason")?,
        created: moment(row, "created")?,
        certificate_expires: maybe_moment(row, "certificate_expires")?,
        key: get::<Option<i64>>(row, "key")?.map(key_version).transpose()?,
        last_seen: maybe_moment(row, "last_seen")?,
    })
}

pub(super) fn presence(row: &SqliteRow) -> Result<Presence> {
    Ok(Presence {
        device: device_id(get(row, "device")?)?,
        fleet: fleet_id(get(row, "fleet")?)?,
        gateway: get(row, "gateway")?,
        session: get(row, "session")?,
        epoch: get(row, "epoch")?,
        since: moment(row, "since")?,
        last_seen: moment(row, "last_seen")?,
        peer: get(row, "peer")?,
    })
}

pub(super) fn message(row: &SqliteRow) -> Result<StoredMessage> {
    Ok(StoredMessage {
        position: get(row, "position")?,
        device: device_id(get(row, "device")?)?,
        id: message_id(get(row, "id")?)?,
        channel: get(row, "channel")?,
        data: get(row, "data")?,
        at: maybe_moment(row, "at")?,
        received_at: moment(row, "received_at")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_sort_as_text() {
        assert_eq!(stamp_ms(1_700_000_000_123).as_deref(), Some("2023-11-14T22:13:20.123Z"));
        assert_eq!(stamp_ms(-1).as_deref(), Some("1969-12-31T23:59:59.999Z"));
        for ms in [i64::MIN, i64::MAX, -62_200_000_000_000, 253_402_300_800_000] {
            assert_eq!(stamp_ms(ms), None, "{ms}");
        }
    }
}
