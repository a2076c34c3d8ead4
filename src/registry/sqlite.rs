//! The registry in one SQLite file, for one box.
//!
//! One writer connection: who waits, waits in its pool's queue and not in SQLite's busy handler. Readers have their own.

mod admission;
mod audit;
mod certificates;
mod crl;
mod custody;
mod devices;
mod error;
mod events;
mod feed;
mod fleets;
mod gateways;
mod insight;
mod keys;
mod log;
mod quarantine;
mod renewals;
mod rotations;
mod rows;
mod schema;
mod store;

use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use doorward_pki::Fingerprint;
use doorward_proto::ids::{DeviceId, FleetId};
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection, Transaction};
use time::OffsetDateTime;

use super::audit::os_user;
use super::shared::{ATTEMPTS, Phase, within};
use super::{
    Access, Act, Acted, Applied, AuditFilter, AuditHead, AuditRow, Batch, CertificateFilter,
    CertificateRecord, ChangeText, DeviceDetail, DeviceFilter, DeviceSummary, Done, Enrolment, EventFilter,
    Fate, Fleet, GatewayStatus, IssuerUse, Mark, MessageFilter, NewCertificate, NewCrl, NewDevice, NewKey,
    News, NumberedCrl, OPERATOR_DEADLINE, Position, Presence, QUERY_DEADLINE, Records, Registry,
    RegistryError, Renewal, Result, RevokedCertificate, RevokedCertificates, RevokedFilter, Rotations,
    StoredEvent, StoredMessage,
};

const READERS: u32 = 4;
/// Another process may hold the write lock this long. Shorter than the deadline, so that the error says why.
const BUSY: Duration = Duration::from_millis(4500);

/// Between tries to make the schema.
const RETRY: Duration = Duration::from_millis(100);

/// A registry in a SQLite file.
#[derive(Debug)]
pub struct Sqlite {
    path: PathBuf,
    file: ArcSwap<OpenFile>,
    /// Who acts, as operators' transactions claim.
    actor: String,
    place: String,
}

/// The connections to a file, and which file it was.
#[derive(Debug)]
struct OpenFile {
    /// Device and inode; `None` where there was none yet.
    id: Option<(u64, u64)>,
    writer: SqlitePool,
    readers: SqlitePool,
    watch: feed::Watch,
    log: log::Log,
}

impl Sqlite {
    /// A registry in the file at `path`, which is opened when it is first asked. With [`Access::Create`] a file that is
    /// not there is made, readable by its owner alone; SQLite gives its `-wal` and `-shm` files the same mode.
    ///
    /// # Errors
    /// [`RegistryError::Unavailable`] where there is no file, or none can be made.
    pub fn open(path: &Path, access: Access) -> Result<Self> {
        find(path, access)?;
        Ok(Self {
            path: path.to_owned(),
            file: ArcSwap::from_pointee(OpenFile::new(path, id_of(path).ok())),
            actor: os_user(),
            place: path.display().to_string(),
        })
    }

    /// The connections to the file that has the name now. A backup that was put into its place is another file: whoever
    /// went on with the old one would write where nobody reads.
    fn current(&self) -> Result<Arc<OpenFile>> {
        let id = id_of(&self.path).map_err(|error| missing(&self.path, &error))?;
        let file = self.file.load_full();
        if file.id == Some(id) {
            return Ok(file);
        }
        if file.id.is_some() {
            tracing::warn!(path = %self.path.display(), "another file has the registry's name; it is read afresh");
        }
        let file = Arc::new(OpenFile::new(&self.path, Some(id)));
        let old = self.file.swap(Arc::clone(&file));
        tokio::spawn(async move { tokio::join!(old.writer.close(), old.readers.close()) });
        Ok(file)
    }

    async fn reader(&self) -> Result<PoolConnection<sqlx::Sqlite>> {
        self.current()?.readers.acquire().await.map_err(error::read)
    }

    /// The write lock is taken at once: a transaction that first reads and then wants to write could be refused half-way.
    async fn begin(&self) -> Result<Transaction<'static, sqlx::Sqlite>> {
        self.current()?.writer.begin_with("BEGIN IMMEDIATE").await.map_err(error::read)
    }
}

