//! What a run found: a value that serializes, and a table of it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use comfy_table::Table;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::engine::Context;
use crate::engine::honest::Outcome;
use crate::plan::Plan;
use crate::scenario::Scenario;

/// The outcome of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What the devices did.
    pub scenario: Scenario,
    /// The gateway.
    pub url: String,
    /// How many devices took part.
    pub devices: usize,
    /// How long messages were sent, in seconds.
    pub seconds: f64,
    /// Whether the expectation is met: there are no failures.
    pub met: bool,
    /// What the scenario expected and did not get, a line each.
    pub failures: Vec<String>,
    /// The honest devices' connections.
    pub connections: Connections,
    /// From the first packet to `welcome`.
    pub handshake: Latency,
    /// From when a message was meant to go (with a rate), or went (without), to its ack.
    pub ack: Latency,
    /// The honest devices' messages.
    pub messages: Messages,
    /// What the honest devices took of what the gateway rotates.
    pub rotation: Rotation,
    /// What was tried against the gateway.
    pub attacks: Vec<AttackReport>,
    /// What went wrong on this side of the wire or on it: no refusal of the gateway's.
    pub own_errors: BTreeMap<String, u64>,
}

/// Connections of the honest devices.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Connections {
    /// Devices that were welcomed at least once.
    pub up: u64,
    /// Devices that never were.
    pub down: u64,
    /// Sessions over all, reconnects among them.
    pub sessions: u64,
    /// Attempts that failed.
    pub failed_attempts: u64,
    /// The gateway's refusals, by status and problem, or by TLS alert.
    pub refused: BTreeMap<String, u64>,
    /// Sessions that the devices did not end themselves, by how they ended.
    pub ended: BTreeMap<String, u64>,
}

/// Messages of the honest devices.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Messages {
    /// Handed to the wire; a retry is no new message.
    pub sent: u64,
    /// Acknowledged.
    pub accepted: u64,
    /// Rejects by error, of retried messages too.
    pub refused: BTreeMap<String, u64>,
    /// Unanswered at the end.
    pub lost: u64,
    /// Meant to go by the rate, and held back by the window until the end.
    pub unsent: u64,
    /// Acknowledged messages a second.
    pub per_second: f64,
}

/// Certificates and keys that devices took in their sessions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Rotation {
    /// Certificates that were renewed: the new one was let in.
    pub renewed: u64,
    /// HMAC keys.
    pub rekeyed: u64,
    /// Renewals that were refused or given up, and keys that could not be taken.
    pub failed: u64,
}

/// A distribution of times, in milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Latency {
    /// How many were measured.
    pub count: u64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    #[serde(rename = "p99.9")]
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

/// One kind of attack.
#[derive(Debug, Clone, Serialize)]
pub struct AttackReport {
    /// What it was.
    pub name: String,
    /// What must come of it.
    pub expected: String,
    /// How often it was tried.
    pub tried: u64,
    /// How often that came of it.
    pub held: u64,
    /// The first other outcome.
    pub first_breach: Option<String>,
}

pub(crate) fn build(plan: &Plan, context: &Context, outcomes: &[Outcome], sending: Duration) -> Report {
    let tally = &context.tally;
    let words = tally.words();
    let accepted = tally.accepted.load(Ordering::Relaxed);
    let up = outcomes.iter().filter(|outcome| outcome.sessions > 0).count();
    let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    Report {
        scenario: plan.scenario,
        url: plan.url.clone(),
        devices: plan.devices.len(),
        seconds: sending.as_secs_f64(),
        met: false,
        failures: Vec::new(),
        connections: Connections {
            up: count(up),
            down: count(outcomes.len() - up),
            sessions: tally.connected.load(Ordering::Relaxed),
            failed_attempts: tally.failed.load(Ordering::Relaxed),
            refused: words.connections_refused,
            ended: words.ended,
        },
        handshake: Latency::of(&tally.handshake_latencies()),
        ack: Latency::of(&tally.ack_latencies()),
        messages: Messages {
            sent: tally.sent.load(Ordering::Relaxed),
            accepted,
            refused: words.refused,
            lost: outcomes.iter().map(|outcome| outcome.lost).sum(),
            unsent: outcomes.iter().map(|outcome| outcome.unsent).sum(),
            #[expect(clippy::cast_precision_loss, reason = "a count of messages is far below 2^52")]
            per_second: accepted as f64 / sending.as_secs_f64().max(0.001),
        },
        rotation: Rotation {
            renewed: outcomes.iter().map(|outcome| outcome.renewed).sum(),
            rekeyed: outcomes.iter().map(|outcome| outcome.rekeyed).sum(),
            failed: outcomes.iter().map(|outcome| outcome.not_rotated).sum(),
        },
        attacks: Vec::new(),
        own_errors: words.own,
    }
}

