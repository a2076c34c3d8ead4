//! Following `changes`.
//!
//! A position is a transaction id (see [`Position`]). Every transaction below a snapshot's xmin is decided: what it
//! committed is visible. So after a look that reached the end, `low` is that xmin, and what was read at or above it is
//! remembered. No order of row ids would do: an id is drawn before its transaction commits.

use sqlx::Row;
use sqlx::postgres::PgConnection;

use super::super::shared::{PAGE, age, change};
use super::super::{Applied, Mark, News, Position, Result};
use super::{Postgres, error, rows};

/// The end of the feed: all that is decided, and of the rest what is visible. The rest of the rest will be news.
pub(super) async fn end(registry: &Postgres) -> Result<(Position, Applied)> {
    let mut connection = registry.gateway().await?;
    let found = sqlx::query(
        "WITH snapshot AS MATERIALIZED (
             SELECT s::text AS whole, pg_snapshot_xmin(s) AS xmin, pg_snapshot_xmax(s) AS xmax FROM pg_current_snapshot() AS s
         )
         SELECT s.whole, s.xmin::text::bigint AS low, coalesce((SELECT max(id) FROM changes), 0) AS last,
                tail.id AS tail_id, tail.xid::text::bigint AS tail_xid, c.id, c.xid::text::bigint AS xid
         FROM snapshot s
         LEFT JOIN LATERAL (SELECT id, xid FROM changes WHERE xid < s.xmax ORDER BY id DESC LIMIT 1) AS tail ON true
         LEFT JOIN changes c ON c.xid >= s.xmin AND c.xid < s.xmax",
    )
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    connection.release();

    let mut position = Position::default();
    let mut applied = Applied::default();
    for row in &found {
        applied = Applied(rows::get(row, "whole")?);
        position.low = rows::get(row, "low")?;
        position.last = rows::get(row, "last")?;
        position.tail =
            rows::get::<Option<i64>>(row, "tail_xid")?.zip(rows::get::<Option<i64>>(row, "tail_id")?);
        if let Some(id) = rows::get::<Option<i64>>(row, "id")? {
            position.seen.insert((rows::get(row, "xid")?, id));
        }
    }
    Ok((position, applied))
}

pub(super) async fn read(registry: &Postgres, position: &mut Position) -> Result<News> {
    let seen: Vec<i64> = position.seen.iter().map(|(_, id)| *id).collect();
    let mut connection = registry.gateway().await?;
    // Rows that a restore brought from another cluster may bear an xid that has not come yet here: `xid < xmax` leaves
    // them out, and none of this cluster's (what is visible is below xmax).
    //
    // A gap: xids that run backwards (another server, a standby that missed the end); rows pruned that we may have
    // needed; ids that run backwards (an older state of this database); rows that came after the last one read, but in a
    // transaction that we knew to be decided (a crash that lost unflushed transactions, whose xids came again); a row that
    // we read and that nobody pruned (a standby that missed the end, but whose numbers have passed ours by now: promoted,
    // it leaves out the ids that its server had in reserve).
    let found = sqlx::query(
        "WITH snapshot AS MATERIALIZED (
             SELECT s::text AS whole, pg_snapshot_xmin(s) AS xmin, pg_snapshot_xmax(s) AS xmax, $1::text::xid8 AS low
             FROM pg_current_snapshot() AS s
         ), fresh AS (
             SELECT c.id, c.xid, c.kind, c.subject, extract(epoch FROM clock_timestamp() - c.at)::float8 AS age
             FROM snapshot s JOIN changes c ON c.xid >= s.low AND c.xid < s.xmax
             WHERE NOT EXISTS (SELECT FROM unnest($2::bigint[]) AS seen (id) WHERE seen.id = c.id)
             ORDER BY c.xid, c.id
             LIMIT $4
         ), judged AS MATERIALIZED (
             -- Once, and not for each row that is read.
             SELECT s.*, s.xmin < s.low
                    OR EXISTS (SELECT FROM feed WHERE pruned >= s.low AND pruned < s.xmax AND pruned <> '0')
                    OR (SELECT last_value FROM changes_id_seq) < $3
                    OR EXISTS (SELECT FROM changes c WHERE c.id > $3 AND c.xid < s.low)
                    OR (NOT EXISTS (SELECT FROM changes c WHERE c.id = $6 AND c.xid = $5::text::xid8)
                        AND EXISTS (SELECT FROM feed WHERE pruned < $5::text::xid8)) AS gap
             FROM snapshot s
         )
         SELECT s.whole, s.xmin::text::bigint AS xmin, s.xmax::text::bigint AS xmax, s.gap,
                f.id, f.xid::text::bigint AS xid, f.kind, f.subject, f.age
         FROM judged s LEFT JOIN fresh f ON true
         ORDER BY f.xid, f.id",
    )
    .bind(position.low.to_string())
    .bind(&seen)
    .bind(position.last)
    .bind(PAGE + 1)
    .bind(position.tail.map(|(xid, _)| xid.to_string()))
    .bind(position.tail.map(|(_, id)| id))
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    connection.release();

    let mut news = News::default();
    let mut next = position.clone();
    for (place, row) in (0i64..).zip(&found) {
        let xmin: i64 = rows::get(row, "xmin")?;
        news.applied = Applied(rows::get(row, "whole")?);
        news.open = Some(xmin).filter(|xmin| rows::get::<i64>(row, "xmax").is_ok_and(|xmax| *xmin < xmax));
        news.gap |= rows::get::<bool>(row, "gap")?;
        news.more = place == PAGE;
        if news.more {
            break;
        }
        next.low = xmin;
        let Some(id) = row.try_get::<Option<i64>, _>("id").map_err(error::read)? else {
            break;
        };
        let xid = rows::get(row, "xid")?;
        // In the order of xids, all below this row's have been read; the next page may begin in the same transaction.
        next.low = xmin.min(xid);
        if id > next.last || next.tail.is_none() {
            next.tail = Some((xid, id));
        }
        next.last = next.last.max(id);
        next.seen.insert((xid, id));
        match change(rows::get(row, "kind")?, rows::get(row, "subject")?) {
            Some(change) => {
                news.changes.push(change);
                news.ages.push(age(rows::get(row, "age")?));
            }
            None => news.gap = true,
        }
    }
    if news.gap {
        let (end, applied) = end(registry).await?;
        *position = end;
        return Ok(News { gap: true, applied, ..News::default() });
    }
    if !news.more {
        next.low = found.first().map(|row| rows::get(row, "xmin")).transpose()?.unwrap_or(next.low);
    }
    next.seen = next.seen.split_off(&(next.low, i64::MIN));
    *position = next;
    Ok(news)
}

/// A change row that no trigger writes.
pub(super) async fn note(connection: &mut PgConnection, kind: &str, subject: &str) -> Result<()> {
    sqlx::query("INSERT INTO changes (kind, subject) VALUES ($1, $2)")
        .bind(kind)
        .bind(subject)
        .execute(connection)
        .await
        .map_err(error::read)?;
    Ok(())
}

/// This transaction's place.
pub(super) async fn mark(connection: &mut PgConnection) -> Result<Mark> {
    let xid = sqlx::query_scalar("SELECT pg_current_xact_id()::text::bigint").fetch_one(connection).await;
    xid.map(Mark).map_err(error::read)
}
