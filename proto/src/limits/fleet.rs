//! What a fleet says of its devices' limits.

use serde::{Deserialize, Serialize};

use super::{Connects, Limits, Rate};

/// What a fleet's limits say in place of a gateway's own. What is left out is the gateway's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FleetLimits {
    /// Messages a second of one device, 1 to 1,000,000.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rate_per_second: Option<u32>,
    /// Messages of one device at once, 1 to 1,000,000.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rate_burst: Option<u32>,
    /// Bytes of messages a second of one device, 1,024 to 1,073,741,824.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bytes_per_second: Option<u32>,
    /// Bytes of messages of one device at once, 1,024 to 1,073,741,824.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bytes_burst: Option<u32>,
    /// The longest message in bytes, at least 1,024. A gateway's own is never exceeded: its buffers are made for that.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub message_bytes: Option<usize>,
    /// Bytes that wait for one device to read them, 4,096 to 67,108,864. Neither more than a gateway's own, for that is what its
    /// memory is reckoned by, nor less than two of the longest messages.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub outgoing_bytes: Option<usize>,
    /// Strikes within the gateway's window that end a session, 1 to 1,000. Never more than a gateway's own: each device may
    /// have so many remembered, and that is what its memory is reckoned by.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub strikes: Option<u32>,
    /// Connections of one device a minute, 1 to 1,000,000.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub connects_per_minute: Option<u32>,
    /// Connections of one device at once, 1 to 1,000,000.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub connects_burst: Option<u32>,
    /// How long after its end a certificate may still renew itself, in seconds, up to a year. No limit of a session's: it
    /// opens one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub renew_after_expiry: Option<u32>,
}

/// What is wrong with a fleet's limits.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LimitsError {
    /// Not JSON, not an object, an unknown or repeated member, a value of the wrong kind.
    #[error("not limits: {0}")]
    Malformed(String),
    /// Out of its range.
    #[error("{name} is {value}: it must be {range}")]
    Range {
        /// Which.
        name: &'static str,
        /// What it says.
        value: u64,
        /// What it must be.
        range: &'static str,
    },
}

impl FleetLimits {
    /// Reads a JSON object.
    ///
    /// # Errors
    /// [`LimitsError`] naming what is wrong.
    pub fn parse(text: &str) -> Result<Self, LimitsError> {
        // Else an array would be taken for an object.
        if !text.trim_start().starts_with('{') {
            return Err(LimitsError::Malformed("a JSON object is needed".to_owned()));
        }
        let limits: Self =
            serde_json::from_str(text).map_err(|error| LimitsError::Malformed(error.to_string()))?;
        limits.check()?;
        Ok(limits)
    }

    /// Whether each is within its range.
    ///
    /// # Errors
    /// [`LimitsError::Range`] for the first that is not.
    pub fn check(&self) -> Result<(), LimitsError> {
        let range = |name, value: Option<u64>, least, most, range| match value {
            Some(value) if !(least..=most).contains(&value) => Err(LimitsError::Range { name, value, range }),
            _ => Ok(()),
        };
        let number = |value: Option<u32>| value.map(u64::from);
        let size = |value: Option<usize>| value.map(|value| value as u64);
        for (name, value) in [
            ("rate_per_second", self.rate_per_second),
            ("rate_burst", self.rate_burst),
            ("connects_per_minute", self.connects_per_minute),
            ("connects_burst", self.connects_burst),
        ] {
            range(name, number(value), 1, 1_000_000, "1 to 1000000")?;
        }
        for (name, value) in [("bytes_per_second", self.bytes_per_second), ("bytes_burst", self.bytes_burst)]
        {
            range(name, number(value), 1024, 1 << 30, "1024 to 1073741824")?;
        }
        range("message_bytes", size(self.message_bytes), 1024, 16 << 20, "1024 to 16777216")?;
        range("outgoing_bytes", size(self.outgoing_bytes), 4096, 64 << 20, "4096 to 67108864")?;
        range("strikes", number(self.strikes), 1, 1000, "1 to 1000")?;
        let late = number(self.renew_after_expiry);
        range("renew_after_expiry", late, 0, 365 * 86_400, "0 to 31536000 seconds")
    }

