//! What a gateway does now and then: who was heard when, and what is too old to keep.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use doorward_proto::time::NumericDate;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::Gateway;
use crate::clock;
use crate::registry::RegistryError;

/// How often `last_seen` is written.
pub(crate) const SEEN_EVERY: Duration = Duration::from_secs(30);
/// How often old rows are looked for.
const PRUNE_EVERY: Duration = Duration::from_secs(60);
/// Rows of one deletion: small, so that the store is never kept waiting for long.
const PRUNE_ROWS: u32 = 500;
/// Between deletions.
const PRUNE_PAUSE: Duration = Duration::from_millis(20);
/// Events and changes are kept at least as long: who looks into what happened comes later than who reads a sensor.
const KEEP_HISTORY: Duration = Duration::from_secs(7 * 24 * 3600);
/// Deletions at a time: what is left is for the next time.
const PRUNE_ROUNDS: u32 = 1000;

/// Runs until it is stopped.
pub(super) async fn run(gateway: Arc<Gateway>, stop: CancellationToken) {
    let mut seen = tokio::time::interval(SEEN_EVERY);
    let mut prune = tokio::time::interval(PRUNE_EVERY);
    loop {
        tokio::select! {
            _ = seen.tick() => {
                note_seen(&gateway);
                gateway.sessions.sweep(clock::now().monotonic);
            }
            _ = prune.tick() => tokio::select! {
                pruned = prune_old(&gateway) => if let Err(error) = pruned {
                    warn!(%error, "old rows could not be deleted; the next try is in a minute");
                },
                () = stop.cancelled() => return,
            },
            () = stop.cancelled() => return,
        }
    }
}

fn note_seen(gateway: &Gateway) {
    let proven = gateway.sessions.proven();
    gateway.sink.seen(proven.iter().map(|handle| {
        let millis = u64::try_from(handle.heard_ms.load(Ordering::Relaxed)).unwrap_or(0);
        let at = clock::date(NumericDate::since_epoch(Duration::from_millis(millis)));
        (handle.device.clone(), Arc::clone(&handle.id), at)
    }));
}

async fn prune_old(gateway: &Gateway) -> Result<(), RegistryError> {
    let keep = gateway.live().config.messages.keep.0;
    let before: OffsetDateTime = clock::utc() - keep;
    let history_before: OffsetDateTime = clock::utc() - keep.max(KEEP_HISTORY);
    let mut deleted = 0;
    for _ in 0..PRUNE_ROUNDS {
        let messages = gateway.registry.prune_messages(before, PRUNE_ROWS).await?;
        let history = gateway.registry.prune_history(history_before, PRUNE_ROWS).await?;
        deleted += messages + history;
        if messages < u64::from(PRUNE_ROWS) && history < u64::from(PRUNE_ROWS) {
            break;
        }
        tokio::time::sleep(PRUNE_PAUSE).await;
    }
    if deleted > 0 {
        debug!(rows = deleted, "old rows deleted");
    }
    Ok(())
}
