//! Requests for certificates: what the functions of the ninth migration do in Postgres.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use doorward_proto::ids::DeviceId;
use serde_json::Value;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::super::renewals::{
    Decision, NewRequest, REQUEST_HOLDS, Renewals, RequestSummary, Requested, Shown, WaitingRequest,
};
use super::super::shared::{Phase, clean, device_id, fleet_id, within};
use super::super::{
    CertificateStatus, DeviceStatus, NewCertificate, OPERATOR_DEADLINE, QUERY_DEADLINE, RegistryError, Result,
};
use super::rows::stamp;
use super::{Sqlite, audit, certificates, error, feed, keys, rows};

/// Of one device in a day: that an issuer has signed or has still to judge, and in all, for a refusal may be somebody else's
/// doing.
const MOST: (i64, i64) = (10, 100);
/// So many certificates of a device are looked at for a key that comes again: the revoked ones, then the newest.
const LOOKED_AT: i64 = 256;
const NO_LONGER: &str = "the request waits no longer";

#[async_trait]
impl Renewals for Sqlite {
    async fn confirm(&self, shown: &[(DeviceId, Shown)]) -> Result<Vec<Result<bool, String>>> {
        let phase = Phase::default();
        phase.within(QUERY_DEADLINE, confirm(self, &phase, shown)).await
    }

    async fn request_renewals(&self, requests: &[NewRequest]) -> Result<Vec<Requested>> {
        let phase = Phase::default();
        phase.within(QUERY_DEADLINE, request(self, &phase, requests)).await
    }

    async fn requested(&self, ids: &[i64]) -> Result<HashMap<i64, Requested>> {
        within(QUERY_DEADLINE, requested(self, ids)).await
    }

    async fn waiting_requests(&self, limit: u32) -> Result<Vec<WaitingRequest>> {
        within(OPERATOR_DEADLINE, waiting(self, limit)).await
    }

    async fn requests(
        &self,
        device: Option<&DeviceId>,
        waiting: bool,
        limit: u32,
    ) -> Result<Vec<RequestSummary>> {
        within(OPERATOR_DEADLINE, list(self, device, waiting, limit)).await
    }

    async fn may_issue(&self) -> Result<bool> {
        Ok(true)
    }

    async fn decide_requests(&self, decisions: &[(i64, Decision)]) -> Result<Vec<Option<String>>> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, decide(self, &phase, decisions)).await
    }
}

async fn confirm(
    registry: &Sqlite,
    phase: &Phase,
    shown: &[(DeviceId, Shown)],
) -> Result<Vec<Result<bool, String>>> {
    let mut transaction = audit::begin(registry).await?;
    let keys: Vec<_> = shown
        .iter()
        .filter_map(|(device, shown)| match shown {
            Shown::Key(version) => Some((device, *version)),
            Shown::Certificate(_) => None,
        })
        .collect();
    let mut keys = keys::confirm(&mut transaction, &keys).await?.into_iter();
    let mut outcomes = Vec::with_capacity(shown.len());
    for (_, shown) in shown {
        let outcome = match shown {
            // Each has had its answer above, in this order.
            Shown::Key(_) => keys.next().unwrap_or_else(|| Err("it was not asked for".to_owned())),
            Shown::Certificate(certificate) => {
                match certificates::confirm(&mut transaction, certificate).await {
                    Err(RegistryError::Refused(why)) => Err(why),
                    other => Ok(other?),
                }
            }
        };
        outcomes.push(outcome);
    }
    audit::commit(phase, transaction).await?;
    Ok(outcomes)
}

async fn request(registry: &Sqlite, phase: &Phase, requests: &[NewRequest]) -> Result<Vec<Requested>> {
    let mut transaction = audit::begin(registry).await?;
    let mut outcomes = Vec::with_capacity(requests.len());
    for request in requests {
        outcomes.push(put(&mut transaction, request).await?);
    }
    audit::commit(phase, transaction).await?;
    Ok(outcomes)
}

