//! OpenTelemetry traces: what a collector is sent, and what a bad one costs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use doorward::config::Config;
use doorward::{clock, entropy};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::json;
use tokio::io::AsyncReadExt as _;

use super::hooked::{self, Failure};
use crate::support::collector::{Collector, takes, text};
use crate::support::device::{Device, TLS13, dial, refused, tls};
use crate::support::house::{House, authorities, eventually, log, seconds, serial, within};
use crate::support::http::{Got, get};

/// Everything is traced.
fn to(collector: &Collector) -> impl FnOnce(&mut Config) + use<> {
    let url = collector.url();
    move |config| {
        config.traces.endpoint = url;
        config.traces.messages = 1.0;
        config.traces.per_second = 100_000;
    }
}

fn has(span: &Span, key: &str) -> Option<String> {
    text(&span.attributes, key)
}

#[track_caller]
fn failed(span: &Span, label: &str) {
    assert_eq!(has(span, "error.type").as_deref(), Some(label), "{span:?}");
    assert_eq!(span.status.as_ref().unwrap().code, i32::from(StatusCode::Error), "{span:?}");
}

fn names(spans: &[Span]) -> BTreeSet<&str> {
    spans.iter().map(|span| span.name.as_str()).collect()
}

/// The connection's id, as the log has it.
fn logged(words: &str) -> String {
    let log = log();
    let line =
        log.lines().find(|line| line.contains(words)).unwrap_or_else(|| panic!("no '{words}' in {log}"));
    line.split("connection=").nth(1).unwrap().split(' ').next().unwrap().to_owned()
}

async fn metrics(house: &House) -> Got {
    get(house.admin().await, "/metrics").await
}

#[tokio::test]
async fn an_admission_is_one_trace_from_accept_to_proof() {
    let collector = Collector::start(takes()).await;
    let house = House::with(to(&collector)).await;
    let _device = Device::prove(&house, &house.add_device("press-7").await).await;
    let root = collector.wait_for("admission", 1).await.remove(0);
    assert!(root.parent_span_id.is_empty() && root.status.is_none());
    assert_eq!((root.trace_id.len(), root.span_id.len()), (16, 8));
    assert_eq!(has(&root, "doorward.connection"), Some(logged("session proven")));
    assert_eq!(has(&root, "doorward.device").as_deref(), Some("press-7"));
    assert_eq!(has(&root, "client.address").as_deref(), Some("127.0.0.1"));
    assert_eq!(has(&root, "tls.protocol.version").as_deref(), Some("1.3"));
    assert_eq!(has(&root, "tls.resumed").as_deref(), Some("false"));
    assert_eq!(collector.resource("service.name"), "doorward");
    assert_eq!(collector.resource("service.instance.id"), "gateway-1");

    let mut parts = collector.below(&root);
    parts.sort_by_key(|part| part.start_time_unix_nano);
    let order: Vec<&str> = parts.iter().map(|part| part.name.as_str()).collect();
    let whole = ["tls.hello", "tls.turn", "tls.handshake", "request", "registry", "upgrade", "proof"];
    assert_eq!(order, whole);
    for part in &parts {
        assert_eq!(part.trace_id, root.trace_id);
        assert!(part.start_time_unix_nano >= root.start_time_unix_nano, "{part:?}");
        assert!(part.end_time_unix_nano <= root.end_time_unix_nano, "{part:?}");
        assert!(part.start_time_unix_nano <= part.end_time_unix_nano, "{part:?}");
    }
    let now = u64::try_from(clock::now().wall.as_duration().as_nanos()).unwrap();
    assert!(now - root.end_time_unix_nano < 60_000_000_000, "in nanoseconds of the day");
}

#[tokio::test]
async fn a_refused_device_s_trace_names_the_refusal() {
    let collector = Collector::start(takes()).await;
    let house = House::with(to(&collector)).await;
    let unknown = house.certify("press-8", |_| {});
    let answer = refused(&house, &unknown).await;
    let root = collector.wait_for("admission", 1).await.remove(0);
    failed(&root, "certificate-unknown");
    assert_eq!(has(&root, "http.response.status_code").as_deref(), Some("401"));
    assert_eq!(has(&root, "doorward.connection").as_deref(), answer.problem()["instance"].as_str());
    assert_eq!(has(&root, "doorward.certificate.device").as_deref(), Some("press-8"));
    assert_eq!(has(&root, "doorward.device"), None, "nobody has proven to be it");
    assert!(names(&collector.below(&root)).contains("registry"));

    // In TLS: where it ended is where it failed.
    let mut bare = dial(&house, Arc::new(tls(&house, None, TLS13))).await.unwrap();
    let _ = within("the alert", bare.read_u8()).await;
    let root = collector.wait_for("admission", 2).await.remove(1);
    failed(&root, "no_certificate");
    assert_eq!(has(&root, "doorward.certificate.device"), None);
    let parts = collector.below(&root);
    failed(parts.iter().find(|part| part.name == "tls.handshake").unwrap(), "no_certificate");
    assert!(!names(&parts).contains("request"));

    // And a session that goes before it was proven.
    drop(Device::connect(&house, &house.add_device("press-9").await).await);
    let root = collector.wait_for("admission", 3).await.remove(2);
    failed(&root, "normal");
    assert_eq!(has(&root, "doorward.device"), None);
}

