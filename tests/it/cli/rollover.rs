//! `pki rollover`: a second issuing CA beside the first, whenever it is cut short and however often it is repeated.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use doorward_client::backoff::BackoffOptions;
use doorward_client::{Credentials, Device, Options, State};
use serde_json::{Value, json};

use crate::support::command::{Desk, Ran, chmod, mode, openssl};
use crate::support::database::Database;
use crate::support::house::{eventually, within};
use crate::support::running::Running;

use super::on_both;

on_both!(the_old_ca_goes_when_nothing_depends_on_it, a_gateway_lets_both_in_until_the_end);

/// The files of the home's CAs.
type Files = BTreeMap<String, Vec<u8>>;

fn files(desk: &Desk) -> Files {
    let read = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.unwrap();
        (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
    };
    fs::read_dir(desk.home("pki")).unwrap().map(read).collect()
}

/// Puts the home's CAs into a state.
fn put(desk: &Desk, files: &Files) {
    for entry in fs::read_dir(desk.home("pki")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    for (name, content) in files {
        let path = desk.home(&format!("pki/{name}"));
        fs::write(&path, content).unwrap();
        chmod(&path, if name.ends_with(".key") { 0o600 } else { 0o644 });
    }
}

fn certificates(text: &[u8]) -> Vec<String> {
    let text = str::from_utf8(text).unwrap();
    text.split_inclusive("-----END CERTIFICATE-----\n").map(str::to_owned).collect()
}

/// Key id and role of each CA.
fn roles(desk: &Desk) -> Vec<(String, String)> {
    let status = desk.run("pki rollover status --json").json();
    let word = |ca: &Value, name: &str| ca[name].as_str().unwrap().to_owned();
    status["authorities"]
        .as_array()
        .unwrap()
        .iter()
        .map(|ca| (word(ca, "key_id"), word(ca, "role")))
        .collect()
}

/// Who has signed a device's certificate, as the registry has it.
fn issuer(desk: &Desk, device: &str) -> String {
    let found = desk.run(&format!("cert list --device {device} --json")).json();
    found[0]["issuer"].as_str().unwrap().to_owned()
}

fn verifies(desk: &Desk, device: &str) {
    let file = format!("home/devices/{device}/device.crt");
    // The device's own file is all that is needed besides the root.
    let line =
        format!("verify -x509_strict -purpose sslclient -CAfile home/pki/root.crt -untrusted {file} {file}");
    let (valid, words) = openssl(desk, &line);
    assert!(valid, "{words}");
}

/// A rollover that is done but for `finish`: two CAs, the new one's key in use, the old one's kept, nothing else.
fn assert_moved(desk: &Desk) {
    let files = files(desk);
    assert_eq!(certificates(&files["issuing.crt"]).len(), 2, "{files:?}");
    assert!(!files.contains_key("next.key"));
    let roles = roles(desk);
    assert_eq!(roles.iter().map(|(_, role)| role.as_str()).collect::<Vec<_>>(), ["signs", "old"]);
    let kept: Vec<&String> = files.keys().filter(|name| name.starts_with("issuing-")).collect();
    assert_eq!(kept, [&format!("issuing-{}.key", roles[1].0)]);
    assert_eq!(mode(&desk.home(&format!("pki/{}", kept[0]))), 0o600);
    assert_eq!(mode(&desk.home("pki/issuing.key")), 0o600);
}

async fn the_old_ca_goes_when_nothing_depends_on_it(_: Database, desk: Desk) {
    desk.run("device add before").done();
    let old = issuer(&desk, "before");
    assert_eq!(roles(&desk), [(old.clone(), "signs".to_owned())]);
    desk.run("pki rollover finish").done().says(&["nothing to finish"]);

    let begun = desk.run("pki rollover begin --json").json();
    let new = begun["signs"].as_str().unwrap().to_owned();
    assert_ne!(new, old);
    assert_eq!(
        (&begun["changed"], &begun["old"], &begun["next"]),
        (&json!(true), &json!([old]), &Value::Null)
    );
    assert_moved(&desk);
    desk.run("device add after").done();
    assert_eq!(issuer(&desk, "after"), new);
    verifies(&desk, "before");
    verifies(&desk, "after");
    // A bundle of the old one's device has the old one's certificate.
    fs::rename(desk.home("devices/before"), desk.path("before")).unwrap();
    desk.run("device bundle before --out home/devices").done();
    verifies(&desk, "before");
    // Each signs its own list.
    let list = |words: &str| desk.run(&format!("cert crl --json {words}")).json();
    desk.run(format!("cert revoke {} --reason lost --no-wait", serial(&desk, "after")).as_str()).done();
    assert_eq!(list("--out new.crl")["entries"], 1);
    assert_eq!(list(&format!("--out old.crl --issuer {old}"))["entries"], 0);
    let (signed, words) =
        openssl(&desk, "crl -in old.crl -noout -verify -CAfile home/devices/before/device.crt");
    assert!(signed, "{words}");
    desk.run("cert crl --out x.crl --issuer abcdef").fails(3, &["no key of an issuing CA abcdef", "status"]);

    // What depends on the old one is counted and listed.
    let refused = desk.run("pki rollover finish").fails(4, &["1 live certificate depends on CA", &old]);
    let listing = format!("cert list --issuer {old} --live");
    assert!(refused.err.contains(&listing), "{refused:?}");
    let listed = desk.run(&format!("{listing} --json")).json();
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["device"]), (1, &json!("before")));
    let shown = desk.run("pki rollover status").done();
    assert!(shown.out.contains("LIVE") && shown.out.contains(&old), "{shown:?}");
    assert_moved(&desk);
    desk.run("device rotate-cert before --out rotated --grace 0s --no-wait").done();
    let done = desk.run("pki rollover finish --json").json();
    assert_eq!((&done["removed"], &done["signs"]), (&json!([old]), &json!(new)));
    assert_eq!(roles(&desk), [(new.clone(), "signs".to_owned())]);
    assert!(!files(&desk).keys().any(|name| name.starts_with("issuing-")));
    desk.run("pki rollover finish").done().says(&["nothing to finish"]);
    desk.run(&format!("cert crl --out old.crl --issuer {old}")).fails(3, &[&old]);
    desk.run("init").done().says(&["nothing had to be made"]);
    desk.run("device add later").done();
    verifies(&desk, "later");
}

