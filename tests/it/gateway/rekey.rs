//! A new HMAC key reaches its device in its session, and holds once the device has signed with it; a new certificate takes the
//! older one's place once a session by it has been proven.

use std::sync::atomic::Ordering;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use doorward::entropy;
use doorward::registry::{Beat, Credential, Lease, NewKey, NewRotation, Progress, Renewal};
use doorward_pki::Fingerprint;
use doorward_proto::ids::KeyVersion;
use doorward_proto::key::Key;
use serde_json::{Value, json};

use super::hooked;
use crate::support::database::Database;
use crate::support::device::{Device, Heard, UPGRADE, problem_of, request};
use crate::support::house::{Credentials, House, eventually, log, stamp};

const GRACE: Duration = Duration::from_secs(3600);

async fn rotate(house: &House, credentials: &Credentials, version: u32, grace: Duration) -> [u8; 32] {
    let bytes: [u8; 32] = entropy::random().unwrap();
    let version = KeyVersion::from_number(version).unwrap();
    let sealed = house.seal(&credentials.id, version, &bytes);
    house.db.registry.add_key(&credentials.id, &NewKey { version, sealed, grace }).await.unwrap();
    bytes
}

/// Takes the key from a `rekey`, as a device does.
fn take(device: &mut Device, rekey: &Value) {
    let bytes: [u8; 32] = URL_SAFE_NO_PAD.decode(rekey["key"].as_str().unwrap()).unwrap().try_into().unwrap();
    let version = KeyVersion::from_number(rekey["version"].as_u64().unwrap().try_into().unwrap()).unwrap();
    device.hold_key(Key::new(version, &bytes), &bytes);
}

async fn state(house: &House, version: u32) -> Option<String> {
    for state in ["pending", "active", "grace", "retired"] {
        let sql = format!("SELECT count(*) FROM hmac_keys WHERE version = {version} AND state = '{state}'");
        if house.db.number(&sql).await == 1 {
            return Some(state.to_owned());
        }
    }
    None
}

async fn a_key_is_rotated_in_a_live_session(db: Database) {
    let house = House::on(db, |_| {}).await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    let bytes = rotate(&house, &credentials, 2, GRACE).await;
    let rekey = device.expect("rekey").await;
    assert_eq!((&rekey["version"], &rekey["grace"]), (&json!(2), &json!(3600)));
    assert_eq!(rekey["key"], URL_SAFE_NO_PAD.encode(bytes));
    // Both hold, and nothing begins before the device has said that it has it.
    device.hello().await;
    assert_eq!(
        (state(&house, 1).await, state(&house, 2).await),
        (Some("active".into()), Some("pending".into()))
    );

    take(&mut device, &rekey);
    let seq = device.publish("m1", json!(1)).await;
    // From the confirmation on the gateway signs with it, and says so; the ack comes before or after.
    let (mut acked, mut said) = (false, false);
    while !acked || !said {
        match device.next().await {
            Heard::Message(m) if m["op"] == "ack" => {
                assert_eq!(m["acks"], json!([[seq, seq]]));
                acked = true;
            }
            Heard::Message(m) if m["op"] == "limits" => {
                assert_eq!(m["key"], 2);
                device.use_key(device.signer.clone(), &bytes);
                said = true;
            }
            other => panic!("{other:?}"),
        }
    }
    eventually("the new key is active", async || state(&house, 2).await.as_deref() == Some("active")).await;
    assert_eq!(state(&house, 1).await.as_deref(), Some("grace"));
    let detail = house.db.registry.device(&credentials.id).await.unwrap().unwrap();
    let left = detail.keys[0].grace_until.unwrap() - doorward::clock::utc();
    assert!((3500..=3600).contains(&left.whole_seconds()), "{left}");
    device.hello().await;
    // The next session brings none; the old key still holds.
    let mut old =
        Device::upgrade(&house, &credentials, &UPGRADE.replace("/v1/device", "/v1/device?key=1")).await;
    old.expect("welcome").await;
    old.hello().await;
    old.hello().await;
    let audit =
        "SELECT count(*) FROM audit WHERE body LIKE '%\"key.confirm\"%' OR body LIKE '%\"key.supersede\"%'";
    assert_eq!(house.db.number(audit).await, 2);
}

#[tokio::test]
async fn a_key_is_rotated_in_a_live_session_on_sqlite() {
    a_key_is_rotated_in_a_live_session(Database::sqlite().await).await;
}

#[tokio::test]
async fn a_key_is_rotated_in_a_live_session_on_postgres() {
    a_key_is_rotated_in_a_live_session(Database::postgres().await).await;
}

