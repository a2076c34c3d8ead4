//! A gateway: what all its connections share, and its life from the first `accept` to the end of its drain.

mod follow;
pub(crate) mod mailbox;
pub(crate) mod sessions;
mod upkeep;

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
use crate::registry::{Enrolment, Registry, RegistryError};
use crate::route::Routes;
use crate::sink::{self, Sink};
use crate::tls::{self, TlsError};
use crate::{accept, entropy};

use mailbox::Ending;
use sessions::Sessions;

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
    pub(crate) granter: Granter,
    pub(crate) tls: ArcSwap<rustls::ServerConfig>,
    pub(crate) sessions: Sessions,
    pub(crate) routes: Arc<Routes>,
    pub(crate) sink: Arc<Sink>,
    pub(crate) counters: Counters,
    /// Room for connections, and turns to compute a handshake.
    pub(crate) connections: Arc<Semaphore>,
    pub(crate) handshakes: Semaphore,
    pub(crate) tasks: TaskTracker,
    /// A session has been refused by the store: the feed looks at it.
    suspects: Arc<Notify>,
    draining: AtomicBool,
    ready: watch::Sender<bool>,
    /// What is known of the registry is too old to let anybody in by.
    stale: AtomicBool,
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
        registry.check_schema().await?;
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
            registry,
            granter: Granter { master, limits, policies: Mutex::new(HashMap::new()) },
            tls: ArcSwap::new(tls),
            sessions: Sessions::default(),
            routes: Arc::new(Routes::default()),
            sink: Arc::new(Sink::new(config.limits.store_queue)),
            counters: Counters::default(),
            connections: Arc::new(Semaphore::new(config.limits.connections)),
            handshakes: Semaphore::new(config.limits.handshakes),
            tasks: TaskTracker::new(),
            suspects: Arc::new(Notify::new()),
            draining: AtomicBool::new(false),
            ready: watch::Sender::new(false),
            stale: AtomicBool::new(false),
            instance: format!("{}.{:032x}", home_id(&home)?, u128::from_be_bytes(entropy::random()?)),
            config,
            home,
        }))
    }

    /// What has happened since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
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

    /// Whether what is known of the registry is older than `registry.max_staleness`.
    pub(crate) fn is_stale(&self) -> bool {
        self.stale.load(Ordering::SeqCst)
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }
}

/// Serves until `shutdown`, then drains: no new upgrades, publishes under way are answered, every session gets its
/// `bye` and 1001, what is stored is committed.
///
/// # Errors
/// [`RegistryError`] where the feed's position cannot be read at the start: without it no change would be seen; and where
/// another gateway takes this one's name.
pub async fn serve(
    gateway: Arc<Gateway>,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), RegistryError> {
    // The position first: what changes from here on is followed, what was before is read by look-ups.
    let position = gateway.registry.position().await?;
    let name = &gateway.settings.gateway;
    let enrolment = Enrolment {
        name: Arc::clone(name),
        instance: gateway.instance.clone(),
        version: env!("CARGO_PKG_VERSION"),
        address: listener.local_addr().map(|address| address.to_string()).unwrap_or_default(),
        may_serve: follow::may_serve(gateway.config.registry.max_staleness.0),
    };
    // Before the first device is let in, so that no act overlooks this gateway.
    gateway.registry.enrol(&enrolment).await?;
    let left = gateway.registry.forget_sessions(&gateway.settings.gateway).await?;
    if left > 0 {
        info!(sessions = left, "sessions of an earlier run have been closed in the registry");
    }
    let stop = CancellationToken::new();
    let stop_writer = CancellationToken::new();
    let writer = sink::Writer {
        sink: Arc::clone(&gateway.sink),
        registry: Arc::clone(&gateway.registry),
        routes: Arc::clone(&gateway.routes),
        patience: gateway.granter.limits.max_skew / 10,
        suspects: Arc::clone(&gateway.suspects),
        away: false,
    };
    let lost = CancellationToken::new();
    let mut parts = JoinSet::new();
    parts.spawn(sink::run(writer, stop_writer.clone()));
    parts.spawn(follow::run(Arc::clone(&gateway), position, stop.clone(), lost.clone()));
    parts.spawn(upkeep::run(Arc::clone(&gateway), stop.clone()));
    parts.spawn(accept::run(Arc::clone(&gateway), listener, stop.clone()));
    gateway.ready.send_replace(true);

    // None of the parts ends by itself. Without one the others would serve devices that nobody can revoke.
    let failed = tokio::select! {
        () = shutdown.cancelled() => None,
        Some(ended) = parts.join_next() => Some(ended.err().map_or_else(|| "it ended".to_owned(), |e| e.to_string())),
    };
    if let Some(why) = &failed
        && !lost.is_cancelled()
    {
        error!(%why, "a part of the gateway has failed; it drains and ends");
    }
    drain(&gateway).await;
    stop.cancel();
    stop_writer.cancel();
    let ended = async {
        while parts.join_next().await.is_some() {}
        gateway.registry.sign_off(name, &gateway.instance).await
    };
    match tokio::time::timeout(FLUSH_WITHIN, ended).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            warn!(%error, "this gateway could not sign off; receipts count it until it may serve no more");
        }
        Err(_) => {
            warn!("the store did not take what was under way before the drain ended; it was never acked");
        }
    }
    if lost.is_cancelled() {
        let words = format!("another gateway has taken the name '{name}'; give each its own gateway.name");
        return Err(RegistryError::Refused(words));
    }
    match failed {
        None => Ok(()),
        Some(why) => Err(RegistryError::Internal(format!("a part of the gateway has failed: {why}"))),
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
        home::make_folder(&home.state())?;
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
