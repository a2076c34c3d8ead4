//! What a driver does: takes the rotation, judges the devices that were asked, asks the next.

use std::time::Duration;

use sqlx::sqlite::SqliteConnection;

use super::super::super::rotations::{FRESH_BEATS, MANY_SESSIONS};
use super::super::super::shared::{Phase, count, device_id, key_version};
use super::super::super::{Beat, Candidate, Lease, Progress, Result, RotationState};
use super::super::{Sqlite, audit, error, rows};
use super::{counts, missing};

/// So long before or after, as SQLite's functions of time take it.
fn shift(sign: char, by: Duration) -> String {
    format!("{sign}{:.3} seconds", by.as_secs_f64())
}

pub(super) async fn take(
    registry: &Sqlite,
    phase: &Phase,
    id: i64,
    driver: &str,
    silent: Duration,
) -> Result<Lease> {
    let mut transaction = registry.begin().await?;
    let taken = sqlx::query(
        "UPDATE rotations SET driver = ?2, heartbeat = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
         WHERE id = ?1 AND state = 'running'
             AND (driver IS NULL OR driver = ?2 OR heartbeat < strftime('%Y-%m-%dT%H:%M:%fZ', 'now', ?3))",
    )
    .bind(id)
    .bind(driver)
    .bind(shift('-', silent))
    .execute(&mut *transaction)
    .await
    .map_err(error::read)?;
    if taken.rows_affected() == 1 {
        phase.commit(transaction).await.map_err(error::commit)?;
        return Ok(Lease::Taken);
    }
    let held = sqlx::query("SELECT heartbeat FROM rotations WHERE id = ?1 AND state = 'running'")
        .bind(id)
        .fetch_optional(&mut *transaction)
        .await
        .map_err(error::read)?;
    let heartbeat = held.map(|row| rows::maybe_moment(&row, "heartbeat")).transpose()?.flatten();
    Ok(heartbeat.map_or(Lease::Ended, Lease::Held))
}

pub(super) async fn release(registry: &Sqlite, phase: &Phase, id: i64, driver: &str) -> Result<()> {
    let mut transaction = registry.begin().await?;
    sqlx::query("UPDATE rotations SET driver = NULL, heartbeat = NULL WHERE id = ?1 AND driver = ?2")
        .bind(id)
        .bind(driver)
        .execute(&mut *transaction)
        .await
        .map_err(error::read)?;
    phase.commit(transaction).await.map_err(error::commit)
}

/// Whether the driver has the rotation, which then stays as it is until the transaction's end.
pub(super) async fn hold(connection: &mut SqliteConnection, id: i64, driver: &str) -> Result<bool> {
    let held = sqlx::query(
        "UPDATE rotations SET heartbeat = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
         WHERE id = ?1 AND driver = ?2 AND state = 'running'",
    )
    .bind(id)
    .bind(driver)
    .execute(connection)
    .await
    .map_err(error::read)?;
    Ok(held.rows_affected() == 1)
}

pub(super) async fn beat(
    registry: &Sqlite,
    phase: &Phase,
    id: i64,
    driver: &str,
    seen_every: Duration,
) -> Result<Beat> {
    let mut transaction = registry.begin().await?;
    if !hold(&mut transaction, id, driver).await? {
        let found = sqlx::query("SELECT state, reason FROM rotations WHERE id = ?1")
            .bind(id)
            .fetch_optional(&mut *transaction)
            .await
            .map_err(error::read)?;
        let row = found.ok_or_else(|| missing(id))?;
        let state = RotationState::read(rows::get(&row, "state")?)?;
        return Ok(match state {
            RotationState::Running => Beat::Lost,
            ended => Beat::Ended(ended, rows::get(&row, "reason")?),
        });
    }
    judge(&mut transaction, id, seen_every).await?;
    let progress = progress(&mut transaction, id, seen_every).await?;
    phase.commit(transaction).await.map_err(error::commit)?;
    Ok(Beat::Running(progress))
}

