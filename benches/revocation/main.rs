//! How long after the commit of a revocation the device's connection is closed, while a fleet publishes.
//!
//! `cargo bench --bench revocation -- --help`. docs/performance.md says what each figure means.

#[path = "../common/frame.rs"]
mod frame;
#[path = "../common/server.rs"]
#[expect(dead_code, reason = "the other benchmark uses the rest")]
mod server;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use device_sim::{Plan, Scenario};
use doorward::clock;
use doorward::registry::{Access, Act, DatabaseUrl, connect};
use doorward_client::connection::{Connection, Dial, Incoming};
use doorward_client::target::Target;
use doorward_client::{Credentials, tls};
use doorward_proto::link::{Bounds, Link};
use sqlx::{Connection as _, PgConnection, SqliteConnection};
use tokio::task::JoinSet;

use frame::say;
use server::{Cores, Server};

/// For a connection, and for a close.
const WITHIN: Duration = Duration::from_secs(30);
/// Between two revocations: each is to be a wake-up of its own.
const PAUSE: Duration = Duration::from_millis(20);

/// Measures from a revocation's commit to the end of the device's connection.
#[derive(Parser, Debug)]
#[command(name = "revocation")]
struct Options {
    /// Devices that publish meanwhile
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=8000))]
    connections: u32,
    /// Their messages a second, all together
    #[arg(long, default_value_t = 2000.0)]
    rate: f64,
    /// Devices revoked one by one
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=2000))]
    one_by_one: u32,
    /// Devices revoked in one statement
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=4000))]
    at_once: u32,
    /// A Postgres in place of SQLite; the devices stay in it
    #[arg(long, value_name = "URL")]
    postgres: Option<String>,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    frame::main("revocation", async |options: Options| run(&options).await)
}

async fn run(options: &Options) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let home = folder.path().join("home");
    let database = options.postgres.clone();
    let url = match &database {
        Some(url) => DatabaseUrl::parse(url)?,
        None => DatabaseUrl::file(&home.join("registry.db")),
    };
    say("preparing a home and its devices");
    server::prepare(&home, database.as_deref())?;
    let tag = fastrand::u32(..);
    let issue =
        |name: &str, count: u32| issue(&home, database.as_deref(), &format!("{name}-{tag:08x}-"), count);
    let (fleet, singles, mass) = (
        issue("load", options.connections)?,
        issue("one", options.one_by_one)?,
        issue("mass", options.at_once)?,
    );
    let server = Server::gateway(&home, database.as_deref(), Cores::Shared).await?;
    let registry = connect(&url, Access::Existing)?;

    say("connecting");
    let mut plan = Plan::new(fleet, &server.url, Scenario::Steady);
    plan.rate = Some(options.rate).filter(|rate| *rate > 0.0);
    plan.duration = Duration::from_secs(600);
    let cancel = plan.cancel.clone();
    let load = tokio::spawn(device_sim::run(plan));
    let singles = watch(&singles, &server).await?;
    let mass = watch(&mass, &server).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;

    say("revoking");
    let mut each = Vec::new();
    for watched in singles {
        registry.set_status(watched.credentials.device(), Act::Revoke, Some("benchmark")).await?;
        let committed = clock::now().monotonic;
        each.push(watched.closed_after(committed).await?);
        tokio::time::sleep(PAUSE).await;
    }
    let pattern = format!("mass-{tag:08x}-%");
    let sql = "UPDATE devices SET status = 'revoked', reason = 'benchmark' WHERE id LIKE $1";
    match &database {
        Some(url) => {
            let mut connection = PgConnection::connect(url).await?;
            sqlx::query("SET search_path = doorward").execute(&mut connection).await?;
            sqlx::query(sql).bind(&pattern).execute(&mut connection).await?;
        }
        None => {
            let mut connection = SqliteConnection::connect(&url.to_string()).await?;
            sqlx::query(sql).bind(&pattern).execute(&mut connection).await?;
        }
    }
    let committed = clock::now().monotonic;
    let mut waiting: JoinSet<Result<Duration>> =
        mass.into_iter().map(|watched| watched.closed_after(committed)).collect();
    let mut all = Vec::new();
    while let Some(closed) = waiting.join_next().await {
        all.push(closed??);
    }
    cancel.cancel();
    let report = load.await??;
    ensure!(report.messages.lost == 0, "messages were lost: {:?}", report.failures);
    let backend = if database.is_some() { "Postgres" } else { "SQLite" };
    let [p50, p99, max] = quantiles(&mut each);
    let [_, _, last] = quantiles(&mut all);
    writeln!(
        std::io::stdout(),
        "| {backend} | {} | {:.0} | {p50:.1} | {p99:.1} | {max:.1} | {} in {last:.0} |",
        options.connections,
        report.messages.per_second,
        options.at_once
    )?;
    Ok(())
}

/// In ms: median, 99th percentile and longest.
fn quantiles(times: &mut [Duration]) -> [f64; 3] {
    times.sort_unstable();
    let at = |share: usize| times.get((times.len() * share / 100).min(times.len().saturating_sub(1)));
    [50, 99, 100].map(|share| at(share).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3))
}

fn issue(home: &Path, database: Option<&str>, prefix: &str, count: u32) -> Result<Vec<Credentials>> {
    let file: PathBuf = home.join(format!("{prefix}.jsonl"));
    let output = server::doorward(home, database)
        .args(["device", "add", "--count", &count.to_string(), "--prefix", prefix, "--out"])
        .arg(&file)
        .output()?;
    ensure!(output.status.success(), "device add: {}", String::from_utf8_lossy(&output.stderr));
    device_sim::fleet::load(&file).context("what was issued")
}

/// A device with a proven session, which says nothing more.
struct Watched {
    credentials: Credentials,
    connection: Connection,
}

impl Watched {
    /// How long after a moment the connection has ended, to its last byte.
    async fn closed_after(mut self, committed: Duration) -> Result<Duration> {
        let ended = async { while self.connection.receive().await.is_ok() {} };
        tokio::time::timeout(WITHIN, ended).await.context("a revoked device goes on")?;
        Ok(clock::now().monotonic.saturating_sub(committed))
    }
}

async fn watch(fleet: &[Credentials], server: &Server) -> Result<Vec<Watched>> {
    let mut all = Vec::new();
    let target = Arc::new(Target::parse(&server.url)?);
    for credentials in fleet {
        let dial = Dial {
            tls: tls::configuration(credentials.identity())?,
            target: Arc::clone(&target),
            address: None,
            local: None,
            key: None,
            within: WITHIN,
            max_message_bytes: Bounds::default().max_message_bytes,
        };
        let mut connection = dial.connect().await?;
        let mut link = Link::new(credentials.device().clone(), credentials.keyring(), Bounds::default());
        while link.welcome().is_none() {
            if let Incoming::Text(text) = connection.receive().await? {
                link.receive(text.as_str(), clock::now())?;
            }
        }
        // Its hello, which proves the session.
        while let Some(frame) = link.transmit(clock::now()) {
            connection.feed(frame).await?;
        }
        connection.flush().await?;
        all.push(Watched { credentials: credentials.clone(), connection });
    }
    Ok(all)
}
