//! The look-up at the door.

use doorward_pki::Fingerprint;

use super::super::{Record, Result};
use super::{Sqlite, error, rows};

/// One statement, so one snapshot and one hop to SQLite's thread: a row for each key, the rest repeated.
pub(super) async fn look_up(registry: &Sqlite, certificate: &Fingerprint) -> Result<Option<Record>> {
    let mut connection = registry.reader().await?;
    let found = sqlx::query(
        "SELECT d.id AS device, d.fleet, d.status AS device_status, d.reason AS device_reason, f.policy,
                c.fingerprint, c.serial, c.issuer, c.der, c.not_before, c.not_after, c.status, c.valid_until, c.reason,
                k.version, k.sealed, k.state, k.grace_until
         FROM certificates c
         JOIN devices d ON d.id = c.device
         JOIN fleets f ON f.id = d.fleet
         LEFT JOIN hmac_keys k ON k.device = d.id AND k.state <> 'retired'
         WHERE c.fingerprint = ?1
         ORDER BY k.version",
    )
    .bind(certificate.to_string())
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;

    let Some(first) = found.first() else {
        return Ok(None);
    };
    let mut record = rows::record(first)?;
    for row in &found {
        record.keys.extend(rows::key(row)?);
    }
    Ok(Some(record))
}
