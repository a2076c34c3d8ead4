//! Security events.

use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::super::shared::{clean, count};
use super::super::{Batch, EventFilter, EventKind, Result, StoredEvent};
use super::rows::{get, moment, stamp};
use super::{Sqlite, error, store};

pub(super) async fn note(connection: &mut SqliteConnection, batch: &Batch) -> Result<()> {
    if batch.events.is_empty() {
        return Ok(());
    }
    let events = batch.events.iter().map(|e| {
        let device = e.device.as_ref().map(|device| device.as_str());
        let count = i64::try_from(e.count).unwrap_or(i64::MAX);
        let words = (clean(&e.gateway), device, e.kind.as_str(), clean(&e.peer), clean(&e.detail));
        Ok((stamp(e.at)?, stamp(e.since)?, count, words))
    });
    store::run(
        connection,
        "INSERT INTO events (at, since, count, gateway, device, kind, peer, detail)
         SELECT value->>0, value->>1, value->>2, value->>'$[3][0]', value->>'$[3][1]', value->>'$[3][2]',
             value->>'$[3][3]', value->>'$[3][4]' FROM json_each(?1)",
        &events.collect::<Result<Vec<_>>>()?,
    )
    .await?;
    Ok(())
}

macro_rules! select {
    ($order:literal) => {
        concat!(
            "SELECT id, at, coalesce(since, at) AS since, count, gateway, device, kind, peer, detail FROM events
             WHERE id > ?1 AND (?2 IS NULL OR device = ?2) AND (?3 IS NULL OR kind = ?3) AND (?4 IS NULL OR at >= ?4)
             ORDER BY id ",
            $order,
            " LIMIT ?5"
        )
    };
}

pub(super) async fn list(registry: &Sqlite, filter: &EventFilter) -> Result<Vec<StoredEvent>> {
    let mut connection = registry.reader().await?;
    let found = sqlx::query(if filter.newest { select!("DESC") } else { select!("ASC") })
        .bind(filter.after)
        .bind(filter.device.as_ref().map(|device| device.as_str()))
        .bind(filter.kind.map(EventKind::as_str))
        .bind(filter.since.map(stamp).transpose()?)
        .bind(i64::from(filter.limit))
        .fetch_all(&mut *connection)
        .await
        .map_err(error::read)?;
    let mut events = found.iter().map(event).collect::<Result<Vec<_>>>()?;
    if filter.newest {
        events.reverse();
    }
    Ok(events)
}

fn event(row: &SqliteRow) -> Result<StoredEvent> {
    Ok(StoredEvent {
        id: get(row, "id")?,
        at: moment(row, "at")?,
        since: moment(row, "since")?,
        count: count(get(row, "count")?),
        gateway: get(row, "gateway")?,
        device: get(row, "device")?,
        kind: get(row, "kind")?,
        peer: get(row, "peer")?,
        detail: get(row, "detail")?,
    })
}
