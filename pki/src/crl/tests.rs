use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyUsagePurpose};
use time::Duration;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::x509::ReasonCode;

use super::*;
use crate::authority::key_to_pem;
use crate::testing::{Folder, authorities, device, key, now, openssl, other_key};

const WEEK: Duration = Duration::WEEK;

fn list(number: u64) -> Crl {
    Crl::new(number, now(), now() + WEEK, Scope::Users(None))
}

fn read(der: &[u8]) -> CertificateRevocationList<'_> {
    let (rest, crl) = CertificateRevocationList::from_der(der).unwrap();
    assert!(rest.is_empty());
    crl
}

/// A self-signed CA with a key of any kind.
fn ca(key: &rcgen::KeyPair, usages: Vec<KeyUsagePurpose>) -> Authority {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Another CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = usages;
    params.not_after = now() + 10 * WEEK;
    let certificate = params.self_signed(key).unwrap();
    Authority::load(&crate::certificate_to_pem(certificate.der()), &key_to_pem(key)).unwrap()
}

#[test]
fn says_what_it_was_told() {
    let (root, issuing) = authorities();
    let mut crl = list(0x80);
    let serials = ["40abababababababababababababab0f", "ff000000000000000000000000000001", &"0".repeat(32)];
    let early = now() - Duration::hours(3);
    crl.enter(serials[0], early, Reason::KeyCompromise).unwrap();
    crl.enter(serials[1], now() + WEEK, Reason::Unspecified).unwrap();
    crl.enter(serials[2], early, Reason::CessationOfOperation).unwrap();
    assert_eq!(crl.enter("40", early, Reason::Superseded), Err(CrlError::Serial("40".to_owned())));
    assert_eq!(crl.entries(), 3);
    let der = crl.sign(&issuing).unwrap();

    let crl = read(&der);
    let (_, certificate) = X509Certificate::from_der(issuing.certificate_der()).unwrap();
    crl.verify_signature(certificate.public_key()).unwrap();
    assert_eq!(crl.version().unwrap().0, 1, "v2");
    assert_eq!(crl.issuer().as_raw(), certificate.subject().as_raw());
    assert_eq!(crl.crl_number().unwrap(), &128u32.into());
    assert_eq!(crl.last_update().timestamp(), now().unix_timestamp());
    assert_eq!(crl.next_update().unwrap().timestamp(), (now() + WEEK).unix_timestamp());
    let entries: Vec<_> = crl
        .iter_revoked_certificates()
        .map(|entry| {
            let reason = entry.reason_code().map(|(critical, reason)| (critical, reason.0));
            (entry.raw_serial().to_vec(), entry.revocation_date.timestamp(), reason)
        })
        .collect();
    let mut high = vec![0, 0xff];
    high.extend([0; 14]);
    high.push(1);
    assert_eq!(
        entries,
        [
            (
                crate::hex::decode::<16>(serials[0]).unwrap().to_vec(),
                early.unix_timestamp(),
                Some((false, ReasonCode::KeyCompromise.0))
            ),
            (high, now().unix_timestamp(), None),
            (vec![0], early.unix_timestamp(), Some((false, ReasonCode::CessationOfOperation.0))),
        ]
    );

    assert_eq!(number_of(&der, &issuing), Some(128));
    assert_eq!(number_of(to_pem(&der).as_bytes(), &issuing), Some(128));
    assert_eq!(number_of(&der, &root), None, "another's");
    let mut forged = der.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(number_of(&forged, &issuing), None);
    assert_eq!(number_of(b"", &issuing), None);
    assert_eq!(number_of(issuing.certificate_pem().as_bytes(), &issuing), None);
}

/// Authority key id, number and issuing distribution point: whether they are critical, and what the last says.
fn extensions(der: &[u8], issuing: &Authority) -> (bool, Vec<String>) {
    let crl = read(der);
    let [aki, number, idp] = crl.extensions() else { panic!("three: {:?}", crl.extensions()) };
    assert!(!aki.critical && !number.critical, "RFC 5280 §5.2.1 and 3");
    match aki.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => {
            assert_eq!(crate::hex::encode(id.key_identifier.as_ref().unwrap().0), issuing.key_id());
        }
        other => panic!("{other:?}"),
    }
    assert!(idp.critical, "RFC 5280 §5.2.5");
    let ParsedExtension::IssuingDistributionPoint(point) = idp.parsed_extension() else {
        panic!("{:?}", idp.parsed_extension())
    };
    assert!(!point.only_contains_ca_certs && !point.indirect_crl && !point.only_contains_attribute_certs);
    let names = match &point.distribution_point {
        None => Vec::new(),
        Some(x509_parser::extensions::DistributionPointName::FullName(names)) => names
            .iter()
            .map(|name| match name {
                GeneralName::URI(uri) => (*uri).to_owned(),
                other => panic!("{other:?}"),
            })
            .collect(),
        Some(other) => panic!("{other:?}"),
    };
    (point.only_contains_user_certs, names)
}

