//! Devices, for operators.

use doorward_pki::Fingerprint;
use doorward_proto::ids::DeviceId;
use serde::Serialize;
use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;
use time::OffsetDateTime;

use super::super::shared::{Phase, clean, decide, device_id, fingerprint, gather, repeated, revoked};
use super::super::{
    Act, Acted, DeviceDetail, DeviceFilter, DeviceStatus, DeviceSummary, Done, NewDevice, Presence,
    RegistryError, Result,
};
use super::rows::stamp;
use super::store::{hex, json};
use super::{Sqlite, audit, error, feed, quarantine, rows};

pub(super) async fn add(registry: &Sqlite, phase: &Phase, devices: &[NewDevice]) -> Result<()> {
    if let Some(repeated) = repeated(devices) {
        return Err(repeated);
    }
    let given = json(&devices.iter().map(given).collect::<Result<Vec<_>>>()?)?;
    let mut transaction = audit::begin(registry).await?;
    match insert(&mut transaction, &given).await {
        Ok(()) => audit::commit(phase, transaction).await,
        Err(error) if error::is_conflict(&error) => {
            // Rolled back first: what this list itself has inserted is no obstacle.
            transaction.rollback().await.map_err(error::read)?;
            let mut connection = registry.reader().await?;
            let found = obstacle(&mut connection, devices, &given).await.map_err(error::read)?;
            Err(found.unwrap_or_else(|| error::read(error)))
        }
        Err(error) => Err(error::read(error)),
    }
}

/// A device as an array; the places are those that the statements below name.
fn given(device: &NewDevice) -> Result<impl Serialize> {
    let certificate = &device.certificate;
    Ok((
        device.id.to_string(),
        device.fleet.to_string(),
        certificate.fingerprint.to_string(),
        certificate.serial.clone(),
        certificate.issuer.clone(),
        hex(&certificate.der),
        stamp(certificate.not_before)?,
        stamp(certificate.not_after)?,
        hex(&device.sealed_key),
    ))
}

async fn insert(connection: &mut SqliteConnection, given: &str) -> Result<(), sqlx::Error> {
    for sql in [
        "UPDATE feed SET adding = 1 WHERE ?1 IS NOT NULL",
        "INSERT INTO devices (id, fleet) SELECT value->>0, value->>1 FROM json_each(?1)",
        "INSERT INTO certificates (device, fingerprint, serial, issuer, der, not_before, not_after)
         SELECT value->>0, value->>2, value->>3, value->>4, unhex(value->>5), value->>6, value->>7 FROM json_each(?1)",
        "INSERT INTO hmac_keys (device, version, sealed, state)
         SELECT value->>0, 1, unhex(value->>8), 'active' FROM json_each(?1)",
        "UPDATE feed SET adding = 0 WHERE ?1 IS NOT NULL",
    ] {
        sqlx::query(sql).bind(given).execute(&mut *connection).await?;
    }
    Ok(())
}

/// What stands in the way of adding these devices.
async fn obstacle(
    connection: &mut SqliteConnection,
    devices: &[NewDevice],
    given: &str,
) -> Result<Option<RegistryError>, sqlx::Error> {
    let (taken, homeless, issued): (Option<i64>, Option<i64>, Option<i64>) = sqlx::query_as(
        "SELECT
            (SELECT min(n.key) FROM json_each(?1) n JOIN devices d ON lower(d.id) = lower(n.value->>0)),
            (SELECT min(n.key) FROM json_each(?1) n WHERE n.value->>1 NOT IN (SELECT id FROM fleets)),
            (SELECT min(n.key) FROM json_each(?1) n JOIN certificates c
                ON c.fingerprint = n.value->>2 OR (c.issuer = n.value->>4 AND c.serial = n.value->>3))",
    )
    .bind(given)
    .fetch_one(connection)
    .await?;
    let at = |place: i64| usize::try_from(place).ok().and_then(|place| devices.get(place));
    Ok(if let Some(device) = homeless.and_then(at) {
        Some(RegistryError::NotFound { kind: "fleet", id: device.fleet.to_string() })
    } else if let Some(device) = taken.and_then(at) {
        Some(exists("device", &device.id))
    } else {
        issued.and_then(at).map(|device| exists("certificate", &device.certificate.serial))
    })
}

