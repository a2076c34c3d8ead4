//! Look-ups of many waiting handshakes, gathered: while queries are under way those that come wait for the next one, so
//! that a fleet that reconnects in one second costs a few queries and never the registry's last connection.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use doorward_pki::Fingerprint;
use tokio::sync::oneshot;

use super::{QUERY_DEADLINE, Record, Registry, RegistryError, Result};
use crate::clock;

/// Certificates of one query.
const AT_ONCE: usize = 256;
/// Queries at a time: fewer than the registry's connections, so that the feed and the store always find one.
const QUERIES: usize = 2;
/// Handshakes that wait; more of them are told to come back.
const MOST_WAITING: usize = 16_384;
/// How long a certificate that is in no row is refused without asking again, unless a device changes meanwhile.
const UNKNOWN_FOR: Duration = Duration::from_secs(2);
/// Such certificates; what comes beyond is asked for each time.
const MOST_UNKNOWN: usize = 4096;

type Asked = (Fingerprint, oneshot::Sender<Result<Option<Record>>>);

/// The way to the registry for those at the door.
pub(crate) struct Lookups {
    registry: Arc<dyn Registry>,
    /// Where queries are made, wherever the answer is wanted: a connection to the registry belongs to the threads that opened it.
    threads: tokio::runtime::Handle,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Asked>,
    queries: usize,
    /// Until when, on the monotonic clock.
    unknown: HashMap<Fingerprint, Duration>,
    /// Counts changes: an answer that is older than the last one is not remembered.
    changes: u64,
}

impl Lookups {
    pub(crate) fn new(registry: Arc<dyn Registry>, threads: tokio::runtime::Handle) -> Self {
        Self { registry, threads, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change leaves the state whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The record behind a certificate, read after this call.
    pub(crate) async fn look_up(self: &Arc<Self>, certificate: &Fingerprint) -> Result<Option<Record>> {
        let (answer, answered) = oneshot::channel();
        {
            let mut state = self.lock();
            let now = clock::now().monotonic;
            if state.unknown.get(certificate).is_some_and(|until| now < *until) {
                return Ok(None);
            }
            if state.waiting.len() >= MOST_WAITING {
                return Err(RegistryError::Unavailable("too many look-ups wait already".to_owned()));
            }
            state.waiting.push_back((*certificate, answer));
            if state.queries < QUERIES {
                state.queries += 1;
                self.threads.spawn(Arc::clone(self).work());
            }
        }
        match tokio::time::timeout(QUERY_DEADLINE, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(RegistryError::Internal("a look-up has failed".to_owned())),
            Err(_) => {
                Err(RegistryError::Unavailable(format!("no answer within {} s", QUERY_DEADLINE.as_secs())))
            }
        }
    }

    /// A device has changed: what was in no row may be in one.
    pub(crate) fn devices_changed(&self) {
        let mut state = self.lock();
        state.unknown.clear();
        state.changes += 1;
    }

    /// The registry is away: who waits for it need not wait any longer.
    pub(crate) fn give_up(&self, error: &RegistryError) {
        let waiting = std::mem::take(&mut self.lock().waiting);
        for (_, answer) in waiting {
            // Who has gone away needs no answer.
            let _ = answer.send(Err(error.clone()));
        }
    }

    /// Queries until nobody waits.
    async fn work(self: Arc<Self>) {
        let mut turn = Turn { lookups: &self, over: false };
        while let Some((asked, changes)) = self.take() {
            self.query(asked, changes).await;
        }
        turn.over = true;
    }

    /// The next query's; `None` where nobody waits, and the turn is given back in the same breath.
    fn take(&self) -> Option<(Vec<Asked>, u64)> {
        let mut state = self.lock();
        state.waiting.retain(|(_, answer)| !answer.is_closed());
        if state.waiting.is_empty() {
            state.queries -= 1;
            return None;
        }
        let now = state.waiting.len().min(AT_ONCE);
        let asked = state.waiting.drain(..now).collect();
        Some((asked, state.changes))
    }

    async fn query(&self, asked: Vec<Asked>, changes: u64) {
        let certificates: HashSet<Fingerprint> = asked.iter().map(|(certificate, _)| *certificate).collect();
        let certificates: Vec<Fingerprint> = certificates.into_iter().collect();
        let mut found = self.registry.look_up_all(&certificates).await;
        if let Ok(records) = &found {
            let missing = certificates.iter().filter(|certificate| !records.contains_key(certificate));
            self.remember_unknown(missing, changes);
        }
        for (certificate, answer) in asked {
            let record = match &mut found {
                Ok(records) => records.get(&certificate).cloned().transpose(),
                Err(error) => Err(error.clone()),
            };
            // Who has gone away needs no answer.
            let _ = answer.send(record);
        }
    }

    fn remember_unknown<'a>(&self, missing: impl Iterator<Item = &'a Fingerprint>, changes: u64) {
        let now = clock::now().monotonic;
        let mut state = self.lock();
        if state.changes != changes {
            return;
        }
        for certificate in missing {
            if state.unknown.len() >= MOST_UNKNOWN {
                state.unknown.retain(|_, until| now < *until);
            }
            if state.unknown.len() >= MOST_UNKNOWN {
                return;
            }
            state.unknown.insert(*certificate, now + UNKNOWN_FOR);
        }
    }
}

/// A turn to query, given back also where it fails.
struct Turn<'a> {
    lookups: &'a Lookups,
    over: bool,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.lookups.lock().queries -= 1;
        }
    }
}
