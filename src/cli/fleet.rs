//! `fleet …`: groups of devices that share a policy and limits.

mod limits;
mod schema;

use std::path::{Path, PathBuf};

use clap::Subcommand;
use doorward_proto::ids::FleetId;
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
    Limits(limits::Limits),
    /// What the data of its devices' messages must be like
    #[command(subcommand)]
    Schema(schema::Schema),
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
            Self::Limits(limits) => limits.run(shared).await,
            Self::Schema(schema) => schema.run(shared).await,
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

async fn show(shared: &Shared, id: &FleetId) -> Outcome {
    let fleet = find(&*shared.registry().await?, id).await?;
    if shared.json {
        return output::json(&as_json(&fleet)?);
    }
    let [active, suspended, revoked] = fleet.devices;
    let policy: serde_json::Value = serde_json::from_str(&fleet.policy)?;
    output::print(&format!(
        "fleet    {id}\ncreated  {}\ndevices  {active} active, {suspended} suspended, {revoked} revoked\nlimits   {}\nschemas  {}\npolicy   {}",
        output::time(fleet.created),
        limits::in_words(&fleet.limits),
        schema::in_words(&fleet.schemas),
        serde_json::to_string_pretty(&policy)?.replace('\n', "\n         ")
    ))
}

fn as_json(fleet: &registry::Fleet) -> Result<serde_json::Value, serde_json::Error> {
    let [active, suspended, revoked] = fleet.devices;
    let policy: &RawValue = serde_json::from_str(&fleet.policy)?;
    let limits: &RawValue = serde_json::from_str(&fleet.limits)?;
    let schemas: &RawValue = serde_json::from_str(&fleet.schemas)?;
    Ok(json!({
        "fleet": fleet.id,
        "created": output::time(fleet.created),
        "devices": { "active": active, "suspended": suspended, "revoked": revoked },
        "policy": policy,
        "limits": limits,
        "schemas": schemas,
    }))
}
