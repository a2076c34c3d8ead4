//! The gateway's TLS: a client certificate from a device CA, or nothing (docs/protocol.md §1, step 1).

mod asked;
mod files;
mod trust;

pub(crate) use asked::Door;
pub(crate) use trust::{Origin, Trust};

use std::cell::RefCell;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use doorward_pki::identity::{CaCertificate, Leaf, ServerCertificate, display_subject};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};
use tracing::warn;

use crate::clock;
use crate::config::{Config, TlsVersion};
use crate::home::{self, FileError, Home};

use files::{Content, Files};
use trust::TrustedCa;

tokio::task_local! {
    /// The subject of the certificate that this handshake brought, for the log line of a refusal.
    static SUBJECT: RefCell<Option<String>>;
}

/// Why the gateway's certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing, unreadable, or open to others.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file holds something else.
    #[error("{path}: {reason}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Certificate and key do not go together, or rustls refuses them.
    #[error("{certificate} and {key} do not make a server certificate: {reason}")]
    Pair {
        /// The chain.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Runs a handshake; besides its result, the subject that the client's certificate claimed.
pub(crate) async fn noting_subject<T>(handshake: impl Future<Output = T>) -> (T, Option<String>) {
    SUBJECT
        .scope(RefCell::new(None), async move {
            let result = handshake.await;
            (result, SUBJECT.with(RefCell::take))
        })
        .await
}

/// What the files of `[tls]` come to, read together.
pub struct Material {
    /// The configuration of every handshake.
    server: Arc<ServerConfig>,
    pub(crate) trust: Arc<Trust>,
    /// What the gateway's own certificate says.
    pub(crate) own_facts: ServerCertificate,
    /// The files and what was in them, as the configuration names them.
    pub(crate) files: Vec<(PathBuf, Content)>,
}

impl Material {
    /// The configuration of every handshake.
    #[must_use]
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }
}

/// Reads the files of the home that handshakes go by. `running` is what is in force: of that, lists stay.
///
/// # Errors
/// [`TlsError`] naming the file.
pub fn load(config: &Config, home: &Home, running: Option<&Material>) -> Result<Material, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut files = Files::new(home);
    let (certificate, key) = (home.resolve(&config.tls.certificate), home.resolve(&config.tls.key));
    let chain = files.certificates(&config.tls.certificate)?;
    let own_facts = ServerCertificate::parse(chain.first().map_or(&[][..], |leaf| leaf))
        .map_err(|error| TlsError::Content { path: certificate.clone(), reason: error.to_string() })?;
    let private =
        PrivateKeyDer::from_pem_slice(files.secret(&config.tls.key)?.as_bytes()).map_err(|error| {
            TlsError::Content { path: key.clone(), reason: format!("no private key: {error}") }
        })?;
    let (verifier, cas) = DeviceVerifier::load(config, home, &mut files, &provider)?;
    let running = running.map(|running| &*running.trust);
    let lists = trust::load_lists(&config.tls.crls, home, &mut files, &cas, running)?;
    warn_of_root(home);

    let versions: &[&rustls::SupportedProtocolVersion] = match config.tls.min_version {
        TlsVersion::V1_3 => &[&rustls::version::TLS13],
        TlsVersion::V1_2 => &[&rustls::version::TLS13, &rustls::version::TLS12],
    };
    let pair = |reason: rustls::Error| TlsError::Pair {
        certificate: certificate.clone(),
        key: key.clone(),
        reason: reason.to_string(),
    };
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(pair)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(chain, private)
        .map_err(pair)?;
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Stateless tickets, one a handshake. They die with this configuration, so with any change of the device CAs;
    // a resumed handshake is judged against the registry like a full one (identity.rs).
    tls.ticketer = aws_lc_rs::Ticketer::new().map_err(pair)?;
    tls.send_tls13_tickets = 1;
    let trust = Arc::new(Trust::new(cas, lists));
    Ok(Material { server: Arc::new(tls), trust, own_facts, files: files.read })
}

/// Verifies the path from the leaf to a configured CA: first one whose name the leaf bears as its issuer's, the one with
/// the key that the leaf names before its namesakes; then, where none of these has signed it, any of them by way of the
/// intermediates that the client has sent, each of which must be a CA that is valid now.
///
/// The leaf's end date alone is left to identity.rs, so that an expired device is told so in words. For that the path is
/// verified at the leaf's own last second where this is past. Nothing else passes by it that would not pass now: of a path
/// only the validity depends on time, and that of every CA on it has been asked for now before.
struct DeviceVerifier {
    cas: Vec<DeviceCa>,
    any: Arc<dyn ClientCertVerifier>,
}

struct DeviceCa {
    facts: CaCertificate,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl fmt::Debug for DeviceVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceVerifier({} CAs)", self.cas.len())
    }
}

