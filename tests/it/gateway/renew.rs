//! A device renews its certificate in its session: asked in time, signed by whoever has the key, and let in by the new one; what
//! is left to one that comes too late.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use doorward::config::CertificatesSection;
use doorward::issuer::{By, Issuer, Rules};
use doorward::registry::{Access, Act, connect};
use doorward_pki::Authority;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::hooked;
use crate::support::database::{Database, Sql};
use crate::support::device::{Device, Heard, problem_of, refused};
use crate::support::house::{Credentials, House, eventually, from_now, seconds, stamp};

/// An issuer on a host of its own, by the rights that it has in Postgres. It ends with the test.
struct Running {
    stop: CancellationToken,
    _running: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn issuer(house: &House) -> Running {
    issuer_by(house, CertificatesSection::default())
}

fn issuer_by(house: &House, rules: CertificatesSection) -> Running {
    issuer_asking(house, Box::new(move || rules.clone()))
}

fn issuer_asking(house: &House, rules: Rules) -> Running {
    let registry = match &house.db.sql {
        Sql::Sqlite(_) => Arc::clone(&house.db.registry),
        Sql::Postgres(_) => connect(&house.db.url_as("issuer"), Access::Existing).unwrap(),
    };
    let authority = Authority::load(&house.issuing.certificate_pem(), &house.issuing.key_pem()).unwrap();
    let authority = Arc::new(authority);
    let by = By { signer: Box::new(move || Ok((Arc::clone(&authority), None))), rules };
    let issuer = Issuer { registry, by: Arc::new(Mutex::new(by)), news: Arc::default() };
    let stop = CancellationToken::new();
    let running = issuer.run(stop.clone());
    Running { stop, _running: tokio::spawn(async move { running.await.unwrap() }) }
}

fn csr(name: &str, key: &KeyPair) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serialize_request(key).unwrap().pem().unwrap()
}

fn renew(name: &str, key: &KeyPair) -> Value {
    json!({ "op": "renew", "csr": csr(name, key) })
}

/// What a device has once it has stored its new pair.
fn renewed(credentials: &Credentials, certificate: &Value, key: &KeyPair) -> Credentials {
    let chain = certificate["chain"].as_str().unwrap();
    Credentials {
        chain: CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>().unwrap(),
        key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        ..credentials.clone()
    }
}

async fn wanted_by(house: &House, seconds: i64) {
    let sql = format!("UPDATE certificates SET rotate_by = '{}'", stamp(from_now(seconds)));
    house.db.execute(&sql).await.unwrap();
}

async fn a_device_that_is_asked_renews_and_comes_back_by_the_new_one(db: Database) {
    let house = House::on(db, |_| {}).await;
    let _issuer = issuer(&house);
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    wanted_by(&house, 86_400).await;
    let rotate = device.expect("rotate").await;
    assert_eq!(rotate["what"], "certificate");
    let key = KeyPair::generate().unwrap();
    let seq = device.say(renew("press-7", &key)).await;
    let certificate = device.expect("certificate").await;
    assert_eq!(certificate["ref"], seq);
    // The old one goes on in the meantime.
    device.hello().await;

    let new = renewed(&credentials, &certificate, &key);
    assert_eq!(new.chain.len(), 2, "the leaf and what stands above it");
    let leaf = doorward_pki::Leaf::parse(&new.chain[0]).unwrap();
    assert_eq!(certificate["expires"], leaf.not_after());
    let mut session = Device::prove(&house, &new).await;
    let closed = device.closed_with_bye(4009).await;
    assert_eq!(closed, json!(60));
    let superseded = "SELECT count(*) FROM certificates WHERE status = 'superseded'";
    eventually("the old one is superseded", async || house.db.number(superseded).await == 1).await;
    // In its grace it still opens the door, and its device is asked at once.
    session.ws.close(None).await.unwrap();
    let mut old = Device::connect(&house, &credentials).await;
    let seq = old.say(json!({ "op": "hello" })).await;
    assert!(matches!(old.next().await, Heard::Message(said) if said["op"] == "rotate"));
    old.acked(seq).await;
}

