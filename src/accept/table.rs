//! What is remembered of addresses, in a room that never grows.
//!
//! The table is a cache as processors have it: sets of [`WAYS`] entries, and a key's set is named by a hash of it. A set that
//! is full forgets the entry that is worth least, and of those the one that has not been seen for longest. So a lookup costs
//! at most eight comparisons, whoever comes: a million addresses push each other out, and leave alone what is worth more.
//! The hash is keyed (SipHash, by random bytes of this run), so that nobody can choose addresses that meet in one set.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::prefix::Prefix;

/// Entries of a set.
const WAYS: usize = 8;

/// What a table keeps of a key.
pub(super) trait Remembered: Default {
    /// What forgetting it would lose: 0 where that is nothing.
    fn worth(&self, now: u64) -> u8;
}

/// A table of a fixed size.
#[derive(Debug)]
pub(super) struct Table<T> {
    sets: Box<[Mutex<[Entry<T>; WAYS]>]>,
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct Entry<T> {
    key: Option<Prefix>,
    seen: u64,
    /// Counts those who have had this place, so that who comes back to it knows whether it is still theirs.
    tenancy: u32,
    value: T,
}

/// Where a key's entry was. It may have been forgotten since.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    set: u32,
    way: u8,
    tenancy: u32,
}

impl<T: Remembered> Table<T> {
    /// Room for so many, rounded up to whole sets.
    pub(super) fn new(entries: usize) -> Self {
        let sets = (0..Self::sets(entries)).map(|_| Mutex::default()).collect();
        Self { sets, hasher: RandomState::new() }
    }

    /// The bytes of a table with room for so many: all that it will ever take.
    pub(super) fn bytes(entries: usize) -> usize {
        Self::sets(entries) * size_of::<Mutex<[Entry<T>; WAYS]>>()
    }

    fn sets(entries: usize) -> usize {
        entries.div_ceil(WAYS).max(1)
    }

    fn lock(&self, set: usize) -> Option<MutexGuard<'_, [Entry<T>; WAYS]>> {
        // Each change is one assignment: a panic elsewhere leaves an entry whole.
        Some(self.sets.get(set)?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Does something with a key's entry, which is made if there is none: at the cost of the one that is worth least. Where
    /// it is, and what came of it.
    pub(super) fn with<R>(&self, key: Prefix, now: u64, act: impl FnOnce(&mut T) -> R) -> (Place, R) {
        let count = u64::try_from(self.sets.len()).unwrap_or(u64::MAX);
        let number = usize::try_from(self.hasher.hash_one(key) % count).unwrap_or(0);
        let mut nothing = Default::default();
        let mut guard = self.lock(number);
        // There is a set of every number below their count.
        let set = guard.as_deref_mut().unwrap_or(&mut nothing);
        let found = set.iter().position(|entry| entry.key == Some(key));
        let way = found.unwrap_or_else(|| {
            let least =
                |(_, entry): &(usize, &Entry<T>)| (entry.key.is_some(), entry.value.worth(now), entry.seen);
            set.iter().enumerate().min_by_key(least).map_or(0, |(way, _)| way)
        });
        let [first, others @ ..] = set;
        let entry = if way == 0 { first } else { others.get_mut(way - 1).unwrap_or(first) };
        if found.is_none() {
            let tenancy = entry.tenancy.wrapping_add(1);
            *entry = Entry { key: Some(key), tenancy, ..Entry::default() };
        }
        entry.seen = now;
        let place = Place {
            set: u32::try_from(number).unwrap_or(u32::MAX),
            way: u8::try_from(way).unwrap_or(0),
            tenancy: entry.tenancy,
        };
        (place, act(&mut entry.value))
    }

    /// Does something with each entry. A set's lock at a time is held: nobody waits for all of it.
    pub(super) fn each(&self, mut act: impl FnMut(Prefix, &mut T)) {
        for number in 0..self.sets.len() {
            for entry in self.lock(number).iter_mut().flat_map(|set| set.iter_mut()) {
                if let Some(key) = entry.key {
                    act(key, &mut entry.value);
                }
            }
        }
    }

    /// Does something with an entry if it has not been forgotten.
    pub(super) fn at<R>(&self, place: Place, act: impl FnOnce(&mut T) -> R) -> Option<R> {
        let mut set = self.lock(usize::try_from(place.set).ok()?)?;
        let entry = set.get_mut(usize::from(place.way)).filter(|entry| entry.tenancy == place.tenancy)?;
        Some(act(&mut entry.value))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    #[derive(Debug, Default)]
    struct Kept(u8);

    impl Remembered for Kept {
        fn worth(&self, _: u64) -> u8 {
            self.0
        }
    }

    fn key(number: u32) -> Prefix {
        Prefix::host(IpAddr::V4(Ipv4Addr::from_bits(number)))
    }

    #[test]
    fn an_entry_is_found_again_and_a_place_knows_whose_it_is() {
        let table = Table::<Kept>::new(8);
        let (place, ()) = table.with(key(1), 0, |kept| kept.0 = 3);
        assert_eq!(table.with(key(1), 1, |kept| kept.0).1, 3);
        assert_eq!(table.at(place, |kept| kept.0), Some(3));
        // One set of eight: the ninth pushes out whoever was seen first.
        table.at(place, |kept| kept.0 = 0);
        for n in 2..=9 {
            table.with(key(n), u64::from(n), |_| {});
        }
        assert_eq!(table.at(place, |kept| kept.0), None);
        assert_eq!(table.with(key(1), 10, |kept| kept.0).1, 0);
    }

    #[test]
    fn a_million_addresses_take_no_more_room_and_leave_what_is_worth_more() {
        let table = Table::<Kept>::new(1000);
        let places: Vec<Place> = (0..50).map(|n| table.with(key(n), 0, |kept| kept.0 = 1).0).collect();
        for n in 0..1_000_000 {
            table.with(key(0x0a00_0000 + n), u64::from(n), |kept| kept.0 = 0);
        }
        assert_eq!(table.sets.len() * WAYS, 1000);
        // Eight of the fifty in one set of 125 would be a wonder.
        assert!(places.iter().all(|place| table.at(*place, |kept| kept.0) == Some(1)));
    }

    #[test]
    fn no_set_is_everybodys() {
        let table = Table::<Kept>::new(8 * 1024);
        for n in 0..8 * 1024 {
            table.with(key(n), 1, |_| {});
        }
        let full = |set: &&Mutex<[Entry<Kept>; WAYS]>| set.lock().unwrap().iter().all(|e| e.key.is_some());
        let full = table.sets.iter().filter(full).count();
        // As throwing dice would have it, about 55 % of the sets are.
        assert!((300..800).contains(&full), "{full} of 1024 sets are full");
    }
}
