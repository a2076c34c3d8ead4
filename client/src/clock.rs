//! The one file of the client that asks what time it is; everything else is handed a [`Moment`].

use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use doorward_proto::time::{Moment, NumericDate};

#[expect(clippy::disallowed_methods, reason = "this is the clock that the others are told to ask")]
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The time now, on both clocks. The monotonic one starts with its first use in the process.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the clock that the others are told to ask")]
pub fn now() -> Moment {
    let monotonic = Instant::now().saturating_duration_since(*START);
    // A clock before 1970 is a clock that was never set: the gateway's `welcome` tells the time.
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Moment { monotonic, wall: NumericDate::since_epoch(wall) }
}

/// The monotonic time now.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the clock that the others are told to ask")]
pub fn monotonic() -> Duration {
    Instant::now().saturating_duration_since(*START)
}

/// Waits until the monotonic clock says `at`.
pub async fn sleep_until(at: Duration) {
    tokio::time::sleep(at.saturating_sub(monotonic())).await;
}
