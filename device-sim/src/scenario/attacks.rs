//! What was tried, and what came of it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use doorward_client::connection::{ConnectError, Ended};
use doorward_proto::close::Close;

use crate::engine::Context;
use crate::engine::probe::{Answer, Probe};
use crate::preflight;
use crate::report::AttackReport;

/// More than any sane limit of strikes.
const MOST_FRAMES: usize = 50;

/// The attacks of a run, by name.
#[derive(Debug, Default)]
pub(crate) struct Attacks(Mutex<BTreeMap<&'static str, AttackReport>>);

impl Attacks {
    /// One try: what should come, and what came instead if it was something else.
    pub(crate) fn saw(&self, name: &'static str, expected: &str, device: &str, instead: Option<String>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let attack = all.entry(name).or_insert_with(|| AttackReport {
            name: name.to_owned(),
            expected: expected.to_owned(),
            tried: 0,
            held: 0,
            first_breach: None,
        });
        attack.tried += 1;
        match instead {
            None => attack.held += 1,
            Some(instead) => {
                attack.first_breach.get_or_insert_with(|| format!("device {device}: {instead}"));
            }
        }
    }

    /// An answer that should be one of these refusals.
    pub(crate) fn judge(&self, name: &'static str, expected: &[&str], device: &str, answer: &Answer) {
        let held = answer.error().is_some_and(|error| expected.contains(&error));
        self.saw(name, &expected.join(" or "), device, (!held).then(|| answer.words()));
    }

    /// An attack that could not even be tried: it has not been seen to fail.
    pub(crate) fn untried(&self, name: &'static str, expected: &str, device: &str, error: &ConnectError) {
        self.saw(name, expected, device, Some(format!("it could not be tried: {error}")));
    }

    pub(crate) fn report(&self) -> Vec<AttackReport> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

/// The place that an attacker connects from.
pub(crate) fn local(context: &Context, attacker: usize) -> Option<IpAddr> {
    preflight::attackers_source(context.gateway, attacker)
}

/// Sends refused frames until the session is closed for them. Each must be refused as one of `expected`, and the end
/// must be 4008.
pub(crate) async fn strike_out(
    probe: &mut Probe,
    attacks: &Attacks,
    names: (&'static str, &'static str),
    expected: &[&str],
    device: &str,
    mut frame: impl FnMut(&mut Probe) -> String,
) {
    let (name, closing) = names;
    let words = "close 4008 after the strikes";
    for _ in 0..MOST_FRAMES {
        let next = frame(probe);
        probe.send(&next).await;
        let mut answer = after_bye(probe, None).await;
        if matches!(answer, Answer::Silence) {
            // No second wait for one that does not answer.
            attacks.saw(name, &expected.join(" or "), device, Some(answer.words()));
            return attacks.saw(closing, words, device, Some(answer.words()));
        }
        if matches!(answer, Answer::Said(_)) {
            attacks.judge(name, expected, device, &answer);
            // The close follows its reject soon. One that takes longer is met by the next frame.
            answer = after_bye(probe, Some(Duration::from_millis(30))).await;
        }
        match &answer {
            Answer::Silence => {}
            Answer::Ended(Ended::Closed { close: Close::Strikes }) => {
                return attacks.saw(closing, words, device, None);
            }
            other => return attacks.saw(closing, words, device, Some(other.words())),
        }
    }
    attacks.saw(closing, words, device, Some(format!("{MOST_FRAMES} refused messages and no end")));
}

/// What comes next, a `bye` aside: it announces the close that is waited for.
async fn after_bye(probe: &mut Probe, within: Option<Duration>) -> Answer {
    let mut answer = match within {
        Some(within) => probe.answer_in(within).await,
        None => probe.answer().await,
    };
    while matches!(&answer, Answer::Said(said) if said.op == "bye") {
        answer = probe.answer().await;
    }
    answer
}
