//! Time as an argument: what a caller's clocks say, and NumericDates on the wire (RFC 7519 §2).

use std::fmt;
use std::time::Duration;

/// A moment, read once by the caller and handed to everything that happens in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// A clock that never steps, from an arbitrary start. Deadlines and rates use it.
    pub monotonic: Duration,
    /// The time of day. Freshness and certificate dates use it.
    pub wall: NumericDate,
}

impl Moment {
    /// The moment `by` later, where both clocks run true.
    #[must_use]
    pub fn after(self, by: Duration) -> Self {
        Self { monotonic: self.monotonic + by, wall: NumericDate(self.wall.0.saturating_add(by)) }
    }
}

/// Seconds since 1970-01-01T00:00:00Z without leap seconds, with up to nine decimals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct NumericDate(Duration);

impl NumericDate {
    /// From the time since the epoch.
    #[must_use]
    pub const fn since_epoch(duration: Duration) -> Self {
        Self(duration)
    }

    /// From whole seconds since the epoch; what lies before it is the epoch itself.
    #[must_use]
    pub fn from_seconds(seconds: i64) -> Self {
        Self(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
    }

    /// The time since the epoch.
    #[must_use]
    pub const fn as_duration(self) -> Duration {
        self.0
    }

    /// Whole milliseconds since the epoch.
    #[must_use]
    pub fn as_millis(self) -> i64 {
        i64::try_from(self.0.as_millis()).unwrap_or(i64::MAX)
    }

    /// How far two dates lie apart.
    #[must_use]
    pub fn distance(self, other: Self) -> Duration {
        self.0.abs_diff(other.0)
    }

    /// Reads `[0-9]{1,11}` with up to nine decimals: no sign, no exponent.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |part: &str, most: usize| {
            matches!(part.len(), 1..) && part.len() <= most && part.bytes().all(|b| b.is_ascii_digit())
        };
        if !digits(whole, 11) || !digits(decimals, 9) {
            return None;
        }
        let mut nanos: u32 = decimals.parse().ok()?;
        for _ in decimals.len()..9 {
            nanos *= 10;
        }
        Some(Self(Duration::new(whole.parse().ok()?, nanos)))
    }
}

impl fmt::Display for NumericDate {
    /// In seconds with three decimals.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0.as_secs(), self.0.subsec_millis())
    }
}

impl serde::Serialize for NumericDate {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.subsec_millis() == 0 {
            serializer.serialize_u64(self.0.as_secs())
        } else {
            // Milliseconds of eleven-digit seconds stay below 2^53: the double is exact to the millisecond.
            #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
            serializer.serialize_f64(self.as_millis() as f64 / 1000.0)
        }
    }
}

impl<'de> serde::Deserialize<'de> for NumericDate {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let seconds = f64::deserialize(deserializer)?;
        Duration::try_from_secs_f64(seconds).map(Self).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numeric_dates_have_a_narrow_grammar() {
        assert_eq!(NumericDate::parse("0"), Some(NumericDate::default()));
        let date = NumericDate::parse("1763724000.5").unwrap();
        assert_eq!(date.as_duration(), Duration::new(1_763_724_000, 500_000_000));
        assert_eq!(date.to_string(), "1763724000.500");
        assert!(NumericDate::parse("99999999999.123456789").is_some());
        for bad in
            ["", ".5", "1.", "-1", "+1", "1e3", "1E3", "100000000000", "1.0000000000", " 1", "1 ", "0x1"]
        {
            assert_eq!(NumericDate::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_date_survives_the_wire_to_the_millisecond() {
        for millis in [0, 1, 999, 1_763_724_000_123, 99_999_999_999_999] {
            let date = NumericDate::since_epoch(Duration::from_millis(millis));
            let text = serde_json::to_string(&date).unwrap();
            assert_eq!(
                NumericDate::parse(&text).map(|d| d.as_millis()),
                Some(millis.cast_signed()),
                "{text}"
            );
        }
    }
}
