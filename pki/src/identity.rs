//! What a certificate that somebody presents says, read without trust in who wrote it.
//!
//! The gateway asks this after every handshake, full or resumed (protocol §1, steps 2 to 5): rustls-webpki lets a client
//! certificate without extended key usage pass, and a resumed session skips its verifier altogether.

mod ca;
mod fingerprint;
mod path;
mod server;
mod text;

pub use ca::{CaCertificate, CaId};
pub use fingerprint::{Fingerprint, FingerprintError};
pub use path::{is_signed_by, issued_by};
pub use server::ServerCertificate;
pub use text::{display_subject, printable};

use std::fmt;

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{ParsedExtension, X509Extension};
use x509_parser::oid_registry::{
    OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER, OID_X509_EXT_BASIC_CONSTRAINTS, OID_X509_EXT_EXTENDED_KEY_USAGE,
    OID_X509_EXT_KEY_USAGE, Oid,
};
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Name;

use crate::hex;

/// An end-entity certificate, read.
#[derive(Clone)]
pub struct Leaf {
    fingerprint: Fingerprint,
    serial: String,
    common_names: Vec<Option<String>>,
    client_auth: Option<bool>,
    digital_signature: Option<bool>,
    is_ca: bool,
    not_before: i64,
    not_after: i64,
    issuer: Vec<u8>,
    issuer_key_id: Option<String>,
    public_key: Vec<u8>,
}

/// Why bytes are not a certificate that can be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeafError {
    /// Not the DER of one X.509 certificate.
    #[error("these bytes are not an X.509 certificate in DER")]
    Unreadable,
    /// Bytes follow the certificate, so that its fingerprint would not be the certificate's.
    #[error("bytes follow the certificate's end")]
    TrailingBytes,
    /// An extension that decides what the certificate may do cannot be read, or is there twice (RFC 5280 §4.2 forbids it).
    #[error("the certificate's {0} cannot be read, or is there more than once")]
    Extension(&'static str),
}

/// Why a subject does not name one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommonNameError {
    /// There is none.
    #[error("the certificate's subject has no common name; exactly one is needed")]
    None,
    /// There are several, and which one counts would be anyone's choice.
    #[error("the certificate's subject has {0} common names; exactly one is needed")]
    Several(usize),
    /// Not UTF-8 or of a type that is no text.
    #[error("the certificate's common name is not text")]
    NotText,
}

/// Why a certificate, however well signed, is not one for a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unfit {
    /// It is a CA's: it could sign further devices.
    #[error("the certificate is a CA's, not a device's")]
    Ca,
    /// Without extended key usage a certificate is good for anything, a server's role too.
    #[error("the certificate has no extended key usage; a device's says clientAuth")]
    NoExtendedKeyUsage,
    /// Extended key usage without clientAuth.
    #[error("the certificate's extended key usage lacks clientAuth")]
    NoClientAuth,
    /// No key usage at all.
    #[error("the certificate has no key usage; a device's says digitalSignature")]
    NoKeyUsage,
    /// Key usage without digitalSignature.
    #[error("the certificate's key usage lacks digitalSignature")]
    NoDigitalSignature,
}

impl Leaf {
    /// Reads a certificate from DER. It checks no signature and no date.
    ///
    /// # Errors
    /// [`LeafError`] where the bytes are no certificate, or one whose constraints are ambiguous.
    pub fn parse(der: &[u8]) -> Result<Self, LeafError> {
        let certificate = parse(der)?;
        let issuer_key_id =
            match extension(&certificate, &OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER, "authority key id")? {
                None => None,
                Some(ParsedExtension::AuthorityKeyIdentifier(id)) => {
                    id.key_identifier.as_ref().map(|k| hex::encode(k.0))
                }
                Some(_) => return Err(LeafError::Extension("authority key id")),
            };
        let client_auth =
            match extension(&certificate, &OID_X509_EXT_EXTENDED_KEY_USAGE, "extended key usage")? {
                None => None,
                Some(ParsedExtension::ExtendedKeyUsage(usage)) => Some(usage.client_auth),
                Some(_) => return Err(LeafError::Extension("extended key usage")),
            };
        Ok(Self {
            fingerprint: Fingerprint::of(der),
            serial: hex::encode(certificate.raw_serial()),
            common_names: common_names(certificate.subject()),
            client_auth,
            digital_signature: key_usage(&certificate)?.map(|usage| usage & 1 != 0),
            is_ca: is_ca(&certificate)?,
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            issuer: certificate.issuer().as_raw().to_vec(),
            issuer_key_id,
            public_key: certificate.public_key().subject_public_key.data.to_vec(),
        })
    }