async fn put(connection: &mut SqliteConnection, request: &NewRequest) -> Result<Requested> {
    let holder: Option<String> = sqlx::query_scalar(
        "SELECT c.device FROM certificates AS c JOIN devices AS d ON d.id = c.device
         WHERE c.fingerprint = ?1 AND d.status = 'active' AND (
             c.status = 'active' OR c.status = 'superseded' AND c.valid_until > strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))",
    )
    .bind(request.certificate.to_string())
    .fetch_optional(&mut *connection)
    .await
    .map_err(error::read)?;
    let Some(device) = holder else {
        return Ok(Requested::Refused("the certificate of this session does not hold any more".to_owned()));
    };
    let was = sqlx::query(
        "SELECT r.id, r.state, r.reason, r.spent, r.chain, c.der, c.not_after,
                r.expires > strftime('%Y-%m-%dT%H:%M:%fZ', 'now') AS waits,
                c.status = 'active' AND c.not_after > strftime('%Y-%m-%dT%H:%M:%fZ', 'now') AS holds
         FROM requests AS r LEFT JOIN certificates AS c ON c.fingerprint = r.issued
         WHERE r.device = ?1 AND r.public_key = ?2",
    )
    .bind(&device)
    .bind(&request.public_key)
    .fetch_optional(&mut *connection)
    .await
    .map_err(error::read)?;
    if let Some(row) = &was {
        match outcome(row)? {
            Requested::Issued { .. } if !rows::get::<bool>(row, "holds")? => {
                let why = "the certificate of this key does not hold any more; make a new key";
                return Ok(Requested::Spent(why.to_owned()));
            }
            spent @ Requested::Spent(_) => return Ok(spent),
            issued @ Requested::Issued { .. } => return Ok(issued),
            Requested::Waiting(id) if rows::get(row, "waits")? => return Ok(Requested::Waiting(id)),
            _ => {}
        }
    }
    let asked: (i64, i64) = sqlx::query_as(
        "SELECT count(*) FILTER (WHERE state <> 'refused'), coalesce(sum(tries), 0) FROM requests
         WHERE device = ?1 AND asked > strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-1 day')",
    )
    .bind(&device)
    .fetch_one(&mut *connection)
    .await
    .map_err(error::read)?;
    if asked.0 >= MOST.0 || asked.1 >= MOST.1 {
        return Ok(Requested::Limited);
    }
    sqlx::query(
        "UPDATE requests SET state = 'refused', reason = 'the device has asked again with another key'
         WHERE device = ?1 AND state = 'waiting' AND public_key <> ?2",
    )
    .bind(&device)
    .bind(&request.public_key)
    .execute(&mut *connection)
    .await
    .map_err(error::read)?;
    let id = sqlx::query_scalar(
        "INSERT INTO requests (device, certificate, public_key, csr, gateway, expires)
         VALUES (?1, ?2, ?3, ?4, ?5, strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+' || ?6 || ' seconds'))
         ON CONFLICT (device, public_key) DO UPDATE SET
             certificate = excluded.certificate, csr = excluded.csr, gateway = excluded.gateway,
             asked = strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), expires = excluded.expires, tries = tries + 1,
             state = 'waiting', reason = NULL, spent = 0
         RETURNING id",
    )
    .bind(&device)
    .bind(request.certificate.to_string())
    .bind(&request.public_key)
    .bind(&request.csr)
    .bind(clean(&request.gateway))
    .bind(i64::try_from(REQUEST_HOLDS.as_secs()).unwrap_or(i64::MAX))
    .fetch_one(&mut *connection)
    .await
    .map_err(error::read)?;
    Ok(Requested::Waiting(id))
}

async fn requested(registry: &Sqlite, ids: &[i64]) -> Result<HashMap<i64, Requested>> {
    let mut connection = registry.reader().await?;
    let found = sqlx::query(
        "SELECT r.id, r.state, r.reason, r.spent, r.chain, c.der, c.not_after
         FROM requests AS r LEFT JOIN certificates AS c ON c.fingerprint = r.issued
         WHERE r.id IN (SELECT value FROM json_each(?1))",
    )
    .bind(Value::from(ids))
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    found.iter().map(|row| Ok((rows::get(row, "id")?, outcome(row)?))).collect()
}

