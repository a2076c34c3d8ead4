//! Who is let in: steps 1 to 6 of docs/protocol.md §1, on both databases where the registry decides.

use doorward::registry::Act;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyUsagePurpose};
use serde_json::json;
use std::sync::atomic::Ordering;

use super::hooked;
use crate::support::database::Database;
use crate::support::device::{Answer, Device, UPGRADE, problem_of, refused, request};
use crate::support::house::{Credentials, House, from_now, log, stamp};

/// A problem document has its members and no more, and its `instance` is the log line's.
fn assert_problem(answer: &Answer, status: u16, label: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    let problem = answer.problem();
    let mut members: Vec<_> = problem.as_object().unwrap().keys().map(String::as_str).collect();
    members.sort_unstable();
    assert_eq!(members, ["detail", "instance", "status", "title", "type"]);
    assert_eq!(problem["type"], format!("urn:doorward:problem:{label}"));
    assert_eq!(problem["status"], status);
    for words in ["title", "detail"] {
        assert!(!problem[words].as_str().unwrap().is_empty(), "{problem}");
    }
    let instance = problem["instance"].as_str().unwrap();
    let lines: Vec<_> = log().lines().filter(|line| line.contains(instance)).map(str::to_owned).collect();
    assert_eq!(lines.len(), 1, "one log line for {instance}: {lines:?}");
    assert!(lines[0].contains(&format!("status={status}")) && lines[0].contains(label), "{lines:?}");
}

/// Refused for this, with a good request and with a bad one: the identity is judged before the request.
async fn assert_refused(house: &House, credentials: &Credentials, status: u16, label: &str) {
    assert_problem(&refused(house, credentials).await, status, label);
    let wrong_path = UPGRADE.replace("/v1/device", "/elsewhere?x=1");
    assert_problem(&request(house, credentials, &wrong_path).await.unwrap(), status, label);
}

async fn the_registry_decides(db: Database) {
    let house = House::on(db, |_| {}).await;
    assert_refused(&house, &house.certify("nobody", |_| {}), 401, "certificate-unknown").await;

    let other = house.certify("press-2", |_| {});
    house.record("press-1", "default", &other).await;
    assert_refused(&house, &other, 401, "certificate-mismatch").await;

    let suspended = house.add_device("suspended").await;
    house.db.registry.set_status(&suspended.id, Act::Suspend, Some("under repair")).await.unwrap();
    assert_refused(&house, &suspended, 403, "device-suspended").await;
    assert!(refused(&house, &suspended).await.body.contains("under repair"));
    house.db.registry.set_status(&suspended.id, Act::Resume, None).await.unwrap();
    Device::prove(&house, &suspended).await;

    let revoked = house.add_device("revoked").await;
    house.db.registry.set_status(&revoked.id, Act::Revoke, None).await.unwrap();
    assert_refused(&house, &revoked, 403, "device-revoked").await;

    let set = async |id: &str, what: &str| {
        house.db.execute(&format!("UPDATE certificates SET {what} WHERE device = '{id}'")).await.unwrap();
    };
    let compromised = house.add_device("compromised").await;
    set("compromised", "status = 'revoked', reason = 'key stolen'").await;
    assert_refused(&house, &compromised, 403, "certificate-revoked").await;

    let superseded = house.add_device("superseded").await;
    let grace = |seconds| format!("status = 'superseded', valid_until = '{}'", stamp(from_now(seconds)));
    set("superseded", &grace(3600)).await;
    Device::prove(&house, &superseded).await;
    set("superseded", &grace(-1)).await;
    assert_refused(&house, &superseded, 403, "certificate-superseded").await;
}

#[tokio::test]
async fn the_registry_decides_on_sqlite() {
    the_registry_decides(Database::sqlite().await).await;
}

#[tokio::test]
async fn the_registry_decides_on_postgres() {
    the_registry_decides(Database::postgres().await).await;
}

#[tokio::test]
async fn a_subject_without_exactly_one_name_is_a_mismatch() {
    let house = House::start().await;
    let second_name = DnType::CustomDnType(vec![2, 5, 4, 3]);
    let no_name = |params: &mut CertificateParams| {
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "press-1");
    };
    let two_names = |params: &mut CertificateParams| params.distinguished_name.push(second_name, "press-2");
    let in_other_case =
        |params: &mut CertificateParams| params.distinguished_name.push(DnType::CommonName, "PRESS-3");
    for (id, credentials) in [
        ("press-1", house.certify("press-1", no_name)),
        ("press-2", house.certify("press-2", two_names)),
        ("press-3", house.certify("press-3", in_other_case)),
    ] {
        house.record(id, "default", &credentials).await;
        assert_refused(&house, &credentials, 401, "certificate-mismatch").await;
    }
}

