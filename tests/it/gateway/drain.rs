//! The end of a gateway: what is under way is finished, everybody is told, nothing is left behind.

use std::time::Duration;

use serde_json::json;
use tokio::net::TcpStream;

use super::hooked::{self, Failure};
use crate::support::database::Database;
use crate::support::device::{Device, Heard, ranges};
use crate::support::house::{House, eventually, seconds};

async fn a_drain_says_goodbye(db: Database) {
    // Far longer than a test waits: it ends because everybody is gone.
    let mut house = House::on(db, |config| config.gateway.drain = seconds(300)).await;
    let mut device = Device::prove(&house, &house.add_device("proven").await).await;
    let mut unproven = Device::connect(&house, &house.add_device("unproven").await).await;
    let here = "SELECT count(*) FROM presence WHERE session IS NOT NULL";
    eventually("presence", async || house.db.number(here).await == 1).await;
    house.shut_down();
    for device in [&mut device, &mut unproven] {
        let retry_after = device.closed_with_bye(1001).await.as_u64().expect("retry_after");
        assert!((1..=60).contains(&retry_after));
    }
    house.ended().await;
    assert_eq!(house.db.number(here).await, 0);
    TcpStream::connect(house.address).await.unwrap_err();
}

#[tokio::test]
async fn a_drain_says_goodbye_on_sqlite() {
    a_drain_says_goodbye(Database::sqlite().await).await;
}

#[tokio::test]
async fn a_drain_says_goodbye_on_postgres() {
    a_drain_says_goodbye(Database::postgres().await).await;
}

#[tokio::test]
async fn what_is_under_way_is_acked_before_the_goodbye() {
    let (mut house, hooked) = hooked::house(|_| {}).await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    hooked.writes.close();
    let all = (0..20).map(|n| device.to_publish(&format!("m{n}"), json!(n))).collect();
    let before = device.seq;
    device.say_at_once(all).await;
    hooked.writes.reached().await;
    eventually("all have been read", async || house.gateway.counters().totals().accepted >= before + 20)
        .await;
    house.shut_down();
    assert!(device.hears_nothing(Duration::from_millis(300)).await, "it waits for its publishes");
    hooked.writes.open();
    let mut acked = 0;
    let code = loop {
        match device.next().await {
            Heard::Message(m) if m["op"] == "ack" => {
                acked += ranges(&m).iter().map(|(first, last)| last - first + 1).sum::<u64>();
            }
            Heard::Message(m) => assert_eq!((&m["op"], acked), (&json!("bye"), 20)),
            Heard::Closed(code) => break code,
        }
    };
    assert_eq!(code, Some(1001));
    house.ended().await;
    assert_eq!(house.stored().await.len(), 20);
}

#[tokio::test]
async fn a_store_that_does_not_come_back_does_not_hold_up_the_end() {
    let (mut house, hooked) = hooked::house(|config| {
        config.gateway.drain = seconds(2);
    })
    .await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    *hooked.fail_writes.lock().unwrap() = Some(Failure::Unavailable);
    device.publish("m1", json!(1)).await;
    house.shut_down();
    let (code, messages) = device.until_closed().await;
    assert_eq!(code, Some(1001));
    assert!(messages.iter().all(|message| message["op"] != "ack"), "{messages:?}");
    house.ended().await;
    assert_eq!(house.stored().await, []);
}

#[tokio::test]
async fn a_silent_stranger_does_not_hold_up_the_end() {
    let mut house = House::with(|config| config.gateway.drain = seconds(300)).await;
    let stranger = TcpStream::connect(house.address).await.unwrap();
    // One behind it has been served: so it has been accepted.
    Device::prove(&house, &house.add_device("press-7").await).await;
    house.shut_down();
    house.ended().await;
    drop(stranger);
}
