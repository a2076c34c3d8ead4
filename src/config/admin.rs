//! `[admin]`: what the operator's programs ask a gateway.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::address;

/// `[admin]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminSection {
    /// Where `/healthz`, `/readyz` and `/metrics` are served by HTTP, if anywhere.
    #[serde(with = "address")]
    pub listen: Option<SocketAddr>,
}

impl Default for AdminSection {
    fn default() -> Self {
        Self { listen: Some(SocketAddr::from(([127, 0, 0, 1], 9464))) }
    }
}
