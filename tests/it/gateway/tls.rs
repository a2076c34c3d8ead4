//! The handshake: who has no certificate from a device CA gets an alert and no HTTP.

use std::sync::{Arc, Mutex};

use doorward::config::TlsVersion;
use doorward::registry::Act;
use doorward::{clock, entropy};
use doorward_pki::{Authority, Serial};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa};
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, HandshakeKind, SignatureScheme};

use crate::support::device::{Device, TLS13, UPGRADE, ask, dial, problem_of, tls};
use crate::support::house::{Credentials, House, authorities, certify, eventually, from_now, log};

/// The alert that a connection ends with; no byte of HTTP comes before it.
async fn alert(house: &House, config: rustls::ClientConfig) -> AlertDescription {
    let config = Arc::new(config);
    let error = match dial(house, config).await {
        Ok(mut stream) => ask(&mut stream, UPGRADE).await.expect_err("an alert, and this is HTTP"),
        Err(error) => error,
    };
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(alert)) => *alert,
        _ => panic!("an alert, and this came: {error}"),
    }
}

async fn refused_in_tls(house: &House, credentials: &Credentials, wanted: AlertDescription) {
    // Recorded or not: TLS does not ask.
    assert_eq!(alert(house, tls(house, Some(credentials), TLS13)).await, wanted);
    let subject = format!("subject=\"CN={}\"", credentials.id);
    eventually("the log line with the subject", async || {
        log().lines().any(|line| {
            line.contains("refused in TLS") && line.contains(&subject) && line.contains("peer=127.0.0.1:")
        })
    })
    .await;
}

#[tokio::test]
async fn without_a_certificate_there_is_no_http() {
    let house = House::start().await;
    assert_eq!(alert(&house, tls(&house, None, TLS13)).await, AlertDescription::CertificateRequired);
}

#[tokio::test]
async fn a_certificate_of_another_ca_ends_in_an_alert() {
    let house = House::start().await;
    let (_, elsewhere) = authorities("Other issuing CA");
    refused_in_tls(&house, &certify(&elsewhere, "other-ca", |_| {}), AlertDescription::UnknownCA).await;
    // The root is no device CA: it signs CAs.
    refused_in_tls(&house, &certify(&house.root, "by-root", |_| {}), AlertDescription::UnknownCA).await;
}

#[tokio::test]
async fn a_ca_of_the_same_name_with_another_key_is_another_ca() {
    let house = House::start().await;
    let (_, twin) = authorities("Test issuing CA");
    refused_in_tls(&house, &certify(&twin, "twin", |_| {}), AlertDescription::DecryptError).await;
}

#[tokio::test]
async fn a_leaf_before_its_time_or_for_something_else_ends_in_an_alert() {
    let house = House::start().await;
    let early = house.certify("early", |params| params.not_before = from_now(3600));
    house.record("early", "default", &early).await;
    refused_in_tls(&house, &early, AlertDescription::CertificateExpired).await;
    let server = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    };
    let server = house.certify("server", server);
    house.record("server", "default", &server).await;
    let ca = house.certify("ca", |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    house.record("ca", "default", &ca).await;
    for odd in [&server, &ca] {
        alert(&house, tls(&house, Some(odd), TLS13)).await;
    }
}

#[tokio::test]
async fn an_expired_ca_opens_nothing() {
    let then = clock::utc() - time::Duration::days(4000);
    let expired = Authority::root(
        "Old CA",
        entropy::key_pair().unwrap(),
        Serial::from_random(entropy::random().unwrap()),
        then,
    )
    .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("old.crt");
    std::fs::write(&path, expired.certificate_pem()).unwrap();
    let house = House::with(|config| config.tls.device_cas.push(path)).await;
    let credentials = certify(&expired, "press-7", |params| params.not_before = then);
    house.record("press-7", "default", &credentials).await;
    refused_in_tls(&house, &credentials, AlertDescription::CertificateExpired).await;
}

#[tokio::test]
async fn tls_1_2_is_spoken_where_the_configuration_says_so() {
    let only_1_2 = &[&rustls::version::TLS12];
    let house = House::start().await;
    let credentials = house.add_device("press-7").await;
    assert_eq!(
        alert(&house, tls(&house, Some(&credentials), only_1_2)).await,
        AlertDescription::ProtocolVersion
    );

    let house = House::with(|config| config.tls.min_version = TlsVersion::V1_2).await;
    let credentials = house.add_device("press-7").await;
    let stream = dial(&house, Arc::new(tls(&house, Some(&credentials), only_1_2))).await.unwrap();
    let mut device = Device::upgrade_on(stream, &credentials, UPGRADE).await.unwrap();
    device.expect("welcome").await;
    device.hello().await;
    // The certificate is asked for there too.
    let error = dial(&house, Arc::new(tls(&house, None, only_1_2))).await;
    assert!(error.is_err());
}

#[tokio::test]
async fn the_key_exchange_is_post_quantum_where_the_device_can() {
    let house = House::start().await;
    let credentials = house.add_device("press-7").await;
    let stream = dial(&house, Arc::new(tls(&house, Some(&credentials), TLS13))).await.unwrap();
    let (_, session) = stream.get_ref();
    assert_eq!(
        session.negotiated_key_exchange_group().map(|group| group.name()),
        Some(rustls::NamedGroup::X25519MLKEM768)
    );
    assert_eq!(session.alpn_protocol(), Some(&b"http/1.1"[..]));
    for group in [rustls::NamedGroup::X25519, rustls::NamedGroup::secp256r1] {
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        provider.kx_groups.retain(|offered| offered.name() == group);
        let mut config = tls(&house, Some(&credentials), TLS13);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(house.root.certificate_der().to_vec().into()).unwrap();
        let plain = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(TLS13)
            .unwrap()
            .with_root_certificates(roots);
        config = plain.with_client_cert_resolver(config.client_auth_cert_resolver);
        let stream = dial(&house, Arc::new(config)).await.unwrap();
        let mut device = Device::upgrade_on(stream, &credentials, UPGRADE).await.unwrap();
        device.expect("welcome").await;
    }
}

