//! A gateway: what all its connections share, and its life from the first `accept` to the end of its drain.

mod confirm;
mod credentials;
mod follow;
pub(crate) mod mailbox;
mod records;
mod renewals;
pub(crate) mod sessions;
mod sight;
mod upkeep;
mod witness;

pub(crate) use records::Source;
pub(crate) use renewals::Renewing;
pub(crate) use sight::Sight;
pub(crate) use upkeep::SEEN_EVERY;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use doorward_pki::seal::MasterKey;
use doorward_proto::close::Close;
use doorward_proto::limits::{Limits, Rate};
use doorward_proto::session::Settings;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::config::{self, Config, ConfigError};
use crate::home::{self, FileError, Home};
use crate::identity::Granter;
use crate::metrics::Counters;
use crate::registry::cache::{Cache, Stuck};
use crate::registry::lookups::Lookups;
use crate::registry::{Enrolment, NewEvent, Registry, RegistryError};
use crate::route::Routes;
use crate::sink::{self, Sink};
use crate::tls::{self, TlsError};
use crate::{accept, clock, entropy};

use credentials::ShownCredentials;
use follow::Follower;
use mailbox::Ending;
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
}

/// Why the configuration was not taken again.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// Its text.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The files that it names.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// What all connections of a gateway share.
pub struct Gateway {
    pub(crate) config: Config,
    pub(crate) settings: Arc<Settings>,
    pub(crate) registry: Arc<dyn Registry>,
    pub(crate) lookups: Arc<Lookups>,
    /// What the registry has said, for when it is away.
    pub(crate) cache: Cache,
    pub(crate) sight: Arc<Sight>,
    pub(crate) granter: Granter,
    pub(crate) tls: ArcSwap<rustls::ServerConfig>,
    pub(crate) sessions: Sessions,
    pub(crate) routes: Arc<Routes>,
    pub(crate) sink: Arc<Sink>,
    pub(crate) counters: Counters,
    pub(crate) shown: ShownCredentials,
    pub(crate) renewals: Renewing,
    /// Room for connections, and turns to compute a handshake.
    pub(crate) connections: Arc<Semaphore>,
    pub(crate) handshakes: Semaphore,
    pub(crate) tasks: TaskTracker,
    /// Told when a device has asked for a certificate: for an issuer beside this gateway.
    pub(crate) issue_now: Arc<Notify>,
    /// Something speaks for a look at the feed now: a session that the store has refused, a registry that failed.
    look_at_feed: Arc<Notify>,
    draining: AtomicBool,
    ready: watch::Sender<bool>,
    /// This run, in the registry.
    instance: String,
    home: Home,
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
        master: MasterKey,
    ) -> Result<Arc<Self>, StartError> {
        let tls = tls::server_config(&config, &home)?;
        home::make_folder(&home.state())?;
        let instance = format!("{}.{:032x}", home_id(&home)?, u128::from_be_bytes(entropy::random()?));
        let cache = Cache::open(&home.state(), registry.place(), config.limits.connections).await?;
        // No answer is no reason to stay away: the gateway serves without one, too.
        if let Ok(Some(rights)) = registry.excess_rights().await {
            warn!(
                "the gateway's database role {rights}; it needs doorward_gateway alone (docs/operations.md)"
            );
        }
        let limits = Limits {
            max_message_bytes: config.limits.message_bytes,
            max_skew: config.session.max_skew.0,
            heartbeat: config.session.heartbeat.0,
            rate: Rate { per_second: config.limits.rate_per_second, burst: config.limits.rate_burst },
        };
        let settings = Settings {
            max_strikes: config.limits.strikes,
            strike_window: config.limits.strike_window.0,
            proof_within: config.session.proof_within.0,
            max_subscriptions: config.limits.subscriptions,
            ..Settings::new(config.gateway.name.as_str().into())
        };
        Ok(Arc::new(Self {
            settings: Arc::new(settings),
            lookups: Arc::new(Lookups::new(Arc::clone(&registry))),
            cache,
            sight: Arc::new(Sight::new(config.registry.max_staleness.0)),
            registry,
            granter: Granter {
                master,
                limits,
                late: config.certificates.renew_after_expiry.0,
                rules: Mutex::new(HashMap::new()),
            },
            tls: ArcSwap::new(tls),
            sessions: Sessions::default(),
            routes: Arc::new(Routes::default()),
            sink: Arc::new(Sink::new(config.limits.store_queue)),
            counters: Counters::default(),
            shown: ShownCredentials::default(),
            renewals: Renewing::default(),
            connections: Arc::new(Semaphore::new(config.limits.connections)),
            handshakes: Semaphore::new(config.limits.handshakes),
            tasks: TaskTracker::new(),
            issue_now: Arc::new(Notify::new()),
            look_at_feed: Arc::new(Notify::new()),
            draining: AtomicBool::new(false),
            ready: watch::Sender::new(false),
            instance,
            config,
            home,
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

    /// How many devices have a session or are being admitted.
    pub fn devices(&self) -> usize {
        self.sessions.count()
    }

    /// Reads the configuration's `[tls]` and the files that it names again, for the next handshake. What is broken is
    /// refused, and the old state stands. The other keys that have changed, which need a restart.
    ///
    /// # Errors
    /// [`ReloadError`] naming the file.
    pub fn reload(&self) -> Result<Vec<String>, ReloadError> {
        let config = Config::load(&self.home)?;
        self.tls.store(tls::server_config(&config, &self.home)?);
        let rows = |config| config::settings(config, &toml::Table::new());
        let changed =
            rows(&self.config).into_iter().zip(rows(&config)).filter(|(old, new)| old.value != new.value);
        Ok(changed.map(|(_, new)| new.key).filter(|key| !key.starts_with("tls.")).collect())
    }

    /// Returns once the door is open: devices are let in, and every change from now on is followed.
    pub async fn ready(&self) {
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// A device's place has changed hands too often, the last time from a session of ours by one of a peer. `connection`
    /// is the session that has noticed.
    pub(crate) fn possible_clone(&self, connection: &str, from: &Handle, by: &str) {
        let detail = format!("taken over again and again, the last time from {} by {by}", from.peer);
        warn!(%connection, device = %from.device, %detail, "possible clone; nobody else is let in here as this device for a minute");
        self.sink.event(NewEvent {
            at: clock::utc(),
            gateway: Arc::clone(&self.settings.gateway),
            device: Some(from.device.clone()),
            kind: "possible_clone",
            peer: by.to_owned(),
            detail,
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
    let name = &gateway.settings.gateway;
    let enrolment = Enrolment {
        name: Arc::clone(name),
        instance: gateway.instance.clone(),
        version: env!("CARGO_PKG_VERSION"),
        address: listener.local_addr().map(|address| address.to_string()).unwrap_or_default(),
        may_serve: follow::may_serve(gateway.config.registry.max_staleness.0),
    };
    let follower = Follower::start(Arc::clone(&gateway), enrolment).await?;
    let stop = CancellationToken::new();
    let stop_writer = CancellationToken::new();
    let writer = sink::Writer {
        sink: Arc::clone(&gateway.sink),
        registry: Arc::clone(&gateway.registry),
        routes: Arc::clone(&gateway.routes),
        patience: gateway.granter.limits.max_skew / 10,
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
    parts.spawn(ends(witness::run(Arc::clone(&gateway), stop.clone())));
    parts.spawn(ends(accept::run(Arc::clone(&gateway), listener, stop.clone())));
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
    stop.cancel();
    stop_writer.cancel();
    let ended = async {
        while parts.join_next().await.is_some() {}
        sign_off(&gateway).await
    };
    if tokio::time::timeout(FLUSH_WITHIN, ended).await.is_err() {
        warn!("the store did not take what was under way before the drain ended; it was never acked");
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
        Ok(()) => gateway.registry.sign_off(&gateway.settings.gateway, &gateway.instance).await,
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
    let whole = gateway.config.gateway.drain.0;
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
