//! `device add --count`: whatever cuts it short, a repeat ends with exactly the devices that the file holds.

use std::collections::HashSet;
use std::fs;
use std::process::Child;
use std::time::Duration;

use doorward_pki::{BulkLine, Fingerprint, MasterKey};
use doorward_proto::ids::DeviceId;
use rcgen::PublicKeyData;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::json;

use crate::support::command::{Desk, Ran, chmod, mode, signal, until};
use crate::support::database::Database;

use super::on_both;

const MANY: usize = 1500;

fn line_of(count: usize) -> String {
    format!("device add --count {count} --prefix p- --out bulk.jsonl")
}

fn lines(desk: &Desk, name: &str) -> Vec<BulkLine> {
    let text = fs::read_to_string(desk.path(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The file and the registry hold the same devices, and each line opens what the registry keeps.
async fn assert_whole(database: &Database, desk: &Desk, count: usize) {
    assert!(!desk.path("bulk.jsonl.part").exists());
    assert_eq!(mode(&desk.path("bulk.jsonl")), 0o600);
    let lines = lines(desk, "bulk.jsonl");
    assert_agree(database, desk, &lines, count).await;
}

async fn assert_agree(database: &Database, desk: &Desk, lines: &[BulkLine], count: usize) {
    let expected: Vec<String> = (1..=count).map(|n| format!("p-{n:06}")).collect();
    let ids: Vec<DeviceId> = lines.iter().map(|line| line.device.clone()).collect();
    assert_eq!(ids.iter().map(DeviceId::as_str).collect::<Vec<_>>(), expected);
    for table in ["devices", "certificates", "hmac_keys"] {
        let rows = database.number(&format!("SELECT count(*) FROM {table}")).await;
        assert_eq!(rows, i64::try_from(count).unwrap(), "{table}");
    }
    let master = MasterKey::parse(&fs::read_to_string(desk.home("pki/master.key")).unwrap()).unwrap();
    let mut keys = HashSet::new();
    let mut known = database.registry.known(&ids).await.unwrap();
    known.sort_by(|a, b| a.0.cmp(&b.0));
    for (line, (id, certificates)) in lines.iter().zip(&known) {
        assert_eq!(line.device, *id);
        let der = CertificateDer::from_pem_slice(line.certificate.as_bytes()).unwrap();
        assert_eq!(*certificates, [Fingerprint::of(&der)]);
        let key = rcgen::KeyPair::from_pem(line.private_key.as_str()).unwrap();
        let (_, leaf) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert_eq!(*leaf.public_key().subject_public_key.data, *key.der_bytes(), "the line's own key");
        assert!(keys.insert(*line.key.hmac.as_bytes()), "every device has a key of its own");
    }
    // One query a device: some of them stand for all.
    for line in lines.iter().step_by(lines.len() / 40 + 1) {
        let device = database.registry.device(&line.device).await.unwrap().unwrap();
        let opened = master.open(&line.device, line.key.version, &device.keys[0].sealed).unwrap();
        assert_eq!(*opened, *line.key.hmac.as_bytes());
    }
}

fn part_length(desk: &Desk) -> u64 {
    fs::metadata(desk.path("bulk.jsonl.part")).map_or(0, |metadata| metadata.len())
}

/// Starts a run and waits until it has written something.
fn begun(desk: &Desk, count: usize) -> Child {
    let child = desk.command(&line_of(count)).spawn().unwrap();
    until("the first batch", || part_length(desk) > 0 || desk.path("bulk.jsonl").exists());
    child
}

async fn killed_and_repeated_it_ends_with_each_device_once(database: Database, desk: Desk) {
    let mut kills = 0;
    loop {
        let mut child = desk.command(&line_of(MANY)).spawn().unwrap();
        // At any moment of its life: of a start, of a batch, of a commit.
        if kills < 8 {
            std::thread::sleep(Duration::from_millis(fastrand::u64(20..500)));
            if child.try_wait().unwrap().is_none() {
                child.kill().unwrap();
                kills += 1;
            }
        }
        if desk.path("bulk.jsonl.part").exists() {
            assert_eq!(mode(&desk.path("bulk.jsonl.part")), 0o600);
        }
        if child.wait().unwrap().success() {
            break;
        }
        assert!(kills <= 8);
    }
    assert_whole(&database, &desk, MANY).await;
    let again = desk.run(&format!("{} --json", line_of(MANY))).json();
    assert_eq!(again, json!({ "file": "bulk.jsonl", "devices": MANY, "added": 0 }));
}

async fn interrupted_it_leaves_whole_devices(database: Database, desk: Desk) {
    let child = begun(&desk, 3000);
    signal(&child, "INT");
    let ended = Ran::ended(child).fails(1, &["interrupted after", "of 3000 devices", "repeat the command"]);
    let lines = lines(&desk, "bulk.jsonl.part");
    assert!(!lines.is_empty() && lines.len() < 3000);
    assert!(ended.err.contains(&format!("after {} of", lines.len())), "{}", ended.err);
    assert_agree(&database, &desk, &lines, lines.len()).await;
    assert!(!desk.path("bulk.jsonl").exists());
    desk.run(&line_of(3000)).done().says(&["3000 devices are registered", "bulk.jsonl"]);
    assert_whole(&database, &desk, 3000).await;
}

async fn what_was_written_and_not_committed_is_added(database: Database, desk: Desk) {
    desk.run(&line_of(30)).done();
    // As if the database had lost the commit: the lines are there, the devices are not.
    let other = match database.sql {
        crate::support::database::Sql::Sqlite(_) => Database::bare_sqlite().await,
        crate::support::database::Sql::Postgres(_) => Database::bare_postgres().await,
    };
    let desk = desk.told(&other.url.to_string());
    desk.run("init").done();
    fs::rename(desk.path("bulk.jsonl"), desk.path("bulk.jsonl.part")).unwrap();
    let text = fs::read_to_string(desk.path("bulk.jsonl.part")).unwrap();
    // The last line is torn; the one before it stands.
    fs::write(desk.path("bulk.jsonl.part"), &text[..text.len() - 100]).unwrap();
    let first = lines_before_the_last(&text);
    desk.run(&line_of(30)).done();
    assert_whole(&other, &desk, 30).await;
    assert!(
        fs::read_to_string(desk.path("bulk.jsonl")).unwrap().starts_with(first),
        "credentials are not made twice"
    );
}

fn lines_before_the_last(text: &str) -> &str {
    &text[..text.trim_end().rfind('\n').unwrap() + 1]
}

on_both!(
    killed_and_repeated_it_ends_with_each_device_once,
    interrupted_it_leaves_whole_devices,
    what_was_written_and_not_committed_is_added,
);

#[tokio::test]
async fn a_torn_line_is_made_anew() {
    let database = Database::bare_sqlite().await;
    let desk = Desk::on(&database);
    desk.run(&line_of(3)).done();
    let text = fs::read_to_string(desk.path("bulk.jsonl")).unwrap();
    fs::remove_file(desk.path("bulk.jsonl")).unwrap();
    let zeros = "\0".repeat(900);
    let whole = lines_before_the_last(&text);
    let torn = &text[whole.len()..];
    database.execute("DELETE FROM hmac_keys WHERE device = 'p-000003'").await.unwrap_or_default();
    for tail in ["{", r#"{"device":"p-"#, &torn[..700], &format!("{}{zeros}", &torn[..300]), &zeros] {
        // Each time in a registry that has never seen it.
        let other = Database::bare_sqlite().await;
        let url = other.url.to_string();
        let line = format!("--database {url} {}", line_of(3));
        desk.run(&format!("--database {url} init")).done();
        desk.write("bulk.jsonl.part", format!("{whole}{tail}"));
        desk.run(&line).done();
        assert_whole(&other, &desk, 3).await;
        assert!(fs::read_to_string(desk.path("bulk.jsonl")).unwrap().starts_with(whole));
        fs::remove_file(desk.path("bulk.jsonl")).unwrap();
    }
}

#[test]
fn what_is_somebody_elses_is_refused_and_left_alone() {
    let desk = Desk::new();
    desk.run("device add --count 3 --prefix q- --out q.jsonl").done();
    desk.run("device add --count 3 --prefix p- --fleet default --out p.jsonl").done();
    let others = fs::read_to_string(desk.path("q.jsonl")).unwrap();
    let mine = fs::read_to_string(desk.path("p.jsonl")).unwrap();
    let long = "x".repeat(200_000);
    let first = mine.lines().next().unwrap();
    for text in [
        others.as_str(),
        "shopping list: milk",
        "shopping list: milk\n",
        "{\"device\":\"q-000001\",",
        &long,
        &format!("{first}\n{first}\n"),
        &mine,
        "\n",
    ] {
        for name in ["bulk.jsonl", "bulk.jsonl.part"] {
            desk.write(name, text);
            // Two devices: the whole file of three is another run's, too.
            desk.run("device add --count 2 --prefix p- --out bulk.jsonl")
                .fails(4, &[name, "is not of this run"]);
            assert_eq!(fs::read_to_string(desk.path(name)).unwrap(), text);
            fs::remove_file(desk.path(name)).unwrap();
        }
    }
    desk.run("fleet add presses").done();
    let other_fleet = "device add --count 3 --prefix p- --out p.jsonl --fleet presses";
    desk.run(other_fleet).fails(4, &["is not of this run", "of fleet 'default'"]);
    desk.run("device add --count 4 --prefix p- --out p.jsonl").fails(4, &["it has 3 devices"]);
    // The binary may not be text at all.
    desk.write("bulk.jsonl.part", [0xff; 100]);
    let refused = desk.run(&line_of(3));
    assert!(matches!(refused.code, Some(1 | 4)), "{refused:?}");
    assert_eq!(fs::read(desk.path("bulk.jsonl.part")).unwrap(), [0xff; 100]);
    assert_eq!(desk.run("device list --json").json().as_array().unwrap().len(), 6);
}

#[test]
fn ids_that_are_taken_are_refused_before_anything_is_made() {
    let desk = Desk::new();
    desk.run("device add P-000700").done();
    desk.run(&line_of(1000)).fails(4, &["'P-000700' exists already", "--prefix"]);
    assert!(!desk.path("bulk.jsonl").exists() && !desk.path("bulk.jsonl.part").exists());
    assert_eq!(desk.run("device list --json").json().as_array().unwrap().len(), 1);
    desk.run("device add --count 3 --prefix x --out x.jsonl --fleet none")
        .fails(3, &["there is no fleet 'none'"]);
    desk.run("device add --count 3 --prefix x --out none/x.jsonl").fails(1, &["none/x.jsonl"]);
    fs::create_dir(desk.path("folder")).unwrap();
    desk.run("device add --count 3 --prefix x --out folder").fails(1, &["folder"]);
}

#[test]
fn a_second_run_beside_the_first_is_refused() {
    let desk = Desk::new();
    let mut first = begun(&desk, 3000);
    let second = desk.run(&line_of(3000));
    if first.try_wait().unwrap().is_none() {
        second.fails(1, &["another run is writing bulk.jsonl.part", "wait"]);
    }
    Ran::ended(first).done();
    desk.run(&line_of(3000)).done().says(&["were there already"]);
}

#[test]
fn another_homes_file_is_refused() {
    let desk = Desk::new();
    desk.run(&line_of(3)).done();
    let other = Desk::new();
    fs::copy(desk.path("bulk.jsonl"), other.path("bulk.jsonl")).unwrap();
    other.run(&line_of(3)).fails(4, &["another CA"]);
    assert_eq!(other.run("device list --json").json(), json!([]));
}

#[test]
fn a_file_that_was_open_to_others_is_closed() {
    let desk = Desk::new();
    let part = desk.write("bulk.jsonl.part", "");
    crate::support::command::chmod(&part, 0o644);
    desk.run(&line_of(3)).done();
    assert_eq!(mode(&desk.path("bulk.jsonl")), 0o600);
}

#[test]
fn it_stays_quiet_where_nobody_watches() {
    let desk = Desk::new();
    let ran = desk.run(&line_of(600)).done();
    assert_eq!(ran.out, "");
    assert_eq!(ran.err, "600 devices are registered; their credentials are in bulk.jsonl\n");
}

#[test]
fn no_key_goes_through_a_link_or_into_a_pipe() {
    let desk = Desk::new();
    let victim = desk.write("victim", "what was there\n");
    chmod(&victim, 0o644);
    std::os::unix::fs::symlink("victim", desk.path("a.jsonl.part")).unwrap();
    desk.run("device add --count 3 --prefix a --out a.jsonl").fails(1, &["a.jsonl.part"]);
    assert_eq!((fs::read_to_string(&victim).unwrap().as_str(), mode(&victim)), ("what was there\n", 0o644));
    std::os::unix::fs::symlink("victim", desk.path("b.jsonl")).unwrap();
    desk.run("device add --count 3 --prefix b --out b.jsonl").fails(1, &["b.jsonl"]);
    assert_eq!(mode(&victim), 0o644);
    let made = std::process::Command::new("mkfifo").arg(desk.path("c.jsonl.part")).status().unwrap();
    assert!(made.success());
    desk.run("device add --count 3 --prefix c --out c.jsonl").fails(1, &["c.jsonl.part is no regular file"]);
    assert_eq!(desk.run("device list --json").json(), json!([]));
}
