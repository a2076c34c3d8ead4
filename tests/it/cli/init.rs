//! `init`: a whole home, or the rest of one.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::command::{Desk, Ran, chmod, openssl};

use super::on_both;

const FILES: [&str; 8] = [
    "config.toml",
    "pki/root.key",
    "pki/root.crt",
    "pki/issuing.key",
    "pki/issuing.crt",
    "pki/gateway.key",
    "pki/gateway.crt",
    "pki/master.key",
];

fn contents(desk: &Desk) -> BTreeMap<&'static str, String> {
    FILES.into_iter().filter_map(|name| Some((name, fs::read_to_string(desk.home(name)).ok()?))).collect()
}

fn remove_registry(desk: &Desk) {
    for end in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(desk.home(&format!("registry.db{end}")));
    }
}

/// What a home is for works: its chain verifies, and it adds a device.
fn assert_whole(desk: &Desk) {
    for (name, purpose) in [("home/pki/gateway.crt", "sslserver"), ("home/pki/issuing.crt", "any")] {
        let line = format!(
            "verify -x509_strict -purpose {purpose} -CAfile home/pki/root.crt -untrusted home/pki/issuing.crt {name}"
        );
        let (valid, words) = openssl(desk, &line);
        assert!(valid, "{words}");
    }
    let _ = fs::remove_dir_all(desk.home("devices/whole-1"));
    desk.run("device add whole-1").done();
    desk.run("config check").done();
}

#[test]
fn makes_a_home_that_others_cannot_read() {
    let desk = Desk::empty();
    let made = desk.run("init --json").json();
    assert_eq!(made["home"], "home");
    assert_eq!(made["made"].as_array().unwrap().len(), FILES.len());
    assert_eq!(made["stands"], serde_json::json!([]));
    assert_eq!(made["registry_changed"], true);
    let modes: Vec<String> = desk
        .modes(".")
        .into_iter()
        .filter(|line| !line.ends_with("-wal") && !line.ends_with("-shm"))
        .collect();
    assert_eq!(
        modes,
        [
            "700 home",
            "644 home/config.toml",
            "700 home/pki",
            "644 home/pki/gateway.crt",
            "600 home/pki/gateway.key",
            "644 home/pki/issuing.crt",
            "600 home/pki/issuing.key",
            "600 home/pki/master.key",
            "644 home/pki/root.crt",
            "600 home/pki/root.key",
            "600 home/registry.db",
            "700 home/state",
        ]
    );
    assert_whole(&desk);
}

#[test]
fn says_what_it_made_and_keeps_standard_output_for_programs() {
    let desk = Desk::empty();
    let ran = desk.run("init").done().says(&["made    home/pki/root.key", "made    the registry's schema"]);
    assert_eq!(ran.out, "");
}

#[test]
fn repeating_it_changes_nothing_and_says_what_stands() {
    let desk = Desk::new();
    let before = contents(&desk);
    let again = desk.run("init").done().says(&["stands  home/pki/root.key", "nothing had to be made"]);
    assert_eq!(again.out, "");
    let json = desk.run("init --json").json();
    assert_eq!((&json["made"], &json["registry_changed"]), (&serde_json::json!([]), &false.into()));
    assert_eq!(json["stands"].as_array().unwrap().len(), FILES.len());
    assert_eq!(contents(&desk), before);
    desk.run("init --host other.example").done().says(&["--host changed nothing"]);
    assert_eq!(contents(&desk), before);
}

#[test]
fn goes_on_wherever_it_was_cut_short() {
    let desk = Desk::new();
    let order: Vec<String> = fs::read_dir(desk.home("pki"))
        .map(|_| {
            let fresh = Desk::empty().run("init --json").json();
            let made = fresh["made"].as_array().unwrap();
            made.iter().map(|path| path.as_str().unwrap().trim_start_matches("home/").to_owned()).collect()
        })
        .unwrap();
    assert_eq!(order.len(), FILES.len());
    // From the end: each round cuts the newest files off, and one more than the round before.
    for kept in (0..order.len()).rev() {
        for name in &order[kept..] {
            fs::remove_file(desk.home(name)).unwrap();
        }
        remove_registry(&desk);
        let before = contents(&desk);
        assert_eq!(before.len(), kept);
        desk.run("init").done();
        let after = contents(&desk);
        assert_eq!(after.len(), FILES.len(), "{kept}");
        for (name, text) in before {
            assert_eq!(after[name], text, "{name} was there already");
        }
        assert_whole(&desk);
    }
}

