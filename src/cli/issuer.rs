//! `issuer run`: the issuing key on a host of its own, and the issuer beside a gateway.

use std::sync::{Arc, Mutex};

use clap::Subcommand;
use doorward_pki::Authority;
use doorward_proto::ids::DeviceId;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::failure::{Failure, Outcome};
use super::{Shared, cas, device, issue, log, output};
use crate::config::Config;
use crate::gateway;
use crate::home::Home;
use crate::issuer::{self, By, Rules, Signer};
use crate::registry::{self, Access, RegistryError};
use crate::stamp::Stamp;

#[derive(Subcommand, Debug)]
pub(super) enum Issuer {
    /// Answer the requests for certificates that gateways put into the registry, in the foreground
    #[command(after_help = "Example:\n  doorward issuer run --home issuer-home\n\n\
        It needs pki/issuing.crt and pki/issuing.key in its home, and the rights of doorward_issuer in Postgres.\n\
        A gateway that has the issuing key in its own home answers requests by itself.")]
    Run,
    /// The newest requests of devices for certificates, and what has become of them
    #[command(after_help = "Example:\n  doorward issuer list --waiting")]
    List {
        /// Of this device alone
        #[arg(long, value_name = "ID")]
        device: Option<DeviceId>,
        /// Those that wait for an issuer alone
        #[arg(long)]
        waiting: bool,
        /// How many at most
        #[arg(long, value_name = "N", default_value_t = 1000)]
        limit: u32,
    },
}

impl Issuer {
    pub(super) async fn run(&self, shared: &Shared) -> Outcome {
        match self {
            Self::Run => run(shared).await,
            Self::List { device, waiting, limit } => list(shared, device.as_ref(), *waiting, *limit).await,
        }
    }
}

async fn run(shared: &Shared) -> Outcome {
    log::start()?;
    let config = shared.config()?;
    gateway::check_entropy()?;
    let mut signer = signer(shared);
    let (authority, held) = signer().map_err(Failure::new)?;
    drop(held);
    let url = shared.database_url(&config)?;
    let registry =
        registry::connect(&url, Access::Existing).map_err(|error| Failure::registry_at(&url, error))?;
    match registry.check_schema().await {
        // It waits for its registry as a gateway does.
        Ok(()) => {
            if !registry.may_issue().await.map_err(|error| Failure::registry_at(&url, error))? {
                return Err(Failure::new(format!("the database role at {url} may not record certificates"))
                    .next(
                        "connect as a login role that is a member of doorward_issuer (docs/operations.md)",
                    ));
            }
        }
        Err(RegistryError::Unavailable(_)) => {}
        Err(error) => return Err(Failure::registry_at(&url, error)),
    }
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let by = By { signer, rules: rules(shared, config) };
    let issuer = issuer::Issuer { registry, by: Arc::new(Mutex::new(by)), news: Arc::default() };
    let mut issuing = tokio::spawn(issuer.run(stop.clone()));
    output::say(format!(
        "issuing by the CA with key {} until {}",
        authority.key_id(),
        output::time(authority.not_after())
    ));
    loop {
        tokio::select! {
            ended = &mut issuing => {
                return match ended {
                    Ok(result) => result.map_err(|error| Failure::registry_at(&url, error)),
                    Err(error) => Err(Failure::new(format!("the issuer has failed: {error}"))),
                };
            }
            _ = terminate.recv() => stop.cancel(),
            _ = interrupt.recv() => stop.cancel(),
        }
    }
}

async fn list(shared: &Shared, device: Option<&DeviceId>, waiting: bool, limit: u32) -> Outcome {
    let registry = shared.registry().await?;
    if let Some(device) = device {
        device::find(&*registry, device).await?;
    }
    let requests = registry.requests(device, waiting, limit).await?;
    if shared.json {
        let rows: Vec<_> = requests
            .iter()
            .map(|r| {
                json!({
                    "request": r.id, "device": r.device, "state": r.state, "reason": r.reason, "gateway": r.gateway,
                    "asked": output::time(r.asked), "expires": output::time(r.expires), "serial": r.issued,
                })
            })
            .collect();
        return output::json(&rows);
    }
    let mut table =
        output::table(["REQUEST", "DEVICE", "STATE", "ASKED", "EXPIRES", "GATEWAY", "SERIAL OR REASON"]);
    for r in &requests {
        table.add_row([
            r.id.to_string(),
            r.device.to_string(),
            r.state.clone(),
            output::time(r.asked),
            output::time(r.expires),
            output::plain(&r.gateway),
            output::plain(r.issued.as_deref().or(r.reason.as_deref()).unwrap_or("-")),
        ]);
    }
    output::print_table(&table, "there is no such request")
}

/// What the home's configuration says of certificates: read again when its file is another. One that cannot be used changes
/// nothing, and is said once.
fn rules(shared: &Shared, config: Config) -> Rules {
    let home = shared.home();
    // Before it is read for the first time here: what was written since the start is a change.
    let (mut known, mut rules) = (None, config.certificates);
    Box::new(move || {
        let stamp = Stamp::of(&home.config());
        if known != Some(stamp) {
            known = Some(stamp);
            match Config::load(&home) {
                Ok(config) => rules = config.certificates,
                Err(error) => {
                    warn!(%error, "the configuration has changed, and is not taken: certificates are issued as before");
                }
            }
        }
        rules.clone()
    })
}

/// The home's issuing CA: read again when its files are others, so that it may be replaced under a running issuer.
pub(super) fn signer(shared: &Shared) -> Signer {
    let shared = shared.clone();
    let mut known: Option<(Stamps, Arc<Authority>)> = None;
    Box::new(move || {
        let home = shared.home();
        // Whoever asks asks again.
        let held = Some(cas::share_now(&home).map_err(|failure| failure.to_string())?);
        let stamps = stamps(&home);
        if let Some((of, authority)) = &known
            && *of == stamps
        {
            return Ok((Arc::clone(authority), held));
        }
        let authority = issue::authority(&home, "issuing", &shared).map_err(|failure| failure.to_string())?;
        let authority = Arc::new(authority);
        known = Some((stamps, Arc::clone(&authority)));
        Ok((authority, held))
    })
}

/// Whether this home could sign.
pub(super) fn has_key(home: &Home) -> bool {
    let [_, key] = files(home);
    key.exists()
}

fn files(home: &Home) -> [std::path::PathBuf; 2] {
    ["issuing.crt", "issuing.key"].map(|name| home.pki(name))
}

/// What tells that the CA that signs is another.
pub(super) type Stamps = [Option<Stamp>; 2];

pub(super) fn stamps(home: &Home) -> Stamps {
    files(home).map(|path| Stamp::of(&path))
}
