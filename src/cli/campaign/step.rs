//! What a driver does next, by how the rotation stands.

use crate::registry::{NewRotation, Progress};

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Ask(u32),
    Wait,
    Stop(String),
    Finish,
}

/// What there is to do, by how it stands.
pub(super) fn next_step(plan: &NewRotation, progress: &Progress) -> Step {
    let failed = progress.counts.failed;
    if failed > u64::from(plan.max_failures) {
        let devices = if failed == 1 { "1 device has".to_owned() } else { format!("{failed} devices have") };
        return Step::Stop(format!("{devices} failed, and {} may", plan.max_failures));
    }
    match progress.next {
        // The canaries, or the rest of a wave that was begun.
        Some((wave, begun)) if begun || wave == 0 => return Step::Ask(wave),
        _ => {}
    }
    if progress.undecided > 0 {
        return Step::Wait;
    }
    // Canaries that nobody has heard of say nothing about the others.
    if !plan.canary.is_none() && progress.canaries_proven == 0 {
        match progress.next {
            // All of them were left out: the next ones take their place.
            Some((wave, _)) if progress.canaries == 0 => return Step::Ask(wave),
            _ if progress.canaries > 0 && progress.canary_age < plan.patience => return Step::Wait,
            _ => {}
        }
        let patience = humantime::format_duration(plan.patience);
        return Step::Stop(match progress.canaries {
            0 => "no canary could be asked".to_owned(),
            n if failed > 0 => format!("none of {n} canaries has proven it within {patience}"),
            n => format!("none of {n} canaries was connected within {patience}"),
        });
    }
    match progress.next {
        Some((wave, _)) => Step::Ask(wave),
        None => Step::Finish,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use doorward_proto::ids::FleetId;

    use super::*;
    use crate::registry::{Counts, Credential};

    fn plan(canary: &str, max_failures: u32) -> NewRotation {
        NewRotation {
            what: Credential::Key,
            fleet: FleetId::default(),
            canary: canary.parse().unwrap(),
            wave: "25%".parse().unwrap(),
            max_failures,
            patience: Duration::from_secs(60),
            grace: Duration::from_secs(1),
        }
    }

    fn stops(step: &Step, words: &str) {
        assert!(matches!(step, Step::Stop(why) if why.contains(words)), "{step:?}");
    }

    #[test]
    fn canaries_go_first_and_one_must_prove_it() {
        let plan = plan("2", 0);
        let mut now = Progress { next: Some((0, false)), ..Progress::default() };
        assert_eq!(next_step(&plan, &now), Step::Ask(0));
        // Cut short in the midst of the canaries: the rest of them.
        now.next = Some((0, true));
        assert_eq!(next_step(&plan, &now), Step::Ask(0));
        now = Progress { next: Some((1, false)), undecided: 1, canaries: 2, ..Progress::default() };
        assert_eq!(next_step(&plan, &now), Step::Wait);
        now.canaries_proven = 1;
        assert_eq!(next_step(&plan, &now), Step::Wait, "the other one may still fail");
        now.undecided = 0;
        assert_eq!(next_step(&plan, &now), Step::Ask(1));
        now.canaries_proven = 0;
        assert_eq!(next_step(&plan, &now), Step::Wait);
        now.canary_age = Duration::from_secs(60);
        stops(&next_step(&plan, &now), "none of 2 canaries was connected within 1m");
        // One that came at the last moment has its time.
        now.undecided = 1;
        assert_eq!(next_step(&plan, &now), Step::Wait);
        now = Progress { next: Some((1, false)), ..Progress::default() };
        assert_eq!(next_step(&plan, &now), Step::Ask(1), "the next wave takes their place");
        now.next = None;
        stops(&next_step(&plan, &now), "no canary could be asked");
    }

    #[test]
    fn too_many_failures_stop_it_wherever_it_is() {
        for next in [Some((0, true)), Some((3, false)), Some((3, true)), None] {
            let counts = Counts { failed: 2, ..Counts::default() };
            let now = Progress { next, counts, canaries: 9, canaries_proven: 7, ..Progress::default() };
            stops(&next_step(&plan("9", 1), &now), "2 devices have failed, and 1 may");
            assert!(!matches!(next_step(&plan("9", 2), &now), Step::Stop(_)));
        }
        let counts = Counts { failed: 2, ..Counts::default() };
        let canary_age = Duration::from_secs(60);
        let now = Progress { next: Some((1, false)), counts, canaries: 2, canary_age, ..Progress::default() };
        stops(&next_step(&plan("2", 2), &now), "none of 2 canaries has proven it within 1m");
    }

    #[test]
    fn a_wave_waits_for_those_that_are_connected_alone() {
        let plan = plan("0", 0);
        let mut now = Progress { next: Some((1, false)), ..Progress::default() };
        assert_eq!(next_step(&plan, &now), Step::Ask(1));
        now = Progress { next: Some((2, false)), undecided: 3, ..Progress::default() };
        assert_eq!(next_step(&plan, &now), Step::Wait);
        now.next = Some((2, true));
        assert_eq!(next_step(&plan, &now), Step::Ask(2), "the rest of a wave that was begun");
        now = Progress { next: Some((2, false)), counts: Counts { asked: 40, ..Counts::default() }, ..now };
        now.undecided = 0;
        assert_eq!(next_step(&plan, &now), Step::Ask(2));
        now.next = None;
        assert_eq!(next_step(&plan, &now), Step::Finish);
        now.undecided = 1;
        assert_eq!(next_step(&plan, &now), Step::Wait);
    }
}
