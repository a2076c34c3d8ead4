//! What this crate's tests share: keys, serials, a clock that stands still, and the openssl command where there is one.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use doorward_proto::ids::DeviceId;
use rcgen::KeyPair;
use time::{Duration, OffsetDateTime};

use crate::authority::{Authority, Certificate};
use crate::serial::Serial;

/// 2026-11-14 12:00:00.5 UTC; the half second must not survive into a certificate.
pub(crate) fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(1_794_657_600_500_000_000).unwrap()
}

#[expect(clippy::disallowed_methods, reason = "a test makes its own keys")]
pub(crate) fn key() -> KeyPair {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap()
}

#[expect(clippy::disallowed_methods, reason = "a test makes its own keys")]
pub(crate) fn other_key(kind: &'static rcgen::SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(kind).unwrap()
}

/// A serial that no other call returns.
pub(crate) fn serial() -> Serial {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut bytes = [0; 16];
    bytes[8..].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    Serial::from_random(bytes)
}

pub(crate) fn device_id(text: &str) -> DeviceId {
    DeviceId::new(text).unwrap()
}

pub(crate) fn root() -> Authority {
    Authority::root("Test Root", key(), serial(), now()).unwrap()
}

/// A root and the issuing CA below it.
pub(crate) fn authorities() -> (Authority, Authority) {
    let root = root();
    let issuing = root.issuing("Test Issuing", key(), serial(), now()).unwrap();
    (root, issuing)
}

pub(crate) fn device(authority: &Authority, id: &str) -> Certificate {
    authority.issue_device(&device_id(id), &key(), serial(), now(), Duration::days(90)).unwrap()
}

/// A folder of this test's own, removed when dropped.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        let path = std::env::temp_dir().join(format!("doorward-pki-{}-{}", std::process::id(), serial()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    #[expect(clippy::disallowed_methods, reason = "a test gives openssl its files")]
    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs openssl: whether it succeeded, and all that it said. `None` where it is not installed.
pub(crate) fn openssl(arguments: &[&str]) -> Option<(bool, String)> {
    let Ok(output) = Command::new("openssl").args(arguments).output() else {
        eprintln!("openssl is not installed: skipped");
        return None;
    };
    let said = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}
