//! Homes that have lost a file, or hold a wrong one: said in a line, and never made worse.

use std::fs;

use crate::support::command::{Desk, chmod};

fn without(name: &str) -> Desk {
    let desk = Desk::new();
    fs::remove_file(desk.home(name)).unwrap();
    desk
}

#[test]
fn init_makes_nothing_that_would_not_go_with_the_rest() {
    let desk = without("pki/issuing.crt");
    desk.run("init").fails(4, &["issuing.crt is missing", "second certificate in pki/gateway.crt"]);
    let desk = without("pki/gateway.key");
    desk.run("init").fails(4, &["gateway.key is missing", "move pki/gateway.crt away"]);
    fs::rename(desk.home("pki/gateway.crt"), desk.path("away")).unwrap();
    desk.run("init").done();
    desk.run("config check").done();
    let desk = without("pki/root.crt");
    fs::remove_file(desk.home("pki/root.key")).unwrap();
    desk.run("init").fails(4, &["root.crt is missing", "put it back"]);
    assert!(!desk.home("pki/root.key").exists());
}

#[test]
fn the_root_may_live_elsewhere() {
    let desk = without("pki/root.key");
    let stands = desk.run("init --json").json();
    assert!(!stands["stands"].to_string().contains("root.key"), "{stands}");
    assert!(!desk.home("pki/root.key").exists());
    desk.run("device add press-7").done();
}

#[test]
fn a_command_names_the_file_that_it_misses() {
    let desk = without("pki/issuing.key");
    desk.run("device add press-7").fails(1, &["home/pki/issuing.key does not exist", "put it back"]);
    let desk = without("pki/master.key");
    desk.run("device add press-7").fails(1, &["home/pki/master.key does not exist", "put it back"]);
    desk.run("gateway run --listen 127.0.0.1:0").fails(1, &["home/pki/master.key does not exist"]);
    desk.run("device list").done();
    let desk = without("registry.db");
    desk.run("device list").fails(1, &["there is no database at home/registry.db", "doorward init"]);
    let desk = Desk::empty();
    desk.run("device list").fails(1, &["there is no home at home", "doorward init", "--home"]);
    desk.run("device add press-7 --database sqlite://x.db").fails(1, &["no database at x.db"]);
    assert_eq!(desk.modes("."), [""; 0], "looking makes nothing");
}

#[test]
fn an_open_secret_is_refused_with_the_command_that_mends_it() {
    let desk = Desk::new();
    for (name, line) in [
        ("pki/master.key", "device add press-7"),
        ("pki/issuing.key", "device add press-7"),
        ("pki/master.key", "gateway run --listen 127.0.0.1:0"),
        ("pki/gateway.key", "gateway run --listen 127.0.0.1:0"),
        ("pki/gateway.key", "config check"),
    ] {
        chmod(&desk.home(name), 0o640);
        desk.run(line).fails(1, &["0640", &format!("chmod 600 home/{name}")]);
        chmod(&desk.home(name), 0o600);
    }
    desk.run("config check").done();
    assert!(!desk.home("devices").exists());
}

#[test]
fn what_is_unreadable_or_another_thing_is_named() {
    let desk = Desk::new();
    for (name, text, line, words) in [
        ("pki/master.key", "junk", "device add press-7", "master key file is one line"),
        ("pki/issuing.key", "junk", "device add press-7", "issuing.key"),
        ("pki/issuing.crt", "junk", "device add press-7", "issuing.crt"),
        ("pki/gateway.crt", "junk", "config check", "no certificate in it"),
        ("pki/gateway.key", "junk", "config check", "no private key"),
        ("pki/issuing.crt", "junk", "gateway run --listen 127.0.0.1:0", "issuing.crt"),
    ] {
        let whole = fs::read(desk.home(name)).unwrap();
        fs::write(desk.home(name), text).unwrap();
        desk.run(line).fails(1, &[words, name]);
        fs::write(desk.home(name), whole).unwrap();
    }
    // Another authority's key: the certificate would not verify.
    let key = fs::read(desk.home("pki/issuing.key")).unwrap();
    fs::copy(desk.home("pki/root.key"), desk.home("pki/issuing.key")).unwrap();
    desk.run("device add press-7").fails(1, &["issuing.crt", "different authorities"]);
    fs::write(desk.home("pki/issuing.key"), key).unwrap();
    fs::copy(desk.home("pki/root.key"), desk.home("pki/gateway.key")).unwrap();
    for line in ["config check", "gateway run --listen 127.0.0.1:0"] {
        desk.run(line).fails(1, &["gateway.crt and home/pki/gateway.key do not make", "put back"]);
    }
    chmod(&desk.home("pki/master.key"), 0);
    desk.run_as_mortal("device add press-7")
        .fails(1, &["cannot read home/pki/master.key", "Permission denied"]);
    assert!(!desk.home("devices").exists());
    desk.run("device show press-7").fails(3, &[]);
}

#[test]
fn a_home_that_has_become_read_only_registers_nothing() {
    let desk = Desk::new();
    chmod(&desk.path("home"), 0o500);
    let refused = desk.run_as_mortal("device add press-7");
    chmod(&desk.path("home"), 0o700);
    refused.fails(1, &["Permission denied"]);
    desk.run("device show press-7").fails(3, &["there is no device 'press-7'"]);
    desk.run("device add press-7").done();
}
