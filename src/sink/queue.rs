//! What waits for the writer. Bounded: publishes by number, everything else by the number of devices.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use doorward_proto::ids::DeviceId;
use time::OffsetDateTime;
use tokio::sync::{Notify, watch};

use super::{Arc, Claim, Handle, Job, NewEvent, Waker};
use crate::clock;
use crate::metrics::store::StoreMeters;

/// Events that wait; more of them are counted and dropped, for the log has said them already.
const MAX_EVENTS: usize = 1024;
/// Bytes of the publishes that wait: `limits.store_queue` counts them, and they may be large.
pub(crate) const MAX_BYTES: usize = 64 << 20;
/// Of one transaction.
const MAX_BATCH: usize = 1024;
const MIN_BATCH: usize = 64;
/// For each of its messages, so that some may be larger.
const BYTES_A_MESSAGE: usize = 1024;
/// A transaction that takes longer is too large: whoever comes meanwhile waits for it and for his own.
const LONG: Duration = Duration::from_millis(10);

/// The way into the store.
#[derive(Debug)]
pub(crate) struct Sink {
    most: usize,
    queue: Mutex<Queue>,
    filled: Notify,
    /// Publishes have waited in vain: until the store writes again only one at a time waits, to find out.
    stalled: AtomicBool,
    /// How long a publish may wait before it is `unavailable`, in milliseconds.
    patience_ms: AtomicU64,
    /// What the last try to write has met, until one succeeds.
    trouble: Mutex<Option<String>>,
    /// Transactions begun and ended.
    batches: watch::Sender<Batches>,
    pub(crate) meters: StoreMeters,
}

/// What waits, at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Look {
    /// Publishes, how many there may be, and their bytes.
    pub(crate) messages: usize,
    pub(crate) most: usize,
    pub(crate) bytes: usize,
    /// How long the oldest of them has waited.
    pub(crate) oldest: Duration,
    /// Publishes are refused, for they would wait in vain.
    pub(crate) stalled: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Batches {
    begun: u64,
    ended: u64,
}

/// Why a publish is not in the queue.
#[derive(Debug)]
pub(crate) enum NoRoom {
    /// The queue is full; the waker is called when it may not be.
    Full(Box<Job>),
    /// The store is away: waiting would be in vain, and what is behind it would grow stale.
    Stalled(Box<Job>),
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Sessions that were proven; of a device only the newest counts.
    pub(super) claims: HashMap<DeviceId, Claim>,
    pub(super) jobs: VecDeque<Job>,
    /// Of all jobs.
    bytes: usize,
    /// Sessions that were heard; the newest time counts.
    pub(super) seen: HashMap<DeviceId, (Arc<str>, OffsetDateTime)>,
    /// Sessions that have ended; of a device only the newest counts.
    pub(super) releases: HashMap<DeviceId, Arc<str>>,
    pub(super) events: Vec<NewEvent>,
    /// Sessions that found no room.
    waiting: Vec<Waker>,
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.jobs.is_empty()
            && self.claims.is_empty()
            && self.seen.is_empty()
            && self.releases.is_empty()
            && self.events.is_empty()
    }
}

