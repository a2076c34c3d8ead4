//! The copy of records that a gateway keeps in `state/`, for the time when the registry is away.
//!
//! It is an SQLite file, so that a record goes together with the position in the feed up to which it is known to be
//! right: after a crash either both are there or neither. Keys stay sealed in it.

mod entry;
mod file;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use doorward_pki::Fingerprint;
use doorward_proto::ids::{DeviceId, FleetId};
use doorward_proto::time::NumericDate;
use tracing::warn;

use super::{Position, Record};
use crate::clock;
use crate::home::FileError;

pub(crate) use entry::Entry;
use file::File;

/// The file's name.
const NAME: &str = "records.db";
/// Devices whose records are to be forgotten; beyond that all are.
const MOST_FORGOTTEN: usize = 100_000;
/// Between tries to make the file anew where it could not be written.
const RETRY: Duration = Duration::from_secs(60);

/// How far what is kept is known to be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    /// Changes after it have to be read first.
    pub(crate) position: Position,
    /// When all before it was known.
    pub(crate) known_at: NumericDate,
    /// For how long after that it may serve, as the registry was told.
    pub(crate) max_staleness: Duration,
    /// The gateway has told the registry that it serves nobody any more: no receipt counts it, so nobody may be let in
    /// by what is kept before the registry has been read again.
    pub(crate) signed_off: bool,
}

/// The copy.
pub(crate) struct Cache {
    path: PathBuf,
    /// Which registry's: records of another one are worth nothing.
    registry: String,
    /// Records that wait to be written; more of them are not remembered this time.
    most: usize,
    /// Taken before `news`, and whoever reads holds it: between the two nothing is ever half-known.
    state: tokio::sync::Mutex<State>,
    news: Mutex<News>,
    /// The file has been made anew: what it should hold is to be put again.
    empty: AtomicBool,
}

enum State {
    Open(File),
    /// It could not be written, and is removed; since when, on the monotonic clock.
    Gone(Duration),
    /// It could neither be written nor removed: after a restart it would serve. Nothing is confirmed.
    Stuck,
}

/// What is not in the file yet.
#[derive(Default)]
struct News {
    records: HashMap<Fingerprint, Entry>,
    forgotten: Forgotten,
}

impl News {
    fn is_empty(&self) -> bool {
        self.records.is_empty() && self.forgotten.is_empty()
    }
}

/// Whose records are not to be used any more.
#[derive(Debug, Clone, Default)]
pub(crate) struct Forgotten {
    /// Devices that have changed.
    pub(crate) devices: HashSet<DeviceId>,
    /// Fleets that have, and so each of their devices.
    pub(crate) fleets: HashSet<FleetId>,
    all: bool,
}

impl Forgotten {
    /// Anything may have changed.
    pub(crate) fn everything() -> Self {
        Self { all: true, ..Self::default() }
    }

    fn add(&mut self, other: &Self) {
        self.devices.extend(other.devices.iter().cloned());
        self.fleets.extend(other.fleets.iter().cloned());
        if self.all || other.all || self.devices.len() > MOST_FORGOTTEN {
            *self = Self::everything();
        }
    }

    fn is_empty(&self) -> bool {
        !self.all && self.devices.is_empty() && self.fleets.is_empty()
    }

    fn covers(&self, entry: &Entry) -> bool {
        self.all || self.devices.contains(&entry.device) || self.fleets.contains(&entry.fleet)
    }
}

/// The copy can neither be used nor removed: whom it would let in after a restart is unknown.
#[derive(Debug, thiserror::Error)]
#[error(
    "the copy of records is of no use, and cannot be removed: {0}; remove it by hand, with its -wal and -shm beside it"
)]
pub struct Stuck(FileError);

impl Cache {
    /// Opens what was kept of a registry, with room for `most` records that wait to be written. What cannot be read is made
    /// anew; where that fails, nothing is kept for now.
    ///
    /// # Errors
    /// [`Stuck`] where there is something that can neither be used nor removed.
    pub(crate) async fn open(folder: &Path, registry: &str, most: usize) -> Result<Self, Stuck> {
        let path = folder.join(NAME);
        let state = match File::open(&path, registry).await {
            Some(file) => State::Open(file),
            None => make(&path, registry).await?,
        };
        Ok(Self {
            path,
            registry: registry.to_owned(),
            most,
            state: tokio::sync::Mutex::new(state),
            news: Mutex::default(),
            empty: AtomicBool::new(false),
        })
    }

    fn news(&self) -> MutexGuard<'_, News> {
        // Every change leaves it whole.
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far what is kept is known to be right; `None` where nothing is.
    pub(crate) async fn known(&self) -> Option<Known> {
        let State::Open(file) = &mut *self.state.lock().await else { return None };
        file.known().await.unwrap_or_else(|error| {
            warn!(path = %self.path.display(), %error, "the copy of records cannot be read");
            None
        })
    }

