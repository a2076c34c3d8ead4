//! Another CA's revocation list (RFC 5280 §5), read once: who signed it, until when it holds, which serials it names.
//!
//! It is believed where all of it is understood and one of the given CAs has signed it; what is left out of account would
//! let somebody in whom its CA has shut out.

use std::collections::HashSet;

use pkcs8::der::{Reader, SliceReader};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::extensions::{ParsedExtension, X509Extension};
use x509_parser::objects::oid_registry;
use x509_parser::oid_registry::asn1_rs::oid;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::inside;
use crate::hex;
use crate::identity::{CaCertificate, CaId, printable};

/// The longest file of lists that is read: half a million entries, about.
pub const MAX_FILE_BYTES: usize = 32 << 20;

/// Why a list is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// More than [`MAX_FILE_BYTES`].
    #[error("it is longer than 32 MiB")]
    TooLong,
    /// Neither a list in DER nor PEM with one in it.
    #[error("no revocation list in it, in PEM (X509 CRL) or DER")]
    Unreadable,
    /// A list of which something is left over.
    #[error("bytes follow the list's end")]
    TrailingBytes,
    /// It says what has changed since another list, and not what holds.
    #[error("it is a delta CRL (RFC 5280 §5.2.4), which says only what has changed; give the complete one")]
    Delta,
    /// It speaks of other CAs' certificates than its signer's.
    #[error(
        "it is an indirect CRL (RFC 5280 §5.2.5), which speaks of other CAs' certificates than its signer's"
    )]
    Indirect,
    /// It leaves out certificates that are revoked for other reasons, or is of no certificates that devices have.
    #[error("it is of {0} alone; give the complete one")]
    Partial(&'static str),
    /// An extension that must be understood, and is not.
    #[error("its critical extension {0} is not understood")]
    Critical(String),
    /// An extension that cannot be read.
    #[error("its {0} cannot be read, or is there more than once")]
    Extension(&'static str),
    /// No end.
    #[error("it does not say until when it holds (nextUpdate is missing)")]
    NoEnd,
    /// None of the CAs that are known has this name and key id.
    #[error(
        "its issuer '{0}' is none of the device CAs, nor one that has signed a device CA or was signed by one"
    )]
    Issuer(String),
    /// None of the CAs of this name has signed it.
    #[error("its signature is not that of '{0}'")]
    Signature(String),
    /// The CA's key usage.
    #[error("'{0}' may not sign revocation lists (cRLSign is missing in its key usage)")]
    NoCrlSign(String),
}

/// A list that is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevocationList {
    /// Whose certificates it is of.
    pub issuer: CaId,
    /// The issuer's name, fit for a log line.
    pub issuer_name: String,
    /// When it was made, in Unix time.
    pub this_update: i64,
    /// When the next one is due, in Unix time.
    pub next_update: i64,
    /// What is revoked.
    pub serials: HashSet<SerialBytes>,
}

/// A serial number as it stands in a certificate or a list, without leading zeros: they are one number.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SerialBytes(Box<[u8]>);

impl SerialBytes {
    /// The bytes of an INTEGER.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        Self(bytes.get(zeros..).unwrap_or_default().into())
    }

    /// A serial in hex, as [`Leaf::serial`](crate::Leaf::serial) says it.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        hex::decode_any(text).map(|bytes| Self::new(&bytes))
    }
}

/// The lists of a file, and the certificates that stand beside them.
///
/// # Errors
/// [`ReadError::TooLong`], [`ReadError::Unreadable`]
pub fn sections(
    file: &[u8],
) -> Result<(Vec<CertificateRevocationListDer<'static>>, Vec<CertificateDer<'static>>), ReadError> {
    if file.len() > MAX_FILE_BYTES {
        return Err(ReadError::TooLong);
    }
    if file.first() == Some(&super::SEQUENCE) {
        return Ok((vec![file.to_vec().into()], Vec::new()));
    }
    let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(file).collect();
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(file).collect();
    match (lists, certificates) {
        (Ok(lists), Ok(certificates)) if !lists.is_empty() => Ok((lists, certificates)),
        _ => Err(ReadError::Unreadable),
    }
}

/// When a list was made and when the next one is due, whoever signed it; for who hands it on. Unix times.
///
/// # Errors
/// [`ReadError::Unreadable`], [`ReadError::TrailingBytes`]
pub fn updates(der: &[u8]) -> Result<(i64, Option<i64>), ReadError> {
    let crl = parse(der)?;
    Ok((crl.last_update().timestamp(), crl.next_update().map(|time| time.timestamp())))
}

