//! `audit …`: what is listed, what verifying finds, and that a program of somebody else's finds the same.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::command::{Desk, Ran};
use crate::support::database::{Database, Sql};

use super::on_both;

/// Opens what the triggers keep shut, as the owner of a database can.
async fn unlock(database: &Database) {
    let statements: &[&str] = match &database.sql {
        Sql::Sqlite(_) => {
            &["DROP TRIGGER audit_keep", "DROP TRIGGER audit_keep_row", "DROP TRIGGER audit_head_keep"]
        }
        Sql::Postgres(_) => {
            &["ALTER TABLE audit DISABLE TRIGGER ALL", "ALTER TABLE audit_head DISABLE TRIGGER ALL"]
        }
    };
    for sql in statements {
        database.execute(sql).await.unwrap();
    }
}

/// Five rows: two devices, three acts.
fn some_acts(desk: &Desk) {
    desk.run("device add press-7").done();
    desk.run("device add press-8").done();
    desk.run("device suspend press-7 --reason dirty").done();
    desk.run("device resume press-7").done();
    desk.run(["device", "revoke", "press-7", "--reason", "it is \"stolen\" \u{1d11e}"]).done();
}

/// The Python program's judgement of an export.
fn python(desk: &Desk, file: &str, head: Option<&str>) -> Ran {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/python/audit_verify.py");
    let mut command = Command::new("python3");
    command.arg(script).arg(desk.path(file)).args(head);
    Ran::of(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))
}

