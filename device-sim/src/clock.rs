//! The one file of the simulator that asks what time it is. It is the client's clock: the connections' deadlines and
//! the simulator's latencies are on one time line.

use std::time::Duration;

pub use doorward_client::clock::sleep_until;

/// The monotonic time now.
#[must_use]
pub fn now() -> Duration {
    doorward_client::clock::monotonic()
}
