//! What a gateway writes: presence and messages, events beside them; and what is swept away again.

use std::time::Duration;

use sqlx::Connection;
use sqlx::postgres::PgConnection;
use time::OffsetDateTime;

use super::super::shared::{ATTEMPTS, Phase, clean, count, last_claims, settle};
use super::super::{Batch, Fate, MessageFilter, NewMessage, RegistryError, Result, StoredMessage};
use super::error::Remedy;
use super::{Postgres, error, events, rows};

pub(super) async fn write(registry: &Postgres, phase: &Phase, batch: &Batch) -> Result<Vec<Fate>> {
    // Savepoints cost a round trip each: only a batch that was refused once is stored piece by piece.
    let mut in_pieces = false;
    for attempt in 1..=ATTEMPTS {
        let error = match attempt_write(registry, phase, batch, in_pieces).await {
            Ok(outcome) => return outcome,
            Err(error) => error,
        };
        match error::remedy(&error) {
            Remedy::Split if !in_pieces => in_pieces = true,
            Remedy::Again if attempt < ATTEMPTS => {
                tokio::time::sleep(Duration::from_millis(10) * attempt).await;
            }
            _ => return Err(error::read(error)),
        }
        phase.again();
    }
    Err(RegistryError::Unavailable("other transactions were always first".to_owned()))
}

/// The outer error is one that another attempt may mend.
async fn attempt_write(
    registry: &Postgres,
    phase: &Phase,
    batch: &Batch,
    in_pieces: bool,
) -> Result<Result<Vec<Fate>>, sqlx::Error> {
    let mut connection = match registry.gateway().await {
        Ok(connection) => connection,
        Err(error) => return Ok(Err(error)),
    };
    let mut transaction = connection.begin().await?;
    let outcome = fill(&mut transaction, batch, in_pieces).await;
    let fates = match outcome {
        Ok(fates) => fates,
        Err(error) => {
            if error.as_database_error().is_some() && transaction.rollback().await.is_ok() {
                connection.release();
            }
            return Err(error);
        }
    };
    match phase.commit(transaction).await {
        Ok(()) => {
            connection.release();
            Ok(Ok(fates))
        }
        Err(error) if error::remedy(&error) == Remedy::Again => Err(error),
        Err(error) => Ok(Err(error::commit(error))),
    }
}

async fn fill(
    connection: &mut PgConnection,
    batch: &Batch,
    in_pieces: bool,
) -> Result<Vec<Fate>, sqlx::Error> {
    claim(connection, batch).await?;
    let mut fates = vec![Fate::Fenced; batch.messages.len()];
    if in_pieces {
        store_in_pieces(connection, &batch.messages, &mut fates).await?;
    } else {
        store(connection, &batch.messages, &mut fates).await?;
    }
    hear(connection, batch).await?;
    release(connection, batch).await?;
    events::note(connection, batch).await?;
    Ok(fates)
}

