//! TLS 1.3 with the device's certificate, trusting what its bundle trusts and nothing else.

use std::sync::{Arc, LazyLock};

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;

use crate::credentials::Identity;

/// One gateway's worth of tickets. rustls's default remembers 256 servers, 20 KiB for each device of a fleet.
const REMEMBERED_SESSIONS: usize = 8;

/// aws-lc-rs is handed to each configuration: a library installs no default for the whole process.
static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));

/// Why no TLS configuration comes of an identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A trusted certificate is not usable.
    #[error("a certificate in ca.crt cannot be trusted: {0}; write the bundle again")]
    Trust(rustls::Error),
    /// The certificate and its private key do not fit each other, or are of an unknown kind.
    #[error("the certificate and its private key cannot be used: {0}; write the bundle again")]
    Identity(rustls::Error),
    /// TLS 1.3 is missing from the provider.
    #[error("the TLS library cannot speak TLS 1.3: {0}")]
    Version(rustls::Error),
}

/// Trusted certificates, to be shared by the devices of a fleet.
#[derive(Debug, Clone)]
pub struct Trust(Arc<RootCertStore>);

impl Trust {
    /// Trusts these certificates alone.
    ///
    /// # Errors
    /// [`TlsError::Trust`] where one of them is no certificate.
    pub fn new(certificates: &[CertificateDer<'static>]) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates {
            roots.add(certificate.clone()).map_err(TlsError::Trust)?;
        }
        Ok(Self(Arc::new(roots)))
    }
}

/// The TLS configuration of a device. Connections that share it resume each other's sessions.
///
/// X25519MLKEM768 is offered first, X25519 and P-256 are accepted.
///
/// # Errors
/// [`TlsError`] where the identity or what it trusts is unusable.
pub fn configuration(identity: &Identity) -> Result<Arc<ClientConfig>, TlsError> {
    configuration_trusting(identity, &Trust::new(&identity.trusted)?)
}

/// As [`configuration`], with trusted certificates that were read before.
///
/// # Errors
/// [`TlsError`] where the identity is unusable.
pub fn configuration_trusting(identity: &Identity, trust: &Trust) -> Result<Arc<ClientConfig>, TlsError> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Version)?
        .with_root_certificates(Arc::clone(&trust.0))
        .with_client_auth_cert(identity.chain.clone(), identity.private_key.clone_key())
        .map_err(TlsError::Identity)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::in_memory_sessions(REMEMBERED_SESSIONS);
    Ok(Arc::new(config))
}

/// 16 random bytes for a message's id; `None` where the operating system gives none.
pub(crate) fn random_id() -> Option<[u8; 16]> {
    let mut bytes = [0; 16];
    PROVIDER.secure_random.fill(&mut bytes).ok().map(|()| bytes)
}
