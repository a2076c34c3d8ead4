//! What a person does to a rotation that there is: stop, resume, undo.

use doorward_proto::ids::{DeviceId, KeyVersion};

use super::super::super::rotations::not_held;
use super::super::super::shared::{Phase, device_id};
use super::super::super::{Done, Mark, Result, RotationState};
use super::super::store::json;
use super::super::{Sqlite, audit, error, feed};
use super::missing;

/// What a person does to a rotation.
pub(super) enum Change {
    Stop(String),
    Resume(Option<u32>),
    Undo,
}

/// Who has failed has his time once more, sessions and all; what was connected before is waited for again. Whose key was
/// retired meanwhile is asked with another one.
const ONCE_MORE: &str = "UPDATE rotation_devices AS r SET
         state = iif(n.lost, 'waiting', 'asked'), reason = NULL, ended = NULL,
         asked = CASE WHEN NOT n.lost THEN strftime('%Y-%m-%dT%H:%M:%fZ', 'now') END, version = CASE WHEN NOT n.lost THEN r.version END,
         came = CASE WHEN NOT n.lost AND (r.came IS NOT NULL OR r.state = 'failed' OR n.epoch <> r.epoch)
             THEN strftime('%Y-%m-%dT%H:%M:%fZ', 'now') END,
         brought = r.brought OR n.session IS NOT NULL OR coalesce(n.epoch <> r.epoch, 0), epoch = coalesce(n.epoch, r.epoch)
     FROM (
         SELECT m.device, p.session, p.epoch, EXISTS (
             SELECT 1 FROM hmac_keys AS k WHERE k.device = m.device AND k.version = m.version AND k.state = 'retired'
                 AND NOT EXISTS (SELECT 1 FROM hmac_keys AS a WHERE a.device = k.device AND a.version > k.version AND a.state = 'active')
         ) AS lost
         FROM rotation_devices AS m LEFT JOIN presence AS p ON p.device = m.device
         WHERE m.rotation = ?1 AND m.state IN ('asked', 'failed')
     ) AS n
     WHERE r.rotation = ?1 AND r.device = n.device";

