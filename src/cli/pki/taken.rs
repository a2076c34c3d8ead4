//! Whether the gateway that runs on this home has taken a new CA. Others have homes of their own.

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::time::Duration;

use clap::Args;
use doorward_pki::Fingerprint;

use super::super::cas::{self, Ca};
use super::super::failure::{Failure, Outcome};
use crate::clock;
use crate::gateway::trusted;
use crate::home::{self, Home};

const LOOK_EVERY: Duration = Duration::from_millis(50);

#[derive(Args, Debug)]
pub(in super::super) struct Wait {
    /// How long to wait until the gateway that runs on this home, if one does, trusts the new CA
    #[arg(long, value_name = "DUR", default_value = "15s", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// Issuing moves over at once; until the gateway has read pki/issuing.crt it refuses the new CA's devices
    #[arg(long, conflicts_with = "wait")]
    no_wait: bool,
}

/// What the gateway on this home trusts: fingerprints. `None`: none runs here.
pub(super) fn by_gateway(home: &Home) -> Option<BTreeSet<String>> {
    // A gateway that starts in the instant of this look is refused the lock, and starts when it is started again.
    let lock = File::open(home.state().join("lock")).ok()?;
    if !matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)) {
        return None;
    }
    Some(home::read(&trusted::path(home)).unwrap_or_default().lines().map(str::to_owned).collect())
}

/// Whether devices of this CA come in at a gateway with these CAs: by itself, or by way of the root that has signed it.
pub(super) fn lets_in(trusted: &BTreeSet<String>, ca: &Ca, roots: &[Ca]) -> bool {
    let above = roots.iter().filter(|root| root.facts.subject() == ca.facts.issuer());
    above.chain([ca]).any(|ca| trusted.contains(&Fingerprint::of(ca.der()).to_string()))
}

impl Wait {
    /// Returns once no gateway of this home would refuse the CA's devices.
    pub(super) async fn until_taken(&self, home: &Home, ca: &Ca) -> Outcome {
        if self.no_wait {
            return Ok(());
        }
        let roots = cas::read(&home.pki("root.crt"))?;
        let end = clock::now().monotonic.saturating_add(self.wait);
        loop {
            match by_gateway(home) {
                None => return Ok(()),
                Some(trusted) if lets_in(&trusted, ca, &roots) => return Ok(()),
                Some(_) if clock::now().monotonic >= end => break,
                Some(_) => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
        Err(Failure::unconfirmed(format!(
            "committed, not confirmed: CA {} is trusted, but issuing has not moved over: the gateway that runs on this home has not taken it within {}",
            ca.key_id(),
            humantime::format_duration(self.wait)
        ))
        .next("have it read its certificates again (SIGHUP) and look at its log, then repeat the command"))
    }
}
