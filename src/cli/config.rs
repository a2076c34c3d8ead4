//! `config check` and `config show`.

use std::path::PathBuf;

use clap::Subcommand;

use super::failure::{Failure, Outcome};
use super::{Shared, output};
use crate::config::{Config, Memory, Setting, Source, costs, settings};
use crate::gateway::StartError;
use crate::tls;
use crate::traces::Traces;

#[derive(Subcommand, Debug)]
pub(super) enum ConfigCommand {
    /// Say what is wrong with a configuration, by line
    #[command(after_help = "Example:\n  doorward config check /etc/doorward/config.toml")]
    Check {
        /// The file [default: the home's, together with the certificates that it names]
        file: Option<PathBuf>,
    },
    /// Show what is in force, and where each value comes from
    #[command(after_help = "Example:\n  doorward config show --json")]
    Show,
}

impl ConfigCommand {
    pub(super) fn run(&self, shared: &Shared) -> Outcome {
        match self {
            Self::Check { file } => check(file.as_ref(), shared),
            Self::Show => show(shared),
        }
    }
}

fn check(file: Option<&PathBuf>, shared: &Shared) -> Outcome {
    let home = shared.home();
    let path = file.cloned().unwrap_or_else(|| home.config());
    let text = std::fs::read_to_string(&path).map_err(|error| {
        Failure::new(format!("cannot read {}: {error}", path.display()))
            .next("'doorward init' makes a configuration")
    })?;
    let config = Config::parse(&text, &path)?;
    if file.is_none() {
        shared.database_url(&config)?;
        tls::load(&config, &home, None)?;
        Traces::check(&config, &home).map_err(StartError::from)?;
    }
    if shared.json {
        return output::json(&serde_json::json!({ "file": path, "ok": true }));
    }
    output::say(format!("{} is in order", path.display()));
    Ok(())
}

fn show(shared: &Shared) -> Outcome {
    let config = shared.config()?;
    let text = std::fs::read_to_string(shared.home().config()).unwrap_or_default();
    let file: toml::Table = toml::from_str(&text).unwrap_or_default();
    let mut rows = settings(&config, &file);
    let from_flag = std::env::var("DATABASE_URL").ok().as_ref() != shared.database.as_ref();
    for row in rows.iter_mut().filter(|row| row.key == "database.url") {
        // Shown as it is used, its password left out.
        row.value = format!("\"{}\"", shared.database_url(&config)?);
        if shared.database().is_some() {
            row.source = if from_flag { Source::Flag } else { Source::Environment };
        } else if config.database.url.is_empty() {
            row.source = Source::Default;
        }
    }
    rows.extend(shared.secret_settings());
    let memory = Memory::of(&config);
    rows.extend(costs(&memory));
    if shared.json {
        return output::json(&rows);
    }
    let mut table = output::table(["KEY", "VALUE", "FROM"]);
    for Setting { key, value, source } in &rows {
        table.add_row([key.as_str(), value, &format!("{source:?}").to_lowercase()]);
    }
    output::print_table(&table, "nothing is configured")?;
    output::say(format!(
        "memory at most {}, if every session does its worst ({} each); {} while strangers hold every place",
        mib(memory.at_most),
        mib(memory.session),
        mib(memory.of_strangers)
    ));
    Ok(())
}

/// Rounded up.
fn mib(bytes: usize) -> String {
    let tenths = bytes.saturating_mul(10).div_ceil(1 << 20);
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}
