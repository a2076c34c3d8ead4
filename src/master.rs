//! The master keys of a home: the one that seals, the one that is to take its place, and how a running process learns of it.
//!
//! A sealed key names its master key, so that a gateway holds two of them while `pki rewrap` seals every key again.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use doorward_pki::seal::{MasterKey, SealError, sealed_with};
use doorward_proto::ids::{DeviceId, KeyVersion};
use zeroize::Zeroizing;

use crate::clock;
use crate::home::{self, FileError, Home};
use crate::secrets::{Found, MASTER_KEY, Origin, SecretError};

/// The file of the master key, below `pki/`.
pub const CURRENT: &str = "master.key";
/// The file of the one that takes its place.
pub const NEXT: &str = "master.next.key";

/// A key that names an unknown master key has the files read again, and no oftener.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A master key that is no longer in the files opens for so long: a record may have been read just before its key was sealed
/// again.
const LINGERS: Duration = Duration::from_secs(60);
/// The current one, the next one, and two that linger.
const MOST: usize = 4;

/// What opens and seals the devices' keys.
pub struct MasterKeys {
    /// Where they are read again; `None`: they never change.
    source: Option<Source>,
    held: Mutex<Held>,
}

struct Source {
    home: Home,
    /// What the process was handed counts, too.
    handed: bool,
}

struct Held {
    /// The one that seals.
    current: MasterKey,
    /// The next one, and those that linger.
    others: Vec<Other>,
    origin: Option<Origin>,
    /// When the files were last read, on the monotonic clock.
    looked: Option<Duration>,
}

struct Other {
    key: MasterKey,
    /// Since when it is in no file.
    gone: Option<Duration>,
}

/// What the files hold.
struct Read {
    current: (MasterKey, Origin),
    next: Option<MasterKey>,
}

impl Source {
    fn read(&self) -> Result<Read, SecretError> {
        // The next one first: it may become the current one in between, and is then read as that.
        let next = match self.file(NEXT) {
            Ok(found) => {
                let origin = found.origin.clone();
                let read = MasterKey::parse(&found.text);
                Some(read.map_err(|error| SecretError::Malformed { origin, why: error.to_string() })?)
            }
            Err(FileError::Missing(_)) => None,
            Err(error) => return Err(error.into()),
        };
        let mut found = if self.handed { MASTER_KEY.handed()? } else { Vec::new() };
        match self.file(CURRENT) {
            Ok(file) => found.push(file),
            Err(FileError::Missing(_)) if !found.is_empty() => {}
            Err(error) => return Err(error.into()),
        }
        let missing = || FileError::Missing(self.home.pki(CURRENT));
        let same = |a: &MasterKey, b: &MasterKey| a.id() == b.id();
        let current = MASTER_KEY.one(found, MasterKey::parse, same)?.ok_or_else(missing)?;
        Ok(Read { current, next })
    }

    fn file(&self, name: &str) -> Result<Found, FileError> {
        let path = self.home.pki(name);
        Ok(Found { text: home::read_secret(&path)?, origin: Origin::File(path) })
    }
}

impl MasterKeys {
    /// Those of a home, and of what this process was handed if that is to count.
    ///
    /// # Errors
    /// [`SecretError`] where there is none, one cannot be read, or two places differ.
    pub fn load(home: &Home, handed: bool) -> Result<Self, SecretError> {
        let source = Source { home: home.clone(), handed };
        let Read { current: (current, origin), next } = source.read()?;
        let others = next.map(|key| Other { key, gone: None }).into_iter().collect();
        let looked = Some(clock::now().monotonic);
        let held = Held { current, others, origin: Some(origin), looked };
        Ok(Self { source: Some(source), held: Mutex::new(held) })
    }

    /// Where the current one comes from, if that is known.
    pub fn origin(&self) -> Option<Origin> {
        self.lock().origin.clone()
    }

    /// The id of the one that seals.
    pub fn id(&self) -> String {
        self.lock().current.id()
    }

