//! What a revocation list is made of.

use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::super::certificates::Status;
use super::super::shared::Phase;
use super::super::{NewCrl, NumberedCrl, Result, RevokedCertificate, RevokedFilter};
use super::rows::stamp;
use super::{Sqlite, audit, error, rows};

pub(super) async fn number(registry: &Sqlite, phase: &Phase, crl: &NewCrl) -> Result<NumberedCrl> {
    let mut transaction = audit::begin(registry).await?;
    // Not an upsert: its INSERT would be refused for a row that exists.
    let next = "UPDATE crls SET number = max(number, ?2) + 1, this_update = strftime('%Y-%m-%dT%H:%M:%S.000Z', 'now'),
            next_update = strftime('%Y-%m-%dT%H:%M:%S.000Z', 'now', ?3), superseded = ?4
         WHERE issuer = ?1 RETURNING number, this_update, next_update";
    let first = "INSERT INTO crls (issuer, number, this_update, next_update, superseded)
         VALUES (?1, ?2 + 1, strftime('%Y-%m-%dT%H:%M:%S.000Z', 'now'), strftime('%Y-%m-%dT%H:%M:%S.000Z', 'now', ?3), ?4)
         RETURNING number, this_update, next_update";
    let mut row = run(&mut transaction, next, crl).await?;
    if row.is_none() {
        row = run(&mut transaction, first, crl).await?;
    }
    let row = row.ok_or_else(|| error::read(sqlx::Error::RowNotFound))?;
    let numbered = NumberedCrl {
        number: rows::get(&row, "number")?,
        this_update: rows::moment(&row, "this_update")?,
        next_update: rows::moment(&row, "next_update")?,
    };
    audit::commit(phase, transaction).await?;
    Ok(numbered)
}

async fn run(
    connection: &mut SqliteConnection,
    sql: &'static str,
    crl: &NewCrl,
) -> Result<Option<SqliteRow>> {
    sqlx::query(sql)
        .bind(&crl.issuer)
        .bind(crl.above)
        .bind(format!("+{} seconds", crl.valid.whole_seconds()))
        .bind(crl.superseded)
        .fetch_optional(connection)
        .await
        .map_err(error::read)
}

pub(super) async fn revoked(registry: &Sqlite, filter: &RevokedFilter) -> Result<Vec<RevokedCertificate>> {
    let mut connection = registry.reader().await?;
    let found = sqlx::query(
        "SELECT c.serial, c.not_before, c.status = 'revoked' AS revoked, c.status_since, c.reason,
                d.status = 'revoked' AS device_revoked, d.status_since AS device_since, d.reason AS device_reason
         FROM certificates c JOIN devices d ON d.id = c.device
         WHERE c.issuer = ?1 AND c.serial > ?2 AND c.not_after >= ?3
             AND (c.status = 'revoked' OR d.status = 'revoked' OR (?4 AND c.status = 'superseded'))
         ORDER BY c.serial LIMIT ?5",
    )
    .bind(&filter.issuer)
    .bind(&filter.after)
    .bind(stamp(filter.at)?)
    .bind(filter.superseded)
    .bind(i64::from(filter.limit))
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    found
        .iter()
        .map(|row| {
            let certificate = Status {
                revoked: rows::get(row, "revoked")?,
                since: rows::maybe_moment(row, "status_since")?,
                reason: rows::get(row, "reason")?,
            };
            let device = Status {
                revoked: rows::get(row, "device_revoked")?,
                since: rows::maybe_moment(row, "device_since")?,
                reason: rows::get(row, "device_reason")?,
            };
            let (serial, not_before) = (rows::get(row, "serial")?, rows::moment(row, "not_before")?);
            Ok(RevokedCertificate::judge(serial, not_before, certificate, device))
        })
        .collect()
}
