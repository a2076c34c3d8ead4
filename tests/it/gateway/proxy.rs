//! The PROXY protocol: what a listed proxy says is believed and demanded, what others say never read.

use std::sync::Arc;

use doorward::config::{Config, Memory};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::device::{Device, TLS13, secure, tcp_from, tls};
use crate::support::house::{Credentials, House, eventually, forget_log, log, seconds, within};

/// Of the listed network.
const PROXY: [u8; 4] = [127, 9, 0, 1];
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fn listed(config: &mut Config) {
    config.gateway.proxy_networks = vec!["127.9.0.0/24".parse().unwrap()];
    config.limits.hello_timeout = seconds(2);
    config.addresses.failures = 4;
}

/// The header of a connection from an IPv4 address.
fn header(source: [u8; 4], port: u16) -> Vec<u8> {
    let rest = [&source[..], &[198, 51, 100, 1], &port.to_be_bytes(), &8443_u16.to_be_bytes()].concat();
    [SIGNATURE, &[0x21, 0x11, 0, 12], &rest].concat()
}

async fn proxied(house: &House, bytes: &[u8]) -> TcpStream {
    let mut tcp = tcp_from(house, PROXY).await.unwrap();
    tcp.write_all(bytes).await.unwrap();
    tcp
}

async fn closed_without_a_word(mut tcp: TcpStream) {
    let mut said = Vec::new();
    let _ = within("the close", tcp.read_to_end(&mut said)).await;
    assert!(said.is_empty(), "{said:?}");
}

async fn come(house: &House, source: [u8; 4], credentials: &Credentials) -> std::io::Result<Device> {
    let tcp = proxied(house, &header(source, 4711)).await;
    Device::prove_on(house, tcp, credentials).await
}

#[tokio::test]
async fn the_address_that_a_proxy_names_is_the_peers() {
    let house = House::with(listed).await;
    let credentials = house.add_device("press-7").await;
    let _device = come(&house, [203, 0, 113, 7], &credentials).await.unwrap();
    let presence = "SELECT count(*) FROM presence WHERE device = 'press-7' AND peer = '203.0.113.7:4711'";
    eventually("presence", async || house.db.number(presence).await == 1).await;
    assert!(log().contains("session proven") && log().contains("peer=203.0.113.7:4711"));
    // A proxy may ask for itself whether we are there, and be let in as itself.
    let local = [SIGNATURE, &[0x20, 0, 0, 0]].concat();
    let tcp = proxied(&house, &local).await;
    let other = house.add_device("press-8").await;
    Device::prove_on(&house, tcp, &other).await.unwrap();
    assert!(log().contains("peer=127.9.0.1:"));
}

#[tokio::test]
async fn a_listed_network_must_say_for_whom_it_connects() {
    let house = House::with(listed).await;
    let credentials = house.add_device("press-7").await;
    let turned = || house.gateway.counters().door().closed_for("not_proxied");
    let config = Arc::new(tls(&house, Some(&credentials), TLS13));
    // TLS at once, as everybody else.
    secure(tcp_from(&house, PROXY).await.unwrap(), config).await.unwrap_err();
    assert_eq!(turned(), 1);
    closed_without_a_word(proxied(&house, b"PROXY TCP4 203.0.113.7 198.51.100.1 4711 8443\r\n").await).await;
    let endless = [SIGNATURE, &[0x21, 0x11, 0xff, 0xff], &[0; 3000]].concat();
    closed_without_a_word(proxied(&house, &endless).await).await;
    // Half a header, and nothing more.
    closed_without_a_word(proxied(&house, &header([203, 0, 113, 7], 1)[..20]).await).await;
    assert_eq!(turned(), 4);
    assert!(log().contains("it speaks version 1 of the PROXY protocol"));
    // One that only looks whether the port is open is nobody's fault.
    drop(tcp_from(&house, PROXY).await.unwrap());
    eventually("it is gone", async || house.gateway.counters().totals().gone == 1).await;
    assert_eq!((turned(), house.gateway.counters().door().failures()), (4, 0));
}

#[tokio::test]
async fn what_others_send_is_never_read_as_a_proxys() {
    let house = House::with(listed).await;
    let credentials = house.add_device("press-7").await;
    let mut tcp = tcp_from(&house, [127, 9, 1, 1]).await.unwrap();
    tcp.write_all(&header([203, 0, 113, 7], 4711)).await.unwrap();
    Device::prove_on(&house, tcp, &credentials).await.err().expect("no TLS begins like this");
    eventually("it is refused in TLS", async || house.gateway.counters().totals().tls_refused == 1).await;
    assert!(!log().contains("203.0.113.7"));
    // Nor where nobody is listed.
    let house = House::start().await;
    let mut tcp = tcp_from(&house, PROXY).await.unwrap();
    tcp.write_all(&header([203, 0, 113, 8], 4711)).await.unwrap();
    closed_or_alert(tcp).await;
    assert!(!log().contains("203.0.113.8"));
}

