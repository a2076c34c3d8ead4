//! A new credential for a whole fleet: it goes on only while devices prove that they have it, and whatever ends a command,
//! the campaign is where it was.

use std::process::Child;
use std::time::Duration;

use doorward_client::{Credentials, Device, Options, State};
use serde_json::{Value, json};

use crate::support::command::{Desk, Ran, signal, until};
use crate::support::database::Database;
use crate::support::house::within;
use crate::support::running::Running;

use super::on_both_threaded;

on_both_threaded! {
    a_fleet_that_proves_its_keys_is_done,
    a_canary_that_fails_stops_it_before_the_others_are_asked,
    canaries_that_nobody_has_heard_of_stop_it,
    who_was_away_gets_it_whenever_he_comes,
    killed_and_repeated_it_goes_on_where_it_was,
    interrupted_it_is_nobodys_and_another_goes_on,
    two_never_drive_at_once,
    stopped_while_it_runs_it_ends,
    what_was_handed_out_survives_an_undo,
    a_database_that_goes_away_for_a_moment_ends_nothing,
    certificates_are_proven_by_sessions,
}

const ROTATE: &str = "device rotate-key --fleet presses --grace 1h";

/// Devices of the fleet `presses`, registered.
fn fleet(desk: &Desk, ids: &[&str]) {
    desk.write(
        "policy.json",
        r#"{"allow": [{"actions": ["publish"], "channels": ["devices/${device}/#"]}], "deny": []}"#,
    );
    desk.run("fleet add presses --policy policy.json").done();
    for id in ids {
        desk.run(&format!("device add {id} --fleet presses")).done();
    }
}

/// A device with its bundle's folder, which takes every key that it is given.
async fn connect(desk: &Desk, gateway: &Running, id: &str) -> Device {
    let credentials = Credentials::load(desk.home(&format!("devices/{id}"))).unwrap();
    connected(desk, credentials.with_url(&gateway.url()), id).await
}

/// One that cannot store a key, and so goes on with the one that it has.
async fn connect_stubborn(desk: &Desk, gateway: &Running, id: &str) -> Device {
    let read = |name: &str| std::fs::read_to_string(desk.home(&format!("devices/{id}/{name}"))).unwrap();
    let mut line: Value = serde_json::from_str(&read("device.json")).unwrap();
    for (member, name) in [("certificate", "device.crt"), ("private_key", "device.key"), ("ca", "ca.crt")] {
        line[member] = read(name).into();
    }
    let credentials = Credentials::from_line(&line.to_string()).unwrap();
    connected(desk, credentials.with_url(&gateway.url()), id).await
}

async fn connected(desk: &Desk, credentials: Credentials, id: &str) -> Device {
    let device = Device::connect(credentials, Options::default()).unwrap();
    let mut state = device.state();
    within("welcome", state.wait_for(|state| matches!(state, State::Connected(_)))).await.unwrap();
    until("the session in the list", || desk.run("session list --json").json().to_string().contains(id));
    device
}

fn shown(desk: &Desk, id: u64) -> Value {
    desk.run(&format!("rotation show {id} --json")).json()
}

/// `waiting asked proven failed left_out withdrawn`.
fn counts(shown: &Value) -> [u64; 6] {
    ["waiting", "asked", "proven", "failed", "left_out", "withdrawn"]
        .map(|state| shown["devices"][state].as_u64().unwrap())
}

/// The states of a device's keys, oldest first.
fn keys(desk: &Desk, id: &str) -> Vec<String> {
    let shown = desk.run(&format!("device show {id} --json")).json();
    let keys = shown["keys"].as_array().unwrap().iter();
    keys.map(|key| key["state"].as_str().unwrap().to_owned()).collect()
}

/// Started, and so far that a device was asked.
fn begun(desk: &Desk, line: &str) -> Child {
    let child = desk.command(line).spawn().unwrap();
    until("somebody is asked", || {
        let listed = desk.run("rotation list --json").json();
        listed.as_array().unwrap().first().is_some_and(|rotation| counts(rotation)[1] > 0)
    });
    child
}