#[tokio::test]
async fn a_device_that_is_asked_renews_and_comes_back_by_the_new_one_on_sqlite() {
    a_device_that_is_asked_renews_and_comes_back_by_the_new_one(Database::sqlite().await).await;
}

#[tokio::test]
async fn a_device_that_is_asked_renews_and_comes_back_by_the_new_one_on_postgres() {
    a_device_that_is_asked_renews_and_comes_back_by_the_new_one(Database::postgres().await).await;
}

#[tokio::test]
async fn from_two_thirds_of_its_life_on_a_certificate_is_asked_for_each_in_its_own_time() {
    let house = House::start().await;
    // At five sixths all of them have been asked, at a half none has.
    for (name, (from, to), asked) in
        [("old", (-84, 16), true), ("young", (-50, 50), false), ("younger", (-65, 35), false)]
    {
        let credentials = house.certify(name, |params| {
            (params.not_before, params.not_after) = (from_now(from * 86_400), from_now(to * 86_400));
        });
        house.record(name, "default", &credentials).await;
        let mut device = Device::connect(&house, &credentials).await;
        let seq = device.say(json!({ "op": "hello" })).await;
        if asked {
            let by = device.expect("rotate").await["by"].as_i64().unwrap();
            assert!((by - from_now(to * 86_400).unix_timestamp()).abs() < 5, "{by}");
        }
        let ack = device.expect("ack").await;
        assert_eq!(ack["acks"], json!([[seq, seq]]));
    }
}

#[tokio::test]
async fn the_same_key_again_brings_the_same_chain() {
    let house = House::start().await;
    let _issuer = issuer(&house);
    let credentials = house.add_device("press-7").await;
    let key = KeyPair::generate().unwrap();
    let mut chains = Vec::new();
    for _ in 0..2 {
        // It was killed before it could store the answer.
        let mut device = Device::prove(&house, &credentials).await;
        device.say(renew("press-7", &key)).await;
        chains.push(device.expect("certificate").await["chain"].clone());
        device.ws.close(None).await.unwrap();
    }
    assert!(chains.iter().all(|chain| *chain == chains[0]));
    assert_eq!(house.db.number("SELECT count(*) FROM certificates").await, 2);
}

#[tokio::test]
async fn requests_that_are_none_of_the_devices_are_refused_in_words() {
    let house = House::with(|config| config.limits.strikes = 20).await;
    let _issuer = issuer(&house);
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    let key = KeyPair::generate().unwrap();
    let other = csr("press-8", &key);
    let weak = csr("press-7", &KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap());
    let long = format!("{}{}", "x".repeat(20_000), other);
    let forged = {
        let pem = csr("press-7", &key);
        let at = pem.len() / 2;
        let flipped = if pem.as_bytes()[at] == b'A' { "B" } else { "A" };
        format!("{}{flipped}{}", &pem[..at], &pem[at + 1..])
    };
    for (request, words) in [
        (other.as_str(), "press-8"),
        (weak.as_str(), "P-256"),
        (forged.as_str(), ""),
        (long.as_str(), "at most"),
        ("", "not a certificate signing request"),
        ("-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n", "not a certificate"),
    ] {
        let seq = device.say(json!({ "op": "renew", "csr": request })).await;
        let reject = device.expect("reject").await;
        assert_eq!((&reject["ref"], &reject["error"]), (&json!(seq), &json!("bad_message")), "{reject}");
        assert!(reject["detail"].as_str().unwrap().contains(words), "{words}: {reject}");
    }
    // The key of its present certificate: whoever has stolen that would go on with the new one.
    let PrivateKeyDer::Pkcs8(present) = &credentials.key else { panic!("PKCS#8") };
    let present = KeyPair::try_from(present).unwrap();
    device.say(renew("press-7", &present)).await;
    let reject = device.expect("reject").await;
    assert_eq!(reject["error"], "bad_message");
    assert!(reject["detail"].as_str().unwrap().contains("has had already"), "{reject}");
    assert_eq!(house.db.number("SELECT count(*) FROM certificates").await, 1);
    // And after all of that, one that is right.
    let mut device = Device::prove(&house, &credentials).await;
    device.say(renew("press-7", &key)).await;
    device.expect("certificate").await;
}

