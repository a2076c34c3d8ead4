//! What only Postgres has: transactions that overlap, TRUNCATE, a server that can be away.

use std::collections::BTreeSet;
use std::time::Duration;

use doorward::registry::{Access, Act, Batch, Change, DatabaseUrl, Fate, RegistryError, connect};
use sqlx::Executor;

use super::feed::{of, read};
use super::{FAR, add, certificate_of, connected, device, message};
use crate::support::database::Database;
use crate::support::house::{eventually, within};

/// A transaction that draws its id early and commits late stands below rows that were read before it.
#[tokio::test]
async fn a_late_commit_is_delivered_once() {
    let db = Database::postgres().await;
    let registry = &db.registry;
    add(registry, &["late", "soon", "last"]).await;
    let mut position = registry.position().await.unwrap();

    let mut late = db.pg().begin().await.unwrap();
    late.execute("UPDATE devices SET status = 'suspended' WHERE id = 'late'").await.unwrap();
    registry.set_status(&device("soon"), Act::Suspend, None).await.unwrap();
    // Acted on at once, though `late` holds xmin back.
    assert_eq!(read(registry, &mut position).await, of(&["soon"]));
    assert_eq!(read(registry, &mut position).await, []);
    registry.set_status(&device("last"), Act::Suspend, None).await.unwrap();
    late.commit().await.unwrap();
    // Whatever their order.
    let mut changes = read(registry, &mut position).await;
    changes.sort_by_key(|change| format!("{change:?}"));
    assert_eq!(changes, of(&["last", "late"]));
    for _ in 0..3 {
        assert_eq!(read(registry, &mut position).await, []);
    }
    db.settled().await;
    assert_eq!(read(registry, &mut position).await, []);
    assert!(position.seen.is_empty(), "{position:?}");
}

/// The id is drawn by the older transaction id's younger neighbour: an order by ids, or by `xmin` of ids, loses it.
#[tokio::test]
async fn ids_and_transaction_ids_need_not_agree() {
    let db = Database::postgres().await;
    let registry = &db.registry;
    add(registry, &["a", "b"]).await;
    let mut position = registry.position().await.unwrap();
    let mut first = db.pg().begin().await.unwrap();
    let mut second = db.pg().begin().await.unwrap();
    // The transaction ids in this order, the change rows in the other.
    first.execute("SELECT pg_current_xact_id()").await.unwrap();
    second.execute("UPDATE devices SET status = 'suspended' WHERE id = 'b'").await.unwrap();
    first.execute("UPDATE devices SET status = 'suspended' WHERE id = 'a'").await.unwrap();
    first.commit().await.unwrap();
    assert_eq!(read(registry, &mut position).await, of(&["a"]));
    assert_eq!(read(registry, &mut position).await, []);
    second.commit().await.unwrap();
    assert_eq!(read(registry, &mut position).await, of(&["b"]));
    assert_eq!(read(registry, &mut position).await, []);
}

#[tokio::test]
async fn a_position_taken_meanwhile_misses_nothing() {
    let db = Database::postgres().await;
    let registry = &db.registry;
    add(registry, &["late", "soon"]).await;
    let mut late = db.pg().begin().await.unwrap();
    late.execute("UPDATE devices SET status = 'suspended' WHERE id = 'late'").await.unwrap();
    registry.set_status(&device("soon"), Act::Suspend, None).await.unwrap();
    let mut position = registry.position().await.unwrap();
    assert_eq!(read(registry, &mut position).await, []);
    late.commit().await.unwrap();
    assert_eq!(read(registry, &mut position).await, of(&["late"]));
    assert_eq!(read(registry, &mut position).await, []);
}

