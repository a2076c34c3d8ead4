//! Why sessions end, and what the other end is told (docs/protocol.md §5; RFC 6455 §7.4).

/// Why a session ends. The number is the WebSocket close code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Close {
    /// The other end closed, or nothing is left to say.
    Normal = 1000,
    /// The gateway drains or restarts.
    GoingAway = 1001,
    /// The peer broke RFC 6455.
    Protocol = 1002,
    /// A binary frame.
    Unsupported = 1003,
    /// Text that is not UTF-8.
    NotUtf8 = 1007,
    /// A message over `max_message_bytes`.
    TooBig = 1009,
    /// A failure of the gateway's own.
    Internal = 1011,
    /// The device found a check of its own failing.
    DeviceCheck = 4000,
    /// The certificate expired during the session.
    CertificateExpired = 4001,
    /// The device was revoked.
    Revoked = 4003,
    /// The device was suspended, or its certificate revoked or past its grace.
    Suspended = 4004,
    /// Ended by an operator.
    Kicked = 4005,
    /// Too many refused messages.
    Strikes = 4008,
    /// A newer session of the same device took over.
    Superseded = 4009,
    /// Nothing heard for two heartbeats and a half.
    Silent = 4010,
    /// Not proven in time.
    Unproven = 4011,
    /// It reads too slowly.
    SlowReader = 4029,
}

impl Close {
    /// Every reason, in the order of the codes.
    pub const ALL: [Self; 17] = [
        Self::Normal,
        Self::GoingAway,
        Self::Protocol,
        Self::Unsupported,
        Self::NotUtf8,
        Self::TooBig,
        Self::Internal,
        Self::DeviceCheck,
        Self::CertificateExpired,
        Self::Revoked,
        Self::Suspended,
        Self::Kicked,
        Self::Strikes,
        Self::Superseded,
        Self::Silent,
        Self::Unproven,
        Self::SlowReader,
    ];

    /// The WebSocket close code.
    #[must_use]
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// The reason behind a close code that this protocol knows.
    #[must_use]
    pub fn from_code(code: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|close| close.code() == code)
    }

    /// Words for a person, and for the close frame: at most 123 bytes.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Normal => "closed",
            Self::GoingAway => "the gateway is going away",
            Self::Protocol => "the peer broke the WebSocket protocol",
            Self::Unsupported => "binary frames are not spoken here",
            Self::NotUtf8 => "text was not UTF-8",
            Self::TooBig => "message too big",
            Self::Internal => "internal error",
            Self::DeviceCheck => "the device found a check of its own failing",
            Self::CertificateExpired => "the certificate expired",
            Self::Revoked => "device revoked",
            Self::Suspended => "device suspended, or its certificate revoked or past its grace",
            Self::Kicked => "ended by an operator",
            Self::Strikes => "too many refused messages",
            Self::Superseded => "a newer session of this device took over",
            Self::Silent => "nothing heard for two heartbeats and a half",
            Self::Unproven => "not proven in time by a signed message",
            Self::SlowReader => "reading too slowly",
        }
    }

    /// A label for counters and log lines.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::GoingAway => "going_away",
            Self::Protocol => "protocol",
            Self::Unsupported => "unsupported",
            Self::NotUtf8 => "not_utf8",
            Self::TooBig => "too_big",
            Self::Internal => "internal",
            Self::DeviceCheck => "device_check",
            Self::CertificateExpired => "certificate_expired",
            Self::Revoked => "revoked",
            Self::Suspended => "suspended",
            Self::Kicked => "kicked",
            Self::Strikes => "strikes",
            Self::Superseded => "superseded",
            Self::Silent => "silent",
            Self::Unproven => "unproven",
            Self::SlowReader => "slow_reader",
        }
    }

    /// Whether a `bye` goes before the close frame: where the peer broke the framing or does not read, none does.
    #[must_use]
    pub(crate) const fn has_bye(self) -> bool {
        !matches!(
            self,
            Self::Normal
                | Self::Protocol
                | Self::Unsupported
                | Self::NotUtf8
                | Self::TooBig
                | Self::DeviceCheck
                | Self::SlowReader
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_go_both_ways_and_reasons_fit_a_close_frame() {
        for close in Close::ALL {
            assert_eq!(Close::from_code(close.code()), Some(close));
            assert!(close.reason().len() <= 123, "RFC 6455 §5.5: a control frame holds 125 bytes");
        }
        assert_eq!(Close::from_code(1005), None);
    }
}
