//! What a gateway writes: who may store, what is stored once, what is refused alone.

use doorward::registry::{Act, Batch, Claim, EventKind, Fate, MessageFilter, NewEvent, NewMessage};
use time::Duration;
use time::macros::datetime;

use super::{FAR, NOON, add, claim, connected, contract, device, message};
use crate::support::database::Database;

use Fate::{Duplicate, Fenced, Stored, Unstorable};

contract!(
    a_message_is_stored_as_received,
    an_id_is_stored_once,
    only_the_newest_session_stores,
    only_an_active_device_stores,
    one_message_never_refuses_another,
    claims_count_sessions,
    seen_and_released,
    a_crashed_gateways_sessions_end,
    events_are_kept,
    messages_are_found,
    old_messages_go,
    old_history_goes,
    a_claim_that_comes_late_takes_no_newer_place,
);

async fn write(db: &Database, messages: Vec<NewMessage>) -> Vec<Fate> {
    db.registry.write(&Batch { messages, ..Batch::default() }).await.unwrap()
}

const ALL: MessageFilter = MessageFilter { device: None, since: None, after: 0, limit: 10_000 };

async fn a_message_is_stored_as_received(db: Database) {
    connected(&db.registry, &["a"]).await;
    let sent = message("a", "s1", "m1");
    let bare = NewMessage { at_ms: None, data: "\"\\u0041\\n\"".into(), ..message("a", "s1", "2") };
    assert_eq!(write(&db, vec![sent.clone(), bare.clone()]).await, [Stored, Stored]);
    let stored = db.registry.messages(&ALL).await.unwrap();
    assert_eq!(stored[0].device, sent.device);
    assert_eq!(stored[0].id, sent.id);
    assert_eq!(stored[0].channel, &*sent.channel);
    assert_eq!(stored[0].data, &*sent.data);
    assert_eq!(stored[0].at, Some(datetime!(2027-01-15 08:00:00.123 UTC)));
    assert_eq!(stored[0].received_at, datetime!(2027-01-15 08:00:00.456 UTC));
    assert_eq!((stored[1].id.as_str(), stored[1].at, &stored[1].data), ("2", None, &bare.data.to_string()));
    assert!(stored[0].position < stored[1].position);
    assert!(write(&db, vec![]).await.is_empty());
}

async fn an_id_is_stored_once(db: Database) {
    connected(&db.registry, &["a", "b"]).await;
    let again = NewMessage { data: "2".into(), ..message("a", "s1", "m1") };
    let fates = write(&db, vec![message("a", "s1", "m1"), again.clone(), message("b", "s1", "m1")]).await;
    assert_eq!(fates, [Stored, Duplicate, Stored]);
    // In a later session too.
    db.registry.write(&Batch { claims: vec![claim("a", "s2")], ..Batch::default() }).await.unwrap();
    let later = NewMessage { session: "s2".into(), ..again };
    assert_eq!(write(&db, vec![later, message("a", "s2", "m2")]).await, [Duplicate, Stored]);
    let stored = db.registry.messages(&ALL).await.unwrap();
    let seen: Vec<_> = stored.iter().map(|m| (m.device.as_str(), m.id.as_str())).collect();
    assert_eq!(seen, [("a", "m1"), ("b", "m1"), ("a", "m2")]);
    assert_eq!(stored[0].data, &*message("a", "s1", "m1").data);
}

async fn only_the_newest_session_stores(db: Database) {
    add(&db.registry, &["a", "b", "c"]).await;
    // No claim, no message.
    assert_eq!(write(&db, vec![message("a", "s1", "m0")]).await, [Fenced]);
    let batch = Batch {
        claims: vec![claim("a", "s1"), claim("b", "s1"), claim("a", "s2")],
        messages: vec![message("a", "s1", "m1"), message("a", "s2", "m2"), message("b", "s1", "m3")],
        ..Batch::default()
    };
    assert_eq!(db.registry.write(&batch).await.unwrap(), [Fenced, Stored, Stored]);
    assert_eq!(write(&db, vec![message("a", "s1", "m4"), message("c", "s1", "m5")]).await, [Fenced, Fenced]);
    // A fenced copy of a message that is stored is not acked either: the newer session will carry it.
    assert_eq!(write(&db, vec![message("a", "s1", "m2")]).await, [Fenced]);
    db.registry
        .write(&Batch { releases: vec![(device("b"), "s1".into())], ..Batch::default() })
        .await
        .unwrap();
    assert_eq!(write(&db, vec![message("b", "s1", "m6")]).await, [Fenced]);
    assert_eq!(db.number("SELECT count(*) FROM messages").await, 2);
}

