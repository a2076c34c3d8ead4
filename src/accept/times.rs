//! How long the phases of a handshake may take, and whose fault it is when one takes longer.

use std::time::Duration;

use tokio::time::Instant;

use super::Outcome;
use crate::clock;
use crate::config::LimitsSection;

/// By when a handshake has to have come so far.
pub(super) struct Times {
    pub(super) hello: Instant,
    request: Duration,
    /// Who has had so long from its turn on, and is not through TLS, is late by itself…
    pub(super) tls: Duration,
    /// …and so for its request.
    pub(super) its_request: Duration,
    pub(super) end: Instant,
}

impl Times {
    pub(super) fn new(limits: &LimitsSection) -> Self {
        let now = clock::now().monotonic;
        let end = clock::instant(now + limits.handshake_timeout.0);
        let hello = clock::instant(now + limits.hello_timeout.0).min(end);
        let most = limits.handshake_timeout.0 / 2;
        let (tls, request) = (limits.hello_timeout.0.min(most), limits.request_timeout.0);
        Self { hello, tls, request, its_request: request.min(most), end }
    }

    /// What a peer was late with that was waited for since then. Where the gateway had kept it waiting for its turn until the
    /// deadline was near, the peer has not had its time, and it is no failure of its.
    pub(super) fn late(what: &'static str, since: Instant, its_time: Duration) -> Outcome {
        let now = clock::instant(clock::now().monotonic);
        Outcome::Late { what, by_the_peer: now.saturating_duration_since(since) >= its_time }
    }

    /// Of a request that may come from now on.
    pub(super) fn of_request(&self) -> Instant {
        clock::instant(clock::now().monotonic + self.request).min(self.end)
    }
}
