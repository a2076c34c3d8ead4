//! Which device CA has signed a leaf, and what of its path may be out of date.

use std::path::PathBuf;
use std::sync::Arc;

use doorward::{clock, entropy};
use doorward_pki::{Authority, Serial, certificate_to_pem, key_to_pem};
use rcgen::{BasicConstraints, IsCa, KeyPair, KeyUsagePurpose};
use rustls::AlertDescription;
use time::Duration;

use crate::support::device::{Device, TLS13, UPGRADE, ask, dial, problem_of, refused, tls};
use crate::support::house::{Credentials, House, authorities, certify, from_now};

/// The alert that a connection ends with.
async fn alert(house: &House, credentials: &Credentials) -> AlertDescription {
    let error = match dial(house, Arc::new(tls(house, Some(credentials), TLS13))).await {
        Ok(mut stream) => ask(&mut stream, UPGRADE).await.expect_err("an alert, and this is HTTP"),
        Err(error) => error,
    };
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(alert)) => *alert,
        _ => panic!("an alert, and this came: {error}"),
    }
}

fn serial() -> Serial {
    Serial::from_random(entropy::random().unwrap())
}

/// A root of 4,000 days' age less its validity's rest, and an issuing CA that it has made so many days ago.
fn aged(days: i64) -> (Authority, Authority) {
    let key = || entropy::key_pair().unwrap();
    let then = clock::utc() - Duration::days(days);
    let root = Authority::root("Aged root CA", key(), serial(), then - Duration::days(1)).unwrap();
    let issuing = root.issuing("Aged issuing CA", key(), serial(), then).unwrap();
    (root, issuing)
}

/// A folder with one file of CAs in it.
fn file(cas: &[&Authority]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cas.crt");
    std::fs::write(&path, cas.iter().map(|ca| ca.certificate_pem()).collect::<String>()).unwrap();
    (folder, path)
}

async fn house_trusting(cas: &[&Authority]) -> House {
    let (_folder, path) = file(cas);
    House::with(|config| config.tls.device_cas = vec![path]).await
}

async fn recorded(house: &House, id: &str, credentials: Credentials) -> Credentials {
    house.record(id, "default", &credentials).await;
    credentials
}

#[tokio::test]
async fn an_expired_leaf_below_a_root_is_told_so_in_words() {
    let house = House::with(|config| config.tls.device_cas = vec!["pki/root.crt".into()]).await;
    let late = house.certify("late", |params| {
        (params.not_before, params.not_after) = (from_now(-200), from_now(-100));
    });
    let answer = refused(&house, &recorded(&house, "late", late).await).await;
    assert_eq!((answer.status, problem_of(&answer).as_str()), (403, "certificate-expired"));
    let early = house.certify("early", |params| params.not_before = from_now(3600));
    let early = recorded(&house, "early", early).await;
    assert_eq!(alert(&house, &early).await, AlertDescription::CertificateExpired);
    // Expired, and signed by nobody who is trusted.
    let (_, elsewhere) = authorities("Test issuing CA");
    let forged = certify(&elsewhere, "forged", |params| {
        (params.not_before, params.not_after) = (from_now(-200), from_now(-100));
    });
    assert_eq!(alert(&house, &forged).await, AlertDescription::DecryptError);
}

#[tokio::test]
async fn an_intermediate_that_does_not_hold_now_ends_in_an_alert() {
    // An issuing CA is made for 1,826 days.
    let (root, expired) = aged(1900);
    let house = house_trusting(&[&root]).await;
    let good = recorded(&house, "good", certify(&expired, "good", |_| {})).await;
    assert_eq!(alert(&house, &good).await, AlertDescription::CertificateExpired);
    // A leaf that was valid when its intermediate was: its last second is no way round that.
    let then = clock::utc() - Duration::days(1000);
    let both = certify(&expired, "both", |params| {
        (params.not_before, params.not_after) = (then, then + Duration::days(90));
    });
    let both = recorded(&house, "both", both).await;
    assert_eq!(alert(&house, &both).await, AlertDescription::CertificateExpired);
    // The same below one that holds: the path is that, and the words come.
    let (root, holds) = aged(1200);
    let house = house_trusting(&[&root]).await;
    let late = certify(&holds, "late", |params| {
        (params.not_before, params.not_after) = (then, then + Duration::days(90));
    });
    let answer = refused(&house, &recorded(&house, "late", late).await).await;
    assert_eq!((answer.status, problem_of(&answer).as_str()), (403, "certificate-expired"));
}

#[tokio::test]
async fn an_expired_root_opens_nothing_below_it() {
    // A root is made for 3,652 days. What it signs ends with it; this outlives it.
    let (root, _) = aged(3700);
    let issuing = certify(&root, "Outlives", |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.extended_key_usages = Vec::new();
    });
    let key = KeyPair::try_from(issuing.key.secret_der()).unwrap();
    let issuing = Authority::load(&certificate_to_pem(&issuing.chain[0]), &key_to_pem(&key)).unwrap();
    let house = house_trusting(&[&root]).await;
    let device = recorded(&house, "press-7", certify(&issuing, "press-7", |_| {})).await;
    assert_eq!(alert(&house, &device).await, AlertDescription::CertificateExpired);
}

#[tokio::test]
async fn two_cas_of_one_name_are_told_apart_by_key() {
    let (_, first) = authorities("Twin CA");
    let (_, second) = authorities("Twin CA");
    for order in [[&first, &second], [&second, &first]] {
        let house = house_trusting(&order).await;
        for (id, ca) in [("one", &first), ("two", &second)] {
            let device = recorded(&house, id, certify(ca, id, |_| {})).await;
            Device::prove(&house, &device).await;
        }
        // A leaf that does not say which, and comes alone: each is tried.
        for (id, ca) in [("three", &first), ("four", &second)] {
            let mut silent = certify(ca, id, |params| params.use_authority_key_identifier_extension = false);
            silent.chain.truncate(1);
            Device::prove(&house, &recorded(&house, id, silent).await).await;
        }
        let (_, third) = authorities("Twin CA");
        let stranger = recorded(&house, "five", certify(&third, "five", |_| {})).await;
        assert_eq!(alert(&house, &stranger).await, AlertDescription::DecryptError);
    }
}

#[tokio::test]
async fn a_namesake_of_a_trusted_ca_comes_in_below_the_root() {
    let house = House::with(|config| {
        config.tls.device_cas = vec!["pki/issuing.crt".into(), "pki/root.crt".into()];
    })
    .await;
    let key = entropy::key_pair().unwrap();
    let next = house.root.issuing("Test issuing CA", key, serial(), clock::utc()).unwrap();
    let device = recorded(&house, "next", certify(&next, "next", |_| {})).await;
    Device::prove(&house, &device).await;
    // What it sends besides is read only where it is needed, but never more of it than there may be.
    let mut alone = recorded(&house, "alone", certify(&next, "alone", |_| {})).await;
    alone.chain.truncate(1);
    assert_eq!(alert(&house, &alone).await, AlertDescription::DecryptError);
    let known = house.add_device("known").await;
    Device::prove(&house, &known).await;
}
