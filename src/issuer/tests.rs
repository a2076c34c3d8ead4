use doorward_pki::key_to_pem;
use doorward_proto::ids::{DeviceId, FleetId};
use rcgen::{CertificateParams, DnType, KeyPair};

use super::*;

fn now() -> OffsetDateTime {
    clock::utc()
}

fn days(days: i64) -> time::Duration {
    time::Duration::days(days)
}

fn authority() -> Authority {
    let serial = |byte| Serial::from_random([byte; 16]);
    let root = Authority::root("a root", KeyPair::generate().unwrap(), serial(1), now()).unwrap();
    root.issuing("an issuing CA", KeyPair::generate().unwrap(), serial(2), now()).unwrap()
}

fn csr(name: &str, key: &KeyPair) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serialize_request(key).unwrap().pem().unwrap().into_bytes()
}

fn request(key: &KeyPair) -> WaitingRequest {
    WaitingRequest {
        id: 1,
        device: DeviceId::new("press-7").unwrap(),
        fleet: FleetId::new("default").unwrap(),
        status: DeviceStatus::Active,
        limits: "{}".to_owned(),
        public_key: doorward_pki::Fingerprint::of(key.public_key_raw()).to_string(),
        csr: csr("press-7", key),
        gateway: "gateway-1".to_owned(),
        renews: (CertificateStatus::Active, None, now() + days(1)),
        certificates: Vec::new(),
    }
}

fn refusal(request: &WaitingRequest) -> String {
    match decide(request, &authority(), &CertificatesSection::default()).unwrap() {
        Decision::Refuse(why) | Decision::RefuseKey(why) => why,
        Decision::Issue { .. } => panic!("issued"),
    }
}

#[test]
fn a_request_that_is_right_is_signed_by_the_rules_and_not_by_its_own_wishes() {
    let key = KeyPair::generate().unwrap();
    let rules = CertificatesSection {
        lifetime: crate::config::Span(Duration::from_secs(86_400)),
        ..Default::default()
    };
    let decision = decide(&request(&key), &authority(), &rules).unwrap();
    let Decision::Issue { certificate, chain, grace } = decision else { panic!("refused") };
    let leaf = Leaf::parse(&certificate.der).unwrap();
    assert_eq!((leaf.common_name().unwrap(), leaf.public_key()), ("press-7", key.public_key_raw()));
    leaf.fit_for_device().unwrap();
    assert!((certificate.not_after - now() - days(1)).abs() < time::Duration::minutes(1));
    assert_eq!((grace, chain.matches("BEGIN CERTIFICATE").count()), (rules.grace.0, 1));
}

#[test]
fn what_the_record_does_not_allow_is_refused_with_the_reason() {
    let key = KeyPair::generate().unwrap();
    let good = || request(&key);
    let past = Some(now() - days(1));
    for (wrong, words) in [
        (WaitingRequest { status: DeviceStatus::Suspended, ..good() }, "is suspended"),
        (WaitingRequest { status: DeviceStatus::Revoked, ..good() }, "is revoked"),
        (
            WaitingRequest { renews: (CertificateStatus::Revoked, None, now() + days(1)), ..good() },
            "does not hold",
        ),
        (
            WaitingRequest { renews: (CertificateStatus::Superseded, past, now() + days(1)), ..good() },
            "does not hold",
        ),
        (
            WaitingRequest { renews: (CertificateStatus::Active, None, now() - days(1)), ..good() },
            "expired on",
        ),
        (WaitingRequest { limits: "[]".to_owned(), ..good() }, "limits of fleet"),
        (WaitingRequest { csr: csr("press-8", &key), ..good() }, "press-8"),
        (WaitingRequest { public_key: "0".repeat(64), ..good() }, "another key"),
        (WaitingRequest { csr: b"nothing".to_vec(), ..good() }, "not a certificate signing request"),
    ] {
        let why = refusal(&wrong);
        assert!(why.contains(words), "{words}: {why}");
    }
}

#[test]
fn a_key_that_the_device_has_had_is_refused() {
    let key = KeyPair::from_pem(&key_to_pem(&KeyPair::generate().unwrap())).unwrap();
    let request = request(&key);
    let issued = decide(&request, &authority(), &CertificatesSection::default()).unwrap();
    let Decision::Issue { certificate, .. } = issued else { panic!("refused") };
    let again = WaitingRequest { certificates: vec![certificate.der], ..request };
    assert!(refusal(&again).contains("has had already"));
}

#[test]
fn how_late_a_device_may_come_is_its_fleets_to_say() {
    let key = KeyPair::generate().unwrap();
    let late = |limits: &str| WaitingRequest {
        renews: (CertificateStatus::Active, None, now() - days(1)),
        limits: limits.to_owned(),
        ..request(&key)
    };
    let rules = |seconds| CertificatesSection {
        renew_after_expiry: crate::config::Span(Duration::from_secs(seconds)),
        ..Default::default()
    };
    let issues = |limits: &str, seconds| {
        matches!(decide(&late(limits), &authority(), &rules(seconds)), Ok(Decision::Issue { .. }))
    };
    assert!(issues("{}", 2 * 86_400));
    assert!(!issues("{}", 80_000));
    assert!(!issues(r#"{"renew_after_expiry":0}"#, 2 * 86_400), "its fleet may not");
    assert!(issues(r#"{"renew_after_expiry":90000}"#, 0), "its fleet may");
}
