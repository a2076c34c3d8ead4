//! What a device was issued: a bundle folder, or a line of the bulk file.

mod key_file;
mod new_key;
mod store;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use doorward_proto::downlink::Rekey;
use doorward_proto::ids::{DeviceId, FleetId, KeyVersion};
use doorward_proto::key::{KEY_BYTES, Key, Keyring};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

pub(crate) use new_key::NewKey;
pub(crate) use store::Store;

use crate::renewal::Steps;

/// The most bytes that a file of a bundle may have.
pub(crate) const MAX_FILE_BYTES: u64 = 256 * 1024;

/// Why credentials cannot be used. It names the file or member, never a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialsError {
    /// A file of the bundle could not be read or written.
    #[error("{}: {error}; {hint}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// A file, or the member of a bulk line, has another form than it should.
    #[error("{place}: {reason}; {hint}")]
    Form {
        /// The file, or the member.
        place: String,
        /// What is wrong.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
}

const REISSUE: &str = "write the bundle again with 'doorward device bundle ID --out DIR'";
const REISSUE_LINE: &str = "issue the bulk file again with 'doorward device add --count'";
const NO_PRIVATE_KEY: &str = "a bundle that was issued for a CSR has none: put the key that the CSR was made with there, as PKCS#8 PEM";

/// The certificate that a device shows, its private key, and the certificates that it trusts for the gateway.
///
/// The private key is wiped when it is dropped.
pub struct Identity {
    /// Leaf first.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) private_key: PrivateKeyDer<'static>,
    pub(crate) trusted: Vec<CertificateDer<'static>>,
}

impl Identity {
    /// An identity from its parts: the chain has its leaf first.
    #[must_use]
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        private_key: PrivateKeyDer<'static>,
        trusted: Vec<CertificateDer<'static>>,
    ) -> Self {
        Self { chain, private_key, trusted }
    }

    /// The certificates that are shown, leaf first.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// What the gateway's certificate must lead to.
    #[must_use]
    pub fn trusted(&self) -> &[CertificateDer<'static>] {
        &self.trusted
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        self.private_key.zeroize();
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({} certificates, private key redacted)", self.chain.len())
    }
}

/// Everything that a device needs to connect.
///
/// A clone shares the identity.
#[derive(Debug, Clone)]
pub struct Credentials {
    device: DeviceId,
    fleet: FleetId,
    url: String,
    key: Key,
    identity: Arc<Identity>,
    folder: Option<PathBuf>,
}

/// `device.json`, and what a bulk line has of it.
#[derive(Serialize, Deserialize)]
struct Description {
    device: DeviceId,
    fleet: FleetId,
    url: String,
    key: DescribedKey,
}

#[derive(Serialize, Deserialize)]
struct DescribedKey {
    version: KeyVersion,
    /// Base64url without padding.
    hmac: Zeroizing<String>,
}

#[derive(Deserialize)]
struct Line {
    #[serde(flatten)]
    description: Description,
    certificate: String,
    private_key: Option<Zeroizing<String>>,
    ca: String,
}

impl Credentials {
    /// Loads a bundle folder: `device.crt`, `device.key`, `ca.crt` and `device.json`. It only reads. Where a renewed pair has
    /// proven itself and an end came before it had taken its place whole, it is the one that is loaded.
    ///
    /// # Errors
    /// [`CredentialsError`] naming the file, what is wrong with it and what to do.
    pub fn load(folder: impl AsRef<Path>) -> Result<Self, CredentialsError> {
        let folder = folder.as_ref();
        let read = |name: &str, hint| key_file::read(&folder.join(name), MAX_FILE_BYTES, hint);
        let place = |name: &str| folder.join(name).display().to_string();
        let description = read("device.json", REISSUE)?;
        let description: Description = serde_json::from_slice(&description)
            .map_err(|error| form(place("device.json"), not_json(&error), REISSUE))?;
        let certificate = read("device.crt", REISSUE)?;
        let private_key = read("device.key", NO_PRIVATE_KEY)?;
        let ca = read("ca.crt", REISSUE)?;
        let mut identity = Identity {
            chain: certificates(&certificate).map_err(|why| form(place("device.crt"), why, REISSUE))?,
            private_key: private_key_of(&private_key)
                .map_err(|why| form(place("device.key"), why, NO_PRIVATE_KEY))?,
            trusted: certificates(&ca).map_err(|why| form(place("ca.crt"), why, REISSUE))?,
        };
        let renewal = store::read(folder);
        let proven =
            |found: &store::Found| found.has_begun_to_replace(&identity.chain, &identity.private_key);
        if let Some(found) = renewal.filter(proven) {
            let trusted = std::mem::take(&mut identity.trusted);
            identity = Identity::new(found.chain, found.key.to_private_key(), trusted);
        }
        let credentials = Self::new(&description, identity)
            .map_err(|why| form(place("device.json") + " (key.hmac)", why, REISSUE))?;
        Ok(Self { folder: Some(folder.to_owned()), ..credentials })
    }

