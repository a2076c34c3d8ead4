//! How a device renews, and what its user sees of it.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use doorward_proto::time::NumericDate;

/// Whether a device gets itself a new certificate, and where it keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Renew {
    /// It does not: somebody else puts a new one into its bundle.
    Never,
    /// It does where its credentials have a folder to be stored in.
    #[default]
    Stored,
    /// It does, and the new one lives as long as the process: for load tests. The new certificate ends the old one, and the
    /// device that forgot it is locked out once the old one's grace is over.
    InMemory,
}

/// How a device renews its certificate.
#[derive(Debug, Clone)]
pub struct RenewalOptions {
    /// Whether, and where the new one is kept.
    pub renew: Renew,
    /// When the gateway has asked, the device waits up to this long: a fleet that is asked at once does not come at once.
    pub spread: Duration,
    /// The longest wait before a renewal that was refused is tried again, and before a new certificate that was not let in
    /// is shown again. It doubles each time; at least half of it is waited.
    pub retry: Duration,
    /// The longest of those waits.
    pub retry_cap: Duration,
    /// A new certificate that was turned away this often, while the old one was let in right after, is given up.
    pub give_up_after: u32,
    /// For tests.
    pub steps: Steps,
}

impl Default for RenewalOptions {
    fn default() -> Self {
        Self {
            renew: Renew::default(),
            spread: Duration::from_secs(10),
            retry: Duration::from_secs(60),
            retry_cap: Duration::from_secs(3600),
            give_up_after: 6,
            steps: Steps::default(),
        }
    }
}

impl RenewalOptions {
    /// The wait after the `n`-th failure, counted from 0. `random` is uniform in `0..1`.
    pub(super) fn wait(&self, n: u32, random: f64) -> Duration {
        let longest = self.retry.saturating_mul(1 << n.min(20)).min(self.retry_cap);
        longest.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
    }
}

/// Told of each step of a renewal and of each change to the bundle's folder, once it is done. A test ends the process
/// there, and starts another.
#[derive(Clone, Default)]
pub struct Steps(Option<Arc<Watcher>>);

type Watcher = dyn Fn(&str) + Send + Sync;

impl Steps {
    /// Steps that are told to a watcher, in words.
    #[must_use]
    pub fn new(watcher: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(watcher)))
    }

    pub(crate) fn say(&self, step: &str) {
        if let Some(watcher) = &self.0 {
            watcher(step);
        }
    }

    /// Something was done to a file.
    pub(crate) fn done(&self, path: &Path, what: &str) {
        if self.0.is_some() {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            self.say(&format!("{name} {what}"));
        }
    }
}

impl fmt::Debug for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Steps(watched)" } else { "Steps" })
    }
}

/// A certificate, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Its serial number in lowercase hex, as `doorward cert list` shows it.
    pub serial: Arc<str>,
    /// Its end.
    pub until: NumericDate,
}

/// The device's certificate, and what becomes of its renewal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateStatus {
    /// The one that holds; `None` for one that cannot be read.
    pub current: Option<Named>,
    /// How often it has been renewed by this process.
    pub renewed: u64,
    /// How often no certificate came of it, or one that came was given up.
    pub failed: u64,
    /// What comes next.
    pub renewal: RenewalState,
}

/// Where a renewal stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum RenewalState {
    /// There is none, or it is done.
    #[default]
    None,
    /// The gateway has been asked, or is about to be.
    Asked,
    /// A new certificate has come, and has still to be let in. Until then both are kept.
    Unproven(Named),
    /// No certificate came of it, in words. The device asks again.
    Refused(Arc<str>),
    /// A new certificate came and was not let in time and again, in words. The device asks for another in a while.
    GivenUp(Arc<str>),
}
