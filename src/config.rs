//! The configuration: read once into final types, so that no half-checked value travels. Unknown keys are refused with
//! their line. `Config::default()` is what an empty file means, and `config/default.toml` says the same in words.

mod address;
mod addresses;
mod admin;
mod certificates;
mod crl;
mod limits;
mod live;
mod memory;
mod network;
mod quarantine;
mod show;
mod span;
mod tls;
mod traces;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use doorward_client::target::Target;
use serde::{Deserialize, Serialize};
use toml::de::{DeTable, DeValue};

use crate::home::Home;
use crate::registry::DatabaseUrl;

pub use addresses::AddressesSection;
pub use admin::AdminSection;
pub use certificates::CertificatesSection;
pub use crl::{CrlSection, served_as};
pub use limits::LimitsSection;
pub use live::{Taken, take};
pub use memory::Memory;
pub use network::Network;
pub use quarantine::{QuarantineMode, QuarantineSection};
pub use show::{Setting, Source, costs, settings};
pub use span::Span;
pub use traces::TracesSection;

/// The text that `init` writes: every key, its default, and what it does.
pub const DEFAULT_TEXT: &str = include_str!("config/default.toml");

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}; 'doorward init' makes one")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key or a value of the wrong kind. The reason shows the line.
    #[error("{path} is not a configuration: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// With line and column.
        reason: String,
    },
    /// Nothing in it, under a gateway that runs.
    #[error(
        "{0} has no section, and every default at once is not taken by a gateway that runs: write its sections, or start the gateway anew"
    )]
    Empty(PathBuf),
    /// A value that cannot work.
    #[error("{path}{}: {key} is {value}: {reason}", line.map(|line| format!(", line {line}")).unwrap_or_default())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key, dotted.
        key: &'static str,
        /// What it says.
        value: String,
        /// What it must be.
        reason: String,
        /// Where it stands, counted from 1; a value that is left out has its default, and may not go with the others.
        line: Option<usize>,
    },
}

/// Everything that a gateway is told.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Who this gateway is.
    pub gateway: GatewaySection,
    /// Where the registry is.
    pub database: DatabaseSection,
    /// What holds while the registry is away.
    pub registry: RegistrySection,
    /// Who the gateway is to devices, and whose devices it lets in.
    pub tls: TlsSection,
    /// Renewals.
    pub certificates: CertificatesSection,
    /// Revocation lists for others.
    pub crl: CrlSection,
    /// What the operator's programs ask.
    pub admin: AdminSection,
    /// What an address may do before anybody behind it is known.
    pub addresses: AddressesSection,
    /// Where spans are sent, if anywhere.
    pub traces: TracesSection,
    /// Bounds on connections and sessions.
    pub limits: LimitsSection,
    /// Devices that are suspended by themselves.
    pub quarantine: QuarantineSection,
    /// Times of a session.
    pub session: SessionSection,
    /// What is kept of messages.
    pub messages: MessagesSection,
}

/// `[gateway]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GatewaySection {
    /// Its name, in `welcome`, in the registry and in logs.
    pub name: String,
    /// The address that devices connect to.
    pub listen: SocketAddr,
    /// What devices are told to connect to, in their bundles.
    pub url: String,
    /// `Origin` headers that are let in. Devices send none, browsers always do.
    pub origins: Vec<String>,
    /// Proxies that say for whom they connect, by the PROXY protocol, version 2.
    pub proxy_networks: Vec<Network>,
    /// How long a drain may take.
    pub drain: Span,
}

/// `[database]`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DatabaseSection {
    /// `sqlite://…` or `postgres://…`; empty: SQLite in the home.
    pub url: String,
}

/// `[registry]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistrySection {
    /// How long sessions live on without news of the registry.
    pub max_staleness: Span,
}

/// `[tls]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsSection {
    /// The gateway's certificate chain, leaf first, relative to the home.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The CAs that sign devices, or a root above them.
    pub device_cas: Vec<PathBuf>,
    /// Revocation lists of those CAs, besides what the registry says.
    pub crls: Vec<PathBuf>,
    /// `1.3`, or `1.2` for devices that know nothing newer.
    pub min_version: TlsVersion,
}

/// The oldest TLS that is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TlsVersion {
    /// RFC 5246, for devices whose library knows nothing newer.
    #[serde(rename = "1.2")]
    V1_2,
    /// RFC 8446.
    #[serde(rename = "1.3")]
    V1_3,
}

/// `[session]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionSection {
    /// How often the gateway pings.
    pub heartbeat: Span,
    /// How far a message's time may lie from the gateway's clock.
    pub max_skew: Span,
    /// How long a session may stay unproven.
    pub proof_within: Span,
}

/// `[messages]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MessagesSection {
    /// How long stored messages are kept; changes and events at least a week.
    pub keep: Span,
}

