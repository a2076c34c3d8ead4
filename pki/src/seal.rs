//! The devices' HMAC keys at rest: the registry holds them only wrapped by the master key, which is no part of it.
//!
//! A sealed key is bound to its device and version: a row copied over another's does not open.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use doorward_proto::ids::{DeviceId, KeyVersion};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

/// The first byte of a sealed key: AES-256-GCM, laid out as [`MasterKey::seal`] says.
const FORMAT: u8 = 1;
const KEY_ID_BYTES: usize = 8;
const NONCE_BYTES: usize = 12;
const HEADER_BYTES: usize = 1 + KEY_ID_BYTES + NONCE_BYTES;
const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 16;

/// The size of a sealed key.
pub const SEALED_BYTES: usize = HEADER_BYTES + KEY_BYTES + TAG_BYTES;

/// The key that wraps the devices' HMAC keys in the registry. Wiped when dropped; Debug shows only its id.
pub struct MasterKey {
    key: Zeroizing<[u8; KEY_BYTES]>,
    /// Tells keys apart and nothing else about them.
    id: [u8; KEY_ID_BYTES],
}

/// The master key's file does not hold one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a master key file is one line: 32 bytes in base64url without padding (43 characters)")]
pub struct MasterKeyError;

/// Why a sealed key does not open, or one cannot be sealed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// Too short or too long.
    #[error(
        "the sealed HMAC key of device {device} has {found} bytes and not {SEALED_BYTES}: the row is damaged"
    )]
    Length {
        /// Whose key it is.
        device: DeviceId,
        /// The bytes it has.
        found: usize,
    },
    /// A format that this program does not know.
    #[error(
        "the sealed HMAC key of device {device} is in format {found}, which this version of doorward does not know"
    )]
    Format {
        /// Whose key it is.
        device: DeviceId,
        /// Its first byte.
        found: u8,
    },
    /// Another master key sealed it.
    #[error(
        "the HMAC key of device {device} was sealed with master key {sealed_with}, and this home has {ours}; put back the pki/master.key that belongs to this registry"
    )]
    WrongMasterKey {
        /// Whose key it is.
        device: DeviceId,
        /// The id of the master key that sealed it.
        sealed_with: String,
        /// The id of this one.
        ours: String,
    },
    /// It was altered, or moved from another device or version.
    #[error(
        "the sealed HMAC key of device {device}, version {version}, has been altered or belongs to another device or version; look into who writes to the registry, then give the device a new key with `doorward device rotate-key {device}`"
    )]
    Tampered {
        /// Whose key it should be.
        device: DeviceId,
        /// Which version it should be.
        version: KeyVersion,
    },
}