pub(super) async fn turn(registry: &Sqlite, phase: &Phase, id: i64, change: &Change) -> Result<Done> {
    let mut transaction = audit::begin(registry).await?;
    let state: Option<String> = sqlx::query_scalar("SELECT state FROM rotations WHERE id = ?1")
        .bind(id)
        .fetch_optional(&mut *transaction)
        .await
        .map_err(error::read)?;
    let state = RotationState::read(&state.ok_or_else(|| missing(id))?)?;
    let (next, devices, reason, most) = match change {
        Change::Stop(reason) => (RotationState::Stopped, None, Some(reason.as_str()), None),
        Change::Resume(most) => (
            RotationState::Running,
            Some(ONCE_MORE),
            None,
            *most,
        ),
        Change::Undo => (
            RotationState::Undone,
            Some("UPDATE rotation_devices SET state = 'left_out', reason = 'undone before it was asked', ended = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
                  WHERE rotation = ?1 AND state = 'waiting'"),
            None,
            None,
        ),
    };
    let changes = state.may_become(id, next)?;
    if !changes && most.is_none() {
        return Ok(Done::Already);
    }
    sqlx::query(
        "UPDATE rotations SET state = ?2, reason = CASE WHEN ?2 = 'undone' THEN reason ELSE ?3 END,
             driver = CASE WHEN state = ?2 THEN driver END, heartbeat = CASE WHEN state = ?2 THEN heartbeat END,
             ended = CASE WHEN ?2 <> 'running' THEN strftime('%Y-%m-%dT%H:%M:%fZ', 'now') END, max_failures = coalesce(?4, max_failures)
         WHERE id = ?1",
    )
    .bind(id)
    .bind(next.as_str())
    .bind(reason)
    .bind(most.map(i64::from))
    .execute(&mut *transaction)
    .await
    .map_err(error::read)?;
    if let Some(sql) = devices.filter(|_| changes) {
        sqlx::query(sql).bind(id).execute(&mut *transaction).await.map_err(error::read)?;
    }
    audit::commit(phase, transaction).await?;
    Ok(if changes { Done::Changed } else { Done::Already })
}

pub(super) async fn withdraw(
    registry: &Sqlite,
    phase: &Phase,
    id: i64,
    limit: u32,
) -> Result<(Vec<DeviceId>, Mark)> {
    let mut transaction = audit::begin(registry).await?;
    let taken: Vec<String> = sqlx::query_scalar(
        "UPDATE rotation_devices SET state = 'withdrawn', reason = NULL, ended = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
         WHERE rotation = ?1 AND device IN (
             SELECT r.device FROM rotation_devices AS r JOIN rotations AS o ON o.id = r.rotation AND o.state = 'undone'
             WHERE r.rotation = ?1 AND r.state IN ('asked', 'failed') AND (r.fingerprint IS NOT NULL OR NOT r.brought AND NOT EXISTS (
                     SELECT 1 FROM presence AS p WHERE p.device = r.device AND (p.session IS NOT NULL OR p.epoch <> r.epoch)
                 ))
                 -- A device has it, or is to have it, by another rotation too that nobody has given up.
                 AND NOT EXISTS (
                     SELECT 1 FROM rotation_devices AS e JOIN rotations AS f ON f.id = e.rotation AND f.state <> 'undone'
                     WHERE e.device = r.device AND e.rotation <> r.rotation AND e.state IN ('asked', 'failed')
                         AND (e.version = r.version OR e.fingerprint = r.fingerprint)
                 )
             ORDER BY r.device LIMIT ?2
         )
         RETURNING device",
    )
    .bind(id)
    .bind(i64::from(limit))
    .fetch_all(&mut *transaction)
    .await
    .map_err(error::read)?;
    for sql in [
        "UPDATE hmac_keys SET state = 'retired' WHERE state = 'pending' AND (device, version) IN (
             SELECT r.device, r.version FROM json_each(?2) AS t CROSS JOIN rotation_devices AS r ON r.rotation = ?1 AND r.device = t.value
         )",
        // A device that has begun to renew goes on with what it has been given; the others are not asked any more.
        "UPDATE certificates SET rotate_by = NULL WHERE rotate_by IS NOT NULL AND fingerprint IN (
             SELECT r.fingerprint FROM json_each(?2) AS t CROSS JOIN rotation_devices AS r ON r.rotation = ?1 AND r.device = t.value
         )",
    ] {
        sqlx::query(sql)
            .bind(id)
            .bind(json(&taken)?)
            .execute(&mut *transaction)
            .await
            .map_err(error::read)?;
    }
    let mark = feed::mark(&mut transaction).await?;
    audit::commit(phase, transaction).await?;
    Ok((taken.iter().map(|device| device_id(device)).collect::<Result<_>>()?, mark))
}

/// Notes, before an undo can look, that a bundle is about to carry a pending key.
pub(super) async fn hand_out(
    registry: &Sqlite,
    phase: &Phase,
    id: &DeviceId,
    version: KeyVersion,
) -> Result<()> {
    let mut transaction = audit::begin(registry).await?;
    let holds: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM hmac_keys WHERE device = ?1 AND version = ?2 AND state IN ('pending', 'active'))",
    )
    .bind(id.as_str())
    .bind(version.get())
    .fetch_one(&mut *transaction)
    .await
    .map_err(error::read)?;
    if !holds {
        return Err(not_held(id, version));
    }
    sqlx::query("UPDATE rotation_devices SET brought = 1 WHERE device = ?1 AND version = ?2 AND NOT brought")
        .bind(id.as_str())
        .bind(version.get())
        .execute(&mut *transaction)
        .await
        .map_err(error::read)?;
    audit::commit(phase, transaction).await
}
