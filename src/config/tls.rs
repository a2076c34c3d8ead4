//! What is asked of `[tls]` before any of its files is read.

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};

use super::{TlsSection, Wrong};

impl TlsSection {
    pub(super) fn check(&self) -> Result<(), Wrong> {
        let no = |key, value: String, reason: &str| Err(Wrong { key, value, reason: reason.to_owned() });
        if self.device_cas.is_empty() {
            return no("tls.device_cas", "[]".to_owned(), "without a device CA nobody could be let in");
        }
        let mut seen = HashSet::new();
        if let Some(twice) = self.crls.iter().find(|path| !seen.insert(plain(path))) {
            return no("tls.crls", format!("\"{}\"", twice.display()), "this file is named already");
        }
        Ok(())
    }
}

/// A path without what names the folder itself.
fn plain(path: &Path) -> PathBuf {
    path.components().filter(|part| *part != Component::CurDir).collect()
}
