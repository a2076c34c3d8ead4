//! `fleet limits`: what a fleet's devices may cost, in place of what each gateway's configuration says.

use std::str::FromStr;
use std::sync::Mutex;
use std::sync::PoisonError;

use clap::Args;
use doorward_proto::ids::FleetId;
use doorward_proto::limits::FleetLimits;
use serde_json::json;
use serde_json::value::RawValue;

use super::find;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::receipt::{self, Wait};
use crate::cli::{Shared, output};
use crate::registry::{self, Done, RegistryError};

#[derive(Args, Debug)]
pub(in crate::cli) struct Limits {
    /// Its id
    id: FleetId,
    /// Messages a second of one device
    #[arg(long, value_name = "N")]
    rate: Option<Limit<u32>>,
    /// Messages of one device at once
    #[arg(long, value_name = "N")]
    burst: Option<Limit<u32>>,
    /// Bytes of messages a second of one device
    #[arg(long, value_name = "N")]
    bytes_rate: Option<Limit<u32>>,
    /// Bytes of messages of one device at once; one message may be longer
    #[arg(long, value_name = "N")]
    bytes_burst: Option<Limit<u32>>,
    /// The longest message in bytes; no more than the gateway's limits.message_bytes
    #[arg(long, value_name = "N")]
    message_bytes: Option<Limit<usize>>,
    /// Bytes that wait for one device to read them; no more than the gateway's limits.outgoing_bytes
    #[arg(long, value_name = "N")]
    outgoing_bytes: Option<Limit<usize>>,
    /// Broken messages within the gateway's limits.strike_window that end a session; no more than its limits.strikes
    #[arg(long, value_name = "N")]
    strikes: Option<Limit<u32>>,
    /// Connections of one device a minute
    #[arg(long, value_name = "N")]
    connects: Option<Limit<u32>>,
    /// Connections of one device at once
    #[arg(long, value_name = "N")]
    connects_burst: Option<Limit<u32>>,
    /// How long after its end a certificate may still renew itself, as 90d; 0s: not at all
    #[arg(long, value_name = "DUR", value_parser = late)]
    renew_after_expiry: Option<Limit<u32>>,
    #[command(flatten)]
    wait: Wait,
}

/// A length of time, in whole seconds.
fn late(text: &str) -> Result<Limit<u32>, String> {
    if text == "default" {
        return Ok(Limit::Default);
    }
    let span = humantime::parse_duration(text).ok().and_then(|span| u32::try_from(span.as_secs()).ok());
    span.map(Limit::Is).ok_or_else(|| "a length of time like 90d is needed, or 'default'".to_owned())
}

/// A value, or the gateway's own.
#[derive(Debug, Clone, Copy)]
enum Limit<T> {
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

impl Limits {
    /// What is asked for, on top of what the fleet has.
    fn set(&self, limits: &mut FleetLimits) {
        for (asked, to) in [
            (self.rate, &mut limits.rate_per_second),
            (self.burst, &mut limits.rate_burst),
            (self.bytes_rate, &mut limits.bytes_per_second),
            (self.bytes_burst, &mut limits.bytes_burst),
            (self.strikes, &mut limits.strikes),
            (self.connects, &mut limits.connects_per_minute),
            (self.connects_burst, &mut limits.connects_burst),
            (self.renew_after_expiry, &mut limits.renew_after_expiry),
        ] {
            Limit::set(asked, to);
        }
        Limit::set(self.message_bytes, &mut limits.message_bytes);
        Limit::set(self.outgoing_bytes, &mut limits.outgoing_bytes);
    }

    /// Whether no limit is named.
    fn only_asks(&self) -> bool {
        let numbers = [
            self.rate,
            self.burst,
            self.bytes_rate,
            self.bytes_burst,
            self.strikes,
            self.connects,
            self.connects_burst,
            self.renew_after_expiry,
        ];
        numbers.iter().all(Option::is_none) && self.message_bytes.is_none() && self.outgoing_bytes.is_none()
    }

    pub(super) async fn run(&self, shared: &Shared) -> Outcome {
        let id = &self.id;
        let registry = shared.registry().await?;
        if self.only_asks() {
            return show(shared, &find(&*registry, id).await?);
        }
        // What is out of its range is so whatever the fleet has.
        let mut asked = FleetLimits::default();
        self.set(&mut asked);
        asked.check().map_err(|error| Failure::usage(error.to_string()))?;
        // Read and written in one transaction: who changes another limit at the same time loses nothing.
        let now = Mutex::new(FleetLimits::default());
        let change = |text: &str| {
            // What cannot be read is set anew.
            let mut limits = FleetLimits::parse(text).unwrap_or_default();
            self.set(&mut limits);
            *now.lock().unwrap_or_else(PoisonError::into_inner) = limits;
            serde_json::to_string(&limits).map_err(|error| RegistryError::Internal(error.to_string()))
        };
        let acted = registry.change_limits(id, &change).await?;
        let limits = *now.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = acted.done == Done::Changed;
        let words = if changed { "follows its new limits" } else { "has these limits already" };
        let json = shared.json.then(|| json!({ "fleet": id, "changed": changed, "limits": limits }));
        receipt::finish(&*registry, &acted, None, &self.wait, &format!("fleet '{id}' {words}"), json).await
    }
}

fn show(shared: &Shared, fleet: &registry::Fleet) -> Outcome {
    if shared.json {
        let limits: &RawValue = serde_json::from_str(&fleet.limits)?;
        return output::json(&json!({ "fleet": fleet.id, "limits": limits }));
    }
    output::print(&in_words(&fleet.limits))
}

/// What is not named is as each gateway's configuration says.
pub(super) fn in_words(text: &str) -> String {
    let limits = match FleetLimits::parse(text) {
        Ok(limits) if limits == FleetLimits::default() => return "as each gateway is configured".to_owned(),
        Ok(limits) => limits,
        Err(error) => return format!("unreadable: {error}"),
    };
    let FleetLimits { rate_per_second, rate_burst, bytes_per_second, bytes_burst, .. } = limits;
    let FleetLimits { message_bytes, outgoing_bytes, strikes, connects_per_minute, connects_burst, .. } =
        limits;
    let number = |value: Option<u32>| value.map(u64::from);
    let size = |value: Option<usize>| value.map(|value| value as u64);
    let mut words: Vec<String> = [
        ("rate", number(rate_per_second)),
        ("burst", number(rate_burst)),
        ("bytes a second", number(bytes_per_second)),
        ("bytes at once", number(bytes_burst)),
        ("message bytes", size(message_bytes)),
        ("outgoing bytes", size(outgoing_bytes)),
        ("strikes", number(strikes)),
        ("connections a minute", number(connects_per_minute)),
        ("connections at once", number(connects_burst)),
    ]
    .into_iter()
    .filter_map(|(what, value)| value.map(|value| format!("{what} {value}")))
    .collect();
    if let Some(seconds) = limits.renew_after_expiry {
        let span = std::time::Duration::from_secs(seconds.into());
        words.push(format!("renewals up to {} after expiry", humantime::format_duration(span)));
    }
    words.join(", ")
}
