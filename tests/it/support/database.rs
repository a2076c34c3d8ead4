//! Throwaway databases: a SQLite file for each test, a database in a shared Postgres server for each test.
//!
//! The server. nextest runs each test in a process of its own, so the server belongs to none of them: the first test that
//! needs one starts it, the others find it, and a small shell that runs beside it stops it once no test has used it for
//! 30 seconds. All of them agree by file locks, which the kernel frees whatever becomes of a process:
//!
//! - `lock`, exclusive: who starts, finds or stops the server;
//! - `users`, shared, for as long as a test process lives: while anybody has it the server stays.
//!
//! Everything is in one directory below the system's temporary one. A pristine cluster stays there, and each start is on a
//! copy of it: making one takes longer, and so does dropping the databases of an earlier run. The server listens on a free port of 127.0.0.1, trusts
//! everybody and does not sync: its files are worth nothing. Needs Postgres's programs (Debian: `postgresql`) in
//! `/usr/lib/postgresql/*/bin` or the PATH; as root, `runuser` and a user `postgres`, because Postgres refuses root.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use doorward::registry::{Access, DatabaseUrl, Registry, connect};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool, SqlitePool};

/// A registry on a database of its own, and the database's SQL door.
pub(crate) struct Database {
    pub(crate) registry: Arc<dyn Registry>,
    pub(crate) url: DatabaseUrl,
    pub(crate) sql: Sql,
    _directory: Option<tempfile::TempDir>,
}

/// The door that an operator's own SQL uses.
pub(crate) enum Sql {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

impl Database {
    /// Empty: no schema.
    pub(crate) async fn bare_sqlite() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("registry.db");
        let url = DatabaseUrl::parse(&format!("sqlite://{}", path.display())).unwrap();
        let registry = connect(&url, Access::Create).unwrap();
        let sql = Sql::Sqlite(SqlitePool::connect(&url.to_string()).await.unwrap());
        Self { registry, url, sql, _directory: Some(directory) }
    }

    /// Empty: no schema.
    pub(crate) async fn bare_postgres() -> Self {
        let url = fresh_postgres().await;
        let registry = connect(&DatabaseUrl::parse(&url).unwrap(), Access::Existing).unwrap();
        let pool = PgPool::connect(&format!("{url}?options=-c%20search_path%3Ddoorward")).await.unwrap();
        Self { registry, url: DatabaseUrl::parse(&url).unwrap(), sql: Sql::Postgres(pool), _directory: None }
    }

    /// With the schema.
    pub(crate) async fn sqlite() -> Self {
        Self::bare_sqlite().await.migrated().await
    }

    /// With the schema.
    pub(crate) async fn postgres() -> Self {
        Self::bare_postgres().await.migrated().await
    }

    async fn migrated(self) -> Self {
        self.registry.migrate().await.unwrap();
        self
    }

    /// Runs one statement as an operator would; the error's words if it fails.
    pub(crate) async fn execute(&self, sql: &str) -> Result<(), String> {
        let sql = AssertSqlSafe(sql.to_owned());
        match &self.sql {
            Sql::Sqlite(pool) => sqlx::raw_sql(sql).execute(pool).await.map(drop),
            Sql::Postgres(pool) => sqlx::raw_sql(sql).execute(pool).await.map(drop),
        }
        .map_err(|error| error.to_string())
    }

    /// A number that a query gives.
    pub(crate) async fn number(&self, sql: &str) -> i64 {
        let sql = AssertSqlSafe(sql.to_owned());
        match &self.sql {
            Sql::Sqlite(pool) => sqlx::query_scalar(sql).fetch_one(pool).await,
            Sql::Postgres(pool) => sqlx::query_scalar(sql).fetch_one(pool).await,
        }
        .unwrap()
    }

    /// The same database as a gateway reaches it: in Postgres by a login role that is a member of `doorward_gateway` and
    /// of nothing else.
    pub(crate) fn for_gateway(&self) -> Arc<dyn Registry> {
        match &self.sql {
            Sql::Sqlite(_) => Arc::clone(&self.registry),
            Sql::Postgres(_) => connect(&self.url_as("gateway"), Access::Existing).unwrap(),
        }
    }

