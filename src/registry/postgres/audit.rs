//! The audit: naming who acts, and reading what was done. Triggers write it.

use sqlx::postgres::PgConnection;
use sqlx::{Connection, Transaction};

use super::super::audit::{AuditFilter, AuditHash, AuditHead, AuditRow};
use super::super::{RegistryError, Result};
use super::{Postgres, error, rows};

/// A transaction of an operator's act.
pub(super) async fn begin<'c>(
    registry: &Postgres,
    connection: &'c mut PgConnection,
) -> Result<Transaction<'c, sqlx::Postgres>> {
    let mut transaction = connection.begin().await.map_err(error::read)?;
    sqlx::query("SELECT set_config('doorward.actor', $1, true)")
        .bind(&registry.actor)
        .execute(&mut *transaction)
        .await
        .map_err(error::read)?;
    Ok(transaction)
}

pub(super) async fn rows(registry: &Postgres, filter: &AuditFilter) -> Result<Vec<AuditRow>> {
    let mut connection = registry.operator().await?;
    let found = sqlx::query(
        "SELECT id, at, convert_to(body, 'UTF8') AS body, hash FROM audit
         WHERE id > $1 AND ($2::timestamptz IS NULL OR at >= $2) AND ($3::text IS NULL OR strpos(body, $3) > 0)
         ORDER BY id LIMIT $4",
    )
    .bind(filter.after)
    .bind(filter.since)
    .bind(filter.naming.as_ref().map(|id| format!("\"{id}\"")))
    .bind(i64::from(filter.limit))
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    connection.release();
    found
        .iter()
        .map(|row| {
            Ok(AuditRow {
                id: rows::get(row, "id")?,
                at: rows::get(row, "at")?,
                body: rows::get(row, "body")?,
                hash: Some(hash(rows::get(row, "hash")?)?),
            })
        })
        .collect()
}

pub(super) async fn head(registry: &Postgres) -> Result<AuditHead> {
    let mut connection = registry.operator().await?;
    let row = sqlx::query("SELECT count, hash FROM audit_head")
        .fetch_one(&mut *connection)
        .await
        .map_err(error::read)?;
    connection.release();
    Ok(AuditHead { count: rows::get(&row, "count")?, hash: hash(rows::get(&row, "hash")?)? })
}

fn hash(bytes: &[u8]) -> Result<AuditHash> {
    AuditHash::read(bytes)
        .ok_or_else(|| RegistryError::Corrupt("a hash of the audit is not 32 bytes".to_owned()))
}
