//! `tls.crls`: what a CA has revoked is shut out, though the registry knows nothing of it.

use std::path::PathBuf;

use doorward::clock;
use doorward::gateway::Reloaded;
use doorward::home::{PUBLIC, write_over};
use doorward_pki::crl::{Crl, Reason, Scope, to_pem};
use doorward_pki::{Authority, Leaf};
use time::Duration;

use crate::support::device::{Device, problem_of, refused};
use crate::support::house::{Credentials, House, authorities, certify, eventually};

/// A list that holds for so long and names these.
fn list(authority: &Authority, holds: Duration, names: &[&Credentials]) -> Vec<u8> {
    let now = clock::utc();
    let mut list = Crl::new(1, now - Duration::MINUTE, now + holds, Scope::Unsaid);
    for credentials in names {
        let leaf = Leaf::parse(&credentials.chain[0]).unwrap();
        list.enter(leaf.serial(), now, Reason::KeyCompromise).unwrap();
    }
    list.sign(authority).unwrap()
}

fn write(house: &House, name: &str, bytes: &[u8]) -> PathBuf {
    let path = house.file(name);
    write_over(&path, bytes, PUBLIC).unwrap();
    path
}

async fn configure(house: &House, crls: &[&str]) -> Result<Reloaded, String> {
    let crls: Vec<PathBuf> = crls.iter().map(Into::into).collect();
    house.write_config(|config| config.tls.crls = crls);
    house.gateway.reload().await.map_err(|error| error.to_string())
}

#[tokio::test]
async fn whom_a_list_names_is_refused_and_its_session_ends() {
    let house = House::start().await;
    let (one, two) = (house.add_device("one").await, house.add_device("two").await);
    write(&house, "pki/a.crl", &list(&house.issuing, Duration::DAY, &[]));
    assert_eq!(configure(&house, &["pki/a.crl"]).await.unwrap().changed, ["tls.crls", "pki/a.crl"]);
    let (mut goes, mut stays) = (Device::prove(&house, &one).await, Device::prove(&house, &two).await);

    // In PEM as well as in DER, and by the change of the file alone.
    write(&house, "pki/a.crl", to_pem(&list(&house.issuing, Duration::DAY, &[&one])).as_bytes());
    goes.closed_with_bye(4004).await;
    let answer = refused(&house, &one).await;
    assert_eq!((answer.status, problem_of(&answer)), (403, "certificate-revoked".to_owned()));
    assert!(answer.body.contains("revocation list"), "{}", answer.body);
    stays.hello().await;
    Device::prove(&house, &two).await;

    // What a list takes back counts again.
    write(&house, "pki/a.crl", &list(&house.issuing, Duration::DAY, &[]));
    house.gateway.reload().await.unwrap();
    Device::prove(&house, &one).await;
}

#[tokio::test]
async fn a_list_speaks_of_its_own_cas_certificates_alone() {
    let house = House::start().await;
    let (_, other) = authorities("Other issuing CA");
    std::fs::write(house.file("pki/other.crt"), other.certificate_pem()).unwrap();
    let ours = house.add_device("ours").await;
    // The same serial, of another CA.
    let serial = Leaf::parse(&ours.chain[0]).unwrap().serial().to_owned();
    let bytes: Vec<u8> = serial
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect();
    let theirs = certify(&other, "theirs", |params| params.serial_number = Some(bytes.into()));
    let visitor = certify(&other, "visitor", |_| {});
    house.record("visitor", "default", &visitor).await;
    write(&house, "pki/other.crl", &list(&other, Duration::DAY, &[&theirs, &visitor]));
    house.write_config(|config| {
        config.tls.device_cas.push("pki/other.crt".into());
        config.tls.crls = vec!["pki/other.crl".into()];
    });
    house.gateway.reload().await.unwrap();
    assert_eq!(problem_of(&refused(&house, &visitor).await), "certificate-revoked");
    Device::prove(&house, &ours).await;
}

