//! The one file that draws randomness and makes keys; everything else is handed them.

use aws_lc_rs::rand::{SecureRandom, SystemRandom};

/// The operating system gave no random bytes. Nothing can be issued or opened without them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gives no random bytes")]
pub struct NoEntropy;

/// `N` bytes from the operating system's generator.
///
/// # Errors
/// [`NoEntropy`] where the generator fails; there is no fallback.
pub fn random<const N: usize>() -> Result<[u8; N], NoEntropy> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| NoEntropy)?;
    Ok(bytes)
}

/// A fresh P-256 key pair.
///
/// # Errors
/// [`NoEntropy`] where the generator fails.
pub fn key_pair() -> Result<rcgen::KeyPair, NoEntropy> {
    rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|_| NoEntropy)
}
