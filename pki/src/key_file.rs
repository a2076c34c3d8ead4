//! Private keys as PKCS#8 PEM (RFC 5958): plain, or encrypted under a passphrase.
//!
//! Written is PBES2 (RFC 8018 §6.2) with scrypt and AES-256-CBC; read is what `openssl pkcs8 -topk8` writes as well,
//! which is PBKDF2 unless it is told otherwise.

use pkcs8::der::Decode;
use pkcs8::pkcs5::EncryptionScheme as Pkcs5Scheme;
use pkcs8::pkcs5::pbes2::{EncryptionScheme, Kdf, Parameters, Salt, ScryptParams};
use pkcs8::{EncryptedPrivateKeyInfoRef, PrivateKeyInfoRef, SecretDocument};
use zeroize::Zeroizing;

use crate::pem;

/// scrypt's cost (RFC 7914): N = 2¹⁴, r = 8, p = 1 takes 16 MiB. With N = 2¹⁵ openssl reaches its own memory limit
/// (32 MiB) and could not read the file.
const SCRYPT_N: u64 = 1 << 14;
const SCRYPT_R: u16 = 8;
const SCRYPT_P: u16 = 1;

/// The most memory and work that a file may ask for; one that asks for more would stop the machine.
const MAX_SCRYPT_BYTES: u64 = 1 << 30;
const MAX_SCRYPT_P: u16 = 16;
const MAX_PBKDF2_ITERATIONS: u32 = 10_000_000;

/// Why a key file cannot be read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// Not PKCS#8 PEM.
    #[error("this is not a private key in PKCS#8 PEM (`openssl pkcs8 -topk8` converts other forms)")]
    Unreadable,
    /// Encrypted, and no passphrase was given.
    #[error("the private key is encrypted; name the file that holds its passphrase with --passphrase-file")]
    NeedsPassphrase,
    /// The passphrase does not decrypt it.
    #[error("the passphrase does not open this private key; is --passphrase-file the file it was made with?")]
    WrongPassphrase,
    /// A cipher or key derivation that is not supported.
    #[error(
        "the private key is encrypted in a way that is not supported; \
         `openssl pkcs8 -topk8 -scrypt` writes one that is"
    )]
    Unsupported,
    /// Key derivation that would take too much memory or time.
    #[error("the private key's passphrase derivation asks for more memory or time than is given")]
    TooCostly,
    /// An empty passphrase protects nothing.
    #[error("the passphrase is empty; put one in the first line of the --passphrase-file")]
    EmptyPassphrase,
}

/// Whether the PEM text holds an encrypted private key.
#[must_use]
pub fn is_encrypted(pem: &str) -> bool {
    pem::has_section(pem, pem::ENCRYPTED_PRIVATE_KEY)
}

/// The passphrase in the content of a passphrase file: its first line, as openssl's `-passin file:` has it.
///
/// # Errors
/// [`KeyFileError::EmptyPassphrase`] where that line is empty.
pub fn passphrase(file: &str) -> Result<&str, KeyFileError> {
    match file.lines().next() {
        None | Some("") => Err(KeyFileError::EmptyPassphrase),
        Some(line) => Ok(line),
    }
}

/// The private key of a file, decrypted if it is encrypted, as PKCS#8 PEM.
///
/// # Errors
/// [`KeyFileError`], as for [`decrypt`]; [`KeyFileError::NeedsPassphrase`] where it is encrypted and none is given.
pub fn open(pem: &str, passphrase: Option<&[u8]>) -> Result<Zeroizing<String>, KeyFileError> {
    match passphrase {
        _ if !is_encrypted(pem) => Ok(pem::encode_secret(pem::PRIVATE_KEY, plain(pem)?.as_bytes())),
        Some(passphrase) => decrypt(pem, passphrase),
        None => Err(KeyFileError::NeedsPassphrase),
    }
}

