//! Follows the registry: what changes there changes the sessions that it concerns, and the registry is told once it has.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use doorward_proto::close::Close;
use futures_util::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::Gateway;
use super::mailbox::Ending;
use super::sessions::Handle;
use crate::clock;
use crate::identity;
use crate::registry::{Applied, Change, Position, QUERY_DEADLINE, RegistryError};

/// The longest wait for a wake-up before the feed is read all the same: what a lost wake-up costs.
const POLL: Duration = Duration::from_millis(500);
/// Between tries while the registry does not answer.
const RETRY: Duration = Duration::from_millis(500);
/// How often a gateway that has nothing to confirm says that it lives.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// Sessions judged at once. Fewer than the registry's connections: admissions go on meanwhile.
const JUDGED_AT_ONCE: usize = 4;
/// A confirmation waits this long for the sessions that end. They process nothing more either way.
const GONE_WITHIN: Duration = Duration::from_secs(1);
/// What may pass between the last report and the moment at which the gateway knows that it is cut off.
const MARGIN: Duration = Duration::from_secs(REPORT_EVERY.as_secs() + 3 * QUERY_DEADLINE.as_secs());

/// How long a gateway may serve after its last report, whatever happens.
pub(super) fn may_serve(max_staleness: Duration) -> Duration {
    max_staleness + MARGIN
}

/// Sessions to be judged again, by name, so that each is judged once.
type Marked = HashMap<Arc<str>, Arc<Handle>>;

struct Follower {
    gateway: Arc<Gateway>,
    position: Position,
    marked: Marked,
    /// When the last report that arrived was begun, on the monotonic clock: until then everything was known.
    known_at: Duration,
    /// What has taken effect has not been reported.
    due: bool,
    /// A transaction may be under way that was begun before a session's end was decided.
    unsettled: bool,
    away: bool,
}

/// Follows until it is stopped, or until another gateway has taken the name: then `lost` is cancelled.
pub(super) async fn run(
    gateway: Arc<Gateway>,
    position: Position,
    stop: CancellationToken,
    lost: CancellationToken,
) {
    let mut follower = Follower {
        gateway,
        position,
        marked: Marked::new(),
        known_at: clock::now().monotonic,
        due: true,
        unsettled: false,
        away: false,
    };
    loop {
        let looked = tokio::select! {
            looked = follower.look() => looked,
            () = stop.cancelled() => return,
        };
        let failed = match looked {
            Ok(Looked::More) => continue,
            Ok(Looked::End) => {
                follower.back();
                false
            }
            Ok(Looked::NameLost) => {
                error!(
                    gateway = %follower.gateway.settings.gateway,
                    "another gateway has taken this name in the registry; give each its own gateway.name"
                );
                lost.cancel();
                return;
            }
            Err(error) => {
                follower.cut_off(&error);
                true
            }
        };
        let wait = async {
            if failed || follower.gateway.registry.changed(POLL).await.is_err() {
                tokio::time::sleep(RETRY).await;
            }
        };
        tokio::select! {
            () = wait => {}
            () = follower.gateway.suspects.notified() => {}
            () = stop.cancelled() => return,
        }
    }
}

enum Looked {
    /// More is waiting.
    More,
    /// All that there is has taken effect.
    End,
    /// The name is another's.
    NameLost,
}

