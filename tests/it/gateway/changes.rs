//! What changes in the registry changes sessions, at once and without a gap.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use doorward::registry::Act;
use serde_json::{Value, json};

use super::hooked;
use crate::support::database::{Database, Sql};
use crate::support::device::{Device, Heard, TLS13, UPGRADE, dial, problem_of, request, tls};
use crate::support::house::{House, eventually};

async fn a_device_revoked_by_plain_sql_is_cut(db: Database) {
    let house = House::on(db, |_| {}).await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    let mut bystander = Device::prove(&house, &house.add_device("press-8").await).await;
    house.db.execute("UPDATE devices SET status = 'revoked' WHERE id = 'press-7'").await.unwrap();
    // Whatever it says from the commit on is worth nothing.
    device.publish("too-late", json!(1)).await;
    let (code, messages) = device.until_closed().await;
    assert_eq!(code, Some(4003));
    assert!(messages.iter().all(|message| message["op"] != "ack"), "{messages:?}");
    let seq = bystander.publish("m1", json!(1)).await;
    bystander.acked(seq).await;
    assert_eq!(house.stored_as("too-late").await, 0);
    let cuts = house.gateway.counters().cuts();
    assert_eq!(cuts.count, 1, "the time from the change to the close: {cuts:?}");
    assert!(!cuts.sum.is_zero() && cuts.within_ms.last() == Some(&(60_000, 1)), "{cuts:?}");
}

#[tokio::test]
async fn a_device_revoked_by_plain_sql_is_cut_on_sqlite() {
    a_device_revoked_by_plain_sql_is_cut(Database::sqlite().await).await;
}

#[tokio::test]
async fn a_device_revoked_by_plain_sql_is_cut_on_postgres() {
    a_device_revoked_by_plain_sql_is_cut(Database::postgres().await).await;
}

async fn a_new_policy_holds_for_live_sessions(db: Database) {
    let house = House::on(db, |_| {}).await;
    let fleet = "default".parse().unwrap();
    let mut device = Device::prove(&house, &house.add_device("press-7").await).await;
    let seq = device.publish("m1", json!(1)).await;
    device.acked(seq).await;
    let mut subscribe = async |ch: &str| {
        let seq = device.say(json!({ "op": "subscribe", "ch": ch })).await;
        device.acked(seq).await;
        seq
    };
    let kept = subscribe("devices/press-7/in/#").await;
    let denied = subscribe("fleets/default/#").await;
    assert!(kept < denied);
    let narrower = r##"{"allow":[{"actions":["subscribe"],"channels":["devices/${device}/in/#"]}]}"##;
    house.db.registry.set_policy(&fleet, narrower).await.unwrap();
    assert_eq!(device.rejected().await, (json!(denied), "forbidden".to_owned(), Value::Null));
    let seq = device.publish("m2", json!(2)).await;
    assert_eq!(device.rejected().await, (json!(seq), "forbidden".to_owned(), Value::Null));
    // And wider again.
    let wider = r##"{"allow":[{"actions":["publish","subscribe"],"channels":["devices/${device}/#"]}]}"##;
    house.db.registry.set_policy(&fleet, wider).await.unwrap();
    eventually("the wider policy", async || {
        device.say(json!({ "op": "publish", "id": "m3", "ch": "devices/press-7/in/x", "data": 1 })).await;
        let Heard::Message(answer) = device.next().await else { panic!("closed") };
        answer["op"] != "reject"
    })
    .await;
    assert_eq!((house.stored_as("m2").await, house.stored_as("m3").await), (0, 1));
}

#[tokio::test]
async fn a_new_policy_holds_for_live_sessions_on_sqlite() {
    a_new_policy_holds_for_live_sessions(Database::sqlite().await).await;
}

#[tokio::test]
async fn a_new_policy_holds_for_live_sessions_on_postgres() {
    a_new_policy_holds_for_live_sessions(Database::postgres().await).await;
}

