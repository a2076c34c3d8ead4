//! Where those at the door get their records: from the registry, or from the copy while it is away.

use doorward_pki::Fingerprint;

use super::Gateway;
use crate::registry::{Record, RegistryError};

/// Where a record comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The registry has just been asked.
    Registry,
    /// It is away; this is what it said before, and nothing has been heard since that would change it.
    Copy,
}

impl Gateway {
    /// The record behind a certificate, as of now or as of the last change that was heard.
    ///
    /// # Errors
    /// What keeps it from being known: then nobody is let in.
    pub(crate) async fn record(
        &self,
        certificate: &Fingerprint,
    ) -> Result<(Option<Record>, Source), RegistryError> {
        let away = if self.sight.is_away() {
            RegistryError::Unavailable(
                "it is away, and this device is not among those it has told of".to_owned(),
            )
        } else {
            match self.lookups.look_up(certificate).await {
                Ok(record) => return Ok((record, Source::Registry)),
                Err(error @ (RegistryError::Unavailable(_) | RegistryError::Unknown(_))) => {
                    // The feed finds out, and then nobody waits for it any more.
                    self.look_at_feed.notify_one();
                    error
                }
                // It answers, and this is wrong with it: what it said before is no better.
                Err(error) => return Err(error),
            }
        };
        if self.sight.is_old() {
            let words = "what is known of it is older than registry.max_staleness".to_owned();
            return Err(RegistryError::Unavailable(words));
        }
        match self.cache.find(certificate).await {
            Some(record) => Ok((Some(record), Source::Copy)),
            None => Err(away),
        }
    }
}
