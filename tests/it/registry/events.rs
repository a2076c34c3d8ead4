//! Security events, as they are written and read.

use doorward::registry::{Batch, EventFilter, EventKind, NewEvent};
use doorward_proto::verdict::Refusal;

use super::{NOON, contract, device};
use crate::support::database::Database;

contract!(events_are_found);

const ALL: EventFilter =
    EventFilter { device: None, kind: None, since: None, after: 0, limit: 100, newest: false };

async fn events_are_found(db: Database) {
    let second = time::Duration::seconds(1);
    let event = |n: i32, of: Option<&str>, kind| NewEvent {
        at: NOON + second * n,
        since: NOON,
        count: u64::try_from(n).unwrap(),
        gateway: "g1".into(),
        device: of.map(device),
        kind,
        peer: "192.0.2.7:4000".into(),
        detail: format!("{n}"),
    };
    let events = vec![
        event(1, Some("a"), EventKind::Message(Refusal::Replayed)),
        event(2, None, EventKind::TlsRefused),
        event(3, Some("b"), EventKind::Message(Refusal::Replayed)),
        event(4, Some("a"), EventKind::Strikes),
    ];
    db.registry.write(&Batch { events, ..Batch::default() }).await.unwrap();
    // As gateways of before have written them.
    db.execute(
        "INSERT INTO events (at, gateway, kind, peer, detail) VALUES ('2027-03-01T13:00:00.000Z', 'g0', 'strikes', 'p', '5')",
    )
    .await
    .unwrap();
    let found = async |filter: EventFilter| {
        let found = db.registry.events(&filter).await.unwrap();
        found.iter().map(|event| event.detail.clone()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(found(ALL).await, "1 2 3 4 5");
    assert_eq!(found(EventFilter { limit: 2, ..ALL }).await, "1 2");
    assert_eq!(found(EventFilter { limit: 2, newest: true, ..ALL }).await, "4 5");
    assert_eq!(found(EventFilter { device: Some(device("a")), ..ALL }).await, "1 4");
    assert_eq!(found(EventFilter { kind: Some(EventKind::Strikes), ..ALL }).await, "4 5");
    assert_eq!(found(EventFilter { since: Some(NOON + second * 3), ..ALL }).await, "3 4 5");
    let rows = db.registry.events(&ALL).await.unwrap();
    assert_eq!(found(EventFilter { after: rows[2].id, ..ALL }).await, "4 5");
    let (third, last) = (&rows[2], &rows[4]);
    assert_eq!((third.at, third.since, third.count), (NOON + second * 3, NOON, 3));
    assert_eq!((third.device.as_deref(), &*third.gateway, &*third.kind), (Some("b"), "g1", "replayed"));
    assert_eq!((last.since, last.count, &last.device), (last.at, 1, &None));
}