/// Devices that are not active any more claim nothing. A claim that is written again changes nothing, or a retry after
/// an unknown outcome would count a session that never was; one that comes late takes no place from a newer session.
async fn claim(connection: &mut PgConnection, batch: &Batch) -> Result<(), sqlx::Error> {
    if batch.claims.is_empty() {
        return Ok(());
    }
    let claims = last_claims(&batch.claims);
    sqlx::query(
        "INSERT INTO presence AS p (device, gateway, session, epoch, since, last_seen, peer)
         SELECT d.id, c.gateway, c.session, c.count, c.at, c.at, c.peer
         FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::timestamptz[], $6::text[])
             AS c (device, gateway, session, count, at, peer)
         JOIN devices d ON d.id = c.device AND d.status = 'active'
         ORDER BY d.id
         ON CONFLICT (device) DO UPDATE SET
             gateway = excluded.gateway, session = excluded.session, epoch = p.epoch + excluded.epoch,
             since = excluded.since, last_seen = excluded.last_seen, peer = excluded.peer
             WHERE p.session IS DISTINCT FROM excluded.session
                 AND NOT (excluded.device = ANY ($7) AND p.session IS NOT NULL AND p.since > excluded.since)",
    )
    .bind(claims.iter().map(|(claim, _)| claim.device.as_str()).collect::<Vec<_>>())
    .bind(claims.iter().map(|(claim, _)| clean(&claim.gateway)).collect::<Vec<_>>())
    .bind(claims.iter().map(|(claim, _)| &*claim.session).collect::<Vec<_>>())
    .bind(claims.iter().map(|(_, count)| *count).collect::<Vec<_>>())
    .bind(claims.iter().map(|(claim, _)| claim.at).collect::<Vec<_>>())
    .bind(claims.iter().map(|(claim, _)| clean(&claim.peer)).collect::<Vec<_>>())
    .bind(
        claims
            .iter()
            .filter(|(claim, _)| claim.late)
            .map(|(claim, _)| claim.device.as_str())
            .collect::<Vec<_>>(),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// One statement judges and stores: `allowed` is what an active device sent in its newest session. Of those, a message
/// that is there already, or stands in the batch twice, is a duplicate: durable too.
async fn store(
    connection: &mut PgConnection,
    messages: &[NewMessage],
    fates: &mut [Fate],
) -> Result<(), sqlx::Error> {
    if messages.is_empty() {
        return Ok(());
    }
    let allowed: Vec<(i64, bool)> = sqlx::query_as(
        "WITH allowed AS (
             SELECT m.* FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[])
                 WITH ORDINALITY AS m (device, session, id, channel, data, at_ms, received_ms, place)
             JOIN devices d ON d.id = m.device AND d.status = 'active'
             JOIN presence p ON p.device = m.device AND p.session = m.session
         ), stored AS (
             INSERT INTO messages (device, id, channel, data, at, received_at)
             SELECT device, id, channel, data,
                    timestamptz 'epoch' + at_ms * interval '1 millisecond',
                    timestamptz 'epoch' + received_ms * interval '1 millisecond'
             FROM allowed ORDER BY place
             ON CONFLICT (device, id) DO NOTHING
             RETURNING device, id
         )
         SELECT a.place, s.id IS NOT NULL FROM allowed a LEFT JOIN stored s USING (device, id) ORDER BY a.place",
    )
    .bind(messages.iter().map(|m| m.device.as_str()).collect::<Vec<_>>())
    .bind(messages.iter().map(|m| &*m.session).collect::<Vec<_>>())
    .bind(messages.iter().map(|m| m.id.as_str()).collect::<Vec<_>>())
    .bind(messages.iter().map(|m| &*m.channel).collect::<Vec<_>>())
    .bind(messages.iter().map(|m| &*m.data).collect::<Vec<_>>())
    .bind(messages.iter().map(|m| m.at_ms).collect::<Vec<_>>())
    .bind(messages.iter().map(|m| m.received_ms).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    let places = allowed.iter().map(|(place, new)| (usize::try_from(place - 1).unwrap_or(usize::MAX), *new));
    settle(messages, fates, places)
        .ok_or_else(|| sqlx::Error::Protocol("a row that was not sent came back".to_owned()))?;
    Ok(())
}

