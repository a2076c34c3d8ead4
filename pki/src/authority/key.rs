//! A private key that leaves nothing behind.

use rcgen::{KeyPair, PublicKeyData, SignatureAlgorithm, SigningKey};
use zeroize::{Zeroize, Zeroizing};

use crate::pem;

/// A key pair as PKCS#8 PEM, unencrypted.
#[must_use]
pub fn key_to_pem(key: &KeyPair) -> Zeroizing<String> {
    pem::encode_secret(pem::PRIVATE_KEY, key.serialized_der())
}

/// A key pair that wipes its PKCS#8 bytes when dropped; rcgen's own does not. (aws-lc wipes its half itself.)
pub(super) struct OwnedKey(KeyPair);

impl OwnedKey {
    pub(super) const fn new(key: KeyPair) -> Self {
        Self(key)
    }

    pub(super) fn to_pem(&self) -> Zeroizing<String> {
        key_to_pem(&self.0)
    }
}

impl Drop for OwnedKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl PublicKeyData for OwnedKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        PublicKeyData::algorithm(&self.0)
    }
}

impl SigningKey for OwnedKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}
