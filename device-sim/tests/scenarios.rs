//! Each scenario against a gateway that does as the protocol says, and against one that does not: a simulator that
//! cannot fail proves nothing.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is a test")]

#[path = "../../client/tests/support/mod.rs"]
mod support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use device_sim::{Plan, Report, Rotation, Scenario, run};
use doorward_client::Renew;
use doorward_proto::close::Close;
use doorward_proto::limits::Rate;
use doorward_proto::verdict::Refusal;
use support::renewal::Answer;
use support::{Fault, Gateway, Setup};

const DEVICES: usize = 20;

async fn against(gateway: &Gateway, scenario: Scenario, change: impl FnOnce(&mut Plan)) -> Report {
    let mut plan = Plan::new(gateway.credentials(), &gateway.url(), scenario);
    plan.duration = Duration::from_secs(1);
    plan.answer_within = Duration::from_secs(2);
    plan.unproven_within = Duration::from_secs(4);
    change(&mut plan);
    let limit = Duration::from_secs(60);
    tokio::time::timeout(limit, run(plan)).await.expect("a run ends").unwrap()
}

async fn with_fault(scenario: Scenario, fault: Fault) -> Report {
    let gateway = Gateway::start(Setup { devices: DEVICES, fault, ..Setup::default() }).await;
    against(&gateway, scenario, |_| {}).await
}

fn assert_met(report: &Report) {
    assert!(report.met && report.failures.is_empty(), "{:#?}\n{report}", report.failures);
    assert!(report.messages.accepted > 0);
    assert_eq!(report.connections.down, 0);
    assert!(report.own_errors.is_empty(), "{:?}", report.own_errors);
}

fn assert_missed(report: &Report, words: &str) {
    assert!(!report.met);
    assert!(report.failures.iter().any(|line| line.contains(words)), "{words}: {:#?}", report.failures);
}

#[tokio::test(flavor = "multi_thread")]
async fn steady_as_fast_as_the_window_allows() {
    let report = with_fault(Scenario::Steady, Fault::None).await;
    assert_met(&report);
    assert_eq!(report.messages.sent, report.messages.accepted);
    assert_eq!(report.ack.count, report.messages.accepted);
    assert_eq!(report.handshake.count, 20);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["scenario"], "steady");
    assert!(json["ack"]["p99.9"].as_f64().unwrap() > 0.0);
    assert!(report.to_string().contains("as expected"));
}

#[tokio::test(flavor = "multi_thread")]
async fn steady_keeps_to_the_rate_that_the_gateway_states() {
    let rate = Rate { per_second: 20, burst: 8 };
    let gateway = Gateway::start(Setup { devices: 4, rate, ..Setup::default() }).await;
    let report = against(&gateway, Scenario::Steady, |plan| plan.window = Some(16)).await;
    assert_met(&report);
    assert!((4 * 19..4 * 28).contains(&report.messages.sent), "{}", report.messages.sent);
    let report = against(&gateway, Scenario::Burst, |_| {}).await;
    assert_met(&report);
}

#[tokio::test(flavor = "multi_thread")]
async fn steady_at_a_rate_is_an_open_loop() {
    let gateway = Gateway::start(Setup { devices: DEVICES, ..Setup::default() }).await;
    let report = against(&gateway, Scenario::Steady, |plan| {
        plan.rate = Some(200.0);
        plan.connect_rate = Some(100.0);
        plan.source_addresses = Some(3);
    })
    .await;
    assert_met(&report);
    assert!((190..=220).contains(&report.messages.sent), "{}", report.messages.sent);
}

/// Both ends of it in one process: run it by name, in release, when the engine has changed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a minute of two cores"]
async fn five_thousand_devices_at_once() {
    let gateway = Gateway::start(Setup { devices: 5000, ..Setup::default() }).await;
    let report = against(&gateway, Scenario::Steady, |plan| {
        plan.rate = Some(5000.0);
        plan.duration = Duration::from_secs(5);
    })
    .await;
    eprintln!("{report}");
    assert_met(&report);
    assert_eq!(report.connections.up, 5000);
}

