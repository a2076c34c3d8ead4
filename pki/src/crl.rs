//! Certificate revocation lists (RFC 5280 §5): what an authority says of its certificates to those who have no registry.
//!
//! [`Crl`] is ours, [`RevocationList`] another CA's. rcgen writes and signs a list. What it cannot say without a URI, that the list is of users' certificates alone
//! (§5.2.5), is put in behind its extensions, and the whole is signed again.

mod read;

pub use read::{MAX_FILE_BYTES, ReadError, RevocationList, SerialBytes, sections, updates};

use std::fmt;
use std::str::FromStr;

use pkcs8::der::asn1::AnyRef;
use pkcs8::der::{Decode, Reader, SliceReader};
use rcgen::{
    CertificateRevocationListParams, KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber,
    SigningKey,
};
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject;
use time::{OffsetDateTime, UtcOffset};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use crate::authority::Authority;
use crate::identity::display_subject;
use crate::{hex, pem};

const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
/// `[0]`, constructed: the extensions of a list, a distribution point's name, and the kind of that name.
const CONTEXT_0: u8 = 0xa0;
/// `uniformResourceIdentifier [6]` (RFC 5280 §4.2.1.6).
const URI: u8 = 0x86;
/// `onlyContainsUserCerts [1]`, true.
const USERS_ONLY: [u8; 3] = [0x81, 0x01, 0xff];
/// id-ce-issuingDistributionPoint (2.5.29.28), critical.
const ISSUING_DISTRIBUTION_POINT: [u8; 8] = [0x06, 0x03, 0x55, 0x1d, 0x1c, 0x01, 0x01, 0xff];

/// Why a list is not signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CrlError {
    /// A CA that may not sign lists.
    #[error("the certificate '{0}' may not sign revocation lists (cRLSign is missing in its key usage)")]
    NoCrlSign(String),
    /// The CA's validity has ended, and with it that of all that it has issued.
    #[error("the issuing certificate expired at {0}, and all that it has signed with it; renew it first")]
    IssuerExpired(OffsetDateTime),
    /// Something in the registry that is no serial.
    #[error("'{}' is not a serial number", crate::identity::printable(.0))]
    Serial(String),
    /// It would end before it begins, or outside the years that can be written.
    #[error("a revocation list from {0} to {1} cannot be written; is the clock right?")]
    Times(OffsetDateTime, OffsetDateTime),
    /// More than 256 MiB.
    #[error("a revocation list of {0} bytes is too long to be signed")]
    Length(usize),
    /// The encoder or signer failed.
    #[error("the revocation list could not be signed: {0}")]
    Signing(rcgen::Error),
}

/// Why a certificate is revoked (RFC 5280 §5.3.1): the codes that fit a device's certificate and are final.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// No code: the list names none then.
    Unspecified,
    /// Somebody else has, or may have, the private key.
    KeyCompromise,
    /// What the certificate says of its subject has changed.
    AffiliationChanged,
    /// Another has taken its place.
    Superseded,
    /// It is needed no more.
    CessationOfOperation,
    /// Its subject may no longer do what it was for.
    PrivilegeWithdrawn,
}

impl Reason {
    /// The code that an operator's words name: their first word, whatever its case, with or without hyphens or
    /// underscores (`keyCompromise: stolen from the van`, `key-compromise`). Nothing is guessed from any other word.
    #[must_use]
    pub fn of(words: &str) -> Self {
        let name: String = words
            .trim_start()
            .chars()
            .take_while(|c| c.is_alphanumeric() || matches!(c, '-' | '_'))
            .filter(|c| c.is_alphanumeric())
            .flat_map(char::to_lowercase)
            .collect();
        match name.as_str() {
            "keycompromise" => Self::KeyCompromise,
            "affiliationchanged" => Self::AffiliationChanged,
            "superseded" => Self::Superseded,
            "cessationofoperation" => Self::CessationOfOperation,
            "privilegewithdrawn" => Self::PrivilegeWithdrawn,
            _ => Self::Unspecified,
        }
    }

    /// `unspecified` is said by saying nothing (RFC 5280 §5.3.1).
    const fn code(self) -> Option<RevocationReason> {
        match self {
            Self::Unspecified => None,
            Self::KeyCompromise => Some(RevocationReason::KeyCompromise),
            Self::AffiliationChanged => Some(RevocationReason::AffiliationChanged),
            Self::Superseded => Some(RevocationReason::Superseded),
            Self::CessationOfOperation => Some(RevocationReason::CessationOfOperation),
            Self::PrivilegeWithdrawn => Some(RevocationReason::PrivilegeWithdrawn),
        }
    }
}