async fn a_leaked_key_is_worth_nothing_at_once(db: Database) {
    let house = House::on(db, |_| {}).await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    rotate(&house, &credentials, 2, GRACE).await;
    device.expect("rekey").await;
    let bytes = rotate(&house, &credentials, 3, Duration::ZERO).await;
    device.closed_with_bye(4005).await;
    for version in [1, 2, 3] {
        let expected = if version == 3 { "active" } else { "retired" };
        assert_eq!(state(&house, version).await.as_deref(), Some(expected), "{version}");
        let asked = UPGRADE.replace("/v1/device", &format!("/v1/device?key={version}"));
        if version < 3 {
            let answer = request(&house, &credentials, &asked).await.unwrap();
            assert_eq!((answer.status, problem_of(&answer)), (401, "key-unknown".to_owned()));
        }
    }
    let mut credentials = credentials;
    credentials.hmac = bytes;
    let mut device = Device::upgrade(&house, &credentials, UPGRADE).await;
    device.use_key(Key::new(KeyVersion::from_number(3).unwrap(), &bytes), &bytes);
    device.expect("welcome").await;
    device.hello().await;
}

#[tokio::test]
async fn a_leaked_key_is_worth_nothing_at_once_on_sqlite() {
    a_leaked_key_is_worth_nothing_at_once(Database::sqlite().await).await;
}

#[tokio::test]
async fn a_leaked_key_is_worth_nothing_at_once_on_postgres() {
    a_leaked_key_is_worth_nothing_at_once(Database::postgres().await).await;
}

#[tokio::test]
async fn a_device_that_was_away_or_lost_it_is_given_it_again() {
    let house = House::start().await;
    let credentials = house.add_device("press-7").await;
    rotate(&house, &credentials, 2, GRACE).await;
    // Three sessions, and none of them signs with it.
    for _ in 0..3 {
        let mut device = Device::connect(&house, &credentials).await;
        let seq = device.say(json!({ "op": "hello" })).await;
        assert_eq!(device.expect("rekey").await["version"], 2);
        device.acked(seq).await;
    }
    assert_eq!(state(&house, 2).await.as_deref(), Some("pending"));
}

/// What a driver sees of the rotation.
async fn progress(house: &House, id: i64) -> Progress {
    match house.db.registry.rotations().beat(id, "d1", Duration::from_secs(30)).await.unwrap() {
        Beat::Running(progress) => progress,
        other => panic!("{other:?}"),
    }
}

async fn a_device_that_stores_it_wrongly_and_is_locked_out_fails_its_rotation(db: Database) {
    let house = House::on(db, |_| {}).await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    let rotations = house.db.registry.rotations();
    let new = NewRotation {
        what: Credential::Key,
        fleet: house.db.registry.device(&credentials.id).await.unwrap().unwrap().summary.fleet,
        canary: "0".parse().unwrap(),
        wave: "100%".parse().unwrap(),
        max_failures: 0,
        patience: GRACE,
        grace: GRACE,
    };
    let connected = "SELECT count(*) FROM presence WHERE session IS NOT NULL";
    eventually("it is in the registry", async || house.db.number(connected).await == 1).await;
    let id = rotations.start(&new).await.unwrap();
    assert_eq!(rotations.take(id, "d1", GRACE).await.unwrap(), Lease::Taken);
    let version = KeyVersion::from_number(2).unwrap();
    let sealed = house.seal(&credentials.id, version, &entropy::random::<32>().unwrap());
    let key = NewKey { version, sealed, grace: GRACE };
    assert!(rotations.ask_for_keys(id, "d1", &[(credentials.id.clone(), Some(key))]).await.unwrap());
    device.expect("rekey").await;
    let wrong = [7; 32];
    device.hold_key(Key::new(version, &wrong), &wrong);
    for _ in 0..5 {
        device.publish("m1", json!(1)).await;
    }
    assert_eq!(device.until_closed().await.0, Some(4008));
    eventually("its session is over", async || house.db.number(connected).await == 0).await;
    let now = progress(&house, id).await;
    assert_eq!((now.counts.asked, now.undecided), (1, 1), "nobody else is asked meanwhile");
    let ago = stamp(doorward::clock::utc() - 2 * GRACE);
    house.db.execute(&format!("UPDATE rotation_devices SET came = '{ago}'")).await.unwrap();
    assert_eq!(progress(&house, id).await.counts.failed, 1);
}

#[tokio::test]
async fn a_device_that_stores_it_wrongly_and_is_locked_out_fails_its_rotation_on_sqlite() {
    a_device_that_stores_it_wrongly_and_is_locked_out_fails_its_rotation(Database::sqlite().await).await;
}

#[tokio::test]
async fn a_device_that_stores_it_wrongly_and_is_locked_out_fails_its_rotation_on_postgres() {
    a_device_that_stores_it_wrongly_and_is_locked_out_fails_its_rotation(Database::postgres().await).await;
}

