//! What a fleet that publishes notices of attacks, each at the full speed that the load generator has.
//!
//! `cargo bench --bench attacks -- --help`. docs/performance.md says what each figure means.

#[path = "../common/frame.rs"]
mod frame;
#[path = "../common/server.rs"]
#[expect(dead_code, reason = "the other benchmarks use the rest")]
mod server;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum as _};
use device_sim::flood::{self, Flood, Kind, Source};
use device_sim::{Laps, Latency, Plan, Scenario};
use doorward::clock;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use frame::{end, say};
use server::{Cores, Server};

/// Attackers of each kind, where they are not said to be more.
const ATTACKERS: u16 = 64;
/// Those that only hold connections open.
const HOLDERS: u16 = 4000;
/// An attack has begun before it is measured, and its end is not the next one's beginning.
const LEAD: Duration = Duration::from_secs(2);
const SETTLE: Duration = Duration::from_secs(5);
/// How often the gateway's memory is looked at.
const LOOK: Duration = Duration::from_millis(250);

const fn attack(kind: Kind, source: Source, at_once: u16) -> (Kind, Source, u16) {
    (kind, source, at_once)
}

const ATTACKS: [(Kind, Source, u16); 20] = [
    attack(Kind::Connect, Source::One, ATTACKERS),
    attack(Kind::Connect, Source::Many, ATTACKERS),
    attack(Kind::Silence, Source::One, HOLDERS),
    attack(Kind::Silence, Source::Many, HOLDERS),
    attack(Kind::HalfHello, Source::Many, HOLDERS),
    attack(Kind::WrongCa, Source::Each, ATTACKERS),
    attack(Kind::WrongCa, Source::Many, ATTACKERS),
    attack(Kind::HalfUpgrade, Source::Each, ATTACKERS),
    attack(Kind::Flapping, Source::Each, ATTACKERS),
    attack(Kind::CloseRace, Source::Each, ATTACKERS),
    attack(Kind::Forge, Source::Each, ATTACKERS),
    attack(Kind::Replay, Source::Each, ATTACKERS),
    attack(Kind::OverRate, Source::Each, ATTACKERS),
    attack(Kind::SlowReader, Source::Each, ATTACKERS),
    attack(Kind::Oversize, Source::Each, ATTACKERS),
    attack(Kind::Fragments, Source::Each, ATTACKERS),
    attack(Kind::Pings, Source::Each, ATTACKERS),
    attack(Kind::PingsInFragments, Source::Each, ATTACKERS),
    attack(Kind::BadUtf8, Source::Each, ATTACKERS),
    attack(Kind::Unmasked, Source::Each, ATTACKERS),
];

/// Measures ack latencies of an honest fleet under attacks, and the gateway's memory.
#[derive(Parser, Debug)]
#[command(name = "attacks")]
struct Options {
    /// Devices that publish meanwhile
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(20..=8000))]
    connections: u32,
    /// Their messages a second, all together
    #[arg(long, default_value_t = 1000.0)]
    rate: f64,
    /// Seconds of each measurement, with the attack and before it without
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Only attacks of this kind
    #[arg(long, value_name = "KIND")]
    only: Option<Kind>,
    /// A Postgres in place of SQLite; the devices stay in it
    #[arg(long, value_name = "URL")]
    postgres: Option<String>,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
    /// Be the attackers, with the devices of this file
    #[arg(long, hide = true, value_name = "FILE", requires_all = ["url", "number"])]
    attack: Option<PathBuf>,
    /// Whom the attackers attack
    #[arg(long, hide = true, value_name = "URL")]
    url: Option<String>,
    /// Which of the attacks
    #[arg(long, hide = true, value_name = "N")]
    number: Option<usize>,
}

/// What the attackers' process says of itself.
#[derive(Debug, Deserialize)]
struct Attackers {
    seconds: f64,
    connections: u64,
    turned_away: u64,
    frames: u64,
}

fn main() -> ExitCode {
    // `cargo test --all-targets` starts every target; this one is no test, and takes minutes.
    if !std::env::args().any(|argument| argument == "--bench" || argument == "--attack") {
        say("this is a benchmark; run it with cargo bench --bench attacks");
        return ExitCode::SUCCESS;
    }
    let _ = rlimit::increase_nofile_limit(20_000);
    let options = Options::parse();
    end(match &options {
        Options { attack: Some(devices), url: Some(url), number: Some(number), .. } => {
            be_the_attackers(devices, url, *number, options.seconds)
        }
        options => Cores::drive(async |cores| run(options, cores).await),
    })
}

