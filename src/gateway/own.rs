//! What ends by and by: the gateway's own certificate, which it renews where it can; device CAs and revocation lists, of
//! which it warns.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use doorward_pki::Authority;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{Gateway, Live};
use crate::metrics::Expiries;
use crate::own_certificate::Pair;
use crate::{clock, home};

/// How often the dates are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How often a renewal that failed is tried again.
const TRY_EVERY: Duration = Duration::from_secs(3600);
/// How often the same is said.
const SAY_EVERY: Duration = Duration::from_secs(24 * 3600);

/// Loads the CA that signs the gateway's own certificate, each time anew: its key stays in memory no longer than it signs.
pub type Signer = Box<dyn Fn() -> Result<Authority, String> + Send + Sync>;

/// What was said and tried when, on the monotonic clock.
#[derive(Debug, Default)]
pub(super) struct Upcoming {
    said: HashMap<String, Duration>,
    tried: Option<Duration>,
}

impl Upcoming {
    /// Whether it is time to say something. What is not said for long is forgotten: it is bounded by CAs and lists.
    fn may_say(&mut self, what: &str, now: Duration) -> bool {
        self.said.retain(|_, said| now.saturating_sub(*said) < SAY_EVERY);
        if self.said.contains_key(what) {
            return false;
        }
        self.said.insert(what.to_owned(), now);
        true
    }
}

/// Runs until it is stopped.
pub(super) async fn run(gateway: Arc<Gateway>, stop: CancellationToken) {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    let looking = async {
        loop {
            looks.tick().await;
            gateway.look_at_dates().await;
        }
    };
    tokio::select! {
        () = looking => {}
        () = stop.cancelled() => {}
    }
}

impl Gateway {
    /// Who signs the gateway's own certificate, where this home can.
    pub fn set_signer(&self, signer: Signer) {
        // The first one stays: there is one home.
        let _ = self.signer.set(Arc::new(signer));
    }

    /// How long what ends has still to go.
    pub fn expiries(&self) -> Expiries {
        let (live, now) = (self.live(), clock::utc().unix_timestamp());
        let mut soonest: Option<i64> = None;
        self.sessions.each_proven(|handle| {
            let end = handle.certificate_ends.unix_timestamp();
            soonest = Some(soonest.map_or(end, |soonest| soonest.min(end)));
        });
        Expiries {
            server_certificate: live.tls.own_facts.not_after - now,
            device_cas: live.trust().cas.iter().map(|ca| (ca.name(), ca.facts.not_after() - now)).collect(),
            revocation_lists: live
                .trust()
                .lists
                .iter()
                .map(|one| (one.list.issuer_name.clone(), one.list.next_update - now))
                .collect(),
            session_certificates: soonest.map(|end| end - now),
        }
    }

    /// Renews the gateway's certificate where it is time and this home can; says what is about to end and who mends it.
    pub async fn look_at_dates(&self) {
        if !self.clock_is_right() {
            return;
        }
        let live = self.live();
        let now = clock::utc().unix_timestamp();
        let own = &live.tls.own_facts;
        if now < own.not_before && self.upcoming.lock().await.may_say("own early", clock::now().monotonic) {
            error!(
                from = clock::rfc3339(own.not_before),
                "the gateway's own certificate is not valid yet: devices refuse this gateway. It was made by a clock that ran ahead, or this one is behind"
            );
        }
        if now >= own.renew_from() || now < own.not_before {
            self.renew_own(&live, now).await;
        }
        let live = self.live();
        let monotonic = clock::now().monotonic;
        let mut upcoming = self.upcoming.lock().await;
        let expiries = self.expiries();
        for ca in &live.trust().cas {
            let left = ca.facts.not_after() - now;
            // Of two CAs of one name each is told.
            let (subject, key_id) = (ca.name(), ca.facts.key_id().unwrap_or("-"));
            let ends_soon = left < home::CA_ENDS_SOON.whole_seconds();
            if !ends_soon || !upcoming.may_say(&format!("ca {:?}", ca.facts.id()), monotonic) {
                continue;
            }
            if left < 0 {
                warn!(%subject, key_id, %expiries, "this device CA has expired, and the devices below it are refused in TLS");
            } else {
                let days = left / 86_400;
                warn!(%subject, key_id, days, %expiries, "this device CA ends soon, and the devices below it with it; 'doorward pki rollover begin' makes another");
            }
        }
        for one in &live.trust().lists {
            let (name, end) = (&one.list.issuer_name, one.list.next_update);
            if end <= now && upcoming.may_say(&format!("list {:?}", one.list.issuer), monotonic) {
                warn!(
                    issuer = name, file = %one.path.display(), ended = clock::rfc3339(end), %expiries,
                    "a revocation list has ended: it still counts, but what was revoked since is not known; fetch the newer one"
                );
            }
        }
    }

    async fn renew_own(&self, live: &Live, now: i64) {
        let monotonic = clock::now().monotonic;
        let mut upcoming = self.upcoming.lock().await;
        let waits = upcoming.tried.is_some_and(|tried| monotonic.saturating_sub(tried) < TRY_EVERY);
        if waits {
            return;
        }
        upcoming.tried = Some(monotonic);
        let renewed = match self.signer.get().map(Arc::clone) {
            Some(signer) => {
                let (pair, home) = (Pair::of(&live.config.tls, &self.home), self.home.clone());
                let renewing = move || {
                    let authority = signer()?;
                    pair.renew(&home, &authority, &[]).map_err(|error| error.to_string())
                };
                // The passphrase is slow by intention.
                tokio::task::spawn_blocking(renewing).await.unwrap_or_else(|error| Err(error.to_string()))
            }
            None => Err("this gateway was given no key to sign with".to_owned()),
        };
        let reason = match renewed {
            Ok(renewed) => match self.reload().await {
                Ok(_) => {
                    upcoming.tried = None;
                    let until = clock::rfc3339(renewed.not_after);
                    info!(
                        until,
                        "the gateway's own certificate is renewed, with a new key, for the next handshake"
                    );
                    return;
                }
                // It is written, and taken as soon as what else is wrong is mended.
                Err(error) => format!("it is written, and not taken: {error}"),
            },
            Err(reason) => reason,
        };
        if !upcoming.may_say("own", monotonic) {
            return;
        }
        let end = live.tls.own_facts.not_after;
        let (ends, mend) = (
            clock::rfc3339(end),
            "run 'doorward gateway renew-cert' where the issuing key is (for another host with --out), or put a new pair where tls.certificate and tls.key say",
        );
        if end < now {
            error!(
                ended = ends,
                reason, mend, expiries = %self.expiries(), "the gateway's own certificate has expired: devices refuse this gateway"
            );
        } else {
            warn!(
                ends,
                reason, mend, expiries = %self.expiries(), "the gateway's own certificate is to be renewed, and cannot be from here"
            );
        }
    }
}
