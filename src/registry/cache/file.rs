//! The copy's SQLite file.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use doorward_pki::Fingerprint;
use doorward_proto::ids::{DeviceId, FleetId};
use doorward_proto::time::NumericDate;
use serde_json::json;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, Row as _};

use super::super::Position;
use super::entry::Entry;
use super::{Forgotten, Known, News};
use crate::home::{self, FileError, SECRET};

/// Of the layout below; a file of another one is made anew.
const VERSION: i64 = 4;
/// Records in the file; the oldest make room for new ones.
const MOST_RECORDS: i64 = 200_000;

const LAYOUT: &str = "
    CREATE TABLE records (
        fingerprint TEXT PRIMARY KEY, device TEXT NOT NULL, fleet TEXT NOT NULL, rest TEXT NOT NULL
    ) STRICT;
    CREATE INDEX records_device ON records (device);
    CREATE INDEX records_fleet ON records (fleet);
    CREATE TABLE fleets (fleet TEXT PRIMARY KEY, policy TEXT NOT NULL, limits TEXT NOT NULL, schemas TEXT NOT NULL) STRICT;
    CREATE TABLE known (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        registry TEXT NOT NULL,
        position TEXT,
        known_at INTEGER NOT NULL DEFAULT 0,
        max_staleness INTEGER NOT NULL DEFAULT 0,
        signed_off INTEGER NOT NULL DEFAULT 1
    ) STRICT;
    PRAGMA user_version = 4;
";

pub(super) struct File(SqliteConnection);

impl File {
    /// Opens the file of a registry; `None` where it is not there, cannot be read or is another registry's.
    pub(super) async fn open(path: &Path, registry: &str) -> Option<Self> {
        let mut file = Self::connect(path).await.ok()?;
        match file.is_of(registry).await {
            Ok(true) => Some(file),
            _ => {
                file.close().await;
                None
            }
        }
    }

    /// Makes the file, which is not there.
    pub(super) async fn create(path: &Path, registry: &str) -> Result<Self, sqlx::Error> {
        std::fs::OpenOptions::new().write(true).create_new(true).mode(SECRET).open(path)?;
        let mut file = Self::connect(path).await?;
        let mut transaction = file.0.begin().await?;
        sqlx::raw_sql(LAYOUT).execute(&mut *transaction).await?;
        sqlx::query("INSERT INTO known (one, registry) VALUES (1, ?1)")
            .bind(registry)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(file)
    }

    async fn connect(path: &Path) -> Result<Self, sqlx::Error> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(false)
            .journal_mode(SqliteJournalMode::Wal)
            // Nobody else opens it: who waits here keeps others waiting.
            .busy_timeout(Duration::from_millis(500))
            // What has been confirmed as forgotten is forgotten, whenever the power goes.
            .synchronous(SqliteSynchronous::Full)
            .disable_statement_logging();
        Ok(Self(options.connect().await?))
    }

    async fn is_of(&mut self, registry: &str) -> Result<bool, sqlx::Error> {
        let version: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut self.0).await?;
        if version != VERSION {
            return Ok(false);
        }
        let ours: String = sqlx::query_scalar("SELECT registry FROM known").fetch_one(&mut self.0).await?;
        Ok(ours == registry)
    }

    pub(super) async fn close(self) {
        // What has been committed is in the file; whatever else there was is not wanted.
        let _ = self.0.close().await;
    }

    pub(super) async fn known(&mut self) -> Result<Option<Known>, sqlx::Error> {
        let row = sqlx::query("SELECT position, known_at, max_staleness, signed_off FROM known")
            .fetch_one(&mut self.0)
            .await?;
        let position: Option<String> = row.try_get("position")?;
        let known_at: i64 = row.try_get("known_at")?;
        let max_staleness: i64 = row.try_get("max_staleness")?;
        let signed_off = row.try_get("signed_off")?;
        let position = position.and_then(|text| serde_json::from_str(&text).ok());
        Ok(position.map(|(low, seen, last, tail)| Known {
            position: Position { low, seen, last, tail },
            known_at: NumericDate::since_epoch(Duration::from_millis(u64::try_from(known_at).unwrap_or(0))),
            max_staleness: Duration::from_millis(u64::try_from(max_staleness).unwrap_or(0)),
            signed_off,
        }))
    }

    pub(super) async fn find(&mut self, certificate: &Fingerprint) -> Result<Option<Entry>, sqlx::Error> {
        let row = sqlx::query(
            "SELECT r.device, r.fleet, r.rest, f.policy, f.limits, f.schemas FROM records r JOIN fleets f ON f.fleet = r.fleet
             WHERE r.fingerprint = ?1",
        )
        .bind(certificate.to_string())
        .fetch_optional(&mut self.0)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let ids = (
            DeviceId::new(row.try_get::<&str, _>("device")?),
            FleetId::new(row.try_get::<&str, _>("fleet")?),
        );
        let (Ok(device), Ok(fleet)) = ids else { return Ok(None) };
        let text = |column| row.try_get::<&str, _>(column).map(Arc::from);
        Ok(Some(Entry {
            device,
            fleet,
            rest: row.try_get("rest")?,
            policy: text("policy")?,
            limits: text("limits")?,
            schemas: text("schemas")?,
        }))
    }

    pub(super) async fn write(&mut self, news: &News, known: Option<&Known>) -> Result<(), sqlx::Error> {
        if known.is_none() && self.known().await?.is_none() {
            // Nobody could say up to where these are right.
            return Ok(());
        }
        let mut transaction = self.0.begin_with("BEGIN IMMEDIATE").await?;
        forget(&mut transaction, &news.forgotten).await?;
        if !news.records.is_empty() {
            add(&mut transaction, news).await?;
        }
        if let Some(Known {
            position: Position { low, seen, last, tail },
            known_at,
            max_staleness,
            signed_off,
        }) = known
        {
            sqlx::query("UPDATE known SET position = ?1, known_at = ?2, signed_off = ?3, max_staleness = ?4")
                .bind(json!([low, seen, last, tail]).to_string())
                .bind(known_at.as_millis())
                .bind(signed_off)
                .bind(i64::try_from(max_staleness.as_millis()).unwrap_or(i64::MAX))
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await
    }

    pub(super) async fn set_signed_off(&mut self, signed_off: bool) -> Result<(), sqlx::Error> {
        sqlx::query("UPDATE known SET signed_off = ?1").bind(signed_off).execute(&mut self.0).await?;
        Ok(())
    }
}