fn serial(desk: &Desk, device: &str) -> String {
    let found = desk.run(&format!("cert list --device {device} --json")).json();
    found[0]["serial"].as_str().unwrap().to_owned()
}

#[test]
fn cut_short_at_any_step_it_works_and_goes_on_and_makes_no_third_ca() {
    for passphrase in ["", " --passphrase-file secret"] {
        let desk = Desk::empty();
        desk.write("secret", "correct horse\n");
        let run = |words: &str| desk.run(&format!("{words}{passphrase}"));
        run("init").done();
        let before = files(&desk);
        let old = roles(&desk)[0].0.clone();
        run("pki rollover begin --trust-only").done().says(&["is trusted", "signs nothing yet"]);
        let trusted = files(&desk);
        let new = roles(&desk)[1].0.clone();
        assert_eq!(run("pki rollover begin --trust-only --json").json()["changed"], false);
        assert_eq!(files(&desk), trusted);
        run("pki rollover finish").fails(4, &["issuing has not moved over", "rollover begin"]);
        run("pki rollover begin").done();
        let moved = files(&desk);

        // The steps in between.
        let kept = format!("issuing-{old}.key");
        let mut keyed = before.clone();
        keyed.insert("next.key".to_owned(), trusted["next.key"].clone());
        let mut linked = trusted.clone();
        linked.insert(kept.clone(), trusted["issuing.key"].clone());
        let mut unsorted = moved.clone();
        unsorted.insert("issuing.crt".to_owned(), trusted["issuing.crt"].clone());
        let states = [(&keyed, &old), (&trusted, &old), (&linked, &old), (&unsorted, &new), (&moved, &new)];
        for (number, (state, signs)) in states.into_iter().enumerate() {
            put(&desk, state);
            let device = format!("step-{number}");
            run(&format!("device add {device}")).done();
            assert_eq!(issuer(&desk, &device), *signs, "{number}");
            verifies(&desk, &device);
            let who: Vec<_> = roles(&desk).into_iter().filter(|(_, role)| role == "signs").collect();
            assert_eq!(who, [(signs.clone(), "signs".to_owned())], "{number}{passphrase}");
            desk.run("config check").done();
            run("init").done();
            run("pki rollover begin").done();
            assert_moved(&desk);
            if number > 0 {
                assert_eq!(files(&desk), moved, "{number}: the same CA");
            } else {
                assert_eq!(files(&desk)["issuing.key"], trusted["next.key"], "the same key");
            }
            assert_eq!(run("pki rollover begin --json").json()["changed"], false);
        }

        // And of the end.
        let mut ended = moved.clone();
        ended.insert(
            "issuing.crt".to_owned(),
            certificates(&moved["issuing.crt"]).swap_remove(0).into_bytes(),
        );
        put(&desk, &ended);
        run("pki rollover finish").fails(4, &["live certificates depend on CA", &old]);
        assert!(files(&desk).contains_key(&kept));
        for number in 0..states.len() {
            desk.run(&format!("device revoke step-{number} --reason test --no-wait")).done();
        }
        assert_eq!(run("pki rollover finish --json").json()["removed"], json!([old]));
        ended.remove(&kept);
        assert_eq!(files(&desk), ended);
        assert_eq!(run("pki rollover finish --json").json()["changed"], false);
    }
}

