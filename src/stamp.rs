//! What tells that a file is another: for all who keep what a file held until it changes.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Where a file lies, when it was written or its mode changed, how long it is. The time of change counts too: what is written
/// over within one tick of the clock, or by a tool that sets the time of writing back, is another file all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    written: (i64, i64),
    changed: (i64, i64),
    length: u64,
    pub(crate) is_file: bool,
}

impl Stamp {
    /// Of what a link leads to; `None`: there is nothing, or it cannot be looked at.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            written: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            length: metadata.len(),
            is_file: metadata.is_file(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn written_over_with_as_many_bytes_and_an_old_date_it_is_another() {
        let path = std::env::temp_dir().join(format!("doorward-stamp-{}", std::process::id()));
        let date = SystemTime::UNIX_EPOCH + Duration::from_secs(1_794_657_600);
        let write = |text: &str| {
            fs::write(&path, text).unwrap();
            fs::File::options().append(true).open(&path).unwrap().set_modified(date).unwrap();
            Stamp::of(&path).unwrap()
        };
        let first = write("one");
        assert_eq!(Stamp::of(&path), Some(first), "it is as it was");
        let mut second = write("two");
        // A file system's clock may tick no oftener than a hundred times a second.
        while second == first {
            second = write("two");
        }
        assert_eq!((first.written, first.length, first.inode), (second.written, second.length, second.inode));
        fs::remove_file(&path).unwrap();
        assert_eq!(Stamp::of(&path), None);
    }
}
