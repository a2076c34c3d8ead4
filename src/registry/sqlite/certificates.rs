//! Certificates, for operators.

use std::time::Duration;

use doorward_pki::Fingerprint;
use doorward_proto::ids::DeviceId;
use sqlx::sqlite::SqliteConnection;

use super::super::shared::{Phase, clean, device_id, issuer_use, revoked};
use super::super::{
    Acted, CertificateFilter, CertificateRecord, DeviceStatus, Done, IssuerUse, NewCertificate,
    RegistryError, Renewal, Result, RevokedCertificates,
};
use super::rows::stamp;
use super::{Sqlite, audit, devices, error, feed, rows};

pub(super) async fn list(
    registry: &Sqlite,
    filter: &CertificateFilter,
) -> Result<Vec<(DeviceId, CertificateRecord)>> {
    let mut connection = registry.reader().await?;
    let found = sqlx::query(
        "SELECT * FROM certificates
         WHERE (?1 IS NULL OR device = ?1) AND (?2 IS NULL OR serial = ?2)
             AND (?3 IS NULL OR (not_after < ?3 AND not_after > strftime('%Y-%m-%dT%H:%M:%fZ', 'now') AND status <> 'revoked'))
             AND (?4 IS NULL OR issuer = ?4)
             AND (?5 IS NULL OR EXISTS (
                 SELECT 1 FROM devices AS d JOIN fleets AS f ON f.id = d.fleet,
                     (SELECT strftime('%Y-%m-%dT%H:%M:%fZ', 'now') AS at) AS now
                 WHERE d.id = device AND d.status <> 'revoked'
                     AND (certificates.status = 'active'
                          OR (certificates.status = 'superseded' AND valid_until > now.at))
                     AND strftime('%Y-%m-%dT%H:%M:%fZ', not_after,
                         coalesce(json_extract(f.limits, '$.renew_after_expiry'), ?5) || ' seconds') > now.at))
         ORDER BY not_after, fingerprint",
    )
    .bind(filter.device.as_ref().map(|device| device.as_str()))
    .bind(filter.serial.as_deref())
    .bind(filter.expiring_before.map(rows::stamp).transpose()?)
    .bind(filter.issuer.as_deref())
    .bind(filter.live.map(|late| i64::try_from(late.as_secs()).unwrap_or(i64::MAX)))
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    found.iter().map(|row| Ok((device_id(rows::get(row, "device")?)?, rows::certificate(row)?))).collect()
}

pub(super) async fn issuers(registry: &Sqlite, late: Duration) -> Result<Vec<IssuerUse>> {
    let mut connection = registry.reader().await?;
    let found = sqlx::query(
        "SELECT issuer,
             sum(until > now AND (status = 'active' OR (status = 'superseded' AND valid_until > now))) AS live,
             sum(until <= now AND status = 'active') AS expired
         FROM (
             SELECT c.issuer, c.status, c.valid_until, strftime('%Y-%m-%dT%H:%M:%fZ', 'now') AS now,
                 strftime('%Y-%m-%dT%H:%M:%fZ', c.not_after,
                     coalesce(json_extract(f.limits, '$.renew_after_expiry'), ?1) || ' seconds') AS until
             FROM certificates AS c JOIN devices AS d ON d.id = c.device JOIN fleets AS f ON f.id = d.fleet
             WHERE d.status <> 'revoked'
         )
         GROUP BY issuer ORDER BY issuer",
    )
    .bind(i64::try_from(late.as_secs()).unwrap_or(i64::MAX))
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    found
        .iter()
        .map(|row| issuer_use(rows::get(row, "issuer")?, rows::get(row, "live")?, rows::get(row, "expired")?))
        .collect()
}