    /// A gateway's limits, for a device of this fleet.
    #[must_use]
    pub fn over(&self, gateway: Limits) -> Limits {
        let rate = |per_second: Option<u32>, burst: Option<u32>, own: Rate| Rate {
            per_second: per_second.unwrap_or(own.per_second),
            burst: burst.unwrap_or(own.burst),
        };
        let no_more = |value: Option<usize>, own: usize| value.map_or(own, |value| value.min(own));
        let max_message_bytes = no_more(self.message_bytes, gateway.max_message_bytes);
        Limits {
            max_message_bytes,
            rate: rate(self.rate_per_second, self.rate_burst, gateway.rate),
            bytes: rate(self.bytes_per_second, self.bytes_burst, gateway.bytes),
            strikes: no_more(self.strikes.map(|strikes| strikes as usize), gateway.strikes),
            outgoing_bytes: no_more(self.outgoing_bytes, gateway.outgoing_bytes).max(2 * max_message_bytes),
            connects: Connects {
                per_minute: self.connects_per_minute.unwrap_or(gateway.connects.per_minute),
                burst: self.connects_burst.unwrap_or(gateway.connects.burst),
            },
            ..gateway
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fleet_says_what_it_wants_otherwise_and_no_gateway_is_made_to_take_longer_messages() {
        let gateway = Limits { max_message_bytes: 4096, outgoing_bytes: 16_384, ..Limits::default() };
        assert_eq!(FleetLimits::parse(" {} ").unwrap().over(gateway), gateway);
        let faster = FleetLimits::parse(r#"{"rate_per_second":500}"#).unwrap().over(gateway);
        assert_eq!(faster.rate, Rate { per_second: 500, burst: 1000 });
        for (bytes, most) in [(1024, 1024), (8192, 4096)] {
            let text = format!(r#"{{"message_bytes":{bytes}}}"#);
            assert_eq!(FleetLimits::parse(&text).unwrap().over(gateway).max_message_bytes, most);
        }
        let text =
            r#"{"bytes_per_second":2048,"bytes_burst":1073741824,"strikes":9,"connects_per_minute":1}"#;
        let limits = FleetLimits::parse(text).unwrap().over(gateway);
        assert_eq!(limits.bytes, Rate { per_second: 2048, burst: 1 << 30 });
        assert_eq!(limits.connects, Connects { per_minute: 1, burst: 60 });
        assert_eq!(limits.strikes, gateway.strikes, "a fleet may be stricter, and no laxer");
        assert_eq!(FleetLimits::parse(r#"{"strikes":2}"#).unwrap().over(gateway).strikes, 2);
        for (bytes, most) in [(4096, 8192), (10_000, 10_000), (1 << 26, 16_384)] {
            let text = format!(r#"{{"outgoing_bytes":{bytes}}}"#);
            assert_eq!(FleetLimits::parse(&text).unwrap().over(gateway).outgoing_bytes, most);
        }
        for text in [
            "",
            "[]",
            "[1,2,3]",
            "null",
            r#"{"rate":1}"#,
            r#"{"rate_per_second":0}"#,
            r#"{"rate_burst":1000001}"#,
            r#"{"message_bytes":1023}"#,
            r#"{"renew_after_expiry":31536001}"#,
            r#"{"bytes_per_second":1023}"#,
            r#"{"bytes_burst":1073741825}"#,
            r#"{"outgoing_bytes":4095}"#,
            r#"{"strikes":0}"#,
            r#"{"connects_per_minute":0}"#,
            r#"{"connects_burst":1000001}"#,
            r#"{"rate_burst":"1"}"#,
            r#"{"rate_burst":1,"rate_burst":2}"#,
        ] {
            assert!(FleetLimits::parse(text).is_err(), "{text}");
        }
    }
}
