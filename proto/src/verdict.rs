//! Exactly one verdict for each message.

/// Why a message is refused: the `error` of a `reject`, in the order of the checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    /// Not a compact JWS of this form.
    BadEnvelope,
    /// No such key version, or retired.
    BadKey,
    /// The HMAC does not fit.
    BadSignature,
    /// Members missing, unknown or malformed.
    BadMessage,
    /// `iss` or `aud` is not this device and the gateway.
    WrongParty,
    /// `sid` is not this session's.
    WrongSession,
    /// `iat` too far from the gateway's clock.
    Stale,
    /// `seq` not greater than the last.
    Replayed,
    /// Over the device's rate.
    RateLimited,
    /// The policy denies the channel or operation.
    Forbidden,
    /// Cannot be made durable now.
    Unavailable,
}

impl Refusal {
    /// Every refusal, in the order of the checks.
    pub const ALL: [Self; 11] = [
        Self::BadEnvelope,
        Self::BadKey,
        Self::BadSignature,
        Self::BadMessage,
        Self::WrongParty,
        Self::WrongSession,
        Self::Stale,
        Self::Replayed,
        Self::RateLimited,
        Self::Forbidden,
        Self::Unavailable,
    ];

    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadEnvelope => "bad_envelope",
            Self::BadKey => "bad_key",
            Self::BadSignature => "bad_signature",
            Self::BadMessage => "bad_message",
            Self::WrongParty => "wrong_party",
            Self::WrongSession => "wrong_session",
            Self::Stale => "stale",
            Self::Replayed => "replayed",
            Self::RateLimited => "rate_limited",
            Self::Forbidden => "forbidden",
            Self::Unavailable => "unavailable",
        }
    }

    /// The refusal behind a word on the wire.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|refusal| refusal.as_str() == word)
    }

    /// Whether it counts against the session: an honest device never earns one.
    #[must_use]
    pub const fn is_strike(self) -> bool {
        matches!(
            self,
            Self::BadEnvelope
                | Self::BadKey
                | Self::BadSignature
                | Self::BadMessage
                | Self::WrongParty
                | Self::WrongSession
                | Self::Replayed
        )
    }
}

/// What became of a message. A publish that waits for its store is undecided until it is settled or refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Every check passed.
    Accepted,
    /// One did not.
    Refused(Refusal),
    /// It came after the session had been closed and was not looked at.
    Ignored,
}
