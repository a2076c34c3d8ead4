//! `--follow`: what is stored from now on, each row once.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::failure::{Failure, Outcome};

/// Between looks while following.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Positions are given before a transaction commits: while following, so many are looked at again for late ones.
const LATE: i64 = 4096;

/// Shows what comes after `listed`, the last row that has been shown, until it is interrupted. `page` reads rows behind a
/// position, a full page of `full` rows where there are more.
pub(super) async fn follow<T>(
    listed: i64,
    full: usize,
    page: impl AsyncFn(i64) -> Result<Vec<T>, Failure>,
    position: impl Fn(&T) -> i64,
    show: impl Fn(&T) -> Outcome,
) -> Outcome {
    // One for all looks: an interrupt that comes between two of them is not lost.
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Shown are all up to the floor, and above it those in `shown`. A position is drawn before its transaction commits:
    // what was listed last is no floor yet.
    let mut floor = listed.saturating_sub(LATE).max(0);
    let mut shown: VecDeque<i64> = VecDeque::new();
    let mut after = floor;
    loop {
        let rows = page(after).await?;
        shown.extend(rows.iter().map(&position).take_while(|position| *position <= listed));
        match rows.last().map(&position) {
            Some(last) if last < listed && rows.len() == full => after = last,
            _ => break,
        }
    }
    loop {
        after = floor;
        loop {
            let rows = page(after).await?;
            let Some(last) = rows.last() else { break };
            after = position(last);
            for row in &rows {
                if let Err(place) = shown.binary_search(&position(row)) {
                    shown.insert(place, position(row));
                    show(row)?;
                }
            }
            if rows.len() < full {
                break;
            }
        }
        floor = floor.max(after - LATE);
        while shown.front().is_some_and(|position| *position <= floor) {
            shown.pop_front();
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            _ = interrupt.recv() => return Ok(()),
        }
    }
}
