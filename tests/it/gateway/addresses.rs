//! What an address may do before anybody behind it is known.

use std::sync::Arc;
use std::time::Duration;

use doorward::registry::Act;
use rustls::RootCertStore;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::device::{Device, TLS13, UPGRADE, ask, dial, problem_of, refused, secure, tcp_from, tls};
use crate::support::house::{Credentials, House, eventually, from_now, log, seconds, within};

/// A stranger's address, and one of the same network; others are elsewhere.
pub(super) const STRANGER: [u8; 4] = [127, 9, 0, 1];
pub(super) const NEIGHBOUR: [u8; 4] = [127, 9, 0, 2];

/// Waits for a close without a word.
async fn closed_without_a_word(mut tcp: TcpStream) {
    let mut said = Vec::new();
    // A reset is an end, too.
    let _ = within("the close", tcp.read_to_end(&mut said)).await;
    assert!(said.is_empty(), "{said:?}");
}

/// A handshake without a certificate, from an address: TLS refuses it.
pub(super) async fn fail_from(house: &House, source: [u8; 4]) {
    let tcp = tcp_from(house, source).await.unwrap();
    let config = Arc::new(tls(house, None, TLS13));
    if let Ok(mut stream) = secure(tcp, config).await {
        let mut said = Vec::new();
        let _ = within("the alert", stream.read_to_end(&mut said)).await;
    }
}

pub(super) async fn proves_from(house: &House, source: [u8; 4], credentials: &Credentials) -> Device {
    let tcp = tcp_from(house, source).await.unwrap();
    Device::prove_on(house, tcp, credentials).await.unwrap()
}

pub(super) fn closed_for(house: &House, label: &str) -> u64 {
    house.gateway.counters().door().closed_for(label)
}

