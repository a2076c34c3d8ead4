//! What a device may cost, and what it has used of that.

mod bucket;
mod fleet;
mod usage;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use bucket::Bucket;
pub use fleet::{FleetLimits, LimitsError};
pub use usage::Usage;

/// The limits of a session: the first four stand in `welcome`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The longest message in either direction, in bytes of the text.
    pub max_message_bytes: usize,
    /// How far a message's `iat` may lie from the gateway's clock.
    pub max_skew: Duration,
    /// How often the gateway pings; what is silent for two and a half of it is gone.
    pub heartbeat: Duration,
    /// Messages a second, and at once.
    pub rate: Rate,
    /// Bytes of messages a second, and at once. One message may be longer than that: it takes a full bucket, and what is over
    /// is owed.
    pub bytes: Rate,
    /// This many strikes within the gateway's window end a session.
    pub strikes: usize,
    /// Bytes that may wait for the device to read them.
    pub outgoing_bytes: usize,
    /// Connections of the device.
    pub connects: Connects,
}

/// A rate of messages or bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// So many a second, in the long run.
    pub per_second: u32,
    /// So many at once, after a silence.
    pub burst: u32,
}

/// How often a device may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connects {
    /// Connections a minute, in the long run.
    pub per_minute: u32,
    /// Connections at once, after a silence.
    pub burst: u32,
}

impl Default for Limits {
    /// The protocol's; and where it has none, what no sensor meets.
    fn default() -> Self {
        Self {
            max_message_bytes: 64 << 10,
            max_skew: Duration::from_secs(60),
            heartbeat: Duration::from_secs(30),
            rate: Rate { per_second: 100, burst: 1000 },
            bytes: Rate { per_second: 256 << 10, burst: 4 << 20 },
            strikes: 5,
            outgoing_bytes: 256 << 10,
            connects: Connects { per_minute: 30, burst: 60 },
        }
    }
}

impl Limits {
    /// After how long a silence the other end is given up: two heartbeats and a half.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.heartbeat.saturating_mul(5) / 2
    }
}

impl Connects {
    /// The bucket's rate: a connection takes [`Connects::TOKENS`].
    #[must_use]
    pub fn rate(self) -> Rate {
        Rate { per_second: self.per_minute, burst: self.burst.saturating_mul(Self::TOKENS) }
    }

    /// What a connection takes of a bucket of [`Connects::rate`].
    pub const TOKENS: u32 = 60;
}
