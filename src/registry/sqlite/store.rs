//! What a gateway writes: presence and messages, events beside them; and what is swept away again.
//!
//! A statement takes its rows as one JSON text: a hop to SQLite's thread costs more than many rows. `jsonb_each` (SQLite
//! 3.51, which is built in) parses the text once; `json_each` parses it again for each row's members and is half as fast.

use std::fmt::Write;

use serde::Serialize;
use sqlx::sqlite::SqliteConnection;
use time::OffsetDateTime;

use super::super::shared::{Phase, clean, last_claims, settle};
use super::super::{Batch, Fate, MessageFilter, NewMessage, RegistryError, Result, StoredMessage};
use super::rows::{stamp, stamp_ms};
use super::{Sqlite, error, events, rows};

/// Fails the CHECK of its column, so that the row is refused as Postgres refuses it.
const NO_TIME: &str = "out of range";

pub(super) async fn write(registry: &Sqlite, phase: &Phase, batch: &Batch) -> Result<Vec<Fate>> {
    let mut transaction = registry.begin().await?;
    let connection = &mut *transaction;
    claim(connection, batch).await?;
    let fates = store(connection, &batch.messages).await?;
    hear(connection, batch).await?;
    release(connection, batch).await?;
    events::note(connection, batch).await?;
    phase.commit(transaction).await.map_err(error::commit)?;
    if let Ok(file) = registry.current() {
        file.wrote(batch.messages.iter().map(|message| message.data.len()).sum());
    }
    Ok(fates)
}

/// Runs a statement that takes rows as JSON; how many rows it changed.
pub(super) async fn run(
    connection: &mut SqliteConnection,
    sql: &'static str,
    rows: &impl Serialize,
) -> Result<u64> {
    let done = sqlx::query(sql).bind(json(rows)?).execute(connection).await.map_err(error::read)?;
    Ok(done.rows_affected())
}