#[tokio::test]
async fn a_ca_that_the_one_above_it_has_revoked_lets_nobody_in() {
    let house = House::start().await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    let mut revoked = Crl::new(1, clock::utc(), clock::utc() + Duration::DAY, Scope::Unsaid);
    let issuing = Leaf::parse(house.issuing.certificate_der()).unwrap();
    revoked.enter(issuing.serial(), clock::utc(), Reason::KeyCompromise).unwrap();
    let revoked = to_pem(&revoked.sign(&house.root).unwrap());
    // Nobody knows its signer.
    write(&house, "pki/root.crl", revoked.as_bytes());
    let error = configure(&house, &["pki/root.crl"]).await.unwrap_err();
    assert!(error.contains("root.crl") && error.contains("none of the device CAs"), "{error}");
    device.hello().await;
    // The certificate of the CA that has signed the device CA may stand beside the list.
    write(&house, "pki/root.crl", format!("{revoked}{}", house.root.certificate_pem()).as_bytes());
    assert_eq!(configure(&house, &["pki/root.crl"]).await.unwrap().ended, 1);
    device.closed_with_bye(4004).await;
    assert_eq!(problem_of(&refused(&house, &credentials).await), "certificate-revoked");
    // The same where the root is trusted, and the CA comes with its device.
    house.write_config(|config| {
        config.tls.device_cas = vec!["pki/root.crt".into()];
        config.tls.crls = vec!["pki/root.crl".into()];
    });
    house.gateway.reload().await.unwrap();
    assert_eq!(problem_of(&refused(&house, &credentials).await), "certificate-revoked");
}

#[tokio::test]
async fn a_list_that_proves_nothing_is_refused_by_name_and_nothing_changes() {
    let house = House::start().await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    let (elsewhere, twin) = authorities("Test issuing CA");
    let beside = format!("{}{}", to_pem(&list(&elsewhere, Duration::DAY, &[])), elsewhere.certificate_pem());
    let late = Crl::new(1, clock::utc() + Duration::HOUR, clock::utc() + Duration::DAY, Scope::Unsaid);
    let old = Crl::new(1, clock::utc() - Duration::DAY, clock::utc() - Duration::SECOND, Scope::Unsaid);
    for (bytes, words) in [
        (b"junk".to_vec(), "no revocation list in it"),
        (house.root.certificate_pem().into_bytes(), "no revocation list in it"),
        (list(&twin, Duration::DAY, &[&credentials]), "none of the device CAs"),
        (beside.into_bytes(), "none of the device CAs"),
        (old.sign(&house.issuing).unwrap(), "ended at"),
        (late.sign(&house.issuing).unwrap(), "is the clock right"),
    ] {
        write(&house, "pki/a.crl", &bytes);
        let error = configure(&house, &["pki/a.crl"]).await.unwrap_err();
        assert!(error.contains("a.crl") && error.contains(words), "{words}: {error}");
    }
    let error = configure(&house, &["pki/none.crl"]).await.unwrap_err();
    assert!(error.contains("none.crl does not exist"), "{error}");
    device.hello().await;
    Device::prove(&house, &credentials).await;
}

#[tokio::test]
async fn a_list_that_ends_while_it_is_in_force_goes_on_counting_and_is_refused_at_a_start() {
    let mut house = House::start().await;
    let (bad, good) = (house.add_device("bad").await, house.add_device("good").await);
    write(&house, "pki/a.crl", &list(&house.issuing, Duration::seconds(2), &[&bad]));
    configure(&house, &["pki/a.crl"]).await.unwrap();
    let ends = clock::utc() + Duration::seconds(3);
    eventually("the list's end", async || clock::utc() > ends).await;
    // Another change is no reason to let in whom it names, nor is the list a reason to refuse the change.
    house.write_config(|config| {
        config.tls.crls = vec!["pki/a.crl".into()];
        config.tls.device_cas.push("pki/root.crt".into());
    });
    house.gateway.reload().await.unwrap();
    assert_eq!(problem_of(&refused(&house, &bad).await), "certificate-revoked");
    Device::prove(&house, &good).await;
    house.shut_down();
    house.ended().await;
    let error = house.start_error().await;
    assert!(error.contains("a.crl") && error.contains("ended at") && error.contains("fetch"), "{error}");
}