fn outcome(row: &SqliteRow) -> Result<Requested> {
    Ok(match rows::get(row, "state")? {
        "waiting" => Requested::Waiting(rows::get(row, "id")?),
        "issued" => Requested::Issued {
            der: rows::get(row, "der")?,
            chain: rows::get(row, "chain")?,
            not_after: rows::moment(row, "not_after")?,
        },
        _ => {
            let why = rows::get::<Option<String>>(row, "reason")?.unwrap_or_default();
            if rows::get(row, "spent")? { Requested::Spent(why) } else { Requested::Refused(why) }
        }
    })
}

async fn waiting(registry: &Sqlite, limit: u32) -> Result<Vec<WaitingRequest>> {
    let mut connection = registry.reader().await?;
    let found = sqlx::query(
        "SELECT r.id, r.device, r.public_key, r.csr, r.gateway, d.fleet, d.status AS device_status, f.limits, c.status, c.valid_until, c.not_after
         FROM requests AS r
         JOIN devices AS d ON d.id = r.device
         JOIN fleets AS f ON f.id = d.fleet
         JOIN certificates AS c ON c.fingerprint = r.certificate
         WHERE r.state = 'waiting' AND r.expires > strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
         ORDER BY r.id LIMIT ?1",
    )
    .bind(i64::from(limit))
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    let mut waiting = Vec::with_capacity(found.len());
    for row in &found {
        let device: &str = rows::get(row, "device")?;
        let certificates = sqlx::query_scalar(
            "SELECT der FROM certificates WHERE device = ?1 ORDER BY status = 'revoked' DESC, not_before DESC LIMIT ?2",
        )
        .bind(device)
        .bind(LOOKED_AT)
        .fetch_all(&mut *connection)
        .await
        .map_err(error::read)?;
        waiting.push(WaitingRequest {
            id: rows::get(row, "id")?,
            device: device_id(device)?,
            fleet: fleet_id(rows::get(row, "fleet")?)?,
            status: DeviceStatus::read(rows::get(row, "device_status")?)?,
            limits: rows::get(row, "limits")?,
            public_key: rows::get(row, "public_key")?,
            csr: rows::get(row, "csr")?,
            gateway: rows::get(row, "gateway")?,
            renews: (
                CertificateStatus::read(rows::get(row, "status")?)?,
                rows::maybe_moment(row, "valid_until")?,
                rows::moment(row, "not_after")?,
            ),
            certificates,
        });
    }
    Ok(waiting)
}

