//! Asking devices: the new credential and the note that it was asked for, in one transaction.
//!
//! Rows are looked up by the devices of the batch, which `+state` and subqueries see to: a plan that reads the rotation whole
//! for each of them takes minutes for a fleet.

use doorward_proto::ids::DeviceId;
use sqlx::sqlite::SqliteConnection;
use time::OffsetDateTime;

use super::super::super::rotations::FRESH;
use super::super::super::shared::Phase;
use super::super::super::{NewKey, Result};
use super::super::rows::stamp;
use super::super::store::{hex, json};
use super::super::{Sqlite, audit, error};
use super::drive::{hold, shift};

/// Leaves out those of these devices that may not connect.
async fn leave_out(connection: &mut SqliteConnection, id: i64, devices: &str) -> Result<()> {
    sqlx::query(
        "UPDATE rotation_devices SET state = 'left_out', ended = strftime('%Y-%m-%dT%H:%M:%fZ', 'now'),
             reason = (SELECT status FROM devices WHERE id = device)
         WHERE rotation = ?1 AND device IN (SELECT value->>0 FROM jsonb_each(?2)) AND +state = 'waiting'
             AND EXISTS (SELECT 1 FROM devices WHERE id = device AND status <> 'active')",
    )
    .bind(id)
    .bind(devices)
    .execute(connection)
    .await
    .map_err(error::read)?;
    Ok(())
}

pub(super) async fn ask_for_keys(
    registry: &Sqlite,
    phase: &Phase,
    id: i64,
    driver: &str,
    keys: &[(DeviceId, Option<NewKey>)],
) -> Result<bool> {
    let mut transaction = audit::begin(registry).await?;
    if !hold(&mut transaction, id, driver).await? {
        return Ok(false);
    }
    let given: Vec<_> = keys
        .iter()
        .map(|(device, key)| {
            let key = key.as_ref();
            let grace = key.map(|key| i64::try_from(key.grace.as_secs()).unwrap_or(i64::MAX));
            (device.as_str(), key.map(|key| key.version.get()), key.map(|key| hex(&key.sealed)), grace)
        })
        .collect();
    let given = json(&given)?;
    leave_out(&mut transaction, id, &given).await?;
    let made: Vec<String> = sqlx::query_scalar(
        "INSERT INTO hmac_keys (device, version, sealed, state, grace_seconds)
         SELECT n.value->>0, n.value->>1, unhex(n.value->>2), 'pending', n.value->>3
         FROM jsonb_each(?2) AS n
         CROSS JOIN rotation_devices AS r ON r.rotation = ?1 AND r.device = n.value->>0 AND r.state = 'waiting'
         WHERE n.value->>1 IS NOT NULL AND NOT EXISTS (
             SELECT 1 FROM hmac_keys AS k WHERE k.device = n.value->>0 AND (k.state = 'pending' OR k.version >= n.value->>1)
         )
         RETURNING device",
    )
    .bind(id)
    .bind(&given)
    .fetch_all(&mut *transaction)
    .await
    .map_err(error::read)?;
    sqlx::query(
        "UPDATE rotation_devices SET state = 'asked', asked = strftime('%Y-%m-%dT%H:%M:%fZ', 'now'),
             version = (SELECT k.version FROM hmac_keys AS k WHERE k.device = rotation_devices.device AND k.state = 'pending'),
             epoch = coalesce((SELECT p.epoch FROM presence AS p WHERE p.device = rotation_devices.device), 0),
             brought = device NOT IN (SELECT value FROM json_each(?3))
                 OR EXISTS (SELECT 1 FROM presence AS p WHERE p.device = rotation_devices.device AND p.session IS NOT NULL),
             -- By the clock of the database where its gateway's is wrong.
             came = CASE WHEN EXISTS (
                 SELECT 1 FROM presence AS p WHERE p.device = rotation_devices.device AND p.session IS NOT NULL AND (
                     p.last_seen >= strftime('%Y-%m-%dT%H:%M:%fZ', 'now', ?4) OR EXISTS (
                         SELECT 1 FROM gateways AS g WHERE g.name = p.gateway AND g.signed_off IS NULL
                             AND g.heartbeat >= strftime('%Y-%m-%dT%H:%M:%fZ', 'now', ?4)
                     )
                 )
             ) THEN strftime('%Y-%m-%dT%H:%M:%fZ', 'now') END
         WHERE rotation = ?1 AND device IN (SELECT value->>0 FROM jsonb_each(?2)) AND +state = 'waiting'
             AND EXISTS (SELECT 1 FROM hmac_keys AS k WHERE k.device = rotation_devices.device AND k.state = 'pending')",
    )
    .bind(id)
    .bind(&given)
    .bind(json(&made)?)
    .bind(shift('-', FRESH))
    .execute(&mut *transaction)
    .await
    .map_err(error::read)?;
    audit::commit(phase, transaction).await?;
    Ok(true)
}

