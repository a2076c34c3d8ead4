//! What a client that nobody here wrote is told at the door: `curl --cert`.

use std::process::Command;

use serde_json::Value;

use crate::support::command::{Desk, openssl};
use crate::support::database::Database;
use crate::support::running::Running;

use super::on_both;

/// An upgrade, as a device asks for it.
const UPGRADE: [&str; 5] = [
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Protocol: doorward.v1.jws",
];

/// What curl was told: status, the last part of the problem's type, and the whole of the answer.
fn asks(desk: &Desk, gateway: &Running, bundle: &str, headers: &[&str]) -> (u16, String, Value) {
    let url = gateway.url().replacen("wss://", "https://", 1);
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "20", "--http1.1", "--include"]);
    for (option, file) in [("--cert", "device.crt"), ("--key", "device.key"), ("--cacert", "ca.crt")] {
        command.arg(option).arg(desk.path(bundle).join(file));
    }
    for header in headers {
        command.args(["--header", header]);
    }
    let output = command.arg(url).output().expect("curl is needed; on Debian: apt-get install curl");
    let text = String::from_utf8(output.stdout).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{:?} {text}", output.stderr));
    assert!(head.to_ascii_lowercase().contains("content-type: application/problem+json"), "{head}");
    let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
    let problem: Value = serde_json::from_str(body).unwrap();
    assert_eq!(problem["status"], status, "{problem}");
    for member in ["title", "detail", "instance"] {
        assert!(problem[member].as_str().is_some_and(|text| !text.is_empty()), "{problem}");
    }
    let kind = problem["type"].as_str().unwrap().strip_prefix("urn:doorward:problem:").unwrap().to_owned();
    (status, kind, problem)
}

async fn each_refusal_has_its_status_and_its_problem(_: Database, desk: Desk) {
    let gateway = Running::start(&desk);
    for id in ["good", "gone", "away", "old"] {
        desk.run(&format!("device add {id}")).done();
    }
    desk.run("device revoke gone --reason stolen").done();
    desk.run("device suspend away --reason repair").done();
    let serial = desk.run("cert list --device old --json").json()[0]["serial"].as_str().unwrap().to_owned();
    desk.run(&format!("cert revoke {serial} --reason lost")).done();
    // Signed by the same CA, and recorded in another registry.
    let elsewhere = format!("sqlite://{}", desk.path("elsewhere.db").display());
    desk.run(["init", "--database", &elsewhere]).done();
    desk.run(["device", "add", "ghost", "--database", &elsewhere]).done();
    for (id, status, kind) in [
        ("good", 426, "upgrade-required"),
        ("gone", 403, "device-revoked"),
        ("away", 403, "device-suspended"),
        ("old", 403, "certificate-revoked"),
        ("ghost", 401, "certificate-unknown"),
    ] {
        let headers = if id == "good" { &[][..] } else { &UPGRADE };
        let (told, problem, whole) = asks(&desk, &gateway, &format!("home/devices/{id}"), headers);
        assert_eq!((told, problem.as_str()), (status, kind), "{id}: {whole}");
    }
    let (told, problem, _) =
        asks(&desk, &gateway, "home/devices/good", &["Connection: Upgrade", "Upgrade: websocket"]);
    assert!((told, problem.as_str()) == (426, "upgrade-required") || told == 400, "{told} {problem}");
    gateway.ended_by("TERM");
}

on_both!(each_refusal_has_its_status_and_its_problem);

#[test]
fn openssl_reads_what_is_issued() {
    let desk = Desk::empty();
    desk.write("right", "correct horse battery\n");
    desk.run("init --passphrase-file right").done();
    desk.run("device add a --passphrase-file right").done();
    for (line, words) in [
        ("pkcs8 -in home/pki/issuing.key -passin file:right -topk8 -nocrypt", "BEGIN PRIVATE KEY"),
        ("pkey -in home/devices/a/device.key -noout -check", "valid"),
        ("x509 -in home/devices/a/device.crt -noout -ext extendedKeyUsage", "TLS Web Client Authentication"),
        ("req -new -key home/devices/a/device.key -subj /CN=a -verify -noout", "OK"),
    ] {
        let (done, said) = openssl(&desk, line);
        assert!(done && said.contains(words), "{line}: {said}");
    }
}
