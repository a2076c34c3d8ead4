//! `pki`: the life of the home's CAs and of its master key.

mod export;
mod external;
mod rollover;
mod taken;

use std::path::PathBuf;

use clap::Subcommand;

use super::failure::Outcome;
use super::{Shared, rewrap};

#[derive(Subcommand, Debug)]
pub(super) enum Pki {
    /// Move the root's key out of the home; only a new issuing CA needs it again
    #[command(after_help = "Example:\n  doorward pki export-root --out /media/safe/doorward-root\n\n\
        The key and a copy of the root's certificate are written there, read back and compared; only then\n\
        the key is removed from the home.")]
    ExportRoot {
        /// The folder, which is made (mode 0700) if need be
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Replace the issuing CA: a second one beside the first, until nothing depends on that any more
    #[command(subcommand)]
    Rollover(rollover::Rollover),
    /// Make a key for a new issuing CA, and a request (PKCS#10) to have it signed elsewhere
    #[command(after_help = "Example:\n  doorward pki csr --out issuing.csr\n\n\
        The key is pki/csr.key, and signs nothing yet. Whoever signs the request says: CA:TRUE, path length 0,\n\
        keyCertSign and cRLSign, a subject key identifier. Then: doorward pki import --cert FILE")]
    Csr(external::Csr),
    /// Take an issuing CA that was signed elsewhere into use
    #[command(after_help = "Example:\n  doorward pki import --cert issuing.crt\n\n\
        All is checked before anything is written. From then on it is as with 'doorward pki rollover begin'.")]
    Import(external::Import),
    /// Give the devices' keys in the registry a new master key, while gateways run
    Rewrap(rewrap::Rewrap),
}

impl Pki {
    pub(super) async fn run(&self, shared: &Shared) -> Outcome {
        match self {
            Self::ExportRoot { out } => export::run(shared, out),
            Self::Rollover(rollover) => rollover.run(shared).await,
            Self::Csr(csr) => csr.run(shared),
            Self::Import(import) => import.run(shared).await,
            Self::Rewrap(rewrap) => rewrap.run(shared).await,
        }
    }
}
