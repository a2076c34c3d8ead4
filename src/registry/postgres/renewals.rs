//! Requests for certificates. What they come to is decided by the functions of the ninth migration.

use std::collections::HashMap;

use async_trait::async_trait;
use doorward_proto::ids::DeviceId;
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::super::renewals::{
    Decision, NewRequest, REQUEST_HOLDS, Renewals, RequestSummary, Requested, Shown, WaitingRequest,
};
use super::super::shared::{Phase, clean, device_id, fleet_id, unreadable, within};
use super::super::{
    CertificateStatus, DeviceStatus, OPERATOR_DEADLINE, QUERY_DEADLINE, RegistryError, Result,
};
use super::{Postgres, audit, error, rows};

/// So many certificates of a device are looked at for a key that comes again: the revoked ones, then the newest.
const LOOKED_AT: i64 = 256;

#[async_trait]
impl Renewals for Postgres {
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
        within(QUERY_DEADLINE, may_issue(self)).await
    }

    async fn decide_requests(&self, decisions: &[(i64, Decision)]) -> Result<Vec<Option<String>>> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, decide(self, &phase, decisions)).await
    }
}

async fn confirm(
    registry: &Postgres,
    phase: &Phase,
    shown: &[(DeviceId, Shown)],
) -> Result<Vec<Result<bool, String>>> {
    // Each device is locked: in one order, so that two gateways wait for each other and never deadlock.
    let mut order: Vec<usize> = (0..shown.len()).collect();
    order.sort_by(|a, b| shown[*a].0.cmp(&shown[*b].0));
    let in_order = || order.iter().map(|place| &shown[*place]);
    let version = |shown: &Shown| match shown {
        Shown::Key(version) => i32::try_from(version.get()).ok(),
        Shown::Certificate(_) => None,
    };
    let certificate = |shown: &Shown| match shown {
        Shown::Key(_) => None,
        Shown::Certificate(certificate) => Some(certificate.to_string()),
    };
    let mut connection = registry.gateway().await?;
    let mut transaction = audit::begin(registry, &mut connection).await?;
    let found = sqlx::query("SELECT done, why FROM confirm_credentials($1, $2, $3)")
        .bind(in_order().map(|(device, _)| device.as_str()).collect::<Vec<_>>())
        .bind(in_order().map(|(_, shown)| version(shown)).collect::<Vec<_>>())
        .bind(in_order().map(|(_, shown)| certificate(shown)).collect::<Vec<_>>())
        .fetch_all(&mut *transaction)
        .await
        .map_err(error::read)?;
    phase.commit(transaction).await.map_err(error::commit)?;
    connection.release();
    let mut outcomes = vec![Ok(false); shown.len()];
    for (place, row) in order.into_iter().zip(&found) {
        outcomes[place] = match rows::get::<Option<bool>>(row, "done")? {
            Some(new) => Ok(new),
            None => Err(rows::get(row, "why")?),
        };
    }
    Ok(outcomes)
}