/// Who has failed, and who is no part of it any more.
async fn judge(connection: &mut SqliteConnection, id: i64, seen_every: Duration) -> Result<()> {
    for sql in [
        "UPDATE rotation_devices SET state = 'left_out', reason = 'revoked', ended = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
         WHERE rotation = ?1 AND state = 'asked'
             AND EXISTS (SELECT 1 FROM devices AS d WHERE d.id = rotation_devices.device AND d.status = 'revoked')",
        // Those with a newer one first.
        "UPDATE rotation_devices SET ended = strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), state = 'left_out', reason = 'its key was replaced by hand'
         WHERE rotation = ?1 AND state = 'asked'
             AND EXISTS (SELECT 1 FROM hmac_keys AS k WHERE k.device = rotation_devices.device AND k.version = rotation_devices.version AND k.state = 'retired')
             AND EXISTS (SELECT 1 FROM hmac_keys AS k WHERE k.device = rotation_devices.device AND k.version > rotation_devices.version AND k.state = 'active')",
        "UPDATE rotation_devices SET ended = strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), state = 'failed', reason = 'its new key was retired'
         WHERE rotation = ?1 AND state = 'asked'
             AND EXISTS (SELECT 1 FROM hmac_keys AS k WHERE k.device = rotation_devices.device AND k.version = rotation_devices.version AND k.state = 'retired')",
        "UPDATE rotation_devices SET ended = strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), state = 'left_out', reason = (
                 SELECT iif(c.status = 'revoked', 'its certificate was revoked', 'its certificate was replaced by hand')
                 FROM certificates AS c WHERE c.fingerprint = rotation_devices.fingerprint
             )
         WHERE rotation = ?1 AND state = 'asked'
             AND EXISTS (SELECT 1 FROM certificates AS c WHERE c.fingerprint = rotation_devices.fingerprint AND c.status <> 'active')",
    ] {
        sqlx::query(sql).bind(id).execute(&mut *connection).await.map_err(error::read)?;
    }
    let patience: i64 = sqlx::query_scalar("SELECT patience_ms FROM rotations WHERE id = ?1")
        .bind(id)
        .fetch_one(&mut *connection)
        .await
        .map_err(error::read)?;
    let patience = Duration::from_millis(count(patience));
    // What is known of a session is as old as its gateway's last note: one that is long gone is nobody's failure.
    sqlx::query(
        "UPDATE rotation_devices SET state = 'failed', ended = strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), reason = CASE
                 WHEN p.epoch - rotation_devices.epoch < ?4 THEN 'it was connected for long enough, and has not shown it'
                 ELSE 'it had ' || (p.epoch - rotation_devices.epoch) || ' sessions, and has shown it in none'
             END
         FROM presence AS p
         WHERE rotation = ?1 AND rotation_devices.state = 'asked' AND p.device = rotation_devices.device AND (
             (p.session IS NOT NULL
                 AND strftime('%Y-%m-%dT%H:%M:%fZ', max(p.since, asked), ?2) <= strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
                 AND p.last_seen >= strftime('%Y-%m-%dT%H:%M:%fZ', max(p.since, asked), ?2, ?3))
             OR (p.epoch - rotation_devices.epoch >= ?4 AND strftime('%Y-%m-%dT%H:%M:%fZ', asked, ?2) <= p.last_seen)
         )",
    )
    .bind(id)
    .bind(shift('+', patience))
    .bind(shift('-', seen_every))
    .bind(MANY_SESSIONS)
    .execute(connection)
    .await
    .map_err(error::read)?;
    Ok(())
}

