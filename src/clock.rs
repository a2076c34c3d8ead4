//! The one file of the gateway that asks what time it is.
#![expect(clippy::disallowed_methods, reason = "everybody else is handed the time or asks here")]

use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use doorward_proto::time::{Moment, NumericDate};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::datetime;

/// A clock that says an earlier time is wrong: this version was not there then. To be set with each release, and a constant so
/// that a build can be repeated.
pub const BUILT: OffsetDateTime = datetime!(2026-11-01 00:00 UTC);

/// Says of a later time that the clock is wrong before it, such as when a machine was installed. Never of an earlier one.
pub const NOT_BEFORE: &str = "DOORWARD_NOT_BEFORE";

/// Why the clock is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClockError {
    /// It says a time that is past for sure.
    #[error(
        "the clock says {0}, and it is later than {1} for sure: no certificate can be judged or signed by it; set the clock"
    )]
    Behind(String, String),
    /// The environment says something else than a time.
    #[error("{NOT_BEFORE} is '{0}', which is no time like 2026-11-21T00:00:00Z")]
    NotBefore(String),
}

/// The earliest time at which the clock is believed.
///
/// # Errors
/// [`ClockError::NotBefore`]
pub fn earliest() -> Result<OffsetDateTime, ClockError> {
    match std::env::var(NOT_BEFORE) {
        Ok(text) if !text.is_empty() => {
            let said = OffsetDateTime::parse(&text, &Rfc3339).map_err(|_| ClockError::NotBefore(text))?;
            Ok(said.max(BUILT))
        }
        _ => Ok(BUILT),
    }
}

/// Whether certificates can be judged and signed by this clock.
///
/// # Errors
/// [`ClockError`] where it says a time that is past for sure.
pub fn check() -> Result<(), ClockError> {
    believed(utc(), earliest()?)
}

fn believed(now: OffsetDateTime, earliest: OffsetDateTime) -> Result<(), ClockError> {
    if now < earliest {
        return Err(ClockError::Behind(rfc3339(now.unix_timestamp()), rfc3339(earliest.unix_timestamp())));
    }
    Ok(())
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A time of day that is stepped, as an operator or a bad time server steps it. For tests in this process: a build for use
/// has none of it, and nothing from outside the process reaches it.
#[cfg(debug_assertions)]
mod stepped {
    use std::sync::atomic::{AtomicI64, Ordering};

    static MS: AtomicI64 = AtomicI64::new(0);

    /// From now on the time of day is off by this; the monotonic clock is not.
    pub fn step_to(off: time::Duration) {
        MS.store(i64::try_from(off.whole_milliseconds()).unwrap_or(0), Ordering::SeqCst);
    }

    pub(super) fn off() -> time::Duration {
        time::Duration::milliseconds(MS.load(Ordering::Relaxed))
    }
}

#[cfg(debug_assertions)]
pub use stepped::step_to;

/// Both clocks, read once.
#[must_use]
pub fn now() -> Moment {
    // A clock before 1970 reads as 1970: every certificate is then "not yet valid", which refuses.
    let wall = SystemTime::now();
    #[cfg(debug_assertions)]
    let wall = wall + stepped::off();
    let wall = wall.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Moment { monotonic: START.elapsed(), wall: NumericDate::since_epoch(wall) }
}

/// The time of day, for rows and certificates.
#[must_use]
pub fn utc() -> OffsetDateTime {
    let now = OffsetDateTime::now_utc();
    #[cfg(debug_assertions)]
    let now = now + stepped::off();
    now
}

/// A point of the monotonic clock of [`now`] as the runtime's timers know it.
#[must_use]
pub fn instant(monotonic: Duration) -> tokio::time::Instant {
    tokio::time::Instant::from_std(*START + monotonic)
}

/// A date of the wire as a row's time.
#[must_use]
pub fn date(date: NumericDate) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + date.as_duration()
}

/// A row's time as a date of the wire.
#[must_use]
pub fn numeric(time: OffsetDateTime) -> NumericDate {
    let since = time - OffsetDateTime::UNIX_EPOCH;
    NumericDate::since_epoch(Duration::try_from(since).unwrap_or(Duration::ZERO))
}

/// A Unix time in words.
#[must_use]
pub fn rfc3339(seconds: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    time.format(&Rfc3339).unwrap_or_else(|_| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_before_the_build_is_not_believed() {
        assert_eq!(believed(BUILT, BUILT), Ok(()));
        let words = believed(datetime!(1970-01-02 00:00 UTC), BUILT).unwrap_err().to_string();
        assert!(words.contains("1970-01-02T00:00:00Z") && words.contains("set the clock"), "{words}");
    }

    #[test]
    fn the_build_is_no_older_than_the_newest_release_and_not_in_the_future() {
        let changes = include_str!("../CHANGELOG.md");
        let dates = changes.lines().filter(|line| line.starts_with("## ")).filter_map(|line| {
            let date = line.rsplit(' ').next()?;
            OffsetDateTime::parse(&format!("{date}T00:00:00Z"), &Rfc3339).ok()
        });
        for date in dates {
            assert!(BUILT >= date, "a release of {date}: clock.rs says {BUILT}");
        }
        assert!(BUILT <= utc());
    }
}
