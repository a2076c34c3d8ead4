//! Who serves, and what each has applied.

use sqlx::Connection;
use sqlx::postgres::PgRow;

use super::super::gateways::{taken, unknown};
use super::super::shared::Phase;
use super::super::{Applied, Enrolment, GatewayStatus, Mark, Result};
use super::{Postgres, audit, error, rows};

pub(super) async fn enrol(registry: &Postgres, row: &Enrolment) -> Result<()> {
    let mut connection = registry.gateway().await?;
    let written = sqlx::query(
        // Row security would refuse another role's row with an error; looking first tells it from a right that is missing.
        "INSERT INTO gateways AS g (name, instance, version, address, may_serve)
         SELECT $1, $2, $3, $4, make_interval(secs => $5)
         WHERE NOT EXISTS (
             SELECT FROM gateways h WHERE h.name = $1 AND h.owner <> session_user
                 AND h.signed_off IS NULL AND h.heartbeat + h.may_serve >= now()
         )
         ON CONFLICT (name) DO UPDATE SET instance = $2, version = $3, address = $4, may_serve = make_interval(secs => $5),
             since = now(), heartbeat = now(), applied = NULL, signed_off = NULL, owner = session_user
         WHERE g.signed_off IS NOT NULL OR split_part(g.instance, '.', 1) = split_part($2, '.', 1)
             OR g.heartbeat + g.may_serve < now()",
    )
    .bind(&*row.name)
    .bind(&row.instance)
    .bind(row.version)
    .bind(&row.address)
    .bind(row.may_serve.as_secs_f64())
    .execute(&mut *connection)
    .await
    .map_err(error::read)?;
    connection.release();
    if written.rows_affected() == 0 { Err(taken(&row.name)) } else { Ok(()) }
}

pub(super) async fn report(
    registry: &Postgres,
    name: &str,
    instance: &str,
    applied: &Applied,
) -> Result<bool> {
    let mut connection = registry.gateway().await?;
    let found = sqlx::query(
        // A snapshot from ahead of this server's is another server's, before a failover: it says nothing of what commits here.
        "UPDATE gateways SET heartbeat = clock_timestamp(),
             applied = CASE WHEN pg_snapshot_xmax($3::text::pg_snapshot) <= pg_snapshot_xmax(pg_current_snapshot())
                 THEN $3::text::pg_snapshot ELSE applied END
         WHERE name = $1 AND instance = $2 AND signed_off IS NULL",
    )
    .bind(name)
    .bind(instance)
    .bind(&applied.0)
    .execute(&mut *connection)
    .await
    .map_err(error::read)?;
    connection.release();
    Ok(found.rows_affected() == 1)
}

/// In a transaction of its own: where its answer is lost, nobody may say that it has not happened.
pub(super) async fn sign_off(registry: &Postgres, phase: &Phase, name: &str, instance: &str) -> Result<()> {
    let mut connection = registry.gateway().await?;
    let mut transaction = connection.begin().await.map_err(error::read)?;
    sqlx::query("UPDATE gateways SET signed_off = now() WHERE name = $1 AND instance = $2")
        .bind(name)
        .bind(instance)
        .execute(&mut *transaction)
        .await
        .map_err(error::read)?;
    phase.commit(transaction).await.map_err(error::commit)?;
    connection.release();
    Ok(())
}

pub(super) async fn remove(registry: &Postgres, phase: &Phase, name: &str) -> Result<()> {
    let mut connection = registry.operator().await?;
    let mut transaction = audit::begin(registry, &mut connection).await?;
    let deleted = sqlx::query("DELETE FROM gateways WHERE name = $1")
        .bind(name)
        .execute(&mut *transaction)
        .await
        .map_err(error::read)?;
    phase.commit(transaction).await.map_err(error::commit)?;
    connection.release();
    if deleted.rows_affected() == 0 { Err(unknown(name)) } else { Ok(()) }
}

pub(super) async fn list(registry: &Postgres, mark: Option<Mark>) -> Result<Vec<GatewayStatus>> {
    let mut connection = registry.operator().await?;
    let found = sqlx::query(
        "SELECT name, version, address, since, heartbeat, signed_off, heartbeat + may_serve AS serves_until,
                signed_off IS NULL AND heartbeat + may_serve >= now() AS may_serve,
                coalesce(pg_visible_in_snapshot($1::text::xid8, applied), false) AS confirmed
         FROM gateways ORDER BY name",
    )
    .bind(mark.map(|mark| mark.0.to_string()))
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    connection.release();
    found.iter().map(status).collect()
}

fn status(row: &PgRow) -> Result<GatewayStatus> {
    Ok(GatewayStatus {
        name: rows::get(row, "name")?,
        version: rows::get(row, "version")?,
        address: rows::get(row, "address")?,
        since: rows::get(row, "since")?,
        heartbeat: rows::get(row, "heartbeat")?,
        serves_until: rows::get(row, "serves_until")?,
        signed_off: rows::get(row, "signed_off")?,
        may_serve: rows::get(row, "may_serve")?,
        confirmed: rows::get(row, "confirmed")?,
    })
}
