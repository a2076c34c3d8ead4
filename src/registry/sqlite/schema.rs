//! Making, migrating and checking the schema.

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::SqliteConnection;

use super::super::shared::{Phase, judge_schema, migrator};
use super::super::{Done, RegistryError, Result, SchemaError};
use super::{Sqlite, error};

fn migrations() -> Migrator {
    migrator(&[
        ("registry", include_str!("../../../migrations/sqlite/0001_registry.sql")),
        ("gateways", include_str!("../../../migrations/sqlite/0002_gateways.sql")),
        ("audit", include_str!("../../../migrations/sqlite/0003_audit.sql")),
        ("roles", include_str!("../../../migrations/sqlite/0004_roles.sql")),
        ("amendments", include_str!("../../../migrations/sqlite/0005_amendments.sql")),
        ("limits", include_str!("../../../migrations/sqlite/0006_limits.sql")),
        ("crl", include_str!("../../../migrations/sqlite/0007_crl.sql")),
        ("rotation", include_str!("../../../migrations/sqlite/0008_rotation.sql")),
        ("renewals", include_str!("../../../migrations/sqlite/0009_renewals.sql")),
        ("rotations", include_str!("../../../migrations/sqlite/0010_rotations.sql")),
        ("custody", include_str!("../../../migrations/sqlite/0011_custody.sql")),
        ("events", include_str!("../../../migrations/sqlite/0012_events.sql")),
        ("device_limits", include_str!("../../../migrations/sqlite/0013_device_limits.sql")),
    ])
}

pub(super) async fn migrate(registry: &Sqlite, phase: &Phase) -> Result<Done> {
    let migrations = migrations();
    // One transaction round all of it: a second process waits, then finds it done.
    let mut transaction = registry.begin().await?;
    match judge_schema(newest(&mut transaction).await?, &migrations) {
        Ok(()) => return Ok(Done::Already),
        Err(SchemaError::Missing | SchemaError::Older { .. }) => {}
        Err(newer) => return Err(newer.into()),
    }
    migrations.run_direct(None, &mut *transaction, false).await.map_err(|error| match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => error::read(error),
        other => RegistryError::Corrupt(other.to_string()),
    })?;
    phase.commit(transaction).await.map_err(error::commit)?;
    Ok(Done::Changed)
}

pub(super) async fn check(registry: &Sqlite) -> Result<()> {
    let mut connection = registry.reader().await?;
    Ok(judge_schema(newest(&mut connection).await?, &migrations())?)
}

async fn newest(connection: &mut SqliteConnection) -> Result<Option<i64>> {
    let exists: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = '_sqlx_migrations')")
            .fetch_one(&mut *connection)
            .await
            .map_err(error::read)?;
    if !exists {
        return Ok(None);
    }
    sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations WHERE success")
        .fetch_one(connection)
        .await
        .map_err(error::read)
}
