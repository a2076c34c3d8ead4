//! What a driver does: takes the rotation, judges the devices that were asked, asks the next.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};
use time::OffsetDateTime;

use super::super::super::rotations::{FRESH, MANY_SESSIONS};
use super::super::super::shared::{Phase, count, device_id, key_version};
use super::super::super::{Beat, Candidate, Lease, Progress, Result, RotationState};
use super::super::{Postgres, audit, error, rows};
use super::{counts, missing};

pub(super) async fn take(registry: &Postgres, id: i64, driver: &str, silent: Duration) -> Result<Lease> {
    let mut connection = registry.operator().await?;
    let taken = sqlx::query(
        "UPDATE rotations SET driver = $2, heartbeat = clock_timestamp()
         WHERE id = $1 AND state = 'running'
             AND (driver IS NULL OR driver = $2 OR heartbeat < clock_timestamp() - $3 * interval '1 second')",
    )
    .bind(id)
    .bind(driver)
    .bind(silent.as_secs_f64())
    .execute(&mut *connection)
    .await
    .map_err(error::read)?;
    if taken.rows_affected() == 1 {
        connection.release();
        return Ok(Lease::Taken);
    }
    let held: Option<OffsetDateTime> =
        sqlx::query_scalar("SELECT heartbeat FROM rotations WHERE id = $1 AND state = 'running'")
            .bind(id)
            .fetch_optional(&mut *connection)
            .await
            .map_err(error::read)?
            .flatten();
    connection.release();
    Ok(held.map_or(Lease::Ended, Lease::Held))
}

/// By compare-and-set: whoever has given a sign of life meanwhile, keeps it.
pub(super) async fn take_over(
    registry: &Postgres,
    phase: &Phase,
    id: i64,
    driver: &str,
    heard: OffsetDateTime,
) -> Result<Lease> {
    let mut connection = registry.operator().await?;
    let mut transaction = connection.begin().await.map_err(error::read)?;
    sqlx::query(
        "UPDATE rotations SET driver = $2, heartbeat = clock_timestamp() WHERE id = $1 AND state = 'running' AND heartbeat = $3",
    )
    .bind(id)
    .bind(driver)
    .bind(heard)
    .execute(&mut *transaction)
    .await
    .map_err(error::read)?;
    phase.commit(transaction).await.map_err(error::commit)?;
    connection.release();
    // Who has it now?
    take(registry, id, driver, Duration::from_secs(3600)).await
}

/// Whether the driver has the rotation, which then stays as it is until the transaction's end.
pub(super) async fn hold(connection: &mut PgConnection, id: i64, driver: &str) -> Result<bool> {
    let held = sqlx::query(
        "UPDATE rotations SET heartbeat = clock_timestamp() WHERE id = $1 AND driver = $2 AND state = 'running'",
    )
    .bind(id)
    .bind(driver)
    .execute(connection)
    .await
    .map_err(error::read)?;
    Ok(held.rows_affected() == 1)
}

pub(super) async fn beat(
    registry: &Postgres,
    phase: &Phase,
    id: i64,
    driver: &str,
    seen_every: Duration,
) -> Result<Beat> {
    let mut connection = registry.operator().await?;
    let mut transaction = connection.begin().await.map_err(error::read)?;
    if !hold(&mut transaction, id, driver).await? {
        let found = sqlx::query("SELECT state, reason FROM rotations WHERE id = $1")
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
    let progress = progress(&mut transaction, id).await?;
    phase.commit(transaction).await.map_err(error::commit)?;
    connection.release();
    Ok(Beat::Running(progress))
}

/// That a device has come since it was asked. By its sessions' count, which no clock has a part in, or by a session that lives.
const CAME: &str = "(p.epoch <> r.epoch OR p.session IS NOT NULL AND p.last_seen >= r.asked)";

/// That it has had its time. What is known of a session is as old as its gateway's last note; one that has come and gone again
/// may have been broken by what it was given, and has its time from when it came.
const FAILS: &str = "(p.session IS NOT NULL AND greatest(p.since, r.asked) + w.patience <= now()
            AND p.last_seen >= greatest(p.since, r.asked) + w.patience - $2 * interval '1 second'
        OR p.epoch - r.epoch >= $3 AND r.asked + w.patience <= p.last_seen
        OR r.came + w.patience <= now() AND (p.session IS NULL OR p.last_seen < now() - $4 * interval '1 second'))";

