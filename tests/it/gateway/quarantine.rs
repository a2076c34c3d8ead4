//! Devices that are suspended by themselves for what they send.

use std::time::Duration;

use doorward::config::{Config, QuarantineMode};
use doorward::registry::{Act, AuditFilter};
use doorward_proto::key::Key;
use serde_json::{Value, json};

use crate::support::database::Database;
use crate::support::device::{Device, Heard, problem_of, refused};
use crate::support::house::{House, eventually, seconds};

fn on(config: &mut Config) {
    config.quarantine.mode = QuarantineMode::On;
    config.quarantine.forbidden = 4;
    config.quarantine.forged = 4;
    config.quarantine.lasts = seconds(3600);
    config.limits.strikes = 1000;
}

async fn break_policy(device: &mut Device, times: usize) {
    for n in 0..times {
        device
            .say(json!({ "op": "publish", "id": format!("f{n}"), "ch": "devices/other/x", "data": 1 }))
            .await;
        assert_eq!(device.rejected().await.1, "forbidden");
    }
}

/// Reads to the close.
async fn cut(device: &mut Device) {
    assert_eq!(device.until_closed().await.0, Some(4004));
}

async fn audit(house: &House) -> Vec<Value> {
    let rows = house.db.registry.audit(&AuditFilter { limit: 1000, ..Default::default() }).await.unwrap();
    rows.iter().map(|row| serde_json::from_slice(&row.body).unwrap()).collect()
}

const EVENTS: &str = "SELECT count(*) FROM events WHERE kind = 'quarantine' AND device = 'press-7'";

