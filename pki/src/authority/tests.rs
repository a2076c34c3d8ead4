use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyUsagePurpose};
use time::Duration;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use super::*;
use crate::key_file;
use crate::testing::{Folder, authorities, device, device_id, key, now, openssl, other_key, root, serial};

const DAY: Duration = Duration::DAY;

fn read(der: &[u8]) -> X509Certificate<'_> {
    let (rest, certificate) = X509Certificate::from_der(der).unwrap();
    assert!(rest.is_empty());
    certificate
}

fn gateway(authority: &Authority, hosts: &[&str]) -> Certificate {
    let hosts: Vec<Host> = hosts.iter().map(|host| host.parse().unwrap()).collect();
    authority.issue_gateway("gw-1", &hosts, &key(), serial(), now(), 90 * DAY).unwrap()
}

/// What every certificate here has: (AKI, SKI) in hex.
fn common_facts(
    certificate: &X509Certificate<'_>,
    key_usage: u16,
    path_len: Option<Option<u32>>,
) -> (String, String) {
    assert_eq!(certificate.version().0, 2, "X.509 v3");
    assert_eq!(certificate.raw_serial().len(), 16);
    assert_eq!(certificate.raw_serial()[0] & 0xc0, 0x40);
    let usage = certificate.key_usage().unwrap().unwrap();
    assert!(usage.critical);
    assert_eq!(usage.value.flags, key_usage);
    let constraints = certificate.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical);
    assert_eq!(constraints.value.ca, path_len.is_some());
    assert_eq!(constraints.value.path_len_constraint, path_len.flatten());
    assert_eq!(certificate.validity().not_before.timestamp(), now().unix_timestamp() - 5 * 60);

    let (mut aki, mut ski) = (None, None);
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                aki = id.key_identifier.as_ref().map(|k| crate::hex::encode(k.0))
            }
            ParsedExtension::SubjectKeyIdentifier(id) => ski = Some(crate::hex::encode(id.0)),
            _ => continue,
        }
        assert!(!extension.critical, "RFC 5280 §4.2.1.1 and 2");
    }
    (aki.unwrap(), ski.unwrap())
}

const CERT_AND_CRL_SIGN: u16 = 1 << 5 | 1 << 6;
const DIGITAL_SIGNATURE: u16 = 1;

#[test]
fn the_authorities_are_what_the_table_says() {
    let (root, issuing) = authorities();
    let certificate = read(root.certificate_der());
    let ids = common_facts(&certificate, CERT_AND_CRL_SIGN, Some(Some(1)));
    assert_eq!(ids, (root.key_id().to_owned(), root.key_id().to_owned()));
    assert_eq!(certificate.subject().to_string(), "CN=Test Root");
    assert!(certificate.extended_key_usage().unwrap().is_none());
    assert_eq!(root.not_after() - root.not_before(), Duration::days(3652) + BACKDATE);
    certificate.verify_signature(None).unwrap();

    let certificate = read(issuing.certificate_der());
    let ids = common_facts(&certificate, CERT_AND_CRL_SIGN, Some(Some(0)));
    assert_eq!(ids, (root.key_id().to_owned(), issuing.key_id().to_owned()));
    assert_eq!(certificate.subject().to_string(), "CN=Test Issuing");
    assert!(certificate.extended_key_usage().unwrap().is_none());
    assert_eq!(issuing.not_after() - issuing.not_before(), Duration::days(1826) + BACKDATE);
    certificate.verify_signature(Some(read(root.certificate_der()).public_key())).unwrap();
}

#[test]
fn a_device_is_what_the_table_says() {
    let (_, issuing) = authorities();
    let (key, serial) = (key(), serial());
    let issued = issuing.issue_device(&device_id("press-7"), &key, serial, now(), 90 * DAY).unwrap();
    let certificate = read(&issued.der);
    let (aki, _) = common_facts(&certificate, DIGITAL_SIGNATURE, None);
    assert_eq!(aki, issuing.key_id());
    assert_eq!(certificate.subject().to_string(), "CN=press-7");
    assert_eq!(certificate.subject().iter_attributes().count(), 1);
    let usage = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth && !usage.any && usage.other.is_empty());
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names, [GeneralName::URI("urn:doorward:device:press-7")]);
    assert_eq!(certificate.public_key().raw, key.subject_public_key_info());
    certificate.verify_signature(Some(read(issuing.certificate_der()).public_key())).unwrap();

    assert_eq!(certificate.raw_serial(), serial.as_bytes());
    assert_eq!(issued.serial, serial);
    assert_eq!(issued.fingerprint, Fingerprint::of(&issued.der));
    assert_eq!(issued.not_before.unix_timestamp(), certificate.validity().not_before.timestamp());
    assert_eq!(issued.not_after.unix_timestamp(), certificate.validity().not_after.timestamp());
    assert_eq!(issued.not_after.unix_timestamp(), now().unix_timestamp() + 90 * 86_400);
    assert!(!issued.shortened);
    assert_eq!(pem::certificates(&issued.pem()).unwrap()[0].as_ref(), issued.der);
}