async fn closed_or_alert(mut tcp: TcpStream) {
    let mut said = Vec::new();
    let _ = within("the close", tcp.read_to_end(&mut said)).await;
}

#[tokio::test]
async fn limits_are_those_of_the_address_that_a_proxy_names() {
    let house = House::with(listed).await;
    let credentials = house.add_device("press-7").await;
    let bad = [203, 0, 113, 7];
    let nobody = Arc::new(tls(&house, None, TLS13));
    for _ in 0..4 {
        let tcp = proxied(&house, &header(bad, 4711)).await;
        if let Ok(mut stream) = secure(tcp, Arc::clone(&nobody)).await {
            let _ = within("the alert", stream.read_u8()).await;
        }
    }
    let door = house.gateway.counters().door();
    eventually("the block", async || door.blocks() == 1).await;
    closed_without_a_word(proxied(&house, &header(bad, 4712)).await).await;
    assert_eq!(door.closed_for("blocked"), 1);
    // Neither its neighbour nor the proxy has done anything.
    come(&house, [203, 0, 113, 8], &credentials).await.unwrap();
}

/// The header of a connection from an IPv6 address.
fn header_v6(source: u128) -> Vec<u8> {
    let rest = [&source.to_be_bytes()[..], &1_u128.to_be_bytes(), &[0x12, 0x34, 0x20, 0xfb]].concat();
    [SIGNATURE, &[0x21, 0x21, 0, 36], &rest].concat()
}

/// A number that says nothing of the next one, and comes once.
fn scattered(number: u64) -> u64 {
    // Odd, so that it is one to one.
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// This process's memory, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// So many addresses, none of them twice: each is taken in and hangs up.
async fn flood(house: Arc<House>, numbers: std::ops::Range<u64>) {
    const AT_ONCE: u64 = 16;
    let mut tasks = JoinSet::new();
    for task in 0..AT_ONCE {
        let (house, numbers) = (Arc::clone(&house), numbers.clone());
        tasks.spawn(async move {
            for number in numbers.filter(|number| number % AT_ONCE == task) {
                if number % 4096 == 0 {
                    forget_log();
                }
                let bytes = match number % 4 {
                    0 => {
                        // A class A of its own: 2^24 of them, one to one.
                        let [.., a, b, c] = (number / 4).wrapping_mul(7_919).to_be_bytes();
                        header([11, a, b, c], 4711)
                    }
                    _ => header_v6((0x2001_u128 << 112) | (u128::from(scattered(number)) << 48)),
                };
                let proxy = [127, 9, 0, u8::try_from(number % 250).unwrap() + 1];
                let mut tcp = tcp_from(&house, proxy).await.unwrap();
                let hung_up = async {
                    tcp.write_all(&bytes).await?;
                    tcp.shutdown().await?;
                    tcp.read(&mut [0; 1]).await
                };
                let _ = within("its end", hung_up).await;
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
}

/// What is remembered of addresses is bounded by the configuration, and a site that is known stays known.
async fn many_addresses(count: u64) {
    let house = House::with(|config| {
        listed(config);
        (config.addresses.remembered, config.limits.connections) = (4096, 200);
        config.limits.handshake_timeout = seconds(10);
    })
    .await;
    let config: Config =
        toml::from_str(&std::fs::read_to_string(house.file("config.toml")).unwrap()).unwrap();
    let bound = Memory::of(&config);
    let credentials = house.add_device("press-7").await;
    let site = [203, 0, 113, 7];
    let mut first = come(&house, site, &credentials).await.unwrap();
    let house = Arc::new(house);
    // A tenth, far more than is remembered: what the process needs for such work it has by then.
    flood(Arc::clone(&house), 0..count / 10).await;
    forget_log();
    let before = resident();
    let other = house.add_device("press-8").await;
    let flooding = tokio::spawn(flood(Arc::clone(&house), count / 10..count));
    let mut sent = 0;
    while !flooding.is_finished() || sent < 20 {
        let seq = first.publish(&format!("m{sent}"), json!(sent)).await;
        first.acked(seq).await;
        sent += 1;
        // Within its rate, however long this takes.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        if sent == 10 {
            come(&house, site, &other).await.unwrap();
        }
    }
    flooding.await.unwrap();
    come(&house, site, &other).await.unwrap();
    forget_log();
    let after = resident();
    let grown = after.saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes more than {before} for {count} addresses");
    assert!(after < bound.of_strangers, "{after} bytes, of {bound:?}");
    assert_eq!(house.stored().await.len(), sent, "each was acked, and each is there once");
    let totals = house.gateway.counters().totals();
    assert_eq!(totals.gone + totals.tls_refused, count, "each was taken in: {totals:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_addresses_cost_what_is_configured_and_a_known_one_is_served() {
    many_addresses(100_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it takes minutes; the one above is the same with fewer"]
async fn a_million_addresses_cost_what_is_configured_and_a_known_one_is_served() {
    many_addresses(1_000_000).await;
}
