//! A gateway: what all its connections share.

mod confirm;
mod credentials;
mod custody;
pub(crate) mod events;
mod follow;
mod live;
pub(crate) mod mailbox;
mod measures;
mod own;
mod places;
pub(crate) mod quarantine;
pub(crate) mod readiness;
mod reading;
mod records;
mod reload;
mod renewals;
mod serving;
pub(crate) mod sessions;
mod sight;
pub(crate) mod trusted;
mod upkeep;
mod watch;
mod witness;

pub(crate) use live::{Live, own_of};
pub(crate) use mailbox::MAX_DELIVERY_BYTES;
pub use own::Signer;
pub(crate) use records::Source;
pub use reload::{ReloadError, Reloaded};
pub(crate) use renewals::Renewing;
pub use serving::serve;
pub(crate) use serving::serve_into;
pub(crate) use sight::Sight;
pub(crate) use upkeep::SEEN_EVERY;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::accept::Addresses;
use crate::config::Config;
use crate::fold::{Folds, Kind, Sample};
use crate::home::{self, FileError, Home};
use crate::identity::Granter;
use crate::master::MasterKeys;
use crate::metrics::Counters;
use crate::registry::cache::{Cache, Stuck};
use crate::registry::lookups::Lookups;
use crate::registry::{EventKind, Registry, RegistryError};
use crate::route::Routes;
use crate::sink::Sink;
use crate::tls::{self, TlsError};
use crate::traces::{Traces, TracesError};
use crate::{accept, clock, entropy};

use credentials::ShownCredentials;
use events::{Event, Events};
use own::Upcoming;
use quarantine::Quarantines;
use reading::Reading;
use reload::LookedAt;
use sessions::{Handle, Sessions};

