//! What waits to be sent or answered, and its form on the wire.

use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;

use crate::GATEWAY;
use crate::channel::Filter;
use crate::ids::MessageId;
use crate::time::NumericDate;
use crate::uplink::CommandStatus;

/// A message that the device publishes.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Unique to this message, and kept over retries: use random ids.
    pub id: MessageId,
    /// Where to.
    pub channel: Box<str>,
    /// Any JSON value.
    pub data: Box<RawValue>,
    /// When it was measured.
    pub at: Option<NumericDate>,
}

#[derive(Debug, Clone)]
pub(super) enum Body {
    Hello,
    Publish(Outgoing),
    Subscribe(Filter),
    Unsubscribe(Filter),
    Result { id: MessageId, status: CommandStatus, data: Option<Box<RawValue>> },
    Renew(Box<str>),
}

#[derive(Debug, Clone)]
pub(super) struct Pending {
    pub(super) body: Body,
    /// On the monotonic clock; zero where it need not wait.
    pub(super) not_before: Duration,
    /// How often it was stale.
    pub(super) stale: u8,
}

/// A message of the device as it is signed.
#[derive(Serialize)]
struct Wire<'a> {
    iss: &'a str,
    aud: &'static str,
    sid: &'a str,
    seq: u64,
    iat: NumericDate,
    op: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a MessageId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ch: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<NumericDate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<CommandStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    csr: Option<&'a str>,
}

impl Pending {
    pub(super) fn new(body: Body) -> Self {
        Self { body, not_before: Duration::ZERO, stale: 0 }
    }

    /// Publishes and results must arrive; the rest belongs to its session.
    pub(super) fn outlives_a_session(&self) -> bool {
        matches!(self.body, Body::Publish(_) | Body::Result { .. })
    }
}

impl Body {
    /// Whether a session whose certificate had expired before it began takes it.
    pub(super) fn may_be_late(&self) -> bool {
        matches!(self, Self::Hello | Self::Renew(_))
    }

    pub(super) fn payload(&self, device: &str, sid: &str, seq: u64, iat: NumericDate) -> Vec<u8> {
        let mut wire = Wire {
            iss: device,
            aud: GATEWAY,
            sid,
            seq,
            iat,
            op: "hello",
            id: None,
            ch: None,
            data: None,
            at: None,
            status: None,
            csr: None,
        };
        match self {
            Self::Hello => {}
            Self::Publish(publish) => {
                wire.op = "publish";
                wire.id = Some(&publish.id);
                wire.ch = Some(&publish.channel);
                wire.data = Some(&publish.data);
                wire.at = publish.at;
            }
            Self::Subscribe(filter) => {
                wire.op = "subscribe";
                wire.ch = Some(filter.as_str());
            }
            Self::Unsubscribe(filter) => {
                wire.op = "unsubscribe";
                wire.ch = Some(filter.as_str());
            }
            Self::Result { id, status, data } => {
                wire.op = "result";
                wire.id = Some(id);
                wire.status = Some(*status);
                wire.data = data.as_deref();
            }
            Self::Renew(csr) => {
                wire.op = "renew";
                wire.csr = Some(csr);
            }
        }
        #[expect(clippy::expect_used, reason = "our own types have string keys and no failing Serialize")]
        serde_json::to_vec(&wire).expect("an uplink message is JSON")
    }
}
