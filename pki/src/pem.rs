//! PEM (RFC 7468), written into one allocation so that a private key leaves no copies behind.

use pkcs8::SecretDocument;
use pkcs8::der::pem::{LineEnding, encode_string};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use zeroize::Zeroizing;

pub(crate) const CERTIFICATE: &str = "CERTIFICATE";
pub(crate) const CRL: &str = "X509 CRL";
pub(crate) const REQUEST: &str = "CERTIFICATE REQUEST";
pub(crate) const PRIVATE_KEY: &str = "PRIVATE KEY";
pub(crate) const ENCRYPTED_PRIVATE_KEY: &str = "ENCRYPTED PRIVATE KEY";

/// A public document as PEM, ending in a newline.
pub(crate) fn encode(label: &'static str, der: &[u8]) -> String {
    encode_string(label, LineEnding::LF, der)
        .expect("the labels above are valid, and no certificate, list or key nears the length that overflows")
}

/// A certificate's DER as PEM, ending in a newline.
#[must_use]
pub fn certificate_to_pem(der: &[u8]) -> String {
    encode(CERTIFICATE, der)
}

/// A secret as PEM. The encoder sizes its buffer before it writes, so the text never moves.
pub(crate) fn encode_secret(label: &'static str, der: &[u8]) -> Zeroizing<String> {
    Zeroizing::new(encode(label, der))
}

/// All certificates of a PEM text, as DER; `None` where one of them cannot be read.
#[must_use]
pub fn certificates(text: &str) -> Option<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<_, _>>().ok()
}

/// The first section of this label, as DER that is wiped when dropped; what stands around it does not matter. (The
/// decoder below is strict about that, and an editor's empty last line is no reason to refuse a key.)
pub(crate) fn secret(text: &str, label: &str) -> Option<SecretDocument> {
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let text = &text[text.find(&begin)?..];
    let text = &text[..text.find(&end)? + end.len()];
    SecretDocument::from_pem(text).ok().map(|(_, document)| document)
}

/// Whether a section of this label begins on a line of the text.
pub(crate) fn has_section(text: &str, label: &str) -> bool {
    text.lines().any(|line| {
        line.trim_end()
            .strip_prefix("-----BEGIN ")
            .and_then(|rest| rest.strip_suffix("-----"))
            .is_some_and(|found| found == label)
    })
}