/// Why a gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its home.
    #[error(transparent)]
    File(#[from] FileError),
    /// Its certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Its registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// What an earlier run has left.
    #[error(transparent)]
    Copy(#[from] Stuck),
    /// The operating system's random bytes.
    #[error(transparent)]
    Entropy(#[from] entropy::NoEntropy),
    /// Where traces go.
    #[error(transparent)]
    Traces(#[from] TracesError),
    /// The address of `crl.listen`.
    #[error("cannot listen on {0} for revocation lists (crl.listen): {1}")]
    Lists(SocketAddr, std::io::Error),
    /// What the environment says of the clock.
    #[error(transparent)]
    Clock(#[from] clock::ClockError),
}

/// What all connections of a gateway share.
pub struct Gateway {
    /// What may change while it runs.
    live: ArcSwap<Live>,
    looked_at: tokio::sync::Mutex<LookedAt>,
    reading: Reading,
    /// Its name, in the registry and in logs.
    pub(crate) name: Arc<str>,
    pub(crate) registry: Arc<dyn Registry>,
    pub(crate) lookups: Arc<Lookups>,
    /// Where sessions run.
    pub(crate) threads: tokio::runtime::Handle,
    /// Turns of the sessions that have more to say than a wake-up takes: one for each of the threads.
    pub(crate) turns: Arc<Semaphore>,
    /// What the registry has said, for when it is away.
    pub(crate) cache: Cache,
    pub(crate) sight: Arc<Sight>,
    pub(crate) granter: Granter,
    pub(crate) sessions: Sessions,
    /// Told when an address or a device's place is proven that was not known.
    pub(crate) moved: Notify,
    pub(crate) routes: Arc<Routes>,
    pub(crate) sink: Arc<Sink>,
    pub(crate) counters: Counters,
    /// Log lines that peers bring about.
    pub(crate) folds: Folds,
    /// Where a collector is configured.
    pub(crate) traces: Option<Arc<Traces>>,
    events: Events,
    pub(crate) shown: ShownCredentials,
    quarantines: Quarantines,
    pub(crate) renewals: Renewing,
    /// What each address may still do before anybody behind it is known.
    pub(crate) addresses: Arc<Addresses>,
    /// Room for connections, and turns to compute a handshake.
    pub(crate) connections: Arc<Semaphore>,
    pub(crate) handshakes: Semaphore,
    /// Room for those who wait for a refusal that they have had before.
    pub(crate) again: Semaphore,
    pub(crate) tasks: TaskTracker,
    /// Told when a device has asked for a certificate: for an issuer beside this gateway.
    pub(crate) issue_now: Arc<Notify>,
    /// Something speaks for a look at the feed now: a session that the store has refused, a registry that failed.
    look_at_feed: Arc<Notify>,
    draining: AtomicBool,
    ready: tokio::sync::watch::Sender<bool>,
    /// This run, in the registry.
    instance: String,
    home: Home,
    /// The earliest time at which the clock is believed, in Unix time.
    earliest: AtomicI64,
    /// Whether the clock was behind it at the last look.
    clock_behind: AtomicBool,
    signer: OnceLock<Arc<Signer>>,
    upcoming: tokio::sync::Mutex<Upcoming>,
    /// Where revocation lists are served, until they are.
    lists: Mutex<Option<TcpListener>>,
    lists_at: Option<SocketAddr>,
}

impl Gateway {
    /// A gateway that is ready to serve: its certificates read, its registry's schema checked.
    ///
    /// # Errors
    /// [`StartError`] naming the file or the command that mends it.
    pub async fn new(
        config: Config,
        home: Home,
        registry: Arc<dyn Registry>,
        master: impl Into<MasterKeys>,
    ) -> Result<Arc<Self>, StartError> {
        // Before anything is read: what is written meanwhile is a change.
        let looked_at = LookedAt::new(&config, &home);
        let tls = tls::load(&config, &home, None)?;
        let live = Live::new(config, Arc::new(tls));
        let config = &live.config;
        home::make_folder(&home.state())?;
        trusted::note(&home, live.tls.trust.cas.iter().map(|ca| &*ca.der));
        let instance = format!("{}.{:032x}", home_id(&home)?, u128::from_be_bytes(entropy::random()?));
        let lists = match config.crl.listen {
            Some(at) => Some(TcpListener::bind(at).await.map_err(|source| StartError::Lists(at, source))?),
            None => None,
        };
        let cache = Cache::open(&home.state(), registry.place(), config.limits.connections).await?;
        // No answer is no reason to stay away: the gateway serves without one, too.
        if let Ok(Some(rights)) = registry.excess_rights().await {
            warn!(
                "the gateway's database role {rights}; it needs doorward_gateway alone (docs/operations.md)"
            );
        }
        let (addresses, sessions) =
            (Addresses::new(&config.addresses), Sessions::new(config.limits.connections));
        places::recall(&home, &addresses, &sessions, clock::now());
        let threads = tokio::runtime::Handle::current();
        let sink = Arc::new(Sink::new(config.limits.store_queue));
        sink.set_patience(live.patience());
        Ok(Arc::new(Self {
            name: Arc::clone(&live.settings.gateway),
            lookups: Arc::new(Lookups::new(Arc::clone(&registry), threads.clone())),
            turns: Arc::new(Semaphore::new(threads.metrics().num_workers())),
            threads,
            cache,
            sight: Arc::new(Sight::new(config.registry.max_staleness.0)),
            registry,
            granter: Granter::new(Arc::new(master.into()), live.own()),
            sessions,
            moved: Notify::new(),
            routes: Arc::new(Routes::default()),
            sink,
            counters: Counters::default(),
            folds: Folds::default(),
            traces: Traces::new(config, &home)?,
            events: Events::default(),
            shown: ShownCredentials::default(),
            quarantines: Quarantines::default(),
            renewals: Renewing::default(),
            addresses,
            connections: Arc::new(Semaphore::new(config.limits.connections)),
            handshakes: Semaphore::new(config.limits.handshakes),
            again: Semaphore::new((config.limits.connections / accept::SHARE_OF_AGAIN).max(1)),
            tasks: TaskTracker::new(),
            issue_now: Arc::new(Notify::new()),
            look_at_feed: Arc::new(Notify::new()),
            draining: AtomicBool::new(false),
            ready: tokio::sync::watch::Sender::new(false),
            instance,
            looked_at: tokio::sync::Mutex::new(looked_at),
            reading: Reading::default(),
            live: ArcSwap::from_pointee(live),
            home,
            earliest: AtomicI64::new(clock::earliest()?.unix_timestamp()),
            clock_behind: AtomicBool::new(false),
            signer: OnceLock::new(),
            upcoming: tokio::sync::Mutex::default(),
            lists_at: lists.as_ref().and_then(|listener| listener.local_addr().ok()),
            lists: Mutex::new(lists),
        }))
    }

    /// What has happened since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Told when a device has asked for a certificate: for an [`Issuer`](crate::issuer::Issuer) in the same process.
    pub fn issue_now(&self) -> Arc<Notify> {
        Arc::clone(&self.issue_now)
    }

    /// What certificates are to be like that are issued beside this gateway, and who may still renew: as configured now.
    pub fn certificate_rules(&self) -> crate::config::CertificatesSection {
        self.live.load().config.certificates.clone()
    }

    /// How many devices have a session or are being admitted.
    pub fn devices(&self) -> usize {
        self.sessions.count()
    }

    /// What the gateway goes by now.
    pub(crate) fn live(&self) -> Arc<Live> {
        self.live.load_full()
    }

    /// How long a drain may take.
    pub fn drain_within(&self) -> Duration {
        self.live.load().config.gateway.drain.0
    }

    /// The longest that what is known of the registry may serve without news of it; set at the start.
    fn max_staleness(&self) -> Duration {
        self.live.load().config.registry.max_staleness.0
    }

    /// Returns once the door is open: devices are let in, and every change from now on is followed.
    pub async fn ready(&self) {
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    /// Where revocation lists are served by HTTP, if they are.
    pub fn lists_at(&self) -> Option<SocketAddr> {
        self.lists_at
    }

    /// The files that are served as revocation lists now.
    pub(crate) fn list_files(&self) -> Vec<std::path::PathBuf> {
        self.live.load().config.crl.files.iter().map(|path| self.home.resolve(path)).collect()
    }

    /// Believes the clock from another time on than that of the build.
    pub fn believe_from(&self, earliest: time::OffsetDateTime) {
        self.earliest.store(earliest.unix_timestamp(), Ordering::SeqCst);
    }

    /// Whether certificates can be judged by the clock: else nobody is let in.
    pub(crate) fn clock_is_right(&self) -> bool {
        clock::utc().unix_timestamp() >= self.earliest.load(Ordering::SeqCst)
    }

    /// Says so when the clock has stepped behind the build, or back.
    fn look_at_clock(&self) {
        let behind = !self.clock_is_right();
        match (self.clock_behind.swap(behind, Ordering::SeqCst), behind) {
            (false, true) => error!(
                earliest = clock::rfc3339(self.earliest.load(Ordering::SeqCst)),
                "the clock has stepped back to a time that is past for sure: nobody is let in until it is set"
            ),
            (true, false) => info!("the clock is right again; devices are let in"),
            _ => {}
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// A device's place has changed hands too often, the last time from a session of ours by one of a peer. `connection`
    /// is the session that has noticed.
    pub(crate) fn possible_clone(&self, connection: &str, from: &Handle, by: &str) {
        let detail = format!("taken over again and again, the last time from {} by {by}", from.peer);
        let sample = || Sample::new(connection, from.peer, from.device.as_str());
        if self.folds.may_say(&self.counters, Kind::Clone, "possible_clone", sample) {
            warn!(%connection, device = %from.device, %detail, "possible clone; nobody else is let in here as this device for a minute");
        }
        self.note(Event {
            kind: EventKind::PossibleClone,
            device: Some(&from.device),
            reason: "",
            peer: &by,
            detail: &detail,
        });
    }
}

/// The home's own name, made at its first start: a gateway that starts again may take the place of its earlier run.
fn home_id(home: &Home) -> Result<String, StartError> {
    let path = home.state().join("id");
    for _ in 0..2 {
        match home::read(&path) {
            Ok(id) => return Ok(id.trim().to_owned()),
            Err(FileError::Missing(_)) => {}
            Err(error) => return Err(error.into()),
        }
        let id = format!("{:032x}\n", u128::from_be_bytes(entropy::random()?));
        match home::write_new(&path, &id, home::PUBLIC) {
            // Another start was quicker: its name counts.
            Ok(()) | Err(FileError::Exists(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(home::read(&path)?.trim().to_owned())
}

/// Names for sessions and messages come from the operating system's generator; this asks it once at the start.
///
/// # Errors
/// [`entropy::NoEntropy`] where it gives nothing.
pub fn check_entropy() -> Result<(), entropy::NoEntropy> {
    entropy::random::<16>().map(drop)
}
