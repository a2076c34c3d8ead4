//! `[crl]`: revocation lists for others than the gateway.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Wrong, address};

/// `[crl]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CrlSection {
    /// Where lists are served by HTTP, if anywhere.
    #[serde(with = "address")]
    pub listen: Option<SocketAddr>,
    /// The lists, each under its file's name.
    pub files: Vec<PathBuf>,
}

impl Default for CrlSection {
    fn default() -> Self {
        Self { listen: None, files: vec!["pki/doorward.crl".into()] }
    }
}

/// The name that a list is served under.
#[must_use]
pub fn served_as(path: &Path) -> Option<&str> {
    let plain =
        |name: &&str| name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    path.file_name()?.to_str().filter(plain)
}

impl CrlSection {
    pub(super) fn check(&self) -> Result<(), Wrong> {
        let mut names = HashSet::new();
        for path in &self.files {
            let reason = match served_as(path) {
                None => {
                    "a file's name of letters, digits, '-', '_' and '.' is needed: it is served under that"
                }
                Some(name) if !names.insert(name) => "two of them would be served under one name",
                Some(_) => continue,
            };
            let value = format!("{:?}", self.files);
            return Err(Wrong { key: "crl.files", value, reason: reason.to_owned() });
        }
        Ok(())
    }
}
