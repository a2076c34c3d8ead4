//! Where the master key and the passphrase of the CA keys come from: a systemd credential, the environment, a file.
//!
//! Every place that has one must have the same one. A precedence that decided silently would have a gateway run by the key
//! that nobody thought of.

use std::fmt;
use std::path::PathBuf;

use zeroize::Zeroizing;

use crate::home::{self, FileError};

/// Names the folder in which systemd has put a service's credentials (systemd.exec(5), `LoadCredential=`).
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// What the devices' keys are sealed by.
pub const MASTER_KEY: Secret =
    Secret { what: "the master key", credential: "doorward-master-key", variable: "DOORWARD_MASTER_KEY" };

/// What the CA keys are encrypted under.
pub const CA_PASSPHRASE: Secret = Secret {
    what: "the passphrase of the CA keys",
    credential: "doorward-ca-passphrase",
    variable: "DOORWARD_CA_PASSPHRASE",
};

/// A secret that a process may be handed from outside its home.
#[derive(Debug)]
pub struct Secret {
    /// What it is, for messages.
    pub what: &'static str,
    /// The systemd credential's name.
    pub credential: &'static str,
    /// The environment variable that holds it.
    pub variable: &'static str,
}

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A systemd credential.
    Credential(PathBuf),
    /// A variable of the environment.
    Variable(&'static str),
    /// A file.
    File(PathBuf),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Credential(path) => write!(f, "the credential {}", path.display()),
            Self::Variable(name) => write!(f, "the variable {name}"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A secret's text, as it was found. Debug shows where.
pub struct Found {
    /// Where.
    pub origin: Origin,
    /// What stands there.
    pub text: Zeroizing<String>,
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Found").field("origin", &self.origin).finish_non_exhaustive()
    }
}

/// Why a secret cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Its file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The variable is not text.
    #[error("the variable {0} is not UTF-8")]
    NotText(&'static str),
    /// What is there is no such secret.
    #[error("{origin}: {why}")]
    Malformed {
        /// Where.
        origin: Origin,
        /// What is wrong with it.
        why: String,
    },
    /// Two places have two of them.
    #[error("{what} in {one} is not the one in {other}; take away the one that is not meant")]
    Differ {
        /// Which secret.
        what: &'static str,
        /// A place.
        one: Origin,
        /// Another.
        other: Origin,
    },
}

impl Secret {
    /// What this process was handed: by its service manager, then by its environment. An empty variable says nothing.
    ///
    /// # Errors
    /// [`SecretError`] where one is there and cannot be read.
    pub fn handed(&self) -> Result<Vec<Found>, SecretError> {
        let mut found = Vec::new();
        if let Some(folder) = std::env::var_os(CREDENTIALS).filter(|folder| !folder.is_empty()) {
            let path = PathBuf::from(folder).join(self.credential);
            match home::read_credential(&path) {
                Ok(text) => found.push(Found { origin: Origin::Credential(path), text }),
                Err(FileError::Missing(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(value) = std::env::var_os(self.variable).filter(|value| !value.is_empty()) {
            let text = value.into_string().map_err(|_| SecretError::NotText(self.variable))?;
            found.push(Found { origin: Origin::Variable(self.variable), text: Zeroizing::new(text) });
        }
        Ok(found)
    }

    /// The first of what was found, read; all others must be the same.
    ///
    /// # Errors
    /// [`SecretError::Malformed`], [`SecretError::Differ`]
    pub fn one<T, E: fmt::Display>(
        &self,
        found: Vec<Found>,
        read: impl Fn(&str) -> Result<T, E>,
        same: impl Fn(&T, &T) -> bool,
    ) -> Result<Option<(T, Origin)>, SecretError> {
        let mut first: Option<(T, Origin)> = None;
        for Found { origin, text } in found {
            let value = read(&text)
                .map_err(|error| SecretError::Malformed { origin: origin.clone(), why: error.to_string() })?;
            match &first {
                None => first = Some((value, origin)),
                Some((one, _)) if same(one, &value) => {}
                Some((_, one)) => {
                    return Err(SecretError::Differ { what: self.what, one: one.clone(), other: origin });
                }
            }
        }
        Ok(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &'static str, text: &str) -> Found {
        Found { origin: Origin::Variable(name), text: Zeroizing::new(text.to_owned()) }
    }

    fn number(text: &str) -> Result<u32, std::num::ParseIntError> {
        text.trim().parse()
    }

    #[test]
    fn the_first_counts_where_all_say_the_same() {
        let one = MASTER_KEY.one(vec![found("A", "7"), found("B", "7\n")], number, u32::eq).unwrap();
        assert_eq!(one, Some((7, Origin::Variable("A"))));
        assert!(MASTER_KEY.one(Vec::new(), number, u32::eq).unwrap().is_none());
    }

    #[test]
    fn two_that_differ_are_refused_by_their_places_alone() {
        let error = CA_PASSPHRASE.one(vec![found("A", "71"), found("B", "82")], number, u32::eq).unwrap_err();
        let words = error.to_string();
        assert!(words.contains("variable A") && words.contains("variable B"), "{words}");
        assert!(!words.contains("71") && !words.contains("82"), "{words}");
    }

    #[test]
    fn debug_shows_no_secret() {
        assert!(!format!("{:?}", found("A", "hunter2")).contains("hunter2"));
    }
}