#[tokio::test]
async fn a_leaf_that_is_not_for_a_device_is_unfit() {
    let house = House::start().await;
    let no_usage = |params: &mut CertificateParams| params.extended_key_usages.clear();
    let no_signature =
        |params: &mut CertificateParams| params.key_usages = vec![KeyUsagePurpose::KeyAgreement];
    let any_usage = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any, ExtendedKeyUsagePurpose::ClientAuth];
    };
    for (id, credentials) in [("a", house.certify("a", no_usage)), ("b", house.certify("b", no_signature))] {
        house.record(id, "default", &credentials).await;
        assert_refused(&house, &credentials, 401, "certificate-unfit").await;
    }
    // More usages than needed do no harm.
    let credentials = house.certify("c", any_usage);
    house.record("c", "default", &credentials).await;
    Device::prove(&house, &credentials).await;
}

#[tokio::test]
async fn an_expired_leaf_is_told_so_in_words() {
    let house = House::start().await;
    let credentials = house.certify("press-7", |params| {
        (params.not_before, params.not_after) = (from_now(-172_800), from_now(-86_400));
    });
    house.record("press-7", "default", &credentials).await;
    assert_refused(&house, &credentials, 403, "certificate-expired").await;
}

#[tokio::test]
async fn the_first_failure_in_the_order_of_the_steps_is_the_one_told() {
    let house = House::start().await;
    // Of another device, unfit, expired and suspended at once; each is mended in turn.
    let set = async |sql: &str| house.db.execute(sql).await.unwrap();
    let all = |params: &mut CertificateParams| {
        (params.not_before, params.not_after) = (from_now(-172_800), from_now(-86_400));
        params.extended_key_usages.clear();
    };
    let (stranger, unfit) = (house.certify("other", all), house.certify("a", all));
    let expired = house.certify("b", |params| {
        (params.not_before, params.not_after) = (from_now(-172_800), from_now(-86_400));
    });
    for (id, credentials, problem) in [
        ("x", &stranger, "certificate-mismatch"),
        ("a", &unfit, "certificate-unfit"),
        ("b", &expired, "certificate-revoked"),
    ] {
        house.record(id, "default", credentials).await;
        set(&format!("UPDATE certificates SET status = 'revoked' WHERE device = '{id}'")).await;
        set(&format!("UPDATE devices SET status = 'suspended' WHERE id = '{id}'")).await;
        assert_eq!(problem_of(&refused(&house, credentials).await), problem);
    }
    let late = house.certify("c", |params| {
        (params.not_before, params.not_after) = (from_now(-172_800), from_now(-86_400));
    });
    house.record("c", "default", &late).await;
    set("UPDATE devices SET status = 'revoked' WHERE id = 'c'").await;
    assert_eq!(problem_of(&refused(&house, &late).await), "certificate-expired");
}

#[tokio::test]
async fn a_name_with_a_newline_forges_no_log_line() {
    let house = House::start().await;
    let forged = "x\n2027-01-01T00:00:00Z  INFO forged: session proven device=press-7\u{202e}";
    // Once refused by the registry, once in TLS.
    let answer = refused(&house, &house.certify(forged, |_| {})).await;
    assert_eq!(problem_of(&answer), "certificate-unknown");
    let (_, elsewhere) = crate::support::house::authorities("Other CA");
    let stranger = crate::support::house::certify(&elsewhere, forged, |_| {});
    request(&house, &stranger, UPGRADE).await.unwrap_err();
    crate::support::house::eventually("both refusals are logged", async || {
        log().lines().filter(|line| line.contains("forged: session proven")).count() == 2
    })
    .await;
    let of_ours = |line: &str| line.contains("forged") && !line.contains("refused");
    assert!(!log().lines().any(of_ours), "{}", log());
    assert!(!log().contains('\u{202e}'));
}

#[tokio::test]
async fn a_registry_that_does_not_answer_lets_nobody_in() {
    let (house, hooked) = hooked::house(|_| {}).await;
    let credentials = house.add_device("press-7").await;
    hooked.fail_look_ups.store(true, Ordering::SeqCst);
    let answer = request(&house, &credentials, &UPGRADE.replace("/v1/device", "/elsewhere")).await.unwrap();
    assert_eq!((answer.status, problem_of(&answer).as_str()), (503, "unavailable"));
    let wait: u64 = answer.header("retry-after").expect("Retry-After").parse().unwrap();
    assert!((1..=60).contains(&wait));
    hooked.fail_look_ups.store(false, Ordering::SeqCst);
    let mut device = Device::prove(&house, &credentials).await;
    let seq = device.say(json!({ "op": "hello" })).await;
    device.acked(seq).await;
}