/// Halves what is refused until the rows that are at fault stand alone.
async fn store_in_pieces(
    connection: &mut PgConnection,
    messages: &[NewMessage],
    fates: &mut [Fate],
) -> Result<(), sqlx::Error> {
    let mut pieces = vec![(0, messages.len())];
    while let Some((start, end)) = pieces.pop() {
        let mut savepoint = connection.begin().await?;
        match store(&mut savepoint, &messages[start..end], &mut fates[start..end]).await {
            Ok(()) => savepoint.commit().await?,
            Err(error) if error::remedy(&error) == Remedy::Split => {
                savepoint.rollback().await?;
                if end - start == 1 {
                    fates[start] = Fate::Unstorable;
                } else {
                    let middle = start.midpoint(end);
                    // The first half is taken first: messages keep their order.
                    pieces.push((middle, end));
                    pieces.push((start, middle));
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn hear(connection: &mut PgConnection, batch: &Batch) -> Result<(), sqlx::Error> {
    if batch.seen.is_empty() {
        return Ok(());
    }
    // FOR UPDATE in the order of ids, for the same reason as in claims.
    sqlx::query(
        "WITH heard AS (
             SELECT s.device, s.session, max(s.at) AS at
             FROM unnest($1::text[], $2::text[], $3::timestamptz[]) AS s (device, session, at)
             GROUP BY s.device, s.session
         ), locked AS (
             SELECT p.device, h.at FROM presence p JOIN heard h USING (device, session) ORDER BY p.device FOR UPDATE OF p
         )
         UPDATE presence p SET last_seen = greatest(p.last_seen, l.at) FROM locked l WHERE p.device = l.device",
    )
    .bind(batch.seen.iter().map(|(device, _, _)| device.as_str()).collect::<Vec<_>>())
    .bind(batch.seen.iter().map(|(_, session, _)| &**session).collect::<Vec<_>>())
    .bind(batch.seen.iter().map(|(_, _, at)| *at).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

async fn release(connection: &mut PgConnection, batch: &Batch) -> Result<(), sqlx::Error> {
    if batch.releases.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "WITH locked AS (
             SELECT p.device FROM presence p
             JOIN (SELECT DISTINCT * FROM unnest($1::text[], $2::text[])) AS r (device, session) USING (device, session)
             ORDER BY p.device FOR UPDATE OF p
         )
         UPDATE presence p SET session = NULL FROM locked l WHERE p.device = l.device",
    )
    .bind(batch.releases.iter().map(|(device, _)| device.as_str()).collect::<Vec<_>>())
    .bind(batch.releases.iter().map(|(_, session)| &**session).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

pub(super) async fn forget_sessions(registry: &Postgres, phase: &Phase, gateway: &str) -> Result<u64> {
    let mut connection = registry.gateway().await?;
    let mut transaction = connection.begin().await.map_err(error::read)?;
    let ended = sqlx::query("UPDATE presence SET session = NULL WHERE gateway = $1 AND session IS NOT NULL")
        .bind(gateway)
        .execute(&mut *transaction)
        .await
        .map_err(error::read)?
        .rows_affected();
    phase.commit(transaction).await.map_err(error::commit)?;
    connection.release();
    Ok(ended)
}

pub(super) async fn prune_messages(
    registry: &Postgres,
    phase: &Phase,
    before: OffsetDateTime,
    limit: u32,
) -> Result<u64> {
    let mut connection = registry.operator().await?;
    let mut transaction = connection.begin().await.map_err(error::read)?;
    let deleted: i64 = sqlx::query_scalar("SELECT prune_messages($1, $2)")
        .bind(before)
        .bind(i64::from(limit))
        .fetch_one(&mut *transaction)
        .await
        .map_err(error::read)?;
    phase.commit(transaction).await.map_err(error::commit)?;
    connection.release();
    Ok(count(deleted))
}

pub(super) async fn prune_history(
    registry: &Postgres,
    phase: &Phase,
    before: OffsetDateTime,
    limit: u32,
) -> Result<u64> {
    let mut connection = registry.operator().await?;
    let mut transaction = connection.begin().await.map_err(error::read)?;
    let deleted: i64 = sqlx::query_scalar("SELECT prune_history($1, $2)")
        .bind(before)
        .bind(i64::from(limit))
        .fetch_one(&mut *transaction)
        .await
        .map_err(error::read)?;
    phase.commit(transaction).await.map_err(error::commit)?;
    connection.release();
    Ok(count(deleted))
}

pub(super) async fn messages(registry: &Postgres, filter: &MessageFilter) -> Result<Vec<StoredMessage>> {
    let mut connection = registry.operator().await?;
    let found = sqlx::query(
        "SELECT position, device, id, channel, data, at, received_at FROM messages
         WHERE position > $1 AND ($2::text IS NULL OR device = $2)
             AND ($3::timestamptz IS NULL OR received_at >= $3)
         ORDER BY position LIMIT $4",
    )
    .bind(filter.after)
    .bind(filter.device.as_ref().map(|device| device.as_str()))
    .bind(filter.since)
    .bind(i64::from(filter.limit))
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    connection.release();
    found.iter().map(rows::message).collect()
}
