//! Certificates, private keys and credential files of Doorward.
//!
//! Pure: no socket, file, clock or random source. Times, random bytes and generated keys are arguments, so a test
//! decides them all and an issued certificate can be reproduced up to its signature.
//!
//! | module | holds |
//! | --- | --- |
//! | [`profile`] | the one table of what each kind of certificate says |
//! | [`authority`] | a CA with its key: makes, loads, issues |
//! | [`crl`] | lists of what is revoked: ours, for those who have no registry, and another CA's |
//! | [`csr`] | a request, of which only the proven public key is believed |
//! | [`external`] | an issuing CA that somebody else signs |
//! | [`identity`] | what a certificate that somebody presents says, and whether it is fit for a device |
//! | [`serial`] | serial numbers |
//! | [`seal`] | the devices' HMAC keys at rest, wrapped by the master key |
//! | [`key_file`] | private keys as PKCS#8 PEM, plain or under a passphrase |
//! | [`bundle`] | `device.json` and the line of a bulk file |

pub mod authority;
pub mod bundle;
pub mod crl;
pub mod csr;
pub mod external;
pub mod identity;
pub mod key_file;
pub mod profile;
pub mod seal;
pub mod serial;

mod hex;
mod pem;
#[cfg(test)]
mod testing;

pub use authority::{Authority, Certificate, Host, IssueError, LoadError, key_to_pem};
pub use bundle::{BulkLine, DeviceFile, HmacKey, HmacKeyEntry, PrivateKeyPem};
pub use crl::{Crl, CrlError, DistributionPoint, Reason, RevocationList, Scope};
pub use csr::{CsrError, Request};
pub use external::ExternalError;
pub use identity::{
    CaCertificate, CaId, Fingerprint, Leaf, LeafError, ServerCertificate, Unfit, display_subject, printable,
};
pub use pem::{certificate_to_pem, certificates as certificates_from_pem};
pub use seal::{MasterKey, SealError};
pub use serial::Serial;
