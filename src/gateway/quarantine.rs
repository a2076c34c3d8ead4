//! Suspends devices for what they send, where `[quarantine]` says so; and ends what is over.
//!
//! What counts is said inside a device's own TLS session, and by default only after the session has shown the device's key,
//! too: nobody who holds less than both can have an honest device suspended. The registry decides: a gateway's role can
//! suspend an active device and nothing more, and the session ends as for anybody else's act, by the feed.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use doorward_proto::ids::DeviceId;
use doorward_proto::verdict::Refusal;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Gateway;
use super::events::Event;
use super::sessions::Handle;
use crate::clock;
use crate::config::{QuarantineMode, QuarantineSection};
use crate::fold::{Kind, Sample};
use crate::metrics::quarantine::Counters;
use crate::registry::{EventKind, RegistryError};

/// How often it is asked whose quarantine is over.
const END_EVERY: Duration = Duration::from_secs(5);
/// Between tries while the registry does not answer.
const RETRY: Duration = Duration::from_secs(1);

/// What counts, each for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offence {
    /// A signature that does not fit, or somebody else's name under one that does.
    Forged,
    /// A message of another session, or one that came before.
    Replayed,
    /// What the policy denies.
    Forbidden,
}

impl Offence {
    pub(crate) const ALL: [Self; 3] = [Self::Forged, Self::Replayed, Self::Forbidden];

    /// What a refusal counts as. A message that is malformed or stale, or a key version that has had its time, is what a
    /// device with old firmware or a bad clock sends.
    pub(crate) const fn of(refusal: Refusal) -> Option<Self> {
        match refusal {
            Refusal::BadSignature | Refusal::WrongParty => Some(Self::Forged),
            Refusal::WrongSession | Refusal::Replayed => Some(Self::Replayed),
            Refusal::Forbidden => Some(Self::Forbidden),
            Refusal::BadEnvelope
            | Refusal::BadKey
            | Refusal::BadMessage
            | Refusal::Stale
            | Refusal::RateLimited
            | Refusal::Unavailable => None,
        }
    }

    const fn words(self) -> &'static str {
        match self {
            Self::Forged => "forged",
            Self::Replayed => "replayed",
            Self::Forbidden => "forbidden",
        }
    }

    /// How many are too many; zero: it is not counted.
    const fn most(self, section: &QuarantineSection) -> usize {
        match self {
            Self::Forged => section.forged,
            Self::Replayed => section.replayed,
            Self::Forbidden => section.forbidden,
        }
    }
}

/// Devices to suspend, until the registry has heard: one entry a device that is or was here.
#[derive(Debug, Default)]
pub(crate) struct Quarantines {
    waiting: Mutex<HashMap<DeviceId, (String, Option<Duration>)>>,
    news: Notify,
    pub(crate) counters: Counters,
}

impl Quarantines {
    fn lock(&self) -> MutexGuard<'_, HashMap<DeviceId, (String, Option<Duration>)>> {
        // Each change is one insert or remove.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn devices(&self) -> Vec<DeviceId> {
        self.lock().keys().cloned().collect()
    }
}

impl Gateway {
    /// A message of this session was refused.
    pub(crate) fn offended(
        &self,
        section: &QuarantineSection,
        handle: &Handle,
        peer: SocketAddr,
        proven: bool,
        refusal: Refusal,
    ) {
        let Some(offence) = Offence::of(refusal) else { return };
        let most = offence.most(section);
        if section.mode == QuarantineMode::Off || most == 0 || !(proven || section.unproven) {
            return;
        }
        let many = handle.spent.offend(offence, section.window.0, clock::now().monotonic);
        match section.mode {
            QuarantineMode::On if many >= most => {
                handle.spent.forgive();
                self.begin(section, handle, peer, offence, most);
            }
            // Once in a window: what is not suspended goes on.
            QuarantineMode::DryRun if many == most => self.begin(section, handle, peer, offence, most),
            _ => {}
        }
    }

