//! The integration tests, one binary: a file for each promise, and what they share in `support`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that fails says so by panicking")]

mod cli;
mod deploy;
mod gateway;
mod registry;
mod support;
mod threat_model;
mod tidy;
mod whole;
