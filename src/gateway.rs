//! A gateway: what all its connections share, and its life from the first `accept` to the end of its drain.

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
pub(crate) use sight::Sight;
pub(crate) use upkeep::SEEN_EVERY;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use doorward_proto::close::Close;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
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
use crate::registry::{Enrolment, EventKind, Registry, RegistryError};
use crate::route::Routes;
use crate::sink::{self, Sink};
use crate::tls::{self, TlsError};
use crate::traces::{Exporting, Traces, TracesError};
use crate::{accept, clock, connection, crl_server, entropy};

use credentials::ShownCredentials;
use events::{Event, Events};
use follow::Follower;
use mailbox::Ending;
use own::Upcoming;
use quarantine::Quarantines;
use reading::Reading;
use reload::LookedAt;
use sessions::{Handle, Sessions};

/// A part of the drain's time is kept for the store's last transaction.
const FLUSH_WITHIN: Duration = Duration::from_secs(5);

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
        let sink = Arc::new(Sink::new(config.limits.store_queue));
        sink.set_patience(live.patience());
        Ok(Arc::new(Self {
            name: Arc::clone(&live.settings.gateway),
            lookups: Arc::new(Lookups::new(Arc::clone(&registry))),
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

/// Serves until `shutdown`, then drains: no new upgrades, publishes under way are answered, every session gets its
/// `bye` and 1001, what is stored is committed.
///
/// # Errors
/// [`RegistryError`] where the registry does not answer at the start and no earlier run has left a copy of it that may serve;
/// where its schema is another; and where another gateway takes this one's name.
pub async fn serve(
    gateway: Arc<Gateway>,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), RegistryError> {
    serve_into(gateway, listener, shutdown, connection::begin).await
}

/// The same with another room behind the door.
pub(crate) async fn serve_into(
    gateway: Arc<Gateway>,
    listener: TcpListener,
    shutdown: CancellationToken,
    room: accept::Room,
) -> Result<(), RegistryError> {
    let name = &gateway.name;
    let enrolment = Enrolment {
        name: Arc::clone(name),
        instance: gateway.instance.clone(),
        version: env!("CARGO_PKG_VERSION"),
        address: listener.local_addr().map(|address| address.to_string()).unwrap_or_default(),
        may_serve: follow::may_serve(gateway.max_staleness()),
    };
    let follower = Follower::start(Arc::clone(&gateway), enrolment).await?;
    let stop = CancellationToken::new();
    let stop_writer = CancellationToken::new();
    // Beside the parts: without it everybody is served.
    let exporting = gateway.traces.as_ref().and_then(Exporting::start);
    let writer = sink::Writer {
        sink: Arc::clone(&gateway.sink),
        registry: Arc::clone(&gateway.registry),
        routes: Arc::clone(&gateway.routes),
        look_at_feed: Arc::clone(&gateway.look_at_feed),
        sight: Arc::clone(&gateway.sight),
        failed: None,
        away: false,
    };
    let mut parts = JoinSet::new();
    parts.spawn(ends(sink::run(writer, stop_writer.clone())));
    parts.spawn(confirm::run(Arc::clone(&gateway), follower.effects(), stop.clone()));
    parts.spawn(follower.run(stop.clone()));
    parts.spawn(ends(upkeep::run(Arc::clone(&gateway), stop.clone())));
    parts.spawn(ends(renewals::run(Arc::clone(&gateway), stop.clone())));
    parts.spawn(ends(credentials::run(Arc::clone(&gateway), stop.clone())));
    parts.spawn(ends(quarantine::run(Arc::clone(&gateway), stop.clone())));
    parts.spawn(ends(custody::run(Arc::clone(&gateway), stop.clone())));
    parts.spawn(ends(witness::run(Arc::clone(&gateway), stop.clone())));
    parts.spawn(ends(places::run(Arc::clone(&gateway), stop.clone())));
    parts.spawn(ends(watch::run(Arc::clone(&gateway), stop.clone())));
    parts.spawn(ends(own::run(Arc::clone(&gateway), stop.clone())));
    parts.spawn(ends(events::run(Arc::clone(&gateway), stop.clone())));
    parts.spawn(ends(accept::run(Arc::clone(&gateway), listener, room, stop.clone())));
    let lists = gateway.lists.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(listener) = lists {
        parts.spawn(ends(crl_server::run(Arc::clone(&gateway), listener, stop.clone())));
    }
    gateway.ready.send_replace(true);

    // None of the parts ends by itself. Without one the others would serve devices that nobody can revoke.
    let failed = tokio::select! {
        () = shutdown.cancelled() => None,
        Some(ended) = parts.join_next() => Some(match ended {
            Ok(Err(error)) => error,
            Ok(Ok(())) => RegistryError::Internal("a part of the gateway has ended".to_owned()),
            Err(error) => RegistryError::Internal(format!("a part of the gateway has failed: {error}")),
        }),
    };
    if let Some(error) = &failed {
        error!(%error, "the gateway cannot go on; it drains and ends");
    }
    drain(&gateway).await;
    gateway.say_all();
    stop.cancel();
    stop_writer.cancel();
    let ended = async {
        while parts.join_next().await.is_some() {}
        sign_off(&gateway).await
    };
    if tokio::time::timeout(FLUSH_WITHIN, ended).await.is_err() {
        warn!("the store did not take what was under way before the drain ended; it was never acked");
    }
    if let Some(exporting) = exporting {
        exporting.end().await;
    }
    failed.map_or(Ok(()), Err)
}

/// A part that ends in no other way than by being told to.
async fn ends(part: impl Future<Output = ()>) -> Result<(), RegistryError> {
    part.await;
    Ok(())
}

/// Tells the registry that this gateway serves nobody any more. From then on no receipt counts it, so what it has kept lets
/// nobody in before the registry has been read again: that is noted first.
async fn sign_off(gateway: &Gateway) {
    if gateway.sight.is_away() {
        info!("the registry is away: this gateway counts as serving until it may serve no more");
        return;
    }
    let signed_off = match gateway.cache.set_signed_off(true).await {
        Ok(()) => gateway.registry.sign_off(&gateway.name, &gateway.instance).await,
        Err(stuck) => Err(RegistryError::Unavailable(stuck.to_string())),
    };
    let Err(error) = signed_off else { return };
    warn!(%error, "this gateway could not sign off; receipts count it until it may serve no more");
    if matches!(error, RegistryError::Unavailable(_)) {
        // For certain it has not: it counts, and may serve.
        if let Err(error) = gateway.cache.set_signed_off(false).await {
            warn!(%error, "and it starts again only with its registry");
        }
    }
}

async fn drain(gateway: &Arc<Gateway>) {
    let devices = gateway.devices();
    info!(devices, "draining");
    gateway.draining.store(true, Ordering::SeqCst);
    let whole = gateway.drain_within();
    // The door stays open for the time being: who knocks is told to come back (503).
    let away = |gently| {
        move || Ending {
            close: Close::GoingAway,
            // Spread, so that a fleet does not come back in one second.
            retry_after: Some(fastrand::u64(1..=10)),
            gently,
        }
    };
    gateway.sessions.end_all(away(true));
    gateway.tasks.close();
    if tokio::time::timeout(whole.mul_f32(0.6), gateway.tasks.wait()).await.is_err() {
        gateway.sessions.end_all(away(false));
        if tokio::time::timeout(whole.mul_f32(0.4), gateway.tasks.wait()).await.is_err() {
            warn!(devices = gateway.devices(), "some connections did not end within the drain");
        }
    }
    info!("drained");
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