#[test]
fn a_gateway_is_what_the_table_says() {
    let (_, issuing) = authorities();
    let issued = gateway(&issuing, &["gw.example", "*.gw.example", "127.0.0.1", "::1"]);
    let certificate = read(&issued.der);
    common_facts(&certificate, DIGITAL_SIGNATURE, None);
    assert_eq!(certificate.subject().to_string(), "CN=gw-1");
    let usage = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && !usage.client_auth && !usage.any && usage.other.is_empty());
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    let (v4, v6) = ([127, 0, 0, 1], std::net::Ipv6Addr::LOCALHOST.octets());
    assert_eq!(
        names.value.general_names,
        [
            GeneralName::DNSName("gw.example"),
            GeneralName::DNSName("*.gw.example"),
            GeneralName::IPAddress(&v4),
            GeneralName::IPAddress(&v6)
        ]
    );
}

#[test]
fn nothing_outlives_its_issuer() {
    let (root, issuing) = authorities();
    let issue = |at, lifetime| issuing.issue_device(&device_id("a"), &key(), serial(), at, lifetime);
    let last_day = issuing.not_after() - DAY;
    let issued = issue(last_day, 90 * DAY).unwrap();
    assert!(issued.shortened);
    assert_eq!(issued.not_after, issuing.not_after());
    assert!(!issue(last_day, DAY).unwrap().shortened, "it just fits");
    assert!(issue(now(), Duration::MAX).unwrap().shortened);

    let late = root.issuing("Late", key(), serial(), root.not_after() - DAY).unwrap();
    assert_eq!(late.not_after(), root.not_after());
}

#[test]
fn an_authority_out_of_its_time_issues_nothing() {
    let (_, issuing) = authorities();
    let issue =
        |at, lifetime| issuing.issue_device(&device_id("a"), &key(), serial(), at, lifetime).unwrap_err();
    assert_eq!(issue(issuing.not_after(), DAY), IssueError::IssuerExpired(issuing.not_after()));
    let early = issuing.not_before() - Duration::SECOND;
    assert_eq!(issue(early, DAY), IssueError::IssuerNotYetValid(issuing.not_before()));
    for lifetime in [Duration::ZERO, -DAY, Duration::MILLISECOND] {
        assert_eq!(issue(now(), lifetime), IssueError::Lifetime);
    }
    let ancient = OffsetDateTime::UNIX_EPOCH - DAY;
    assert_eq!(Authority::root("Root", key(), serial(), ancient).unwrap_err(), IssueError::Time(ancient));
}

#[test]
fn names_keys_and_paths_that_do_not_do() {
    let (root, issuing) = authorities();
    for bad in ["", " ", " x", "a\nb", &"x".repeat(65)] {
        let error = Authority::root(bad, key(), serial(), now()).unwrap_err();
        assert!(matches!(error, IssueError::Name { .. }) && !error.to_string().contains('\n'), "{bad:?}");
    }
    let same = root.issuing("Test Root", key(), serial(), now()).unwrap_err();
    assert_eq!(same, IssueError::NameOfIssuer("Test Root".to_owned()));
    let below = issuing.issuing("Third", key(), serial(), now()).unwrap_err();
    assert_eq!(below, IssueError::PathLength);
    let none = issuing.issue_gateway("gw", &[], &key(), serial(), now(), DAY).unwrap_err();
    assert_eq!(none, IssueError::NoHost);
    let p384 = other_key(&rcgen::PKCS_ECDSA_P384_SHA384);
    let kind = issuing.issue_device(&device_id("a"), &p384, serial(), now(), DAY).unwrap_err();
    assert!(matches!(kind, IssueError::KeyKind(_)), "{kind}");
    assert!(matches!(Authority::root("Root", p384, serial(), now()), Err(IssueError::KeyKind(_))));
}

