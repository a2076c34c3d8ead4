//! What a person does to a rotation that there is: stop, resume, undo.

use doorward_proto::ids::DeviceId;

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
            Some("UPDATE rotation_devices SET state = 'asked', reason = NULL, ended = NULL, asked = now()
                  WHERE rotation = $1 AND state IN ('asked', 'failed')"),
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
    let devices: Vec<String> = sqlx::query_scalar(
        "SELECT r.device FROM rotation_devices r JOIN rotations o ON o.id = r.rotation AND o.state = 'undone'
         JOIN devices d ON d.id = r.device
         WHERE r.rotation = $1 AND r.state IN ('asked', 'failed') AND (r.fingerprint IS NOT NULL OR NOT r.brought
             AND NOT EXISTS (SELECT FROM presence p WHERE p.device = r.device AND (p.session IS NOT NULL OR p.epoch <> r.epoch)))
         ORDER BY r.device LIMIT $2 FOR UPDATE OF d",
    )
    .bind(id)
    .bind(i64::from(limit))
    .fetch_all(&mut *transaction)
    .await
    .map_err(error::read)?;
    // Asked again under their locks: a first session waits for them.
    let taken: Vec<String> = sqlx::query_scalar(
        "UPDATE rotation_devices r SET state = 'withdrawn', reason = NULL, ended = now()
         WHERE r.rotation = $1 AND r.device = ANY($2) AND r.state IN ('asked', 'failed') AND (r.fingerprint IS NOT NULL OR NOT EXISTS (
                 SELECT FROM presence p WHERE p.device = r.device AND (p.session IS NOT NULL OR p.epoch <> r.epoch)
             ))
         RETURNING r.device",
    )
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
    let mark = feed::mark(&mut transaction).await?;
    phase.commit(transaction).await.map_err(error::commit)?;
    connection.release();
    Ok((taken.iter().map(|device| device_id(device)).collect::<Result<_>>()?, mark))
}
