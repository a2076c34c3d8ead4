//! Devices that a gateway suspends by itself: what the functions of the limits migration do in Postgres.

use std::time::Duration;

use async_trait::async_trait;
use doorward_proto::ids::DeviceId;
use sqlx::sqlite::SqliteConnection;

use super::super::quarantine::{ACTOR, Quarantine};
use super::super::shared::{Phase, clean};
use super::super::{QUERY_DEADLINE, Result};
use super::{Sqlite, audit, error};

#[async_trait]
impl Quarantine for Sqlite {
    async fn quarantine(
        &self,
        id: &DeviceId,
        gateway: &str,
        reason: &str,
        lasts: Option<Duration>,
    ) -> Result<bool> {
        let phase = Phase::default();
        phase.within(QUERY_DEADLINE, begin(self, &phase, id, gateway, reason, lasts)).await
    }

    async fn end_quarantines(&self) -> Result<u64> {
        let phase = Phase::default();
        phase.within(QUERY_DEADLINE, end(self, &phase)).await
    }
}

/// Whether the device is suspended by a gateway.
pub(super) async fn holds(connection: &mut SqliteConnection, id: &DeviceId) -> Result<bool> {
    sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM quarantines WHERE device = ?1)")
        .bind(id.as_str())
        .fetch_one(connection)
        .await
        .map_err(error::read)
}

async fn begin(
    registry: &Sqlite,
    phase: &Phase,
    id: &DeviceId,
    gateway: &str,
    reason: &str,
    lasts: Option<Duration>,
) -> Result<bool> {
    let mut transaction = audit::begin_as(registry, ACTOR).await?;
    let suspended = sqlx::query(
        "UPDATE devices SET status = 'suspended', reason = ?2 WHERE id = ?1 AND status = 'active'",
    )
    .bind(id.as_str())
    .bind(clean(reason))
    .execute(&mut *transaction)
    .await
    .map_err(error::read)?
    .rows_affected();
    if suspended == 0 {
        return Ok(false);
    }
    sqlx::query(
        "INSERT INTO quarantines (device, gateway, until)
         VALUES (?1, ?2, strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+' || ?3 || ' seconds'))",
    )
    .bind(id.as_str())
    .bind(clean(gateway))
    .bind(lasts.map(|lasts| i64::try_from(lasts.as_secs().max(1)).unwrap_or(i64::MAX)))
    .execute(&mut *transaction)
    .await
    .map_err(error::read)?;
    audit::commit(phase, transaction).await?;
    Ok(true)
}

const DUE: &str =
    "SELECT EXISTS (SELECT 1 FROM quarantines WHERE until <= strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))";

async fn end(registry: &Sqlite, phase: &Phase) -> Result<u64> {
    // The one writer is not kept for nothing.
    let mut reader = registry.reader().await?;
    let due: bool = sqlx::query_scalar(DUE).fetch_one(&mut *reader).await.map_err(error::read)?;
    drop(reader);
    if !due {
        return Ok(0);
    }
    let mut transaction = audit::begin_as(registry, ACTOR).await?;
    let resumed = sqlx::query(
        "UPDATE devices SET status = 'active', reason = NULL WHERE status = 'suspended' AND id IN (
             SELECT device FROM quarantines WHERE until <= strftime('%Y-%m-%dT%H:%M:%fZ', 'now') ORDER BY until LIMIT 1000
         )",
    )
    .execute(&mut *transaction)
    .await
    .map_err(error::read)?
    .rows_affected();
    audit::commit(phase, transaction).await?;
    Ok(resumed)
}
