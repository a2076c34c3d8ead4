//! The gateway's own certificate and its key, and how they are renewed: like the old one, with a new key.
//!
//! They are two files that count as one. A new pair is written under names of its own (`.next`), the key first, each whole;
//! then the key takes its place, then the certificate. So whatever a run that was cut short has left, [`Pair::recover`] knows
//! which of the two pairs it is to be.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use doorward_pki::identity::is_signed_by;
use doorward_pki::{Authority, Host, IssueError, Serial, ServerCertificate, key_to_pem, profile};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use zeroize::Zeroize as _;

use crate::clock;
use crate::config::TlsSection;
use crate::entropy::{self, NoEntropy};
use crate::home::{self, FileError, Home, PUBLIC, SECRET};
use crate::trial::{self, TrialError};

/// Why the gateway's certificate is not renewed.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The clock.
    #[error(transparent)]
    Clock(#[from] clock::ClockError),
    /// No random bytes.
    #[error(transparent)]
    Entropy(#[from] NoEntropy),
    /// The CA does not sign it.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// The certificate in place cannot be read.
    #[error("{path}: {reason}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Somebody else has signed the certificate in place.
    #[error(
        "{0} was not signed by a CA of this home, which would put its own certificate in that one's place"
    )]
    Foreign(PathBuf),
    /// A link leads to it: whoever turns the link renews it.
    #[error("{0} is a link: what it leads to is renewed by whoever turns it")]
    Link(PathBuf),
    /// No host could be read from the certificate in place.
    #[error("{0} names no host that a certificate of ours could name; say them with --host")]
    NoHost(PathBuf),
    /// The CA itself ends.
    #[error("a new certificate would hold no longer than the old one: the issuing CA itself ends at {0}")]
    CaEnds(String),
    /// Nobody who trusts the home's root would accept a new one.
    #[error("a new certificate would lock every device out: {0}")]
    NotAccepted(#[from] TrialError),
}

/// A certificate that has been renewed.
#[derive(Debug, Clone)]
pub struct Renewed {
    /// For whom it is.
    pub hosts: Vec<Host>,
    /// The last second of its validity, in Unix time.
    pub not_after: i64,
}

/// Where a certificate and its key stand.
#[derive(Debug, Clone)]
pub struct Pair {
    certificate: PathBuf,
    key: PathBuf,
    lock: PathBuf,
}

impl Pair {
    /// The pair that a configuration names.
    #[must_use]
    pub fn of(tls: &TlsSection, home: &Home) -> Self {
        Self {
            certificate: home.resolve(&tls.certificate),
            key: home.resolve(&tls.key),
            lock: home.state().join("renewal.lock"),
        }
    }

    /// A pair in a folder, for another host's home.
    #[must_use]
    pub fn within(folder: &Path) -> Self {
        let [certificate, key, lock] =
            ["gateway.crt", "gateway.key", ".renewal.lock"].map(|name| folder.join(name));
        Self { certificate, key, lock }
    }

    /// The two files, certificate first.
    #[must_use]
    pub fn files(&self) -> [&Path; 2] {
        [&self.certificate, &self.key]
    }

    /// Finishes what a run has left that was cut short while it put a new pair in place; what was never whole is removed.
    /// Whether that has changed the pair.
    ///
    /// # Errors
    /// [`FileError`] naming a file that can be neither moved nor read.
    pub fn recover(&self) -> Result<bool, FileError> {
        if !next(&self.certificate).exists() && !next(&self.key).exists() {
            return Ok(false);
        }
        let _lock = self.lock()?;
        self.recover_locked()
    }

