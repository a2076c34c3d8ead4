//! The CAs of a home: the issuing CA that signs, during a rollover the one before or after it, and the root above them.
//!
//! `pki/issuing.crt` holds every issuing CA that is trusted, and `pki/issuing.key` is the key that signs: which certificate is
//! the signing one, the key says. Beside it stand `pki/next.key`, until issuing has moved over to it, and
//! `pki/issuing-KEYID.key` of each CA that has signed before and is trusted still. Each step from one state to the next is a
//! single rename, so that a command that was cut short leaves a home that works.

use std::fs;
use std::path::{Path, PathBuf};

use doorward_pki::{
    Authority, CaCertificate, LoadError, certificate_to_pem, certificates_from_pem, display_subject, key_file,
};
use rcgen::{KeyPair, PublicKeyData as _};
use time::OffsetDateTime;
use zeroize::{Zeroize as _, Zeroizing};

pub(super) use super::ca_lock::{alone, hold, share, share_now};
use super::failure::{Failure, Outcome};
use super::{Shared, issue, output};
use crate::home::{self, CA_ENDS_SOON, Home, PUBLIC};
use crate::{clock, entropy};

/// A CA, as a file of the home has it.
#[derive(Debug)]
pub(super) struct Ca {
    der: Vec<u8>,
    pub(super) facts: CaCertificate,
}

impl Ca {
    /// What the certificates that it signed call its key, and the registry calls their issuer.
    pub(super) fn key_id(&self) -> &str {
        self.facts.key_id().unwrap_or("-")
    }

    pub(super) fn subject(&self) -> String {
        display_subject(&self.der)
    }

    pub(super) fn pem(&self) -> String {
        certificate_to_pem(&self.der)
    }

    pub(super) fn der(&self) -> &[u8] {
        &self.der
    }

    pub(super) fn not_before(&self) -> OffsetDateTime {
        moment(self.facts.not_before())
    }

    pub(super) fn not_after(&self) -> OffsetDateTime {
        moment(self.facts.not_after())
    }

    /// What there is to say of its end, if that is near or past.
    pub(super) fn ending(&self) -> Option<String> {
        ending(&format!("CA {} ({})", self.key_id(), self.subject()), self.not_after())
    }
}

fn moment(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// What there is to say of a CA's end, if that is near or past.
pub(super) fn ending(name: &str, not_after: OffsetDateTime) -> Option<String> {
    let left = not_after - clock::utc();
    if left.is_negative() {
        Some(format!("{name} expired at {}", output::time(not_after)))
    } else if left < CA_ENDS_SOON {
        Some(format!("{name} ends at {}, in {} days", output::time(not_after), left.whole_days()))
    } else {
        None
    }
}

/// The CAs of a file.
pub(super) fn read(path: &Path) -> Result<Vec<Ca>, Failure> {
    let content = |reason: String| Failure::new(format!("{}: {reason}", path.display()));
    let all = certificates_from_pem(&home::read(path)?).filter(|all| !all.is_empty());
    let all = all.ok_or_else(|| content(LoadError::CertificatePem.to_string()))?;
    all.into_iter()
        .map(|der| {
            let facts = CaCertificate::parse(&der).map_err(|error| content(error.to_string()))?;
            Ok(Ca { der: der.to_vec(), facts })
        })
        .collect()
}

/// Where the key of an issuing CA is kept that has signed before.
pub(super) fn old_key(home: &Home, key_id: &str) -> PathBuf {
    home.pki(&format!("issuing-{key_id}.key"))
}

/// The key ids of the issuing CAs whose keys are kept.
pub(super) fn old_keys(home: &Home) -> Result<Vec<String>, Failure> {
    let folder = home.path().join("pki");
    let failed = |error| Failure::new(format!("cannot read {}: {error}", folder.display()));
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let id = name.to_str().and_then(|name| name.strip_prefix("issuing-")?.strip_suffix(".key"));
        found.extend(id.filter(|id| id.bytes().all(|b| b.is_ascii_hexdigit())).map(str::to_owned));
    }
    found.sort();
    Ok(found)
}

/// The issuing CA with this key id, ready to sign: the present one, or one that has signed before.
pub(super) fn authority(home: &Home, key_id: &str, shared: &Shared) -> Result<Authority, Failure> {
    let unknown = || {
        Failure::missing(format!("this home has no key of an issuing CA {key_id}"))
            .next("'doorward pki rollover status' shows the CAs that there are")
    };
    let certificates = home.pki("issuing.crt");
    if !read(&certificates)?.iter().any(|ca| ca.facts.key_id() == Some(key_id)) {
        return Err(unknown());
    }
    let kept = old_key(home, key_id);
    let authority = if kept.exists() {
        let key = issue::open_key(&kept, shared)?;
        Authority::load(&home::read(&certificates)?, &key)
            .map_err(|error| Failure::new(format!("{}: {error}", kept.display())))?
    } else {
        issue::authority(home, "issuing", shared)?
    };
    if authority.key_id() == key_id { Ok(authority) } else { Err(unknown()) }
}

