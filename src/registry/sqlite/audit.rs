//! The audit: naming who acts, sealing what triggers have written, and reading it.
//!
//! SQLite knows no SHA-256. A row that a hand has written by plain SQL waits without a hash until the next act of a
//! command, which seals all that wait, in order, before it commits.

use sqlx::Transaction;
use sqlx::sqlite::SqliteConnection;

use super::super::audit::{AuditFilter, AuditHash, AuditHead, AuditRow};
use super::super::shared::Phase;
use super::super::{RegistryError, Result};
use super::rows::{self, stamp};
use super::store::run;
use super::{Sqlite, error};

/// Rows that are sealed at once.
const PAGE: i64 = 5000;

/// A transaction of an operator's act. [`commit`] ends it.
pub(super) async fn begin(registry: &Sqlite) -> Result<Transaction<'static, sqlx::Sqlite>> {
    begin_as(registry, &registry.actor).await
}

/// One of somebody else's.
pub(super) async fn begin_as(registry: &Sqlite, actor: &str) -> Result<Transaction<'static, sqlx::Sqlite>> {
    let mut transaction = registry.begin().await?;
    name(&mut transaction, Some(actor)).await?;
    Ok(transaction)
}

/// Seals, forgets who acted, commits.
pub(super) async fn commit(phase: &Phase, mut transaction: Transaction<'static, sqlx::Sqlite>) -> Result<()> {
    name(&mut transaction, None).await?;
    seal(&mut transaction).await?;
    phase.commit(transaction).await.map_err(error::commit)
}

async fn name(connection: &mut SqliteConnection, actor: Option<&str>) -> Result<()> {
    sqlx::query("UPDATE acting SET actor = ?1").bind(actor).execute(connection).await.map_err(error::read)?;
    Ok(())
}

/// An audit that somebody has tampered with keeps nobody from revoking: what does not fit, `audit verify` finds.
async fn seal(connection: &mut SqliteConnection) -> Result<()> {
    let mut head = read_head(connection).await?;
    loop {
        // As bytes: what a hand has written need not be UTF-8.
        let waiting: Vec<(i64, Vec<u8>)> = sqlx::query_as(
            "SELECT id, CAST(body AS BLOB) FROM audit WHERE id > ?1 AND hash IS NULL ORDER BY id LIMIT ?2",
        )
        .bind(head.count)
        .bind(PAGE)
        .fetch_all(&mut *connection)
        .await
        .map_err(error::read)?;
        let Some((last, _)) = waiting.last() else { return Ok(()) };
        let last = *last;
        let mut hash = head.hash;
        let sealed: Vec<(i64, String)> = waiting
            .iter()
            .map(|(id, body)| {
                hash = hash.then(body);
                (*id, hash.to_string())
            })
            .collect();
        run(
            connection,
            "UPDATE audit SET hash = unhex(s.value->>1) FROM jsonb_each(?1) AS s WHERE audit.id = s.value->>0",
            &sealed,
        )
        .await?;
        sqlx::query("UPDATE audit_head SET count = ?1, hash = ?2")
            .bind(last)
            .bind(hash.as_bytes().as_slice())
            .execute(&mut *connection)
            .await
            .map_err(error::read)?;
        head = AuditHead { count: last, hash };
    }
}

pub(super) async fn rows(registry: &Sqlite, filter: &AuditFilter) -> Result<Vec<AuditRow>> {
    let mut connection = registry.reader().await?;
    let found = sqlx::query(
        "SELECT id, at, CAST(body AS BLOB) AS body, hash FROM audit
         WHERE id > ?1 AND (?2 IS NULL OR at >= ?2) AND (?3 IS NULL OR instr(body, ?3) > 0)
         ORDER BY id LIMIT ?4",
    )
    .bind(filter.after)
    .bind(filter.since.map(stamp).transpose()?)
    .bind(filter.naming.as_ref().map(|id| format!("\"{id}\"")))
    .bind(i64::from(filter.limit))
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    found
        .iter()
        .map(|row| {
            Ok(AuditRow {
                id: rows::get(row, "id")?,
                at: rows::moment(row, "at")?,
                body: rows::get(row, "body")?,
                hash: rows::get::<Option<&[u8]>>(row, "hash")?.map(hash).transpose()?,
            })
        })
        .collect()
}

pub(super) async fn head(registry: &Sqlite) -> Result<AuditHead> {
    let mut connection = registry.reader().await?;
    read_head(&mut connection).await
}

async fn read_head(connection: &mut SqliteConnection) -> Result<AuditHead> {
    let row =
        sqlx::query("SELECT count, hash FROM audit_head").fetch_one(connection).await.map_err(error::read)?;
    Ok(AuditHead { count: rows::get(&row, "count")?, hash: hash(rows::get(&row, "hash")?)? })
}

fn hash(bytes: &[u8]) -> Result<AuditHash> {
    AuditHash::read(bytes)
        .ok_or_else(|| RegistryError::Corrupt("a hash of the audit is not 32 bytes".to_owned()))
}
