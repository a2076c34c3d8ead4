//! The gateway's own certificate is renewed by itself; what is about to end is said, and counted.

use std::sync::Arc;

use doorward::clock;
use doorward::home::{PUBLIC, SECRET, write_over};
use doorward_pki::crl::{Crl, Scope};
use doorward_pki::{Authority, Serial, ServerCertificate};
use rustls::pki_types::CertificateDer;
use time::Duration;

use crate::support::device::{Device, TLS13, dial, tls};
use crate::support::house::{Credentials, House, eventually, log};

async fn shown(house: &House, credentials: &Credentials) -> CertificateDer<'static> {
    let stream = dial(house, Arc::new(tls(house, Some(credentials), TLS13))).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone()
}

/// A pair that is past two thirds of its lifetime: it began five minutes ago, as all of ours do.
async fn show_an_old_one(house: &House, lifetime: Duration) {
    let (certificate, key) = house.server_pair(lifetime);
    write_over(&house.file("pki/gateway.crt"), certificate, PUBLIC).unwrap();
    write_over(&house.file("pki/gateway.key"), key, SECRET).unwrap();
    house.gateway.reload().await.unwrap();
}

fn lines(words: &str) -> usize {
    log().lines().filter(|line| line.contains(words)).count()
}

#[tokio::test]
async fn it_is_renewed_from_two_thirds_on_and_shown_to_the_next_handshake() {
    let house = House::start().await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    let (certificate, key) = (house.issuing.certificate_pem(), house.issuing.key_pem());
    house
        .gateway
        .set_signer(Box::new(move || Authority::load(&certificate, &key).map_err(|error| error.to_string())));
    // Two thirds of a day are not over.
    show_an_old_one(&house, Duration::DAY).await;
    let young = shown(&house, &credentials).await;
    house.gateway.look_at_dates().await;
    assert_eq!(shown(&house, &credentials).await, young);

    show_an_old_one(&house, Duration::seconds(100)).await;
    let old = ServerCertificate::parse(&shown(&house, &credentials).await).unwrap();
    assert!((0..=100).contains(&house.gateway.expiries().server_certificate));
    house.gateway.look_at_dates().await;
    let new = ServerCertificate::parse(&shown(&house, &credentials).await).unwrap();
    assert_eq!((&new.name, &new.hosts), (&old.name, &old.hosts));
    assert!(new.not_after > old.not_after + 360 * 86_400);
    assert!(house.gateway.expiries().server_certificate > 360 * 86_400);
    assert_eq!(lines("own certificate is renewed"), 1);
    device.hello().await;
    // And a restart finds it.
    let leaf = shown(&house, &credentials).await;
    let mut house = house;
    house.restart().await;
    assert_eq!(shown(&house, &credentials).await, leaf);
}

#[tokio::test]
async fn where_it_cannot_be_renewed_it_is_said_once_a_day_and_it_serves_on() {
    let house = House::start().await;
    let credentials = house.add_device("press-7").await;
    show_an_old_one(&house, Duration::seconds(100)).await;
    let old = shown(&house, &credentials).await;
    for _ in 0..3 {
        house.gateway.look_at_dates().await;
    }
    assert_eq!(lines("is to be renewed, and cannot be from here"), 1);
    assert!(log().contains("doorward gateway renew-cert"), "{}", log());
    assert_eq!(shown(&house, &credentials).await, old);
    Device::prove(&house, &credentials).await;
}

