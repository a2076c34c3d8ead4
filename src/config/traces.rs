//! `[traces]`: where spans are sent, and how many.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Span, Wrong, check_counts, check_spans};
use crate::traces::Endpoint;

/// `[traces]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TracesSection {
    /// The collector, `http://HOST:PORT[/PATH]` or `https://…`; empty: nothing is traced.
    pub endpoint: String,
    /// The CAs that an `https://` collector's certificate is judged by, PEM, relative to the home.
    pub ca: PathBuf,
    /// Whether `http://` may lead to another host.
    pub insecure: bool,
    /// Which part of the connections that come is traced, from 0 to 1.
    pub connections: f64,
    /// Which part of the messages, from 0 to 1.
    pub messages: f64,
    /// Traces of connections that are begun a second at most, and at once; of messages as many again.
    pub per_second: usize,
    /// Spans that wait for the collector at most.
    pub queue: usize,
    /// How long one request to the collector may take.
    pub timeout: Span,
}

impl Default for TracesSection {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            ca: PathBuf::new(),
            insecure: false,
            connections: 1.0,
            messages: 0.01,
            per_second: 100,
            queue: 8192,
            timeout: Span::seconds(10),
        }
    }
}

impl TracesSection {
    pub(super) fn check(&self) -> Result<(), Wrong> {
        for (key, share) in [("traces.connections", self.connections), ("traces.messages", self.messages)] {
            if !(0.0..=1.0).contains(&share) {
                let reason = "it must be a part of them, 0.0 to 1.0".to_owned();
                return Err(Wrong { key, value: share.to_string(), reason });
            }
        }
        check_counts(&[
            ("traces.per_second", self.per_second, 1, 100_000, "it must be 1 to 100000"),
            // One trace always finds room in an empty queue.
            ("traces.queue", self.queue, 64, 1_048_576, "it must be 64 to 1048576"),
        ])?;
        check_spans(&[("traces.timeout", self.timeout, 1, 60, "it must be 1s to 1m")])?;
        if self.endpoint.is_empty() {
            return Ok(());
        }
        let no = |key, value: String, reason: &str| Err(Wrong { key, value, reason: reason.to_owned() });
        let endpoint = match Endpoint::parse(&self.endpoint) {
            Ok(endpoint) => endpoint,
            // Not shown: it may have a password in it.
            Err(reason) => return no("traces.endpoint", "no collector's URL".to_owned(), reason),
        };
        let shown = format!("{:?}", self.endpoint);
        if endpoint.is_secure() && self.ca.as_os_str().is_empty() {
            return no(
                "traces.endpoint",
                shown,
                "https:// needs traces.ca, the CAs that the collector's certificate is judged by; \
                 those of the system are in /etc/ssl/certs/ca-certificates.crt on Debian",
            );
        }
        if !endpoint.is_secure() && !self.ca.as_os_str().is_empty() {
            return no(
                "traces.ca",
                format!("{:?}", self.ca),
                "with http:// no certificate is judged; write https://",
            );
        }
        if !endpoint.is_secure() && !endpoint.is_loopback() && !self.insecure {
            return no(
                "traces.endpoint",
                shown,
                "http:// to another host is readable by everybody on the way: write https://, send to a collector on \
                 this host, or set traces.insecure",
            );
        }
        Ok(())
    }
}