impl Follower {
    /// Reads what is new, acts on it, and reports that it has.
    async fn look(&mut self) -> Result<Looked, RegistryError> {
        let began = clock::now().monotonic;
        let gateway = Arc::clone(&self.gateway);
        let news = gateway.registry.read_changes(&mut self.position).await?;
        self.due |= news.gap || !news.changes.is_empty();
        if news.gap {
            warn!(
                "the registry's feed of changes has a gap (pruned, or a restored backup): every session is judged again"
            );
            self.mark(gateway.sessions.all_changed());
        }
        let mut ended = Vec::new();
        for change in news.changes {
            match change {
                Change::Device(device) => self.mark(gateway.sessions.device_changed(&device)),
                Change::Fleet(fleet) => self.mark(gateway.sessions.fleet_changed(&fleet)),
                Change::Takeover { device, session } => {
                    // Unlike the others it says nothing new to an admission.
                    if let Some(handle) = gateway.sessions.find(&device, &session) {
                        handle.mailbox.put_ending(Ending::now(Close::Superseded));
                        ended.push(handle);
                    }
                }
                Change::Kick(device) => {
                    for handle in gateway.sessions.device_changed(&device) {
                        handle.mailbox.put_ending(Ending::now(Close::Kicked));
                        ended.push(handle);
                    }
                }
            }
        }
        let suspects = gateway.sessions.suspects();
        self.mark(suspects.clone());
        if let Err(error) = self.judge(&mut ended).await {
            // Not forgotten: the next look begins with them.
            suspects.iter().for_each(|suspect| suspect.suspect.store(true, Ordering::SeqCst));
            return Err(error);
        }
        for handle in suspects {
            // The registry lets the device in, but another session is its newest: on another gateway.
            handle.mailbox.put_ending(Ending::now(Close::Superseded));
        }
        if news.more {
            return Ok(Looked::More);
        }
        gateway.sessions.gone(&ended, GONE_WITHIN).await;
        self.due |= began.saturating_sub(self.known_at) >= REPORT_EVERY;
        // Messages of theirs may be in a transaction that began before the act was committed: nothing is confirmed until
        // that has ended.
        self.unsettled |= !ended.is_empty();
        if self.due && (!self.unsettled || gateway.sink.settled(GONE_WITHIN).await) {
            self.unsettled = false;
            return self.report(&news.applied, began).await;
        }
        Ok(Looked::End)
    }

    fn mark(&mut self, handles: Vec<Arc<Handle>>) {
        self.marked.extend(handles.into_iter().map(|handle| (Arc::clone(&handle.id), handle)));
    }

    /// Judges every marked session, each for itself: what one row holds keeps no other from being judged. One that cannot
    /// be looked up stays marked, and is looked up again.
    async fn judge(&mut self, ended: &mut Vec<Arc<Handle>>) -> Result<(), RegistryError> {
        let gateway = &self.gateway;
        let waiting: Vec<Arc<Handle>> = self.marked.values().cloned().collect();
        let mut judged = futures_util::stream::iter(waiting)
            .map(|handle| async move { (judge_again(gateway, &handle).await, handle) })
            .buffer_unordered(JUDGED_AT_ONCE);
        let mut failed = None;
        while let Some((outcome, handle)) = judged.next().await {
            match outcome {
                Ok(lives) => {
                    self.marked.remove(&handle.id);
                    if !lives {
                        ended.push(handle);
                    }
                }
                Err(RegistryError::Corrupt(why)) => {
                    error!(connection = %handle.id, device = %handle.device, %why, "the device's record cannot be read; its session ends");
                    handle.mailbox.put_ending(Ending::now(Close::Internal));
                    self.marked.remove(&handle.id);
                    ended.push(handle);
                }
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    async fn report(&mut self, applied: &Applied, began: Duration) -> Result<Looked, RegistryError> {
        let name = &self.gateway.settings.gateway;
        if !self.gateway.registry.report(name, &self.gateway.instance, applied).await? {
            return Ok(Looked::NameLost);
        }
        (self.known_at, self.due) = (began, false);
        Ok(Looked::End)
    }

    fn back(&mut self) {
        self.gateway.stale.store(false, Ordering::SeqCst);
        if std::mem::take(&mut self.away) {
            info!("the registry answers again; its changes have been read");
        }
    }

    /// What was known grows old: when it is too old, nobody is served by it any more.
    fn cut_off(&mut self, error: &RegistryError) {
        if !std::mem::replace(&mut self.away, true) {
            warn!(%error, "the registry does not answer; sessions go on as they are");
        }
        let old = clock::now().monotonic.saturating_sub(self.known_at);
        if old >= self.gateway.config.registry.max_staleness.0 {
            if !self.gateway.stale.swap(true, Ordering::SeqCst) {
                warn!(
                    seconds = old.as_secs(),
                    "what is known of the registry is older than registry.max_staleness: every session ends"
                );
            }
            self.gateway.sessions.end_all(|| Ending {
                close: Close::GoingAway,
                // Spread: they all come back to a registry that has just been away.
                retry_after: Some(fastrand::u64(5..=60)),
                gently: false,
            });
        }
    }
}

/// Whether the session lives on.
async fn judge_again(gateway: &Gateway, handle: &Handle) -> Result<bool, RegistryError> {
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
    let lives = judged.is_ok();
    match judged {
        Ok(grant) => handle.mailbox.put_grant(grant),
        Err(close) => handle.mailbox.put_ending(Ending::now(close)),
    }
    Ok(lives)
}
