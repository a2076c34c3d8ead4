//! The audit: what leaves a row, what is in it, what never changes, and what the chain finds.

use std::sync::Arc;

use doorward::registry::{Access, Act, AuditFilter, AuditHash, Batch, Chain, Misfit, Registry, connect};
use serde_json::{Value, json};

use super::{add, certificate_of, claim, connected, contract, device, fleet, message};
use crate::support::database::{Database, Sql};

contract!(
    every_act_of_a_command_is_a_row,
    plain_sql_leaves_a_row,
    what_changes_nothing_leaves_none,
    no_secret_is_in_it,
    one_row_for_a_device_that_is_added,
    a_gateways_own_writes_are_no_acts,
    an_act_that_is_undone_leaves_nothing,
    it_never_changes,
    the_chain_is_what_is_documented,
    acts_at_once_make_one_chain,
);

const ALL: AuditFilter = AuditFilter { naming: None, since: None, after: 0, limit: 100_000 };

async fn bodies(registry: &Arc<dyn Registry>) -> Vec<Value> {
    let rows = registry.audit(&ALL).await.unwrap();
    rows.iter().map(|row| serde_json::from_slice(&row.body).unwrap()).collect()
}

/// Action and subject of each row.
async fn acts(registry: &Arc<dyn Registry>) -> Vec<String> {
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    bodies(registry).await.iter().map(|b| format!("{} {}", word(&b["action"]), word(&b["subject"]))).collect()
}

async fn verified(registry: &Arc<dyn Registry>) -> Result<Chain, Misfit> {
    let mut chain = Chain::default();
    let head = registry.audit_head().await.unwrap();
    for row in registry.audit(&ALL).await.unwrap() {
        chain.take(&row)?;
    }
    chain.end(&head)?;
    Ok(chain)
}

