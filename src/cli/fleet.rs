//! `fleet …`: groups of devices that share a policy and limits.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Subcommand;
use doorward_proto::ids::FleetId;
use doorward_proto::limits::FleetLimits;
use doorward_proto::policy::{self, Policy};
use serde_json::json;
use serde_json::value::RawValue;

use super::failure::{Failure, Outcome};
use super::receipt::{self, Wait};
use super::{Shared, output};
use crate::registry::{self, Done, Registry};

#[derive(Subcommand, Debug)]
pub(super) enum Fleet {
    /// Add a fleet
    #[command(after_help = "Example:\n  doorward fleet add presses --policy presses.json")]
    Add {
        /// Its id
        id: FleetId,
        /// Its policy, a JSON file [default: publish under devices/${device}/, subscribe there and under fleets/${fleet}/]
        #[arg(long, value_name = "FILE")]
        policy: Option<PathBuf>,
    },
    /// List the fleets
    #[command(after_help = "Example:\n  doorward fleet list --json")]
    List,
    /// Show a fleet with its policy
    #[command(after_help = "Example:\n  doorward fleet show default")]
    Show {
        /// Its id
        id: FleetId,
    },
    /// Set a fleet's policy; live sessions follow it
    #[command(after_help = "Example:\n  doorward fleet policy presses presses.json\n\n\
        A policy: {\"allow\": [{\"actions\": [\"publish\"], \"channels\": [\"devices/${device}/#\"]}], \"deny\": []}\n\
        Deny wins; what no rule allows is denied.")]
    Policy {
        /// Its id
        id: FleetId,
        /// The policy, a JSON file
        file: PathBuf,
        #[command(flatten)]
        wait: Wait,
    },
    /// Set a fleet's limits; live sessions follow them. Without an option, show them
    #[command(after_help = "Example:\n  doorward fleet limits presses --rate 5 --burst 50\n\n\
        'default' gives a limit back to the gateway's configuration.")]
    Limits {
        /// Its id
        id: FleetId,
        /// Messages a second of one device
        #[arg(long, value_name = "N")]
        rate: Option<Limit<u32>>,
        /// Messages of one device at once
        #[arg(long, value_name = "N")]
        burst: Option<Limit<u32>>,
        /// The longest message in bytes; no more than the gateway's limits.message_bytes
        #[arg(long, value_name = "N")]
        message_bytes: Option<Limit<usize>>,
        /// How long after its end a certificate may still renew itself, as 90d; 0s: not at all
        #[arg(long, value_name = "DUR", value_parser = late)]
        renew_after_expiry: Option<Limit<Late>>,
        #[command(flatten)]
        wait: Wait,
    },
}

/// A length of time, in whole seconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Late(u32);

fn late(text: &str) -> Result<Limit<Late>, String> {
    if text == "default" {
        return Ok(Limit::Default);
    }
    let span = humantime::parse_duration(text).ok().and_then(|span| u32::try_from(span.as_secs()).ok());
    span.map(|seconds| Limit::Is(Late(seconds)))
        .ok_or_else(|| "a length of time like 90d is needed, or 'default'".to_owned())
}

/// A value, or the gateway's own.
#[derive(Debug, Clone, Copy)]
pub(super) enum Limit<T> {
    Default,
    Is(T),
}

impl<T: FromStr> FromStr for Limit<T> {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "default" => Ok(Self::Default),
            number => number.parse().map(Self::Is).map_err(|_| "a number is needed, or 'default'".to_owned()),
        }
    }
}

impl<T: Copy> Limit<T> {
    fn set(this: Option<Self>, to: &mut Option<T>) {
        match this {
            None => {}
            Some(Self::Default) => *to = None,
            Some(Self::Is(value)) => *to = Some(value),
        }
    }
}

impl Fleet {
    pub(super) async fn run(&self, shared: &Shared) -> Outcome {
        match self {
            Self::Add { id, policy } => {
                let text = match policy {
                    Some(path) => read_policy(path)?,
                    None => policy::DEFAULT.to_owned(),
                };
                shared.registry().await?.add_fleet(id, &text).await?;
                added(shared, id)
            }
            Self::List => list(shared).await,
            Self::Show { id } => show(shared, id).await,
            Self::Policy { id, file, wait } => {
                let text = read_policy(file)?;
                let registry = shared.registry().await?;
                let acted = registry.set_policy(id, &text).await?;
                let changed = acted.done == Done::Changed;
                let words = if changed { "follows its new policy" } else { "has this policy already" };
                let json = shared.json.then(|| json!({ "fleet": id, "changed": changed }));
                receipt::finish(&*registry, &acted, None, wait, &format!("fleet '{id}' {words}"), json).await
            }
            Self::Limits { id, rate, burst, message_bytes, renew_after_expiry, wait } => {
                let registry = shared.registry().await?;
                let fleet = find(&*registry, id).await?;
                // What cannot be read is set anew.
                let mut limits = FleetLimits::parse(&fleet.limits).unwrap_or_default();
                Limit::set(*rate, &mut limits.rate_per_second);
                Limit::set(*burst, &mut limits.rate_burst);
                Limit::set(*message_bytes, &mut limits.message_bytes);
                let mut late = limits.renew_after_expiry.map(Late);
                Limit::set(*renew_after_expiry, &mut late);
                limits.renew_after_expiry = late.map(|Late(seconds)| seconds);
                let none = rate.is_none() && burst.is_none() && message_bytes.is_none();
                if none && renew_after_expiry.is_none() {
                    return show_limits(shared, &fleet);
                }
                limits.check().map_err(|error| Failure::usage(error.to_string()))?;
                let acted = registry.set_limits(id, &serde_json::to_string(&limits)?).await?;
                let changed = acted.done == Done::Changed;
                let words = if changed { "follows its new limits" } else { "has these limits already" };
                let json = shared.json.then(|| json!({ "fleet": id, "changed": changed, "limits": limits }));
                receipt::finish(&*registry, &acted, None, wait, &format!("fleet '{id}' {words}"), json).await
            }
        }
    }
}