#[test]
fn killed_at_any_moment_it_can_be_repeated() {
    for _ in 0..12 {
        let desk = Desk::empty();
        let mut child = desk.command("init").spawn().unwrap();
        std::thread::sleep(Duration::from_millis(fastrand::u64(0..120)));
        let _ = child.kill();
        child.wait().unwrap();
        let before = contents(&desk);
        desk.run("init").done();
        let after = contents(&desk);
        for (name, text) in before {
            assert_eq!(after[name], text, "{name} was there already");
        }
        assert_whole(&desk);
    }
}

#[test]
fn several_at_once_make_one_home() {
    let desk = Desk::empty();
    let children: Vec<_> = (0..4).map(|_| desk.command("init").spawn().unwrap()).collect();
    for child in children {
        Ran::ended(child).done();
    }
    assert_whole(&desk);
    let left: Vec<_> = desk.modes("home").into_iter().filter(|line| line.contains(".tmp")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn the_hosts_stand_in_certificate_and_url() {
    let desk = Desk::empty();
    desk.run("init --host gate.example.com --host 10.0.0.7 --host ::1").done();
    let (_, words) = openssl(&desk, "x509 -in home/pki/gateway.crt -noout -ext subjectAltName");
    for host in ["DNS:gate.example.com", "IP Address:10.0.0.7", "IP Address:0:0:0:0:0:0:0:1"] {
        assert!(words.contains(host), "{words}");
    }
    let bundle = desk.run("device add press-7 --json").json();
    let file = fs::read_to_string(desk.path(bundle["bundle"].as_str().unwrap()).join("device.json")).unwrap();
    assert!(file.contains("wss://gate.example.com:8443/v1/device"), "{file}");
    for bad in ["bad host", "höst", "a..b", ""] {
        Desk::empty().run(["init", "--host", bad]).fails(2, &["--host"]);
    }
}

#[test]
fn an_unusable_registry_leaves_a_home_to_go_on_with() {
    let desk = Desk::empty().told("postgres://ann:s3cret@127.0.0.1:1/none");
    let ran =
        desk.run("init").fails(1, &["cannot be reached", "ann@127.0.0.1:1/none", "repeat 'doorward init'"]);
    assert!(!ran.err.contains("s3cret"), "{}", ran.err);
    let before = contents(&desk);
    let desk = desk.told("");
    desk.run("init").done();
    for (name, text) in before {
        assert_eq!(contents(&desk)[name], text);
    }
    assert_whole(&desk);
    let desk = Desk::empty().told("sqlite://no/such/folder/registry.db");
    desk.run("init").fails(1, &["no/such/folder/registry.db", "No such file or directory"]);
    let desk = Desk::empty();
    fs::create_dir(desk.path("taken")).unwrap();
    desk.told("sqlite://taken").run("init").fails(1, &["sqlite://taken"]);
    let desk = Desk::empty();
    desk.write("junk.db", "this is no database, whatever its name says");
    let desk = desk.told("sqlite://junk.db");
    desk.run("init").fails(1, &["not a database", "sqlite://junk.db"]);
    assert_eq!(fs::read_to_string(desk.path("junk.db")).unwrap().len(), 43, "it is somebody else's");
}

#[test]
fn a_home_that_cannot_be_written_is_named() {
    let desk = Desk::empty();
    fs::create_dir(desk.path("home")).unwrap();
    chmod(&desk.path("home"), 0o555);
    desk.run_as_mortal("init").fails(1, &["cannot write home", "Permission denied"]);
    assert_eq!(desk.modes("home"), [""; 0]);
    chmod(&desk.path("home"), 0o755);
    desk.write("file", "");
    for home in ["file", "file/below"] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_doorward"));
        command.args(["--home", home, "init"]).current_dir(desk.path("."));
        Ran::of(&mut command).fails(1, &["cannot write file"]);
    }
}

#[test]
fn a_registry_that_the_configuration_does_not_name_is_pointed_out() {
    let desk = Desk::empty().told("sqlite://elsewhere.db");
    desk.run("init").done().says(&["config.toml does not name this registry", "DATABASE_URL"]);
    assert!(desk.path("elsewhere.db").exists() && !Path::exists(&desk.home("registry.db")));
}

async fn a_second_home_is_told_that_the_devices_are_not_its_own(
    database: crate::support::database::Database,
    desk: Desk,
) {
    desk.run("device add press-7").done();
    let other = Desk::empty().told(&database.url.to_string());
    other.run("init").done().says(&["of another home"]);
    let refused = other.run("gateway run --listen 127.0.0.1:0").fails(1, &["press-7", "pki/master.key"]);
    assert!(!refused.err.contains("listening"));
    // A lost key is not made anew where it would open nothing.
    fs::remove_file(desk.home("pki/master.key")).unwrap();
    desk.run("init").fails(4, &["master.key is missing", "backup"]);
    assert!(!desk.home("pki/master.key").exists());
}

on_both!(a_second_home_is_told_that_the_devices_are_not_its_own);
