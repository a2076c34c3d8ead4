//! Descriptors that are held back, so that an operator can look at a gateway that has none left.

use std::fs::File;
use std::io;
use std::sync::{Mutex, PoisonError};

/// Open files that stand for connections to come. The default holds none.
#[derive(Debug, Default)]
pub(crate) struct Reserve {
    most: usize,
    held: Mutex<Vec<File>>,
}

/// Whether an `accept` has failed for want of a descriptor (accept(2): EMFILE of the process, ENFILE of the machine).
pub(super) fn is_scarce(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::MFILE, Errno::NFILE].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

impl Reserve {
    /// Holds so many.
    pub(crate) fn new(most: usize) -> Self {
        let reserve = Self { most, held: Mutex::default() };
        reserve.fill();
        reserve
    }

    /// Gives one up, for an `accept` right after; whether there was one.
    pub(super) fn give(&self) -> bool {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).pop().is_some()
    }

    /// Takes back what was given up, as far as there is any.
    pub(super) fn fill(&self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        while held.len() < self.most {
            match File::open("/dev/null") {
                Ok(file) => held.push(file),
                Err(_) => return,
            }
        }
    }
}
