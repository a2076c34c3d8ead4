//! `message list` and `session list`: what gateways have written, as operators read it.

use std::io::{BufRead, BufReader};
use std::sync::Arc;

use doorward::registry::{Batch, Claim, NewMessage};
use doorward_proto::ids::{DeviceId, MessageId};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::support::command::{Desk, Ran, signal};
use crate::support::database::Database;

use super::on_both;

/// As a gateway stores: the device's session, then messages on a channel.
async fn store(database: &Database, device: &str, channel: &str, ids: std::ops::Range<u32>) {
    #[expect(clippy::disallowed_methods, reason = "a person's --since is about now")]
    let now = OffsetDateTime::now_utc();
    let id = DeviceId::new(device).unwrap();
    let session: Arc<str> = "s1".into();
    let claim = Claim {
        device: id.clone(),
        session: Arc::clone(&session),
        gateway: "gateway-1".into(),
        peer: "192.0.2.7:4000".to_owned(),
        at: now,
        late: false,
    };
    let received_ms = i64::try_from(now.unix_timestamp_nanos() / 1_000_000).unwrap();
    let messages = ids
        .map(|n| NewMessage {
            device: id.clone(),
            session: Arc::clone(&session),
            id: MessageId::new(&format!("m-{n}")).unwrap(),
            channel: channel.into(),
            data: format!("{{\"n\": {n}, \"t\": 21.50}}").into(),
            at_ms: (n % 2 == 0).then_some(received_ms),
            received_ms,
        })
        .collect();
    database.registry.write(&Batch { claims: vec![claim], messages, ..Batch::default() }).await.unwrap();
}

fn ids(rows: &Value) -> Vec<&str> {
    rows.as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap()).collect()
}

async fn what_was_stored_is_listed(database: Database, desk: Desk) {
    assert_eq!(desk.run("message list --json").json(), json!([]));
    assert_eq!(desk.run("message list").done().says(&["there is no such message"]).out, "");
    desk.run("device add press-7").done();
    desk.run("device add cam-1").done();
    store(&database, "press-7", "devices/press-7/t", 0..3).await;
    store(&database, "cam-1", "devices/cam-1/pic", 3..4).await;

    let rows = desk.run("message list --json").json();
    assert_eq!(ids(&rows), ["m-0", "m-1", "m-2", "m-3"]);
    let first = &rows[0];
    let keys: Vec<&String> = first.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["at", "channel", "data", "device", "id", "received_at"]);
    assert_eq!((&first["device"], &first["channel"]), (&json!("press-7"), &json!("devices/press-7/t")));
    assert_eq!(first["data"], json!({ "n": 0, "t": 21.5 }));
    assert!(first["at"].is_string() && rows[1]["at"].is_null(), "{rows}");
    let text = desk.run("message list --json").done().out;
    assert!(text.contains("21.50"), "data is given as it came: {text}");

    let list = |options: &str| desk.run(&format!("message list --json {options}")).json();
    assert_eq!(ids(&list("--device cam-1")), ["m-3"]);
    assert_eq!(ids(&list("--channel devices/+/t")), ["m-0", "m-1", "m-2"]);
    assert_eq!(ids(&list("--channel devices/#")).len(), 4);
    assert_eq!(ids(&list("--since 1h")).len(), 4);
    assert_eq!(ids(&list("--since 2999-01-01T00:00:00Z")), [""; 0]);
    assert_eq!(desk.run("message list").done().out.lines().count(), 4);
    desk.run("message list --since yesterday").fails(2, &["RFC 3339"]);
    desk.run("message list --channel #/a").fails(2, &["a channel filter is"]);

    let sessions = desk.run("session list --json").json();
    let of = |row: &Value| (row["device"].clone(), row["gateway"].clone(), row["peer"].clone());
    let sessions: Vec<_> = sessions.as_array().unwrap().iter().map(of).collect();
    let at = (json!("gateway-1"), json!("192.0.2.7:4000"));
    assert_eq!(
        sessions,
        [(json!("cam-1"), at.0.clone(), at.1.clone()), (json!("press-7"), at.0.clone(), at.1.clone())]
    );
    assert_eq!(desk.run("device show press-7 --json").json()["session"]["session"], "s1");
}

async fn following_goes_on_with_what_comes(database: Database, desk: Desk) {
    desk.run("device add press-7").done();
    store(&database, "press-7", "devices/press-7/t", 0..2).await;
    let mut child = desk.command("message list --follow --json").spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!((&next()["id"], &next()["id"]), (&json!("m-0"), &json!("m-1")));
    for n in 2..5 {
        store(&database, "press-7", "devices/press-7/t", n..n + 1).await;
        assert_eq!(next()["id"], format!("m-{n}"), "each once, in order");
    }
    // The signal is handled from the first look on, and that has been.
    signal(&child, "INT");
    let ended = Ran::ended(child).done();
    assert_eq!(ended.err, "");
}

on_both!(what_was_stored_is_listed, following_goes_on_with_what_comes);

#[test]
fn where_nobody_is_connected() {
    let desk = Desk::new();
    assert_eq!(desk.run("session list --json").json(), json!([]));
    desk.run("session list").done().says(&["no device is connected"]);
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let desk = Desk::new();
    for line in ["completions bash", "fleet list", "fleet list --json"] {
        let mut child = desk.command(line).spawn().unwrap();
        drop(child.stdout.take());
        let ended = Ran::ended(child);
        assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{line}");
    }
    // Nor is one who does not want to hear why.
    let mut child = desk.command("device show nobody").spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(Ran::ended(child).code, Some(3));
}
