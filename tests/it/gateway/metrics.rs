//! `/metrics`: one verdict, one counter; everything that can be counted is there from the start.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use doorward::registry::EventKind;
use doorward_proto::close::Close;
use doorward_proto::verdict::Refusal;
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio_tungstenite::tungstenite::Message;

use crate::support::device::{Device, TLS13, dial, refused, tls};
use crate::support::house::{House, authorities, certify, eventually, within};
use crate::support::http::{Got, get};

/// A line of the text format: name, labels, value.
fn samples(text: &str) -> Vec<(&str, &str, f64)> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            (name, labels.strip_suffix('}').unwrap(), value.parse().unwrap())
        })
        .collect()
}

#[tokio::test]
async fn the_text_is_what_prometheus_reads() {
    let house = House::start().await;
    let admin = house.admin().await;
    house.gateway.ready().await;
    let got = get(admin, "/metrics").await;
    assert!(got.head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{}", got.head);
    let mut types = BTreeMap::new();
    let mut helped = BTreeSet::new();
    for line in got.body.lines().filter(|line| line.starts_with('#')) {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words[1] {
            "HELP" => assert!(helped.insert(words[2]) && words[3].ends_with('.'), "{line}"),
            "TYPE" => assert!(types.insert(words[2], words[3]).is_none(), "twice: {line}"),
            _ => panic!("{line}"),
        }
    }
    assert_eq!(helped, types.keys().copied().collect());
    let mut seen = BTreeSet::new();
    for (name, labels, value) in samples(&got.body) {
        assert!(name.starts_with("doorward_"), "{name}");
        assert!(seen.insert((name, labels)), "twice: {name}{{{labels}}}");
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end).filter(|base| types.get(base) == Some(&"histogram")));
        let kind = types.get(family.unwrap_or(name)).unwrap_or_else(|| panic!("no TYPE: {name}"));
        assert_eq!(*kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
        assert!(value.is_finite(), "{name}");
        for unit in ["_ms", "_millis", "_kib", "_minutes", "_percent"] {
            assert!(!name.contains(unit), "{name} is in no base unit");
        }
    }
    // Buckets only grow, and the last is the count.
    for (name, _) in types.iter().filter(|(_, kind)| **kind == "histogram") {
        let bucket = format!("{name}_bucket");
        let counts: Vec<f64> =
            samples(&got.body).into_iter().filter(|(n, ..)| *n == bucket).map(|(.., value)| value).collect();
        assert!(counts.len() > 5 && counts.is_sorted(), "{name}: {counts:?}");
        assert_eq!(counts.last(), Some(&got.value(&format!("{name}_count"), "")), "{name}");
    }
}

#[tokio::test]
async fn every_label_is_there_from_the_start_at_zero() {
    let house = House::start().await;
    let admin = house.admin().await;
    let got = get(admin, "/metrics").await;
    let zero = |name: &str, label: &str, values: &[&str]| {
        for value in values {
            assert_eq!(got.value(name, &format!("{label}=\"{value}\"")), 0.0, "{name} {value}");
        }
    };
    zero("doorward_messages_refused_total", "error", &Refusal::ALL.map(Refusal::as_str));
    zero("doorward_sessions_closed_total", "reason", &Close::ALL.map(Close::label));
    zero("doorward_sessions_closed_total", "code", &["1000", "4003", "4008", "4029"]);
    zero("doorward_events_total", "kind", &EventKind::ALL.map(EventKind::as_str));
    let problems = [
        "device-revoked",
        "device-suspended",
        "certificate-unknown",
        "certificate-unfit",
        "certificate-mismatch",
        "certificate-revoked",
        "certificate-superseded",
        "certificate-expired",
        "key-unknown",
        "origin",
        "malformed",
        "not-found",
        "upgrade-required",
        "too-many",
        "draining",
        "unavailable",
    ];
    zero("doorward_upgrades_refused_total", "problem", &problems);
    let early = ["over_limit", "clock_behind", "handshake_timeout", "gone"];
    zero("doorward_connections_closed_early_total", "reason", &early);
    zero(
        "doorward_tls_refused_total",
        "reason",
        &["no_certificate", "unknown_ca", "dates", "protocol", "gone"],
    );
    zero("doorward_store_messages_total", "fate", &["stored", "duplicate", "fenced", "unstorable"]);
    assert_eq!(got.value("doorward_build_info", &format!("version=\"{}\"", env!("CARGO_PKG_VERSION"))), 1.0);
    assert!(got.value("doorward_process_resident_memory_bytes", "") > 1e6);
    assert!(got.value("doorward_process_open_fds", "") > 3.0);
}

