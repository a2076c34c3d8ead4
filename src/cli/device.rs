//! `device …`: devices and their credentials.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use doorward_pki::{Request, profile};
use doorward_proto::ids::{DeviceId, FleetId};
use serde_json::{Value, json};

use super::failure::{Failure, Outcome};
use super::issue::{Credentials, Issuer};
use super::receipt::{self, Wait};
use super::rotate::{RotateCert, RotateKey};
use super::{Shared, bulk, bundle, output};
use crate::registry::{Act, DeviceDetail, DeviceFilter, DeviceStatus, DeviceSummary, Done, Registry};

/// Devices of one query.
const PAGE: u32 = 1000;
/// The longest reason that is kept.
const MAX_REASON: usize = 256;

#[derive(Subcommand, Debug)]
pub(super) enum Device {
    /// Register a device and issue its credentials, or many at once
    #[command(after_help = "Examples:\n  doorward device add press-7 --fleet presses\n  \
        doorward device add press-8 --csr press-8.csr\n  \
        doorward device add --count 1000 --prefix press- --out presses.jsonl")]
    Add(Add),
    /// List the devices
    #[command(after_help = "Example:\n  doorward device list --status suspended --json")]
    List {
        /// Of this fleet alone
        #[arg(long, value_name = "F")]
        fleet: Option<FleetId>,
        /// In this status alone
        #[arg(long, value_name = "S")]
        status: Option<DeviceStatus>,
    },
    /// Show a device with its certificates, keys and session
    #[command(after_help = "Example:\n  doorward device show press-7 --json")]
    Show {
        /// Its id
        id: DeviceId,
    },
    /// Keep a device out until it is resumed; its session ends
    #[command(after_help = "Example:\n  doorward device suspend press-7 --reason \"in repair\"")]
    Suspend {
        /// Its id
        id: DeviceId,
        /// Why, for those who ask later
        #[arg(long, value_parser = parse_reason)]
        reason: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Let a suspended device in again
    #[command(after_help = "Example:\n  doorward device resume press-7")]
    Resume {
        /// Its id
        id: DeviceId,
    },
    /// Keep a device out for good; its session ends
    #[command(after_help = "Example:\n  doorward device revoke press-7 --reason stolen")]
    Revoke {
        /// Its id
        id: DeviceId,
        /// Why, for those who ask later
        #[arg(long, value_parser = parse_reason)]
        reason: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Give a device, or a whole fleet, a new HMAC key, in its session or by a bundle
    #[command(after_help = "Examples:\n  doorward device rotate-key press-7\n  \
        doorward device rotate-key press-7 --grace 0s --out bundles\n  \
        doorward device rotate-key --fleet presses --canary 5% --max-failures 3")]
    RotateKey(RotateKey),
    /// Give a device a new certificate, and a new private key unless it has made one itself; or ask a whole fleet to renew
    #[command(after_help = "Examples:\n  doorward device rotate-cert press-7 --out bundles\n  \
        doorward device rotate-cert press-7 --csr press-7.csr --out bundles\n  \
        doorward device rotate-cert --fleet presses --canary 5% --max-failures 3")]
    RotateCert(RotateCert),
    /// Write a device's bundle again, without its private key
    #[command(after_help = "Example:\n  doorward device bundle press-7 --out bundles")]
    Bundle {
        /// Its id
        id: DeviceId,
        /// The folder in which the bundle's folder is made
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// End a device's session without more; it may come back
    #[command(after_help = "Example:\n  doorward device kick press-7")]
    Kick {
        /// Its id
        id: DeviceId,
        #[command(flatten)]
        wait: Wait,
    },
}

#[derive(Args, Debug)]
pub(super) struct Add {
    /// The device's id
    #[arg(required_unless_present = "count", conflicts_with_all = ["count", "prefix"])]
    id: Option<DeviceId>,
    /// Its fleet
    #[arg(long, value_name = "F", default_value = "default")]
    pub(super) fleet: FleetId,
    /// Days that its certificate is valid
    #[arg(long, value_name = "D", default_value_t = profile::DEVICE.lifetime.whole_days(), value_parser = clap::value_parser!(i64).range(1..=36_500))]
    days: i64,
    /// A certificate signing request: the device keeps its private key to itself
    #[arg(long, value_name = "FILE", conflicts_with = "count")]
    csr: Option<PathBuf>,
    /// The folder in which the bundle's folder is made [default: HOME/devices]; with --count, the file
    #[arg(long, value_name = "DIR|FILE")]
    pub(super) out: Option<PathBuf>,
    /// How many devices, in one file
    #[arg(long, value_name = "N", requires_all = ["prefix", "out"], value_parser = clap::value_parser!(u32).range(1..=999_999))]
    pub(super) count: Option<u32>,
    /// The beginning of their ids, before 000001
    #[arg(long, value_name = "P", requires = "count")]
    pub(super) prefix: Option<String>,
}

pub(super) fn parse_reason(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > MAX_REASON || text.chars().any(char::is_control) {
        return Err(format!("a reason is 1 to {MAX_REASON} bytes without control characters"));
    }
    Ok(text.to_owned())
}

impl Add {
    /// Many devices into a file, as the demo wants them.
    pub(super) fn bulk(count: u32, prefix: &str, file: &Path) -> Self {
        Self {
            id: None,
            fleet: FleetId::default(),
            days: profile::DEVICE.lifetime.whole_days(),
            csr: None,
            out: Some(file.to_owned()),
            count: Some(count),
            prefix: Some(prefix.to_owned()),
        }
    }

    pub(super) fn lifetime(&self) -> time::Duration {
        time::Duration::days(self.days)
    }
}

impl Device {
    pub(super) async fn run(&self, shared: &Shared) -> Outcome {
        match self {
            Self::Add(add) if add.count.is_some() => bulk::run(add, shared).await,
            Self::Add(add) => add_one(add, shared).await,
            Self::List { fleet, status } => list(shared, fleet.as_ref(), *status).await,
            Self::Show { id } => show(shared, id).await,
            Self::Suspend { id, reason, wait } => {
                act(shared, id, Act::Suspend, Some(reason), Some(wait)).await
            }
            Self::Resume { id } => act(shared, id, Act::Resume, None, None).await,
            Self::Revoke { id, reason, wait } => act(shared, id, Act::Revoke, Some(reason), Some(wait)).await,
            Self::RotateKey(rotate) => rotate.run(shared).await,
            Self::RotateCert(rotate) => rotate.run(shared).await,
            Self::Bundle { id, out } => bundle::run(shared, id, out).await,
            Self::Kick { id, wait } => {
                let registry = shared.registry().await?;
                let acted = registry.kick(id).await?;
                let words = format!("device '{id}' was kicked");
                let json = shared.json.then(|| json!({ "device": id, "kicked": true }));
                receipt::finish(&*registry, &acted, Some(id), wait, &words, json).await
            }
        }
    }
}

async fn add_one(add: &Add, shared: &Shared) -> Outcome {
    let Some(id) = &add.id else { return Err(Failure::usage("an id is needed")) };
    let registry = shared.registry().await?;
    check_fleet(&*registry, &add.fleet).await?;
    if let Some((known, _)) = registry.known(std::slice::from_ref(id)).await?.first() {
        return Err(Failure::refused(format!("the device '{known}' exists already"))
            .next(format!("'doorward device show {known}' shows it, 'doorward device bundle {known} --out DIR' writes its bundle again")));
    }
    let issuer = Issuer::load(shared)?;
    let credentials = match &add.csr {
        Some(path) => {
            let request = read_request(path, id)?;
            issuer.issue_csr(&request, &add.fleet, add.lifetime())?
        }
        None => issuer.issue(id, &add.fleet, add.lifetime())?,
    };
    let parent = add.out.clone().unwrap_or_else(|| shared.home().devices());
    let Credentials { record, file, chain, private_key, shortened } = credentials;
    let expires = record.certificate.not_after;
    let folder =
        bundle::write(&parent, &file, &chain, private_key.as_ref(), &issuer.ca).map_err(|error| {
            if error.is_refusal() {
                error.next(format!(
                    "'{id}' is not registered: an 'add' that was cut short may have left the folder"
                ))
            } else {
                error
            }
        })?;
    if let Err(error) = registry.add_devices(&[record]).await {
        // What nobody recorded opens nothing; a commit of unknown outcome may have been recorded, so it stays.
        if !matches!(error, crate::registry::RegistryError::Unknown(_)) {
            let _ = std::fs::remove_dir_all(&folder);
            return Err(error.into());
        }
        return Err(Failure::new(error.to_string()).next(format!(
            "'doorward device show {id}' says whether it happened; if not, remove {} and repeat",
            folder.display()
        )));
    }
    if shared.json {
        return output::json(&json!({
            "device": id, "fleet": add.fleet, "bundle": folder, "certificate_expires": output::time(expires),
        }));
    }
    output::say(format!("device '{id}' is registered; its credentials are in {}", folder.display()));
    if shortened {
        output::say(format!("its certificate ends with its CA's, on {}", output::time(expires)));
    }
    Ok(())
}

pub(super) async fn check_fleet(registry: &dyn Registry, fleet: &FleetId) -> Outcome {
    match registry.fleet(fleet).await? {
        Some(_) => Ok(()),
        None => Err(Failure::missing(format!("there is no fleet '{fleet}'")).next(format!(
            "'doorward fleet add {fleet}' makes it, 'doorward fleet list' shows those that there are"
        ))),
    }
}

/// A request for a device's certificate, its proof of possession checked.
pub(super) fn read_request(path: &Path, id: &DeviceId) -> Result<Request, Failure> {
    let bytes = read_csr(path)?;
    Request::parse(&bytes, id).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
}

fn read_csr(path: &Path) -> Result<Vec<u8>, Failure> {
    use std::io::Read as _;
    let failed = |error: std::io::Error| Failure::new(format!("cannot read {}: {error}", path.display()));
    let most = doorward_pki::csr::MAX_CSR_BYTES as u64 + 1;
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(failed)?.take(most).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

async fn act(
    shared: &Shared,
    id: &DeviceId,
    act: Act,
    reason: Option<&String>,
    wait: Option<&Wait>,
) -> Outcome {
    let registry = shared.registry().await?;
    let acted = registry.set_status(id, act, reason.map(String::as_str)).await?;
    let status = match act {
        Act::Suspend => "suspended",
        Act::Resume => "active",
        Act::Revoke => "revoked",
    };
    let words = match (acted.done, act) {
        (Done::Changed, Act::Revoke) => format!("device '{id}' is revoked for good"),
        (Done::Changed, _) => format!("device '{id}' is {status}"),
        (Done::Already, _) => format!("device '{id}' was {status} already"),
    };
    let changed = acted.done == Done::Changed;
    let json = shared.json.then(|| json!({ "device": id, "status": status, "changed": changed }));
    match (wait, json) {
        (Some(wait), json) => receipt::finish(&*registry, &acted, Some(id), wait, &words, json).await,
        // A resumed device comes back by itself: nobody has to be waited for.
        (None, Some(json)) => output::json(&json),
        (None, None) => {
            output::say(words);
            Ok(())
        }
    }
}

async fn list(shared: &Shared, fleet: Option<&FleetId>, status: Option<DeviceStatus>) -> Outcome {
    let registry = shared.registry().await?;
    if let Some(fleet) = fleet {
        check_fleet(&*registry, fleet).await?;
    }
    let mut filter = DeviceFilter { fleet: fleet.cloned(), status, after: None, limit: PAGE };
    let mut all: Vec<DeviceSummary> = Vec::new();
    loop {
        let page = registry.devices(&filter).await?;
        let more = page.len() == PAGE as usize;
        filter.after = page.last().map(|device| device.id.clone());
        all.extend(page);
        if !more {
            break;
        }
    }
    if shared.json {
        return output::json(&all.iter().map(summary_json).collect::<Vec<_>>());
    }
    let mut table =
        output::table(["DEVICE", "FLEET", "STATUS", "CERTIFICATE UNTIL", "KEY", "LAST SEEN", "REASON"]);
    for device in &all {
        table.add_row([
            device.id.to_string(),
            device.fleet.to_string(),
            status_word(device.status).to_owned(),
            output::maybe_time(device.certificate_expires),
            device.key.map_or_else(|| "-".to_owned(), |key| key.to_string()),
            output::maybe_time(device.last_seen),
            output::plain(device.reason.as_deref().unwrap_or("-")),
        ]);
    }
    output::print_table(&table, "there is no such device")
}

fn status_word(status: DeviceStatus) -> &'static str {
    match status {
        DeviceStatus::Active => "active",
        DeviceStatus::Suspended => "suspended",
        DeviceStatus::Revoked => "revoked",
    }
}

fn summary_json(device: &DeviceSummary) -> Value {
    json!({
        "device": device.id,
        "fleet": device.fleet,
        "status": device.status,
        "reason": device.reason,
        "created": output::time(device.created),
        "certificate_expires": device.certificate_expires.map(output::time),
        "key": device.key,
        "last_seen": device.last_seen.map(output::time),
    })
}

/// A device, or the refusal that names it.
pub(super) async fn find(registry: &dyn Registry, id: &DeviceId) -> Result<DeviceDetail, Failure> {
    registry.device(id).await?.ok_or_else(|| {
        Failure::missing(format!("there is no device '{id}'"))
            .next("'doorward device list' shows those that there are")
    })
}

async fn show(shared: &Shared, id: &DeviceId) -> Outcome {
    let registry = shared.registry().await?;
    let device = find(&*registry, id).await?;
    let quarantine = registry.insight(id, &device.summary.fleet).await?.quarantine;
    if shared.json {
        return output::json(&detail_json(&device, quarantine));
    }
    let DeviceDetail { summary, certificates, keys, presence } = &device;
    let mut lines = vec![
        format!("device       {id}"),
        format!("fleet        {}", summary.fleet),
        format!("status       {}", status_word(summary.status)),
    ];
    if let Some(reason) = &summary.reason {
        lines.push(format!("reason       {}", output::plain(reason)));
    }
    match quarantine {
        Some(Some(until)) => {
            lines.push(format!("quarantine   until {}, then it is resumed by itself", output::time(until)))
        }
        Some(None) => lines.push("quarantine   until it is resumed".to_owned()),
        None => {}
    }
    lines.push(format!("registered   {}", output::time(summary.created)));
    for c in certificates {
        let until =
            c.valid_until.map(|until| format!(", grace until {}", output::time(until))).unwrap_or_default();
        let reason = c.reason.as_deref().map(|r| format!(" ({})", output::plain(r))).unwrap_or_default();
        lines.push(format!(
            "certificate  {} {}{reason}, until {}{until}",
            c.serial,
            json_word(&c.status),
            output::time(c.not_after)
        ));
    }
    for key in keys {
        let until =
            key.grace_until.map(|until| format!(", grace until {}", output::time(until))).unwrap_or_default();
        lines.push(format!("key          version {} {}{until}", key.version, json_word(&key.state)));
    }
    match presence {
        Some(p) if p.session.is_some() => lines.push(format!(
            "session      on {} from {} since {}, last seen {}",
            output::plain(&p.gateway),
            output::plain(&p.peer),
            output::time(p.since),
            output::time(p.last_seen)
        )),
        Some(p) => lines.push(format!(
            "session      none, last seen {} on {}",
            output::time(p.last_seen),
            output::plain(&p.gateway)
        )),
        None => lines.push("session      none yet".to_owned()),
    }
    output::print(&lines.join("\n"))
}

/// The word that a state has in JSON.
fn json_word(state: &impl serde::Serialize) -> String {
    serde_json::to_value(state).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

/// `quarantine`: whether a gateway has suspended it, and until when if that ends by itself.
fn detail_json(device: &DeviceDetail, quarantine: Option<Option<time::OffsetDateTime>>) -> Value {
    let mut value = summary_json(&device.summary);
    let certificates: Vec<Value> = device
        .certificates
        .iter()
        .map(|c| {
            json!({
                "serial": c.serial, "fingerprint": c.fingerprint, "issuer": c.issuer, "status": c.status,
                "not_before": output::time(c.not_before), "not_after": output::time(c.not_after),
                "valid_until": c.valid_until.map(output::time), "reason": c.reason,
            })
        })
        .collect();
    let keys: Vec<Value> = device
        .keys
        .iter()
        .map(|k| json!({ "version": k.version, "state": k.state, "grace_until": k.grace_until.map(output::time) }))
        .collect();
    let session = device.presence.as_ref().filter(|p| p.session.is_some()).map(|p| {
        json!({
            "gateway": p.gateway, "session": p.session, "peer": p.peer, "since": output::time(p.since),
            "last_seen": output::time(p.last_seen),
        })
    });
    if let Value::Object(members) = &mut value {
        members.insert("certificates".to_owned(), certificates.into());
        members.insert("keys".to_owned(), keys.into());
        members.insert("session".to_owned(), session.into());
        let quarantine = quarantine.map(|until| json!({ "until": until.map(output::time) }));
        members.insert("quarantine".to_owned(), quarantine.into());
    }
    value
}
