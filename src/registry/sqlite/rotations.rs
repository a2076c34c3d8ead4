//! Rotations of fleets. Each step is one transaction of the one writer: a driver that has lost its rotation changes nothing
//! any more.

mod ask;
mod drive;
mod turn;

use std::time::Duration;

use async_trait::async_trait;
use doorward_proto::ids::{DeviceId, FleetId, KeyVersion};
use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteRow;
use time::OffsetDateTime;

use super::super::shared::{Phase, clean, count, device_id, fleet_id, key_version, share, within};
use super::super::{
    Beat, Candidate, Counts, Credential, Done, Lease, Mark, Member, MemberFilter, MemberState, NewKey,
    NewRotation, OPERATOR_DEADLINE, RegistryError, Result, Rotation, RotationState, Rotations,
};
use super::store::json;
use super::{Sqlite, audit, error, rows};
use ask::{ask_for_certificates, ask_for_keys};
use drive::{beat, candidates, finish, release, take, take_over};
use turn::{Change, hand_out, turn, withdraw};

/// Rotations with their counts; what follows is a condition.
const READ: &str = "SELECT r.*,
        count(m.device) FILTER (WHERE m.state = 'waiting') AS n_waiting, count(m.device) FILTER (WHERE m.state = 'asked') AS n_asked,
        count(m.device) FILTER (WHERE m.state = 'proven') AS n_proven, count(m.device) FILTER (WHERE m.state = 'failed') AS n_failed,
        count(m.device) FILTER (WHERE m.state = 'left_out') AS n_left_out,
        count(m.device) FILTER (WHERE m.state = 'withdrawn') AS n_withdrawn
    FROM rotations r LEFT JOIN rotation_devices m ON m.rotation = r.id";

