//! Files are read on a thread of their own, one reading at a time, and are not waited for without end: a network file system
//! that is gone may hold up whoever reads it, and a gateway has devices to serve and signals to obey.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

/// The longest that a reading is waited for.
const WITHIN: Duration = Duration::from_secs(10);

/// Why nothing was read.
#[derive(Debug, thiserror::Error)]
pub enum ReadingError {
    /// It, or an earlier one, has not come to an end.
    #[error(
        "the files of the configuration could not be read within {} s; does a network file system answer?",
        .0.as_secs()
    )]
    Stuck(Duration),
    /// It has panicked.
    #[error("reading the configuration failed: {0}")]
    Failed(String),
}

/// The one turn to read files.
#[derive(Debug)]
pub(super) struct Reading {
    turn: Arc<Semaphore>,
    within: Duration,
}

impl Default for Reading {
    fn default() -> Self {
        Self { turn: Arc::new(Semaphore::new(1)), within: WITHIN }
    }
}

impl Reading {
    /// What some reading has come to. One that is stuck keeps its turn, so that no second thread joins it.
    pub(super) async fn take<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ReadingError> {
        let turn = Arc::clone(&self.turn).acquire_owned();
        let reading = async {
            let turn = turn.await.map_err(|error| ReadingError::Failed(error.to_string()))?;
            let reading = tokio::task::spawn_blocking(move || {
                let read = read();
                drop(turn);
                read
            });
            reading.await.map_err(|error| ReadingError::Failed(error.to_string()))
        };
        tokio::time::timeout(self.within, reading).await.unwrap_or(Err(ReadingError::Stuck(self.within)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn one_that_never_ends_is_given_up_and_no_other_joins_it() {
        let mut reading = Reading { within: Duration::from_millis(50), ..Reading::default() };
        let (end, ended) = mpsc::channel::<()>();
        assert!(matches!(reading.take(move || ended.recv().is_ok()).await, Err(ReadingError::Stuck(_))));
        assert!(matches!(reading.take(|| panic!("a second thread")).await, Err(ReadingError::Stuck(_))));
        end.send(()).unwrap();
        reading.within = WITHIN;
        assert_eq!(reading.take(|| 7).await.ok(), Some(7));
    }
}
