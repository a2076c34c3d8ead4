//! HMAC keys, ready to sign and to verify.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::ids::KeyVersion;
use crate::time::NumericDate;

/// The length of an HMAC key and of its signatures, in bytes (RFC 7518 §3.2).
pub const KEY_BYTES: usize = 32;

/// One version of a device's HMAC-SHA256 key, with the key's part of the computation done once.
///
/// The state is wiped when it is dropped.
#[derive(Clone)]
pub struct Key {
    version: KeyVersion,
    keyed: Hmac<Sha256>,
}

impl Key {
    /// A key from its bytes.
    #[must_use]
    pub fn new(version: KeyVersion, bytes: &[u8; KEY_BYTES]) -> Self {
        #[expect(clippy::expect_used, reason = "HMAC takes keys of every length (RFC 2104 §2)")]
        let keyed = Hmac::new_from_slice(bytes).expect("an HMAC key of 32 bytes");
        Self { version, keyed }
    }

    /// Which version it is.
    #[must_use]
    pub const fn version(&self) -> KeyVersion {
        self.version
    }

    /// A compact JWS over a payload (RFC 7515 §7.1), with the header `{"alg":"HS256","kid":"VERSION"}`.
    #[must_use]
    pub fn sign(&self, payload: &[u8]) -> String {
        let header = format!(r#"{{"alg":"HS256","kid":"{}"}}"#, self.version);
        let mut text = String::with_capacity((header.len() + payload.len() + KEY_BYTES) * 4 / 3 + 8);
        URL_SAFE_NO_PAD.encode_string(header, &mut text);
        text.push('.');
        URL_SAFE_NO_PAD.encode_string(payload, &mut text);
        let signature = self.keyed.clone().chain_update(&text).finalize().into_bytes();
        text.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut text);
        text
    }

    /// Whether a signature fits, in constant time.
    pub(crate) fn verifies(&self, signed: &str, signature: &[u8]) -> bool {
        self.keyed.clone().chain_update(signed).verify_slice(signature).is_ok()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key(version {}, redacted)", self.version)
    }
}

/// The key versions that a device may sign with now.
#[derive(Debug, Clone, Default)]
pub struct Keyring {
    keys: Vec<(Key, Option<NumericDate>)>,
}

impl Keyring {
    /// Adds a version, with the end of its grace where it is in one.
    pub fn add(&mut self, key: Key, until: Option<NumericDate>) {
        self.keys.push((key, until));
    }

    /// The version, if it holds at this time.
    #[must_use]
    pub fn find(&self, version: KeyVersion, now: NumericDate) -> Option<&Key> {
        self.keys
            .iter()
            .find(|(key, until)| key.version == version && until.is_none_or(|end| now < end))
            .map(|(key, _)| key)
    }

    /// The newest version.
    #[must_use]
    pub fn newest(&self) -> Option<&Key> {
        self.keys.iter().map(|(key, _)| key).max_by_key(|key| key.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_never_shows_itself() {
        let key = Key::new(KeyVersion::FIRST, &[0xAB; 32]);
        assert_eq!(format!("{key:?}"), "Key(version 1, redacted)");
    }

    #[test]
    fn a_grace_ends() {
        let mut keyring = Keyring::default();
        keyring.add(Key::new(KeyVersion::FIRST, &[1; 32]), Some(NumericDate::from_seconds(100)));
        assert!(keyring.find(KeyVersion::FIRST, NumericDate::from_seconds(99)).is_some());
        assert!(keyring.find(KeyVersion::FIRST, NumericDate::from_seconds(100)).is_none());
    }
}