#[async_trait]
impl Rotations for Sqlite {
    async fn start(&self, new: &NewRotation) -> Result<i64> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, start(self, &phase, new)).await
    }

    async fn list(&self, limit: u32) -> Result<Vec<Rotation>> {
        within(OPERATOR_DEADLINE, async {
            let mut connection = self.reader().await?;
            let sql = format!("{READ} WHERE r.id IN (SELECT id FROM rotations ORDER BY id DESC LIMIT ?1) GROUP BY r.id ORDER BY r.id DESC");
            let query = sqlx::query(AssertSqlSafe(sql)).bind(i64::from(limit));
            let found = query.fetch_all(&mut *connection).await.map_err(error::read)?;
            found.iter().map(rotation).collect()
        })
        .await
    }

    async fn find(&self, id: i64) -> Result<Option<Rotation>> {
        within(OPERATOR_DEADLINE, async {
            let mut connection = self.reader().await?;
            let sql = format!("{READ} WHERE r.id = ?1 GROUP BY r.id");
            let query = sqlx::query(AssertSqlSafe(sql)).bind(id);
            let found = query.fetch_optional(&mut *connection).await.map_err(error::read)?;
            found.as_ref().map(rotation).transpose()
        })
        .await
    }

    async fn open(&self, what: Credential, fleet: &FleetId) -> Result<Option<Rotation>> {
        within(OPERATOR_DEADLINE, async {
            let mut connection = self.reader().await?;
            let sql = format!(
                "{READ} WHERE r.what = ?1 AND r.fleet = ?2 AND r.state IN ('running', 'stopped') GROUP BY r.id"
            );
            let query = sqlx::query(AssertSqlSafe(sql)).bind(what.as_str()).bind(fleet.as_str());
            let found = query.fetch_optional(&mut *connection).await.map_err(error::read)?;
            found.as_ref().map(rotation).transpose()
        })
        .await
    }

    async fn members(&self, id: i64, filter: &MemberFilter) -> Result<Vec<Member>> {
        within(OPERATOR_DEADLINE, members(self, id, filter)).await
    }

    async fn take(&self, id: i64, driver: &str, silent: Duration) -> Result<Lease> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, take(self, &phase, id, driver, silent)).await
    }

    async fn take_over(&self, id: i64, driver: &str, heard: OffsetDateTime) -> Result<Lease> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, take_over(self, &phase, id, driver, heard)).await
    }

    async fn release(&self, id: i64, driver: &str) -> Result<()> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, release(self, &phase, id, driver)).await
    }

    async fn beat(&self, id: i64, driver: &str, seen_every: Duration) -> Result<Beat> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, beat(self, &phase, id, driver, seen_every)).await
    }

    async fn candidates(&self, id: i64, wave: u32, limit: u32) -> Result<Vec<Candidate>> {
        within(OPERATOR_DEADLINE, candidates(self, id, wave, limit)).await
    }

    async fn ask_for_keys(&self, id: i64, driver: &str, keys: &[(DeviceId, Option<NewKey>)]) -> Result<bool> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, ask_for_keys(self, &phase, id, driver, keys)).await
    }

    async fn ask_for_certificates(
        &self,
        id: i64,
        driver: &str,
        devices: &[DeviceId],
        by: OffsetDateTime,
    ) -> Result<bool> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, ask_for_certificates(self, &phase, id, driver, devices, by)).await
    }

    async fn finish(&self, id: i64, driver: &str) -> Result<bool> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, finish(self, &phase, id, driver)).await
    }

    async fn stop(&self, id: i64, reason: &str) -> Result<Done> {
        let phase = Phase::default();
        let change = Change::Stop(clean(reason));
        phase.within(OPERATOR_DEADLINE, turn(self, &phase, id, &change)).await
    }

    async fn resume(&self, id: i64, max_failures: Option<u32>) -> Result<Done> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, turn(self, &phase, id, &Change::Resume(max_failures))).await
    }

    async fn undo(&self, id: i64) -> Result<Done> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, turn(self, &phase, id, &Change::Undo)).await
    }

    async fn withdraw(&self, id: i64, limit: u32) -> Result<(Vec<DeviceId>, Mark)> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, withdraw(self, &phase, id, limit)).await
    }

    async fn hand_out(&self, device: &DeviceId, version: KeyVersion) -> Result<()> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, hand_out(self, &phase, device, version)).await
    }

    async fn doubtful(&self, id: i64, limit: u32) -> Result<Vec<DeviceId>> {
        within(OPERATOR_DEADLINE, async {
            let mut connection = self.reader().await?;
            let found: Vec<String> = sqlx::query_scalar(
                "SELECT r.device FROM rotation_devices r JOIN presence p ON p.device = r.device
                 WHERE r.rotation = ?1 AND r.state = 'withdrawn' AND r.version IS NOT NULL AND p.epoch <> r.epoch
                     AND p.since <= strftime('%Y-%m-%dT%H:%M:%fZ', r.ended, '+10 seconds')
                 ORDER BY r.device LIMIT ?2",
            )
            .bind(id)
            .bind(i64::from(limit))
            .fetch_all(&mut *connection)
            .await
            .map_err(error::read)?;
            found.iter().map(|device| device_id(device)).collect()
        })
        .await
    }
}

async fn start(registry: &Sqlite, phase: &Phase, new: &NewRotation) -> Result<i64> {
    let mut transaction = audit::begin(registry).await?;
    let active: i64 =
        sqlx::query_scalar("SELECT count(*) FROM devices WHERE fleet = ?1 AND status = 'active'")
            .bind(new.fleet.as_str())
            .fetch_one(&mut *transaction)
            .await
            .map_err(error::read)?;
    if active == 0 {
        return Err(RegistryError::Refused(format!("fleet '{}' has no active device", new.fleet)));
    }
    let id: i64 = sqlx::query_scalar(
        "INSERT INTO rotations (what, fleet, canary, wave, max_failures, patience_ms, grace_seconds, started_by)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) RETURNING id",
    )
    .bind(new.what.as_str())
    .bind(new.fleet.as_str())
    .bind(new.canary.to_string())
    .bind(new.wave.to_string())
    .bind(i64::from(new.max_failures))
    .bind(i64::try_from(new.patience.as_millis()).unwrap_or(i64::MAX))
    .bind(i64::try_from(new.grace.as_secs()).unwrap_or(i64::MAX))
    .bind(&registry.actor)
    .fetch_one(&mut *transaction)
    .await
    .map_err(|error| match error::is_conflict(&error) {
        true => RegistryError::Exists { kind: "rotation", id: new.fleet.to_string() },
        false => error::read(error),
    })?;
    // Connected ones first: they show early what is wrong. Among them by chance, so that no canary is always the same.
    let canaries = new.canary.of(count(active));
    let wave = new.wave.of(count(active) - canaries).max(1);
    sqlx::query(
        "INSERT INTO rotation_devices (rotation, device, wave, state, reason, ended)
         SELECT ?1, o.id,
                CASE WHEN o.status <> 'active' OR o.place <= ?3 THEN 0 ELSE 1 + (o.place - ?3 - 1) / ?4 END,
                CASE WHEN o.status = 'active' THEN 'waiting' ELSE 'left_out' END,
                nullif(o.status, 'active'), CASE WHEN o.status <> 'active' THEN strftime('%Y-%m-%dT%H:%M:%fZ', 'now') END
         FROM (
             SELECT d.id, d.status, row_number() OVER (ORDER BY d.status <> 'active', p.session IS NULL, random()) AS place
             FROM devices d LEFT JOIN presence p ON p.device = d.id WHERE d.fleet = ?2
         ) AS o",
    )
    .bind(id)
    .bind(new.fleet.as_str())
    .bind(i64::try_from(canaries).unwrap_or(i64::MAX))
    .bind(i64::try_from(wave).unwrap_or(i64::MAX))
    .execute(&mut *transaction)
    .await
    .map_err(error::read)?;
    audit::commit(phase, transaction).await?;
    Ok(id)
}

