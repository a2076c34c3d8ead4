//! `fleet schema …`: what the data of a fleet's messages must be like.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Subcommand;
use doorward_proto::channel::Filter;
use doorward_proto::ids::FleetId;
use serde_json::{Value, json};

use super::find;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::receipt::{self, Wait};
use crate::cli::{Shared, output};
use crate::registry::{Done, RegistryError};
use crate::schema::{self, SchemaSet};

#[derive(Subcommand, Debug)]
pub(in crate::cli) enum Schema {
    /// Attach a JSON Schema to a channel filter, in place of the one that it has; live sessions follow it
    #[command(
        after_help = "Example:\n  doorward fleet schema add presses --channel 'devices/+/temperature' temperature.json\n\n\
        What is published there and does not fit is refused as bad_message, with the first place that does not."
    )]
    Add {
        /// The fleet
        fleet: FleetId,
        /// The channels that it is for
        #[arg(long, value_name = "FILTER")]
        channel: Filter,
        /// The schema (draft 4 to 2020-12), a JSON file that refers to nothing outside it
        file: PathBuf,
        #[command(flatten)]
        wait: Wait,
    },
    /// Take a schema away
    #[command(
        after_help = "Example:\n  doorward fleet schema remove presses --channel 'devices/+/temperature'"
    )]
    Remove {
        /// The fleet
        fleet: FleetId,
        /// Its channel filter
        #[arg(long, value_name = "FILTER")]
        channel: Filter,
        #[command(flatten)]
        wait: Wait,
    },
    /// List a fleet's schemas
    #[command(after_help = "Example:\n  doorward fleet schema list presses --json")]
    List {
        /// The fleet
        fleet: FleetId,
    },
}

impl Schema {
    pub(super) async fn run(&self, shared: &Shared) -> Outcome {
        match self {
            Self::Add { fleet, channel, file, wait } => {
                let schema = read(file)?;
                change(shared, fleet, channel, Some(schema), wait).await
            }
            Self::Remove { fleet, channel, wait } => change(shared, fleet, channel, None, wait).await,
            Self::List { fleet } => list(shared, fleet).await,
        }
    }
}

/// A schema that may be used.
fn read(path: &PathBuf) -> Result<Value, Failure> {
    let name = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::new(format!("cannot read {name}: {error}")))?;
    let schema: Value =
        serde_json::from_str(&text).map_err(|error| Failure::new(format!("{name} is not JSON: {error}")))?;
    schema::compile(&schema).map_err(|error| {
        Failure::new(format!("{name} is no schema that can be used, {error}"))
            .next("the fleet's schemas stand as they were")
    })?;
    Ok(schema)
}

async fn change(
    shared: &Shared,
    id: &FleetId,
    channel: &Filter,
    schema: Option<Value>,
    wait: &Wait,
) -> Outcome {
    let registry = shared.registry().await?;
    let change = |text: &str| {
        let corrupt = |error: &dyn std::fmt::Display| {
            RegistryError::Corrupt(format!("the schemas of fleet '{id}': {error}"))
        };
        let mut all: BTreeMap<String, Value> = serde_json::from_str(text).map_err(|error| corrupt(&error))?;
        match &schema {
            Some(schema) => drop(all.insert(channel.to_string(), schema.clone())),
            None => drop(all.remove(channel.as_str())),
        }
        let text = serde_json::to_string(&all).map_err(|error| RegistryError::Internal(error.to_string()))?;
        // All of them together: what one gateway cannot read would keep the whole fleet out.
        SchemaSet::parse(&text).map_err(|error| RegistryError::Refused(error.to_string()))?;
        Ok(text)
    };
    let acted = registry.change_schemas(id, &change).await?;
    let changed = acted.done == Done::Changed;
    let words = match (&schema, changed) {
        (Some(_), true) => "follows its new schema for",
        (Some(_), false) => "has this schema already for",
        (None, true) => "has no schema any more for",
        (None, false) => "has no schema for",
    };
    let json = shared.json.then(|| json!({ "fleet": id, "channel": channel.as_str(), "changed": changed }));
    receipt::finish(&*registry, &acted, None, wait, &format!("fleet '{id}' {words} '{channel}'"), json).await
}

async fn list(shared: &Shared, id: &FleetId) -> Outcome {
    let fleet = find(&*shared.registry().await?, id).await?;
    let all: BTreeMap<String, Value> = serde_json::from_str(&fleet.schemas)?;
    if shared.json {
        let rows: Vec<Value> =
            all.iter().map(|(channel, schema)| json!({ "channel": channel, "schema": schema })).collect();
        return output::json(&rows);
    }
    let mut table = output::table(["CHANNEL", "SCHEMA"]);
    for (channel, schema) in &all {
        let title = schema.get("title").and_then(Value::as_str);
        let words = match title {
            Some(title) => output::plain(title),
            None => format!("{} bytes", schema.to_string().len()),
        };
        table.add_row([channel.clone(), words]);
    }
    output::print_table(&table, &format!("fleet '{id}' has no schema"))
}

/// Which channels have one.
pub(super) fn in_words(text: &str) -> String {
    match serde_json::from_str::<BTreeMap<String, Value>>(text) {
        Ok(all) if all.is_empty() => "none".to_owned(),
        Ok(all) => all.into_keys().collect::<Vec<_>>().join(", "),
        Err(error) => format!("unreadable: {error}"),
    }
}
