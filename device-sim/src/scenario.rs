//! What devices do and what must come of it. Each scenario names who is honest and who attacks, carries the attacks
//! out, and states its expectation; a run that misses it fails with a line that says which.

mod attacks;
mod expect;
mod flapping;
pub(crate) mod forge;
mod oversize;
mod replay;
mod skew;
pub(crate) mod slow_handshake;
mod slow_reader;
mod stolen;
mod storm;
pub(crate) mod wrong_ca;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use attacks::Attacks;
pub(crate) use expect::judge;

use crate::engine::honest::Role;
use crate::engine::{Context, Pace, seconds};
use crate::plan::{Failure, Plan};
use crate::report::AttackReport;

/// A scenario of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// All devices send; each message is acked.
    Steady,
    /// All devices send as much at once as they may, again and again.
    Burst,
    /// Captured frames are sent again: in their session, in the next one, on another device's.
    Replay,
    /// Frames are changed, signed with the wrong key or not at all.
    Forge,
    /// A good certificate without the key that belongs to it.
    StolenCertificate,
    /// A certificate that another CA signed for a real device's id.
    WrongCa,
    /// Devices whose clocks are minutes off.
    SkewedClock,
    /// All devices lose their connections at once and come back at once, twice.
    ReconnectStorm,
    /// Devices that come, say one thing and go, again and again.
    Flapping,
    /// Devices that do not read what they have subscribed to.
    SlowReader,
    /// Messages that are too long, whole, in fragments and announced.
    Oversize,
    /// Connections that begin and do not go on, before TLS, within it and after it.
    SlowHandshake,
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Steady => "steady",
            Self::Burst => "burst",
            Self::Replay => "replay",
            Self::Forge => "forge",
            Self::StolenCertificate => "stolen-certificate",
            Self::WrongCa => "wrong-ca",
            Self::SkewedClock => "skewed-clock",
            Self::ReconnectStorm => "reconnect-storm",
            Self::Flapping => "flapping",
            Self::SlowReader => "slow-reader",
            Self::Oversize => "oversize",
            Self::SlowHandshake => "slow-handshake",
        })
    }
}

impl Scenario {
    fn is_load(self) -> bool {
        matches!(self, Self::Steady | Self::Burst)
    }
}

/// Who does what. Places are those in the plan's fleet.
#[derive(Debug)]
pub(crate) struct Cast {
    pub(crate) honest: Vec<(usize, Role)>,
    pub(crate) hostile: Vec<usize>,
}

/// Attackers at most: they are there to be refused, not to be load.
const MOST_HOSTILE: usize = 32;
/// Of those who move megabytes.
const MOST_LARGE: usize = 4;
/// What an honest device beside an attack sends, where no rate is given: enough to see it harmed.
const BESIDE_AN_ATTACK: Duration = Duration::from_millis(200);

/// A quarter of the fleet attacks, at least one device; the rest is honest.
pub(crate) fn cast(plan: &Plan) -> Result<Cast, Failure> {
    let given = plan.devices.len();
    let needed = match plan.scenario {
        Scenario::StolenCertificate
        | Scenario::Flapping
        | Scenario::SlowReader
        | Scenario::Oversize
        | Scenario::SlowHandshake => 2,
        _ => 1,
    };
    if given < needed {
        return Err(Failure::TooFew { what: plan.scenario.to_string(), needed, given });
    }
    let quarter = (given / 4).clamp(1, MOST_HOSTILE);
    let (hostile, jumping) = match plan.scenario {
        Scenario::Steady | Scenario::Burst | Scenario::ReconnectStorm => (0, 0),
        Scenario::SlowReader | Scenario::Oversize => (quarter.min(MOST_LARGE), 0),
        // Some are behind and some jump ahead; a device alone jumps.
        Scenario::SkewedClock if given == 1 => (0, 1),
        Scenario::SkewedClock => (quarter, quarter),
        _ => (quarter, 0),
    };
    let honest = given - hostile;
    // The attackers are the last of the fleet.
    let mut cast = Cast { honest: Vec::with_capacity(honest), hostile: (honest..given).collect() };
    for index in 0..honest {
        let jumps = index >= honest.saturating_sub(jumping);
        cast.honest.push((index, Role { jumps, ..role(plan, index, honest) }));
    }
    Ok(cast)
}

fn role(plan: &Plan, place: usize, of: usize) -> Role {
    #[expect(clippy::cast_precision_loss, reason = "a fleet is far below 2^52")]
    let (place, of) = (place as f64, of as f64);
    let every = |interval: f64| Pace::Every {
        // Spread over the first interval, so that a fleet is not a pulse.
        first: seconds(interval * place / of),
        interval: seconds(interval),
    };
    let rate = plan.rate.filter(|rate| *rate > 0.0);
    let window = plan.window.unwrap_or(if plan.scenario == Scenario::Burst { 32 } else { 1 }).max(1);
    let pace = match (plan.scenario, rate) {
        (Scenario::Burst, _) => Pace::Bursts { size: u32::try_from(window).unwrap_or(u32::MAX) },
        (_, Some(rate)) => every(of / rate),
        (Scenario::Steady, None) => Pace::Free,
        (_, None) => every(BESIDE_AN_ATTACK.as_secs_f64()),
    };
    Role { pace, window, jumps: false }
}

/// Carries the attacks out while the honest ones send, and reports them by name.
pub(crate) async fn attack(plan: &Plan, context: &Arc<Context>, cast: &Cast) -> Vec<AttackReport> {
    let attacks = Arc::new(Attacks::default());
    let work = async {
        match plan.scenario {
            Scenario::Steady | Scenario::Burst => {}
            Scenario::Replay => replay::attack(context, cast, &attacks).await,
            Scenario::Forge => forge::attack(context, cast, &attacks).await,
            Scenario::StolenCertificate => stolen::attack(context, cast, &attacks).await,
            Scenario::WrongCa => wrong_ca::attack(context, cast, &attacks).await,
            Scenario::SkewedClock => skew::attack(context, cast, &attacks).await,
            Scenario::ReconnectStorm => {
                storm::attack(context, cast, &attacks, plan.duration, plan.connect_within).await;
            }
            Scenario::Flapping => flapping::attack(context, cast, &attacks, plan.duration).await,
            Scenario::SlowReader => slow_reader::attack(context, cast, &attacks).await,
            Scenario::Oversize => oversize::attack(context, cast, &attacks).await,
            Scenario::SlowHandshake => slow_handshake::attack(context, cast, &attacks).await,
        }
    };
    // An attack that was cut short has not been seen to fail: it is missing from the report, and that is judged.
    let _ = plan.cancel.run_until_cancelled(work).await;
    attacks.report()
}
