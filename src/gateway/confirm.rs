//! Tells the registry what has taken effect, beside the follower: whoever is slow to leave, and a disk that is slow to
//! write, keep a confirmation waiting and never the next revocation.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use doorward_proto::time::Moment;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Gateway;
use super::sessions::Handle;
use crate::registry::cache::{Known, Stuck};
use crate::registry::{Applied, Position, RegistryError};

/// A confirmation waits this long for the sessions that end. They process nothing more either way.
const GONE_WITHIN: Duration = Duration::from_secs(1);
/// How often new records are written into the copy, and how often it is noted until when everything was known: each time
/// costs the disk a write.
const KEEP_NEWS_EVERY: Duration = Duration::from_secs(1);
const KEEP_EVERY: Duration = Duration::from_secs(60);

/// What a complete look at the feed has brought about.
#[derive(Debug)]
pub(super) struct Effect {
    pub(super) position: Position,
    pub(super) applied: Applied,
    pub(super) began: Moment,
    /// Sessions whose end was decided.
    pub(super) ended: Vec<Arc<Handle>>,
    /// To be reported now, rather than only noted in the copy.
    pub(super) due: bool,
}

/// The newest effect that has not been confirmed; an older one that is still waiting is part of it.
#[derive(Debug, Default)]
pub(super) struct Effects {
    state: Mutex<Waiting>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    newest: Option<Effect>,
    /// What could not be confirmed: sessions, and whether it was to be reported. It goes with the next effect. By itself it
    /// is not tried again: the database that answers next may be another than the one that it speaks of (a failover to an
    /// older copy), and would be told of changes that it has never had.
    owed: Option<(Vec<Arc<Handle>>, bool)>,
    /// The registry does not know this run of the gateway.
    lost_place: bool,
}

impl Effects {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Each change leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn put(&self, mut effect: Effect) {
        let mut state = self.lock();
        if let Some(older) = state.newest.take() {
            effect.ended.extend(older.ended);
            effect.due |= older.due;
        }
        state.newest = Some(effect);
        drop(state);
        self.news.notify_one();
    }

    /// Whether something waits for the next look.
    pub(super) fn are_owed(&self) -> bool {
        self.lock().owed.is_some()
    }

    /// Whether the registry did not know this run of the gateway.
    pub(super) fn has_lost_place(&self) -> bool {
        std::mem::take(&mut self.lock().lost_place)
    }

    fn lose_place(&self) {
        self.lock().lost_place = true;
    }

    fn owe(&self, effect: Effect) {
        let mut state = self.lock();
        let (ended, due) = state.owed.get_or_insert_default();
        ended.extend(effect.ended);
        *due |= effect.due;
    }

    /// The newest, with what is owed: it speaks for all that came before.
    fn take(&self) -> Option<Effect> {
        let mut state = self.lock();
        let mut effect = state.newest.take()?;
        if let Some((ended, due)) = state.owed.take() {
            effect.ended.extend(ended);
            effect.due |= due;
        }
        Some(effect)
    }
}

struct Confirmer {
    gateway: Arc<Gateway>,
    effects: Arc<Effects>,
    /// When the copy of records was last written, on the monotonic clock.
    kept: Option<Duration>,
    /// It could not confirm, and that has been said.
    failing: bool,
}

/// Confirms until it is stopped.
pub(super) async fn run(
    gateway: Arc<Gateway>,
    effects: Arc<Effects>,
    stop: CancellationToken,
) -> Result<(), RegistryError> {
    let mut confirmer = Confirmer { gateway, effects, kept: None, failing: false };
    loop {
        tokio::select! {
            () = confirmer.effects.news.notified() => {}
            () = stop.cancelled() => return confirmer.finish().await,
        }
        let Some(mut effect) = confirmer.effects.take() else { continue };
        let confirmed = tokio::select! {
            confirmed = confirmer.confirm(&mut effect) => confirmed,
            () = stop.cancelled() => return confirmer.finish().await,
        };
        match confirmed {
            Ok(true) => {
                if std::mem::take(&mut confirmer.failing) {
                    info!("what takes effect is confirmed again");
                }
            }
            Ok(false) => confirmer.effects.owe(effect),
            Err(error) => {
                // Where the registry is away, the follower says so.
                if !confirmer.gateway.sight.is_away() && !std::mem::replace(&mut confirmer.failing, true) {
                    warn!(%error, "what has taken effect cannot be confirmed: receipts name this gateway until it can");
                }
                confirmer.effects.owe(effect);
            }
        }
    }
}