#[tokio::test]
async fn an_address_over_its_rate_waits_then_is_closed_and_others_notice_nothing() {
    let house = House::with(|config| (config.addresses.rate, config.addresses.burst) = (2, 5)).await;
    let credentials = house.add_device("press-7").await;
    let mut honest = Device::prove(&house, &credentials).await;
    let mut flood = Vec::new();
    for _ in 0..40 {
        flood.push(tcp_from(&house, STRANGER).await.unwrap());
    }
    // Five at once, twenty within the ten seconds that a turn may be away; the last of them come too late.
    eventually("the rest is closed", async || closed_for(&house, "address_rate") >= 5).await;
    assert!(house.gateway.counters().door().slowed() >= 10);
    closed_without_a_word(flood.pop().unwrap()).await;
    let seq = honest.publish("m1", serde_json::json!(1)).await;
    honest.acked(seq).await;
    Device::prove(&house, &credentials).await;
    assert_eq!(closed_for(&house, "network_rate"), 0);
    // Whose turn has come is let in.
    drop(flood);
    let other = house.add_device("press-8").await;
    eventually("a turn", async || {
        let tcp = tcp_from(&house, STRANGER).await.unwrap();
        Device::prove_on(&house, tcp, &other).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn many_addresses_of_one_network_have_its_rate_together() {
    let house =
        House::with(|config| (config.addresses.network_rate, config.addresses.network_burst) = (1, 20)).await;
    let mut flood = Vec::new();
    for n in 1..=100 {
        flood.push(tcp_from(&house, [127, 9, 0, n]).await.unwrap());
    }
    eventually("the rest is closed", async || closed_for(&house, "network_rate") >= 60).await;
    assert_eq!(closed_for(&house, "address_rate"), 0);
    let credentials = house.add_device("press-7").await;
    proves_from(&house, [127, 9, 1, 1], &credentials).await;
}

#[tokio::test]
async fn handshakes_of_one_address_under_way_have_a_limit() {
    let house = House::with(|config| {
        (config.addresses.handshakes, config.addresses.network_handshakes) = (3, 5);
    })
    .await;
    let mut silent = Vec::new();
    for source in [STRANGER; 4].into_iter().chain([NEIGHBOUR; 3]) {
        silent.push(tcp_from(&house, source).await.unwrap());
    }
    eventually("both limits", async || {
        closed_for(&house, "address_handshakes") == 1 && closed_for(&house, "network_handshakes") == 1
    })
    .await;
    let credentials = house.add_device("press-7").await;
    // A session is no handshake: as many as there are devices come from one address.
    let mut here = Vec::new();
    for n in 0..5 {
        here.push(Device::prove(&house, &house.add_device(&format!("d{n}")).await).await);
    }
    // Who goes away makes room.
    drop(silent);
    eventually("room", async || {
        let tcp = tcp_from(&house, STRANGER).await.unwrap();
        Device::prove_on(&house, tcp, &credentials).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn who_fails_again_and_again_is_blocked_for_a_time_that_ends_by_itself() {
    let house = House::with(|config| {
        (config.addresses.failures, config.addresses.block) = (4, seconds(2));
        config.addresses.failure_window = seconds(60);
    })
    .await;
    let door = || house.gateway.counters().door();
    for _ in 0..4 {
        assert_eq!(door().blocks(), 0);
        fail_from(&house, STRANGER).await;
    }
    eventually("the block", async || door().blocks() == 1).await;
    assert_eq!(door().failures(), 4);
    assert!(door().slowed() > 0, "it was slowed down before");
    closed_without_a_word(tcp_from(&house, STRANGER).await.unwrap()).await;
    assert!(closed_for(&house, "blocked") >= 1);
    assert!(log().contains("address blocked") && log().contains("address=127.9.0.1 seconds=2"));
    let credentials = house.add_device("press-7").await;
    proves_from(&house, NEIGHBOUR, &credentials).await;
    eventually("the end of the block", async || {
        let tcp = tcp_from(&house, STRANGER).await.unwrap();
        Device::prove_on(&house, tcp, &credentials).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_site_with_proven_sessions_is_slowed_down_and_never_blocked() {
    let house = House::with(|config| config.addresses.failures = 4).await;
    let (first, second) = (house.add_device("press-7").await, house.add_device("press-8").await);
    let mut honest = proves_from(&house, STRANGER, &first).await;
    let failing = (0..12).map(|_| fail_from(&house, STRANGER));
    futures_util::future::join_all(failing).await;
    let door = house.gateway.counters().door();
    eventually("all have failed", async || door.failures() == 12).await;
    assert_eq!(door.blocks(), 0);
    let slowed = door.slowed();
    proves_from(&house, STRANGER, &second).await;
    assert!(door.slowed() > slowed, "it waited for its turn");
    let seq = honest.publish("m1", serde_json::json!(1)).await;
    honest.acked(seq).await;
}

#[tokio::test]
async fn a_block_is_lifted_by_a_proof_and_by_what_is_configured_anew() {
    let house = House::with(|config| config.addresses.failures = 4).await;
    let credentials = house.add_device("press-7").await;
    let config = Arc::new(tls(&house, Some(&credentials), TLS13));
    let fail = async || {
        futures_util::future::join_all((0..4).map(|_| fail_from(&house, STRANGER))).await;
    };
    let door = house.gateway.counters().door();
    // Under way when its address was blocked, and honest.
    let under_way = tcp_from(&house, STRANGER).await.unwrap();
    fail().await;
    eventually("the block", async || door.blocks() == 1).await;
    closed_without_a_word(tcp_from(&house, STRANGER).await.unwrap()).await;
    drop(Device::prove_on(&house, under_way, &credentials).await.unwrap());
    let tcp = tcp_from(&house, STRANGER).await.unwrap();
    secure(tcp, Arc::clone(&config)).await.unwrap();

    futures_util::future::join_all((0..4).map(|_| fail_from(&house, NEIGHBOUR))).await;
    eventually("the other block", async || door.blocks() == 2).await;
    closed_without_a_word(tcp_from(&house, NEIGHBOUR).await.unwrap()).await;
    house.write_config(|config| config.tls.device_cas.push("pki/root.crt".into()));
    assert!(!house.gateway.reload().await.unwrap().changed.is_empty());
    let tcp = tcp_from(&house, NEIGHBOUR).await.unwrap();
    secure(tcp, config).await.unwrap();
}

#[tokio::test]
async fn strangers_and_the_silent_count_as_failures() {
    let house = House::with(|config| {
        config.limits.hello_timeout = seconds(1);
        config.limits.request_timeout = seconds(1);
    })
    .await;
    let door = house.gateway.counters().door();
    let counts = async |count: u64, what: &str| {
        eventually(what, async || door.failures() == count).await;
    };
    fail_from(&house, STRANGER).await;
    counts(1, "no certificate").await;
    let mut tcp = tcp_from(&house, STRANGER).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    counts(2, "no TLS").await;
    let silent = tcp_from(&house, STRANGER).await.unwrap();
    counts(3, "no hello in time").await;
    drop(silent);
    let unknown = house.certify("nobody", |_| {});
    assert_eq!(problem_of(&refused(&house, &unknown).await), "certificate-unknown");
    counts(4, "a certificate that nobody recorded").await;
    let known = house.add_device("press-7").await;
    let config = Arc::new(tls(&house, Some(&known), TLS13));
    let mut stream = dial(&house, Arc::clone(&config)).await.unwrap();
    assert_eq!(ask(&mut stream, "NONSENSE\r\n\r\n").await.unwrap().status, 400);
    let mut stream = dial(&house, config).await.unwrap();
    stream.write_all(b"GET /v1/device HTTP/1.1\r\n").await.unwrap();
    counts(5, "no request in time, and nonsense is none").await;
    assert_eq!(house.gateway.counters().totals().handshake_timeouts, 2);
}

#[tokio::test]
async fn nothing_that_an_honest_fleet_does_is_a_failure() {
    let house = House::start().await;
    // It connects and goes away: a look whether the port is open, a client that has lost patience.
    for _ in 0..5 {
        drop(TcpStream::connect(house.address).await.unwrap());
        let mut tcp = TcpStream::connect(house.address).await.unwrap();
        tcp.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
    }
    // It does not trust us: our certificate has ended, or its CA is not the device's.
    let credentials = house.add_device("press-7").await;
    let mut config = tls(&house, Some(&credentials), TLS13);
    let nobody = rustls::ClientConfig::builder_with_provider(Arc::clone(config.crypto_provider()))
        .with_protocol_versions(TLS13)
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_client_cert_resolver(Arc::clone(&config.client_auth_cert_resolver));
    config.alpn_protocols.clear();
    for _ in 0..5 {
        dial(&house, Arc::new(nobody.clone())).await.unwrap_err();
    }
    // A clock is wrong, and nobody knows whose.
    let early = house.certify("early", |params| params.not_before = from_now(3600));
    // What the gateway knows a device by is told to it in words.
    let expired = house.certify("expired", |params| params.not_after = from_now(-10));
    house.record("expired", "default", &expired).await;
    let revoked = house.add_device("revoked").await;
    house.db.registry.set_status(&revoked.id, Act::Revoke, None).await.unwrap();
    for _ in 0..5 {
        let mut stream = dial(&house, Arc::new(tls(&house, Some(&early), TLS13))).await.unwrap();
        let _ = within("the alert", stream.read_u8()).await;
        assert_eq!(refused(&house, &expired).await.status, 403);
        assert_eq!(refused(&house, &revoked).await.status, 403);
    }
    let other_path = UPGRADE.replace("/v1/device", "/v2/device");
    let mut stream = dial(&house, Arc::new(tls(&house, Some(&credentials), TLS13))).await.unwrap();
    assert_eq!(ask(&mut stream, &other_path).await.unwrap().status, 404);
    let totals = house.gateway.counters().totals();
    assert!(totals.tls_refused >= 10 && totals.refused >= 11, "{totals:?}");
    assert_eq!(house.gateway.counters().door().failures(), 0);
}

#[tokio::test]
async fn the_last_places_are_for_addresses_that_have_proven_themselves() {
    let house = House::with(|config| config.limits.connections = 32).await;
    let (first, second) = (house.add_device("press-7").await, house.add_device("press-8").await);
    let _first = Device::prove(&house, &first).await;
    let mut strangers = Vec::new();
    for n in 1..=40 {
        strangers.push(tcp_from(&house, [127, 9, n, 1]).await.unwrap());
    }
    eventually("the strangers' places are taken", async || closed_for(&house, "reserved") == 11).await;
    let _second = Device::prove(&house, &second).await;
    assert_eq!(house.gateway.counters().totals().over_limit, 0);
}

#[tokio::test]
async fn as_many_may_wait_as_are_configured_and_no_more() {
    let house = House::with(|config| {
        (config.addresses.rate, config.addresses.burst, config.addresses.waiting) = (1, 1, 3);
    })
    .await;
    let mut all = Vec::new();
    // Each of an address and a network of its own: one that goes on, and one that waits, as long as there is room.
    for n in 0..5 {
        for _ in 0..2 {
            all.push(tcp_from(&house, [127, 9, n, 1]).await.unwrap());
        }
    }
    eventually("the rest is closed", async || closed_for(&house, "waiting") == 2).await;
    assert_eq!(house.gateway.counters().door().slowed(), 3);
    // Whoever waits holds no place.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let credentials = house.add_device("press-7").await;
    Device::prove(&house, &credentials).await;
}
