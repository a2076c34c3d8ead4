//! Who is here: at most one proven and one unproven session a device, and those that are being admitted.
//!
//! Admission registers the device here *before* it looks it up ([`Sessions::watch`]). A change that the feed applies
//! meanwhile marks the watch, and [`Sessions::enter`] refuses a marked one: the look-up is made again. So the record that
//! a session starts with is never older than the last change applied.

mod handle;
mod spent;
mod takeovers;
mod tally;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use doorward_proto::close::Close;
use doorward_proto::ids::{DeviceId, FleetId};
use tokio::sync::Notify;

use super::mailbox::Ending;
use crate::clock;

pub(crate) use handle::Handle;
pub(crate) use spent::Spent;
use takeovers::Takeovers;

/// Devices without a session of which something is remembered, beside as many as may have one. Each takes some 400 bytes, and 800 at most.
pub(crate) const MAX_REMEMBERED: usize = 65_536;

#[derive(Debug, Default)]
struct Entry {
    proven: Option<Arc<Handle>>,
    unproven: Option<Arc<Handle>>,
    watches: Vec<Arc<AtomicBool>>,
    takeovers: Takeovers,
    spent: Arc<Spent>,
}

impl Entry {
    fn is_empty(&self, now: Duration) -> bool {
        !self.is_here()
            && self.takeovers.wait(now).is_none()
            // Who has lost its session to one elsewhere is not here, and what it has lost still counts.
            && !self.takeovers.counting(now)
            && self.spent.is_over(now)
    }

    /// Whether the device has a session or is being admitted.
    fn is_here(&self) -> bool {
        self.proven.is_some() || self.unproven.is_some() || !self.watches.is_empty()
    }
}

/// What a session's proof came to.
#[derive(Debug)]
pub(crate) enum Proof {
    /// It has the device's place.
    Taken,
    /// It has the device's place, which has changed hands too often; whose it was before.
    Suspicious(Arc<Handle>),
    /// It is not the device's unproven session any more.
    Late,
}

/// All sessions of a gateway, and what is remembered of devices that have none. Bounded by the connections that it accepts,
/// and by [`MAX_REMEMBERED`].
#[derive(Debug)]
pub(crate) struct Sessions {
    entries: Mutex<HashMap<DeviceId, Entry>>,
    /// The most entries that may be left behind.
    most: usize,
    /// Told whenever a session has left.
    left: Notify,
}

/// An admission under way.
#[derive(Debug)]
pub(crate) struct Watch<'a> {
    sessions: &'a Sessions,
    device: DeviceId,
    changed: Arc<AtomicBool>,
    spent: Arc<Spent>,
}

impl Watch<'_> {
    /// Forgets what has changed so far; to be called before each look-up.
    pub(crate) fn reset(&self) {
        self.changed.store(false, Ordering::SeqCst);
    }

    /// What the device has used of its limits.
    pub(crate) fn spent(&self) -> &Arc<Spent> {
        &self.spent
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let mut entries = self.sessions.lock();
        if let Some(entry) = entries.get_mut(&self.device) {
            entry.watches.retain(|watch| !Arc::ptr_eq(watch, &self.changed));
            self.sessions.tidy(&mut entries, &self.device);
        }
    }
}

impl Default for Sessions {
    fn default() -> Self {
        Self::new(0)
    }
}

impl Sessions {
    /// For so many connections at once.
    pub(crate) fn new(connections: usize) -> Self {
        Self { entries: Mutex::default(), most: connections + MAX_REMEMBERED, left: Notify::new() }
    }

