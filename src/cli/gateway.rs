//! `gateway run`.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Subcommand;
use doorward_pki::{MasterKey, SealError};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use super::failure::{Failure, Outcome};
use super::{Shared, issue, output};
use crate::gateway;
use crate::registry::{DeviceFilter, KeyState, Registry};

/// Connections that the kernel holds for us.
const BACKLOG: i32 = 4096;
/// Descriptors besides those of connections: the database, the home, standard streams.
const OTHER_FILES: u64 = 64;
/// Devices whose keys are tried before the gateway starts.
const SAMPLE: u32 = 8;

#[derive(Subcommand, Debug)]
pub(super) enum Gateway {
    /// Run the gateway in the foreground; SIGTERM drains it, SIGHUP reads its configuration and certificates again
    #[command(after_help = "Example:\n  doorward gateway run --listen 0.0.0.0:8443\n\n\
        DOORWARD_LOG sets what is logged: error, warn, info (default), debug, trace.")]
    Run {
        /// The address; port 0 picks a free one [default: gateway.listen of the configuration]
        #[arg(long, value_name = "ADDR")]
        listen: Option<SocketAddr>,
    },
}

impl Gateway {
    pub(super) async fn run(&self, shared: &Shared) -> Outcome {
        let Self::Run { listen } = self;
        start_log()?;
        let home = shared.home();
        let config = shared.config()?;
        let address = listen.unwrap_or(config.gateway.listen);
        let master = issue::master_key(&home)?;
        let registry = shared.registry().await?;
        check_master(&*registry, &master).await?;
        gateway::check_entropy()?;
        raise_file_limit(config.limits.connections);
        let drain = config.gateway.drain.0;
        let gateway = gateway::Gateway::new(config, home, registry, master).await?;

        // Signals first: one that comes from now on drains instead of killing.
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let listener = listen_on(address)?;
        let local = listener.local_addr()?;

        let shutdown = CancellationToken::new();
        let mut serving =
            tokio::spawn(gateway::serve(std::sync::Arc::clone(&gateway), listener, shutdown.clone()));
        let mut listening = false;
        loop {
            tokio::select! {
                // Said once it is true: whoever waits for the line may connect.
                () = gateway.ready(), if !listening => {
                    listening = true;
                    output::say(format!("listening on {local}"));
                }
                ended = &mut serving => {
                    return match ended {
                        Ok(result) => result.map_err(Failure::from),
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
                _ = hangup.recv() => match gateway.reload() {
                    Ok(others) if others.is_empty() => info!("configuration and certificates read again"),
                    Ok(others) => warn!(
                        keys = others.join(", "),
                        "certificates read again; these keys have changed too, and take effect at the next start"
                    ),
                    Err(error) => warn!(%error, "configuration and certificates stand as they were"),
                },
                // The drain is bounded by itself; this is the bound on that.
                () = async { shutdown.cancelled().await; tokio::time::sleep(drain + Duration::from_secs(10)).await } => {
                    return Err(Failure::new("the drain did not end in time"));
                }
            }
        }
    }
}

/// Refuses a master key that opens none of the registry's first keys: with it every device would be turned away.
async fn check_master(registry: &dyn Registry, master: &MasterKey) -> Outcome {
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

/// Structured lines on standard error.
pub(super) fn start_log() -> Outcome {
    let filter = match std::env::var("DOORWARD_LOG") {
        // The libraries below speak of their own connections; what concerns an operator, the gateway says itself.
        Err(_) => EnvFilter::new("info,sqlx=warn,rustls=warn"),
        Ok(text) => EnvFilter::try_new(&text).map_err(|error| {
            Failure::usage(format!("DOORWARD_LOG is '{text}', which is no log filter: {error}"))
        })?,
    };
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    log.try_init().map_err(|error| Failure::new(format!("cannot log: {error}")))
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