async fn a_fleet_that_proves_its_keys_is_done(_: Database, desk: Desk) {
    let gateway = Running::start(&desk);
    fleet(&desk, &["a", "b", "c", "d", "e"]);
    desk.run("device add other").done();
    let mut devices = Vec::new();
    for id in ["a", "b", "c"] {
        devices.push(connect(&desk, &gateway, id).await);
    }
    desk.run("device suspend e --reason repair").done();
    let told = desk.run(&format!("{ROTATE} --canary 1 --wave 50%")).done().says(&[
        "rotation 1: a new key for the 4 devices of fleet 'presses'",
        "rotation 1 of fleet 'presses' is done: 3 of 4 devices have proven their new key",
        "1 not answered yet",
        "1 left out ('e' suspended)",
    ]);
    assert_eq!(told.out, "");
    let shown = shown(&desk, 1);
    assert_eq!((counts(&shown), &shown["state"]), ([0, 1, 3, 0, 1, 0], &json!("done")), "{shown}");
    assert_eq!((&shown["asked"][0]["device"], &shown["left_out"][0]["device"]), (&json!("d"), &json!("e")));
    for (id, states) in [("a", &["grace", "active"][..]), ("d", &["active", "pending"]), ("e", &["active"])] {
        assert_eq!(keys(&desk, id), states, "{id}");
    }
    assert_eq!(keys(&desk, "other"), ["active"]);
    // The devices go on with what they have.
    for (device, id) in devices.iter().zip(["a", "b", "c"]) {
        within("an ack", device.publish(&format!("devices/{id}/t"), &1)).await.unwrap();
    }
    let table = desk.run("rotation list").done().out;
    assert!(table.contains("presses") && table.contains("done"), "{table}");
    let said = desk.run("rotation show 1").done().out;
    assert!(said.contains("left out: 'e', suspended; 'doorward device show e'"), "{said}");
    // Another one of the same fleet gives them another one; who has not taken the last one is asked for that.
    let again = desk.run(&format!("{ROTATE} --canary 1 --json")).json();
    assert_eq!(
        (&again["rotation"], &again["state"], counts(&again)),
        (&json!(2), &json!("done"), [0, 1, 3, 0, 1, 0])
    );
    assert_eq!(keys(&desk, "a"), ["grace", "grace", "active"]);
    assert_eq!(keys(&desk, "d"), ["active", "pending"]);
    gateway.ended_by("TERM");
}

async fn a_canary_that_fails_stops_it_before_the_others_are_asked(_: Database, desk: Desk) {
    let gateway = Running::start(&desk);
    fleet(&desk, &["a", "b", "c"]);
    let stubborn = connect_stubborn(&desk, &gateway, "a").await;
    let line = format!("{ROTATE} --canary 1 --patience 5s");
    desk.run(&line).fails(
        1,
        &[
            "rotation 1 of fleet 'presses' is stopped: 1 device has failed, and 0 may",
            "0 of 3 devices have proven their new key",
            "2 not asked",
            "1 failed ('a' it was connected for long enough, and has not shown it)",
            "doorward rotation resume 1",
        ],
    );
    // Nothing was taken from it, and nothing given to the others.
    within("an ack", stubborn.publish("devices/a/t", &1)).await.unwrap();
    assert_eq!(
        (keys(&desk, "a"), keys(&desk, "b")),
        (vec!["active".into(), "pending".into()], vec!["active".into()])
    );
    let said = desk.run("rotation show 1").done().out;
    assert!(
        said.contains("failed: 'a', it was connected") && said.contains("doorward device show a"),
        "{said}"
    );
    // What was stopped is for a person to decide about: the same command does not just go on.
    desk.run(&line)
        .fails(4, &["rotation 1 of fleet 'presses' was stopped: 1 device has failed", "rotation undo 1"]);
    let ran = desk.run("rotation resume 1 --json");
    let value: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((ran.code, &value["state"], counts(&value)), (Some(1), &json!("stopped"), [2, 0, 0, 1, 0, 0]));
    // Mended, it goes on.
    drop(stubborn);
    until("it is gone", || desk.run("session list --json").json() == json!([]));
    let device = connect(&desk, &gateway, "a").await;
    until("it has proven it", || counts(&shown(&desk, 1)) == [2, 0, 1, 0, 0, 0]);
    desk.run("rotation resume 1 --max-failures 1").done().says(&["1 of 3 devices", "2 not answered yet"]);
    assert_eq!(shown(&desk, 1)["max_failures"], 1);
    drop(device);
    gateway.ended_by("TERM");
}

