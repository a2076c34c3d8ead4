//! A store that is away: nothing is acked that is not stored, sessions live on, and what follows recovers.

use std::sync::atomic::Ordering;
use std::time::Duration;

use doorward::clock;
use serde_json::json;
use sqlx::Connection as _;

use super::hooked::{self, Failure};
use crate::support::device::{Device, Heard, problem_of, ranges, refused};
use crate::support::house::{House, eventually, log, seconds};
use crate::support::wire;

/// A publish is refused as unavailable; how long that took.
async fn publish_in_vain(device: &mut Device, id: &str) -> Duration {
    let start = clock::now().monotonic;
    let seq = device.publish(id, json!(1)).await;
    let (reference, error, retry_after) = device.rejected().await;
    assert_eq!((reference, error.as_str()), (json!(seq), "unavailable"));
    assert!((1..=60).contains(&retry_after.as_u64().expect("retry_after")));
    clock::now().monotonic - start
}

#[tokio::test]
async fn a_postgres_that_goes_away_and_comes_back() {
    let (house, wire) = wire::house(|config| {
        config.session.heartbeat = seconds(1);
        config.session.max_skew = seconds(20);
    })
    .await;
    let credentials = house.add_device("press-7").await;
    let newcomer = house.add_device("press-8").await;
    let mut device = Device::prove(&house, &credentials).await;
    let seq = device.publish("m1", json!(1)).await;
    device.acked(seq).await;

    wire.cut();
    let took = publish_in_vain(&mut device, "m2").await;
    assert!(took < Duration::from_secs(5), "a quarter of max_skew, and it took {took:?}");
    let answer = refused(&house, &newcomer).await;
    assert_eq!((answer.status, problem_of(&answer).as_str()), (503, "unavailable"));
    // Pings are answered meanwhile, and so is what needs no store.
    assert!(device.hears_nothing(Duration::from_millis(2700)).await);
    device.hello().await;
    assert_eq!(house.stored_as("m2").await, 0, "never acked, and not kept either");

    // A device revoked meanwhile is cut when the gateway hears of it.
    house.db.execute("UPDATE devices SET status = 'revoked' WHERE id = 'press-8'").await.unwrap();
    wire.mend();
    eventually("the store is back", async || {
        let seq = device.publish("m2", json!(1)).await;
        match device.next().await {
            Heard::Message(m) if m["op"] == "ack" => true,
            Heard::Message(m) => {
                assert_eq!((&m["ref"], &m["error"]), (&json!(seq), &json!("unavailable")));
                false
            }
            Heard::Closed(code) => panic!("closed with {code:?}"),
        }
    })
    .await;
    assert_eq!(house.stored_as("m2").await, 1);
    eventually("newcomers are judged again", async || {
        problem_of(&refused(&house, &newcomer).await) == "device-revoked"
    })
    .await;
}

#[tokio::test]
async fn a_sqlite_file_that_another_process_has_locked() {
    let house = House::with(|config| {
        config.session.heartbeat = seconds(1);
        config.session.max_skew = seconds(20);
    })
    .await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    eventually("presence", async || house.db.number("SELECT count(*) FROM presence").await == 1).await;

    let mut other = sqlx::SqliteConnection::connect(&house.db.url.to_string()).await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let took = publish_in_vain(&mut device, "m1").await;
    assert!(took < Duration::from_secs(5), "a quarter of max_skew, and it took {took:?}");
    device.hello().await;
    assert_eq!(house.stored().await, []);
    sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
    let seq = device.publish("m1", json!(1)).await;
    device.acked(seq).await;
    assert_eq!(house.stored_as("m1").await, 1);
}

#[tokio::test]
async fn a_short_outage_costs_a_wait_and_no_refusal() {
    let (house, hooked) = hooked::house(|_| {}).await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    *hooked.fail_writes.lock().unwrap() = Some(Failure::Unavailable);
    let first = device.publish("m1", json!(1)).await;
    let last = device.publish("m2", json!(2)).await;
    assert!(device.hears_nothing(Duration::from_millis(500)).await);
    *hooked.fail_writes.lock().unwrap() = None;
    device.acked(first).await;
    assert_eq!(last, first + 1);
    eventually("both are stored", async || house.stored().await.len() == 2).await;
}

#[tokio::test]
async fn a_commit_that_was_unknown_and_is_tried_again_is_acked_once() {
    let (house, hooked) = hooked::house(|_| {}).await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    *hooked.fail_writes.lock().unwrap() = Some(Failure::UnknownAfterCommit);
    let seq = device.publish("m1", json!(1)).await;
    eventually("the first try has committed", async || house.stored_as("m1").await == 1).await;
    assert!(device.hears_nothing(Duration::from_millis(200)).await);
    *hooked.fail_writes.lock().unwrap() = None;
    device.acked(seq).await;
    assert_eq!(house.stored_as("m1").await, 1);
    assert!(device.hears_nothing(Duration::from_millis(200)).await);
}

