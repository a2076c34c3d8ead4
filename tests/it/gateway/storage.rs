//! An ack means that the message is stored, once, as it was sent.

use doorward_proto::ids::DeviceId;
use serde_json::json;

use super::hooked;
use crate::support::database::{Database, Sql};
use crate::support::device::{Device, Heard, ranges, refused};
use crate::support::house::{House, eventually, from_now, stamp};

async fn an_acked_message_is_in_the_database(db: Database) {
    let house = House::on(db, |_| {}).await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    // Text of every kind that a parser might write otherwise.
    let odd = r#"{ "b" : 1.50,"a":[1e2,-0,  "\u00e9é𝄞\/\n"],"big":12345678901234567890123,"e":{}}"#;
    for (n, data) in [odd, "null", "\"\"", "21.500", " [ ] "].into_iter().enumerate() {
        let id = format!("m{n}");
        let claims = device.claims(json!({ "op": "publish", "id": id, "ch": "devices/press-7/t", "at": 1 }));
        let mut payload = claims.to_string();
        payload.truncate(payload.len() - 1);
        device.send(&format!("{payload},\"data\":{data}}}")).await;
        device.acked(device.seq).await;
        // Asked at once: the ack came after the commit.
        let stored = house.stored().await;
        assert_eq!(stored.last(), Some(&(id, data.trim().to_owned())));
    }
    let channels = "SELECT count(*) FROM messages WHERE channel = 'devices/press-7/t' AND device = 'press-7'";
    assert_eq!(house.db.number(channels).await, 5);
}

#[tokio::test]
async fn an_acked_message_is_in_the_database_on_sqlite() {
    an_acked_message_is_in_the_database(Database::sqlite().await).await;
}

#[tokio::test]
async fn an_acked_message_is_in_the_database_on_postgres() {
    an_acked_message_is_in_the_database(Database::postgres().await).await;
}

async fn a_retry_is_stored_once(db: Database) {
    let mut house = House::on(db, |_| {}).await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    let retry = async |device: &mut Device| {
        let seq = device.publish("m1", json!("first")).await;
        device.acked(seq).await;
        // Other content under the same id is acked and dropped.
        let seq = device.publish("m1", json!("second")).await;
        device.acked(seq).await;
    };
    retry(&mut device).await;
    device.say_at_once(vec![device.to_publish("m1", json!(3)); 3]).await;
    device.acked(device.seq).await;
    retry(&mut Device::prove(&house, &credentials).await).await;
    house.restart().await;
    retry(&mut Device::prove(&house, &credentials).await).await;
    assert_eq!(house.stored().await, [("m1".to_owned(), "\"first\"".to_owned())]);
    // An id is a device's own.
    let other = house.add_device("press-8").await;
    let mut other = Device::prove(&house, &other).await;
    let seq = other.publish("m1", json!("other")).await;
    other.acked(seq).await;
    assert_eq!(house.stored_as("m1").await, 2);
}

#[tokio::test]
async fn a_retry_is_stored_once_on_sqlite() {
    a_retry_is_stored_once(Database::sqlite().await).await;
}

#[tokio::test]
async fn a_retry_is_stored_once_on_postgres() {
    a_retry_is_stored_once(Database::postgres().await).await;
}

