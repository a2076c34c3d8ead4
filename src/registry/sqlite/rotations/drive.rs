//! What a driver does: takes the rotation, judges the devices that were asked, asks the next.

use std::time::Duration;

use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteConnection;
use time::OffsetDateTime;

use super::super::super::rotations::{FRESH, MANY_SESSIONS};
use super::super::super::shared::{Phase, count, device_id, key_version};
use super::super::super::{Beat, Candidate, Lease, Progress, Result, RotationState};
use super::super::{Sqlite, audit, error, rows};
use super::{counts, missing};

/// So long before or after, as SQLite's functions of time take it.
pub(super) fn shift(sign: char, by: Duration) -> String {
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

/// By compare-and-set: whoever has given a sign of life meanwhile, keeps it.
pub(super) async fn take_over(
    registry: &Sqlite,
    phase: &Phase,
    id: i64,
    driver: &str,
    heard: OffsetDateTime,
) -> Result<Lease> {
    let mut transaction = registry.begin().await?;
    sqlx::query(
        "UPDATE rotations SET driver = ?2, heartbeat = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
         WHERE id = ?1 AND state = 'running' AND heartbeat = ?3",
    )
    .bind(id)
    .bind(driver)
    .bind(rows::stamp(heard)?)
    .execute(&mut *transaction)
    .await
    .map_err(error::read)?;
    phase.commit(transaction).await.map_err(error::commit)?;
    // Who has it now?
    take(registry, phase, id, driver, Duration::from_secs(3600)).await
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

/// The one writer is for those who change something: how it stands is read beside it. To say that the driver lives, once a
/// second is enough.
pub(super) async fn beat(
    registry: &Sqlite,
    phase: &Phase,
    id: i64,
    driver: &str,
    seen_every: Duration,
) -> Result<Beat> {
    let mut reader = registry.reader().await?;
    let found = sqlx::query(
        "SELECT state, reason, driver = ?2 AS held, heartbeat < strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-1 seconds')
             OR heartbeat > strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+1 seconds') AS due FROM rotations WHERE id = ?1",
    )
    .bind(id)
    .bind(driver)
    .fetch_optional(&mut *reader)
    .await
    .map_err(error::read)?;
    let row = found.ok_or_else(|| missing(id))?;
    let state = RotationState::read(rows::get(&row, "state")?)?;
    if state != RotationState::Running {
        return Ok(Beat::Ended(state, rows::get(&row, "reason")?));
    }
    if rows::get::<Option<bool>>(&row, "held")? != Some(true) {
        return Ok(Beat::Lost);
    }
    let judging = Judging::of(&mut reader, id, seen_every).await?;
    if rows::get::<Option<bool>>(&row, "due")? != Some(false) || judging.is_due(&mut reader).await? {
        // It is read again below: what is written now belongs to it.
        drop(reader);
        let mut transaction = registry.begin().await?;
        if !hold(&mut transaction, id, driver).await? {
            return Ok(Beat::Lost);
        }
        judging.judge(&mut transaction).await?;
        phase.commit(transaction).await.map_err(error::commit)?;
        reader = registry.reader().await?;
    }
    Ok(Beat::Running(progress(&mut reader, id).await?))
}

/// That a device has come since it was asked. By its sessions' count, which no clock has a part in, or by a session that lives.
const CAME: &str = "(p.epoch <> r.epoch OR (p.session IS NOT NULL AND p.last_seen >= r.asked))";

/// That it has had its time. What is known of a session is as old as its gateway's last note; one that has come and gone again
/// may have been broken by what it was given, and has its time from when it came.
const FAILS: &str = "((p.session IS NOT NULL
            AND strftime('%Y-%m-%dT%H:%M:%fZ', max(p.since, r.asked), ?2) <= strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
            AND p.last_seen >= strftime('%Y-%m-%dT%H:%M:%fZ', max(p.since, r.asked), ?2, ?3))
        OR (p.epoch - r.epoch >= ?4 AND strftime('%Y-%m-%dT%H:%M:%fZ', r.asked, ?2) <= p.last_seen)
        OR (strftime('%Y-%m-%dT%H:%M:%fZ', r.came, ?2) <= strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
            AND (p.session IS NULL OR p.last_seen < strftime('%Y-%m-%dT%H:%M:%fZ', 'now', ?5))))";

const REVOKED: &str = "EXISTS (SELECT 1 FROM devices AS d WHERE d.id = r.device AND d.status = 'revoked')";
const RETIRED: &str = "EXISTS (SELECT 1 FROM hmac_keys AS k WHERE k.device = r.device AND k.version = r.version AND k.state = 'retired')";
const REPLACED: &str =
    "EXISTS (SELECT 1 FROM certificates AS c WHERE c.fingerprint = r.fingerprint AND c.status <> 'active')";

/// Who has failed, and who is no part of it any more.
struct Judging {
    id: i64,
    patience: Duration,
    seen_every: Duration,
}