async fn only_an_active_device_stores(db: Database) {
    connected(&db.registry, &["a", "b"]).await;
    db.registry.set_status(&device("a"), Act::Suspend, None).await.unwrap();
    db.execute("UPDATE devices SET status = 'revoked' WHERE id = 'b'").await.unwrap();
    let batch = Batch {
        claims: vec![claim("a", "s2"), claim("b", "s2")],
        messages: vec![
            message("a", "s1", "m1"),
            message("a", "s2", "m1"),
            message("b", "s1", "m1"),
            message("x", "s1", "m1"),
        ],
        ..Batch::default()
    };
    assert_eq!(db.registry.write(&batch).await.unwrap(), [Fenced; 4]);
    db.registry.set_status(&device("a"), Act::Resume, None).await.unwrap();
    assert_eq!(write(&db, vec![message("a", "s1", "m1"), message("a", "s2", "m2")]).await, [Stored, Fenced]);
}

async fn one_message_never_refuses_another(db: Database) {
    connected(&db.registry, &["a"]).await;
    add(&db.registry, &["b"]).await;
    let bad = [0, 77, 78, 199];
    let mut messages: Vec<_> = (0..200).map(|n| message("a", "s1", &format!("m{n}"))).collect();
    messages[0].data = "\"\0\"".into();
    messages[77].received_ms = i64::MAX;
    messages[78].at_ms = Some(i64::MIN);
    messages[199].data = "\0".into();
    messages[100] = message("b", "old", "m100");
    let event = NewEvent {
        at: NOON,
        since: NOON,
        count: 1,
        gateway: "g1".into(),
        device: Some(device("a")),
        kind: EventKind::Message(doorward_proto::verdict::Refusal::Replayed),
        peer: "192.0.2.7".into(),
        detail: "with \0 in it".into(),
    };
    let batch = Batch { claims: vec![claim("b", "new")], messages, events: vec![event], ..Batch::default() };
    let fates = db.registry.write(&batch).await.unwrap();
    for (n, fate) in fates.iter().enumerate() {
        let due = if bad.contains(&n) {
            Unstorable
        } else if n == 100 {
            Fenced
        } else {
            Stored
        };
        assert_eq!(*fate, due, "message {n}");
    }
    let stored = db.registry.messages(&ALL).await.unwrap();
    assert_eq!(stored.len(), 195);
    let order: Vec<u32> = stored.iter().map(|m| m.id.as_str()[1..].parse().unwrap()).collect();
    assert!(order.is_sorted(), "{order:?}");
    // The rest of the batch has been written as well, once.
    assert_eq!(db.number("SELECT epoch FROM presence WHERE device = 'b'").await, 1);
    assert_eq!(db.number("SELECT count(*) FROM events").await, 1);
}

async fn claims_count_sessions(db: Database) {
    connected(&db.registry, &["a"]).await;
    let epoch = async || db.number("SELECT epoch FROM presence WHERE device = 'a'").await;
    assert_eq!(epoch().await, 1);
    let batch = Batch {
        claims: vec![claim("a", "s2"), claim("a", "s3"), claim("unknown", "s1")],
        ..Batch::default()
    };
    db.registry.write(&batch).await.unwrap();
    assert_eq!(epoch().await, 3);
    // The same again, after an unknown outcome.
    db.registry.write(&batch).await.unwrap();
    assert_eq!(epoch().await, 3);
    let sessions = db.registry.sessions(NOON).await.unwrap();
    assert_eq!(sessions.len(), 1);
    let seen = &sessions[0];
    assert_eq!((&seen.device, seen.session.as_deref(), &*seen.gateway), (&device("a"), Some("s3"), "g1"));
    assert_eq!((seen.epoch, seen.since, seen.last_seen, &*seen.peer), (3, NOON, NOON, "192.0.2.7:4000"));
    assert_eq!(seen.fleet.as_str(), "default");
}

async fn seen_and_released(db: Database) {
    let registry = &db.registry;
    connected(registry, &["a", "b", "c"]).await;
    let later = NOON + Duration::minutes(5);
    let batch = Batch {
        seen: vec![
            (device("a"), "s1".into(), later),
            (device("a"), "s1".into(), NOON + Duration::minutes(1)),
            (device("b"), "old".into(), later),
            (device("c"), "s1".into(), NOON - Duration::minutes(1)),
        ],
        releases: vec![(device("c"), "old".into()), (device("b"), "s1".into()), (device("b"), "s1".into())],
        ..Batch::default()
    };
    registry.write(&batch).await.unwrap();
    let live = registry.sessions(NOON).await.unwrap();
    let live: Vec<_> = live.iter().map(|p| (p.device.as_str(), p.last_seen)).collect();
    assert_eq!(live, [("a", later), ("c", NOON)]);
    assert_eq!(registry.sessions(NOON + Duration::SECOND).await.unwrap().len(), 1);
    let b = registry.device(&device("b")).await.unwrap().unwrap().presence.unwrap();
    assert_eq!((b.session, b.epoch), (None, 1));
}

async fn a_crashed_gateways_sessions_end(db: Database) {
    let registry = &db.registry;
    connected(registry, &["a", "b"]).await;
    let mut other = claim("b", "s2");
    other.gateway = "g2".into();
    registry.write(&Batch { claims: vec![other], ..Batch::default() }).await.unwrap();
    assert_eq!(registry.forget_sessions("g1").await.unwrap(), 1);
    assert_eq!(registry.forget_sessions("g1").await.unwrap(), 0);
    let live = registry.sessions(NOON).await.unwrap();
    assert_eq!(live.iter().map(|p| p.device.as_str()).collect::<Vec<_>>(), ["b"]);
}

