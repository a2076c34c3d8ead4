//! What the data of a publish must be like, where a fleet says so. The judging itself is the caller's to bring: a JSON
//! Schema is more than this crate needs to know.

use std::fmt;

/// The schemas of a fleet, by channel. Asked in the session, after the policy and before a message is accepted.
pub trait Schemas: fmt::Debug + Send + Sync {
    /// Whether `data`, a JSON text, may be published to a channel. It is called for each message: its cost must be bounded by
    /// the length of `data`.
    ///
    /// # Errors
    /// Words for the device, which name the first place that does not fit.
    fn check(&self, channel: &str, data: &str) -> Result<(), String>;
}
