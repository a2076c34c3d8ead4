//! What stands around a device.

use async_trait::async_trait;
use doorward_proto::ids::{DeviceId, FleetId};

use super::super::insight::{Insight, Insights, Lag, MOST_BEHIND, join};
use super::super::shared::{count, within};
use super::super::{Mark, OPERATOR_DEADLINE, Result};
use super::{Postgres, error, gateways, rows};

#[async_trait]
impl Insights for Postgres {
    async fn insight(&self, device: &DeviceId, fleet: &FleetId) -> Result<Insight> {
        within(OPERATOR_DEADLINE, insight(self, device, fleet)).await
    }
}

async fn insight(registry: &Postgres, device: &DeviceId, fleet: &FleetId) -> Result<Insight> {
    let mut connection = registry.operator().await?;
    let last = sqlx::query(
        // The first transaction id of all, where there is none: everybody has seen that.
        "SELECT coalesce((SELECT xid::text::bigint FROM changes
                          WHERE (kind = 'device' AND subject = $1) OR (kind = 'fleet' AND subject = $2)
                          ORDER BY xid DESC LIMIT 1), 1) AS last,
                clock_timestamp() AS now",
    )
    .bind(device.as_str())
    .bind(fleet.as_str())
    .fetch_one(&mut *connection)
    .await
    .map_err(error::read)?;
    let quarantine = sqlx::query("SELECT until FROM quarantines WHERE device = $1")
        .bind(device.as_str())
        .fetch_optional(&mut *connection)
        .await
        .map_err(error::read)?;
    let lags = sqlx::query(
        // What is below its snapshot's xmin it has seen. One that has reported nothing has seen nothing.
        "SELECT g.name, missed.behind, missed.since FROM gateways g
         CROSS JOIN LATERAL (
             SELECT count(*) AS behind, min(at) AS since FROM (
                 SELECT c.at FROM changes c
                 WHERE c.xid >= coalesce(pg_snapshot_xmin(g.applied), '0'::xid8)
                     AND NOT coalesce(pg_visible_in_snapshot(c.xid, g.applied), false)
                 ORDER BY c.xid, c.id LIMIT $1
             ) AS c
         ) AS missed",
    )
    .bind(i64::from(MOST_BEHIND))
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    connection.release();

    // A change that was pruned nobody has to confirm any more.
    let listed = gateways::list(registry, Some(Mark(rows::get(&last, "last")?))).await?;
    let lags = lags
        .iter()
        .map(|row| Ok((rows::get(row, "name")?, count(rows::get(row, "behind")?), rows::get(row, "since")?)));
    Ok(Insight {
        gateways: join(listed, &lags.collect::<Result<Vec<Lag>>>()?),
        quarantine: quarantine.map(|row| rows::get(&row, "until")).transpose()?,
        now: rows::get(&last, "now")?,
    })
}
