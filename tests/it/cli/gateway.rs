//! `gateway run` as a service manager sees it.

use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use crate::support::command::{Desk, Ran};
use crate::support::database::Database;
use crate::support::house::eventually;
use crate::support::http::get;
use crate::support::running::Running;

use super::on_both;

async fn it_listens_and_drains(_: Database, desk: Desk) {
    for name in ["TERM", "INT"] {
        let gateway = Running::start(&desk);
        let address = gateway.address.clone();
        TcpStream::connect(&address).unwrap();
        gateway.signal("HUP");
        std::thread::sleep(Duration::from_millis(100));
        let words = gateway.ended_by(name);
        assert!(words.contains("certificates read again") && words.contains("drained"), "{words}");
        assert!(!words.contains('\u{1b}'), "no colours where nobody sees them: {words}");
        assert!(TcpStream::connect(&address).is_err());
    }
}

on_both!(it_listens_and_drains);

#[test]
fn certificates_that_are_broken_at_a_hangup_are_not_taken() {
    let desk = Desk::new();
    let gateway = Running::start(&desk);
    let certificate = std::fs::read(desk.home("pki/gateway.crt")).unwrap();
    std::fs::write(desk.home("pki/gateway.crt"), "junk").unwrap();
    gateway.signal("HUP");
    std::thread::sleep(Duration::from_millis(100));
    TcpStream::connect(&gateway.address).unwrap();
    std::fs::write(desk.home("pki/gateway.crt"), certificate).unwrap();
    let words = gateway.ended_by("TERM");
    assert!(
        words.contains("configuration and certificates stand as they were") && words.contains("gateway.crt"),
        "{words}"
    );
}

fn admin_at(desk: &Desk, address: &str) {
    let config = std::fs::read_to_string(desk.home("config.toml")).unwrap();
    let (before, after) = config.split_once("\n[admin]\n").unwrap();
    let after = after.replacen("listen = \"127.0.0.1:9464\"", &format!("listen = \"{address}\""), 1);
    std::fs::write(desk.home("config.toml"), format!("{before}\n[admin]\n{after}")).unwrap();
}

/// Of the gateways on this machine one alone can have the port of the default configuration.
fn without_admin(desk: &Desk) {
    admin_at(desk, "");
}

/// A line's value, from a gateway that has said where its admin listener is.
fn admin_of(said: &str) -> String {
    let line = said.lines().find(|line| line.contains("/metrics")).unwrap_or_else(|| panic!("{said}"));
    line.split("address=").nth(1).unwrap().split(' ').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_gateway_on_a_free_port_has_a_free_port_for_its_operator_too() {
    let (first, second) = (Desk::new(), Desk::new());
    let (first, second) = (Running::start(&first), Running::start(&second));
    for gateway in [&first, &second] {
        let admin = admin_of(&gateway.said);
        assert!(admin.starts_with("127.0.0.1:") && !admin.ends_with(":9464"), "{admin}");
        let got = get(admin.parse().unwrap(), "/readyz").await;
        assert_eq!((got.status, &got.json()["ready"]), (200, &serde_json::json!(true)), "{got:?}");
    }
}

#[tokio::test]
async fn an_admin_address_that_cannot_be_had_keeps_no_device_out_and_is_taken_when_it_is_free() {
    let desk = Desk::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, free) = (taken.local_addr().unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    admin_at(&desk, &address.to_string());
    let own = free.local_addr().unwrap();
    drop(free);
    // With a port of its own: else the operator's would be a free one, too.
    let gateway = Running::spawn(&mut desk.gateway_command(&format!("gateway run --listen {own}")));
    for word in [&*address.to_string(), "(admin.listen)", "goes on without", "\"\" for none"] {
        assert!(gateway.said.contains(word), "{word}: {}", gateway.said);
    }
    TcpStream::connect(&gateway.address).unwrap();
    drop(taken);
    eventually("it answers", async || TcpStream::connect(address).is_ok()).await;
    assert_eq!(get(address, "/readyz").await.status, 200);
    gateway.ended_by("TERM");
}

#[test]
fn an_admin_address_that_is_none_is_named() {
    let wrong = Desk::new();
    admin_at(&wrong, "9464");
    wrong.run("gateway run").fails(1, &["'9464' is not a socket address", "line"]);
}

#[test]
fn the_log_is_one_object_a_line_where_programs_read_it() {
    let desk = Desk::new();
    let mut command = desk.gateway_command("gateway run --listen 127.0.0.1:0");
    command.env("DOORWARD_LOG_FORMAT", "json");
    let gateway = Running::spawn(&mut command);
    let said = gateway.said.clone();
    let words = said + &gateway.ended_by("TERM");
    let lines: Vec<serde_json::Value> = words
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    assert!(lines.iter().any(|line| line["message"] == "drained"), "{words}");
    assert!(lines.iter().all(|line| line["timestamp"].is_string() && line["level"].is_string()), "{words}");
    assert!(lines.iter().any(|line| line["address"].is_string()), "fields are members: {words}");
    let mut command = desk.command("gateway run --listen 127.0.0.1:0");
    command.env("DOORWARD_LOG_FORMAT", "xml");
    Ran::of(&mut command).fails(2, &["DOORWARD_LOG_FORMAT is 'xml'", "text or json"]);
}

#[test]
fn an_address_that_cannot_be_had_is_named() {
    let desk = Desk::new();
    without_admin(&desk);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    desk.run(["gateway", "run", "--listen", &address])
        .fails(1, &["cannot listen on", &address, "another program has this port"]);
    desk.run("gateway run --listen 192.0.2.1:8443").fails(1, &["192.0.2.1:8443", "an address of this host"]);
    desk.run("gateway run --listen 8443").fails(2, &["--listen"]);
    let mut log = desk.command("gateway run --listen 127.0.0.1:0");
    log.env("DOORWARD_LOG", "=/=");
    Ran::of(&mut log).fails(2, &["DOORWARD_LOG", "no log filter"]);
}

/// A process that may open 80 files, and more peers than that: the operator is answered all the same, and the door opens
/// again by itself.
#[tokio::test]
async fn an_operator_is_answered_when_no_descriptor_is_left() {
    let desk = Desk::new();
    let run = desk.gateway_command("gateway run --listen 127.0.0.1:0");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "ulimit -n 80; exec \"$0\" \"$@\""]).arg(run.get_program()).args(run.get_args());
    command.current_dir(run.get_current_dir().unwrap());
    for (name, value) in run.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let gateway = Running::spawn(&mut command);
    let admin = admin_of(&gateway.said).parse().unwrap();
    let mut peers = Vec::new();
    for _ in 0..120 {
        peers.push(TcpStream::connect(&gateway.address).unwrap());
    }
    let failures = async || get(admin, "/metrics").await.value("doorward_accept_failures_total", "");
    eventually("none is left", async || failures().await > 0.0).await;
    for _ in 0..3 {
        assert_eq!(get(admin, "/healthz").await.status, 200);
        let ready = get(admin, "/readyz").await;
        assert_eq!(ready.status, 200, "{}", ready.body);
    }
    drop(peers);
    eventually("they are back", async || {
        get(admin, "/metrics").await.body.contains("doorward_process_open_fds")
    })
    .await;
    gateway.ended_by("TERM");
}
