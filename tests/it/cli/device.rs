//! One device's life at the command line, on both databases.

use std::fs;

use doorward_pki::MasterKey;
use serde_json::json;

use crate::support::command::{Desk, mode, openssl};
use crate::support::database::{Database, Sql};

use super::{on_both, without_receipt};

async fn its_whole_life(_: Database, desk: Desk) {
    let added = desk.run("device add press-7 --json").json();
    assert_eq!((&added["device"], &added["fleet"]), (&json!("press-7"), &json!("default")));
    assert_eq!(added["bundle"], "home/devices/press-7");

    let shown = desk.run("device show press-7 --json").json();
    assert_eq!(shown["status"], "active");
    assert_eq!(shown["certificates"].as_array().unwrap().len(), 1);
    assert_eq!(shown["certificates"][0]["not_after"], added["certificate_expires"]);
    assert_eq!(shown["keys"], json!([{ "version": 1, "state": "active", "grace_until": null }]));
    assert_eq!((&shown["session"], &shown["quarantine"]), (&json!(null), &json!(null)));

    // Each act, and each again: the state that already is.
    for (line, status, again) in [
        ("device suspend press-7 --reason repair", "suspended", "was suspended already"),
        ("device resume press-7", "active", "was active already"),
        ("device suspend press-7 --reason repair", "suspended", "was suspended already"),
        ("device revoke press-7 --reason stolen", "revoked", "was revoked already"),
    ] {
        let first = desk.run(&format!("{line} --json")).json();
        assert_eq!(without_receipt(first), json!({ "device": "press-7", "status": status, "changed": true }));
        let repeated = desk.run(line).done().says(&[again]);
        assert_eq!(repeated.out, "");
        let repeated = desk.run(&format!("{line} --json")).json();
        assert_eq!(
            without_receipt(repeated),
            json!({ "device": "press-7", "status": status, "changed": false })
        );
        assert_eq!(desk.run("device show press-7 --json").json()["status"], status);
    }

    for line in [
        "device suspend press-7 --reason again",
        "device resume press-7",
        "device kick press-7",
        "device bundle press-7 --out bundles",
    ] {
        desk.run(line).fails(4, &["press-7", "revoked"]);
    }
    assert!(!desk.path("bundles").exists());
    desk.run("device add press-7 --out elsewhere")
        .fails(4, &["'press-7' exists already", "device show press-7"]);
    assert!(!desk.path("elsewhere").exists());
    assert_eq!(desk.run("device show press-7 --json").json()["reason"], "stolen");
}

async fn what_is_not_there_is_3(_: Database, desk: Desk) {
    for line in [
        "device show nobody",
        "device suspend nobody --reason x",
        "device resume nobody",
        "device revoke nobody --reason x",
        "device kick nobody",
        "device bundle nobody --out bundles",
        "message list --device nobody",
    ] {
        desk.run(line).fails(3, &["there is no device 'nobody'", "doorward device list"]);
        desk.run(&format!("{line} --json")).fails(3, &["there is no device 'nobody'"]);
    }
    desk.run("device add press-7 --fleet none").fails(3, &["there is no fleet 'none'", "fleet add none"]);
    desk.run("device list --fleet none").fails(3, &["there is no fleet 'none'"]);
    assert!(!desk.path("bundles").exists() && !desk.home("devices").exists());
}

async fn an_id_is_one_whatever_its_case(_: Database, desk: Desk) {
    desk.run("device add Press-7").done();
    for id in ["Press-7", "press-7", "PRESS-7"] {
        desk.run(&format!("device add {id} --out again")).fails(4, &["'Press-7' exists already"]);
    }
    desk.run("fleet add Presses").done();
    desk.run("fleet add presses").fails(4, &["exists already"]);
    assert!(!desk.path("again").exists());
}