/// Who has failed, and who is no part of it any more.
async fn judge(connection: &mut PgConnection, id: i64, seen_every: Duration) -> Result<()> {
    // Locked in the order of their ids, as those who prove them do; and those alone of whom something is to be written.
    let due = format!(
        "SELECT r.device FROM rotation_devices r JOIN devices d ON d.id = r.device LEFT JOIN presence p ON p.device = r.device,
             (SELECT patience_ms * interval '1 millisecond' AS patience FROM rotations WHERE id = $1) AS w
         WHERE r.rotation = $1 AND r.state = 'asked' AND (d.status = 'revoked'
             OR EXISTS (SELECT FROM hmac_keys k WHERE k.device = r.device AND k.version = r.version AND k.state = 'retired')
             OR EXISTS (SELECT FROM certificates c WHERE c.fingerprint = r.fingerprint AND c.status <> 'active')
             OR r.came IS NULL AND {CAME} OR {FAILS})
         ORDER BY r.device FOR UPDATE OF r"
    );
    let due: Vec<String> = sqlx::query_scalar(AssertSqlSafe(due))
        .bind(id)
        .bind(seen_every.as_secs_f64())
        .bind(MANY_SESSIONS)
        .bind(FRESH.as_secs_f64())
        .fetch_all(&mut *connection)
        .await
        .map_err(error::read)?;
    if due.is_empty() {
        return Ok(());
    }
    let came = format!(
        "UPDATE rotation_devices r SET came = now() FROM presence p
         WHERE r.rotation = $1 AND r.device = ANY($2) AND r.state = 'asked' AND r.came IS NULL AND p.device = r.device AND {CAME}"
    );
    for sql in [
        came.as_str(),
        "UPDATE rotation_devices r SET state = 'left_out', reason = 'revoked', ended = now() FROM devices d
         WHERE r.rotation = $1 AND r.device = ANY($2) AND r.state = 'asked' AND d.id = r.device AND d.status = 'revoked'",
        "UPDATE rotation_devices r SET ended = now(),
             state = CASE WHEN n.newer THEN 'left_out' ELSE 'failed' END,
             reason = CASE WHEN n.newer THEN 'its key was replaced by hand' ELSE 'its new key was retired' END
         FROM hmac_keys k CROSS JOIN LATERAL (
             SELECT EXISTS (SELECT FROM hmac_keys a WHERE a.device = k.device AND a.version > k.version AND a.state = 'active') AS newer
         ) AS n
         WHERE r.rotation = $1 AND r.device = ANY($2) AND r.state = 'asked' AND k.device = r.device AND k.version = r.version
             AND k.state = 'retired'",
        "UPDATE rotation_devices r SET ended = now(), state = 'left_out',
             reason = CASE c.status WHEN 'revoked' THEN 'its certificate was revoked' ELSE 'its certificate was replaced by hand' END
         FROM certificates c
         WHERE r.rotation = $1 AND r.device = ANY($2) AND r.state = 'asked' AND c.fingerprint = r.fingerprint AND c.status <> 'active'",
    ] {
        let query = sqlx::query(AssertSqlSafe(sql)).bind(id).bind(&due);
        query.execute(&mut *connection).await.map_err(error::read)?;
    }
    let failed = format!(
        "UPDATE rotation_devices r SET state = 'failed', ended = now(), reason = CASE
                 WHEN p.epoch - r.epoch >= $3 THEN 'it had ' || (p.epoch - r.epoch) || ' sessions, and has shown it in none'
                 WHEN p.session IS NULL OR p.last_seen < now() - $4 * interval '1 second' THEN 'it has gone away, and has not shown it'
                 ELSE 'it was connected for long enough, and has not shown it'
             END
         FROM presence p, (SELECT patience_ms * interval '1 millisecond' AS patience FROM rotations WHERE id = $1) AS w
         WHERE r.rotation = $1 AND r.device = ANY($5) AND r.state = 'asked' AND p.device = r.device AND {FAILS}"
    );
    sqlx::query(AssertSqlSafe(failed))
        .bind(id)
        .bind(seen_every.as_secs_f64())
        .bind(MANY_SESSIONS)
        .bind(FRESH.as_secs_f64())
        .bind(&due)
        .execute(connection)
        .await
        .map_err(error::read)?;
    Ok(())
}

