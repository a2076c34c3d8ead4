//! The feed: every change arrives, whoever made it; a follower that may have missed one is told.

use std::sync::Arc;
use std::time::Duration;

use doorward::registry::{Act, Batch, Change, Claim, News, Position, Registry};

use super::{FAR, add, certificate_of, claim, connected, contract, device, fleet, message};
use crate::support::database::Database;

contract!(
    acts_arrive,
    plain_sql_arrives,
    the_hot_path_wakes_nobody,
    a_place_taken_by_another_gateway_arrives,
    news_comes_by_the_page,
    a_long_transaction_comes_by_the_page,
    pruned_past_is_a_gap,
    pruned_behind_is_none,
    running_backwards_is_a_gap,
    an_unreadable_row_stops_nothing,
    a_change_wakes,
);

pub(super) async fn read(registry: &Arc<dyn Registry>, position: &mut Position) -> Vec<Change> {
    let News { changes, gap, more, .. } = registry.read_changes(position).await.unwrap();
    assert!(!gap && !more, "gap {gap}, more {more}");
    changes
}

pub(super) fn of(ids: &[&str]) -> Vec<Change> {
    ids.iter().map(|id| Change::Device(device(id))).collect()
}

async fn acts_arrive(db: Database) {
    let registry = &db.registry;
    // From the beginning there is what the migration made, once.
    assert_eq!(read(registry, &mut Position::default()).await, [Change::Fleet(fleet("default"))]);
    let mut position = registry.position().await.unwrap();
    assert_eq!(read(registry, &mut position).await, []);
    add(registry, &["a", "b"]).await;
    assert_eq!(read(registry, &mut position).await, of(&["a", "b"]));
    assert_eq!(read(registry, &mut position).await, []);

    registry.set_status(&device("b"), Act::Suspend, None).await.unwrap();
    registry.kick(&device("a")).await.unwrap();
    registry.add_fleet(&fleet("line-2"), "{}").await.unwrap();
    registry.set_policy(&fleet("default"), "{}").await.unwrap();
    let due = [
        Change::Device(device("b")),
        Change::Kick(device("a")),
        Change::Fleet(fleet("line-2")),
        Change::Fleet(fleet("default")),
    ];
    assert_eq!(read(registry, &mut position).await, due);
    // What changes nothing is said again: so that there is a receipt for it.
    registry.set_status(&device("b"), Act::Suspend, None).await.unwrap();
    registry.set_policy(&fleet("default"), "{}").await.unwrap();
    let again = [Change::Device(device("b")), Change::Fleet(fleet("default"))];
    assert_eq!(read(registry, &mut position).await, again);
}

async fn plain_sql_arrives(db: Database) {
    let registry = &db.registry;
    add(registry, &["a", "b"]).await;
    let mut position = registry.position().await.unwrap();
    for sql in [
        "UPDATE devices SET status = 'suspended' WHERE id = 'b'",
        "UPDATE devices SET attributes = '{\"line\": 2}' WHERE id = 'b'",
        "UPDATE certificates SET status = 'superseded', valid_until = '2027-05-01T00:00:00.000Z' WHERE device = 'b'",
        "UPDATE certificates SET status = 'revoked', reason = 'stolen' WHERE device = 'b'",
        "INSERT INTO hmac_keys (device, version, sealed, state) SELECT device, 2, sealed, 'pending' FROM hmac_keys WHERE device = 'b'",
        "UPDATE hmac_keys SET state = 'retired' WHERE device = 'b' AND version = 1",
        "DELETE FROM hmac_keys WHERE device = 'b' AND version = 1",
        "INSERT INTO devices (id, fleet) VALUES ('b2', 'default')",
        "DELETE FROM devices WHERE id = 'b2'",
    ] {
        db.execute(sql).await.unwrap();
        let due = if sql.contains("b2") { of(&["b2"]) } else { of(&["b"]) };
        assert_eq!(read(registry, &mut position).await, due, "{sql}");
    }
    db.execute("UPDATE fleets SET limits = '{\"rate_burst\": 1}'").await.unwrap();
    assert_eq!(read(registry, &mut position).await, [Change::Fleet(fleet("default"))]);
    // Each row of a statement.
    db.execute("UPDATE devices SET status = 'revoked'").await.unwrap();
    assert_eq!(read(registry, &mut position).await, of(&["a", "b"]));
    // A device with its certificate moved by hand, in two transactions: the second is news of its own.
    db.execute("INSERT INTO devices (id, fleet) VALUES ('c', 'default')").await.unwrap();
    assert_eq!(read(registry, &mut position).await, of(&["c"]));
    let certificate = certificate_of("c");
    db.execute(&format!(
        "INSERT INTO certificates (fingerprint, serial, issuer, der, device, not_before, not_after)
         SELECT '{}', '{}', issuer, der, 'c', not_before, not_after FROM certificates WHERE device = 'a'",
        certificate.fingerprint, certificate.serial
    ))
    .await
    .unwrap();
    assert_eq!(read(registry, &mut position).await, of(&["c"]));
    assert!(registry.look_up(&certificate.fingerprint).await.unwrap().is_some());
}

async fn the_hot_path_wakes_nobody(db: Database) {
    let registry = &db.registry;
    connected(registry, &["a"]).await;
    let mut position = registry.position().await.unwrap();
    let batch = Batch {
        claims: vec![claim("a", "s2")],
        messages: vec![message("a", "s2", "m1")],
        seen: vec![(device("a"), "s2".into(), super::NOON)],
        releases: vec![(device("a"), "s2".into())],
        ..Batch::default()
    };
    registry.write(&batch).await.unwrap();
    registry.forget_sessions("g1").await.unwrap();
    registry.prune_messages(FAR, 10).await.unwrap();
    assert_eq!(read(registry, &mut position).await, []);
}

