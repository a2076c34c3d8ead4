//! Key versions: adding one, and its device's word that it has it.

use doorward_proto::ids::{DeviceId, KeyVersion};
use sqlx::sqlite::SqliteConnection;

use super::super::shared::{Phase, revoked};
use super::super::{Acted, DeviceStatus, Done, NewKey, RegistryError, Result};
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

/// What `confirm_key` does in Postgres.
pub(super) async fn confirm(
    connection: &mut SqliteConnection,
    id: &DeviceId,
    version: KeyVersion,
) -> Result<bool> {
    if devices::lock(connection, id).await? != DeviceStatus::Active {
        return Err(RegistryError::Refused(format!("there is no active device '{id}'")));
    }
    let state: Option<String> =
        sqlx::query_scalar("SELECT state FROM hmac_keys WHERE device = ?1 AND version = ?2")
            .bind(id.as_str())
            .bind(i64::from(version.get()))
            .fetch_optional(&mut *connection)
            .await
            .map_err(error::read)?;
    match state.as_deref() {
        Some("pending") => {}
        Some("active") => return Ok(false),
        other => {
            let state = other.unwrap_or("unknown");
            return Err(RegistryError::Refused(format!(
                "key {version} of device '{id}' is not pending but {state}"
            )));
        }
    }
    for sql in [
        "UPDATE hmac_keys SET state = 'grace', grace_until = strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+' || (
             SELECT grace_seconds FROM hmac_keys WHERE device = ?1 AND version = ?2
         ) || ' seconds') WHERE device = ?1 AND state = 'active'",
        "UPDATE hmac_keys SET state = 'active' WHERE device = ?1 AND version = ?2",
    ] {
        sqlx::query(sql)
            .bind(id.as_str())
            .bind(i64::from(version.get()))
            .execute(&mut *connection)
            .await
            .map_err(error::read)?;
    }
    Ok(true)
}