#[tokio::test]
async fn what_happens_is_counted_once_where_it_belongs() {
    let house = House::start().await;
    let admin = house.admin().await;
    let mut device = Device::prove(&house, &house.add_device("press-7").await).await;
    let unproven = Device::connect(&house, &house.add_device("press-8").await).await;
    for n in 0..3 {
        let seq = device.publish(&format!("m{n}"), json!(n)).await;
        device.acked(seq).await;
    }
    device.say(json!({ "op": "subscribe", "ch": "#" })).await;
    assert_eq!(device.rejected().await.1, "forbidden");
    device.send_frame(Message::text("nonsense")).await;
    assert_eq!(device.rejected().await.1, "bad_envelope");
    let stranger = house.certify("nobody", |_| {});
    assert_eq!(refused(&house, &stranger).await.status, 401);
    // No certificate: the refusal comes with the first read.
    let mut bare = dial(&house, Arc::new(tls(&house, None, TLS13))).await.unwrap();
    let _ = within("the alert", bare.read_u8()).await;
    let (_, elsewhere) = authorities("Another issuing CA");
    let foreign = certify(&elsewhere, "press-7", |_| {});
    let mut foreign = dial(&house, Arc::new(tls(&house, Some(&foreign), TLS13))).await.unwrap();
    let _ = within("the alert", foreign.read_u8()).await;

    // The peer may have its alert before the door has counted it.
    eventually("both are refused", async || {
        get(admin, "/metrics").await.value("doorward_tls_refused_total", "") == 2.0
    })
    .await;
    let got = get(admin, "/metrics").await;
    assert_eq!(got.value("doorward_sessions", "proven"), 1.0 + 1.0, "both states have 'proven' in them");
    assert_eq!(got.value("doorward_sessions", "state=\"unproven\""), 1.0);
    assert_eq!(got.value("doorward_sessions_opened_total", ""), 2.0);
    assert_eq!(got.value("doorward_sessions_proven_total", ""), 1.0);
    assert_eq!(got.value("doorward_messages_accepted_total", ""), 4.0, "hello and three publishes");
    assert_eq!(got.value("doorward_messages_refused_total", "error=\"forbidden\""), 1.0);
    assert_eq!(got.value("doorward_messages_refused_total", ""), 2.0);
    assert_eq!(got.value("doorward_events_total", "kind=\"bad_envelope\""), 1.0);
    assert_eq!(got.value("doorward_upgrades_refused_total", "problem=\"certificate-unknown\""), 1.0);
    assert_eq!(got.value("doorward_tls_refused_total", "reason=\"no_certificate\""), 1.0);
    assert_eq!(got.value("doorward_tls_refused_total", "reason=\"unknown_ca\""), 1.0);
    assert_eq!(got.value("doorward_store_messages_total", "fate=\"stored\""), 3.0);
    assert_eq!(got.value("doorward_store_ack_seconds_count", ""), 3.0);
    assert!(got.value("doorward_store_commit_seconds_count", "") >= 1.0);
    assert_eq!(got.value("doorward_registry_up", ""), 1.0);
    assert_eq!(got.value("doorward_connections_total", ""), 5.0);

    drop((device, unproven));
    eventually("both are closed", async || {
        let got: Got = get(admin, "/metrics").await;
        got.value("doorward_sessions_closed_total", "code=\"1000\"") == 2.0
            && got.value("doorward_connections", "") == 0.0
            && got.value("doorward_handshakes", "") == 0.0
    })
    .await;
}

#[tokio::test]
async fn what_ends_is_shown_by_its_subject_and_the_soonest_session_with_it() {
    let house = House::start().await;
    let admin = house.admin().await;
    let credentials =
        house.certify("press-7", |params| params.not_after = crate::support::house::from_now(5000));
    house.record("press-7", "default", &credentials).await;
    let left = async |labels: &str| {
        get(admin, "/metrics").await.value("doorward_certificate_expires_seconds", labels)
    };
    assert!(left("kind=\"server\"").await > 300.0 * 86_400.0);
    let ca = left("kind=\"device_ca\",subject=\"CN=Test issuing CA\"").await;
    assert!(ca > 4.0 * 365.0 * 86_400.0, "{ca}");
    assert!(!get(admin, "/metrics").await.body.contains("kind=\"session\""));
    let _device = Device::prove(&house, &credentials).await;
    let session = left("kind=\"session\"").await;
    assert!((4900.0..=5000.0).contains(&session), "{session}");
}
