//! `demo`: the whole path in small, in a temporary home, with nothing faked: the same commands, gateway, client and
//! simulator that an operator runs.

mod probe;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use device_sim::{Plan, Report, Scenario};
use doorward_client::Credentials;
use doorward_proto::ids::DeviceId;
use serde::Serialize;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::device::Add;
use super::failure::{Failure, Outcome};
use super::{Shared, bulk, gateway as command, init, output};
use crate::config::Config;
use crate::gateway::{self, Gateway};
use crate::home::Home;
use crate::registry::{self, Access, Act, MessageFilter, Registry, RegistryError};
use crate::{clock, entropy};

use probe::Probe;

/// Messages a second of each device.
const RATE: f64 = 2.0;

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  doorward demo --devices 200 --seconds 5")]
pub(super) struct Demo {
    /// How many devices
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(3..=15_000))]
    devices: u32,
    /// How long they publish
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u64).range(2..=3600))]
    seconds: u64,
    /// A Postgres to use in place of SQLite; the demo's devices and messages stay in it
    #[arg(long, value_name = "URL")]
    postgres: Option<String>,
}

/// A line of the table.
#[derive(Debug, Serialize)]
struct Step {
    step: &'static str,
    result: String,
    ok: bool,
}

/// What has been shown so far.
#[derive(Debug, Default)]
struct Steps(Vec<Step>);

impl Steps {
    fn add(&mut self, step: &'static str, ok: bool, result: impl Into<String>) {
        self.0.push(Step { step, result: result.into(), ok });
    }
}

/// The temporary home, which goes when the demo ends, however it ends.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A gateway in this process.
struct Running {
    gateway: Arc<Gateway>,
    registry: Arc<dyn Registry>,
    url: String,
    shutdown: CancellationToken,
    serving: JoinHandle<Result<(), RegistryError>>,
}

impl Demo {
    pub(super) async fn run(&self, outer: &Shared) -> Outcome {
        let name = u64::from_be_bytes(entropy::random()?);
        let home = Temporary(std::env::temp_dir().join(format!("doorward-demo-{name:016x}")));
        let shared = Shared {
            home: home.0.clone(),
            // What the environment says of a registry is not the demo's to fill, and its secrets are not the demo's.
            database: self.postgres.clone(),
            json: false,
            passphrase_file: None,
            own_secrets: true,
        };
        let mut steps = Steps::default();
        let prefix = format!("demo-{:06x}-", name & 0xFF_FFFF);
        let shown = tokio::select! {
            shown = self.show(&shared, &prefix, &mut steps) => shown,
            _ = tokio::signal::ctrl_c() => Err(Failure::new("interrupted")),
        };
        drop(home);
        report(&steps, outer.json)?;
        shown?;
        if steps.0.iter().all(|step| step.ok) {
            output::say("all of it went as it should");
            Ok(())
        } else {
            Err(Failure::new("not all of it went as it should")
                .next("the lines above that say NO name what did not"))
        }
    }

    async fn show(&self, shared: &Shared, prefix: &str, steps: &mut Steps) -> Outcome {
        let began = clock::now().monotonic;
        let took = || clock::now().monotonic.saturating_sub(began);
        init::Init::default().make(shared).await?;
        let database = shared.database_url(&shared.config()?)?;
        steps.add("home, PKI and registry", true, format!("made in {:.0?} with {database}", took()));

        let before = took();
        let file = shared.home.join("demo.jsonl");
        bulk::add(&Add::bulk(self.devices, prefix, &file), shared).await?;
        let took_bulk = took().saturating_sub(before).as_secs_f64();
        let fleet = load(&file)?;
        steps.add(
            "provision devices",
            fleet.len() == self.devices as usize,
            format!(
                "{} with keys and certificates, {:.0} a second",
                fleet.len(),
                fleet.len() as f64 / took_bulk
            ),
        );

        let running = start(shared).await?;
        let shown = self.drive(&running, fleet, steps).await;
        running.shutdown.cancel();
        let drained = running.serving.await;
        steps.add(
            "drain the gateway",
            matches!(drained, Ok(Ok(()))) && running.gateway.devices() == 0,
            format!("{} sessions left", running.gateway.devices()),
        );
        shown
    }

    /// The fleet publishes; meanwhile one device is revoked, one replays, one forges.
    async fn drive(&self, running: &Running, mut fleet: Vec<Credentials>, steps: &mut Steps) -> Outcome {
        let began = clock::utc();
        let (Some(revoked), Some(hostile)) = (fleet.pop(), fleet.pop()) else {
            return Err(Failure::new("too few devices"));
        };
        let honest = fleet.len();
        let mut plan = Plan::new(fleet, &running.url, Scenario::Steady);
        plan.duration = Duration::from_secs(self.seconds);
        plan.rate = Some(RATE * honest as f64);
        let load = tokio::spawn(device_sim::run(plan));
        tokio::time::sleep(Duration::from_secs(self.seconds) / 2).await;

        let acked = replay(running, &hostile, steps).await?;
        let revoked_acked = revoke(running, &revoked, steps).await?;

        let report = load
            .await
            .map_err(|error| Failure::new(format!("the devices failed: {error}")))?
            .map_err(|error| Failure::new(error.to_string()))?;
        add_load(steps, &report, honest);

        let stored = stored(running, began, revoked.device()).await?;
        let expected = report.messages.accepted + acked + revoked_acked;
        steps.add(
            "messages in the registry",
            stored.all == expected,
            format!("{} stored, {expected} acknowledged, each once", stored.all),
        );
        steps.add(
            "stored of the revoked device",
            stored.of_revoked == revoked_acked,
            format!("{}, all of them from before", stored.of_revoked),
        );
        Ok(())
    }
}

