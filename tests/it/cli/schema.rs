//! A fleet's schemas, on both databases.

use serde_json::json;

use crate::support::command::Desk;
use crate::support::database::Database;

use super::{on_both, without_receipt};

async fn a_fleets_schemas(db: Database, desk: Desk) {
    desk.write("t.json", r#"{"title": "a temperature", "type": "number"}"#);
    desk.write("bad.json", r#"{"properties": {"a": {"type": "nummer"}}}"#);
    desk.write("far.json", r#"{"$ref": "https://example.com/t.json"}"#);
    desk.write("text.json", "no");
    let add = |file: &str, words: &str| {
        desk.run(&format!("fleet schema add default --channel devices/+/t {file}{words}"))
    };
    assert!(desk.run("fleet schema list default").done().err.contains("has no schema"));
    let said = without_receipt(add("t.json", " --json").json());
    assert_eq!(said, json!({ "fleet": "default", "channel": "devices/+/t", "changed": true }));
    assert_eq!(without_receipt(add("t.json", " --json").json())["changed"], false);
    assert!(desk.run("fleet schema list default").done().out.contains("a temperature"));
    assert!(desk.run("fleet show default").done().out.contains("schemas  devices/+/t"));
    assert_eq!(desk.run("fleet show default --json").json()["schemas"]["devices/+/t"]["type"], "number");
    let schemas =
        json!([{ "channel": "devices/+/t", "schema": { "title": "a temperature", "type": "number" } }]);
    assert_eq!(desk.run("fleet schema list default --json").json(), schemas);

    add("bad.json", "").fails(1, &["bad.json", "at '/properties/a/type'", "nummer", "stand as they were"]);
    add("far.json", "").fails(1, &["far.json", "at '/$ref'", "none is ever fetched"]);
    add("text.json", "").fails(1, &["text.json is not JSON"]);
    add("none.json", "").fails(1, &["cannot read none.json"]);
    desk.run("fleet schema add nobody --channel a t.json").fails(3, &["there is no fleet 'nobody'"]);
    desk.run("fleet schema add default --channel a/#/b t.json").fails(2, &["a channel filter is"]);
    desk.write("long.json", json!({ "description": "x".repeat(33_000) }).to_string());
    add("long.json", "").fails(4, &["32768 bytes together"]);
    assert_eq!(desk.run("fleet schema list default --json").json(), schemas);
    let audit = desk.run("audit list --json").json();
    let acts: Vec<_> =
        audit.as_array().unwrap().iter().filter(|row| row["action"] == "fleet.schemas").collect();
    assert_eq!(acts.len(), 1, "{audit}");
    assert_eq!(acts[0]["after"]["schemas"]["devices/+/t"]["type"], "number", "{audit}");
    assert!(db.execute("UPDATE fleets SET schemas = '[]'").await.is_err());

    let remove =
        || without_receipt(desk.run("fleet schema remove default --channel devices/+/t --json").json());
    assert_eq!(remove()["changed"], true);
    assert_eq!(remove()["changed"], false);
    assert_eq!(desk.run("fleet schema list default --json").json(), json!([]));
    desk.run("audit verify").done();
}

on_both!(a_fleets_schemas);
