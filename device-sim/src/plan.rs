//! What is to be done.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use doorward_client::target::UrlError;
use doorward_client::tls::TlsError;
use doorward_client::{Credentials, Renew};
use tokio_util::sync::CancellationToken;

use crate::laps::Laps;
use crate::scenario::Scenario;

/// A run of the simulator.
#[derive(Clone)]
pub struct Plan {
    /// The fleet.
    pub devices: Vec<Credentials>,
    /// The gateway: `wss://HOST:PORT/v1/device`.
    pub url: String,
    /// What the devices do.
    pub scenario: Scenario,
    /// Messages a second of the whole fleet, sent at their intended times whatever the gateway does; without it, as
    /// fast as the window and the gateway's stated rate allow.
    pub rate: Option<f64>,
    /// Bytes of a message's `data`.
    pub payload: usize,
    /// Undecided messages of a device; the scenario's own where it is `None`.
    pub window: Option<usize>,
    /// How long messages are sent.
    pub duration: Duration,
    /// Connections a second; without it, as fast as 256 handshakes at once are.
    pub connect_rate: Option<f64>,
    /// Loopback addresses to connect from; as many as the ports need where it is `None`.
    pub source_addresses: Option<u16>,
    /// For one connection: TCP, TLS, upgrade and `welcome`.
    pub connect_within: Duration,
    /// For the answers that are outstanding when the sending ends, and for each answer to an attack.
    pub answer_within: Duration,
    /// How long a session that is never proven may stay: the gateway's 30 s, and some more.
    pub unproven_within: Duration,
    /// Whether honest devices take the certificates and keys that the gateway rotates. Those of bundle folders store them
    /// there; with [`Renew::InMemory`] those of a bulk file take them too, and what the file holds of them ends.
    pub renew: Renew,
    /// Devices that are asked to renew at once do so within this time.
    pub renew_spread: Duration,
    /// Ends the sending early.
    pub cancel: CancellationToken,
    /// Told once a second.
    pub progress: Option<Progress>,
    /// Told each ack's latency.
    pub laps: Option<Arc<Laps>>,
}

/// Who is told how it goes.
pub type Progress = Arc<dyn Fn(&Snapshot) + Send + Sync>;

/// How it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// Sessions that are open.
    pub up: u64,
    /// Messages sent.
    pub sent: u64,
    /// Messages acknowledged.
    pub accepted: u64,
    /// Refusals.
    pub refused: u64,
}

impl Plan {
    /// A plan with the defaults of the command line.
    #[must_use]
    pub fn new(devices: Vec<Credentials>, url: &str, scenario: Scenario) -> Self {
        Self {
            devices,
            url: url.to_owned(),
            scenario,
            rate: None,
            payload: 128,
            window: None,
            duration: Duration::from_secs(10),
            connect_rate: None,
            source_addresses: None,
            connect_within: Duration::from_secs(30),
            answer_within: Duration::from_secs(10),
            unproven_within: Duration::from_secs(45),
            renew: Renew::Stored,
            renew_spread: Duration::from_secs(10),
            cancel: CancellationToken::new(),
            progress: None,
            laps: None,
        }
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan")
            .field("devices", &self.devices.len())
            .field("url", &self.url)
            .field("scenario", &self.scenario)
            .finish_non_exhaustive()
    }
}

/// Why a plan cannot be carried out at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// Too few devices.
    #[error("{what} needs at least {needed} devices, and there are {given}; provision more")]
    TooFew {
        /// For what.
        what: String,
        /// How many it takes.
        needed: usize,
        /// How many there are.
        given: usize,
    },
    /// The URL.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// The gateway's host.
    #[error("the host of {url} cannot be looked up: {error}")]
    Resolve {
        /// The URL.
        url: String,
        /// Why.
        error: std::io::Error,
    },
    /// A device's certificate or key.
    #[error("device {device}: {error}")]
    Tls {
        /// Which.
        device: String,
        /// Why.
        error: TlsError,
    },
    /// What this machine cannot do, and what to do about it.
    #[error("{0}")]
    Machine(String),
}