pub(super) fn json(rows: &impl Serialize) -> Result<String> {
    serde_json::to_string(rows).map_err(|error| RegistryError::Internal(error.to_string()))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Devices that are not active any more claim nothing. A claim that is written again changes nothing, or a retry after
/// an unknown outcome would count a session that never was; one that comes late takes no place from a newer session.
async fn claim(connection: &mut SqliteConnection, batch: &Batch) -> Result<()> {
    if batch.claims.is_empty() {
        return Ok(());
    }
    let claims = last_claims(&batch.claims).into_iter().map(|(claim, count)| {
        Ok((
            claim.device.as_str(),
            clean(&claim.gateway),
            &*claim.session,
            count,
            stamp(claim.at)?,
            clean(&claim.peer),
            claim.late,
        ))
    });
    run(
        connection,
        "INSERT INTO presence (device, gateway, session, epoch, since, last_seen, peer)
         SELECT d.id, c.value->>1, c.value->>2, c.value->>3, c.value->>4, c.value->>4, c.value->>5
         FROM json_each(?1) AS c CROSS JOIN devices AS d ON d.id = c.value->>0 AND d.status = 'active'
         WHERE NOT (c.value->>6 AND EXISTS (
             SELECT 1 FROM presence AS p WHERE p.device = d.id AND p.session IS NOT NULL AND p.since > c.value->>4
         ))
         ON CONFLICT (device) DO UPDATE SET
             gateway = excluded.gateway, session = excluded.session, epoch = epoch + excluded.epoch,
             since = excluded.since, last_seen = excluded.last_seen, peer = excluded.peer
             WHERE session IS NOT excluded.session",
        &claims.collect::<Result<Vec<_>>>()?,
    )
    .await?;
    Ok(())
}

/// Halves what is refused until the rows that are at fault stand alone. A statement that is refused leaves the
/// transaction as it was before it.
async fn store(connection: &mut SqliteConnection, messages: &[NewMessage]) -> Result<Vec<Fate>> {
    let mut fates = vec![Fate::Fenced; messages.len()];
    let mut pieces = vec![(0, messages.len())];
    while let Some((start, end)) = pieces.pop().filter(|(start, end)| start < end) {
        match store_piece(connection, &messages[start..end], &mut fates[start..end]).await? {
            Ok(()) => {}
            Err(_) if end - start > 1 => {
                let middle = start.midpoint(end);
                // The first half is taken first: messages keep their order.
                pieces.push((middle, end));
                pieces.push((start, middle));
            }
            Err(_) => fates[start] = Fate::Unstorable,
        }
    }
    Ok(fates)
}

/// The INSERT judges: an active device, its newest session. What it did not insert was there already or was not
/// allowed; the same judgement in the same transaction, which nobody writes into, tells them apart.
async fn store_piece(
    connection: &mut SqliteConnection,
    messages: &[NewMessage],
    fates: &mut [Fate],
) -> Result<Result<(), sqlx::Error>> {
    let time = |ms: i64| stamp_ms(ms).unwrap_or_else(|| NO_TIME.to_owned());
    let given: Vec<_> = messages
        .iter()
        .map(|m| {
            (
                m.device.as_str(),
                &*m.session,
                m.id.as_str(),
                &*m.channel,
                &*m.data,
                m.at_ms.map(time),
                time(m.received_ms),
            )
        })
        .collect();
    let given = json(&given)?;
    let before: i64 = sqlx::query_scalar("SELECT coalesce(max(position), 0) FROM messages")
        .fetch_one(&mut *connection)
        .await
        .map_err(error::read)?;
    let inserted = sqlx::query(
        "INSERT INTO messages (device, id, channel, data, at, received_at)
         SELECT d.id, m.value->>2, m.value->>3, m.value->>4, m.value->>5, m.value->>6
         FROM jsonb_each(?1) AS m
         CROSS JOIN devices AS d ON d.id = m.value->>0 AND d.status = 'active'
         CROSS JOIN presence AS p ON p.device = d.id AND p.session = m.value->>1
         WHERE true
         ON CONFLICT (device, id) DO NOTHING",
    )
    .bind(&given)
    .execute(&mut *connection)
    .await;
    match inserted {
        Ok(inserted) if inserted.rows_affected() == messages.len() as u64 => {
            fates.fill(Fate::Stored);
            return Ok(Ok(()));
        }
        Ok(_) => {}
        Err(error) if error::is_content(&error) => return Ok(Err(error)),
        Err(error) => return Err(error::read(error)),
    }
    let allowed: Vec<(i64, bool)> = sqlx::query_as(
        "SELECT m.key, s.position IS NOT NULL FROM jsonb_each(?1) AS m
         CROSS JOIN devices AS d ON d.id = m.value->>0 AND d.status = 'active'
         CROSS JOIN presence AS p ON p.device = d.id AND p.session = m.value->>1
         LEFT JOIN messages AS s ON s.device = d.id AND s.id = m.value->>2 AND s.position > ?2
         ORDER BY m.key",
    )
    .bind(&given)
    .bind(before)
    .fetch_all(connection)
    .await
    .map_err(error::read)?;
    let places = allowed.iter().map(|(place, new)| (usize::try_from(*place).unwrap_or(usize::MAX), *new));
    settle(messages, fates, places)
        .ok_or_else(|| RegistryError::Internal("a row that was not sent came back".to_owned()))?;
    Ok(Ok(()))
}

async fn hear(connection: &mut SqliteConnection, batch: &Batch) -> Result<()> {
    if batch.seen.is_empty() {
        return Ok(());
    }
    let heard = batch.seen.iter().map(|(device, session, at)| Ok((device.as_str(), &**session, stamp(*at)?)));
    run(
        connection,
        "UPDATE presence SET last_seen = max(last_seen, h.at)
         FROM (
             SELECT value->>0 AS device, value->>1 AS session, max(value->>2) AS at FROM json_each(?1) GROUP BY 1, 2
         ) AS h
         WHERE presence.device = h.device AND presence.session = h.session",
        &heard.collect::<Result<Vec<_>>>()?,
    )
    .await?;
    Ok(())
}

async fn release(connection: &mut SqliteConnection, batch: &Batch) -> Result<()> {
    if batch.releases.is_empty() {
        return Ok(());
    }
    let ended: Vec<_> =
        batch.releases.iter().map(|(device, session)| (device.as_str(), &**session)).collect();
    run(
        connection,
        "UPDATE presence SET session = NULL FROM json_each(?1) AS r
         WHERE presence.device = r.value->>0 AND presence.session = r.value->>1",
        &ended,
    )
    .await?;
    Ok(())
}

pub(super) async fn forget_sessions(registry: &Sqlite, phase: &Phase, gateway: &str) -> Result<u64> {
    let mut transaction = registry.begin().await?;
    let ended = sqlx::query("UPDATE presence SET session = NULL WHERE gateway = ?1 AND session IS NOT NULL")
        .bind(gateway)
        .execute(&mut *transaction)
        .await
        .map_err(error::read)?
        .rows_affected();
    phase.commit(transaction).await.map_err(error::commit)?;
    Ok(ended)
}

pub(super) async fn prune_messages(
    registry: &Sqlite,
    phase: &Phase,
    before: OffsetDateTime,
    limit: u32,
) -> Result<u64> {
    let mut transaction = registry.begin().await?;
    let deleted = sqlx::query(
        "DELETE FROM messages WHERE position IN (
             SELECT position FROM messages WHERE received_at < ?1 ORDER BY received_at LIMIT ?2
         )",
    )
    .bind(stamp(before)?)
    .bind(i64::from(limit))
    .execute(&mut *transaction)
    .await
    .map_err(error::read)?
    .rows_affected();
    phase.commit(transaction).await.map_err(error::commit)?;
    Ok(deleted)
}

