//! Devices that ask for a certificate: their requests go to the registry, many in one transaction, and the answers back to
//! their sessions. Whether this gateway could sign makes no difference here: an issuer does (`issuer.rs`), wherever it runs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use doorward_pki::{Request, certificate_to_pem};
use doorward_proto::ids::DeviceId;
use doorward_proto::verdict::Refusal;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Gateway;
use super::mailbox::Renewed;
use super::sessions::Handle;
use crate::clock;
use crate::registry::renewals::{GATHER, MAX_REQUEST_BYTES, NewRequest, Requested};

/// Requests of one transaction.
const AT_ONCE: usize = 32;
/// An issuer's answer is told by the feed; this is for the one that was lost.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// So long a session waits for an issuer. The request itself waits longer.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// When to ask again while no issuer answers, or the registry does not, in seconds.
const ASK_AGAIN: u64 = 300;
/// When to ask again after too many requests, in seconds.
const LIMITED: u64 = 3600;

/// A `renew` that has no answer yet.
#[derive(Debug)]
struct Waiting {
    session: Weak<Handle>,
    reference: u64,
    since: Duration,
    step: Step,
}

impl Waiting {
    /// A newer session of the device may have asked under the same `seq`.
    fn is_of(&self, session: &Arc<Handle>, reference: u64) -> bool {
        self.reference == reference && self.session.as_ptr() == Arc::as_ptr(session)
    }
}

#[derive(Debug)]
enum Step {
    /// As the device wrote it.
    Heard(Box<str>),
    /// In the registry, under this number.
    Filed(i64),
}

/// What devices have asked for here: one request each, so no more than there are sessions.
#[derive(Debug, Default)]
pub(crate) struct Renewing {
    waiting: Mutex<HashMap<DeviceId, Waiting>>,
    news: Notify,
}

impl Renewing {
    fn lock(&self) -> MutexGuard<'_, HashMap<DeviceId, Waiting>> {
        // Each change is one insert or remove.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A device asks in its session. What an older session of it asked has nobody to be answered to.
    pub(crate) fn ask(&self, session: &Arc<Handle>, reference: u64, csr: Box<str>) {
        let waiting = Waiting {
            session: Arc::downgrade(session),
            reference,
            since: clock::now().monotonic,
            step: Step::Heard(csr),
        };
        self.lock().insert(session.device.clone(), waiting);
        self.news.notify_one();
    }

    /// The feed names this device: an issuer may have answered.
    pub(crate) fn changed(&self, device: &DeviceId) {
        if self.lock().contains_key(device) {
            self.news.notify_one();
        }
    }

    /// What is to be put into the registry: each with its session and its text.
    fn heard(&self) -> Vec<(Arc<Handle>, u64, Box<str>)> {
        let mut waiting = self.lock();
        waiting.retain(|_, waiting| waiting.session.strong_count() > 0);
        let heard = waiting.values().filter_map(|waiting| match &waiting.step {
            Step::Heard(csr) => Some((waiting.session.upgrade()?, waiting.reference, csr.clone())),
            Step::Filed(_) => None,
        });
        heard.take(AT_ONCE).collect()
    }

    /// What waits for an issuer, by its number.
    fn filed(&self) -> HashMap<i64, (Arc<Handle>, u64, Duration)> {
        let waiting = self.lock();
        let filed = waiting.values().filter_map(|waiting| match waiting.step {
            Step::Filed(id) => Some((id, (waiting.session.upgrade()?, waiting.reference, waiting.since))),
            Step::Heard(_) => None,
        });
        filed.collect()
    }

    fn is_idle(&self) -> bool {
        self.lock().is_empty()
    }

    fn file(&self, session: &Arc<Handle>, reference: u64, id: i64) {
        if let Some(waiting) = self.lock().get_mut(&session.device)
            && waiting.is_of(session, reference)
        {
            waiting.step = Step::Filed(id);
        }
    }

    /// The session is told, and waits no more.
    fn answer(&self, session: &Arc<Handle>, renewed: Renewed) {
        let mut waiting = self.lock();
        if waiting.get(&session.device).is_some_and(|waiting| waiting.is_of(session, renewed.reference)) {
            waiting.remove(&session.device);
            drop(waiting);
            session.mailbox.put_renewal(renewed);
        }
    }
}

/// Runs until it is stopped. Whoever waits then asks again in the device's next session.
pub(super) async fn run(gateway: Arc<Gateway>, stop: CancellationToken) {
    let work = async {
        loop {
            if gateway.renewals.is_idle() {
                gateway.renewals.news.notified().await;
            } else {
                let _ = tokio::time::timeout(LOOK_EVERY, gateway.renewals.news.notified()).await;
            }
            while file(&gateway).await {
                tokio::time::sleep(GATHER).await;
            }
            look(&gateway).await;
            tokio::time::sleep(GATHER).await;
        }
    };
    tokio::select! {
        () = work => {}
        () = stop.cancelled() => {}
    }
}