async fn events_are_kept(db: Database) {
    let event = |device| NewEvent {
        at: NOON,
        since: NOON,
        count: 1,
        gateway: "g1".into(),
        device,
        kind: EventKind::Refused,
        peer: "192.0.2.7".into(),
        detail: "no certificate".into(),
    };
    let events = vec![event(None), event(Some(device("never-registered")))];
    db.registry.write(&Batch { events, ..Batch::default() }).await.unwrap();
    assert_eq!(
        db.number("SELECT count(*) FROM events WHERE kind = 'refused' AND at < '2027-03-02'").await,
        2
    );
}

async fn messages_are_found(db: Database) {
    connected(&db.registry, &["a", "b"]).await;
    let at = |id: &str, n: i64| NewMessage {
        received_ms: 1_800_000_000_000 + n * 1000,
        ..message(id, "s1", &n.to_string())
    };
    write(&db, vec![at("a", 1), at("b", 2), at("a", 3), at("a", 4)]).await;
    let ids = async |filter: MessageFilter| {
        let found = db.registry.messages(&filter).await.unwrap();
        found.iter().map(|m| m.id.to_string()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(ids(ALL).await, "1 2 3 4");
    assert_eq!(ids(MessageFilter { limit: 2, ..ALL }).await, "1 2");
    assert_eq!(ids(MessageFilter { device: Some(device("a")), ..ALL }).await, "1 3 4");
    assert_eq!(ids(MessageFilter { since: Some(datetime!(2027-01-15 08:00:03 UTC)), ..ALL }).await, "3 4");
    let after = db.registry.messages(&ALL).await.unwrap()[2].position;
    assert_eq!(ids(MessageFilter { after, ..ALL }).await, "4");
}

async fn old_messages_go(db: Database) {
    connected(&db.registry, &["a"]).await;
    let messages =
        (0..10).map(|n| NewMessage { received_ms: n * 1000, ..message("a", "s1", &n.to_string()) });
    write(&db, messages.collect()).await;
    let before = datetime!(1970-01-01 00:00:07 UTC);
    assert_eq!(db.registry.prune_messages(before, 5).await.unwrap(), 5);
    assert_eq!(db.registry.prune_messages(before, 5).await.unwrap(), 2);
    assert_eq!(db.registry.prune_messages(before, 5).await.unwrap(), 0);
    assert_eq!(db.registry.messages(&ALL).await.unwrap().len(), 3);
}

async fn old_history_goes(db: Database) {
    add(&db.registry, &["a", "b"]).await;
    let event = NewEvent {
        at: NOON,
        since: NOON,
        count: 1,
        gateway: "g1".into(),
        device: None,
        kind: EventKind::Refused,
        peer: String::new(),
        detail: String::new(),
    };
    db.registry.write(&Batch { events: vec![event.clone(), event], ..Batch::default() }).await.unwrap();
    db.settled().await;
    let changes = u64::try_from(db.number("SELECT count(*) FROM changes").await).unwrap();
    assert_eq!(db.registry.prune_history(datetime!(2001-01-01 00:00 UTC), 100).await.unwrap(), 0);
    assert_eq!(
        db.registry.prune_history(FAR, u32::try_from(changes).unwrap() + 1).await.unwrap(),
        changes + 1
    );
    assert_eq!(db.registry.prune_history(FAR, 100).await.unwrap(), 1);
}

async fn a_claim_that_comes_late_takes_no_newer_place(db: Database) {
    let registry = &db.registry;
    add(registry, &["a", "b", "c"]).await;
    let claims = |claims: Vec<Claim>| Batch { claims, ..Batch::default() };
    let hour = time::Duration::hours(1);
    let newer = |id: &str| Claim { gateway: "g2".into(), at: NOON + hour, ..claim(id, "new") };
    registry.write(&claims(vec![newer("a"), newer("b")])).await.unwrap();
    registry.write(&Batch { releases: vec![(device("b"), "new".into())], ..Batch::default() }).await.unwrap();
    let late = |id: &str| Claim { late: true, ..claim(id, "old") };
    registry.write(&claims(vec![late("a"), late("b"), late("c")])).await.unwrap();
    // Where nobody is connected the place is free.
    let there = async |id: &str, session: &str| {
        db.number(&format!("SELECT count(*) FROM presence WHERE device = '{id}' AND session = '{session}'"))
            .await
    };
    assert_eq!((there("a", "new").await, there("b", "old").await, there("c", "old").await), (1, 1, 1));
    // What comes at once is the newest, whatever the clocks say; and a late one that is newer takes its place.
    registry.write(&claims(vec![claim("a", "third")])).await.unwrap();
    assert_eq!(there("a", "third").await, 1);
    registry
        .write(&claims(vec![Claim { late: true, at: NOON + hour, ..claim("a", "fourth") }]))
        .await
        .unwrap();
    assert_eq!(there("a", "fourth").await, 1);
}
