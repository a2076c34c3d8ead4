//! `device-sim`: load and attack from the device's side. See `docs/` of the project, and `device-sim run --help`.

#![expect(clippy::print_stderr, reason = "printing is the command line's own business")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum as _};
use device_sim::flood::{self, Flood, Kind, Source};
use device_sim::{Plan, Report, Scenario, fleet};
use doorward_client::{Credentials, Renew};
use tokio_util::sync::CancellationToken;

const EXAMPLE: &str = "Example:\n  device-sim run --devices fleet.jsonl --url wss://localhost:8443/v1/device --rate 1000 --duration 30\n\nExit codes: 0 as expected, 1 not as expected or not possible, 2 usage.";
const FLOOD: &str = "Example:\n  device-sim flood --devices fleet.jsonl --kind wrong-ca --source many --duration 30\n\nRun it beside 'device-sim run --scenario steady' to see what others notice of it.";

#[derive(Parser)]
#[command(name = "device-sim", version, about = "A fleet of devices, honest and hostile, against a gateway")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a scenario and judges the gateway by it.
    #[command(after_help = EXAMPLE)]
    Run(RunOptions),
    /// Attacks in one way, as fast as this machine can, and says how much of it there was; nothing is judged.
    #[command(after_help = FLOOD)]
    Flood(FloodOptions),
}

#[derive(clap::Args)]
struct FloodOptions {
    /// A bulk file (.jsonl), or a folder of bundle folders: whose certificates and keys the attackers have.
    #[arg(long, value_name = "FILE.jsonl|DIR")]
    devices: PathBuf,
    /// The gateway; default: the URL of the first device.
    #[arg(long, value_name = "wss://…")]
    url: Option<String>,
    /// What they do.
    #[arg(long, value_name = "KIND")]
    kind: Kind,
    /// Where they connect from, where the gateway is on this machine: 127.77.0.1, 127.77.0.1 and on, or any address of
    /// 127.0.0.0/8.
    #[arg(long, value_name = "SOURCE", default_value = "each")]
    source: Source,
    /// The first of those addresses, by its number: what the gateway remembers of the others is left behind.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(..48_000))]
    first_address: u16,
    /// Attackers, a connection each.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=16_000))]
    at_once: u16,
    /// How long, in seconds, or as 500ms, 30s, 5m, 1h.
    #[arg(long, value_name = "S", default_value = "10s", value_parser = duration)]
    duration: Duration,
    /// Prints the report as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct RunOptions {
    /// A bulk file (.jsonl), or a folder of bundle folders.
    #[arg(long, value_name = "FILE.jsonl|DIR")]
    devices: PathBuf,
    /// The gateway; default: the URL of the first device.
    #[arg(long, value_name = "wss://…")]
    url: Option<String>,
    /// Messages a second of the whole fleet; 0 or absent: as fast as window and gateway allow.
    #[arg(long, value_name = "R", value_parser = rate)]
    rate: Option<f64>,
    /// Bytes of a message's data.
    #[arg(long, value_name = "BYTES", default_value_t = 128)]
    payload: usize,
    /// Undecided messages of a device [default: 1; burst: 32].
    #[arg(long, value_name = "W", value_parser = clap::value_parser!(u16).range(1..=1024))]
    window: Option<u16>,
    /// How long to send, in seconds, or as 500ms, 30s, 5m, 1h.
    #[arg(long, value_name = "S", default_value = "10s", value_parser = duration)]
    duration: Duration,
    /// New connections a second; 0 or absent: as fast as they come up.
    #[arg(long, value_name = "R", value_parser = rate)]
    connect_rate: Option<f64>,
    /// What the devices do: steady, burst, replay, forge, stolen-certificate, wrong-ca, skewed-clock, reconnect-storm, flapping,
    /// slow-reader, oversize or slow-handshake. Attackers connect from addresses of their own, 127.77.0.1 and on, where the
    /// gateway is on this machine.
    #[arg(long, value_name = "NAME", default_value = "steady", value_parser = scenario)]
    scenario: Scenario,
    /// Who takes the certificates and keys that the gateway rotates: never; stored: devices of bundle folders, which keep them
    /// there; in-memory: those of a bulk file too, whose lines end with the old ones' grace.
    #[arg(long, value_name = "WHO", default_value = "stored", value_parser = renew)]
    renew: Renew,
    /// Devices that are asked to renew at once do so within this time.
    #[arg(long, value_name = "S", default_value = "10s", value_parser = duration)]
    renew_spread: Duration,
    /// Writes the report as JSON.
    #[arg(long, value_name = "FILE.json", value_parser = json_file)]
    report: Option<PathBuf>,
    /// Loopback addresses to connect from [default: as many as the ports need].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    source_addresses: Option<u16>,
    /// Prints the report as JSON instead of a table.
    #[arg(long)]
    json: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate >= 0.0 => Ok(rate),
        _ => Err("a rate is a number of at least 0".to_owned()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.find(|c: char| c.is_ascii_alphabetic()) {
        Some(at) => text.split_at(at),
        None => (text, "s"),
    };
    let factor = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("a duration is a number with ms, s, m or h; seconds without".to_owned()),
    };
    number
        .parse::<f64>()
        .ok()
        .and_then(|number| Duration::try_from_secs_f64(number * factor).ok())
        .filter(|duration| *duration <= Duration::from_secs(7 * 86_400))
        .ok_or_else(|| "a duration is a number of at least 0, at most a week".to_owned())
}