#[tokio::test]
async fn what_the_registry_could_not_be_told_is_told_later() {
    let (house, hooked) = hooked::house(|_| {}).await;
    let credentials = house.add_device("press-7").await;
    rotate(&house, &credentials, 2, GRACE).await;
    let mut device = Device::connect(&house, &credentials).await;
    let seq = device.say(json!({ "op": "hello" })).await;
    let rekey = device.expect("rekey").await;
    device.acked(seq).await;
    hooked.away.store(true, Ordering::SeqCst);
    eventually("it is away", async || log().contains("the registry does not answer")).await;
    take(&mut device, &rekey);
    device.hello().await;
    assert_eq!(state(&house, 2).await.as_deref(), Some("pending"));
    hooked.away.store(false, Ordering::SeqCst);
    eventually("the new key is active", async || state(&house, 2).await.as_deref() == Some("active")).await;
}

/// A new certificate for the device, renewed from its old one.
async fn renew(house: &House, old: &Credentials, grace: Duration) -> Credentials {
    let mut new = house.certify(old.id.as_str(), |_| {});
    new.hmac = old.hmac;
    let renewal = Renewal { from: Some(Fingerprint::of(&old.chain[0])), grace };
    house.db.registry.add_certificate(&old.id, &house.row_of(&new), &renewal).await.unwrap();
    new
}

async fn certificate_is(house: &House, credentials: &Credentials, status: &str) -> bool {
    let fingerprint = Fingerprint::of(&credentials.chain[0]);
    let sql = format!(
        "SELECT count(*) FROM certificates WHERE fingerprint = '{fingerprint}' AND status = '{status}'"
    );
    house.db.number(&sql).await == 1
}

async fn a_certificate_takes_the_place_of_the_one_it_was_renewed_from(db: Database) {
    let house = House::on(db, |_| {}).await;
    let first = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &first).await;
    let second = renew(&house, &first, GRACE).await;
    // Both hold, for as long as the device may need; a session that is not proven begins nothing.
    device.hello().await;
    drop(Device::connect(&house, &second).await);
    drop(Device::prove(&house, &first).await);
    assert!(certificate_is(&house, &first, "active").await);
    let mut device = Device::prove(&house, &second).await;
    eventually("the grace begins", async || certificate_is(&house, &first, "superseded").await).await;
    let detail = house.db.registry.device(&first.id).await.unwrap().unwrap();
    let old = detail.certificates.iter().find(|c| c.fingerprint == Fingerprint::of(&first.chain[0])).unwrap();
    let left = old.valid_until.unwrap() - doorward::clock::utc();
    assert!((3500..=3600).contains(&left.whole_seconds()), "{left}");
    device.hello().await;
    // In its grace it still opens the door, and its device is asked to renew.
    let mut old = Device::connect(&house, &first).await;
    old.say(json!({ "op": "hello" })).await;
    old.expect("rotate").await;

    // Two renewals, of which one was never used: the newest one's proof supersedes all before it.
    let third = renew(&house, &second, GRACE).await;
    let fourth = renew(&house, &third, GRACE).await;
    Device::prove(&house, &fourth).await;
    for older in [&second, &third] {
        eventually("it is superseded", async || certificate_is(&house, older, "superseded").await).await;
    }
    assert!(certificate_is(&house, &fourth, "active").await);
}

#[tokio::test]
async fn a_certificate_takes_the_place_of_the_one_it_was_renewed_from_on_sqlite() {
    a_certificate_takes_the_place_of_the_one_it_was_renewed_from(Database::sqlite().await).await;
}

#[tokio::test]
async fn a_certificate_takes_the_place_of_the_one_it_was_renewed_from_on_postgres() {
    a_certificate_takes_the_place_of_the_one_it_was_renewed_from(Database::postgres().await).await;
}

async fn without_grace_the_old_certificate_ends_its_session(db: Database) {
    let house = House::on(db, |_| {}).await;
    let old = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &old).await;
    let new = renew(&house, &old, Duration::ZERO).await;
    device.closed_with_bye(4004).await;
    let answer = request(&house, &old, UPGRADE).await.unwrap();
    assert_eq!((answer.status, problem_of(&answer)), (403, "certificate-superseded".to_owned()));
    Device::prove(&house, &new).await;
    assert!(certificate_is(&house, &new, "active").await);
}

#[tokio::test]
async fn without_grace_the_old_certificate_ends_its_session_on_sqlite() {
    without_grace_the_old_certificate_ends_its_session(Database::sqlite().await).await;
}

#[tokio::test]
async fn without_grace_the_old_certificate_ends_its_session_on_postgres() {
    without_grace_the_old_certificate_ends_its_session(Database::postgres().await).await;
}
