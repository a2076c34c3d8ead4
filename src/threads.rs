//! Threads for what must not wait for sessions, and for what sessions must not wait for.

use std::future::Future;
use std::io;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;

/// How much nicer (setpriority(2)) than the threads of sessions those are that compute handshakes. Where both have more to do
/// than there is time, a tenth or so is left for the door: enough that it stays open.
const NICER: i32 = 10;
const NICEST: i32 = 19;

/// A runtime; dropped, whatever still runs on it ends.
#[derive(Debug)]
pub(crate) struct Threads(Option<Runtime>);

impl Threads {
    /// For the door. Handshakes are computed beside the sessions and not between them: who is in notices little of how many
    /// knock.
    pub(crate) fn for_the_door() -> io::Result<Self> {
        let mut builder = Builder::new_multi_thread();
        builder.thread_name("door").on_thread_start(|| {
            // On Linux a thread has a priority of its own. Without it the kernel shares evenly, which is enough to go on.
            if let Ok(now) = rustix::process::getpriority_process(None) {
                let _ = rustix::process::setpriority_process(None, (now + NICER).min(NICEST));
            }
        });
        Self::of(&mut builder)
    }

    /// For the feed of changes: a revocation is some steps, each of which would wait behind all sessions that have something
    /// to do.
    pub(crate) fn for_the_feed() -> io::Result<Self> {
        Self::of(Builder::new_multi_thread().worker_threads(1).thread_name("feed"))
    }

    fn of(builder: &mut Builder) -> io::Result<Self> {
        Ok(Self(Some(builder.enable_all().build()?)))
    }

    /// Where to spawn.
    pub(crate) fn handle(&self) -> io::Result<&Handle> {
        self.0.as_ref().map(Runtime::handle).ok_or_else(|| io::Error::other("these threads have ended"))
    }

    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> io::Result<JoinHandle<T>> {
        Ok(self.handle()?.spawn(work))
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // Not waited for: it may be dropped where waiting would keep others from running.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