/// This process's user, as another program says it.
fn me() -> String {
    let output = std::process::Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

async fn every_act_of_a_command_is_a_row(db: Database) {
    let registry = &db.registry;
    registry.add_fleet(&fleet("line-2"), r#"{"allow": []}"#).await.unwrap();
    registry.set_policy(&fleet("line-2"), r#"{"deny": []}"#).await.unwrap();
    add(registry, &["a"]).await;
    registry.set_status(&device("a"), Act::Suspend, Some("dirty")).await.unwrap();
    registry.set_status(&device("a"), Act::Resume, None).await.unwrap();
    registry.kick(&device("a")).await.unwrap();
    registry.remove_gateway("none").await.unwrap_err();
    let fingerprint = certificate_of("a").fingerprint;
    registry.revoke_certificate(&fingerprint, "leaked", false).await.unwrap();
    registry.set_status(&device("a"), Act::Revoke, Some("it's \"stolen\" \u{1d11e}")).await.unwrap();
    let due = [
        "fleet.add line-2",
        "fleet.policy line-2",
        "device.add a",
        "device.suspend a",
        "device.resume a",
        "device.kick a",
        &format!("certificate.revoke {}", certificate_of("a").serial),
        "device.revoke a",
    ];
    assert_eq!(acts(registry).await, due);

    let bodies = bodies(registry).await;
    let role = if matches!(db.sql, Sql::Postgres(_)) { json!("postgres") } else { Value::Null };
    for body in &bodies {
        assert_eq!((&body["actor"], &body["role"]), (&json!(me()), &role), "{body}");
    }
    assert_eq!(
        (&bodies[1]["before"]["policy"], &bodies[1]["after"]["policy"]),
        (&json!({"allow": []}), &json!({"deny": []}))
    );
    let revoked = &bodies[7];
    assert_eq!((&revoked["device"], &revoked["reason"]), (&json!("a"), &json!("it's \"stolen\" \u{1d11e}")));
    let states = (&revoked["before"]["status"], &revoked["after"]["status"]);
    assert_eq!(states, (&json!("active"), &json!("revoked")));
    let chain = verified(registry).await.unwrap();
    assert_eq!((chain.rows(), chain.unsealed()), (8, 0));
    // Who asks by the device finds its own.
    let naming = AuditFilter { naming: Some(device("a")), ..ALL };
    assert_eq!(registry.audit(&naming).await.unwrap().len(), 6);
    assert!(registry.audit(&AuditFilter { since: Some(super::FAR), ..ALL }).await.unwrap().is_empty());
    let page = registry.audit(&AuditFilter { after: 3, limit: 2, ..ALL }).await.unwrap();
    assert_eq!(page.iter().map(|row| row.id).collect::<Vec<_>>(), [4, 5]);
}

async fn plain_sql_leaves_a_row(db: Database) {
    let registry = &db.registry;
    add(registry, &["a", "b", "c"]).await;
    let gateway = match &db.sql {
        Sql::Sqlite(_) => {
            "INSERT INTO gateways (name, instance, version, address, may_serve_ms) VALUES ('g1', 'i', '1', '', 1)"
        }
        Sql::Postgres(_) => {
            "INSERT INTO gateways (name, instance, version, address, may_serve) VALUES ('g1', 'i', '1', '', '1 s')"
        }
    };
    for sql in [
        "UPDATE devices SET status = 'suspended', reason = 'by hand' WHERE id < 'c'",
        "UPDATE certificates SET status = 'revoked', reason = 'lost' WHERE device = 'a'",
        "UPDATE hmac_keys SET state = 'retired' WHERE device = 'a'",
        "UPDATE fleets SET limits = '{\"rate_burst\": 1}'",
        "INSERT INTO fleets (id, policy) VALUES ('x', '{}')",
        "UPDATE devices SET fleet = 'x', attributes = '{\"n\": 1}' WHERE id = 'c'",
        "UPDATE devices SET attributes = '{}' WHERE id = 'c'",
        "INSERT INTO changes (kind, subject) VALUES ('kick', 'b')",
        gateway,
        "UPDATE gateways SET signed_off = heartbeat",
        "DELETE FROM gateways",
        "INSERT INTO devices (id, fleet) VALUES ('d', 'x')",
        "INSERT INTO hmac_keys (device, version, sealed, state) SELECT 'd', 2, sealed, 'pending' FROM hmac_keys WHERE device = 'b'",
        "DELETE FROM hmac_keys WHERE device = 'd'",
        "DELETE FROM devices WHERE id = 'd'",
    ] {
        db.execute(sql).await.unwrap();
    }
    let serial = certificate_of("a").serial;
    let due = [
        "device.suspend a",
        "device.suspend b",
        &format!("certificate.revoke {serial}"),
        "key.retire 1",
        "fleet.limits default",
        "fleet.add x",
        "device.move c",
        "device.update c",
        "device.kick b",
        "gateway.remove g1",
        "device.add d",
        "key.add 2",
        "key.delete 2",
        "device.delete d",
    ];
    assert_eq!(acts(registry).await[3..], due);
    for body in &bodies(registry).await[3..] {
        assert_eq!(body["actor"], "sql", "{body}");
    }
    // The next command seals what waits, in order, and its own.
    let chain = verified(registry).await.unwrap();
    let waiting = if matches!(db.sql, Sql::Sqlite(_)) { 14 } else { 0 };
    assert_eq!((chain.rows(), chain.unsealed()), (17, waiting));
    registry.set_status(&device("b"), Act::Revoke, None).await.unwrap();
    let chain = verified(registry).await.unwrap();
    assert_eq!((chain.rows(), chain.unsealed()), (18, 0));
    assert_eq!(bodies(registry).await[17]["actor"], me());
}

async fn what_changes_nothing_leaves_none(db: Database) {
    let registry = &db.registry;
    add(registry, &["a"]).await;
    registry.set_status(&device("a"), Act::Suspend, None).await.unwrap();
    registry.set_status(&device("a"), Act::Suspend, None).await.unwrap();
    registry.set_status(&device("b"), Act::Suspend, None).await.unwrap_err();
    registry.add_devices(&[super::new_device("a")]).await.unwrap_err();
    for sql in [
        "UPDATE devices SET status = status",
        "UPDATE devices SET status = 'revoked' WHERE id = 'b'",
        "UPDATE fleets SET policy = policy",
        "UPDATE hmac_keys SET state = state",
        "DELETE FROM fleets WHERE id = 'none'",
    ] {
        db.execute(sql).await.unwrap();
    }
    assert_eq!(acts(registry).await, ["device.add a", "device.suspend a"]);
}

async fn no_secret_is_in_it(db: Database) {
    let registry = &db.registry;
    add(registry, &["a"]).await;
    for sql in [
        "UPDATE certificates SET status = 'superseded', valid_until = '2027-05-01T00:00:00.000Z'",
        "UPDATE hmac_keys SET state = 'grace', grace_until = '2027-05-01T00:00:00.000Z'",
        "DELETE FROM hmac_keys",
        "DELETE FROM certificates",
    ] {
        db.execute(sql).await.unwrap();
    }
    for body in bodies(registry).await {
        let text = body.to_string().to_lowercase();
        for word in ["sealed", "\"der\"", "0700ff"] {
            assert!(!text.contains(word), "{word}: {text}");
        }
    }
    let reseal = match &db.sql {
        Sql::Sqlite(_) => "UPDATE hmac_keys SET sealed = x'0102'",
        Sql::Postgres(_) => "UPDATE hmac_keys SET sealed = '\\x0102'",
    };
    add(registry, &["b"]).await;
    db.execute(reseal).await.unwrap();
    let bodies = bodies(registry).await;
    let last = bodies.last().unwrap();
    assert_eq!(last["action"], "key.reseal");
    assert!(!last.to_string().contains("0102"), "{last}");
}

async fn one_row_for_a_device_that_is_added(db: Database) {
    let ids: Vec<String> = (0..1200).map(|n| format!("p{n:06}")).collect();
    add(&db.registry, &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let bodies = bodies(&db.registry).await;
    assert_eq!(bodies.len(), 1200);
    for (body, id) in bodies.iter().zip(&ids) {
        let after = &body["after"];
        assert_eq!((&body["action"], &body["subject"]), (&json!("device.add"), &json!(id)));
        assert_eq!((&after["fleet"], &after["status"]), (&json!("default"), &json!("active")));
        let certificate = &after["certificates"][0];
        assert_eq!(certificate["fingerprint"], certificate_of(id).fingerprint.to_string());
        assert_eq!(certificate["serial"], certificate_of(id).serial);
        assert_eq!((&after["keys"][0]["version"], &after["keys"][0]["state"]), (&json!(1), &json!("active")));
        assert_eq!(after["certificates"].as_array().unwrap().len(), 1);
    }
    verified(&db.registry).await.unwrap();
}

async fn a_gateways_own_writes_are_no_acts(db: Database) {
    connected(&db.registry, &["a"]).await;
    let before = db.registry.audit_head().await.unwrap();
    let batch = Batch {
        claims: vec![claim("a", "s2")],
        messages: vec![message("a", "s2", "m1")],
        releases: vec![(device("a"), "s2".into())],
        ..Batch::default()
    };
    db.registry.write(&batch).await.unwrap();
    db.registry.forget_sessions("g1").await.unwrap();
    db.registry.prune_history(super::FAR, 100).await.unwrap();
    db.registry.prune_messages(super::FAR, 100).await.unwrap();
    assert_eq!(db.registry.audit_head().await.unwrap(), before);
    assert_eq!(acts(&db.registry).await, ["device.add a"]);
}

async fn an_act_that_is_undone_leaves_nothing(db: Database) {
    let registry = &db.registry;
    add(registry, &["a"]).await;
    db.execute("BEGIN; UPDATE devices SET status = 'suspended'; ROLLBACK").await.unwrap();
    db.execute(
        "BEGIN; SAVEPOINT s; UPDATE devices SET status = 'revoked'; ROLLBACK TO s; UPDATE devices SET status = 'suspended'; COMMIT",
    )
    .await
    .unwrap();
    assert_eq!(acts(registry).await, ["device.add a", "device.suspend a"]);
    registry.kick(&device("a")).await.unwrap();
    assert_eq!(verified(registry).await.unwrap().rows(), 3);
}

async fn it_never_changes(db: Database) {
    let registry = &db.registry;
    add(registry, &["a", "b"]).await;
    let before = registry.audit(&ALL).await.unwrap();
    for sql in [
        "UPDATE audit SET body = '{}'",
        "UPDATE audit SET at = '2001-01-01T00:00:00.000Z'",
        "UPDATE audit SET hash = NULL",
        "DELETE FROM audit",
        "DELETE FROM audit WHERE id = 2",
        "INSERT INTO audit SELECT id + 1, at, body, hash FROM audit WHERE id = 2",
        "INSERT INTO audit SELECT id + 2, at, body, hash FROM audit WHERE id = 2",
        "UPDATE audit_head SET count = 1",
        "UPDATE audit_head SET count = count + 1",
        "DELETE FROM audit_head",
        "INSERT INTO audit_head DEFAULT VALUES",
    ] {
        assert!(db.execute(sql).await.is_err(), "{sql}");
    }
    let after = registry.audit(&ALL).await.unwrap();
    assert_eq!(format!("{before:?}"), format!("{after:?}"));
    verified(registry).await.unwrap();
}

async fn the_chain_is_what_is_documented(db: Database) {
    add(&db.registry, &["a"]).await;
    db.registry.set_status(&device("a"), Act::Revoke, Some("Größe 𝄞 \\ \" '")).await.unwrap();
    let rows = db.registry.audit(&ALL).await.unwrap();
    let mut hash = AuditHash::default();
    for row in &rows {
        hash = hash.then(&row.body);
        assert_eq!(row.hash, Some(hash));
    }
    assert_eq!(db.registry.audit_head().await.unwrap().to_string(), format!("2:{hash}"));
}

async fn acts_at_once_make_one_chain(db: Database) {
    let ids: Vec<String> = (0..8).map(|n| format!("d{n}")).collect();
    add(&db.registry, &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let other = connect(&db.url, Access::Existing).unwrap();
    let tasks: Vec<_> = ids
        .iter()
        .enumerate()
        .map(|(place, id)| {
            let registry = Arc::clone(if place % 2 == 0 { &db.registry } else { &other });
            let id = device(id);
            tokio::spawn(async move {
                for _ in 0..5 {
                    registry.set_status(&id, Act::Suspend, None).await.unwrap();
                    registry.set_status(&id, Act::Resume, None).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(verified(&db.registry).await.unwrap().rows(), 88);
}

/// The head is taken at a transaction's end. One that acts cannot be prepared, which would keep it.
#[tokio::test]
async fn an_act_that_is_not_committed_holds_no_other_up() {
    use sqlx::Executor as _;
    let db = Database::postgres().await;
    add(&db.registry, &["a", "b"]).await;
    let mut idle = db.pg().begin().await.unwrap();
    idle.execute("UPDATE devices SET status = 'suspended' WHERE id = 'a'").await.unwrap();
    let b = device("b");
    let other = db.registry.set_status(&b, Act::Revoke, None);
    tokio::time::timeout(std::time::Duration::from_secs(5), other).await.unwrap().unwrap();
    idle.commit().await.unwrap();
    assert_eq!(
        acts(&db.registry).await,
        ["device.add a", "device.add b", "device.revoke b", "device.suspend a"]
    );
    verified(&db.registry).await.unwrap();

    let refused = db
        .execute("BEGIN; UPDATE devices SET status = 'active' WHERE id = 'a'; PREPARE TRANSACTION 'held'")
        .await
        .unwrap_err();
    assert!(refused.contains("cannot PREPARE"), "{refused}");
    db.registry.kick(&device("a")).await.unwrap();
}

/// Devices that are added with their certificates and keys have a short way into the chain: what it writes is what the
/// long way writes, and whatever is not quite that takes the long one.
#[tokio::test]
async fn the_short_way_of_what_is_added_writes_what_the_long_one_does() {
    let db = Database::postgres().await;
    let devices = |of: &str| {
        format!(
            "INSERT INTO devices (id, fleet) SELECT '{of}' || n, 'default' FROM generate_series(1, 3) AS n;"
        )
    };
    let certificates = |of: &str, many: u32| {
        format!(
            "INSERT INTO certificates (device, fingerprint, serial, issuer, der, not_before, not_after)
             SELECT '{of}' || n, encode(sha256(convert_to('{of}' || n, 'UTF8')), 'hex'), md5('{of}' || n), 'ab', 'x', '2027-01-01', '2028-01-01'
             FROM generate_series(1, {many}) AS n;"
        )
    };
    let keys = |of: &str| {
        format!(
            "INSERT INTO hmac_keys (device, version, sealed, state) SELECT '{of}' || n, 1, 'x', 'active' FROM generate_series(1, 3) AS n;"
        )
    };
    for (sql, rows) in [
        ([devices("a"), certificates("a", 3), keys("a")].concat(), 3),
        ([devices("b"), keys("b"), certificates("b", 3)].concat(), 3),
        // Not all of them have one.
        ([devices("c"), certificates("c", 2), keys("c")].concat(), 3),
        // Of others.
        ([devices("d"), certificates("c", 3).replace("(1, 3)", "(3, 3)"), keys("d")].concat(), 4),
        (
            [
                devices("e"),
                certificates("e", 3),
                keys("e"),
                "DELETE FROM hmac_keys WHERE device = 'e3'".into(),
            ]
            .concat(),
            4,
        ),
    ] {
        let before = acts(&db.registry).await.len();
        db.execute(&format!("BEGIN; {sql}; COMMIT")).await.unwrap();
        assert_eq!(acts(&db.registry).await.len() - before, rows, "{sql}");
    }
    verified(&db.registry).await.unwrap();
    let bodies = bodies(&db.registry).await;
    let comparable = |of: &str, n: usize| {
        let id = format!("{of}{n}");
        let body = bodies.iter().find(|body| body["subject"] == *id).unwrap();
        let mut after = body["after"].clone();
        for certificate in after["certificates"].as_array_mut().into_iter().flatten() {
            assert_ne!(certificate["fingerprint"].take(), Value::Null);
            assert_ne!(certificate["serial"].take(), Value::Null);
        }
        let names: Vec<String> = body.as_object().unwrap().keys().cloned().collect();
        (names, body["actor"].clone(), body["role"].clone(), after)
    };
    for n in 1..=3 {
        assert_eq!(comparable("a", n), comparable("b", n));
        assert_eq!(comparable("a", n), comparable("e", n));
    }
    assert_eq!(comparable("c", 2), comparable("a", 2));
    assert_eq!(comparable("c", 3).3["certificates"], Value::Null);
    assert_eq!(comparable("c", 3).3["keys"], comparable("a", 3).3["keys"]);
    assert_eq!(comparable("d", 1).3["keys"], comparable("a", 1).3["keys"]);
}
