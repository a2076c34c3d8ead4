//! `cert list`, `cert show`, `cert revoke`.

use serde_json::json;

use crate::support::command::Desk;
use crate::support::database::Database;
use crate::support::running::Running;

use super::receipt::connected;
use super::{on_both, without_receipt};

async fn a_certificates_life(database: Database, desk: Desk) {
    let gateway = Running::start(&desk);
    let _device = connected(&desk, &gateway, "a").await;
    desk.run("device add b --days 10").done();
    let all = desk.run("cert list --json").json();
    let devices: Vec<_> = all.as_array().unwrap().iter().map(|row| row["device"].clone()).collect();
    assert_eq!(devices, [json!("b"), json!("a")], "those that end soonest first");
    let soon = desk.run("cert list --expiring 30d --json").json();
    assert_eq!(soon, json!([all[0]]));
    assert_eq!(desk.run("cert list --device a --json").json(), json!([all[1]]));
    assert_eq!(desk.run("cert list --expiring 1d").done().says(&["there is no such certificate"]).out, "");
    let serial = all[1]["serial"].as_str().unwrap().to_owned();
    assert!(desk.run("cert list").done().out.contains(&serial));
    let shown = desk.run("device show a --json").json();
    assert_eq!(shown["certificates"][0]["serial"], json!(serial));
    assert_eq!(desk.run(&format!("cert show {serial} --json")).json(), all[1]);
    assert!(desk.run(&format!("cert show {}", serial.to_uppercase())).done().out.contains("device       a"));

    // Two that were renewed from it, one from the other.
    for (new, old) in [("1", serial.clone()), ("2", "1".repeat(32))] {
        let (fingerprint, number) = (new.repeat(64), new.repeat(32));
        let sql = format!(
            "INSERT INTO certificates (fingerprint, serial, issuer, der, device, renewed_from, not_before, not_after)
             SELECT '{fingerprint}', '{number}', c.issuer, c.der, c.device, c.fingerprint, c.not_before, c.not_after
             FROM certificates c WHERE c.serial = '{old}'"
        );
        database.execute(&sql).await.unwrap();
    }
    let only = desk.run(&format!("cert revoke {} --reason x --only --json", "1".repeat(32))).json();
    assert_eq!(
        without_receipt(only),
        json!({ "serial": "1".repeat(32), "device": "a", "changed": true, "revoked": ["1".repeat(32)] })
    );
    assert_eq!(desk.run(&format!("cert show {} --json", "2".repeat(32))).json()["status"], "active");
    desk.run(&format!("cert revoke {serial} --reason exposed"))
        .done()
        .says(&["and 1 renewed from it are revoked for good; 1 session ended, confirmed by 1 gateway"]);
    let shown = desk.run(&format!("cert show {} --json", "2".repeat(32))).json();
    assert_eq!((&shown["status"], &shown["reason"]), (&json!("revoked"), &json!("exposed")));
    desk.run(&format!("cert revoke {serial} --reason again")).done().says(&["was revoked already"]);
    assert_eq!(desk.run(&format!("cert show {serial} --json")).json()["reason"], "exposed");
    gateway.ended_by("TERM");

    let nobody = "0".repeat(32);
    for line in ["show", "revoke --reason x"] {
        desk.run(&format!("cert {line} {nobody}")).fails(3, &[&nobody, "doorward cert list"]);
        desk.run(&format!("cert {line} 12")).fails(2, &["32 hex digits"]);
    }
    desk.run("cert list --device nobody").fails(3, &["there is no device 'nobody'"]);
    desk.run("cert list --expiring soon").fails(2, &["--expiring"]);
}

on_both!(a_certificates_life);