    fn begin(
        &self,
        section: &QuarantineSection,
        handle: &Handle,
        peer: SocketAddr,
        offence: Offence,
        most: usize,
    ) {
        let device = &handle.device;
        let sample = || Sample::new(&handle.id, peer, device.as_str());
        let may_say = self.folds.may_say(&self.counters, Kind::Quarantine, offence.words(), sample);
        let lasts = Some(section.lasts.0).filter(|lasts| !lasts.is_zero());
        let what = format!(
            "{most} {} messages within {}",
            offence.words(),
            humantime::format_duration(section.window.0)
        );
        let lasting = match lasts {
            Some(lasts) => format!("for {}", humantime::format_duration(lasts)),
            None => "until it is resumed".to_owned(),
        };
        let detail = if section.mode == QuarantineMode::On {
            let reason = format!("quarantine {lasting}: {what}");
            if self.quarantines.lock().insert(device.clone(), (reason, lasts)).is_some() {
                // Said already: the registry is away, and has still to hear of it.
                return;
            }
            self.quarantines.news.notify_one();
            if may_say {
                warn!(connection = %handle.id, %device, %peer, "{what}: the device is suspended {lasting}");
            }
            format!("{what}: suspended {lasting}")
        } else {
            self.quarantines.counters.would_have.fetch_add(1, Ordering::Relaxed);
            if may_say {
                warn!(connection = %handle.id, %device, %peer, "{what}: the device would be suspended {lasting}, but quarantine.mode is dry-run");
            }
            format!("dry run: {what}: would have been suspended {lasting}")
        };
        self.note(Event {
            kind: EventKind::Quarantine,
            device: Some(device),
            reason: offence.words(),
            peer: &peer,
            detail: &detail,
        });
    }

    /// What quarantine has come to since the start.
    pub fn quarantine_totals(&self) -> crate::metrics::QuarantineTotals {
        self.quarantines.counters.totals()
    }
}

/// Runs until it is stopped. Quarantines of gateways that are gone end here, too.
pub(super) async fn run(gateway: Arc<Gateway>, stop: CancellationToken) {
    let mut end = tokio::time::interval(END_EVERY);
    end.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut complained = false;
    let working = async {
        loop {
            tokio::select! {
                () = gateway.quarantines.news.notified() => suspend_all(&gateway).await,
                _ = end.tick() => match gateway.registry.end_quarantines().await {
                    Ok(resumed) => {
                        complained = false;
                        if resumed > 0 {
                            gateway.quarantines.counters.resumed.fetch_add(resumed, Ordering::Relaxed);
                            info!(devices = resumed, "their quarantine is over: resumed");
                        }
                    }
                    // Said where it is found out, by whoever follows the registry.
                    Err(RegistryError::Unavailable(_) | RegistryError::Unknown(_)) => {}
                    Err(error) => if !std::mem::replace(&mut complained, true) {
                        warn!(%error, "devices whose quarantine is over cannot be resumed");
                    },
                },
            }
        }
    };
    tokio::select! {
        () = working => {}
        () = stop.cancelled() => {}
    }
}

/// Each of them once: one whose row somebody holds, or a registry that is away, keeps nobody else waiting.
async fn suspend_all(gateway: &Gateway) {
    let mut again = false;
    for device in gateway.quarantines.devices() {
        let Some((reason, lasts)) = gateway.quarantines.lock().get(&device).cloned() else { continue };
        // It may have been switched off while the registry was away.
        if gateway.live().config.quarantine.mode == QuarantineMode::On {
            match gateway.registry.quarantine(&device, &gateway.name, &reason, lasts).await {
                Ok(true) => {
                    gateway.quarantines.counters.suspended.fetch_add(1, Ordering::Relaxed);
                }
                // Suspended or revoked already, by somebody whose word counts more.
                Ok(false) => {}
                Err(RegistryError::Unavailable(_) | RegistryError::Unknown(_)) => {
                    again = true;
                    continue;
                }
                Err(error) => warn!(%device, %error, "the device is not suspended, though it should be"),
            }
        }
        gateway.quarantines.lock().remove(&device);
    }
    if again {
        tokio::time::sleep(RETRY).await;
        gateway.quarantines.news.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_honest_device_may_be_refused_for_is_no_offence() {
        let counted = Refusal::ALL.into_iter().filter(|refusal| Offence::of(*refusal).is_some());
        let counted: Vec<&str> = counted.map(Refusal::as_str).collect();
        assert_eq!(counted, ["bad_signature", "wrong_party", "wrong_session", "replayed", "forbidden"]);
    }
}
