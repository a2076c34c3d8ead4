use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyIdMethod, KeyUsagePurpose};
use rcgen::{CertificateRevocationListParams, Issuer, RevokedCertParams, SerialNumber};
use time::Duration;

use super::super::{CONTEXT_0, Crl, OCTET_STRING, Reason, SEQUENCE, Scope, extended, tlv, to_pem};
use super::*;
use crate::Authority;
use crate::testing::{Folder, authorities, device, key, now, openssl, serial};

fn der(authority: &Authority) -> CertificateDer<'static> {
    authority.certificate_der().to_vec().into()
}

fn list(authority: &Authority, scope: Scope, serials: &[&str]) -> Vec<u8> {
    let mut crl = Crl::new(7, now(), now() + Duration::WEEK, scope);
    serials.iter().for_each(|serial| crl.enter(serial, now(), Reason::KeyCompromise).unwrap());
    crl.sign(authority).unwrap()
}

/// A list with one more extension, which is signed.
fn with_extension(authority: &Authority, oid: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let name = tlv(0x06, &[oid]);
    let critical: &[u8] = if critical { &[0x01, 0x01, 0xff] } else { &[] };
    let extension = tlv(SEQUENCE, &[&name, critical, &tlv(OCTET_STRING, &[value])]);
    extended(&list(authority, Scope::Unsaid, &[]), &extension, authority.issuer().key()).unwrap()
}

#[test]
fn ours_is_read_back_in_both_forms() {
    let (root, issuing) = authorities();
    let leaf = device(&issuing, "press-7");
    let serials = [leaf.serial.to_string(), "00000000000000000000000000000abc".to_owned()];
    for scope in
        [Scope::Unsaid, Scope::Users(None), Scope::Users(Some("http://p.example/c".parse().unwrap()))]
    {
        let der_list = list(&issuing, scope, &[&serials[0], &serials[1]]);
        let (lists, beside) = sections(&der_list).unwrap();
        assert_eq!((lists.len(), beside.len()), (1, 0));
        let read = RevocationList::read(&lists[0], &[der(&root), der(&issuing)]).unwrap();
        assert_eq!(read.issuer, CaCertificate::parse(issuing.certificate_der()).unwrap().id());
        assert_eq!(read.serials.len(), 2);
        let is_in = |serial: &str| read.serials.contains(&SerialBytes::from_hex(serial).unwrap());
        assert!(is_in(crate::Leaf::parse(&leaf.der).unwrap().serial()));
        assert!(is_in("0abc") && !is_in("0abd"), "a number has one meaning, however many zeros lead it");
        let times = (now().unix_timestamp(), (now() + Duration::WEEK).unix_timestamp());
        assert_eq!((read.this_update, read.next_update), times);
        assert_eq!(updates(&der_list).unwrap(), (times.0, Some(times.1)));
    }
    let two = format!(
        "{}{}{}",
        to_pem(&list(&issuing, Scope::Unsaid, &[])),
        root.certificate_pem(),
        to_pem(&list(&root, Scope::Unsaid, &[]))
    );
    let (lists, beside) = sections(two.as_bytes()).unwrap();
    assert_eq!((lists.len(), beside.len()), (2, 1));
}

#[test]
fn what_is_no_list_is_refused() {
    let (root, issuing) = authorities();
    assert_eq!(sections(b"").unwrap_err(), ReadError::Unreadable);
    assert_eq!(sections(root.certificate_pem().as_bytes()).unwrap_err(), ReadError::Unreadable);
    assert_eq!(sections(&vec![0x30; MAX_FILE_BYTES + 1]).unwrap_err(), ReadError::TooLong);
    let cas = [der(&issuing)];
    let mut good = list(&issuing, Scope::Unsaid, &[]);
    assert_eq!(RevocationList::read(&good[..good.len() - 1], &cas).unwrap_err(), ReadError::Unreadable);
    good.push(0);
    assert_eq!(RevocationList::read(&good, &cas).unwrap_err(), ReadError::TrailingBytes);
    assert_eq!(updates(&good).unwrap_err(), ReadError::TrailingBytes);
}

