//! What a person does to a rotation that there is: stop, resume, undo.

use doorward_proto::ids::{DeviceId, KeyVersion};
use sqlx::AssertSqlSafe;

use super::super::super::rotations::not_held;
use super::super::super::shared::{Phase, device_id};
use super::super::super::{Done, Mark, Result, RotationState};
use super::super::{Postgres, audit, error, feed};
use super::missing;

/// What a person does to a rotation.
pub(super) enum Change {
    Stop(String),
    Resume(Option<u32>),
    Undo,
}

/// Who has failed has his time once more, sessions and all; what was connected before is waited for again. Whose key was
/// retired meanwhile is asked with another one.
const ONCE_MORE: &str = "UPDATE rotation_devices r SET
         state = CASE WHEN n.lost THEN 'waiting' ELSE 'asked' END, reason = NULL, ended = NULL,
         asked = CASE WHEN NOT n.lost THEN now() END, version = CASE WHEN NOT n.lost THEN r.version END,
         came = CASE WHEN NOT n.lost AND (r.came IS NOT NULL OR r.state = 'failed' OR n.epoch <> r.epoch) THEN now() END,
         brought = r.brought OR n.session IS NOT NULL OR coalesce(n.epoch <> r.epoch, false), epoch = coalesce(n.epoch, r.epoch)
     FROM (
         SELECT m.device, p.session, p.epoch, EXISTS (
             SELECT FROM hmac_keys k WHERE k.device = m.device AND k.version = m.version AND k.state = 'retired'
                 AND NOT EXISTS (SELECT FROM hmac_keys a WHERE a.device = k.device AND a.version > k.version AND a.state = 'active')
         ) AS lost
         FROM rotation_devices m LEFT JOIN presence p ON p.device = m.device
         WHERE m.rotation = $1 AND m.state IN ('asked', 'failed')
     ) AS n
     WHERE r.rotation = $1 AND r.device = n.device";

/// A device has it, or is to have it, by another rotation too that nobody has given up.
const RELIED_ON: &str = "EXISTS (
         SELECT FROM rotation_devices e JOIN rotations f ON f.id = e.rotation AND f.state <> 'undone'
         WHERE e.device = r.device AND e.rotation <> r.rotation AND e.state IN ('asked', 'failed')
             AND (e.version = r.version OR e.fingerprint = r.fingerprint)
     )";

pub(super) async fn turn(registry: &Postgres, phase: &Phase, id: i64, change: &Change) -> Result<Done> {
    let mut connection = registry.operator().await?;
    let mut transaction = audit::begin(registry, &mut connection).await?;
    let state: Option<String> = sqlx::query_scalar("SELECT state FROM rotations WHERE id = $1 FOR UPDATE")
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
            Some("UPDATE rotation_devices SET state = 'left_out', reason = 'undone before it was asked', ended = now()
                  WHERE rotation = $1 AND state = 'waiting'"),
            None,
            None,
        ),
    };
    let changes = state.may_become(id, next)?;
    if !changes && most.is_none() {
        return Ok(Done::Already);
    }
    sqlx::query(
        "UPDATE rotations SET state = $2, reason = CASE WHEN $2 = 'undone' THEN reason ELSE $3 END,
             driver = CASE WHEN state = $2 THEN driver END, heartbeat = CASE WHEN state = $2 THEN heartbeat END,
             ended = CASE WHEN $2 <> 'running' THEN now() END, max_failures = coalesce($4, max_failures)
         WHERE id = $1",
    )
    .bind(id)
    .bind(next.as_str())
    .bind(reason)
    .bind(most.map(i64::from))
    .execute(&mut *transaction)
    .await
    .map_err(error::read)?;
    if let Some(sql) = devices.filter(|_| changes) {
        // In the order of their ids, as those who prove them lock them.
        sqlx::query(
            "SELECT FROM rotation_devices WHERE rotation = $1 AND state IN ('waiting', 'asked', 'failed') ORDER BY device FOR UPDATE",
        )
        .bind(id)
        .execute(&mut *transaction)
        .await
        .map_err(error::read)?;
        sqlx::query(sql).bind(id).execute(&mut *transaction).await.map_err(error::read)?;
    }
    phase.commit(transaction).await.map_err(error::commit)?;
    connection.release();
    Ok(if changes { Done::Changed } else { Done::Already })
}