async fn the_list_can_be_narrowed(_: Database, desk: Desk) {
    assert_eq!(desk.run("device list --json").json(), json!([]));
    assert_eq!(desk.run("device list").done().says(&["there is no such device"]).out, "");
    desk.run("fleet add presses").done();
    desk.run("device add press-7 --fleet presses").done();
    desk.run("device add cam-1").done();
    desk.run("device suspend cam-1 --reason repair").done();
    let ids = |line: &str| -> Vec<String> {
        let rows = desk.run(line).json();
        rows.as_array().unwrap().iter().map(|row| row["device"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids("device list --json"), ["cam-1", "press-7"]);
    assert_eq!(ids("device list --json --fleet presses"), ["press-7"]);
    assert_eq!(ids("device list --json --status suspended"), ["cam-1"]);
    assert_eq!(ids("device list --json --status suspended --fleet presses"), [""; 0]);
    let table = desk.run("device list").done().out;
    assert!(table.contains("STATUS") && table.contains("repair"), "{table}");
    desk.run("device list --status broken").fails(2, &["active, suspended, revoked"]);
}

async fn a_registry_that_refuses_the_commit_leaves_no_bundle(database: Database, desk: Desk) {
    // Refused by the statement, then only at the commit.
    let (statement, commit) = match database.sql {
        Sql::Sqlite(_) => (
            "CREATE TRIGGER no BEFORE INSERT ON hmac_keys BEGIN SELECT RAISE(ABORT, 'not today'); END",
            "DROP TRIGGER no; CREATE TABLE p (id TEXT PRIMARY KEY);
             CREATE TABLE c (x TEXT REFERENCES p (id) DEFERRABLE INITIALLY DEFERRED);
             CREATE TRIGGER late AFTER INSERT ON devices BEGIN INSERT INTO c VALUES ('none'); END",
        ),
        Sql::Postgres(_) => (
            "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not today'; END $$;
             CREATE TRIGGER no BEFORE INSERT ON hmac_keys FOR EACH ROW EXECUTE FUNCTION no()",
            "DROP TRIGGER no ON hmac_keys;
             CREATE CONSTRAINT TRIGGER late AFTER INSERT ON devices DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW EXECUTE FUNCTION no()",
        ),
    };
    for sql in [statement, commit] {
        database.execute(sql).await.unwrap();
        let refused = desk.run("device add press-7");
        assert!(matches!(refused.code, Some(1 | 4)), "{refused:?}");
        assert_eq!(fs::read_dir(desk.home("devices")).unwrap().count(), 0, "{refused:?}");
        assert_eq!(database.number("SELECT count(*) FROM devices").await, 0);
        // In bulk the lines stay for the repeat, and it fails as long as the registry does.
        let refused = desk.run("device add --count 3 --prefix p --out p.jsonl");
        assert!(matches!(refused.code, Some(1 | 4)), "{refused:?}");
        assert!(refused.code == Some(4) || refused.err.contains("repeat the command"), "{refused:?}");
        assert!(!desk.path("p.jsonl").exists());
    }
}

async fn a_registry_of_another_version_is_told_apart(database: Database, desk: Desk) {
    let lines = ["device list", "device add press-7", "gateway run --listen 127.0.0.1:0"];
    database.execute("UPDATE _sqlx_migrations SET version = version + 1000").await.unwrap();
    for line in lines {
        desk.run(line).fails(1, &["schema is version 10", "install the newer doorward"]);
    }
    desk.run("init").fails(1, &["schema is version 10", "install the newer doorward"]);
    database.execute("UPDATE _sqlx_migrations SET version = version - 2000").await.unwrap();
    for line in lines {
        desk.run(line).fails(1, &["schema is version -9", "run 'doorward init' to migrate it"]);
    }
    database.execute("DROP TABLE _sqlx_migrations").await.unwrap();
    for line in lines {
        desk.run(line).fails(1, &["has no schema; run 'doorward init'"]);
    }
    assert!(!desk.home("devices").exists());
}

async fn a_quarantine_is_shown_with_its_end(database: Database, desk: Desk) {
    let id = doorward_proto::ids::DeviceId::new("press-7").unwrap();
    desk.run("device add press-7").done();
    let an_hour = Some(std::time::Duration::from_secs(3600));
    let quarantine = async |lasts| {
        assert!(database.registry.quarantine(&id, "gateway-1", "too much", lasts).await.unwrap());
    };
    quarantine(an_hour).await;
    let shown = desk.run("device show press-7 --json").json();
    assert_eq!((&shown["status"], &shown["reason"]), (&json!("suspended"), &json!("too much")));
    let until = shown["quarantine"]["until"].as_str().unwrap_or_else(|| panic!("{shown:#}")).to_owned();
    let words = desk.run("device show press-7").done();
    let line = format!("quarantine   until {until}, then it is resumed by itself");
    assert!(words.out.lines().any(|shown| shown == line), "{words:#?}");
    // A person's word counts more, and leaves no end.
    desk.run("device resume press-7").done();
    assert_eq!(desk.run("device show press-7 --json").json()["quarantine"], json!(null));
    quarantine(None).await;
    assert_eq!(desk.run("device show press-7 --json").json()["quarantine"], json!({ "until": null }));
    let words = desk.run("device show press-7").done();
    assert!(words.out.contains("\nquarantine   until it is resumed\n"), "{words:#?}");
    desk.run("device suspend press-7 --reason repair --no-wait").done();
    let words = desk.run("device show press-7").done();
    assert!(words.out.contains("status       suspended"), "{words:#?}");
}

on_both!(
    its_whole_life,
    what_is_not_there_is_3,
    an_id_is_one_whatever_its_case,
    the_list_can_be_narrowed,
    a_registry_that_refuses_the_commit_leaves_no_bundle,
    a_registry_of_another_version_is_told_apart,
    a_key_is_rotated,
    a_certificate_is_rotated,
    a_quarantine_is_shown_with_its_end,
);

#[test]
fn ids_have_a_grammar() {
    let desk = Desk::new();
    let long = "a".repeat(65);
    for bad in ["", "a b", "a/b", "a.b", "-a", "_a", "é", "a\n", "..", &long, "a\u{1b}[31m"] {
        desk.run(["device", "add", "--", bad]).fails(2, &["an id is 1 to 64 of"]);
    }
    desk.run("device add gateway").fails(2, &["'gateway' is reserved"]);
    desk.run("device add").fails(2, &["<ID>"]);
    let longest = "a".repeat(64);
    for good in ["a", "7", "A_b-9", &longest] {
        desk.run(["device", "add", good]).done();
    }
}

#[test]
fn the_bundle_is_whole_and_private() {
    let desk = Desk::new();
    desk.run("device add press-7").done();
    assert_eq!(
        desk.modes("home/devices"),
        [
            "700 home/devices/press-7",
            "644 home/devices/press-7/ca.crt",
            "644 home/devices/press-7/device.crt",
            "600 home/devices/press-7/device.json",
            "600 home/devices/press-7/device.key",
        ]
    );
    assert_eq!(mode(&desk.home("devices")), 0o700);
    let read = |name: &str| fs::read_to_string(desk.home(&format!("devices/press-7/{name}"))).unwrap();
    let file: serde_json::Value = serde_json::from_str(&read("device.json")).unwrap();
    assert_eq!(file["device"], "press-7");
    assert_eq!(file["fleet"], "default");
    assert_eq!(file["url"], "wss://localhost:8443/v1/device");
    assert_eq!(file["key"]["version"], 1);
    assert_eq!(file["key"]["hmac"].as_str().unwrap().len(), 43);
    assert_eq!(read("device.crt").matches("BEGIN CERTIFICATE").count(), 2, "leaf, then intermediate");
    assert_eq!(read("ca.crt"), fs::read_to_string(desk.home("pki/root.crt")).unwrap());

    // The registry can write again all but the private key.
    let again = desk.run("device bundle press-7 --out again --json").json();
    assert_eq!(again, json!({ "device": "press-7", "bundle": "again/press-7" }));
    for name in ["device.crt", "device.json", "ca.crt"] {
        assert_eq!(fs::read_to_string(desk.path("again/press-7").join(name)).unwrap(), read(name), "{name}");
    }
    assert!(!desk.path("again/press-7/device.key").exists());
    desk.run("device bundle press-7 --out again").fails(4, &["again/press-7 exists already"]);
    assert_eq!(
        without_receipt(desk.run("device kick press-7 --json").json()),
        json!({ "device": "press-7", "kicked": true })
    );
}

#[tokio::test]
async fn nothing_that_exists_is_overwritten() {
    let desk = Desk::new();
    fs::create_dir_all(desk.home("devices/press-7")).unwrap();
    fs::write(desk.home("devices/press-7/device.key"), "somebody's").unwrap();
    desk.run("device add press-7").fails(4, &["home/devices/press-7 exists already", "not registered"]);
    assert_eq!(fs::read_to_string(desk.home("devices/press-7/device.key")).unwrap(), "somebody's");
    desk.run("device show press-7").fails(3, &[]);
    assert_eq!(desk.modes("home/devices").len(), 2, "no unfinished folder stays");
    desk.write("file", "");
    desk.run("device add press-7 --out file").fails(1, &["cannot write file"]);
    desk.run("device show press-7").fails(3, &[]);
}

#[test]
fn a_registry_of_another_master_key_gives_no_bundle() {
    let desk = Desk::new();
    desk.run("device add press-7").done();
    fs::write(desk.home("pki/master.key"), MasterKey::from_bytes([7; 32]).to_file().as_bytes()).unwrap();
    desk.run("device bundle press-7 --out again").fails(1, &["press-7", "master.key"]);
    assert!(!desk.path("again").exists());
    desk.run("gateway run --listen 127.0.0.1:0").fails(1, &["press-7", "put back the pki/master.key"]);
}

#[test]
fn reasons_are_short_and_plain() {
    let desk = Desk::new();
    desk.run("device add press-7").done();
    let long = "x".repeat(257);
    for bad in ["", "a\nb", "\u{1b}[31m", &long] {
        desk.run(["device", "suspend", "press-7", "--reason", bad]).fails(2, &["a reason is 1 to 256 bytes"]);
    }
    desk.run("device revoke press-7").fails(2, &["--reason"]);
    desk.run(["device", "suspend", "press-7", "--reason", "'; DROP TABLE devices; -- \u{202e}é"]).done();
    assert_eq!(
        desk.run("device show press-7 --json").json()["reason"],
        "'; DROP TABLE devices; -- \u{202e}é"
    );
}

#[test]
fn a_life_beyond_the_authoritys_is_cut_and_said() {
    let desk = Desk::new();
    desk.run("device add press-7 --days 36500").done().says(&["ends with its CA's"]);
    let (_, ca) = openssl(&desk, "x509 -in home/pki/issuing.crt -noout -enddate");
    let (_, leaf) = openssl(&desk, "x509 -in home/devices/press-7/device.crt -noout -enddate");
    assert_eq!(ca, leaf);
    for bad in ["0", "-1", "36501", "x"] {
        desk.run(["device", "add", "press-8", &format!("--days={bad}")]).fails(2, &["--days"]);
    }
}

async fn a_key_is_rotated(_: Database, desk: Desk) {
    desk.run("device add press-7").done();
    let rotated = desk.run("device rotate-key press-7 --json").json();
    let pending =
        json!({ "device": "press-7", "version": 2, "changed": true, "state": "pending", "bundle": null });
    assert_eq!(rotated, pending);
    // At most one is pending: again it is the same one; and the bundle has it.
    let again = desk.run("device rotate-key press-7 --out out --json").json();
    assert_eq!(
        (&again["version"], &again["changed"], &again["bundle"]),
        (&json!(2), &json!(false), &json!("out/press-7"))
    );
    let bundle = fs::read_to_string(desk.path("out/press-7/device.json")).unwrap();
    let bundle: serde_json::Value = serde_json::from_str(&bundle).unwrap();
    assert_eq!(bundle["key"]["version"], 2);
    assert_eq!(mode(&desk.path("out/press-7/device.json")), 0o600);
    let keys = |desk: &Desk| {
        let shown = desk.run("device show press-7 --json").json();
        let keys = shown["keys"].as_array().unwrap().clone();
        keys.into_iter().map(|key| key["state"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(keys(&desk), ["active", "pending"]);

    // A leaked key: nothing of what was holds any more.
    desk.run("device rotate-key press-7 --grace 0s").fails(2, &["--out DIR", "by the bundle alone"]);
    desk.run("device rotate-key press-7 --grace 0s --out out").fails(4, &["out/press-7 exists already"]);
    assert_eq!(keys(&desk), ["active", "pending"], "nothing is changed where the bundle cannot be written");
    let leaked = desk.run("device rotate-key press-7 --grace 0s --out new --json").json();
    assert_eq!(
        (&leaked["version"], &leaked["state"], &leaked["bundle"]),
        (&json!(3), &json!("active"), &json!("new/press-7"))
    );
    assert_eq!(leaked["receipt"]["confirmed"], 0);
    assert_eq!(keys(&desk), ["retired", "retired", "active"]);
    let audit = desk.run("audit list --json").json();
    let acts: Vec<&str> =
        audit.as_array().unwrap().iter().map(|row| row["action"].as_str().unwrap()).collect();
    assert_eq!(acts.iter().filter(|act| **act == "key.add").count(), 2, "{acts:?}");
    assert_eq!(acts.iter().filter(|act| **act == "key.retire").count(), 2, "{acts:?}");

    let words = "key version 4 of 'press-7', in newer/press-7, is the only one that holds";
    desk.run("device rotate-key press-7 --grace 0s --out newer").done().says(&[words]);
    desk.run("device rotate-key nobody").fails(3, &["there is no device 'nobody'"]);
    desk.run("device rotate-key press-7 --grace 400d").fails(2, &["at most 366d"]);
    desk.run("device revoke press-7 --reason stolen").done();
    desk.run("device rotate-key press-7").fails(4, &["revoked"]);
}

async fn a_certificate_is_rotated(_: Database, desk: Desk) {
    desk.run("device add press-7").done();
    desk.run("device rotate-cert press-7")
        .fails(4, &["home/devices/press-7 exists already", "another folder with --out"]);
    let rotated = desk.run("device rotate-cert press-7 --out out --days 30 --grace 1h --json").json();
    assert_eq!((&rotated["changed"], &rotated["bundle"]), (&json!(true), &json!("out/press-7")));
    let shown = desk.run("device show press-7 --json").json();
    let certificates = shown["certificates"].as_array().unwrap();
    assert_eq!(certificates.len(), 2);
    assert!(
        certificates.iter().all(|certificate| certificate["status"] == "active"),
        "the grace has not begun"
    );
    assert!(certificates.iter().any(|certificate| certificate["serial"] == rotated["serial"]));
    // A whole bundle, with a key of its own, which openssl takes for what it is.
    for file in ["device.key", "device.json"] {
        assert_eq!(mode(&desk.path(&format!("out/press-7/{file}"))), 0o600, "{file}");
    }
    let (fits, said) = openssl(
        &desk,
        "verify -x509_strict -CAfile out/press-7/ca.crt -untrusted out/press-7/device.crt out/press-7/device.crt",
    );
    assert!(fits, "{said}");
    let public = |line: &str| openssl(&desk, line).1;
    let of_key = public("pkey -in out/press-7/device.key -pubout");
    assert_eq!(of_key, public("x509 -in out/press-7/device.crt -noout -pubkey"));
    assert_ne!(of_key, public("pkey -in home/devices/press-7/device.key -pubout"));

    // By a request of the device's own: its key is new, or the renewal protects nothing.
    let request = |key: &str, out: &str| {
        let (made, said) =
            openssl(&desk, &format!("req -new -sha256 -key {key} -subj /CN=press-7 -out {out}"));
        assert!(made, "{said}");
    };
    request("out/press-7/device.key", "reused.csr");
    desk.run("device rotate-cert press-7 --csr reused.csr --out csr")
        .fails(1, &["has had already", "make a new key"]);
    let (made, said) = openssl(&desk, "ecparam -name prime256v1 -genkey -noout -out new.key");
    assert!(made, "{said}");
    request("new.key", "new.csr");
    let by_request = desk.run("device rotate-cert press-7 --csr new.csr --out csr --grace 0s --json").json();
    assert!(!desk.path("csr/press-7/device.key").exists());
    assert_eq!(by_request["receipt"]["confirmed"], 0);
    let shown = desk.run("device show press-7 --json").json();
    for certificate in shown["certificates"].as_array().unwrap() {
        let newest = certificate["serial"] == by_request["serial"];
        assert_eq!(certificate["status"], if newest { "active" } else { "superseded" }, "{shown}");
    }
    // Revoking the oldest revokes what was renewed from it.
    let oldest = certificates.iter().find(|certificate| certificate["serial"] != rotated["serial"]).unwrap();
    desk.run(&format!("cert revoke {} --reason leaked", oldest["serial"].as_str().unwrap()))
        .done()
        .says(&["and 2 renewed from it"]);

    desk.run("device rotate-cert nobody --out x").fails(3, &["there is no device 'nobody'"]);
    desk.run("device rotate-cert press-7 --csr missing.csr --out x").fails(1, &["missing.csr"]);
    desk.run("device revoke press-7 --reason stolen").done();
    desk.run("device rotate-cert press-7 --out x").fails(4, &["revoked"]);
    assert!(!desk.path("x").exists(), "nothing half-written");
}