    /// Forgets a device that is not here, if nothing of it counts; or if too many are remembered already.
    fn tidy(&self, entries: &mut HashMap<DeviceId, Entry>, device: &DeviceId) {
        let full = entries.len() > self.most;
        let is_over = |entry: &Entry| !entry.is_here() && (full || entry.is_empty(clock::now().monotonic));
        if entries.get(device).is_some_and(is_over) {
            entries.remove(device);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<DeviceId, Entry>> {
        // Each change leaves the table whole before anything can panic.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an admission of the device that a certificate names.
    pub(crate) fn watch(&self, device: &DeviceId) -> Watch<'_> {
        let changed = Arc::new(AtomicBool::new(false));
        let mut entries = self.lock();
        let entry = entries.entry(device.clone()).or_default();
        entry.watches.push(Arc::clone(&changed));
        Watch { sessions: self, device: device.clone(), changed, spent: Arc::clone(&entry.spent) }
    }

    /// Ends an admission with an unproven session, unless its record may have changed: then it has to be asked again.
    /// An older unproven session of the device ends. `keep` is called where the record holds, before any change is heard.
    pub(crate) fn enter(&self, watch: &Watch<'_>, handle: &Arc<Handle>, keep: impl FnOnce()) -> bool {
        let mut entries = self.lock();
        if watch.changed.load(Ordering::SeqCst) {
            return false;
        }
        keep();
        let entry = entries.entry(handle.device.clone()).or_default();
        if let Some(older) = entry.unproven.replace(Arc::clone(handle)) {
            // Not 4009: that is for a newer session that is proven, and would keep an honest device away for a minute at
            // the word of whoever holds its certificate.
            older.mailbox.put_ending(Ending::now(Close::Unproven));
        }
        true
    }

    /// How long a device has to wait before it may connect: it has been taken over again and again.
    pub(crate) fn throttled(&self, device: &DeviceId, now: Duration) -> Option<Duration> {
        self.lock().get(device)?.takeovers.wait(now)
    }

    /// A session has lost its device's place to one at another gateway; whether the place has changed hands too often.
    pub(crate) fn taken_elsewhere(&self, handle: &Handle, now: Duration) -> bool {
        self.lock().get_mut(&handle.device).is_some_and(|entry| entry.takeovers.add(now))
    }

    /// Forgets waits and counts that are over.
    pub(crate) fn sweep(&self, now: Duration) {
        self.lock().retain(|_, entry| !entry.is_empty(now));
    }

    /// The session has been proven: it takes the device's place, and the one that had it ends.
    pub(crate) fn prove(&self, handle: &Arc<Handle>, now: Duration) -> Proof {
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(&handle.device) else { return Proof::Late };
        if !entry.unproven.as_ref().is_some_and(|unproven| Arc::ptr_eq(unproven, handle)) {
            return Proof::Late;
        }
        entry.unproven = None;
        let Some(older) = entry.proven.replace(Arc::clone(handle)) else { return Proof::Taken };
        older.mailbox.put_ending(Ending::now(Close::Superseded));
        if entry.takeovers.add(now) { Proof::Suspicious(older) } else { Proof::Taken }
    }

    /// The session has ended. Whether it was the device's proven one.
    pub(crate) fn leave(&self, handle: &Arc<Handle>) -> bool {
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(&handle.device) else { return false };
        let take =
            |place: &mut Option<Arc<Handle>>| place.take_if(|other| Arc::ptr_eq(other, handle)).is_some();
        let was_proven = take(&mut entry.proven);
        take(&mut entry.unproven);
        self.tidy(&mut entries, &handle.device);
        drop(entries);
        self.left.notify_waiters();
        was_proven
    }

    /// Waits until none of these is here any more, or for so long.
    pub(crate) async fn gone(&self, handles: &[Arc<Handle>], patience: Duration) {
        let all_gone = async {
            loop {
                // Listening begins before looking: who leaves in between is heard.
                let left = self.left.notified();
                if !handles.iter().any(|handle| self.has(handle)) {
                    return;
                }
                left.await;
            }
        };
        // They process nothing any more, whether they have left or not.
        let _ = tokio::time::timeout(patience, all_gone).await;
    }

    fn has(&self, handle: &Arc<Handle>) -> bool {
        let entries = self.lock();
        let Some(entry) = entries.get(&handle.device) else { return false };
        entry.proven.iter().chain(&entry.unproven).any(|other| Arc::ptr_eq(other, handle))
    }

    /// The device's row, certificates or keys have changed. Its sessions, to be judged again.
    pub(crate) fn device_changed(&self, device: &DeviceId) -> Vec<Arc<Handle>> {
        self.lock().get(device).map(changed).unwrap_or_default()
    }

    /// The device's session of this name.
    pub(crate) fn find(&self, device: &DeviceId, session: &str) -> Option<Arc<Handle>> {
        let entries = self.lock();
        let entry = entries.get(device)?;
        entry.proven.iter().chain(&entry.unproven).find(|handle| &*handle.id == session).cloned()
    }

    /// A fleet has changed. Its sessions, to be judged again; who is being admitted may belong to it.
    pub(crate) fn fleet_changed(&self, fleet: &FleetId) -> Vec<Arc<Handle>> {
        let of_fleet = |handle: &Arc<Handle>| handle.is_in(fleet);
        self.lock().values().flat_map(changed).filter(of_fleet).collect()
    }

    /// Anything may have changed. All sessions, to be judged again.
    pub(crate) fn all_changed(&self) -> Vec<Arc<Handle>> {
        self.lock().values().flat_map(changed).collect()
    }

    /// All sessions.
    pub(crate) fn all(&self) -> Vec<Arc<Handle>> {
        let all = self.lock();
        all.values().flat_map(|entry| entry.proven.iter().chain(&entry.unproven)).cloned().collect()
    }

    /// All sessions that are proven.
    pub(crate) fn proven(&self) -> Vec<Arc<Handle>> {
        self.lock().values().filter_map(|entry| entry.proven.clone()).collect()
    }

    /// Does something with each session that is proven. None is proven meanwhile.
    pub(crate) fn each_proven(&self, mut act: impl FnMut(&Handle)) {
        for handle in self.lock().values().filter_map(|entry| entry.proven.as_ref()) {
            act(handle);
        }
    }

    /// Proven sessions that the store has refused a message since the last call.
    pub(crate) fn suspects(&self) -> Vec<Arc<Handle>> {
        let proven = self.lock();
        let suspect = |handle: &&Arc<Handle>| handle.suspect.swap(false, Ordering::SeqCst);
        proven.values().filter_map(|entry| entry.proven.as_ref()).filter(suspect).cloned().collect()
    }

    /// Ends every session, as each one's ending says.
    pub(crate) fn end_all(&self, ending: impl Fn() -> Ending) {
        for entry in self.lock().values() {
            for handle in entry.proven.iter().chain(&entry.unproven) {
                handle.mailbox.put_ending(ending());
            }
        }
    }

    /// The place of each device that was proven, and for how long that is known still.
    pub(crate) fn each_home(&self, now: Duration, mut act: impl FnMut(&DeviceId, IpAddr, Duration)) {
        for (device, entry) in &*self.lock() {
            if let Some((home, left)) = entry.spent.home(now) {
                act(device, home, left);
            }
        }
    }

    /// An earlier run has known a device's place for so long.
    pub(crate) fn recall(&self, device: DeviceId, home: IpAddr, left: Duration, now: Duration) {
        let mut entries = self.lock();
        if entries.len() < self.most {
            entries.entry(device).or_default().spent.recall(home, left, now);
        }
    }

    /// How many devices are here.
    pub(crate) fn count(&self) -> usize {
        self.lock().values().filter(|entry| entry.is_here()).count()
    }
}

fn changed(entry: &Entry) -> Vec<Arc<Handle>> {
    entry.spent.ask_anew();
    for watch in &entry.watches {
        watch.store(true, Ordering::SeqCst);
    }
    entry.proven.iter().chain(&entry.unproven).cloned().collect()
}

#[cfg(test)]
pub(super) mod testing {
    use std::net::SocketAddr;

    use doorward_pki::identity::Fingerprint;

    use super::*;

    /// A session that nobody has opened.
    pub(crate) fn handle(device: &str, id: &str) -> Arc<Handle> {
        Arc::new(Handle::new(
            id.into(),
            DeviceId::new(device).unwrap(),
            FleetId::new("default").unwrap(),
            SocketAddr::from(([192, 0, 2, 1], 4000)),
            Fingerprint::of(id.as_bytes()),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::takeovers::{CLONE_THROTTLE, MAX_TAKEOVERS, TAKEOVER_WINDOW};
    use super::testing::handle;
    use super::*;

    const NOW: Duration = Duration::from_secs(1000);

    fn ending(handle: &Handle) -> Option<Close> {
        handle.mailbox.take().close.map(|ending| ending.close)
    }

    #[test]
    fn an_unproven_session_evicts_nobody_and_a_proven_one_does() {
        let sessions = Sessions::default();
        let (first, second) = (handle("a", "1"), handle("a", "2"));
        for handle in [&first, &second] {
            assert!(sessions.enter(&sessions.watch(&handle.device), handle, || {}));
            if Arc::ptr_eq(handle, &first) {
                assert!(matches!(sessions.prove(&first, NOW), Proof::Taken));
            }
        }
        assert_eq!(ending(&first), None);
        assert!(matches!(sessions.prove(&second, NOW), Proof::Taken));
        assert_eq!(ending(&first), Some(Close::Superseded));
        assert!(!sessions.leave(&first), "the place is the second's by now");
        assert!(sessions.leave(&second));
        assert_eq!(sessions.count(), 0);
    }

    #[test]
    fn the_newer_unproven_session_wins() {
        let sessions = Sessions::default();
        let (first, second) = (handle("a", "1"), handle("a", "2"));
        assert!(sessions.enter(&sessions.watch(&first.device), &first, || {}));
        assert!(sessions.enter(&sessions.watch(&second.device), &second, || {}));
        assert_eq!(ending(&first), Some(Close::Unproven));
        assert!(matches!(sessions.prove(&first, NOW), Proof::Late));
    }

    #[test]
    fn a_change_during_admission_is_never_missed() {
        let sessions = Sessions::default();
        let session = handle("a", "1");
        let watch = sessions.watch(&session.device);
        watch.reset();
        sessions.device_changed(&session.device);
        assert!(!sessions.enter(&watch, &session, || {}));
        watch.reset();
        sessions.fleet_changed(&FleetId::new("other").unwrap());
        assert!(!sessions.enter(&watch, &session, || {}), "which fleet it belongs to is not known yet");
        watch.reset();
        assert!(sessions.enter(&watch, &session, || {}));
        drop(watch);
        assert_eq!(sessions.device_changed(&session.device).len(), 1);
    }

    #[test]
    fn a_device_that_is_taken_over_again_and_again_is_slowed_down_and_that_ends_by_itself() {
        let sessions = Sessions::default();
        let take = |n: u32, now: Duration| {
            let handle = handle("a", &n.to_string());
            assert!(sessions.enter(&sessions.watch(&handle.device), &handle, || {}));
            (sessions.prove(&handle, now), handle)
        };
        let (_, mut last) = take(0, NOW);
        // So seldom it is a device with a bad network.
        for n in 1..8 {
            let (proof, handle) = take(n, NOW + TAKEOVER_WINDOW * n / 2);
            assert!(matches!(proof, Proof::Taken), "{n}");
            last = handle;
        }
        let soon = NOW + TAKEOVER_WINDOW * 10;
        for n in 1..MAX_TAKEOVERS {
            assert!(matches!(take(n, soon).0, Proof::Taken), "{n}");
        }
        assert_eq!(sessions.throttled(&last.device, soon), None);
        let (proof, newest) = take(99, soon);
        assert!(matches!(proof, Proof::Suspicious(_)));
        assert_eq!(sessions.throttled(&newest.device, soon), Some(CLONE_THROTTLE));
        assert_eq!(ending(&newest), None, "who has the session keeps it");
        assert_eq!(sessions.throttled(&newest.device, soon + CLONE_THROTTLE), None);
        sessions.leave(&newest);
        assert_eq!(sessions.count(), 0);
        sessions.sweep(soon + CLONE_THROTTLE);
        assert!(sessions.lock().is_empty());
    }

    /// An honest device, which stays away for a minute, and a clone at another gateway that comes back at once.
    #[test]
    fn takeovers_by_another_gateway_count_though_nobody_is_left_here() {
        let sessions = Sessions::default();
        let minute = Duration::from_secs(60);
        let lose = |n: u32, now: Duration| {
            let handle = handle("a", &n.to_string());
            assert!(sessions.enter(&sessions.watch(&handle.device), &handle, || {}));
            assert!(matches!(sessions.prove(&handle, now), Proof::Taken), "nobody had the place here");
            let too_many = sessions.taken_elsewhere(&handle, now);
            sessions.leave(&handle);
            sessions.sweep(now);
            (too_many, handle)
        };
        for n in 1..MAX_TAKEOVERS {
            assert!(!lose(n, NOW + minute * n).0, "{n}");
        }
        let now = NOW + minute * MAX_TAKEOVERS;
        let (too_many, handle) = lose(99, now);
        assert!(too_many);
        assert_eq!(sessions.throttled(&handle.device, now), Some(CLONE_THROTTLE));
        assert_eq!(sessions.count(), 0);
        // One that counts is forgotten in its time.
        let later = now + CLONE_THROTTLE;
        assert!(!lose(100, later).0);
        assert!(!sessions.lock().is_empty());
        sessions.sweep(later + TAKEOVER_WINDOW);
        assert!(sessions.lock().is_empty());
        assert!(!sessions.taken_elsewhere(&handle, later + TAKEOVER_WINDOW), "not here at all");
    }
}
