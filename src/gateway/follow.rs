//! Follows the registry: what changes there changes the sessions that it concerns.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use doorward_proto::close::Close;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::Gateway;
use super::mailbox::Ending;
use super::sessions::Handle;
use crate::clock;
use crate::identity;
use crate::registry::{Change, Position, RegistryError};

/// The longest wait for a wake-up before the feed is read all the same.
const POLL: Duration = Duration::from_millis(500);
/// Between tries while the registry does not answer.
const RETRY: Duration = Duration::from_millis(500);

/// Sessions to be judged again, by name, so that each is judged once.
type Marked = HashMap<Arc<str>, Arc<Handle>>;

/// Follows until it is stopped.
pub(super) async fn run(gateway: Arc<Gateway>, mut position: Position, stop: CancellationToken) {
    let mut marked = Marked::new();
    let mut away = false;
    loop {
        let failed = match look(&gateway, &mut position, &mut marked).await {
            Ok(more) => {
                if std::mem::take(&mut away) {
                    info!("the registry answers again; its changes have been read");
                }
                if more {
                    continue;
                }
                false
            }
            Err(error) => {
                if !std::mem::replace(&mut away, true) {
                    warn!(%error, "the registry does not answer; sessions go on as they are");
                }
                true
            }
        };
        let wait = async {
            if failed || gateway.registry.changed(POLL).await.is_err() {
                tokio::time::sleep(RETRY).await;
            }
        };
        tokio::select! {
            () = wait => {}
            () = gateway.suspects.notified() => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Reads what is new and acts on it. Whether more is waiting.
async fn look(
    gateway: &Gateway,
    position: &mut Position,
    marked: &mut Marked,
) -> Result<bool, RegistryError> {
    let mark = |marked: &mut Marked, handles: Vec<Arc<Handle>>| {
        marked.extend(handles.into_iter().map(|handle| (Arc::clone(&handle.id), handle)));
    };
    let news = gateway.registry.read_changes(position).await?;
    if news.gap {
        warn!(
            "the registry's feed of changes has a gap (pruned, or a restored backup): every session is judged again"
        );
        mark(marked, gateway.sessions.all_changed());
    }
    for change in news.changes {
        match change {
            Change::Device(device) => mark(marked, gateway.sessions.device_changed(&device)),
            Change::Fleet(fleet) => mark(marked, gateway.sessions.fleet_changed(&fleet)),
            Change::Kick(device) => {
                for handle in gateway.sessions.device_changed(&device) {
                    handle.mailbox.put_ending(Ending::now(Close::Kicked));
                }
            }
        }
    }
    let suspects = gateway.sessions.suspects();
    mark(marked, suspects.clone());
    // One that cannot be looked up stays marked, and is looked up again.
    let waiting: Vec<Arc<Handle>> = marked.values().cloned().collect();
    let mut failed = None;
    for handle in waiting {
        // Each for itself: what one row holds keeps no other from being judged.
        match judge_again(gateway, &handle).await {
            Ok(()) => {}
            Err(RegistryError::Corrupt(why)) => {
                error!(connection = %handle.id, device = %handle.device, %why, "the device's record cannot be read; its session ends");
                handle.mailbox.put_ending(Ending::now(Close::Internal));
            }
            Err(error) => {
                failed = Some(error);
                continue;
            }
        }
        marked.remove(&handle.id);
    }
    if let Some(error) = failed {
        // Not forgotten: the next look begins with them.
        suspects.iter().for_each(|suspect| suspect.suspect.store(true, Ordering::SeqCst));
        return Err(error);
    }
    for handle in suspects {
        // The registry lets the device in, but another session is its newest: on another gateway.
        handle.mailbox.put_ending(Ending::now(Close::Superseded));
    }
    Ok(news.more)
}

async fn judge_again(gateway: &Gateway, handle: &Handle) -> Result<(), RegistryError> {
    let mut record = gateway.registry.look_up(&handle.certificate).await?;
    let now = clock::now().wall;
    if let Some(record) = &mut record {
        record.end_by(handle.certificate_ends);
        handle.moved_to(&record.fleet);
    }
    let judged = match &record {
        // The certificate's row is gone, or another device's: nothing lets this session be.
        None => Err(Close::Suspended),
        Some(record) if record.device != handle.device => Err(Close::Suspended),
        Some(record) => identity::judge_record(record, now)
            .and_then(|()| gateway.granter.grant(record, handle.key, now))
            .map_err(|denied| denied.problem.close()),
    };
    match judged {
        Ok(grant) => handle.mailbox.put_grant(grant),
        Err(close) => handle.mailbox.put_ending(Ending::now(close)),
    }
    Ok(())
}
