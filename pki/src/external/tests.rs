use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyUsagePurpose};
use time::Duration;

use super::*;
use crate::authority::Authority;
use crate::testing::{Folder, authorities, device, key, now, openssl, other_key, root};

/// An intermediate below a root, altered.
fn below(root: &Authority, alter: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
    let mut params = ISSUING.request_params("Elsewhere");
    params.use_authority_key_identifier_extension = true;
    params.not_before = now() - Duration::hours(1);
    params.not_after = now() + Duration::days(30);
    alter(&mut params);
    let signer = KeyPair::from_pem(&root.key_pem()).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&root.certificate_pem(), signer).unwrap();
    params.signed_by(&key(), &issuer).unwrap().der().clone()
}

fn der(authority: &Authority) -> CertificateDer<'static> {
    authority.certificate_der().to_vec().into()
}

#[test]
fn one_that_a_root_has_signed_passes_and_the_root_is_told() {
    let (other, root) = (root(), root());
    let roots = [der(&other), der(&root)];
    assert_eq!(check(&below(&root, |_| {}), &roots, now()), Ok(1), "the roots have one name");
    assert_eq!(check(&below(&other, |_| {}), &roots, now()), Ok(0));
}

#[test]
fn what_could_not_issue_is_refused_with_its_reason() {
    let root = root();
    let roots = [der(&root)];
    let refused = |alter: fn(&mut CertificateParams)| check(&below(&root, alter), &roots, now()).unwrap_err();
    let named = || "CN=Elsewhere".to_owned();
    assert_eq!(refused(|params| params.is_ca = IsCa::ExplicitNoCa), ExternalError::NotCa(named()));
    assert_eq!(
        refused(|params| params.key_usages = vec![KeyUsagePurpose::CrlSign]),
        ExternalError::NoKeyCertSign(named())
    );
    let early = refused(|params| params.not_before = now() + Duration::hours(1));
    assert!(matches!(early, ExternalError::NotYetValid { .. }), "{early}");
    let late = refused(|params| params.not_after = now() - Duration::minutes(1));
    assert!(matches!(late, ExternalError::Expired { .. }), "{late}");
    let twin = refused(|params| {
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "Test Root");
    });
    assert_eq!(twin, ExternalError::NameOfIssuer("CN=Test Root".to_owned()));
}

#[test]
fn a_root_that_has_not_signed_it_or_may_not_is_refused() {
    let (root, issuing) = authorities();
    let signed = below(&root, |_| {});
    let namesake = crate::testing::root();
    let none = check(&signed, &[der(&namesake)], now()).unwrap_err();
    assert!(matches!(none, ExternalError::NotSigned { .. }), "{none}");
    assert!(none.to_string().contains("CN=Test Root"), "{none}");
    assert!(matches!(check(&signed, &[], now()), Err(ExternalError::NotSigned { .. })));
    let under = below(&issuing, |_| {});
    let not_root = check(&under, &[der(&issuing)], now()).unwrap_err();
    assert_eq!(not_root, ExternalError::NotRoot("CN=Test Issuing".to_owned()));
    let later = root.not_after() + Duration::SECOND;
    let outlives = below(&root, |params| params.not_after = later + Duration::days(9));
    let expired = check(&outlives, &[der(&root)], later).unwrap_err();
    assert!(expired.to_string().starts_with("'CN=Test Root' expired at 2036"), "{expired}");
    let leaf: CertificateDer<'_> = device(&issuing, "press-7").der.into();
    assert!(matches!(check(&leaf, &[der(&issuing)], now()), Err(ExternalError::NotCa(_))));
    assert!(matches!(check(&b"junk".as_slice().into(), &[], now()), Err(ExternalError::Unreadable(_))));
}

#[test]
fn a_root_of_path_length_nought_signs_no_ca() {
    let mut params = crate::profile::ROOT.request_params("Short");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    (params.not_before, params.not_after) = (now() - Duration::hours(1), now() + Duration::days(30));
    let own = key();
    let short = params.self_signed(&own).unwrap();
    let issuer = Issuer::new(params, own);
    let mut below = ISSUING.request_params("Below");
    (below.not_before, below.not_after) = (now() - Duration::hours(1), now() + Duration::days(30));
    let signed = below.signed_by(&key(), &issuer).unwrap();
    let refused = check(signed.der(), &[short.der().clone()], now()).unwrap_err();
    assert_eq!(refused, ExternalError::PathLength("CN=Short".to_owned()));
}

#[test]
fn openssl_reads_the_request_and_what_it_asks_for() {
    let folder = Folder::new();
    let text = request("Doorward issuing CA 1234", &key()).unwrap();
    let file = folder.file("ca.csr", &text);
    let Some((read, words)) = openssl(&["req", "-in", &file, "-noout", "-text", "-verify"]) else { return };
    assert!(read && words.contains("verify OK"), "{words}");
    for word in ["CN = Doorward issuing CA 1234", "CA:TRUE, pathlen:0", "Certificate Sign, CRL Sign", "P-256"]
    {
        assert!(words.contains(word), "{word}: {words}");
    }
    assert!(matches!(request("", &key()), Err(IssueError::Name { .. })));
    let p384 = other_key(&rcgen::PKCS_ECDSA_P384_SHA384);
    assert!(matches!(request("Name", &p384), Err(IssueError::KeyKind(_))));
}
