//! Latencies of parts of a run.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::report::Latency;
use crate::tally::{histogram, micros};

/// Ack latencies since they were last taken, while a run goes on: what an operation does to them.
#[derive(Debug)]
pub struct Laps(Mutex<Histogram<u64>>);

impl Default for Laps {
    fn default() -> Self {
        Self(Mutex::new(histogram()))
    }
}

impl Laps {
    pub(crate) fn record(&self, latencies: &[Duration]) {
        let mut lap = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for latency in latencies {
            lap.saturating_record(micros(*latency));
        }
    }

    /// Those since the last call.
    pub fn take(&self) -> Latency {
        let mut lap = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let latency = Latency::of(&lap);
        lap.reset();
        latency
    }
}
