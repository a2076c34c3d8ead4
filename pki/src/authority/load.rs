//! Loading an authority from its two files, and what is refused.

use rcgen::{Issuer, KeyPair, PublicKeyData};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::oid_registry::OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER;
use x509_parser::prelude::{FromDer, ParsedExtension};

use super::Authority;
use super::key::OwnedKey;
use crate::identity::{CaCertificate, display_subject};
use crate::profile::ROOT;
use crate::serial::Serial;
use crate::{hex, pem};

/// Why a certificate and a key are not an authority.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The certificate's text is no PEM.
    #[error("the CA certificate is not PEM: no readable CERTIFICATE section")]
    CertificatePem,
    /// The PEM holds no X.509 certificate, or one with ambiguous constraints.
    #[error("the CA certificate cannot be read: {0}")]
    Certificate(#[from] crate::identity::LeafError),
    /// The key's text is no PKCS#8 PEM.
    #[error(
        "the CA key is not PKCS#8 PEM: no readable PRIVATE KEY section (`openssl pkcs8 -topk8 -nocrypt` converts others)"
    )]
    KeyPem,
    /// The key is under a passphrase.
    #[error("the CA key is encrypted; name the file that holds its passphrase with --passphrase-file")]
    KeyEncrypted,
    /// The key is of a kind, or has a value, that cannot sign.
    #[error("the CA key cannot be used: {0}")]
    Key(String),
    /// The two do not belong together.
    #[error("the key is not that of the certificate '{0}'; they are from different authorities")]
    Mismatch(String),
    /// An end-entity certificate.
    #[error("the certificate '{0}' is not a CA's (basicConstraints CA:TRUE is missing), so it can sign none")]
    NotCa(String),
    /// A CA that may not sign certificates.
    #[error("the certificate '{0}' may not sign certificates (keyCertSign is missing in its key usage)")]
    NoKeyCertSign(String),
    /// A subject that would come out differently as an issuer, so that no chain would verify.
    #[error(
        "the subject of '{0}' has parts that this program cannot repeat in what it issues; use a CA with simpler names"
    )]
    Subject(String),
}

impl Authority {
    /// Loads an authority from its certificate and its unencrypted PKCS#8 key, both in PEM. Of several certificates the one
    /// of this key counts, whatever its place and name; of several of this key, as a renewal leaves them, the one that ends
    /// last. Validity is not asked here but whenever it issues.
    ///
    /// # Errors
    /// [`LoadError`] where either is unreadable, they don't belong together, or the certificate may not sign others.
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<Self, LoadError> {
        let all = pem::certificates(certificate_pem).ok_or(LoadError::CertificatePem)?;
        if pem::has_section(key_pem, pem::ENCRYPTED_PRIVATE_KEY) {
            return Err(LoadError::KeyEncrypted);
        }
        let key = pem::secret(key_pem, pem::PRIVATE_KEY).ok_or(LoadError::KeyPem)?;
        let key = KeyPair::try_from(key.as_bytes()).map_err(|error| LoadError::Key(error.to_string()))?;
        let public_key = key.subject_public_key_info();
        let first = all.first().ok_or(LoadError::CertificatePem)?;
        let of_this_key = all
            .iter()
            .filter_map(|der| Some((der, CaCertificate::parse(der).ok()?)))
            .filter(|(_, facts)| facts.public_key_info() == public_key)
            .max_by_key(|(_, facts)| facts.not_after());
        // Of none, the first says what is wrong.
        Self::assemble(of_this_key.map_or(first, |(der, _)| der), OwnedKey::new(key))
    }

    /// The only constructor: nothing that may not sign becomes an authority.
    pub(super) fn assemble(der: &CertificateDer<'_>, key: OwnedKey) -> Result<Self, LoadError> {
        let facts = CaCertificate::parse(der)?;
        let subject = || display_subject(der);
        if !facts.is_ca() {
            return Err(LoadError::NotCa(subject()));
        }
        if !facts.key_cert_sign() {
            return Err(LoadError::NoKeyCertSign(subject()));
        }
        let unreadable = LoadError::Certificate(crate::identity::LeafError::Unreadable);
        let (_, read) = X509Certificate::from_der(der).map_err(|_| unreadable.clone())?;
        if read.public_key().raw != key.subject_public_key_info() {
            return Err(LoadError::Mismatch(subject()));
        }
        let path_len = read.basic_constraints().ok().flatten().and_then(|bc| bc.value.path_len_constraint);
        let validity = (read.validity().not_before.to_datetime(), read.validity().not_after.to_datetime());
        let issuer = Issuer::from_ca_cert_der(der, key).map_err(|_| LoadError::Subject(subject()))?;
        let (issuer_name, key_id) = as_issuer(&issuer).ok_or(unreadable)?;
        if issuer_name != facts.subject() {
            return Err(LoadError::Subject(subject()));
        }
        let (not_before, not_after) = validity;
        Ok(Self { issuer, der: der.to_vec(), key_id, path_len, not_before, not_after })
    }
}

/// Whether two certificates have the same subject.
pub(super) fn same_name(one: &[u8], other: &[u8]) -> bool {
    let subject = |der| CaCertificate::parse(der).map(|facts| facts.subject().to_vec());
    subject(one) == subject(other)
}

/// The issuer name and key id that certificates of this issuer carry, seen in one that is signed and thrown away. rcgen
/// writes the name anew from its parsed form, which loses attributes that occur twice.
fn as_issuer(issuer: &Issuer<'_, OwnedKey>) -> Option<(Vec<u8>, String)> {
    let moment = (OffsetDateTime::UNIX_EPOCH, OffsetDateTime::UNIX_EPOCH);
    let params = ROOT.params("probe", Vec::new(), Serial::from_random([0; 16]), moment);
    let probe = params.signed_by(issuer.key(), issuer).ok()?;
    let (_, read) = X509Certificate::from_der(probe.der()).ok()?;
    match read.get_extension_unique(&OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER).ok()??.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => {
            Some((read.issuer().as_raw().to_vec(), hex::encode(id.key_identifier.as_ref()?.0)))
        }
        _ => None,
    }
}
