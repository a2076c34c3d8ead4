//! The registry is away: the devices that it has told of are let in by what it said, everybody else is not; and nobody is
//! for longer than `registry.max_staleness`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use doorward::clock;
use serde_json::json;
use sqlx::Connection as _;

use super::hooked::{self, Hooked};
use crate::support::device::{Answer, Device, Heard, UPGRADE, problem_of, refused, request};
use crate::support::house::{Credentials, House, eventually, log, seconds};

/// The registry goes away, and the gateway has seen it.
async fn leave(hooked: &Hooked) {
    hooked.away.store(true, Ordering::SeqCst);
    eventually("the gateway has seen it", async || {
        log().contains("the registry does not answer; sessions go on")
    })
    .await;
}

async fn come_back(hooked: &Hooked) {
    hooked.away.store(false, Ordering::SeqCst);
    eventually("the feed has been read", async || log().contains("the registry answers again")).await;
}

fn is_unavailable(answer: &Answer) -> bool {
    answer.header("retry-after").is_some()
        && (answer.status, problem_of(answer)) == (503, "unavailable".to_owned())
}

/// What the file says, for a gateway that does not run.
async fn in_copy(house: &House, sql: &'static str) -> i64 {
    let mut file = sqlx::SqliteConnection::connect(&house.copy().display().to_string()).await.unwrap();
    let number = sqlx::query_scalar(sql).fetch_optional(&mut file).await.unwrap().unwrap_or(0);
    file.close().await.unwrap();
    number
}

#[tokio::test]
async fn whom_it_has_told_of_is_let_in_and_nobody_else() {
    let (house, hooked) = hooked::house(|config| config.session.max_skew = seconds(20)).await;
    let [known, newcomer] = [house.add_device("press-7").await, house.add_device("press-8").await];
    let stranger = house.certify("press-9", |_| {});
    drop(Device::prove(&house, &known).await);
    leave(&hooked).await;

    let mut device = Device::prove(&house, &known).await;
    for credentials in [&newcomer, &stranger] {
        assert!(is_unavailable(&refused(&house, credentials).await));
    }
    let seq = device.publish("m1", json!(1)).await;
    let (reference, error, _) = device.rejected().await;
    assert_eq!((reference, error.as_str()), (json!(seq), "unavailable"));

    come_back(&hooked).await;
    eventually("the store is back", async || {
        let seq = device.publish("m1", json!(1)).await;
        match device.next().await {
            Heard::Message(message) => message["op"] == "ack" && seq > 0,
            closed => panic!("{closed:?}"),
        }
    })
    .await;
    assert_eq!(house.stored_as("m1").await, 1);
    assert_eq!(house.db.number("SELECT count(*) FROM presence WHERE session IS NOT NULL").await, 1);
    Device::prove(&house, &newcomer).await;
}

#[tokio::test]
async fn who_is_revoked_meanwhile_is_cut_before_anything_of_theirs_is_stored() {
    let (house, hooked) = hooked::house(|_| {}).await;
    let credentials = house.add_device("press-7").await;
    let other = house.add_device("press-8").await;
    for credentials in [&credentials, &other] {
        drop(Device::prove(&house, credentials).await);
    }
    leave(&hooked).await;
    let mut device = Device::prove(&house, &credentials).await;
    let mut honest = Device::prove(&house, &other).await;
    // The certificate alone: the store, which judges devices and sessions, would take the message.
    house.db.execute("UPDATE certificates SET status = 'revoked' WHERE device = 'press-7'").await.unwrap();
    device.publish("m1", json!(1)).await;
    let seq = honest.publish("m2", json!(2)).await;
    hooked.away.store(false, Ordering::SeqCst);
    let (code, heard) = device.until_closed().await;
    assert_eq!(code, Some(4004));
    assert!(heard.iter().all(|message| message["op"] != "ack"), "{heard:?}");
    honest.acked(seq).await;
    assert_eq!((house.stored_as("m1").await, house.stored_as("m2").await), (0, 1));
}

