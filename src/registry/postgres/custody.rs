//! Custody of the devices' keys. How a master key takes another's place is decided by the functions of the custody migration.

use async_trait::async_trait;
use doorward_proto::ids::{DeviceId, KeyVersion};
use sqlx::postgres::PgRow;

use super::super::custody::{Custody, Holder, KeyRow, MasterKeyUse, Resealed, split};
use super::super::shared::{Phase, count, device_id, key_version, within};
use super::super::{OPERATOR_DEADLINE, QUERY_DEADLINE, Result};
use super::{Postgres, audit, error, rows};

#[async_trait]
impl Custody for Postgres {
    async fn note_master_keys(&self, name: &str, instance: &str, ids: &[String]) -> Result<bool> {
        within(QUERY_DEADLINE, note(self, name, instance, ids)).await
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

async fn note(registry: &Postgres, name: &str, instance: &str, ids: &[String]) -> Result<bool> {
    let mut connection = registry.gateway().await?;
    let found = sqlx::query(
        "UPDATE gateways SET master_keys = $3, master_keys_of = $2 WHERE name = $1 AND instance = $2 AND signed_off IS NULL",
    )
    .bind(name)
    .bind(instance)
    .bind(ids.join(" "))
    .execute(&mut *connection)
    .await
    .map_err(error::read)?;
    connection.release();
    Ok(found.rows_affected() == 1)
}

async fn holders(registry: &Postgres) -> Result<Vec<Holder>> {
    let mut connection = registry.operator().await?;
    let found = sqlx::query(
        "SELECT name, version, heartbeat + may_serve AS serves_until,
                CASE WHEN master_keys_of = instance THEN master_keys END AS master_keys
         FROM gateways WHERE signed_off IS NULL AND heartbeat + may_serve >= now() ORDER BY name",
    )
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    connection.release();
    found
        .iter()
        .map(|row| {
            Ok(Holder {
                gateway: rows::get(row, "name")?,
                version: rows::get(row, "version")?,
                serves_until: rows::get(row, "serves_until")?,
                keys: rows::get::<Option<&str>>(row, "master_keys")?.map(split),
            })
        })
        .collect()
}

async fn in_use(registry: &Postgres) -> Result<MasterKeyUse> {
    let mut connection = registry.operator().await?;
    let counted = sqlx::query(
        "SELECT encode(substring(sealed FROM 2 FOR 8), 'hex') AS id, count(*) AS keys FROM hmac_keys GROUP BY 1",
    )
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    let noted: Vec<(String, String)> = sqlx::query_as("SELECT id, state FROM master_keys ORDER BY id")
        .fetch_all(&mut *connection)
        .await
        .map_err(error::read)?;
    connection.release();
    let mut found = MasterKeyUse::default();
    for row in &counted {
        found.sealed.push((rows::get(row, "id")?, count(rows::get(row, "keys")?)));
    }
    // Not by the database's collation.
    found.sealed.sort();
    for (id, state) in noted {
        if state == "next" { found.next = Some(id) } else { found.retired.push(id) }
    }
    Ok(found)
}

async fn begin(registry: &Postgres, phase: &Phase, next: &str) -> Result<Option<String>> {
    let mut connection = registry.operator().await?;
    let mut transaction = audit::begin(registry, &mut connection).await?;
    let other = sqlx::query_scalar("SELECT begin_rewrap($1)")
        .bind(next)
        .fetch_one(&mut *transaction)
        .await
        .map_err(error::read)?;
    phase.commit(transaction).await.map_err(error::commit)?;
    connection.release();
    Ok(other)
}

async fn page(
    registry: &Postgres,
    id: &str,
    after: Option<&(DeviceId, KeyVersion)>,
    limit: u32,
) -> Result<Vec<KeyRow>> {
    let mut connection = registry.operator().await?;
    let found = sqlx::query(
        "SELECT device, version, sealed FROM hmac_keys
         WHERE (device, version) > ($2, $3) AND encode(substring(sealed FROM 2 FOR 8), 'hex') <> $1
         ORDER BY device, version LIMIT $4",
    )
    .bind(id)
    .bind(after.map_or("", |(device, _)| device.as_str()))
    .bind(after.map_or(0, |(_, version)| number(*version)))
    .bind(i64::from(limit))
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    connection.release();
    found.iter().map(key_row).collect()
}

fn key_row(row: &PgRow) -> Result<KeyRow> {
    Ok(KeyRow {
        device: device_id(rows::get(row, "device")?)?,
        version: key_version(rows::get::<i32>(row, "version")?.into())?,
        sealed: rows::get(row, "sealed")?,
    })
}

async fn reseal(registry: &Postgres, phase: &Phase, keys: &[Resealed]) -> Result<u64> {
    let mut connection = registry.operator().await?;
    let mut transaction = audit::begin(registry, &mut connection).await?;
    let put = sqlx::query(
        "UPDATE hmac_keys k SET sealed = n.sealed
         FROM unnest($1::text[], $2::integer[], $3::bytea[], $4::bytea[]) AS n (device, version, was, sealed)
         WHERE k.device = n.device AND k.version = n.version AND k.sealed = n.was",
    )
    .bind(keys.iter().map(|key| key.was.device.as_str()).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| number(key.was.version)).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| key.was.sealed.as_slice()).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| key.sealed.as_slice()).collect::<Vec<_>>())
    .execute(&mut *transaction)
    .await
    .map_err(error::read)?;
    phase.commit(transaction).await.map_err(error::commit)?;
    connection.release();
    Ok(put.rows_affected())
}

async fn finish(registry: &Postgres, phase: &Phase, old: &str, next: &str, most: u64) -> Result<u64> {
    let mut connection = registry.operator().await?;
    let mut transaction = audit::begin(registry, &mut connection).await?;
    let left: i64 = sqlx::query_scalar("SELECT finish_rewrap($1, $2, $3)")
        .bind(old)
        .bind(next)
        .bind(i64::try_from(most).unwrap_or(i64::MAX))
        .fetch_one(&mut *transaction)
        .await
        .map_err(error::read)?;
    phase.commit(transaction).await.map_err(error::commit)?;
    connection.release();
    Ok(count(left))
}

fn number(version: KeyVersion) -> i32 {
    i32::try_from(version.get()).unwrap_or(i32::MAX)
}