async fn request(registry: &Postgres, phase: &Phase, requests: &[NewRequest]) -> Result<Vec<Requested>> {
    let mut connection = registry.gateway().await?;
    let mut transaction = audit::begin(registry, &mut connection).await?;
    // Each device is locked: in one order, so that two gateways wait for each other and never deadlock.
    let found = sqlx::query(
        "SELECT q.place, r.id, r.state, r.reason
         FROM (
             SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[], $4::text[]) WITH ORDINALITY
                 AS q (certificate, public_key, csr, gateway, place)
             ORDER BY (SELECT c.device FROM certificates c WHERE c.fingerprint = q.certificate), place
         ) AS q
         CROSS JOIN LATERAL request_renewal(q.certificate, q.public_key, q.csr, q.gateway, make_interval(secs => $5)) AS r",
    )
    .bind(requests.iter().map(|request| request.certificate.to_string()).collect::<Vec<_>>())
    .bind(requests.iter().map(|request| request.public_key.as_str()).collect::<Vec<_>>())
    .bind(requests.iter().map(|request| request.csr.as_slice()).collect::<Vec<_>>())
    .bind(requests.iter().map(|request| clean(&request.gateway)).collect::<Vec<_>>())
    .bind(REQUEST_HOLDS.as_secs_f64())
    .fetch_all(&mut *transaction)
    .await
    .map_err(error::read)?;
    phase.commit(transaction).await.map_err(error::commit)?;
    connection.release();

    let issued: Vec<i64> = found
        .iter()
        .filter(|row| row.try_get::<&str, _>("state").is_ok_and(|state| state == "issued"))
        .map(|row| rows::get(row, "id"))
        .collect::<Result<_>>()?;
    let mut issued = if issued.is_empty() { HashMap::new() } else { requested(registry, &issued).await? };
    let mut outcomes = vec![Requested::Limited; requests.len()];
    for row in &found {
        let place = usize::try_from(rows::get::<i64>(row, "place")? - 1).ok();
        let outcome = match rows::get(row, "state")? {
            "waiting" => Requested::Waiting(rows::get(row, "id")?),
            "issued" => match issued.remove(&rows::get(row, "id")?) {
                Some(outcome) => outcome,
                None => return Err(RegistryError::Unavailable("a request has just been pruned".to_owned())),
            },
            "refused" => Requested::Refused(rows::get(row, "reason")?),
            "spent" => Requested::Spent(rows::get(row, "reason")?),
            _ => Requested::Limited,
        };
        if let Some(slot) = place.and_then(|place| outcomes.get_mut(place)) {
            *slot = outcome;
        }
    }
    Ok(outcomes)
}

async fn requested(registry: &Postgres, ids: &[i64]) -> Result<HashMap<i64, Requested>> {
    let mut connection = registry.gateway().await?;
    let found = sqlx::query(
        "SELECT r.id, r.state, r.reason, r.spent, r.chain, c.der, c.not_after
         FROM requests r LEFT JOIN certificates c ON c.fingerprint = r.issued WHERE r.id = ANY ($1)",
    )
    .bind(ids)
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    connection.release();
    found.iter().map(|row| Ok((rows::get(row, "id")?, outcome(row)?))).collect()
}

fn outcome(row: &PgRow) -> Result<Requested> {
    Ok(match rows::get(row, "state")? {
        "waiting" => Requested::Waiting(rows::get(row, "id")?),
        "issued" => Requested::Issued {
            der: rows::get(row, "der")?,
            chain: rows::get(row, "chain")?,
            not_after: rows::get(row, "not_after")?,
        },
        _ => {
            let why = rows::get::<Option<String>>(row, "reason")?.unwrap_or_default();
            if rows::get(row, "spent")? { Requested::Spent(why) } else { Requested::Refused(why) }
        }
    })
}

async fn waiting(registry: &Postgres, limit: u32) -> Result<Vec<WaitingRequest>> {
    let mut connection = registry.operator().await?;
    let found = sqlx::query(
        "SELECT r.id, r.device, r.public_key, r.csr, r.gateway, d.fleet, d.status AS device_status, f.limits, c.status, c.valid_until, c.not_after,
                ARRAY (SELECT k.der FROM certificates k WHERE k.device = r.device ORDER BY (k.status = 'revoked') DESC, k.not_before DESC LIMIT $2) AS certificates
         FROM requests r
         JOIN devices d ON d.id = r.device
         JOIN fleets f ON f.id = d.fleet
         JOIN certificates c ON c.fingerprint = r.certificate
         WHERE r.state = 'waiting' AND r.expires > now()
         ORDER BY r.id LIMIT $1",
    )
    .bind(i64::from(limit))
    .bind(LOOKED_AT)
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    connection.release();
    let read = |row: &PgRow| {
        Ok(WaitingRequest {
            id: rows::get(row, "id")?,
            device: device_id(rows::get(row, "device")?)?,
            fleet: fleet_id(rows::get(row, "fleet")?)?,
            status: DeviceStatus::read(rows::get(row, "device_status")?)?,
            limits: rows::get(row, "limits")?,
            public_key: rows::get(row, "public_key")?,
            csr: rows::get(row, "csr")?,
            gateway: rows::get(row, "gateway")?,
            renews: (
                CertificateStatus::read(rows::get(row, "status")?)?,
                rows::get(row, "valid_until")?,
                rows::get(row, "not_after")?,
            ),
            certificates: row.try_get("certificates").map_err(|error| unreadable(&error))?,
        })
    };
    found.iter().map(read).collect()
}