/// Notes what the server asks for, and has nothing.
#[derive(Debug, Default)]
struct Nosy(Mutex<Option<usize>>);

impl ResolvesClientCert for Nosy {
    fn resolve(&self, hints: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        *self.0.lock().unwrap() = Some(hints.len());
        None
    }
    fn has_certs(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn a_stranger_is_not_told_whom_the_gateway_trusts() {
    let house = House::start().await;
    let nosy = Arc::new(Nosy::default());
    let mut config = tls(&house, None, TLS13);
    config.client_auth_cert_resolver = Arc::clone(&nosy) as _;
    assert_eq!(alert(&house, config).await, AlertDescription::CertificateRequired);
    assert_eq!(*nosy.0.lock().unwrap(), Some(0), "names of CAs in the certificate request");
}

#[tokio::test]
async fn a_resumed_handshake_is_judged_like_a_full_one() {
    let house = House::start().await;
    let mut devices = Vec::new();
    for id in ["device-revoked", "certificate-revoked", "device-suspended"] {
        let credentials = house.add_device(id).await;
        let config = Arc::new(tls(&house, Some(&credentials), TLS13));
        // What the device reads brings the ticket along.
        let stream = dial(&house, Arc::clone(&config)).await.unwrap();
        assert_ne!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));
        let mut device = Device::upgrade_on(stream, &credentials, UPGRADE).await.unwrap();
        device.expect("welcome").await;
        device.hello().await;
        devices.push((credentials, config));
    }
    // Resumption does work: else this test would be about nothing.
    let (credentials, config) = &devices[0];
    let stream = dial(&house, Arc::clone(config)).await.unwrap();
    let mut device = Device::upgrade_on(stream, credentials, UPGRADE).await.unwrap();
    assert_eq!(device.ws.get_ref().get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));
    device.expect("welcome").await;

    house.db.registry.set_status(&devices[0].0.id, Act::Revoke, None).await.unwrap();
    house
        .db
        .execute("UPDATE certificates SET status = 'revoked' WHERE device = 'certificate-revoked'")
        .await
        .unwrap();
    house.db.registry.set_status(&devices[2].0.id, Act::Suspend, None).await.unwrap();
    for (credentials, config) in &devices {
        let mut stream = dial(&house, Arc::clone(config)).await.unwrap();
        let answer = ask(&mut stream, UPGRADE).await.unwrap();
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));
        assert_eq!((answer.status, problem_of(&answer)), (403, credentials.id.to_string()));
    }
}

#[tokio::test]
async fn tickets_die_with_a_change_of_the_device_cas() {
    let house = House::start().await;
    let credentials = house.add_device("press-7").await;
    let config = Arc::new(tls(&house, Some(&credentials), TLS13));
    let connect = async || {
        let stream = dial(&house, Arc::clone(&config)).await.unwrap();
        let mut device = Device::upgrade_on(stream, &credentials, UPGRADE).await.unwrap();
        device.expect("welcome").await;
        device.ws.get_ref().get_ref().1.handshake_kind()
    };
    connect().await;
    assert_eq!(connect().await, Some(HandshakeKind::Resumed));
    house.write_config(|config| config.tls.device_cas.push("pki/root.crt".into()));
    assert_eq!(house.gateway.reload().await.unwrap().changed, ["tls.device_cas", "pki/root.crt"]);
    assert_ne!(connect().await, Some(HandshakeKind::Resumed));
}

#[tokio::test]
async fn a_root_lets_in_those_below_its_intermediates() {
    let house = House::with(|config| config.tls.device_cas = vec!["pki/root.crt".into()]).await;
    let credentials = house.add_device("press-7").await;
    Device::prove(&house, &credentials).await;
    // Without what is between there is no path.
    let mut alone = house.certify("alone", |_| {});
    alone.chain.truncate(1);
    refused_in_tls(&house, &alone, AlertDescription::UnknownCA).await;
    // A leaf is no CA, and signs nobody.
    let mut below = house.certify("below", |_| {});
    let middle = house.certify("middle", |_| {});
    below.chain = vec![below.chain[0].clone(), middle.chain[0].clone(), middle.chain[1].clone()];
    refused_in_tls(&house, &below, AlertDescription::UnknownCA).await;
    let mut long = house.certify("long", |_| {});
    long.chain.extend(vec![long.chain[1].clone(); 4]);
    refused_in_tls(&house, &long, AlertDescription::UnknownCA).await;
}

#[tokio::test]
async fn what_else_has_changed_at_a_reload_is_named() {
    let house = House::start().await;
    house.write_config(|config| {
        config.limits.connections = 7;
        config.tls.device_cas = vec!["pki/root.crt".into()];
    });
    let credentials = house.add_device("press-7").await;
    let reloaded = house.gateway.reload().await.unwrap();
    assert_eq!(reloaded.waiting, ["limits.connections"]);
    Device::prove(&house, &credentials).await;
    house.write_config(|config| config.tls.key = "pki/none.key".into());
    let error = house.gateway.reload().await.unwrap_err().to_string();
    assert!(error.contains("none.key"), "{error}");
    Device::prove(&house, &credentials).await;
}
