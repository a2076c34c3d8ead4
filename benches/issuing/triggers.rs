//! Takes the triggers of the feed and the audit away, and puts them back as they were.

use anyhow::{Result, ensure};
use doorward::registry::DatabaseUrl;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, SqliteConnection};

/// Whose triggers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    /// Those that append to `changes`.
    Feed,
    /// And those that append to `audit`.
    Both,
}

/// The operator's SQL door.
pub(crate) enum Door {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Door {
    pub(crate) async fn open(url: &DatabaseUrl) -> Result<Self> {
        let url = url.to_string();
        if url.starts_with("sqlite") {
            return Ok(Self::Sqlite(SqliteConnection::connect(&url).await?));
        }
        let mut connection = PgConnection::connect(&url).await?;
        sqlx::query("SET search_path = doorward").execute(&mut connection).await?;
        Ok(Self::Postgres(connection))
    }

    /// The statements that undo it.
    pub(crate) async fn silence(&mut self, of: Of) -> Result<Vec<String>> {
        let both = of == Of::Both;
        // How to take each away, and how to put it back.
        let found: Vec<(String, String)> = match self {
            Self::Sqlite(connection) => {
                sqlx::query_as(
                    r"SELECT 'DROP TRIGGER ' || name, sql FROM sqlite_schema
                      WHERE type = 'trigger' AND (name LIKE '%\_note\_%' ESCAPE '\' OR ?1 AND name LIKE '%\_audit\_%' ESCAPE '\')",
                )
                .bind(both)
                .fetch_all(connection)
                .await?
            }
            Self::Postgres(connection) => {
                sqlx::query_as(
                    "SELECT format('ALTER TABLE %s DISABLE TRIGGER %I', tgrelid::regclass, tgname),
                            format('ALTER TABLE %s ENABLE TRIGGER %I', tgrelid::regclass, tgname)
                     FROM pg_trigger JOIN pg_class c ON c.oid = tgrelid
                     WHERE c.relnamespace = 'doorward'::regnamespace AND NOT tgisinternal
                         AND (tgname ~ '^note_' OR $1 AND tgname ~ '^stage')",
                )
                .bind(both)
                .fetch_all(connection)
                .await?
            }
        };
        ensure!(found.len() > 10, "the triggers are not called what they were: {found:?}");
        let (away, back): (Vec<String>, Vec<String>) = found.into_iter().unzip();
        self.restore(away).await?;
        Ok(back)
    }

    pub(crate) async fn restore(&mut self, statements: Vec<String>) -> Result<()> {
        let sql = AssertSqlSafe(format!("BEGIN; {}; COMMIT", statements.join("; ")));
        match self {
            Self::Sqlite(connection) => sqlx::raw_sql(sql).execute(connection).await.map(drop)?,
            Self::Postgres(connection) => sqlx::raw_sql(sql).execute(connection).await.map(drop)?,
        }
        Ok(())
    }
}