fn add_load(steps: &mut Steps, report: &Report, honest: usize) {
    let (messages, ack) = (&report.messages, &report.ack);
    steps.add(
        "connect the fleet",
        report.connections.up == honest as u64,
        format!(
            "{} of {honest} over TLS 1.3, handshake p99 {:.0} ms",
            report.connections.up, report.handshake.p99
        ),
    );
    let why = report.failures.first().map(|why| format!("; {why}")).unwrap_or_default();
    steps.add(
        "publish",
        report.met && messages.accepted > 0 && messages.lost == 0,
        format!(
            "{} sent, {} acknowledged, {} lost, {:.0} a second, ack p50 {:.1} ms, p99 {:.1} ms{why}",
            messages.sent, messages.accepted, messages.lost, messages.per_second, ack.p50, ack.p99
        ),
    );
}

fn report(steps: &Steps, as_json: bool) -> Outcome {
    if as_json {
        return output::json(&steps.0);
    }
    let mut table = output::table(["STEP", "RESULT", "AS IT SHOULD"]);
    for Step { step, result, ok } in &steps.0 {
        table.add_row([*step, &output::plain(result), if *ok { "yes" } else { "NO" }]);
    }
    output::print_table(&table, "nothing was shown")
}

fn load(path: &Path) -> Result<Vec<Credentials>, Failure> {
    device_sim::fleet::load(path).map_err(|error| Failure::new(error.to_string()))
}

async fn start(shared: &Shared) -> Result<Running, Failure> {
    let home = Home::new(&shared.home);
    let config = Config::load(&home)?;
    let registry = registry::connect(&shared.database_url(&config)?, Access::Existing)?;
    let gateway = Gateway::new(config, home.clone(), Arc::clone(&registry), shared.master_keys()?).await?;
    command::raise_file_limit(30_000);
    let listener = command::listen_on(std::net::SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let address = listener.local_addr()?;
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(gateway::serve(Arc::clone(&gateway), listener, shutdown.clone()));
    let url = format!("wss://localhost:{}{}", address.port(), doorward_proto::PATH);
    Ok(Running { gateway, registry, url, shutdown, serving })
}

/// A captured message, sent again, and one that was tampered with. How many messages were acknowledged.
async fn replay(running: &Running, hostile: &Credentials, steps: &mut Steps) -> Result<u64, Failure> {
    let mut probe =
        Probe::connect(hostile, &running.url).await.map_err(|why| Failure::new(why.to_string()))?;
    let frame = probe.sign_publish()?;
    let first = probe.send(frame.clone()).await;
    let again = probe.send(frame.clone()).await;
    steps.add(
        "replay a captured message",
        first == "ack" && again == "replayed",
        format!("first {first}, then {again}"),
    );
    let mut forged = frame.into_bytes();
    if let Some(byte) = forged.last_mut() {
        // The last character of 32 bytes in base64url carries four bits: this changes one of them and stays canonical.
        *byte = if *byte == b'A' { b'E' } else { b'A' };
    }
    let answer = probe.send(String::from_utf8_lossy(&forged).into_owned()).await;
    steps.add("forge a signature", answer == "bad_signature", format!("answered with {answer}"));
    probe.close().await;
    Ok(u64::from(first == "ack"))
}

/// A live session, revoked by the operator. How many messages of it were acknowledged.
async fn revoke(running: &Running, device: &Credentials, steps: &mut Steps) -> Result<u64, Failure> {
    let mut probe =
        Probe::connect(device, &running.url).await.map_err(|why| Failure::new(why.to_string()))?;
    let frame = probe.sign_publish()?;
    let first = probe.send(frame).await;
    running.registry.set_status(device.device(), Act::Revoke, Some("demo")).await?;
    let committed = clock::now().monotonic;
    let closed = probe.until_closed(Duration::from_secs(10)).await;
    let took = clock::now().monotonic.saturating_sub(committed);
    steps.add(
        "revoke a live device",
        first == "ack" && closed == "4003",
        format!(
            "its session was closed with {closed}, {:.0} ms after the commit",
            took.as_secs_f64() * 1000.0
        ),
    );
    let back = match Probe::connect(device, &running.url).await {
        Ok(_) => "it was let in".to_owned(),
        Err(why) => why.word(),
    };
    steps.add("the revoked device comes back", back == "403 device-revoked", back);
    Ok(u64::from(first == "ack"))
}

struct Stored {
    all: u64,
    of_revoked: u64,
}

/// What this demo's devices have in the registry.
async fn stored(
    running: &Running,
    since: time::OffsetDateTime,
    revoked: &DeviceId,
) -> Result<Stored, Failure> {
    let prefix = revoked.as_str().rsplit_once('-').map_or("", |(prefix, _)| prefix);
    let mut filter = MessageFilter {
        since: Some(since - Duration::from_secs(60)),
        limit: 1000,
        ..MessageFilter::default()
    };
    let mut stored = Stored { all: 0, of_revoked: 0 };
    loop {
        let page = running.registry.messages(&filter).await?;
        let Some(last) = page.last() else { return Ok(stored) };
        filter.after = last.position;
        for message in page.iter().filter(|message| message.device.as_str().starts_with(prefix)) {
            stored.all += 1;
            stored.of_revoked += u64::from(message.device == *revoked);
        }
    }
}