#[tokio::test]
async fn a_ca_that_is_withdrawn_goes_though_its_list_is_still_configured() {
    let house = House::start().await;
    let (other_root, other) = authorities("Other issuing CA");
    write(&house, "pki/other.crt", other.certificate_pem().as_bytes());
    write(&house, "pki/other-root.crt", other_root.certificate_pem().as_bytes());
    write(&house, "pki/other.crl", &list(&other, Duration::DAY, &[]));
    let visitor = certify(&other, "visitor", |_| {});
    house.record("visitor", "default", &visitor).await;
    let with = |cas: &[&str]| {
        let cas: Vec<PathBuf> = cas.iter().map(Into::into).collect();
        house.write_config(|config| {
            config.tls.device_cas = cas;
            config.tls.crls = vec!["pki/other.crl".into()];
        });
    };
    with(&["pki/issuing.crt", "pki/other.crt", "pki/other-root.crt"]);
    house.gateway.reload().await.unwrap();
    let mut device = Device::prove(&house, &visitor).await;
    // Below the root its devices would still get in, and nobody would know whom the list names.
    with(&["pki/issuing.crt", "pki/other-root.crt"]);
    let error = house.gateway.reload().await.unwrap_err().to_string();
    assert!(error.contains("none of the device CAs"), "{error}");
    device.hello().await;
    with(&["pki/issuing.crt"]);
    assert_eq!(house.gateway.reload().await.unwrap().ended, 1);
    device.closed_with_bye(4004).await;
    // It stays left out when something else changes, and counts again when its CA is back.
    with(&["pki/issuing.crt", "pki/root.crt"]);
    house.gateway.reload().await.unwrap();
    with(&["pki/issuing.crt", "pki/other-root.crt"]);
    let error = house.gateway.reload().await.unwrap_err().to_string();
    assert!(error.contains("none of the device CAs"), "{error}");
    with(&["pki/issuing.crt", "pki/other.crt"]);
    house.gateway.reload().await.unwrap();
    assert_eq!(house.gateway.expiries().revocation_lists.len(), 1);
    Device::prove(&house, &visitor).await;
}

#[tokio::test]
async fn a_list_that_is_older_than_the_one_in_force_is_refused() {
    let house = House::start().await;
    let bad = house.add_device("bad").await;
    let of = |minutes: i64, names: &[&Credentials]| {
        let begins = clock::utc() - Duration::minutes(minutes);
        let mut list = Crl::new(1, begins, begins + Duration::DAY, Scope::Unsaid);
        for credentials in names {
            let leaf = Leaf::parse(&credentials.chain[0]).unwrap();
            list.enter(leaf.serial(), begins, Reason::KeyCompromise).unwrap();
        }
        list.sign(&house.issuing).unwrap()
    };
    write(&house, "pki/a.crl", &of(5, &[&bad]));
    configure(&house, &["pki/a.crl"]).await.unwrap();
    write(&house, "pki/a.crl", &of(10, &[]));
    let error = house.gateway.reload().await.unwrap_err().to_string();
    assert!(error.contains("a.crl") && error.contains("older than the one in force"), "{error}");
    // Nor by another name.
    write(&house, "pki/b.crl", &of(10, &[]));
    let error = configure(&house, &["pki/b.crl"]).await.unwrap_err();
    assert!(error.contains("b.crl") && error.contains("older than the one in force"), "{error}");
    assert_eq!(problem_of(&refused(&house, &bad).await), "certificate-revoked");
    write(&house, "pki/b.crl", &of(1, &[&bad]));
    configure(&house, &["pki/b.crl"]).await.unwrap();
}