fn exists(kind: &'static str, id: &impl ToString) -> RegistryError {
    RegistryError::Exists { kind, id: id.to_string() }
}

fn not_found(id: &DeviceId) -> RegistryError {
    RegistryError::NotFound { kind: "device", id: id.to_string() }
}

pub(super) async fn known(registry: &Sqlite, ids: &[DeviceId]) -> Result<Vec<(DeviceId, Vec<Fingerprint>)>> {
    let mut connection = registry.reader().await?;
    let found = sqlx::query(
        "SELECT d.id, c.fingerprint FROM devices d LEFT JOIN certificates c ON c.device = d.id
         WHERE lower(d.id) IN (SELECT value FROM json_each(?1)) ORDER BY d.id, c.not_before, c.fingerprint",
    )
    .bind(json(&ids.iter().map(|id| id.as_str().to_ascii_lowercase()).collect::<Vec<_>>())?)
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;

    gather(found.iter().map(|row| {
        let fingerprint = rows::get::<Option<&str>>(row, "fingerprint")?.map(fingerprint).transpose()?;
        Ok((device_id(rows::get(row, "id")?)?, fingerprint))
    }))
}

pub(super) async fn list(registry: &Sqlite, filter: &DeviceFilter) -> Result<Vec<DeviceSummary>> {
    let mut connection = registry.reader().await?;
    let found = sqlx::query(
        "SELECT d.id, d.fleet, d.status, d.reason, d.created, p.last_seen,
                (SELECT max(c.not_after) FROM certificates c WHERE c.device = d.id AND c.status = 'active') AS certificate_expires,
                (SELECT max(k.version) FROM hmac_keys k WHERE k.device = d.id AND k.state = 'active') AS key
         FROM devices d LEFT JOIN presence p ON p.device = d.id
         WHERE (?1 IS NULL OR d.fleet = ?1) AND (?2 IS NULL OR d.status = ?2)
             AND (?3 IS NULL OR d.id > ?3)
         ORDER BY d.id LIMIT ?4",
    )
    .bind(filter.fleet.as_ref().map(|fleet| fleet.as_str()))
    .bind(filter.status.map(DeviceStatus::as_str))
    .bind(filter.after.as_ref().map(|after| after.as_str()))
    .bind(i64::from(filter.limit))
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    found.iter().map(rows::summary).collect()
}

/// Four statements, one snapshot.
pub(super) async fn detail(registry: &Sqlite, id: &DeviceId) -> Result<Option<DeviceDetail>> {
    let mut connection = registry.reader().await?;
    let mut transaction = connection.begin().await.map_err(error::read)?;
    let summary = sqlx::query(
        "SELECT d.id, d.fleet, d.status, d.reason, d.created, p.last_seen,
                (SELECT max(c.not_after) FROM certificates c WHERE c.device = d.id AND c.status = 'active') AS certificate_expires,
                (SELECT max(k.version) FROM hmac_keys k WHERE k.device = d.id AND k.state = 'active') AS key
         FROM devices d LEFT JOIN presence p ON p.device = d.id WHERE d.id = ?1",
    )
    .bind(id.as_str())
    .fetch_optional(&mut *transaction)
    .await
    .map_err(error::read)?;
    let certificates = sqlx::query(
        "SELECT fingerprint, serial, issuer, der, not_before, not_after, status, valid_until, reason
         FROM certificates WHERE device = ?1 ORDER BY not_before DESC, fingerprint",
    )
    .bind(id.as_str())
    .fetch_all(&mut *transaction)
    .await
    .map_err(error::read)?;
    let keys = sqlx::query(
        "SELECT version, sealed, state, grace_until, grace_seconds FROM hmac_keys WHERE device = ?1 ORDER BY version",
    )
    .bind(id.as_str())
    .fetch_all(&mut *transaction)
    .await
    .map_err(error::read)?;
    let presence = sqlx::query(
        "SELECT p.*, d.fleet FROM presence p JOIN devices d ON d.id = p.device WHERE p.device = ?1",
    )
    .bind(id.as_str())
    .fetch_optional(&mut *transaction)
    .await
    .map_err(error::read)?;
    transaction.commit().await.map_err(error::read)?;

    let Some(summary) = summary else {
        return Ok(None);
    };
    Ok(Some(DeviceDetail {
        summary: rows::summary(&summary)?,
        certificates: certificates.iter().map(rows::certificate).collect::<Result<_>>()?,
        keys: keys.iter().filter_map(|row| rows::key(row).transpose()).collect::<Result<_>>()?,
        presence: presence.as_ref().map(rows::presence).transpose()?,
    }))
}

