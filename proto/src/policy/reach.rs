//! What a policy comes to for one device, in words.

use super::{Action, Pattern, Policy, Rule, Who};
use crate::channel;

/// The filters that a device may reach, its id and its fleet's filled in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reach {
    /// What rules allow. One of which a denied one leaves nothing is left out.
    pub allowed: Vec<String>,
    /// What is taken from that.
    pub except: Vec<String>,
}

impl Policy {
    /// What a device may do, as filters. Nothing allowed: nothing at all.
    #[must_use]
    pub fn reach(&self, who: Who<'_>, action: Action) -> Reach {
        let allowed: Vec<&Pattern> = patterns(&self.allow, action).collect();
        let denied: Vec<&Pattern> = patterns(&self.deny, action).collect();
        let left = |pattern: &&&Pattern| {
            !denied.iter().any(|denied| channel::covers(denied.levels(who), pattern.levels(who)))
        };
        let left: Vec<&Pattern> = allowed.iter().filter(left).copied().collect();
        let takes = |denied: &&&Pattern| {
            left.iter().any(|allowed| channel::overlap(denied.levels(who), allowed.levels(who)))
        };
        let except = denied.iter().filter(takes).map(|pattern| pattern.filled(who));
        Reach { except: distinct(except), allowed: distinct(left.iter().map(|pattern| pattern.filled(who))) }
    }
}

fn patterns(rules: &[Rule], action: Action) -> impl Iterator<Item = &Pattern> {
    rules.iter().filter(move |rule| rule.actions.contains(&action)).flat_map(|rule| &rule.channels)
}

fn distinct(texts: impl Iterator<Item = String>) -> Vec<String> {
    let mut all = Vec::new();
    for text in texts {
        if !all.contains(&text) {
            all.push(text);
        }
    }
    all
}

impl Pattern {
    fn filled(&self, who: Who<'_>) -> String {
        let levels = self.text.split('/').map(|level| match level {
            "${device}" => who.device.as_str(),
            "${fleet}" => who.fleet.as_str(),
            other => other,
        });
        levels.collect::<Vec<_>>().join("/")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{DeviceId, FleetId};
    use crate::policy::DEFAULT;

    fn reach(text: &str, action: Action) -> (Vec<String>, Vec<String>) {
        let (device, fleet) = (DeviceId::new("press-7").unwrap(), FleetId::new("hall").unwrap());
        let found = Policy::parse(text).unwrap().reach(Who { device: &device, fleet: &fleet }, action);
        (found.allowed, found.except)
    }

    #[test]
    fn the_default_names_the_device_and_its_fleet() {
        assert_eq!(reach(DEFAULT, Action::Publish), (vec!["devices/press-7/#".to_owned()], vec![]));
        let both = vec!["devices/press-7/#".to_owned(), "fleets/hall/#".to_owned()];
        assert_eq!(reach(DEFAULT, Action::Subscribe), (both, vec![]));
    }

    #[test]
    fn what_is_denied_is_an_exception_or_leaves_nothing() {
        let text = r##"{"allow":[{"actions":["publish"],"channels":["a/#","b/c","a/#"]}],
            "deny":[{"actions":["publish"],"channels":["b/+","a/secret","elsewhere/#"]},
                    {"actions":["subscribe"],"channels":["#"]}]}"##;
        assert_eq!(reach(text, Action::Publish), (vec!["a/#".to_owned()], vec!["a/secret".to_owned()]));
        assert_eq!(reach("{}", Action::Publish), (vec![], vec![]));
        let nothing = r##"{"allow":[{"actions":["publish"],"channels":["a/b"]}],
            "deny":[{"actions":["publish"],"channels":["#"]}]}"##;
        assert_eq!(reach(nothing, Action::Publish), (vec![], vec![]));
    }
}