#[test]
fn names_its_scope_and_where_it_is_to_be_had() {
    let (_, issuing) = authorities();
    assert_eq!(extensions(&list(1).sign(&issuing).unwrap(), &issuing), (true, vec![]));
    // As long as lengths of one, two and three bytes.
    for length in [20, 120, 300] {
        let url = format!("http://pki.example/{}", "x".repeat(length));
        let crl = Crl::new(1, now(), now() + WEEK, Scope::Users(Some(url.parse().unwrap())));
        assert_eq!(extensions(&crl.sign(&issuing).unwrap(), &issuing), (true, vec![url]));
    }
    let unsaid = Crl::new(1, now(), now() + WEEK, Scope::Unsaid).sign(&issuing).unwrap();
    assert_eq!(read(&unsaid).extensions().len(), 2);
    assert_eq!(number_of(&unsaid, &issuing), Some(1));
    for bad in ["", "pki.example", "http://", "http:///x", "ftp://a", "http://a b", "http://é", "file:///x"]
    {
        assert_eq!(bad.parse::<DistributionPoint>(), Err(DistributionPointError), "{bad}");
    }
}

#[test]
fn is_signed_by_who_may_and_while_he_may() {
    let (_, issuing) = authorities();
    let sign = |this, next, by: &Authority| Crl::new(1, this, next, Scope::Unsaid).sign(by);
    let end = issuing.not_after();
    assert_eq!(sign(end, end + WEEK, &issuing), Err(CrlError::IssuerExpired(end)));
    assert_eq!(sign(now(), now(), &issuing), Err(CrlError::Times(now(), now())));
    let sooner = now() + Duration::milliseconds(400);
    assert_eq!(sign(now(), sooner, &issuing), Err(CrlError::Times(now(), sooner)), "the same second");

    let mute = ca(&key(), vec![KeyUsagePurpose::KeyCertSign]);
    let refused = list(1).sign(&mute).unwrap_err();
    assert_eq!(refused, CrlError::NoCrlSign("CN=Another CA".to_owned()));
    // Every kind of key that may sign certificates; the list names the algorithm twice (RFC 5280 §5.1.1.2).
    for kind in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let other = ca(&other_key(kind), vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign]);
        let der = list(7).sign(&other).unwrap();
        assert_eq!(read(&der).signature_algorithm, read(&der).tbs_cert_list.signature);
        assert_eq!(number_of(&der, &other), Some(7));
    }
}

#[test]
fn a_reason_is_named_and_never_guessed() {
    for (words, reason) in [
        ("keyCompromise", Reason::KeyCompromise),
        ("KEY_COMPROMISE: stolen from the van", Reason::KeyCompromise),
        (" key-compromise (found on a forum)", Reason::KeyCompromise),
        ("affiliationChanged, sold to Ann", Reason::AffiliationChanged),
        ("superseded by 4f0c", Reason::Superseded),
        ("Cessation-Of-Operation", Reason::CessationOfOperation),
        ("privilegeWithdrawn", Reason::PrivilegeWithdrawn),
        ("unspecified", Reason::Unspecified),
        ("stolen", Reason::Unspecified),
        ("key compromise", Reason::Unspecified),
        ("keyCompromised", Reason::Unspecified),
        ("no keyCompromise", Reason::Unspecified),
        ("certificateHold", Reason::Unspecified),
        ("removeFromCRL", Reason::Unspecified),
        ("cACompromise", Reason::Unspecified),
        ("", Reason::Unspecified),
        ("ключ", Reason::Unspecified),
    ] {
        assert_eq!(Reason::of(words), reason, "{words}");
    }
}

#[test]
fn openssl_refuses_what_is_in_it_and_nothing_else() {
    let (root, issuing) = authorities();
    let (good, bad) = (device(&issuing, "good"), device(&issuing, "bad"));
    let (mut full, folder) = (list(2), Folder::new());
    full.enter(&bad.serial.to_string(), now(), Reason::Superseded).unwrap();
    let chain = folder.file("chain.pem", &issuing.certificate_pem());
    let root = folder.file("root.pem", &root.certificate_pem());
    let empty = folder.file("empty.pem", &to_pem(&list(1).sign(&issuing).unwrap()));
    let full = folder.file("full.pem", &to_pem(&full.sign(&issuing).unwrap()));
    let at = now().unix_timestamp().to_string();
    for (certificate, crl, fits) in
        [(&good, &empty, true), (&bad, &empty, true), (&good, &full, true), (&bad, &full, false)]
    {
        let leaf = folder.file("leaf.pem", &certificate.pem());
        let Some((verified, said)) = openssl(&[
            "verify",
            "-crl_check",
            "-attime",
            &at,
            "-CAfile",
            &root,
            "-untrusted",
            &chain,
            "-CRLfile",
            crl,
            &leaf,
        ]) else {
            return;
        };
        assert_eq!(verified, fits, "{said}");
        assert!(fits || said.contains("certificate revoked"), "{said}");
    }
}
