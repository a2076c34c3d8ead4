//! Threads of the door's own. Handshakes are computed beside the sessions and not between them: who is in notices little of
//! how many knock.

use std::future::Future;
use std::io;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

/// How much nicer they are (setpriority(2)) than the threads of sessions. Where both have more to do than there is time, a
/// tenth or so is left for the door: enough that it stays open.
const NICER: i32 = 10;
const NICEST: i32 = 19;

/// A runtime; dropped, whatever still runs on it ends.
#[derive(Debug)]
pub(super) struct Threads(Option<Runtime>);

impl Threads {
    pub(super) fn start() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .enable_all()
            .thread_name("door")
            .on_thread_start(|| {
                // On Linux a thread has a priority of its own. Without it the kernel shares evenly, which is enough to go on.
                if let Ok(now) = rustix::process::getpriority_process(None) {
                    let _ = rustix::process::setpriority_process(None, (now + NICER).min(NICEST));
                }
            })
            .build()?;
        Ok(Self(Some(runtime)))
    }

    pub(super) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> io::Result<JoinHandle<T>> {
        self.0.as_ref().map(|runtime| runtime.spawn(work)).ok_or_else(|| io::Error::other("the door is shut"))
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
