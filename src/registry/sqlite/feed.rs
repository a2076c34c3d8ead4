//! Following `changes`. There is one writer, so the order of ids is the order of commits and a position is an id.

use std::time::Duration;

use sqlx::ConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tokio::sync::Mutex;

use super::super::shared::{PAGE, age, change};
use super::super::{Applied, Mark, News, Position, Result};
use super::{Sqlite, error, rows};

/// How often the file is asked whether anyone has written.
const POLL: Duration = Duration::from_millis(50);

/// A connection of its own: `data_version` tells what *other* connections have committed since.
#[derive(Debug)]
pub(super) struct Watch {
    options: SqliteConnectOptions,
    open: Mutex<Option<Looking>>,
}

#[derive(Debug)]
struct Looking {
    connection: SqliteConnection,
    /// `None` before the first look.
    known: Option<i64>,
}

impl Watch {
    pub(super) fn new(options: SqliteConnectOptions) -> Self {
        Self { options, open: Mutex::new(None) }
    }

    /// Opens the connection, if it is not open.
    pub(super) async fn open(&self) -> Result<(), sqlx::Error> {
        self.looking(&mut *self.open.lock().await).await.map(drop)
    }

    async fn looking<'a>(&self, open: &'a mut Option<Looking>) -> Result<&'a mut Looking, sqlx::Error> {
        match open {
            Some(looking) => Ok(looking),
            None => {
                let mut connection = self.options.connect().await?;
                // The log is opened when something is read.
                version(&mut connection).await?;
                Ok(open.insert(Looking { connection, known: None }))
            }
        }
    }

    async fn next(&self) -> Result<(), sqlx::Error> {
        let mut open = self.open.lock().await;
        let looking = self.looking(&mut open).await?;
        loop {
            match version(&mut looking.connection).await {
                Ok(version) if looking.known == Some(version) => tokio::time::sleep(POLL).await,
                // What was committed before the first look is unknown: it counts as news. So does what a broken look missed.
                Ok(version) => {
                    looking.known = Some(version);
                    return Ok(());
                }
                Err(error) => {
                    *open = None;
                    return Err(error);
                }
            }
        }
    }
}

async fn version(connection: &mut SqliteConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("PRAGMA data_version").fetch_one(connection).await
}

pub(super) async fn changed(registry: &Sqlite, patience: Duration) -> Result<()> {
    match tokio::time::timeout(patience, registry.current()?.watch.next()).await {
        Ok(Ok(())) | Err(_) => Ok(()),
        Ok(Err(error)) => Err(error::read(error)),
    }
}

pub(super) async fn end(registry: &Sqlite) -> Result<Position> {
    let mut connection = registry.reader().await?;
    let found = sqlx::query(
        "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'changes'), 0) AS last, tail.id, tail.ms
         FROM (SELECT 1) LEFT JOIN (
             SELECT id, CAST(round(julianday(at) * 86400000) AS INTEGER) AS ms FROM changes ORDER BY id DESC LIMIT 1
         ) AS tail",
    )
    .fetch_one(&mut *connection)
    .await
    .map_err(error::read)?;
    let last = rows::get(&found, "last")?;
    let tail = rows::get::<Option<i64>>(&found, "ms")?.zip(rows::get::<Option<i64>>(&found, "id")?);
    Ok(Position { low: last, last, tail, ..Position::default() })
}

pub(super) async fn read(registry: &Sqlite, position: &mut Position) -> Result<News> {
    let mut connection = registry.reader().await?;
    // A gap: rows pruned that we may have needed; ids that run backwards (an older state of this file); a row that we read
    // and that nobody pruned (an older state that has gone on since).
    let found = sqlx::query(
        "SELECT (SELECT pruned FROM feed) > ?1
                    OR coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'changes'), 0) < ?1
                    OR (SELECT pruned FROM feed) < ?4 AND NOT EXISTS (
                        SELECT 1 FROM changes WHERE id = ?4 AND CAST(round(julianday(at) * 86400000) AS INTEGER) = ?3
                    ) AS gap,
                c.id, c.kind, c.subject, c.age, c.ms
         FROM (SELECT 1) LEFT JOIN (
             SELECT id, kind, subject, (julianday('now') - julianday(at)) * 86400.0 AS age,
                 CAST(round(julianday(at) * 86400000) AS INTEGER) AS ms
             FROM changes WHERE id > ?1 ORDER BY id LIMIT ?2
         ) AS c
         ORDER BY c.id",
    )
    .bind(position.low)
    .bind(PAGE + 1)
    .bind(position.tail.map(|(ms, _)| ms))
    .bind(position.tail.map(|(_, id)| id))
    .fetch_all(&mut *connection)
    .await
    .map_err(error::read)?;
    drop(connection);

    let mut news = News::default();
    let (mut low, mut tail) = (position.low, position.tail);
    for (place, row) in (0i64..).zip(&found) {
        news.gap |= rows::get::<bool>(row, "gap")?;
        news.more = place == PAGE;
        let id: Option<i64> = rows::get(row, "id")?;
        let Some(id) = id.filter(|_| !news.more) else {
            break;
        };
        low = id;
        tail = Some((rows::get(row, "ms")?, id));
        match change(rows::get(row, "kind")?, rows::get(row, "subject")?) {
            Some(change) => {
                news.changes.push(change);
                news.ages.push(age(rows::get(row, "age")?));
            }
            None => news.gap = true,
        }
    }
    if news.gap {
        *position = end(registry).await?;
        return Ok(News { gap: true, applied: applied(position), ..News::default() });
    }
    *position = Position { low, last: low, tail, ..Position::default() };
    news.applied = applied(position);
    Ok(news)
}

fn applied(position: &Position) -> Applied {
    Applied(position.low.to_string())
}

/// A change row that no trigger writes.
pub(super) async fn note(connection: &mut SqliteConnection, kind: &str, subject: &str) -> Result<()> {
    sqlx::query("INSERT INTO changes (kind, subject) VALUES (?1, ?2)")
        .bind(kind)
        .bind(subject)
        .execute(connection)
        .await
        .map_err(error::read)?;
    Ok(())
}

/// The end of what this transaction has changed: it is the only writer.
pub(super) async fn mark(connection: &mut SqliteConnection) -> Result<Mark> {
    let last =
        sqlx::query_scalar("SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'changes'), 0)");
    last.fetch_one(connection).await.map(Mark).map_err(error::read)
}
