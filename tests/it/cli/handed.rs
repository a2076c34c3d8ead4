//! Secrets that a process is handed: by systemd as credentials, by the environment.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::command::{Desk, Ran, chmod};
use crate::support::running::Running;

fn with(desk: &Desk, line: &str, variables: &[(&str, &str)]) -> Ran {
    let mut command = desk.command(line);
    command.envs(variables.iter().copied());
    Ran::of(&mut command)
}

/// A credential, as systemd puts it down.
fn credential(desk: &Desk, name: &str, text: &str, mode: u32) -> String {
    let folder = desk.path("credentials");
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join(name);
    let _ = fs::remove_file(&path);
    fs::write(&path, text).unwrap();
    chmod(&path, mode);
    folder.to_str().unwrap().to_owned()
}

fn row<'a>(rows: &'a Value, key: &str) -> (&'a str, &'a str) {
    let row = rows.as_array().unwrap().iter().find(|row| row["key"] == key).unwrap();
    (row["value"].as_str().unwrap(), row["source"].as_str().unwrap())
}

#[test]
fn the_master_key_is_a_credential_or_a_variable() {
    let desk = Desk::new();
    let key = fs::read_to_string(desk.home("pki/master.key")).unwrap();
    desk.run("device add a").done();
    let folder = credential(&desk, "doorward-master-key", &key, 0o400);
    let by_credential = [("CREDENTIALS_DIRECTORY", folder.as_str())];
    let by_variable = [("DOORWARD_MASTER_KEY", key.trim())];
    let rows = desk.run("config show --json").json();
    assert_eq!(row(&rows, "secrets.master_key"), ("\"home/pki/master.key\"", "file"));
    // All of them say the same: the first counts.
    let rows = with(&desk, "config show --json", &[by_credential[0], by_variable[0]]).json();
    let (value, source) = row(&rows, "secrets.master_key");
    assert!(value.contains("credentials/doorward-master-key") && source == "credential", "{rows}");

    fs::remove_file(desk.home("pki/master.key")).unwrap();
    desk.run("device add b").fails(1, &["home/pki/master.key does not exist"]);
    with(&desk, "device add b", &by_variable).done();
    // An access control list's mask stands in the group's place.
    for mode in [0o400, 0o440, 0o600] {
        chmod(&Path::new(&folder).join("doorward-master-key"), mode);
        with(&desk, "device bundle b --out again", &by_credential).done();
        fs::remove_dir_all(desk.path("again")).unwrap();
    }
    chmod(&Path::new(&folder).join("doorward-master-key"), 0o444);
    with(&desk, "device bundle b --out again", &by_credential).fails(1, &["0444", "chmod 600"]);
    chmod(&Path::new(&folder).join("doorward-master-key"), 0o400);
    let rows = with(&desk, "config show --json", &by_variable).json();
    assert_eq!(row(&rows, "secrets.master_key"), ("\"DOORWARD_MASTER_KEY\"", "environment"));
    assert!(!rows.to_string().contains(key.trim()));

    let mut run = desk.command("gateway run --listen 127.0.0.1:0");
    run.envs(by_credential);
    Running::spawn(&mut run).ended_by("TERM");
    let mut run = desk.command("gateway run --listen 127.0.0.1:0");
    run.envs(by_variable);
    Running::spawn(&mut run).ended_by("TERM");
    // An empty one says nothing.
    with(&desk, "device add c", &[("DOORWARD_MASTER_KEY", "")]).fails(1, &["master.key does not exist"]);
    with(&desk, "device add c", &[("DOORWARD_MASTER_KEY", "junk")])
        .fails(1, &["the variable DOORWARD_MASTER_KEY", "one line"]);
}

#[test]
fn two_master_keys_are_one_too_many() {
    let (desk, other) = (Desk::new(), Desk::new());
    let key = fs::read_to_string(other.home("pki/master.key")).unwrap();
    let by_variable = [("DOORWARD_MASTER_KEY", key.trim())];
    for line in ["device add a", "gateway run --listen 127.0.0.1:0", "init", "pki rewrap"] {
        let ran = with(&desk, line, &by_variable);
        let ran = ran.fails(4, &[if line == "pki rewrap" { "handed" } else { "is not the one in" }]);
        assert!(!ran.err.contains(key.trim()), "{ran:?}");
    }
    let rows = with(&desk, "config show --json", &by_variable).json();
    assert!(row(&rows, "secrets.master_key").0.contains("cannot be used: the master key in"), "{rows}");
}

#[test]
fn a_home_whose_master_key_is_handed_over_has_none_of_its_own() {
    let desk = Desk::empty();
    let other = Desk::new();
    let key = fs::read_to_string(other.home("pki/master.key")).unwrap();
    let by_variable = [("DOORWARD_MASTER_KEY", key.trim())];
    with(&desk, "init", &by_variable).done().says(&["the variable DOORWARD_MASTER_KEY"]);
    assert!(!desk.home("pki/master.key").exists());
    with(&desk, "device add a", &by_variable).done();
    with(&desk, "init", &by_variable).done().says(&["nothing had to be made"]);
}

#[test]
fn the_passphrase_is_a_credential_or_a_variable() {
    let desk = Desk::empty();
    desk.write("right", "correct horse battery\n");
    let folder = credential(&desk, "doorward-ca-passphrase", "correct horse battery\n", 0o400);
    let by_credential = ("CREDENTIALS_DIRECTORY", folder.as_str());
    let by_variable = ("DOORWARD_CA_PASSPHRASE", "correct horse battery");
    with(&desk, "init", &[by_variable]).done();
    let first = fs::read_to_string(desk.home("pki/root.key")).unwrap();
    assert!(first.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"));
    desk.run("device add a").fails(1, &["encrypted"]);
    with(&desk, "device add a", &[by_variable]).done();
    with(&desk, "device add b", &[by_credential]).done();
    with(&desk, "device add c --passphrase-file right", &[by_credential, by_variable]).done();
    let wrong = ("DOORWARD_CA_PASSPHRASE", "tr0ub4dor");
    let refused = with(&desk, "device add d", &[wrong])
        .fails(1, &["passphrase does not open", "taken from the variable DOORWARD_CA_PASSPHRASE"]);
    assert!(!refused.err.contains("tr0ub4dor"));
    let refused = with(&desk, "device add d --passphrase-file right", &[wrong])
        .fails(4, &["the passphrase of the CA keys in right is not the one in", "DOORWARD_CA_PASSPHRASE"]);
    assert!(!refused.err.contains("tr0ub4dor") && !refused.err.contains("horse"));
    let rows = with(&desk, "config show --json", &[by_variable]).json();
    assert_eq!(row(&rows, "secrets.ca_passphrase"), ("\"DOORWARD_CA_PASSPHRASE\"", "environment"));
    let rows = desk.run("config show --json").json();
    assert_eq!(row(&rows, "secrets.ca_passphrase"), ("\"\"", "default"));
    let mut run = desk.command("issuer run");
    run.env("DOORWARD_CA_PASSPHRASE", "tr0ub4dor");
    Ran::of(&mut run).fails(1, &["passphrase does not open"]);
}
