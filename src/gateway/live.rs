//! What a gateway goes by and may be told otherwise while it runs: swapped as one, so that who has one of it has the rest
//! that belongs to it.

use std::sync::Arc;

use doorward_proto::limits::{Connects, Limits, Rate};
use doorward_proto::session::Settings;

use crate::config::Config;
use crate::identity::Own;
use crate::tls::{Material, Trust};

/// The configuration in force, and what its files came to.
pub(crate) struct Live {
    pub(crate) config: Config,
    pub(crate) settings: Arc<Settings>,
    /// The gateway's own, before a fleet's.
    pub(crate) limits: Limits,
    pub(crate) tls: Arc<Material>,
}

impl Live {
    pub(super) fn new(config: Config, tls: Arc<Material>) -> Self {
        let limits = own_of(&config).limits;
        let settings = Settings {
            strike_window: config.limits.strike_window.0,
            proof_within: config.session.proof_within.0,
            max_subscriptions: config.limits.subscriptions,
            ..Settings::new(config.gateway.name.as_str().into())
        };
        Self { settings: Arc::new(settings), limits, tls, config }
    }

    /// Whose certificates are let in.
    pub(crate) fn trust(&self) -> &Trust {
        &self.tls.trust
    }

    /// What a fleet has where it does not say otherwise.
    pub(super) fn own(&self) -> Own {
        own_of(&self.config)
    }

    /// How long a publish may wait for the store before it is `unavailable`.
    pub(super) fn patience(&self) -> std::time::Duration {
        self.limits.max_skew / 10
    }
}

/// What a gateway of this configuration has where a fleet does not say otherwise.
pub(crate) fn own_of(config: &Config) -> Own {
    let limits = Limits {
        max_message_bytes: config.limits.message_bytes,
        max_skew: config.session.max_skew.0,
        heartbeat: config.session.heartbeat.0,
        rate: Rate { per_second: config.limits.rate_per_second, burst: config.limits.rate_burst },
        bytes: Rate { per_second: config.limits.bytes_per_second, burst: config.limits.bytes_burst },
        strikes: config.limits.strikes,
        outgoing_bytes: config.limits.outgoing_bytes,
        connects: Connects {
            per_minute: config.limits.connects_per_minute,
            burst: config.limits.connects_burst,
        },
    };
    Own { limits, late: config.certificates.renew_after_expiry.0 }
}
