//! The admin listener: whether a gateway lives, whether it is ready, and why not.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::support::database::Database;
use crate::support::device::Device;
use crate::support::house::{House, eventually, seconds, within};
use crate::support::http::{ask, get};

use super::hooked::{self, Failure};

/// The checks that do not pass.
async fn failing(admin: SocketAddr) -> Vec<String> {
    let got = get(admin, "/readyz").await;
    let answer = got.json();
    let checks = answer["checks"].as_array().unwrap();
    let failing: Vec<String> = checks
        .iter()
        .filter(|check| check["ok"] == false)
        .map(|check| check["check"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        (got.status, &answer["ready"]),
        if failing.is_empty() { (200, &Value::Bool(true)) } else { (503, &Value::Bool(false)) }
    );
    failing
}

#[tokio::test]
async fn it_answers_who_reads_and_nobody_else() {
    let house = House::start().await;
    let admin = house.admin().await;
    house.gateway.ready().await;
    let alive = get(admin, "/healthz").await;
    assert_eq!((alive.status, alive.body.as_str()), (200, "ok\n"));
    assert!(alive.head.contains("cache-control: no-store"), "{alive:?}");
    let ready = get(admin, "/readyz").await.json();
    let names: Vec<&str> =
        ready["checks"].as_array().unwrap().iter().map(|check| check["check"].as_str().unwrap()).collect();
    assert_eq!(names, ["serving", "clock", "draining", "registry", "staleness", "store"]);
    assert_eq!((&ready["ready"], &ready["gateway"]), (&Value::Bool(true), &Value::from("gateway-1")));
    for path in ["/", "/metrics/", "/crl/doorward.crl", "/../etc/passwd", "/v1/device"] {
        assert_eq!(get(admin, path).await.status, 404, "{path}");
    }
    for request in ["POST /readyz", "DELETE /metrics", "PUT /healthz"] {
        let refused =
            ask(admin, &format!("{request} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")).await;
        assert_eq!(refused.status, 405, "{request}");
    }
    let head = ask(admin, "HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    let wrong = get(admin, "/readyz?exclude=everything").await;
    assert_eq!(wrong.status, 400);
    assert!(wrong.body.contains("registry"), "{wrong:?}");
}

#[tokio::test]
async fn before_the_gateway_serves_it_says_so() {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let stop = tokio_util::sync::CancellationToken::new();
    let admin = doorward::admin::Admin::start(any, stop.clone()).await;
    assert_eq!(get(admin.address().unwrap(), "/healthz").await.status, 200);
    assert_eq!(failing(admin.address().unwrap()).await, ["serving"]);
    assert_eq!(get(admin.address().unwrap(), "/metrics").await.value("doorward_ready", ""), 0.0);
    stop.cancel();
}

#[tokio::test]
async fn it_says_since_when_the_registry_is_away_and_when_that_is_too_long() {
    let (house, hooks) = hooked::house(|config| config.registry.max_staleness = seconds(3)).await;
    let admin = house.admin().await;
    house.gateway.ready().await;
    eventually("readiness", async || failing(admin).await.is_empty()).await;
    hooks.away.store(true, std::sync::atomic::Ordering::SeqCst);
    eventually("the registry is missed", async || failing(admin).await == ["registry"]).await;
    let answer = get(admin, "/readyz").await.json();
    let check = &answer["checks"][3];
    let since = check["since"].as_str().unwrap();
    assert!(since.starts_with("20") && since.ends_with('Z'), "{check}");
    assert!(check["reason"].as_str().unwrap().contains("has not answered for"), "{check}");
    // Whoever lets devices in by the copy may say so to a balancer.
    assert_eq!(get(admin, "/readyz?exclude=registry").await.status, 200);
    eventually("too long", async || failing(admin).await == ["registry", "staleness"]).await;
    let metrics = get(admin, "/metrics").await;
    assert_eq!(metrics.value("doorward_registry_up", ""), 0.0);
    assert_eq!(metrics.value("doorward_registry_stale", ""), 1.0);
    assert_eq!(get(admin, "/readyz?exclude=registry").await.status, 503, "nobody would be let in");
    assert_eq!(get(admin, "/healthz").await.status, 200);
    hooks.away.store(false, std::sync::atomic::Ordering::SeqCst);
    eventually("it is back", async || failing(admin).await.is_empty()).await;
    assert_eq!(get(admin, "/metrics").await.value("doorward_registry_up", ""), 1.0);
}

#[tokio::test]
async fn a_clock_that_is_wrong_and_a_drain_are_reasons() {
    let mut house = House::with(|config| config.gateway.drain = seconds(3)).await;
    let admin = house.admin().await;
    house.gateway.ready().await;
    house.gateway.believe_from(doorward::clock::utc() + Duration::from_secs(3600));
    assert_eq!(failing(admin).await, ["clock"]);
    house.gateway.believe_from(doorward::clock::BUILT);
    assert!(failing(admin).await.is_empty());
    // A device that does not take its goodbye keeps the drain open.
    let _device = Device::prove(&house, &house.add_device("press-7").await).await;
    house.shut_down();
    eventually("the drain", async || failing(admin).await == ["draining"]).await;
    house.ended().await;
}

#[tokio::test]
async fn a_store_that_does_not_write_is_a_reason() {
    let (house, hooks) = hooked::house(|config| config.session.max_skew = seconds(20)).await;
    let admin = house.admin().await;
    let mut device = Device::prove(&house, &house.add_device("press-7").await).await;
    *hooks.fail_writes.lock().unwrap() = Some(Failure::Unavailable);
    // The first waits its time; the next one finds the store stalled.
    for n in 0..2 {
        device.publish(&format!("m{n}"), Value::from(n)).await;
    }
    eventually("the store is stalled", async || failing(admin).await == ["store"]).await;
    let metrics = get(admin, "/metrics").await;
    assert_eq!(metrics.value("doorward_store_stalled", ""), 1.0);
    assert!(metrics.value("doorward_store_failures_total", "") >= 1.0);
    *hooks.fail_writes.lock().unwrap() = None;
    device.publish("m9", Value::from(9)).await;
    eventually("it writes again", async || failing(admin).await.is_empty()).await;
}

#[tokio::test]
async fn it_answers_while_the_door_is_full() {
    let house = House::with(|config| config.limits.connections = 1).await;
    let admin = house.admin().await;
    let _device = Device::prove(&house, &house.add_device("press-7").await).await;
    for _ in 0..5 {
        let mut closed = TcpStream::connect(house.address).await.unwrap();
        let mut rest = Vec::new();
        let _ = within("its end", closed.read_to_end(&mut rest)).await;
    }
    let metrics = get(admin, "/metrics").await;
    let early = |reason| metrics.value("doorward_connections_closed_early_total", reason);
    assert_eq!(early("over_limit"), 5.0);
    assert_eq!(metrics.value("doorward_connections", ""), 1.0);
    assert_eq!(metrics.value("doorward_connections_limit", ""), 1.0);
    assert!(failing(admin).await.is_empty());
}

/// Half a request, and many of them: there is room for others all the same, and each has its end.
#[tokio::test]
async fn who_asks_for_nothing_does_not_keep_others_from_asking() {
    let house = House::on(Database::sqlite().await, |_| {}).await;
    let admin = house.admin().await;
    let mut idle = Vec::new();
    for _ in 0..60 {
        idle.push(TcpStream::connect(admin).await.unwrap());
    }
    assert_eq!(get(admin, "/healthz").await.status, 200);
}
