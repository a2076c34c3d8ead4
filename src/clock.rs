//! The one file of the gateway that asks what time it is.
#![expect(clippy::disallowed_methods, reason = "everybody else is handed the time or asks here")]

use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use doorward_proto::time::{Moment, NumericDate};
use time::OffsetDateTime;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Both clocks, read once.
#[must_use]
pub fn now() -> Moment {
    // A clock before 1970 reads as 1970: every certificate is then "not yet valid", which refuses.
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Moment { monotonic: START.elapsed(), wall: NumericDate::since_epoch(wall) }
}

/// The time of day, for rows and certificates.
#[must_use]
pub fn utc() -> OffsetDateTime {
    OffsetDateTime::now_utc()
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