#[tokio::test]
async fn a_request_waits_for_its_issuer_in_the_session_and_beyond_it() {
    let house = House::start().await;
    let credentials = house.add_device("press-7").await;
    let key = KeyPair::generate().unwrap();
    let mut device = Device::prove(&house, &credentials).await;
    device.say(renew("press-7", &key)).await;
    let again = device.say(renew("press-7", &key)).await;
    let (reference, error, retry_after) = device.rejected().await;
    assert_eq!((reference, error.as_str()), (json!(again), "rate_limited"));
    assert!(retry_after.is_u64());
    let waiting = "SELECT count(*) FROM requests WHERE state = 'waiting'";
    eventually("the request is filed", async || house.db.number(waiting).await == 1).await;
    let running = issuer(&house);
    device.expect("certificate").await;
    drop(running);

    let mut other = Device::prove(&house, &house.add_device("press-8").await).await;
    let key = KeyPair::generate().unwrap();
    other.say(renew("press-8", &key)).await;
    eventually("the request is filed", async || house.db.number(waiting).await == 1).await;
    other.ws.close(None).await.unwrap();
    let _running = issuer(&house);
    eventually("it was answered", async || house.db.number(waiting).await == 0).await;
}

#[tokio::test]
async fn a_device_that_is_suspended_meanwhile_gets_nothing() {
    let house = House::start().await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    device.say(renew("press-7", &KeyPair::generate().unwrap())).await;
    let waiting = "SELECT count(*) FROM requests WHERE state = 'waiting'";
    eventually("the request is filed", async || house.db.number(waiting).await == 1).await;
    house.db.registry.set_status(&credentials.id, Act::Suspend, Some("x")).await.unwrap();
    device.closed_with_bye(4004).await;
    let _issuer = issuer(&house);
    eventually("it was refused", async || house.db.number(waiting).await == 0).await;
    assert_eq!(house.db.number("SELECT count(*) FROM certificates").await, 1);
}

#[tokio::test]
async fn without_its_registry_a_gateway_says_when_to_ask_again() {
    let (house, hooked) = hooked::house(|_| {}).await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    hooked.away.store(true, Ordering::SeqCst);
    device.say(renew("press-7", &KeyPair::generate().unwrap())).await;
    let (_, error, retry_after) = device.rejected().await;
    assert_eq!((error.as_str(), retry_after.is_u64()), ("unavailable", true));
}

/// A device whose certificate ended `ago` seconds ago.
async fn expired(house: &House, ago: i64) -> Credentials {
    let credentials = house.certify("drawer", |params| {
        (params.not_before, params.not_after) = (from_now(-90 * 86_400), from_now(-ago));
    });
    house.record("drawer", "default", &credentials).await;
    credentials
}

#[tokio::test]
async fn the_issuer_beside_a_gateway_goes_by_what_is_configured_now() {
    let house = House::start().await;
    let gateway = Arc::clone(&house.gateway);
    let _issuer = issuer_asking(&house, Box::new(move || gateway.certificate_rules()));
    let credentials = expired(&house, 86_400).await;
    assert_eq!(problem_of(&refused(&house, &credentials).await), "certificate-expired");
    house.write_config(|config| {
        config.certificates.renew_after_expiry = seconds(30 * 86_400);
        config.certificates.lifetime = seconds(40 * 86_400);
    });
    let reloaded = house.gateway.reload().await.unwrap();
    assert_eq!(reloaded.changed, ["certificates.lifetime", "certificates.renew_after_expiry"]);
    let mut device = Device::connect(&house, &credentials).await;
    let seq = device.say(json!({ "op": "hello" })).await;
    device.expect("rotate").await;
    device.acked(seq).await;
    let key = KeyPair::generate().unwrap();
    device.say(renew("drawer", &key)).await;
    let certificate = device.expect("certificate").await;
    let new = renewed(&credentials, &certificate, &key);
    let (_, leaf) = x509_parser::parse_x509_certificate(&new.chain[0]).unwrap();
    let ends = leaf.validity().not_after.timestamp() - from_now(40 * 86_400).unix_timestamp();
    assert!(ends.abs() < 60, "{ends}");
    Device::prove(&house, &new).await;
}

