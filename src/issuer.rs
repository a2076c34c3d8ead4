//! Who signs. An issuer takes the requests that gateways have put into the registry, judges each against its device's
//! record, and signs: beside a gateway that has the issuing key in its home, or on a host of its own
//! (`doorward issuer run`). A gateway without the key can neither sign nor be made to.

use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use doorward_pki::{Authority, IssueError, Leaf, Request, Serial};
use doorward_proto::limits::FleetLimits;
use rcgen::PublicKeyData as _;
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::config::CertificatesSection;
use crate::registry::renewals::{Decision, GATHER, WaitingRequest};
use crate::registry::{CertificateStatus, DeviceStatus, NewCertificate, Registry, RegistryError};
use crate::{clock, entropy};

/// Requests that are answered in one transaction.
const AT_ONCE: u32 = 32;
/// Requests of other gateways wait at most so long to be seen.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Between tries while the registry does not answer or nothing can be signed; the longest, too.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The CA that signs now, and what keeps it from being taken away: asked before each batch, since an operator may replace it,
/// and held until that is recorded. The error is in words.
pub type Signer = Box<dyn FnMut() -> Result<(Arc<Authority>, Option<File>), String> + Send>;

/// What a certificate is like, and who may still renew: asked before each batch, since a configuration may change.
pub type Rules = Box<dyn FnMut() -> CertificatesSection + Send>;

/// What an issuer goes by.
pub struct By {
    /// The CA.
    pub signer: Signer,
    /// What a certificate is like.
    pub rules: Rules,
}

/// An issuer at work.
pub struct Issuer {
    /// Where the requests are.
    pub registry: Arc<dyn Registry>,
    /// What signs, and what a certificate is like. They read files, and a passphrase is slow by intention: never on a thread
    /// that serves sessions.
    pub by: Arc<Mutex<By>>,
    /// Told when there may be a request.
    pub news: Arc<Notify>,
}

/// Why a look at the requests came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The CA, or the operating system's random bytes.
    #[error("nothing can be signed: {0}")]
    Signer(String),
}

impl Issuer {
    /// Answers requests until it is stopped. Failures are said once, and tried again.
    ///
    /// # Errors
    /// [`RegistryError::Forbidden`] where the database role may not record certificates: another try would change nothing.
    pub async fn run(self, stop: CancellationToken) -> Result<(), RegistryError> {
        let mut wait = LOOK_EVERY;
        // After a batch or a failure its wait comes first.
        let mut idle = true;
        let mut said: Option<String> = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = self.news.notified(), if idle => {}
                () = tokio::time::sleep(wait) => {}
            }
            match self.answer().await {
                Ok(answered) => {
                    if said.take().is_some() {
                        info!("requests for certificates are answered again");
                    }
                    idle = !answered;
                    wait = if answered { GATHER } else { LOOK_EVERY };
                }
                Err(IssuerError::Registry(error @ RegistryError::Forbidden(_))) => return Err(error),
                Err(error) => {
                    let words = error.to_string();
                    if said.as_ref() != Some(&words) {
                        warn!(%error, "requests for certificates wait");
                        said = Some(words);
                    }
                    idle = false;
                    wait = (wait * 2).clamp(RETRY.0, RETRY.1);
                }
            }
        }
    }

    /// Answers the oldest requests; whether there was one.
    ///
    /// # Errors
    /// [`IssuerError`]: the requests wait on.
    pub async fn answer(&self) -> Result<bool, IssuerError> {
        let mut requests = self.registry.waiting_requests(AT_ONCE).await?;
        // Each device is locked, and in this order by everybody: so that they wait for each other and never deadlock.
        requests.sort_by(|a, b| a.device.cmp(&b.device));
        if requests.is_empty() {
            return Ok(false);
        }
        // A clock that has stepped back: what it dates would be wrong for a year.
        clock::check().map_err(|error| IssuerError::Signer(error.to_string()))?;
        let by = Arc::clone(&self.by);
        let judged = tokio::task::spawn_blocking(move || {
            // One look at a time asks it; what a panic has left is read anew.
            let mut by = by.lock().unwrap_or_else(PoisonError::into_inner);
            let (authority, held) = (by.signer)().map_err(IssuerError::Signer)?;
            let rules = (by.rules)();
            let decide = |request: &WaitingRequest| Ok((request.id, decide(request, &authority, &rules)?));
            let decisions: Result<Vec<_>, IssuerError> = requests.iter().map(decide).collect();
            decisions.map(|decisions| (requests, decisions, held))
        });
        let (requests, decisions, held) =
            judged.await.map_err(|error| IssuerError::Signer(error.to_string()))??;
        let outcomes = self.registry.decide_requests(&decisions).await?;
        drop(held);
        let mut impossible = Vec::new();
        for ((request, (id, decision)), outcome) in requests.iter().zip(&decisions).zip(outcomes) {
            let (device, gateway) = (&request.device, &request.gateway);
            match (decision, outcome) {
                (Decision::Issue { certificate, .. }, None) => {
                    info!(%device, %gateway, request = id, serial = %certificate.serial, expires = %certificate.not_after, "certificate issued");
                }
                (Decision::Refuse(why) | Decision::RefuseKey(why), None) => {
                    warn!(%device, %gateway, request = id, %why, "request for a certificate refused");
                }
                (Decision::Issue { .. }, Some(why)) => impossible.push((*id, Decision::Refuse(why))),
                // Answered by another issuer, or asked anew.
                (Decision::Refuse(_) | Decision::RefuseKey(_), Some(_)) => {}
            }
        }
        if !impossible.is_empty() {
            // What has changed since it was judged: said to the device, or it would be judged for ever.
            self.registry.decide_requests(&impossible).await?;
        }
        Ok(true)
    }
}

