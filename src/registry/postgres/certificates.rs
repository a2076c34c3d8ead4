//! Certificates, for operators.

use super::super::shared::{Phase, clean, device_id};
use super::super::{Acted, CertificateFilter, CertificateRecord, Done, Result, RevokedCertificates};
use super::{Postgres, audit, error, feed, rows};
use doorward_proto::ids::DeviceId;

pub(super) async fn list(
    registry: &Postgres,
    filter: &CertificateFilter,
) -> Result<Vec<(DeviceId, CertificateRecord)>> {
    let mut connection = registry.operator().await?;
    let found = sqlx::query(
        "SELECT * FROM certificates
         WHERE ($1::text IS NULL OR device = $1) AND ($2::text IS NULL OR serial = $2)
             AND ($3::timestamptz IS NULL OR (not_after < $3 AND not_after > now() AND status <> 'revoked'))
         ORDER BY not_after, fingerprint",
    )
    .bind(filter.device.as_ref().map(|device| device.as_str()))
    .bind(filter.serial.as_deref())
    .bind(filter.expiring_before)
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    connection.release();
    found.iter().map(|row| Ok((device_id(rows::get(row, "device")?)?, rows::certificate(row)?))).collect()
}

pub(super) async fn revoke(
    registry: &Postgres,
    phase: &Phase,
    fingerprint: &str,
    reason: &str,
    only: bool,
) -> Result<RevokedCertificates> {
    let mut connection = registry.operator().await?;
    let mut transaction = audit::begin(registry, &mut connection).await?;
    // Renewals lock the device too: none slips in between.
    let device: String = sqlx::query_scalar(
        "SELECT id FROM devices WHERE id = (SELECT device FROM certificates WHERE fingerprint = $1) FOR UPDATE",
    )
    .bind(fingerprint)
    .fetch_one(&mut *transaction)
    .await
    .map_err(error::read)?;
    let serials: Vec<String> = sqlx::query_scalar(
        "WITH RECURSIVE line AS (
             SELECT fingerprint FROM certificates WHERE fingerprint = $1
             UNION SELECT c.fingerprint FROM certificates c JOIN line l ON c.renewed_from = l.fingerprint WHERE NOT $3
         )
         UPDATE certificates SET status = 'revoked', reason = $2
         WHERE fingerprint IN (SELECT fingerprint FROM line) AND status <> 'revoked' RETURNING serial",
    )
    .bind(fingerprint)
    .bind(clean(reason))
    .bind(only)
    .fetch_all(&mut *transaction)
    .await
    .map_err(error::read)?;
    if serials.is_empty() {
        // Said again, so that the receipt is of now.
        feed::note(&mut transaction, "device", &device).await?;
    }
    let session =
        sqlx::query_scalar("SELECT session FROM presence WHERE device = $1 AND session IS NOT NULL")
            .bind(&device)
            .fetch_optional(&mut *transaction)
            .await
            .map_err(error::read)?;
    let done = if serials.is_empty() { Done::Already } else { Done::Changed };
    let acted = Acted { done, mark: feed::mark(&mut transaction).await?, session };
    phase.commit(transaction).await.map_err(error::commit)?;
    connection.release();
    Ok(RevokedCertificates { serials, acted })
}
