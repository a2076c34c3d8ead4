//! What the feed of changes and the audit cost: devices issued in bulk, and the store's path of a message, with their
//! triggers and without, in turns in one run.
//!
//! `cargo bench --bench issuing -- --help`. docs/performance.md says what each figure means.

#[path = "../common/frame.rs"]
mod frame;
#[path = "../common/server.rs"]
#[expect(dead_code, reason = "the other benchmarks use the rest")]
mod server;
mod triggers;

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use doorward::registry::{
    Access, Batch, Claim, DatabaseUrl, Fate, NewCertificate, NewDevice, NewMessage, Registry, connect,
};
use doorward::{clock, entropy};
use doorward_pki::identity::Fingerprint;
use doorward_proto::ids::{DeviceId, FleetId, MessageId};
use time::OffsetDateTime;

use frame::say;
use triggers::{Door, Of};

/// Devices of one transaction, as in the bulk command.
const BULK: usize = 500;
/// Messages of one transaction, and the sessions that they come from.
const MESSAGES: usize = 256;
const SESSIONS: usize = 64;
/// A certificate and a sealed key have about so many bytes.
const DER: usize = 600;
const SEALED: usize = 60;

/// Compares bulk issuing, and the store's path of a message, with and without the triggers of the feed and the audit.
#[derive(Parser, Debug)]
#[command(name = "issuing")]
struct Options {
    /// Devices that a command issues
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u32).range(500..=100_000))]
    devices: u32,
    /// Transactions of messages in a measurement
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    batches: u32,
    /// Rounds, each with and without
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// A Postgres in place of SQLite: an empty database, as its owner
    #[arg(long, value_name = "URL")]
    postgres: Option<String>,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    frame::main("issuing", async |options: Options| run(&options).await)
}

/// One thing measured: with the triggers and without, in pairs of one round.
#[derive(Debug, Default)]
struct Pairs(Vec<[f64; 2]>);

impl Pairs {
    fn side(&self, side: usize) -> Vec<f64> {
        self.0.iter().map(|pair| pair[side]).collect()
    }

    /// How many a second with the triggers, and without them; and how many fewer, of the rounds' own ratios.
    fn line(&self, backend: &str, what: &str) -> String {
        let fewer = self.0.iter().map(|[with, without]| (1.0 - with / without) * 100.0).collect();
        let [with, without] = [0, 1].map(|side| spread(self.side(side), 0));
        format!("| {backend} | {what} | {with} | {without} | {} % |", spread(fewer, 1))
    }
}

/// The median, and the quartiles.
fn spread(mut values: Vec<f64>, digits: usize) -> String {
    values.sort_unstable_by(f64::total_cmp);
    let [low, median, high] =
        [1, 2, 3].map(|quarter| values.get(values.len() * quarter / 4).copied().unwrap_or(f64::NAN));
    format!("{median:.digits$} ({low:.digits$} to {high:.digits$})")
}

async fn run(options: &Options) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let home = folder.path().join("home");
    let database = options.postgres.as_deref();
    server::prepare(&home, database)?;
    let url = match database {
        Some(url) => DatabaseUrl::parse(url)?,
        None => DatabaseUrl::file(&home.join("registry.db")),
    };
    let registry = connect(&url, Access::Existing)?;
    let mut door = Door::open(&url).await?;
    let sessions = sessions(&registry).await?;

    let (mut whole, mut rows, mut messages) = (Pairs::default(), Pairs::default(), Pairs::default());
    // The first round warms up.
    for round in 0..=options.rounds {
        let mut pairs = [[0.0; 2]; 3];
        // Tables grow: each side is first in every other round.
        let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
        for side in order {
            say(&format!("round {round} of {}, {}", options.rounds, ["with", "without"][side]));
            let silent = if side == 1 { door.silence(Of::Both).await? } else { Vec::new() };
            pairs[0][side] = issue(&home, database, options.devices)?;
            pairs[1][side] = add(&registry, options.devices).await?;
            door.restore(silent).await?;
            let silent = if side == 1 { door.silence(Of::Feed).await? } else { Vec::new() };
            pairs[2][side] = store(&registry, &sessions, options.batches).await?;
            door.restore(silent).await?;
        }
        if round > 0 {
            [&mut whole, &mut rows, &mut messages]
                .into_iter()
                .zip(pairs)
                .for_each(|(all, pair)| all.0.push(pair));
        }
    }
    let backend = if database.is_some() { "Postgres" } else { "SQLite" };
    for (pairs, what) in [
        (&whole, "devices, by `device add --count`"),
        (&rows, "devices, their rows in the registry alone"),
        (&messages, "messages, into the store"),
    ] {
        writeln!(std::io::stdout(), "{}", pairs.line(backend, what))?;
    }
    Ok(())
}

