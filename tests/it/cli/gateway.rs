//! `gateway run` as a service manager sees it.

use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::process::Child;
use std::sync::mpsc;
use std::time::Duration;

use crate::support::command::{Desk, Ran, signal};
use crate::support::database::Database;

use super::on_both;

/// Starts it on a free port; its address, and the rest of what it says once it has ended.
fn start(desk: &Desk) -> (Child, String, mpsc::Receiver<String>) {
    let mut child = desk.command("gateway run --listen 127.0.0.1:0").spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    let address = loop {
        let mut line = String::new();
        assert_ne!(lines.read_line(&mut line).unwrap(), 0, "it ended: {said}");
        if let Some(address) = line.trim().strip_prefix("listening on ") {
            break address.to_owned();
        }
        said.push_str(&line);
    };
    let (sender, rest) = mpsc::channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        let _ = lines.read_to_string(&mut text);
        let _ = sender.send(text);
    });
    (child, address, rest)
}

async fn it_listens_and_drains(_: Database, desk: Desk) {
    for name in ["TERM", "INT"] {
        let (child, address, rest) = start(&desk);
        TcpStream::connect(&address).unwrap();
        signal(&child, "HUP");
        std::thread::sleep(Duration::from_millis(100));
        signal(&child, name);
        let ended = Ran::ended(child).done();
        assert_eq!(ended.out, "");
        let words = rest.recv().unwrap();
        assert!(words.contains("certificates read again") && words.contains("drained"), "{words}");
        assert!(!words.contains('\u{1b}'), "no colours where nobody sees them: {words}");
        assert!(TcpStream::connect(&address).is_err());
    }
}

on_both!(it_listens_and_drains);

#[test]
fn certificates_that_are_broken_at_a_hangup_are_not_taken() {
    let desk = Desk::new();
    let (child, address, rest) = start(&desk);
    let certificate = std::fs::read(desk.home("pki/gateway.crt")).unwrap();
    std::fs::write(desk.home("pki/gateway.crt"), "junk").unwrap();
    signal(&child, "HUP");
    std::thread::sleep(Duration::from_millis(100));
    TcpStream::connect(&address).unwrap();
    std::fs::write(desk.home("pki/gateway.crt"), certificate).unwrap();
    signal(&child, "TERM");
    Ran::ended(child).done();
    let words = rest.recv().unwrap();
    assert!(
        words.contains("the certificates stand as they were") && words.contains("gateway.crt"),
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
