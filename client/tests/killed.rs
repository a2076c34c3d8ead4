//! A device is killed at every step of its renewal, while it is handed a new key as well, and always comes back.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is a test")]

mod support;

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use doorward_client::renewal::Steps;
use doorward_client::{Credentials, Device, Options, RenewalOptions};
use doorward_pki::Leaf;
use support::bundle::{self, WHOLE, names, quick};
use support::{Gateway, Setup};

const FOLDER: &str = "TEST_DEVICE_FOLDER";
const STOP_AT: &str = "TEST_DEVICE_STOPS_AT";
const FIRST: &str = "TEST_DEVICE_FIRST_SERIAL";
const VALUE: &str = "TEST_DEVICE_VALUE";

fn serial(folder: &Path) -> String {
    let credentials = Credentials::load(folder).unwrap();
    Leaf::parse(&credentials.identity().chain()[0]).unwrap().serial().to_owned()
}

/// What happened to a device's process.
#[derive(Debug)]
struct Ran {
    steps: Vec<String>,
    acked: Vec<String>,
    /// It was killed at the step it was to be killed at; else it came to its end.
    killed: bool,
}

/// Runs a device until it has renewed, in a process of its own, which is killed once it has said that it has done this
/// many steps.
fn run(folder: &Path, first: &str, value: usize, stop_at: usize) -> Ran {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "a_device_of_its_own", "--ignored", "--nocapture"]);
    command.env(FOLDER, folder).env(FIRST, first);
    command.env(VALUE, value.to_string()).env(STOP_AT, stop_at.to_string());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut ran = Ran { steps: Vec::new(), acked: Vec::new(), killed: false };
    let mut said = String::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        said.push_str(&line);
        said.push('\n');
        // The test runner does not end its own line before.
        if let Some((_, step)) = line.split_once("@step ") {
            ran.steps.push(step.to_owned());
        } else if let Some((_, value)) = line.split_once("@acked ") {
            ran.acked.push(value.to_owned());
        } else if line.contains("@stopped") {
            // SIGKILL: nothing is tidied up.
            child.kill().unwrap();
            ran.killed = true;
        }
    }
    let ended = child.wait().unwrap();
    let mut words = String::new();
    child.stderr.take().unwrap().read_to_string(&mut words).unwrap();
    assert!(ran.killed || ended.success(), "{ended}: {said}{words}");
    ran
}

#[test]
#[ignore = "the device's process of the test below"]
fn a_device_of_its_own() {
    let of = |name: &str| std::env::var(name).unwrap();
    let (folder, first, value, stop_at) =
        (of(FOLDER), of(FIRST), of(VALUE), of(STOP_AT).parse::<usize>().unwrap());
    let done = AtomicUsize::new(0);
    let steps = Steps::new(move |step| {
        println!("@step {step}");
        if done.fetch_add(1, Ordering::SeqCst) + 1 == stop_at {
            println!("@stopped");
            // One thread runs the device: it stands still until it is killed.
            std::thread::park_timeout(Duration::from_secs(60));
            panic!("nobody has killed it");
        }
    });
    let options = Options { renewal: RenewalOptions { steps, ..quick().renewal }, ..quick() };
    let device = async move {
        let device = Device::connect(Credentials::load(folder).unwrap(), options).unwrap();
        for part in 0..2 {
            let value = format!("{value}-{part}");
            device.publish("devices/dev-00000/t", &value).await.unwrap();
            println!("@acked \"{value}\"");
            let mut status = device.certificate();
            let is_new = |serial: &str| serial != first;
            let renewed = status.wait_for(|now| now.current.as_ref().is_some_and(|now| is_new(&now.serial)));
            renewed.await.unwrap();
        }
        device.close().await;
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), device).await.unwrap() });
}

/// What is left to a device that was killed at this step, and then once more at the same one of the next run.
async fn killed_at(step: usize) -> Ran {
    let gateway = Gateway::start(Setup { devices: 1, ..Setup::default() }).await;
    gateway.renewals().asks.store(true, Ordering::SeqCst);
    gateway.renewals().rekeys.store(true, Ordering::SeqCst);
    let bundle = tempfile::tempdir().unwrap();
    bundle::write(&gateway, 0, bundle.path());
    let (folder, first) = (bundle.path().to_owned(), serial(bundle.path()));
    let runs = tokio::task::spawn_blocking(move || {
        let killed = run(&folder, &first, 1, step);
        // The folder can be loaded whatever happened.
        Credentials::load(&folder).unwrap();
        let again = run(&folder, &first, 2, step);
        Credentials::load(&folder).unwrap();
        let whole = run(&folder, &first, 3, 0);
        assert_ne!(serial(&folder), first);
        [killed, again, whole]
    });
    let [killed, again, whole] = runs.await.unwrap();
    assert!(!whole.killed);
    assert_eq!(whole.acked.len(), 2, "{whole:?}");
    let stored = gateway.shared.values.lock().unwrap().clone();
    for acked in [&killed, &again, &whole].into_iter().flat_map(|ran| &ran.acked) {
        assert!(stored.contains(acked), "step {step}: {acked} is not among {stored:?}");
    }
    assert_eq!(names(bundle.path()), WHOLE, "step {step}");
    let key = Credentials::load(bundle.path()).unwrap().key().version();
    assert_eq!(key.get(), 2, "step {step}: the key that came meanwhile is there, too");
    assert!(gateway.renewals().generation(0) > 0, "step {step}: the new one has proven itself");
    assert_eq!(gateway.renewals().issued(), 1, "step {step}: one key, whatever happened");
    killed
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_killed_at_any_step_of_its_renewal_comes_back() {
    let mut steps = Vec::new();
    for step in 1.. {
        let ran = killed_at(step).await;
        if !ran.killed {
            steps = ran.steps;
            break;
        }
        assert_eq!(ran.steps.len(), step);
    }
    // Each of them was the last thing that a process did.
    assert_eq!(
        steps,
        [
            "renewal.pem.new created",
            "renewal.pem.new written",
            "renewal.pem in place",
            "asked",
            "certificate came",
            "renewal.pem.new created",
            "renewal.pem.new written",
            "renewal.pem in place",
            "showing the new one",
            "the new one is let in",
            "device.key.new created",
            "device.key.new written",
            "device.crt.new created",
            "device.crt.new written",
            "device.key in place",
            "device.crt in place",
            "renewal.pem removed",
        ]
    );
}
