//! How far a device's clock is off, in the words of a security event; `explain` reads them there.

use std::fmt;

const IS: &str = "the device's clock is ";
const AHEAD: &str = " s ahead of the gateway's";
const BEHIND: &str = " s behind the gateway's";

/// Milliseconds, positive where the device's clock is ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Off(pub(crate) i64);

impl fmt::Display for Off {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("the device's clock may be right: the message was long on its way");
        }
        let (ms, side) = (self.0.unsigned_abs(), if self.0 > 0 { AHEAD } else { BEHIND });
        write!(f, "{IS}{}.{:03}{side}", ms / 1000, ms % 1000)
    }
}

impl Off {
    /// What an event says of a clock, if it says anything of one. Rows may be anybody's who may write them.
    pub(crate) fn read(detail: &str) -> Option<Self> {
        let rest = detail.strip_prefix(IS)?;
        let (number, sign) = match (rest.split_once(AHEAD), rest.split_once(BEHIND)) {
            (Some((number, _)), None) => (number, 1),
            (None, Some((number, _))) => (number, -1),
            _ => return None,
        };
        let (seconds, millis) = number.split_once('.').filter(|(_, millis)| millis.len() == 3)?;
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(seconds) || !digits(millis) {
            return None;
        }
        let seconds: i64 = seconds.parse().ok()?;
        Some(Self(sign * seconds.checked_mul(1000)?.checked_add(millis.parse().ok()?)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_an_event_are_read_again() {
        for ms in [1, -1, 61_000, -61_001, 3_600_000, -1_763_724_000_123] {
            let words = Off(ms).to_string();
            assert_eq!(Off::read(&words), Some(Off(ms)), "{words}");
            assert_eq!(Off::read(&format!("{words}; session x")), Some(Off(ms)));
        }
        assert_eq!(Off(-61_001).to_string(), "the device's clock is 61.001 s behind the gateway's");
        for other in [
            "a message was refused",
            "the device's clock is soon ahead of the gateway's",
            "the device's clock is 1 s ahead of the gateway's",
            "the device's clock is -1.000 s ahead of the gateway's",
            "the device's clock is 99999999999999999999.000 s ahead of the gateway's",
            &Off(0).to_string(),
        ] {
            assert_eq!(Off::read(other), None, "{other}");
        }
    }
}