impl Sink {
    /// A sink for so many publishes at once.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            queue: Mutex::default(),
            filled: Notify::new(),
            stalled: AtomicBool::new(false),
            patience_ms: AtomicU64::new(0),
            trouble: Mutex::default(),
            batches: watch::Sender::default(),
            meters: StoreMeters::default(),
        }
    }

    /// How long a publish may wait from now on.
    pub(crate) fn set_patience(&self, patience: Duration) {
        self.patience_ms.store(u64::try_from(patience.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(super) fn patience(&self) -> Duration {
        Duration::from_millis(self.patience_ms.load(Ordering::Relaxed))
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Every change is a push, an insert or a take: a panic elsewhere leaves the queue whole.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A publish, or the publish back where there is no room; `waker` is called when there may be.
    pub(crate) fn push(&self, job: Job, waker: &Waker) -> Result<(), NoRoom> {
        let mut queue = self.lock();
        if !queue.jobs.is_empty() && self.stalled.load(Ordering::SeqCst) {
            return Err(NoRoom::Stalled(Box::new(job)));
        }
        let bytes = queue.bytes + job.bytes();
        // One always finds room, however large.
        let full = queue.jobs.len() >= self.most || (bytes > MAX_BYTES && !queue.jobs.is_empty());
        // The second half is for sessions of which nothing waits: a few cannot keep all others out.
        let crowded = queue.jobs.len() >= self.most / 2 || bytes > MAX_BYTES / 2;
        if full || crowded && job.session.queued.load(Ordering::Relaxed) > 0 {
            queue.waiting.push(waker.clone());
            return Err(NoRoom::Full(Box::new(job)));
        }
        job.session.queued.fetch_add(1, Ordering::Relaxed);
        queue.bytes = bytes;
        queue.jobs.push_back(job);
        drop(queue);
        self.filled.notify_one();
        Ok(())
    }

    /// A session has been proven.
    pub(crate) fn claim(&self, claim: Claim) {
        let mut queue = self.lock();
        queue.releases.remove(&claim.device);
        queue.claims.insert(claim.device.clone(), claim);
        drop(queue);
        self.filled.notify_one();
    }

    /// A proven session has ended.
    pub(crate) fn release(&self, handle: &Handle) {
        let mut queue = self.lock();
        queue.releases.insert(handle.device.clone(), Arc::clone(&handle.id));
        drop(queue);
        self.filled.notify_one();
    }

    /// Sessions were heard.
    pub(crate) fn seen(&self, heard: impl Iterator<Item = (DeviceId, Arc<str>, OffsetDateTime)>) {
        let mut queue = self.lock();
        queue.seen.extend(heard.map(|(device, session, at)| (device, (session, at))));
        drop(queue);
        self.filled.notify_one();
    }

    /// Something for a security officer.
    pub(crate) fn event(&self, event: NewEvent) {
        let mut queue = self.lock();
        if queue.events.len() < MAX_EVENTS {
            queue.events.push(event);
        } else {
            self.meters.event_dropped(1);
        }
        drop(queue);
        self.filled.notify_one();
    }

    /// A transaction begins.
    pub(super) fn begin(&self) {
        self.batches.send_modify(|batches| batches.begun += 1);
    }

    /// The transaction that began has ended, one way or the other.
    pub(super) fn end(&self) {
        self.batches.send_modify(|batches| batches.ended = batches.begun);
    }

    /// Waits until no transaction is under way that has begun before now: what it was judged by may be older than what
    /// is known by now. `false` where that takes longer than `patience`.
    pub(crate) async fn settled(&self, patience: Duration) -> bool {
        let mut batches = self.batches.subscribe();
        let begun = batches.borrow().begun;
        let ended = batches.wait_for(|batches| batches.ended >= begun);
        tokio::time::timeout(patience, ended).await.is_ok()
    }

    /// Whether publishes wait in vain.
    pub(super) fn set_stalled(&self, stalled: bool) {
        if !self.stalled.swap(stalled, Ordering::SeqCst) && stalled {
            self.meters.stalled();
        }
    }

    /// Why the store does not write; `None`: it does.
    pub(super) fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// Why the store does not write, in the words of the last try.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What waits now.
    pub(crate) fn look(&self) -> Look {
        let now = clock::now().monotonic;
        let queue = self.lock();
        Look {
            messages: queue.jobs.len(),
            most: self.most,
            bytes: queue.bytes,
            oldest: queue.jobs.front().map_or(Duration::ZERO, |job| now.saturating_sub(job.since)),
            stalled: self.stalled.load(Ordering::SeqCst),
        }
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Returns when something may wait.
    pub(super) async fn filled(&self) {
        self.filled.notified().await;
    }

    /// Takes what has gathered, publishes up to a transaction's size, in turns by session where that is not all, and lets those
    /// in who found no room.
    ///
    /// All claims go with it: a publish behind its session's claim would be taken for an older session's.
    pub(super) fn take(&self, size: Size) -> Queue {
        let mut queue = self.lock();
        let all = std::mem::take(&mut queue.jobs);
        let (jobs, left) = if all.len() <= size.messages && queue.bytes <= size.bytes() {
            (all, VecDeque::new())
        } else {
            in_turns(all, size)
        };
        let left_bytes = queue.bytes - leave(&jobs);
        let mut taken = Queue { jobs, ..std::mem::take(&mut *queue) };
        (queue.jobs, queue.bytes) = (left, left_bytes);
        let more = !queue.is_empty();
        drop(queue);
        for waker in taken.waiting.drain(..) {
            waker.wake();
        }
        if more {
            self.filled.notify_one();
        }
        taken
    }

    /// Gives back what a failed transaction was to write besides publishes, for the next one. What has come since is
    /// newer and stays.
    pub(super) fn put_back(&self, batch: crate::registry::Batch) {
        let mut queue = self.lock();
        // Releases first: the claim that goes back beside one is of the session that ended, and must not hide its end.
        for (device, session) in batch.releases {
            if !queue.claims.contains_key(&device) {
                queue.releases.entry(device).or_insert(session);
            }
        }
        for claim in batch.claims {
            queue.claims.entry(claim.device.clone()).or_insert(claim);
        }
        let room = MAX_EVENTS.saturating_sub(queue.events.len());
        self.meters.event_dropped(batch.events.len().saturating_sub(room));
        queue.events.extend(batch.events.into_iter().take(room));
        drop(queue);
        self.filled.notify_one();
    }

    /// Gives back publishes that have waited too long and were never tried; who waits for room has it then.
    pub(super) fn take_older(&self, since: std::time::Duration) -> VecDeque<Job> {
        let mut queue = self.lock();
        let old = queue.jobs.partition_point(|job| job.since < since);
        let taken: VecDeque<Job> = queue.jobs.drain(..old).collect();
        queue.bytes -= leave(&taken);
        let waiting = if taken.is_empty() { Vec::new() } else { std::mem::take(&mut queue.waiting) };
        drop(queue);
        waiting.into_iter().for_each(Waker::wake);
        taken
    }
}

/// How large a transaction may be: smaller where they take long, so that one device's burst is not everybody's pause.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    messages: usize,
}

impl Default for Size {
    fn default() -> Self {
        Self { messages: MAX_BATCH }
    }
}

impl Size {
    /// One was committed, and took so long.
    pub(super) fn after(&mut self, took: Duration) {
        if took > LONG {
            self.messages = (self.messages / 2).max(MIN_BATCH);
        } else if took < LONG / 2 {
            self.messages = (self.messages * 2).min(MAX_BATCH);
        }
    }

    fn bytes(self) -> usize {
        self.messages * BYTES_A_MESSAGE
    }

    fn quarter(self) -> Self {
        Self { messages: (self.messages / 4).max(1) }
    }

    fn less(self, part: Self) -> Self {
        Self { messages: self.messages - part.messages }
    }

    /// How many of these, one after the other, have room.
    fn fits(self, lengths: impl Iterator<Item = usize>) -> usize {
        let mut bytes = 0;
        let has_room = |length: &usize| {
            bytes += length;
            bytes <= self.bytes()
        };
        lengths.take(self.messages).take_while(has_room).count()
    }
}

/// These wait no more; how many bytes they have.
fn leave(jobs: &VecDeque<Job>) -> usize {
    jobs.iter()
        .map(|job| {
            job.session.queued.fetch_sub(1, Ordering::Relaxed);
            job.bytes()
        })
        .sum()
}

/// The next transaction's publishes, and those that wait on, both in the order in which they came.
fn in_turns(jobs: VecDeque<Job>, size: Size) -> (VecDeque<Job>, VecDeque<Job>) {
    let mut next = choose(jobs.iter().map(|job| (Arc::as_ptr(&job.session), job.bytes())), size).into_iter();
    let (mut taken, mut left) = (VecDeque::with_capacity(size.messages), VecDeque::with_capacity(jobs.len()));
    for job in jobs {
        if next.next().unwrap_or(false) { taken.push_back(job) } else { left.push_back(job) }
    }
    (taken, left)
}

/// Which of these go first, until a transaction is full: a quarter of it is for the oldest, whatever they are, and one of them
/// goes however long it is; the rest is for each session's first small message, then each one's next. Of one session none
/// overtakes another.
fn choose<S: Copy + Eq + std::hash::Hash>(jobs: impl Iterator<Item = (S, usize)>, size: Size) -> Vec<bool> {
    let mut costs: HashMap<S, usize> = HashMap::new();
    // By what its session has asked for up to its end: a long message counts as several.
    let mut order: Vec<(usize, usize, usize)> = Vec::new();
    for (place, (session, bytes)) in jobs.enumerate() {
        let cost = costs.entry(session).or_default();
        *cost += 1 + bytes / BYTES_A_MESSAGE;
        order.push((*cost, place, bytes));
    }
    let mut chosen = vec![false; order.len()];
    let old = order.len().min(size.quarter().fits(order.iter().map(|(.., bytes)| *bytes)).max(1));
    let mut others = order.split_off(old);
    others.sort_unstable();
    let next = size.less(size.quarter()).fits(others.iter().map(|(.., bytes)| *bytes));
    for (_, place, _) in order.into_iter().chain(others.into_iter().take(next)) {
        if let Some(place) = chosen.get_mut(place) {
            *place = true;
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_sends_little_does_not_wait_for_who_sends_much() {
        // Four that fill the queue with large messages, and behind them all a hundred with a small one each.
        let large = (0..1000).map(|n| (n % 4, 16 << 10));
        let small = (0..100).map(|n| (10 + n, 500));
        let chosen = choose(large.chain(small), Size::default());
        assert!(chosen[1000..].iter().all(|chosen| *chosen), "every small one is in the next transaction");
        let large: Vec<usize> = (0..1000).filter(|n| chosen[*n]).collect();
        assert!(large.len() > 50, "and what room is left is used: {}", large.len());
        // The first of each of the four, and none behind one that waits.
        for session in 0..4 {
            let of = |chosen: bool| move |n: &&usize| chosen == (**n % 4 == session);
            let last = large.iter().filter(of(true)).max().copied().unwrap();
            assert!((0..last).filter(|n| n % 4 == session).all(|n| chosen[n]), "{session}");
        }
    }

    #[test]
    fn the_first_of_each_goes_before_the_next_of_any_and_the_oldest_go_anyway() {
        let size = Size { messages: MIN_BATCH };
        // As many as may wait of each of 64, long ones in front, and one of somebody else.
        let long = (0..64).map(|n| (n, 16 << 10));
        let many = (0..64 * 128).map(|n| (n % 64, 500));
        let chosen = choose(long.chain(many).chain([(64, 500)]), size);
        assert!(chosen[64 + 64 * 128]);
        assert!(chosen[0] && !chosen[8], "a quarter of its bytes is for the oldest");
        // And however long that is, nobody else waits for it.
        let long = (0..8).map(|_| (0, size.bytes()));
        let chosen = choose(long.chain([(1, 500)]), size);
        assert_eq!(chosen.iter().filter(|chosen| **chosen).count(), 2);
        assert!(chosen[0] && chosen[8]);
    }

    #[test]
    fn a_transaction_has_an_end_and_always_something() {
        let three = Size { messages: 3 };
        let long = 2 * three.bytes();
        assert_eq!(choose([(1, long), (2, long), (3, 1)].into_iter(), three), [true, false, true]);
        assert_eq!(choose((0..5).map(|n| (n, 1)), three), [true, true, true, false, false]);
        assert!(choose(std::iter::empty::<(u8, usize)>(), three).is_empty());
    }

    #[test]
    fn transactions_that_take_long_become_smaller_and_larger_again() {
        let mut size = Size::default();
        (0..10).for_each(|_| size.after(2 * LONG));
        assert_eq!(size.messages, MIN_BATCH);
        size.after(LONG * 3 / 4);
        assert_eq!(size.messages, MIN_BATCH);
        (0..10).for_each(|_| size.after(LONG / 4));
        assert_eq!(size.messages, MAX_BATCH);
    }
}