#[test]
fn loads_what_it_wrote_and_goes_on_issuing() {
    let (_, issuing) = authorities();
    let loaded = Authority::load(&issuing.certificate_pem(), &issuing.key_pem()).unwrap();
    assert_eq!(loaded.certificate_der(), issuing.certificate_der());
    assert_eq!(loaded.key_pem(), issuing.key_pem());
    assert_eq!(loaded.key_id(), issuing.key_id());
    assert_eq!((loaded.not_before(), loaded.not_after()), (issuing.not_before(), issuing.not_after()));
    let issued = device(&loaded, "press-7");
    read(&issued.der).verify_signature(Some(read(issuing.certificate_der()).public_key())).unwrap();
    assert_eq!(loaded.issuing("x", key(), serial(), now()).unwrap_err(), IssueError::PathLength);
}

/// A self-signed certificate and its key, as a stranger might bring them.
fn foreign(change: impl FnOnce(&mut CertificateParams)) -> (String, Zeroizing<String>) {
    let key = key();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Plant");
    params.distinguished_name.push(DnType::CommonName, "Their CA");
    change(&mut params);
    (params.self_signed(&key).unwrap().pem(), key_to_pem(&key))
}

#[test]
fn each_refusal_to_load_has_its_words() {
    let (root, issuing) = authorities();
    let (certificate, key) = (issuing.certificate_pem(), issuing.key_pem());
    let load = |certificate: &str, key: &str| Authority::load(certificate, key).map(|_| ()).unwrap_err();

    assert_eq!(load(&certificate, &root.key_pem()), LoadError::Mismatch("CN=Test Issuing".to_owned()));
    assert_eq!(load("hello", &key), LoadError::CertificatePem);
    assert_eq!(load(&key, &key), LoadError::CertificatePem);
    let garbage = pem::encode(pem::CERTIFICATE, b"garbage");
    assert!(matches!(load(&garbage, &key), LoadError::Certificate(_)));
    assert_eq!(load(&certificate, "hello"), LoadError::KeyPem);
    assert_eq!(load(&certificate, &certificate), LoadError::KeyPem);
    assert!(matches!(load(&certificate, &pem::encode(pem::PRIVATE_KEY, b"\x30\x00")), LoadError::Key(_)));
    let encrypted = key_file::encrypt(&key, b"secret", [1; 16], [2; 16]).unwrap();
    assert_eq!(load(&certificate, &encrypted), LoadError::KeyEncrypted);

    let (certificate, key) = foreign(|p| p.is_ca = IsCa::ExplicitNoCa);
    assert_eq!(load(&certificate, &key), LoadError::NotCa("O=Plant, CN=Their CA".to_owned()));
    for usages in [vec![], vec![KeyUsagePurpose::CrlSign]] {
        let (certificate, key) = foreign(|p| p.key_usages = usages);
        assert!(matches!(load(&certificate, &key), LoadError::NoKeyCertSign(_)));
    }
    let (certificate, key) = foreign(|_| {});
    assert!(Authority::load(&certificate, &key).is_ok());
}

#[test]
fn a_subject_that_cannot_be_repeated_is_refused() {
    let folder = Folder::new();
    let key_path = folder.file("k.pem", &key_to_pem(&key()));
    let arguments = ["req", "-x509", "-new", "-key", &key_path, "-days", "30", "-subj"];
    let with =
        |subject| openssl(&[&arguments[..], &[subject, "-addext", "keyUsage=critical,keyCertSign"]].concat());
    let Some((done, twice)) = with("/OU=One/OU=Two/CN=Their CA") else { return };
    assert!(done, "{twice}");
    let key_pem = std::fs::read_to_string(&key_path).unwrap();
    assert!(matches!(Authority::load(&twice, &key_pem), Err(LoadError::Subject(_))));
    let (_, once) = with("/C=CH/O=Plant/OU=One/CN=Their CA").unwrap();
    let theirs = Authority::load(&once, &key_pem).unwrap();
    assert_eq!(
        read(theirs.certificate_der()).subject().as_raw(),
        read(theirs.certificate_der()).issuer().as_raw()
    );
}

