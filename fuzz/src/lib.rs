//! What strangers send, tried on every parser and on the session core. Each target takes bytes, and panics where a promise
//! does not hold: not only that nothing crashes, but that what is accepted is what a second opinion accepts, that what was
//! read can be written and read again, and that nothing is believed that nobody signed.
//!
//! `cargo run -p doorward-fuzz` mutates the seeds on a stable toolchain, as `.ci/run` does for some seconds; cargo-fuzz runs
//! the same functions for as long as you like. See README.md.

#![forbid(unsafe_code)]
#![expect(clippy::panic, clippy::expect_used, reason = "a target says by a panic what it has found")]

mod certificates;
mod mutate;
mod protocol;
mod shared;
mod text;
mod upgrade;

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

pub use certificates::{certificate, csr, revocation_list};
pub use mutate::{Found, Hunt, hunt};
pub use protocol::{claims, downlink, envelope, session};
pub use text::{bundle, config, policy};
pub use upgrade::upgrade;

/// What an input came to. Inputs that come to something else than all before are worth mutating.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Outcome(u64);

impl Outcome {
    fn of(what: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// A function that takes anything.
pub type Target = fn(&[u8]) -> Outcome;

/// All targets, by the names that they have everywhere: here, in `fuzz_targets/` and in `seeds/`.
pub const TARGETS: [(&str, Target); 11] = [
    ("envelope", envelope),
    ("claims", claims),
    ("session", session),
    ("downlink", downlink),
    ("certificate", certificate),
    ("revocation_list", revocation_list),
    ("csr", csr),
    ("config", config),
    ("policy", policy),
    ("bundle", bundle),
    ("upgrade", upgrade),
];

/// What a target's program says that was built without libFuzzer.
pub fn without_libfuzzer(name: &str) {
    eprintln!(
        "built without libFuzzer: 'cargo fuzz run {name}' builds it with that, 'cargo run -p doorward-fuzz -- {name}' does without"
    );
    std::process::exit(2);
}