#[test]
fn another_signer_is_refused() {
    let (root, issuing) = authorities();
    let good = list(&issuing, Scope::Unsaid, &[]);
    let read = |der: &[u8], cas: &[CertificateDer<'static>]| RevocationList::read(der, cas).unwrap_err();
    assert!(matches!(read(&good, &[der(&root)]), ReadError::Issuer(name) if name.contains("Test Issuing")));
    assert!(matches!(read(&good, &[]), ReadError::Issuer(_)));
    // The same name, another key; its key id says so.
    let twin = root.issuing("Test Issuing", key(), serial(), now()).unwrap();
    assert!(matches!(read(&good, &[der(&twin)]), ReadError::Issuer(_)));
    // A changed byte in what is signed.
    let mut bent = list(&issuing, Scope::Unsaid, &["40abababababababababababababab0f"]);
    let place = bent.windows(4).position(|bytes| bytes == [0xab; 4]).unwrap();
    bent[place] = 0xac;
    assert!(matches!(read(&bent, &[der(&issuing)]), ReadError::Signature(_)));
}

#[test]
fn a_ca_that_may_sign_no_lists_is_refused() {
    let key = key();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "No lists");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let certificate = params.self_signed(&key).unwrap();
    // rcgen asks the issuer's own parameters: another's, of the same name and key.
    params.key_usages = vec![KeyUsagePurpose::CrlSign];
    let issuer = Issuer::new(params, key);
    let crl = CertificateRevocationListParams {
        this_update: now(),
        next_update: now() + Duration::WEEK,
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: Vec::<RevokedCertParams>::new(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let der = crl.signed_by(&issuer).unwrap().der().to_vec();
    let refused = RevocationList::read(&der, &[certificate.der().clone()]).unwrap_err();
    assert!(matches!(refused, ReadError::NoCrlSign(_)), "{refused}");
}

#[test]
fn what_is_not_understood_or_not_whole_is_refused() {
    let (_, issuing) = authorities();
    let cas = [der(&issuing)];
    let point = |fields: &[u8]| {
        let value = tlv(SEQUENCE, &[fields]);
        let list = with_extension(&issuing, &[0x55, 0x1d, 0x1c], true, &value);
        RevocationList::read(&list, &cas).map(|_| ())
    };
    assert_eq!(point(&[0x81, 0x01, 0xff]), Ok(()));
    assert_eq!(point(&[0x82, 0x01, 0xff]), Ok(()));
    assert_eq!(point(&[]), Ok(()));
    assert_eq!(point(&[0x84, 0x01, 0xff]), Err(ReadError::Indirect));
    assert!(matches!(point(&[0x83, 0x02, 0x06, 0x40]), Err(ReadError::Partial(_))));
    assert!(matches!(point(&[0x85, 0x01, 0xff]), Err(ReadError::Partial(_))));
    assert!(matches!(point(&[0x86, 0x01, 0xff]), Err(ReadError::Extension(_))));
    assert!(matches!(point(&[0x81, 0x05, 0xff]), Err(ReadError::Extension(_))));

    let read = |oid: &[u8], critical, value: &[u8]| {
        RevocationList::read(&with_extension(&issuing, oid, critical, value), &cas).map(|_| ())
    };
    // deltaCRLIndicator, whether critical or not.
    assert_eq!(read(&[0x55, 0x1d, 0x1b], true, &[0x02, 0x01, 0x05]), Err(ReadError::Delta));
    assert_eq!(read(&[0x55, 0x1d, 0x1b], false, &[0x02, 0x01, 0x05]), Err(ReadError::Delta));
    assert_eq!(
        read(&[0x2a, 0x03, 0x04], true, &[0x05, 0x00]),
        Err(ReadError::Critical("1.2.3.4".to_owned()))
    );
    assert_eq!(read(&[0x2a, 0x03, 0x04], false, &[0x05, 0x00]), Ok(()));
    // A second authority key id.
    assert!(matches!(read(&[0x55, 0x1d, 0x23], false, &[0x30, 0x00]), Err(ReadError::Extension(_))));
}

/// A list of one entry that has an extension.
fn with_entry(authority: &Authority, oid: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let whole = list(authority, Scope::Unsaid, &["40abababababababababababababab0f"]);
    let mut outer = SliceReader::new(inside(&whole).unwrap()).unwrap();
    let (to_be_signed, algorithm) = (outer.tlv_bytes().unwrap(), outer.tlv_bytes().unwrap());
    let mut fields = SliceReader::new(inside(to_be_signed).unwrap()).unwrap();
    let mut parts: Vec<Vec<u8>> = Vec::new();
    while !fields.is_finished() {
        parts.push(fields.tlv_bytes().unwrap().to_vec());
    }
    // version, signature, issuer, thisUpdate, nextUpdate, revokedCertificates, crlExtensions.
    assert_eq!((parts.len(), parts[6][0]), (7, CONTEXT_0));
    let serial = tlv(0x02, &[&[0x40, 0xab]]);
    let critical: &[u8] = if critical { &[0x01, 0x01, 0xff] } else { &[] };
    let extension = tlv(SEQUENCE, &[&tlv(0x06, &[oid]), critical, &tlv(OCTET_STRING, &[value])]);
    let entry = tlv(SEQUENCE, &[&serial, &parts[3], &tlv(SEQUENCE, &[&extension])]);
    parts[5] = tlv(SEQUENCE, &[&entry]);
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    let to_be_signed = tlv(SEQUENCE, &parts);
    let signature = rcgen::SigningKey::sign(authority.issuer().key(), &to_be_signed).unwrap();
    tlv(SEQUENCE, &[&to_be_signed, algorithm, &tlv(super::super::BIT_STRING, &[&[0], &signature])])
}

#[test]
fn an_entry_that_is_not_understood_refuses_the_list() {
    let (_, issuing) = authorities();
    let read = |oid: &[u8], critical, value: &[u8]| {
        RevocationList::read(&with_entry(&issuing, oid, critical, value), &[der(&issuing)])
            .map(|list| list.serials.len())
    };
    assert_eq!(read(&[0x55, 0x1d, 0x15], true, &[0x0a, 0x01, 0x01]), Ok(1));
    assert_eq!(read(&[0x55, 0x1d, 0x1d], true, &[0x30, 0x00]), Err(ReadError::Indirect));
    assert_eq!(
        read(&[0x2a, 0x03, 0x04], true, &[0x05, 0x00]),
        Err(ReadError::Critical("1.2.3.4".to_owned()))
    );
}

#[test]
fn one_without_an_end_is_refused() {
    let (_, issuing) = authorities();
    let whole = list(&issuing, Scope::Unsaid, &[]);
    let mut outer = SliceReader::new(inside(&whole).unwrap()).unwrap();
    let (to_be_signed, algorithm) = (outer.tlv_bytes().unwrap(), outer.tlv_bytes().unwrap());
    let mut fields = SliceReader::new(inside(to_be_signed).unwrap()).unwrap();
    let mut parts: Vec<&[u8]> = Vec::new();
    while !fields.is_finished() {
        parts.push(fields.tlv_bytes().unwrap());
    }
    parts.remove(4);
    let to_be_signed = tlv(SEQUENCE, &parts);
    let signature = rcgen::SigningKey::sign(issuing.issuer().key(), &to_be_signed).unwrap();
    let der_list =
        tlv(SEQUENCE, &[&to_be_signed, algorithm, &tlv(super::super::BIT_STRING, &[&[0], &signature])]);
    assert_eq!(RevocationList::read(&der_list, &[der(&issuing)]).unwrap_err(), ReadError::NoEnd);
}

#[test]
fn one_that_openssl_made_is_read() {
    let folder = Folder::new();
    let path = |name: &str| folder.file(name, "");
    let (key, crt, index, crl) = (path("ca.key"), path("ca.crt"), path("index"), path("out.crl"));
    let number = folder.file("number", "01\n");
    let config = folder.file(
        "ca.cnf",
        &format!(
            "[ca]\ndefault_ca=d\n[d]\ndatabase={index}\ncrlnumber={number}\ndefault_md=sha256\ndefault_crl_days=7\n\
             crl_extensions=e\n[e]\nauthorityKeyIdentifier=keyid\n[req]\ndistinguished_name=n\n[n]\n[x]\n\
             basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n"
        ),
    );
    let ec = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=Elsewhere", "-days", "30"];
    let made = [&ec[..], &["-extensions", "x", "-config", &config, "-keyout", &key, "-out", &crt]].concat();
    let Some((done, said)) = openssl(&made) else { return };
    assert!(done, "{said}");
    #[expect(clippy::disallowed_methods, reason = "a test reads what openssl wrote")]
    std::fs::write(&index, "R\t301231235959Z\t260101000000Z,keyCompromise\t0A0B\tunknown\t/CN=bad\n")
        .unwrap();
    let line = ["ca", "-gencrl", "-config", &config, "-keyfile", &key, "-cert", &crt, "-out", &crl];
    let (done, said) = openssl(&line).unwrap();
    assert!(done, "{said}");
    #[expect(clippy::disallowed_methods, reason = "a test reads what openssl wrote")]
    let (crl, crt) = (std::fs::read(&crl).unwrap(), std::fs::read(&crt).unwrap());
    let (lists, _) = sections(&crl).unwrap();
    let ca = CertificateDer::from_pem_slice(&crt).unwrap();
    let read = RevocationList::read(&lists[0], &[ca]).unwrap();
    assert!(read.issuer_name.contains("Elsewhere"));
    assert!(read.serials.contains(&SerialBytes::from_hex("0a0b").unwrap()));
}
