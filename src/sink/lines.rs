//! Publishes that wait for the store, in two lines: of who has little waiting, and of who has much. A device that sends now and
//! then does not wait until the backlogs of others are stored.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::size::{BYTES_A_MESSAGE, Size};

/// Who has no more waiting than this has little: so many publishes, of which a long one counts as several.
const LITTLE: usize = 2;

/// What waits of one session. It changes under the queue's lock alone.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    publishes: AtomicUsize,
    /// The same, a long one as several.
    cost: AtomicUsize,
    /// Those that stand in the line of who has much.
    much: AtomicUsize,
}

impl Backlog {
    pub(super) fn is_empty(&self) -> bool {
        self.publishes.load(Ordering::Relaxed) == 0
    }

    /// Whether the next one stands with who has much. Of one session none overtakes another: where there is one, there is
    /// the next.
    fn takes(&self, cost: usize) -> bool {
        self.publishes.fetch_add(1, Ordering::Relaxed);
        let much = self.cost.fetch_add(cost, Ordering::Relaxed) + cost > LITTLE
            || self.much.load(Ordering::Relaxed) > 0;
        self.much.fetch_add(usize::from(much), Ordering::Relaxed);
        much
    }

    fn gives(&self, cost: usize, much: bool) {
        self.publishes.fetch_sub(1, Ordering::Relaxed);
        self.cost.fetch_sub(cost, Ordering::Relaxed);
        self.much.fetch_sub(usize::from(much), Ordering::Relaxed);
    }

    /// Whether one of them stands with who has little.
    fn has_little(&self) -> bool {
        self.publishes.load(Ordering::Relaxed) > self.much.load(Ordering::Relaxed)
    }

    fn has_little_alone(&self) -> bool {
        !self.is_empty() && self.much.load(Ordering::Relaxed) == 0
    }
}

/// What stands in a line.
pub(super) trait Waits {
    fn backlog(&self) -> &Backlog;
    fn bytes(&self) -> usize;
    /// Since when, on the monotonic clock.
    fn since(&self) -> Duration;

    fn cost(&self) -> usize {
        1 + self.bytes() / BYTES_A_MESSAGE
    }
}

/// Both lines, each in the order in which its publishes came.
#[derive(Debug)]
pub(super) struct Lines<J> {
    little: VecDeque<J>,
    much: VecDeque<J>,
    bytes: usize,
    /// How many sessions have nothing in the line of who has much.
    modest: usize,
}

impl<J> Default for Lines<J> {
    fn default() -> Self {
        Self { little: VecDeque::new(), much: VecDeque::new(), bytes: 0, modest: 0 }
    }
}