#[tokio::test]
async fn a_message_is_a_trace_and_its_transaction_is_linked_with_it() {
    let collector = Collector::start(takes()).await;
    let house = House::with(to(&collector)).await;
    let mut device = Device::prove(&house, &house.add_device("press-7").await).await;
    let seq = device.publish("m1", json!({ "t": 21 })).await;
    device.acked(seq).await;
    let root = collector.wait_for("message", 1).await.remove(0);
    let commit = collector.wait_for("store.commit", 1).await.remove(0);
    let admission = collector.wait_for("admission", 1).await.remove(0);
    assert!(root.status.is_none(), "{root:?}");
    assert_eq!(has(&root, "doorward.connection"), has(&admission, "doorward.connection"));
    assert_eq!(has(&root, "doorward.device").as_deref(), Some("press-7"));
    assert_eq!(has(&root, "messaging.destination.name").as_deref(), Some("devices/press-7/t"));
    assert_eq!(has(&root, "messaging.message.body.size").as_deref(), Some("8"));
    let (link, way_in) = (&root.links[0], &admission);
    assert_eq!((&link.trace_id, &link.span_id), (&way_in.trace_id, &way_in.span_id));

    let parts = collector.below(&root);
    assert_eq!(names(&parts), ["ack", "store", "verify"].into());
    let store = parts.iter().find(|part| part.name == "store").unwrap();
    assert_eq!(has(store, "doorward.fate").as_deref(), Some("stored"));
    assert_eq!((&store.links[0].trace_id, &store.links[0].span_id), (&commit.trace_id, &commit.span_id));
    assert_eq!((&commit.links[0].trace_id, &commit.links[0].span_id), (&root.trace_id, &root.span_id));
    assert_eq!(has(&commit, "doorward.batch.messages").as_deref(), Some("1"));
    assert!(commit.end_time_unix_nano <= store.end_time_unix_nano);

    // A refused one names the refusal, and is stored nowhere.
    device.say(json!({ "op": "publish", "id": "m2", "ch": "devices/other/t", "data": 1 })).await;
    assert_eq!(device.rejected().await.1, "forbidden");
    let root = collector.wait_for("message", 2).await.remove(1);
    failed(&root, "forbidden");
    assert_eq!(has(&root, "messaging.destination.name"), None);
    assert_eq!(names(&collector.below(&root)), ["verify"].into());
    // 'hello' was no publish, and the ack of each is no message of the device's.
    assert_eq!(collector.named("message").len(), 2);
}

#[tokio::test]
async fn a_message_that_is_not_stored_says_so() {
    let collector = Collector::start(takes()).await;
    let configure = to(&collector);
    let (house, hooked) = hooked::house(|config| {
        configure(config);
        config.session.max_skew = seconds(20);
    })
    .await;
    let credentials = house.add_device("press-7").await;
    for (failure, label) in [(Failure::Unavailable, "not_stored"), (Failure::Unknown, "unknown")] {
        let mut device = Device::prove(&house, &credentials).await;
        let traced = collector.named("message").len();
        *hooked.fail_writes.lock().unwrap() = Some(failure);
        device.publish(label, json!(1)).await;
        let root = collector.wait_for("message", traced + 1).await.remove(traced);
        failed(&root, label);
        let parts = collector.below(&root);
        assert_eq!(names(&parts), ["store", "verify"].into(), "no ack");
        failed(parts.iter().find(|part| part.name == "store").unwrap(), label);
        *hooked.fail_writes.lock().unwrap() = None;
    }
}