    /// The ids of those that are in the files, the one that seals first.
    pub fn ids(&self) -> Vec<String> {
        let held = self.lock();
        let others = held.others.iter().filter(|other| other.gone.is_none());
        std::iter::once(held.current.id()).chain(others.map(|other| other.key.id())).collect()
    }

    /// The files that another home needs to hold the same, by their names below `pki/`.
    pub fn to_files(&self) -> Vec<(&'static str, Zeroizing<String>)> {
        let held = self.lock();
        let next = held.others.iter().filter(|other| other.gone.is_none());
        std::iter::once((CURRENT, held.current.to_file()))
            .chain(next.map(|other| (NEXT, other.key.to_file())))
            .collect()
    }

    /// Opens a device's key by the master key that it names. Where that is none of these the files are read again first: it
    /// may have come since.
    ///
    /// # Errors
    /// [`SealError`], as for [`MasterKey::open`].
    pub fn open(
        &self,
        device: &DeviceId,
        version: KeyVersion,
        sealed: &[u8],
    ) -> Result<Zeroizing<[u8; 32]>, SealError> {
        let named = sealed_with(sealed);
        let now = clock::now().monotonic;
        let stale = {
            let held = self.lock();
            match held.find(named.as_deref()) {
                Some(key) => return key.open(device, version, sealed),
                None => {
                    let lately = held.looked.is_some_and(|looked| now.saturating_sub(looked) < LOOK_EVERY);
                    named.is_some() && !lately
                }
            }
        };
        if stale && let Err(error) = self.look() {
            tracing::warn!(%error, "the master key's files cannot be read again");
        }
        let held = self.lock();
        // Where none fits, the one that seals says why.
        held.find(named.as_deref()).unwrap_or(&held.current).open(device, version, sealed)
    }

    /// Seals a device's key by the current one. The nonce must be fresh random bytes.
    pub fn seal(
        &self,
        device: &DeviceId,
        version: KeyVersion,
        hmac_key: &[u8; 32],
        nonce: [u8; 12],
    ) -> Vec<u8> {
        self.lock().current.seal(device, version, hmac_key, nonce)
    }

    /// Reads the files again. Whether another set of keys is there now; after an error it is the same as before.
    ///
    /// # Errors
    /// As for [`MasterKeys::load`].
    pub fn look(&self) -> Result<bool, SecretError> {
        let Some(source) = &self.source else { return Ok(false) };
        let before = self.ids();
        let now = clock::now().monotonic;
        self.lock().looked = Some(now);
        let Read { current: (current, origin), next } = source.read()?;
        let mut held = self.lock();
        let before_now = std::mem::replace(&mut held.current, current);
        let before_now = Other { key: before_now, gone: None };
        let mut others: Vec<Other> = next.map(|key| Other { key, gone: None }).into_iter().collect();
        for old in std::iter::once(before_now).chain(held.others.drain(..)).collect::<Vec<_>>() {
            let gone = old.gone.unwrap_or(now);
            let again = std::iter::once(&held.current)
                .chain(others.iter().map(|other| &other.key))
                .any(|key| key.id() == old.key.id());
            if !again && now.saturating_sub(gone) < LINGERS && others.len() + 1 < MOST {
                others.push(Other { key: old.key, gone: Some(gone) });
            }
        }
        held.others = others;
        held.origin = Some(origin);
        drop(held);
        Ok(self.ids() != before)
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // Each change is one assignment.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn find(&self, id: Option<&str>) -> Option<&MasterKey> {
        let others = self.others.iter().map(|other| &other.key);
        std::iter::once(&self.current).chain(others).find(|key| Some(key.id().as_str()) == id)
    }
}

impl From<MasterKey> for MasterKeys {
    /// One that stays the only one.
    fn from(key: MasterKey) -> Self {
        let held = Held { current: key, others: Vec::new(), origin: None, looked: None };
        Self { source: None, held: Mutex::new(held) }
    }
}

impl fmt::Debug for MasterKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MasterKeys").field("ids", &self.ids()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