async fn progress(connection: &mut PgConnection, id: i64) -> Result<Progress> {
    let row = sqlx::query(
        "SELECT count(*) FILTER (WHERE state = 'waiting') AS n_waiting, count(*) FILTER (WHERE state = 'asked') AS n_asked,
                count(*) FILTER (WHERE state = 'proven') AS n_proven, count(*) FILTER (WHERE state = 'failed') AS n_failed,
                count(*) FILTER (WHERE state = 'left_out') AS n_left_out, count(*) FILTER (WHERE state = 'withdrawn') AS n_withdrawn,
                count(*) FILTER (WHERE first AND state IN ('asked', 'proven', 'failed')) AS canaries,
                count(*) FILTER (WHERE first AND state = 'proven') AS canaries_proven,
                coalesce(extract(epoch FROM now() - max(asked) FILTER (WHERE first)), 0)::float8 AS canary_age,
                min(wave) FILTER (WHERE state = 'waiting') AS next,
                coalesce(max(wave) FILTER (WHERE asked IS NOT NULL) >= min(wave) FILTER (WHERE state = 'waiting'), false) AS begun,
                count(*) FILTER (WHERE state = 'asked' AND came IS NOT NULL) AS undecided
         FROM (SELECT *, wave = (SELECT min(f.wave) FROM rotation_devices f WHERE f.rotation = $1 AND f.state IN ('asked', 'proven', 'failed')) AS first FROM rotation_devices WHERE rotation = $1) AS m",
    )
    .bind(id)
    .fetch_one(connection)
    .await
    .map_err(error::read)?;
    let next: Option<i32> = rows::get(&row, "next")?;
    let begun: bool = rows::get(&row, "begun")?;
    Ok(Progress {
        counts: counts(&row)?,
        next: next.map(|wave| (wave.unsigned_abs(), begun)),
        undecided: count(rows::get(&row, "undecided")?),
        canaries: count(rows::get(&row, "canaries")?),
        canaries_proven: count(rows::get(&row, "canaries_proven")?),
        canary_age: Duration::try_from_secs_f64(rows::get(&row, "canary_age")?).unwrap_or(Duration::ZERO),
    })
}

pub(super) async fn candidates(
    registry: &Postgres,
    id: i64,
    wave: u32,
    limit: u32,
) -> Result<Vec<Candidate>> {
    let mut connection = registry.operator().await?;
    let found = sqlx::query(
        "SELECT r.device, n.newest, n.pending, k.version, k.sealed
         FROM (SELECT device FROM rotation_devices WHERE rotation = $1 AND wave = $2 AND state = 'waiting' ORDER BY device LIMIT $3) AS r
         CROSS JOIN LATERAL (
             SELECT coalesce(max(h.version), 0) AS newest, coalesce(bool_or(h.state = 'pending'), false) AS pending
             FROM hmac_keys h WHERE h.device = r.device
         ) AS n
         LEFT JOIN LATERAL (
             SELECT h.version, h.sealed FROM hmac_keys h WHERE h.device = r.device AND h.state <> 'retired' ORDER BY h.version DESC LIMIT 1
         ) AS k ON true
         ORDER BY r.device",
    )
    .bind(id)
    .bind(i32::try_from(wave).unwrap_or(i32::MAX))
    .bind(i64::from(limit))
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    connection.release();
    found
        .iter()
        .map(|row| {
            let version = rows::get::<Option<i32>>(row, "version")?;
            let sealed = match (version, rows::get::<Option<Vec<u8>>>(row, "sealed")?) {
                (Some(version), Some(sealed)) => Some((key_version(version.into())?, sealed)),
                _ => None,
            };
            Ok(Candidate {
                device: device_id(rows::get(row, "device")?)?,
                newest: rows::get::<i32>(row, "newest")?.unsigned_abs(),
                sealed,
                pending: rows::get(row, "pending")?,
            })
        })
        .collect()
}

pub(super) async fn finish(registry: &Postgres, phase: &Phase, id: i64, driver: &str) -> Result<bool> {
    let mut connection = registry.operator().await?;
    let mut transaction = audit::begin(registry, &mut connection).await?;
    let done = sqlx::query(
        "UPDATE rotations SET state = 'done', ended = now(), driver = NULL, heartbeat = NULL
         WHERE id = $1 AND driver = $2 AND state = 'running'",
    )
    .bind(id)
    .bind(driver)
    .execute(&mut *transaction)
    .await
    .map_err(error::read)?;
    phase.commit(transaction).await.map_err(error::commit)?;
    connection.release();
    Ok(done.rows_affected() == 1)
}
