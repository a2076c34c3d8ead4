//! Fleets, for operators.

use doorward_proto::ids::FleetId;

use super::super::shared::{Phase, count, fleet_id};
use super::super::{Acted, ChangeText, Done, Fleet, RegistryError, Result};
use super::{Postgres, audit, error, feed, rows};

pub(super) async fn add(registry: &Postgres, phase: &Phase, id: &FleetId, policy: &str) -> Result<()> {
    let mut connection = registry.operator().await?;
    let mut transaction = audit::begin(registry, &mut connection).await?;
    sqlx::query("INSERT INTO fleets (id, policy) VALUES ($1, $2)")
        .bind(id.as_str())
        .bind(policy)
        .execute(&mut *transaction)
        .await
        .map_err(|error| match error::is_conflict(&error) {
            true => RegistryError::Exists { kind: "fleet", id: id.to_string() },
            false => error::read(error),
        })?;
    phase.commit(transaction).await.map_err(error::commit)?;
    connection.release();
    Ok(())
}

/// All fleets, or one.
pub(super) async fn read(registry: &Postgres, id: Option<&FleetId>) -> Result<Vec<Fleet>> {
    let mut connection = registry.operator().await?;
    let found = sqlx::query(
        "SELECT f.id, f.policy, f.limits, f.schemas, f.created,
                count(*) FILTER (WHERE d.status = 'active') AS active,
                count(*) FILTER (WHERE d.status = 'suspended') AS suspended,
                count(*) FILTER (WHERE d.status = 'revoked') AS revoked
         FROM fleets f LEFT JOIN devices d ON d.fleet = f.id
         WHERE $1::text IS NULL OR f.id = $1
         GROUP BY f.id ORDER BY f.id",
    )
    .bind(id.map(|id| id.as_str()))
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    connection.release();
    let fleet = |row| {
        Ok(Fleet {
            id: fleet_id(rows::get(row, "id")?)?,
            policy: rows::get(row, "policy")?,
            limits: rows::get(row, "limits")?,
            schemas: rows::get(row, "schemas")?,
            devices: [
                count(rows::get(row, "active")?),
                count(rows::get(row, "suspended")?),
                count(rows::get(row, "revoked")?),
            ],
            created: rows::get(row, "created")?,
        })
    };
    found.iter().map(fleet).collect()
}

/// A text of a fleet's row.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    Policy,
    Limits,
    Schemas,
}

pub(super) async fn set(
    registry: &Postgres,
    phase: &Phase,
    id: &FleetId,
    part: Part,
    change: &ChangeText<'_>,
) -> Result<Acted> {
    let (read, write) = match part {
        Part::Policy => (
            "SELECT policy FROM fleets WHERE id = $1 FOR UPDATE",
            "UPDATE fleets SET policy = $2 WHERE id = $1",
        ),
        Part::Limits => (
            "SELECT limits FROM fleets WHERE id = $1 FOR UPDATE",
            "UPDATE fleets SET limits = $2 WHERE id = $1",
        ),
        Part::Schemas => (
            "SELECT schemas FROM fleets WHERE id = $1 FOR UPDATE",
            "UPDATE fleets SET schemas = $2 WHERE id = $1",
        ),
    };
    let mut connection = registry.operator().await?;
    let mut transaction = audit::begin(registry, &mut connection).await?;
    let before: Option<String> = sqlx::query_scalar(read)
        .bind(id.as_str())
        .fetch_optional(&mut *transaction)
        .await
        .map_err(error::read)?;
    let Some(before) = before else {
        return Err(RegistryError::NotFound { kind: "fleet", id: id.to_string() });
    };
    let text = change(&before)?;
    let done = if before == text {
        // Said again, so that the receipt is of now.
        feed::note(&mut transaction, "fleet", id.as_str()).await?;
        Done::Already
    } else {
        sqlx::query(write)
            .bind(id.as_str())
            .bind(text)
            .execute(&mut *transaction)
            .await
            .map_err(error::read)?;
        Done::Changed
    };
    let acted = Acted { done, mark: feed::mark(&mut transaction).await?, session: None };
    phase.commit(transaction).await.map_err(error::commit)?;
    connection.release();
    Ok(acted)
}