impl Latency {
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "microseconds of ten minutes are far below 2^52")]
        let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        let count = histogram.len();
        if count == 0 {
            return Self::default();
        }
        Self { count, p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: at(1.0) }
    }
}

/// The table that the command prints.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut counts = Table::new();
        counts.load_style(comfy_table::presets::UTF8_FULL_CONDENSED);
        counts.set_header([self.scenario.to_string(), format!("{} devices", self.devices)]);
        let mut row = |name: &str, value: String| {
            counts.add_row([name.to_owned(), value]);
        };
        let connections = &self.connections;
        row("devices up / failed", format!("{} / {}", connections.up, connections.down));
        row(
            "sessions / failed attempts",
            format!("{} / {}", connections.sessions, connections.failed_attempts),
        );
        row("messages sent", self.messages.sent.to_string());
        row("accepted", format!("{} ({:.0}/s)", self.messages.accepted, self.messages.per_second));
        row("lost (unanswered)", self.messages.lost.to_string());
        if self.messages.unsent > 0 {
            row("not sent in time", self.messages.unsent.to_string());
        }
        let Rotation { renewed, rekeyed, failed } = self.rotation;
        if self.rotation != Rotation::default() {
            row("renewed / rekeyed / failed", format!("{renewed} / {rekeyed} / {failed}"));
        }
        for (group, words) in [
            ("refused", &self.messages.refused),
            ("connection refused", &connections.refused),
            ("session ended", &connections.ended),
            ("simulator's own error", &self.own_errors),
        ] {
            for (word, count) in words {
                // Words of the other side: safe on a terminal.
                let word: String =
                    word.chars().map(|c| if c.is_control() { '\u{FFFD}' } else { c }).collect();
                row(&format!("{group}: {word}"), count.to_string());
            }
        }
        writeln!(f, "{counts}")?;

        let mut times = Table::new();
        times.load_style(comfy_table::presets::UTF8_FULL_CONDENSED);
        times.set_header(["ms", "count", "p50", "p90", "p99", "p99.9", "max"]);
        for (name, latency) in [("handshake", &self.handshake), ("ack", &self.ack)] {
            let numbers = [latency.p50, latency.p90, latency.p99, latency.p999, latency.max];
            let mut cells = vec![name.to_owned(), latency.count.to_string()];
            cells.extend(numbers.map(|number| format!("{number:.2}")));
            times.add_row(cells);
        }
        writeln!(f, "{times}")?;

        if !self.attacks.is_empty() {
            let mut attacks = Table::new();
            attacks.load_style(comfy_table::presets::UTF8_FULL_CONDENSED);
            attacks.set_header(["attack", "expected", "tried", "held"]);
            for attack in &self.attacks {
                attacks.add_row([
                    attack.name.clone(),
                    attack.expected.clone(),
                    attack.tried.to_string(),
                    attack.held.to_string(),
                ]);
            }
            writeln!(f, "{attacks}")?;
        }
        match self.failures.first() {
            None => write!(f, "{}: as expected", self.scenario),
            Some(_) => write!(f, "{}: NOT as expected", self.scenario),
        }
    }
}