async fn who_breaks_the_policy_again_and_again_is_suspended(db: Database) {
    let house = House::on(db, on).await;
    let credentials = house.add_device("press-7").await;
    let mut bystander = Device::prove(&house, &house.add_device("press-8").await).await;
    break_policy(&mut bystander, 3).await;
    let mut device = Device::prove(&house, &credentials).await;
    break_policy(&mut device, 3).await;
    drop(device);
    // Whether in one session or in the next.
    let mut device = Device::prove(&house, &credentials).await;
    device.say(json!({ "op": "publish", "id": "last", "ch": "devices/other/x", "data": 1 })).await;
    cut(&mut device).await;
    let answer = refused(&house, &credentials).await;
    assert_eq!((answer.status, problem_of(&answer).as_str()), (403, "device-suspended"));
    let detail = answer.problem()["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("quarantine for 1h: 4 forbidden messages within 10m"), "{detail}");

    let acts = audit(&house).await;
    let act = acts.iter().find(|act| act["action"] == "device.suspend").unwrap();
    assert_eq!((&act["actor"], &act["subject"]), (&json!("gateway"), &json!("press-7")));
    eventually("an event", async || house.db.number(EVENTS).await == 1).await;
    eventually("it is counted", async || house.gateway.quarantine_totals().suspended == 1).await;
    bystander.hello().await;
    // Until somebody says otherwise.
    house.db.registry.set_status(&credentials.id, Act::Resume, None).await.unwrap();
    house.followed().await;
    Device::prove(&house, &credentials).await;
    assert_eq!(house.db.number("SELECT count(*) FROM quarantines").await, 0);
}

#[tokio::test]
async fn who_breaks_the_policy_again_and_again_is_suspended_on_sqlite() {
    who_breaks_the_policy_again_and_again_is_suspended(Database::sqlite().await).await;
}

#[tokio::test]
async fn who_breaks_the_policy_again_and_again_is_suspended_on_postgres() {
    who_breaks_the_policy_again_and_again_is_suspended(Database::postgres().await).await;
}

async fn a_quarantine_ends_by_itself_whoever_began_it(db: Database) {
    let house = House::on(db, |config| config.quarantine.mode = QuarantineMode::Off).await;
    let credentials = house.add_device("press-7").await;
    let lasts = Some(Duration::from_secs(1));
    assert!(house.registry().quarantine(&credentials.id, "gone", "quarantine", lasts).await.unwrap());
    house.followed().await;
    assert_eq!(problem_of(&refused(&house, &credentials).await), "device-suspended");
    let status = "SELECT count(*) FROM devices WHERE id = 'press-7' AND status = 'active' AND reason IS NULL";
    eventually("the end of the quarantine", async || house.db.number(status).await == 1).await;
    house.followed().await;
    Device::prove(&house, &credentials).await;
    let acts = audit(&house).await;
    let act = acts.iter().rev().find(|act| act["action"] == "device.resume").unwrap();
    assert_eq!(act["actor"], "gateway");
}

#[tokio::test]
async fn a_quarantine_ends_by_itself_whoever_began_it_on_sqlite() {
    a_quarantine_ends_by_itself_whoever_began_it(Database::sqlite().await).await;
}

#[tokio::test]
async fn a_quarantine_ends_by_itself_whoever_began_it_on_postgres() {
    a_quarantine_ends_by_itself_whoever_began_it(Database::postgres().await).await;
}

#[tokio::test]
async fn a_dry_run_says_what_would_have_been() {
    let house = House::with(|config| {
        on(config);
        config.quarantine.mode = QuarantineMode::DryRun;
    })
    .await;
    let mut device = Device::prove(&house, &house.add_device("press-7").await).await;
    break_policy(&mut device, 13).await;
    device.hello().await;
    eventually("an event", async || house.db.number(EVENTS).await == 1).await;
    let said = "SELECT count(*) FROM events WHERE detail LIKE 'dry run: 4 forbidden messages within 10m: would have been %'";
    assert_eq!(house.db.number(said).await, 1);
    let totals = house.gateway.quarantine_totals();
    assert_eq!((totals.suspended, totals.would_have), (0, 1));
    assert_eq!(house.db.number("SELECT count(*) FROM devices WHERE status = 'active'").await, 1);
}

/// What a thief of the certificate alone sends.
async fn forge(house: &House, credentials: &crate::support::house::Credentials, times: usize) -> Option<u16> {
    let mut thief = Device::connect(house, credentials).await;
    thief.signer = Key::new("1".parse().unwrap(), &[9; 32]);
    for _ in 0..times {
        thief.say(json!({ "op": "hello" })).await;
        match thief.next().await {
            Heard::Message(message) => assert_eq!(message["error"], "bad_signature"),
            Heard::Closed(code) => return code,
        }
    }
    None
}

#[tokio::test]
async fn who_has_stolen_the_certificate_alone_has_nobody_suspended() {
    let house = House::with(on).await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    assert_eq!(forge(&house, &credentials, 20).await, None);
    device.hello().await;
    assert_eq!(house.gateway.quarantine_totals().suspended, 0);
    // Inside a session that has shown the key they count.
    let signer = std::mem::replace(&mut device.signer, Key::new("1".parse().unwrap(), &[9; 32]));
    for _ in 0..4 {
        device.say(json!({ "op": "hello" })).await;
    }
    drop(signer);
    cut(&mut device).await;
}

#[tokio::test]
async fn an_operator_may_have_it_count_all_the_same() {
    let house = House::with(|config| {
        on(config);
        config.quarantine.unproven = true;
    })
    .await;
    let credentials = house.add_device("press-7").await;
    assert_eq!(forge(&house, &credentials, 3).await, None);
    forge(&house, &credentials, 1).await;
    eventually("the suspension", async || {
        house.db.number("SELECT count(*) FROM devices WHERE status = 'suspended'").await == 1
    })
    .await;
}

#[tokio::test]
async fn one_subscription_too_many_breaks_no_policy() {
    let house = House::with(|config| {
        on(config);
        // What it would have done is counted at once.
        config.quarantine.mode = QuarantineMode::DryRun;
        config.limits.subscriptions = 1;
    })
    .await;
    let would_have = || house.gateway.quarantine_totals().would_have;
    let mut device = Device::prove(&house, &house.add_device("press-7").await).await;
    let subscribe = |n: usize| json!({ "op": "subscribe", "ch": format!("devices/press-7/{n}") });
    let seq = device.say(subscribe(0)).await;
    device.acked(seq).await;
    for n in 1..10 {
        device.say(subscribe(n)).await;
        assert_eq!(device.rejected().await.1, "forbidden");
    }
    device.hello().await;
    assert_eq!(would_have(), 0);
    // What the policy denies counts, also where there is no room.
    break_policy(&mut device, 3).await;
    device.say(json!({ "op": "subscribe", "ch": "devices/other/x" })).await;
    assert_eq!(device.rejected().await.1, "forbidden");
    device.hello().await;
    assert_eq!(would_have(), 1);
}
