use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use time::Duration;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use super::*;
use crate::identity::Leaf;
use crate::testing::{Folder, authorities, device_id, key, now, openssl, other_key, serial};

fn request(key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "press-7");
    change(&mut params);
    params.serialize_request(key).unwrap().der().to_vec()
}

fn parsed(der: &[u8]) -> Result<Request, CsrError> {
    Request::parse(der, &device_id("press-7"))
}

#[test]
fn takes_the_key_from_pem_and_der() {
    let key = key();
    let der = request(&key, |_| {});
    let taken = parsed(&der).unwrap();
    assert_eq!(taken.der_bytes(), key.der_bytes());
    assert_eq!(taken.subject_public_key_info(), key.subject_public_key_info());
    assert_eq!(taken.device().as_str(), "press-7");
    for label in ["CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"] {
        let pem = pkcs8::der::pem::encode_string(label, pkcs8::der::pem::LineEnding::CRLF, &der).unwrap();
        assert_eq!(parsed(pem.as_bytes()).as_ref(), Ok(&taken), "{label}");
        assert_eq!(parsed(format!("Certificate Request:\n    Data:\n{pem}").as_bytes()).as_ref(), Ok(&taken));
    }
}

#[test]
fn a_greedy_request_gives_a_plain_device() {
    let key = key();
    let der = request(&key, |p| {
        p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        p.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::Any];
        p.subject_alt_names = vec![
            SanType::DnsName("gateway.example".try_into().unwrap()),
            SanType::URI("urn:doorward:device:press-8".try_into().unwrap()),
        ];
        p.distinguished_name.push(DnType::OrganizationName, "Root Incorporated");
        p.custom_extensions.push(CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![0x05, 0x00]));
    });
    let (_, issuing) = authorities();
    let wish = parsed(&der).unwrap();
    let issued = issuing.issue_device(wish.device(), &wish, serial(), now(), Duration::days(1)).unwrap();

    let leaf = Leaf::parse(&issued.der).unwrap();
    assert_eq!(leaf.fit_for_device(), Ok(()));
    assert!(!leaf.is_ca());
    let (_, read) = X509Certificate::from_der(&issued.der).unwrap();
    assert_eq!(read.subject().to_string(), "CN=press-7");
    assert_eq!(read.public_key().raw, key.subject_public_key_info());
    let usage = read.extended_key_usage().unwrap().unwrap();
    assert!(usage.value.client_auth && !usage.value.server_auth && !usage.value.any);
    assert_eq!(read.key_usage().unwrap().unwrap().value.flags, 1);
    let names = read.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names, [GeneralName::URI("urn:doorward:device:press-7")]);
    assert_eq!(
        read.extensions().len(),
        6,
        "AKI, SAN, KU, EKU, SKI, basicConstraints and nothing that was asked for"
    );
}

#[test]
fn other_keys_are_refused_by_name() {
    for (kind, words) in [
        (&rcgen::PKCS_ECDSA_P384_SHA384, "on the curve P-384"),
        (&rcgen::PKCS_ECDSA_P521_SHA256, "on the curve P-521"),
        (&rcgen::PKCS_ED25519, "Ed25519"),
        (&rcgen::PKCS_RSA_SHA256, "RSA"),
    ] {
        let der = request(&other_key(kind), |_| {});
        assert_eq!(parsed(&der), Err(CsrError::KeyKind(words)));
    }
}

#[test]
fn possession_must_be_proven() {
    let (mine, theirs) = (key(), key());
    let mut der = request(&mine, |_| {});
    let at = der.windows(65).position(|bytes| bytes == mine.der_bytes()).unwrap();
    der[at..at + 65].copy_from_slice(theirs.der_bytes());
    assert_eq!(parsed(&der), Err(CsrError::Signature));

    der[at + 10] ^= 1;
    assert_eq!(parsed(&der), Err(CsrError::Signature), "a point that is not on the curve");

    let mut der = request(&mine, |_| {});
    let at = der.windows(7).position(|bytes| bytes == b"press-7").unwrap();
    der[at + 6] = b'8';
    assert_eq!(Request::parse(&der, &device_id("press-8")), Err(CsrError::Signature));
}

#[test]
fn another_signature_algorithm_is_refused() {
    let mut der = request(&key(), |_| {});
    // ecdsa-with-SHA256 is 1.2.840.10045.4.3.2; SHA-512 ends in 4.
    let oid = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
    let at = der.windows(oid.len()).rposition(|bytes| bytes == oid).unwrap();
    der[at + 7] = 4;
    assert_eq!(parsed(&der), Err(CsrError::SignatureKind));
}

#[test]
fn names_both_names_where_they_differ() {
    let error = parsed(&request(&key(), |p| p.distinguished_name.push(DnType::CommonName, "evil\nname")))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the request is for 'evil\\nname' and not for press-7; make it with the subject CN=press-7"
    );
    let case = parsed(&request(&key(), |p| p.distinguished_name.push(DnType::CommonName, "Press-7")));
    assert!(matches!(case, Err(CsrError::OtherDevice { .. })));
    let none = parsed(&request(&key(), |p| p.distinguished_name = DistinguishedName::new())).unwrap_err();
    assert!(none.to_string().contains("exactly one common name, press-7; it has none"), "{none}");
}

#[test]
fn two_common_names_are_refused() {
    let folder = Folder::new();
    let key = folder.file("k.pem", &crate::key_to_pem(&key()));
    let Some((done, pem)) = openssl(&["req", "-new", "-key", &key, "-subj", "/CN=press-7/CN=press-7"]) else {
        return;
    };
    assert!(done, "{pem}");
    let error = parsed(pem.as_bytes()).unwrap_err();
    assert!(matches!(&error, CsrError::CommonNames { found, .. } if found == "2"), "{error}");

    let (_, pem) =
        openssl(&["req", "-new", "-key", &key, "-subj", "/O=Plant/CN=press-7", "-sha384"]).unwrap();
    assert!(parsed(pem.as_bytes()).is_ok(), "{pem}");
}

#[test]
fn what_is_no_request_is_refused() {
    let der = request(&key(), |_| {});
    let mut longer = der.clone();
    longer.push(0);
    let certificate = authorities().0.certificate_pem();
    for bad in [
        &[][..],
        b"hello",
        &[0x30],
        &[0xff, 0xfe],
        &der[1..],
        &der[..der.len() - 1],
        &longer,
        certificate.as_bytes(),
    ] {
        assert_eq!(parsed(bad), Err(CsrError::Unreadable));
    }
    assert_eq!(parsed(&vec![0x30; MAX_CSR_BYTES + 1]), Err(CsrError::TooLarge(MAX_CSR_BYTES + 1)));
}

#[test]
fn no_bytes_make_it_panic_or_give_another_key() {
    let der = request(&key(), |p| p.key_usages = vec![KeyUsagePurpose::KeyCertSign]);
    let honest = parsed(&der).unwrap();
    let mut random = fastrand::Rng::with_seed(11);
    let mut passed = 0;
    for _ in 0..10_000 {
        let mut hostile = der.clone();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..hostile.len());
            if random.bool() { hostile[at] ^= 1 << random.u8(..8) } else { hostile.truncate(at.max(1)) }
        }
        // The parser is lax about tags around the signature; what is signed cannot change.
        if let Ok(taken) = parsed(&hostile) {
            passed += 1;
            assert_eq!(taken, honest, "{hostile:02x?}");
        }
    }
    assert!(passed < 100, "{passed}");
}
