//! What a device may do, and which rule says so: on both databases.

use serde_json::json;

use crate::support::command::Desk;
use crate::support::database::Database;

use super::on_both;

const POLICY: &str = r##"{"allow": [{"actions": ["publish"], "channels": ["x", "devices/${device}/#"]},
    {"actions": ["subscribe"], "channels": ["fleets/${fleet}/#"]}],
    "deny": [{"actions": ["publish", "subscribe"], "channels": ["+/+/secret"]}]}"##;

async fn what_a_device_may_do(_: Database, desk: Desk) {
    desk.write("policy.json", POLICY);
    desk.run("fleet add presses --policy policy.json").done();
    desk.run("device add press-7 --fleet presses").done();
    let check = |words: &str| desk.run(&format!("policy check --device press-7 {words}"));
    let may = check("--publish devices/press-7/t").done().out;
    assert_eq!(
        may.trim(),
        "device 'press-7' of fleet 'presses' may publish to 'devices/press-7/t', by allow[0], pattern 'devices/${device}/#'"
    );
    check("--subscribe fleets/presses/news/+").done();
    check("--publish devices/press-7/secret")
        .fails(4, &["may not publish", "by deny[0], pattern '+/+/secret'"]);
    check("--publish devices/press-8/t").fails(4, &["for no rule allows it", "fleet show presses"]);
    check("--subscribe fleets/presses/#").fails(4, &["by deny[0]"]);

    let denied = check("--publish devices/press-7/secret --json");
    assert_eq!(denied.code, Some(4));
    let said: serde_json::Value = serde_json::from_str(&denied.out).unwrap();
    let rule = json!({ "list": "deny", "index": 0, "pattern": "+/+/secret" });
    assert_eq!(
        said,
        json!({ "device": "press-7", "fleet": "presses", "status": "active", "action": "publish",
                "channel": "devices/press-7/secret", "allowed": false, "rule": rule })
    );
    let said = check("--subscribe fleets/presses/news --json").json();
    assert_eq!((&said["allowed"], &said["action"]), (&json!(true), &json!("subscribe")));
    assert_eq!(said["rule"], json!({ "list": "allow", "index": 1, "pattern": "fleets/${fleet}/#" }));

    desk.run("device suspend press-7 --reason dirty").done();
    assert!(check("--publish x").done().err.contains("is suspended: it is not let in"));
    desk.run("policy check --device nobody --publish x").fails(3, &["there is no device 'nobody'"]);
    check("--publish a/+").fails(2, &["a channel is one to 8 levels"]);
    check("--subscribe a/#/b").fails(2, &["a channel filter is"]);
    check("").fails(2, &["--publish"]);
    check("--publish x --subscribe x").fails(2, &["cannot be used with"]);
}

on_both!(what_a_device_may_do);