fn be_the_attackers(devices: &Path, url: &str, number: usize, seconds: u64) -> Result<()> {
    let (kind, source, at_once) = *ATTACKS.get(number).context("no such attack")?;
    // What the gateway remembers of devices and addresses is not for the next attack.
    let each = usize::from(ATTACKERS);
    let devices = device_sim::fleet::load(devices)?.into_iter().skip(number * each).take(each).collect();
    let flood = Flood {
        devices,
        url: url.to_owned(),
        kind,
        source,
        first_address: u16::try_from(number)? * 2 * ATTACKERS,
        at_once,
        duration: LEAD + Duration::from_secs(seconds),
        cancel: CancellationToken::new(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(flood::run(flood))?;
    serde_json::to_writer(std::io::stdout(), &report)?;
    Ok(())
}

async fn run(options: &Options, cores: Cores) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let home = folder.path().join("home");
    let database = options.postgres.as_deref();
    say("preparing a home and its devices");
    server::init(&home, database)?;
    let tag = format!("{:08x}", fastrand::u32(..));
    let (honest, hostile) = (home.join("honest.jsonl"), home.join("hostile.jsonl"));
    let all = ATTACKS.len() * usize::from(ATTACKERS);
    for (name, count, file) in [("h", options.connections as usize, &honest), ("x", all, &hostile)] {
        let output = server::doorward(&home, database)
            .args([
                "device",
                "add",
                "--count",
                &count.to_string(),
                "--prefix",
                &format!("{name}{tag}-"),
                "--out",
            ])
            .arg(file)
            .output()?;
        ensure!(output.status.success(), "device add: {}", String::from_utf8_lossy(&output.stderr));
    }
    let bound = bound(&home, database)?;
    let server = Server::gateway(&home, database, cores).await?;

    say("connecting");
    let laps = Arc::new(Laps::default());
    let mut plan = Plan::new(device_sim::fleet::load(&honest)?, &server.url, Scenario::Steady);
    plan.rate = Some(options.rate);
    plan.duration = Duration::from_secs(3600);
    plan.laps = Some(Arc::clone(&laps));
    let cancel = plan.cancel.clone();
    let load = tokio::spawn(device_sim::run(plan));
    tokio::time::sleep(2 * SETTLE).await;

    let mut out = std::io::stdout();
    writeln!(
        out,
        "{} devices, {} messages a second; {} s with each attack and before it without; {}; at most {bound} MiB by configuration.\n",
        options.connections,
        options.rate,
        options.seconds,
        if database.is_some() { "Postgres" } else { "SQLite" }
    )?;
    writeln!(
        out,
        "| attack | from | at once | connections a second | turned away | frames a second | p50, ms | p99, ms | p99 without, ms | ratio | gateway's memory, MiB |"
    )?;
    writeln!(out, "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")?;
    let long = Duration::from_secs(options.seconds);
    for (number, (kind, source, at_once)) in ATTACKS.into_iter().enumerate() {
        if options.only.is_some_and(|only| only != kind) {
            continue;
        }
        say(&format!("{kind}, {} of {}", number + 1, ATTACKS.len()));
        laps.take();
        tokio::time::sleep(long).await;
        let without = laps.take();
        let attackers = launch(cores, &hostile, &server.url, number, options.seconds)?;
        tokio::time::sleep(LEAD).await;
        laps.take();
        let memory = highest(&server, long).await?;
        let with = laps.take();
        let attackers = told(attackers).await?;
        row(&mut out, (kind, source, at_once), &attackers, (&with, &without), memory)?;
        tokio::time::sleep(SETTLE).await;
    }
    cancel.cancel();
    let report = load.await??;
    let messages = &report.messages;
    say(&format!("{} sent, {} acked, {} lost", messages.sent, messages.accepted, messages.lost));
    ensure!(messages.lost == 0, "honest messages were lost: {:?}", report.failures);
    ensure!(messages.refused.is_empty(), "honest messages were refused: {:?}", messages.refused);
    Ok(())
}

/// What the configuration allows the gateway in all, in MiB.
fn bound(home: &Path, database: Option<&str>) -> Result<u64> {
    #[derive(Deserialize)]
    struct Row {
        key: String,
        value: String,
    }
    let output = server::doorward(home, database).args(["config", "show", "--json"]).output()?;
    ensure!(output.status.success(), "config show: {}", String::from_utf8_lossy(&output.stderr));
    let rows: Vec<Row> = serde_json::from_slice(&output.stdout)?;
    let row = rows.into_iter().find(|row| row.key == "memory.at_most");
    Ok(row.context("config show says nothing of memory")?.value.parse::<u64>()? >> 20)
}

fn launch(cores: Cores, devices: &Path, url: &str, number: usize, seconds: u64) -> Result<Child> {
    let mut command = cores.load(&std::env::current_exe()?);
    command.arg("--attack").arg(devices).args(["--url", url]);
    command.args(["--number", &number.to_string(), "--seconds", &seconds.to_string()]);
    Ok(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?)
}

async fn told(attackers: Child) -> Result<Attackers> {
    let output = tokio::task::spawn_blocking(move || attackers.wait_with_output()).await??;
    ensure!(output.status.success(), "the attackers failed");
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The most that the gateway held meanwhile, in MiB.
async fn highest(server: &Server, long: Duration) -> Result<f64> {
    let mut highest = 0_f64;
    let end = clock::now().monotonic + long;
    while clock::now().monotonic < end {
        highest = highest.max(server.resident_kib()? / 1024.0);
        tokio::time::sleep(LOOK).await;
    }
    Ok(highest)
}

fn row(
    out: &mut impl std::io::Write,
    (kind, source, at_once): (Kind, Source, u16),
    attackers: &Attackers,
    (with, without): (&Latency, &Latency),
    memory: f64,
) -> Result<()> {
    let source = source.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let a_second = |count: u64| count as f64 / attackers.seconds;
    writeln!(
        out,
        "| {kind} | {source} | {at_once} | {:.0} | {:.0} % | {:.0} | {:.1} | {:.1} | {:.1} | {:.2} | {memory:.0} |",
        a_second(attackers.connections),
        100.0 * attackers.turned_away as f64 / attackers.connections.max(1) as f64,
        a_second(attackers.frames),
        with.p50,
        with.p99,
        without.p99,
        with.p99 / without.p99,
    )?;
    Ok(())
}
