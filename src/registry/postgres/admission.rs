//! The look-up at the door.

use std::collections::hash_map::Entry;

use doorward_pki::Fingerprint;

use super::super::{Records, Result};
use super::{Postgres, error, rows};

/// One statement, so one snapshot and one round trip: a row for each key, the rest repeated.
pub(super) async fn look_up(registry: &Postgres, certificates: &[Fingerprint]) -> Result<Records> {
    let names: Vec<String> = certificates.iter().map(Fingerprint::to_string).collect();
    let mut connection = registry.gateway().await?;
    let found = sqlx::query(
        "SELECT d.id AS device, d.fleet, d.status AS device_status, d.reason AS device_reason, f.policy, f.limits, f.schemas,
                c.fingerprint, c.not_after, c.status, c.valid_until, c.reason,
                EXISTS (
                    SELECT 1 FROM certificates AS p WHERE p.fingerprint = c.renewed_from AND p.status = 'active'
                ) AS supersedes, c.rotate_by, k.version, k.sealed, k.state, k.grace_until,
                k.grace_seconds
         FROM certificates c
         JOIN devices d ON d.id = c.device
         JOIN fleets f ON f.id = d.fleet
         LEFT JOIN hmac_keys k ON k.device = d.id AND k.state <> 'retired'
         WHERE c.fingerprint = ANY ($1)
         ORDER BY k.version",
    )
    .bind(names)
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    connection.release();

    let mut records = Records::with_capacity(certificates.len());
    for row in &found {
        let record = match records.entry(rows::fingerprint_of(row)?) {
            Entry::Vacant(vacant) => vacant.insert(rows::record(row)),
            Entry::Occupied(occupied) => occupied.into_mut(),
        };
        match rows::key(row) {
            Ok(key) => {
                if let Ok(record) = record {
                    record.keys.extend(key);
                }
            }
            Err(error) => *record = Err(error),
        }
    }
    Ok(records)
}