async fn members(registry: &Sqlite, id: i64, filter: &MemberFilter) -> Result<Vec<Member>> {
    let mut connection = registry.reader().await?;
    let found = sqlx::query(
        "SELECT * FROM rotation_devices
         WHERE rotation = ?1 AND state IN (SELECT value FROM json_each(?2)) AND (?3 IS NULL OR device > ?3) ORDER BY device LIMIT ?4",
    )
    .bind(id)
    .bind(json(&filter.states.iter().map(|state| state.as_str()).collect::<Vec<_>>())?)
    .bind(filter.after.as_ref().map(|after| after.as_str()))
    .bind(i64::from(filter.limit))
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    found.iter().map(member).collect()
}

fn missing(id: i64) -> RegistryError {
    RegistryError::NotFound { kind: "rotation", id: id.to_string() }
}

fn counts(row: &SqliteRow) -> Result<Counts> {
    Ok(Counts {
        waiting: count(rows::get(row, "n_waiting")?),
        asked: count(rows::get(row, "n_asked")?),
        proven: count(rows::get(row, "n_proven")?),
        failed: count(rows::get(row, "n_failed")?),
        left_out: count(rows::get(row, "n_left_out")?),
        withdrawn: count(rows::get(row, "n_withdrawn")?),
    })
}

fn rotation(row: &SqliteRow) -> Result<Rotation> {
    Ok(Rotation {
        id: rows::get(row, "id")?,
        plan: NewRotation {
            what: Credential::read(rows::get(row, "what")?)?,
            fleet: fleet_id(rows::get(row, "fleet")?)?,
            canary: share(rows::get(row, "canary")?)?,
            wave: share(rows::get(row, "wave")?)?,
            max_failures: u32::try_from(rows::get::<i64>(row, "max_failures")?).unwrap_or(u32::MAX),
            patience: Duration::from_millis(count(rows::get(row, "patience_ms")?)),
            grace: Duration::from_secs(count(rows::get(row, "grace_seconds")?)),
        },
        state: RotationState::read(rows::get(row, "state")?)?,
        reason: rows::get(row, "reason")?,
        started: rows::moment(row, "started")?,
        started_by: rows::get(row, "started_by")?,
        ended: rows::maybe_moment(row, "ended")?,
        heartbeat: rows::maybe_moment(row, "heartbeat")?,
        counts: counts(row)?,
    })
}

fn member(row: &SqliteRow) -> Result<Member> {
    let version: Option<i64> = rows::get(row, "version")?;
    Ok(Member {
        device: device_id(rows::get(row, "device")?)?,
        wave: rows::get(row, "wave")?,
        state: MemberState::read(rows::get(row, "state")?)?,
        reason: rows::get(row, "reason")?,
        version: version.map(key_version).transpose()?,
        asked: rows::maybe_moment(row, "asked")?,
        ended: rows::maybe_moment(row, "ended")?,
    })
}