#[test]
fn killed_at_any_moment_it_can_be_repeated() {
    let desk = Desk::new();
    let before = files(&desk);
    for _ in 0..12 {
        put(&desk, &before);
        for verb in ["begin", "finish"] {
            let mut child = desk.command(&format!("pki rollover {verb}")).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(fastrand::u64(0..40)));
            let _ = child.kill();
            child.wait().unwrap();
            Ran::ended(desk.command(&format!("pki rollover {verb}")).spawn().unwrap()).done();
            if verb == "begin" {
                assert_moved(&desk);
            }
        }
        let after = files(&desk);
        assert_eq!(certificates(&after["issuing.crt"]).len(), 1);
        assert_ne!(after["issuing.key"], before["issuing.key"]);
        assert!(!after.keys().any(|name| name.starts_with("issuing-") || name == "next.key"), "{after:?}");
    }
    desk.run("device add press-7").done();
    verifies(&desk, "press-7");
}

#[test]
fn several_at_once_make_one_ca() {
    let desk = Desk::new();
    let children: Vec<_> = (0..4).map(|_| desk.command("pki rollover begin").spawn().unwrap()).collect();
    for child in children {
        let ran = Ran::ended(child);
        assert!(ran.code == Some(0) || ran.err.contains("another command is changing the CAs"), "{ran:?}");
    }
    assert_moved(&desk);
}

#[test]
fn an_interrupted_bulk_run_goes_on_after_issuing_has_moved() {
    let desk = Desk::new();
    desk.run("device add --count 3 --prefix p --out all.jsonl").done();
    // The lines are there, and nothing of them is in the registry: cut short before its batch was committed.
    fs::rename(desk.path("all.jsonl"), desk.path("all.jsonl.part")).unwrap();
    for end in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(desk.home(&format!("registry.db{end}")));
    }
    desk.run("init").done();
    let old = roles(&desk)[0].0.clone();
    desk.run("pki rollover begin").done();
    desk.run("device add --count 4 --prefix p --out all.jsonl").done();
    assert_eq!(issuer(&desk, "p000003"), old);
    assert_ne!(issuer(&desk, "p000004"), old);
    desk.run("pki rollover finish").fails(4, &["3 live certificates depend on"]);
}

