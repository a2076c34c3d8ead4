//! Which values a running gateway takes over when its configuration has changed, and which wait for its next start.

use toml::{Table, Value};

use super::{Config, ConfigError, settings};
use crate::home::Home;

/// Copied where the gateway starts: sockets, pools, its place in the registry.
const AT_START: [&str; 16] = [
    "addresses.remembered",
    "addresses.waiting",
    "admin.listen",
    "crl.listen",
    "database.url",
    "gateway.listen",
    "gateway.name",
    "limits.connections",
    "limits.handshakes",
    "limits.store_queue",
    "registry.max_staleness",
    "traces.ca",
    "traces.endpoint",
    "traces.insecure",
    "traces.queue",
    "traces.timeout",
];

/// A configuration that a gateway goes on with.
#[derive(Debug, Clone)]
pub struct Taken {
    /// What is in force from now on.
    pub config: Config,
    /// The keys that have another value than before.
    pub changed: Vec<String>,
    /// The keys whose new value takes effect at the next start.
    pub waiting: Vec<String>,
}

impl Config {
    /// Reads the home's configuration for a gateway that runs: a file without a section, which would mean every default, is
    /// one that somebody has begun to write or that a full disk has cut to nothing.
    ///
    /// # Errors
    /// [`ConfigError`] with file, line and reason.
    pub fn load_again(home: &Home) -> Result<Self, ConfigError> {
        let path = home.config();
        let text = std::fs::read_to_string(&path)
            .map_err(|source| ConfigError::Unreadable { path: path.clone(), source })?;
        let config = Self::parse(&text, &path)?;
        if text.parse::<Table>().is_ok_and(|table| table.is_empty()) {
            return Err(ConfigError::Empty(path));
        }
        Ok(config)
    }
}

/// What a gateway that runs by one configuration goes on with when it is given another.
#[must_use]
pub fn take(running: &Config, new: &Config) -> Taken {
    let rows = |config| settings(config, &Table::new());
    let differs = rows(running).into_iter().zip(rows(new)).filter(|(old, new)| old.value != new.value);
    let (waiting, changed): (Vec<_>, Vec<_>) =
        differs.map(|(_, new)| new.key).partition(|key| AT_START.contains(&key.as_str()));
    Taken { config: keep(running, new).unwrap_or_else(|| running.clone()), changed, waiting }
}

/// The new one, but for what the running one has to keep.
fn keep(running: &Config, new: &Config) -> Option<Config> {
    let (running, mut taken) = (Table::try_from(running).ok()?, Table::try_from(new).ok()?);
    for (section, key) in AT_START.iter().filter_map(|key| key.split_once('.')) {
        let value = running.get(section).and_then(Value::as_table).and_then(|table| table.get(key))?;
        taken.get_mut(section)?.as_table_mut()?.insert(key.to_owned(), value.clone());
    }
    taken.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asked for whenever it is needed, so that another value counts from then on.
    const ASKED: [&str; 54] = [
        "addresses.block",
        "addresses.block_at_most",
        "addresses.burst",
        "addresses.failure_window",
        "addresses.failures",
        "addresses.handshakes",
        "addresses.network_burst",
        "addresses.network_handshakes",
        "addresses.network_rate",
        "addresses.rate",
        "certificates.grace",
        "certificates.lifetime",
        "certificates.renew_after_expiry",
        "crl.files",
        "gateway.drain",
        "gateway.origins",
        "gateway.proxy_networks",
        "gateway.url",
        "limits.bytes_burst",
        "limits.bytes_per_second",
        "limits.connects_burst",
        "limits.connects_per_minute",
        "limits.frames_burst",
        "limits.frames_per_second",
        "limits.handshake_timeout",
        "limits.hello_timeout",
        "limits.message_bytes",
        "limits.outgoing_bytes",
        "limits.rate_burst",
        "limits.rate_per_second",
        "limits.request_timeout",
        "limits.strike_window",
        "limits.strikes",
        "limits.subscriptions",
        "limits.undecided",
        "messages.keep",
        "quarantine.for",
        "quarantine.forbidden",
        "quarantine.forged",
        "quarantine.mode",
        "quarantine.replayed",
        "quarantine.unproven",
        "quarantine.window",
        "session.heartbeat",
        "session.max_skew",
        "session.proof_within",
        "tls.certificate",
        "tls.crls",
        "tls.device_cas",
        "tls.key",
        "tls.min_version",
        "traces.connections",
        "traces.messages",
        "traces.per_second",
    ];

    #[test]
    fn each_key_is_taken_at_once_or_at_the_next_start_and_the_text_says_which() {
        let keys: Vec<String> =
            settings(&Config::default(), &Table::new()).into_iter().map(|row| row.key).collect();
        let text = super::super::DEFAULT_TEXT;
        for key in &keys {
            let asked = ASKED.contains(&key.as_str());
            assert_ne!(asked, AT_START.contains(&key.as_str()), "{key}: which of the two?");
            let (section, name) = key.split_once('.').unwrap();
            let (_, after) = text.split_once(&format!("[{section}]\n")).unwrap();
            let at = after.find(&format!("\n{name} = ")).unwrap();
            let comment: Vec<&str> =
                after[..at].lines().rev().take_while(|line| line.starts_with('#')).collect();
            let says_restart = comment.iter().any(|line| line.contains("(restart)"));
            // One comment may stand over two keys.
            if !comment.is_empty() {
                assert_eq!(says_restart && key != "limits.undecided", !asked, "{key}: {comment:?}");
            }
        }
        for key in AT_START.iter().chain(&ASKED) {
            assert!(keys.iter().any(|known| known == key), "{key} is no key any more");
        }
    }

    #[test]
    fn what_waits_for_the_next_start_stays_as_it_was() {
        let running = Config::default();
        let mut new = running.clone();
        new.limits.connections = 7;
        new.limits.strikes = 9;
        "elsewhere".clone_into(&mut new.gateway.name);
        let taken = take(&running, &new);
        assert_eq!(taken.changed, ["limits.strikes"]);
        assert_eq!(taken.waiting, ["gateway.name", "limits.connections"]);
        assert_eq!((taken.config.limits.connections, taken.config.limits.strikes), (15_000, 9));
        assert_eq!(taken.config.gateway.name, running.gateway.name);
        // The same again, compared to what is in force: what waits is still named, what was taken is not.
        let again = take(&taken.config, &new);
        assert_eq!((again.changed.len(), again.waiting.len()), (0, 2));
    }
}
