//! Who is known, also to the next run; and what one address may take of what all have together.

use std::sync::Arc;

use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::addresses::{NEIGHBOUR, STRANGER, closed_for, fail_from, proves_from};
use crate::support::device::{Device, TLS13, tcp_from, tls};
use crate::support::house::{House, eventually, log, seconds};

/// Says its hello, and nothing more.
async fn say_hello(mut tcp: TcpStream, house: &House) -> TcpStream {
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = ClientConnection::new(Arc::new(tls(house, None, TLS13)), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    tcp.write_all(&hello).await.unwrap();
    tcp
}

#[tokio::test]
async fn no_network_takes_the_whole_room_where_turns_are_waited_for() {
    let house = House::with(|config| {
        (config.addresses.rate, config.addresses.burst, config.addresses.waiting) = (5, 1, 64);
    })
    .await;
    let door = || house.gateway.counters().door();
    let mut all = Vec::new();
    // An eighth of the chairs is an address's that nobody knows, a quarter its network's.
    for source in [[127, 9, 1, 1], [127, 9, 1, 2], [127, 9, 1, 3]] {
        for _ in 0..30 {
            all.push(tcp_from(&house, source).await.unwrap());
        }
    }
    eventually("the rest is closed", async || closed_for(&house, "address_waiting") >= 30).await;
    // So another one still finds one.
    let slowed = door().slowed();
    for _ in 0..2 {
        all.push(tcp_from(&house, [127, 9, 2, 1]).await.unwrap());
    }
    eventually("a chair", async || door().slowed() > slowed).await;
    assert_eq!(closed_for(&house, "waiting"), 0);
}

#[tokio::test]
async fn who_is_behind_a_known_address_does_not_take_all_that_is_kept_for_known_ones() {
    let house = House::with(|config| config.limits.connections = 64).await;
    let (first, second) = (house.add_device("press-7").await, house.add_device("press-8").await);
    let mut sites =
        [proves_from(&house, STRANGER, &first).await, proves_from(&house, [127, 9, 1, 1], &second).await];
    let mut all = Vec::new();
    // Sixty for everybody, of which two are taken; of the four behind them one address holds two.
    for _ in 0..70 {
        all.push(tcp_from(&house, STRANGER).await.unwrap());
    }
    eventually("the rest is closed", async || closed_for(&house, "address_reserved") == 10).await;
    assert_eq!(house.gateway.counters().totals().over_limit, 0);
    let third = house.add_device("press-9").await;
    let _third = proves_from(&house, [127, 9, 1, 1], &third).await;
    for device in &mut sites {
        device.hello().await;
    }
}

/// Whether the state that is kept names it.
fn kept(house: &House, what: &str) -> bool {
    std::fs::read_to_string(house.file("state/places")).is_ok_and(|text| text.contains(what))
}

#[tokio::test]
async fn a_site_is_still_known_after_a_restart_and_after_a_kill() {
    let mut house = House::with(|config| config.addresses.failures = 4).await;
    let credentials = house.add_device("press-7").await;
    let device = proves_from(&house, STRANGER, &credentials).await;
    eventually("it is kept", async || kept(&house, "address 127.9.0.1 ")).await;
    drop(device);
    for restarts in 0..2 {
        if restarts == 0 {
            house.kill().await;
            house.reopen().await;
        } else {
            house.restart().await;
        }
        futures_util::future::join_all((0..12).map(|_| fail_from(&house, STRANGER))).await;
        futures_util::future::join_all((0..4).map(|_| fail_from(&house, NEIGHBOUR))).await;
        let door = house.gateway.counters().door();
        eventually("all have failed", async || door.failures() == 16).await;
        assert_eq!(door.blocks(), 1, "the neighbour alone");
    }
    let mode = std::fs::metadata(house.file("state/places")).unwrap().permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o600);
}

#[tokio::test]
async fn what_is_kept_of_addresses_and_is_broken_is_made_anew() {
    let mut house = House::start().await;
    let credentials = house.add_device("press-7").await;
    drop(Device::prove(&house, &credentials).await);
    house.shut_down();
    house.ended().await;
    assert!(kept(&house, "device press-7 127.0.0.1 "), "written at the end");
    std::fs::write(house.file("state/places"), "doorward places 1\naddress nowhere 5\n").unwrap();
    house.reopen().await;
    let file = house.file("state/places").display().to_string();
    let said = |line: &&str| line.contains(&file) && line.contains("line 2 is no place");
    assert_eq!(log().lines().filter(said).count(), 1);
    drop(Device::prove(&house, &credentials).await);
    eventually("made anew", async || kept(&house, "address 127.0.0.1 ")).await;
}

#[tokio::test]
async fn what_was_used_by_an_old_rate_weighs_no_more_by_the_new_one() {
    let house = House::with(|config| (config.addresses.rate, config.addresses.burst) = (1, 8)).await;
    let mut all = Vec::new();
    for _ in 0..100 {
        all.push(tcp_from(&house, STRANGER).await.unwrap());
    }
    eventually("over the rate", async || closed_for(&house, "address_rate") > 0).await;
    house.write_config(|config| (config.addresses.rate, config.addresses.burst) = (1000, 1000));
    assert!(!house.gateway.reload().await.unwrap().changed.is_empty());
    let (closed, slowed) = (closed_for(&house, "address_rate"), house.gateway.counters().door().slowed());
    let credentials = house.add_device("press-7").await;
    let _device = proves_from(&house, STRANGER, &credentials).await;
    assert_eq!(
        (closed_for(&house, "address_rate"), house.gateway.counters().door().slowed()),
        (closed, slowed)
    );
}

#[tokio::test]
async fn who_had_to_wait_for_its_turn_has_not_failed_for_that() {
    let house = House::with(|config| {
        config.limits.handshakes = 1;
        config.limits.handshake_timeout = seconds(4);
        config.limits.hello_timeout = seconds(2);
    })
    .await;
    // Each says its hello and then nothing: its turn is over after 200 ms, and the next one's begins.
    let mut all = Vec::new();
    for _ in 0..20 {
        let tcp = tcp_from(&house, STRANGER).await.unwrap();
        all.push(say_hello(tcp, &house).await);
    }
    let totals = || house.gateway.counters().totals();
    eventually("all are late", async || totals().handshake_timeouts == 20).await;
    // Those whose turn came within the first two seconds have had two of their own.
    let failures = house.gateway.counters().door().failures();
    assert!((1..=11).contains(&failures), "{failures}");
}