fn added(shared: &Shared, id: &FleetId) -> Outcome {
    if shared.json {
        return output::json(&json!({ "fleet": id, "changed": true }));
    }
    output::say(format!("fleet '{id}' added"));
    Ok(())
}

/// A policy's text, checked and in one line.
fn read_policy(path: &Path) -> Result<String, Failure> {
    let failed = |why: String| Failure::new(format!("{}: {why}", path.display()));
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::new(format!("cannot read {}: {error}", path.display())))?;
    // Else a JSON array would be taken for an object whose members are all left out: a policy that allows nothing.
    if text.trim_start().starts_with('[') {
        return Err(failed("not a policy: a JSON object is needed, and this is an array".to_owned()));
    }
    let policy = Policy::parse(&text).map_err(|error| failed(error.to_string()))?;
    Ok(serde_json::to_string(&policy)?)
}

async fn list(shared: &Shared) -> Outcome {
    let fleets = shared.registry().await?.fleets().await?;
    if shared.json {
        let rows: Vec<_> = fleets.iter().map(as_json).collect::<Result<_, _>>()?;
        return output::json(&rows);
    }
    let mut table = output::table(["FLEET", "ACTIVE", "SUSPENDED", "REVOKED", "CREATED"]);
    for fleet in &fleets {
        let [active, suspended, revoked] = fleet.devices.map(|count| count.to_string());
        table.add_row([fleet.id.to_string(), active, suspended, revoked, output::time(fleet.created)]);
    }
    output::print_table(&table, "there is no fleet")
}

async fn find(registry: &dyn Registry, id: &FleetId) -> Result<registry::Fleet, Failure> {
    registry.fleet(id).await?.ok_or_else(|| {
        Failure::missing(format!("there is no fleet '{id}'"))
            .next("'doorward fleet list' shows those that there are")
    })
}

fn show_limits(shared: &Shared, fleet: &registry::Fleet) -> Outcome {
    if shared.json {
        let limits: &RawValue = serde_json::from_str(&fleet.limits)?;
        return output::json(&json!({ "fleet": fleet.id, "limits": limits }));
    }
    output::print(&limits_in_words(&fleet.limits))
}

/// What is not named is as each gateway's configuration says.
fn limits_in_words(text: &str) -> String {
    match FleetLimits::parse(text) {
        Ok(limits) if limits == FleetLimits::default() => "as each gateway is configured".to_owned(),
        Ok(FleetLimits { rate_per_second, rate_burst, message_bytes, renew_after_expiry }) => {
            let say = |what: &str, value: Option<u64>| value.map(|value| format!("{what} {value}"));
            let bytes = message_bytes.map(|bytes| bytes as u64);
            [
                say("rate", rate_per_second.map(u64::from)),
                say("burst", rate_burst.map(u64::from)),
                say("message bytes", bytes),
                renew_after_expiry.map(|seconds| {
                    let span = std::time::Duration::from_secs(seconds.into());
                    format!("renewals up to {} after expiry", humantime::format_duration(span))
                }),
            ]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(", ")
        }
        Err(error) => format!("unreadable: {error}"),
    }
}

async fn show(shared: &Shared, id: &FleetId) -> Outcome {
    let fleet = find(&*shared.registry().await?, id).await?;
    if shared.json {
        return output::json(&as_json(&fleet)?);
    }
    let [active, suspended, revoked] = fleet.devices;
    let policy: serde_json::Value = serde_json::from_str(&fleet.policy)?;
    output::print(&format!(
        "fleet    {id}\ncreated  {}\ndevices  {active} active, {suspended} suspended, {revoked} revoked\nlimits   {}\npolicy   {}",
        output::time(fleet.created),
        limits_in_words(&fleet.limits),
        serde_json::to_string_pretty(&policy)?.replace('\n', "\n         ")
    ))
}

fn as_json(fleet: &registry::Fleet) -> Result<serde_json::Value, serde_json::Error> {
    let [active, suspended, revoked] = fleet.devices;
    let policy: &RawValue = serde_json::from_str(&fleet.policy)?;
    let limits: &RawValue = serde_json::from_str(&fleet.limits)?;
    Ok(json!({
        "fleet": fleet.id,
        "created": output::time(fleet.created),
        "devices": { "active": active, "suspended": suspended, "revoked": revoked },
        "policy": policy,
        "limits": limits,
    }))
}
