//! `device rotate-key --fleet`: a new credential for a whole fleet, in waves, for as long as devices prove that they have it.
//!
//! All that is known of a campaign stands in the registry. This drives it: asks a wave, waits until those of it that are
//! connected have proven the new credential, asks the next. Killed at any moment, it is gone on with by whoever comes next.

mod step;

use std::time::Duration;

use clap::Args;
use doorward_proto::ids::{DeviceId, FleetId, KeyVersion};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};

use super::failure::{Failure, Outcome};
use super::{Shared, device, output, rotate, rotation};
use crate::gateway::SEEN_EVERY;
use crate::master::MasterKeys;
use crate::registry::{
    Beat, Candidate, Credential, Lease, NewKey, NewRotation, Progress, Registry, RegistryError, Rotation,
    RotationState, Share,
};
use crate::{clock, entropy};
use step::{Step, next_step};

/// Devices of one transaction, and the pause after it: what devices publish waits behind one such transaction, and their
/// answers are spread.
const BATCH: u32 = 20;
const PACE: Duration = Duration::from_millis(250);
/// Between two looks at how it stands; grows to the second while nothing happens.
const LOOK_EVERY: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];
/// The shortest pause where there are many to look at.
const LOOK_AT_MANY: Duration = Duration::from_millis(250);
const MANY: u64 = 1000;
/// A driver that has said nothing for so long is gone.
pub(super) const SILENT: Duration = Duration::from_secs(10);
/// Between two looks at whether another driver lives.
const WATCH_EVERY: Duration = Duration::from_millis(500);
/// How long the registry may be away before this gives up; the campaign stands.
const AWAY: Duration = Duration::from_secs(60);
/// Between two tries of a registry that is away.
const RETRY: Duration = Duration::from_secs(1);
/// Batches in a row of which nobody could be asked.
const MOST_IDLE: u32 = 20;
const LONGEST_PATIENCE: Duration = Duration::from_secs(30 * 86_400);
/// Less than that is less than a new session takes on a bad line.
const SHORTEST_PATIENCE: Duration = Duration::from_secs(5);

#[derive(Args, Debug)]
pub(super) struct Campaign {
    /// Every device of this fleet, in waves: first the canaries, then the others for as long as devices prove that they
    /// have it. Repeating the command goes on where it was
    #[arg(long, value_name = "F", conflicts_with_all = ["id", "out", "wait", "no_wait"])]
    pub(super) fleet: Option<FleetId>,
    /// How many devices go first, of which one at least must prove it before any other is asked; 0: none
    #[arg(long, value_name = "N|N%", default_value = "5%", requires = "fleet", conflicts_with = "id")]
    canary: Share,
    /// How many of the others are asked at a time
    #[arg(long, value_name = "N|N%", default_value = "25%", requires = "fleet", conflicts_with = "id")]
    wave: Share,
    /// How many devices may fail: be connected for as long as --patience and not prove it
    #[arg(long, value_name = "N", default_value_t = 0, requires = "fleet", conflicts_with = "id")]
    max_failures: u32,
    /// How long a connected device may take
    #[arg(long, value_name = "DUR", default_value = "5m", value_parser = humantime::parse_duration, requires = "fleet", conflicts_with = "id")]
    patience: Duration,
}

/// What devices are asked with.
pub(super) enum Asking {
    /// New keys, which this seals.
    Keys(MasterKeys),
    /// To renew, which an issuer answers.
    Renewal,
}

impl Asking {
    pub(super) fn load(shared: &Shared, what: Credential) -> Result<Self, Failure> {
        match what {
            Credential::Key => Ok(Self::Keys(shared.master_keys()?)),
            Credential::Certificate => Ok(Self::Renewal),
        }
    }
}

