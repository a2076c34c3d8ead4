//! Who serves, and how an act finds out where it has taken effect.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use super::{Done, RegistryError};

/// A gateway that begins to serve under its name. An earlier run of the same home has lost it.
#[derive(Debug, Clone)]
pub struct Enrolment {
    /// Its name.
    pub name: Arc<str>,
    /// Its home and this run of it, both random, with a point between.
    pub instance: String,
    /// The program's version.
    pub version: &'static str,
    /// Where it listens.
    pub address: String,
    /// How long it may serve what it knows after its last report.
    pub may_serve: Duration,
}

/// How much of the feed has taken effect at a gateway; comes with [`super::News`] and goes back with a report.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied(pub(super) String);

/// An act's place: a gateway has confirmed the act when what it has applied includes the mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(pub(super) i64);

/// What an act has come to, and how to ask whether it has taken effect.
#[derive(Debug, Clone)]
pub struct Acted {
    /// Whether anything changed.
    pub done: Done,
    /// To ask [`super::Registry::gateways`] with.
    pub mark: Mark,
    /// The device's live session at that moment, as the registry knew it.
    pub session: Option<String>,
}

/// A gateway, as operators see it.
#[derive(Debug, Clone)]
pub struct GatewayStatus {
    /// Its name.
    pub name: String,
    /// The program's version.
    pub version: String,
    /// Where it listens.
    pub address: String,
    /// Since when it runs.
    pub since: OffsetDateTime,
    /// When it last reported.
    pub heartbeat: OffsetDateTime,
    /// Until when it may serve what it knows, whatever becomes of it.
    pub serves_until: OffsetDateTime,
    /// When it has signed off.
    pub signed_off: Option<OffsetDateTime>,
    /// Whether it may serve now, by the database's clock: it has not signed off and its time is not over.
    pub may_serve: bool,
    /// Whether what it has applied includes the mark that was asked for.
    pub confirmed: bool,
}

pub(super) fn taken(name: &str) -> RegistryError {
    RegistryError::Refused(format!(
        "a gateway of another home or database role has the name '{name}' and may still serve; give this one its own \
         gateway.name, or, if that one is gone for good, run 'doorward gateway remove {name}'"
    ))
}

pub(super) fn unknown(name: &str) -> RegistryError {
    RegistryError::NotFound { kind: "gateway", id: name.to_owned() }
}