#[tokio::test]
async fn acks_are_gathered_and_never_cover_what_was_refused() {
    let (house, hooked) = hooked::house(|_| {}).await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    let before = device.seq;
    // Held up once, so that the rest gathers behind it.
    hooked.writes.close();
    let all: Vec<_> = (0..60)
        .map(|n| match n % 10 {
            7 => json!({ "op": "publish", "id": "x", "ch": "devices/other/t", "data": 1 }),
            _ => device.to_publish(&format!("m{n}"), json!(n)),
        })
        .collect();
    device.say_at_once(all).await;
    let refused: Vec<u64> = (0..60).filter(|n| n % 10 == 7).map(|n| before + 1 + n).collect();
    let mut rejected = Vec::new();
    while rejected.len() < refused.len() {
        rejected.push(device.rejected().await.0.as_u64().unwrap());
    }
    assert_eq!(rejected, refused);
    hooked.writes.open();
    let (mut acked, mut frames) = (Vec::new(), 0);
    while acked.len() < 54 {
        for (first, last) in ranges(&device.expect("ack").await) {
            acked.extend(first..=last);
        }
        frames += 1;
    }
    acked.sort_unstable();
    let stored: Vec<u64> = (before + 1..=before + 60).filter(|seq| !refused.contains(seq)).collect();
    assert_eq!(acked, stored);
    assert!(frames <= 4, "54 acks in {frames} frames");
    assert_eq!(house.stored().await.len(), 54);
    let batches = hooked.batches.lock().unwrap().iter().filter(|messages| **messages > 0).count();
    assert!(batches <= 3, "54 messages in {batches} transactions");
}

#[tokio::test]
async fn an_ack_never_overtakes_its_commit() {
    let (house, hooked) = hooked::house(|_| {}).await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    hooked.writes.close();
    let publish = device.publish("m1", json!(1)).await;
    hooked.writes.reached().await;
    // What needs no store is answered meanwhile, and does not answer the publish.
    let hello = device.say(json!({ "op": "hello" })).await;
    let Heard::Message(ack) = device.next().await else { panic!("closed") };
    assert_eq!(ranges(&ack), [(hello, hello)]);
    assert!(device.hears_nothing(std::time::Duration::from_millis(300)).await);
    assert_eq!(house.stored().await, []);
    hooked.writes.open();
    device.acked(publish).await;
    assert_eq!(house.stored_as("m1").await, 1);
}

async fn old_messages_go_in_small_pieces(db: Database) {
    let (old, kept) = (stamp(from_now(-700)), stamp(from_now(-500)));
    let numbers = match &db.sql {
        Sql::Sqlite(_) => {
            "(WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 1200) SELECT n FROM n)"
        }
        Sql::Postgres(_) => "generate_series(1, 1200)",
    };
    let cast = if matches!(db.sql, Sql::Postgres(_)) { "::timestamptz" } else { "" };
    let insert = format!(
        "INSERT INTO messages (device, id, channel, data, received_at)
         SELECT 'd', 'm' || n, 'c', '1', CASE WHEN n <= 1100 THEN '{old}' ELSE '{kept}' END{cast} FROM {numbers} AS n (n)"
    );
    let insert = match &db.sql {
        Sql::Sqlite(_) => insert.replace(" AS n (n)", ""),
        Sql::Postgres(_) => insert,
    };
    db.execute(&insert).await.unwrap();
    let (house, hooked) =
        hooked::house_on(db, |config| config.messages.keep = crate::support::house::seconds(600)).await;
    eventually("old messages are gone", async || {
        house.db.number("SELECT count(*) FROM messages").await == 100
    })
    .await;
    // The rows are gone a moment before the deletion has returned.
    eventually("the last pruning has returned", async || hooked.prunings.lock().unwrap().len() >= 3).await;
    let prunings = hooked.prunings.lock().unwrap().clone();
    assert!(
        prunings.len() >= 3 && prunings.iter().all(|(most, did)| *most <= 500 && *did <= 500),
        "{prunings:?}"
    );
}

#[tokio::test]
async fn old_messages_go_in_small_pieces_on_sqlite() {
    old_messages_go_in_small_pieces(Database::sqlite().await).await;
}

#[tokio::test]
async fn old_messages_go_in_small_pieces_on_postgres() {
    old_messages_go_in_small_pieces(Database::postgres().await).await;
}

