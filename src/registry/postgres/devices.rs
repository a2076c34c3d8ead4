//! Devices, for operators.

use doorward_pki::Fingerprint;
use doorward_proto::ids::DeviceId;
use sqlx::Connection;
use sqlx::postgres::PgConnection;
use time::OffsetDateTime;

use super::super::shared::{Phase, clean, decide, device_id, fingerprint, gather, repeated, revoked};
use super::super::{
    Act, Acted, DeviceDetail, DeviceFilter, DeviceStatus, DeviceSummary, Done, NewDevice, Presence,
    RegistryError, Result,
};
use super::{Postgres, audit, error, feed, rows};

pub(super) async fn add(registry: &Postgres, phase: &Phase, devices: &[NewDevice]) -> Result<()> {
    if let Some(repeated) = repeated(devices) {
        return Err(repeated);
    }
    let mut connection = registry.operator().await?;
    let mut transaction = audit::begin(registry, &mut connection).await?;
    match insert(&mut transaction, devices).await {
        Ok(()) => phase.commit(transaction).await.map_err(error::commit)?,
        Err(error) if error::is_conflict(&error) => {
            transaction.rollback().await.map_err(error::read)?;
            let found = obstacle(&mut connection, devices).await.map_err(error::read)?;
            connection.release();
            return Err(found.unwrap_or_else(|| error::read(error)));
        }
        Err(error) => return Err(error::read(error)),
    }
    connection.release();
    Ok(())
}