    /// Whether the file has been made anew since the last call, and knows nobody who is here.
    pub(crate) fn is_empty_again(&self) -> bool {
        self.empty.swap(false, Ordering::SeqCst)
    }

    /// A record that the registry has just given.
    pub(crate) fn put(&self, certificate: &Fingerprint, entry: Entry) {
        let mut news = self.news();
        if news.records.len() < self.most || news.records.contains_key(certificate) {
            news.records.insert(*certificate, entry);
        }
    }

    /// Some have changed: their records are not used any more, until they are put again.
    pub(crate) fn forget(&self, whose: &Forgotten) {
        if whose.is_empty() {
            return;
        }
        let mut news = self.news();
        news.records.retain(|_, entry| !whose.covers(entry));
        news.forgotten.add(whose);
    }

    /// The record behind a certificate, where it is kept.
    pub(crate) async fn find(&self, certificate: &Fingerprint) -> Option<Record> {
        let mut state = self.state.lock().await;
        if let Some(entry) = self.news().records.get(certificate) {
            return entry.record();
        }
        let State::Open(file) = &mut *state else { return None };
        let found = file.find(certificate).await;
        let entry = found.unwrap_or_else(|error| {
            warn!(path = %self.path.display(), %error, "the copy of records cannot be read");
            None
        })?;
        if self.news().forgotten.covers(&entry) { None } else { entry.record() }
    }

    /// Whether there is anything to write.
    pub(crate) fn has_news(&self) -> bool {
        !self.news().is_empty()
    }

    /// Whether something is to be forgotten: no confirmation before that is written.
    pub(crate) fn must_forget(&self) -> bool {
        !self.news().forgotten.is_empty()
    }

    /// Writes what is new, durably, with how far it is known to be right. A file that cannot be written is given up, and
    /// made anew after a minute.
    pub(crate) async fn keep(&self, known: &Known) -> Result<(), Stuck> {
        let mut state = self.state.lock().await;
        if let State::Gone(since) = &*state
            && clock::now().monotonic.saturating_sub(*since) >= RETRY
        {
            *state = make(&self.path, &self.registry).await?;
            self.empty.store(matches!(&*state, State::Open(_)), Ordering::SeqCst);
        }
        let news = std::mem::take(&mut *self.news());
        let written = match &mut *state {
            State::Open(file) => file.write(&news, Some(known)).await,
            State::Gone(_) => return Ok(()),
            State::Stuck => return self.remove(&mut state),
        };
        self.or_give_up(&mut state, written).await
    }

    /// Writes what is new, and says nothing of how far it is right: as far as before.
    pub(crate) async fn flush(&self) -> Result<(), Stuck> {
        let mut state = self.state.lock().await;
        let news = std::mem::take(&mut *self.news());
        let written = match &mut *state {
            State::Open(file) if !news.is_empty() => file.write(&news, None).await,
            State::Open(_) | State::Gone(_) => return Ok(()),
            State::Stuck => return self.remove(&mut state),
        };
        self.or_give_up(&mut state, written).await
    }

    /// Notes whether the gateway has signed off, durably.
    pub(crate) async fn set_signed_off(&self, signed_off: bool) -> Result<(), Stuck> {
        let mut state = self.state.lock().await;
        let written = match &mut *state {
            State::Open(file) => file.set_signed_off(signed_off).await,
            State::Gone(_) => return Ok(()),
            State::Stuck => return self.remove(&mut state),
        };
        self.or_give_up(&mut state, written).await
    }

    async fn or_give_up(&self, state: &mut State, written: Result<(), sqlx::Error>) -> Result<(), Stuck> {
        let Err(error) = written else { return Ok(()) };
        warn!(path = %self.path.display(), %error, "the copy of records cannot be written; it is removed and made anew in a minute");
        if let State::Open(file) = std::mem::replace(state, State::Stuck) {
            file.close().await;
        }
        self.remove(state)
    }

    /// Whatever was in the file is worth nothing any more.
    fn remove(&self, state: &mut State) -> Result<(), Stuck> {
        file::remove(&self.path).map_err(Stuck)?;
        *state = State::Gone(clock::now().monotonic);
        Ok(())
    }
}

/// A new file, with nothing of an older one in it.
async fn make(path: &Path, registry: &str) -> Result<State, Stuck> {
    file::remove(path).map_err(Stuck)?;
    Ok(match File::create(path, registry).await {
        Ok(file) => State::Open(file),
        Err(error) => {
            warn!(path = %path.display(), %error, "the copy of records cannot be made; while the registry is away nobody new is let in");
            State::Gone(clock::now().monotonic)
        }
    })
}

#[cfg(test)]
mod tests;
