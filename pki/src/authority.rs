//! A certificate authority: a CA certificate with its key, which issues by the [`profile`](crate::profile) table.

mod host;
mod key;
mod load;

pub use host::{Host, HostError};
pub use key::key_to_pem;
pub use load::LoadError;

use std::fmt;

use doorward_proto::ids::DeviceId;
use rcgen::{Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SigningKey};
use time::{Duration, OffsetDateTime, UtcOffset};
use zeroize::Zeroizing;

use crate::identity::Fingerprint;
use crate::pem;
use crate::profile::{BACKDATE, DEVICE, GATEWAY, ISSUING, Profile, ROOT};
use crate::serial::Serial;
use key::OwnedKey;

/// The longest common name (RFC 5280 appendix A, `ub-common-name`).
const MAX_NAME_CHARS: usize = 64;

/// A CA certificate with its key. The key is wiped from memory when this is dropped.
pub struct Authority {
    /// Keeps the parsed subject, key id and key, so that issuing in bulk parses neither again.
    issuer: Issuer<'static, OwnedKey>,
    der: Vec<u8>,
    key_id: String,
    path_len: Option<u32>,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

/// A certificate just issued.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Certificate {
    /// The certificate.
    pub der: Vec<u8>,
    /// Its serial number.
    pub serial: Serial,
    /// SHA-256 of `der`, under which the registry knows it.
    pub fingerprint: Fingerprint,
    /// The first second of its validity: [`BACKDATE`] before it was issued.
    pub not_before: OffsetDateTime,
    /// The last second of its validity.
    pub not_after: OffsetDateTime,
    /// Whether it ends sooner than was asked because its issuer does. Say so: renewing the issuer is the way out.
    pub shortened: bool,
}

impl Certificate {
    /// The certificate in PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        pem::encode(pem::CERTIFICATE, &self.der)
    }
}

/// Why a certificate is not issued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IssueError {
    /// A name that is no common name.
    #[error("'{}' is not a name for a {kind}: 1 to 64 printable characters are", crate::identity::printable(.name))]
    Name {
        /// The name.
        name: String,
        /// What it should be the name of.
        kind: &'static str,
    },
    /// A CA of its parent's name looks self-issued and breaks path building (RFC 5280 §6.1).
    #[error("a CA cannot have the name of the CA that issues it, '{0}'; choose another")]
    NameOfIssuer(String),
    /// No client would accept a gateway's certificate without a name in it.
    #[error("a gateway's certificate needs at least one host name or address")]
    NoHost,
    /// A lifetime of nothing or less.
    #[error("a certificate's lifetime must be at least a second")]
    Lifetime,
    /// A moment outside 1970 to 9998.
    #[error("{0} cannot be written in a certificate; is the clock right?")]
    Time(OffsetDateTime),
    /// The issuer's validity has not begun.
    #[error("the issuing certificate is valid only from {0}; is the clock right?")]
    IssuerNotYetValid(OffsetDateTime),
    /// The issuer's validity has ended.
    #[error("the issuing certificate expired at {0}; renew it first")]
    IssuerExpired(OffsetDateTime),
    /// A key that is not ECDSA on P-256.
    #[error("the key is {0}; every key here is ECDSA on P-256")]
    KeyKind(String),
    /// The issuer's path length forbids another CA below it.
    #[error("this CA may sign devices and gateways, and no further CA (its path length is 0); use the root")]
    PathLength,
    /// The encoder or signer failed.
    #[error("the certificate could not be signed: {0}")]
    Signing(rcgen::Error),
    /// A CA just made cannot be loaded.
    #[error("the new authority does not load: {0}")]
    Unusable(#[from] LoadError),
}

impl Authority {
    /// A new root, self-signed.
    ///
    /// # Errors
    /// [`IssueError`] for a name, key or time that does not do.
    pub fn root(name: &str, key: KeyPair, serial: Serial, now: OffsetDateTime) -> Result<Self, IssueError> {
        check_name(name, &ROOT)?;
        check_key(&key)?;
        let now = whole_second(now)?;
        let not_after = now.checked_add(ROOT.lifetime).ok_or(IssueError::Time(now))?;
        let params = ROOT.params(name, Vec::new(), serial, (now - BACKDATE, not_after));
        let certificate = params.self_signed(&key).map_err(IssueError::Signing)?;
        Ok(Self::assemble(certificate.der(), OwnedKey::new(key))?)
    }

    /// An issuing CA below this root.
    ///
    /// # Errors
    /// [`IssueError`], as for [`Authority::root`], and where this is no root but an issuing CA itself, or not valid now.
    pub fn issuing(
        &self,
        name: &str,
        key: KeyPair,
        serial: Serial,
        now: OffsetDateTime,
    ) -> Result<Self, IssueError> {
        if self.path_len == Some(0) {
            return Err(IssueError::PathLength);
        }
        let subject = (name, Vec::new());
        let certificate = self.issue(&ISSUING, subject, &key, serial, (now, ISSUING.lifetime))?;
        let issued = Self::assemble(&certificate.der.into(), OwnedKey::new(key))?;
        if load::same_name(&self.der, &issued.der) {
            return Err(IssueError::NameOfIssuer(name.to_owned()));
        }
        Ok(issued)
    }