async fn who_did_what_when(_: Database, desk: Desk) {
    assert_eq!(desk.run("audit list --json").json(), json!([]));
    desk.run("audit list").done().says(&["there is no such act"]);
    some_acts(&desk);
    let rows = desk.run("audit list --json").json();
    let rows = rows.as_array().unwrap();
    let actions: Vec<&str> = rows.iter().map(|row| row["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["device.add", "device.add", "device.suspend", "device.resume", "device.revoke"]);
    let me = Ran::of(Command::new("id").arg("-un")).done().out;
    for (row, place) in rows.iter().zip(1..) {
        let keys: Vec<&String> = row.as_object().unwrap().keys().collect();
        let due =
            ["action", "actor", "after", "at", "before", "device", "hash", "id", "reason", "role", "subject"];
        assert_eq!(keys, due);
        assert_eq!((&row["id"], &row["actor"]), (&json!(place), &json!(me.trim())));
    }
    assert_eq!(rows[4]["reason"], "it is \"stolen\" \u{1d11e}");

    let count =
        |options: &str| desk.run(&format!("audit list --json {options}")).json().as_array().unwrap().len();
    assert_eq!(count("--device press-7"), 4);
    assert_eq!(count("--device press"), 0);
    assert_eq!(count("--since 1h"), 5);
    assert_eq!(count("--since 2999-01-01T00:00:00Z"), 0);
    let text = desk.run("audit list --device press-7").done().out;
    assert_eq!(text.lines().count(), 4, "{text}");
    assert!(text.contains("device.suspend  press-7  status: active -> suspended  (dirty)"), "{text}");
    desk.run("audit list --since yesterday").fails(2, &["RFC 3339"]);
}

async fn a_whole_chain_fits(database: Database, desk: Desk) {
    let empty = desk.run("audit verify --json").json();
    assert_eq!(
        empty,
        json!({ "fits": true, "rows": 0, "unsealed": 0, "head": format!("0:{}", "0".repeat(64)) })
    );
    some_acts(&desk);
    let early = desk.run("audit verify --json").json()["head"].as_str().unwrap().to_owned();
    assert!(early.starts_with("5:"), "{early}");
    database
        .execute("UPDATE devices SET status = 'suspended', reason = 'by hand' WHERE id = 'press-8'")
        .await
        .unwrap();
    let waiting = if matches!(database.sql, Sql::Sqlite(_)) { 1 } else { 0 };
    let verified = desk.run("audit verify --json").json();
    assert_eq!((&verified["rows"], &verified["unsealed"]), (&json!(6), &json!(waiting)));
    let said = desk.run("audit verify").done();
    assert_eq!(said.err.contains("1 of them have no hash yet"), waiting == 1, "{said:?}");
    assert_eq!(said.out.trim(), format!("head {}", verified["head"].as_str().unwrap()));
    assert_eq!(desk.run("audit list").done().out.contains("[unsealed]"), waiting == 1);
    std::fs::write(desk.path("waiting.jsonl"), desk.run("audit export").done().out).unwrap();
    assert!(
        python(&desk, "waiting.jsonl", None).done().out.starts_with(&format!("6 rows, {waiting} unsealed"))
    );

    // What was noted earlier still holds.
    desk.run("device kick press-8").done();
    desk.run(&format!("audit verify --head {early}")).done();
    let export = desk.run("audit export").done().out;
    std::fs::write(desk.path("audit.jsonl"), &export).unwrap();
    let head = desk.run("audit verify --json").json()["head"].as_str().unwrap().to_owned();
    assert!(python(&desk, "audit.jsonl", Some(&early)).done().out.ends_with(&format!("head {head}\n")));
    assert_eq!(desk.run("audit export --json").json().as_array().unwrap().len(), export.lines().count());
    for bad in ["5", "5:00", "x:00"] {
        desk.run(&format!("audit verify --head {bad}")).fails(2, &["COUNT:HASH"]);
    }
}

async fn what_was_tampered_with_is_named(database: Database, desk: Desk) {
    some_acts(&desk);
    let head = desk.run("audit verify --json").json()["head"].as_str().unwrap().to_owned();
    unlock(&database).await;
    let zeros = match &database.sql {
        Sql::Sqlite(_) => "zeroblob(32)",
        Sql::Postgres(_) => "decode(repeat('00', 32), 'hex')",
    };
    let third = "(SELECT hash FROM audit WHERE id = 3)";
    // Each begins with what the one before has left: ever earlier in the chain.
    for (sql, words) in [
        // The tail is cut, with its head: only what was noted elsewhere knows.
        ("DELETE FROM audit WHERE id = 5".to_owned(), "audit row 5 is missing"),
        (
            format!("UPDATE audit_head SET count = 3, hash = {third}"),
            "audit row 4 does not fit: it stands after",
        ),
        ("UPDATE audit_head SET count = 4".to_owned(), "audit row 4 does not fit: the registry's own head"),
        (
            "UPDATE audit SET at = '2001-01-01T00:00:00.000Z' WHERE id = 4".to_owned(),
            "audit row 4 does not fit: its column 'at'",
        ),
        (
            "UPDATE audit SET body = replace(body, 'dirty', 'clean') WHERE id = 3".to_owned(),
            "audit row 3 does not fit: it was changed",
        ),
        ("DELETE FROM audit WHERE id = 2".to_owned(), "audit row 2 is missing"),
        (format!("UPDATE audit SET hash = {zeros} WHERE id = 1"), "audit row 1 does not fit"),
    ] {
        database.execute(&sql).await.unwrap();
        desk.run("audit verify").fails(1, &[words]);
    }
    database.execute("DELETE FROM audit").await.unwrap();
    database.execute(&format!("UPDATE audit_head SET count = 0, hash = {zeros}")).await.unwrap();
    desk.run("audit verify").done();
    desk.run(&format!("audit verify --head {head}")).fails(1, &["audit row 1 is missing", "counts 5 rows"]);
}

async fn reordered_rows_and_a_chain_made_anew(database: Database, desk: Desk) {
    some_acts(&desk);
    let head = desk.run("audit verify --json").json()["head"].as_str().unwrap().to_owned();
    unlock(&database).await;
    for sql in [
        "UPDATE audit SET id = 100 WHERE id = 3",
        "UPDATE audit SET id = 3 WHERE id = 4",
        "UPDATE audit SET id = 4 WHERE id = 100",
    ] {
        database.execute(sql).await.unwrap();
    }
    desk.run("audit verify").fails(1, &["audit row 3 does not fit"]);
    // A note that is not this chain's.
    for sql in [
        "UPDATE audit SET id = 100 WHERE id = 3",
        "UPDATE audit SET id = 3 WHERE id = 4",
        "UPDATE audit SET id = 4 WHERE id = 100",
    ] {
        database.execute(sql).await.unwrap();
    }
    desk.run(&format!("audit verify --head {head}")).done();
    let other = format!("5:{}", "ab".repeat(32));
    desk.run(&format!("audit verify --head {other}")).fails(1, &["audit row 5 does not fit", "made anew"]);
}

async fn another_program_finds_the_same(_: Database, desk: Desk) {
    some_acts(&desk);
    let export = desk.run("audit export").done().out;
    let lines: Vec<&str> = export.lines().collect();
    assert_eq!(lines.len(), 6);
    let row: Value = serde_json::from_str(lines[0]).unwrap();
    assert_eq!(row.as_object().unwrap().keys().collect::<Vec<_>>(), ["body", "hash", "id"]);
    let judge = |lines: &[&str], head: Option<&str>| {
        std::fs::write(desk.path("audit.jsonl"), lines.join("\n")).unwrap();
        python(&desk, "audit.jsonl", head)
    };
    let good = judge(&lines, None).done().out;
    assert!(good.starts_with("5 rows, 0 unsealed, head 5:"), "{good}");
    let head = good.trim().rsplit(' ').next().unwrap();
    judge(&lines, Some(head)).done();

    let changed = lines[2].replace("dirty", "clean");
    let refused = |lines: &[&str], head: Option<&str>, words: &str| {
        let ran = judge(lines, head);
        assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{ran:?}");
        ran.says(&[words]);
    };
    refused(&[lines[0], lines[1], &changed, lines[3], lines[4], lines[5]], None, "row 3 does not fit");
    refused(&[lines[0], lines[2], lines[3], lines[4], lines[5]], None, "row 2 is missing");
    refused(&lines[..4], None, "the chain ends at row 4");
    let mut cut: Value = serde_json::from_str(lines[5]).unwrap();
    let fourth: Value = serde_json::from_str(lines[3]).unwrap();
    (cut["count"], cut["hash"]) = (json!(4), fourth["hash"].clone());
    let cut = cut.to_string();
    judge(&[lines[0], lines[1], lines[2], lines[3], &cut], None).done();
    refused(&[lines[0], lines[1], lines[2], lines[3], &cut], Some(head), "row 5 is missing");
    refused(&lines, Some(&format!("2:{}", "ab".repeat(32))), "row 2 is not the one that was noted");
}

on_both!(
    who_did_what_when,
    a_whole_chain_fits,
    what_was_tampered_with_is_named,
    reordered_rows_and_a_chain_made_anew,
    another_program_finds_the_same,
);

/// Whoever has the file can write there what is no text. It keeps nobody from revoking, and is found.
#[tokio::test]
async fn what_is_no_text_stops_nobody() {
    let database = Database::bare_sqlite().await;
    let desk = Desk::on(&database);
    desk.run("device add press-7").done();
    database
        .execute("UPDATE devices SET status = 'suspended', reason = CAST(x'ff2241' AS TEXT)")
        .await
        .unwrap();
    desk.run("device revoke press-7 --reason stolen").done();
    assert_eq!(desk.run("audit list").done().out.lines().count(), 3);
    assert!(desk.run("audit list --json").done().out.contains("device.revoke"));
    let _ = desk.run("audit export").done();
    // The same for an audit that was cut short behind the triggers' back.
    unlock(&database).await;
    database
        .execute("DELETE FROM audit WHERE id > 1; DELETE FROM sqlite_sequence WHERE name = 'audit'")
        .await
        .unwrap();
    desk.run("device add press-8").done();
    desk.run("audit verify").fails(1, &["audit row 2 does not fit"]);
}
