//! How much of one session a wake-up takes, whose turn it is to go on, and how fast what is refused is read on: nobody else
//! waits for a device that sends much, or more than it may.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use doorward_proto::limits::Limits;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

use crate::bucket::{Bucket, Rate, nanos};

/// Bytes of messages that one wake-up may bring before others have their turn, and one message more.
pub(super) const MAX_BYTES: usize = 16 << 10;
/// To refuse a message costs about as much as to take it. So many a second are refused at once, or as many as the device
/// may send, if that is more; then the socket is left unread for a while.
const REFUSALS: usize = 50;
/// A longer message counts as several.
const BYTES_OF_A_REFUSAL: usize = 1024;
const SHORTEST_REST: Duration = Duration::from_millis(100);

/// What a session has made the gateway refuse, and whether it has more to say than others.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// There, if a wake-up did not take all that there was.
    turns: Option<PollSemaphore>,
    refusals: Bucket,
    /// When reading goes on, on the monotonic clock.
    rests_until: Duration,
}

impl Pace {
    /// A message of this length was not accepted.
    pub(super) fn refused(&mut self, bytes: usize, limits: &Limits, now: Duration) {
        let a_second = usize::try_from(limits.rate.per_second).unwrap_or(usize::MAX).max(REFUSALS);
        let rate = Rate::per_second(a_second, a_second);
        let cost = u64::try_from(1 + bytes / BYTES_OF_A_REFUSAL).unwrap_or(u64::MAX);
        self.refusals.take_many(rate, cost, nanos(now));
        let wait = Duration::from_nanos(self.refusals.wait(rate, nanos(now)));
        if !wait.is_zero() {
            // A quarter of max_skew is the longest that a socket may stay unread; this is well below it.
            self.rests_until = now + wait.max(SHORTEST_REST).min(limits.max_skew / 8);
        }
    }

    /// A wake-up has left something: the next one that reads takes a turn. There are as many as threads, so that however many
    /// sessions have much to say, who has little finds few of them before it.
    pub(super) fn takes_turns(&mut self, turns: &Arc<Semaphore>) {
        self.turns.get_or_insert_with(|| PollSemaphore::new(Arc::clone(turns)));
    }

    /// All is read; a place in the queue is given up.
    pub(super) fn takes_no_turns(&mut self) {
        self.turns = None;
    }

    /// The turn, if one has to be taken: it ends where what is returned is dropped. Whoever asks must take it or give up its
    /// place, or all the others wait.
    pub(super) fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Option<OwnedSemaphorePermit>> {
        match &mut self.turns {
            Some(turns) => turns.poll_acquire(cx),
            None => Poll::Ready(None),
        }
    }

    /// Until when nothing is read, if that is so.
    pub(super) fn rests(&self, now: Duration) -> Option<Duration> {
        (self.rests_until > now).then_some(self.rests_until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1000);

    #[test]
    fn who_has_much_to_say_takes_turns_and_who_has_little_takes_none() {
        let turns = Arc::new(Semaphore::new(1));
        let cx = &mut Context::from_waker(std::task::Waker::noop());
        let [mut one, mut other, mut third] = std::array::from_fn(|_| Pace::default());
        assert!(matches!(one.poll_turn(cx), Poll::Ready(None)));
        for pace in [&mut one, &mut other, &mut third] {
            pace.takes_turns(&turns);
        }
        let Poll::Ready(Some(turn)) = one.poll_turn(cx) else { panic!("it is free") };
        assert!(other.poll_turn(cx).is_pending() && third.poll_turn(cx).is_pending());
        drop(turn);
        // First come, first served; and who ends while it is its turn leaves it to the next.
        assert!(one.poll_turn(cx).is_pending() && third.poll_turn(cx).is_pending());
        other.takes_no_turns();
        let Poll::Ready(Some(turn)) = third.poll_turn(cx) else { panic!("the other has gone") };
        assert!(matches!(other.poll_turn(cx), Poll::Ready(None)));
        drop((one, turn));
        assert_eq!(turns.available_permits(), 1);
    }

    #[test]
    fn so_many_are_refused_at_once_and_then_as_many_a_second() {
        let limits = Limits::default();
        let a_second = limits.rate.per_second;
        let (mut pace, mut now, mut refused) = (Pace::default(), NOW, 0);
        while now < NOW + Duration::from_secs(10) {
            match pace.rests(now) {
                Some(until) => now = until,
                None => {
                    pace.refused(500, &limits, now);
                    refused += 1;
                }
            }
        }
        let (least, most) = (9 * a_second, 11 * a_second + 20);
        assert!((least..=most).contains(&refused), "{refused} refused in ten seconds, {a_second} a second");
    }

    #[test]
    fn long_ones_count_for_more_and_no_rest_is_long() {
        let limits = Limits::default();
        let refuse = |bytes: usize| {
            let mut pace = Pace::default();
            (1..10_000).find(|_| {
                pace.refused(bytes, &limits, NOW);
                pace.rests(NOW).is_some()
            })
        };
        assert!(refuse(64 << 10) < refuse(500), "{:?} {:?}", refuse(64 << 10), refuse(500));
        let mut pace = Pace::default();
        for _ in 0..1000 {
            pace.refused(16 << 20, &limits, NOW);
        }
        assert_eq!(pace.rests(NOW), Some(NOW + limits.max_skew / 8));
    }
}