/// Also while pages are read, and while old rows are pruned.
#[tokio::test]
async fn a_transaction_that_idles_stops_no_one() {
    let db = Database::postgres().await;
    let registry = &db.registry;
    let mut position = registry.position().await.unwrap();
    let mut idle = db.pg().begin().await.unwrap();
    idle.execute("INSERT INTO devices (id, fleet) VALUES ('idle', 'default')").await.unwrap();
    let ids: Vec<String> = (0..1500).map(|n| format!("p{n:06}")).collect();
    add(registry, &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let news = registry.read_changes(&mut position).await.unwrap();
    assert!(news.more && !news.gap && news.changes.len() == 1000);
    let news = registry.read_changes(&mut position).await.unwrap();
    assert!(!news.more && !news.gap && news.changes.len() == 500);
    // It can be named: from the first look on it is the oldest, or another test's is for a while.
    let mine: i64 =
        sqlx::query_scalar("SELECT pg_current_xact_id()::text::bigint").fetch_one(&mut *idle).await.unwrap();
    assert!(news.open.is_some_and(|open| open <= mine), "{:?}", news.open);
    // Rows that a follower still reads again are not pruned.
    registry.prune_history(FAR, 10_000).await.unwrap();
    assert_eq!(read(registry, &mut position).await, []);
    idle.commit().await.unwrap();
    assert_eq!(read(registry, &mut position).await, of(&["idle"]));
    db.settled().await;
    assert_eq!(read(registry, &mut position).await, []);
    assert!(position.seen.is_empty());
}

/// A dump from another cluster brings transaction ids that are still to come here.
#[tokio::test]
async fn rows_from_another_cluster_are_no_news() {
    let db = Database::postgres().await;
    let registry = &db.registry;
    db.execute("INSERT INTO changes (xid, kind, subject) SELECT '900000000000'::xid8, 'device', 'old' FROM generate_series(1, 5)")
        .await
        .unwrap();
    db.settled().await;
    let mut position = registry.position().await.unwrap();
    assert!(position.seen.iter().all(|(xid, _)| *xid < 900_000_000_000), "{position:?}");
    add(registry, &["a"]).await;
    assert_eq!(read(registry, &mut position).await, of(&["a"]));
    db.settled().await;
    assert_eq!(read(registry, &mut position).await, []);
    assert_eq!(registry.prune_history(FAR, 5000).await.unwrap(), 7);
    assert_eq!(read(registry, &mut position).await, [], "pruning them is no gap");
}

#[tokio::test]
async fn truncate_is_refused() {
    let db = Database::postgres().await;
    add(&db.registry, &["a"]).await;
    for table in ["devices", "certificates", "hmac_keys", "changes", "fleets"] {
        let words = db.execute(&format!("TRUNCATE {table} CASCADE")).await.unwrap_err();
        assert!(words.contains("TRUNCATE is refused"), "{table}: {words}");
    }
}

#[tokio::test]
async fn everything_is_in_one_schema() {
    let db = Database::postgres().await;
    let elsewhere = "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname NOT IN ('doorward', 'pg_catalog', 'information_schema', 'pg_toast')";
    assert_eq!(db.number(elsewhere).await, 0);
    // The SQL door as an operator opens it, without a search path.
    db.execute(
        "SET search_path = public; UPDATE doorward.fleets SET limits = '{\"rate_burst\": 2}'; RESET search_path",
    )
    .await
    .unwrap();
}

/// Two gateways that store the same messages in opposite orders lock each other out; one is told to try again.
#[tokio::test]
async fn a_deadlock_is_tried_again() {
    let db = Database::postgres().await;
    connected(&db.registry, &["a", "b"]).await;
    let other = connect(&db.url, Access::Existing).unwrap();
    for round in 0..20 {
        let up: Vec<_> = (0..200).map(|n| message("a", "s1", &format!("{round}-{n}"))).collect();
        let down: Vec<_> = up.iter().rev().cloned().collect();
        let (up, down) =
            (Batch { messages: up, ..Batch::default() }, Batch { messages: down, ..Batch::default() });
        let (one, two) = tokio::join!(db.registry.write(&up), other.write(&down));
        assert!(
            one.unwrap()
                .iter()
                .chain(&two.unwrap())
                .all(|fate| matches!(fate, Fate::Stored | Fate::Duplicate))
        );
    }
    assert_eq!(db.number("SELECT count(*) FROM messages").await, 4000);
}

#[tokio::test]
async fn a_lock_that_stays_is_an_outage() {
    let db = Database::postgres().await;
    connected(&db.registry, &["a"]).await;
    let mut other = db.pg().begin().await.unwrap();
    other.execute("UPDATE presence SET peer = 'x'").await.unwrap();
    let batch = Batch { releases: vec![(device("a"), "s1".into())], ..Batch::default() };
    let error = db.registry.write(&batch).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unavailable(_)), "{error:?}");
    other.rollback().await.unwrap();
    db.registry.write(&batch).await.unwrap();
    assert!(db.registry.sessions(super::NOON).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_lost_connection_is_an_outage_and_no_more() {
    let db = Database::postgres().await;
    add(&db.registry, &["a"]).await;
    let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'doorward' AND datname = current_database()";
    assert!(db.number(kill).await > 0);
    let fingerprint = certificate_of("a").fingerprint;
    // Found dead when it is taken from the pool, or at the latest by the statement; never twice.
    if let Err(error) = db.registry.look_up(&fingerprint).await {
        assert!(matches!(error, RegistryError::Unavailable(_)), "{error:?}");
        assert!(db.registry.look_up(&fingerprint).await.unwrap().is_some());
    }
}

#[tokio::test]
async fn a_server_that_is_away_is_an_outage() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = DatabaseUrl::parse(&format!("postgres://ann:s3cret@127.0.0.1:{port}/registry")).unwrap();
    let registry = connect(&url, Access::Existing).unwrap();
    let fingerprint = certificate_of("a").fingerprint;
    let asked = tokio::time::timeout(Duration::from_secs(8), registry.look_up(&fingerprint));
    let error = asked.await.unwrap().unwrap_err();
    assert!(matches!(error, RegistryError::Unavailable(_)), "{error:?}");
    assert!(!format!("{error} {error:?}").contains("s3cret"));
}