impl OpenFile {
    fn new(path: &Path, id: Option<(u64, u64)>) -> Self {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(false)
            .foreign_keys(true)
            .busy_timeout(BUSY)
            .disable_statement_logging();
        let read_only = options.clone().read_only(true);
        // What a transaction has changed and its cache does not hold is written twice; 500 devices change up to 11 MB.
        let durable = options
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .pragma("wal_autocheckpoint", log::MOST_PAGES)
            .pragma("cache_size", "-16384");
        // A full disk or an I/O error makes SQLite roll back by itself; the driver's own ROLLBACK then fails, and it counts
        // that connection as inside a transaction for ever. Such a one is closed, and the next caller has a fresh one.
        let pool = |connections| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(QUERY_DEADLINE)
                // A file does not hang up, and a connection that is closed may find no descriptor when it is wanted again.
                .idle_timeout(None)
                .max_lifetime(None)
                .before_acquire(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }))
        };
        Self {
            id,
            log: log::Log::new(durable.clone()),
            writer: pool(1).connect_lazy_with(durable),
            readers: pool(READERS).connect_lazy_with(read_only.clone()),
            watch: feed::Watch::new(read_only),
        }
    }

    /// Opens all that a gateway needs of it, its log (`-wal`, `-shm`) with it: they stay open, and so a process that has run out
    /// of descriptors still has its registry.
    async fn open_all(&self) -> Result<(), sqlx::Error> {
        // Held together, else one connection would answer every time.
        let mut readers = Vec::new();
        for _ in 0..READERS {
            let mut reader = self.readers.acquire().await?;
            sqlx::query("SELECT count(*) FROM sqlite_schema").execute(&mut *reader).await?;
            readers.push(reader);
        }
        self.log.open().await?;
        self.watch.open().await
    }
}

fn id_of(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::metadata(path).map(|file| (file.dev(), file.ino()))
}

fn missing(path: &Path, error: &io::Error) -> RegistryError {
    let shown = path.display();
    RegistryError::Unavailable(match error.kind() {
        io::ErrorKind::NotFound => format!(
            "there is no database at {shown}; if its disk is not mounted, mount it; 'doorward init' makes a new one"
        ),
        _ => format!("{shown}: {error}"),
    })
}

fn find(path: &Path, access: Access) -> Result<()> {
    let shown = path.display();
    if path.is_dir() {
        return Err(RegistryError::Unavailable(format!(
            "{shown} is a folder, and a SQLite database is a file"
        )));
    }
    match access {
        Access::Expected => Ok(()),
        Access::Existing => id_of(path).map(drop).map_err(|error| missing(path, &error)),
        Access::Create => {
            match std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
                Ok(_) => Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
                Err(error) => {
                    Err(RegistryError::Unavailable(format!("the database {shown} cannot be made: {error}")))
                }
            }
        }
    }
}

#[async_trait]
impl Registry for Sqlite {
    fn place(&self) -> &str {
        &self.place
    }

