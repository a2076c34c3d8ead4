//! The secrets of a command: the master keys and the passphrase of the CA keys, wherever they come from.

use doorward_pki::key_file;
use zeroize::Zeroizing;

use super::failure::Failure;
use super::{Shared, issue};
use crate::config::{Setting, Source};
use crate::home::{self, FileError};
use crate::master::MasterKeys;
use crate::secrets::{CA_PASSPHRASE, Found, MASTER_KEY, Origin, SecretError};

/// The passphrase of the CA keys.
pub(super) struct Passphrase {
    bytes: Zeroizing<Vec<u8>>,
    /// Where it comes from.
    pub(super) origin: Origin,
}

impl Passphrase {
    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes
    }
}

impl Shared {
    /// The passphrase of the CA keys, if there is one: of the option, a credential or a variable.
    pub(super) fn passphrase(&self) -> Result<Option<Passphrase>, Failure> {
        let mut found = Vec::new();
        if let Some(path) = &self.passphrase_file {
            let text = home::read_secret(path).map_err(|error| match error {
                FileError::Missing(_) => Failure::new(format!("the passphrase file {error}")),
                other => other.into(),
            })?;
            found.push(Found { origin: Origin::File(path.clone()), text });
        }
        if !self.own_secrets {
            found.extend(CA_PASSPHRASE.handed()?);
        }
        let read = |text: &str| {
            key_file::passphrase(text).map(|passphrase| Zeroizing::new(passphrase.as_bytes().to_vec()))
        };
        let passphrase = CA_PASSPHRASE.one(found, read, |a, b| a == b)?;
        Ok(passphrase.map(|(bytes, origin)| Passphrase { bytes, origin }))
    }

    /// What opens and seals the devices' keys.
    pub(super) fn master_keys(&self) -> Result<MasterKeys, Failure> {
        MasterKeys::load(&self.home(), !self.own_secrets).map_err(|error| match error {
            SecretError::File(error) => issue::irreplaceable(error),
            error @ SecretError::Malformed { .. } => {
                Failure::new(error.to_string()).next("put it back from your backup")
            }
            other => other.into(),
        })
    }

    /// Whether a service manager or the environment has handed a master key to this process.
    pub(super) fn is_handed_master_key(&self) -> Result<bool, Failure> {
        Ok(!self.own_secrets && !MASTER_KEY.handed()?.is_empty())
    }

    /// Where each secret comes from, and never what it is.
    pub(super) fn secret_settings(&self) -> Vec<Setting> {
        let master = self.master_keys().map(|keys| keys.origin());
        let passphrase = self.passphrase().map(|passphrase| passphrase.map(|passphrase| passphrase.origin));
        let row = |key: &str, found: Result<Option<Origin>, Failure>, of_option: Source| {
            let (value, source) = match found {
                Ok(Some(Origin::Credential(path))) => (path.display().to_string(), Source::Credential),
                Ok(Some(Origin::Variable(name))) => (name.to_owned(), Source::Environment),
                Ok(Some(Origin::File(path))) => (path.display().to_string(), of_option),
                Ok(None) => (String::new(), Source::Default),
                Err(failure) => (format!("cannot be used: {failure}"), Source::Default),
            };
            Setting { key: format!("secrets.{key}"), value: format!("{value:?}"), source }
        };
        let named = std::env::var_os("DOORWARD_PASSPHRASE_FILE").as_deref()
            == self.passphrase_file.as_deref().map(std::path::Path::as_os_str);
        let of_option = if named { Source::Environment } else { Source::Flag };
        vec![row("ca_passphrase", passphrase, of_option), row("master_key", master, Source::File)]
    }
}