pub(super) async fn prune_history(
    registry: &Sqlite,
    phase: &Phase,
    before: OffsetDateTime,
    limit: u32,
) -> Result<u64> {
    let mut transaction = registry.begin().await?;
    let before = stamp(before)?;
    let changes = sqlx::query(
        "DELETE FROM changes WHERE id IN (SELECT id FROM changes WHERE at < ?1 ORDER BY at LIMIT ?2)",
    )
    .bind(&before)
    .bind(i64::from(limit))
    .execute(&mut *transaction)
    .await
    .map_err(error::read)?
    .rows_affected();
    let events = sqlx::query(
        "DELETE FROM events WHERE id IN (SELECT id FROM events WHERE at < ?1 ORDER BY at LIMIT ?2)",
    )
    .bind(&before)
    .bind(i64::from(limit).saturating_sub_unsigned(changes))
    .execute(&mut *transaction)
    .await
    .map_err(error::read)?
    .rows_affected();
    let requests = sqlx::query(
        "DELETE FROM requests WHERE id IN (
             SELECT id FROM requests WHERE asked < ?1 AND expires < strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
                 AND NOT EXISTS (
                     SELECT 1 FROM certificates AS c WHERE c.fingerprint = issued AND c.status = 'active'
                         AND c.not_after > strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
                 )
             ORDER BY asked LIMIT ?2)",
    )
    .bind(&before)
    .bind(i64::from(limit).saturating_sub_unsigned(changes + events))
    .execute(&mut *transaction)
    .await
    .map_err(error::read)?
    .rows_affected();
    phase.commit(transaction).await.map_err(error::commit)?;
    Ok(changes + events + requests)
}

pub(super) async fn messages(registry: &Sqlite, filter: &MessageFilter) -> Result<Vec<StoredMessage>> {
    let mut connection = registry.reader().await?;
    let found = sqlx::query(
        "SELECT position, device, id, channel, data, at, received_at FROM messages
         WHERE position > ?1 AND (?2 IS NULL OR device = ?2) AND (?3 IS NULL OR received_at >= ?3)
         ORDER BY position LIMIT ?4",
    )
    .bind(filter.after)
    .bind(filter.device.as_ref().map(|device| device.as_str()))
    .bind(filter.since.map(stamp).transpose()?)
    .bind(i64::from(filter.limit))
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    found.iter().map(rows::message).collect()
}