async fn a_session_of_another_gateway_fences(db: Database) {
    let house = House::on(db, |_| {}).await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    let seq = device.publish("m1", json!(1)).await;
    device.acked(seq).await;
    // The device's newest session is elsewhere by now.
    let claim = doorward::registry::Claim {
        device: DeviceId::new("press-7").unwrap(),
        session: "elsewhere".into(),
        gateway: "gateway-2".into(),
        peer: "192.0.2.7:1".into(),
        at: from_now(0),
        late: false,
    };
    let batch = doorward::registry::Batch { claims: vec![claim], ..Default::default() };
    house.db.registry.write(&batch).await.unwrap();
    device.publish("m2", json!(2)).await;
    let (code, messages) = device.until_closed().await;
    assert_eq!(code, Some(4009));
    assert!(messages.iter().all(|message| message["op"] == "bye"), "never acked: {messages:?}");
    assert_eq!(house.stored_as("m2").await, 0);
    eventually("the session has left", async || house.gateway.devices() == 0).await;
    let theirs = "SELECT count(*) FROM presence WHERE session = 'elsewhere' AND epoch = 2";
    assert_eq!(house.db.number(theirs).await, 1, "its end releases its own place alone");
}

/// Two gateways on one registry.
async fn one_session_a_device(db: Database) {
    let mut other = House::start().await;
    let house = House::on(db, |_| {}).await;
    other.joins(&house, "gateway-2").await;
    let credentials = house.add_device("press-7").await;
    let mut here = Device::prove(&house, &credentials).await;
    // Idle: nothing of its own tells it.
    eventually("its place", async || {
        house.db.number("SELECT count(*) FROM presence WHERE session IS NOT NULL").await == 1
    })
    .await;
    let mut there = Device::prove(&other, &credentials).await;
    assert_eq!(here.closed_with_bye(4009).await, json!(60));
    let seq = there.publish("m1", json!(1)).await;
    there.acked(seq).await;
    // And back again.
    let mut here = Device::prove(&house, &credentials).await;
    there.closed_with_bye(4009).await;
    let seq = here.publish("m2", json!(2)).await;
    here.acked(seq).await;
    assert_eq!(house.db.number("SELECT epoch FROM presence").await, 3);
}

/// Two devices with one identity, each at a gateway of its own.
#[tokio::test]
async fn a_fight_between_two_gateways_is_an_event_and_slowed_down() {
    let mut other = House::start().await;
    let house = House::on(Database::postgres().await, |_| {}).await;
    other.joins(&house, "gateway-2").await;
    let credentials = house.add_device("press-7").await;
    let mut here = Device::prove(&house, &credentials).await;
    for round in 1.. {
        eventually("its place", async || {
            let places = "SELECT count(*) FROM presence WHERE session IS NOT NULL AND gateway = 'gateway-1'";
            house.db.number(places).await == 1
        })
        .await;
        let mut there = Device::prove(&other, &credentials).await;
        let addresses = [&here, &there].map(|device| device.ws.get_ref().get_ref().0.local_addr().unwrap());
        here.closed_with_bye(4009).await;
        if round < 4 {
            here = Device::prove(&house, &credentials).await;
            there.closed_with_bye(4009).await;
            continue;
        }
        // The fourth time that the first gateway loses it. Both addresses are in the event: one is known elsewhere alone.
        let [from, by] = addresses;
        let event = format!(
            "SELECT count(*) FROM events WHERE kind = 'possible_clone' AND device = 'press-7' AND gateway = 'gateway-1'
                AND peer = '{by}' AND detail LIKE '%from {from} by {by}'"
        );
        eventually("the event", async || house.db.number(&event).await == 1).await;
        assert_eq!(refused(&house, &credentials).await.status, 429);
        // Who has the session keeps it.
        let seq = there.publish("m1", json!(1)).await;
        there.acked(seq).await;
        break;
    }
}

#[tokio::test]
async fn one_session_a_device_on_sqlite() {
    one_session_a_device(Database::sqlite().await).await;
}

#[tokio::test]
async fn one_session_a_device_on_postgres() {
    one_session_a_device(Database::postgres().await).await;
}

#[tokio::test]
async fn a_session_of_another_gateway_fences_on_sqlite() {
    a_session_of_another_gateway_fences(Database::sqlite().await).await;
}

#[tokio::test]
async fn a_session_of_another_gateway_fences_on_postgres() {
    a_session_of_another_gateway_fences(Database::postgres().await).await;
}