#[tokio::test(flavor = "multi_thread")]
async fn burst() {
    assert_met(&with_fault(Scenario::Burst, Fault::None).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_not_acked_are_lost() {
    assert_missed(&with_fault(Scenario::Steady, Fault::ForgetEvery(7)).await, "nothing lost");
    let gateway = Gateway::start(Setup { devices: DEVICES, ..Setup::default() }).await;
    gateway.deaf(true);
    let report = against(&gateway, Scenario::Steady, |_| {}).await;
    assert_missed(&report, "not one was");
    assert_eq!(report.messages.lost, 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_refused_are_counted_by_error() {
    let report = with_fault(Scenario::Burst, Fault::ForbidEvery(5)).await;
    assert_missed(&report, "refused as 'forbidden'");
    assert!(report.messages.refused["forbidden"] > 0);
    assert_eq!(report.messages.lost, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_device_is_refused_by_name() {
    let gateway = Gateway::start(Setup { devices: 3, ..Setup::default() }).await;
    gateway.revoke("dev-00001");
    let report = against(&gateway, Scenario::Steady, |_| {}).await;
    assert_missed(&report, "all connected: 1 of 3");
    assert_eq!(report.connections.refused["403 device-revoked"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_listens_is_the_simulators_own_error() {
    let gateway = Gateway::start(Setup { devices: 2, ..Setup::default() }).await;
    let report = against(&gateway, Scenario::Steady, |plan| plan.url = "wss://127.0.0.1:1".to_owned()).await;
    assert_missed(&report, "all connected: 2 of 2");
    assert!(report.own_errors.contains_key("connection refused: nothing listens"), "{:?}", report.own_errors);
    assert!(report.connections.refused.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_sessions_come_back_and_nothing_is_lost() {
    let gateway = Gateway::start(Setup { devices: 4, ..Setup::default() }).await;
    let dropping = async {
        tokio::time::sleep(Duration::from_millis(600)).await;
        for device in 0..4 {
            gateway.end(&format!("dev-{device:05}"), Close::GoingAway);
        }
    };
    let steady = against(&gateway, Scenario::Steady, |plan| {
        plan.rate = Some(200.0);
        plan.duration = Duration::from_secs(3);
    });
    let (report, ()) = tokio::join!(steady, dropping);
    assert_met(&report);
    assert_eq!(report.connections.ended["1001 going_away"], 4);
    assert_eq!(report.connections.sessions, 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn replay() {
    let report = with_fault(Scenario::Replay, Fault::None).await;
    assert_met(&report);
    assert_eq!(report.attacks.len(), 7, "{report}");
    assert_missed(&with_fault(Scenario::Replay, Fault::AckRefused).await, "replay in the same session");
}

#[tokio::test(flavor = "multi_thread")]
async fn forge() {
    let report = with_fault(Scenario::Forge, Fault::None).await;
    assert_met(&report);
    assert!(report.attacks.iter().any(|attack| attack.name == "alg none" && attack.tried == 5), "{report}");
    let bad = with_fault(Scenario::Forge, Fault::AckRefused).await;
    assert_missed(&bad, "alg none: expected bad_envelope");
}

#[tokio::test(flavor = "multi_thread")]
async fn stolen_certificate() {
    assert_met(&with_fault(Scenario::StolenCertificate, Fault::None).await);
    let taken = with_fault(Scenario::StolenCertificate, Fault::UnprovenTakesOver).await;
    assert_missed(&taken, "honest devices unharmed");
    assert_missed(&with_fault(Scenario::StolenCertificate, Fault::AckRefused).await, "stolen certificate");
    let one = Gateway::start(Setup { devices: 1, ..Setup::default() }).await;
    let plan = Plan::new(one.credentials(), &one.url(), Scenario::StolenCertificate);
    assert!(run(plan).await.unwrap_err().to_string().contains("at least 2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unproven_session_that_stays_is_a_failure() {
    let gateway = Gateway::start(Setup { devices: 2, fault: Fault::KeepUnproven, ..Setup::default() }).await;
    let report = against(&gateway, Scenario::StolenCertificate, |_| {}).await;
    assert_missed(&report, "an unproven session: expected 'welcome', nothing else");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_ca() {
    let report = with_fault(Scenario::WrongCa, Fault::None).await;
    assert_met(&report);
    assert_eq!(report.attacks.len(), 3);
    let gateway =
        Gateway::start(Setup { devices: 4, fault: Fault::AnyCertificate, ..Setup::default() }).await;
    let report = against(&gateway, Scenario::WrongCa, |_| {}).await;
    assert_missed(&report, "a certificate of another CA");
}

#[tokio::test(flavor = "multi_thread")]
async fn skewed_clock() {
    let report = with_fault(Scenario::SkewedClock, Fault::None).await;
    assert_met(&report);
    assert_eq!(report.messages.refused.keys().collect::<Vec<_>>(), ["stale"]);
    assert!(report.messages.refused["stale"] >= 5);
    let lenient = with_fault(Scenario::SkewedClock, Fault::IgnoreTime).await;
    assert!(!lenient.met, "a gateway that tolerates a day is told so");
}

/// Asks all of them to renew, and hands each a new key, while they send.
async fn rotated(renew: Renew) -> (Gateway, Report) {
    let gateway = Gateway::start(Setup { devices: DEVICES, ..Setup::default() }).await;
    gateway.renewals().asks.store(true, Ordering::SeqCst);
    gateway.renewals().rekeys.store(true, Ordering::SeqCst);
    let report = against(&gateway, Scenario::Steady, |plan| {
        plan.renew = renew;
        plan.renew_spread = Duration::from_millis(200);
        plan.rate = Some(400.0);
    })
    .await;
    (gateway, report)
}

#[tokio::test(flavor = "multi_thread")]
async fn told_to_in_memory_a_fleet_takes_what_is_rotated_and_loses_nothing() {
    let (gateway, report) = rotated(Renew::InMemory).await;
    assert_met(&report);
    assert_eq!(report.messages.lost, 0);
    assert_eq!(report.rotation, Rotation { renewed: 20, rekeyed: 20, failed: 0 });
    assert_eq!(report.connections.sessions, 40, "each came back once");
    assert_eq!(gateway.renewals().issued(), DEVICES);
    assert!(report.to_string().contains("20 / 20 / 0"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_of_a_bulk_file_is_not_outlived_unless_somebody_says_so() {
    let (gateway, report) = rotated(Renew::Stored).await;
    assert_met(&report);
    assert_eq!(report.rotation, Rotation::default());
    assert_eq!(gateway.renewals().issued(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_that_is_refused_is_counted_and_is_no_refused_message() {
    let gateway = Gateway::start(Setup { devices: 2, ..Setup::default() }).await;
    gateway.renewals().asks.store(true, Ordering::SeqCst);
    *gateway.renewals().answer.lock().unwrap() = Answer::Refuse(Refusal::Forbidden);
    let report = against(&gateway, Scenario::Steady, |plan| {
        plan.renew = Renew::InMemory;
        plan.renew_spread = Duration::ZERO;
    })
    .await;
    assert_met(&report);
    assert_eq!(report.rotation, Rotation { failed: 2, ..Rotation::default() });
    assert!(report.messages.refused.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconnect_storm_loses_nothing() {
    let report = with_fault(Scenario::ReconnectStorm, Fault::None).await;
    assert_met(&report);
    assert_eq!((report.connections.sessions, report.messages.lost), (60, 0), "{report}");
    assert_eq!(report.attacks.iter().map(|attack| attack.tried).sum::<u64>(), 2);
    let gateway =
        Gateway::start(Setup { devices: DEVICES, fault: Fault::OnceOnly, ..Setup::default() }).await;
    let report = against(&gateway, Scenario::ReconnectStorm, |plan| {
        plan.connect_within = Duration::from_secs(1);
    })
    .await;
    assert_missed(&report, "a reconnect storm: expected every device that had a session has one again");
}

#[tokio::test(flavor = "multi_thread")]
async fn flapping() {
    let report = with_fault(Scenario::Flapping, Fault::None).await;
    assert_met(&report);
    assert!(report.attacks[0].tried >= 10, "{report}");
    assert_missed(&with_fault(Scenario::Flapping, Fault::OnceOnly).await, "a device that comes and goes");
    let one = Gateway::start(Setup { devices: 1, ..Setup::default() }).await;
    let plan = Plan::new(one.credentials(), &one.url(), Scenario::Flapping);
    assert!(run(plan).await.unwrap_err().to_string().contains("at least 2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_reader() {
    assert_met(&with_fault(Scenario::SlowReader, Fault::None).await);
    let waits = with_fault(Scenario::SlowReader, Fault::WaitForReaders).await;
    assert_missed(&waits, "a reader that does not read: expected close 4029");
}

#[tokio::test(flavor = "multi_thread")]
async fn oversize() {
    let report = with_fault(Scenario::Oversize, Fault::None).await;
    assert_met(&report);
    assert_eq!(report.attacks.len(), 3, "{report}");
    let any = with_fault(Scenario::Oversize, Fault::AnySize).await;
    assert_missed(&any, "a frame of 17 MiB: expected close 1009");
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_handshake() {
    let handshake_within = Duration::from_secs(2);
    let gateway = Gateway::start(Setup { devices: DEVICES, handshake_within, ..Setup::default() }).await;
    let report = against(&gateway, Scenario::SlowHandshake, |_| {}).await;
    assert_met(&report);
    assert_eq!(report.attacks.len(), 4, "{report}");
    assert!(report.attacks.iter().all(|attack| attack.tried == 40), "{report}");
    let patient = with_fault(Scenario::SlowHandshake, Fault::WaitForHandshakes).await;
    assert_missed(&patient, "half an upgrade: expected the end of the connection in time");
}