    async fn migrate(&self) -> Result<Done> {
        let mut attempt = 1;
        loop {
            let phase = Phase::default();
            match phase.within(OPERATOR_DEADLINE, schema::migrate(self, &phase)).await {
                // Two that open a new file at once: the change to WAL waits for nobody, whatever the busy timeout says.
                Err(RegistryError::Unavailable(_)) if attempt < ATTEMPTS => attempt += 1,
                outcome => return outcome,
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn check_schema(&self) -> Result<()> {
        within(QUERY_DEADLINE, schema::check(self)).await
    }

    async fn excess_rights(&self) -> Result<Option<String>> {
        // Whoever may write the file may do everything.
        Ok(None)
    }

    async fn look_up_all(&self, certificates: &[Fingerprint]) -> Result<Records> {
        within(QUERY_DEADLINE, admission::look_up(self, certificates)).await
    }

    async fn position(&self) -> Result<Position> {
        within(QUERY_DEADLINE, feed::end(self)).await
    }

    async fn read_changes(&self, position: &mut Position) -> Result<News> {
        within(QUERY_DEADLINE, feed::read(self, position)).await
    }

    async fn changed(&self, patience: Duration) -> Result<()> {
        feed::changed(self, patience).await
    }

    async fn write(&self, batch: &Batch) -> Result<Vec<Fate>> {
        let phase = Phase::default();
        phase.within(QUERY_DEADLINE, store::write(self, &phase, batch)).await
    }

    async fn enrol(&self, gateway: &Enrolment) -> Result<()> {
        let file = self.current()?;
        within(QUERY_DEADLINE, async { file.open_all().await.map_err(error::read) }).await?;
        let phase = Phase::default();
        phase.within(QUERY_DEADLINE, gateways::enrol(self, &phase, gateway)).await
    }

    async fn report(&self, name: &str, instance: &str, applied: &Applied) -> Result<bool> {
        let phase = Phase::default();
        phase.within(QUERY_DEADLINE, gateways::report(self, &phase, name, instance, applied)).await
    }

    async fn sign_off(&self, name: &str, instance: &str) -> Result<()> {
        let phase = Phase::default();
        phase.within(QUERY_DEADLINE, gateways::sign_off(self, &phase, name, instance)).await
    }

    async fn remove_gateway(&self, name: &str) -> Result<()> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, gateways::remove(self, &phase, name)).await
    }

    async fn gateways(&self, mark: Option<Mark>) -> Result<Vec<GatewayStatus>> {
        within(OPERATOR_DEADLINE, gateways::list(self, mark)).await
    }

    async fn forget_sessions(&self, gateway: &str) -> Result<u64> {
        let phase = Phase::default();
        phase.within(QUERY_DEADLINE, store::forget_sessions(self, &phase, gateway)).await
    }

    async fn prune_messages(&self, before: OffsetDateTime, limit: u32) -> Result<u64> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, store::prune_messages(self, &phase, before, limit)).await
    }

    async fn prune_history(&self, before: OffsetDateTime, limit: u32) -> Result<u64> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, store::prune_history(self, &phase, before, limit)).await
    }

    async fn add_fleet(&self, id: &FleetId, policy: &str) -> Result<()> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, fleets::add(self, &phase, id, policy)).await
    }

    async fn fleets(&self) -> Result<Vec<Fleet>> {
        within(OPERATOR_DEADLINE, fleets::read(self, None)).await
    }

    async fn fleet(&self, id: &FleetId) -> Result<Option<Fleet>> {
        Ok(within(OPERATOR_DEADLINE, fleets::read(self, Some(id))).await?.pop())
    }

    async fn set_policy(&self, id: &FleetId, policy: &str) -> Result<Acted> {
        let phase = Phase::default();
        phase
            .within(
                OPERATOR_DEADLINE,
                fleets::set(self, &phase, id, fleets::Part::Policy, &|_| Ok(policy.to_owned())),
            )
            .await
    }

    async fn change_limits(&self, id: &FleetId, change: &ChangeText<'_>) -> Result<Acted> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, fleets::set(self, &phase, id, fleets::Part::Limits, change)).await
    }

    async fn change_schemas(&self, id: &FleetId, change: &ChangeText<'_>) -> Result<Acted> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, fleets::set(self, &phase, id, fleets::Part::Schemas, change)).await
    }

    async fn add_devices(&self, devices: &[NewDevice]) -> Result<()> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, devices::add(self, &phase, devices)).await
    }

    async fn known(&self, ids: &[DeviceId]) -> Result<Vec<(DeviceId, Vec<Fingerprint>)>> {
        within(OPERATOR_DEADLINE, devices::known(self, ids)).await
    }

    async fn devices(&self, filter: &DeviceFilter) -> Result<Vec<DeviceSummary>> {
        within(OPERATOR_DEADLINE, devices::list(self, filter)).await
    }

    async fn device(&self, id: &DeviceId) -> Result<Option<DeviceDetail>> {
        within(OPERATOR_DEADLINE, devices::detail(self, id)).await
    }

    async fn set_status(&self, id: &DeviceId, act: Act, reason: Option<&str>) -> Result<Acted> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, devices::set_status(self, &phase, id, act, reason)).await
    }

    async fn certificates(&self, filter: &CertificateFilter) -> Result<Vec<(DeviceId, CertificateRecord)>> {
        within(OPERATOR_DEADLINE, certificates::list(self, filter)).await
    }

    async fn issuers(&self, late: Duration) -> Result<Vec<IssuerUse>> {
        within(OPERATOR_DEADLINE, certificates::issuers(self, late)).await
    }

    async fn revoke_certificate(
        &self,
        certificate: &Fingerprint,
        reason: &str,
        only: bool,
    ) -> Result<RevokedCertificates> {
        let phase = Phase::default();
        let fingerprint = certificate.to_string();
        phase.within(OPERATOR_DEADLINE, certificates::revoke(self, &phase, &fingerprint, reason, only)).await
    }

    async fn number_crl(&self, crl: &NewCrl) -> Result<NumberedCrl> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, crl::number(self, &phase, crl)).await
    }

    async fn revoked(&self, filter: &RevokedFilter) -> Result<Vec<RevokedCertificate>> {
        within(OPERATOR_DEADLINE, crl::revoked(self, filter)).await
    }

    async fn add_certificate(
        &self,
        id: &DeviceId,
        certificate: &NewCertificate,
        renewal: &Renewal,
    ) -> Result<Acted> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, certificates::add(self, &phase, id, certificate, renewal)).await
    }

    async fn add_key(&self, id: &DeviceId, key: &NewKey) -> Result<Acted> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, keys::add(self, &phase, id, key)).await
    }

    fn rotations(&self) -> &dyn Rotations {
        self
    }

    async fn kick(&self, id: &DeviceId) -> Result<Acted> {
        let phase = Phase::default();
        phase.within(OPERATOR_DEADLINE, devices::kick(self, &phase, id)).await
    }

    async fn sessions(&self, fresh: OffsetDateTime) -> Result<Vec<Presence>> {
        within(OPERATOR_DEADLINE, devices::sessions(self, fresh)).await
    }

    async fn audit(&self, filter: &AuditFilter) -> Result<Vec<AuditRow>> {
        within(OPERATOR_DEADLINE, audit::rows(self, filter)).await
    }

    async fn audit_head(&self) -> Result<AuditHead> {
        within(OPERATOR_DEADLINE, audit::head(self)).await
    }

    async fn messages(&self, filter: &MessageFilter) -> Result<Vec<StoredMessage>> {
        within(OPERATOR_DEADLINE, store::messages(self, filter)).await
    }

    async fn events(&self, filter: &EventFilter) -> Result<Vec<StoredEvent>> {
        within(OPERATOR_DEADLINE, events::list(self, filter)).await
    }
}