impl MasterKey {
    /// The master key made of 32 random bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        let key = Zeroizing::new(bytes);
        let mut hash = Sha256::new();
        hash.update(b"doorward master key id v1\0");
        hash.update(key.as_slice());
        let mut digest = hash.finalize();
        let mut id = [0; KEY_ID_BYTES];
        id.copy_from_slice(&digest[..KEY_ID_BYTES]);
        digest.as_mut_slice().zeroize();
        Self { key, id }
    }

    /// Reads the master key's file: one line, base64url of the 32 bytes.
    ///
    /// # Errors
    /// [`MasterKeyError`] where it is anything else.
    pub fn parse(file: &str) -> Result<Self, MasterKeyError> {
        let line = file.strip_suffix('\n').unwrap_or(file);
        let line = line.strip_suffix('\r').unwrap_or(line);
        // The decoder wants room for a whole number of quartets.
        let mut buffer = Zeroizing::new([0; 48]);
        match URL_SAFE_NO_PAD.decode_slice(line, buffer.as_mut_slice()) {
            Ok(KEY_BYTES) => {
                let mut bytes = [0; KEY_BYTES];
                bytes.copy_from_slice(&buffer[..KEY_BYTES]);
                let key = Self::from_bytes(bytes);
                bytes.zeroize();
                Ok(key)
            }
            _ => Err(MasterKeyError),
        }
    }

    /// The content of the master key's file.
    #[must_use]
    pub fn to_file(&self) -> Zeroizing<String> {
        let mut file = Zeroizing::new(String::with_capacity(64));
        URL_SAFE_NO_PAD.encode_string(self.key.as_slice(), &mut file);
        file.push('\n');
        file
    }

    /// The key's id: tells master keys apart, and nothing else about them.
    #[must_use]
    pub fn id(&self) -> String {
        crate::hex::encode(&self.id)
    }

    /// Seals a device's HMAC key: format byte, master key id (8), nonce (12), ciphertext (32), tag (16). The nonce must
    /// be fresh random bytes: with one used twice GCM gives its key away (NIST SP 800-38D §8; 2³² seals are safe).
    #[must_use]
    pub fn seal(
        &self,
        device: &DeviceId,
        version: KeyVersion,
        hmac_key: &[u8; KEY_BYTES],
        nonce: [u8; NONCE_BYTES],
    ) -> Vec<u8> {
        let mut sealed = Vec::with_capacity(SEALED_BYTES);
        sealed.push(FORMAT);
        sealed.extend(self.id);
        sealed.extend(nonce);
        let aad = associated_data(&sealed[..=KEY_ID_BYTES], device, version);
        sealed.extend(hmac_key);
        let tag = self
            .cipher()
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(aad),
                &mut sealed[HEADER_BYTES..],
            )
            .expect("AES-GCM fails only beyond 64 GiB, and these are 32 bytes");
        sealed.extend(tag.as_ref());
        sealed
    }

    /// Opens what [`MasterKey::seal`] made for this device and version.
    ///
    /// # Errors
    /// [`SealError`], which tells a wrong master key from a damaged row and from a forged one.
    pub fn open(
        &self,
        device: &DeviceId,
        version: KeyVersion,
        sealed: &[u8],
    ) -> Result<Zeroizing<[u8; KEY_BYTES]>, SealError> {
        if let Some(&found) = sealed.first()
            && found != FORMAT
        {
            return Err(SealError::Format { device: device.clone(), found });
        }
        if sealed.len() != SEALED_BYTES {
            return Err(SealError::Length { device: device.clone(), found: sealed.len() });
        }
        let (header, ciphertext) = sealed.split_at(HEADER_BYTES);
        let (name, nonce) = header.split_at(1 + KEY_ID_BYTES);
        if name[1..] != self.id {
            return Err(SealError::WrongMasterKey {
                device: device.clone(),
                sealed_with: crate::hex::encode(&name[1..]),
                ours: self.id(),
            });
        }
        let tampered = || SealError::Tampered { device: device.clone(), version };
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| tampered())?;
        let mut buffer = Zeroizing::new([0; KEY_BYTES + TAG_BYTES]);
        buffer.copy_from_slice(ciphertext);
        let aad = Aad::from(associated_data(name, device, version));
        let opened =
            self.cipher().open_in_place(nonce, aad, buffer.as_mut_slice()).map_err(|_| tampered())?;
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        key.copy_from_slice(opened);
        Ok(key)
    }

    fn cipher(&self) -> LessSafeKey {
        let key = UnboundKey::new(&AES_256_GCM, self.key.as_slice());
        LessSafeKey::new(key.expect("the key has AES-256's 32 bytes"))
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MasterKey").field("id", &self.id()).finish_non_exhaustive()
    }
}

/// The id of the master key that sealed this, in hex; `None` where it is no sealed key of ours at all.
#[must_use]
pub fn sealed_with(sealed: &[u8]) -> Option<String> {
    let ours = sealed.len() == SEALED_BYTES && sealed.first() == Some(&FORMAT);
    ours.then(|| crate::hex::encode(&sealed[1..=KEY_ID_BYTES]))
}

