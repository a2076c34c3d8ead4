//! Spans that wait for the collector. Bounded: a trace that finds no room is dropped as a whole, and nobody waits for any.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::wire::Span;

#[derive(Debug)]
pub(super) struct Queue {
    most: usize,
    /// With so many a request is worth its while.
    batch: usize,
    spans: Mutex<VecDeque<Span>>,
    filled: Notify,
}

impl Queue {
    pub(super) fn new(most: usize, batch: usize) -> Self {
        Self { most, batch, spans: Mutex::default(), filled: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Span>> {
        // Pushed and taken: whole after each.
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Spans of one trace, all or none. `false`: there is no room for them.
    pub(super) fn push(&self, spans: Vec<Span>) -> bool {
        let mut queue = self.lock();
        if queue.len() + spans.len() > self.most {
            return false;
        }
        queue.extend(spans);
        let filled = queue.len() >= self.batch;
        drop(queue);
        if filled {
            self.filled.notify_one();
        }
        true
    }

    /// As many as one request takes.
    pub(super) fn take(&self) -> Vec<Span> {
        let mut queue = self.lock();
        let most = self.batch.min(queue.len());
        let taken = queue.drain(..most).collect();
        if queue.is_empty() {
            // What a bad hour took is given back.
            queue.shrink_to(self.batch);
        }
        taken
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Returns when a request is worth its while.
    pub(super) async fn filled(&self) {
        self.filled.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_that_finds_no_room_is_dropped_as_a_whole() {
        let queue = Queue::new(5, 2);
        assert!(queue.push(vec![Span::default(); 3]));
        assert!(!queue.push(vec![Span::default(); 3]));
        assert_eq!(queue.len(), 3);
        assert!(queue.push(vec![Span::default(); 2]));
        assert_eq!(
            (queue.take().len(), queue.take().len(), queue.take().len(), queue.take().len()),
            (2, 2, 1, 0)
        );
    }
}