impl<J: Waits> Lines<J> {
    pub(super) fn len(&self) -> usize {
        self.little.len() + self.much.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Of all.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Since when the oldest waits.
    pub(super) fn oldest(&self) -> Option<Duration> {
        self.little.front().into_iter().chain(self.much.front()).map(J::since).min()
    }

    pub(super) fn push(&mut self, job: J) {
        self.bytes += job.bytes();
        self.modest -= usize::from(job.backlog().has_little_alone());
        let much = job.backlog().takes(job.cost());
        self.modest += usize::from(job.backlog().has_little_alone());
        let line = if much { &mut self.much } else { &mut self.little };
        line.push_back(job);
    }

    /// The next transaction's: first of who has little, then of who has much; fewer of these, where somebody waits who has
    /// little alone, and then it is said.
    pub(super) fn take(&mut self, size: Size) -> (Vec<J>, bool) {
        let beside = self.modest > 0 && !self.much.is_empty();
        let (mut taken, mut room) = (Vec::new(), size.room());
        while let Some(job) = self.little.pop_front_if(|job| room.takes(job.bytes())) {
            taken.push(self.leaves(job, false));
        }
        if beside {
            room = size.room_beside(taken.len());
        }
        while let Some(job) =
            self.much.pop_front_if(|job| !job.backlog().has_little() && room.takes(job.bytes()))
        {
            taken.push(self.leaves(job, true));
        }
        (taken, beside)
    }

    /// Those that came before a moment.
    pub(super) fn take_older(&mut self, since: Duration) -> Vec<J> {
        let mut taken = Vec::new();
        while let Some(job) = self.little.pop_front_if(|job| job.since() < since) {
            taken.push(self.leaves(job, false));
        }
        while let Some(job) = self.much.pop_front_if(|job| job.since() < since) {
            taken.push(self.leaves(job, true));
        }
        taken
    }

    fn leaves(&mut self, job: J, much: bool) -> J {
        self.bytes -= job.bytes();
        self.modest -= usize::from(job.backlog().has_little_alone());
        job.backlog().gives(job.cost(), much);
        self.modest += usize::from(job.backlog().has_little_alone());
        job
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    struct Publish {
        session: Arc<Backlog>,
        number: u64,
        bytes: usize,
    }

    impl Waits for Publish {
        fn backlog(&self) -> &Backlog {
            &self.session
        }
        fn bytes(&self) -> usize {
            self.bytes
        }
        fn since(&self) -> Duration {
            Duration::from_secs(self.number)
        }
    }

    #[derive(Default)]
    struct World {
        sessions: Vec<Arc<Backlog>>,
        lines: Lines<Publish>,
        number: u64,
    }

    impl World {
        fn push(&mut self, session: usize, bytes: usize) {
            self.sessions.resize_with(self.sessions.len().max(session + 1), Arc::default);
            self.number += 1;
            self.lines.push(Publish {
                session: Arc::clone(&self.sessions[session]),
                number: self.number,
                bytes,
            });
        }

        /// By session.
        fn take(&mut self) -> (Vec<(usize, u64)>, bool) {
            let (taken, mixed) = self.lines.take(Size::default());
            let session =
                |of: &Publish| self.sessions.iter().position(|s| Arc::ptr_eq(s, &of.session)).unwrap();
            (taken.iter().map(|publish| (session(publish), publish.number)).collect(), mixed)
        }
    }

    #[test]
    fn who_sends_little_does_not_wait_for_who_sends_much() {
        let mut world = World::default();
        // As many as may wait of each of 64, and behind them all a hundred with a small one each.
        (0..64 * 128).for_each(|n| world.push(n % 64, 500));
        (0..100).for_each(|n| world.push(64 + n, 500));
        let (taken, mixed) = world.take();
        assert!(mixed && (0..100).all(|n| taken.iter().any(|(session, _)| *session == 64 + n)));
        // The first of each were few, too; of the others some go besides.
        assert_eq!(taken.len(), 64 * LITTLE + 100 + 256);
        // Where nobody has little alone, the room is theirs.
        let (taken, mixed) = world.take();
        assert_eq!((taken.len(), mixed), (1024, false));
    }

    #[test]
    fn large_messages_are_much_and_one_goes_however_large() {
        let mut world = World::default();
        (0..8).for_each(|_| world.push(0, 10 << 20));
        world.push(1, 500);
        let (taken, mixed) = world.take();
        assert_eq!(
            (taken.iter().map(|(session, _)| *session).collect::<Vec<_>>(), mixed),
            (vec![1, 0], true)
        );
        let (taken, mixed) = world.take();
        assert_eq!((taken.len(), mixed), (1, false));
    }

    #[test]
    fn of_one_session_none_overtakes_another_and_nothing_is_left() {
        fastrand::seed(7);
        for _ in 0..200 {
            let mut world = World::default();
            let mut last = [0; 6];
            let mut took = 0;
            for _ in 0..30 {
                for _ in 0..fastrand::usize(0..400) {
                    world.push(fastrand::usize(0..6), fastrand::choice([10, 2000, 70_000]).unwrap());
                }
                let (taken, _) = world.take();
                assert!(!taken.is_empty() || world.lines.is_empty());
                took += taken.len();
                for (session, number) in taken {
                    assert!(number > std::mem::replace(&mut last[session], number));
                }
            }
            let rest = world.lines.take_older(Duration::MAX).len();
            assert_eq!(took + rest, usize::try_from(world.number).unwrap());
            assert_eq!((world.lines.bytes(), world.lines.oldest(), world.lines.modest), (0, None, 0));
            for session in &world.sessions {
                assert!(
                    session.is_empty() && session.cost.load(Ordering::Relaxed) == 0 && !session.has_little()
                );
            }
        }
    }
}