    /// The URL for a login role of the server: `gateway`, `gateway_2`, `issuer`, `operator`, `auditor`, each a member of
    /// the role of the migrations that is called so; or `stranger`, a member of none.
    pub(crate) fn url_as(&self, role: &str) -> DatabaseUrl {
        let url = self.url.to_string();
        DatabaseUrl::parse(&url.replacen("postgres@", &format!("t_{role}@"), 1)).unwrap()
    }

    /// A connection of such a role.
    pub(crate) async fn connected_as(&self, role: &str) -> PgConnection {
        let url = format!("{}?options=-c%20search_path%3Ddoorward", self.url_as(role));
        PgConnection::connect(&url).await.unwrap()
    }

    /// Waits until every change is decided, that is below the snapshot's xmin. Tests share a server, and a transaction of
    /// any of them holds xmin back.
    pub(crate) async fn settled(&self) {
        let Sql::Postgres(_) = &self.sql else {
            return;
        };
        let undecided = "SELECT count(*) FROM changes, pg_current_snapshot() AS s
            WHERE xid >= pg_snapshot_xmin(s) AND xid < pg_snapshot_xmax(s)";
        for _ in 0..600 {
            if self.number(undecided).await == 0 {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("some test keeps a transaction open for half a minute");
    }

    /// The SQL door of a test that is about Postgres alone.
    pub(crate) fn pg(&self) -> &PgPool {
        match &self.sql {
            Sql::Postgres(pool) => pool,
            Sql::Sqlite(_) => panic!("this test is about Postgres"),
        }
    }
}

async fn fresh_postgres() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let port = Server::get().port;
    let name = format!("t_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let mut admin =
        PgConnection::connect(&format!("postgres://postgres@127.0.0.1:{port}/postgres")).await.unwrap();
    sqlx::raw_sql(LOGINS).execute(&mut admin).await.unwrap();
    // Process ids come again while the server stays.
    for sql in [format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"), format!("CREATE DATABASE {name}")] {
        sqlx::query(AssertSqlSafe(sql)).execute(&mut admin).await.unwrap();
    }
    format!("postgres://postgres@127.0.0.1:{port}/{name}")
}

/// Login roles belong to the whole server; what they are members of, the first migration would make. Other tests do the
/// same at the same time.
const LOGINS: &str = r#"
DO $$
DECLARE
    name text;
    ours text;
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 't_ready_2') THEN
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock(7260);
    FOREACH name IN ARRAY ARRAY['gateway', 'gateway_2', 'issuer', 'operator', 'auditor', 'stranger', 'ready_2'] LOOP
        ours := 'doorward_' || split_part(name, '_', 1);
        IF name NOT IN ('stranger', 'ready_2') AND NOT EXISTS (SELECT FROM pg_roles WHERE rolname = ours) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', ours);
        END IF;
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 't_' || name) THEN
            EXECUTE format('CREATE ROLE %I LOGIN', 't_' || name);
        END IF;
        IF name NOT IN ('stranger', 'ready_2') THEN
            EXECUTE format('GRANT %I TO %I', ours, 't_' || name);
        END IF;
    END LOOP;
END $$"#;

/// The shared server, for as long as this process lives.
struct Server {
    port: u16,
    _user: File,
}

impl Server {
    fn get() -> &'static Self {
        static SERVER: OnceLock<Server> = OnceLock::new();
        SERVER.get_or_init(Self::find_or_start)
    }

    fn find_or_start() -> Self {
        let place = std::env::temp_dir().join(format!("doorward-test-postgres-{}", uid()));
        std::fs::create_dir_all(&place).unwrap();
        // Postgres's own user has to pass.
        std::fs::set_permissions(&place, PermissionsExt::from_mode(0o755)).unwrap();
        let lock = open(&place.join("lock"));
        lock.lock().unwrap();
        let user = open(&place.join("users"));
        user.lock_shared().unwrap();
        let port = running(&place).unwrap_or_else(|| start(&place));
        Self { port, _user: user }
    }
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// The port of the server that runs already.
fn running(place: &Path) -> Option<u16> {
    let mut text = String::new();
    File::open(place.join("port")).ok()?.read_to_string(&mut text).ok()?;
    let port = text.trim().parse().ok()?;
    // A free port may be somebody else's by now; the lock file of the data directory names the port too.
    let lines = std::fs::read_to_string(place.join("data/postmaster.pid")).ok()?;
    (lines.lines().nth(3)? == text.trim()).then_some(())?;
    TcpStream::connect(("127.0.0.1", port)).ok().map(|_| port)
}