impl Campaign {
    /// Begins a campaign, or goes on with the one that this command began.
    pub(super) async fn run(
        &self,
        shared: &Shared,
        fleet: &FleetId,
        what: Credential,
        grace: Duration,
    ) -> Outcome {
        if grace.is_zero() && what == Credential::Key {
            return Err(Failure::usage(
                "a fleet is rotated with a grace: without one every device would be locked out that is not connected",
            ));
        }
        if self.wave.is_none() {
            return Err(Failure::usage("a wave of no devices never ends: --wave is at least 1"));
        }
        if !(SHORTEST_PATIENCE..=LONGEST_PATIENCE).contains(&self.patience) {
            return Err(Failure::usage("a patience is at least 5s and at most 30d"));
        }
        let (canary, wave, max_failures) = (self.canary, self.wave, self.max_failures);
        let fleet = fleet.clone();
        // As the registry keeps them: the same command again is the same campaign.
        let patience = Duration::from_millis(u64::try_from(self.patience.as_millis()).unwrap_or(u64::MAX));
        let grace = Duration::from_secs(grace.as_secs());
        let plan = NewRotation { what, fleet, canary, wave, max_failures, patience, grace };
        let registry = shared.registry().await?;
        device::check_fleet(&*registry, &plan.fleet).await?;
        let asking = Asking::load(shared, what)?;
        let rotation = match registry.rotations().open(what, &plan.fleet).await? {
            Some(open) => may_go_on(open, &plan)?,
            None => begin(&*registry, &plan).await?,
        };
        drive(shared, &*registry, rotation, &asking, None).await
    }
}

async fn begin(registry: &dyn Registry, plan: &NewRotation) -> Result<Rotation, Failure> {
    let id = registry.rotations().start(plan).await.map_err(|error| match error {
        RegistryError::Exists { .. } => {
            Failure::refused(format!("somebody else has just begun a rotation of fleet '{}'", plan.fleet))
                .next("'doorward rotation list' shows it")
        }
        other => other.into(),
    })?;
    rotation::find(registry, id).await
}

/// The same command again goes on; another one, or one about what was stopped, is for a person to decide.
fn may_go_on(open: Rotation, plan: &NewRotation) -> Result<Rotation, Failure> {
    let (id, fleet) = (open.id, &plan.fleet);
    if open.state == RotationState::Stopped {
        let why = open.reason.as_deref().map(output::plain).unwrap_or_default();
        return Err(Failure::refused(format!("rotation {id} of fleet '{fleet}' was stopped: {why}")).next(format!(
            "'doorward rotation show {id}' shows it; 'doorward rotation resume {id}' goes on, 'doorward rotation undo {id}' gives it up"
        )));
    }
    // How many may fail is what 'resume' has said last.
    let (max_failures, asked_for) = (open.plan.max_failures, plan.max_failures);
    if open.plan != (NewRotation { max_failures, ..plan.clone() }) {
        return Err(Failure::refused(format!("rotation {id} of fleet '{fleet}' runs, with other settings"))
            .next(format!(
                "'doorward rotation show {id}' shows it, 'doorward rotation resume {id}' goes on with it"
            )));
    }
    if max_failures != asked_for {
        output::say(format!(
            "rotation {id} goes on with at most {max_failures} failures, not {asked_for}: 'doorward rotation resume {id} \
             --max-failures N' changes that"
        ));
    }
    Ok(open)
}

/// Drives a rotation to its end.
pub(super) async fn drive(
    shared: &Shared,
    registry: &dyn Registry,
    rotation: Rotation,
    asking: &Asking,
    max_failures: Option<u32>,
) -> Outcome {
    let bar = ProgressBar::new(rotation.counts.all() - rotation.counts.left_out);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} proven  {msg}") {
        bar.set_style(style);
    }
    // One run of one process.
    let name = format!("{:032x}", u128::from_be_bytes(entropy::random()?));
    let mut driver = Driver { registry, rotation, asking, name, bar };
    let id = driver.rotation.id;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let went = tokio::select! {
        went = driver.go(max_failures) => went,
        _ = interrupt.recv() => Err(interrupted(id)),
        _ = terminate.recv() => Err(interrupted(id)),
    };
    driver.bar.finish_and_clear();
    // Whoever comes next need not wait until this one counts as gone.
    let released = registry.rotations().release(driver.rotation.id, &driver.name).await;
    let end = match went {
        Ok(()) => None,
        Err(Ending::Stopped(failure)) => Some(failure),
        Err(Ending::Failed(failure)) => return Err(failure),
    };
    released?;
    rotation::report(shared, registry, driver.rotation.id).await?;
    end.map_or(Ok(()), Err)
}

/// Why a driver does not go on.
enum Ending {
    /// The rotation has been stopped or undone.
    Stopped(Failure),
    /// It can not; the rotation stands.
    Failed(Failure),
}

impl<E: Into<Failure>> From<E> for Ending {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Batches in a row that began with the same device.
#[derive(Default)]
struct Idle {
    head: Option<DeviceId>,
    batches: u32,
}

impl Idle {
    fn is_too_long(&mut self, head: &DeviceId) -> bool {
        self.batches = if self.head.as_ref() == Some(head) { self.batches + 1 } else { 0 };
        self.head = Some(head.clone());
        self.batches > MOST_IDLE
    }
}

struct Driver<'a> {
    registry: &'a dyn Registry,
    rotation: Rotation,
    asking: &'a Asking,
    name: String,
    bar: ProgressBar,
}

