//! Deadlines and limits that act before anybody is known.

use std::sync::Arc;
use std::time::Duration;

use doorward::clock;
use doorward::registry::Act;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::device::{Device, TLS13, UPGRADE, dial, tls};
use crate::support::house::{House, eventually, seconds, within};

/// The first bytes of a ClientHello: a record of 512 bytes is announced, and most of it never comes.
const HALF_A_HELLO: &[u8] = &[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];

/// Waits until the other end has closed; how long it took.
async fn closed(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Duration {
    let start = clock::now().monotonic;
    let mut rest = Vec::new();
    // A reset is an end, too.
    let _ = within("the end of the connection", stream.read_to_end(&mut rest)).await;
    clock::now().monotonic - start
}

#[tokio::test]
async fn who_is_silent_or_slow_before_the_upgrade_is_closed_in_time() {
    let house = House::with(|config| config.limits.handshake_timeout = seconds(2)).await;
    let credentials = house.add_device("press-7").await;
    let silent = async {
        let mut tcp = TcpStream::connect(house.address).await.unwrap();
        closed(&mut tcp).await
    };
    let half_a_hello = async {
        let mut tcp = TcpStream::connect(house.address).await.unwrap();
        tcp.write_all(HALF_A_HELLO).await.unwrap();
        closed(&mut tcp).await
    };
    let half_a_request = async {
        let config = Arc::new(tls(&house, Some(&credentials), TLS13));
        let mut stream = dial(&house, config).await.unwrap();
        stream.write_all(b"GET /v1/device HTTP/1.1\r\nHost: local").await.unwrap();
        closed(&mut stream).await
    };
    // One byte at a time is no way round the deadline.
    let dripping = async {
        let mut tcp = TcpStream::connect(house.address).await.unwrap();
        let (mut reader, mut writer) = tcp.split();
        let drip = async {
            for byte in HALF_A_HELLO.iter().chain(&[0; 200]) {
                if writer.write_all(&[*byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            std::future::pending::<Duration>().await
        };
        tokio::select! { took = closed(&mut reader) => took, took = drip => took }
    };
    let (a, b, c, d) = tokio::join!(silent, half_a_hello, half_a_request, dripping);
    for (what, took) in [("silent", a), ("half a hello", b), ("half a request", c), ("dripping", d)] {
        assert!((1.5..4.0).contains(&took.as_secs_f64()), "{what}: closed after {took:?}");
    }
    eventually("all four are counted", async || house.gateway.counters().totals().handshake_timeouts == 4)
        .await;
}

#[tokio::test]
async fn connections_over_the_limit_are_closed_at_once_and_room_comes_back() {
    let house = House::with(|config| config.limits.connections = 2).await;
    let first = Device::prove(&house, &house.add_device("a").await).await;
    let mut waiting = TcpStream::connect(house.address).await.unwrap();
    waiting.write_all(HALF_A_HELLO).await.unwrap();
    let mut third = TcpStream::connect(house.address).await.unwrap();
    // Half of what a handshake may take is longer than this waits.
    closed(&mut third).await;
    assert_eq!(house.gateway.counters().totals().over_limit, 1);
    // A session's room and a handshake's come back alike.
    drop(waiting);
    let credentials = house.add_device("b").await;
    let config = Arc::new(tls(&house, Some(&credentials), TLS13));
    eventually("room for another", async || dial(&house, Arc::clone(&config)).await.is_ok()).await;
    drop(first);
    eventually("room for two", async || {
        let (one, two) = tokio::join!(dial(&house, Arc::clone(&config)), dial(&house, Arc::clone(&config)));
        one.is_ok() && two.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_slow_handshake_delays_nobody() {
    let house = House::with(|config| config.limits.handshakes = 1).await;
    let credentials = house.add_device("press-7").await;
    // So many that their turns together, short as each is, would take longer than a test waits.
    let mut slow = Vec::new();
    for _ in 0..150 {
        slow.push(TcpStream::connect(house.address).await.unwrap());
    }
    Device::prove(&house, &credentials).await;
    for tcp in &mut slow {
        tcp.write_all(HALF_A_HELLO).await.unwrap();
    }
    Device::prove(&house, &credentials).await;
}

#[tokio::test]
async fn who_is_silent_after_tls_keeps_no_turn() {
    let house = House::with(|config| config.limits.handshakes = 1).await;
    let credentials = house.add_device("press-7").await;
    let silent = house.add_device("press-8").await;
    let config = Arc::new(tls(&house, Some(&silent), TLS13));
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(dial(&house, Arc::clone(&config)).await.unwrap());
    }
    Device::prove(&house, &credentials).await;
    // Nor who is being refused and does not read it.
    house.db.registry.set_status(&silent.id, Act::Revoke, None).await.unwrap();
    for stream in &mut streams {
        stream.write_all(UPGRADE.as_bytes()).await.unwrap();
    }
    Device::prove(&house, &credentials).await;
}

#[tokio::test]
async fn more_handshakes_than_have_a_turn_wait_and_all_come_through() {
    let house = House::with(|config| config.limits.handshakes = 2).await;
    let mut all = Vec::new();
    for n in 0..30 {
        all.push(house.add_device(&format!("d{n}")).await);
    }
    let devices = futures_util::future::join_all(all.iter().map(|c| Device::prove(&house, c))).await;
    assert_eq!(devices.len(), 30);
    assert_eq!(house.gateway.devices(), 30);
}
