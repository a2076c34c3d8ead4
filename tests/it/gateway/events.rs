//! Security events: each kind reaches the registry, and a flood of them is a few rows.

use std::time::Duration;

use doorward::registry::{Act, EventFilter, StoredEvent};
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::support::database::Database;
use crate::support::device::{Device, refused};
use crate::support::house::{House, eventually};

const ALL: EventFilter =
    EventFilter { device: None, kind: None, since: None, after: 0, limit: 10_000, newest: false };

async fn events(house: &House) -> Vec<StoredEvent> {
    house.db.registry.events(&ALL).await.unwrap()
}

async fn each_kind_is_written_with_who_and_why(db: Database) {
    let house = House::on(db, |_| {}).await;
    let mut device = Device::prove(&house, &house.add_device("press-7").await).await;
    let seq = device.publish("m1", json!(1)).await;
    device.acked(seq).await;
    device.say(json!({ "op": "subscribe", "ch": "#" })).await;
    device.rejected().await;
    // The same again is a replay; with another signature it is forged.
    let claims = device.claims(json!({ "op": "hello" }));
    let frame = device.signer.sign(claims.to_string().as_bytes());
    for frame in [frame.clone(), frame.clone()] {
        device.send_frame(Message::text(frame)).await;
    }
    device.acked(device.seq).await;
    assert_eq!(device.rejected().await.1, "replayed");
    let (signed, _) = frame.rsplit_once('.').unwrap();
    device.send_frame(Message::text(format!("{signed}.{}", "A".repeat(43)))).await;
    assert_eq!(device.rejected().await.1, "bad_signature");
    // Refused connections: by a certificate of ours that nobody recorded, and of a device that is suspended.
    refused(&house, &house.certify("stranger", |_| {})).await;
    let away = house.add_device("press-8").await;
    house.db.registry.set_status(&away.id, Act::Suspend, Some("in repair")).await.unwrap();
    assert_eq!(refused(&house, &away).await.status, 403);

    let due = ["forbidden", "replayed", "bad_signature", "refused", "refused"];
    eventually("five rows", async || events(&house).await.len() == due.len()).await;
    let found = events(&house).await;
    assert_eq!(found.iter().map(|event| event.kind.as_str()).collect::<Vec<_>>(), due);
    for event in &found {
        assert_eq!((event.count, event.since, &*event.gateway), (1, event.at, "gateway-1"));
        assert!(event.peer.starts_with("127.0.0.1:"), "{event:?}");
    }
    assert!(found[..3].iter().all(|event| event.device.as_deref() == Some("press-7")));
    assert_eq!(found[3].device.as_deref(), Some("stranger"), "a device CA has signed that name");
    assert!(found[3].detail.starts_with("certificate-unknown: "), "{:?}", found[3]);
    assert_eq!(found[4].device.as_deref(), Some("press-8"));
    assert!(found[4].detail.starts_with("device-suspended: "), "{:?}", found[4]);
}

#[tokio::test]
async fn each_kind_is_written_with_who_and_why_on_sqlite() {
    each_kind_is_written_with_who_and_why(Database::sqlite().await).await;
}

#[tokio::test]
async fn each_kind_is_written_with_who_and_why_on_postgres() {
    each_kind_is_written_with_who_and_why(Database::postgres().await).await;
}

#[tokio::test]
async fn a_flood_is_one_row_when_it_begins_and_one_for_all_that_follow() {
    let mut house = House::start().await;
    let admin = house.admin().await;
    let mut device = Device::prove(&house, &house.add_device("press-7").await).await;
    for _ in 0..500 {
        device.say(json!({ "op": "subscribe", "ch": "#" })).await;
        assert_eq!(device.rejected().await.1, "forbidden");
    }
    eventually("the first", async || events(&house).await.len() == 1).await;
    assert_eq!(events(&house).await[0].count, 1);
    let counted = crate::support::http::get(admin, "/metrics").await;
    assert_eq!(counted.value("doorward_events_total", "kind=\"forbidden\""), 500.0);
    // What is gathered is written at the latest when the gateway ends.
    house.shut_down();
    house.ended().await;
    let found = events(&house).await;
    assert_eq!(found.iter().map(|event| event.count).collect::<Vec<_>>(), [1, 499]);
    assert!(
        found[1].since <= found[1].at && found[1].since >= found[0].at - Duration::from_millis(2),
        "{found:?}"
    );
}
