//! What a revocation list is made of.

use super::super::certificates::Status;
use super::super::shared::Phase;
use super::super::{NewCrl, NumberedCrl, Result, RevokedCertificate, RevokedFilter};
use super::{Postgres, audit, error, rows};

pub(super) async fn number(registry: &Postgres, phase: &Phase, crl: &NewCrl) -> Result<NumberedCrl> {
    let mut connection = registry.operator().await?;
    let mut transaction = audit::begin(registry, &mut connection).await?;
    let row = sqlx::query("SELECT number, this_update, next_update FROM number_crl($1, $2, $3, $4)")
        .bind(&crl.issuer)
        .bind(crl.above)
        .bind(crl.valid.whole_seconds())
        .bind(crl.superseded)
        .fetch_one(&mut *transaction)
        .await
        .map_err(error::read)?;
    let numbered = NumberedCrl {
        number: rows::get(&row, "number")?,
        this_update: rows::get(&row, "this_update")?,
        next_update: rows::get(&row, "next_update")?,
    };
    phase.commit(transaction).await.map_err(error::commit)?;
    connection.release();
    Ok(numbered)
}

pub(super) async fn revoked(registry: &Postgres, filter: &RevokedFilter) -> Result<Vec<RevokedCertificate>> {
    let mut connection = registry.operator().await?;
    let found = sqlx::query(
        "SELECT c.serial, c.not_before, c.status = 'revoked' AS revoked, c.status_since, c.reason,
                d.status = 'revoked' AS device_revoked, d.status_since AS device_since, d.reason AS device_reason
         FROM certificates c JOIN devices d ON d.id = c.device
         WHERE c.issuer = $1 AND c.serial > $2 AND c.not_after >= $3
             AND (c.status = 'revoked' OR d.status = 'revoked' OR ($4 AND c.status = 'superseded'))
         ORDER BY c.serial LIMIT $5",
    )
    .bind(&filter.issuer)
    .bind(&filter.after)
    .bind(filter.at)
    .bind(filter.superseded)
    .bind(i64::from(filter.limit))
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    connection.release();
    found
        .iter()
        .map(|row| {
            let certificate = Status {
                revoked: rows::get(row, "revoked")?,
                since: rows::get(row, "status_since")?,
                reason: rows::get(row, "reason")?,
            };
            let device = Status {
                revoked: rows::get(row, "device_revoked")?,
                since: rows::get(row, "device_since")?,
                reason: rows::get(row, "device_reason")?,
            };
            let (serial, not_before) = (rows::get(row, "serial")?, rows::get(row, "not_before")?);
            Ok(RevokedCertificate::judge(serial, not_before, certificate, device))
        })
        .collect()
}
