//! Custody of the devices' keys: what the functions of the custody migration do in Postgres.

use std::time::Duration;

use async_trait::async_trait;
use doorward_proto::ids::{DeviceId, KeyVersion};
use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::super::custody::{Custody, Holder, KeyRow, MasterKeyUse, Resealed, split};
use super::super::shared::{Phase, count, device_id, key_version, unreadable, within};
use super::super::{OPERATOR_DEADLINE, QUERY_DEADLINE, RegistryError, Result};
use super::store::run;
use super::{Sqlite, audit, error, rows};

#[async_trait]
impl Custody for Sqlite {
    async fn note_master_keys(&self, name: &str, instance: &str, ids: &[String]) -> Result<bool> {
        let phase = Phase::default();
        phase.within(QUERY_DEADLINE, note(self, &phase, name, instance, ids)).await
    }

    async fn master_key_holders(&self) -> Result<Vec<Holder>> {
        within(OPERATOR_DEADLINE, holders(self)).await
    }

    async fn master_keys(&self) -> Result<MasterKeyUse> {
        within(OPERATOR_DEADLINE, in_use(self)).await
    }

    async fn begin_rewrap(&self, next: &str) -> Result<Option<String>> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, begin(self, &phase, next)).await
    }

    async fn not_sealed_by(
        &self,
        id: &str,
        after: Option<&(DeviceId, KeyVersion)>,
        limit: u32,
    ) -> Result<Vec<KeyRow>> {
        within(OPERATOR_DEADLINE, page(self, id, after, limit)).await
    }

    async fn reseal(&self, keys: &[Resealed]) -> Result<u64> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, reseal(self, &phase, keys)).await
    }

    async fn finish_rewrap(&self, old: &str, next: &str, most: u64) -> Result<u64> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, finish(self, &phase, old, next, most)).await
    }
}

/// Refuses what a retired master key has sealed.
pub(super) async fn may_seal(connection: &mut SqliteConnection, sealed: &[u8]) -> Result<()> {
    let retired: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM master_keys WHERE id = lower(hex(substr(?1, 2, 8))) AND state = 'retired')",
    )
    .bind(sealed)
    .fetch_one(connection)
    .await
    .map_err(error::read)?;
    if !retired {
        return Ok(());
    }
    Err(RegistryError::Refused(
        "this key is sealed by a master key that 'doorward pki rewrap' has replaced; take pki/master.key from a home that has the \
         new one"
            .to_owned(),
    ))
}

async fn note(registry: &Sqlite, phase: &Phase, name: &str, instance: &str, ids: &[String]) -> Result<bool> {
    let mut transaction = registry.begin().await?;
    let found = sqlx::query(
        "UPDATE gateways SET master_keys = ?3, master_keys_of = ?2 WHERE name = ?1 AND instance = ?2 AND signed_off IS NULL",
    )
    .bind(name)
    .bind(instance)
    .bind(ids.join(" "))
    .execute(&mut *transaction)
    .await
    .map_err(error::read)?;
    phase.commit(transaction).await.map_err(error::commit)?;
    Ok(found.rows_affected() == 1)
}

async fn holders(registry: &Sqlite) -> Result<Vec<Holder>> {
    let mut connection = registry.reader().await?;
    let found = sqlx::query(
        "SELECT name, version, heartbeat, may_serve_ms, strftime('%Y-%m-%dT%H:%M:%fZ', 'now') AS now,
                CASE WHEN master_keys_of = instance THEN master_keys END AS master_keys
         FROM gateways WHERE signed_off IS NULL ORDER BY name",
    )
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    let mut holders = Vec::new();
    for row in &found {
        let may_serve: i64 = rows::get(row, "may_serve_ms")?;
        let may_serve = Duration::from_millis(may_serve.try_into().map_err(|error| unreadable(&error))?);
        let serves_until = rows::moment(row, "heartbeat")? + may_serve;
        if serves_until >= rows::moment(row, "now")? {
            holders.push(Holder {
                gateway: rows::get(row, "name")?,
                version: rows::get(row, "version")?,
                serves_until,
                keys: rows::get::<Option<&str>>(row, "master_keys")?.map(split),
            });
        }
    }
    Ok(holders)
}

async fn in_use(registry: &Sqlite) -> Result<MasterKeyUse> {
    let mut connection = registry.reader().await?;
    let counted = sqlx::query(
        "SELECT lower(hex(substr(sealed, 2, 8))) AS id, count(*) AS keys FROM hmac_keys GROUP BY 1 ORDER BY 1",
    )
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    let mut found = MasterKeyUse::default();
    for row in &counted {
        found.sealed.push((rows::get(row, "id")?, count(rows::get(row, "keys")?)));
    }
    let noted: Vec<(String, String)> = sqlx::query_as("SELECT id, state FROM master_keys ORDER BY id")
        .fetch_all(&mut *connection)
        .await
        .map_err(error::read)?;
    for (id, state) in noted {
        if state == "next" { found.next = Some(id) } else { found.retired.push(id) }
    }
    Ok(found)
}

