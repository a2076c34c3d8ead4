//! The home: configuration, keys and local state, and how its files are written and judged.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// The mode of a secret file.
pub const SECRET: u32 = 0o600;
/// The mode of a file that anyone may read.
pub const PUBLIC: u32 = 0o644;
/// So long before a CA ends, whoever runs it is told at every occasion.
pub const CA_ENDS_SOON: time::Duration = time::Duration::days(90);

/// No secret of ours is as long; a device file named by mistake would have no end.
const MAX_SECRET_BYTES: u64 = 1 << 20;

/// Why a file of the home cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It is not there.
    #[error("{0} does not exist")]
    Missing(PathBuf),
    /// It cannot be read or written.
    #[error("cannot {act} {path}: {source}")]
    Io {
        /// `read`, `write` or `remove`.
        act: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others may read a secret.
    #[error("{path} holds a secret and its mode is {mode:04o}, so others may read it; run: chmod 600 {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It exists, and nothing overwrites it.
    #[error("{0} exists already and is not overwritten; move it away first")]
    Exists(PathBuf),
}

/// A home's folder and the names in it.
#[derive(Debug, Clone)]
pub struct Home(PathBuf);

impl Home {
    /// A home at a folder, which need not exist.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// `config.toml`
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.0.join("config.toml")
    }

    /// `registry.db`
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.0.join("registry.db")
    }

    /// `devices/`, where bundles go.
    #[must_use]
    pub fn devices(&self) -> PathBuf {
        self.0.join("devices")
    }

    /// `state/`, what the gateway keeps for itself.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.0.join("state")
    }

    /// A file below `pki/`.
    #[must_use]
    pub fn pki(&self, name: &str) -> PathBuf {
        self.0.join("pki").join(name)
    }

    /// A path of the configuration, which is relative to the home.
    #[must_use]
    pub fn resolve(&self, path: &Path) -> PathBuf {
        self.0.join(path)
    }
}

/// Refuses what is no regular file before it is opened: who opens a pipe that nobody writes to waits for ever. For files that
/// are read while others wait; a command may well read a pipe.
///
/// # Errors
/// [`FileError`] naming it.
pub fn must_be_file(path: &Path) -> Result<(), FileError> {
    let metadata = fs::metadata(path).map_err(|source| not_read(path, source))?;
    if metadata.is_file() {
        return Ok(());
    }
    Err(not_read(path, io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")))
}

/// Reads a file that is no secret.
///
/// # Errors
/// [`FileError`] naming it.
pub fn read(path: &Path) -> Result<String, FileError> {
    fs::read_to_string(path).map_err(|source| not_read(path, source))
}

/// Reads a secret, which nobody else may be able to read.
///
/// # Errors
/// [`FileError`] naming it, and the command that mends its mode.
pub fn read_secret(path: &Path) -> Result<Zeroizing<String>, FileError> {
    read_closed(path, 0o077)
}

/// Reads a credential that a service manager has put down for this process alone. Where it lets the service's user in by an
/// access control list, the list's mask stands in the group's place of the mode (acl(5)): 0440 is as closed as 0400.
///
/// # Errors
/// As for [`read_secret`].
pub fn read_credential(path: &Path) -> Result<Zeroizing<String>, FileError> {
    read_closed(path, 0o037)
}

fn read_closed(path: &Path, open: u32) -> Result<Zeroizing<String>, FileError> {
    let file = File::open(path).map_err(|source| not_read(path, source))?;
    let metadata = file.metadata().map_err(|source| not_read(path, source))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & open != 0 {
        return Err(FileError::Open { path: path.to_owned(), mode });
    }
    // Room for the whole file at once, so that no half-grown copy of the secret is left behind unwiped.
    let room = usize::try_from(metadata.len().min(MAX_SECRET_BYTES)).unwrap_or(0) + 1;
    let mut text = Zeroizing::new(String::with_capacity(room));
    let read = io::Read::read_to_string(&mut io::Read::take(file, MAX_SECRET_BYTES + 1), &mut text);
    match read {
        Ok(bytes) if bytes as u64 > MAX_SECRET_BYTES => {
            let source = io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than any secret");
            Err(not_read(path, source))
        }
        other => other.map(|_| text).map_err(|source| not_read(path, source)),
    }
}

/// Makes a folder (mode 0700) and its parents. One that is there keeps its mode.
///
/// # Errors
/// [`FileError`] naming it.
pub fn make_folder(path: &Path) -> Result<(), FileError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| not_written(path, source))
}

/// Writes a file whole or not at all: a temporary file, fsync, and a link that fails where the name is taken.
///
/// # Errors
/// [`FileError::Exists`] where there is such a file; nothing is overwritten.
pub fn write_new(path: &Path, content: impl AsRef<[u8]>, mode: u32) -> Result<(), FileError> {
    if fs::symlink_metadata(path).is_ok() {
        return Err(FileError::Exists(path.to_owned()));
    }
    let (temporary, _held) = write_temporary(path, content.as_ref(), mode)?;
    // A hard link is the rename that does not overwrite.
    let linked = fs::hard_link(&temporary, path);
    let removed = fs::remove_file(&temporary);
    match linked {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(FileError::Exists(path.to_owned())),
        other => {
            other.and(removed).and_then(|()| sync_folder(path)).map_err(|source| not_written(path, source))
        }
    }
}