    /// A gateway's server certificate for the hosts under which devices reach it.
    ///
    /// # Errors
    /// [`IssueError`] for a name, key, lifetime or time that does not do, for no host at all, and where this CA is not valid now.
    pub fn issue_gateway(
        &self,
        name: &str,
        hosts: &[Host],
        key: &impl PublicKeyData,
        serial: Serial,
        now: OffsetDateTime,
        lifetime: Duration,
    ) -> Result<Certificate, IssueError> {
        if hosts.is_empty() {
            return Err(IssueError::NoHost);
        }
        let alternatives =
            hosts.iter().map(Host::to_san).collect::<Result<_, _>>().map_err(IssueError::Signing)?;
        self.issue(&GATEWAY, (name, alternatives), key, serial, (now, lifetime))
    }

    /// A device's client certificate: subject exactly `CN=id`, SAN `urn:doorward:device:id`. Of a
    /// [`Request`](crate::Request) nothing but the key is in it.
    ///
    /// # Errors
    /// [`IssueError`] for a key, lifetime or time that does not do, and where this CA is not valid now.
    pub fn issue_device(
        &self,
        id: &DeviceId,
        key: &impl PublicKeyData,
        serial: Serial,
        now: OffsetDateTime,
        lifetime: Duration,
    ) -> Result<Certificate, IssueError> {
        let uri = format!("urn:doorward:device:{id}").try_into().map_err(IssueError::Signing)?;
        self.issue(&DEVICE, (id.as_str(), vec![SanType::URI(uri)]), key, serial, (now, lifetime))
    }

    /// The certificate in PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> String {
        pem::encode(pem::CERTIFICATE, &self.der)
    }

    /// The certificate.
    #[must_use]
    pub fn certificate_der(&self) -> &[u8] {
        &self.der
    }

    /// The private key as PKCS#8 PEM, unencrypted: see [`key_file::encrypt`](crate::key_file::encrypt).
    #[must_use]
    pub fn key_pem(&self) -> Zeroizing<String> {
        self.issuer.key().to_pem()
    }

    /// The subject key identifier in lowercase hex: what the certificates it issues call their issuer's key, and the
    /// registry's `issuer`.
    #[must_use]
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The first second of its validity.
    #[must_use]
    pub const fn not_before(&self) -> OffsetDateTime {
        self.not_before
    }

    /// The last second of its validity.
    #[must_use]
    pub const fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// What signs.
    pub(crate) const fn issuer(&self) -> &Issuer<'static, impl SigningKey> {
        &self.issuer
    }

    fn issue(
        &self,
        profile: &Profile,
        (name, alternatives): (&str, Vec<SanType>),
        key: &impl PublicKeyData,
        serial: Serial,
        (now, lifetime): (OffsetDateTime, Duration),
    ) -> Result<Certificate, IssueError> {
        check_name(name, profile)?;
        check_key(key)?;
        let now = whole_second(now)?;
        if now < self.not_before {
            return Err(IssueError::IssuerNotYetValid(self.not_before));
        }
        if now >= self.not_after {
            return Err(IssueError::IssuerExpired(self.not_after));
        }
        if lifetime < Duration::SECOND {
            return Err(IssueError::Lifetime);
        }
        let wanted = now.checked_add(Duration::seconds(lifetime.whole_seconds()));
        let not_after = wanted.map_or(self.not_after, |wanted| wanted.min(self.not_after));
        let not_before = now - BACKDATE;
        let der = profile
            .params(name, alternatives, serial, (not_before, not_after))
            .signed_by(key, &self.issuer)
            .map_err(IssueError::Signing)?
            .der()
            .to_vec();
        let fingerprint = Fingerprint::of(&der);
        Ok(Certificate {
            der,
            serial,
            fingerprint,
            not_before,
            not_after,
            shortened: wanted != Some(not_after),
        })
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("key_id", &self.key_id)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

pub(crate) fn check_name(name: &str, profile: &Profile) -> Result<(), IssueError> {
    let fits = (1..=MAX_NAME_CHARS).contains(&name.chars().count())
        && !name.chars().any(char::is_control)
        && name.trim() == name;
    if fits { Ok(()) } else { Err(IssueError::Name { name: name.to_owned(), kind: profile.name }) }
}

fn check_key(key: &impl PublicKeyData) -> Result<(), IssueError> {
    if key.algorithm() == &PKCS_ECDSA_P256_SHA256 {
        Ok(())
    } else {
        Err(IssueError::KeyKind(format!("{:?}", key.algorithm())))
    }
}

/// `now` in UTC without its fraction, which RFC 5280 §4.1.2.5 forbids in a certificate.
fn whole_second(now: OffsetDateTime) -> Result<OffsetDateTime, IssueError> {
    let utc = now.checked_to_offset(UtcOffset::UTC).ok_or(IssueError::Time(now))?;
    if !(1970..=9998).contains(&utc.year()) {
        return Err(IssueError::Time(utc));
    }
    Ok(utc - Duration::nanoseconds(utc.nanosecond().into()))
}

#[cfg(test)]
mod tests;