fn start(place: &Path) -> u16 {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut shell = Command::new("sh");
    shell
        .args(["-c", SUPERVISOR, "supervisor"])
        .arg(place)
        .arg(programs())
        .arg(port.to_string())
        .arg(if uid() == 0 { "runuser -u postgres --" } else { "" })
        // In a group of its own: who stops a test does not stop the server of the others.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    assert!(shell.status().unwrap().success());
    for _ in 0..1200 {
        std::thread::sleep(std::time::Duration::from_millis(50));
        if place.join("ready").exists() {
            return port;
        }
        if place.join("failed").exists() {
            break;
        }
    }
    let log = std::fs::read_to_string(place.join("log")).unwrap_or_default();
    panic!("the test server did not start; {}:\n{log}", place.join("log").display());
}

/// Starts the server, then waits until nobody has held `users` for 30 seconds, and stops it. The starter holds `lock`.
/// In the background: the shell returns at once, and what it leaves is init's child.
const SUPERVISOR: &str = r#"
place=$1 bin=$2 port=$3 as=$4
cd /
rm -f "$place/ready" "$place/failed" "$place/port"
{
trap 'touch "$place/failed"' EXIT
run() { $as "$@"; }
start() {
    run "$bin/pg_ctl" -D "$place/data" -w -t 50 -l "$place/data/server.log" -o "-p $port -c listen_addresses=127.0.0.1 \
        -c unix_socket_directories='' -c fsync=off -c full_page_writes=off -c max_connections=300 \
        -c max_prepared_transactions=8 -c shared_buffers=64MB -c autovacuum=off -c log_min_messages=fatal" start
}
# Made once, and copied at each start: to drop what hundreds of tests have left would take a minute.
pristine() {
    version=$("$bin/postgres" --version)
    [ "$(cat "$place/pristine/made" 2>/dev/null)" = "$version" ] && return
    rm -rf "$place/pristine" && mkdir "$place/pristine" && chmod 700 "$place/pristine" || exit 1
    [ -z "$as" ] || chown postgres "$place/pristine" || exit 1
    run "$bin/initdb" -D "$place/pristine" -U postgres -A trust -E UTF8 --locale=C.UTF-8 --no-sync || exit 1
    echo "$version" >"$place/pristine/made"
}
# What a run that was cut off has left.
[ ! -f "$place/data/postmaster.pid" ] || run "$bin/pg_ctl" -D "$place/data" -m immediate stop
pristine
# A server that was stopped in a hurry may still write for a moment.
for _ in 1 2 3 4 5 6 7 8 9 10; do rm -rf "$place/data" && break; sleep 1; done
[ ! -e "$place/data" ] && cp -a "$place/pristine" "$place/data" || exit 1
start || { cat "$place/data/server.log"; exit 1; }
echo "$port" >"$place/port"
touch "$place/ready"
trap - EXIT
idle=0
while sleep 3; do
    if flock -n -x "$place/users" true; then idle=$((idle + 3)); else idle=0; fi
    [ $idle -ge 30 ] || continue
    # Nobody can come in between: who comes takes `lock` first.
    exec 9>"$place/lock"; flock -x 9
    if flock -n -x "$place/users" true; then
        rm -f "$place/port" "$place/ready"
        run "$bin/pg_ctl" -D "$place/data" -m fast stop 9>&-
        exit 0
    fi
    exec 9>&-
    idle=0
done
} >"$place/log" 2>&1 &
"#;

/// Where `initdb`, `pg_ctl` and `psql` are: the newest version that is installed.
fn programs() -> PathBuf {
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let version = |path: &Path| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
    let newest =
        installed.map(|entry| entry.path()).max_by_key(|path| version(path)).map(|path| path.join("bin"));
    let in_path = std::env::var_os("PATH").unwrap_or_default();
    newest
        .into_iter()
        .chain(std::env::split_paths(&in_path))
        .find(|directory| directory.join("initdb").exists())
        .expect("Postgres is not installed; on Debian: apt-get install postgresql")
}

pub(crate) fn uid() -> u32 {
    std::fs::metadata("/proc/self").map(|me| me.uid()).unwrap()
}
