//! What the rotation of every key, every certificate and the issuing CA does to a fleet that publishes meanwhile.
//!
//! `cargo bench --bench rotation -- --help`. docs/performance.md says what each figure means.

#[path = "../common/frame.rs"]
mod frame;
#[path = "../common/server.rs"]
#[expect(dead_code, reason = "the other benchmark uses the rest")]
mod server;

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use device_sim::{Laps, Latency, Plan, Scenario};
use doorward::clock;
use doorward_client::Renew;

use frame::say;
use server::{Cores, Server};

/// How long the fleet publishes before anything is rotated, after it has settled.
const BASELINE: Duration = Duration::from_secs(30);
/// How long a superseded certificate holds here: the old CA cannot go before.
const GRACE: Duration = Duration::from_secs(60);

/// Measures ack latencies of a fleet while all of its credentials are rotated, one kind after the other.
#[derive(Parser, Debug)]
#[command(name = "rotation")]
struct Options {
    /// Devices that publish meanwhile
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(20..=8000))]
    connections: u32,
    /// Their messages a second, all together
    #[arg(long, default_value_t = 1000.0)]
    rate: f64,
    /// Devices that are asked at once to renew do so within this time
    #[arg(long, default_value = "20s", value_parser = humantime::parse_duration)]
    spread: Duration,
    /// A Postgres in place of SQLite; the devices stay in it
    #[arg(long, value_name = "URL")]
    postgres: Option<String>,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    frame::main("rotation", async |options: Options| run(&options).await)
}

async fn run(options: &Options) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let home = folder.path().join("home");
    let database = options.postgres.as_deref();
    say("preparing a home and its devices");
    server::prepare(&home, database)?;
    let file = home.join("config.toml");
    let config = std::fs::read_to_string(&file)?;
    let (usual, short) = ("grace = \"7d\"", format!("grace = \"{}s\"", GRACE.as_secs()));
    ensure!(config.contains(usual), "config.toml has no {usual}");
    std::fs::write(&file, config.replace(usual, &short))?;
    let tag = format!("load-{:08x}", fastrand::u32(..));
    doorward(&home, database, &["fleet", "add", &tag]).await?;
    let lines = home.join("fleet.jsonl");
    let (count, prefix, out) =
        (options.connections.to_string(), format!("{tag}-"), lines.display().to_string());
    let words = ["device", "add", "--count", &count, "--prefix", &prefix, "--fleet", &tag, "--out", &out];
    doorward(&home, database, &words).await?;
    let server = Server::gateway(&home, database, Cores::Shared).await?;

    say("connecting");
    let laps = Arc::new(Laps::default());
    let mut plan = Plan::new(device_sim::fleet::load(&lines)?, &server.url, Scenario::Steady);
    plan.rate = Some(options.rate);
    plan.duration = Duration::from_secs(3600);
    plan.renew = Renew::InMemory;
    plan.renew_spread = options.spread;
    plan.laps = Some(Arc::clone(&laps));
    let cancel = plan.cancel.clone();
    let load = tokio::spawn(device_sim::run(plan));
    tokio::time::sleep(Duration::from_secs(10)).await;

    say("publishing, and nothing else");
    laps.take();
    tokio::time::sleep(BASELINE).await;
    let baseline = laps.take();
    let backend = if database.is_some() { "Postgres" } else { "SQLite" };
    row(backend, "nothing else", BASELINE, &baseline, &baseline)?;

    let waves = ["--fleet", &tag, "--canary", "5%", "--wave", "25%", "--patience", "3m"];
    let rotate =
        async |what: &str| doorward(&home, database, &[&["device", what][..], &waves[..]].concat()).await;
    say("every key");
    laps.take();
    let began = clock::now().monotonic;
    rotate("rotate-key").await?;
    row(backend, "every key", clock::now().monotonic.saturating_sub(began), &laps.take(), &baseline)?;

    say("every certificate");
    laps.take();
    let began = clock::now().monotonic;
    rotate("rotate-cert").await?;
    row(backend, "every certificate", clock::now().monotonic.saturating_sub(began), &laps.take(), &baseline)?;

    say("the issuing CA, and every certificate again");
    laps.take();
    let began = clock::now().monotonic;
    doorward(&home, database, &["pki", "rollover", "begin"]).await?;
    rotate("rotate-cert").await?;
    tokio::time::sleep(GRACE + Duration::from_secs(5)).await;
    doorward(&home, database, &["pki", "rollover", "finish"]).await?;
    row(backend, "the issuing CA", clock::now().monotonic.saturating_sub(began), &laps.take(), &baseline)?;

    cancel.cancel();
    let report = load.await??;
    let rotation = report.rotation;
    say(&format!(
        "{} sent, {} acked, {} lost; {} certificates renewed, {} keys",
        report.messages.sent,
        report.messages.accepted,
        report.messages.lost,
        rotation.renewed,
        rotation.rekeyed
    ));
    ensure!(report.messages.lost == 0, "messages were lost: {:?}", report.failures);
    ensure!(report.messages.refused.is_empty(), "messages were refused: {:?}", report.messages.refused);
    let devices = u64::from(options.connections);
    ensure!(
        rotation.rekeyed == devices && rotation.renewed == 2 * devices,
        "not everything was rotated: {rotation:?}"
    );
    Ok(())
}

fn row(backend: &str, what: &str, took: Duration, lap: &Latency, baseline: &Latency) -> Result<()> {
    writeln!(
        std::io::stdout(),
        "| {backend} | {what} | {:.0} | {:.1} | {:.1} | {:.1} | {:.0} | {:.2} |",
        took.as_secs_f64(),
        lap.p50,
        lap.p90,
        lap.p99,
        lap.max,
        lap.p99 / baseline.p99
    )?;
    Ok(())
}

/// Runs a command to its end.
async fn doorward(home: &Path, database: Option<&str>, words: &[&str]) -> Result<()> {
    let mut command = server::doorward(home, database);
    command.args(words);
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "doorward {}: {said}", words.join(" "));
    Ok(())
}