fn scenario(text: &str) -> Result<Scenario, String> {
    Scenario::from_str(text, false).map_err(|_| {
        let all: Vec<String> = Scenario::value_variants().iter().map(ToString::to_string).collect();
        format!("there is no such scenario; there are {}", all.join(", "))
    })
}

fn renew(text: &str) -> Result<Renew, String> {
    match text {
        "never" => Ok(Renew::Never),
        "stored" => Ok(Renew::Stored),
        "in-memory" => Ok(Renew::InMemory),
        _ => Err("one of never, stored, in-memory".to_owned()),
    }
}

fn json_file(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => Ok(path),
        Some("html") => Err("an HTML report is not available in this version; give FILE.json".to_owned()),
        _ => Err("the report is written as JSON; give FILE.json".to_owned()),
    }
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(options) => run(options),
        Command::Flood(options) => {
            return match flood(options) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fail(&error),
            };
        }
    };
    match outcome {
        Ok(report) => match report.failures.first() {
            None => ExitCode::SUCCESS,
            Some(first) => {
                for other in report.failures.iter().skip(1) {
                    eprintln!("also: {other}");
                }
                eprintln!("device-sim: {} is not as expected: {first}", report.scenario);
                ExitCode::FAILURE
            }
        },
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    // `{:#}`: the causes in one line, without a backtrace.
    eprintln!("device-sim: {error:#}");
    ExitCode::FAILURE
}

/// The fleet, and where its gateway is.
fn load(devices: &Path, url: Option<String>) -> anyhow::Result<(Vec<Credentials>, String)> {
    let devices = fleet::load(devices)?;
    let url = url.or_else(|| devices.first().map(|device| device.url().to_owned()));
    Ok((devices, url.unwrap_or_default()))
}

/// Ends what is under way at Ctrl-C.
fn until_interrupted(cancel: CancellationToken) {
    tokio::spawn(async move {
        // Without a handler Ctrl-C ends the process at once, which is what it would do anyway.
        if tokio::signal::ctrl_c().await.is_ok() {
            cancel.cancel();
        }
    });
}

/// Prints a report, and returns it as JSON.
fn show<R: serde::Serialize + std::fmt::Display>(report: &R, as_json: bool) -> anyhow::Result<String> {
    let json = serde_json::to_string_pretty(report).context("the report is not JSON")?;
    let mut out = std::io::stdout().lock();
    // A reader that went away has seen what it wanted.
    let _ = if as_json { writeln!(out, "{json}") } else { writeln!(out, "{report}") };
    Ok(json)
}

fn flood(options: FloodOptions) -> anyhow::Result<()> {
    let (devices, url) = load(&options.devices, options.url)?;
    let runtime = tokio::runtime::Runtime::new().context("the runtime cannot start")?;
    let cancel = CancellationToken::new();
    let flood = Flood {
        devices,
        url,
        kind: options.kind,
        source: options.source,
        first_address: options.first_address,
        at_once: options.at_once,
        duration: options.duration,
        cancel: cancel.clone(),
    };
    let report = runtime.block_on(async move {
        until_interrupted(cancel);
        flood::run(flood).await
    })?;
    show(&report, options.json)?;
    Ok(())
}

fn run(options: RunOptions) -> anyhow::Result<Report> {
    // Before the run: to find out afterwards would cost its figures.
    let file = options.report.as_deref().map(open).transpose()?;
    let (devices, url) = load(&options.devices, options.url.clone())?;
    let runtime = tokio::runtime::Runtime::new().context("the runtime cannot start")?;
    let plan = Plan {
        rate: options.rate.filter(|rate| *rate > 0.0),
        payload: options.payload,
        window: options.window.map(usize::from),
        duration: options.duration,
        connect_rate: options.connect_rate.filter(|rate| *rate > 0.0),
        source_addresses: options.source_addresses,
        renew: options.renew,
        renew_spread: options.renew_spread,
        progress: Some(Arc::new(|now| {
            eprintln!(
                "up {:>6}  sent {:>9}  accepted {:>9}  refused {:>6}",
                now.up, now.sent, now.accepted, now.refused
            );
        })),
        ..Plan::new(devices, &url, options.scenario)
    };
    let cancel = plan.cancel.clone();
    let report = runtime.block_on(async move {
        until_interrupted(cancel);
        device_sim::run(plan).await
    })?;
    let json = show(&report, options.json)?;
    if let Some((path, mut file)) = file {
        let written = file.write_all(format!("{json}\n").as_bytes());
        written.with_context(|| format!("{}: the report cannot be written", path.display()))?;
    }
    Ok(report)
}

fn open(path: &Path) -> anyhow::Result<(&Path, std::fs::File)> {
    let opened = std::fs::File::create(path);
    Ok((path, opened.with_context(|| format!("{}: the report cannot be written", path.display()))?))
}