/// Judges a request, and signs.
fn decide(
    request: &WaitingRequest,
    authority: &Authority,
    rules: &CertificatesSection,
) -> Result<Decision, IssuerError> {
    let now = clock::utc();
    let csr = match judge(request, rules.renew_after_expiry.0, now) {
        Ok(csr) => csr,
        Err(refusal) => return Ok(refusal),
    };
    let serial = entropy::random().map_err(|error| IssuerError::Signer(error.to_string()))?;
    let lifetime = time::Duration::try_from(rules.lifetime.0).unwrap_or(time::Duration::days(365));
    let issued = authority.issue_device(&request.device, &csr, Serial::from_random(serial), now, lifetime);
    match issued {
        Ok(certificate) => Ok(Decision::Issue {
            chain: authority.certificate_pem().into(),
            grace: rules.grace.0,
            certificate: Box::new(NewCertificate {
                fingerprint: certificate.fingerprint,
                serial: certificate.serial.to_string(),
                issuer: authority.key_id().to_owned(),
                der: certificate.der,
                not_before: certificate.not_before,
                not_after: certificate.not_after,
            }),
        }),
        // The device's own doing; whatever else it is, another request would fare no better.
        Err(error @ IssueError::KeyKind(_)) => Ok(Decision::RefuseKey(error.to_string())),
        Err(error) => {
            error!(%error, "the issuing CA cannot sign");
            Err(IssuerError::Signer(error.to_string()))
        }
    }
}

/// What the registry's record says to a request; the refusal is for the device and the operator.
fn judge(request: &WaitingRequest, late: Duration, now: OffsetDateTime) -> Result<Request, Decision> {
    judge_record(request, late, now).map_err(Decision::Refuse)?;
    let device = &request.device;
    let csr = Request::parse(&request.csr, device).map_err(|error| Decision::RefuseKey(error.to_string()))?;
    if csr.key_fingerprint().to_string() != request.public_key {
        return Err(Decision::Refuse("the request is for another key than its gateway says".to_owned()));
    }
    let has_key = |der: &Vec<u8>| Leaf::parse(der).is_ok_and(|leaf| leaf.public_key() == csr.der_bytes());
    if request.certificates.iter().any(has_key) {
        let why = "its key is that of a certificate that the device has had already; make a new one";
        return Err(Decision::RefuseKey(why.to_owned()));
    }
    Ok(csr)
}

fn judge_record(request: &WaitingRequest, late: Duration, now: OffsetDateTime) -> Result<(), String> {
    let device = &request.device;
    match request.status {
        DeviceStatus::Active => {}
        DeviceStatus::Suspended => return Err(format!("device '{device}' is suspended")),
        DeviceStatus::Revoked => return Err(format!("device '{device}' is revoked")),
    }
    let (status, valid_until, not_after) = request.renews;
    let holds = match status {
        CertificateStatus::Active => true,
        CertificateStatus::Superseded => valid_until.is_some_and(|until| until > now),
        CertificateStatus::Revoked => false,
    };
    if !holds {
        return Err("the certificate that it renews does not hold any more".to_owned());
    }
    let limits = FleetLimits::parse(&request.limits)
        .map_err(|error| format!("the limits of fleet '{}' cannot be read: {error}", request.fleet))?;
    let late = limits.renew_after_expiry.map_or(late, |seconds| Duration::from_secs(seconds.into()));
    if now >= not_after.saturating_add(time::Duration::try_from(late).unwrap_or(time::Duration::ZERO)) {
        return Err(format!("the certificate that it renews expired on {not_after}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
