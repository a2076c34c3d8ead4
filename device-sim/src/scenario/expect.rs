//! The expectations: what must be true at the end, each miss a line.

use super::{Cast, Scenario};
use crate::engine::honest::Outcome;
use crate::plan::Plan;
use crate::report::Report;

/// The lines are for people; a fleet that fails fails in many devices alike.
const MOST_LINES: usize = 20;

pub(crate) fn judge(plan: &Plan, cast: &Cast, outcomes: &[Outcome], report: &Report) -> Vec<String> {
    let mut failures = Vec::new();
    if plan.cancel.is_cancelled() && !plan.scenario.is_load() {
        failures.push("the run was interrupted before its attacks were done".to_owned());
    }
    connected(plan, cast, outcomes, &mut failures);
    answered(plan, cast, outcomes, &mut failures);
    if !plan.scenario.is_load() {
        unharmed(plan, outcomes, &mut failures);
    }
    if !cast.hostile.is_empty() && report.attacks.is_empty() {
        failures.push("no attack was tried".to_owned());
    }
    for attack in report.attacks.iter().filter(|attack| attack.held < attack.tried) {
        failures.push(format!(
            "{}: expected {}, but {} of {} brought something else; first: {}",
            attack.name,
            attack.expected,
            attack.tried - attack.held,
            attack.tried,
            attack.first_breach.as_deref().unwrap_or("unknown"),
        ));
    }
    failures.truncate(MOST_LINES);
    failures
}

fn connected(plan: &Plan, cast: &Cast, outcomes: &[Outcome], failures: &mut Vec<String>) {
    if outcomes.len() < cast.honest.len() {
        failures
            .push(format!("{} devices ended by a bug of the simulator", cast.honest.len() - outcomes.len()));
    }
    let mut down = outcomes.iter().filter(|outcome| outcome.sessions == 0).peekable();
    if let Some(first) = down.peek() {
        let why = first.last_failure.as_deref().unwrap_or("its turn to connect never came");
        let first = plan.devices[first.index].device().clone();
        failures.push(format!(
            "all connected: {} of {} devices were not; first: {first}: {why}",
            down.count(),
            cast.honest.len()
        ));
    }
}

fn answered(plan: &Plan, cast: &Cast, outcomes: &[Outcome], failures: &mut Vec<String>) {
    let device = |outcome: &Outcome| plan.devices[outcome.index].device().to_string();
    let lost: u64 = outcomes.iter().map(|outcome| outcome.lost).sum();
    if let Some(first) = outcomes.iter().find(|outcome| outcome.lost > 0) {
        failures.push(format!(
            "nothing lost: {lost} messages were unanswered at the end; first: device {}",
            device(first)
        ));
    }
    for outcome in outcomes {
        let jumps = cast.honest.iter().any(|(index, role)| *index == outcome.index && role.jumps);
        if jumps && !outcome.refused.contains_key("stale") && outcome.sessions > 0 {
            failures
                .push(format!("a clock that jumps ahead: device {} was not told 'stale'", device(outcome)));
        }
        let unexpected = outcome.refused.iter().find(|(error, _)| !(jumps && *error == "stale"));
        if let Some((error, count)) = unexpected {
            failures.push(format!(
                "nothing refused: device {} had {count} messages refused as '{}'",
                device(outcome),
                error.escape_debug()
            ));
        }
        if failures.len() > MOST_LINES {
            return;
        }
    }
    let accepted: u64 = outcomes.iter().map(|outcome| outcome.accepted).sum();
    if accepted == 0 && !outcomes.is_empty() && outcomes.iter().any(|outcome| outcome.sessions > 0) {
        failures.push("every message acked: not one was".to_owned());
    }
}

/// Beside an attack an honest device notices nothing of it.
fn unharmed(plan: &Plan, outcomes: &[Outcome], failures: &mut Vec<String>) {
    for outcome in outcomes {
        let device = plan.devices[outcome.index].device();
        if let Some(how) = outcome.ended.first() {
            failures.push(format!(
                "honest devices unharmed: the session of {device} was ended: {}",
                how.escape_debug()
            ));
        } else if outcome.sessions > 0 && outcome.accepted == 0 && plan.scenario != Scenario::SkewedClock {
            failures.push(format!("honest devices unharmed: {device} had no message acked"));
        }
        if failures.len() > MOST_LINES {
            return;
        }
    }
}
