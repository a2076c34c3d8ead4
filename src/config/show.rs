//! What is in force, and where each value comes from.

use toml::{Table, Value};

use super::{Config, Memory};

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Nobody said otherwise.
    Default,
    /// The configuration file.
    File,
    /// The environment.
    Environment,
    /// A credential that the service manager has handed over.
    Credential,
    /// The command line.
    Flag,
    /// What the other values come to.
    Computed,
}

/// One value in force.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Setting {
    /// The key, dotted.
    pub key: String,
    /// The value, as TOML.
    pub value: String,
    /// Where it comes from.
    pub source: Source,
}

/// Every value of a configuration, in the order of the sections.
#[must_use]
pub fn settings(config: &Config, file: &Table) -> Vec<Setting> {
    let Ok(Value::Table(all)) = Value::try_from(config) else { return Vec::new() };
    let mut rows = Vec::new();
    for (section, values) in &all {
        let Value::Table(values) = values else { continue };
        let given = file.get(section).and_then(Value::as_table);
        for (key, value) in values {
            let source =
                if given.is_some_and(|t| t.contains_key(key)) { Source::File } else { Source::Default };
            rows.push(Setting { key: format!("{section}.{key}"), value: value.to_string(), source });
        }
    }
    rows
}

/// What a configuration may cost, in bytes.
#[must_use]
pub fn costs(memory: &Memory) -> Vec<Setting> {
    [
        ("memory.at_most", memory.at_most),
        ("memory.of_strangers", memory.of_strangers),
        ("memory.addresses", memory.addresses),
        ("memory.devices", memory.devices),
        ("memory.session", memory.session),
        ("memory.store", memory.store),
        ("memory.traces", memory.traces),
    ]
    .map(|(key, bytes)| Setting { key: key.to_owned(), value: bytes.to_string(), source: Source::Computed })
    .into()
}
