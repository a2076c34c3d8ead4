//! Key versions: adding one, and its device's word that it has it.

use doorward_proto::ids::DeviceId;

use super::super::shared::{Phase, revoked};
use super::super::{Acted, DeviceStatus, Done, NewKey, RegistryError, Result};
use super::{Postgres, audit, devices, error};

pub(super) async fn add(registry: &Postgres, phase: &Phase, id: &DeviceId, key: &NewKey) -> Result<Acted> {
    let mut connection = registry.operator().await?;
    let mut transaction = audit::begin(registry, &mut connection).await?;
    if devices::lock(&mut transaction, id).await? == DeviceStatus::Revoked {
        return Err(revoked(id));
    }
    let at_once = key.grace.is_zero();
    if at_once {
        sqlx::query("UPDATE hmac_keys SET state = 'retired', grace_until = NULL WHERE device = $1 AND state <> 'retired'")
            .bind(id.as_str())
            .execute(&mut *transaction)
            .await
            .map_err(error::read)?;
    }
    sqlx::query(
        "INSERT INTO hmac_keys (device, version, sealed, state, grace_seconds) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(id.as_str())
    .bind(i32::try_from(key.version.get()).unwrap_or(i32::MAX))
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
    phase.commit(transaction).await.map_err(error::commit)?;
    connection.release();
    Ok(acted)
}
