//! How large a transaction may be.

use std::time::Duration;

use crate::registry::Batch;

const MOST: usize = 1024;
const LEAST: usize = 64;
const LEAST_BESIDE: usize = 16;
/// Publishes in a transaction of which the time is what any transaction takes.
const FEW: usize = 8;
/// For each publish, so that some may be larger.
pub(super) const BYTES_A_MESSAGE: usize = 1024;
/// A transaction that takes so much longer than one with a few publishes is too large: whoever comes meanwhile waits for it and
/// for his own. What any takes, as on a disk that syncs slowly, makes none smaller: that would help nobody.
const LONG: Duration = Duration::from_millis(20);
/// The same where somebody waits for it who has sent little.
const LONG_BESIDE: Duration = Duration::from_millis(2);

/// Smaller where transactions take long, so that one device's burst is not everybody's pause.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    /// Publishes of one transaction.
    messages: usize,
    /// Those among them of who has much waiting, beside any of who has little.
    beside: usize,
    /// What a few took, of late.
    few: Option<Duration>,
}

impl Default for Size {
    fn default() -> Self {
        Self { messages: MOST, beside: MOST / 4, few: None }
    }
}

impl Size {
    /// What may go into a transaction.
    pub(super) fn room(self) -> Room {
        Room::new(self.messages)
    }

    /// What may go into one of who has much waiting, beside so many of who has little: no fewer than these.
    pub(super) fn room_beside(self, little: usize) -> Room {
        Room::new(self.beside.max(little))
    }

    /// One was committed, and took so long; whether it held some of who had little waiting and some of who had much.
    pub(super) fn after(&mut self, batch: &Batch, mixed: bool, took: Duration) {
        let rows = batch.claims.len()
            + batch.messages.len()
            + batch.seen.len()
            + batch.releases.len()
            + batch.events.len();
        let bytes: usize = batch.messages.iter().map(|message| message.data.len()).sum();
        self.learn(rows.max(bytes / BYTES_A_MESSAGE), mixed, took);
    }

    fn learn(&mut self, messages: usize, mixed: bool, took: Duration) {
        if messages <= FEW {
            self.few = Some(self.few.map_or(took, |few| (7 * few + took) / 8));
        }
        let (size, least, most, long) = if mixed {
            (&mut self.beside, LEAST_BESIDE, MOST / 4, LONG_BESIDE)
        } else {
            (&mut self.messages, LEAST, MOST, LONG)
        };
        let more = took.saturating_sub(self.few.unwrap_or_default());
        if more > long && *size == least {
            // Smaller ones do not take less: that is what any takes now.
            self.few = Some(self.few.map_or(took, |few| (63 * few + took) / 64));
        } else if more > long {
            *size = (*size / 2).max(least);
        } else if more < long / 2 && 2 * messages >= *size {
            *size = (*size * 2).min(most);
        }
    }
}

/// What is left of a transaction's size.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    messages: usize,
    bytes: usize,
    /// Nothing has been taken yet: one fits, however large.
    empty: bool,
}

impl Room {
    pub(super) fn new(messages: usize) -> Self {
        Self { messages, bytes: messages * BYTES_A_MESSAGE, empty: true }
    }

    /// Whether one more of so many bytes has room; if so, it takes it.
    pub(super) fn takes(&mut self, bytes: usize) -> bool {
        let fits = std::mem::take(&mut self.empty) || self.messages > 0 && bytes <= self.bytes;
        if fits {
            (self.messages, self.bytes) = (self.messages.saturating_sub(1), self.bytes.saturating_sub(bytes));
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: Duration = Duration::from_millis(1);

    /// Where each publish takes so long, on a disk where any transaction takes so long.
    fn run(size: &mut Size, mixed: bool, any: Duration, each: Duration) -> usize {
        for _ in 0..500 {
            let messages = if mixed { size.beside } else { size.messages };
            size.learn(messages, mixed, any + each * u32::try_from(messages).unwrap());
            size.learn(1, false, any);
        }
        if mixed { size.beside } else { size.messages }
    }

    #[test]
    fn transactions_that_take_long_become_smaller_and_larger_again() {
        let (mut size, dear) = (Size::default(), Duration::from_micros(50));
        let alone = run(&mut size, false, ANY, dear);
        assert!((200..=400).contains(&alone), "20 ms are 400: {alone}");
        let beside = run(&mut size, true, ANY, dear);
        assert!((20..=40).contains(&beside), "2 ms are 40: {beside}");
        let cheap = Duration::from_micros(1);
        assert_eq!((run(&mut size, false, ANY, cheap), run(&mut size, true, ANY, cheap)), (MOST, MOST / 4));
    }

    #[test]
    fn a_disk_that_syncs_slowly_makes_none_smaller() {
        let (mut size, cheap) = (Size::default(), Duration::from_micros(1));
        let sync = Duration::from_millis(50);
        assert_eq!((run(&mut size, false, sync, cheap), run(&mut size, true, sync, cheap)), (MOST, MOST / 4));
        // Nor where nobody ever sends little, so that what any takes is seen nowhere.
        let mut size = Size::default();
        for _ in 0..500 {
            size.learn(size.messages, false, sync + cheap * u32::try_from(size.messages).unwrap());
        }
        assert_eq!(size.messages, MOST);
    }

    #[test]
    fn a_transaction_has_an_end_and_always_something() {
        let mut room = Room::new(2);
        assert!(room.takes(10 * BYTES_A_MESSAGE) && !room.takes(1));
        let mut room = Room::new(2);
        assert!(room.takes(1) && room.takes(BYTES_A_MESSAGE) && !room.takes(0));
        assert!(Room::new(0).takes(1));
    }
}
