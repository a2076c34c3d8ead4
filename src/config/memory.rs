//! The most memory that a gateway takes by its configuration, whoever comes. docs/operations.md has the formula.

use std::time::Duration;

use super::Config;
use crate::accept::Addresses;
use crate::gateway::MAX_DELIVERY_BYTES;
use crate::gateway::sessions::MAX_REMEMBERED;
use crate::sink::MAX_BYTES;
use crate::traces::{BATCH, SPAN_BYTES};

const KIB: usize = 1 << 10;
/// The program, its connections to the database and what those cache.
const PROGRAM: usize = 96 << 20;
/// A task, a table's entry, a socket's object, keys and counters of TLS and of a session: 12 to 15 KiB when nothing waits.
const SESSION: usize = 16 * KIB;
/// What rustls holds at most: a record that is not whole yet, one that is read, and 64 KiB that are not written.
const TLS: usize = 100 * KIB;
/// Of a handshake: a flight that is not whole yet, and a request's head twice.
const HANDSHAKE: usize = 64 * KIB + 2 * 8 * KIB;
/// Beside its bytes, what is kept of a publish until it is decided, and of a subscription.
const SMALL: usize = 512;

/// What is remembered of a device that is not connected: its id, its buckets and strikes, certificates of its that are refused;
/// and its line while it is written to `state/`.
const REMEMBERED: usize = 800;

/// The bounds, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Of one session of a device that is known and does its worst.
    pub session: usize,
    /// Of one connection before anybody is known.
    pub stranger: usize,
    /// Of what is remembered of addresses. It is taken at the start.
    pub addresses: usize,
    /// Of what is remembered of devices that are not connected.
    pub devices: usize,
    /// Of publishes that wait for the store, and of those that it is writing.
    pub store: usize,
    /// Of traces under way and of spans that wait for their collector.
    pub traces: usize,
    /// All of it, with every place taken by sessions that do their worst.
    pub at_most: usize,
    /// All of it while every place is taken by strangers.
    pub of_strangers: usize,
}

impl Memory {
    /// What a configuration allows.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let limits = &config.limits;
        let (message, outgoing) = (limits.message_bytes, limits.outgoing_bytes);
        // A frame that is read and the message that it ends; what waits to be sent, in the session and in its WebSocket;
        // what its subscriptions have brought.
        let strikes = limits.strikes * size_of::<Duration>();
        let session = SESSION
            + strikes
            + TLS
            + 2 * message
            + 3 * outgoing
            + 8 * KIB
            + MAX_DELIVERY_BYTES
            + message
            + SMALL * (limits.undecided + limits.subscriptions);
        let stranger = SESSION + HANDSHAKE;
        let addresses = Addresses::bytes(&config.addresses) + config.addresses.waiting * SESSION;
        // The queue, and as much again that a transaction may have taken out of it.
        let waiting = limits.store_queue.saturating_mul(message + SMALL).min(MAX_BYTES + message);
        let store = 2 * waiting;
        let devices = MAX_REMEMBERED * (REMEMBERED + strikes);
        let traces = traces(config);
        let fixed = PROGRAM + addresses + devices + store + traces;
        let all = |each: usize| limits.connections.saturating_mul(each).saturating_add(fixed);
        Self {
            session,
            stranger,
            addresses,
            devices,
            store,
            traces,
            at_most: all(session.max(stranger)),
            of_strangers: all(stranger),
        }
    }
}

/// What waits, a request that is made of the same, and what was begun and may not have ended yet.
fn traces(config: &Config) -> usize {
    let Config { traces, limits, session, .. } = config;
    if traces.endpoint.is_empty() {
        return 0;
    }
    let longest = limits.handshake_timeout.0 + session.proof_within.0 + session.max_skew.0;
    let seconds = usize::try_from(longest.as_secs()).unwrap_or(usize::MAX).saturating_add(2);
    let begun = (2 * traces.per_second).saturating_mul(seconds);
    begun.saturating_add(traces.queue + 2 * BATCH).saturating_mul(SPAN_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_that_costs_memory_is_in_the_bound() {
        let default = Memory::of(&Config::default());
        let wider = |edit: fn(&mut Config)| {
            let mut config = Config::default();
            edit(&mut config);
            assert!(Memory::of(&config).at_most > default.at_most, "{config:?}");
        };
        wider(|config| config.limits.connections += 1);
        wider(|config| config.limits.message_bytes += 1);
        wider(|config| config.limits.outgoing_bytes += 1);
        wider(|config| config.limits.undecided += 1);
        wider(|config| config.limits.subscriptions += 1);
        wider(|config| config.addresses.remembered += 8);
        wider(|config| config.addresses.waiting += 1);
        wider(|config| config.limits.strikes += 1);
        wider(|config| "http://127.0.0.1:4318".clone_into(&mut config.traces.endpoint));
        assert!(default.of_strangers < default.at_most / 4, "{default:?}");
        assert!(default.addresses < 32 << 20, "{default:?}");
    }
}