/// Puts what was heard into the registry; whether there may be more.
async fn file(gateway: &Gateway) -> bool {
    let mut sessions = Vec::new();
    let mut requests = Vec::new();
    for (session, reference, csr) in gateway.renewals.heard() {
        match read(&csr, &session) {
            Ok(public_key) => {
                requests.push(NewRequest {
                    certificate: session.certificate,
                    public_key,
                    csr: csr.as_bytes().to_vec(),
                    gateway: Arc::clone(&gateway.name),
                });
                sessions.push((session, reference));
            }
            Err(why) => {
                let answer = Err((Refusal::BadMessage, why, None));
                gateway.renewals.answer(&session, Renewed { reference, answer });
            }
        }
    }
    if requests.is_empty() {
        return false;
    }
    let full = requests.len() == AT_ONCE;
    match gateway.registry.request_renewals(&requests).await {
        Ok(outcomes) => {
            for ((session, reference), outcome) in sessions.iter().zip(outcomes) {
                match outcome {
                    Requested::Waiting(id) => {
                        info!(connection = %session.id, device = %session.device, request = id, "the device asks for a new certificate");
                        gateway.renewals.file(session, *reference, id);
                    }
                    decided => tell(gateway, session, *reference, decided),
                }
            }
            gateway.issue_now.notify_one();
            full
        }
        Err(error) => {
            warn!(%error, requests = requests.len(), "requests for certificates cannot be put into the registry");
            for (session, reference) in sessions {
                let words = "the registry does not answer".to_owned();
                let answer = Err((Refusal::Unavailable, words, Some(ASK_AGAIN)));
                gateway.renewals.answer(&session, Renewed { reference, answer });
            }
            false
        }
    }
}

/// The hash of the key that a request is for.
fn read(csr: &str, session: &Handle) -> Result<String, String> {
    if csr.len() > MAX_REQUEST_BYTES {
        return Err(format!("the request has {} bytes; at most {MAX_REQUEST_BYTES} are read", csr.len()));
    }
    let request = Request::parse(csr.as_bytes(), &session.device).map_err(|error| error.to_string())?;
    Ok(request.key_fingerprint().to_string())
}

/// Asks what has become of the requests that wait.
async fn look(gateway: &Gateway) {
    let filed = gateway.renewals.filed();
    if filed.is_empty() {
        return;
    }
    let ids: Vec<i64> = filed.keys().copied().collect();
    let mut outcomes = match gateway.registry.requested(&ids).await {
        Ok(outcomes) => outcomes,
        Err(error) => {
            tracing::debug!(%error, "what has become of requests for certificates is not known");
            HashMap::new()
        }
    };
    let now = clock::now().monotonic;
    for (id, (session, reference, since)) in filed {
        match outcomes.remove(&id) {
            None | Some(Requested::Waiting(_)) => {
                if now.saturating_sub(since) >= ANSWER_WITHIN {
                    let words =
                        "no issuer has answered yet; the request waits on: ask again with the same key"
                            .to_owned();
                    let answer = Err((Refusal::Unavailable, words, Some(ASK_AGAIN)));
                    gateway.renewals.answer(&session, Renewed { reference, answer });
                }
            }
            Some(decided) => tell(gateway, &session, reference, decided),
        }
    }
}

fn tell(gateway: &Gateway, session: &Arc<Handle>, reference: u64, decided: Requested) {
    let (connection, device) = (&session.id, &session.device);
    let answer = match decided {
        Requested::Issued { der, chain, not_after } => {
            info!(%connection, %device, expires = %not_after, "the device has been sent its new certificate");
            Ok((format!("{}{chain}", certificate_to_pem(&der)), clock::numeric(not_after)))
        }
        Requested::Refused(why) => {
            warn!(%connection, %device, %why, "the device gets no new certificate");
            Err((Refusal::Forbidden, why, None))
        }
        Requested::Spent(why) => {
            warn!(%connection, %device, %why, "the device gets no certificate for this key");
            Err((Refusal::BadMessage, why, None))
        }
        Requested::Limited => {
            warn!(%connection, %device, "the device asks for certificates too often");
            let words = "this device has asked for too many certificates today".to_owned();
            Err((Refusal::RateLimited, words, Some(LIMITED)))
        }
        Requested::Waiting(_) => return,
    };
    gateway.renewals.answer(session, Renewed { reference, answer });
}
