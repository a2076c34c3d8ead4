//! A publish that passed every check, and the receipt that turns into its `ack`.

use super::judge::Fresh;
use crate::ids::{DeviceId, MessageId};
use crate::time::NumericDate;

/// A publish that passed every check of the session. Only the session makes one.
#[derive(Debug)]
pub struct Accepted {
    publish: Publish,
    receipt: Receipt,
}

impl Accepted {
    pub(super) fn new(fresh: &Fresh<'_>, publish: Publish) -> Self {
        Self { publish, receipt: Receipt { seq: fresh.seq() } }
    }

    /// What to store, and the receipt to bring back.
    pub fn into_parts(self) -> (Publish, Receipt) {
        (self.publish, self.receipt)
    }
}

/// A device's message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// Who sent it.
    pub device: DeviceId,
    /// The device's own id for it, the same in a retry.
    pub id: MessageId,
    /// Where to.
    pub channel: Box<str>,
    /// The JSON text as received.
    pub data: Box<str>,
    /// When it was measured, as the device says.
    pub at: Option<NumericDate>,
    /// When the gateway received it.
    pub received: NumericDate,
}

/// The right to one `ack`. It cannot be copied: a message is settled or refused once.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "an undecided message leaves its device waiting"]
pub struct Receipt {
    seq: u64,
}

impl Receipt {
    pub(super) fn seq(self) -> u64 {
        self.seq
    }
}

/// Proof that a publish outlives a crash. Implemented by the store's own type, which is made after a synced write
/// and nowhere else; to implement it for anything less is to acknowledge what can be lost.
pub trait Durable {
    /// The receipt of the message that was stored.
    fn into_receipt(self) -> Receipt;
}