#[test]
fn openssl_accepts_the_chains() {
    let (root, issuing) = authorities();
    let folder = Folder::new();
    let root_path = folder.file("root.crt", &root.certificate_pem());
    let issuing_path = folder.file("issuing.crt", &issuing.certificate_pem());
    let (device, gateway) = (device(&issuing, "press-7"), gateway(&issuing, &["gw.example", "127.0.0.1"]));
    let device_path = folder.file("device.crt", &device.pem());
    let gateway_path = folder.file("gateway.crt", &gateway.pem());
    let at = now().unix_timestamp().to_string();
    let verify = |more: &[&str]| {
        let always =
            ["verify", "-x509_strict", "-attime", &at, "-CAfile", &root_path, "-untrusted", &issuing_path];
        openssl(&[&always, more].concat())
    };
    for (purpose, path) in [("sslclient", &device_path), ("sslserver", &gateway_path)] {
        let Some((accepted, said)) = verify(&["-purpose", purpose, path]) else { return };
        assert!(accepted, "{said}");
    }
    assert!(verify(&["-verify_hostname", "gw.example", &gateway_path]).unwrap().0);
    assert!(verify(&["-verify_ip", "127.0.0.1", &gateway_path]).unwrap().0);
    assert!(!verify(&["-verify_hostname", "other.example", &gateway_path]).unwrap().0);
    for (purpose, path) in [("sslserver", &device_path), ("sslclient", &gateway_path)] {
        let (accepted, said) = verify(&["-purpose", purpose, path]).unwrap();
        assert!(!accepted, "{said}");
    }
    assert!(verify(&[&issuing_path]).unwrap().0);
    let key_path = folder.file("root.key", &root.key_pem());
    assert!(openssl(&["pkey", "-in", &key_path, "-noout", "-check"]).unwrap().0);
}

#[test]
fn debug_shows_no_key() {
    let root = root();
    let shown = format!("{root:?}");
    assert!(shown.contains(root.key_id()) && shown.len() < 200, "{shown}");
}

#[test]
fn an_operators_own_ca_can_issue() {
    let folder = Folder::new();
    for kind in [
        &["EC", "ec_paramgen_curve:P-256"],
        &["EC", "ec_paramgen_curve:P-384"],
        &["RSA", "rsa_keygen_bits:2048"],
    ] {
        let Some((made, key)) = openssl(&["genpkey", "-quiet", "-algorithm", kind[0], "-pkeyopt", kind[1]])
        else {
            return;
        };
        let (made, key) = if made {
            (made, key)
        } else {
            openssl(&["genpkey", "-algorithm", kind[0], "-pkeyopt", kind[1]]).unwrap()
        };
        assert!(made, "{key}");
        let key = &key[key.find("-----BEGIN").unwrap()..];
        let key_path = folder.file("k.pem", key);
        let arguments =
            ["req", "-x509", "-new", "-key", &key_path, "-days", "9000", "-subj", "/O=Plant/CN=Their CA"];
        let (_, certificate) =
            openssl(&[&arguments[..], &["-addext", "keyUsage=critical,keyCertSign"]].concat()).unwrap();
        let theirs = Authority::load(&certificate, key).unwrap();
        let at = theirs.not_before() + DAY;
        let issued =
            theirs.issue_device(&device_id("press-7"), &crate::testing::key(), serial(), at, DAY).unwrap();
        let (ca, leaf) = (folder.file("ca.crt", &certificate), folder.file("leaf.crt", &issued.pem()));
        let at = at.unix_timestamp().to_string();
        let (accepted, said) =
            openssl(&["verify", "-x509_strict", "-attime", &at, "-CAfile", &ca, &leaf]).unwrap();
        assert!(accepted, "{kind:?}: {said}");
    }
}

#[test]
fn of_several_certificates_the_one_of_the_key_counts() {
    let (root, issuing) = authorities();
    let twin = root.issuing("Test Issuing", key(), serial(), now()).unwrap();
    let both = format!("{}{}", issuing.certificate_pem(), twin.certificate_pem());
    for authority in [&issuing, &twin] {
        let loaded = Authority::load(&both, &authority.key_pem()).unwrap();
        assert_eq!(loaded.certificate_der(), authority.certificate_der(), "they have one name");
    }
    assert!(matches!(Authority::load(&both, &root.key_pem()), Err(LoadError::Mismatch(_))));
    // One that was renewed with its key: the longer of the two.
    let own = rcgen::KeyPair::from_pem(&issuing.key_pem()).unwrap();
    let renewed = root.issuing("Test Issuing", own, serial(), now() + Duration::days(9)).unwrap();
    for both in [[&issuing, &renewed], [&renewed, &issuing]] {
        let text = both.map(Authority::certificate_pem).concat();
        let loaded = Authority::load(&text, &issuing.key_pem()).unwrap();
        assert_eq!(loaded.not_after(), renewed.not_after());
    }
}