async fn new_limits_hold_for_live_sessions(db: Database) {
    let house = House::on(db, |_| {}).await;
    let fleet = "default".parse().unwrap();
    let mut device = Device::prove(&house, &house.add_device("press-7").await).await;
    let set = async |limits: &str| house.db.registry.set_limits(&fleet, limits).await.unwrap();
    // Narrower: one a minute or so, and it is told.
    set(r#"{"rate_per_second":1,"rate_burst":1}"#).await;
    let told = device.expect("limits").await;
    assert_eq!(told["rate"], json!({ "per_second": 1, "burst": 1 }));
    assert_eq!(told.get("max_message_bytes"), None, "what has not changed is not said");
    let all = (0..3).map(|n| device.to_publish(&format!("m{n}"), json!(n))).collect();
    device.say_at_once(all).await;
    let mut limited = 0;
    let mut answered = 0;
    while answered < 3 {
        let Heard::Message(answer) = device.next().await else { panic!("closed") };
        if answer["op"] == "reject" {
            assert_eq!(answer["error"], "rate_limited");
            limited += 1;
            answered += 1;
        } else {
            answered += crate::support::device::ranges(&answer).iter().map(|(a, b)| b - a + 1).sum::<u64>();
        }
    }
    assert!(limited >= 1, "three at once are more than one a second");
    // Wider again, in another way narrower.
    set(r#"{"rate_per_second":1000,"message_bytes":1024}"#).await;
    let told = device.expect("limits").await;
    assert_eq!(told["rate"], json!({ "per_second": 1000, "burst": 1000 }));
    assert_eq!(told["max_message_bytes"], 1024);
    let all = (0..500).map(|n| device.to_publish(&format!("n{n}"), json!(n))).collect();
    device.say_at_once(all).await;
    let mut acked = 0;
    while acked < 500 {
        acked += crate::support::device::ranges(&device.expect("ack").await)
            .iter()
            .map(|(a, b)| b - a + 1)
            .sum::<u64>();
    }
    device.publish("long", json!("x".repeat(2000))).await;
    assert_eq!(device.until_closed().await.0, Some(1009));
    // Nobody can widen what the gateway's buffers are made for.
    set(r#"{"message_bytes":16777216}"#).await;
    let other = house.add_device("press-8").await;
    eventually("the gateway's own limit", async || {
        let mut device = Device::upgrade(&house, &other, UPGRADE).await;
        device.expect("welcome").await["max_message_bytes"] == 65536
    })
    .await;
    // What a session could not send when it began it may send as soon as it is told so.
    set(r#"{"message_bytes":1024}"#).await;
    let third = house.add_device("press-9").await;
    let mut device = loop {
        let mut device = Device::upgrade(&house, &third, UPGRADE).await;
        if device.expect("welcome").await["max_message_bytes"] == 1024 {
            break device;
        }
    };
    device.hello().await;
    set("{}").await;
    assert_eq!(device.expect("limits").await["max_message_bytes"], 65536);
    let seq = device.publish("long-2", json!("x".repeat(2000))).await;
    device.acked(seq).await;
    // What cannot be read lets nobody in, and ends nobody else's session for good.
    let unreadable = r#"UPDATE fleets SET limits = '{"speed":1}'"#;
    house.db.execute(unreadable).await.unwrap_err();
    let off = match &house.db.sql {
        Sql::Sqlite(_) => "DROP TRIGGER fleets_limits_update",
        Sql::Postgres(_) => "ALTER TABLE fleets DROP CONSTRAINT limits_hold",
    };
    house.db.execute(off).await.unwrap();
    house.db.execute(unreadable).await.unwrap();
    eventually("refused", async || {
        let answer = request(&house, &other, &UPGRADE.replace("/v1/device", "/v1/device?key=1")).await;
        answer.is_ok_and(|answer| problem_of(&answer) == "unavailable")
    })
    .await;
}

#[tokio::test]
async fn new_limits_hold_for_live_sessions_on_sqlite() {
    new_limits_hold_for_live_sessions(Database::sqlite().await).await;
}

#[tokio::test]
async fn new_limits_hold_for_live_sessions_on_postgres() {
    new_limits_hold_for_live_sessions(Database::postgres().await).await;
}

#[tokio::test]
async fn a_device_that_moves_to_another_fleet_follows_that_fleets_policy() {
    let house = House::start().await;
    let hall = "hall".parse().unwrap();
    let own =
        r##"{"allow":[{"actions":["publish"],"channels":["devices/${device}/#","fleets/${fleet}/#"]}]}"##;
    house.db.registry.add_fleet(&hall, own).await.unwrap();
    let mut device = Device::prove(&house, &house.add_device("press-7").await).await;
    house.db.execute("UPDATE devices SET fleet = 'hall' WHERE id = 'press-7'").await.unwrap();
    let answer = async |device: &mut Device| {
        device.say(json!({ "op": "publish", "id": "m", "ch": "fleets/hall/x", "data": 1 })).await;
        let Heard::Message(answer) = device.next().await else { panic!("closed") };
        answer["op"].as_str().unwrap().to_owned()
    };
    eventually("the other fleet's policy", async || answer(&mut device).await == "ack").await;
    house.db.registry.set_policy(&hall, "{}").await.unwrap();
    eventually("a change of the other fleet's policy", async || answer(&mut device).await == "reject").await;
}

#[tokio::test]
async fn a_retired_key_ends_the_session_that_is_signed_with_it() {
    let house = House::start().await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    house.db.execute("UPDATE hmac_keys SET state = 'retired'").await.unwrap();
    device.closed_with_bye(4005).await;
    assert_eq!(problem_of(&request(&house, &credentials, UPGRADE).await.unwrap()), "key-unknown");
}

#[tokio::test]
async fn a_device_suspended_right_after_its_upgrade_says_nothing_more() {
    let house = House::start().await;
    for n in 0..20 {
        let credentials = house.add_device(&format!("d{n}")).await;
        // Welcomed or not: it is a race, and both are right. It ends in any case, and stores nothing.
        let suspended = async {
            tokio::time::sleep(Duration::from_millis(n % 10)).await;
            house.db.registry.set_status(&credentials.id, Act::Suspend, None).await.unwrap();
        };
        let stream = dial(&house, Arc::new(tls(&house, Some(&credentials), TLS13))).await.unwrap();
        let (upgraded, ()) = tokio::join!(Device::upgrade_on(stream, &credentials, UPGRADE), suspended);
        match upgraded {
            Ok(mut device) => assert_eq!(device.until_closed().await.0, Some(4004)),
            Err(refusal) => assert!(refusal.to_string().contains("403"), "{refusal}"),
        }
    }
    eventually("nobody is here", async || house.gateway.devices() == 0).await;
}

#[tokio::test]
async fn a_record_that_cannot_be_read_ends_its_own_session_alone() {
    let house = House::start().await;
    let mut devices = Vec::new();
    for n in 0..12 {
        let credentials = house.add_device(&format!("d{n}")).await;
        devices.push(Device::prove(&house, &credentials).await);
    }
    // In one transaction: all are judged in one look, in whatever order.
    house
        .db
        .execute(
            "UPDATE devices SET reason = CAST(x'ff' AS TEXT) WHERE id = 'd3';
             UPDATE devices SET status = 'revoked' WHERE id IN ('d1', 'd5', 'd7', 'd9')",
        )
        .await
        .unwrap();
    for (n, device) in devices.iter_mut().enumerate() {
        match n {
            3 => drop(device.closed_with_bye(1011).await),
            1 | 5 | 7 | 9 => drop(device.closed_with_bye(4003).await),
            _ => {
                let seq = device.publish("m1", json!(1)).await;
                device.acked(seq).await;
            }
        }
    }
}

#[tokio::test]
async fn a_key_that_does_not_open_ends_its_session_as_our_fault() {
    let house = House::start().await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    house.db.execute("UPDATE hmac_keys SET sealed = x'00'").await.unwrap();
    device.closed_with_bye(1011).await;
}

#[tokio::test]
async fn a_gateway_whose_follower_has_died_serves_nobody() {
    let (mut house, hooked) = hooked::house(|_| {}).await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    hooked.panic_in_changes.store(true, Ordering::SeqCst);
    device.closed_with_bye(1001).await;
    let error = house.failed().await.to_string();
    assert!(error.contains("a part of the gateway has failed"), "{error}");
}

#[tokio::test]
async fn nothing_is_confirmed_while_an_older_transaction_is_under_way() {
    let (house, hooked) = hooked::house(|_| {}).await;
    let registry = &house.db.registry;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    let seq = device.publish("m0", json!(0)).await;
    device.acked(seq).await;
    hooked.writes.close();
    device.publish("m1", json!(1)).await;
    hooked.writes.reached().await;
    let acted = registry.set_status(&credentials.id, Act::Revoke, None).await.unwrap();
    let confirmed = async || registry.gateways(Some(acted.mark)).await.unwrap()[0].confirmed;
    device.closed_with_bye(4003).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!confirmed().await);
    hooked.writes.open();
    eventually("the confirmation", confirmed).await;
    // It was judged by what is known now.
    assert_eq!(house.stored_as("m1").await, 0);
}