impl Confirmer {
    /// Whether it has been confirmed; later, where a transaction takes its time.
    async fn confirm(&mut self, effect: &mut Effect) -> Result<bool, RegistryError> {
        let gateway = Arc::clone(&self.gateway);
        gateway.sessions.gone(&effect.ended, GONE_WITHIN).await;
        // Messages of theirs may be in a transaction that began before the act was committed: nothing is confirmed until
        // that has ended.
        if !effect.ended.is_empty() && !gateway.sink.settled(GONE_WITHIN).await {
            return Ok(false);
        }
        effect.ended.clear();
        self.keep(effect).await?;
        if effect.due {
            if !gateway.registry.report(&gateway.name, &gateway.instance, &effect.applied).await? {
                self.effects.lose_place();
                return Ok(false);
            }
            gateway.sight.reported(effect.began);
        }
        Ok(true)
    }

    /// Notes what has changed in the copy of records: before it is confirmed, so that a restart does not undo it.
    async fn keep(&mut self, effect: &Effect) -> Result<(), RegistryError> {
        let cache = &self.gateway.cache;
        let every = (self.gateway.max_staleness() / 4).clamp(KEEP_NEWS_EVERY, KEEP_EVERY);
        let now = effect.began.monotonic;
        let since = self.kept.map(|kept| now.saturating_sub(kept));
        let due = since.is_none_or(|since| since >= every || since >= KEEP_NEWS_EVERY && cache.has_news());
        if due || cache.must_forget() {
            // What the registry has been told, not what is about to be: receipts count this gateway by that.
            let known = Known {
                position: effect.position.clone(),
                known_at: self.gateway.sight.known().wall,
                max_staleness: self.gateway.max_staleness(),
                signed_off: false,
            };
            cache.keep(&known).await.map_err(stuck)?;
            self.kept = Some(now);
        }
        Ok(())
    }

    /// What is in memory alone would be gone with this run.
    async fn finish(self) -> Result<(), RegistryError> {
        self.gateway.cache.flush().await.map_err(stuck)
    }
}

fn stuck(stuck: Stuck) -> RegistryError {
    RegistryError::Internal(stuck.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::sessions::testing::handle;

    fn effect(ended: &[&Arc<Handle>], due: bool) -> Effect {
        Effect {
            position: Position::default(),
            applied: Applied::default(),
            began: crate::clock::now(),
            ended: ended.iter().map(|handle| Arc::clone(handle)).collect(),
            due,
        }
    }

    #[test]
    fn what_is_owed_goes_with_whatever_is_confirmed_next() {
        let (effects, first, second) = (Effects::default(), handle("a", "1"), handle("b", "2"));
        effects.put(effect(&[&first], true));
        let taken = effects.take().unwrap();
        // The next is there before it is known that this one could not be confirmed.
        effects.put(effect(&[&second], false));
        effects.owe(taken);
        assert!(effects.are_owed());
        let next = effects.take().unwrap();
        assert_eq!((next.ended.len(), next.due), (2, true));
        assert!(!effects.are_owed() && effects.take().is_none());
        // By itself nothing that is owed is tried again.
        effects.owe(next);
        assert!(effects.take().is_none());
        // One that was not taken yet is part of the newer one.
        effects.put(effect(&[], false));
        effects.put(effect(&[], false));
        let all = effects.take().unwrap();
        assert_eq!((all.ended.len(), all.due), (2, true));
    }
}