impl RevocationList {
    /// Reads a list that one of these CAs, in DER, has signed. Whether it holds now is the caller's to ask.
    ///
    /// # Errors
    /// [`ReadError`] where anything of it is not understood or not proven.
    pub fn read(der: &[u8], cas: &[CertificateDer<'_>]) -> Result<Self, ReadError> {
        let crl = parse(der)?;
        let key_id = check_extensions(crl.extensions())?;
        let next_update = crl.next_update().ok_or(ReadError::NoEnd)?.timestamp();
        let issuer_name = crl
            .issuer()
            .to_string_with_registry(oid_registry())
            .map_or_else(|_| "(unreadable name)".to_owned(), |name| printable(&name));
        let issuer = verify(&crl, key_id.as_deref(), cas, &issuer_name)?;
        let mut serials = HashSet::new();
        for entry in crl.iter_revoked_certificates() {
            check_entry(entry.extensions())?;
            serials.insert(SerialBytes::new(entry.raw_serial()));
        }
        Ok(Self { issuer, issuer_name, this_update: crl.last_update().timestamp(), next_update, serials })
    }
}

fn parse(der: &[u8]) -> Result<CertificateRevocationList<'_>, ReadError> {
    let (rest, crl) = CertificateRevocationList::from_der(der).map_err(|_| ReadError::Unreadable)?;
    if rest.is_empty() { Ok(crl) } else { Err(ReadError::TrailingBytes) }
}

/// Which of the CAs has signed it. x509-parser leaves out entries that it cannot read; the signature is over what it has
/// read, and so does not fit then.
fn verify(
    crl: &CertificateRevocationList<'_>,
    key_id: Option<&str>,
    cas: &[CertificateDer<'_>],
    name: &str,
) -> Result<CaId, ReadError> {
    let mut refusal = ReadError::Issuer(name.to_owned());
    for der in cas {
        let Ok(facts) = CaCertificate::parse(der) else { continue };
        let other_key = matches!((key_id, facts.key_id()), (Some(said), Some(is)) if said != is);
        if facts.subject() != crl.issuer().as_raw() || other_key || !facts.is_ca() {
            continue;
        }
        let Ok((_, certificate)) = X509Certificate::from_der(der) else { continue };
        if crl.verify_signature(certificate.public_key()).is_err() {
            refusal = ReadError::Signature(name.to_owned());
        } else if !certificate.key_usage().is_ok_and(|usage| usage.is_none_or(|usage| usage.value.crl_sign()))
        {
            refusal = ReadError::NoCrlSign(name.to_owned());
        } else {
            return Ok(facts.id());
        }
    }
    Err(refusal)
}

/// The extensions of a list (RFC 5280 §5.2): its authority key id.
fn check_extensions(extensions: &[X509Extension<'_>]) -> Result<Option<String>, ReadError> {
    let authority_key = oid!(2.5.29.35);
    let number = oid!(2.5.29.20);
    let delta = oid!(2.5.29.27);
    let distribution_point = oid!(2.5.29.28);
    let mut key_id = None;
    let mut seen = HashSet::new();
    for extension in extensions {
        if !seen.insert(&extension.oid) {
            return Err(ReadError::Extension("list of extensions"));
        }
        if extension.oid == delta {
            return Err(ReadError::Delta);
        } else if extension.oid == distribution_point {
            check_distribution_point(extension.value)?;
        } else if extension.oid == authority_key {
            match extension.parsed_extension() {
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    key_id = id.key_identifier.as_ref().map(|id| hex::encode(id.0));
                }
                _ => return Err(ReadError::Extension("authority key id")),
            }
        } else if extension.critical && extension.oid != number {
            return Err(ReadError::Critical(extension.oid.to_id_string()));
        }
    }
    Ok(key_id)
}

/// What a list says that it is of (RFC 5280 §5.2.5). Where it may be had is no matter here.
fn check_distribution_point(value: &[u8]) -> Result<(), ReadError> {
    const UNREADABLE: ReadError = ReadError::Extension("issuing distribution point");
    let mut fields = inside(value).and_then(SliceReader::new).map_err(|_| UNREADABLE)?;
    while !fields.is_finished() {
        match fields.tlv_bytes().map_err(|_| UNREADABLE)? {
            // Where it may be had; of users' certificates alone; of CAs' alone. Each says so only where it is so (DER).
            [0xa0, ..] | [0x81 | 0x82, 0x01, 0xff] => {}
            [0x83, ..] => return Err(ReadError::Partial("certificates revoked for some reasons")),
            [0x84, ..] => return Err(ReadError::Indirect),
            [0x85, ..] => return Err(ReadError::Partial("attribute certificates")),
            _ => return Err(UNREADABLE),
        }
    }
    Ok(())
}

/// The extensions of an entry (RFC 5280 §5.3).
fn check_entry(extensions: &[X509Extension<'_>]) -> Result<(), ReadError> {
    for extension in extensions {
        if extension.oid == oid!(2.5.29.29) {
            return Err(ReadError::Indirect);
        }
        // A reason and a date, whether critical or not, change nothing: what is listed is revoked.
        let understood = extension.oid == oid!(2.5.29.21) || extension.oid == oid!(2.5.29.24);
        if extension.critical && !understood {
            return Err(ReadError::Critical(extension.oid.to_id_string()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
