//! From HTTP to WebSocket: what is judged after the identity.

use std::sync::Arc;

use doorward_proto::ids::KeyVersion;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;

use super::hooked;
use crate::support::device::{Device, TLS13, UPGRADE, ask, dial, problem_of, request, tls};
use crate::support::house::House;

#[tokio::test]
async fn each_fault_of_a_request_has_its_status_and_problem() {
    let house = House::with(|config| config.gateway.origins = vec!["https://ops.example".to_owned()]).await;
    let device = house.add_device("press-7").await;
    let with = |from: &str, to: &str| {
        assert!(UPGRADE.contains(from));
        UPGRADE.replace(from, to)
    };
    let origin = |origin: &str| with("Host: localhost", &format!("Host: localhost\r\nOrigin: {origin}"));
    for (text, status, problem) in [
        ("NONSENSE\r\n\r\n".to_owned(), 400, "malformed"),
        (with("GET", "POST"), 400, "malformed"),
        (with("HTTP/1.1", "HTTP/1.0"), 400, "malformed"),
        (with("Host: localhost\r\n", ""), 400, "malformed"),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(9000)), 400, "malformed"),
        (origin("https://evil.example"), 403, "origin"),
        (origin("null"), 403, "origin"),
        (origin("https://ops.example.evil.example"), 403, "origin"),
        (with("/v1/device", "/"), 404, "not-found"),
        (with("/v1/device", "/v1/device/"), 404, "not-found"),
        (with("/v1/device", "/v2/device?nonsense"), 404, "not-found"),
        (with("/v1/device", "/v1/device?x=1"), 400, "malformed"),
        (with("/v1/device", "/v1/device?key=01"), 400, "malformed"),
        (with("/v1/device", "/v1/device?key=1&key=1"), 400, "malformed"),
        (with("Upgrade: websocket\r\n", ""), 426, "upgrade-required"),
        (with("Version: 13", "Version: 8"), 426, "upgrade-required"),
        (with("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ="), 400, "malformed"),
        (with("doorward.v1.jws", "mqtt"), 400, "malformed"),
        (with("/v1/device", "/v1/device?key=2"), 401, "key-unknown"),
    ] {
        let answer = request(&house, &device, &text).await.unwrap();
        assert_eq!((answer.status, problem_of(&answer).as_str()), (status, problem), "{text}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        assert_eq!(answer.header("sec-websocket-version"), (status == 426).then_some("13"), "{text}");
        assert_eq!(answer.header("upgrade"), (status == 426).then_some("websocket"), "{text}");
    }
    let listed = Device::upgrade(&house, &device, &origin("https://ops.example")).await;
    drop(listed);
}

#[tokio::test]
async fn faults_are_told_in_the_order_of_the_contract() {
    let house = House::start().await;
    let device = house.add_device("press-7").await;
    // All faults at once, and the first of them mended each time.
    let mut text = "POST /v2/device?key=0 HTTP/1.1\r\nHost: localhost\r\nOrigin: https://e.example\r\n\
        Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        .to_owned();
    for (problem, from, to) in [
        ("malformed", "POST", "GET"),
        ("origin", "Origin: https://e.example\r\n", ""),
        ("not-found", "/v2/", "/v1/"),
        ("malformed", "key=0", "key=9"),
        ("upgrade-required", "Connection:", "Upgrade: websocket\r\nConnection:"),
        ("malformed", "\r\n\r\n", "\r\nSec-WebSocket-Protocol: doorward.v1.jws\r\n\r\n"),
        ("key-unknown", "?key=9", "?key=1"),
    ] {
        assert_eq!(problem_of(&request(&house, &device, &text).await.unwrap()), problem, "{text}");
        text = text.replacen(from, to, 1);
    }
    let mut device = Device::upgrade(&house, &device, &text).await;
    device.expect("welcome").await;
    device.hello().await;
}

#[tokio::test]
async fn a_device_chooses_the_key_that_the_gateway_signs_with() {
    let house = House::start().await;
    let credentials = house.add_device("press-7").await;
    let (pending, bytes) = house.add_key(&credentials.id, 2, "pending").await;
    let with_key = |key: u32| UPGRADE.replace("/v1/device", &format!("/v1/device?key={key}"));
    // By default with the confirmed one.
    let mut device = Device::upgrade(&house, &credentials, UPGRADE).await;
    assert_eq!(device.expect("welcome").await["key"], 1);
    let mut device = Device::upgrade(&house, &credentials, &with_key(2)).await;
    device.use_key(pending, &bytes);
    assert_eq!(device.expect("welcome").await["key"], 2);
    assert_eq!(device.signer.version(), "2".parse::<KeyVersion>().unwrap());
    house.db.execute("UPDATE hmac_keys SET state = 'retired' WHERE version = 2").await.unwrap();
    let answer = request(&house, &credentials, &with_key(2)).await.unwrap();
    assert_eq!((answer.status, problem_of(&answer).as_str()), (401, "key-unknown"));
}

#[tokio::test]
async fn what_is_sent_behind_the_request_is_not_lost() {
    let house = House::start().await;
    let credentials = house.add_device("press-7").await;
    // A WebSocket frame in the same write as the request: masked text, which is no envelope.
    let mut stream = dial(&house, Arc::new(tls(&house, Some(&credentials), TLS13))).await.unwrap();
    let mut bytes = UPGRADE.as_bytes().to_vec();
    bytes.extend_from_slice(&[0x81, 0x82, 0, 0, 0, 0, b'h', b'i']);
    stream.write_all(&bytes).await.unwrap();
    let mut device = Device::upgrade_on(stream, &credentials, "").await.unwrap();
    device.expect("welcome").await;
    assert_eq!(device.rejected().await, (json!(null), "bad_envelope".to_owned(), json!(null)));
}

#[tokio::test]
async fn a_draining_gateway_says_so_before_anything_else() {
    let (house, hooked) = hooked::house(|_| {}).await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    // A publish under way keeps the drain waiting, and the door open.
    hooked.writes.close();
    device.publish("m1", json!(1)).await;
    hooked.writes.reached().await;
    let mut early = dial(&house, Arc::new(tls(&house, Some(&credentials), TLS13))).await.unwrap();
    house.shut_down();
    crate::support::house::eventually("the drain begins", async || {
        crate::support::house::log().contains("draining")
    })
    .await;
    let unknown = house.certify("nobody", |_| {});
    for answer in [
        ask(&mut early, "NONSENSE\r\n\r\n").await.unwrap(),
        request(&house, &unknown, UPGRADE).await.unwrap(),
    ] {
        assert_eq!((answer.status, problem_of(&answer).as_str()), (503, "draining"));
        let wait: u64 = answer.header("retry-after").expect("Retry-After").parse().unwrap();
        assert!((1..=60).contains(&wait));
    }
    hooked.writes.open();
}
