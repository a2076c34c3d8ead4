//! What the devices of a fleet may do: rules of allow and deny over actions and channel filters. Deny wins, and what
//! no rule allows is denied.

mod reach;

use serde::{Deserialize, Serialize};

use crate::channel::{self, Filter, Level};
use crate::ids::{DeviceId, FleetId};

pub use reach::Reach;

/// The most rules of a policy, and the most channel patterns of a rule.
pub const MAX_RULES: usize = 64;

/// The policy of the fleet that exists from the start, and of those that are added without one: a device publishes
/// under its own name, and subscribes there and under its fleet's.
pub const DEFAULT: &str = r#"{"allow":[{"actions":["publish"],"channels":["devices/${device}/#"]},{"actions":["subscribe"],"channels":["devices/${device}/#","fleets/${fleet}/#"]}],"deny":[]}"#;

/// Why a text is no policy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// Not the JSON object that a policy is.
    #[error(
        "not a policy: {0}; a policy is {{\"allow\": [{{\"actions\": [\"publish\", \"subscribe\"], \"channels\": [\"devices/${{device}}/#\"]}}], \"deny\": []}}"
    )]
    Form(#[from] serde_json::Error),
    /// A pattern that is not a channel filter.
    #[error("the channel pattern '{pattern}' is malformed: {reason}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// The rule it breaks.
        reason: String,
    },
    /// More than the limits allow.
    #[error("a policy has at most {MAX_RULES} rules of at most {MAX_RULES} channel patterns each")]
    TooLarge,
}

/// What a device does to a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Sends to it.
    Publish,
    /// Receives what is sent to it.
    Subscribe,
}

/// A fleet's policy. It is shared by all sessions of the fleet; who asks is an argument.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    #[serde(default)]
    allow: Vec<Rule>,
    #[serde(default)]
    deny: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    actions: Vec<Action>,
    channels: Vec<Pattern>,
}

/// A channel filter in which a whole level may be `${device}` or `${fleet}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Pattern(Box<str>);

/// Whose rights are asked for.
#[derive(Debug, Clone, Copy)]
pub struct Who<'a> {
    /// The device.
    pub device: &'a DeviceId,
    /// Its fleet.
    pub fleet: &'a FleetId,
}

impl Policy {
    /// Reads a policy from its JSON text.
    ///
    /// # Errors
    /// [`PolicyError`] naming the place.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let policy: Self = serde_json::from_str(text)?;
        let rules = || policy.allow.iter().chain(&policy.deny);
        if rules().count() > MAX_RULES || rules().any(|rule| rule.channels.len() > MAX_RULES) {
            return Err(PolicyError::TooLarge);
        }
        rules().flat_map(|rule| &rule.channels).try_for_each(Pattern::check)?;
        Ok(policy)
    }

    /// Whether a device may publish to a channel.
    #[must_use]
    pub fn may_publish(&self, who: Who<'_>, channel: &str) -> bool {
        let to =
            |pattern: &Pattern| channel::covers(pattern.levels(who), channel.split('/').map(Level::Exact));
        any(&self.allow, Action::Publish, to) && !any(&self.deny, Action::Publish, to)
    }

    /// Whether a device may subscribe with a filter: one allowed pattern covers all of it, no denied one meets it.
    #[must_use]
    pub fn may_subscribe(&self, who: Who<'_>, filter: &Filter) -> bool {
        any(&self.allow, Action::Subscribe, |pattern| channel::covers(pattern.levels(who), filter.levels()))
            && !any(&self.deny, Action::Subscribe, |pattern| {
                channel::overlap(pattern.levels(who), filter.levels())
            })
    }
}

fn any(rules: &[Rule], action: Action, fits: impl Fn(&Pattern) -> bool) -> bool {
    rules.iter().any(|rule| rule.actions.contains(&action) && rule.channels.iter().any(&fits))
}

impl Pattern {
    fn check(&self) -> Result<(), PolicyError> {
        let plain: Vec<&str> = self
            .0
            .split('/')
            .map(|level| if matches!(level, "${device}" | "${fleet}") { "x" } else { level })
            .collect();
        Filter::new(&plain.join("/")).map(drop).map_err(|reason| PolicyError::Pattern {
            pattern: self.0.escape_debug().to_string(),
            reason: format!("{reason}; '${{device}}' and '${{fleet}}' stand for a whole level"),
        })
    }

    fn levels<'a>(&'a self, who: Who<'a>) -> impl Iterator<Item = Level<'a>> {
        self.0.split('/').map(move |level| match level {
            "+" => Level::One,
            "#" => Level::Rest,
            "${device}" => Level::Exact(who.device.as_str()),
            "${fleet}" => Level::Exact(who.fleet.as_str()),
            exact => Level::Exact(exact),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids() -> (DeviceId, FleetId) {
        (DeviceId::new("press-7").unwrap(), FleetId::new("hall").unwrap())
    }

    #[test]
    fn the_default_keeps_devices_apart() {
        let policy = Policy::parse(DEFAULT).unwrap();
        let (device, fleet) = ids();
        let who = Who { device: &device, fleet: &fleet };
        assert!(policy.may_publish(who, "devices/press-7/temperature"));
        assert!(!policy.may_publish(who, "devices/press-8/temperature"));
        assert!(!policy.may_publish(who, "fleets/hall/news"));
        let may = |filter: &str| policy.may_subscribe(who, &Filter::new(filter).unwrap());
        assert!(may("fleets/hall/#"));
        assert!(may("devices/press-7/+/x"));
        assert!(!may("devices/+/x"));
        assert!(!may("#"));
    }

    #[test]
    fn deny_wins() {
        let policy = Policy::parse(
            r##"{"allow":[{"actions":["publish","subscribe"],"channels":["#"]}],
                "deny":[{"actions":["publish","subscribe"],"channels":["a/+/secret"]}]}"##,
        )
        .unwrap();
        let (device, fleet) = ids();
        let who = Who { device: &device, fleet: &fleet };
        assert!(policy.may_publish(who, "a/b/open"));
        assert!(!policy.may_publish(who, "a/b/secret"));
        assert!(policy.may_subscribe(who, &Filter::new("b/#").unwrap()));
        assert!(!policy.may_subscribe(who, &Filter::new("a/#").unwrap()), "it would bring a denied channel");
    }

    #[test]
    fn nothing_is_allowed_by_silence() {
        let policy = Policy::parse("{}").unwrap();
        let (device, fleet) = ids();
        assert!(!policy.may_publish(Who { device: &device, fleet: &fleet }, "devices/press-7/x"));
    }

    #[test]
    fn a_broken_policy_is_refused_with_its_place() {
        for (text, words) in [
            ("", "EOF"),
            (r#"{"alow":[]}"#, "unknown field `alow`"),
            (r#"{"allow":[{"actions":["read"],"channels":[]}]}"#, "unknown variant `read`"),
            (r#"{"allow":[{"actions":["publish"],"channels":["a/${user}"]}]}"#, "'a/${user}' is malformed"),
            (r#"{"allow":[{"actions":["publish"],"channels":["a/x${device}"]}]}"#, "whole level"),
            (r##"{"allow":[{"actions":["publish"],"channels":["#/a"]}]}"##, "'#/a' is malformed"),
        ] {
            let error = Policy::parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