    /// Reads one line of the bulk file: `device.json` with `certificate`, `private_key` and `ca` as PEM beside it.
    ///
    /// # Errors
    /// [`CredentialsError`] naming the member, what is wrong with it and what to do.
    pub fn from_line(line: &str) -> Result<Self, CredentialsError> {
        let bad = |place: &str, why: String| form(place.to_owned(), why, REISSUE_LINE);
        let line: Line =
            serde_json::from_str(line).map_err(|error| bad("the bulk line", not_json(&error)))?;
        let of = |member: &str| format!("'{member}' of device {}", line.description.device);
        let private_key = line
            .private_key
            .as_ref()
            .ok_or_else(|| form(of("private_key"), "it is missing".to_owned(), NO_PRIVATE_KEY))?;
        let identity = Identity {
            chain: certificates(line.certificate.as_bytes()).map_err(|why| bad(&of("certificate"), why))?,
            private_key: private_key_of(private_key.as_bytes())
                .map_err(|why| bad(&of("private_key"), why))?,
            trusted: certificates(line.ca.as_bytes()).map_err(|why| bad(&of("ca"), why))?,
        };
        Self::new(&line.description, identity).map_err(|why| bad(&of("key.hmac"), why))
    }

    fn new(description: &Description, identity: Identity) -> Result<Self, String> {
        Ok(Self {
            device: description.device.clone(),
            fleet: description.fleet.clone(),
            url: description.url.clone(),
            key: key(description.key.version, &description.key.hmac)?,
            identity: Arc::new(identity),
            folder: None,
        })
    }

    /// The same credentials for a gateway at another place.
    #[must_use]
    pub fn with_url(self, url: &str) -> Self {
        Self { url: url.to_owned(), ..self }
    }

    /// Whose they are.
    #[must_use]
    pub fn device(&self) -> &DeviceId {
        &self.device
    }

    /// The device's fleet when they were issued.
    #[must_use]
    pub fn fleet(&self) -> &FleetId {
        &self.fleet
    }

    /// Where the gateway is.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The HMAC key.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The HMAC key as the ring that a link takes.
    #[must_use]
    pub fn keyring(&self) -> Keyring {
        let mut keyring = Keyring::default();
        keyring.add(self.key.clone(), None);
        keyring
    }

    /// The certificate, its private key and the trusted certificates.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(crate) fn shared_identity(&self) -> Arc<Identity> {
        Arc::clone(&self.identity)
    }

    /// Where they were loaded from, if from a folder.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// A key that the gateway handed out, kept in memory alone: its first use retires the old one, and a device that forgot
    /// it is out. For devices that do not outlive their process.
    ///
    /// # Errors
    /// [`CredentialsError`] where the key is malformed.
    pub fn read_key(rekey: &Rekey) -> Result<Key, CredentialsError> {
        key(rekey.version, &rekey.key)
            .map_err(|why| form("the 'rekey' of the gateway".to_owned(), why, "rotate the key again"))
    }

    /// Stores a key that the gateway handed out in the bundle's `device.json`: mode 0600, synced, replaced at once.
    /// `None` where the credentials have no folder to keep it in: a key that is not stored must not be used, because
    /// its first use retires the old one.
    ///
    /// # Errors
    /// [`CredentialsError`] where the key is malformed or the file cannot be replaced; the old one stands then.
    pub fn store_key(&self, rekey: &Rekey) -> Result<Option<Key>, CredentialsError> {
        let Some(folder) = &self.folder else { return Ok(None) };
        let path = folder.join("device.json");
        let fresh = Self::read_key(rekey)?;
        let description = Description {
            device: self.device.clone(),
            fleet: self.fleet.clone(),
            url: self.url.clone(),
            key: DescribedKey { version: rekey.version, hmac: rekey.key.clone() },
        };
        let text = serde_json::to_vec_pretty(&description)
            .map(Zeroizing::new)
            .map_err(|error| form(path.display().to_string(), not_json(&error), REISSUE))?;
        key_file::replace(&path, &text, &Steps::default())?;
        Ok(Some(fresh))
    }
}

impl Credentials {
    /// The key that signs from now on.
    pub(crate) fn take_key(&mut self, key: Key) {
        self.key = key;
    }

    /// The pair that holds from now on: the one before is wiped.
    pub(crate) fn take_identity(&mut self, identity: Arc<Identity>) {
        self.identity = identity;
    }
}

fn form(place: String, reason: String, hint: &'static str) -> CredentialsError {
    CredentialsError::Form { place, reason, hint }
}

/// The place of a JSON error and its kind; its words may quote a value, and a value may be a key.
fn not_json(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let words = match text.split_once(" at line") {
        Some((words, _)) if words.starts_with("missing field") => words,
        _ if error.is_data() => "a member has another form than it should",
        _ => "not one JSON object",
    };
    format!("{words} (line {}, column {})", error.line(), error.column())
}

fn key(version: KeyVersion, text: &str) -> Result<Key, String> {
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    match URL_SAFE_NO_PAD.decode_slice(text, &mut *bytes) {
        Ok(KEY_BYTES) => Ok(Key::new(version, &bytes)),
        _ => Err(format!("not {KEY_BYTES} bytes as base64url without padding")),
    }
}

pub(crate) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match chain {
        Ok(chain) if chain.is_empty() => Err("no certificate in PEM".to_owned()),
        Ok(chain) => Ok(chain),
        Err(error) => Err(format!("not PEM: {error}")),
    }
}

fn private_key_of(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    // The error's own words could quote the text around the key.
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| "not one unencrypted private key in PEM".to_owned())
}

#[cfg(test)]
mod tests;
