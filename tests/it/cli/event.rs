//! `event list` and `event tail`: what gateways have noted, as a security officer reads it.

use std::io::{BufRead, BufReader};

use doorward::clock;
use doorward::registry::{Batch, EventKind, NewEvent};
use doorward_proto::ids::DeviceId;
use doorward_proto::verdict::Refusal;
use serde_json::{Value, json};

use crate::support::command::{Desk, Ran, signal};
use crate::support::database::Database;

use super::on_both;

/// As a gateway writes it.
async fn note(database: &Database, device: Option<&str>, kind: EventKind, count: u64, detail: &str) {
    let event = NewEvent {
        at: clock::utc(),
        since: clock::utc() - time::Duration::minutes(1),
        count,
        gateway: "gateway-1".into(),
        device: device.map(|id| DeviceId::new(id).unwrap()),
        kind,
        peer: "192.0.2.7:4000".to_owned(),
        detail: detail.to_owned(),
    };
    database.registry.write(&Batch { events: vec![event], ..Batch::default() }).await.unwrap();
}

fn details(rows: &Value) -> Vec<&str> {
    rows.as_array().unwrap().iter().map(|row| row["detail"].as_str().unwrap()).collect()
}

async fn what_was_noted_is_listed(database: Database, desk: Desk) {
    assert_eq!(desk.run("event list --json").json(), json!([]));
    assert_eq!(desk.run("event list").done().says(&["there is no such event"]).out, "");
    assert_eq!(desk.run("event tail --json").json(), json!([]));
    desk.run("event list --device press-7").fails(3, &["no device 'press-7'", "device list"]);
    desk.run("device add press-7").done();
    assert_eq!(desk.run("event list --device press-7 --json").json(), json!([]));
    note(&database, Some("press-7"), EventKind::Message(Refusal::BadSignature), 1, "first").await;
    note(&database, None, EventKind::TlsRefused, 17, "sec\u{1b}[31mond").await;
    note(&database, Some("never-registered"), EventKind::Refused, 3, "third").await;

    let rows = desk.run("event list --json").json();
    assert_eq!(details(&rows), ["first", "sec\u{1b}[31mond", "third"]);
    let keys: Vec<&String> = rows[0].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["at", "count", "detail", "device", "gateway", "id", "kind", "peer", "since"]);
    assert_eq!((&rows[1]["device"], &rows[1]["count"]), (&Value::Null, &json!(17)));
    assert_eq!((&rows[0]["kind"], &rows[0]["device"]), (&json!("bad_signature"), &json!("press-7")));

    let list = |options: &str| desk.run(&format!("event list --json {options}")).json();
    assert_eq!(details(&list("--device never-registered")), ["third"]);
    assert_eq!(details(&list("--kind bad_signature")), ["first"]);
    assert_eq!(details(&list("--limit 2")).len(), 2);
    assert_eq!(details(&list("--limit 1")), ["third"], "the newest");
    assert_eq!(details(&list("--since 1h")).len(), 3);
    assert_eq!(details(&list("--since 2999-01-01T00:00:00Z")), [""; 0]);
    assert_eq!(details(&desk.run("event tail --lines 2 --json").json()).len(), 2);
    let text = desk.run("event list").done().out;
    assert_eq!(text.lines().count(), 3);
    assert!(text.contains("17 times since ") && !text.contains('\u{1b}'), "{text}");
    desk.run("event list --kind noise").fails(2, &["noise", "bad_signature"]);
    desk.run("event list --limit 0").fails(2, &["--limit"]);
    desk.run("event list --since yesterday").fails(2, &["RFC 3339"]);
}

async fn following_goes_on_with_what_comes(database: Database, desk: Desk) {
    for n in 0..3 {
        note(&database, None, EventKind::TlsRefused, 1, &format!("e-{n}")).await;
    }
    let mut child = desk.command("event tail --lines 2 --follow --json").spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!((&next()["detail"], &next()["detail"]), (&json!("e-1"), &json!("e-2")));
    for n in 3..6 {
        note(&database, None, EventKind::TlsRefused, 1, &format!("e-{n}")).await;
        assert_eq!(next()["detail"], format!("e-{n}"), "each once, in order");
    }
    signal(&child, "INT");
    assert_eq!(Ran::ended(child).done().err, "");
}

on_both!(what_was_noted_is_listed, following_goes_on_with_what_comes);

#[tokio::test]
async fn an_auditor_may_read_them() {
    let database = Database::bare_postgres().await;
    let desk = Desk::on(&database);
    note(&database, Some("press-7"), EventKind::Strikes, 1, "first").await;
    let mut command = desk.command("event list --json");
    command.env("DATABASE_URL", database.url.to_string().replacen("//postgres@", "//t_auditor@", 1));
    assert_eq!(details(&Ran::of(&mut command).json()), ["first"]);
    let mut command = desk.command("event list --device nobody --json");
    command.env("DATABASE_URL", database.url.to_string().replacen("//postgres@", "//t_auditor@", 1));
    assert_eq!(Ran::of(&mut command).json(), json!([]));
}
