//! A clock before the build: nothing is signed by it, and a gateway waits.

use std::process::Child;

use doorward::clock;
use time::Duration;
use time::format_description::well_known::Rfc3339;

use crate::support::command::{Desk, Ran, signal};
use crate::support::running::Running;

fn late(desk: &Desk, line: &str, not_before: &str) -> Ran {
    let mut command = desk.command(line);
    // The clock itself is not a test's to set: it is wrong, too, where the time that is past for sure is ahead of it.
    command.env(clock::NOT_BEFORE, not_before);
    Ran::of(&mut command)
}

const FUTURE: &str = "2999-01-01T00:00:00Z";

#[test]
fn nothing_is_signed_by_a_clock_that_is_wrong() {
    let desk = Desk::new();
    desk.run("device add press-7").done();
    for line in [
        "device add press-8",
        "device add --count 3 --prefix p --out p.jsonl",
        "device rotate-cert press-7 --out out",
        "gateway renew-cert",
        "cert crl --out list.crl",
        "init",
    ] {
        late(&desk, line, FUTURE).fails(1, &["the clock says", "2999-01-01T00:00:00Z", "set the clock"]);
    }
    assert!(!desk.path("list.crl").exists());
    desk.run("device show press-8").fails(3, &["press-8"]);
    let empty = Desk::empty();
    late(&empty, "init", FUTURE).fails(1, &["set the clock"]);
    assert!(!empty.home("pki").exists(), "nothing half-made");
    // It speaks of later times alone, and of times.
    late(&desk, "device add press-8", "1999-01-01T00:00:00Z").done();
    late(&desk, "device add press-9", "soon").fails(1, &["DOORWARD_NOT_BEFORE", "soon"]);
    late(&desk, "gateway run --listen 127.0.0.1:0", "soon").fails(1, &["DOORWARD_NOT_BEFORE"]);
    // What signs nothing goes on.
    late(&desk, "device list", FUTURE).done();
    late(&desk, "device suspend press-7 --reason x --no-wait", FUTURE).done();
}

#[test]
fn a_gateway_opens_its_door_once_the_clock_is_right() {
    let desk = Desk::new();
    let soon = clock::utc() + Duration::seconds(4);
    let mut command = desk.command("gateway run --listen 127.0.0.1:0");
    command.env(clock::NOT_BEFORE, soon.format(&Rfc3339).unwrap());
    let gateway = Running::spawn(&mut command);
    assert!(clock::utc() >= soon, "it has not waited");
    let waits = gateway.said.lines().filter(|line| line.contains("it waits for the clock")).count();
    assert_eq!(waits, 1, "{}", gateway.said);
    gateway.ended_by("TERM");
}

#[test]
fn a_gateway_that_waits_can_be_ended() {
    let desk = Desk::new();
    let mut command = desk.command("gateway run --listen 127.0.0.1:0");
    command.env(clock::NOT_BEFORE, FUTURE);
    let mut child: Child = command.spawn().unwrap();
    let mut line = String::new();
    let mut words = std::io::BufReader::new(child.stderr.take().unwrap());
    std::io::BufRead::read_line(&mut words, &mut line).unwrap();
    assert!(line.contains("it waits for the clock"), "{line}");
    signal(&child, "TERM");
    assert!(child.wait().unwrap().success(), "it has done what it was told");
}

#[test]
fn what_is_configured_while_a_gateway_waits_counts_and_a_hangup_does_not_end_it() {
    let desk = Desk::new();
    let mut command = desk.command("gateway run --listen 127.0.0.1:0");
    let soon = clock::utc() + Duration::seconds(4);
    command.env(clock::NOT_BEFORE, soon.format(&Rfc3339).unwrap());
    let mut child: Child = command.spawn().unwrap();
    let mut words = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut words, &mut line).unwrap();
    assert!(line.contains("it waits for the clock"), "{line}");
    signal(&child, "HUP");
    let config = std::fs::read_to_string(desk.home("config.toml")).unwrap();
    let broken = config.replace("\nstrikes = 5\n", "\nstrikes = 0\n");
    assert_ne!(broken, config);
    std::fs::write(desk.home("config.toml"), broken).unwrap();
    let mut said = String::new();
    std::io::Read::read_to_string(&mut words, &mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{said}");
    assert!(said.contains("limits.strikes"), "{said}");
}
