//! Key versions: adding one, and its device's word that it has it.

use doorward_proto::ids::{DeviceId, KeyVersion};
use sqlx::sqlite::SqliteConnection;

use super::super::shared::{Phase, revoked};
use super::super::{Acted, DeviceStatus, Done, NewKey, RegistryError, Result};
use super::store::{json, run};
use super::{Sqlite, audit, custody, devices, error};

pub(super) async fn add(registry: &Sqlite, phase: &Phase, id: &DeviceId, key: &NewKey) -> Result<Acted> {
    let mut transaction = audit::begin(registry).await?;
    if devices::lock(&mut transaction, id).await? == DeviceStatus::Revoked {
        return Err(revoked(id));
    }
    // Its trigger's refusal would look like that of a version that is taken.
    custody::may_seal(&mut transaction, &key.sealed).await?;
    let at_once = key.grace.is_zero();
    if at_once {
        sqlx::query("UPDATE hmac_keys SET state = 'retired', grace_until = NULL WHERE device = ?1 AND state <> 'retired'")
            .bind(id.as_str())
            .execute(&mut *transaction)
            .await
            .map_err(error::read)?;
    }
    sqlx::query(
        "INSERT INTO hmac_keys (device, version, sealed, state, grace_seconds) VALUES (?1, ?2, ?3, ?4, ?5)",
    )
    .bind(id.as_str())
    .bind(i64::from(key.version.get()))
    .bind(&key.sealed)
    .bind(if at_once { "active" } else { "pending" })
    .bind(i64::try_from(key.grace.as_secs()).unwrap_or(i64::MAX))
    .execute(&mut *transaction)
    .await
    .map_err(|error| match error::is_conflict(&error) {
        true => RegistryError::Exists { kind: "key", id: format!("{} of {id}", key.version) },
        false => error::read(error),
    })?;
    let acted = devices::acted(&mut transaction, id, Done::Changed).await?;
    audit::commit(phase, transaction).await?;
    Ok(acted)
}

/// What `confirm_key` does in Postgres, for many at once: what is published waits behind this transaction.
pub(super) async fn confirm(
    connection: &mut SqliteConnection,
    shown: &[(&DeviceId, KeyVersion)],
) -> Result<Vec<Result<bool, String>>> {
    let asked: Vec<_> = shown.iter().map(|(id, version)| (id.as_str(), version.get())).collect();
    let found: Vec<(Option<String>, Option<String>)> = sqlx::query_as(
        "SELECT d.status, k.state FROM jsonb_each(?1) AS n
         LEFT JOIN devices AS d ON d.id = n.value->>0
         LEFT JOIN hmac_keys AS k ON k.device = d.id AND k.version = n.value->>1
         ORDER BY n.key",
    )
    .bind(json(&asked)?)
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    let mut pending = Vec::new();
    let mut outcomes = Vec::with_capacity(shown.len());
    for ((id, version), (status, state)) in shown.iter().zip(found) {
        outcomes.push(match (status.as_deref().map(DeviceStatus::read).transpose()?, state.as_deref()) {
            (Some(DeviceStatus::Active), Some("pending")) => {
                // Twice in one batch, it is new once.
                let key = (id.as_str(), version.get());
                let new = !pending.contains(&key);
                pending.extend(new.then_some(key));
                Ok(new)
            }
            (Some(DeviceStatus::Active), Some("active")) => Ok(false),
            (Some(DeviceStatus::Active), other) => {
                let state = other.unwrap_or("unknown");
                Err(format!("key {version} of device '{id}' is not pending but {state}"))
            }
            _ => Err(format!("there is no active device '{id}'")),
        });
    }
    if pending.is_empty() {
        return Ok(outcomes);
    }
    for sql in [
        "UPDATE hmac_keys SET state = 'grace', grace_until = strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+' || (
             SELECT p.grace_seconds FROM hmac_keys AS p WHERE p.device = hmac_keys.device AND p.state = 'pending'
         ) || ' seconds')
         WHERE device IN (SELECT value->>0 FROM jsonb_each(?1)) AND +state = 'active'",
        "UPDATE hmac_keys SET state = 'active'
         WHERE (device, version) IN (SELECT value->>0, value->>1 FROM jsonb_each(?1))",
    ] {
        run(connection, sql, &pending).await?;
    }
    Ok(outcomes)
}
