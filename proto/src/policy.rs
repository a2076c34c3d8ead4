//! What the devices of a fleet may do: rules of allow and deny over actions and channel filters. Deny wins, and what
//! no rule allows is denied.

mod reach;

use std::fmt;

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

/// A channel filter in which a whole level may be `${device}` or `${fleet}`. It is taken apart once, when the policy is read,
/// and all sessions of the fleet share that: a message costs comparisons alone, and a session nothing of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
struct Pattern {
    text: Box<str>,
    levels: Box<[Part]>,
}

/// A level of a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Exact(Box<str>),
    One,
    Rest,
    Device,
    Fleet,
}

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
        self.judge_publish(who, channel).allowed
    }

    /// Whether a device may subscribe with a filter.
    #[must_use]
    pub fn may_subscribe(&self, who: Who<'_>, filter: &Filter) -> bool {
        self.judge_subscribe(who, filter).allowed
    }

    /// Whether a device may publish to a channel, and which rule says so.
    #[must_use]
    pub fn judge_publish(&self, who: Who<'_>, channel: &str) -> Ruling<'_> {
        let to =
            |pattern: &Pattern| channel::covers(pattern.levels(who), channel.split('/').map(Level::Exact));
        self.judge(Action::Publish, to, to)
    }

    /// Whether a device may subscribe with a filter, and which rule says so: one allowed pattern covers all of it, no denied
    /// one meets it.
    #[must_use]
    pub fn judge_subscribe(&self, who: Who<'_>, filter: &Filter) -> Ruling<'_> {
        self.judge(
            Action::Subscribe,
            |pattern| channel::covers(pattern.levels(who), filter.levels()),
            |pattern| channel::overlap(pattern.levels(who), filter.levels()),
        )
    }

    /// Deny first: it wins.
    fn judge(
        &self,
        action: Action,
        allows: impl Fn(&Pattern) -> bool,
        denies: impl Fn(&Pattern) -> bool,
    ) -> Ruling<'_> {
        if let Some(rule) = find(List::Deny, &self.deny, action, denies) {
            return Ruling { allowed: false, by: Some(rule) };
        }
        let by = find(List::Allow, &self.allow, action, allows);
        Ruling { allowed: by.is_some(), by }
    }
}

/// What a policy says, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Ruling<'a> {
    /// Whether it may be done.
    pub allowed: bool,
    /// The first rule that decides; none where no rule allows it.
    #[serde(rename = "rule")]
    pub by: Option<Place<'a>>,
}

/// A rule's place in its policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Place<'a> {
    /// In which of the two lists.
    pub list: List,
    /// The rule's place in it, from 0.
    pub index: usize,
    /// The channel pattern of the rule that fits.
    pub pattern: &'a str,
}

/// The lists of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum List {
    /// What may be done.
    Allow,
    /// What may not, whatever the other says.
    Deny,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = match self.list {
            List::Allow => "allow",
            List::Deny => "deny",
        };
        write!(f, "{list}[{}], pattern '{}'", self.index, self.pattern)
    }
}

fn find(list: List, rules: &[Rule], action: Action, fits: impl Fn(&Pattern) -> bool) -> Option<Place<'_>> {
    rules.iter().enumerate().filter(|(_, rule)| rule.actions.contains(&action)).find_map(|(index, rule)| {
        let pattern = rule.channels.iter().find(|pattern| fits(pattern))?;
        Some(Place { list, index, pattern: &pattern.text })
    })
}

impl From<String> for Pattern {
    fn from(text: String) -> Self {
        let part = |level: &str| match level {
            "+" => Part::One,
            "#" => Part::Rest,
            "${device}" => Part::Device,
            "${fleet}" => Part::Fleet,
            exact => Part::Exact(exact.into()),
        };
        Self { levels: text.split('/').map(part).collect(), text: text.into() }
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.text.into()
    }
}

impl Pattern {
    fn check(&self) -> Result<(), PolicyError> {
        let plain: Vec<&str> = self
            .text
            .split('/')
            .map(|level| if matches!(level, "${device}" | "${fleet}") { "x" } else { level })
            .collect();
        Filter::new(&plain.join("/")).map(drop).map_err(|reason| PolicyError::Pattern {
            pattern: self.text.escape_debug().to_string(),
            reason: format!("{reason}; '${{device}}' and '${{fleet}}' stand for a whole level"),
        })
    }

    fn levels<'a>(&'a self, who: Who<'a>) -> impl Iterator<Item = Level<'a>> {
        self.levels.iter().map(move |part| match part {
            Part::One => Level::One,
            Part::Rest => Level::Rest,
            Part::Device => Level::Exact(who.device.as_str()),
            Part::Fleet => Level::Exact(who.fleet.as_str()),
            Part::Exact(text) => Level::Exact(text),
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
    fn the_rule_that_decides_is_named() {
        let policy = Policy::parse(
            r##"{"allow":[{"actions":["subscribe"],"channels":["#"]},{"actions":["publish"],"channels":["x","devices/${device}/#"]}],
                "deny":[{"actions":["publish"],"channels":["+/+/secret"]},{"actions":["subscribe"],"channels":["fleets/${fleet}/b"]}]}"##,
        )
        .unwrap();
        let (device, fleet) = ids();
        let who = Who { device: &device, fleet: &fleet };
        let publish = |channel: &str| {
            let ruling = policy.judge_publish(who, channel);
            (ruling.allowed, ruling.by.map(|place| place.to_string()))
        };
        let said = |allowed, words: &str| (allowed, Some(words.to_owned()));
        assert_eq!(publish("devices/press-7/t"), said(true, "allow[1], pattern 'devices/${device}/#'"));
        assert_eq!(publish("devices/press-7/secret"), said(false, "deny[0], pattern '+/+/secret'"));
        assert_eq!(publish("devices/press-8/t"), (false, None));
        let subscribe = |filter: &str| policy.judge_subscribe(who, &Filter::new(filter).unwrap());
        let by = subscribe("fleets/+/b").by.unwrap();
        assert_eq!((by.list, by.index, by.pattern), (List::Deny, 1, "fleets/${fleet}/b"));
        assert!(subscribe("fleets/+/c").allowed);
        let json = serde_json::to_value(subscribe("a")).unwrap();
        let rule = serde_json::json!({ "list": "allow", "index": 0, "pattern": "#" });
        assert_eq!(json, serde_json::json!({ "allowed": true, "rule": rule }));
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