/// What the tag vouches for beside the key: the purpose, format and master key, version, and device. The one part of
/// varying length comes last, so that no two of these texts are equal.
fn associated_data(name: &[u8], device: &DeviceId, version: KeyVersion) -> Vec<u8> {
    let version = version.get().to_be_bytes();
    [b"doorward sealed hmac key\0", name, &version, device.as_str().as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::device_id;

    const SECRET: [u8; 32] = [0xa7; 32];

    fn master() -> MasterKey {
        MasterKey::from_bytes([9; 32])
    }

    fn version(number: u32) -> KeyVersion {
        KeyVersion::from_number(number).unwrap()
    }

    fn sealed() -> Vec<u8> {
        master().seal(&device_id("press-7"), version(3), &SECRET, [5; 12])
    }

    #[test]
    fn opens_what_it_sealed() {
        let sealed = sealed();
        assert_eq!(sealed.len(), SEALED_BYTES);
        assert!(!sealed.windows(8).any(|bytes| bytes == [0xa7; 8]), "the key is not in clear");
        assert_eq!(*master().open(&device_id("press-7"), version(3), &sealed).unwrap(), SECRET);
        assert_ne!(sealed, master().seal(&device_id("press-7"), version(3), &SECRET, [6; 12]));
        assert_eq!(sealed_with(&sealed), Some(master().id()));
        assert_eq!((sealed_with(&sealed[1..]), sealed_with(&[0; SEALED_BYTES])), (None, None));
    }

    #[test]
    fn another_devices_and_another_versions_key_is_refused() {
        for (device, number) in [("press-8", 3), ("press-7", 4), ("press-", 3), ("press-77", 3)] {
            let (device, version) = (device_id(device), version(number));
            let refused = master().open(&device, version, &sealed()).unwrap_err();
            assert_eq!(refused, SealError::Tampered { device, version });
        }
    }

    #[test]
    fn every_flipped_bit_is_refused_with_the_right_error() {
        for at in 0..SEALED_BYTES {
            for bit in 0..8 {
                let mut altered = sealed();
                altered[at] ^= 1 << bit;
                let refused = master().open(&device_id("press-7"), version(3), &altered).unwrap_err();
                let right = match at {
                    0 => matches!(refused, SealError::Format { .. }),
                    1..=8 => matches!(refused, SealError::WrongMasterKey { .. }),
                    _ => matches!(refused, SealError::Tampered { .. }),
                };
                assert!(right, "byte {at}: {refused}");
            }
        }
    }

    #[test]
    fn a_wrong_master_key_is_told_from_tampering() {
        let other = MasterKey::from_bytes([10; 32]);
        let refused = other.open(&device_id("press-7"), version(3), &sealed()).unwrap_err();
        let (sealed_with, ours) = (master().id(), other.id());
        assert_eq!(refused, SealError::WrongMasterKey { device: device_id("press-7"), sealed_with, ours });
    }

    #[test]
    fn a_damaged_row_is_refused() {
        let mut longer = sealed();
        longer.push(0);
        for damaged in [&[][..], &sealed()[..SEALED_BYTES - 1], &longer] {
            let refused = master().open(&device_id("press-7"), version(3), damaged).unwrap_err();
            assert_eq!(refused, SealError::Length { device: device_id("press-7"), found: damaged.len() });
        }
    }

    #[test]
    fn the_file_holds_one_line() {
        let file = master().to_file();
        assert_eq!(file.as_str(), "CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk\n");
        let line = file.trim_end();
        for good in [file.as_str(), line, &format!("{line}\r\n")] {
            assert_eq!(MasterKey::parse(good).unwrap().id(), master().id());
        }
        let padded = format!("{line}=\n");
        for bad in
            ["", "\n", &line[1..], &padded, &format!("{line}A"), &format!("{line}\n\n"), &format!(" {line}")]
        {
            assert_eq!(MasterKey::parse(bad).unwrap_err(), MasterKeyError, "{bad:?}");
        }
        assert!(MasterKey::parse(&"A".repeat(10_000)).is_err());
    }

    #[test]
    fn debug_shows_the_id_alone() {
        assert_eq!(format!("{:?}", master()), format!("MasterKey {{ id: {:?}, .. }}", master().id()));
        assert_eq!(master().id().len(), 16);
    }
}
