//! The copy of records that a gateway keeps in `state/`, for the time when the registry is away.
//!
//! It is an SQLite file, so that a record goes together with the position in the feed up to which it is known to be
//! right: after a crash either both are there or neither. Keys stay sealed in it.

mod entry;
mod file;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use doorward_pki::Fingerprint;
use doorward_proto::ids::{DeviceId, FleetId};
use doorward_proto::time::NumericDate;
use tracing::warn;

use super::{Position, Record};
use crate::clock;
use crate::home::FileError;

use entry::Entry;
use file::File;

/// The file's name.
const NAME: &str = "records.db";
/// Records that wait to be written; more of them are not remembered this time.
const MOST_WAITING: usize = 4096;
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
    /// The gateway has told the registry that it serves nobody any more: no receipt counts it, so nobody may be let in
    /// by what is kept before the registry has been read again.
    pub(crate) signed_off: bool,
}

/// The copy.
pub(crate) struct Cache {
    path: PathBuf,
    /// Which registry's: records of another one are worth nothing.
    registry: String,
    /// Taken before `news`, and whoever reads holds it: between the two nothing is ever half-known.
    file: tokio::sync::Mutex<Open>,
    news: Mutex<News>,
}

struct Open {
    file: Option<File>,
    /// When it was given up, on the monotonic clock.
    given_up: Duration,
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

/// Whose records in the file are not to be used any more.
#[derive(Default)]
struct Forgotten {
    devices: HashSet<DeviceId>,
    fleets: HashSet<FleetId>,
    all: bool,
}

impl Forgotten {
    fn is_empty(&self) -> bool {
        !self.all && self.devices.is_empty() && self.fleets.is_empty()
    }

    fn covers(&self, entry: &Entry) -> bool {
        self.all || self.devices.contains(&entry.device) || self.fleets.contains(&entry.fleet)
    }
}

/// The copy could neither be written nor removed: who is let in by it after a restart is unknown.
#[derive(Debug, thiserror::Error)]
#[error("the copy of records in {path} can neither be written ({why}) nor removed ({source})")]
pub(crate) struct Stuck {
    path: PathBuf,
    why: String,
    source: FileError,
}

impl Cache {
    /// Opens what was kept of a registry. What cannot be read is made anew; where that fails nothing is kept.
    pub(crate) async fn open(folder: &Path, registry: &str) -> Self {
        let path = folder.join(NAME);
        let file = match File::open(&path, registry).await {
            Ok(file) => Some(file),
            Err(error) => {
                warn!(path = %path.display(), %error, "the copy of records cannot be opened; while the registry is away nobody new is let in");
                None
            }
        };
        let file = tokio::sync::Mutex::new(Open { file, given_up: clock::now().monotonic });
        Self { path, registry: registry.to_owned(), file, news: Mutex::default() }
    }

    fn news(&self) -> MutexGuard<'_, News> {
        // Every change leaves it whole.
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far what is kept is known to be right; `None` where nothing is.
    pub(crate) async fn known(&self) -> Option<Known> {
        let mut open = self.file.lock().await;
        match open.file.as_mut()?.known().await {
            Ok(known) => known,
            Err(error) => {
                warn!(path = %self.path.display(), %error, "the copy of records cannot be read");
                None
            }
        }
    }

    /// A record that the registry has just given.
    pub(crate) fn put(&self, certificate: &Fingerprint, record: &Record) {
        let mut news = self.news();
        if news.records.len() < MOST_WAITING || news.records.contains_key(certificate) {
            news.records.insert(*certificate, Entry::of(record));
        }
    }

    /// A device has changed: its records are not used any more.
    pub(crate) fn forget_device(&self, device: &DeviceId) {
        let mut news = self.news();
        if news.forgotten.devices.len() < MOST_FORGOTTEN {
            news.forgotten.devices.insert(device.clone());
        } else {
            news.forgotten.all = true;
        }
        news.records.retain(|_, entry| entry.device != *device);
    }

    /// A fleet has changed: the records of its devices are not used any more.
    pub(crate) fn forget_fleet(&self, fleet: &FleetId) {
        let mut news = self.news();
        news.forgotten.fleets.insert(fleet.clone());
        news.records.retain(|_, entry| entry.fleet != *fleet);
    }

    /// Anything may have changed.
    pub(crate) fn forget_all(&self) {
        *self.news() = News { forgotten: Forgotten { all: true, ..Forgotten::default() }, ..News::default() };
    }

    /// The record behind a certificate, where it is kept.
    pub(crate) async fn find(&self, certificate: &Fingerprint) -> Option<Record> {
        let mut open = self.file.lock().await;
        if let Some(entry) = self.news().records.get(certificate) {
            return entry.record();
        }
        let found = open.file.as_mut()?.find(certificate).await;
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
    pub(crate) async fn keep(&self, position: &Position, known_at: NumericDate) -> Result<(), Stuck> {
        let mut open = self.file.lock().await;
        let now = clock::now().monotonic;
        if open.file.is_none() && now.saturating_sub(open.given_up) >= RETRY {
            open.given_up = now;
            open.file = File::open(&self.path, &self.registry).await.ok();
        }
        let news = std::mem::take(&mut *self.news());
        let Some(file) = &mut open.file else { return Ok(()) };
        let known = Known { position: position.clone(), known_at, signed_off: false };
        let written = file.write(&news, Some(&known)).await;
        self.or_give_up(&mut open, written).await
    }

    /// Writes what is new, and says nothing of how far it is right: as far as before.
    pub(crate) async fn flush(&self) -> Result<(), Stuck> {
        let mut open = self.file.lock().await;
        let news = std::mem::take(&mut *self.news());
        let Some(file) = open.file.as_mut().filter(|_| !news.is_empty()) else { return Ok(()) };
        let written = file.write(&news, None).await;
        self.or_give_up(&mut open, written).await
    }

    /// Notes whether the gateway has signed off, durably.
    pub(crate) async fn set_signed_off(&self, signed_off: bool) -> Result<(), Stuck> {
        let mut open = self.file.lock().await;
        let Some(file) = &mut open.file else { return Ok(()) };
        let written = file.set_signed_off(signed_off).await;
        self.or_give_up(&mut open, written).await
    }

    async fn or_give_up(&self, open: &mut Open, written: Result<(), sqlx::Error>) -> Result<(), Stuck> {
        let Err(error) = written else { return Ok(()) };
        warn!(path = %self.path.display(), %error, "the copy of records cannot be written; it is given up and made anew in a minute");
        if let Some(file) = open.file.take() {
            file.close().await;
        }
        open.given_up = clock::now().monotonic;
        file::remove(&self.path).map_err(|source| Stuck {
            path: self.path.clone(),
            why: error.to_string(),
            source,
        })
    }
}
