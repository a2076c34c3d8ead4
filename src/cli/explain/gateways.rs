//! Who would let the device in, and whether they know what there is to know of it.

use super::Facts;
use super::checks::{Bars, Check, State};
use crate::cli::output;
use crate::registry::insight::{Follower, MOST_BEHIND};

/// A gateway reports every 5 s.
const SILENT_AFTER: time::Duration = time::Duration::seconds(15);
const TOPIC: &str = "gateway";

impl Facts {
    pub(super) fn gateways(&self, named: Option<&str>) -> Vec<Check> {
        if let Some(name) = named {
            let gateway = self.insight.gateways.iter().find(|gateway| gateway.status.name == name);
            return gateway.map(|gateway| self.gateway(gateway)).into_iter().collect();
        }
        let mut checks: Vec<Check> =
            self.insight.gateways.iter().map(|gateway| self.gateway(gateway)).collect();
        let any = |wanted: State| checks.iter().any(|check| check.state == wanted);
        if any(State::Fine) {
            // One is enough. What is wrong with the others is worth a look and no more.
            for check in checks.iter_mut().filter(|check| check.state != State::Fine) {
                check.state = State::Note;
            }
        } else if !any(State::Unknown) {
            for check in &mut checks {
                check.state = State::Note;
            }
            let none = Check::new(TOPIC, State::Wrong(Bars::Connect), "no gateway serves");
            checks.insert(0, none.next("doorward gateway run"));
        }
        checks
    }

    pub(super) fn gateway_state(&self, gateway: &Follower) -> &'static str {
        if gateway.status.signed_off.is_some() {
            "off"
        } else if self.silent(gateway) {
            "silent"
        } else if gateway.status.confirmed {
            "caught up"
        } else {
            "behind"
        }
    }

    fn silent(&self, gateway: &Follower) -> bool {
        self.insight.now - gateway.status.heartbeat > SILENT_AFTER
    }

    fn gateway(&self, gateway: &Follower) -> Check {
        let status = &gateway.status;
        let (name, heard) = (output::plain(&status.name), output::time(status.heartbeat));
        let behind = behind(gateway).map(|words| format!(" ({words})")).unwrap_or_default();
        let start = "start it again: doorward gateway run";
        if let Some(off) = status.signed_off {
            let what = format!("{name} has signed off at {} and serves nobody", output::time(off));
            return Check::new(TOPIC, State::Wrong(Bars::Connect), what).next(start);
        }
        if !status.may_serve {
            let what = format!("{name} has been silent since {heard} and may serve nobody any more");
            return Check::new(TOPIC, State::Wrong(Bars::Connect), what).next(start);
        }
        if self.silent(gateway) {
            let what = format!(
                "{name} has been silent since {heard}: it is gone, or cut off from the registry and serving by what it \
                 knew, which it may until {}{behind}",
                output::time(status.serves_until)
            );
            return Check::new(TOPIC, State::Unknown, what)
                .next("look at its log and its way to the database");
        }
        if !status.confirmed {
            let what =
                format!("{name} has not confirmed the last change to this device or its fleet{behind}");
            return Check::new(TOPIC, State::Unknown, what).next("ask again in a moment");
        }
        Check::fine(TOPIC, format!("{name} serves at {}, caught up{behind}", output::plain(&status.address)))
    }
}

/// How far behind all changes, if at all.
pub(super) fn behind(gateway: &Follower) -> Option<String> {
    let since = gateway.since.filter(|_| gateway.behind > 0)?;
    let count = match gateway.behind {
        1 => "1 change".to_owned(),
        many if many >= u64::from(MOST_BEHIND) => format!("{many} changes or more"),
        many => format!("{many} changes"),
    };
    Some(format!("{count} not confirmed yet, the oldest of {}", output::time(since)))
}