    /// Whether the certificate is fit for a device: clientAuth in its extended key usage, digitalSignature in its key
    /// usage, and not a CA. `anyExtendedKeyUsage` is not clientAuth.
    ///
    /// # Errors
    /// [`Unfit`] with the first reason found.
    pub fn fit_for_device(&self) -> Result<(), Unfit> {
        if self.is_ca {
            return Err(Unfit::Ca);
        }
        match self.client_auth {
            None => return Err(Unfit::NoExtendedKeyUsage),
            Some(false) => return Err(Unfit::NoClientAuth),
            Some(true) => {}
        }
        match self.digital_signature {
            None => Err(Unfit::NoKeyUsage),
            Some(false) => Err(Unfit::NoDigitalSignature),
            Some(true) => Ok(()),
        }
    }

    /// The subject's common name, of which there is exactly one. Hostile text: [`printable`] before it is shown.
    ///
    /// # Errors
    /// [`CommonNameError`] where there is none, more than one, or one that is not text.
    pub fn common_name(&self) -> Result<&str, CommonNameError> {
        match self.common_names.as_slice() {
            [] => Err(CommonNameError::None),
            [Some(name)] => Ok(name),
            [None] => Err(CommonNameError::NotText),
            several => Err(CommonNameError::Several(several.len())),
        }
    }

    /// SHA-256 of the DER.
    #[must_use]
    pub const fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The serial number's bytes as they stand in the certificate, in lowercase hex.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// The bits of the subject's public key: for an elliptic curve its point.
    #[must_use]
    pub fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    /// Whether basicConstraints says CA.
    #[must_use]
    pub const fn is_ca(&self) -> bool {
        self.is_ca
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

    /// The issuer's distinguished name in DER; equal to [`CaCertificate::subject`] of the CA that signed it.
    #[must_use]
    pub fn issuer(&self) -> &[u8] {
        &self.issuer
    }

    /// The key id of the CA that signed it in lowercase hex, where the certificate says so.
    #[must_use]
    pub fn issuer_key_id(&self) -> Option<&str> {
        self.issuer_key_id.as_deref()
    }
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf")
            .field("serial", &self.serial)
            .field("common_names", &self.common_names)
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, LeafError> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| LeafError::Unreadable)?;
    if rest.is_empty() { Ok(certificate) } else { Err(LeafError::TrailingBytes) }
}

/// The one extension of this kind. Not x509-parser's own accessors: `basic_constraints()` answers "none" for one that
/// cannot be read, which would make a CA of unusual encoding pass for a device.
fn extension<'a, 'b>(
    certificate: &'a X509Certificate<'b>,
    oid: &Oid<'_>,
    name: &'static str,
) -> Result<Option<&'a ParsedExtension<'b>>, LeafError> {
    let found = certificate.get_extension_unique(oid).map_err(|_| LeafError::Extension(name))?;
    Ok(found.map(X509Extension::parsed_extension))
}

fn is_ca(certificate: &X509Certificate<'_>) -> Result<bool, LeafError> {
    match extension(certificate, &OID_X509_EXT_BASIC_CONSTRAINTS, "basic constraints")? {
        None => Ok(false),
        Some(ParsedExtension::BasicConstraints(constraints)) => Ok(constraints.ca),
        Some(_) => Err(LeafError::Extension("basic constraints")),
    }
}

/// The key usage's bits, digitalSignature the lowest.
fn key_usage(certificate: &X509Certificate<'_>) -> Result<Option<u16>, LeafError> {
    match extension(certificate, &OID_X509_EXT_KEY_USAGE, "key usage")? {
        None => Ok(None),
        Some(ParsedExtension::KeyUsage(usage)) => Ok(Some(usage.flags)),
        Some(_) => Err(LeafError::Extension("key usage")),
    }
}

/// The subject's common names; `None` for one that is not text.
pub(crate) fn common_names(subject: &X509Name<'_>) -> Vec<Option<String>> {
    subject.iter_common_name().map(|name| name.as_str().ok().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests;
