//! The command: its exit codes, its words, its report.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is a test")]

#[path = "../../client/tests/support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::process::Output;

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

#[tokio::test]
async fn what_is_not_there_is_said() {
    let run = ["run", "--devices", "/nowhere.jsonl", "--url", "wss://localhost"];
    let (code, _, err) = device_sim(&run).await;
    assert_eq!(code, 1);
    assert!(err.contains("/nowhere.jsonl") && err.contains("bulk file"), "{err}");
    for (option, value, words) in [
        ("--scenario", "flapping", "not available in this version"),
        ("--scenario", "x", "skewed-clock"),
        ("--report", "r.html", "not available"),
        ("--duration", "1y", "a duration is"),
        ("--rate", "-1", "at least 0"),
        ("--window", "0", "0"),
    ] {
        let option = format!("{option}={value}");
        let (code, _, err) = device_sim(&[&run[..], &[&option]].concat()).await;
        assert_eq!(code, 2, "{option}: {err}");
        assert!(err.contains(words), "{option}: {err}");
    }
    let (code, out, _) = device_sim(&["run", "--help"]).await;
    assert!(code == 0 && out.contains("Example:"));
}
