//! `gateway run`, `gateway list`, `gateway remove`.

mod add;

use std::fs::{File, OpenOptions, TryLockError};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Subcommand;
use doorward_pki::SealError;
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::failure::{Failure, Outcome};
use super::{Shared, issue, issuer, log, output, renew_cert};
use crate::admin::Admin;
use crate::clock::ClockError;
use crate::home::{self, Home, SECRET};
use crate::issuer::{By, Issuer};
use crate::master::MasterKeys;
use crate::own_certificate::Pair;
use crate::registry::{
    self, Access, DatabaseUrl, DeviceFilter, GatewayStatus, KeyState, Registry, RegistryError,
};
use crate::{clock, gateway};

/// Connections that the kernel holds for us.
const BACKLOG: i32 = 4096;
/// Descriptors besides those of connections: the database, the home, standard streams.
const OTHER_FILES: u64 = 64;
/// Devices whose keys are tried before the gateway starts.
const SAMPLE: u32 = 8;
/// How often a clock that is wrong is looked at.
const CLOCK_EVERY: Duration = Duration::from_millis(500);
/// A gateway reports every 5 s.
const SILENT_AFTER: Duration = Duration::from_secs(15);

#[derive(Subcommand, Debug)]
pub(super) enum Gateway {
    /// Run the gateway in the foreground; SIGTERM drains it, SIGHUP reads its configuration and certificates again
    #[command(after_help = "Example:\n  doorward gateway run --listen 0.0.0.0:8443\n\n\
        With --listen and port 0, admin.listen takes a free port, too: for a try beside another gateway.\n\n\
        DOORWARD_LOG sets what is logged: error, warn, info (default), debug, trace;\n\
        DOORWARD_LOG_FORMAT how: text (default) or json, one object a line.")]
    Run {
        /// The address; port 0 picks a free one [default: gateway.listen of the configuration]
        #[arg(long, value_name = "ADDR")]
        listen: Option<SocketAddr>,
    },
    /// Make a home for a gateway on another host: what it needs, and no CA key
    #[command(
        after_help = "Example:\n  doorward gateway add plant-2 --host gate2.example.com --out plant-2-home"
    )]
    Add(add::Add),
    /// Make a new certificate and key for the gateway, like the old ones; a gateway that runs takes them within seconds
    #[command(
        after_help = "Example:\n  doorward gateway renew-cert --host gate.example.com --host 10.0.0.7\n  \
        doorward gateway renew-cert --host gate2.example.com --out for-plant-2"
    )]
    RenewCert(renew_cert::RenewCert),
    /// Forget a gateway that is gone for good: no receipt counts it any more
    #[command(after_help = "Example:\n  doorward gateway remove gateway-2")]
    Remove {
        /// Its name
        name: String,
    },
    /// Who serves, and what each has applied
    #[command(after_help = "Example:\n  doorward gateway list --json")]
    List,
}

impl Gateway {
    pub(super) async fn run(&self, shared: &Shared) -> Outcome {
        match self {
            Self::Run { listen } => run(shared, *listen).await,
            Self::Add(add) => add.run(shared).await,
            Self::RenewCert(renew) => renew.run(shared),
            Self::List => list(shared).await,
            Self::Remove { name } => remove(shared, name).await,
        }
    }
}

/// A gateway before it serves.
struct Started {
    gateway: Arc<gateway::Gateway>,
    listener: TcpListener,
    url: DatabaseUrl,
    registry: Arc<dyn Registry>,
    /// For as long as this process lives: two on one home would take each other's name.
    _lock: File,
}

async fn run(shared: &Shared, listen: Option<SocketAddr>) -> Outcome {
    log::start()?;
    // Signals first: one that comes from now on is neither lost nor the death of a gateway that waits for its clock.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let started = tokio::select! {
        started = start(shared, listen) => started?,
        // As told: for a service manager that is no failure.
        _ = terminate.recv() => return ended_early("SIGTERM"),
        _ = interrupt.recv() => return ended_early("SIGINT"),
    };
    let Started { gateway, listener, url, registry, _lock } = started;
    let local = listener.local_addr()?;
    let shutdown = CancellationToken::new();
    if issuer::has_key(&shared.home()) {
        issue_beside(shared, registry, &gateway, shutdown.clone());
    }
    let mut serving = tokio::spawn(gateway::serve(Arc::clone(&gateway), listener, shutdown.clone()));
    let mut listening = false;
    // Beside the signals: files that are slow to read do not keep it from ending. What comes meanwhile waits, as one.
    let mut reloading = JoinSet::new();
    loop {
        tokio::select! {
            // Said once it is true: whoever waits for the line may connect.
            () = gateway.ready(), if !listening => {
                listening = true;
                output::say(format!("listening on {local}"));
            }
            ended = &mut serving => {
                return match ended {
                    Ok(result) => result.map_err(|error| Failure::registry_at(&url, error)),
                    Err(error) => Err(Failure::new(format!("the gateway has failed: {error}"))),
                };
            }
            _ = terminate.recv() => shutdown.cancel(),
            _ = interrupt.recv() => {
                if shutdown.is_cancelled() {
                    return Err(Failure::new("interrupted twice; the drain was cut short"));
                }
                shutdown.cancel();
            }
            _ = hangup.recv(), if reloading.is_empty() => {
                let gateway = Arc::clone(&gateway);
                reloading.spawn(async move { gateway.hang_up().await });
            }
            Some(_) = reloading.join_next() => {}
            // The drain is bounded by itself; this is the bound on that.
            () = async { shutdown.cancelled().await; tokio::time::sleep(gateway.drain_within() + Duration::from_secs(10)).await } => {
                return Err(Failure::new("the drain did not end in time"));
            }
        }
    }
}