#[tokio::test]
async fn nothing_secret_and_no_payload_is_sent() {
    let collector = Collector::start(takes()).await;
    let house = House::with(to(&collector)).await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    let seq = device.publish("m1", json!({ "temperature": "SECRET-OF-THE-FACTORY" })).await;
    device.acked(seq).await;
    device.say(json!({ "op": "publish", "id": "m2", "ch": "devices/FORBIDDEN/t", "data": 1 })).await;
    device.rejected().await;
    collector.wait_for("message", 2).await;
    let bytes = collector.bytes();
    let sent = |what: &[u8]| bytes.windows(what.len()).any(|window| window == what);
    assert!(sent(b"press-7") && sent(b"devices/press-7/t"), "it looks where it should");
    assert!(!sent(b"SECRET-OF-THE-FACTORY") && !sent(b"temperature") && !sent(b"FORBIDDEN"));
    let encoded = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(credentials.hmac);
    assert!(!sent(&credentials.hmac) && !sent(encoded.as_bytes()));
    assert!(!sent(credentials.key.secret_der()));
    let sid = device.sid.as_str().map(str::to_owned).unwrap_or_else(|| device.sid.to_string());
    assert!(!sent(sid.as_bytes()), "what a session's signatures are bound to");
}

#[tokio::test]
async fn a_collector_that_hangs_costs_no_message_and_drops_are_counted() {
    let collector = Collector::start(None).await;
    let mut house = House::with(|config| {
        to(&collector)(config);
        config.traces.queue = 64;
        config.traces.timeout = seconds(1);
    })
    .await;
    let mut device = Device::prove(&house, &house.add_device("press-7").await).await;
    for n in 0..200 {
        let seq = device.publish(&format!("m{n}"), json!(n)).await;
        device.acked(seq).await;
    }
    let got = metrics(&house).await;
    assert!(got.value("doorward_traces_dropped_total", "queue_full") >= 500.0, "{}", got.body);
    assert!(got.value("doorward_traces_queue_spans", "") <= 64.0);
    assert_eq!(got.value("doorward_traces_sent_total", ""), 0.0);
    eventually("a line", async || log().contains("the collector does not take traces")).await;
    eventually("a second try", async || collector.requests() >= 2).await;
    assert_eq!(log().matches("the collector does not take traces").count(), 1, "said once while it lasts");
    // And it holds up no end.
    house.shut_down();
    house.ended().await;
    assert!(log().contains("did not take the last traces"));
}

#[tokio::test]
async fn a_collector_that_comes_back_is_sent_what_waited() {
    let away = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n";
    let collector = Collector::start(Some(away.to_owned())).await;
    let house = House::with(to(&collector)).await;
    let _device = Device::prove(&house, &house.add_device("press-7").await).await;
    eventually("a try", async || collector.requests() >= 1).await;
    collector.answers(takes());
    collector.wait_for("admission", 1).await;
    eventually("a line", async || log().contains("the collector takes traces again")).await;
    let got = metrics(&house).await;
    assert_eq!(got.value("doorward_traces_dropped_total", ""), 0.0);
    assert!(got.value("doorward_traces_sent_total", "") >= 8.0);
}

#[tokio::test]
async fn what_a_collector_does_not_want_is_not_sent_again() {
    let no = "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
    let collector = Collector::start(Some(no.to_owned())).await;
    let house = House::with(to(&collector)).await;
    let device = Device::prove(&house, &house.add_device("press-7").await).await;
    let rejected = async || metrics(&house).await.value("doorward_traces_dropped_total", "rejected");
    eventually("the refusal", async || rejected().await >= 8.0).await;
    assert_eq!(collector.requests(), 1);
    drop(device);
    // Taken in part: three of what comes next.
    let partial = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n\u{a}\u{2}\u{8}\u{3}";
    collector.answers(Some(partial.to_owned()));
    let before = rejected().await;
    refused(&house, &house.certify("nobody", |_| {})).await;
    eventually("the rest of it", async || rejected().await >= before + 3.0).await;
    assert!(log().contains("400 Bad Request"));
}

#[tokio::test]
async fn what_has_ended_before_the_gateway_is_sent_before_it_ends() {
    let collector = Collector::start(takes()).await;
    let mut house = House::with(to(&collector)).await;
    let device = Device::prove(&house, &house.add_device("press-7").await).await;
    drop(device);
    house.shut_down();
    house.ended().await;
    assert_eq!(collector.named("admission").len(), 1);
}

