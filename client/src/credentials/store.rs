//! The second credential of a bundle: the pair that a renewal brings, until it has proven itself.
//!
//! `device.crt` and `device.key` are the pair that holds, for this device and for other programs that read them. What is on
//! its way lies beside them in one file, `renewal.pem`: first the new key alone, then the key and its certificates. One file
//! because it is replaced by one rename, which is all that a file system promises: no link is needed, which a bundle on a
//! FAT card could not have, and no folder of versions that other programs would have to know.
//!
//! Once the new pair has proven itself it takes the place of the two files. That is two renames, and between them their
//! halves do not fit each other; `renewal.pem` is there until both are done, and [`read`] tells from it which pair is whole.
//! So there is no moment at which the folder does not hold a pair that has proven itself, and this device finds it.

use std::path::{Path, PathBuf};

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::{Zeroize as _, Zeroizing};

use super::new_key::NewKey;
use super::{CredentialsError, MAX_FILE_BYTES, key_file};
use crate::renewal::Steps;

const CERTIFICATE: &str = "device.crt";
const KEY: &str = "device.key";
const RENEWAL: &str = "renewal.pem";
/// All that this device replaces in its bundle.
const REPLACED: [&str; 4] = [CERTIFICATE, KEY, RENEWAL, "device.json"];

/// What `renewal.pem` holds.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) key: NewKey,
    /// Leaf first; empty as long as the certificate has not come.
    pub(crate) chain: Vec<CertificateDer<'static>>,
}

impl Found {
    /// Whether it is the pair that the bundle's two files were being replaced with: one of them is in its place already.
    pub(super) fn has_begun_to_replace(
        &self,
        chain: &[CertificateDer<'static>],
        private_key: &PrivateKeyDer<'static>,
    ) -> bool {
        !self.chain.is_empty() && (self.chain.first() == chain.first() || self.key.is(private_key))
    }
}

/// What a folder holds of a renewal. A file that cannot be read as one is none: the pair beside it is what holds then.
pub(crate) fn read(folder: &Path) -> Option<Found> {
    let bytes = key_file::read(&folder.join(RENEWAL), MAX_FILE_BYTES, "").ok()?;
    let mut der = PrivateKeyDer::from_pem_slice(&bytes).ok()?;
    let key = NewKey::from_der(&der);
    der.zeroize();
    let key = key?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    Some(Found { key, chain: chain.ok()? })
}

/// The folder of a bundle, to be written.
#[derive(Debug)]
pub(crate) struct Store {
    folder: PathBuf,
    steps: Steps,
}

impl Store {
    /// Removes what an earlier run has left under temporary names.
    pub(crate) fn open(folder: &Path, steps: Steps) -> Self {
        for name in REPLACED {
            // Where it cannot be removed, nothing can be written either, and that is reported then.
            let _ = std::fs::remove_file(key_file::temporary(&folder.join(name)));
        }
        Self { folder: folder.to_owned(), steps }
    }

    pub(crate) fn read(&self) -> Option<Found> {
        read(&self.folder)
    }

    /// Keeps a new key: before the gateway hears of it.
    pub(crate) fn keep_key(&self, key: &NewKey) -> Result<(), CredentialsError> {
        key_file::replace(&self.folder.join(RENEWAL), key.to_pem().as_bytes(), &self.steps)
    }

    /// Keeps a key with the certificates that came for it.
    pub(crate) fn keep_pair(&self, key: &NewKey, chain: &str) -> Result<(), CredentialsError> {
        let key = key.to_pem();
        let mut text = Zeroizing::new(String::with_capacity(key.len() + chain.len()));
        text.push_str(&key);
        text.push_str(chain);
        key_file::replace(&self.folder.join(RENEWAL), text.as_bytes(), &self.steps)
    }

    /// The new pair takes the old one's place. Repeating it is safe.
    pub(crate) fn promote(&self, key: &NewKey, chain: &str) -> Result<(), CredentialsError> {
        let (at_key, at_certificate) = (self.folder.join(KEY), self.folder.join(CERTIFICATE));
        let public = mode(&at_certificate);
        let pem = key.to_pem();
        let key = key_file::prepare(&at_key, pem.as_bytes(), key_file::SECRET, &self.steps)?;
        let certificate = key_file::prepare(&at_certificate, chain.as_bytes(), public, &self.steps)?;
        key.place(&self.steps)?;
        certificate.place(&self.steps)?;
        // `renewal.pem` tells which pair is whole: it goes when both files have come, after a power cut too.
        key_file::sync(&at_key)?;
        self.discard()
    }

    /// There is no renewal any more.
    pub(crate) fn discard(&self) -> Result<(), CredentialsError> {
        key_file::remove(&self.folder.join(RENEWAL), &self.steps)
    }
}

/// Who could read the certificate before can read the new one.
fn mode(path: &Path) -> u32 {
    #[cfg(unix)]
    if let Ok(metadata) = std::fs::metadata(path) {
        return std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777;
    }
    let _ = path;
    0o644
}
