//! Who serves, and what each has applied.

use std::time::Duration;

use sqlx::sqlite::SqliteRow;

use super::super::gateways::{taken, unknown};
use super::super::shared::{Phase, unreadable};
use super::super::{Applied, Enrolment, GatewayStatus, Mark, Result};
use super::{Sqlite, audit, error, rows};

pub(super) async fn enrol(registry: &Sqlite, phase: &Phase, row: &Enrolment) -> Result<()> {
    let mut transaction = registry.begin().await?;
    // Not REPLACE: the row that it deletes would fire no trigger.
    let written = sqlx::query(
        "INSERT INTO gateways (name, instance, version, address, may_serve_ms) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (name) DO UPDATE SET instance = ?2, version = ?3, address = ?4, may_serve_ms = ?5,
             since = strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), heartbeat = strftime('%Y-%m-%dT%H:%M:%fZ', 'now'),
             applied = NULL, signed_off = NULL
         WHERE signed_off IS NOT NULL
             OR unixepoch(heartbeat) + gateways.may_serve_ms / 1000 < unixepoch('now')
             OR substr(instance, 1, instr(instance, '.')) = substr(?2, 1, instr(?2, '.'))",
    )
    .bind(&*row.name)
    .bind(&row.instance)
    .bind(row.version)
    .bind(&row.address)
    .bind(i64::try_from(row.may_serve.as_millis()).unwrap_or(i64::MAX))
    .execute(&mut *transaction)
    .await
    .map_err(error::read)?;
    phase.commit(transaction).await.map_err(error::commit)?;
    if written.rows_affected() == 0 { Err(taken(&row.name)) } else { Ok(()) }
}

pub(super) async fn report(
    registry: &Sqlite,
    phase: &Phase,
    name: &str,
    instance: &str,
    applied: &Applied,
) -> Result<bool> {
    let applied: i64 = applied.0.parse().map_err(|error| unreadable(&error))?;
    let mut transaction = registry.begin().await?;
    let found = sqlx::query(
        // A position that the feed has not reached is of another file, before a restore.
        "UPDATE gateways SET heartbeat = strftime('%Y-%m-%dT%H:%M:%fZ', 'now'),
             applied = CASE WHEN ?3 <= coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'changes'), 0) THEN ?3 ELSE applied END
         WHERE name = ?1 AND instance = ?2 AND signed_off IS NULL",
    )
    .bind(name)
    .bind(instance)
    .bind(applied)
    .execute(&mut *transaction)
    .await
    .map_err(error::read)?;
    phase.commit(transaction).await.map_err(error::commit)?;
    Ok(found.rows_affected() == 1)
}

pub(super) async fn sign_off(registry: &Sqlite, phase: &Phase, name: &str, instance: &str) -> Result<()> {
    let mut transaction = registry.begin().await?;
    sqlx::query(
        "UPDATE gateways SET signed_off = strftime('%Y-%m-%dT%H:%M:%fZ', 'now') WHERE name = ?1 AND instance = ?2",
    )
    .bind(name)
    .bind(instance)
    .execute(&mut *transaction)
    .await
    .map_err(error::read)?;
    phase.commit(transaction).await.map_err(error::commit)
}

pub(super) async fn remove(registry: &Sqlite, phase: &Phase, name: &str) -> Result<()> {
    let mut transaction = audit::begin(registry).await?;
    let deleted = sqlx::query("DELETE FROM gateways WHERE name = ?1")
        .bind(name)
        .execute(&mut *transaction)
        .await
        .map_err(error::read)?;
    audit::commit(phase, transaction).await?;
    if deleted.rows_affected() == 0 { Err(unknown(name)) } else { Ok(()) }
}

pub(super) async fn list(registry: &Sqlite, mark: Option<Mark>) -> Result<Vec<GatewayStatus>> {
    let mut connection = registry.reader().await?;
    let found = sqlx::query(
        "SELECT name, version, address, since, heartbeat, signed_off, may_serve_ms,
                strftime('%Y-%m-%dT%H:%M:%fZ', 'now') AS now, coalesce(applied >= ?1, 0) AS confirmed
         FROM gateways ORDER BY name",
    )
    .bind(mark.map(|mark| mark.0))
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    found.iter().map(status).collect()
}

fn status(row: &SqliteRow) -> Result<GatewayStatus> {
    let heartbeat = rows::moment(row, "heartbeat")?;
    let may_serve: i64 = rows::get(row, "may_serve_ms")?;
    let may_serve = Duration::from_millis(may_serve.try_into().map_err(|error| unreadable(&error))?);
    let serves_until = heartbeat + may_serve;
    let signed_off = rows::maybe_moment(row, "signed_off")?;
    Ok(GatewayStatus {
        name: rows::get(row, "name")?,
        version: rows::get(row, "version")?,
        address: rows::get(row, "address")?,
        since: rows::moment(row, "since")?,
        heartbeat,
        serves_until,
        signed_off,
        may_serve: signed_off.is_none() && serves_until >= rows::moment(row, "now")?,
        confirmed: rows::get(row, "confirmed")?,
    })
}
