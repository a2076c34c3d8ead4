//! Security events.

use sqlx::postgres::{PgConnection, PgRow};

use super::super::shared::{clean, count};
use super::super::{Batch, EventFilter, EventKind, Result, StoredEvent};
use super::rows::get;
use super::{Postgres, error};

pub(super) async fn note(connection: &mut PgConnection, batch: &Batch) -> Result<(), sqlx::Error> {
    if batch.events.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO events (at, since, count, gateway, device, kind, peer, detail)
         SELECT * FROM unnest($1::timestamptz[], $2::timestamptz[], $3::bigint[], $4::text[], $5::text[], $6::text[],
             $7::text[], $8::text[])",
    )
    .bind(batch.events.iter().map(|e| e.at).collect::<Vec<_>>())
    .bind(batch.events.iter().map(|e| e.since).collect::<Vec<_>>())
    .bind(batch.events.iter().map(|e| i64::try_from(e.count).unwrap_or(i64::MAX)).collect::<Vec<_>>())
    .bind(batch.events.iter().map(|e| clean(&e.gateway)).collect::<Vec<_>>())
    .bind(batch.events.iter().map(|e| e.device.as_ref().map(|d| d.as_str())).collect::<Vec<_>>())
    .bind(batch.events.iter().map(|e| e.kind.as_str()).collect::<Vec<_>>())
    .bind(batch.events.iter().map(|e| clean(&e.peer)).collect::<Vec<_>>())
    .bind(batch.events.iter().map(|e| clean(&e.detail)).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

macro_rules! select {
    ($order:literal) => {
        concat!(
            "SELECT id, at, coalesce(since, at) AS since, count, gateway, device, kind, peer, detail FROM events
             WHERE id > $1 AND ($2::text IS NULL OR device = $2) AND ($3::text IS NULL OR kind = $3)
                 AND ($4::timestamptz IS NULL OR at >= $4)
             ORDER BY id ",
            $order,
            " LIMIT $5"
        )
    };
}

pub(super) async fn list(registry: &Postgres, filter: &EventFilter) -> Result<Vec<StoredEvent>> {
    let mut connection = registry.operator().await?;
    let found = sqlx::query(if filter.newest { select!("DESC") } else { select!("ASC") })
        .bind(filter.after)
        .bind(filter.device.as_ref().map(|device| device.as_str()))
        .bind(filter.kind.map(EventKind::as_str))
        .bind(filter.since)
        .bind(i64::from(filter.limit))
        .fetch_all(&mut *connection)
        .await
        .map_err(error::read)?;
    connection.release();
    let mut events = found.iter().map(event).collect::<Result<Vec<_>>>()?;
    if filter.newest {
        events.reverse();
    }
    Ok(events)
}

fn event(row: &PgRow) -> Result<StoredEvent> {
    Ok(StoredEvent {
        id: get(row, "id")?,
        at: get(row, "at")?,
        since: get(row, "since")?,
        count: count(get(row, "count")?),
        gateway: get(row, "gateway")?,
        device: get(row, "device")?,
        kind: get(row, "kind")?,
        peer: get(row, "peer")?,
        detail: get(row, "detail")?,
    })
}
