//! What limits, policy, strikes and measures cost a message: a gateway as it is shipped, with a policy of many rules and a
//! scraper that asks it every second, beside the same gateway with everything at its widest.
//!
//! `cargo bench --bench limits -- --help`. docs/performance.md says what each figure means.

#[path = "../common/drive.rs"]
#[expect(dead_code, reason = "the other benchmark measures handshakes as well")]
mod drive;
#[path = "../common/frame.rs"]
mod frame;
#[path = "../common/server.rs"]
#[expect(dead_code, reason = "the other benchmarks use the rest")]
mod server;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use doorward_client::Credentials;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use drive::{Fleet, SETTLE};
use frame::{end, say};
use server::{Cores, Server};

/// Messages that a connection has under way.
const WINDOWS: [usize; 2] = [16, 1];
/// Rules of the policy that is not the widest.
const RULES: usize = 16;
const SCRAPE: Duration = Duration::from_secs(1);

/// Compares a gateway with itself at its widest limits.
#[derive(Parser, Debug)]
#[command(name = "limits")]
struct Options {
    /// Connections to each
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=4000))]
    connections: u32,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// How often each is measured, in turns
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=50))]
    rounds: u32,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    // `cargo test --all-targets` starts every target; this one is no test, and takes minutes.
    if !std::env::args().any(|argument| argument == "--bench") {
        say("this is a benchmark; run it with cargo bench --bench limits");
        return ExitCode::SUCCESS;
    }
    let options = Options::parse();
    let _ = rlimit::increase_nofile_limit(20_000);
    end(Cores::drive(async |cores| run(&options, cores).await))
}

async fn run(options: &Options, cores: Cores) -> Result<()> {
    let folder = tempfile::tempdir()?;
    say("preparing two homes and their devices");
    let [shipped, widest] = ["shipped", "widest"].map(|name| folder.path().join(name));
    server::init(&shipped, None)?;
    server::prepare(&widest, None)?;
    let mut sides = Vec::new();
    for (home, policy) in [(&shipped, rules()), (&widest, anything())] {
        let devices = issue(home, &policy, options.connections)?;
        let gateway = Server::gateway(home, None, cores).await?;
        let fleet = Fleet::connect(&devices, &gateway).await?;
        sides.push((gateway, fleet));
    }
    let scraped = sides.first().and_then(|(gateway, _)| gateway.metrics).context("no measures are served")?;
    let scraper = tokio::spawn(scrape(scraped));
    let mut ratios: [Vec<f64>; 2] = Default::default();
    let mut costs: [[Vec<f64>; 2]; 2] = Default::default();
    for round in 0..options.rounds {
        say(&format!("round {} of {}", round + 1, options.rounds));
        for (window, (ratios, costs)) in WINDOWS.into_iter().zip(ratios.iter_mut().zip(&mut costs)) {
            let mut measured = [0.0; 2];
            // Whoever comes first in one round comes second in the next.
            let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
            for side in order {
                let (gateway, fleet) = sides.get_mut(side).context("two sides")?;
                let load = fleet.load(gateway, window, Duration::from_secs(options.seconds)).await?;
                tokio::time::sleep(SETTLE).await;
                if let (Some(place), Some(cost)) = (measured.get_mut(side), costs.get_mut(side)) {
                    *place = load.cpu_us;
                    cost.push(load.cpu_us);
                }
            }
            let [shipped, widest] = measured;
            ratios.push(shipped / widest);
        }
    }
    ensure!(!scraper.is_finished(), "the scraper has failed: {:?}", scraper.await);
    let mut out = std::io::stdout();
    writeln!(
        out,
        "{} connections to each, {} rounds in turns, {} s a measurement; {RULES} rules and a scrape a second beside one rule and none; SQLite. Medians, with the quartiles.\n",
        options.connections, options.rounds, options.seconds
    )?;
    writeln!(
        out,
        "| gateway CPU per message, µs | as shipped | at the widest | ratio of a round |\n| --- | --- | --- | --- |"
    )?;
    for (window, (ratios, costs)) in WINDOWS.iter().zip(ratios.iter_mut().zip(&mut costs)) {
        let [shipped, widest] = costs;
        let (shipped, widest, ratio) = (spread(shipped, 1), spread(widest, 1), spread(ratios, 2));
        writeln!(out, "| {window} under way | {shipped} | {widest} | {ratio} |")?;
    }
    Ok(())
}

/// Rules of which none but the last lets a device publish, and none forbids it.
fn rules() -> String {
    let rule =
        |n: usize| format!(r#"{{"actions":["publish"],"channels":["plants/+/lines/{n}/${{device}}/#"]}}"#);
    let allow: Vec<String> = (0..RULES / 2 - 1).map(rule).collect();
    let deny: Vec<String> = (0..RULES / 2).map(|n| rule(100 + n)).collect();
    format!(
        r#"{{"allow":[{},{{"actions":["publish","subscribe"],"channels":["devices/${{device}}/#"]}}],"deny":[{}]}}"#,
        allow.join(","),
        deny.join(",")
    )
}

fn anything() -> String {
    r##"{"allow":[{"actions":["publish","subscribe"],"channels":["#"]}],"deny":[]}"##.to_owned()
}

fn issue(home: &Path, policy: &str, count: u32) -> Result<Vec<Credentials>> {
    let (rules, lines) = (home.join("policy.json"), home.join("fleet.jsonl"));
    std::fs::write(&rules, policy)?;
    let mut words = vec!["fleet".to_owned(), "policy".to_owned(), "default".to_owned()];
    words.extend([rules.display().to_string(), "--no-wait".to_owned()]);
    doorward(home, &words)?;
    let mut words: Vec<String> = ["device", "add", "--count"].map(str::to_owned).into();
    words.extend([count.to_string(), "--prefix".to_owned(), "bench-".to_owned()]);
    words.extend(["--out".to_owned(), lines.display().to_string()]);
    doorward(home, &words)?;
    Ok(device_sim::fleet::load(&lines)?)
}

fn doorward(home: &Path, words: &[String]) -> Result<()> {
    let output = server::doorward(home, None).args(words).output()?;
    ensure!(output.status.success(), "{}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// As Prometheus does.
async fn scrape(at: SocketAddr) -> Result<()> {
    loop {
        let mut tcp = tokio::net::TcpStream::connect(at).await?;
        tcp.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
        let mut answer = Vec::new();
        tcp.read_to_end(&mut answer).await?;
        ensure!(answer.starts_with(b"HTTP/1.1 200"), "/metrics is not served");
        tokio::time::sleep(SCRAPE).await;
    }
}

fn spread(values: &mut [f64], digits: usize) -> String {
    values.sort_by(f64::total_cmp);
    let at = |part: usize| values.get((values.len() * part / 4).min(values.len().saturating_sub(1)));
    let [least, median, most] = [1, 2, 3].map(|part| at(part).copied().unwrap_or(f64::NAN));
    format!("{median:.digits$} ({least:.digits$} to {most:.digits$})")
}