pub(super) async fn set_status(
    registry: &Sqlite,
    phase: &Phase,
    id: &DeviceId,
    act: Act,
    reason: Option<&str>,
) -> Result<Acted> {
    let mut transaction = audit::begin(registry).await?;
    let status = lock(&mut transaction, id).await?;
    let quarantined = quarantine::holds(&mut transaction, id).await?;
    let done = match decide(id, status, quarantined, act)? {
        Err(already) => {
            // Said again, so that the receipt is of now.
            feed::note(&mut transaction, "device", id.as_str()).await?;
            already
        }
        Ok(next) => {
            sqlx::query("UPDATE devices SET status = ?2, reason = ?3 WHERE id = ?1")
                .bind(id.as_str())
                .bind(next.as_str())
                .bind(reason.map(clean).filter(|_| next != DeviceStatus::Active))
                .execute(&mut *transaction)
                .await
                .map_err(error::read)?;
            Done::Changed
        }
    };
    let acted = acted(&mut transaction, id, done).await?;
    audit::commit(phase, transaction).await?;
    Ok(acted)
}

pub(super) async fn kick(registry: &Sqlite, phase: &Phase, id: &DeviceId) -> Result<Acted> {
    let mut transaction = audit::begin(registry).await?;
    if lock(&mut transaction, id).await? == DeviceStatus::Revoked {
        return Err(revoked(id));
    }
    feed::note(&mut transaction, "kick", id.as_str()).await?;
    let acted = acted(&mut transaction, id, Done::Changed).await?;
    audit::commit(phase, transaction).await?;
    Ok(acted)
}

pub(super) async fn acted(connection: &mut SqliteConnection, id: &DeviceId, done: Done) -> Result<Acted> {
    let session =
        sqlx::query_scalar("SELECT session FROM presence WHERE device = ?1 AND session IS NOT NULL")
            .bind(id.as_str())
            .fetch_optional(&mut *connection)
            .await
            .map_err(error::read)?;
    Ok(Acted { done, mark: feed::mark(connection).await?, session })
}

/// The device's status, held until the transaction's end.
pub(super) async fn lock(connection: &mut SqliteConnection, id: &DeviceId) -> Result<DeviceStatus> {
    let status: Option<String> = sqlx::query_scalar("SELECT status FROM devices WHERE id = ?1")
        .bind(id.as_str())
        .fetch_optional(connection)
        .await
        .map_err(error::read)?;
    DeviceStatus::read(&status.ok_or_else(|| not_found(id))?)
}

pub(super) async fn sessions(registry: &Sqlite, fresh: OffsetDateTime) -> Result<Vec<Presence>> {
    let mut connection = registry.reader().await?;
    let found = sqlx::query(
        "SELECT p.*, d.fleet FROM presence p JOIN devices d ON d.id = p.device
         WHERE p.session IS NOT NULL AND p.last_seen >= ?1 ORDER BY p.device",
    )
    .bind(stamp(fresh)?)
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    found.iter().map(rows::presence).collect()
}
