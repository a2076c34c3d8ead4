//! What a gateway writes while devices talk, and what is read of it.

use std::sync::Arc;

use doorward_proto::ids::{DeviceId, MessageId};
use time::OffsetDateTime;

use super::NewEvent;

/// A device's proven session takes its place: the epoch goes up and the session becomes the newest.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The device.
    pub device: DeviceId,
    /// The session, as the gateway names it.
    pub session: Arc<str>,
    /// The gateway's name.
    pub gateway: Arc<str>,
    /// The peer's address.
    pub peer: String,
    /// When it was proven.
    pub at: OffsetDateTime,
    /// It has waited: the device may have been proven elsewhere since, by a gateway whose clock decides then. What comes
    /// at once is the newest, whatever the clocks say.
    pub late: bool,
}

/// A publish to store.
#[derive(Debug, Clone)]
pub struct NewMessage {
    /// Who sent it.
    pub device: DeviceId,
    /// In which session.
    pub session: Arc<str>,
    /// The device's own id for it.
    pub id: MessageId,
    /// The channel.
    pub channel: Box<str>,
    /// The JSON text as received.
    pub data: Box<str>,
    /// When it was measured, in unix milliseconds, as the device says.
    pub at_ms: Option<i64>,
    /// When the gateway received it, in unix milliseconds.
    pub received_ms: i64,
}

/// One transaction of a gateway. Its parts are written in the order of the fields.
#[derive(Debug, Default)]
pub struct Batch {
    /// Sessions that have been proven.
    pub claims: Vec<Claim>,
    /// Messages to store.
    pub messages: Vec<NewMessage>,
    /// Sessions that were heard, and when.
    pub seen: Vec<(DeviceId, Arc<str>, OffsetDateTime)>,
    /// Sessions that have ended.
    pub releases: Vec<(DeviceId, Arc<str>)>,
    /// What a security officer wants to read.
    pub events: Vec<NewEvent>,
}

/// What became of one message of a batch that committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is stored.
    Stored,
    /// A message of this device with this id was stored before, perhaps in this very batch: acked, and delivered no
    /// second time.
    Duplicate,
    /// The device is not active or the session is not its newest: not stored, never acked.
    Fenced,
    /// The database refuses this very row.
    Unstorable,
}

/// A stored message.
#[derive(Debug, Clone)]
pub struct StoredMessage {
    /// The place in the order of storing.
    pub position: i64,
    /// Who sent it.
    pub device: DeviceId,
    /// The device's own id for it.
    pub id: MessageId,
    /// The channel.
    pub channel: String,
    /// The JSON text as received.
    pub data: String,
    /// When it was measured.
    pub at: Option<OffsetDateTime>,
    /// When the gateway received it.
    pub received_at: OffsetDateTime,
}

/// Which stored messages.
#[derive(Debug, Clone, Default)]
pub struct MessageFilter {
    /// Of this device alone.
    pub device: Option<DeviceId>,
    /// Received at or after.
    pub since: Option<OffsetDateTime>,
    /// Stored after this position.
    pub after: i64,
    /// How many at most.
    pub limit: u32,
}
