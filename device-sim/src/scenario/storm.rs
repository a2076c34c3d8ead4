//! All devices lose their connections at the same moment, without a goodbye, and come back at once: a power cut, or a
//! gateway that was started again. No attacker takes part; what is judged is that all are back in time and nothing is lost.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::attacks::Attacks;
use super::{Cast, Context};
use crate::clock;

/// In a run.
const STORMS: u32 = 2;
const EXPECTED: &str = "every device that had a session has one again in time";

pub(super) async fn attack(
    context: &Arc<Context>,
    cast: &Cast,
    attacks: &Arc<Attacks>,
    duration: Duration,
    within: Duration,
) {
    for _ in 0..STORMS {
        tokio::time::sleep(duration / (STORMS + 1)).await;
        let (up, before) =
            (context.tally.up.load(Ordering::Relaxed), context.tally.connected.load(Ordering::Relaxed));
        let began = clock::now();
        context.storm.send_modify(|storms| *storms += 1);
        let back = || context.tally.connected.load(Ordering::Relaxed).saturating_sub(before);
        while back() < up && clock::now().saturating_sub(began) < within {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let instead = (back() < up || up == 0)
            .then(|| format!("{} of {up} were back after {:.0} s", back(), within.as_secs_f64()));
        let fleet = format!("1 to {}", cast.honest.len());
        attacks.saw("a reconnect storm", EXPECTED, &fleet, instead);
    }
}
