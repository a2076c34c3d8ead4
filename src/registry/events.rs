//! Security events: what gateways write for those who look into what has happened, and what is read of it.

use std::sync::Arc;

use doorward_proto::ids::DeviceId;
use doorward_proto::verdict::Refusal;
use time::OffsetDateTime;

/// What has happened. Each is a word in the database, on the command line and in the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// An address was blocked for a while: too many of its handshakes have failed.
    AddressBlocked,
    /// TLS refused a connection: whoever it was has not shown a certificate that leads to a device CA.
    TlsRefused,
    /// An upgrade was refused; the detail begins with the problem.
    Refused,
    /// A message was refused, for a reason of its device's making.
    Message(Refusal),
    /// Too many refused messages have ended a session.
    Strikes,
    /// A device is taken over again and again, as if there were two of it.
    PossibleClone,
    /// A device was suspended because of what it sent.
    Quarantine,
    /// A device's clock is off by more than half of what is taken, in a session whose messages were.
    ClockSkew,
}

impl EventKind {
    /// Every kind.
    pub const ALL: [Self; 17] = [
        Self::AddressBlocked,
        Self::TlsRefused,
        Self::Refused,
        Self::Message(Refusal::BadEnvelope),
        Self::Message(Refusal::BadKey),
        Self::Message(Refusal::BadSignature),
        Self::Message(Refusal::BadMessage),
        Self::Message(Refusal::WrongParty),
        Self::Message(Refusal::WrongSession),
        Self::Message(Refusal::Stale),
        Self::Message(Refusal::Replayed),
        Self::Message(Refusal::RateLimited),
        Self::Message(Refusal::Forbidden),
        Self::Strikes,
        Self::PossibleClone,
        Self::Quarantine,
        Self::ClockSkew,
    ];

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AddressBlocked => "address_blocked",
            Self::TlsRefused => "tls_refused",
            Self::Refused => "refused",
            Self::Message(refusal) => refusal.as_str(),
            Self::Strikes => "strikes",
            Self::PossibleClone => "possible_clone",
            Self::Quarantine => "quarantine",
            Self::ClockSkew => "clock_skew",
        }
    }

    /// The kind behind a word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }

    /// What a refused message is; `None` where nobody but ourselves is the reason.
    #[must_use]
    pub const fn of(refusal: Refusal) -> Option<Self> {
        match refusal {
            Refusal::Unavailable => None,
            refusal => Some(Self::Message(refusal)),
        }
    }
}

/// A security event to write, or several that are alike.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// When the last of them was.
    pub at: OffsetDateTime,
    /// When the first of them was.
    pub since: OffsetDateTime,
    /// How many they are.
    pub count: u64,
    /// The gateway's name.
    pub gateway: Arc<str>,
    /// The device, where known.
    pub device: Option<DeviceId>,
    /// Which kind.
    pub kind: EventKind,
    /// The first one's peer.
    pub peer: String,
    /// Words for a person, of the first one.
    pub detail: String,
}

/// A row of events.
#[derive(Debug, Clone)]
pub struct StoredEvent {
    /// The place in the order of storing.
    pub id: i64,
    /// When the last of them was.
    pub at: OffsetDateTime,
    /// When the first of them was.
    pub since: OffsetDateTime,
    /// How many they are.
    pub count: u64,
    /// The gateway's name.
    pub gateway: String,
    /// The device, where known. It need not be registered.
    pub device: Option<String>,
    /// Which kind; another version of the gateway may know more of them.
    pub kind: String,
    /// The first one's peer.
    pub peer: String,
    /// Words for a person, of the first one.
    pub detail: String,
}

/// Which events.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// Of this device alone.
    pub device: Option<DeviceId>,
    /// Of this kind alone.
    pub kind: Option<EventKind>,
    /// The last of them at or after.
    pub since: Option<OffsetDateTime>,
    /// Stored after this one.
    pub after: i64,
    /// How many rows at most: the first ones after `after`…
    pub limit: u32,
    /// …or the last ones. They come in the order of storing either way.
    pub newest: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_go_both_ways_and_each_refusal_of_a_devices_making_has_one() {
        for kind in EventKind::ALL {
            assert_eq!(EventKind::from_word(kind.as_str()), Some(kind));
        }
        assert_eq!(EventKind::from_word("noise"), None);
        for refusal in Refusal::ALL {
            let word = EventKind::of(refusal).map(EventKind::as_str);
            assert_eq!(word, Some(refusal.as_str()).filter(|_| refusal != Refusal::Unavailable));
        }
    }
}