pub(super) async fn ask_for_certificates(
    registry: &Sqlite,
    phase: &Phase,
    id: i64,
    driver: &str,
    devices: &[DeviceId],
    by: OffsetDateTime,
) -> Result<bool> {
    let mut transaction = audit::begin(registry).await?;
    if !hold(&mut transaction, id, driver).await? {
        return Ok(false);
    }
    let given = json(&devices.iter().map(|device| (device.as_str(),)).collect::<Vec<_>>())?;
    leave_out(&mut transaction, id, &given).await?;
    // Not one that waits to take the place of another: its device has it, or will have it, and shows it.
    sqlx::query(
        "UPDATE rotation_devices SET state = 'asked', asked = strftime('%Y-%m-%dT%H:%M:%fZ', 'now'),
             epoch = coalesce((SELECT p.epoch FROM presence AS p WHERE p.device = rotation_devices.device), 0),
             fingerprint = (
                 SELECT c.fingerprint FROM certificates AS c
                 WHERE c.device = rotation_devices.device AND c.status = 'active' AND NOT EXISTS (
                     SELECT 1 FROM certificates AS f WHERE f.fingerprint = c.renewed_from AND f.status = 'active'
                 )
                 ORDER BY c.not_before DESC, c.fingerprint LIMIT 1
             ),
             came = CASE WHEN EXISTS (
                 SELECT 1 FROM presence AS p WHERE p.device = rotation_devices.device AND p.session IS NOT NULL AND (
                     p.last_seen >= strftime('%Y-%m-%dT%H:%M:%fZ', 'now', ?3) OR EXISTS (
                         SELECT 1 FROM gateways AS g WHERE g.name = p.gateway AND g.signed_off IS NULL
                             AND g.heartbeat >= strftime('%Y-%m-%dT%H:%M:%fZ', 'now', ?3)
                     )
                 )
             ) THEN strftime('%Y-%m-%dT%H:%M:%fZ', 'now') END
         WHERE rotation = ?1 AND device IN (SELECT value->>0 FROM jsonb_each(?2)) AND +state = 'waiting'
             AND EXISTS (SELECT 1 FROM certificates AS c WHERE c.device = rotation_devices.device AND c.status = 'active')",
    )
    .bind(id)
    .bind(&given)
    .bind(shift('-', FRESH))
    .execute(&mut *transaction)
    .await
    .map_err(error::read)?;
    sqlx::query(
        "UPDATE certificates SET rotate_by = ?3 WHERE fingerprint IN (
             SELECT r.fingerprint FROM jsonb_each(?2) AS n
             CROSS JOIN rotation_devices AS r ON r.rotation = ?1 AND r.device = n.value->>0 AND r.state = 'asked'
         )",
    )
    .bind(id)
    .bind(&given)
    .bind(stamp(by)?)
    .execute(&mut *transaction)
    .await
    .map_err(error::read)?;
    sqlx::query(
        "UPDATE rotation_devices SET state = 'left_out', reason = 'it has no active certificate',
             ended = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
         WHERE rotation = ?1 AND device IN (SELECT value->>0 FROM jsonb_each(?2)) AND +state = 'waiting'",
    )
    .bind(id)
    .bind(&given)
    .execute(&mut *transaction)
    .await
    .map_err(error::read)?;
    audit::commit(phase, transaction).await?;
    Ok(true)
}
