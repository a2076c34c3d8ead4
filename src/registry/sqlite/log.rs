//! SQLite's write-ahead log is copied into the database beside the transactions, not within one: a checkpoint of some megabytes
//! takes tens of milliseconds, and everybody who waits for that commit would wait for it too.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Row};
use tokio::sync::Mutex;
use tracing::debug;

use super::OpenFile;

/// Pages at which the connection that commits copies the log itself (`PRAGMA wal_autocheckpoint`): where there is no gateway,
/// and where a gateway's own copying does not keep up. 32 MiB.
pub(super) const MOST_PAGES: &str = "8192";
/// About so much is written before the log is copied.
const DUE: usize = 4 << 20;
/// Pages that any transaction changes, of tables and indexes.
const A_TRANSACTION: usize = 6 * 4096;
/// What is written while it is copied is copied after it, so often: the log begins anew when nothing is left of it.
const ROUNDS: usize = 3;

/// What has been written since, and the connection that copies it.
#[derive(Debug)]
pub(super) struct Log {
    options: SqliteConnectOptions,
    written: AtomicUsize,
    open: Mutex<Option<SqliteConnection>>,
}

impl Log {
    pub(super) fn new(options: SqliteConnectOptions) -> Self {
        Self { options, written: AtomicUsize::new(0), open: Mutex::new(None) }
    }

    /// Opens the connection, if it is not open.
    pub(super) async fn open(&self) -> Result<(), sqlx::Error> {
        self.connection(&mut *self.open.lock().await).await.map(drop)
    }

    async fn connection<'a>(
        &self,
        open: &'a mut Option<SqliteConnection>,
    ) -> Result<&'a mut SqliteConnection, sqlx::Error> {
        match open {
            Some(connection) => Ok(connection),
            None => Ok(open.insert(self.options.connect().await?)),
        }
    }

    /// Copies all that can be copied without waiting for anybody.
    async fn copy(&self) {
        let mut open = self.open.lock().await;
        for _ in 0..ROUNDS {
            match self.copy_once(&mut open).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => {
                    // Whoever commits does it, when the log is long enough.
                    debug!(%error, "the registry's log is not copied into it now");
                    *open = None;
                    break;
                }
            }
        }
        self.written.store(0, Ordering::Relaxed);
    }

    /// Whether nothing is left that is not copied.
    async fn copy_once(&self, open: &mut Option<SqliteConnection>) -> Result<bool, sqlx::Error> {
        let connection = self.connection(open).await?;
        let row = sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").fetch_one(connection).await?;
        Ok(row.try_get::<i64, _>("log")? == row.try_get::<i64, _>("checkpointed")?)
    }
}

impl OpenFile {
    /// A transaction with so much text was committed.
    pub(super) fn wrote(self: Arc<Self>, text: usize) {
        let bytes = A_TRANSACTION + text;
        let before = self.log.written.fetch_add(bytes, Ordering::Relaxed);
        if before < DUE && before + bytes >= DUE {
            tokio::spawn(async move { self.log.copy().await });
        }
    }
}
