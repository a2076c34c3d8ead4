//! What is counted while thousands of tasks run: atomics, and histograms in shards.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use doorward_client::connection::{ConnectError, Ended};
use hdrhistogram::Histogram;

use crate::laps::Laps;
use crate::plan::Snapshot;

/// Tasks that share a shard seldom meet on two cores, and a shard is 200 KiB.
const SHARDS: usize = 8;
/// Microseconds: from one to ten minutes, three significant digits.
const MOST: u64 = 600_000_000;

/// Counts of a run.
#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) up: AtomicU64,
    pub(crate) connected: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) sent: AtomicU64,
    pub(crate) accepted: AtomicU64,
    pub(crate) refusals: AtomicU64,
    acks: [Mutex<Histogram<u64>>; SHARDS],
    laps: Option<Arc<Laps>>,
    handshakes: Mutex<Histogram<u64>>,
    words: Mutex<Words>,
}

/// What is rare enough for a map.
#[derive(Debug, Default, Clone)]
pub(crate) struct Words {
    /// Message refusals by error.
    pub(crate) refused: BTreeMap<String, u64>,
    /// Connections that the gateway refused.
    pub(crate) connections_refused: BTreeMap<String, u64>,
    /// How sessions ended that should not have.
    pub(crate) ended: BTreeMap<String, u64>,
    /// What went wrong on this side of the wire, or on it.
    pub(crate) own: BTreeMap<String, u64>,
}

/// The sides that a connection can fail on.
pub(crate) enum Side {
    Gateway(String),
    Own(String),
}

impl Tally {
    pub(crate) fn new(laps: Option<Arc<Laps>>) -> Self {
        Self {
            laps,
            up: AtomicU64::new(0),
            connected: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
            acks: std::array::from_fn(|_| Mutex::new(histogram())),
            handshakes: Mutex::new(histogram()),
            words: Mutex::default(),
        }
    }

    pub(crate) fn add(counter: &AtomicU64, by: u64) {
        counter.fetch_add(by, Ordering::Relaxed);
    }

    /// The ack latencies of one batch.
    pub(crate) fn acked(&self, device: usize, latencies: &[Duration]) {
        let mut shard = lock(&self.acks[device % SHARDS]);
        for latency in latencies {
            shard.saturating_record(micros(*latency));
        }
        drop(shard);
        if let Some(laps) = &self.laps {
            laps.record(latencies);
        }
        Self::add(&self.accepted, u64::try_from(latencies.len()).unwrap_or(0));
    }

    pub(crate) fn welcomed(&self, took: Duration) {
        Self::add(&self.connected, 1);
        Self::add(&self.up, 1);
        lock(&self.handshakes).saturating_record(micros(took));
    }

    pub(crate) fn down(&self) {
        self.up.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn refused(&self, error: &str) {
        Self::add(&self.refusals, 1);
        count(&mut lock(&self.words).refused, error.to_owned());
    }

    pub(crate) fn ended(&self, how: &str) {
        count(&mut lock(&self.words).ended, how.to_owned());
    }

    pub(crate) fn failed(&self, error: &ConnectError) {
        Self::add(&self.failed, 1);
        let mut words = lock(&self.words);
        match side(error) {
            Side::Gateway(word) => count(&mut words.connections_refused, word),
            Side::Own(word) => count(&mut words.own, word),
        }
    }

    pub(crate) fn words(&self) -> Words {
        lock(&self.words).clone()
    }

    pub(crate) fn ack_latencies(&self) -> Histogram<u64> {
        let mut all = histogram();
        for shard in &self.acks {
            // Of one shape, so that nothing is out of range.
            let _ = all.add(&*lock(shard));
        }
        all
    }

    pub(crate) fn handshake_latencies(&self) -> Histogram<u64> {
        lock(&self.handshakes).clone()
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Snapshot {
            up: of(&self.up),
            sent: of(&self.sent),
            accepted: of(&self.accepted),
            refused: of(&self.refusals),
        }
    }
}

pub(crate) fn histogram() -> Histogram<u64> {
    #[expect(clippy::expect_used, reason = "the bounds are constants that the library takes")]
    Histogram::new_with_bounds(1, MOST, 3).expect("1 to 600,000,000 with three digits")
}

pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(MOST).max(1)
}

/// A counter is right whatever panicked beside it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn count(map: &mut BTreeMap<String, u64>, word: String) {
    // The words are the gateway's: a hostile one must not fill the map.
    if map.len() < 64 || map.contains_key(&word) {
        *map.entry(word).or_default() += 1;
    }
}

/// Whether the gateway refused or this side failed, and the word for it.
pub(crate) fn side(error: &ConnectError) -> Side {
    match error {
        ConnectError::Refused(refused) => {
            let word = refused.problem.as_ref().map_or("no problem document", |problem| problem.word());
            Side::Gateway(format!("{} {}", refused.status, word.chars().take(64).collect::<String>()))
        }
        ConnectError::Alert(alert) => Side::Gateway(format!("TLS alert {alert:?}")),
        ConnectError::Local(error) if matches!(error.raw_os_error(), Some(23 | 24)) => {
            Side::Own("no file descriptor left".to_owned())
        }
        ConnectError::Local(_) => Side::Own("no local address or port left".to_owned()),
        ConnectError::Resolve(_) => Side::Own("name lookup failed".to_owned()),
        ConnectError::Timeout(phase) => Side::Own(format!("timeout: {phase}")),
        ConnectError::Network { phase, error } => Side::Own(match error.kind() {
            io::ErrorKind::ConnectionRefused => "connection refused: nothing listens".to_owned(),
            kind => format!("network: {kind} during {phase}"),
        }),
        ConnectError::Untrusted(_) => Side::Own("the gateway's certificate is not trusted".to_owned()),
        _ => Side::Own("what answered is no gateway of this protocol".to_owned()),
    }
}

/// How a session ended, as a label.
pub(crate) fn end_label(ended: &Ended) -> String {
    match ended {
        Ended::Closed { close } => format!("{} {}", close.code(), close.label()),
        Ended::ClosedOddly { code: Some(code) } => format!("{code} unknown"),
        Ended::ClosedOddly { code: None } => "close frame without a code".to_owned(),
        Ended::Alert(alert) => format!("TLS alert {alert:?}"),
        Ended::Lost(_) => "connection lost".to_owned(),
        _ => "the gateway broke the WebSocket protocol".to_owned(),
    }
}