#[tokio::test]
async fn a_signer_that_fails_leaves_the_old_one_and_says_why() {
    let house = House::start().await;
    let credentials = house.add_device("press-7").await;
    house.gateway.set_signer(Box::new(|| Err("the passphrase is wrong".to_owned())));
    show_an_old_one(&house, Duration::seconds(100)).await;
    let old = shown(&house, &credentials).await;
    house.gateway.look_at_dates().await;
    assert_eq!(lines("the passphrase is wrong"), 1);
    assert_eq!(shown(&house, &credentials).await, old);
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_left_to_whoever_renews_it() {
    let house = House::start().await;
    let serial = || Serial::from_random(doorward::entropy::random().unwrap());
    let key = || doorward::entropy::key_pair().unwrap();
    let other = Authority::root("Elsewhere", key(), serial(), clock::utc()).unwrap();
    let (certificate, key) = (other.certificate_pem(), other.key_pem());
    house
        .gateway
        .set_signer(Box::new(move || Authority::load(&certificate, &key).map_err(|error| error.to_string())));
    std::fs::remove_file(house.file("pki/root.crt")).unwrap();
    show_an_old_one(&house, Duration::seconds(100)).await;
    house.gateway.look_at_dates().await;
    assert_eq!(lines("was not signed by a CA of this home"), 1);
}

#[tokio::test]
async fn what_ends_soonest_is_counted_and_a_list_that_has_ended_is_named() {
    let house = House::start().await;
    assert_eq!(house.gateway.expiries().session_certificates, None);
    let soon = house.certify("soon", |params| params.not_after = clock::utc() + Duration::HOUR);
    house.record("soon", "default", &soon).await;
    let later = house.add_device("later").await;
    let _sessions = (Device::prove(&house, &later).await, Device::prove(&house, &soon).await);
    let now = clock::utc();
    let list = Crl::new(1, now - Duration::MINUTE, now + Duration::seconds(2), Scope::Unsaid);
    std::fs::write(house.file("pki/a.crl"), list.sign(&house.issuing).unwrap()).unwrap();
    house.write_config(|config| config.tls.crls = vec!["pki/a.crl".into()]);
    house.gateway.reload().await.unwrap();
    let expiries = house.gateway.expiries();
    assert!((3500..=3600).contains(&expiries.session_certificates.unwrap()), "{expiries:?}");
    assert!(expiries.server_certificate > 364 * 86_400);
    let [(ca, left)] = expiries.device_cas.as_slice() else { panic!("{expiries:?}") };
    assert!(ca.contains("Test issuing CA") && *left > 1800 * 86_400, "{expiries:?}");
    let [(issuer, left)] = expiries.revocation_lists.as_slice() else { panic!("{expiries:?}") };
    assert!(issuer.contains("Test issuing CA") && *left <= 2, "{expiries:?}");

    let ends = now + Duration::seconds(3);
    eventually("the list's end", async || clock::utc() > ends).await;
    house.gateway.look_at_dates().await;
    house.gateway.look_at_dates().await;
    assert!(house.gateway.expiries().revocation_lists[0].1 < 0);
    assert_eq!(lines("a revocation list has ended"), 1);
    assert_eq!(lines("a device CA ends soon"), 0);
}

#[tokio::test]
async fn one_that_a_clock_has_made_that_ran_ahead_is_named_and_renewed() {
    let house = House::start().await;
    let credentials = house.add_device("press-7").await;
    let (certificate, key) = (house.issuing.certificate_pem(), house.issuing.key_pem());
    house
        .gateway
        .set_signer(Box::new(move || Authority::load(&certificate, &key).map_err(|error| error.to_string())));
    let key = doorward::entropy::key_pair().unwrap();
    let serial = Serial::from_random(doorward::entropy::random().unwrap());
    let hosts = ["localhost".parse().unwrap(), "127.0.0.1".parse().unwrap()];
    let ahead = clock::utc() + Duration::days(30);
    // It would hold longer than any that could take its place now.
    let leaf = house
        .issuing
        .issue_gateway("localhost", &hosts, &key, serial, ahead, Duration::days(36_500))
        .unwrap();
    let chain = format!("{}{}", leaf.pem(), house.issuing.certificate_pem());
    write_over(&house.file("pki/gateway.crt"), chain, PUBLIC).unwrap();
    write_over(&house.file("pki/gateway.key"), doorward_pki::key_to_pem(&key).as_str(), SECRET).unwrap();
    house.gateway.reload().await.unwrap();
    house.gateway.look_at_dates().await;
    assert_eq!(lines("the gateway's own certificate is not valid yet"), 1);
    assert_eq!(lines("own certificate is renewed"), 1);
    let new = ServerCertificate::parse(&shown(&house, &credentials).await).unwrap();
    assert!(new.not_before <= clock::utc().unix_timestamp());
}