/// Where a list can be had: an absolute URI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DistributionPoint(String);

/// Why a text is no [`DistributionPoint`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a distribution point is an http, https or ldap URL without blanks, such as http://pki.example/doorward.crl"
)]
pub struct DistributionPointError;

impl FromStr for DistributionPoint {
    type Err = DistributionPointError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let place = ["http://", "https://", "ldap://"].iter().find_map(|scheme| text.strip_prefix(scheme));
        let fits = place.is_some_and(|place| !place.is_empty() && !place.starts_with('/'));
        if fits && text.len() <= 1024 && text.bytes().all(|b| b.is_ascii_graphic()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(DistributionPointError)
        }
    }
}

impl fmt::Display for DistributionPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a list says of itself: its issuing distribution point (RFC 5280 §5.2.5), which is critical.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Nothing. A list without it is of all that its authority has signed, and every verifier reads it.
    Unsaid,
    /// It is of users' certificates alone, and may be had somewhere.
    Users(Option<DistributionPoint>),
}

/// A list in the making.
#[derive(Debug)]
pub struct Crl {
    number: u64,
    this_update: OffsetDateTime,
    next_update: OffsetDateTime,
    scope: Scope,
    revoked: Vec<RevokedCertParams>,
}

impl Crl {
    /// An empty list. Its number is higher than that of every list before it (RFC 5280 §5.2.3), and everything that was
    /// revoked before `this_update` will be in it.
    #[must_use]
    pub const fn new(
        number: u64,
        this_update: OffsetDateTime,
        next_update: OffsetDateTime,
        scope: Scope,
    ) -> Self {
        Self { number, this_update, next_update, scope, revoked: Vec::new() }
    }

    /// Enters a certificate by its serial, 32 hex digits. One that was revoked after `this_update`, while the list was
    /// being read, is entered as revoked then.
    ///
    /// # Errors
    /// [`CrlError::Serial`]
    pub fn enter(&mut self, serial: &str, since: OffsetDateTime, reason: Reason) -> Result<(), CrlError> {
        let bytes: [u8; 16] = hex::decode(serial).ok_or_else(|| CrlError::Serial(serial.to_owned()))?;
        self.revoked.push(RevokedCertParams {
            serial_number: SerialNumber::from_slice(&bytes),
            revocation_time: since.min(self.this_update).to_offset(UtcOffset::UTC),
            reason_code: reason.code(),
            invalidity_date: None,
        });
        Ok(())
    }

    /// How many certificates are in it.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.revoked.len()
    }

    /// The list in DER, signed.
    ///
    /// # Errors
    /// [`CrlError`] for an authority that may not, and for times that cannot be written.
    pub fn sign(self, authority: &Authority) -> Result<Vec<u8>, CrlError> {
        may_sign(authority)?;
        let times = CrlError::Times(self.this_update, self.next_update);
        let written = |time: OffsetDateTime| {
            time.checked_to_offset(UtcOffset::UTC).filter(|utc| (1970..=9998).contains(&utc.year()))
        };
        let (Some(this_update), Some(next_update)) = (written(self.this_update), written(self.next_update))
        else {
            return Err(times);
        };
        if this_update >= authority.not_after() {
            return Err(CrlError::IssuerExpired(authority.not_after()));
        }
        if this_update.unix_timestamp() >= next_update.unix_timestamp() {
            return Err(times);
        }
        let key_id = hex::decode_any(authority.key_id()).expect("an authority writes its key's id in hex");
        let params = CertificateRevocationListParams {
            this_update,
            next_update,
            crl_number: SerialNumber::from(self.number),
            issuing_distribution_point: None,
            revoked_certs: self.revoked,
            // As its certificates name the authority, whatever method made that id.
            key_identifier_method: KeyIdMethod::PreSpecified(key_id),
        };
        let issuer = authority.issuer();
        let signed = params.signed_by(issuer).map_err(CrlError::Signing)?;
        match &self.scope {
            Scope::Unsaid => Ok(signed.der().to_vec()),
            Scope::Users(at) => {
                extended(signed.der(), &issuing_distribution_point(at.as_ref()), issuer.key())
            }
        }
    }
}