fn ended_early(signal: &str) -> Outcome {
    output::say(format!("ended by {signal} before it served"));
    Ok(())
}

/// All that comes before the first connection.
async fn start(shared: &Shared, listen: Option<SocketAddr>) -> Result<Started, Failure> {
    let home = shared.home();
    // What is wrong with it is said at once, whatever the clock.
    let admin = admin_at(shared.config()?.admin.listen, listen);
    let lock = hold(&home)?;
    // Before anything is waited for: who asks is told what is.
    let admin = match admin {
        Some(at) => Some(Admin::start(at, CancellationToken::new()).await),
        None => None,
    };
    wait_for_clock().await?;
    // As it is now: it may have been written while the clock was waited for.
    let config = shared.config()?;
    let address = listen.unwrap_or(config.gateway.listen);
    let master = shared.master_keys()?;
    // A renewal that was cut short is finished before its halves are read.
    Pair::of(&config.tls, &home).recover()?;
    let url = shared.database_url(&config)?;
    let registry =
        registry::connect(&url, Access::Expected).map_err(|error| Failure::registry_at(&url, error))?;
    match registry.check_schema().await {
        Ok(()) => check_master(&*registry, &master).await?,
        // Whether it may serve without is the gateway's to know.
        Err(RegistryError::Unavailable(_)) => {}
        Err(error) => return Err(Failure::registry_at(&url, error)),
    }
    gateway::check_entropy()?;
    raise_file_limit(config.limits.connections + config.addresses.waiting);
    let gateway = gateway::Gateway::new(config, home.clone(), Arc::clone(&registry), master).await?;
    let signer = shared.clone();
    gateway.set_signer(Box::new(move || {
        issue::authority(&home, "issuing", &signer).map_err(|failure| failure.what().to_owned())
    }));
    // Before anybody is shown one that has expired.
    gateway.look_at_dates().await;
    if let Some(admin) = admin {
        admin.show(&gateway);
    }
    Ok(Started { gateway, listener: listen_on(address)?, url, registry, _lock: lock })
}

/// A gateway on a port of the system's choice is one beside others, which cannot all have the port of the configuration.
fn admin_at(configured: Option<SocketAddr>, listen: Option<SocketAddr>) -> Option<SocketAddr> {
    let beside_others = listen.is_some_and(|at| at.port() == 0);
    configured.map(|at| if beside_others { SocketAddr::new(at.ip(), 0) } else { at })
}

/// A home that has the issuing key answers its devices' requests itself. That it cannot keeps nobody out.
fn issue_beside(
    shared: &Shared,
    registry: Arc<dyn Registry>,
    gateway: &Arc<gateway::Gateway>,
    stop: CancellationToken,
) {
    let mut signer = issuer::signer(shared);
    match signer() {
        Ok((authority, _)) => info!(key = authority.key_id(), "this gateway signs what its devices ask for"),
        Err(reason) => {
            // It is tried again with the next request: a passphrase may come later, as its mount does.
            warn!(%reason, "this gateway has an issuing key that it cannot use; until it can, certificates are renewed by 'doorward issuer run' alone");
        }
    }
    // It goes by what the gateway goes by: who is let in to renew late is renewed.
    let rules = Arc::clone(gateway);
    let by = By { signer, rules: Box::new(move || rules.certificate_rules()) };
    let issuer = Issuer { registry, by: Arc::new(Mutex::new(by)), news: gateway.issue_now() };
    let issuing = tokio::spawn(issuer.run(stop));
    tokio::spawn(async move {
        match issuing.await {
            Ok(Ok(())) => {}
            Err(error) => {
                error!(%error, "the issuer beside this gateway has failed: no certificate is renewed here before the next start")
            }
            Ok(Err(error)) => {
                warn!(%error, "this gateway has an issuing key, but its database role may not record certificates; run 'doorward issuer run' as doorward_issuer")
            }
        }
    });
}

/// With a clock that is wrong every certificate would be not yet valid: the gateway waits, and begins by itself.
async fn wait_for_clock() -> Outcome {
    let mut said = false;
    loop {
        match clock::check() {
            Ok(()) => return Ok(()),
            Err(error @ ClockError::NotBefore(_)) => return Err(error.into()),
            Err(error) => {
                if !std::mem::replace(&mut said, true) {
                    error!(%error, "the gateway is not ready: it waits for the clock, and opens its door then");
                }
            }
        }
        tokio::time::sleep(CLOCK_EVERY).await;
    }
}