async fn insert(connection: &mut PgConnection, devices: &[NewDevice]) -> Result<(), sqlx::Error> {
    let ids: Vec<&str> = devices.iter().map(|device| device.id.as_str()).collect();
    let certificates = || devices.iter().map(|device| &device.certificate);
    sqlx::query("INSERT INTO devices (id, fleet) SELECT * FROM unnest($1::text[], $2::text[])")
        .bind(&ids)
        .bind(devices.iter().map(|device| device.fleet.as_str()).collect::<Vec<_>>())
        .execute(&mut *connection)
        .await?;
    sqlx::query(
        "INSERT INTO certificates (device, fingerprint, serial, issuer, der, not_before, not_after)
         SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::timestamptz[], $7::timestamptz[])",
    )
    .bind(&ids)
    .bind(certificates().map(|c| c.fingerprint.to_string()).collect::<Vec<_>>())
    .bind(certificates().map(|c| c.serial.as_str()).collect::<Vec<_>>())
    .bind(certificates().map(|c| c.issuer.as_str()).collect::<Vec<_>>())
    .bind(certificates().map(|c| c.der.as_slice()).collect::<Vec<_>>())
    .bind(certificates().map(|c| c.not_before).collect::<Vec<_>>())
    .bind(certificates().map(|c| c.not_after).collect::<Vec<_>>())
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "INSERT INTO hmac_keys (device, version, sealed, state)
         SELECT k.device, 1, k.sealed, 'active' FROM unnest($1::text[], $2::bytea[]) AS k (device, sealed)",
    )
    .bind(&ids)
    .bind(devices.iter().map(|device| device.sealed_key.as_slice()).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// What stands in the way of adding these devices.
async fn obstacle(
    connection: &mut PgConnection,
    devices: &[NewDevice],
) -> Result<Option<RegistryError>, sqlx::Error> {
    let at = |place: i64| usize::try_from(place - 1).ok().and_then(|place| devices.get(place));
    let homeless: Option<i64> = sqlx::query_scalar(
        "SELECT n.place FROM unnest($1::text[]) WITH ORDINALITY AS n (id, place)
         WHERE NOT EXISTS (SELECT FROM fleets f WHERE f.id = n.id) ORDER BY n.place LIMIT 1",
    )
    .bind(devices.iter().map(|device| device.fleet.as_str()).collect::<Vec<_>>())
    .fetch_optional(&mut *connection)
    .await?;
    if let Some(device) = homeless.and_then(at) {
        return Ok(Some(RegistryError::NotFound { kind: "fleet", id: device.fleet.to_string() }));
    }
    let taken: Option<i64> = sqlx::query_scalar(
        "SELECT n.place FROM unnest($1::text[]) WITH ORDINALITY AS n (id, place)
         JOIN devices d ON lower(d.id) = lower(n.id COLLATE \"C\") ORDER BY n.place LIMIT 1",
    )
    .bind(devices.iter().map(|device| device.id.as_str()).collect::<Vec<_>>())
    .fetch_optional(&mut *connection)
    .await?;
    if let Some(device) = taken.and_then(at) {
        return Ok(Some(exists("device", &device.id)));
    }
    let issued: Option<i64> = sqlx::query_scalar(
        "SELECT n.place FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS n (fingerprint, issuer, serial, place)
         JOIN certificates c ON c.fingerprint = n.fingerprint OR (c.issuer = n.issuer AND c.serial = n.serial)
         ORDER BY n.place LIMIT 1",
    )
    .bind(devices.iter().map(|device| device.certificate.fingerprint.to_string()).collect::<Vec<_>>())
    .bind(devices.iter().map(|device| device.certificate.issuer.as_str()).collect::<Vec<_>>())
    .bind(devices.iter().map(|device| device.certificate.serial.as_str()).collect::<Vec<_>>())
    .fetch_optional(connection)
    .await?;
    Ok(issued.and_then(at).map(|device| exists("certificate", &device.certificate.serial)))
}

fn exists(kind: &'static str, id: &impl ToString) -> RegistryError {
    RegistryError::Exists { kind, id: id.to_string() }
}

fn not_found(id: &DeviceId) -> RegistryError {
    RegistryError::NotFound { kind: "device", id: id.to_string() }
}

pub(super) async fn known(
    registry: &Postgres,
    ids: &[DeviceId],
) -> Result<Vec<(DeviceId, Vec<Fingerprint>)>> {
    let mut connection = registry.operator().await?;
    let found = sqlx::query(
        "SELECT d.id, c.fingerprint FROM devices d LEFT JOIN certificates c ON c.device = d.id
         WHERE lower(d.id) = ANY($1) ORDER BY d.id, c.not_before, c.fingerprint",
    )
    .bind(ids.iter().map(|id| id.as_str().to_ascii_lowercase()).collect::<Vec<_>>())
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    connection.release();

    gather(found.iter().map(|row| {
        let fingerprint = rows::get::<Option<&str>>(row, "fingerprint")?.map(fingerprint).transpose()?;
        Ok((device_id(rows::get(row, "id")?)?, fingerprint))
    }))
}

pub(super) async fn list(registry: &Postgres, filter: &DeviceFilter) -> Result<Vec<DeviceSummary>> {
    let mut connection = registry.operator().await?;
    let found = sqlx::query(
        "SELECT d.id, d.fleet, d.status, d.reason, d.created, p.last_seen,
                (SELECT max(c.not_after) FROM certificates c WHERE c.device = d.id AND c.status = 'active') AS certificate_expires,
                (SELECT max(k.version) FROM hmac_keys k WHERE k.device = d.id AND k.state = 'active') AS key
         FROM devices d LEFT JOIN presence p ON p.device = d.id
         WHERE ($1::text IS NULL OR d.fleet = $1) AND ($2::text IS NULL OR d.status = $2)
             AND ($3::text IS NULL OR d.id > $3)
         ORDER BY d.id LIMIT $4",
    )
    .bind(filter.fleet.as_ref().map(|fleet| fleet.as_str()))
    .bind(filter.status.map(DeviceStatus::as_str))
    .bind(filter.after.as_ref().map(|after| after.as_str()))
    .bind(i64::from(filter.limit))
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    connection.release();
    found.iter().map(rows::summary).collect()
}

/// Four statements, one snapshot.
pub(super) async fn detail(registry: &Postgres, id: &DeviceId) -> Result<Option<DeviceDetail>> {
    let mut connection = registry.operator().await?;
    let mut transaction = connection
        .begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        .await
        .map_err(error::read)?;
    let summary = sqlx::query(
        "SELECT d.id, d.fleet, d.status, d.reason, d.created, p.last_seen,
                (SELECT max(c.not_after) FROM certificates c WHERE c.device = d.id AND c.status = 'active') AS certificate_expires,
                (SELECT max(k.version) FROM hmac_keys k WHERE k.device = d.id AND k.state = 'active') AS key
         FROM devices d LEFT JOIN presence p ON p.device = d.id WHERE d.id = $1",
    )
    .bind(id.as_str())
    .fetch_optional(&mut *transaction)
    .await
    .map_err(error::read)?;
    let certificates = sqlx::query(
        "SELECT fingerprint, serial, issuer, der, not_before, not_after, status, valid_until, reason
         FROM certificates WHERE device = $1 ORDER BY not_before DESC, fingerprint",
    )
    .bind(id.as_str())
    .fetch_all(&mut *transaction)
    .await
    .map_err(error::read)?;
    let keys = sqlx::query(
        "SELECT version, sealed, state, grace_until, grace_seconds FROM hmac_keys WHERE device = $1 ORDER BY version",
    )
    .bind(id.as_str())
    .fetch_all(&mut *transaction)
    .await
    .map_err(error::read)?;
    let presence = sqlx::query(
        "SELECT p.*, d.fleet FROM presence p JOIN devices d ON d.id = p.device WHERE p.device = $1",
    )
    .bind(id.as_str())
    .fetch_optional(&mut *transaction)
    .await
    .map_err(error::read)?;
    transaction.commit().await.map_err(error::read)?;
    connection.release();

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
    registry: &Postgres,
    phase: &Phase,
    id: &DeviceId,
    act: Act,
    reason: Option<&str>,
) -> Result<Acted> {
    let mut connection = registry.operator().await?;
    let mut transaction = audit::begin(registry, &mut connection).await?;
    let status = lock(&mut transaction, id).await?;
    let quarantined = sqlx::query_scalar("SELECT EXISTS (SELECT FROM quarantines WHERE device = $1)")
        .bind(id.as_str())
        .fetch_one(&mut *transaction)
        .await
        .map_err(error::read)?;
    let done = match decide(id, status, quarantined, act)? {
        Err(already) => {
            // Said again, so that the receipt is of now.
            feed::note(&mut transaction, "device", id.as_str()).await?;
            already
        }
        Ok(next) => {
            sqlx::query("UPDATE devices SET status = $2, reason = $3 WHERE id = $1")
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
    phase.commit(transaction).await.map_err(error::commit)?;
    connection.release();
    Ok(acted)
}

pub(super) async fn kick(registry: &Postgres, phase: &Phase, id: &DeviceId) -> Result<Acted> {
    let mut connection = registry.operator().await?;
    let mut transaction = audit::begin(registry, &mut connection).await?;
    if lock(&mut transaction, id).await? == DeviceStatus::Revoked {
        return Err(revoked(id));
    }
    feed::note(&mut transaction, "kick", id.as_str()).await?;
    let acted = acted(&mut transaction, id, Done::Changed).await?;
    phase.commit(transaction).await.map_err(error::commit)?;
    connection.release();
    Ok(acted)
}

pub(super) async fn acted(connection: &mut PgConnection, id: &DeviceId, done: Done) -> Result<Acted> {
    let session =
        sqlx::query_scalar("SELECT session FROM presence WHERE device = $1 AND session IS NOT NULL")
            .bind(id.as_str())
            .fetch_optional(&mut *connection)
            .await
            .map_err(error::read)?;
    Ok(Acted { done, mark: feed::mark(connection).await?, session })
}

/// The device's status, held until the transaction's end.
pub(super) async fn lock(connection: &mut PgConnection, id: &DeviceId) -> Result<DeviceStatus> {
    let status: Option<String> = sqlx::query_scalar("SELECT status FROM devices WHERE id = $1 FOR UPDATE")
        .bind(id.as_str())
        .fetch_optional(connection)
        .await
        .map_err(error::read)?;
    DeviceStatus::read(&status.ok_or_else(|| not_found(id))?)
}

pub(super) async fn sessions(registry: &Postgres, fresh: OffsetDateTime) -> Result<Vec<Presence>> {
    let mut connection = registry.operator().await?;
    let found = sqlx::query(
        "SELECT p.*, d.fleet FROM presence p JOIN devices d ON d.id = p.device
         WHERE p.session IS NOT NULL AND p.last_seen >= $1 ORDER BY p.device",
    )
    .bind(fresh)
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    connection.release();
    found.iter().map(rows::presence).collect()
}
