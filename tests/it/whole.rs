//! The whole path, with the programs as they are shipped: commands, a gateway's process, devices that are not its own.

pub(crate) mod renewal;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use device_sim::{Plan, Report, Scenario};
use doorward_client::backoff::BackoffOptions;
use doorward_client::{Credentials, Device, Options, State, Stop};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::cli::on_both;
use crate::support::command::{Desk, Ran};
use crate::support::database::Database;
use crate::support::house::{eventually, within};
use crate::support::running::Running;

fn array(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

/// A device of the desk, made by a command, at a gateway.
fn bundle(desk: &Desk, id: &str, gateway: &Running) -> Credentials {
    desk.run(&format!("device add {id}")).done();
    Credentials::load(desk.home(&format!("devices/{id}"))).unwrap().with_url(&gateway.url())
}

async fn connected(device: &Device) {
    let mut state = device.state();
    let is_up = |state: &State| matches!(state, State::Connected(_));
    within("welcome", state.wait_for(is_up)).await.unwrap();
}

/// Waits for a session that is another than the one of this epoch.
async fn session(desk: &Desk, other_than: &Value) -> Value {
    let mut now = Value::Null;
    eventually("a session in the list", async || {
        let sessions = desk.run("session list --json").json();
        now = array(&sessions).first().map_or(Value::Null, |session| session["since"].clone());
        !now.is_null() && now != *other_than
    })
    .await;
    now
}

async fn an_operator_ends_sessions(_: Database, desk: Desk) {
    let gateway = Running::start(&desk);
    let credentials = bundle(&desk, "press-7", &gateway);
    let backoff = BackoffOptions {
        base: Duration::from_millis(10),
        cap: Duration::from_millis(100),
        ..Default::default()
    };
    let device = Device::connect(credentials, Options { backoff, ..Options::default() }).unwrap();
    connected(&device).await;
    within("an ack", device.publish("devices/press-7/t", &1)).await.unwrap();
    let first = session(&desk, &Value::Null).await;

    // Kicked, it comes back.
    desk.run("device kick press-7").done();
    session(&desk, &first).await;
    within("an ack", device.publish("devices/press-7/t", &2)).await.unwrap();

    // Revoked, it does not.
    desk.run("device revoke press-7 --reason stolen").done();
    let mut state = device.state();
    let stopped = |state: &State| matches!(state, State::Stopped(Stop::Revoked));
    within("the device's end", state.wait_for(stopped)).await.unwrap();
    device.publish("devices/press-7/t", &3).await.unwrap_err();
    let rows = desk.run("message list --device press-7 --json").json();
    let data: Vec<&Value> = array(&rows).iter().map(|row| &row["data"]).collect();
    assert_eq!(data, [&json!(1), &json!(2)]);
    eventually("the list is empty", async || desk.run("session list --json").json() == json!([])).await;
    let said = gateway.ended_by("TERM");
    assert!(said.contains("code=4003 reason=\"revoked\""), "{said}");
}

async fn a_device_takes_its_new_key_while_it_publishes(_: Database, desk: Desk) {
    let gateway = Running::start(&desk);
    let credentials = bundle(&desk, "press-7", &gateway);
    let device = Device::connect(credentials, Options::default()).unwrap();
    connected(&device).await;
    desk.run("device rotate-key press-7 --grace 1h").done().says(&["key version 2 of 'press-7' is pending"]);
    let states = || {
        let shown = desk.run("device show press-7 --json").json();
        array(&shown["keys"]).iter().map(|key| key["state"].clone()).collect::<Vec<_>>()
    };
    let mut published = 0;
    eventually("the new key is active", async || {
        published += 1;
        within("an ack", device.publish("devices/press-7/t", &published)).await.unwrap();
        states() == ["grace", "active"]
    })
    .await;
    device.close().await;
    // What it has stored is what it comes back with.
    let again = Credentials::load(desk.home("devices/press-7")).unwrap().with_url(&gateway.url());
    assert_eq!(again.key().version().get(), 2);
    let device = Device::connect(again, Options::default()).unwrap();
    within("an ack", device.publish("devices/press-7/t", &0)).await.unwrap();
    let rows = desk.run("message list --device press-7 --json").json();
    assert_eq!(array(&rows).len(), published + 1, "nothing was lost, and nothing stored twice");
    let said = gateway.ended_by("TERM");
    assert!(said.contains("the device has its new key"), "{said}");
}

/// What `test.sh` has prepared, else the system's.
fn python() -> PathBuf {
    let prepared = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv/bin/python");
    if prepared.exists() { prepared } else { "python3".into() }
}

fn device_py(desk: &Desk, gateway: &Running, words: &[&str]) -> Ran {
    let mut command = Command::new(python());
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/python/device.py")).args(words);
    command.args(["--url", &gateway.url()]).current_dir(desk.path(".")).env("PYTHONUNBUFFERED", "1");
    let ran = Ran::of(&mut command);
    assert!(!ran.err.contains("ModuleNotFoundError"), "./test.sh installs what the example needs: {ran:#?}");
    ran
}

async fn a_device_that_is_not_ours(_: Database, desk: Desk) {
    let gateway = Running::start(&desk);
    desk.run("device add press-7").done();
    let words = ["home/devices/press-7", "7"];
    let ran = device_py(&desk, &gateway, &words).done();
    assert_eq!(ran.out.lines().filter(|line| line.starts_with("stored ")).count(), 7, "{ran:#?}");
    assert_eq!(array(&desk.run("message list --device press-7 --json").json()).len(), 7);
    desk.run("device suspend press-7 --reason repair").done();
    let ran = device_py(&desk, &gateway, &words);
    assert_eq!(ran.code, Some(1), "{ran:#?}");
    assert!(ran.err.contains("refused with 403"), "{ran:#?} {}", gateway.ended_by("TERM"));
    desk.run("device revoke press-7 --reason stolen").done();
    let ran = device_py(&desk, &gateway, &words);
    assert_eq!(ran.code, Some(3), "{ran:#?}");
    assert!(ran.err.contains("refused with 403"), "{ran:#?}");
    assert_eq!(array(&desk.run("message list --device press-7 --json").json()).len(), 7);
}

async fn a_killed_gateway_has_kept_what_it_acked(_: Database, desk: Desk) {
    let gateway = Running::start(&desk);
    let credentials = bundle(&desk, "press-7", &gateway);
    let device = Device::connect(credentials, Options::default()).unwrap();
    let mut acked = Vec::new();
    let publish = async {
        for n in 0.. {
            if device.publish("devices/press-7/t", &n).await.is_err() {
                break;
            }
            acked.push(json!(n));
            if acked.len() == 50 {
                break;
            }
        }
    };
    within("fifty acks", publish).await;
    gateway.kill();
    let rows = desk.run("message list --device press-7 --json").json();
    let data: Vec<Value> = array(&rows).iter().map(|row| row["data"].clone()).collect();
    assert_eq!(data, acked);
    // The row of its session stays behind; the next gateway, or the device's next session, mends that.
    let gateway = Running::start(&desk);
    eventually("the list is empty", async || desk.run("session list --json").json() == json!([])).await;
    gateway.ended_by("TERM");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn out_of_descriptors_it_goes_on() {
    let desk = Desk::new();
    let plain = desk.command("gateway run --listen 127.0.0.1:0");
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -n 80; exec \"$@\"", "sh"]).arg(plain.get_program()).args(plain.get_args());
    limited.current_dir(desk.path(".")).env_remove("DATABASE_URL").stdin(Stdio::null());
    limited.stdout(Stdio::piped()).stderr(Stdio::piped());
    let gateway = Running::spawn(&mut limited);
    let mut many = Vec::new();
    for _ in 0..140 {
        many.push(TcpStream::connect(&gateway.address).await.unwrap());
    }
    // Those beyond the limit are closed, not left to wait.
    let last = many.last().unwrap();
    within("the last one's end", async {
        last.readable().await.unwrap();
        while last.try_read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    drop(many);
    let device = Device::connect(bundle(&desk, "press-7", &gateway), Options::default()).unwrap();
    within("an ack", device.publish("devices/press-7/t", &1)).await.unwrap();
    within("a clean end", device.close()).await;
    let said = gateway.ended_by("TERM");
    assert_eq!(said.matches("cannot accept; raise the limit").count(), 1, "{said}");
}

/// A fleet of the simulator's at a gateway. What is stored is what devices were told is stored, and nothing besides.
async fn simulate(database: &Database, desk: &Desk, gateway: &Running, scenario: Scenario) -> Report {
    let file = format!("{scenario}.jsonl");
    desk.run(&format!("device add --count 24 --prefix {scenario}- --out {file}")).done();
    let devices = device_sim::fleet::load(&desk.path(&file)).unwrap();
    let mut plan = Plan::new(devices, &gateway.url(), scenario);
    plan.duration = Duration::from_secs(2);
    plan.unproven_within = Duration::from_secs(10);
    let report = device_sim::run(plan).await.unwrap();
    assert!(report.met && report.failures.is_empty(), "{scenario}: {report:#?}");
    assert!(report.own_errors.is_empty(), "{scenario}: {report:#?}");
    // Attackers send genuine messages too: before a replay, or to show that the session goes on.
    let genuine: u64 =
        report.attacks.iter().filter(|attack| attack.expected == "ack").map(|attack| attack.held).sum();
    let sql = format!("SELECT count(*) FROM messages WHERE device LIKE '{scenario}-%'");
    let stored = u64::try_from(database.number(&sql).await).unwrap();
    assert_eq!(stored, report.messages.accepted + genuine, "{scenario}: {report:#?}");
    report
}

async fn honest_fleets_lose_nothing(database: Database, desk: Desk) {
    let gateway = Running::start(&desk);
    for scenario in [Scenario::Steady, Scenario::Burst, Scenario::SkewedClock, Scenario::ReconnectStorm] {
        let report = simulate(&database, &desk, &gateway, scenario).await;
        assert!(report.messages.accepted > 0 && report.messages.lost == 0, "{report:#?}");
    }
}

async fn hostile_fleets_gain_nothing(database: Database, desk: Desk) {
    let config = desk.home("config.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace("proof_within = \"30s\"", "proof_within = \"2s\"");
    let text = text.replace("_timeout = \"15s\"", "_timeout = \"2s\"");
    std::fs::write(&config, text).unwrap();
    let gateway = Running::start(&desk);
    for scenario in [
        Scenario::Replay,
        Scenario::Forge,
        Scenario::StolenCertificate,
        Scenario::WrongCa,
        Scenario::Oversize,
        Scenario::SlowHandshake,
    ] {
        let report = simulate(&database, &desk, &gateway, scenario).await;
        assert!(!report.attacks.is_empty(), "{report:#?}");
        for attack in &report.attacks {
            assert!(attack.tried > 0 && attack.held == attack.tried, "{scenario}: {attack:?}");
        }
    }
}

#[tokio::test]
async fn the_demo_goes_as_it_should_on_postgres() {
    let database = Database::bare_postgres().await;
    let desk = Desk::empty();
    let url = database.url.to_string();
    let rows = desk.run(["demo", "--devices", "20", "--seconds", "2", "--postgres", &url, "--json"]).json();
    assert!(array(&rows).iter().all(|row| row["ok"] == true), "{rows:#}");
    assert!(!desk.home("").exists(), "its home is elsewhere, and gone");
}

on_both!(
    an_operator_ends_sessions,
    a_device_that_is_not_ours,
    a_killed_gateway_has_kept_what_it_acked,
    honest_fleets_lose_nothing,
    hostile_fleets_gain_nothing,
    a_device_takes_its_new_key_while_it_publishes,
);
