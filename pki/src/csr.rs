//! A certificate signing request (PKCS#10, RFC 2986) of a device that keeps its private key to itself.
//!
//! A CSR is a stranger's wish list. Of it we take one thing, the public key, once its owner has proven to hold the
//! private half; a requested CA flag, usage or name decides nothing.

use doorward_proto::ids::DeviceId;
use rcgen::{PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521, OID_PKCS1_RSAENCRYPTION,
    OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384, OID_SIG_ED25519,
};
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::identity::{Fingerprint, common_names, printable};

/// The largest request that is read; a P-256 request is 300 to 1,000 bytes.
pub const MAX_CSR_BYTES: usize = 64 * 1024;

/// A device's proven public key. Hand it to [`Authority::issue_device`](crate::Authority::issue_device) as the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    device: DeviceId,
    /// Uncompressed: `04`, then x and y.
    point: [u8; 65],
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CsrError {
    /// More than [`MAX_CSR_BYTES`].
    #[error("the request has {0} bytes; at most {MAX_CSR_BYTES} are read")]
    TooLarge(usize),
    /// Not PKCS#10.
    #[error(
        "this is not a certificate signing request (PKCS#10) in PEM or DER; make one with `openssl req -new`"
    )]
    Unreadable,
    /// A key that is not ECDSA on P-256.
    #[error(
        "the request's key is {0}; a device's key is ECDSA on P-256 (`openssl ecparam -name prime256v1 -genkey`)"
    )]
    KeyKind(&'static str),
    /// Signed by an algorithm other than ECDSA with SHA-256 or SHA-384.
    #[error(
        "the request is signed with an unsupported algorithm; sign it with SHA-256 (`openssl req -new -sha256`)"
    )]
    SignatureKind,
    /// The signature is not by the key: whoever asks has not proven to hold the private half.
    #[error(
        "the request is not signed by the key that it holds, so possession of the private key is not proven"
    )]
    Signature,
    /// No common name, several, or one that is not text.
    #[error("the request's subject must have exactly one common name, {wanted}; it has {found}")]
    CommonNames {
        /// How many it has, in words.
        found: String,
        /// The device that it should name.
        wanted: DeviceId,
    },
    /// The common name of something else.
    #[error("the request is for '{found}' and not for {wanted}; make it with the subject CN={wanted}")]
    OtherDevice {
        /// The request's name, escaped.
        found: String,
        /// The device that it should name.
        wanted: DeviceId,
    },
}

impl Request {
    /// SHA-256 of the key: what tells two requests apart.
    #[must_use]
    pub fn key_fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.point)
    }

    /// Reads and verifies a request of `device`, in PEM or DER.
    ///
    /// # Errors
    /// [`CsrError`] where it is unreadable, its key or signature is not right, or it names something else.
    pub fn parse(pem_or_der: &[u8], device: &DeviceId) -> Result<Self, CsrError> {
        if pem_or_der.len() > MAX_CSR_BYTES {
            return Err(CsrError::TooLarge(pem_or_der.len()));
        }
        let der = der(pem_or_der)?;
        let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|_| CsrError::Unreadable)?;
        if !rest.is_empty() {
            return Err(CsrError::Unreadable);
        }
        let info = &request.certification_request_info;
        let point = p256_point(&info.subject_pki)?;
        let signed_with = &request.signature_algorithm.algorithm;
        if *signed_with != OID_SIG_ECDSA_WITH_SHA256 && *signed_with != OID_SIG_ECDSA_WITH_SHA384 {
            return Err(CsrError::SignatureKind);
        }
        request.verify_signature().map_err(|_| CsrError::Signature)?;

        let wanted = || device.clone();
        let found = match common_names(&info.subject).as_slice() {
            [Some(name)] if name == device.as_str() => return Ok(Self { device: device.clone(), point }),
            [Some(name)] => return Err(CsrError::OtherDevice { found: printable(name), wanted: wanted() }),
            [None] => "one that is not text".to_owned(),
            [] => "none".to_owned(),
            several => several.len().to_string(),
        };
        Err(CsrError::CommonNames { found, wanted: wanted() })
    }

    /// The device that it is for.
    #[must_use]
    pub const fn device(&self) -> &DeviceId {
        &self.device
    }
}

impl PublicKeyData for Request {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

/// The request's DER, out of its PEM if it is in one. A DER request begins with SEQUENCE, which no PEM text does.
fn der(pem_or_der: &[u8]) -> Result<CertificateSigningRequestDer<'_>, CsrError> {
    if pem_or_der.first() == Some(&0x30) {
        return Ok(pem_or_der.into());
    }
    // RFC 7468 §7 names both labels; the second is what older tools write.
    let text = str::from_utf8(pem_or_der).map_err(|_| CsrError::Unreadable)?;
    let text = text.replace(" NEW CERTIFICATE REQUEST-----", " CERTIFICATE REQUEST-----");
    CertificateSigningRequestDer::from_pem_slice(text.as_bytes()).map_err(|_| CsrError::Unreadable)
}

fn p256_point(key: &SubjectPublicKeyInfo<'_>) -> Result<[u8; 65], CsrError> {
    let kind = &key.algorithm.algorithm;
    if *kind != OID_KEY_TYPE_EC_PUBLIC_KEY {
        return Err(CsrError::KeyKind(if *kind == OID_PKCS1_RSAENCRYPTION {
            "RSA"
        } else if *kind == OID_SIG_ED25519 {
            "Ed25519"
        } else {
            "of another kind"
        }));
    }
    let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    match curve {
        Some(curve) if curve == OID_EC_P256 => {}
        Some(curve) if curve == OID_NIST_EC_P384 => return Err(CsrError::KeyKind("on the curve P-384")),
        Some(curve) if curve == OID_NIST_EC_P521 => return Err(CsrError::KeyKind("on the curve P-521")),
        _ => return Err(CsrError::KeyKind("on another curve")),
    }
    // RFC 5480 §2.2 leaves the compressed form optional; that the point is on the curve is checked with the signature.
    match <[u8; 65]>::try_from(&*key.subject_public_key.data) {
        Ok(point) if point[0] == 0x04 => Ok(point),
        _ => Err(CsrError::KeyKind("not written as an uncompressed point")),
    }
}

#[cfg(test)]
mod tests;