async fn canaries_that_nobody_has_heard_of_stop_it(_: Database, desk: Desk) {
    desk.run(ROTATE).fails(3, &["there is no fleet 'presses'"]);
    fleet(&desk, &[]);
    desk.run(ROTATE).fails(4, &["fleet 'presses' has no active device"]);
    desk.run(&format!("{ROTATE} --patience 4900ms")).fails(2, &["a patience is at least 5s"]);
    desk.run("device rotate-key --fleet presses --grace 999ms").fails(2, &["a grace is 0s, or at least 1s"]);
    for id in ["a", "b", "c"] {
        desk.run(&format!("device add {id} --fleet presses")).done();
    }
    desk.run(&format!("{ROTATE} --canary 2 --patience 5s"))
        .fails(1, &["none of 2 canaries was connected within 5s", "1 not asked"]);
    desk.run("rotation resume 1").fails(1, &["none of 2 canaries was connected"]);
    desk.run("rotation undo 1").done().says(&["the new key of 2 devices was taken back"]);
    // Without canaries nobody is waited for.
    desk.run(&format!("{ROTATE} --canary 0 --wave 1")).done().says(&["0 of 3 devices", "3 not answered yet"]);
    assert_eq!(counts(&shown(&desk, 2)), [0, 3, 0, 0, 0, 0]);
    desk.run("rotation show 3").fails(3, &["there is no rotation 3", "rotation list"]);
    for verb in ["resume 2", "stop 2 --reason x"] {
        desk.run(&format!("rotation {verb}")).fails(4, &["rotation 2 is done already"]);
    }
    desk.run("rotation resume 3").fails(3, &["there is no rotation 3"]);
    desk.run("rotation undo 3").fails(3, &["there is no rotation 3"]);
    desk.run("rotation stop 3 --reason x").fails(3, &["there is no rotation '3'"]);
}

async fn who_was_away_gets_it_whenever_he_comes(_: Database, desk: Desk) {
    let gateway = Running::start(&desk);
    fleet(&desk, &["a", "b"]);
    let a = connect(&desk, &gateway, "a").await;
    desk.run(&format!("{ROTATE} --canary 1")).done();
    assert_eq!(counts(&shown(&desk, 1)), [0, 1, 1, 0, 0, 0]);
    // Long after the campaign is done: it comes back with what it has, and leaves with the new one.
    let b = connect(&desk, &gateway, "b").await;
    until("it has proven it", || counts(&shown(&desk, 1)) == [0, 0, 2, 0, 0, 0]);
    assert_eq!(keys(&desk, "b"), ["grace", "active"]);
    within("an ack", b.publish("devices/b/t", &1)).await.unwrap();
    drop((a, b));
    gateway.ended_by("TERM");
}

async fn killed_and_repeated_it_goes_on_where_it_was(database: Database, desk: Desk) {
    let gateway = Running::start(&desk);
    fleet(&desk, &["a", "b", "c", "d"]);
    let stubborn = connect_stubborn(&desk, &gateway, "a").await;
    let line = format!("{ROTATE} --canary 1 --patience 1h");
    let mut child = begun(&desk, &line);
    child.kill().unwrap();
    child.wait().unwrap();
    let shown_dead = shown(&desk, 1);
    assert_eq!((&shown_dead["state"], counts(&shown_dead)), (&json!("running"), [3, 1, 0, 0, 0, 0]));
    // With other settings it would be another campaign.
    desk.run(&format!("{ROTATE} --canary 2"))
        .fails(4, &["rotation 1 of fleet 'presses' runs, with other settings"]);
    drop(stubborn);
    until("it is gone", || desk.run("session list --json").json() == json!([]));
    let a = connect(&desk, &gateway, "a").await;
    desk.run(&line).done().says(&["rotation 1 of fleet 'presses' is done: 1 of 4 devices"]);
    assert_eq!(counts(&shown(&desk, 1)), [0, 3, 1, 0, 0, 0]);
    assert_eq!(database.number("SELECT count(*) FROM rotations").await, 1);
    assert_eq!(database.number("SELECT count(*) FROM hmac_keys WHERE version = 2").await, 4);
    assert_eq!(database.number("SELECT count(*) FROM hmac_keys WHERE version > 2").await, 0);
    assert_eq!(shown(&desk, 1)["driven"], false);
    desk.run("audit verify").done();
    drop(a);
    gateway.ended_by("TERM");
}

