//! How far a device's clock is off, as its own messages say.

use std::time::Duration;

use crate::time::NumericDate;

/// What a session has seen of its device's clock: milliseconds, positive where it is ahead of the gateway's.
///
/// A message says when it was signed, and was on its way since. The first one of a session was signed after `welcome`
/// had left, so what it is behind by no more than that is the way's and counts as none; what remains is the clock's for
/// sure. Of later ones the way is not known, and is in what is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Skew {
    /// Of the last message.
    pub last_ms: i64,
    /// The largest, in either direction.
    pub largest_ms: i64,
}

impl Skew {
    /// A message of this `iat` has come. `way`: the time since `welcome` had left.
    pub(super) fn seen(before: Option<Self>, iat: NumericDate, now: NumericDate, way: Duration) -> Self {
        let ms = iat.as_millis().saturating_sub(now.as_millis());
        let Some(Self { largest_ms, .. }) = before else {
            let way = i64::try_from(way.as_millis()).unwrap_or(i64::MAX);
            let sure = if ms < 0 { ms.saturating_add(way).min(0) } else { ms };
            return Self { last_ms: sure, largest_ms: sure };
        };
        let largest_ms = if ms.unsigned_abs() > largest_ms.unsigned_abs() { ms } else { largest_ms };
        Self { last_ms: ms, largest_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_of_the_first_message_is_not_its_clocks() {
        let at = |ms: u64| NumericDate::since_epoch(Duration::from_millis(ms));
        let first = |iat, way| Skew::seen(None, at(iat), at(100_000), Duration::from_millis(way)).last_ms;
        assert_eq!(first(100_000, 0), 0);
        assert_eq!(first(99_800, 300), 0, "as much as it was on its way");
        assert_eq!(first(99_800, 50), -150);
        assert_eq!(first(100_200, 300), 200, "no way makes a clock fast");
        assert_eq!(first(0, 0), -100_000);
    }

    #[test]
    fn the_largest_stays_whichever_side_it_was_on() {
        let at = |ms: u64| NumericDate::since_epoch(Duration::from_millis(ms));
        let mut skew = None;
        for (iat, last, largest) in [(101_000, 1000, 1000), (99_500, -500, 1000), (98_000, -2000, -2000)] {
            let seen = Skew::seen(skew, at(iat), at(100_000), Duration::from_secs(1));
            assert_eq!(seen, Skew { last_ms: last, largest_ms: largest });
            skew = Some(seen);
        }
    }
}
