//! Looks whether the configuration or a file that it names has changed, and has it read again once it has come to rest.
//!
//! Looked at by stat every second: that needs no kernel interface that a container or a network file system may lack, and
//! sees a link that was turned to another file as well as a file that was written over.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Gateway;
use crate::stamp::Stamp;

/// Between looks. What has changed is read when it has not changed since the look before.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A state that cannot be used is said to be so when it has lasted for so many looks: a certificate and its key are two
/// files, and are written one after the other.
const MEND_WITHIN: u32 = 3;

/// Files as they were. Of one that is not there, that is what is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Stamps(BTreeMap<PathBuf, Option<Stamp>>);

impl Stamps {
    /// Looks at more files.
    pub(super) fn add(&mut self, paths: &BTreeSet<PathBuf>) {
        for path in paths {
            self.0.entry(path.clone()).or_insert_with_key(|path| Stamp::of(path));
        }
    }

    /// The same files as they are now.
    fn again(&self) -> Self {
        Self(self.0.keys().map(|path| (path.clone(), Stamp::of(path))).collect())
    }
}

/// Files as they are.
pub(super) fn stamps(paths: &BTreeSet<PathBuf>) -> Stamps {
    let mut stamps = Stamps::default();
    stamps.add(paths);
    stamps
}

/// Runs until it is stopped.
pub(super) async fn run(gateway: Arc<Gateway>, stop: CancellationToken) {
    // At any point: a file that is not to be had is no reason to stay.
    tokio::select! {
        () = look(&gateway) => {}
        () = stop.cancelled() => {}
    }
}

async fn look(gateway: &Gateway) {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last = None;
    // Looks at which what has come to rest could not be used.
    let mut broken = 0;
    let mut stuck = false;
    loop {
        looks.tick().await;
        gateway.look_at_clock();
        let taken = gateway.looked_at.lock().await.stamps.clone();
        let again = taken.clone();
        let now = match gateway.reading.take(move || again.again()).await {
            Ok(now) => now,
            Err(error) => {
                if !std::mem::replace(&mut stuck, true) {
                    warn!(%error, "configuration and certificates stand as they were until their files can be looked at");
                }
                continue;
            }
        };
        if std::mem::take(&mut stuck) {
            info!("the files of the configuration can be looked at again");
        }
        let rests = last.replace(now.clone()).is_none_or(|last| last == now);
        if !rests {
            broken = 0;
            continue;
        }
        if now == taken && !(1..MEND_WITHIN).contains(&broken) {
            continue;
        }
        if now != taken {
            broken = 0;
        }
        broken = if gateway.files_changed(broken + 1 == MEND_WITHIN).await { 0 } else { broken + 1 };
        // It may have been the first look at files that are named only now.
        last = Some(gateway.looked_at.lock().await.stamps.clone());
    }
}