async fn interrupted_it_is_nobodys_and_another_goes_on(_: Database, desk: Desk) {
    let gateway = Running::start(&desk);
    fleet(&desk, &["a", "b"]);
    let stubborn = connect_stubborn(&desk, &gateway, "a").await;
    for name in ["INT", "TERM"] {
        let line = format!("{ROTATE} --canary 1 --patience 1h");
        let child = begun(&desk, &line);
        until("it drives", || shown(&desk, 1)["driven"] == true);
        signal(&child, name);
        Ran::ended(child).fails(1, &["interrupted; rotation 1 stands as it is", "rotation resume 1"]);
        assert_eq!(
            (&shown(&desk, 1)["state"], &shown(&desk, 1)["driven"]),
            (&json!("running"), &json!(false))
        );
        let table = desk.run("rotation list").done().out;
        assert!(table.contains("nobody drives it"), "{table}");
    }
    drop(stubborn);
    let a = connect(&desk, &gateway, "a").await;
    desk.run("rotation resume 1").done().says(&["is done: 1 of 2 devices"]);
    drop(a);
    gateway.ended_by("TERM");
}

async fn two_never_drive_at_once(_: Database, desk: Desk) {
    let gateway = Running::start(&desk);
    fleet(&desk, &["a", "b"]);
    let stubborn = connect_stubborn(&desk, &gateway, "a").await;
    let line = format!("{ROTATE} --canary 1 --patience 1h");
    let first = begun(&desk, &line);
    for line in [line.as_str(), "rotation resume 1"] {
        desk.run(line).fails(4, &["rotation 1 is being driven by another command", "rotation stop 1"]);
    }
    // Nothing changes underneath it.
    desk.run("rotation resume 1 --max-failures 9").fails(4, &["is being driven by another command"]);
    assert_eq!(shown(&desk, 1)["max_failures"], 0);
    // Stopped while it runs, it is told within a look.
    desk.run("rotation stop 1 --reason enough").done();
    Ran::ended(first).fails(1, &["is stopped: enough"]);
    drop(stubborn);
    gateway.ended_by("TERM");
}

async fn stopped_while_it_runs_it_ends(_: Database, desk: Desk) {
    let gateway = Running::start(&desk);
    fleet(&desk, &["a", "b", "c"]);
    let stubborn = connect_stubborn(&desk, &gateway, "a").await;
    let child = begun(&desk, &format!("{ROTATE} --canary 1 --patience 1h --json"));
    let told = desk.run(["rotation", "stop", "1", "--reason", "firmware 2.1 crashes", "--json"]).json();
    assert_eq!(told, json!({ "rotation": 1, "state": "stopped", "changed": true }));
    let ran = Ran::ended(child);
    let value: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert_eq!((&value["state"], &value["reason"]), (&json!("stopped"), &json!("firmware 2.1 crashes")));
    assert_eq!(counts(&value), [2, 1, 0, 0, 0, 0]);
    desk.run("rotation stop 1 --reason again").done().says(&["was stopped already"]);
    within("an ack", stubborn.publish("devices/a/t", &1)).await.unwrap();
    // Undone while it runs, too.
    let child = desk.command("rotation resume 1").spawn().unwrap();
    until("it drives", || shown(&desk, 1)["driven"] == true);
    desk.run("rotation undo 1").done().says(&["of 0 devices was taken back", "1 that may have it already"]);
    Ran::ended(child).fails(1, &["rotation 1 is undone meanwhile"]);
    gateway.ended_by("TERM");
}