impl Judging {
    async fn of(connection: &mut SqliteConnection, id: i64, seen_every: Duration) -> Result<Self> {
        let patience: i64 = sqlx::query_scalar("SELECT patience_ms FROM rotations WHERE id = ?1")
            .bind(id)
            .fetch_one(connection)
            .await
            .map_err(error::read)?;
        Ok(Self { id, patience: Duration::from_millis(count(patience)), seen_every })
    }

    fn query<'a>(&self, sql: String) -> sqlx::query::Query<'a, sqlx::Sqlite, sqlx::sqlite::SqliteArguments> {
        sqlx::query(AssertSqlSafe(sql))
            .bind(self.id)
            .bind(shift('+', self.patience))
            .bind(shift('-', self.seen_every))
            .bind(MANY_SESSIONS)
            .bind(shift('-', FRESH))
    }

    /// Whether there is anything to write.
    async fn is_due(&self, connection: &mut SqliteConnection) -> Result<bool> {
        let sql = format!(
            "SELECT EXISTS (
                 SELECT 1 FROM rotation_devices AS r LEFT JOIN presence AS p ON p.device = r.device
                 WHERE r.rotation = ?1 AND r.state = 'asked'
                     AND ((r.came IS NULL AND {CAME}) OR {FAILS} OR {REVOKED} OR {RETIRED} OR {REPLACED})
             ) AS due"
        );
        let row = self.query(sql).fetch_one(connection).await.map_err(error::read)?;
        rows::get(&row, "due")
    }

    async fn judge(&self, connection: &mut SqliteConnection) -> Result<()> {
        let now = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')";
        let asked = "r.rotation = ?1 AND r.state = 'asked'";
        for sql in [
            format!(
                "UPDATE rotation_devices AS r SET came = {now} FROM presence AS p
                 WHERE {asked} AND r.came IS NULL AND p.device = r.device AND {CAME}"
            ),
            format!(
                "UPDATE rotation_devices AS r SET state = 'left_out', reason = 'revoked', ended = {now} WHERE {asked} AND {REVOKED}"
            ),
            // Those with a newer one first.
            format!(
                "UPDATE rotation_devices AS r SET ended = {now}, state = 'left_out', reason = 'its key was replaced by hand'
                 WHERE {asked} AND {RETIRED}
                     AND EXISTS (SELECT 1 FROM hmac_keys AS k WHERE k.device = r.device AND k.version > r.version AND k.state = 'active')"
            ),
            format!(
                "UPDATE rotation_devices AS r SET ended = {now}, state = 'failed', reason = 'its new key was retired'
                 WHERE {asked} AND {RETIRED}"
            ),
            format!(
                "UPDATE rotation_devices AS r SET ended = {now}, state = 'left_out', reason = (
                     SELECT iif(c.status = 'revoked', 'its certificate was revoked', 'its certificate was replaced by hand')
                     FROM certificates AS c WHERE c.fingerprint = r.fingerprint
                 )
                 WHERE {asked} AND {REPLACED}"
            ),
            format!(
                "UPDATE rotation_devices AS r SET state = 'failed', ended = {now}, reason = CASE
                     WHEN p.epoch - r.epoch >= ?4 THEN 'it had ' || (p.epoch - r.epoch) || ' sessions, and has shown it in none'
                     WHEN p.session IS NULL OR p.last_seen < strftime('%Y-%m-%dT%H:%M:%fZ', 'now', ?5)
                         THEN 'it has gone away, and has not shown it'
                     ELSE 'it was connected for long enough, and has not shown it'
                 END
                 FROM presence AS p WHERE {asked} AND p.device = r.device AND {FAILS}"
            ),
        ] {
            self.query(sql).execute(&mut *connection).await.map_err(error::read)?;
        }
        Ok(())
    }
}

async fn progress(connection: &mut SqliteConnection, id: i64) -> Result<Progress> {
    let row = sqlx::query(
        "SELECT count(*) FILTER (WHERE state = 'waiting') AS n_waiting, count(*) FILTER (WHERE state = 'asked') AS n_asked,
                count(*) FILTER (WHERE state = 'proven') AS n_proven, count(*) FILTER (WHERE state = 'failed') AS n_failed,
                count(*) FILTER (WHERE state = 'left_out') AS n_left_out, count(*) FILTER (WHERE state = 'withdrawn') AS n_withdrawn,
                count(*) FILTER (WHERE first AND state IN ('asked', 'proven', 'failed')) AS canaries,
                count(*) FILTER (WHERE first AND state = 'proven') AS canaries_proven,
                coalesce(86400.0 * (julianday('now') - julianday(max(asked) FILTER (WHERE first))), 0.0) AS canary_age,
                min(wave) FILTER (WHERE state = 'waiting') AS next,
                coalesce(max(wave) FILTER (WHERE asked IS NOT NULL) >= min(wave) FILTER (WHERE state = 'waiting'), 0) AS begun,
                count(*) FILTER (WHERE state = 'asked' AND came IS NOT NULL) AS undecided
         FROM (SELECT *, wave = (SELECT min(f.wave) FROM rotation_devices f WHERE f.rotation = ?1 AND f.state IN ('asked', 'proven', 'failed')) AS first FROM rotation_devices WHERE rotation = ?1) AS m",
    )
    .bind(id)
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
