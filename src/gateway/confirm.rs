//! Tells the registry what has taken effect, beside the follower: whoever is slow to leave, and a disk that is slow to
//! write, keep a confirmation waiting and never the next revocation.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use doorward_proto::time::Moment;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Gateway;
use super::sessions::Handle;
use crate::registry::cache::Stuck;
use crate::registry::{Applied, Position, RegistryError};

/// A confirmation waits this long for the sessions that end. They process nothing more either way.
const GONE_WITHIN: Duration = Duration::from_secs(1);
/// Between tries of a report that failed.
const RETRY: Duration = Duration::from_millis(500);
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
    newest: Mutex<Option<Effect>>,
    news: Notify,
}

impl Effects {
    pub(super) fn put(&self, mut effect: Effect) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(older) = newest.take() {
            effect.ended.extend(older.ended);
            effect.due |= older.due;
        }
        *newest = Some(effect);
        drop(newest);
        self.news.notify_one();
    }

    /// Gives back what could not be confirmed; what has come since includes it.
    fn put_back(&self, effect: Effect) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *newest {
            Some(newer) => {
                newer.ended.extend(effect.ended);
                newer.due |= effect.due;
            }
            none => *none = Some(effect),
        }
    }

    fn take(&self) -> Option<Effect> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

struct Confirmer {
    gateway: Arc<Gateway>,
    effects: Arc<Effects>,
    /// When the copy of records was last written, on the monotonic clock.
    kept: Option<Duration>,
}

/// Confirms until it is stopped, or until another gateway has taken the name.
pub(super) async fn run(
    gateway: Arc<Gateway>,
    effects: Arc<Effects>,
    stop: CancellationToken,
) -> Result<(), RegistryError> {
    let mut confirmer = Confirmer { gateway, effects, kept: None };
    loop {
        tokio::select! {
            () = confirmer.effects.news.notified() => {}
            () = stop.cancelled() => return confirmer.finish().await,
        }
        while let Some(effect) = confirmer.effects.take() {
            let confirmed = tokio::select! {
                confirmed = confirmer.confirm(&effect) => confirmed,
                () = stop.cancelled() => {
                    confirmer.effects.put_back(effect);
                    return confirmer.finish().await;
                }
            };
            match confirmed {
                Ok(true) => {}
                Err(error @ RegistryError::Refused(_)) => return Err(error),
                // The follower says so where the registry is away.
                Ok(false) | Err(_) => {
                    confirmer.effects.put_back(effect);
                    tokio::select! {
                        () = tokio::time::sleep(RETRY) => {}
                        () = stop.cancelled() => return confirmer.finish().await,
                    }
                }
            }
        }
    }
}

impl Confirmer {
    /// Whether it has been confirmed; later, where a transaction takes its time.
    async fn confirm(&mut self, effect: &Effect) -> Result<bool, RegistryError> {
        let gateway = Arc::clone(&self.gateway);
        gateway.sessions.gone(&effect.ended, GONE_WITHIN).await;
        // Messages of theirs may be in a transaction that began before the act was committed: nothing is confirmed until
        // that has ended.
        if !effect.ended.is_empty() && !gateway.sink.settled(GONE_WITHIN).await {
            return Ok(false);
        }
        self.keep(effect).await?;
        if effect.due {
            let name = &gateway.settings.gateway;
            if !gateway.registry.report(name, &gateway.instance, &effect.applied).await? {
                let words =
                    format!("another gateway has taken the name '{name}'; give each its own gateway.name");
                return Err(RegistryError::Refused(words));
            }
            gateway.sight.reported(effect.began);
        }
        Ok(true)
    }

    /// Notes what has changed in the copy of records: before it is confirmed, so that a restart does not undo it.
    async fn keep(&mut self, effect: &Effect) -> Result<(), RegistryError> {
        let cache = &self.gateway.cache;
        let every = (self.gateway.config.registry.max_staleness.0 / 4).clamp(KEEP_NEWS_EVERY, KEEP_EVERY);
        let now = effect.began.monotonic;
        let since = self.kept.map(|kept| now.saturating_sub(kept));
        let due = since.is_none_or(|since| since >= every || since >= KEEP_NEWS_EVERY && cache.has_news());
        if due || cache.must_forget() {
            self.kept = Some(now);
            cache.keep(&effect.position, effect.began.wall).await.map_err(stuck)?;
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
