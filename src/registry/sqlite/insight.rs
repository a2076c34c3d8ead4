//! What stands around a device.

use async_trait::async_trait;
use doorward_proto::ids::{DeviceId, FleetId};

use super::super::insight::{Insight, Insights, Lag, MOST_BEHIND, join};
use super::super::shared::{count, within};
use super::super::{Mark, OPERATOR_DEADLINE, Result};
use super::{Sqlite, error, gateways, rows};

#[async_trait]
impl Insights for Sqlite {
    async fn insight(&self, device: &DeviceId, fleet: &FleetId) -> Result<Insight> {
        within(OPERATOR_DEADLINE, insight(self, device, fleet)).await
    }
}

async fn insight(registry: &Sqlite, device: &DeviceId, fleet: &FleetId) -> Result<Insight> {
    let mut connection = registry.reader().await?;
    let last = sqlx::query(
        "SELECT coalesce((SELECT max(id) FROM changes
                          WHERE (kind = 'device' AND subject = ?1) OR (kind = 'fleet' AND subject = ?2)), 0) AS last,
                strftime('%Y-%m-%dT%H:%M:%fZ', 'now') AS now",
    )
    .bind(device.as_str())
    .bind(fleet.as_str())
    .fetch_one(&mut *connection)
    .await
    .map_err(error::read)?;
    let quarantine = sqlx::query("SELECT until FROM quarantines WHERE device = ?1")
        .bind(device.as_str())
        .fetch_optional(&mut *connection)
        .await
        .map_err(error::read)?;
    let lags = sqlx::query(
        "SELECT name,
                (SELECT count(*) FROM (SELECT 1 FROM changes WHERE id > coalesce(g.applied, 0) LIMIT ?1)) AS behind,
                (SELECT at FROM changes WHERE id > coalesce(g.applied, 0) ORDER BY id LIMIT 1) AS since
         FROM gateways g",
    )
    .bind(MOST_BEHIND)
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    drop(connection);

    // A change that was pruned nobody has to confirm any more.
    let listed = gateways::list(registry, Some(Mark(rows::get(&last, "last")?))).await?;
    let lags = lags.iter().map(|row| {
        Ok((rows::get(row, "name")?, count(rows::get(row, "behind")?), rows::maybe_moment(row, "since")?))
    });
    Ok(Insight {
        gateways: join(listed, &lags.collect::<Result<Vec<Lag>>>()?),
        quarantine: quarantine.map(|row| rows::maybe_moment(&row, "until")).transpose()?,
        now: rows::moment(&last, "now")?,
    })
}
