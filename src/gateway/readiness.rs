//! Whether a gateway is ready for devices, and if not, why.

use serde::Serialize;

use super::Gateway;
use crate::clock;
use crate::metrics::page::Page;

/// The checks, in the order in which they are shown.
pub(crate) const CHECKS: [&str; 6] = ["serving", "clock", "draining", "registry", "staleness", "store"];

/// What one check comes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    pub(crate) check: &'static str,
    pub(crate) ok: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Since when, in RFC 3339, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
}

impl Check {
    fn passed(check: &'static str) -> Self {
        Self { check, ok: true, reason: None, since: None }
    }

    /// It does not pass.
    pub(crate) fn failed(check: &'static str, reason: impl Into<String>) -> Self {
        Self { check, ok: false, reason: Some(reason.into()), since: None }
    }

    fn unless(check: &'static str, fails: bool, reason: &str) -> Self {
        if fails { Self::failed(check, reason) } else { Self::passed(check) }
    }
}

impl Gateway {
    /// Every check, passed or not.
    pub(crate) fn checks(&self) -> Vec<Check> {
        let away = self.sight.away_for().map(|away| Check {
            since: Some(clock::rfc3339((clock::utc() - away).unix_timestamp())),
            ..Check::failed(
                "registry",
                format!(
                    "the registry has not answered for {} s; devices that were let in before are let in by what is known of them",
                    away.as_secs()
                ),
            )
        });
        let stale = self.sight.is_stale().then(|| {
            Check::failed(
                "staleness",
                format!(
                    "what is known of the registry is {} s old, more than registry.max_staleness allows: nobody is let in",
                    self.sight.age().as_secs()
                ),
            )
        });
        vec![
            Check::unless("serving", !*self.ready.borrow(), "the door is not open yet"),
            Check::unless(
                "clock",
                !self.clock_is_right(),
                "the clock says a time that is past for sure: nobody is let in until it is set",
            ),
            Check::unless("draining", self.is_draining(), "the gateway is going away"),
            away.unwrap_or_else(|| Check::passed("registry")),
            stale.unwrap_or_else(|| Check::passed("staleness")),
            self.store_check(),
        ]
    }

    fn store_check(&self) -> Check {
        const REFUSED: &str = "the store does not write: publishes are refused as unavailable";
        if !self.sink.look().stalled {
            return Check::passed("store");
        }
        // What the disk or the database has said is what the operator has to mend.
        let why = self.sink.trouble();
        Check::failed("store", why.map_or_else(|| REFUSED.to_owned(), |why| format!("{REFUSED}; {why}")))
    }

    /// The same for `/metrics`.
    pub(super) fn collect_checks(&self, page: &mut Page) {
        let checks = self.checks();
        page.flag(
            "doorward_ready",
            "Whether every check of /readyz passes.",
            checks.iter().all(|check| check.ok),
        );
        page.gauges(
            "doorward_ready_check",
            "Whether one check of /readyz passes.",
            checks.iter().map(|check| (vec![("check", check.check)], if check.ok { 1.0 } else { 0.0 })),
        );
    }
}
