//! How well the gateway sees its registry: whether it may ask it, and how old is what it knows.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use doorward_proto::time::Moment;

use crate::clock;

/// Reports may be late by this. Less than what the registry adds to what a gateway may serve.
const UNHEARD: Duration = Duration::from_secs(10);

/// What is known of the registry's feed.
#[derive(Debug)]
pub(crate) struct Sight {
    /// `registry.max_staleness`.
    configured: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy)]
struct State {
    /// How old what is known may be: as the registry was told.
    most: Duration,
    /// All that had changed before this moment is known here, and the registry has been told so.
    known: Moment,
    /// What had passed at that moment since it was true: not zero where it was noted by an earlier run.
    age: Duration,
    /// The last complete look at the feed began then, on the monotonic clock.
    looked: Option<Duration>,
    /// Since when its feed has not answered, or not been read up to its end since it does again.
    away: Option<Duration>,
}

impl Sight {
    /// Nothing is known before the first look.
    pub(crate) fn new(configured: Duration) -> Self {
        let now = clock::now();
        let away = Some(now.monotonic);
        let state = State { most: configured, known: now, age: Duration::MAX, looked: None, away };
        Self { configured, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An earlier run of this gateway knew everything until so long ago, and said that it may serve that for so long.
    pub(super) fn remember(&self, age: Duration, most: Duration) {
        let mut state = self.lock();
        (state.known, state.age, state.most) = (clock::now(), age, most);
    }

    /// All that had changed before `began` is known, and the registry has been told so.
    pub(super) fn reported(&self, began: Moment) {
        let mut state = self.lock();
        (state.known, state.age, state.most) = (began, Duration::ZERO, self.configured);
    }

    /// The feed has been read up to its end, by a look that began then.
    pub(super) fn looked(&self, began: Moment) {
        let mut state = self.lock();
        (state.looked, state.away) = (Some(began.monotonic), None);
    }

    /// The feed does not answer.
    pub(super) fn lost(&self) {
        self.lock().away.get_or_insert_with(|| clock::now().monotonic);
    }

    /// Whether the registry is not to be asked for anything before its changes have been read.
    pub(crate) fn is_away(&self) -> bool {
        self.lock().away.is_some()
    }

    /// For how long that has been so, where it is.
    pub(super) fn away_for(&self) -> Option<Duration> {
        let away = self.lock().away?;
        Some(clock::now().monotonic.saturating_sub(away))
    }

    /// How long ago the last complete look at the feed began; before the first, how long this has been waiting for it.
    pub(super) fn looked_ago(&self) -> Duration {
        let state = *self.lock();
        let since = state.looked.or(state.away).unwrap_or_default();
        clock::now().monotonic.saturating_sub(since)
    }

    /// Whether the feed has been read up to its end by a look that began after `since`, on the monotonic clock.
    pub(crate) fn looked_since(&self, since: Duration) -> bool {
        let state = self.lock();
        state.away.is_none() && state.looked.is_some_and(|looked| looked >= since)
    }

    /// When it was last true that all was known, and the registry told so.
    pub(super) fn known(&self) -> Moment {
        self.lock().known
    }

    /// For how long changes may have been missed.
    pub(super) fn age(&self) -> Duration {
        let State { known, age, .. } = *self.lock();
        let now = clock::now();
        // The monotonic clock does not tick while the machine is suspended, the other one can be set: the longer counts.
        let monotonic = now.monotonic.saturating_sub(known.monotonic);
        let wall = now.wall.as_duration().saturating_sub(known.wall.as_duration());
        age.saturating_add(monotonic.max(wall))
    }

    /// Whether what is known is too old to serve anybody by while the registry is away.
    pub(crate) fn is_old(&self) -> bool {
        self.age() >= self.lock().most
    }

    /// Whether the registry is away and what is known of it is too old to serve anybody by.
    pub(super) fn is_stale(&self) -> bool {
        self.is_away() && self.is_old()
    }

    /// Whether it has been read but not told so for so long that it does not count this gateway any more.
    pub(super) fn is_unheard(&self) -> bool {
        self.age() >= self.lock().most.saturating_add(UNHEARD)
    }
}