#[tokio::test]
async fn an_unknown_commit_is_no_reason_to_store_for_who_was_cut_meanwhile() {
    let (house, hooked) = hooked::house(|_| {}).await;
    let credentials = house.add_device("press-7").await;
    let other = house.add_device("press-8").await;
    let (mut device, mut honest) =
        (Device::prove(&house, &credentials).await, Device::prove(&house, &other).await);
    *hooked.fail_writes.lock().unwrap() = Some(Failure::Unknown);
    device.publish("m1", json!(1)).await;
    let seq = honest.publish("m2", json!(2)).await;
    eventually("a failed try", async || log().contains("the store does not write")).await;
    // The store, which judges devices and sessions, would take the message.
    house.db.execute("UPDATE certificates SET status = 'revoked' WHERE device = 'press-7'").await.unwrap();
    let (code, heard) = device.until_closed().await;
    assert_eq!(code, Some(4004));
    assert!(heard.iter().all(|message| message["op"] == "bye"), "{heard:?}");
    *hooked.fail_writes.lock().unwrap() = None;
    honest.acked(seq).await;
    assert_eq!((house.stored_as("m1").await, house.stored_as("m2").await), (0, 1));
}

#[tokio::test]
async fn a_full_queue_stops_reading_before_it_grows_and_nothing_is_lost() {
    let (house, hooked) = hooked::house(|config| {
        (config.limits.store_queue, config.limits.undecided) = (4, 8);
    })
    .await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    eventually("presence", async || house.db.number("SELECT count(*) FROM presence").await == 1).await;
    hooked.writes.close();
    let all = (0..100).map(|n| device.to_publish(&format!("m{n}"), json!(n))).collect();
    let before = device.seq;
    device.say_at_once(all).await;
    hooked.writes.reached().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let read = house.gateway.counters().totals().accepted - before;
    assert!(read <= 9, "{read} of 100 messages were read while none could be stored");
    hooked.writes.open();
    let mut acked = 0;
    while acked < 100 {
        let ack = device.expect("ack").await;
        acked += ranges(&ack).iter().map(|(a, b)| b - a + 1).sum::<u64>();
    }
    assert_eq!(house.stored().await.len(), 100);
}

#[tokio::test]
async fn the_end_of_a_session_during_an_outage_is_written_after_it() {
    let (house, hooked) = hooked::house(|_| {}).await;
    let credentials = house.add_device("press-7").await;
    *hooked.fail_writes.lock().unwrap() = Some(Failure::Unavailable);
    let device = Device::prove(&house, &credentials).await;
    drop(device);
    eventually("the session has left", async || house.gateway.devices() == 0).await;
    // Several failed tries, with the claim and its release in them.
    tokio::time::sleep(Duration::from_millis(700)).await;
    *hooked.fail_writes.lock().unwrap() = None;
    eventually("the claim", async || house.db.number("SELECT count(*) FROM presence").await == 1).await;
    eventually("the release", async || {
        house.db.number("SELECT count(*) FROM presence WHERE session IS NULL").await == 1
    })
    .await;
}

#[tokio::test]
async fn while_the_store_stalls_nothing_grows_stale() {
    let (house, hooked) = hooked::house(|config| {
        config.session.max_skew = seconds(20);
        config.limits.undecided = 4;
    })
    .await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    *hooked.fail_writes.lock().unwrap() = Some(Failure::Unavailable);
    for n in 0..100 {
        device.publish(&format!("m{n}"), json!(n)).await;
    }
    // Four wait in vain; the others are told so at once, long before their time runs out behind them.
    for _ in 0..100 {
        let (_, error, retry_after) = device.rejected().await;
        assert_eq!((error.as_str(), retry_after.is_number()), ("unavailable", true));
    }
    *hooked.fail_writes.lock().unwrap() = None;
    let seq = device.publish("m0", json!(0)).await;
    device.acked(seq).await;
}

#[tokio::test]
async fn a_transaction_that_sqlite_rolled_back_by_itself_costs_one_try() {
    // As it does when the disk is full; the driver does not hear of it.
    let house = House::with(|config| config.session.max_skew = seconds(20)).await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    let full = "CREATE TRIGGER full BEFORE INSERT ON messages BEGIN SELECT RAISE(ROLLBACK, 'full'); END";
    house.db.execute(full).await.unwrap();
    device.publish("m1", json!(1)).await;
    device.rejected().await;
    house.db.execute("DROP TRIGGER full").await.unwrap();
    eventually("the store is back", async || {
        let seq = device.publish("m1", json!(1)).await;
        let answer = device.next().await;
        let _ = seq;
        matches!(answer, Heard::Message(message) if message["op"] == "ack")
    })
    .await;
}

#[tokio::test]
async fn what_is_too_old_serves_nobody() {
    let (house, hooked) = hooked::house(|config| config.registry.max_staleness = seconds(4)).await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    hooked.fail_changes.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(700)).await;
    device.hello().await;
    let retry_after = device.closed_with_bye(1001).await;
    assert!((5..=60).contains(&retry_after.as_u64().unwrap()), "{retry_after}");
    // Look-ups would answer; but nobody would hear of what changes afterwards.
    let answer = refused(&house, &credentials).await;
    assert_eq!((answer.status, problem_of(&answer)), (503, "unavailable".to_owned()));
    hooked.fail_changes.store(false, Ordering::SeqCst);
    // Until the next look at the feed.
    eventually("the feed has been read", async || log().contains("the registry answers again")).await;
    Device::prove(&house, &credentials).await;
}
