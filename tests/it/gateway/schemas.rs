//! What is published must fit the schema of its channel.

use doorward_proto::ids::FleetId;
use serde_json::{Value, json};

use crate::support::database::Database;
use crate::support::device::{Device, Heard};
use crate::support::house::House;

const SCHEMAS: &str =
    r#"{"devices/+/t":{"type":"object","required":["c"],"properties":{"c":{"type":"number"}}}}"#;

async fn set(house: &House, schemas: &str) {
    let fleet = FleetId::new("default").unwrap();
    house.db.registry.change_schemas(&fleet, &|_| Ok(schemas.to_owned())).await.unwrap();
    house.followed().await;
}

/// The words of a refusal, or none.
async fn publish(device: &mut Device, id: &str, data: Value) -> Option<(String, String)> {
    let seq = device.publish(id, data).await;
    match device.next().await {
        Heard::Message(m) if m["op"] == "ack" => None,
        Heard::Message(m) if m["ref"] == json!(seq) => {
            Some((m["error"].as_str().unwrap().to_owned(), m["detail"].as_str().unwrap().to_owned()))
        }
        other => panic!("{other:?}"),
    }
}

async fn what_does_not_fit_is_refused_and_says_where(db: Database) {
    let house = House::on(db, |config| config.limits.strikes = 2).await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    assert_eq!(publish(&mut device, "m1", json!({ "c": "warm" })).await, None, "there is none yet");
    // A live session follows.
    set(&house, SCHEMAS).await;
    let (error, detail) = publish(&mut device, "m2", json!({ "c": "warm" })).await.unwrap();
    assert_eq!(error, "bad_message");
    assert!(detail.contains("the schema for 'devices/+/t', at '/c':"), "{detail}");
    assert_eq!(publish(&mut device, "m3", json!({ "c": 21.5 })).await, None);
    // And so does one that begins.
    drop(device);
    let mut device = Device::prove(&house, &credentials).await;
    assert_eq!(publish(&mut device, "m4", json!(1)).await.unwrap().0, "bad_message");
    // Another channel is none of its business.
    let seq = device.say(json!({ "op": "publish", "id": "m5", "ch": "devices/press-7/x", "data": 1 })).await;
    device.acked(seq).await;
    // It is a strike, as every message is that is malformed.
    assert!(publish(&mut device, "m6", json!(1)).await.is_some());
    device.closed_with_bye(4008).await;
    let stored = house.stored().await;
    assert_eq!(stored.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["m1", "m3", "m5"]);
    // Away again.
    set(&house, "{}").await;
    let mut device = Device::prove(&house, &credentials).await;
    assert_eq!(publish(&mut device, "m7", json!(1)).await, None);
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_says_where_on_sqlite() {
    what_does_not_fit_is_refused_and_says_where(Database::sqlite().await).await;
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_says_where_on_postgres() {
    what_does_not_fit_is_refused_and_says_where(Database::postgres().await).await;
}