/// The root with its key, which may be kept elsewhere.
pub(super) fn root(shared: &Shared, key: Option<&Path>) -> Result<Authority, Failure> {
    let home = shared.home();
    let path = key.map_or_else(|| home.pki("root.key"), Path::to_owned);
    if key.is_none() && !path.exists() {
        return Err(Failure::new(format!(
            "{} does not exist: the root's key is kept elsewhere, and this needs it",
            path.display()
        ))
        .next("give it with --root-key FILE, where it is kept"));
    }
    let certificate = home.pki("root.crt");
    let text = home::read(&certificate)?;
    let pem = issue::open_key(&path, shared)?;
    let root = Authority::load(&text, &pem).map_err(|error| {
        Failure::new(format!("{} with {}: {error}", certificate.display(), path.display()))
    })?;
    if root.not_after() <= clock::utc() {
        return Err(Failure::refused(format!(
            "the root {} expired at {}: it signs nothing any more, and what is below it verifies nowhere",
            certificate.display(),
            output::time(root.not_after())
        ))
        .next("make a new home, and add the devices to that"));
    }
    Ok(root)
}

/// The public key of a private key in PEM, as a SubjectPublicKeyInfo.
pub(super) fn public_key(pem: &str, path: &Path) -> Result<Vec<u8>, Failure> {
    let mut key = KeyPair::from_pem(pem)
        .map_err(|error| Failure::new(format!("{}: this key cannot be used: {error}", path.display())))?;
    let public = key.subject_public_key_info();
    key.zeroize();
    Ok(public)
}

/// Writes a key for an issuing CA that is not there: encrypted if and only if the key that signs now is. What unlocks the
/// root need not be there when a gateway starts, and who has put the present key under a passphrase wants no other.
pub(super) fn write_key(path: &Path, pem: &Zeroizing<String>, shared: &Shared) -> Outcome {
    let present = home::read_secret(&shared.home().pki("issuing.key"))?;
    if !key_file::is_encrypted(&present) {
        return Ok(home::write_new(path, pem, home::SECRET)?);
    }
    let Some(passphrase) = shared.passphrase()? else {
        return Err(Failure::new(format!(
            "{} would stand in the clear beside an issuing key that is encrypted",
            path.display()
        ))
        .next("give the passphrase with --passphrase-file"));
    };
    let encrypted = key_file::encrypt(pem, passphrase.as_slice(), entropy::random()?, entropy::random()?)
        .map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    Ok(home::write_new(path, &encrypted, home::SECRET)?)
}

/// The issuing CAs, and how far a rollover has come.
pub(super) struct Standing {
    /// As they stand in `pki/issuing.crt`.
    pub(super) cas: Vec<Ca>,
    /// Which of them signs.
    pub(super) signing: usize,
    /// `pki/next.key`, decrypted.
    pub(super) next_key: Option<Zeroizing<String>>,
    /// Which of them belongs to `next_key`.
    pub(super) next: Option<usize>,
}

impl Standing {
    /// What the keys say; encrypted ones need their passphrase.
    pub(super) fn read(shared: &Shared) -> Result<Self, Failure> {
        let home = shared.home();
        let cas = read(&home.pki("issuing.crt"))?;
        let signing = issue::authority(&home, "issuing", shared)?;
        let signing = cas.iter().position(|ca| ca.der == signing.certificate_der()).unwrap_or(0);
        let path = home.pki("next.key");
        let next_key = path.exists().then(|| issue::open_key(&path, shared)).transpose()?;
        let public = next_key.as_ref().map(|pem| public_key(pem, &path)).transpose()?;
        let next = public.and_then(|public| cas.iter().position(|ca| ca.facts.public_key_info() == public));
        Ok(Self { cas, signing, next_key, next })
    }

    pub(super) fn signs(&self) -> &Ca {
        &self.cas[self.signing]
    }

    /// Those with another key than the one that signs.
    pub(super) fn others(&self) -> impl Iterator<Item = &Ca> {
        let own = self.signs().facts.public_key_info();
        self.cas.iter().filter(move |ca| ca.facts.public_key_info() != own)
    }

    /// Makes a CA trusted, besides those that are.
    pub(super) fn trust(&mut self, home: &Home, der: Vec<u8>) -> Outcome {
        let facts = CaCertificate::parse(&der).map_err(|error| Failure::new(error.to_string()))?;
        self.cas.push(Ca { der, facts });
        self.next = Some(self.cas.len() - 1);
        write(home, self.cas.iter())
    }

    /// Issuing moves over to the next CA, which is trusted by now. The key that has signed so far is kept: it has a list
    /// of its own to sign.
    pub(super) fn move_over(&mut self, home: &Home) -> Outcome {
        let Some(next) = self.next else { return Ok(()) };
        let key = home.pki("issuing.key");
        home::link(&key, &old_key(home, self.signs().key_id()))?;
        home::rename(&home.pki("next.key"), &key)?;
        (self.signing, self.next, self.next_key) = (next, None, None);
        self.put_first(home)
    }

    /// The certificate of the CA that signs is the first, for people and programs that read no further.
    pub(super) fn put_first(&mut self, home: &Home) -> Outcome {
        if self.signing == 0 {
            return Ok(());
        }
        let signs = self.cas.remove(self.signing);
        self.cas.insert(0, signs);
        self.signing = 0;
        write(home, self.cas.iter())
    }
}

/// Which CA signs, as the files tell: for those who have no passphrase. While there is a next key, the first does; after
/// that, the one whose key is not kept among the old ones.
pub(super) fn signing_by_files(home: &Home, cas: &[Ca]) -> usize {
    if home.pki("next.key").exists() {
        return 0;
    }
    cas.iter().position(|ca| !old_key(home, ca.key_id()).exists()).unwrap_or(0)
}

/// Writes `pki/issuing.crt`: these are trusted, and no other.
pub(super) fn write<'a>(home: &Home, cas: impl Iterator<Item = &'a Ca>) -> Outcome {
    let text: String = cas.map(Ca::pem).collect();
    Ok(home::write_over(&home.pki("issuing.crt"), text, PUBLIC)?)
}