impl Driver<'_> {
    async fn go(&mut self, max_failures: Option<u32>) -> Result<(), Ending> {
        self.take().await?;
        if max_failures.is_some() {
            // With the lease: nothing changes underneath another driver.
            let id = self.rotation.id;
            self.registry.rotations().resume(id, max_failures).await?;
            self.rotation = rotation::find(self.registry, id).await?;
        }
        let Rotation { id, plan, counts, .. } = &self.rotation;
        output::say(format!(
            "rotation {id}: a new {} for the {} devices of fleet '{}'",
            plan.what.as_str(),
            counts.all() - counts.left_out,
            plan.fleet
        ));
        let [shortest, longest] = LOOK_EVERY;
        let shortest = if counts.all() > MANY { LOOK_AT_MANY } else { shortest };
        let mut pause = shortest;
        let mut before = Progress::default();
        let mut idle = Idle::default();
        loop {
            let progress = self.beat().await?;
            self.show(&progress);
            if (progress.counts, progress.undecided) != (before.counts, before.undecided) {
                pause = shortest;
            }
            match next_step(plan, &progress) {
                // One batch: who has failed meanwhile, and that this one lives, is looked at between any two.
                Step::Ask(wave) => {
                    self.ask(wave, &mut idle).await?;
                    tokio::time::sleep(PACE).await;
                }
                Step::Stop(why) => {
                    patiently(async || self.registry.rotations().stop(*id, &why).await).await?;
                    return Err(Ending::Stopped(self.stopped(&why)));
                }
                Step::Finish if self.finish().await? => return Ok(()),
                // Somebody has just stopped it: the next beat says so.
                Step::Finish | Step::Wait => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(longest);
                }
            }
            before = progress;
        }
    }

    /// `true` too where the database has done it, and could not say so at first.
    async fn finish(&self) -> Result<bool, Failure> {
        let (id, rotations) = (self.rotation.id, self.registry.rotations());
        if patiently(async || rotations.finish(id, &self.name).await).await? {
            return Ok(true);
        }
        Ok(rotation::find(self.registry, id).await?.state == RotationState::Done)
    }

    /// Another driver that lives is left alone; one that was killed is waited for until that is sure. Its silence is measured
    /// here as well: a clock that was set back says for as long that it has just been heard.
    async fn take(&self) -> Result<(), Failure> {
        let (id, rotations) = (self.rotation.id, self.registry.rotations());
        let mut heard = None;
        let began = clock::now().monotonic;
        loop {
            let lease = match heard {
                Some(at) if clock::now().monotonic.saturating_sub(began) >= SILENT => {
                    rotations.take_over(id, &self.name, at).await?
                }
                _ => rotations.take(id, &self.name, SILENT).await?,
            };
            match lease {
                Lease::Taken => return Ok(()),
                Lease::Ended => {
                    return Err(Failure::refused(format!("rotation {id} does not run any more"))
                        .next(format!("'doorward rotation show {id}' shows it")));
                }
                Lease::Held(at) if heard.is_some_and(|heard| heard != at) => {
                    return Err(Failure::refused(format!("rotation {id} is being driven by another command"))
                        .next(format!("'doorward rotation show {id}' shows how it stands, 'doorward rotation stop {id} --reason R' ends it")));
                }
                Lease::Held(at) => {
                    if heard.is_none() {
                        output::say(format!(
                            "another command drives rotation {id}, or was killed: this waits for up to {} to be sure",
                            humantime::format_duration(SILENT)
                        ));
                    }
                    heard = Some(at);
                }
            }
            tokio::time::sleep(WATCH_EVERY).await;
        }
    }

    /// How it stands, from a registry that may be away for a while.
    async fn beat(&self) -> Result<Progress, Ending> {
        let (id, rotations) = (self.rotation.id, self.registry.rotations());
        match patiently(async || rotations.beat(id, &self.name, SEEN_EVERY).await).await {
            Ok(Beat::Running(progress)) => Ok(progress),
            Ok(Beat::Lost) => {
                Err(Ending::Failed(Failure::refused(format!("another command has taken rotation {id} over"))))
            }
            Ok(Beat::Ended(state, why)) => Err(Ending::Stopped(self.ended(state, why.as_deref()))),
            Err(error) => Err(Ending::Failed(
                Failure::from(error)
                    .and_next(&format!("what was done stands; 'doorward rotation resume {id}' goes on")),
            )),
        }
    }

    fn show(&self, progress: &Progress) {
        let counts = &progress.counts;
        self.bar.set_length(counts.all() - counts.left_out);
        self.bar.set_position(counts.proven);
        self.bar.set_message(format!(
            "{} asked, {} of them undecided, {} failed",
            counts.asked, progress.undecided, counts.failed
        ));
    }

    /// Asks some of those of a wave that wait.
    async fn ask(&self, wave: u32, idle: &mut Idle) -> Result<(), Failure> {
        let (id, rotations) = (self.rotation.id, self.registry.rotations());
        let candidates = match rotations.candidates(id, wave, BATCH).await {
            // The next beat waits for it to come back; who was asked is not asked again.
            Err(RegistryError::Unavailable(_) | RegistryError::Unknown(_)) => return Ok(()),
            other => other?,
        };
        let Some(head) = candidates.first().map(|candidate| &candidate.device) else { return Ok(()) };
        if idle.is_too_long(head) {
            return Err(Failure::new(format!(
                "'{head}' cannot be asked: something else keeps changing its keys"
            ))
            .next(format!(
                "look at 'doorward audit list --device {head}', then 'doorward rotation resume {id}'"
            )));
        }
        let asked = match self.asking {
            Asking::Keys(master) => {
                let keys = new_keys(master, &candidates, self.rotation.plan.grace)?;
                rotations.ask_for_keys(id, &self.name, &keys).await
            }
            Asking::Renewal => {
                let devices: Vec<DeviceId> = candidates.into_iter().map(|c| c.device).collect();
                let by = clock::utc() + self.rotation.plan.patience;
                rotations.ask_for_certificates(id, &self.name, &devices, by).await
            }
        };
        match asked {
            // `false`: it runs no more, or is another driver's; the next beat says which.
            Ok(_) | Err(RegistryError::Unavailable(_) | RegistryError::Unknown(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn stopped(&self, why: &str) -> Failure {
        let Rotation { id, plan, .. } = &self.rotation;
        Failure::new(format!("rotation {id} of fleet '{}' is stopped: {why}", plan.fleet)).next(format!(
            "nothing was taken from any device; 'doorward rotation show {id}' names those that failed. Then 'doorward rotation \
             resume {id}', or 'doorward rotation undo {id}'"
        ))
    }

    /// A person has ended it meanwhile.
    fn ended(&self, state: RotationState, why: Option<&str>) -> Failure {
        let id = self.rotation.id;
        match state {
            RotationState::Stopped => self.stopped(&why.map(output::plain).unwrap_or_default()),
            other => Failure::new(format!("rotation {id} is {} meanwhile", other.as_str()))
                .next(format!("'doorward rotation show {id}' shows it")),
        }
    }
}

fn interrupted(id: i64) -> Ending {
    Ending::Failed(
        Failure::new(format!("interrupted; rotation {id} stands as it is, and nobody is asked meanwhile"))
            .next(format!("repeat the command, or 'doorward rotation resume {id}', to go on")),
    )
}

/// Repeats what is safe to repeat while the registry is away, for as long as a driver waits for it.
async fn patiently<T>(act: impl AsyncFn() -> Result<T, RegistryError>) -> Result<T, RegistryError> {
    let began = clock::now().monotonic;
    loop {
        match act().await {
            Err(RegistryError::Unavailable(_) | RegistryError::Unknown(_))
                if clock::now().monotonic.saturating_sub(began) < AWAY =>
            {
                tokio::time::sleep(RETRY).await;
            }
            other => return other,
        }
    }
}

/// A new key for each of these devices that has none pending.
fn new_keys(
    master: &MasterKeys,
    candidates: &[Candidate],
    grace: Duration,
) -> Result<Vec<(DeviceId, Option<NewKey>)>, Failure> {
    let new_key = |candidate: &Candidate| {
        let device = &candidate.device;
        if let Some((version, sealed)) = &candidate.sealed {
            rotate::check_sealed(master, device, *version, sealed)?;
        }
        if candidate.pending {
            return Ok((device.clone(), None));
        }
        let version = KeyVersion::from_number(candidate.newest + 1)
            .ok_or_else(|| Failure::new(format!("'{device}' has had as many key versions as there are")))?;
        Ok((device.clone(), Some(rotate::seal_new(master, device, version, grace)?)))
    };
    candidates.iter().map(new_key).collect()
}
