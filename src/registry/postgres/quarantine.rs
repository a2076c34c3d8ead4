//! Devices that a gateway suspends by itself: what may be done is decided by the functions of the limits migration.

use std::time::Duration;

use async_trait::async_trait;
use doorward_proto::ids::DeviceId;

use super::super::quarantine::Quarantine;
use super::super::shared::{clean, count, within};
use super::super::{QUERY_DEADLINE, Result};
use super::{Postgres, error};

#[async_trait]
impl Quarantine for Postgres {
    async fn quarantine(
        &self,
        id: &DeviceId,
        gateway: &str,
        reason: &str,
        lasts: Option<Duration>,
    ) -> Result<bool> {
        // One statement, which commits by itself: said again, it changes nothing.
        within(QUERY_DEADLINE, begin(self, id, gateway, reason, lasts)).await
    }

    async fn end_quarantines(&self) -> Result<u64> {
        within(QUERY_DEADLINE, end(self)).await
    }
}

async fn begin(
    registry: &Postgres,
    id: &DeviceId,
    gateway: &str,
    reason: &str,
    lasts: Option<Duration>,
) -> Result<bool> {
    let mut connection = registry.gateway().await?;
    let done = sqlx::query_scalar("SELECT quarantine($1, $2, $3, $4)")
        .bind(id.as_str())
        .bind(clean(gateway))
        .bind(clean(reason))
        .bind(lasts.map(|lasts| i64::try_from(lasts.as_secs().max(1)).unwrap_or(i64::MAX)))
        .fetch_one(&mut *connection)
        .await
        .map_err(error::read)?;
    connection.release();
    Ok(done)
}

async fn end(registry: &Postgres) -> Result<u64> {
    let mut connection = registry.gateway().await?;
    let resumed = sqlx::query_scalar("SELECT end_quarantines()")
        .fetch_one(&mut *connection)
        .await
        .map_err(error::read)?;
    connection.release();
    Ok(count(resumed))
}
