//! Which CA has signed a certificate, asked apart from a handshake.

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;

use super::{CaCertificate, parse};

/// Whether a CA has signed a certificate: its name and its signature. It asks no date.
#[must_use]
pub fn is_signed_by(certificate: &[u8], ca: &[u8]) -> bool {
    let (Ok(certificate), Ok(ca)) = (parse(certificate), parse(ca)) else { return false };
    certificate.issuer().as_raw() == ca.subject().as_raw() && verifies(&certificate, &ca)
}

/// Which of these CAs, in DER, has signed a certificate that one of them has signed for sure: it is in the chain of a
/// handshake that was verified. So where the name and key id leave one, the signature is not computed again.
#[must_use]
pub fn issued_by(leaf: &[u8], cas: &[CertificateDer<'_>]) -> Option<CaCertificate> {
    let read = super::Leaf::parse(leaf).ok()?;
    let fits = |facts: &CaCertificate| {
        facts.subject() == read.issuer()
            && !matches!((read.issuer_key_id(), facts.key_id()), (Some(said), Some(is)) if said != is)
    };
    let mut found: Vec<(CaCertificate, &CertificateDer<'_>)> = Vec::new();
    for der in cas {
        if let Ok(facts) = CaCertificate::parse(der)
            && fits(&facts)
            && found.iter().all(|(other, _)| other.id() != facts.id())
        {
            found.push((facts, der));
        }
    }
    if found.len() > 1 {
        found.retain(|(_, der)| is_signed_by(leaf, der));
    }
    found.into_iter().next().map(|(facts, _)| facts)
}

fn verifies(certificate: &X509Certificate<'_>, ca: &X509Certificate<'_>) -> bool {
    certificate.verify_signature(Some(ca.public_key())).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Authority;
    use crate::testing::{authorities, device, key, now, serial};

    fn der(authority: &Authority) -> CertificateDer<'static> {
        authority.certificate_der().to_vec().into()
    }

    #[test]
    fn name_and_signature_both_count() {
        let (root, issuing) = authorities();
        let leaf = device(&issuing, "press-7").der;
        let twin = root.issuing("Test Issuing", key(), serial(), now()).unwrap();
        assert!(is_signed_by(&leaf, issuing.certificate_der()));
        assert!(is_signed_by(issuing.certificate_der(), root.certificate_der()));
        assert!(!is_signed_by(&leaf, root.certificate_der()));
        assert!(!is_signed_by(&leaf, twin.certificate_der()), "the same name, another key");
        assert!(!is_signed_by(b"junk", root.certificate_der()));
    }

    #[test]
    fn of_two_cas_of_one_name_the_one_that_signed_is_found() {
        let (root, issuing) = authorities();
        let twin = root.issuing("Test Issuing", key(), serial(), now()).unwrap();
        let leaf = device(&issuing, "press-7").der;
        let found = issued_by(&leaf, &[der(&root), der(&twin), der(&issuing)]).unwrap();
        assert_eq!(found.id(), CaCertificate::parse(issuing.certificate_der()).unwrap().id());
        assert_eq!(issued_by(&leaf, &[der(&root), der(&twin)]), None);
    }
}
