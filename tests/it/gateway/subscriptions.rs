//! What is published reaches those who subscribed, once, and nobody else.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::hooked;
use crate::support::device::{Device, Heard};
use crate::support::house::{House, eventually};

const QUIET: Duration = Duration::from_millis(250);

/// Devices may publish and subscribe to anything.
async fn open_house() -> House {
    let house = House::start().await;
    let all = r##"{"allow":[{"actions":["publish","subscribe"],"channels":["#"]}]}"##;
    let fleet = "default".parse().unwrap();
    house.db.registry.set_policy(&fleet, all).await.unwrap();
    house
}

async fn subscriber(house: &House, id: &str, filters: &[&str]) -> Device {
    let mut device = Device::prove(house, &house.add_device(id).await).await;
    for filter in filters {
        let seq = device.say(json!({ "op": "subscribe", "ch": filter })).await;
        device.acked(seq).await;
    }
    device
}

/// Publishes and waits for the ack; what else comes is kept.
async fn publish(device: &mut Device, channel: &str, id: &str) -> Vec<Value> {
    let seq = device.say(json!({ "op": "publish", "id": id, "ch": channel, "data": { "n": id } })).await;
    let mut messages = Vec::new();
    loop {
        match device.next().await {
            Heard::Message(m) if m["op"] == "ack" => {
                assert_eq!(m["acks"], json!([[seq, seq]]));
                return messages;
            }
            Heard::Message(m) if m["op"] == "message" => messages.push(m),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_message_reaches_each_subscriber_once_and_nobody_else() {
    let house = open_house().await;
    let mut sender = subscriber(&house, "sender", &["hall/+/t", "hall/1/t"]).await;
    let mut exact = subscriber(&house, "exact", &["hall/1/t"]).await;
    let mut one = subscriber(&house, "one", &["hall/+/t", "+/1/t", "hall/#", "#"]).await;
    let mut rest = subscriber(&house, "rest", &["hall/1/#"]).await;
    let mut parent = subscriber(&house, "parent", &["hall/1/t/#"]).await;
    let mut others =
        subscriber(&house, "others", &["hall/2/t", "hall/1", "+", "hall/1/t/+", "Hall/1/t"]).await;

    let mut own = publish(&mut sender, "hall/1/t", "m1").await;
    if own.is_empty() {
        own.push(sender.expect("message").await);
    }
    for message in [
        own.pop().unwrap(),
        exact.expect("message").await,
        one.expect("message").await,
        rest.expect("message").await,
        parent.expect("message").await,
    ] {
        let mut members: Vec<_> = message.as_object().unwrap().keys().map(String::as_str).collect();
        members.sort_unstable();
        assert_eq!(members, ["aud", "ch", "data", "from", "iat", "id", "iss", "op", "seq", "sid"]);
        assert_eq!((&message["ch"], &message["id"]), (&json!("hall/1/t"), &json!("m1")));
        assert_eq!((&message["from"], &message["data"]), (&json!("sender"), &json!({ "n": "m1" })));
    }
    for device in [&mut sender, &mut exact, &mut one, &mut rest, &mut parent, &mut others] {
        assert!(device.hears_nothing(QUIET).await, "{}", device.credentials.id);
    }
}

#[tokio::test]
async fn not_after_unsubscribing_nor_in_the_next_session() {
    let house = open_house().await;
    let mut sender = subscriber(&house, "sender", &[]).await;
    let mut device = subscriber(&house, "device", &["a/#", "a/+"]).await;
    let seq = device.say(json!({ "op": "unsubscribe", "ch": "a/+" })).await;
    device.acked(seq).await;
    publish(&mut sender, "a/b", "m1").await;
    assert_eq!(device.expect("message").await["id"], "m1");
    let seq = device.say(json!({ "op": "unsubscribe", "ch": "a/#" })).await;
    device.acked(seq).await;
    // Once more than there was to take back.
    let seq = device.say(json!({ "op": "unsubscribe", "ch": "a/#" })).await;
    device.acked(seq).await;
    publish(&mut sender, "a/b", "m2").await;
    assert!(device.hears_nothing(QUIET).await);

    let seq = device.say(json!({ "op": "subscribe", "ch": "a/#" })).await;
    device.acked(seq).await;
    let mut next = Device::prove(&house, &device.credentials.clone()).await;
    device.closed_with_bye(4009).await;
    publish(&mut sender, "a/b", "m3").await;
    assert!(next.hears_nothing(QUIET).await, "a session begins without subscriptions");
}

#[tokio::test]
async fn a_duplicate_is_not_delivered_twice() {
    let house = open_house().await;
    let mut sender = subscriber(&house, "sender", &[]).await;
    let mut device = subscriber(&house, "device", &["a"]).await;
    for _ in 0..2 {
        publish(&mut sender, "a", "m1").await;
    }
    sender = Device::prove(&house, &sender.credentials.clone()).await;
    publish(&mut sender, "a", "m1").await;
    // Twice in one transaction, too.
    let twice = json!({ "op": "publish", "id": "m2", "ch": "a", "data": 1 });
    sender.say_at_once(vec![twice; 2]).await;
    sender.acked(sender.seq).await;
    publish(&mut sender, "a", "m3").await;
    let mut ids = Vec::new();
    while ids.last().is_none_or(|id| id != "m3") {
        ids.push(device.expect("message").await["id"].as_str().unwrap().to_owned());
    }
    assert_eq!(ids, ["m1", "m2", "m3"]);
}

#[tokio::test]
async fn what_is_refused_reaches_nobody() {
    let house = House::start().await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    for ch in ["devices/press-7/#", "fleets/default/#"] {
        let seq = device.say(json!({ "op": "subscribe", "ch": ch })).await;
        device.acked(seq).await;
    }
    device.say(json!({ "op": "publish", "id": "m", "ch": "fleets/default/x", "data": 1 })).await;
    assert_eq!(device.rejected().await.1, "forbidden");
    assert!(device.hears_nothing(QUIET).await);
    assert_eq!(house.stored().await, []);
}

#[tokio::test]
async fn a_burst_of_many_publishers_does_not_end_a_subscriber_that_reads() {
    let (house, hooked) = hooked::house(|_| {}).await;
    let all = r##"{"allow":[{"actions":["publish","subscribe"],"channels":["#"]}]}"##;
    house.db.registry.set_policy(&"default".parse().unwrap(), all).await.unwrap();
    let mut reader = subscriber(&house, "reader", &["#"]).await;
    let mut senders = Vec::new();
    for n in 0..8 {
        senders.push(subscriber(&house, &format!("s{n}"), &[]).await);
    }
    eventually("presence of all", async || house.db.number("SELECT count(*) FROM presence").await == 9).await;
    // All of it in one transaction.
    hooked.writes.close();
    for sender in &mut senders {
        let all = (0..100).map(|n| sender.to_publish(&format!("m{n}"), json!("x".repeat(300)))).collect();
        sender.say_at_once(all).await;
    }
    hooked.writes.reached().await;
    eventually("all have been read", async || house.gateway.counters().totals().accepted >= 800 + 10).await;
    hooked.writes.open();
    for n in 0..800 {
        match reader.next().await {
            Heard::Message(message) => assert_eq!(message["op"], "message"),
            Heard::Closed(code) => panic!("closed with {code:?} after {n} messages"),
        }
    }
    drop(Arc::clone(&hooked));
}
