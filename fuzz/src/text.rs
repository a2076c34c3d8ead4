//! What operators and devices keep in files: configuration, policies, limits, credentials.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use doorward::config::{Config, settings, take};
use doorward_pki::{BulkLine, DeviceFile};
use doorward_proto::channel::{Filter, check_channel};
use doorward_proto::ids::{DeviceId, FleetId};
use doorward_proto::limits::{FleetLimits, Limits, Rate};
use doorward_proto::policy::{Action, Policy, Reach, Who};

use crate::Outcome;
use crate::shared::model::is_filter;

/// A configuration: one that is taken says the same when it is written and read again, and one that is not is refused by
/// name.
pub fn config(data: &[u8]) -> Outcome {
    let Ok(text) = std::str::from_utf8(data) else { return Outcome::of("no text") };
    let path = Path::new("home/config.toml");
    match Config::parse(text, path) {
        Ok(config) => {
            let written = toml::to_string(&config).expect("a configuration that can be written");
            let again = Config::parse(&written, path).expect("what we write ourselves");
            assert_eq!(toml::to_string(&again).expect("as before"), written);
            let taken = take(&config, &again);
            assert!(taken.changed.is_empty() && taken.waiting.is_empty(), "{taken:?}");
            let file = toml::from_str(text).expect("TOML");
            let rows = settings(&config, &file);
            assert!(!rows.is_empty());
            Outcome::of((
                "taken",
                rows.iter().filter(|row| row.source == doorward::config::Source::File).count(),
            ))
        }
        Err(error) => {
            let words = error.to_string();
            assert!(words.contains("home/config.toml"), "{words}");
            // Behind the lines that are quoted; what is quoted in the words themselves is the input's own.
            let last = words.lines().last().unwrap_or_default();
            let kind: String = last.split(['`', '"', '\'']).step_by(2).collect();
            Outcome::of(kind.chars().filter(char::is_ascii_alphabetic).take(60).collect::<String>())
        }
    }
}

/// Channels to ask policies about.
const CHANNELS: [&str; 9] = [
    "a",
    "a/b",
    "a/b/c",
    "b",
    "devices/press-7",
    "devices/press-7/t",
    "devices/press-8/t",
    "fleets/hall/x",
    "1/2/3/4/5/6/7/8",
];
const FILTERS: [&str; 8] =
    ["#", "+", "a/#", "a/+", "+/b/#", "devices/press-7/#", "devices/+/t", "fleets/hall/x"];

/// A policy, or a fleet's limits: what is allowed is what some pattern allows and none denies, by a matcher of its own.
pub fn policy(data: &[u8]) -> Outcome {
    let Ok(text) = std::str::from_utf8(data) else { return Outcome::of("no text") };
    // The same bytes, as the limits of a fleet.
    if let Ok(limits) = FleetLimits::parse(text) {
        let written = serde_json::to_string(&limits).expect("limits that can be written");
        assert_eq!(FleetLimits::parse(&written).expect("what we write ourselves"), limits);
        let gateway = Limits {
            max_message_bytes: 4096,
            max_skew: Duration::from_secs(60),
            heartbeat: Duration::from_secs(30),
            rate: Rate { per_second: 10, burst: 10 },
            ..Limits::default()
        };
        assert!(limits.over(gateway).max_message_bytes <= 4096);
    }
    let policy = match Policy::parse(text) {
        Ok(policy) => policy,
        Err(error) => return Outcome::of(std::mem::discriminant(&error)),
    };
    let written = serde_json::to_string(&policy).expect("a policy that can be written");
    assert_eq!(Policy::parse(&written).expect("what we write ourselves"), policy);
    let (device, fleet) = (DeviceId::new("press-7").expect("an id"), FleetId::new("hall").expect("an id"));
    let who = Who { device: &device, fleet: &fleet };
    let publish = policy.reach(who, Action::Publish);
    let subscribe = policy.reach(who, Action::Subscribe);
    let mut verdicts = Vec::new();
    for channel in CHANNELS {
        assert!(check_channel(channel).is_ok());
        let may = policy.may_publish(who, channel);
        assert_eq!(may, within(&publish, channel), "{channel}: {publish:?}");
        verdicts.push(may);
    }
    for filter in FILTERS {
        let filter = Filter::new(filter).expect("a filter");
        let may = policy.may_subscribe(who, &filter);
        for channel in CHANNELS.iter().filter(|_| may) {
            assert_eq!(filter.matches(channel), matches(filter.as_str(), channel));
            let brings = filter.matches(channel);
            assert!(!brings || within(&subscribe, channel), "{filter} brings {channel}: {subscribe:?}");
        }
        verdicts.push(may);
    }
    for text in publish.allowed.iter().chain(&subscribe.except) {
        assert!(is_filter(text, true), "{text}");
    }
    Outcome::of(verdicts)
}

fn within(reach: &Reach, channel: &str) -> bool {
    let any = |filters: &[String]| filters.iter().any(|filter| matches(filter, channel));
    any(&reach.allowed) && !any(&reach.except)
}

/// MQTT 5.0 §4.7.1, once more.
fn matches(filter: &str, channel: &str) -> bool {
    match (
        filter.split_once('/').unwrap_or((filter, "\0")),
        channel.split_once('/').unwrap_or((channel, "\0")),
    ) {
        (("#", _), _) => true,
        ((one, "#"), (level, "\0")) => one == "+" || one == level,
        ((one, more), (level, rest)) if one == "+" || one == level => match (more, rest) {
            ("\0", "\0") => true,
            ("\0", _) | (_, "\0") => false,
            (more, rest) => matches(more, rest),
        },
        _ => false,
    }
}

/// `device.json` or a line of a bulk file: what is read is written as it was, and no secret is in what a log would show.
pub fn bundle(data: &[u8]) -> Outcome {
    let file = serde_json::from_slice::<DeviceFile>(data);
    let line = serde_json::from_slice::<BulkLine>(data);
    if let Ok(file) = &file {
        let written = file.to_json().expect("a file that can be written");
        assert_eq!(serde_json::from_str::<DeviceFile>(&written).expect("what we write ourselves"), *file);
        let secret = URL_SAFE_NO_PAD.encode(file.key.hmac.as_bytes());
        assert!(file.url.contains(&secret) || !format!("{file:?}").contains(&secret));
    }
    if let Ok(line) = &line {
        let written = line.to_line().expect("a line that can be written");
        assert_eq!(written.matches('\n').count(), 1, "one line");
        assert_eq!(serde_json::from_str::<BulkLine>(&written).expect("what we write ourselves"), *line);
        assert!(
            file.is_ok_and(|file| file == line.device_file()),
            "a reader of device.json reads a line too"
        );
        let secret = line.private_key.as_str();
        let elsewhere = [&line.url, &line.certificate, &line.ca].iter().any(|text| text.contains(secret));
        assert!(secret.len() < 20 || elsewhere || !format!("{line:?}").contains(secret));
        return Outcome::of("a line");
    }
    let error = line.err().map(|error| error.to_string()).unwrap_or_default();
    let kind: String = error.split(['`', '"']).step_by(2).collect();
    let kind: String = kind.chars().filter(char::is_ascii_alphabetic).take(40).collect();
    Outcome::of((file.is_ok(), kind))
}
