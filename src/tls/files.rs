//! The files of `[tls]`, each read once, and what was in them: a reload says which have changed.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use doorward_pki::crl::MAX_FILE_BYTES;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::TlsError;
use crate::home::{self, FileError, Home};

/// SHA-256 of what a file held.
pub(crate) type Content = [u8; 32];

/// Reads files of a home, and notes what was in them.
pub(super) struct Files<'a> {
    home: &'a Home,
    pub(super) read: Vec<(PathBuf, Content)>,
}

impl<'a> Files<'a> {
    pub(super) fn new(home: &'a Home) -> Self {
        Self { home, read: Vec::new() }
    }

    fn note(&mut self, path: &Path, bytes: &[u8]) -> Content {
        let content: Content = Sha256::digest(bytes).into();
        self.read.push((path.to_owned(), content));
        content
    }

    /// Certificates in PEM, at least one.
    pub(super) fn certificates(&mut self, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let resolved = self.home.resolve(path);
        home::must_be_file(&resolved)?;
        let text = home::read(&resolved)?;
        self.note(path, text.as_bytes());
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
        let reason = match chain {
            Ok(chain) if !chain.is_empty() => return Ok(chain),
            Ok(_) => "no certificate in it".to_owned(),
            Err(error) => error.to_string(),
        };
        Err(TlsError::Content { path: self.home.resolve(path), reason })
    }

    pub(super) fn secret(&mut self, path: &Path) -> Result<Zeroizing<String>, TlsError> {
        let resolved = self.home.resolve(path);
        home::must_be_file(&resolved)?;
        let text = home::read_secret(&resolved)?;
        self.note(path, text.as_bytes());
        Ok(text)
    }

    /// A file of revocation lists, of which no more is read than one may have.
    pub(super) fn lists(&mut self, path: &Path) -> Result<(Vec<u8>, Content), TlsError> {
        let resolved = self.home.resolve(path);
        home::must_be_file(&resolved)?;
        let mut bytes = Vec::new();
        let read = File::open(&resolved)
            .and_then(|file| file.take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut bytes));
        read.map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => FileError::Missing(resolved),
            _ => FileError::Io { act: "read", path: resolved, source },
        })?;
        let content = self.note(path, &bytes);
        Ok((bytes, content))
    }
}
