//! Why a connection did not come about, or is over: by who or what is at fault.

use std::fmt;
use std::io;
use std::time::Duration;

use doorward_proto::close::Close;
use rustls::AlertDescription;
use serde::Deserialize;
use tokio_tungstenite::tungstenite;
use tungstenite::protocol::CloseFrame;

/// How far a connection got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// TCP.
    Connect,
    /// The TLS handshake.
    Tls,
    /// The WebSocket upgrade.
    Upgrade,
    /// Waiting for the gateway's `welcome`.
    Welcome,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connecting",
            Self::Tls => "the TLS handshake",
            Self::Upgrade => "the WebSocket upgrade",
            Self::Welcome => "waiting for 'welcome'",
        })
    }
}

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// This machine's own limits: no descriptor, no free port, no such local address.
    #[error("this machine cannot open another connection: {0}")]
    Local(io::Error),
    /// The gateway's name has no address.
    #[error("the gateway's name cannot be looked up: {0}")]
    Resolve(io::Error),
    /// The network, or a gateway that is not there.
    #[error("the network failed during {phase}: {error}")]
    Network {
        /// How far it got.
        phase: Phase,
        /// Why.
        error: io::Error,
    },
    /// The deadline passed.
    #[error("not connected in time: {0} took too long")]
    Timeout(Phase),
    /// The gateway ended TLS with an alert: most often it does not accept the certificate.
    #[error("the gateway refused the TLS connection: {0:?}")]
    Alert(AlertDescription),
    /// The gateway's certificate or its TLS is not acceptable to this device.
    #[error(
        "the gateway is not to be trusted: {0}; if it is the right one, its ca.crt must be in the bundle"
    )]
    Untrusted(rustls::Error),
    /// The gateway answered the upgrade with a refusal.
    #[error(transparent)]
    Refused(Box<RefusedUpgrade>),
    /// What answered does not speak this protocol.
    #[error("what answered is no gateway of this protocol: {0}")]
    Protocol(String),
}

impl ConnectError {
    /// An error of a stream whose TLS may have brought an alert.
    pub(crate) fn from_io(phase: Phase, error: io::Error) -> Self {
        match tls_error(&error) {
            Some(rustls::Error::AlertReceived(alert)) => Self::Alert(*alert),
            Some(other) => Self::Untrusted(other.clone()),
            None => Self::Network { phase, error },
        }
    }
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// A refused upgrade.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedUpgrade {
    /// The HTTP status.
    pub status: u16,
    /// What the gateway said of it, where it said it as a problem document.
    pub problem: Option<Problem>,
    /// When to come back.
    pub retry_after: Option<Duration>,
}

impl fmt::Display for RefusedUpgrade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the gateway refused the connection with {}", self.status)?;
        if let Some(problem) = &self.problem {
            write!(f, " ({}): {}", OneLine(problem.word()), OneLine(&problem.detail))?;
            if !problem.instance.is_empty() {
                write!(f, " [{}]", OneLine(&problem.instance))?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for RefusedUpgrade {}

/// The gateway's words as they are, control characters escaped: they must not forge a line of a log.
struct OneLine<'a>(&'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        self.0.chars().try_for_each(|c| {
            if c.is_control() { write!(f, "{}", c.escape_default()) } else { f.write_char(c) }
        })
    }
}

impl RefusedUpgrade {
    /// Whether a device stops for good: its device is revoked. No other refusal is final.
    #[must_use]
    pub fn is_final(&self) -> bool {
        self.status == 403 && self.problem.as_ref().is_some_and(|problem| problem.word() == "device-revoked")
    }
}

/// A problem document (RFC 9457). Members that are not there are empty.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Problem {
    /// `urn:doorward:problem:WORD`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in words.
    pub title: String,
    /// This case in words.
    pub detail: String,
    /// The connection's correlation id, which the gateway's log has too.
    pub instance: String,
}

impl Problem {
    /// The last word of the type, such as `device-suspended`; all of it where it is of another family.
    #[must_use]
    pub fn word(&self) -> &str {
        self.kind.strip_prefix("urn:doorward:problem:").unwrap_or(&self.kind)
    }
}

/// How a connection ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Ended {
    /// A close frame with a code of this protocol.
    #[error("the gateway closed the session: {} ({})", close.reason(), close.code())]
    Closed {
        /// Why.
        close: Close,
    },
    /// A close frame with another code, or none.
    #[error("the gateway closed the session with an unknown code ({code:?})")]
    ClosedOddly {
        /// The code.
        code: Option<u16>,
    },
    /// A TLS alert: the gateway ended the connection below the protocol.
    #[error("the gateway ended TLS: {0:?}")]
    Alert(AlertDescription),
    /// The connection broke, or nothing came for too long.
    #[error("the connection was lost: {0}")]
    Lost(io::Error),
    /// The gateway broke the WebSocket protocol or a bound of this device.
    #[error("the gateway broke the protocol: {0}")]
    Protocol(String),
}

impl Ended {
    pub(super) fn from_close(frame: Option<CloseFrame>) -> Self {
        let code = frame.map(|frame| u16::from(frame.code));
        match code.and_then(Close::from_code) {
            Some(close) => Self::Closed { close },
            None => Self::ClosedOddly { code },
        }
    }

    pub(super) fn from_websocket(error: tungstenite::Error) -> Self {
        match error {
            tungstenite::Error::Io(error) => match tls_error(&error) {
                Some(rustls::Error::AlertReceived(alert)) => Self::Alert(*alert),
                _ => Self::Lost(error),
            },
            tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => {
                Self::Lost(io::ErrorKind::NotConnected.into())
            }
            tungstenite::Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake) => {
                Self::Lost(io::ErrorKind::ConnectionReset.into())
            }
            other => Self::Protocol(other.to_string()),
        }
    }

    /// The close code, where the gateway gave one of this protocol.
    #[must_use]
    pub fn close(&self) -> Option<Close> {
        match self {
            Self::Closed { close } => Some(*close),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_one_line() {
        let problem = Problem {
            kind: "urn:doorward:problem:device-suspended".to_owned(),
            detail: "device 'a' is suspended\nERROR forged".to_owned(),
            ..Problem::default()
        };
        let refused = RefusedUpgrade { status: 403, problem: Some(problem), retry_after: None };
        assert_eq!(
            refused.to_string(),
            "the gateway refused the connection with 403 (device-suspended): device 'a' is suspended\\nERROR forged"
        );
        assert!(!refused.is_final());
    }
}
