use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyUsagePurpose,
};

use super::*;
use crate::testing::{authorities, device, key, now};

/// A certificate of a device as it should be, changed by `change`.
fn leaf(change: impl FnOnce(&mut CertificateParams)) -> Result<Leaf, LeafError> {
    Leaf::parse(&signed(change))
}

fn signed(change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "press-7");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.is_ca = IsCa::ExplicitNoCa;
    change(&mut params);
    params.self_signed(&key()).unwrap().der().to_vec()
}

/// Turns an O attribute of the subject into a further CN, which rcgen cannot write itself.
fn organization_to_common_name(der: &mut [u8]) {
    while let Some(at) = der.windows(3).position(|bytes| bytes == [0x55, 0x04, 0x0a]) {
        der[at + 2] = 0x03;
    }
}

#[test]
fn reads_what_was_issued() {
    let (_, issuing) = authorities();
    let issued = device(&issuing, "press-7");
    let leaf = Leaf::parse(&issued.der).unwrap();
    assert_eq!(leaf.common_name(), Ok("press-7"));
    assert_eq!(leaf.fit_for_device(), Ok(()));
    assert_eq!(leaf.serial(), issued.serial.to_string());
    assert_eq!(leaf.fingerprint(), issued.fingerprint);
    assert_eq!(leaf.fingerprint(), Fingerprint::of(&issued.der));
    assert_eq!(leaf.not_before(), now().unix_timestamp() - 300);
    assert_eq!(leaf.not_after(), issued.not_after.unix_timestamp());
    assert_eq!(leaf.issuer_key_id(), Some(issuing.key_id()));
    assert!(!leaf.is_ca());
}

#[test]
fn each_unfitness_has_its_name() {
    let fit = |change: fn(&mut CertificateParams)| leaf(change).unwrap().fit_for_device();
    assert_eq!(fit(|_| {}), Ok(()));
    assert_eq!(fit(|p| p.is_ca = IsCa::NoCa), Ok(()));
    assert_eq!(fit(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), Err(Unfit::Ca));
    assert_eq!(fit(|p| p.extended_key_usages.clear()), Err(Unfit::NoExtendedKeyUsage));
    for other in [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::Any] {
        assert_eq!(
            leaf(|p| p.extended_key_usages = vec![other]).unwrap().fit_for_device(),
            Err(Unfit::NoClientAuth)
        );
    }
    assert_eq!(fit(|p| p.key_usages.clear()), Err(Unfit::NoKeyUsage));
    assert_eq!(fit(|p| p.key_usages = vec![KeyUsagePurpose::KeyAgreement]), Err(Unfit::NoDigitalSignature));
}

#[test]
fn a_ca_and_a_gateway_are_no_devices() {
    let (root, issuing) = authorities();
    assert_eq!(Leaf::parse(root.certificate_der()).unwrap().fit_for_device(), Err(Unfit::Ca));
    let hosts = ["localhost".parse().unwrap()];
    let gateway = issuing
        .issue_gateway("gw", &hosts, &key(), crate::testing::serial(), now(), time::Duration::days(1))
        .unwrap();
    assert_eq!(Leaf::parse(&gateway.der).unwrap().fit_for_device(), Err(Unfit::NoClientAuth));
}

#[test]
fn exactly_one_common_name() {
    let none = leaf(|p| p.distinguished_name.remove(DnType::CommonName).then_some(()).unwrap()).unwrap();
    assert_eq!(none.common_name(), Err(CommonNameError::None));

    let mut two = signed(|p| p.distinguished_name.push(DnType::OrganizationName, "press-8"));
    organization_to_common_name(&mut two);
    assert_eq!(Leaf::parse(&two).unwrap().common_name(), Err(CommonNameError::Several(2)));

    let other = leaf(|p| p.distinguished_name.push(DnType::OrganizationName, "press-8")).unwrap();
    assert_eq!(other.common_name(), Ok("press-7"));

    // The issuer has the name first, the subject second. UTF8String is 0x0c, BMPString 0x1e.
    for (offset, byte) in [(0, 0xff), (-2, 0x1e)] {
        let mut not_text = signed(|_| {});
        let at = not_text.windows(7).rposition(|bytes| bytes == b"press-7").unwrap();
        not_text[at.checked_add_signed(offset).unwrap()] = byte;
        assert_eq!(Leaf::parse(&not_text).unwrap().common_name(), Err(CommonNameError::NotText));
    }
}

#[test]
fn an_ambiguous_constraint_is_refused() {
    let extension =
        |last: u64, content: &[u8]| CustomExtension::from_oid_content(&[2, 5, 29, last], content.to_vec());
    // An empty second basicConstraints beside the first; an unreadable key usage; an EKU with bytes that are none.
    let twice = leaf(|p| p.custom_extensions.push(extension(19, &[0x30, 0x00])));
    assert_eq!(twice.unwrap_err(), LeafError::Extension("basic constraints"));
    let unreadable = leaf(|p| {
        p.is_ca = IsCa::NoCa;
        p.custom_extensions.push(extension(19, &[0x04, 0x00]));
    });
    assert_eq!(unreadable.unwrap_err(), LeafError::Extension("basic constraints"));
    let key_usage = leaf(|p| {
        p.key_usages.clear();
        p.custom_extensions.push(extension(15, &[0x04, 0x00]));
    });
    assert_eq!(key_usage.unwrap_err(), LeafError::Extension("key usage"));
    let extended = leaf(|p| p.custom_extensions.push(extension(37, &[0x30, 0x00])));
    assert_eq!(extended.unwrap_err(), LeafError::Extension("extended key usage"));
}

#[test]
fn bytes_around_a_certificate_are_refused() {
    let mut der = signed(|_| {});
    assert_eq!(Leaf::parse(&der[..der.len() - 1]).unwrap_err(), LeafError::Unreadable);
    assert_eq!(Leaf::parse(&[]).unwrap_err(), LeafError::Unreadable);
    der.push(0);
    assert_eq!(Leaf::parse(&der).unwrap_err(), LeafError::TrailingBytes);
}

#[test]
fn debug_escapes_a_hostile_name() {
    let hostile = leaf(|p| p.distinguished_name.push(DnType::CommonName, "press-7\nok")).unwrap();
    assert!(!format!("{hostile:?}").contains('\n'));
}

#[test]
fn no_bytes_make_it_panic() {
    let (_, issuing) = authorities();
    let (device, ca) = (device(&issuing, "press-7").der, issuing.certificate_der().to_vec());
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..20_000 {
        let mut der = if round % 2 == 0 { device.clone() } else { ca.clone() };
        for _ in 0..random.usize(1..6) {
            let at = random.usize(..der.len());
            match random.u8(..4) {
                0 => der[at] ^= 1 << random.u8(..8),
                1 => der[at] = random.u8(..),
                2 => der.insert(at, random.u8(..)),
                _ => der.truncate(at.max(1)),
            }
        }
        if let Ok(leaf) = Leaf::parse(&der) {
            let _ = (leaf.common_name().map(printable), leaf.fit_for_device(), format!("{leaf:?}"));
        }
        let _ = (CaCertificate::parse(&der), display_subject(&der));
    }
}
