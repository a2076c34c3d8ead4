//! What only SQLite has: a file, one writer, and REPLACE.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use doorward::registry::{
    Access, Act, Batch, DatabaseUrl, DeviceStatus, Enrolment, Position, RegistryError, connect,
};
use sqlx::{Connection, SqliteConnection};

use super::{add, certificate_of, connected, device, message};
use crate::support::database::Database;

/// `REPLACE` and `OR REPLACE` delete what is in their way without a delete trigger; with foreign keys off, as in a shell.
#[tokio::test]
async fn nothing_is_replaced() {
    let db = Database::sqlite().await;
    add(&db.registry, &["a", "b"]).await;
    db.execute("UPDATE devices SET status = 'revoked' WHERE id = 'a'").await.unwrap();
    db.execute("UPDATE certificates SET status = 'revoked' WHERE device = 'a'").await.unwrap();
    let mut shell = SqliteConnection::connect(&db.url.to_string()).await.unwrap();
    sqlx::query("PRAGMA foreign_keys = off").execute(&mut shell).await.unwrap();
    for sql in [
        "REPLACE INTO devices (id, fleet) VALUES ('a', 'default')",
        "REPLACE INTO devices (id, fleet) VALUES ('A', 'default')",
        "INSERT INTO devices (id, fleet) VALUES ('a', 'default') ON CONFLICT DO UPDATE SET status = 'active'",
        "UPDATE OR REPLACE devices SET id = 'a' WHERE id = 'b'",
        "REPLACE INTO certificates SELECT fingerprint, serial, issuer, der, 'b', NULL, not_before, not_after, 'active', NULL, NULL
             FROM certificates WHERE device = 'a'",
        "REPLACE INTO certificates SELECT replace(fingerprint, '0', '1'), serial, issuer, der, 'b', NULL, not_before, not_after, 'active', NULL, NULL
             FROM certificates WHERE device = 'a'",
        "UPDATE OR REPLACE certificates SET fingerprint = (SELECT fingerprint FROM certificates WHERE device = 'a') WHERE device = 'b'",
        "REPLACE INTO hmac_keys SELECT device, version, x'00', 'active', NULL FROM hmac_keys",
        "REPLACE INTO hmac_keys SELECT device, 2, x'00', 'active', NULL FROM hmac_keys",
        "REPLACE INTO fleets (id, policy) VALUES ('default', '{}')",
        "REPLACE INTO changes (id, kind, subject) SELECT id, 'kick', 'b' FROM changes",
        // What foreign keys would refuse.
        "INSERT INTO devices (id, fleet) VALUES ('c', 'nowhere')",
        "UPDATE devices SET fleet = 'nowhere'",
        "DELETE FROM fleets",
        "DELETE FROM devices",
        "INSERT INTO hmac_keys (device, version, sealed, state) VALUES ('nobody', 1, x'00', 'active')",
    ] {
        assert!(sqlx::query(sql).execute(&mut shell).await.is_err(), "{sql}");
    }
    let record = db.registry.look_up(&certificate_of("a").fingerprint).await.unwrap().unwrap();
    assert_eq!((record.device, record.status), (device("a"), DeviceStatus::Revoked));
}

#[tokio::test]
async fn the_file_is_its_owners_alone() {
    let db = Database::sqlite().await;
    connected(&db.registry, &["a"]).await;
    let path = db.url.path().unwrap();
    for suffix in ["", "-wal", "-shm"] {
        let file = format!("{}{suffix}", path.display());
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    assert_eq!(db.number("PRAGMA synchronous").await, 2);
}

#[tokio::test]
async fn a_file_that_is_not_there_is_not_made() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("registry.db");
    let words = connect(&DatabaseUrl::file(&path), Access::Existing).err().unwrap().to_string();
    assert!(words.contains(&path.display().to_string()) && words.contains("doorward init"), "{words}");
    assert!(!path.exists());
    let nowhere = directory.path().join("no/such/folder.db");
    assert!(matches!(
        connect(&DatabaseUrl::file(&nowhere), Access::Create),
        Err(RegistryError::Unavailable(_))
    ));
    // Something else under that name.
    std::fs::write(&path, "this is not a database, and long enough to be taken for one".repeat(100)).unwrap();
    let registry = connect(&DatabaseUrl::file(&path), Access::Existing).unwrap();
    let error = registry.check_schema().await.unwrap_err();
    assert!(matches!(error, RegistryError::Corrupt(_)), "{error:?}");
}

#[tokio::test]
async fn a_lock_that_stays_is_an_outage() {
    let db = Database::sqlite().await;
    connected(&db.registry, &["a"]).await;
    let mut other = SqliteConnection::connect(&db.url.to_string()).await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let batch = Batch { messages: vec![message("a", "s1", "m1")], ..Batch::default() };
    let error = db.registry.write(&batch).await.unwrap_err();
    assert!(matches!(&error, RegistryError::Unavailable(words) if words.contains("locked")), "{error:?}");
    // Who reads does not wait.
    assert!(db.registry.look_up(&certificate_of("a").fingerprint).await.unwrap().is_some());
    sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
    assert_eq!(db.registry.write(&batch).await.unwrap(), [doorward::registry::Fate::Stored]);
}

#[tokio::test]
async fn a_report_from_ahead_of_the_feed_confirms_nothing() {
    let (later, earlier) = (Database::sqlite().await, Database::sqlite().await);
    add(&later.registry, &["a", "b", "c"]).await;
    let gateway = Enrolment {
        name: "g1".into(),
        instance: "home.run".to_owned(),
        version: "1",
        address: "192.0.2.1:8443".to_owned(),
        may_serve: Duration::from_secs(3600),
    };
    let registry = &earlier.registry;
    registry.enrol(&gateway).await.unwrap();
    let ahead = later.registry.read_changes(&mut Position::default()).await.unwrap().applied;
    assert!(registry.report("g1", "home.run", &ahead).await.unwrap(), "it lives all the same");
    add(registry, &["a"]).await;
    let acted = registry.set_status(&device("a"), Act::Revoke, None).await.unwrap();
    let confirmed = async || registry.gateways(Some(acted.mark)).await.unwrap()[0].confirmed;
    assert!(!confirmed().await, "what it has applied was applied elsewhere");
    let applied = registry.read_changes(&mut Position::default()).await.unwrap().applied;
    assert!(registry.report("g1", "home.run", &applied).await.unwrap());
    assert!(confirmed().await);
}

#[tokio::test]
async fn an_older_file_that_has_gone_on_is_a_gap() {
    let (live, restored) = (Database::sqlite().await, Database::sqlite().await);
    for db in [&live, &restored] {
        add(&db.registry, &["a"]).await;
    }
    // The live one goes on, and so does what was restored, by other ways.
    let mut position = live.registry.position().await.unwrap();
    add(&live.registry, &["b"]).await;
    assert!(!live.registry.read_changes(&mut position).await.unwrap().gap);
    tokio::time::sleep(Duration::from_millis(5)).await;
    add(&restored.registry, &["c", "d", "e"]).await;
    let news = restored.registry.read_changes(&mut position.clone()).await.unwrap();
    assert!(news.gap, "what was read last is not there: {position:?}");
    // Where it was pruned it need not be.
    assert!(!live.registry.read_changes(&mut position.clone()).await.unwrap().gap);
    live.registry.prune_history(super::FAR, 100).await.unwrap();
    assert!(!live.registry.read_changes(&mut position).await.unwrap().gap);
}