#[tokio::test]
async fn a_copy_outlives_a_restart_and_what_changed_meanwhile_counts_at_once() {
    let (mut house, hooked) = hooked::house(|_| {}).await;
    let [kept, revoked] = [house.add_device("press-7").await, house.add_device("press-8").await];
    for credentials in [&kept, &revoked] {
        drop(Device::prove(&house, credentials).await);
    }
    leave(&hooked).await;
    house.db.execute("UPDATE devices SET status = 'revoked' WHERE id = 'press-8'").await.unwrap();
    house.restart().await;
    assert_eq!(in_copy(&house, "SELECT count(*) FROM records").await, 2);
    let mut device = Device::prove(&house, &kept).await;
    let mut cut = Device::prove(&house, &revoked).await;
    hooked.away.store(false, Ordering::SeqCst);
    assert_eq!(cut.until_closed().await.0, Some(4003));
    device.hello().await;
    let seq = device.publish("m1", json!(1)).await;
    device.acked(seq).await;
    // It has taken its place in the registry again, and says what it knows.
    eventually("a report of this run", async || {
        house
            .db
            .number("SELECT count(*) FROM gateways WHERE applied IS NOT NULL AND signed_off IS NULL")
            .await
            == 1
    })
    .await;
    assert_eq!(problem_of(&refused(&house, &revoked).await), "device-revoked");
    let secret = kept.hmac;
    for suffix in ["", "-wal"] {
        let path = format!("{}{suffix}", house.copy().display());
        let bytes = std::fs::read(path).unwrap_or_default();
        assert!(!bytes.windows(secret.len()).any(|window| window == secret), "a key stays sealed");
    }
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(house.copy()).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn what_was_forgotten_and_confirmed_is_forgotten_after_a_restart_too() {
    let (mut house, hooked) = hooked::house(|_| {}).await;
    let [kept, changed] = [house.add_device("press-7").await, house.add_device("press-8").await];
    for credentials in [&kept, &changed] {
        drop(Device::prove(&house, credentials).await);
    }
    // Written, and then forgotten again.
    eventually("a copy", async || in_copy(&house, "SELECT count(*) FROM records").await == 2).await;
    house.db.execute("UPDATE devices SET status = 'suspended' WHERE id = 'press-8'").await.unwrap();
    eventually("it is forgotten", async || in_copy(&house, "SELECT count(*) FROM records").await == 1).await;
    leave(&hooked).await;
    assert!(is_unavailable(&refused(&house, &changed).await));
    house.restart().await;
    assert!(is_unavailable(&refused(&house, &changed).await));
    Device::prove(&house, &kept).await;
}

#[tokio::test]
async fn a_change_of_the_fleet_counts_in_the_copy() {
    let (house, hooked) = hooked::house(|_| {}).await;
    let [live, gone] = [house.add_device("press-7").await, house.add_device("press-8").await];
    let mut device = Device::prove(&house, &live).await;
    drop(Device::prove(&house, &gone).await);
    let policy = r#"{"allow":[{"actions":["publish"],"channels":["other/#"]}],"deny":[]}"#;
    house.db.execute(&format!("UPDATE fleets SET policy = '{policy}' WHERE id = 'default'")).await.unwrap();
    eventually("the policy holds", async || {
        device.publish("m1", json!(1)).await;
        match device.next().await {
            Heard::Message(message) => message["error"] == "forbidden",
            closed => panic!("{closed:?}"),
        }
    })
    .await;
    leave(&hooked).await;
    drop(device);
    // Who was there is known with the new policy; who was not is not known any more.
    let mut device = Device::prove(&house, &live).await;
    device.publish("m2", json!(1)).await;
    assert_eq!(device.rejected().await.1, "forbidden");
    assert!(is_unavailable(&refused(&house, &gone).await));
}

/// A gateway that would have to start by what it knows, and may not.
async fn does_not_start(house: &mut House, because: &str) {
    let error = house.failed().await.to_string();
    assert!(error.contains(because), "{error}");
}

#[tokio::test]
async fn who_has_signed_off_starts_only_with_the_registry() {
    let (mut house, hooked) = hooked::house(|_| {}).await;
    let credentials = house.add_device("press-7").await;
    drop(Device::prove(&house, &credentials).await);
    house.shut_down();
    house.ended().await;
    // No receipt counts this gateway now: whom it let in by its copy nobody would hear of.
    assert_eq!(house.db.number("SELECT count(*) FROM gateways WHERE signed_off IS NOT NULL").await, 1);
    hooked.away.store(true, Ordering::SeqCst);
    house.reopen().await;
    does_not_start(&mut house, "has signed off").await;
    hooked.away.store(false, Ordering::SeqCst);
    house.reopen().await;
    Device::prove(&house, &credentials).await;
}

#[tokio::test]
async fn a_copy_that_may_not_serve_does_not() {
    let (mut house, hooked) = hooked::house(|_| {}).await;
    let credentials = house.add_device("press-7").await;
    drop(Device::prove(&house, &credentials).await);
    leave(&hooked).await;
    house.shut_down();
    house.ended().await;
    for (sql, because) in [
        ("UPDATE known SET known_at = known_at - 86400000", "older than registry.max_staleness"),
        ("UPDATE known SET known_at = known_at + 2 * 86400000", "the clock is behind"),
        (
            "UPDATE known SET known_at = known_at - 2 * 86400000, max_staleness = 1000",
            "older than registry.max_staleness",
        ),
        ("UPDATE known SET registry = 'another one'", "the test says so"),
    ] {
        in_copy(&house, sql).await;
        house.reopen().await;
        does_not_start(&mut house, because).await;
    }
    // Made anew for this registry: nobody is in it.
    assert_eq!(in_copy(&house, "SELECT count(*) FROM records").await, 0);
    std::fs::write(house.copy(), "no database").unwrap();
    house.reopen().await;
    does_not_start(&mut house, "the test says so").await;
    hooked.away.store(false, Ordering::SeqCst);
    house.reopen().await;
    Device::prove(&house, &credentials).await;
}

#[tokio::test]
async fn nobody_is_served_by_what_is_too_old() {
    let (house, hooked) = hooked::house(|config| config.registry.max_staleness = seconds(6)).await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    leave(&hooked).await;
    drop(std::mem::replace(&mut device, Device::prove(&house, &credentials).await));
    device.closed_with_bye(1001).await;
    assert!(is_unavailable(&refused(&house, &credentials).await));
}

#[tokio::test]
async fn without_patience_nobody_is_served_at_all() {
    let (house, hooked) = hooked::house(|config| config.registry.max_staleness = seconds(0)).await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    hooked.away.store(true, Ordering::SeqCst);
    device.closed_with_bye(1001).await;
    assert!(is_unavailable(&refused(&house, &credentials).await));
}

#[tokio::test]
async fn look_ups_that_wait_share_a_query() {
    let (house, hooked) = hooked::house(|_| {}).await;
    let mut all = Vec::new();
    for n in 0..20 {
        all.push(house.add_device(&format!("press-{n}")).await);
    }
    hooked.look_ups.close();
    let house = Arc::new(house);
    let devices: Vec<_> = all
        .into_iter()
        .map(|credentials| {
            let house = Arc::clone(&house);
            tokio::spawn(async move { Device::prove(&house, &credentials).await })
        })
        .collect();
    hooked.look_ups.reached().await;
    eventually("all are at the door", async || house.gateway.devices() == 20).await;
    // Until they ask: a handshake's request comes a moment after its place was taken.
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    hooked.look_ups.open();
    for device in devices {
        device.await.unwrap();
    }
    let sizes = hooked.look_up_sizes.lock().unwrap().clone();
    assert!(sizes.iter().sum::<usize>() >= 20, "{sizes:?}");
    assert!(sizes.len() <= 6, "two queries at a time, and the rest waits for the next: {sizes:?}");
}

#[tokio::test]
async fn a_certificate_that_nobody_recorded_is_asked_for_once_and_let_in_as_soon_as_it_is() {
    let (house, hooked) = hooked::house(|_| {}).await;
    let credentials = house.certify("press-7", |_| {});
    let started = clock::now().monotonic;
    for _ in 0..5 {
        assert_eq!(problem_of(&refused(&house, &credentials).await), "certificate-unknown");
    }
    let asked = hooked.look_up_sizes.lock().unwrap().len();
    // On a machine that is slow today some of the five may have come after the two seconds.
    let most = 1 + (clock::now().monotonic - started).as_secs() / 2;
    assert!(asked as u64 <= most, "{asked} queries");
    house.record("press-7", "default", &credentials).await;
    eventually("it is known", async || refused_path(&house, &credentials).await == 404).await;
    Device::prove(&house, &credentials).await;
}

/// What a device hears that asks for something else: 401 as long as nobody knows it, and then 404.
async fn refused_path(house: &House, credentials: &Credentials) -> u16 {
    request(house, credentials, &UPGRADE.replace("/v1/device", "/v1/other")).await.unwrap().status
}

#[tokio::test]
async fn what_was_heard_last_is_kept_when_the_registry_goes_away() {
    let (mut house, hooked) = hooked::house(|_| {}).await;
    let credentials = house.add_device("press-7").await;
    drop(Device::prove(&house, &credentials).await);
    // Before the copy is written by itself.
    leave(&hooked).await;
    eventually("it is written", async || in_copy(&house, "SELECT count(*) FROM records").await == 1).await;
    house.restart().await;
    Device::prove(&house, &credentials).await;
}

#[tokio::test]
async fn a_gateway_whose_reports_are_not_taken_serves_no_longer_than_receipts_count_it() {
    let (house, hooked) = hooked::house(|config| config.registry.max_staleness = seconds(1)).await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    hooked.fail_reports.store(true, Ordering::SeqCst);
    eventually("it is said", async || log().contains("what has taken effect cannot be confirmed")).await;
    device.hello().await;
    device.closed_with_bye(1001).await;
    assert!(is_unavailable(&refused(&house, &credentials).await));
    // Looked again and again, and said once.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(log().matches("every session ends").count(), 1);
    assert!(!log().contains("the registry answers again"));
    hooked.fail_reports.store(false, Ordering::SeqCst);
    eventually("it is taken again", async || log().contains("what takes effect is confirmed again")).await;
    Device::prove(&house, &credentials).await;
}

/// A copy of the registry's file takes its place, as a restored backup does.
#[tokio::test]
async fn a_registry_file_that_is_replaced_is_read_afresh() {
    let house = House::start().await;
    let [kept, later] = [house.add_device("press-7").await, house.add_device("press-9").await];
    let mut device = Device::prove(&house, &kept).await;
    eventually("presence", async || house.db.number("SELECT count(*) FROM presence").await == 1).await;
    let path = house.db.url.path().unwrap().to_owned();
    let backup = path.with_extension("bak");
    house.db.execute(&format!("VACUUM INTO '{}'", backup.display())).await.unwrap();
    let mut revoked = Device::prove(&house, &later).await;
    // In the backup the device is revoked: by whoever restores it.
    let mut file = sqlx::SqliteConnection::connect(&backup.display().to_string()).await.unwrap();
    sqlx::query("UPDATE devices SET status = 'revoked' WHERE id = 'press-9'")
        .execute(&mut file)
        .await
        .unwrap();
    file.close().await.unwrap();
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
    }
    std::fs::rename(&backup, &path).unwrap();
    assert_eq!(revoked.until_closed().await.0, Some(4003));
    let seq = device.publish("m1", json!(1)).await;
    device.acked(seq).await;
    let mut file = sqlx::SqliteConnection::connect(&path.display().to_string()).await.unwrap();
    let stored: i64 = sqlx::query_scalar("SELECT count(*) FROM messages").fetch_one(&mut file).await.unwrap();
    assert_eq!(stored, 1, "in the file that has the name now");
    // Gone altogether, it is away.
    std::fs::remove_file(&path).unwrap();
    eventually("it is away", async || log().contains("there is no database at")).await;
    device.publish("m2", json!(1)).await;
    assert_eq!(device.rejected().await.1, "unavailable");
}