impl Default for GatewaySection {
    fn default() -> Self {
        Self {
            name: "gateway-1".to_owned(),
            listen: SocketAddr::from(([0, 0, 0, 0], 8443)),
            url: "wss://localhost:8443/v1/device".to_owned(),
            origins: Vec::new(),
            proxy_networks: Vec::new(),
            drain: Span::seconds(20),
        }
    }
}

impl Default for RegistrySection {
    fn default() -> Self {
        Self { max_staleness: Span::seconds(24 * 3600) }
    }
}

impl Default for TlsSection {
    fn default() -> Self {
        Self {
            certificate: "pki/gateway.crt".into(),
            key: "pki/gateway.key".into(),
            device_cas: vec!["pki/issuing.crt".into()],
            crls: Vec::new(),
            min_version: TlsVersion::V1_3,
        }
    }
}

impl Default for SessionSection {
    fn default() -> Self {
        Self { heartbeat: Span::seconds(30), max_skew: Span::seconds(60), proof_within: Span::seconds(30) }
    }
}

impl Default for MessagesSection {
    fn default() -> Self {
        Self { keep: Span::seconds(7 * 24 * 3600) }
    }
}

impl Config {
    /// Reads the home's configuration.
    ///
    /// # Errors
    /// [`ConfigError`] with file, line and reason.
    pub fn load(home: &Home) -> Result<Self, ConfigError> {
        let path = home.config();
        let text = std::fs::read_to_string(&path)
            .map_err(|source| ConfigError::Unreadable { path: path.clone(), source })?;
        Self::parse(&text, &path)
    }

    /// Reads a configuration from its text; `path` is for its errors.
    ///
    /// # Errors
    /// [`ConfigError`] with file, line and reason.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::Malformed {
            path: path.to_owned(),
            reason: error.to_string().trim_end().to_owned(),
        })?;
        config.check().map_err(|Wrong { key, value, reason }| {
            let line = line_of(text, key);
            ConfigError::Value { path: path.to_owned(), key, value, reason, line }
        })?;
        Ok(config)
    }

    fn check(&self) -> Result<(), Wrong> {
        let no = |key, value: String, reason: &str| Err(Wrong { key, value, reason: reason.to_owned() });
        let name = &self.gateway.name;
        if name.is_empty() || name.len() > 64 || name.chars().any(char::is_control) {
            return no("gateway.name", format!("{name:?}"), "a name of 1 to 64 characters is needed");
        }
        self.addresses.check()?;
        self.limits.check()?;
        self.quarantine.check()?;
        self.traces.check()?;
        check_spans(&[
            ("session.heartbeat", self.session.heartbeat, 1, 3600, "it must be 1s to 1h"),
            // Four times what the registry may take to answer: an honest message must not grow stale in a queue.
            ("session.max_skew", self.session.max_skew, 20, 3600, "it must be 20s to 1h"),
            ("session.proof_within", self.session.proof_within, 1, 300, "it must be 1s to 5m"),
            ("gateway.drain", self.gateway.drain, 1, 600, "it must be 1s to 10m"),
            (
                "certificates.lifetime",
                self.certificates.lifetime,
                3600,
                36_500 * 86_400,
                "it must be 1h to 36500d",
            ),
            ("certificates.grace", self.certificates.grace, 60, 366 * 86_400, "it must be 1m to 366d"),
            (
                "certificates.renew_after_expiry",
                self.certificates.renew_after_expiry,
                0,
                365 * 86_400,
                "it must be 0s to 365d",
            ),
            ("registry.max_staleness", self.registry.max_staleness, 0, 366 * 86_400, "it must be 0s to 366d"),
            // A message's id is remembered as long as the message: the dedupe window of the protocol.
            ("messages.keep", self.messages.keep, 600, 36_500 * 86_400, "it must be at least 10m"),
        ])?;
        self.tls.check()?;
        self.crl.check()?;
        if !self.database.url.is_empty()
            && let Err(error) = DatabaseUrl::parse(&self.database.url)
        {
            // The error says what is wrong with it and leaves its password out.
            return no("database.url", "not a database's URL".to_owned(), &error.to_string());
        }
        if let Err(error) = Target::parse(&self.gateway.url) {
            return no("gateway.url", format!("{:?}", self.gateway.url), &error.to_string());
        }
        if !self.gateway.url.ends_with(doorward_proto::PATH) {
            return no(
                "gateway.url",
                format!("{:?}", self.gateway.url),
                "wss://HOST:PORT/v1/device is needed",
            );
        }
        Ok(())
    }
}

/// A value that cannot work.
struct Wrong {
    key: &'static str,
    value: String,
    reason: String,
}

/// A key, its value, the least and the most that it may be, and that in words.
type Bounds<T, N> = (&'static str, T, N, N, &'static str);

fn check_counts(all: &[Bounds<usize, usize>]) -> Result<(), Wrong> {
    for &(key, value, least, most, reason) in all {
        if !(least..=most).contains(&value) {
            return Err(Wrong { key, value: value.to_string(), reason: reason.to_owned() });
        }
    }
    Ok(())
}

