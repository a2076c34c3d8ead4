//! What waits for the writer. Bounded: publishes by number, everything else by the number of devices.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use doorward_proto::ids::DeviceId;
use time::OffsetDateTime;
use tokio::sync::{Notify, watch};

use super::lines::{Lines, Waits as _};
use super::size::Size;
use super::{Arc, Claim, Handle, Job, NewEvent, Waker};
use crate::clock;
use crate::metrics::store::StoreMeters;
use crate::registry::Batch;

/// Events that wait; more of them are counted and dropped, for the log has said them already.
const MAX_EVENTS: usize = 1024;
/// Bytes of the publishes that wait: `limits.store_queue` counts them, and they may be large.
pub(crate) const MAX_BYTES: usize = 64 << 20;
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
    jobs: Lines<Job>,
    /// Sessions that were heard; the newest time counts.
    pub(super) seen: HashMap<DeviceId, (Arc<str>, OffsetDateTime)>,
    /// Sessions that have ended; of a device only the newest counts.
    pub(super) releases: HashMap<DeviceId, Arc<str>>,
    pub(super) events: Vec<NewEvent>,
    /// Sessions that found no room.
    waiting: Vec<Waker>,
}

/// What was taken for a transaction.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) jobs: Vec<Job>,
    /// Some are of who has little waiting, some of who has much.
    pub(super) mixed: bool,
    /// What there is besides publishes.
    pub(super) rest: Queue,
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
        let bytes = queue.jobs.bytes() + job.bytes();
        // One always finds room, however large.
        let full = queue.jobs.len() >= self.most || (bytes > MAX_BYTES && !queue.jobs.is_empty());
        // The second half is for sessions of which nothing waits: a few cannot keep all others out.
        let crowded = queue.jobs.len() >= self.most / 2 || bytes > MAX_BYTES / 2;
        if full || crowded && !job.session.backlog.is_empty() {
            queue.waiting.push(waker.clone());
            return Err(NoRoom::Full(Box::new(job)));
        }
        queue.jobs.push(job);
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
            bytes: queue.jobs.bytes(),
            oldest: queue.jobs.oldest().map_or(Duration::ZERO, |since| now.saturating_sub(since)),
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

    /// Takes what has gathered, publishes up to a transaction's size, and lets those in who found no room.
    ///
    /// All claims go with it: a publish behind its session's claim would be taken for an older session's.
    pub(super) fn take(&self, size: Size) -> Taken {
        let mut queue = self.lock();
        let (jobs, mixed) = queue.jobs.take(size);
        let left = std::mem::take(&mut queue.jobs);
        let mut taken = std::mem::take(&mut *queue);
        queue.jobs = left;
        let more = !queue.is_empty();
        drop(queue);
        for waker in taken.waiting.drain(..) {
            waker.wake();
        }
        if more {
            self.filled.notify_one();
        }
        Taken { jobs, mixed, rest: taken }
    }

    /// Gives back what a failed transaction was to write besides publishes, for the next one. What has come since is
    /// newer and stays.
    pub(super) fn put_back(&self, batch: Batch) {
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
    pub(super) fn take_older(&self, since: Duration) -> Vec<Job> {
        let mut queue = self.lock();
        let taken = queue.jobs.take_older(since);
        let waiting = if taken.is_empty() { Vec::new() } else { std::mem::take(&mut queue.waiting) };
        drop(queue);
        waiting.into_iter().for_each(Waker::wake);
        taken
    }
}