pub(super) async fn withdraw(
    registry: &Postgres,
    phase: &Phase,
    id: i64,
    limit: u32,
) -> Result<(Vec<DeviceId>, Mark)> {
    let mut connection = registry.operator().await?;
    let mut transaction = audit::begin(registry, &mut connection).await?;
    let found = format!(
        "SELECT r.device FROM rotation_devices r JOIN rotations o ON o.id = r.rotation AND o.state = 'undone'
         JOIN devices d ON d.id = r.device
         WHERE r.rotation = $1 AND r.state IN ('asked', 'failed') AND (r.fingerprint IS NOT NULL OR NOT r.brought
             AND NOT EXISTS (SELECT FROM presence p WHERE p.device = r.device AND (p.session IS NOT NULL OR p.epoch <> r.epoch)))
             AND NOT {RELIED_ON}
         ORDER BY r.device LIMIT $2 FOR UPDATE OF d"
    );
    let devices: Vec<String> = sqlx::query_scalar(AssertSqlSafe(found))
        .bind(id)
        .bind(i64::from(limit))
        .fetch_all(&mut *transaction)
        .await
        .map_err(error::read)?;
    // Asked again under their locks: a first session waits for them, and so does whoever writes a bundle.
    let take = format!(
        "UPDATE rotation_devices r SET state = 'withdrawn', reason = NULL, ended = now()
         WHERE r.rotation = $1 AND r.device = ANY($2) AND r.state IN ('asked', 'failed') AND (r.fingerprint IS NOT NULL OR NOT r.brought AND NOT EXISTS (
                 SELECT FROM presence p WHERE p.device = r.device AND (p.session IS NOT NULL OR p.epoch <> r.epoch)
             )) AND NOT {RELIED_ON}
         RETURNING r.device"
    );
    let taken: Vec<String> = sqlx::query_scalar(AssertSqlSafe(take))
        .bind(id)
        .bind(&devices)
        .fetch_all(&mut *transaction)
        .await
        .map_err(error::read)?;
    for sql in [
        "UPDATE hmac_keys k SET state = 'retired' FROM rotation_devices r
         WHERE r.rotation = $1 AND r.device = ANY($2) AND k.device = r.device AND k.version = r.version AND k.state = 'pending'",
        // A device that has begun to renew goes on with what it has been given; the others are not asked any more.
        "UPDATE certificates c SET rotate_by = NULL FROM rotation_devices r
         WHERE r.rotation = $1 AND r.device = ANY($2) AND c.fingerprint = r.fingerprint AND c.rotate_by IS NOT NULL",
    ] {
        sqlx::query(sql).bind(id).bind(&taken).execute(&mut *transaction).await.map_err(error::read)?;
    }
    if taken.is_empty() {
        // Said again, so that the receipt is of now.
        let withdrawn: Option<String> = sqlx::query_scalar(
            "SELECT device FROM rotation_devices WHERE rotation = $1 AND state = 'withdrawn' ORDER BY device LIMIT 1",
        )
        .bind(id)
        .fetch_optional(&mut *transaction)
        .await
        .map_err(error::read)?;
        if let Some(device) = withdrawn {
            feed::note(&mut transaction, "device", &device).await?;
        }
    }
    let mark = feed::mark(&mut transaction).await?;
    phase.commit(transaction).await.map_err(error::commit)?;
    connection.release();
    Ok((taken.iter().map(|device| device_id(device)).collect::<Result<_>>()?, mark))
}

/// Notes under the device's lock, which an undo waits for, that a bundle is about to carry a pending key.
pub(super) async fn hand_out(
    registry: &Postgres,
    phase: &Phase,
    id: &DeviceId,
    version: KeyVersion,
) -> Result<()> {
    let mut connection = registry.operator().await?;
    let mut transaction = audit::begin(registry, &mut connection).await?;
    sqlx::query("SELECT FROM devices WHERE id = $1 FOR UPDATE")
        .bind(id.as_str())
        .execute(&mut *transaction)
        .await
        .map_err(error::read)?;
    let holds: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM hmac_keys WHERE device = $1 AND version = $2 AND state IN ('pending', 'active'))",
    )
    .bind(id.as_str())
    .bind(i32::try_from(version.get()).unwrap_or(i32::MAX))
    .fetch_one(&mut *transaction)
    .await
    .map_err(error::read)?;
    if !holds {
        return Err(not_held(id, version));
    }
    sqlx::query(
        "UPDATE rotation_devices SET brought = true WHERE device = $1 AND version = $2 AND NOT brought",
    )
    .bind(id.as_str())
    .bind(i32::try_from(version.get()).unwrap_or(i32::MAX))
    .execute(&mut *transaction)
    .await
    .map_err(error::read)?;
    phase.commit(transaction).await.map_err(error::commit)?;
    connection.release();
    Ok(())
}