async fn progress(connection: &mut SqliteConnection, id: i64, seen_every: Duration) -> Result<Progress> {
    let row = sqlx::query(
        "SELECT count(*) FILTER (WHERE state = 'waiting') AS n_waiting, count(*) FILTER (WHERE state = 'asked') AS n_asked,
                count(*) FILTER (WHERE state = 'proven') AS n_proven, count(*) FILTER (WHERE state = 'failed') AS n_failed,
                count(*) FILTER (WHERE state = 'left_out') AS n_left_out, count(*) FILTER (WHERE state = 'withdrawn') AS n_withdrawn,
                count(*) FILTER (WHERE wave = 0 AND asked IS NOT NULL) AS canaries,
                count(*) FILTER (WHERE wave = 0 AND state = 'proven') AS canaries_proven,
                coalesce(86400.0 * (julianday('now') - julianday(max(asked) FILTER (WHERE wave = 0))), 0.0) AS canary_age,
                min(wave) FILTER (WHERE state = 'waiting') AS next,
                coalesce(max(wave) FILTER (WHERE asked IS NOT NULL) >= min(wave) FILTER (WHERE state = 'waiting'), 0) AS begun,
                (SELECT count(*) FROM rotation_devices AS u CROSS JOIN presence AS p ON p.device = u.device
                 WHERE u.rotation = ?1 AND u.state = 'asked' AND p.session IS NOT NULL
                     AND p.last_seen >= strftime('%Y-%m-%dT%H:%M:%fZ', 'now', ?2)) AS undecided
         FROM rotation_devices WHERE rotation = ?1",
    )
    .bind(id)
    .bind(shift('-', seen_every * FRESH_BEATS))
    .fetch_one(connection)
    .await
    .map_err(error::read)?;
    let next: Option<u32> = rows::get(&row, "next")?;
    let begun: bool = rows::get(&row, "begun")?;
    Ok(Progress {
        counts: counts(&row)?,
        next: next.map(|wave| (wave, begun)),
        undecided: count(rows::get(&row, "undecided")?),
        canaries: count(rows::get(&row, "canaries")?),
        canaries_proven: count(rows::get(&row, "canaries_proven")?),
        canary_age: Duration::try_from_secs_f64(rows::get(&row, "canary_age")?).unwrap_or(Duration::ZERO),
    })
}

pub(super) async fn candidates(registry: &Sqlite, id: i64, wave: u32, limit: u32) -> Result<Vec<Candidate>> {
    let mut connection = registry.reader().await?;
    let found = sqlx::query(
        "SELECT r.device, k.version, k.sealed,
                (SELECT coalesce(max(version), 0) FROM hmac_keys AS h WHERE h.device = r.device) AS newest,
                EXISTS (SELECT 1 FROM hmac_keys AS h WHERE h.device = r.device AND h.state = 'pending') AS pending
         FROM (SELECT device FROM rotation_devices WHERE rotation = ?1 AND wave = ?2 AND state = 'waiting' ORDER BY device LIMIT ?3) AS r
         LEFT JOIN hmac_keys AS k ON k.device = r.device AND k.version = (
             SELECT max(version) FROM hmac_keys AS h WHERE h.device = r.device AND h.state <> 'retired'
         )
         ORDER BY r.device",
    )
    .bind(id)
    .bind(wave)
    .bind(i64::from(limit))
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    found
        .iter()
        .map(|row| {
            let version = rows::get::<Option<i64>>(row, "version")?;
            let sealed = match (version, rows::get::<Option<Vec<u8>>>(row, "sealed")?) {
                (Some(version), Some(sealed)) => Some((key_version(version)?, sealed)),
                _ => None,
            };
            Ok(Candidate {
                device: device_id(rows::get(row, "device")?)?,
                newest: rows::get(row, "newest")?,
                sealed,
                pending: rows::get(row, "pending")?,
            })
        })
        .collect()
}

pub(super) async fn finish(registry: &Sqlite, phase: &Phase, id: i64, driver: &str) -> Result<bool> {
    let mut transaction = audit::begin(registry).await?;
    let done = sqlx::query(
        "UPDATE rotations SET state = 'done', ended = strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), driver = NULL, heartbeat = NULL
         WHERE id = ?1 AND driver = ?2 AND state = 'running'",
    )
    .bind(id)
    .bind(driver)
    .execute(&mut *transaction)
    .await
    .map_err(error::read)?;
    audit::commit(phase, transaction).await?;
    Ok(done.rows_affected() == 1)
}
