//! What the gateway says (docs/protocol.md §4). The gateway writes these, the device reads them and ignores members
//! that it does not know.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::ids::{DeviceId, KeyVersion, MessageId};
use crate::limits::Rate;
use crate::time::NumericDate;

/// The first message of every session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// The longest message in either direction, in bytes.
    pub max_message_bytes: usize,
    /// In seconds.
    #[serde(serialize_with = "seconds")]
    pub max_skew: f64,
    /// In seconds.
    #[serde(serialize_with = "seconds")]
    pub heartbeat: f64,
    /// Messages a second, and at once.
    pub rate: Rate,
    /// The key version that the gateway expects.
    pub key: KeyVersion,
    /// When the session's certificate expires.
    pub certificate_expires: NumericDate,
    /// The gateway's name.
    pub gateway: String,
}

/// The members of `welcome` that have changed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LimitsChange {
    /// In bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_message_bytes: Option<usize>,
    /// In seconds.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "some_seconds")]
    pub max_skew: Option<f64>,
    /// In seconds.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "some_seconds")]
    pub heartbeat: Option<f64>,
    /// Messages a second, and at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// The key version that the gateway expects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyVersion>,
    /// When the session's certificate expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_expires: Option<NumericDate>,
}

/// Answers to many messages: inclusive ranges of uplink `seq`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// `[first, last]`.
    pub acks: Vec<(u64, u64)>,
}

/// A refused message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reject {
    /// Its `seq`, where one could be read from an authenticated message.
    #[serde(rename = "ref")]
    pub reference: Option<u64>,
    /// One of [`crate::verdict::Refusal`]'s words.
    pub error: String,
    /// Words for a person.
    pub detail: String,
    /// In seconds, where waiting helps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
}

/// An order to the device.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Command {
    /// To be named in the `result`.
    pub id: MessageId,
    /// What to do.
    pub name: String,
    /// With what.
    pub data: Box<RawValue>,
    /// Until when it is worth doing.
    pub expires: NumericDate,
}

/// What a subscription brings.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Message {
    /// The channel.
    pub ch: String,
    /// What was published.
    pub data: Box<RawValue>,
    /// The sender's id for it.
    pub id: MessageId,
    /// The sender.
    pub from: DeviceId,
}

/// A new HMAC key.
#[derive(Clone, Serialize, Deserialize)]
pub struct Rekey {
    /// Its version.
    pub version: KeyVersion,
    /// Its 32 bytes, base64url.
    pub key: zeroize::Zeroizing<String>,
    /// How long the old one holds once the new one is confirmed, in seconds.
    pub grace: u64,
}

impl std::fmt::Debug for Rekey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rekey(version {}, redacted)", self.version)
    }
}

/// A request to renew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotate {
    /// `certificate`.
    pub what: String,
    /// Until when.
    pub by: NumericDate,
}

/// A renewed certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// The `seq` of the `renew`.
    #[serde(rename = "ref")]
    pub reference: u64,
    /// PEM, leaf first.
    pub chain: String,
    /// When the leaf expires.
    pub expires: NumericDate,
}

/// The last message before the gateway closes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bye {
    /// Words for a person.
    pub reason: String,
    /// When to come back, in seconds.
    pub retry_after: Option<u64>,
}

/// A message of the gateway as the device reads it.
#[derive(Debug, Clone)]
pub enum Downlink {
    /// [`Welcome`].
    Welcome(Welcome),
    /// [`LimitsChange`].
    Limits(LimitsChange),
    /// [`Ack`].
    Ack(Ack),
    /// [`Reject`].
    Reject(Reject),
    /// [`Command`].
    Command(Command),
    /// [`Message`].
    Message(Message),
    /// [`Rekey`].
    Rekey(Rekey),
    /// [`Rotate`].
    Rotate(Rotate),
    /// [`Certificate`].
    Certificate(Certificate),
    /// [`Bye`].
    Bye(Bye),
    /// An operation of a later version, to be ignored.
    Unknown,
}

/// The claims that every message of the gateway carries.
#[derive(Debug, Deserialize)]
pub(crate) struct Claims {
    pub(crate) iss: String,
    pub(crate) aud: String,
    pub(crate) sid: String,
    pub(crate) seq: u64,
    pub(crate) iat: NumericDate,
    op: String,
}

impl Claims {
    /// The operation's own members, from the same text.
    pub(crate) fn operation(&self, text: &str) -> Result<Downlink, serde_json::Error> {
        Ok(match &*self.op {
            "welcome" => Downlink::Welcome(serde_json::from_str(text)?),
            "limits" => Downlink::Limits(serde_json::from_str(text)?),
            "ack" => Downlink::Ack(serde_json::from_str(text)?),
            "reject" => Downlink::Reject(serde_json::from_str(text)?),
            "command" => Downlink::Command(serde_json::from_str(text)?),
            "message" => Downlink::Message(serde_json::from_str(text)?),
            "rekey" => Downlink::Rekey(serde_json::from_str(text)?),
            "rotate" => Downlink::Rotate(serde_json::from_str(text)?),
            "certificate" => Downlink::Certificate(serde_json::from_str(text)?),
            "bye" => Downlink::Bye(serde_json::from_str(text)?),
            _ => Downlink::Unknown,
        })
    }
}

/// A message of the gateway as it is signed.
#[derive(Serialize)]
pub(crate) struct Signed<'a, B: Serialize> {
    pub(crate) iss: &'static str,
    pub(crate) aud: &'a str,
    pub(crate) sid: &'a str,
    pub(crate) seq: u64,
    pub(crate) iat: NumericDate,
    pub(crate) op: &'static str,
    #[serde(flatten)]
    pub(crate) body: &'a B,
}

/// Whole seconds go out without a decimal point: parsers with integer types stumble over `60.0`.
fn seconds<S: serde::Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole, and within range")]
    match value {
        whole if whole.fract() == 0.0 && (0.0..1e15).contains(whole) => {
            serializer.serialize_u64(*whole as u64)
        }
        parts => serializer.serialize_f64(*parts),
    }
}

fn some_seconds<S: serde::Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    seconds(&value.unwrap_or_default(), serializer)
}