/// How many a second since a moment.
fn rate(since: Duration, count: u32) -> f64 {
    f64::from(count) / clock::now().monotonic.saturating_sub(since).as_secs_f64()
}

/// The whole command.
fn issue(home: &Path, database: Option<&str>, count: u32) -> Result<f64> {
    let prefix = format!("whole-{:08x}-", fastrand::u32(..));
    let file = home.join(format!("{prefix}.jsonl"));
    let mut command = server::doorward(home, database);
    command.args(["device", "add", "--count", &count.to_string(), "--prefix", &prefix, "--out"]).arg(&file);
    let began = clock::now().monotonic;
    let output = command.output()?;
    let rate = rate(began, count);
    ensure!(output.status.success(), "device add: {}", String::from_utf8_lossy(&output.stderr));
    std::fs::remove_file(file)?;
    Ok(rate)
}

/// The registry alone, in the command's batches. What is stored looks like a certificate and a key; nobody reads it.
async fn add(registry: &Arc<dyn Registry>, count: u32) -> Result<f64> {
    let prefix = format!("rows-{:08x}-", fastrand::u32(..));
    let devices = (0..count).map(|n| new_device(&format!("{prefix}{n:06}"))).collect::<Result<Vec<_>>>()?;
    let began = clock::now().monotonic;
    for batch in devices.chunks(BULK) {
        registry.add_devices(batch).await?;
    }
    Ok(rate(began, count))
}

fn new_device(id: &str) -> Result<NewDevice> {
    let der: [u8; DER] = entropy::random()?;
    let sealed: [u8; SEALED] = entropy::random()?;
    let fingerprint = Fingerprint::of(&der);
    let now = clock::utc();
    Ok(NewDevice {
        id: DeviceId::new(id)?,
        fleet: FleetId::default(),
        certificate: NewCertificate {
            serial: fingerprint.to_string().get(..32).context("a serial")?.to_owned(),
            fingerprint,
            issuer: "ab12".repeat(10),
            der: der.to_vec(),
            not_before: now,
            not_after: now + time::Duration::days(365),
        },
        sealed_key: sealed.to_vec(),
    })
}

/// Devices that are connected.
async fn sessions(registry: &Arc<dyn Registry>) -> Result<Vec<(DeviceId, Arc<str>)>> {
    let tag = fastrand::u32(..);
    let devices = (0..SESSIONS)
        .map(|n| new_device(&format!("session-{tag:08x}-{n:03}")))
        .collect::<Result<Vec<_>>>()?;
    registry.add_devices(&devices).await?;
    let sessions: Vec<(DeviceId, Arc<str>)> =
        devices.into_iter().map(|device| (device.id, "bench".into())).collect();
    let claim = |(device, session): &(DeviceId, Arc<str>)| Claim {
        device: device.clone(),
        session: Arc::clone(session),
        gateway: "bench".into(),
        peer: "127.0.0.1:1".to_owned(),
        at: clock::utc(),
        late: false,
    };
    let batch = Batch { claims: sessions.iter().map(claim).collect(), ..Batch::default() };
    registry.write(&batch).await?;
    Ok(sessions)
}

/// The store's path of a message: what a gateway commits, with the presence of who has sent it.
async fn store(registry: &Arc<dyn Registry>, sessions: &[(DeviceId, Arc<str>)], batches: u32) -> Result<f64> {
    let now = clock::utc();
    let all = (0..batches).map(|_| batch(sessions, now)).collect::<Result<Vec<_>>>()?;
    let began = clock::now().monotonic;
    for batch in &all {
        let fates = registry.write(batch).await?;
        ensure!(fates.iter().all(|fate| *fate == Fate::Stored), "a message was not stored");
    }
    Ok(rate(began, batches * u32::try_from(MESSAGES)?))
}

fn batch(sessions: &[(DeviceId, Arc<str>)], now: OffsetDateTime) -> Result<Batch> {
    let data: Arc<str> = format!("{{\"v\":\"{}\"}}", "x".repeat(120)).into();
    let message = |(device, session): &(DeviceId, Arc<str>)| {
        Ok(NewMessage {
            device: device.clone(),
            session: Arc::clone(session),
            id: MessageId::new(&format!("{:032x}", u128::from_be_bytes(entropy::random()?)))?,
            channel: format!("devices/{device}/t").into(),
            data: data.as_ref().into(),
            at_ms: None,
            received_ms: i64::try_from(now.unix_timestamp_nanos() / 1_000_000)?,
        })
    };
    Ok(Batch {
        messages: sessions.iter().cycle().take(MESSAGES).map(message).collect::<Result<_>>()?,
        seen: sessions.iter().map(|(device, session)| (device.clone(), Arc::clone(session), now)).collect(),
        ..Batch::default()
    })
}