#[tokio::test]
async fn connections_and_messages_have_a_rate_each() {
    let collector = Collector::start(takes()).await;
    let house = House::with(|config| {
        to(&collector)(config);
        config.traces.per_second = 1;
        config.addresses.failures = 10_000;
    })
    .await;
    // A flood of strangers…
    let over = async || metrics(&house).await.value("doorward_traces_dropped_total", "over_rate");
    let stranger = house.certify("nobody", |_| {});
    while over().await < 2.0 {
        refused(&house, &stranger).await;
    }
    // …leaves a message its trace, as soon as 'hello' has had its turn.
    let mut device = Device::prove(&house, &house.add_device("press-7").await).await;
    let mut n = 0;
    while collector.named("message").is_empty() {
        n += 1;
        let seq = device.publish(&format!("m{n}"), json!(1)).await;
        device.acked(seq).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    collector.wait_for("admission", 1).await;
}

#[tokio::test]
async fn a_share_of_none_makes_none() {
    let collector = Collector::start(takes()).await;
    let mut house = House::with(|config| {
        to(&collector)(config);
        config.traces.messages = 0.0;
    })
    .await;
    let mut device = Device::prove(&house, &house.add_device("press-7").await).await;
    let seq = device.publish("m1", json!(1)).await;
    device.acked(seq).await;
    drop(device);
    house.shut_down();
    house.ended().await;
    assert_eq!((collector.named("admission").len(), collector.named("message").len()), (1, 0));
    assert_eq!(collector.named("store.commit").len(), 0);
}

#[tokio::test]
async fn a_gateway_without_a_collector_makes_no_traces() {
    let house = House::start().await;
    Device::prove(&house, &house.add_device("press-7").await).await;
    let got = metrics(&house).await;
    assert_eq!(got.value("doorward_traces_dropped_total", ""), 0.0);
    assert_eq!(got.value("doorward_traces_sent_total", ""), 0.0);
    assert_eq!(got.value("doorward_traces_queue_spans", ""), 0.0);
}

/// A collector with a certificate for `localhost`, and the file of its CA.
async fn with_tls() -> (Collector, tempfile::TempDir) {
    let (root, issuing) = authorities("A collector's CA");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ca.crt"), root.certificate_pem()).unwrap();
    let key = entropy::key_pair().unwrap();
    let hosts = ["localhost".parse().unwrap()];
    let lifetime = time::Duration::days(1);
    let leaf = issuing.issue_gateway("localhost", &hosts, &key, serial(), clock::utc(), lifetime).unwrap();
    let chain = vec![leaf.der.to_vec().into(), issuing.certificate_der().to_vec().into()];
    let key = PrivateKeyDer::from_pem_slice(doorward_pki::key_to_pem(&key).as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    (Collector::secure(config).await, folder)
}

#[tokio::test]
async fn a_collector_by_https_is_judged_by_the_cas_that_are_named() {
    let (collector, folder) = with_tls().await;
    let url = format!("https://localhost:{}", collector.address.port());
    let house = House::with(|config| {
        to(&collector)(config);
        config.traces.endpoint.clone_from(&url);
        config.traces.ca = folder.path().join("ca.crt");
    })
    .await;
    let _device = Device::prove(&house, &house.add_device("press-7").await).await;
    collector.wait_for("admission", 1).await;

    // By another CA it is a stranger: nothing is said to it.
    let (stranger, _folder) = with_tls().await;
    let url = format!("https://localhost:{}", stranger.address.port());
    let house = House::with(|config| {
        to(&stranger)(config);
        config.traces.endpoint.clone_from(&url);
        config.traces.ca = folder.path().join("ca.crt");
    })
    .await;
    let mut device = Device::prove(&house, &house.add_device("press-7").await).await;
    eventually("a line", async || log().contains("invalid peer certificate")).await;
    let seq = device.publish("m1", json!(1)).await;
    device.acked(seq).await;
    assert_eq!(stranger.requests(), 0);
}

#[tokio::test]
async fn a_ca_that_is_none_keeps_a_gateway_from_starting() {
    let house = House::start().await;
    house.write_config(|config| {
        config.traces.endpoint = "https://collector.example.com".to_owned();
        config.traces.ca = "pki/collector.crt".into();
    });
    let error = house.start_error().await;
    assert!(error.contains("traces.ca") && error.contains("pki/collector.crt"), "{error}");
    std::fs::write(house.file("pki/collector.crt"), "nothing").unwrap();
    let error = house.start_error().await;
    assert!(error.contains("no certificate in it"), "{error}");
}

#[tokio::test]
async fn how_much_is_traced_may_change_while_a_gateway_runs() {
    let collector = Collector::start(takes()).await;
    let url = collector.url();
    let house = House::with(|config| {
        to(&collector)(config);
        config.traces.connections = 0.0;
    })
    .await;
    let credentials = house.add_device("press-7").await;
    Device::prove(&house, &credentials).await;
    house.write_config(|config| {
        config.traces.endpoint = url;
        config.traces.connections = 1.0;
    });
    let reloaded = house.gateway.reload().await.unwrap();
    assert!(reloaded.changed.contains(&"traces.connections".to_owned()), "{reloaded:?}");
    Device::prove(&house, &credentials).await;
    collector.wait_for("admission", 1).await;
    assert_eq!(collector.named("admission").len(), 1);
}