async fn a_place_taken_by_another_gateway_arrives(db: Database) {
    let registry = &db.registry;
    connected(registry, &["a"]).await;
    let mut position = registry.position().await.unwrap();
    let newer = Claim { gateway: "g2".into(), peer: "[2001:db8::7]:4000".to_owned(), ..claim("a", "s2") };
    registry.write(&Batch { claims: vec![newer], ..Batch::default() }).await.unwrap();
    let due = Change::Takeover {
        device: device("a"),
        session: "s1".to_owned(),
        peer: Some("[2001:db8::7]:4000".to_owned()),
    };
    assert_eq!(read(registry, &mut position).await, [due]);
}

async fn news_comes_by_the_page(db: Database) {
    let registry = &db.registry;
    add(registry, &["a"]).await;
    let mut position = registry.position().await.unwrap();
    for _ in 0..25 {
        let ids: Vec<String> = (0..100).map(|_| format!("p{:06}", fresh())).collect();
        add(registry, &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }
    expect_pages(&db, &mut position, 2500).await;
}

async fn a_long_transaction_comes_by_the_page(db: Database) {
    let registry = &db.registry;
    let mut position = registry.position().await.unwrap();
    let ids: Vec<String> = (0..2500).map(|n| format!("p{n:06}")).collect();
    add(registry, &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    expect_pages(&db, &mut position, 2500).await;
}

fn fresh() -> u32 {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

async fn expect_pages(db: &Database, position: &mut Position, due: usize) {
    let registry = &db.registry;
    let mut changes = Vec::new();
    loop {
        let news = registry.read_changes(position).await.unwrap();
        assert!(!news.gap && news.changes.len() <= 1000);
        changes.extend(news.changes);
        if !news.more {
            break;
        }
    }
    assert_eq!(changes.len(), due);
    let distinct: std::collections::HashSet<_> = changes.iter().map(|change| format!("{change:?}")).collect();
    assert_eq!(distinct.len(), due);
    db.settled().await;
    assert_eq!(read(registry, position).await, []);
    assert!(position.seen.is_empty(), "{position:?}");
}

async fn pruned_past_is_a_gap(db: Database) {
    let registry = &db.registry;
    let mut position = registry.position().await.unwrap();
    add(registry, &["a"]).await;
    db.settled().await;
    registry.prune_history(FAR, 1000).await.unwrap();
    add(registry, &["b"]).await;
    let news = registry.read_changes(&mut position).await.unwrap();
    assert!(news.gap && news.changes.is_empty());
    // The position is the end; it goes on from there.
    add(registry, &["c"]).await;
    assert_eq!(read(registry, &mut position).await, of(&["c"]));
    // A hand that deletes is found out too.
    add(registry, &["d"]).await;
    db.execute("DELETE FROM changes").await.unwrap();
    assert!(registry.read_changes(&mut position).await.unwrap().gap);
}

async fn pruned_behind_is_none(db: Database) {
    let registry = &db.registry;
    let mut position = registry.position().await.unwrap();
    add(registry, &["a", "b"]).await;
    assert_eq!(read(registry, &mut position).await, of(&["a", "b"]));
    db.settled().await;
    assert_eq!(read(registry, &mut position).await, []);
    assert!(registry.prune_history(FAR, 1000).await.unwrap() >= 2);
    assert_eq!(read(registry, &mut position).await, []);
    add(registry, &["c"]).await;
    assert_eq!(read(registry, &mut position).await, of(&["c"]));
}

async fn running_backwards_is_a_gap(db: Database) {
    let registry = &db.registry;
    add(registry, &["a"]).await;
    let end = registry.position().await.unwrap();
    let mut ahead = vec![Position { low: end.low + 1000, last: end.last + 1000, ..end.clone() }];
    if db.url.path().is_none() {
        // Two numbers that can run backwards alone: a dump restored in the same cluster, another cluster.
        ahead.push(Position { last: end.last + 1000, ..end.clone() });
        ahead.push(Position { low: end.low + 1000, ..end.clone() });
    }
    for mut position in ahead {
        assert!(registry.read_changes(&mut position).await.unwrap().gap);
        let id = format!("p{}", fresh());
        add(registry, &[&id]).await;
        assert_eq!(read(registry, &mut position).await, of(&[&id]));
    }
}

async fn an_unreadable_row_stops_nothing(db: Database) {
    let registry = &db.registry;
    let mut position = registry.position().await.unwrap();
    db.execute("INSERT INTO changes (kind, subject) VALUES ('device', 'not an id')").await.unwrap();
    assert!(registry.read_changes(&mut position).await.unwrap().gap);
    add(registry, &["a"]).await;
    assert_eq!(read(registry, &mut position).await, of(&["a"]));
}

async fn a_change_wakes(db: Database) {
    let registry = db.registry.clone();
    let mut position = registry.position().await.unwrap();
    // The first call may return at once: it cannot know what came before it.
    registry.changed(Duration::from_millis(200)).await.unwrap();
    let follower = tokio::spawn(async move {
        loop {
            let news = registry.read_changes(&mut position).await.unwrap();
            if !news.changes.is_empty() {
                return news.changes;
            }
            registry.changed(Duration::from_secs(60)).await.unwrap();
        }
    });
    add(&db.registry, &["a"]).await;
    let changes = tokio::time::timeout(Duration::from_secs(10), follower).await.unwrap().unwrap();
    assert_eq!(changes, of(&["a"]));
    // Nothing new: it waits as long as it may, no longer.
    let quiet = tokio::time::timeout(Duration::from_secs(5), async {
        for _ in 0..3 {
            db.registry.changed(Duration::from_millis(80)).await.unwrap();
        }
    });
    quiet.await.unwrap();
}