/// The bounds are in seconds.
fn check_spans(all: &[Bounds<Span, u64>]) -> Result<(), Wrong> {
    for &(key, Span(value), least, most, reason) in all {
        if !(Duration::from_secs(least)..=Duration::from_secs(most)).contains(&value) {
            let value = humantime::format_duration(value).to_string();
            return Err(Wrong { key, value, reason: reason.to_owned() });
        }
    }
    Ok(())
}

/// The line of a dotted key, counted from 1.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let (section, name) = key.split_once('.')?;
    let table = DeTable::parse(text).ok()?;
    let DeValue::Table(section) = table.get_ref().get(section)?.get_ref() else { return None };
    let (found, _) = section.iter().find(|(found, _)| *found.get_ref() == name)?;
    Some(text.get(..found.span().start)?.matches('\n').count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("config.toml"))
    }

    #[test]
    fn the_default_text_says_what_the_defaults_are() {
        let written = toml::to_string(&parse(DEFAULT_TEXT).unwrap()).unwrap();
        let built_in = toml::to_string(&Config::default()).unwrap();
        assert_eq!(written, built_in);
        let table: toml::Table = toml::from_str(DEFAULT_TEXT).unwrap();
        assert_eq!(table.to_string().lines().count(), built_in.trim().lines().count(), "every key is shown");
    }

    #[test]
    fn a_wrong_key_is_named_with_its_line() {
        let error = parse("[limits]\nconnections = 5\nhandshake = 3\n").unwrap_err().to_string();
        assert!(error.contains("line 3") && error.contains("handshake"), "{error}");
    }

    #[test]
    fn a_value_that_cannot_work_is_named() {
        for (text, words) in [
            ("[limits]\nconnections = 0", "line 2: limits.connections is 0: it must be 1 to 1048576"),
            (
                "# x\n[limits]\nmessage_bytes = 300000",
                "limits.outgoing_bytes is 262144: it must be at least twice",
            ),
            ("[session]\n\nmax_skew = \"5s\"", "line 3: session.max_skew is 5s: it must be 20s to 1h"),
            ("[database]\nurl = \"mysql://x\"", "line 2: database.url"),
            ("[gateway]\nurl = \"wss://a b?x=/v1/device\"", "line 2: gateway.url"),
            ("[session]\nheartbeat = \"1ms\"", "session.heartbeat is 1ms: it must be 1s to 1h"),
            ("[session]\nheartbeat = \"soon\"", "'soon' is not a length of time"),
            ("[messages]\nkeep = \"1m\"", "at least 10m"),
            ("[addresses]\nfailures = 1", "line 2: addresses.failures is 1: it must be 2 to 65536"),
            ("[addresses]\nblock_at_most = \"5s\"", "must not be less than addresses.block"),
            ("[gateway]\nproxy_networks = [\"10.0.0.1/8\"]", "did you mean '10.0.0.0/8'"),
            ("[tls]\ndevice_cas = []", "nobody could be let in"),
            (
                "[tls]\ncrls = [\"a.crl\", \"./a.crl\"]",
                "line 2: tls.crls is \"./a.crl\": this file is named already",
            ),
            ("[quarantine]\nmode = \"yes\"", "unknown variant `yes`"),
            ("[quarantine]\nwindow = \"2d\"", "line 2: quarantine.window is 2days: it must be 1s to 1d"),
            ("[quarantine]\n\nfor = \"400d\"", "line 3: quarantine.for"),
            ("[crl]\nlisten = \"here\"", "socket address"),
            (
                "[traces]\nmessages = 1.5",
                "line 2: traces.messages is 1.5: it must be a part of them, 0.0 to 1.0",
            ),
            ("[traces]\nconnections = nan", "traces.connections is NaN"),
            ("[traces]\nqueue = 3", "traces.queue is 3: it must be 64 to 1048576"),
            ("[traces]\nendpoint = \"collector:4318\"", "it must begin with http:// or https://"),
            (
                "[traces]\nendpoint = \"http://u:p@127.0.0.1\"",
                "is no collector's URL: it must not have a user",
            ),
            ("[traces]\nendpoint = \"http://192.0.2.1:4318\"", "readable by everybody on the way"),
            ("[traces]\nendpoint = \"https://192.0.2.1:4318\"", "https:// needs traces.ca"),
            (
                "[traces]\nendpoint = \"http://127.0.0.1:4318\"\nca = \"a.crt\"",
                "line 3: traces.ca is \"a.crt\"",
            ),
            ("[crl]\nfiles = [\"a/x.crl\", \"b/x.crl\"]", "line 2: crl.files"),
            ("[crl]\nfiles = [\"a/..\"]", "a file's name"),
            ("[tls]\nmin_version = \"1.1\"", "unknown variant"),
            ("[gateway]\nurl = \"ws://x/v1/device\"", "does not begin with wss://"),
            ("[gateway]\nlisten = \"here\"", "socket address"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
