//! `[quarantine]`: devices that are suspended by themselves.

use serde::{Deserialize, Serialize};

use super::{Span, Wrong, check_counts, check_spans};

/// When a device is suspended for what it sends.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QuarantineSection {
    /// Whether it is.
    pub mode: QuarantineMode,
    /// Forged messages…
    pub forged: usize,
    /// …replayed ones…
    pub replayed: usize,
    /// …or ones that the policy denies…
    pub forbidden: usize,
    /// …within this time. None of a kind: it is not counted.
    pub window: Span,
    /// For how long; zero: until it is resumed.
    #[serde(rename = "for")]
    pub lasts: Span,
    /// Whether sessions count that have not shown the device's key.
    pub unproven: bool,
}

/// What comes of a threshold that is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QuarantineMode {
    /// Nothing is counted.
    Off,
    /// It is said, and nothing done.
    DryRun,
    /// The device is suspended.
    On,
}

impl Default for QuarantineSection {
    fn default() -> Self {
        Self {
            mode: QuarantineMode::Off,
            forged: 20,
            replayed: 20,
            forbidden: 200,
            window: Span::seconds(600),
            lasts: Span::seconds(3600),
            unproven: false,
        }
    }
}

impl QuarantineSection {
    pub(super) fn check(&self) -> Result<(), Wrong> {
        check_counts(&[
            ("quarantine.forged", self.forged, 0, 1_000_000, "it must be 0 to 1000000"),
            ("quarantine.replayed", self.replayed, 0, 1_000_000, "it must be 0 to 1000000"),
            ("quarantine.forbidden", self.forbidden, 0, 1_000_000, "it must be 0 to 1000000"),
        ])?;
        check_spans(&[
            ("quarantine.window", self.window, 1, 86_400, "it must be 1s to 1d"),
            ("quarantine.for", self.lasts, 0, 366 * 86_400, "it must be 0s to 366d"),
        ])
    }
}
