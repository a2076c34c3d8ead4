//! How many sessions there are.

use super::Sessions;

/// Sessions by whether they have been proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) proven: usize,
    pub(crate) unproven: usize,
}

impl Sessions {
    /// The sessions that are here.
    pub(crate) fn tally(&self) -> Tally {
        let entries = self.lock();
        let count = |is: fn(&super::Entry) -> bool| entries.values().filter(|entry| is(entry)).count();
        Tally {
            proven: count(|entry| entry.proven.is_some()),
            unproven: count(|entry| entry.unproven.is_some()),
        }
    }
}