async fn begin(registry: &Sqlite, phase: &Phase, next: &str) -> Result<Option<String>> {
    let mut transaction = audit::begin(registry).await?;
    let noted: Vec<(String, String)> = sqlx::query_as("SELECT id, state FROM master_keys")
        .fetch_all(&mut *transaction)
        .await
        .map_err(error::read)?;
    if noted.iter().any(|(id, state)| id == next && state == "retired") {
        return Err(RegistryError::Refused(format!(
            "master key {next} has been replaced already, and is not taken again"
        )));
    }
    if let Some((other, _)) = noted.into_iter().find(|(_, state)| state == "next") {
        if other == next {
            return Ok(None);
        }
        let sealed: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM hmac_keys WHERE lower(hex(substr(sealed, 2, 8))) = ?1)",
        )
        .bind(&other)
        .fetch_one(&mut *transaction)
        .await
        .map_err(error::read)?;
        if sealed {
            return Ok(Some(other));
        }
        sqlx::query("DELETE FROM master_keys WHERE state = 'next'")
            .execute(&mut *transaction)
            .await
            .map_err(error::read)?;
    }
    sqlx::query("INSERT INTO master_keys VALUES (?1, 'next')")
        .bind(next)
        .execute(&mut *transaction)
        .await
        .map_err(error::read)?;
    audit::commit(phase, transaction).await?;
    Ok(None)
}

async fn page(
    registry: &Sqlite,
    id: &str,
    after: Option<&(DeviceId, KeyVersion)>,
    limit: u32,
) -> Result<Vec<KeyRow>> {
    let mut connection = registry.reader().await?;
    let found = sqlx::query(
        "SELECT device, version, sealed FROM hmac_keys
         WHERE (device, version) > (?2, ?3) AND lower(hex(substr(sealed, 2, 8))) <> ?1
         ORDER BY device, version LIMIT ?4",
    )
    .bind(id)
    .bind(after.map_or("", |(device, _)| device.as_str()))
    .bind(after.map_or(0, |(_, version)| i64::from(version.get())))
    .bind(i64::from(limit))
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    found.iter().map(key_row).collect()
}

fn key_row(row: &SqliteRow) -> Result<KeyRow> {
    Ok(KeyRow {
        device: device_id(rows::get(row, "device")?)?,
        version: key_version(rows::get(row, "version")?)?,
        sealed: row.try_get("sealed").map_err(|error| unreadable(&error))?,
    })
}

async fn reseal(registry: &Sqlite, phase: &Phase, keys: &[Resealed]) -> Result<u64> {
    let mut transaction = audit::begin(registry).await?;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let values: Vec<_> = keys
        .iter()
        .map(|key| {
            let row = &key.was;
            (row.device.as_str(), row.version.get(), hex(&row.sealed), hex(&key.sealed))
        })
        .collect();
    let put = run(
        &mut transaction,
        "UPDATE hmac_keys SET sealed = unhex(n.value->>3) FROM jsonb_each(?1) AS n
         WHERE hmac_keys.device = n.value->>0 AND hmac_keys.version = n.value->>1 AND hmac_keys.sealed = unhex(n.value->>2)",
        &values,
    )
    .await?;
    audit::commit(phase, transaction).await?;
    Ok(put)
}

async fn finish(registry: &Sqlite, phase: &Phase, old: &str, next: &str, most: u64) -> Result<u64> {
    let mut transaction = audit::begin(registry).await?;
    let left: i64 =
        sqlx::query_scalar("SELECT count(*) FROM hmac_keys WHERE lower(hex(substr(sealed, 2, 8))) = ?1")
            .bind(old)
            .fetch_one(&mut *transaction)
            .await
            .map_err(error::read)?;
    let left = count(left);
    if left > most {
        return Ok(left);
    }
    sqlx::query("DELETE FROM master_keys WHERE id = ?1 AND state = 'next'")
        .bind(next)
        .execute(&mut *transaction)
        .await
        .map_err(error::read)?;
    sqlx::query(
        "INSERT INTO master_keys SELECT ?1, 'retired' WHERE NOT EXISTS (SELECT 1 FROM master_keys WHERE id = ?1)",
    )
    .bind(old)
    .execute(&mut *transaction)
    .await
    .map_err(error::read)?;
    audit::commit(phase, transaction).await?;
    Ok(left)
}
