//! Keeps the gateway's master keys those of its files, and tells the registry which they are: `pki rewrap` seals no key by one
//! that a gateway does not hold.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::Gateway;
use crate::clock;

/// How often the files are read.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the registry is told though nothing has changed: it may have become an older one, from a backup.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Runs until it is stopped.
pub(super) async fn run(gateway: Arc<Gateway>, stop: CancellationToken) {
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut custody = Custody { gateway, said: None, told: None };
    loop {
        tokio::select! {
            _ = look.tick() => {}
            () = stop.cancelled() => return,
        }
        custody.look().await;
        tokio::select! {
            () = custody.tell() => {}
            () = stop.cancelled() => return,
        }
    }
}

struct Custody {
    gateway: Arc<Gateway>,
    /// Why the files could not be read, if that has been said.
    said: Option<String>,
    /// What the registry was told last, and when on the monotonic clock.
    told: Option<(Vec<String>, Duration)>,
}

impl Custody {
    /// On a thread of its own: the files may be on a disk that is slow or gone.
    async fn look(&mut self) {
        let master = Arc::clone(&self.gateway.granter.master);
        let Ok(looked) = tokio::task::spawn_blocking(move || master.look()).await else { return };
        match looked {
            Ok(changed) => {
                if changed || self.said.is_some() {
                    info!(keys = %self.gateway.granter.master.ids().join(" "), "the master keys are read again");
                }
                self.said = None;
            }
            Err(error) => {
                let why = error.to_string();
                if self.said.as_ref() != Some(&why) {
                    warn!(%error, "the master keys stand as they were");
                }
                self.said = Some(why);
            }
        }
    }

    async fn tell(&mut self) {
        let gateway = &self.gateway;
        let (ids, now) = (gateway.granter.master.ids(), clock::now().monotonic);
        let known =
            self.told.as_ref().is_some_and(|(told, at)| *told == ids && now.saturating_sub(*at) < TELL_EVERY);
        if known || gateway.sight.is_away() {
            return;
        }
        match gateway.registry.note_master_keys(&gateway.name, &gateway.instance, &ids).await {
            Ok(true) => self.told = Some((ids, now)),
            // The follower finds out whose the name is.
            Ok(false) => self.told = None,
            // And says when the registry is away. The next second tries again.
            Err(error) => {
                debug!(%error, "the registry could not be told which master keys this gateway holds")
            }
        }
    }
}
