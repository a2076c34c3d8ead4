//! Files with secrets in them: read with a limit, replaced as a whole.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use zeroize::Zeroizing;

use super::CredentialsError;

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

/// Temporary file, fsync, rename, fsync of the folder: a crash leaves the old file or the new one.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), CredentialsError> {
    let hint = "the key that the gateway handed out was not taken; make the bundle's folder writable";
    let fail = |error| CredentialsError::File { path: path.to_owned(), error, hint };
    let temporary = path.with_extension("json.new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&temporary).map_err(fail)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(fail)?;
    std::fs::rename(&temporary, path).map_err(fail)?;
    match path.parent() {
        Some(folder) => File::open(folder).and_then(|folder| folder.sync_all()).map_err(fail),
        None => Ok(()),
    }
}