/// A refusal or an answer in HTTP, as a stranger's TLS client has it.
fn knock(desk: &Desk, gateway: &Running, folder: &str) -> String {
    let mut client = Command::new("openssl")
        .args(["s_client", "-quiet", "-connect", &gateway.address, "-servername", "localhost"])
        .args(["-cert", "device.crt", "-cert_chain", "device.crt", "-key", "device.key", "-CAfile", "ca.crt"])
        .current_dir(desk.path(folder))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl is needed; on Debian: apt-get install openssl");
    let request = "GET /v1/device HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Sec-WebSocket-Protocol: doorward.v1.jws\r\n\r\n";
    let mut words = client.stdin.take().unwrap();
    let _ = words.write_all(request.as_bytes());
    let output = client.wait_with_output().unwrap();
    drop(words);
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

async fn a_gateway_lets_both_in_until_the_end(_: Database, desk: Desk) {
    let gateway = Running::start(&desk);
    let options = || {
        let backoff = BackoffOptions {
            base: Duration::from_millis(10),
            cap: Duration::from_millis(100),
            ..Default::default()
        };
        Options { backoff, ..Options::default() }
    };
    let load = |folder: std::path::PathBuf| Credentials::load(folder).unwrap().with_url(&gateway.url());
    desk.run("device add before").done();
    let before = Device::connect(load(desk.home("devices/before")), options()).unwrap();
    within("an ack", before.publish("devices/before/t", &0)).await.unwrap();

    // It cannot have read it yet: trusted, and no device of the new CA is made that it would refuse.
    gateway.signal("STOP");
    let waits = desk.run("pki rollover begin --wait 100ms");
    assert_eq!(waits.code, Some(1), "{waits:?}");
    let waits = waits.says(&["committed, not confirmed", "issuing has not moved over", "SIGHUP"]);
    assert!(!waits.err.contains("error"), "{waits:?}");
    assert_eq!(roles(&desk).into_iter().map(|(_, role)| role).collect::<Vec<_>>(), ["signs", "next"]);
    desk.run("pki rollover status").done().says(&["has not read pki/issuing.crt since it changed"]);
    gateway.signal("CONT");
    gateway.signal("HUP");
    desk.run("pki rollover begin").done();
    assert_moved(&desk);
    let status = desk.run("pki rollover status --json").json();
    assert!(status["authorities"].as_array().unwrap().iter().all(|ca| ca["taken"] == true), "{status}");
    desk.run("device add after").done();
    let after = Device::connect(load(desk.home("devices/after")), options()).unwrap();
    for device in [&before, &after] {
        let mut state = device.state();
        within("a session", state.wait_for(|state| matches!(state, State::Connected(_)))).await.unwrap();
    }
    within("an ack", before.publish("devices/before/t", &1)).await.unwrap();
    within("an ack", after.publish("devices/after/t", &1)).await.unwrap();
    before.close().await;

    // The old one's device moves over; what it had has no grace left.
    desk.run("device rotate-cert before --out moved --grace 0s").done();
    assert!(knock(&desk, &gateway, "home/devices/before").contains("certificate-superseded"));
    desk.run("pki rollover finish").done();
    gateway.signal("HUP");
    eventually("the old CA is unknown", async || {
        knock(&desk, &gateway, "home/devices/before").contains("alert unknown ca")
    })
    .await;
    let moved = Device::connect(load(desk.path("moved/before")), options()).unwrap();
    within("an ack", moved.publish("devices/before/t", &2)).await.unwrap();
    within("an ack", after.publish("devices/after/t", &2)).await.unwrap();
    let stored = desk.run("message list --json").json();
    assert_eq!(stored.as_array().unwrap().len(), 5, "none was lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_ca_goes_while_what_it_has_signed_waits_to_be_recorded() {
    let database = Database::sqlite().await;
    let desk = Desk::on(&database);
    let crate::support::database::Sql::Sqlite(pool) = &database.sql else { unreachable!() };
    // Nobody can commit: the lines are written by then, and signed.
    let mut held = pool.acquire().await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut *held).await.unwrap();
    let adding = desk.command("device add --count 600 --prefix p --out all.jsonl").spawn().unwrap();
    let part = desk.path("all.jsonl.part");
    eventually("signed lines", async || fs::metadata(&part).is_ok_and(|part| part.len() > 0)).await;
    let begin = desk.command("pki rollover begin").spawn().unwrap();
    let ended = tokio::task::spawn_blocking(|| Ran::ended(begin));
    // Long enough for a rollover that takes no notice of them.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let at_once = ended.is_finished();
    if at_once {
        desk.run("pki rollover finish").done();
    }
    sqlx::query("ROLLBACK").execute(&mut *held).await.unwrap();
    drop(held);
    tokio::task::spawn_blocking(|| Ran::ended(adding).done()).await.unwrap();
    assert!(!at_once, "the old CA could be taken away");
    ended.await.unwrap().done();
    desk.run("pki rollover finish").fails(4, &["live certificates depend on CA"]);
    let status = desk.run("pki rollover status --json").json();
    assert_eq!(status["unknown"], json!([]));
    let live: u64 =
        status["authorities"].as_array().unwrap().iter().map(|ca| ca["live"].as_u64().unwrap()).sum();
    assert_eq!(live, 600);
}

#[test]
fn a_ca_that_the_home_does_not_know_is_named_while_anything_depends_on_it() {
    let desk = Desk::new();
    let stranger = roles(&desk)[0].0.clone();
    desk.run("device add press-7").done();
    // A home made anew, on the registry of the old one.
    fs::rename(desk.home("pki/master.key"), desk.path("master.key")).unwrap();
    fs::remove_dir_all(desk.home("pki")).unwrap();
    fs::create_dir(desk.home("pki")).unwrap();
    fs::rename(desk.path("master.key"), desk.home("pki/master.key")).unwrap();
    desk.run("init").done();
    let status = desk.run("pki rollover status --json").json();
    assert_eq!(status["unknown"], json!([{ "key_id": stranger, "live": 1 }]));
    desk.run("pki rollover status").done().says(&["1 live certificates", &stranger]);
    desk.run("pki rollover finish").done().says(&["nothing to finish", &stranger]);
}
