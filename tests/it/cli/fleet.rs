//! Fleets and their policies, on both databases.

use serde_json::json;

use crate::support::command::Desk;
use crate::support::database::Database;

use super::{on_both, without_receipt};

const POLICY: &str =
    r#"{"allow": [{"actions": ["publish"], "channels": ["devices/${device}/#"]}], "deny": []}"#;

async fn a_fleet_and_its_policy(_: Database, desk: Desk) {
    desk.write("policy.json", POLICY);
    assert_eq!(desk.run("fleet add presses --json").json(), json!({ "fleet": "presses", "changed": true }));
    desk.run("fleet add presses").fails(4, &["the fleet 'presses' exists already"]);
    desk.run("fleet add cams --policy policy.json").done();
    let shown = desk.run("fleet show cams --json").json();
    assert_eq!(shown["policy"], serde_json::from_str::<serde_json::Value>(POLICY).unwrap());
    assert_eq!(shown["devices"], json!({ "active": 0, "suspended": 0, "revoked": 0 }));

    let set = |fleet: &str| desk.run(&format!("fleet policy {fleet} policy.json --json"));
    assert_eq!(without_receipt(set("presses").json()), json!({ "fleet": "presses", "changed": true }));
    assert_eq!(without_receipt(set("presses").json()), json!({ "fleet": "presses", "changed": false }));
    set("none").fails(3, &["there is no fleet 'none'"]);
    desk.run("fleet show none").fails(3, &["there is no fleet 'none'", "fleet list"]);

    desk.run("device add press-7 --fleet presses").done();
    desk.run("device add press-8 --fleet presses").done();
    desk.run("device revoke press-8 --reason stolen").done();
    let list = desk.run("fleet list --json").json();
    let ids: Vec<&str> = list.as_array().unwrap().iter().map(|f| f["fleet"].as_str().unwrap()).collect();
    assert_eq!(ids, ["cams", "default", "presses"]);
    assert_eq!(list[2]["devices"], json!({ "active": 1, "suspended": 0, "revoked": 1 }));
    let table = desk.run("fleet list").done().out;
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(desk.run("fleet show presses").done().out.contains("1 active, 0 suspended, 1 revoked"));
}

async fn a_fleets_limits(_: Database, desk: Desk) {
    let set = |words: &str| desk.run(&format!("fleet limits default {words} --json"));
    assert_eq!(set("").json(), json!({ "fleet": "default", "limits": {} }));
    assert!(desk.run("fleet limits default").done().out.contains("as each gateway is configured"));
    let limits = json!({ "rate_per_second": 5, "rate_burst": 50 });
    assert_eq!(
        without_receipt(set("--rate 5 --burst 50").json()),
        json!({ "fleet": "default", "changed": true, "limits": limits })
    );
    assert_eq!(without_receipt(set("--rate 5").json())["changed"], false);
    assert_eq!(
        without_receipt(set("--burst default --message-bytes 2048").json())["limits"],
        json!({ "rate_per_second": 5, "message_bytes": 2048 })
    );
    assert!(desk.run("fleet show default").done().out.contains("limits   rate 5, message bytes 2048"));
    assert_eq!(desk.run("fleet show default --json").json()["limits"]["rate_per_second"], 5);
    let audit = desk.run("audit list --json").json();
    let acts: Vec<_> =
        audit.as_array().unwrap().iter().filter(|row| row["action"] == "fleet.limits").collect();
    assert_eq!(acts.len(), 2, "{audit}");

    let all = "--bytes-rate 2048 --bytes-burst 4096 --outgoing-bytes 8192 --strikes 3 --connects 6 --connects-burst 10";
    let limits = without_receipt(set(all).json())["limits"].clone();
    assert_eq!(
        limits,
        json!({ "rate_per_second": 5, "message_bytes": 2048, "bytes_per_second": 2048, "bytes_burst": 4096,
                "outgoing_bytes": 8192, "strikes": 3, "connects_per_minute": 6, "connects_burst": 10 })
    );
    let words = "rate 5, bytes a second 2048, bytes at once 4096, message bytes 2048, outgoing bytes 8192, strikes 3, \
                 connections a minute 6, connections at once 10";
    assert!(desk.run("fleet show default").done().out.contains(words));
    set("--strikes 0").fails(2, &["strikes is 0", "1 to 1000"]);
    set("--bytes-rate 1000").fails(2, &["bytes_per_second is 1000", "1024 to 1073741824"]);
    let back = "--bytes-rate default --bytes-burst default --outgoing-bytes default --strikes default --connects default \
                --connects-burst default";
    set(back).done();

    set("--rate 0").fails(2, &["rate_per_second is 0", "1 to 1000000"]);
    set("--rate fast").fails(2, &["a number is needed, or 'default'"]);
    set("--message-bytes 10").fails(2, &["message_bytes is 10"]);
    desk.run("fleet limits none --rate 1").fails(3, &["there is no fleet 'none'"]);
    assert_eq!(set("").json()["limits"], json!({ "rate_per_second": 5, "message_bytes": 2048 }));
}

on_both!(a_fleet_and_its_policy, a_fleets_limits);

#[test]
fn a_broken_policy_is_refused_and_the_old_one_stands() {
    let desk = Desk::new();
    let before = desk.run("fleet show default --json").json();
    for (text, words) in [
        ("", "not a policy"),
        ("[]", "not a policy"),
        (r#"{"allow": 1}"#, "not a policy"),
        (r#"{"allow": [], "deny": [], "alow": []}"#, "alow"),
        (r#"{"allow": [{"actions": ["fly"], "channels": ["a"]}], "deny": []}"#, "fly"),
        (r##"{"allow": [{"actions": ["publish"], "channels": ["#/a"]}], "deny": []}"##, "filter"),
    ] {
        desk.write("bad.json", text);
        desk.run("fleet policy default bad.json").fails(1, &["bad.json", words]);
        desk.run("fleet add other --policy bad.json").fails(1, &["bad.json", words]);
    }
    desk.run("fleet policy default missing.json").fails(1, &["cannot read missing.json"]);
    assert_eq!(desk.run("fleet show default --json").json(), before);
    desk.run("fleet show other").fails(3, &[]);
}