pub(super) async fn revoke(
    registry: &Sqlite,
    phase: &Phase,
    fingerprint: &str,
    reason: &str,
    only: bool,
) -> Result<RevokedCertificates> {
    let mut transaction = audit::begin(registry).await?;
    let device: String = sqlx::query_scalar("SELECT device FROM certificates WHERE fingerprint = ?1")
        .bind(fingerprint)
        .fetch_one(&mut *transaction)
        .await
        .map_err(error::read)?;
    let serials: Vec<String> = sqlx::query_scalar(
        "WITH RECURSIVE line AS (
             SELECT fingerprint FROM certificates WHERE fingerprint = ?1
             UNION SELECT c.fingerprint FROM certificates c JOIN line l ON c.renewed_from = l.fingerprint WHERE NOT ?3
         )
         UPDATE certificates SET status = 'revoked', reason = ?2
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
        sqlx::query_scalar("SELECT session FROM presence WHERE device = ?1 AND session IS NOT NULL")
            .bind(&device)
            .fetch_optional(&mut *transaction)
            .await
            .map_err(error::read)?;
    let done = if serials.is_empty() { Done::Already } else { Done::Changed };
    let acted = Acted { done, mark: feed::mark(&mut transaction).await?, session };
    audit::commit(phase, transaction).await?;
    Ok(RevokedCertificates { serials, acted })
}

/// Records a certificate that the caller has signed.
pub(super) async fn add(
    registry: &Sqlite,
    phase: &Phase,
    id: &DeviceId,
    certificate: &NewCertificate,
    renewal: &Renewal,
) -> Result<Acted> {
    let mut transaction = audit::begin(registry).await?;
    if devices::lock(&mut transaction, id).await? == DeviceStatus::Revoked {
        return Err(revoked(id));
    }
    sqlx::query(
        "INSERT INTO certificates (fingerprint, serial, issuer, der, device, renewed_from, not_before, not_after, grace_seconds)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )
    .bind(certificate.fingerprint.to_string())
    .bind(&certificate.serial)
    .bind(&certificate.issuer)
    .bind(&certificate.der)
    .bind(id.as_str())
    .bind(renewal.from.map(|from| from.to_string()))
    .bind(stamp(certificate.not_before)?)
    .bind(stamp(certificate.not_after)?)
    .bind(i64::try_from(renewal.grace.as_secs()).unwrap_or(i64::MAX))
    .execute(&mut *transaction)
    .await
    .map_err(|error| match error::is_conflict(&error) {
        true => RegistryError::Exists { kind: "certificate", id: certificate.serial.clone() },
        false => error::read(error),
    })?;
    if renewal.grace.is_zero() {
        sqlx::query(
            "UPDATE certificates SET status = 'superseded', valid_until = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
             WHERE device = ?1 AND fingerprint <> ?2 AND status <> 'revoked'",
        )
        .bind(id.as_str())
        .bind(certificate.fingerprint.to_string())
        .execute(&mut *transaction)
        .await
        .map_err(error::read)?;
    }
    let acted = devices::acted(&mut transaction, id, Done::Changed).await?;
    audit::commit(phase, transaction).await?;
    Ok(acted)
}

/// What `confirm_certificate` does in Postgres.
pub(super) async fn confirm(connection: &mut SqliteConnection, certificate: &Fingerprint) -> Result<bool> {
    let holds: Option<bool> = sqlx::query_scalar(
        "SELECT c.status = 'active' AND d.status = 'active'
         FROM certificates AS c JOIN devices AS d ON d.id = c.device WHERE c.fingerprint = ?1",
    )
    .bind(certificate.to_string())
    .fetch_optional(&mut *connection)
    .await
    .map_err(error::read)?;
    if holds != Some(true) {
        return Err(RegistryError::Refused(format!(
            "there is no active certificate {certificate} of an active device"
        )));
    }
    let superseded = sqlx::query(
        "WITH RECURSIVE line AS (
             SELECT renewed_from AS fingerprint FROM certificates WHERE fingerprint = ?1
             UNION SELECT c.renewed_from FROM certificates AS c JOIN line AS l ON c.fingerprint = l.fingerprint
         )
         UPDATE certificates SET status = 'superseded', valid_until = strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+' || (
             SELECT grace_seconds FROM certificates WHERE fingerprint = ?1
         ) || ' seconds')
         WHERE fingerprint IN (SELECT fingerprint FROM line) AND status = 'active'
             AND device = (SELECT device FROM certificates WHERE fingerprint = ?1)",
    )
    .bind(certificate.to_string())
    .execute(&mut *connection)
    .await
    .map_err(error::read)?;
    Ok(superseded.rows_affected() > 0)
}