/// Writes a file whole or not at all, in place of what was there.
///
/// # Errors
/// [`FileError`] naming it.
pub fn write_over(path: &Path, content: impl AsRef<[u8]>, mode: u32) -> Result<(), FileError> {
    let (temporary, _held) = write_temporary(path, content.as_ref(), mode)?;
    fs::rename(&temporary, path).and_then(|()| sync_folder(path)).map_err(|source| not_written(path, source))
}

/// Gives a file a second name, durably; it fails where that name is taken by anything but this content.
///
/// # Errors
/// [`FileError::Exists`] where it is; else [`FileError::Io`].
pub fn link(from: &Path, to: &Path) -> Result<(), FileError> {
    match fs::hard_link(from, to) {
        Ok(()) => sync_folder(to).map_err(|source| not_written(to, source)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if *read_secret(from)? == *read_secret(to)? {
                Ok(())
            } else {
                Err(FileError::Exists(to.to_owned()))
            }
        }
        Err(source) => Err(not_written(to, source)),
    }
}

/// Removes a file, durably.
///
/// # Errors
/// [`FileError`] naming it.
pub fn remove(path: &Path) -> Result<(), FileError> {
    fs::remove_file(path).and_then(|()| sync_folder(path)).map_err(|source| FileError::Io {
        act: "remove",
        path: path.to_owned(),
        source,
    })
}

/// Gives a finished folder or file its name, durably.
///
/// # Errors
/// [`FileError`] naming it.
pub fn rename(from: &Path, to: &Path) -> Result<(), FileError> {
    fs::rename(from, to).and_then(|()| sync_folder(to)).map_err(|source| not_written(to, source))
}

/// So many names are tried for a temporary file: a command that sweeps may take the first one away unlocked.
const NAMES_TRIED: usize = 8;

/// A file that is being written. Whoever lives holds a lock on it; one without is a leftover.
fn write_temporary(path: &Path, content: &[u8], mode: u32) -> Result<(PathBuf, File), FileError> {
    sweep_of(path)?;
    let (temporary, mut file) = make_temporary(path, mode).map_err(|source| not_written(path, source))?;
    let mut write = || {
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(|source| {
        // No half of a secret stays behind.
        let _ = fs::remove_file(&temporary);
        not_written(path, source)
    })?;
    Ok((temporary, file))
}

/// Never a file that is there: it may be another name of a live key.
fn make_temporary(path: &Path, mode: u32) -> io::Result<(PathBuf, File)> {
    for _ in 0..NAMES_TRIED {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{:016x}.tmp", fastrand::u64(..)));
        let temporary = path.with_file_name(name);
        let file = match OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            opened => opened?,
        };
        file.lock()?;
        // Between the two lines above somebody may have swept it away.
        match fs::symlink_metadata(&temporary) {
            Ok(there) if there.ino() == file.metadata()?.ino() => return Ok((temporary, file)),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Err(io::Error::new(io::ErrorKind::AlreadyExists, "each temporary name is taken; repeat the command"))
}

/// Removes what runs that were killed have left unfinished in a home: a key in it is of use to nobody but a thief. What
/// cannot be removed does no harm to what follows.
pub fn sweep(home: &Home) {
    for folder in [home.path().to_owned(), home.path().join("pki"), home.state()] {
        let _ = sweep_folder(&folder, &|_| true);
    }
}

/// Removes what runs that were killed have left unfinished of one file.
///
/// # Errors
/// [`FileError`] naming one that cannot be removed.
pub fn sweep_of(path: &Path) -> Result<(), FileError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    sweep_folder(folder_of(path), &|target| target == name)
}

fn sweep_folder(folder: &Path, of: &dyn Fn(&str) -> bool) -> Result<(), FileError> {
    // A folder that cannot be listed may still be written to.
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_name().to_str().and_then(target_of).is_some_and(of)
            || !entry.file_type().is_ok_and(|kind| kind.is_file())
        {
            continue;
        }
        let path = entry.path();
        // Whoever holds it lives, and is at work on it.
        let Ok(file) = File::open(&path) else { continue };
        if file.try_lock().is_ok() {
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(FileError::Io { act: "remove", path, source });
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// The file that a temporary name is of. In older versions a process's number stood in it.
fn target_of(name: &str) -> Option<&str> {
    let (target, mark) = name.strip_suffix(".tmp")?.rsplit_once('.')?;
    let ours = mark.len() == 16 && mark.bytes().all(|b| b.is_ascii_hexdigit());
    let older = (1..=10).contains(&mark.len()) && mark.bytes().all(|b| b.is_ascii_digit());
    (!target.is_empty() && (ours || older)).then_some(target)
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes a file's name durable, which it is once its folder is.
///
/// # Errors
/// What the operating system says.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

fn not_read(path: &Path, source: io::Error) -> FileError {
    match source.kind() {
        io::ErrorKind::NotFound => FileError::Missing(path.to_owned()),
        _ => FileError::Io { act: "read", path: path.to_owned(), source },
    }
}

fn not_written(path: &Path, source: io::Error) -> FileError {
    FileError::Io { act: "write", path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