async fn forget(connection: &mut SqliteConnection, forgotten: &Forgotten) -> Result<(), sqlx::Error> {
    if forgotten.all {
        sqlx::raw_sql("DELETE FROM records; DELETE FROM fleets").execute(connection).await?;
        return Ok(());
    }
    if !forgotten.devices.is_empty() {
        let devices: Vec<&str> = forgotten.devices.iter().map(DeviceId::as_str).collect();
        sqlx::query("DELETE FROM records WHERE device IN (SELECT value FROM json_each(?1))")
            .bind(json!(devices))
            .execute(&mut *connection)
            .await?;
    }
    if !forgotten.fleets.is_empty() {
        let fleets: Vec<&str> = forgotten.fleets.iter().map(FleetId::as_str).collect();
        for table in [
            "DELETE FROM records WHERE fleet IN (SELECT value FROM json_each(?1))",
            "DELETE FROM fleets WHERE fleet IN (SELECT value FROM json_each(?1))",
        ] {
            sqlx::query(table).bind(json!(fleets)).execute(&mut *connection).await?;
        }
    }
    Ok(())
}

/// What is so already costs no write.
async fn add(connection: &mut SqliteConnection, news: &News) -> Result<(), sqlx::Error> {
    let records: Vec<_> = news
        .records
        .iter()
        .map(|(certificate, entry)| json!([certificate.to_string(), entry.device, entry.fleet, entry.rest]))
        .collect();
    sqlx::query(
        "INSERT INTO records (fingerprint, device, fleet, rest)
         SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?1) WHERE true
         ON CONFLICT (fingerprint) DO UPDATE SET device = excluded.device, fleet = excluded.fleet, rest = excluded.rest
         WHERE device <> excluded.device OR fleet <> excluded.fleet OR rest <> excluded.rest",
    )
    .bind(json!(records))
    .execute(&mut *connection)
    .await?;
    let fleets: HashMap<_, _> = news.records.values().map(|entry| (&entry.fleet, entry)).collect();
    for (fleet, entry) in fleets {
        sqlx::query(
            "INSERT INTO fleets (fleet, policy, limits, schemas) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (fleet) DO UPDATE SET policy = excluded.policy, limits = excluded.limits, schemas = excluded.schemas
             WHERE policy <> excluded.policy OR limits <> excluded.limits OR schemas <> excluded.schemas",
        )
        .bind(fleet.as_str())
        .bind(&*entry.policy)
        .bind(&*entry.limits)
        .bind(&*entry.schemas)
        .execute(&mut *connection)
        .await?;
    }
    sqlx::query(
        "DELETE FROM records WHERE rowid IN (
             SELECT rowid FROM records ORDER BY rowid LIMIT max(0, (SELECT count(*) FROM records) - ?1)
         )",
    )
    .bind(MOST_RECORDS)
    .execute(connection)
    .await?;
    Ok(())
}

/// Removes the file and what SQLite keeps beside it.
pub(super) fn remove(path: &Path) -> Result<(), FileError> {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        let path = PathBuf::from(name);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(FileError::Io { act: "remove", path, source });
            }
            _ => {}
        }
    }
    // Or it might be back after the power has gone.
    home::sync_folder(path).map_err(|source| FileError::Io { act: "remove", path: path.to_owned(), source })
}