async fn remove(shared: &Shared, name: &str) -> Outcome {
    let registry = shared.registry().await?;
    let row = registry.gateways(None).await?.into_iter().find(|row| row.name == name);
    registry.remove_gateway(name).await?;
    let until = row.filter(|row| row.may_serve).map(|row| output::time(row.serves_until));
    if shared.json {
        return output::json(&json!({ "gateway": name, "removed": true, "may_serve_until": until }));
    }
    let still = until.map(|until| {
        format!("; if it still runs, it ends as soon as it reaches the registry, and cut off from it, it may serve until {until}")
    });
    output::say(format!(
        "gateway '{}' is forgotten, and no receipt waits for it{}",
        output::plain(name),
        still.unwrap_or_default()
    ));
    Ok(())
}

async fn list(shared: &Shared) -> Outcome {
    let gateways = shared.registry().await?.gateways(None).await?;
    let state = |gateway: &GatewayStatus| match gateway {
        GatewayStatus { signed_off: Some(_), .. } => "ended",
        GatewayStatus { may_serve: false, .. } => "gone",
        // Two reports have not come.
        _ if clock::utc() - gateway.heartbeat > SILENT_AFTER => "silent",
        _ => "serving",
    };
    if shared.json {
        let rows: Vec<_> = gateways
            .iter()
            .map(|g| {
                json!({
                    "gateway": g.name, "state": state(g), "version": g.version, "address": g.address,
                    "since": output::time(g.since), "heartbeat": output::time(g.heartbeat),
                    "may_serve_until": g.signed_off.is_none().then(|| output::time(g.serves_until)),
                    "signed_off": g.signed_off.map(output::time),
                })
            })
            .collect();
        return output::json(&rows);
    }
    let mut table =
        output::table(["GATEWAY", "STATE", "VERSION", "ADDRESS", "SINCE", "HEARTBEAT", "MAY SERVE UNTIL"]);
    for g in &gateways {
        let until = if g.signed_off.is_some() { "-".to_owned() } else { output::time(g.serves_until) };
        table.add_row([
            output::plain(&g.name),
            state(g).to_owned(),
            output::plain(&g.version),
            output::plain(&g.address),
            output::time(g.since),
            output::time(g.heartbeat),
            until,
        ]);
    }
    output::print_table(&table, "no gateway has served yet")
}

/// Takes the home for this process.
fn hold(home: &Home) -> Result<File, Failure> {
    let path = home.state().join("lock");
    let failed = |error: std::io::Error| Failure::new(format!("cannot use {}: {error}", path.display()));
    home::make_folder(&home.state())?;
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(SECRET)
        .open(&path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(Failure::refused(format!("a gateway runs on {} already", home.path().display()))
                .next("end that one first; another gateway needs a home of its own"))
        }
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// Refuses a master key that opens none of the registry's first keys: with it every device would be turned away.
async fn check_master(registry: &dyn Registry, master: &MasterKeys) -> Outcome {
    let mut refusal = None;
    let first = DeviceFilter { limit: SAMPLE, ..DeviceFilter::default() };
    for device in registry.devices(&first).await? {
        let Some(detail) = registry.device(&device.id).await? else { continue };
        for key in detail.keys.iter().filter(|key| key.state != KeyState::Retired) {
            match master.open(&device.id, key.version, &key.sealed) {
                Ok(_) => return Ok(()),
                Err(error @ SealError::WrongMasterKey { .. }) => refusal = Some(error),
                // A damaged row is its own device's trouble.
                Err(_) => {}
            }
        }
    }
    match refusal {
        Some(error) => Err(Failure::new(error.to_string())),
        None => Ok(()),
    }
}

/// A listener whose port is free again at once after a restart.
pub(super) fn listen_on(address: SocketAddr) -> Result<TcpListener, Failure> {
    let listen = || -> std::io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    listen().map_err(|error| {
        let failure = Failure::new(format!("cannot listen on {address}: {error}"));
        match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                failure.next("another program has this port; name another with --listen")
            }
            std::io::ErrorKind::PermissionDenied => {
                failure.next("ports below 1024 need the right to bind them")
            }
            _ => failure.next("--listen takes an address of this host, such as 0.0.0.0:8443"),
        }
    })
}

/// As many descriptors as the configuration can use, or as many as there are to be had.
pub(super) fn raise_file_limit(connections: usize) {
    let wanted = connections as u64 + OTHER_FILES;
    let raised = rlimit::increase_nofile_limit(wanted);
    if !matches!(raised, Ok(limit) if limit >= wanted) {
        let limit = raised.unwrap_or(0);
        warn!(
            limit,
            wanted,
            "fewer open files are allowed than limits.connections needs; raise LimitNOFILE or lower it"
        );
    }
}
