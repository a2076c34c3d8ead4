//! Files of a bundle: read with a limit, replaced as a whole.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::CredentialsError;
use crate::renewal::Steps;

/// The mode of a file with a secret in it.
pub(super) const SECRET: u32 = 0o600;

const HINT: &str = "nothing of what the gateway handed out was taken; make the bundle's folder writable";

pub(super) fn read(
    path: &Path,
    most: u64,
    hint: &'static str,
) -> Result<Zeroizing<Vec<u8>>, CredentialsError> {
    let fail = |error| CredentialsError::File { path: path.to_owned(), error, hint };
    let file = File::open(path).map_err(fail)?;
    // Sized ahead: a buffer that grows leaves copies of the secret behind.
    let length = file.metadata().map_err(fail)?.len().min(most);
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(length).unwrap_or(0) + 1));
    file.take(most + 1).read_to_end(&mut bytes).map_err(fail)?;
    if u64::try_from(bytes.len()).is_ok_and(|read| read <= most) {
        Ok(bytes)
    } else {
        Err(fail(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {most} bytes"))))
    }
}

/// A file that is whole and durable under a temporary name, and not yet in its place.
#[must_use]
pub(super) struct Prepared<'a> {
    path: &'a Path,
    temporary: PathBuf,
}

/// Where a file is written before it takes its place.
pub(super) fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// Writes and syncs the bytes beside the file that they are to replace.
pub(super) fn prepare<'a>(
    path: &'a Path,
    bytes: &[u8],
    mode: u32,
    steps: &Steps,
) -> Result<Prepared<'a>, CredentialsError> {
    let temporary = temporary(path);
    let fail = |error| CredentialsError::File { path: path.to_owned(), error, hint: HINT };
    // One that a crash has left could have another mode, or be somebody's link to elsewhere.
    absent(std::fs::remove_file(&temporary)).map_err(fail)?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    #[cfg(not(unix))]
    let _ = mode;
    let mut file = options.open(&temporary).map_err(fail)?;
    steps.done(&temporary, "created");
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if let Err(error) = written {
        // A disk that is full must not keep half a secret.
        let _ = std::fs::remove_file(&temporary);
        return Err(fail(error));
    }
    steps.done(&temporary, "written");
    Ok(Prepared { path, temporary })
}

impl Prepared<'_> {
    /// Puts it in its place. It is durable there after [`sync`].
    pub(super) fn place(self, steps: &Steps) -> Result<(), CredentialsError> {
        let fail = |error| CredentialsError::File { path: self.path.to_owned(), error, hint: HINT };
        std::fs::rename(&self.temporary, self.path).map_err(fail)?;
        steps.done(self.path, "in place");
        Ok(())
    }
}

/// Temporary file, fsync, rename, fsync of the folder: a crash leaves the old file or the new one.
pub(super) fn replace(path: &Path, bytes: &[u8], steps: &Steps) -> Result<(), CredentialsError> {
    prepare(path, bytes, SECRET, steps)?.place(steps)?;
    sync(path)
}

/// Removes a file, durably. One that is not there is removed already.
pub(super) fn remove(path: &Path, steps: &Steps) -> Result<(), CredentialsError> {
    let fail = |error| CredentialsError::File { path: path.to_owned(), error, hint: HINT };
    absent(std::fs::remove_file(path)).map_err(fail)?;
    steps.done(path, "removed");
    sync(path)
}

/// Makes what was renamed or removed in the folder of `path` durable.
pub(super) fn sync(path: &Path) -> Result<(), CredentialsError> {
    let fail = |error| CredentialsError::File { path: path.to_owned(), error, hint: HINT };
    match path.parent() {
        // Windows cannot sync a folder, and does not have to.
        Some(folder) if cfg!(unix) => {
            // `bundle` alone has the empty path for its parent's parent, and that is here.
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(fail)
        }
        _ => Ok(()),
    }
}

fn absent(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
