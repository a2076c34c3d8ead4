//! What the gateway must know of a CA certificate.

use super::{Fingerprint, LeafError, extension, is_ca, key_usage, parse};
use crate::hex;
use x509_parser::extensions::ParsedExtension;
use x509_parser::oid_registry::OID_X509_EXT_SUBJECT_KEY_IDENTIFIER;

/// Bits 5 and 6 of KeyUsage (RFC 5280 §4.2.1.3).
const KEY_CERT_SIGN: u16 = 1 << 5;
const CRL_SIGN: u16 = 1 << 6;

/// A CA's name and key: what it has signed stays its own when its certificate is renewed, and a CA of the same name with
/// another key is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CaId(Fingerprint);

impl CaId {
    /// SHA-256 of both.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

/// A CA certificate's facts. A resumed handshake skips path validation and rustls-webpki ignores `keyCertSign=false`, so
/// the gateway asks these itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaCertificate {
    subject: Vec<u8>,
    issuer: Vec<u8>,
    public_key_info: Vec<u8>,
    key_id: Option<String>,
    id: CaId,
    is_ca: bool,
    path_len: Option<u32>,
    key_cert_sign: bool,
    crl_sign: bool,
    not_before: i64,
    not_after: i64,
}

impl CaCertificate {
    /// Reads a certificate from DER. It checks no signature and no date, and reads one that is not a CA's as well.
    ///
    /// # Errors
    /// [`LeafError`] where the bytes are no certificate, or one whose constraints are ambiguous.
    pub fn parse(der: &[u8]) -> Result<Self, LeafError> {
        const KEY_ID: &str = "subject key id";
        let certificate = parse(der)?;
        let key_id = match extension(&certificate, &OID_X509_EXT_SUBJECT_KEY_IDENTIFIER, KEY_ID)? {
            None => None,
            Some(ParsedExtension::SubjectKeyIdentifier(id)) => Some(hex::encode(id.0)),
            Some(_) => return Err(LeafError::Extension(KEY_ID)),
        };
        let usage = key_usage(&certificate)?;
        let is_ca = is_ca(&certificate)?;
        let constraints = certificate.basic_constraints().ok().flatten();
        Ok(Self {
            subject: certificate.subject().as_raw().to_vec(),
            issuer: certificate.issuer().as_raw().to_vec(),
            public_key_info: certificate.public_key().raw.to_vec(),
            key_id,
            id: CaId(Fingerprint::of(
                &[certificate.subject().as_raw(), certificate.public_key().raw].concat(),
            )),
            is_ca,
            path_len: constraints.and_then(|constraints| constraints.value.path_len_constraint),
            key_cert_sign: usage.is_some_and(|usage| usage & KEY_CERT_SIGN != 0),
            crl_sign: usage.is_none_or(|usage| usage & CRL_SIGN != 0),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
        })
    }

    /// The subject's distinguished name in DER; equal to [`super::Leaf::issuer`] of what it signed.
    #[must_use]
    pub fn subject(&self) -> &[u8] {
        &self.subject
    }

    /// The distinguished name of who signed it, in DER.
    #[must_use]
    pub fn issuer(&self) -> &[u8] {
        &self.issuer
    }

    /// Its public key, as a SubjectPublicKeyInfo in DER.
    #[must_use]
    pub fn public_key_info(&self) -> &[u8] {
        &self.public_key_info
    }

    /// How many CAs may follow below it; `None`: as many as like (RFC 5280 §4.2.1.9).
    #[must_use]
    pub const fn path_len(&self) -> Option<u32> {
        self.path_len
    }

    /// Its subject key identifier in lowercase hex, if it has one.
    #[must_use]
    pub fn key_id(&self) -> Option<&str> {
        self.key_id.as_deref()
    }

    /// Its name and key.
    #[must_use]
    pub const fn id(&self) -> CaId {
        self.id
    }

    /// Whether basicConstraints says CA.
    #[must_use]
    pub const fn is_ca(&self) -> bool {
        self.is_ca
    }

    /// Whether its key usage is there and has keyCertSign.
    #[must_use]
    pub const fn key_cert_sign(&self) -> bool {
        self.key_cert_sign
    }

    /// Whether it may sign revocation lists: its key usage says so, or it has none.
    #[must_use]
    pub const fn crl_sign(&self) -> bool {
        self.crl_sign
    }

    /// The first second of its validity, in Unix time.
    #[must_use]
    pub const fn not_before(&self) -> i64 {
        self.not_before
    }

    /// The last second of its validity, in Unix time.
    #[must_use]
    pub const fn not_after(&self) -> i64 {
        self.not_after
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Leaf;
    use crate::testing::{authorities, device, now};

    #[test]
    fn a_ca_and_what_it_signed_find_each_other() {
        let (root, issuing) = authorities();
        let leaf = Leaf::parse(&device(&issuing, "press-7").der).unwrap();
        let ca = CaCertificate::parse(issuing.certificate_der()).unwrap();
        assert!(ca.is_ca() && ca.key_cert_sign());
        assert_eq!(leaf.issuer(), ca.subject());
        assert_eq!(leaf.issuer_key_id(), ca.key_id());
        assert_eq!(ca.key_id(), Some(issuing.key_id()));
        assert_ne!(ca.subject(), CaCertificate::parse(root.certificate_der()).unwrap().subject());
        assert_eq!(ca.not_before(), now().unix_timestamp() - 300);
        assert_eq!(ca.not_after(), issuing.not_after().unix_timestamp());
    }

    #[test]
    fn a_device_is_no_ca() {
        let (_, issuing) = authorities();
        let not_a_ca = CaCertificate::parse(&device(&issuing, "press-7").der).unwrap();
        assert!(!not_a_ca.is_ca() && !not_a_ca.key_cert_sign());
    }
}
