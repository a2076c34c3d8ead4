//! The command: its exit codes, its words, its report.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is a test")]

#[path = "../../client/tests/support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::process::Output;
use std::sync::atomic::Ordering;

use support::{Gateway, Setup};

async fn device_sim(arguments: &[&str]) -> (i32, String, String) {
    let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
    let run = move || std::process::Command::new(env!("CARGO_BIN_EXE_device-sim")).args(arguments).output();
    let Output { status, stdout, stderr } = tokio::task::spawn_blocking(run).await.unwrap().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn scratch(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("device-sim-{}-{name}", std::process::id()))
}

fn write_fleet(gateway: &Gateway, name: &str) -> PathBuf {
    let lines: Vec<&str> = gateway.shared.records.iter().map(|record| &*record.line).collect();
    let path = scratch(name);
    std::fs::write(&path, lines.join("\n")).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_prints_a_table_writes_a_report_and_exits_by_it() {
    let gateway = Gateway::start(Setup { devices: 3, ..Setup::default() }).await;
    let fleet = write_fleet(&gateway, "fleet.jsonl");
    let fleet = fleet.to_str().unwrap();
    let report = scratch("report.json");
    let url = gateway.url();
    let (code, out, err) = device_sim(&[
        "run",
        "--devices",
        fleet,
        "--url",
        &url,
        "--rate",
        "60",
        "--duration",
        "1",
        "--report",
        report.to_str().unwrap(),
    ])
    .await;
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("steady: as expected") && out.contains("p99.9"), "{out}");
    let written: serde_json::Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    assert_eq!(written["met"], true);

    gateway.revoke("dev-00002");
    let (code, out, err) =
        device_sim(&["run", "--devices", fleet, "--url", &url, "--duration", "500ms", "--json"]).await;
    assert_eq!(code, 1);
    assert!(err.contains("steady is not as expected: all connected: 1 of 3"), "{err}");
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["connections"]["refused"]["403 device-revoked"], 1);
    // Nothing of a fleet's secrets is in what a run says.
    for word in ["PRIVATE", "hmac"] {
        assert!(!out.contains(word) && !err.contains(word), "{word}");
    }
    std::fs::remove_file(fleet).unwrap();
    std::fs::remove_file(report).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_of_bundle_folders_keep_what_they_renew_and_those_of_lines_are_told_to() {
    let gateway = Gateway::start(Setup { devices: 1, ..Setup::default() }).await;
    gateway.renewals().asks.store(true, Ordering::SeqCst);
    let (url, folder) = (gateway.url(), tempfile::tempdir().unwrap());
    support::bundle::write(&gateway, 0, folder.path());
    let bundle = folder.path().to_str().unwrap().to_owned();
    let lines = write_fleet(&gateway, "renewed.jsonl");
    let before = std::fs::read(folder.path().join("device.crt")).unwrap();
    let renewed = async |devices: &str, renew: &[&str]| {
        let words =
            ["run", "--devices", devices, "--url", &url, "--duration", "1s", "--renew-spread", "0", "--json"];
        let (code, out, err) = device_sim(&[&words[..], renew].concat()).await;
        assert_eq!(code, 0, "{out}{err}");
        let report: serde_json::Value = serde_json::from_str(&out).unwrap();
        report["rotation"]["renewed"].as_u64().unwrap()
    };
    let lines = lines.to_str().unwrap();
    assert_eq!(renewed(lines, &[]).await, 0);
    assert_eq!(renewed(&bundle, &["--renew", "never"]).await, 0);
    assert!(std::fs::read(folder.path().join("device.crt")).unwrap() == before);
    assert_eq!(renewed(&bundle, &["--renew", "in-memory"]).await, 1, "stored all the same");
    assert!(std::fs::read(folder.path().join("device.crt")).unwrap() != before);
    assert_eq!(renewed(&bundle, &[]).await, 0, "it comes back by the new one, which nobody asks to renew");
    // Its line is worth nothing any more.
    let (code, ..) = device_sim(&["run", "--devices", lines, "--url", &url, "--duration", "100ms"]).await;
    assert_eq!(code, 1);
    std::fs::remove_file(lines).unwrap();
}

#[tokio::test]
async fn what_is_not_there_is_said() {
    let run = ["run", "--devices", "/nowhere.jsonl", "--url", "wss://localhost"];
    let (code, _, err) = device_sim(&run).await;
    assert_eq!(code, 1);
    assert!(err.contains("/nowhere.jsonl") && err.contains("bulk file"), "{err}");
    for (option, value, words) in [
        ("--scenario", "x", "skewed-clock, reconnect-storm, flapping, slow-reader, oversize, slow-handshake"),
        ("--report", "r.html", "not available"),
        ("--duration", "1y", "a duration is"),
        ("--rate", "-1", "at least 0"),
        ("--window", "0", "0"),
        ("--renew", "always", "one of never, stored, in-memory"),
    ] {
        let option = format!("{option}={value}");
        let (code, _, err) = device_sim(&[&run[..], &[&option]].concat()).await;
        assert_eq!(code, 2, "{option}: {err}");
        assert!(err.contains(words), "{option}: {err}");
    }
    let (code, out, _) = device_sim(&["run", "--help"]).await;
    assert!(code == 0 && out.contains("Example:"));
}
