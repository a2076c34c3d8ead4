//! `[limits]`: what connections and sessions may cost.

use serde::{Deserialize, Serialize};

use super::{Span, Wrong, check_counts, check_spans};

/// `[limits]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsSection {
    /// Connections at once, sessions and handshakes together.
    pub connections: usize,
    /// Handshakes computed at once; the others wait their turn.
    pub handshakes: usize,
    /// One deadline over TCP, TLS and upgrade.
    pub handshake_timeout: Span,
    /// Until the whole TLS hello has come.
    pub hello_timeout: Span,
    /// From the end of TLS until the whole request has come.
    pub request_timeout: Span,
    /// The longest message, in bytes.
    pub message_bytes: usize,
    /// Messages a second of one device.
    pub rate_per_second: u32,
    /// Messages of one device at once.
    pub rate_burst: u32,
    /// Bytes of messages a second of one device.
    pub bytes_per_second: u32,
    /// Bytes of messages of one device at once.
    pub bytes_burst: u32,
    /// Connections of one device a minute.
    pub connects_per_minute: u32,
    /// Connections of one device at once.
    pub connects_burst: u32,
    /// Publishes of one session that wait for the store.
    pub undecided: usize,
    /// Publishes of all sessions that wait for the store.
    pub store_queue: usize,
    /// Subscriptions of one session.
    pub subscriptions: usize,
    /// Bytes that wait for one device to read them.
    pub outgoing_bytes: usize,
    /// Refused messages that end a session…
    pub strikes: usize,
    /// …within this time.
    pub strike_window: Span,
    /// Control frames and small fragments a second of one session…
    pub frames_per_second: u32,
    /// …and at once.
    pub frames_burst: u32,
}

impl Default for LimitsSection {
    fn default() -> Self {
        Self {
            connections: 15_000,
            handshakes: 256,
            handshake_timeout: Span::seconds(30),
            hello_timeout: Span::seconds(15),
            request_timeout: Span::seconds(15),
            message_bytes: 64 << 10,
            rate_per_second: 100,
            rate_burst: 1000,
            bytes_per_second: 256 << 10,
            bytes_burst: 4 << 20,
            connects_per_minute: 30,
            connects_burst: 60,
            undecided: 128,
            store_queue: 16_384,
            subscriptions: 32,
            outgoing_bytes: 256 << 10,
            strikes: 5,
            strike_window: Span::seconds(60),
            frames_per_second: 500,
            frames_burst: 1000,
        }
    }
}

impl LimitsSection {
    pub(super) fn check(&self) -> Result<(), Wrong> {
        check_counts(&[
            ("limits.connections", self.connections, 1, 1 << 20, "it must be 1 to 1048576"),
            ("limits.handshakes", self.handshakes, 1, 1 << 16, "it must be 1 to 65536"),
            ("limits.message_bytes", self.message_bytes, 1024, 16 << 20, "it must be 1024 to 16777216 bytes"),
            ("limits.undecided", self.undecided, 1, 1 << 16, "it must be 1 to 65536"),
            ("limits.store_queue", self.store_queue, 1, 1 << 20, "it must be 1 to 1048576"),
            ("limits.subscriptions", self.subscriptions, 0, 1024, "it must be 0 to 1024"),
            (
                "limits.outgoing_bytes",
                self.outgoing_bytes,
                4096,
                64 << 20,
                "it must be 4096 to 67108864 bytes",
            ),
            ("limits.strikes", self.strikes, 1, 1000, "it must be 1 to 1000"),
            (
                "limits.rate_per_second",
                self.rate_per_second as usize,
                1,
                1_000_000,
                "it must be 1 to 1000000",
            ),
            ("limits.rate_burst", self.rate_burst as usize, 1, 1_000_000, "it must be 1 to 1000000"),
            (
                "limits.frames_per_second",
                self.frames_per_second as usize,
                1,
                1_000_000,
                "it must be 1 to 1000000",
            ),
            (
                "limits.bytes_per_second",
                self.bytes_per_second as usize,
                1024,
                1 << 30,
                "it must be 1024 to 1073741824",
            ),
            ("limits.bytes_burst", self.bytes_burst as usize, 1024, 1 << 30, "it must be 1024 to 1073741824"),
            (
                "limits.connects_per_minute",
                self.connects_per_minute as usize,
                1,
                1_000_000,
                "it must be 1 to 1000000",
            ),
            ("limits.frames_burst", self.frames_burst as usize, 16, 1_000_000, "it must be 16 to 1000000"),
            ("limits.connects_burst", self.connects_burst as usize, 1, 1_000_000, "it must be 1 to 1000000"),
        ])?;
        check_spans(&[
            ("limits.handshake_timeout", self.handshake_timeout, 1, 300, "it must be 1s to 5m"),
            ("limits.hello_timeout", self.hello_timeout, 1, 300, "it must be 1s to 5m"),
            ("limits.request_timeout", self.request_timeout, 1, 300, "it must be 1s to 5m"),
            ("limits.strike_window", self.strike_window, 1, 3600, "it must be 1s to 1h"),
        ])?;
        if self.outgoing_bytes < 2 * self.message_bytes {
            let reason = "it must be at least twice limits.message_bytes: a message grows by a third on its way to a subscriber";
            let value = self.outgoing_bytes.to_string();
            return Err(Wrong { key: "limits.outgoing_bytes", value, reason: reason.to_owned() });
        }
        Ok(())
    }
}