/// A list in PEM (RFC 7468 §6).
#[must_use]
pub fn to_pem(der: &[u8]) -> String {
    pem::encode(pem::CRL, der)
}

/// Whether an authority's certificate lets it sign lists: without a key usage it may everything (RFC 5280 §4.2.1.3).
///
/// # Errors
/// [`CrlError::NoCrlSign`]
pub fn may_sign(authority: &Authority) -> Result<(), CrlError> {
    let der = authority.certificate_der();
    let may = X509Certificate::from_der(der).is_ok_and(|(_, certificate)| {
        certificate.key_usage().is_ok_and(|usage| usage.is_none_or(|usage| usage.value.crl_sign()))
    });
    if may { Ok(()) } else { Err(CrlError::NoCrlSign(display_subject(der))) }
}

/// The number of a list, in PEM or DER, that this authority has signed. `None`: it is another's, or no list.
#[must_use]
pub fn number_of(list: &[u8], authority: &Authority) -> Option<u64> {
    number_by(list, authority.certificate_der())
}

/// The same, of the CA with this certificate in DER.
#[must_use]
pub fn number_by(list: &[u8], ca: &[u8]) -> Option<u64> {
    let decoded = CertificateRevocationListDer::from_pem_slice(list).ok();
    let der = decoded.as_deref().unwrap_or(list);
    let (rest, crl) = CertificateRevocationList::from_der(der).ok()?;
    let (_, ours) = X509Certificate::from_der(ca).ok()?;
    crl.verify_signature(ours.public_key()).ok()?;
    if !rest.is_empty() {
        return None;
    }
    u64::try_from(crl.crl_number()?).ok()
}

/// The extension: of users' certificates alone, and where it is to be had.
fn issuing_distribution_point(at: Option<&DistributionPoint>) -> Vec<u8> {
    let name = at.map(|at| tlv(CONTEXT_0, &[&tlv(CONTEXT_0, &[&tlv(URI, &[at.0.as_bytes()])])]));
    let value = tlv(SEQUENCE, &[&name.unwrap_or_default(), &USERS_ONLY]);
    tlv(SEQUENCE, &[&ISSUING_DISTRIBUTION_POINT, &tlv(OCTET_STRING, &[&value])])
}

/// A signed list with one more extension at its end, signed anew.
fn extended(list: &[u8], extension: &[u8], key: &impl SigningKey) -> Result<Vec<u8>, CrlError> {
    let parts = || {
        let mut outer = SliceReader::new(inside(list)?)?;
        let (to_be_signed, algorithm) = (inside(outer.tlv_bytes()?)?, outer.tlv_bytes()?);
        let mut fields = SliceReader::new(to_be_signed)?;
        let mut last: &[u8] = &[];
        while !fields.is_finished() {
            last = fields.tlv_bytes()?;
        }
        // The extensions are the last field (RFC 5280 §5.1).
        let before = &to_be_signed[..to_be_signed.len() - last.len()];
        pkcs8::der::Result::Ok((before, inside(inside(last)?)?, algorithm))
    };
    let (before, extensions, algorithm) = parts().map_err(|_| CrlError::Length(list.len()))?;
    let extensions = tlv(CONTEXT_0, &[&tlv(SEQUENCE, &[extensions, extension])]);
    let to_be_signed = tlv(SEQUENCE, &[before, &extensions]);
    let signature = key.sign(&to_be_signed).map_err(CrlError::Signing)?;
    Ok(tlv(SEQUENCE, &[&to_be_signed, algorithm, &tlv(BIT_STRING, &[&[0], &signature])]))
}

/// What stands inside a value.
fn inside(der: &[u8]) -> pkcs8::der::Result<&[u8]> {
    Ok(AnyRef::from_der(der)?.value())
}

/// A value in DER: tag, length, contents.
fn tlv(tag: u8, contents: &[&[u8]]) -> Vec<u8> {
    let length: usize = contents.iter().map(|part| part.len()).sum();
    let mut der = Vec::with_capacity(length + 6);
    der.push(tag);
    match u8::try_from(length) {
        Ok(short @ 0..=127) => der.push(short),
        _ => {
            let bytes = length.to_be_bytes();
            let bytes = &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..];
            der.extend(u8::try_from(bytes.len()).map(|count| 0x80 | count));
            der.extend(bytes);
        }
    }
    contents.iter().for_each(|part| der.extend(*part));
    der
}

#[cfg(test)]
mod tests;
