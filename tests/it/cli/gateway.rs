//! `gateway run` as a service manager sees it.

use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use crate::support::command::{Desk, Ran};
use crate::support::database::Database;
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

#[test]
fn an_address_that_cannot_be_had_is_named() {
    let desk = Desk::new();
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
