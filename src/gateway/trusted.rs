//! Which device CAs the gateway trusts, noted in its home: a command on the same home lets a new CA sign once the gateway that
//! runs there lets its devices in, and not before.

use std::path::PathBuf;

use doorward_pki::Fingerprint;
use tracing::warn;

use crate::home::{self, Home, PUBLIC};

/// Where it is noted: a fingerprint a line.
pub(crate) fn path(home: &Home) -> PathBuf {
    home.state().join("device-cas")
}

/// Notes what the gateway goes by now. Without the note a command waits in vain, and nothing else comes of it.
pub(super) fn note<'a>(home: &Home, cas: impl Iterator<Item = &'a [u8]>) {
    let text: String = cas.map(|der| format!("{}\n", Fingerprint::of(der))).collect();
    if let Err(error) = home::write_over(&path(home), text, PUBLIC) {
        warn!(%error, "which CAs are trusted is not noted; 'doorward pki rollover begin' will not hear of it");
    }
}