async fn what_was_handed_out_survives_an_undo(_: Database, desk: Desk) {
    let gateway = Running::start(&desk);
    fleet(&desk, &["a", "b", "c", "d"]);
    let a = connect(&desk, &gateway, "a").await;
    let b = connect_stubborn(&desk, &gateway, "b").await;
    desk.run(&format!("{ROTATE} --canary 0 --wave 100% --patience 5s --max-failures 1")).done();
    assert_eq!(counts(&shown(&desk, 1)), [0, 2, 1, 1, 0, 0]);
    // Somebody is on the way to d with it.
    desk.run("device bundle d --out carried").done();
    for _ in 0..2 {
        let told = desk.run("rotation undo 1 --json").json();
        assert_eq!((&told["state"], counts(&told)), (&json!("undone"), [0, 1, 1, 1, 0, 1]), "{told}");
        // The second one waits again for what the first has taken back.
        assert_ne!(told["receipt"], Value::Null);
        assert_eq!(told["doubtful"], json!([]));
    }
    desk.run("rotation undo 1").done().says(&["2 that may have it already", "1 proven, which keep it"]);
    // Those that never had it never will; who may have it can still show it, and who has shown it goes on.
    for (id, states) in [
        ("a", ["grace", "active"]),
        ("b", ["active", "pending"]),
        ("c", ["active", "retired"]),
        ("d", ["active", "pending"]),
    ] {
        assert_eq!(keys(&desk, id), states, "{id}");
    }
    within("an ack", a.publish("devices/a/t", &1)).await.unwrap();
    within("an ack", b.publish("devices/b/t", &1)).await.unwrap();
    let c = connect(&desk, &gateway, "c").await;
    within("an ack", c.publish("devices/c/t", &1)).await.unwrap();
    drop(b);
    until("it is gone", || !desk.run("session list --json").json().to_string().contains("\"b\""));
    let b = connect(&desk, &gateway, "b").await;
    until("it has proven it", || keys(&desk, "b") == ["grace", "active"]);
    within("an ack", b.publish("devices/b/t", &2)).await.unwrap();
    gateway.ended_by("TERM");
}

async fn a_database_that_goes_away_for_a_moment_ends_nothing(database: Database, desk: Desk) {
    let gateway = Running::start(&desk);
    fleet(&desk, &["a", "b"]);
    let stubborn = connect_stubborn(&desk, &gateway, "a").await;
    let child = begun(&desk, &format!("{ROTATE} --canary 1 --patience 1h"));
    // Its connections are cut; on one box the file is locked for a while.
    match &database.sql {
        crate::support::database::Sql::Postgres(_) => {
            let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE datname = current_database() AND pid <> pg_backend_pid() AND usename = 'postgres' AND application_name = 'doorward'";
            for _ in 0..5 {
                database.execute(cut).await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        crate::support::database::Sql::Sqlite(pool) => {
            let mut held = pool.acquire().await.unwrap();
            sqlx::query("BEGIN IMMEDIATE").execute(&mut *held).await.unwrap();
            tokio::time::sleep(Duration::from_secs(6)).await;
            sqlx::query("ROLLBACK").execute(&mut *held).await.unwrap();
        }
    }
    drop(stubborn);
    let a = connect(&desk, &gateway, "a").await;
    Ran::ended(child).done().says(&["is done: 1 of 2 devices"]);
    drop(a);
    gateway.ended_by("TERM");
}

async fn certificates_are_proven_by_sessions(_: Database, desk: Desk) {
    let gateway = Running::start(&desk);
    fleet(&desk, &["a", "b"]);
    let old = connect(&desk, &gateway, "a").await;
    let line = "device rotate-cert --fleet presses --canary 1 --patience 1h";
    let child = begun(&desk, line);
    desk.run("device rotate-key --fleet presses --canary 1 --json").json();
    // Its next certificate, by whatever way; it proves itself by the session, and then the other one is asked.
    desk.run("device rotate-cert a --out new").done();
    let key = std::fs::read_to_string(desk.home("devices/a/device.json")).unwrap();
    desk.write("new/a/device.json", key);
    drop(old);
    until("it is gone", || desk.run("session list --json").json() == json!([]));
    let credentials = Credentials::load(desk.path("new/a")).unwrap();
    let new = connected(&desk, credentials.with_url(&gateway.url()), "a").await;
    Ran::ended(child).done().says(&["done: 1 of 2 devices have proven their new certificate"]);
    let shown = shown(&desk, 1);
    assert_eq!((counts(&shown), &shown["grace"]), ([0, 1, 1, 0, 0, 0], &Value::Null));
    desk.run("rotation undo 1").done().says(&["1 device will not be asked for a new certificate any more"]);
    drop(new);
    gateway.ended_by("TERM");
}