async fn list(
    registry: &Postgres,
    device: Option<&DeviceId>,
    waiting: bool,
    limit: u32,
) -> Result<Vec<RequestSummary>> {
    let mut connection = registry.operator().await?;
    let found = sqlx::query(
        "SELECT r.id, r.device, r.reason, r.gateway, r.asked, r.expires, c.serial,
                CASE WHEN r.state = 'waiting' AND r.expires <= now() THEN 'expired' ELSE r.state END AS state
         FROM requests AS r LEFT JOIN certificates AS c ON c.fingerprint = r.issued
         WHERE ($1::text IS NULL OR r.device = $1) AND (NOT $2 OR r.state = 'waiting' AND r.expires > now())
         ORDER BY r.asked DESC, r.id DESC LIMIT $3",
    )
    .bind(device.map(|device| device.as_str()))
    .bind(waiting)
    .bind(i64::from(limit))
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    connection.release();
    let read = |row: &PgRow| {
        Ok(RequestSummary {
            id: rows::get(row, "id")?,
            device: device_id(rows::get(row, "device")?)?,
            state: rows::get(row, "state")?,
            reason: rows::get(row, "reason")?,
            gateway: rows::get(row, "gateway")?,
            asked: rows::get(row, "asked")?,
            expires: rows::get(row, "expires")?,
            issued: rows::get(row, "serial")?,
        })
    };
    found.iter().map(read).collect()
}

async fn may_issue(registry: &Postgres) -> Result<bool> {
    let mut connection = registry.operator().await?;
    let may = sqlx::query_scalar(
        "SELECT bool_and(has_function_privilege(oid, 'EXECUTE')) FROM pg_proc
         WHERE pronamespace = 'doorward'::regnamespace AND proname IN ('issue_renewal', 'refuse_renewal')",
    )
    .fetch_one(&mut *connection)
    .await
    .map_err(error::read)?;
    connection.release();
    Ok(may)
}

async fn decide(
    registry: &Postgres,
    phase: &Phase,
    decisions: &[(i64, Decision)],
) -> Result<Vec<Option<String>>> {
    let mut connection = registry.operator().await?;
    let mut transaction = audit::begin(registry, &mut connection).await?;
    let mut outcomes = Vec::with_capacity(decisions.len());
    for (id, decision) in decisions {
        let outcome = match decision {
            Decision::Issue { certificate, chain, grace } => {
                sqlx::query_scalar("SELECT issue_renewal($1, $2, $3, $4, $5, $6, $7, $8, $9)")
                    .bind(id)
                    .bind(certificate.fingerprint.to_string())
                    .bind(&certificate.serial)
                    .bind(&certificate.issuer)
                    .bind(&certificate.der)
                    .bind(certificate.not_before)
                    .bind(certificate.not_after)
                    .bind(i64::try_from(grace.as_secs()).unwrap_or(i64::MAX))
                    .bind(&**chain)
                    .fetch_one(&mut *transaction)
                    .await
                    .map_err(error::read)?
            }
            Decision::Refuse(why) | Decision::RefuseKey(why) => {
                let refused: bool = sqlx::query_scalar("SELECT refuse_renewal($1, $2, $3)")
                    .bind(id)
                    .bind(clean(why))
                    .bind(matches!(decision, Decision::RefuseKey(_)))
                    .fetch_one(&mut *transaction)
                    .await
                    .map_err(error::read)?;
                (!refused).then(|| "the request waits no longer".to_owned())
            }
        };
        outcomes.push(outcome);
    }
    phase.commit(transaction).await.map_err(error::commit)?;
    connection.release();
    Ok(outcomes)
}
