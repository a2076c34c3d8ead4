//! Who may change the CAs of a home, and who signs by them.
//!
//! A command that changes them holds the folder `pki` alone; whoever signs shares it from reading the key until what was
//! signed is recorded. So no CA goes while there is a certificate of it that the registry has not heard of. The home's own
//! folder is the gate before it: whoever is to hold `pki` alone keeps it shut meanwhile, or a long run of batches, each of
//! which begins before the last one ends, would keep him out to its end.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use super::failure::Failure;
use crate::home::{self, FileError, Home};

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A batch of certificates is committed in less.
const CHANGE_WITHIN: Duration = Duration::from_secs(10);
/// Longer than a rollover waits for the gateway of its home.
const SIGN_WITHIN: Duration = Duration::from_secs(20);

/// Takes the home's CAs for a command that changes them: two rollovers at once would make a third CA.
pub(super) fn hold(home: &Home) -> Result<File, Failure> {
    let (pki, gate) = open(home)?;
    let mut looks = Looks::within(CHANGE_WITHIN);
    looks.until(home, || gate.try_lock())?;
    looks.until(home, || pki.try_lock())?;
    home::sweep(home);
    Ok(pki)
}

/// Keeps the home's CAs as they are for as long as what is returned lives: held while somebody signs and records it.
pub(super) fn share(home: &Home) -> Result<File, Failure> {
    share_within(home, SIGN_WITHIN)
}

/// The same, without a wait.
pub(super) fn share_now(home: &Home) -> Result<File, Failure> {
    share_within(home, Duration::ZERO)
}

fn share_within(home: &Home, wait: Duration) -> Result<File, Failure> {
    let (pki, gate) = open(home)?;
    let mut looks = Looks::within(wait);
    looks.until(home, || gate.try_lock_shared())?;
    looks.until(home, || pki.try_lock_shared())?;
    Ok(pki)
}

fn open(home: &Home) -> Result<(File, File), Failure> {
    let open = |path: &Path| {
        File::open(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => FileError::Missing(path.to_owned()),
            _ => FileError::Io { act: "read", path: path.to_owned(), source },
        })
    };
    Ok((open(&home.path().join("pki"))?, open(home.path())?))
}

/// Takes a file of `state/` for a command that must not run twice at once.
pub(super) fn alone(home: &Home, name: &str, words: &str) -> Result<File, Failure> {
    let path = home.state().join(name);
    home::make_folder(&home.state())?;
    let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(home::SECRET).open(&path);
    let file = opened.map_err(|source| FileError::Io { act: "write", path, source })?;
    Looks::within(CHANGE_WITHIN).until_or(|| file.try_lock(), || Failure::refused(words))?;
    Ok(file)
}

/// How often it is looked whether a lock is free.
struct Looks(u128);

impl Looks {
    fn within(wait: Duration) -> Self {
        Self(wait.as_millis() / LOOK_EVERY.as_millis())
    }

    fn until(&mut self, home: &Home, lock: impl FnMut() -> Result<(), TryLockError>) -> Result<(), Failure> {
        self.until_or(lock, || {
            Failure::refused(format!(
                "another command is changing the CAs of {}, or signs by them",
                home.path().display()
            ))
        })
    }

    fn until_or(
        &mut self,
        mut lock: impl FnMut() -> Result<(), TryLockError>,
        busy: impl Fn() -> Failure,
    ) -> Result<(), Failure> {
        loop {
            match lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) if self.0 == 0 => {
                    return Err(busy().next("wait for its end, then repeat the command"));
                }
                Err(TryLockError::WouldBlock) => {
                    self.0 -= 1;
                    std::thread::sleep(LOOK_EVERY);
                }
                Err(TryLockError::Error(error)) => return Err(Failure::new(format!("cannot lock: {error}"))),
            }
        }
    }
}
