//! An issuing CA that somebody else signs: the request for it, and what is asked of the certificate that comes back
//! before anything trusts it.

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use crate::authority::{IssueError, check_name};
use crate::identity::{CaCertificate, LeafError, display_subject};
use crate::pem;
use crate::profile::ISSUING;

/// Why a certificate does not become an issuing CA below a root.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExternalError {
    /// It cannot be read.
    #[error("the certificate cannot be read: {0}")]
    Unreadable(#[from] LeafError),
    /// It is not a CA's.
    #[error("'{0}' is not a CA's certificate (basicConstraints CA:TRUE is missing)")]
    NotCa(String),
    /// It may not sign certificates.
    #[error("'{0}' may not sign certificates (keyCertSign is missing in its key usage)")]
    NoKeyCertSign(String),
    /// What it signs could not say by which of two CAs of one name.
    #[error(
        "'{0}' has no subject key identifier, by which CAs of one name are told apart; have it signed with one"
    )]
    NoKeyId(String),
    /// It is not valid yet.
    #[error("'{subject}' is valid only from {from}; is the clock right?")]
    NotYetValid {
        /// Whose certificate.
        subject: String,
        /// From when.
        from: OffsetDateTime,
    },
    /// It has expired.
    #[error("'{subject}' expired at {until}")]
    Expired {
        /// Whose certificate.
        subject: String,
        /// Until when.
        until: OffsetDateTime,
    },
    /// It has its issuer's name, and so would look self-issued (RFC 5280 §6.1).
    #[error("'{0}' has the name of the CA that signed it; have it signed under a name of its own")]
    NameOfIssuer(String),
    /// A root that is not self-signed is no end of a chain for OpenSSL and others.
    #[error("'{0}' is not self-signed, so it is no root")]
    NotRoot(String),
    /// None of the roots has signed it.
    #[error("'{subject}' is signed by none of these roots: {roots}")]
    NotSigned {
        /// Whose certificate.
        subject: String,
        /// Those that were tried.
        roots: String,
    },
    /// The root's path length forbids a CA below it.
    #[error("the root '{0}' may sign no CA (its path length is 0)")]
    PathLength(String),
}

/// A request (PKCS#10, PEM) for an issuing CA's certificate. What it asks for is what [`ISSUING`] says; who signs decides.
///
/// # Errors
/// [`IssueError`] for a name or key that does not do.
pub fn request(name: &str, key: &KeyPair) -> Result<String, IssueError> {
    check_name(name, &ISSUING)?;
    if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
        return Err(IssueError::KeyKind(format!("{:?}", key.algorithm())));
    }
    let request = ISSUING.request_params(name).serialize_request(key).map_err(IssueError::Signing)?;
    Ok(pem::encode(pem::REQUEST, request.der()))
}

/// Checks a certificate that is to issue below one of these roots; which of them has signed it.
///
/// # Errors
/// [`ExternalError`] with the first reason found.
pub fn check(
    certificate: &CertificateDer<'_>,
    roots: &[CertificateDer<'static>],
    now: OffsetDateTime,
) -> Result<usize, ExternalError> {
    let facts = may_sign(certificate, now)?;
    let subject = || display_subject(certificate);
    if facts.key_id().is_none() {
        return Err(ExternalError::NoKeyId(subject()));
    }
    if facts.subject() == facts.issuer() {
        return Err(ExternalError::NameOfIssuer(subject()));
    }
    let signer = roots.iter().position(|root| has_signed(root, certificate));
    let Some(signer) = signer else {
        let roots: Vec<String> = roots.iter().map(|root| format!("'{}'", display_subject(root))).collect();
        return Err(ExternalError::NotSigned { subject: subject(), roots: roots.join(", ") });
    };
    let root = &roots[signer];
    let root_facts = may_sign(root, now)?;
    if !has_signed(root, root) {
        return Err(ExternalError::NotRoot(display_subject(root)));
    }
    if root_facts.path_len() == Some(0) {
        return Err(ExternalError::PathLength(display_subject(root)));
    }
    Ok(signer)
}

/// A CA's facts, if it may sign certificates now.
fn may_sign(der: &CertificateDer<'_>, now: OffsetDateTime) -> Result<CaCertificate, ExternalError> {
    let facts = CaCertificate::parse(der)?;
    let subject = display_subject(der);
    if !facts.is_ca() {
        return Err(ExternalError::NotCa(subject));
    }
    if !facts.key_cert_sign() {
        return Err(ExternalError::NoKeyCertSign(subject));
    }
    let moment = |seconds| OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(now);
    if now.unix_timestamp() < facts.not_before() {
        return Err(ExternalError::NotYetValid { subject, from: moment(facts.not_before()) });
    }
    if now.unix_timestamp() > facts.not_after() {
        return Err(ExternalError::Expired { subject, until: moment(facts.not_after()) });
    }
    Ok(facts)
}

/// Whether a certificate bears a CA's name as its issuer's, and the signature is by that CA's key.
fn has_signed(ca: &CertificateDer<'_>, certificate: &CertificateDer<'_>) -> bool {
    let read = |der| X509Certificate::from_der(der).ok().map(|(_, read)| read);
    match (read(ca), read(certificate)) {
        (Some(ca), Some(certificate)) => {
            certificate.issuer().as_raw() == ca.subject().as_raw()
                && certificate.verify_signature(Some(ca.public_key())).is_ok()
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