/// Encrypts a private key under a passphrase. Salt and IV must be fresh random bytes.
///
/// # Errors
/// [`KeyFileError::Unreadable`] where the text is no plain PKCS#8 PEM; [`KeyFileError::EmptyPassphrase`].
pub fn encrypt(
    pkcs8_pem: &str,
    passphrase: &[u8],
    salt: [u8; 16],
    iv: [u8; 16],
) -> Result<Zeroizing<String>, KeyFileError> {
    if passphrase.is_empty() {
        return Err(KeyFileError::EmptyPassphrase);
    }
    let key = plain(pkcs8_pem)?;
    let scrypt = ScryptParams {
        salt: Salt::new(salt).map_err(|_| KeyFileError::Unsupported)?,
        cost_parameter: SCRYPT_N,
        block_size: SCRYPT_R,
        parallelization: SCRYPT_P,
        key_length: None,
    };
    let parameters = Parameters { kdf: Kdf::Scrypt(scrypt), encryption: EncryptionScheme::Aes256Cbc { iv } };
    let encrypted = PrivateKeyInfoRef::from_der(key.as_bytes())
        .map_err(|_| KeyFileError::Unreadable)?
        .encrypt_with_params(parameters, passphrase)
        .map_err(|_| KeyFileError::Unsupported)?;
    Ok(pem::encode_secret(pem::ENCRYPTED_PRIVATE_KEY, encrypted.as_bytes()))
}

/// Decrypts an encrypted private key to PKCS#8 PEM.
///
/// # Errors
/// [`KeyFileError`] where it is no encrypted key, not in a supported way, or not under this passphrase.
pub fn decrypt(pem: &str, passphrase: &[u8]) -> Result<Zeroizing<String>, KeyFileError> {
    let document = pem::secret(pem, pem::ENCRYPTED_PRIVATE_KEY).ok_or(KeyFileError::Unreadable)?;
    let encrypted =
        EncryptedPrivateKeyInfoRef::from_der(document.as_bytes()).map_err(|_| KeyFileError::Unsupported)?;
    check_cost(&encrypted.encryption_algorithm)?;
    let key = encrypted.decrypt(passphrase).map_err(|error| match error {
        pkcs8::Error::EncryptedPrivateKey(pkcs8::pkcs5::Error::UnsupportedAlgorithm { .. }) => {
            KeyFileError::Unsupported
        }
        _ => KeyFileError::WrongPassphrase,
    })?;
    // CBC has no tag: one wrong passphrase in 256 yields padding that looks right, and then no key.
    PrivateKeyInfoRef::from_der(key.as_bytes()).map_err(|_| KeyFileError::WrongPassphrase)?;
    Ok(pem::encode_secret(pem::PRIVATE_KEY, key.as_bytes()))
}

/// A plain private key's DER.
fn plain(pem: &str) -> Result<SecretDocument, KeyFileError> {
    let key = pem::secret(pem, pem::PRIVATE_KEY).ok_or(KeyFileError::Unreadable)?;
    PrivateKeyInfoRef::from_der(key.as_bytes()).map_err(|_| KeyFileError::Unreadable)?;
    Ok(key)
}

fn check_cost(scheme: &Pkcs5Scheme) -> Result<(), KeyFileError> {
    let Pkcs5Scheme::Pbes2(parameters) = scheme else { return Err(KeyFileError::Unsupported) };
    let bearable = match &parameters.kdf {
        Kdf::Scrypt(scrypt) => {
            let bytes = scrypt.cost_parameter.checked_mul(128 * u64::from(scrypt.block_size));
            scrypt.cost_parameter > 1
                && bytes.is_some_and(|bytes| bytes <= MAX_SCRYPT_BYTES)
                && scrypt.parallelization <= MAX_SCRYPT_P
        }
        Kdf::Pbkdf2(pbkdf2) => pbkdf2.iteration_count <= MAX_PBKDF2_ITERATIONS,
        _ => return Err(KeyFileError::Unsupported),
    };
    if bearable { Ok(()) } else { Err(KeyFileError::TooCostly) }
}

#[cfg(test)]
mod tests;