    fn recover_locked(&self) -> Result<bool, FileError> {
        let (certificate, key) = (next(&self.certificate), next(&self.key));
        let new = match home::read(&certificate) {
            Ok(new) => Some(new),
            Err(FileError::Missing(_)) => None,
            Err(error) => return Err(error),
        };
        let key_waits = key.exists();
        if let Some(new) = new {
            // The key is in its place already, or waits beside.
            let its_key = match home::read_secret(if key_waits { &key } else { &self.key }) {
                Ok(its_key) => Some(its_key),
                Err(FileError::Missing(_)) => None,
                // Of a key that cannot be read now nobody knows whether it fits: nothing is removed for that.
                Err(error) => return Err(error),
            };
            if its_key.is_some_and(|its_key| fits(&new, &its_key)) {
                if key_waits {
                    home::rename(&key, &self.key)?;
                }
                home::rename(&certificate, &self.certificate)?;
                return Ok(true);
            }
        }
        // Never whole: the pair in place is the old one.
        for left in [&certificate, &key] {
            match fs::remove_file(left) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(FileError::Io { act: "remove", path: left.clone(), source });
                }
                _ => {}
            }
        }
        Ok(false)
    }

    fn replace(&self, certificate: &str, key: &str) -> Result<(), FileError> {
        let _lock = self.lock()?;
        self.recover_locked()?;
        home::write_over(&next(&self.key), key, SECRET)?;
        // From here on the new pair is the one that counts, whatever happens.
        home::write_over(&next(&self.certificate), certificate, PUBLIC)?;
        home::rename(&next(&self.key), &self.key)?;
        home::rename(&next(&self.certificate), &self.certificate)
    }

    /// Two that renew at once do it one after the other.
    fn lock(&self) -> Result<File, FileError> {
        let failed = |source| FileError::Io { act: "write", path: self.lock.clone(), source };
        if let Some(folder) = self.lock.parent() {
            home::make_folder(folder)?;
        }
        let mut options = OpenOptions::new();
        let file =
            options.write(true).create(true).truncate(false).mode(SECRET).open(&self.lock).map_err(failed)?;
        file.lock().map_err(failed)?;
        Ok(file)
    }

    /// The certificates in place, leaf first.
    fn chain(&self) -> Result<Vec<CertificateDer<'static>>, RenewError> {
        let text = home::read(&self.certificate)?;
        let unreadable = |reason: String| RenewError::Unreadable { path: self.certificate.clone(), reason };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
        let chain = chain.map_err(|error| unreadable(error.to_string()))?;
        if chain.is_empty() { Err(unreadable("no certificate in it".to_owned())) } else { Ok(chain) }
    }

    /// For whom the certificate in place is; nobody, where there is none that could be read.
    #[must_use]
    pub fn hosts(&self) -> Vec<Host> {
        let leaf = self.chain().ok().and_then(|chain| ServerCertificate::parse(chain.first()?).ok());
        leaf.map(|leaf| leaf.hosts).unwrap_or_default()
    }

    /// Puts a new certificate with a new key in the place of the old one: for these hosts, or for those of the old one.
    ///
    /// # Errors
    /// [`RenewError`]; then the old pair stands.
    pub fn renew(&self, home: &Home, authority: &Authority, hosts: &[Host]) -> Result<Renewed, RenewError> {
        clock::check()?;
        if let Some(link) = [&self.certificate, &self.key].into_iter().find(|path| path.is_symlink()) {
            return Err(RenewError::Link(link.clone()));
        }
        let old = match self.chain() {
            Ok(chain) => Some(chain),
            // Said for whom: then there is nothing that the old one would have to say.
            Err(RenewError::File(FileError::Missing(_))) if !hosts.is_empty() => None,
            Err(error) => return Err(error),
        };
        let (mut name, mut names, mut ends) = (None, Vec::new(), None);
        if let Some((leaf, above)) = old.as_deref().and_then(<[_]>::split_first) {
            if !is_ours(leaf, above, home, authority) {
                return Err(RenewError::Foreign(self.certificate.clone()));
            }
            let read = ServerCertificate::parse(leaf).map_err(|error| RenewError::Unreadable {
                path: self.certificate.clone(),
                reason: error.to_string(),
            })?;
            // One that a clock has made that ran ahead is of no use, however long it would hold.
            let holds = read.not_before <= clock::utc().unix_timestamp();
            (name, names, ends) = (read.name, read.hosts, holds.then_some(read.not_after));
        }
        if !hosts.is_empty() {
            (name, names) = (hosts.first().map(Host::to_string), hosts.to_vec());
        }
        let name = name.or_else(|| names.first().map(Host::to_string)).unwrap_or_default();
        if names.is_empty() {
            return Err(RenewError::NoHost(self.certificate.clone()));
        }
        let mut key = entropy::key_pair()?;
        let serial = Serial::from_random(entropy::random()?);
        let issued =
            authority.issue_gateway(&name, &names, &key, serial, clock::utc(), profile::GATEWAY.lifetime);
        let (issued, key_pem) = (issued, key_to_pem(&key));
        key.zeroize();
        let leaf = issued?;
        let not_after = leaf.not_after.unix_timestamp();
        if hosts.is_empty() && leaf.shortened && ends.is_some_and(|ends| not_after <= ends) {
            return Err(RenewError::CaEnds(clock::rfc3339(authority.not_after().unix_timestamp())));
        }
        // Devices trust the home's root. A home without it signs for one that has it.
        let roots = roots(home);
        if !roots.is_empty() {
            let ca = authority.certificate_der().into();
            trial::check_server(&leaf.der.as_slice().into(), &ca, &roots, &names)?;
        }
        self.replace(&format!("{}{}", leaf.pem(), authority.certificate_pem()), &key_pem)?;
        Ok(Renewed { hosts: names, not_after })
    }
}

/// Whether a CA of this home has signed a certificate: the one that is to sign, or another below the same root.
fn is_ours(leaf: &[u8], above: &[CertificateDer<'_>], home: &Home, authority: &Authority) -> bool {
    let roots = roots(home);
    let below_a_root = |ca: &CertificateDer<'_>| roots.iter().any(|root| is_signed_by(ca, root));
    is_signed_by(leaf, authority.certificate_der())
        || above.iter().any(|ca| is_signed_by(leaf, ca) && below_a_root(ca))
}

/// The home's roots, as far as they can be read: beside its own, there may be one that has signed an issuing CA elsewhere.
fn roots(home: &Home) -> Vec<CertificateDer<'static>> {
    let text = home::read(&home.pki("root.crt")).ok();
    text.and_then(|text| doorward_pki::certificates_from_pem(&text)).unwrap_or_default()
}

/// The name of a file that is to take another's place.
fn next(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".next");
    path.with_file_name(name)
}

/// Whether a chain and a key, both PEM, are of one pair.
fn fits(certificate: &str, key: &str) -> bool {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect();
    let (Ok(chain), Ok(key)) = (chain, PrivateKeyDer::from_pem_slice(key.as_bytes())) else { return false };
    !chain.is_empty() && CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).is_ok()
}

#[cfg(test)]
mod tests;
