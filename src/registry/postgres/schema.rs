//! Making, migrating and checking the schema.

use sqlx::migrate::{MigrateError, Migrator};

use super::super::shared::{judge_schema, migrator};
use super::super::{Done, RegistryError, Result, SchemaError};
use super::error::NO_POOLER;
use super::{Held, Postgres, SEARCH_PATH, error};

fn migrations() -> Migrator {
    let mut migrator = migrator(&[
        ("registry", include_str!("../../../migrations/postgres/0001_registry.sql")),
        ("gateways", include_str!("../../../migrations/postgres/0002_gateways.sql")),
        ("audit", include_str!("../../../migrations/postgres/0003_audit.sql")),
        ("roles", include_str!("../../../migrations/postgres/0004_roles.sql")),
        ("amendments", include_str!("../../../migrations/postgres/0005_amendments.sql")),
        ("limits", include_str!("../../../migrations/postgres/0006_limits.sql")),
        ("crl", include_str!("../../../migrations/postgres/0007_crl.sql")),
        ("rotation", include_str!("../../../migrations/postgres/0008_rotation.sql")),
        ("renewals", include_str!("../../../migrations/postgres/0009_renewals.sql")),
        ("rotations", include_str!("../../../migrations/postgres/0010_rotations.sql")),
        ("custody", include_str!("../../../migrations/postgres/0011_custody.sql")),
        ("events", include_str!("../../../migrations/postgres/0012_events.sql")),
        ("device_limits", include_str!("../../../migrations/postgres/0013_device_limits.sql")),
    ]);
    migrator.create_schema("doorward");
    migrator
}

pub(super) async fn migrate(registry: &Postgres) -> Result<Done> {
    let migrations = migrations();
    let mut connection = registry.operator().await?;
    match judge_schema(newest(&mut connection).await?, &migrations) {
        Ok(()) => {
            connection.release();
            return Ok(Done::Already);
        }
        Err(SchemaError::Missing | SchemaError::Older { .. }) => {}
        Err(newer) => return Err(newer.into()),
    }
    // One at a time, by the migrator's advisory lock. After an error the connection is closed, which frees the lock.
    migrations.run_direct(None, &mut *connection, false).await.map_err(|error| match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => error::read(error),
        other => RegistryError::Corrupt(other.to_string()),
    })?;
    connection.release();
    Ok(Done::Changed)
}

pub(super) async fn check(registry: &Postgres) -> Result<()> {
    let mut connection = registry.gateway().await?;
    let found = newest(&mut connection).await?;
    let path: String = sqlx::query_scalar("SELECT replace(current_setting('search_path'), ' ', '')")
        .fetch_one(&mut *connection)
        .await
        .map_err(error::read)?;
    connection.release();
    if path != SEARCH_PATH {
        return Err(RegistryError::Unavailable(format!(
            "the search_path is '{path}', and not '{SEARCH_PATH}' as was asked for; is there a pooler that drops settings? {NO_POOLER}"
        )));
    }
    Ok(judge_schema(found, &migrations())?)
}

async fn newest(connection: &mut Held) -> Result<Option<i64>> {
    let exists: bool = sqlx::query_scalar("SELECT to_regclass('doorward._sqlx_migrations') IS NOT NULL")
        .fetch_one(&mut **connection)
        .await
        .map_err(error::read)?;
    if !exists {
        return Ok(None);
    }
    sqlx::query_scalar("SELECT max(version) FROM doorward._sqlx_migrations WHERE success")
        .fetch_one(&mut **connection)
        .await
        .map_err(error::read)
}
