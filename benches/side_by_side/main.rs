//! The gateway beside a bare sink: what do identity, signatures and durable storage cost on top of TLS and WebSocket?
//!
//! `benches/run.sh`, or `cargo bench --bench side_by_side -- --help`. Both servers live through the whole run, each in a
//! process of its own on one core, and are loaded in turns by the same driver on another: what disturbs the machine
//! disturbs both, so that the ratio holds where absolute figures do not. docs/performance.md says what each figure means.

mod bare;
#[path = "../common/drive.rs"]
mod drive;
#[path = "../common/frame.rs"]
mod frame;
mod report;
#[path = "../common/server.rs"]
#[expect(dead_code, reason = "the other benchmarks use the rest")]
mod server;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use doorward::clock;
use doorward_client::Credentials;

use drive::{Fleet, SETTLE};
use frame::{end, say};
use report::{Figures, Round};
use server::{Cores, Server};

/// Messages that a connection has under way: a device that sends in bursts, and one that waits for each ack.
const WINDOWS: [usize; 2] = [16, 1];
/// The longest that the whole run may take.
const DEADLINE: Duration = Duration::from_secs(1800);

/// Compares the gateway with a bare sink: TLS and WebSocket, without signatures and without storage.
#[derive(Parser, Debug)]
#[command(name = "side_by_side")]
struct Options {
    /// Connections to each server
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=4000))]
    connections: u32,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// How often each is measured, in turns
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
    /// Devices issued by one command in each round
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    issue: u32,
    /// Replace the figures between the marks in this file
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
    /// Be the bare sink, with the certificates of this home
    #[arg(long, hide = true, value_name = "HOME")]
    bare: Option<PathBuf>,
}

fn main() -> ExitCode {
    // `cargo test --all-targets` starts every target; this one is no test, and takes minutes.
    if !std::env::args().any(|argument| argument == "--bench" || argument == "--bare") {
        say("this is a benchmark; run it with benches/run.sh");
        return ExitCode::SUCCESS;
    }
    let outcome = match Options::parse() {
        Options { bare: Some(home), .. } => bare::run(&home),
        options => start(&options),
    };
    end(outcome)
}

fn start(options: &Options) -> Result<()> {
    // Both servers' connections, those of the handshakes, and some of our own.
    let _ = rlimit::increase_nofile_limit(u64::from(options.connections) * 2 + 512);
    Cores::drive(async |cores| {
        // Whichever ends it, the servers are dropped with `run`, and so are killed.
        tokio::select! {
            ended = tokio::time::timeout(DEADLINE, run(options, cores)) => match ended {
                Ok(result) => result,
                Err(_) => bail!("it was not done within {} s", DEADLINE.as_secs()),
            },
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        }
    })
}

async fn run(options: &Options, cores: Cores) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let home = folder.path().join("home");
    say("preparing a home and its devices");
    server::prepare(&home, None)?;
    let fleet = issue(&home, options.connections, "bench-", &home.join("fleet.jsonl"))?.devices;
    let gateway = Server::gateway(&home, None, cores).await?;
    let bare = Server::bare(&home, cores).await?;
    let mut figures =
        Figures::new(options.connections, options.seconds, options.rounds, options.issue, cores);

    say(&format!("connecting {} devices to each", options.connections));
    let mut sides = Vec::new();
    for server in [gateway, bare] {
        let empty = server.resident_kib()?;
        let fleet = Fleet::connect(&fleet, &server).await?;
        tokio::time::sleep(2 * SETTLE).await;
        figures
            .memory(server.is_gateway(), (server.resident_kib()? - empty) / f64::from(options.connections));
        sides.push((server, fleet));
    }
    for round in 0..options.rounds {
        say(&format!("round {} of {}", round + 1, options.rounds));
        for (server, connected) in &mut sides {
            let mut measured = Round::default();
            for (window, place) in WINDOWS.into_iter().zip(&mut measured.load) {
                *place = connected.load(server, window, Duration::from_secs(options.seconds)).await?;
                tokio::time::sleep(SETTLE).await;
            }
            measured.handshake = drive::handshakes(&fleet, server).await?;
            tokio::time::sleep(SETTLE).await;
            figures.add(server.is_gateway(), measured);
        }
        let file = folder.path().join(format!("issued-{round}.jsonl"));
        let issued = issue(&home, options.issue, &format!("more-{round}-"), &file)?;
        figures.issued(f64::from(options.issue) / issued.took.as_secs_f64());
    }
    let table = figures.table();
    writeln!(std::io::stdout(), "{table}")?;
    if let Some(file) = &options.write {
        report::write(file, &table)?;
        say(&format!("wrote the figures into {}", file.display()));
    }
    Ok(())
}

struct Issued {
    devices: Vec<Credentials>,
    took: Duration,
}

/// `device add --count`, timed from start to end of the command.
fn issue(home: &Path, count: u32, prefix: &str, file: &Path) -> Result<Issued> {
    let before = clock::now().monotonic;
    let output = server::doorward(home, None)
        .args(["device", "add", "--count", &count.to_string(), "--prefix", prefix, "--out"])
        .arg(file)
        .output()?;
    let took = clock::now().monotonic.saturating_sub(before);
    ensure!(output.status.success(), "device add: {}", String::from_utf8_lossy(&output.stderr));
    let devices = device_sim::fleet::load(file).context("what was issued")?;
    Ok(Issued { devices, took })
}