async fn a_late_device_renews_and_does_nothing_else(db: Database) {
    let house = House::on(db, |config| config.certificates.renew_after_expiry = seconds(30 * 86_400)).await;
    let rules =
        CertificatesSection { renew_after_expiry: seconds(30 * 86_400), ..CertificatesSection::default() };
    let _issuer = issuer_by(&house, rules);
    let credentials = expired(&house, 86_400).await;
    let mut device = Device::connect(&house, &credentials).await;
    let seq = device.say(json!({ "op": "hello" })).await;
    device.expect("rotate").await;
    device.acked(seq).await;
    let publish = device.to_publish("m1", json!(1));
    for refused in [publish, json!({ "op": "subscribe", "ch": "devices/drawer/#" })] {
        device.say(refused).await;
        let (_, error, _) = device.rejected().await;
        assert_eq!(error, "forbidden");
    }
    let key = KeyPair::generate().unwrap();
    device.say(renew("drawer", &key)).await;
    let certificate = device.expect("certificate").await;
    let mut back = Device::prove(&house, &renewed(&credentials, &certificate, &key)).await;
    let seq = back.publish("m2", json!(2)).await;
    back.acked(seq).await;
    assert_eq!(house.stored_as("m1").await + 2 * house.stored_as("m2").await, 2);
    let superseded = "SELECT count(*) FROM certificates WHERE status = 'superseded'";
    eventually("the old one is superseded", async || house.db.number(superseded).await == 1).await;
}

#[tokio::test]
async fn a_late_device_renews_and_does_nothing_else_on_sqlite() {
    a_late_device_renews_and_does_nothing_else(Database::sqlite().await).await;
}

#[tokio::test]
async fn a_late_device_renews_and_does_nothing_else_on_postgres() {
    a_late_device_renews_and_does_nothing_else(Database::postgres().await).await;
}

#[tokio::test]
async fn how_late_is_said_in_the_refusal_and_is_a_fleets_to_say() {
    let house = House::start().await;
    let credentials = expired(&house, 86_400).await;
    let fleet = doorward_proto::ids::FleetId::new("default").unwrap();
    let limits = async |text: &str| {
        house.db.registry.set_limits(&fleet, text).await.unwrap();
        house.followed().await;
    };
    let answer = refused(&house, &credentials).await;
    assert_eq!((answer.status, problem_of(&answer)), (403, "certificate-expired".to_owned()));
    let detail = answer.problem()["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains(&stamp(from_now(-86_400))[..10]), "{detail}");
    limits(r#"{"renew_after_expiry":90000}"#).await;
    let mut device = Device::connect(&house, &credentials).await;
    device.say(json!({ "op": "hello" })).await;
    device.expect("rotate").await;
    // Revoked or suspended, it may not even that.
    house.db.registry.set_status(&credentials.id, Act::Suspend, Some("x")).await.unwrap();
    let (closed, _) = device.until_closed().await;
    assert_eq!(closed, Some(4004));
    let answer = refused(&house, &credentials).await;
    assert_eq!(problem_of(&answer), "device-suspended");
    house.db.registry.set_status(&credentials.id, Act::Resume, None).await.unwrap();
    limits(r#"{"renew_after_expiry":80000}"#).await;
    let answer = refused(&house, &credentials).await;
    assert_eq!(problem_of(&answer), "certificate-expired");
    let detail = answer.problem()["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("could renew itself"), "{detail}");
}

#[tokio::test]
async fn a_certificate_that_ends_in_its_session_closes_it_though_it_may_renew_late() {
    let house = House::with(|config| config.certificates.renew_after_expiry = seconds(86_400)).await;
    let credentials = house.certify("press-7", |params| params.not_after = from_now(2));
    house.record("press-7", "default", &credentials).await;
    let mut device = Device::connect(&house, &credentials).await;
    let seq = device.say(json!({ "op": "hello" })).await;
    device.expect("rotate").await;
    device.acked(seq).await;
    device.closed_with_bye(4001).await;
    let mut late = Device::connect(&house, &credentials).await;
    tokio::time::timeout(Duration::from_secs(10), late.say(json!({ "op": "hello" }))).await.unwrap();
    late.expect("rotate").await;
}
