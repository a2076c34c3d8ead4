//! An issuing CA on trial: whether devices and gateways would accept what it signs. Its own certificate may say what makes
//! all of that worthless (extended key usages, name constraints, critical extensions that nobody knows), and the fleet
//! would be the one to find out. Judged by the library that devices and gateways judge by.

use std::sync::Arc;
use std::time::Duration;

use doorward_pki::identity::display_subject;
use doorward_pki::{Authority, Host, IssueError, Serial, profile};
use doorward_proto::ids::DeviceId;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use zeroize::Zeroize as _;

use crate::clock;
use crate::entropy::{self, NoEntropy};

/// Why nobody would accept what a CA signs.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// It is itself no CA by which a gateway could judge.
    #[error("the CA '{ca}' cannot be trusted by a gateway: {reason}")]
    Anchor {
        /// The CA, or the root above it.
        ca: String,
        /// What the library says.
        reason: String,
    },
    /// A device would refuse the gateway.
    #[error("a device would refuse a gateway at '{host}' whose certificate is signed by '{ca}': {reason}")]
    Server {
        /// Under which name or address.
        host: Host,
        /// The CA.
        ca: String,
        /// What the library says.
        reason: String,
    },
    /// A gateway would refuse every device.
    #[error("a gateway would refuse every device whose certificate is signed by '{ca}': {reason}")]
    Client {
        /// The CA.
        ca: String,
        /// What the library says.
        reason: String,
    },
    /// It signs nothing at all.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// No random bytes.
    #[error(transparent)]
    Entropy(#[from] NoEntropy),
}

/// Has a CA sign a gateway's certificate for these hosts and a device's, in memory alone, and judges both as those would to
/// whom they are shown: who trusts the roots, and who trusts the CA itself.
///
/// # Errors
/// [`TrialError`] with the first refusal.
pub fn try_out(
    authority: &Authority,
    roots: &[CertificateDer<'static>],
    hosts: &[Host],
) -> Result<(), TrialError> {
    let ca = CertificateDer::from(authority.certificate_der().to_vec());
    let (mut key, now, life) = (entropy::key_pair()?, clock::utc(), profile::GATEWAY.lifetime);
    let serial = Serial::from_random(entropy::random()?);
    let name = hosts.first().map(Host::to_string).unwrap_or_default();
    let name: String = name.chars().take(64).collect();
    let server = authority.issue_gateway(&name, hosts, &key, serial, now, life);
    let client = authority.issue_device(&nobody(), &key, serial, now, life);
    key.zeroize();
    check_server(&server?.der.into(), &ca, roots, hosts)?;
    let client = client?.der.into();
    // Gateways are configured with the one or the other.
    check_client(&client, &ca, roots)?;
    check_client(&client, &ca, std::slice::from_ref(&ca))
}

/// The device of a certificate that nobody is ever given.
#[expect(clippy::expect_used, reason = "lowercase letters are a device id")]
fn nobody() -> DeviceId {
    DeviceId::new("trial").expect("letters")
}

/// Judges a gateway's certificate as a device that trusts these roots would.
///
/// # Errors
/// [`TrialError`] with the first refusal.
pub fn check_server(
    leaf: &CertificateDer<'_>,
    ca: &CertificateDer<'_>,
    roots: &[CertificateDer<'static>],
    hosts: &[Host],
) -> Result<(), TrialError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(anchors(roots)?), provider);
    let verifier = verifier.build().map_err(|error| unfit(ca, &error))?;
    for host in hosts {
        let refused =
            |reason: String| TrialError::Server { host: host.clone(), ca: display_subject(ca), reason };
        let name = match host {
            Host::Ip(address) => ServerName::from(*address),
            // A wildcard's certificate is shown under names that it stands for.
            other => ServerName::try_from(other.to_string().replacen('*', "any", 1))
                .map_err(|error| refused(error.to_string()))?,
        };
        verifier
            .verify_server_cert(leaf, std::slice::from_ref(ca), &name, &[], now())
            .map_err(|error| refused(words(&error)))?;
    }
    Ok(())
}

fn check_client(
    leaf: &CertificateDer<'_>,
    ca: &CertificateDer<'_>,
    trusted: &[CertificateDer<'static>],
) -> Result<(), TrialError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(anchors(trusted)?), provider);
    let verifier = verifier.build().map_err(|error| unfit(ca, &error))?;
    let verified = verifier.verify_client_cert(leaf, std::slice::from_ref(ca), now());
    let refused = |error| TrialError::Client { ca: display_subject(ca), reason: words(&error) };
    verified.map(|_| ()).map_err(refused)
}

fn anchors(trusted: &[CertificateDer<'static>]) -> Result<RootCertStore, TrialError> {
    let mut store = RootCertStore::empty();
    for der in trusted {
        store.add(der.clone()).map_err(|error| unfit(der, &error))?;
    }
    Ok(store)
}

fn unfit(ca: &CertificateDer<'_>, reason: &impl std::fmt::Display) -> TrialError {
    TrialError::Anchor { ca: display_subject(ca), reason: reason.to_string() }
}

/// What a refusal says, with what is usually behind it.
fn words(error: &rustls::Error) -> String {
    let said = error.to_string();
    let at = ["PurposeNotCompatible", "InvalidPurpose", "ExtendedKeyUsage", "RequiredEku", "purpose"];
    if at.iter().any(|word| said.contains(word)) {
        format!("{said} (the extended key usages of the CA forbid it)")
    } else if said.contains("NameConstraint") {
        format!("{said} (the name constraints of the CA forbid it)")
    } else {
        said
    }
}

fn now() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(clock::now().wall.as_duration().as_secs()))
}
