//! The PROXY protocol: what a listed proxy says is believed and demanded, what others say never read.

use std::sync::Arc;

use doorward::config::Config;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::device::{Device, TLS13, secure, tcp_from, tls};
use crate::support::house::{Credentials, House, eventually, log, seconds, within};

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
