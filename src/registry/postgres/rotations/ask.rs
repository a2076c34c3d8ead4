//! Asking devices: the new credential and the note that it was asked for, in one transaction.

use doorward_proto::ids::DeviceId;
use sqlx::postgres::PgConnection;
use time::OffsetDateTime;

use super::super::super::rotations::FRESH;
use super::super::super::shared::Phase;
use super::super::super::{NewKey, Result};
use super::super::{Postgres, audit, error};
use super::drive::hold;

/// Takes these devices' locks, in their order, and leaves out those that may not connect.
async fn lock(connection: &mut PgConnection, id: i64, devices: &[&str]) -> Result<()> {
    sqlx::query("SELECT FROM devices WHERE id = ANY($1) ORDER BY id FOR UPDATE")
        .bind(devices)
        .execute(&mut *connection)
        .await
        .map_err(error::read)?;
    sqlx::query(
        "UPDATE rotation_devices r SET state = 'left_out', reason = d.status, ended = now() FROM devices d
         WHERE r.rotation = $1 AND r.device = ANY($2) AND r.state = 'waiting' AND d.id = r.device AND d.status <> 'active'",
    )
    .bind(id)
    .bind(devices)
    .execute(connection)
    .await
    .map_err(error::read)?;
    Ok(())
}

pub(super) async fn ask_for_keys(
    registry: &Postgres,
    phase: &Phase,
    id: i64,
    driver: &str,
    keys: &[(DeviceId, Option<NewKey>)],
) -> Result<bool> {
    let mut connection = registry.operator().await?;
    let mut transaction = audit::begin(registry, &mut connection).await?;
    if !hold(&mut transaction, id, driver).await? {
        return Ok(false);
    }
    let devices: Vec<&str> = keys.iter().map(|(device, _)| device.as_str()).collect();
    lock(&mut transaction, id, &devices).await?;
    let new = || keys.iter().filter_map(|(device, key)| Some((device.as_str(), key.as_ref()?)));
    let made: Vec<String> = sqlx::query_scalar(
        "INSERT INTO hmac_keys (device, version, sealed, state, grace_seconds)
         SELECT n.device, n.version, n.sealed, 'pending', n.grace
         FROM unnest($2::text[], $3::integer[], $4::bytea[], $5::bigint[]) AS n (device, version, sealed, grace)
         JOIN rotation_devices r ON r.rotation = $1 AND r.device = n.device AND r.state = 'waiting'
         WHERE NOT EXISTS (SELECT FROM hmac_keys k WHERE k.device = n.device AND (k.state = 'pending' OR k.version >= n.version))
         RETURNING device",
    )
    .bind(id)
    .bind(new().map(|(device, _)| device).collect::<Vec<_>>())
    .bind(new().map(|(_, key)| i32::try_from(key.version.get()).unwrap_or(i32::MAX)).collect::<Vec<_>>())
    .bind(new().map(|(_, key)| key.sealed.as_slice()).collect::<Vec<_>>())
    .bind(new().map(|(_, key)| i64::try_from(key.grace.as_secs()).unwrap_or(i64::MAX)).collect::<Vec<_>>())
    .fetch_all(&mut *transaction)
    .await
    .map_err(error::read)?;
    sqlx::query(
        "UPDATE rotation_devices r SET state = 'asked', version = k.version, asked = now(),
             epoch = coalesce(p.epoch, 0), brought = NOT r.device = ANY($3) OR p.session IS NOT NULL,
             -- By the clock of the database where its gateway's is wrong.
             came = CASE WHEN p.session IS NOT NULL AND (p.last_seen >= now() - $4 * interval '1 second' OR EXISTS (
                 SELECT FROM gateways g WHERE g.name = p.gateway AND g.signed_off IS NULL AND g.heartbeat >= now() - $4 * interval '1 second')) THEN now() END
         FROM hmac_keys k LEFT JOIN presence p ON p.device = k.device
         WHERE r.rotation = $1 AND r.device = ANY($2) AND r.state = 'waiting' AND k.device = r.device AND k.state = 'pending'",
    )
    .bind(id)
    .bind(&devices)
    .bind(&made)
    .bind(FRESH.as_secs_f64())
    .execute(&mut *transaction)
    .await
    .map_err(error::read)?;
    phase.commit(transaction).await.map_err(error::commit)?;
    connection.release();
    Ok(true)
}

pub(super) async fn ask_for_certificates(
    registry: &Postgres,
    phase: &Phase,
    id: i64,
    driver: &str,
    devices: &[DeviceId],
    by: OffsetDateTime,
) -> Result<bool> {
    let mut connection = registry.operator().await?;
    let mut transaction = audit::begin(registry, &mut connection).await?;
    if !hold(&mut transaction, id, driver).await? {
        return Ok(false);
    }
    let devices: Vec<&str> = devices.iter().map(DeviceId::as_str).collect();
    lock(&mut transaction, id, &devices).await?;
    // Not one that waits to take the place of another: its device has it, or will have it, and shows it.
    sqlx::query(
        "WITH held AS MATERIALIZED (
             SELECT DISTINCT ON (c.device) c.device, c.fingerprint FROM certificates c
             WHERE c.device = ANY($2) AND c.status = 'active'
                 AND NOT EXISTS (SELECT FROM certificates f WHERE f.fingerprint = c.renewed_from AND f.status = 'active')
             ORDER BY c.device, c.not_before DESC, c.fingerprint
         ), asked AS (
             UPDATE rotation_devices r SET state = 'asked', fingerprint = h.fingerprint, asked = now(), epoch = coalesce(p.epoch, 0),
                 came = CASE WHEN p.session IS NOT NULL AND (p.last_seen >= now() - $4 * interval '1 second' OR EXISTS (
                 SELECT FROM gateways g WHERE g.name = p.gateway AND g.signed_off IS NULL AND g.heartbeat >= now() - $4 * interval '1 second')) THEN now() END
             FROM held h LEFT JOIN presence p ON p.device = h.device WHERE r.rotation = $1 AND r.device = ANY($2) AND r.device = h.device AND r.state = 'waiting' RETURNING r.fingerprint
         )
         UPDATE certificates c SET rotate_by = $3 FROM asked a WHERE c.fingerprint = a.fingerprint",
    )
    .bind(id)
    .bind(&devices)
    .bind(by)
    .bind(FRESH.as_secs_f64())
    .execute(&mut *transaction)
    .await
    .map_err(error::read)?;
    sqlx::query(
        "UPDATE rotation_devices SET state = 'left_out', reason = 'it has no active certificate', ended = now()
         WHERE rotation = $1 AND device = ANY($2) AND state = 'waiting'",
    )
    .bind(id)
    .bind(&devices)
    .execute(&mut *transaction)
    .await
    .map_err(error::read)?;
    phase.commit(transaction).await.map_err(error::commit)?;
    connection.release();
    Ok(true)
}