impl DeviceVerifier {
    /// Besides, what the CAs are.
    fn load(
        config: &Config,
        home: &Home,
        files: &mut Files<'_>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<(Self, Vec<TrustedCa>), TlsError> {
        let (mut cas, mut trusted) = (Vec::new(), Vec::new());
        for path in &config.tls.device_cas {
            let content = |reason: String| TlsError::Content { path: home.resolve(path), reason };
            for der in files.certificates(path)? {
                let facts = CaCertificate::parse(&der).map_err(|error| content(error.to_string()))?;
                // rustls-webpki takes any certificate for an anchor; these two facts are ours to ask.
                if !facts.is_ca() || !facts.key_cert_sign() {
                    return Err(content("not a CA certificate that may sign others".to_owned()));
                }
                trusted.push(TrustedCa { der: der.clone(), facts: facts.clone() });
                let mut roots = RootCertStore::empty();
                roots.add(der).map_err(|error| content(error.to_string()))?;
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
                        // Strangers are not told whom this gateway trusts.
                        .clear_root_hint_subjects()
                        .build()
                        .map_err(|error| content(error.to_string()))?;
                cas.push(DeviceCa { facts, verifier });
            }
        }
        match cas.first().map(|ca| Arc::clone(&ca.verifier)) {
            Some(any) => Ok((Self { cas, any }, trusted)),
            None => Err(TlsError::Content { path: home.config(), reason: "no device CA".to_owned() }),
        }
    }
}

/// What is no device CA may yet be what devices trust this gateway by. A home without it is no fault.
fn warn_of_root(home: &Home) {
    let path = home.pki("root.crt");
    let Some(roots) = home::read(&path).ok().and_then(|text| doorward_pki::certificates_from_pem(&text))
    else {
        return;
    };
    for root in roots.iter().filter_map(|der| CaCertificate::parse(der).ok()) {
        let days = (root.not_after() - clock::utc().unix_timestamp()).div_euclid(86_400);
        if days < home::CA_ENDS_SOON.whole_days() {
            warn!(root = %path.display(), days, "the root by which devices trust this gateway ends so soon, or has ended");
        }
    }
}

/// A stranger's certificates are read for a path as long as any that is in use, and no longer.
const MAX_INTERMEDIATES: usize = 4;

/// What rustls-webpki does not ask of an intermediate, or would ask for another moment.
fn check_intermediates(intermediates: &[CertificateDer<'_>], now: i64) -> Result<(), CertificateError> {
    if intermediates.len() > MAX_INTERMEDIATES {
        return Err(CertificateError::UnknownIssuer);
    }
    for der in intermediates {
        let facts = CaCertificate::parse(der).map_err(|_| CertificateError::BadEncoding)?;
        if !facts.is_ca() || !facts.key_cert_sign() {
            return Err(CertificateError::UnknownIssuer);
        }
        check_dates(&facts, now)?;
    }
    Ok(())
}

fn check_dates(ca: &CaCertificate, now: i64) -> Result<(), CertificateError> {
    if now < ca.not_before() {
        Err(CertificateError::NotValidYet)
    } else if now > ca.not_after() {
        Err(CertificateError::Expired)
    } else {
        Ok(())
    }
}

impl ClientCertVerifier for DeviceVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let _ = SUBJECT.try_with(|subject| subject.replace(Some(display_subject(leaf))));
        let facts = Leaf::parse(leaf).map_err(|_| CertificateError::BadEncoding)?;
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        // Judged at its own last second where it is past: its end is somebody else's question.
        let at = seconds.min(facts.not_after());
        let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(u64::try_from(at).unwrap_or(0)));
        let try_ca = |ca: &DeviceCa, intermediates: &[CertificateDer<'_>]| -> Result<_, rustls::Error> {
            check_dates(&ca.facts, seconds)?;
            ca.verifier.verify_client_cert(leaf, intermediates, at)
        };

        // What was found out first is what a refusal says, for it is about the CA that the leaf itself names; any reason
        // is better than none.
        let mut refusal = rustls::Error::from(CertificateError::UnknownIssuer);
        let mut refused = |error: rustls::Error| match (&refusal, error) {
            (
                rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer),
                error @ rustls::Error::InvalidCertificate(_),
            ) => {
                refusal = error;
                Ok(())
            }
            (_, rustls::Error::InvalidCertificate(_)) => Ok(()),
            (_, error) => Err(error),
        };
        let namesakes = || self.cas.iter().filter(|ca| ca.facts.subject() == facts.issuer());
        let named =
            |ca: &&DeviceCa| facts.issuer_key_id().is_some() && facts.issuer_key_id() == ca.facts.key_id();
        for ca in namesakes().filter(named).chain(namesakes().filter(|ca| !named(ca))) {
            match try_ca(ca, &[]) {
                Ok(verified) => return Ok(verified),
                Err(error) => refused(error)?,
            }
        }
        if !intermediates.is_empty() {
            match check_intermediates(intermediates, seconds) {
                Ok(()) => {
                    for ca in &self.cas {
                        match try_ca(ca, intermediates) {
                            Ok(verified) => return Ok(verified),
                            Err(error) => refused(error)?,
                        }
                    }
                }
                Err(error) => refused(error.into())?,
            }
        }
        Err(refusal)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.any.verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.any.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.any.supported_verify_schemes()
    }
}