/// A server that takes the connection and says nothing.
#[tokio::test]
async fn a_server_that_is_silent_is_an_outage() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let url = DatabaseUrl::parse(&format!("postgres://127.0.0.1:{port}/registry")).unwrap();
    let registry = connect(&url, Access::Existing).unwrap();
    let asked = tokio::time::timeout(Duration::from_secs(8), registry.position());
    assert!(matches!(asked.await.unwrap(), Err(RegistryError::Unavailable(_))));
    drop(listener);
}

#[tokio::test]
async fn one_change_for_what_one_transaction_did() {
    let db = Database::postgres().await;
    let registry = &db.registry;
    add(registry, &["a"]).await;
    let mut position = registry.position().await.unwrap();
    // In one transaction the device's own row covers its keys, in a savepoint it need not.
    let mut transaction = db.pg().begin().await.unwrap();
    transaction.execute("UPDATE hmac_keys SET state = 'retired'").await.unwrap();
    transaction.execute("UPDATE devices SET status = 'suspended'").await.unwrap();
    transaction.execute("UPDATE certificates SET status = 'revoked'").await.unwrap();
    transaction.commit().await.unwrap();
    let changes = read(registry, &mut position).await;
    assert!(matches!(changes.as_slice(), [Change::Device(_), Change::Device(_)]), "{changes:?}");
}

#[tokio::test]
async fn a_listener_that_is_cut_comes_back() {
    let db = Database::postgres().await;
    let registry = db.registry.clone();
    let mut position = registry.position().await.unwrap();
    let listeners = "FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'";
    registry.changed(Duration::from_millis(1)).await.unwrap();
    eventually("it listens", async || db.number(&format!("SELECT count(*) {listeners}")).await == 1).await;
    // Woken by the connection itself, once.
    registry.changed(Duration::from_secs(60)).await.unwrap();
    db.execute(&format!("SELECT pg_terminate_backend(pid) {listeners}")).await.unwrap();
    add(&db.registry, &["a"]).await;
    let heard = async {
        loop {
            registry.changed(Duration::from_secs(60)).await.unwrap();
            let news = registry.read_changes(&mut position).await.unwrap();
            if !news.changes.is_empty() {
                return;
            }
        }
    };
    within("the change", heard).await;
    // And listens again: what comes next needs no look of its own.
    eventually("it listens", async || db.number(&format!("SELECT count(*) {listeners}")).await == 1).await;
    let woken = tokio::spawn(async move {
        loop {
            registry.changed(Duration::from_secs(60)).await.unwrap();
            if !registry.read_changes(&mut position).await.unwrap().changes.is_empty() {
                return;
            }
        }
    });
    add(&db.registry, &["b"]).await;
    within("the wake-up", woken).await.unwrap();
}

/// What is issued in bulk to devices that this very transaction has added is news once; to any others it is news.
#[tokio::test]
async fn keys_for_devices_that_were_there_before_are_news_however_many() {
    let db = Database::postgres().await;
    let devices = |of: &str| {
        format!(
            "INSERT INTO devices (id, fleet) SELECT '{of}' || n, 'default' FROM generate_series(1000, 1119) AS n;"
        )
    };
    let keys = |of: &str, version: u32| {
        format!(
            "INSERT INTO hmac_keys (device, version, sealed, state)
             SELECT '{of}' || n, {version}, 'x', 'pending' FROM generate_series(1000, 1119) AS n;"
        )
    };
    let mut position = db.registry.position().await.unwrap();
    for (sql, news) in [
        ([devices("a"), keys("a", 1)].concat(), 120),
        ([devices("b"), keys("b", 1), "UPDATE hmac_keys SET state = 'retired'".into()].concat(), 240),
        ([devices("c"), keys("a", 2)].concat(), 240),
        (keys("b", 2), 120),
    ] {
        db.execute(&format!("BEGIN; {sql}; COMMIT")).await.unwrap();
        let found: Vec<String> =
            read(&db.registry, &mut position).await.iter().map(|change| format!("{change:?}")).collect();
        assert_eq!(found.len(), news, "{sql}");
        assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), news, "each once: {sql}");
    }
}
