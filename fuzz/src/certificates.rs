//! What comes as a certificate, a revocation list or a request for a certificate.

use std::sync::LazyLock;

use doorward_pki::crl::SerialBytes;
use doorward_pki::identity::is_signed_by;
use doorward_pki::{CaCertificate, Fingerprint, Leaf, Request, RevocationList, display_subject, printable};
use doorward_proto::ids::DeviceId;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, X509Certificate};

use crate::Outcome;

/// The CA of the seeds. Its key is nowhere: what it has not signed, nobody can.
const CA: &[u8] = include_bytes!("../seeds/certificate/ca.der");
const ITS_LEAF: &[u8] = include_bytes!("../seeds/certificate/leaf.der");
const ITS_LIST: &[u8] = include_bytes!("../seeds/revocation_list/list.der");
const CSR: &[u8] = include_bytes!("../seeds/csr/request.der");

static DEVICE: LazyLock<DeviceId> = LazyLock::new(|| DeviceId::new("press-7").expect("an id"));

/// A certificate as it comes in a handshake: what is read of it is of these bytes and no others, and nothing passes for the
/// CA's that the CA has not signed.
pub fn certificate(data: &[u8]) -> Outcome {
    let (leaf, ca, shown) = (Leaf::parse(data), CaCertificate::parse(data), display_subject(data));
    assert!(shown.chars().count() <= 129, "{shown:?}");
    assert!(!shown.chars().any(char::is_control), "{shown:?}");
    let signed = is_signed_by(data, CA);
    let Ok(leaf) = leaf else {
        assert!(!signed || !matches!(X509Certificate::from_der(data), Ok(([], _))) || ca.is_err());
        return Outcome::of(("unreadable", format!("{:?}", leaf.err()), shown.len() > 20));
    };
    assert_eq!(leaf.fingerprint(), Fingerprint::of(data));
    assert!(Leaf::parse(&[data, &[0]].concat()).is_err(), "bytes behind it would have another fingerprint");
    assert!(leaf.serial().bytes().all(|b| b.is_ascii_hexdigit()));
    if let Ok(ca) = &ca {
        assert_eq!((ca.is_ca(), ca.not_after()), (leaf.is_ca(), leaf.not_after()));
    }
    let fit = leaf.fit_for_device();
    assert!(fit.is_err() || !leaf.is_ca(), "a CA is no device");
    let name = leaf.common_name().map(printable);
    if let Ok(name) = &name {
        assert!(!name.chars().any(char::is_control), "{name:?}");
    }
    if signed {
        let tbs =
            |der| X509Certificate::from_der(der).map(|(_, read)| read.tbs_certificate.as_ref().to_vec());
        let its_own = [CA, ITS_LEAF].map(|der| tbs(der).expect("a seed"));
        assert!(its_own.contains(&tbs(data).expect("read before")), "signed by a CA that never saw it");
    }
    Outcome::of((signed, format!("{fit:?}"), name.is_ok(), ca.is_ok(), leaf.issuer_key_id().is_some()))
}

/// A revocation list: none is believed but what the CA has signed, and that is read as it stands.
pub fn revocation_list(data: &[u8]) -> Outcome {
    let cas = [CertificateDer::from(CA)];
    let read = RevocationList::read(data, &cas);
    if let Ok(list) = &read {
        let tbs = |der| {
            CertificateRevocationList::from_der(der).map(|(_, read)| read.tbs_cert_list.as_ref().to_vec())
        };
        assert_eq!(tbs(data).ok(), tbs(ITS_LIST).ok(), "a list that the CA never signed");
        let named = SerialBytes::from_hex("1001").expect("hex");
        assert_eq!((list.serials.len(), list.serials.contains(&named)), (2, true));
    }
    Outcome::of(read.map(|list| list.serials.len()).map_err(|error| error.to_string()))
}

/// A request: of it only the key is taken whose owner has signed it, for the device that asks.
pub fn csr(data: &[u8]) -> Outcome {
    static KEY: LazyLock<Fingerprint> =
        LazyLock::new(|| Request::parse(CSR, &DEVICE).expect("the seed").key_fingerprint());
    let read = Request::parse(data, &DEVICE);
    if let Ok(request) = &read {
        assert_eq!(request.device(), &*DEVICE);
        assert_eq!(request.key_fingerprint(), *KEY, "a key whose owner has signed nothing");
        let other = DeviceId::new("press-8").expect("an id");
        assert!(Request::parse(data, &other).is_err(), "and for nobody else");
    }
    Outcome::of(read.map(|_| ()).map_err(|error| {
        let words = error.to_string();
        assert!(!words.chars().any(char::is_control), "{words:?}");
        std::mem::discriminant(&error)
    }))
}