async fn list(
    registry: &Sqlite,
    device: Option<&DeviceId>,
    waiting: bool,
    limit: u32,
) -> Result<Vec<RequestSummary>> {
    let mut connection = registry.reader().await?;
    let found = sqlx::query(
        "SELECT r.id, r.device, r.reason, r.gateway, r.asked, r.expires, c.serial,
                CASE WHEN r.state = 'waiting' AND r.expires <= strftime('%Y-%m-%dT%H:%M:%fZ', 'now') THEN 'expired' ELSE r.state END AS state
         FROM requests AS r LEFT JOIN certificates AS c ON c.fingerprint = r.issued
         WHERE (?1 IS NULL OR r.device = ?1) AND (NOT ?2 OR r.state = 'waiting' AND r.expires > strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
         ORDER BY r.asked DESC, r.id DESC LIMIT ?3",
    )
    .bind(device.map(|device| device.as_str()))
    .bind(waiting)
    .bind(i64::from(limit))
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    let read = |row: &SqliteRow| {
        Ok(RequestSummary {
            id: rows::get(row, "id")?,
            device: device_id(rows::get(row, "device")?)?,
            state: rows::get(row, "state")?,
            reason: rows::get(row, "reason")?,
            gateway: rows::get(row, "gateway")?,
            asked: rows::moment(row, "asked")?,
            expires: rows::moment(row, "expires")?,
            issued: rows::get(row, "serial")?,
        })
    };
    found.iter().map(read).collect()
}

async fn decide(
    registry: &Sqlite,
    phase: &Phase,
    decisions: &[(i64, Decision)],
) -> Result<Vec<Option<String>>> {
    let mut transaction = audit::begin(registry).await?;
    let mut outcomes = Vec::with_capacity(decisions.len());
    for (id, decision) in decisions {
        outcomes.push(match decision {
            Decision::Issue { certificate, chain, grace } => {
                issue(&mut transaction, *id, certificate, chain, *grace).await?
            }
            Decision::Refuse(why) => refuse(&mut transaction, *id, why, false).await?,
            Decision::RefuseKey(why) => refuse(&mut transaction, *id, why, true).await?,
        });
    }
    audit::commit(phase, transaction).await?;
    Ok(outcomes)
}

async fn issue(
    connection: &mut SqliteConnection,
    id: i64,
    certificate: &NewCertificate,
    chain: &str,
    grace: Duration,
) -> Result<Option<String>> {
    let asked = sqlx::query(
        "SELECT r.device, r.certificate, d.status = 'active' AS active,
                r.state = 'waiting' AND r.expires > strftime('%Y-%m-%dT%H:%M:%fZ', 'now') AS waits,
                c.not_after > strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-366 days') AND (
                    c.status = 'active' OR c.status = 'superseded' AND c.valid_until > strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
                ) AS holds, c.status
         FROM requests AS r JOIN devices AS d ON d.id = r.device JOIN certificates AS c ON c.fingerprint = r.certificate
         WHERE r.id = ?1",
    )
    .bind(id)
    .fetch_optional(&mut *connection)
    .await
    .map_err(error::read)?;
    let Some(asked) = asked else { return Ok(Some(NO_LONGER.to_owned())) };
    // One that has ended may be renewed where a gateway lets its device in for that; a year is the longest it may.
    for (column, why) in [
        ("active", "the device is not active"),
        ("waits", NO_LONGER),
        ("holds", "the certificate that it renews does not hold any more"),
    ] {
        if !rows::get::<bool>(&asked, column)? {
            return Ok(Some(why.to_owned()));
        }
    }
    let renews: &str = rows::get(&asked, "certificate")?;
    let grace = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
    // An earlier one that the device has been given and never shown, or it would have superseded this one: lost.
    sqlx::query(
        "UPDATE certificates SET status = 'superseded', valid_until = strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+' || ?2 || ' seconds')
         WHERE renewed_from = ?1 AND ?3 = 'active' AND status = 'active'
             AND EXISTS (SELECT 1 FROM requests AS r WHERE r.issued = certificates.fingerprint)",
    )
    .bind(renews)
    .bind(grace)
    .bind(rows::get::<&str>(&asked, "status")?)
    .execute(&mut *connection)
    .await
    .map_err(error::read)?;
    sqlx::query(
        "INSERT INTO certificates (fingerprint, serial, issuer, der, device, renewed_from, not_before, not_after, grace_seconds)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )
    .bind(certificate.fingerprint.to_string())
    .bind(&certificate.serial)
    .bind(&certificate.issuer)
    .bind(&certificate.der)
    .bind(rows::get::<&str>(&asked, "device")?)
    .bind(renews)
    .bind(stamp(certificate.not_before)?)
    .bind(stamp(certificate.not_after)?)
    .bind(grace)
    .execute(&mut *connection)
    .await
    .map_err(error::read)?;
    sqlx::query("UPDATE requests SET state = 'issued', issued = ?2, chain = ?3 WHERE id = ?1")
        .bind(id)
        .bind(certificate.fingerprint.to_string())
        .bind(chain)
        .execute(&mut *connection)
        .await
        .map_err(error::read)?;
    Ok(None)
}

async fn refuse(
    connection: &mut SqliteConnection,
    id: i64,
    why: &str,
    spent: bool,
) -> Result<Option<String>> {
    let owner: Option<String> = sqlx::query_scalar(
        "UPDATE requests SET state = 'refused', reason = substr(?2, 1, 256), spent = ?3 WHERE id = ?1 AND state = 'waiting' RETURNING device",
    )
    .bind(id)
    .bind(clean(why))
    .bind(spent)
    .fetch_optional(&mut *connection)
    .await
    .map_err(error::read)?;
    let Some(owner) = owner else { return Ok(Some(NO_LONGER.to_owned())) };
    // The gateway that has asked hears of it by the feed.
    feed::note(connection, "device", &owner).await?;
    Ok(None)
}
