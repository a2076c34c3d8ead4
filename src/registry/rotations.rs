//! Rotations of a whole fleet: what the registry knows of a campaign, and the steps of whoever drives it.
//!
//! Each device of the fleet, as it was at the start, has a row with a state. Asking writes the new credential and the row in
//! one transaction; what confirms the credential, a message that the device has signed with it, makes the row proven (a
//! trigger of the schema). So a campaign needs nobody to watch it but for going on: a driver may be killed at any moment,
//! and the next one finds all that it needs.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use doorward_proto::ids::{DeviceId, FleetId, KeyVersion};
use time::OffsetDateTime;

use super::{Done, Mark, NewKey, RegistryError, Result};

/// Proven sessions after which a device that has not proven its new credential has failed, however short each of them was:
/// one that crashes at every `rekey` has none that lasts.
pub const MANY_SESSIONS: i64 = 5;
/// A session of which nothing was heard for so long, three notes of a gateway, may be over.
pub(super) const FRESH: Duration = Duration::from_secs(90);

/// What is rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credential {
    /// The HMAC key, handed out in the session.
    Key,
    /// The certificate, which the device is asked to renew.
    Certificate,
}

/// Where a rotation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotationState {
    /// It goes on for as long as somebody drives it.
    Running,
    /// By a person, or because too many devices have failed; it can be resumed.
    Stopped,
    /// Every device was asked.
    Done,
    /// It was given up: what could be taken back was.
    Undone,
}

/// Where a device stands in a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberState {
    /// Not asked yet.
    Waiting,
    /// The new credential waits for it, or is with it.
    Asked,
    /// It has shown the new credential, by a signed message.
    Proven,
    /// It was connected for long enough, and has not.
    Failed,
    /// It is no part of it: revoked or suspended, or rotated by hand.
    LeftOut,
    /// Its new credential was taken back before any session could bring it.
    Withdrawn,
}

/// A part of a fleet: so many devices, or so many of a hundred.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// A number of devices.
    Devices(u32),
    /// In hundredths of a percent.
    Percent(u32),
}

/// A rotation to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRotation {
    /// What is rotated.
    pub what: Credential,
    /// Of which fleet.
    pub fleet: FleetId,
    /// How many devices go before all others.
    pub canary: Share,
    /// How many of the others at a time.
    pub wave: Share,
    /// How many may fail.
    pub max_failures: u32,
    /// How long a connected device may take.
    pub patience: Duration,
    /// How long the old key holds once the new one is proven; for certificates the issuer says it.
    pub grace: Duration,
}

/// A rotation.
#[derive(Debug, Clone)]
pub struct Rotation {
    /// Its number.
    pub id: i64,
    /// As it was begun.
    pub plan: NewRotation,
    /// Where it stands.
    pub state: RotationState,
    /// Why it was stopped.
    pub reason: Option<String>,
    /// When it was begun.
    pub started: OffsetDateTime,
    /// By whom, as they said.
    pub started_by: String,
    /// When it was stopped, done or undone.
    pub ended: Option<OffsetDateTime>,
    /// When a driver last reported; none where nobody drives it.
    pub heartbeat: Option<OffsetDateTime>,
    /// How many devices stand where.
    pub counts: Counts,
}

/// How many devices of a rotation stand where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as the states are")]
pub struct Counts {
    pub waiting: u64,
    pub asked: u64,
    pub proven: u64,
    pub failed: u64,
    pub left_out: u64,
    pub withdrawn: u64,
}

/// A device of a rotation.
#[derive(Debug, Clone)]
pub struct Member {
    /// Which.
    pub device: DeviceId,
    /// The wave that it belongs to; 0 for the canaries.
    pub wave: u32,
    /// Where it stands.
    pub state: MemberState,
    /// Why.
    pub reason: Option<String>,
    /// The key version that it is to prove.
    pub version: Option<KeyVersion>,
    /// When it was asked.
    pub asked: Option<OffsetDateTime>,
    /// When it was proven, failed, left out or withdrawn.
    pub ended: Option<OffsetDateTime>,
}

/// Whether a driver has a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// It has.
    Taken,
    /// Another one has, and was last heard then.
    Held(OffsetDateTime),
    /// There is nothing to drive any more.
    Ended,
}

/// What a driver goes by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// How many devices stand where.
    pub counts: Counts,
    /// The first wave of which devices wait, and whether others of it were asked already.
    pub next: Option<(u32, bool)>,
    /// Devices that were asked, have been connected then or since, and have not proven it.
    pub undecided: u64,
    /// Canaries that were asked, and are still part of it; of the next wave, where no canary is.
    pub canaries: u64,
    /// Those of them that have proven it.
    pub canaries_proven: u64,
    /// How long ago the last of them was asked.
    pub canary_age: Duration,
}

/// A device to ask, with what its new key depends on.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Which.
    pub device: DeviceId,
    /// The newest key version that it has ever had.
    pub newest: u32,
    /// A key of it, sealed.
    pub sealed: Option<(KeyVersion, Vec<u8>)>,
    /// It has a pending one already.
    pub pending: bool,
}

/// What a driver's beat brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Beat {
    /// It goes on.
    Running(Progress),
    /// It was stopped or undone, by a person, for this reason.
    Ended(RotationState, Option<String>),
    /// Another driver has it.
    Lost,
}

/// Which devices of a rotation.
#[derive(Debug, Clone)]
pub struct MemberFilter {
    /// In these states.
    pub states: Vec<MemberState>,
    /// After this one, in the order of ids.
    pub after: Option<DeviceId>,
    /// How many at most.
    pub limit: u32,
}

/// The part of the registry that rotations of fleets are in. Repeating any of it is safe.
#[async_trait]
pub trait Rotations: Send + Sync {
    /// Begins a rotation of the fleet's devices as they are now, in waves: connected ones first.
    /// [`RegistryError::Exists`] where one of the same kind is open; [`RegistryError::Refused`] where no device
    /// is active.
    async fn start(&self, new: &NewRotation) -> Result<i64>;
    /// Rotations, the newest first.
    async fn list(&self, limit: u32) -> Result<Vec<Rotation>>;
    /// One of them.
    async fn find(&self, id: i64) -> Result<Option<Rotation>>;
    /// The one of this kind and fleet that runs or is stopped.
    async fn open(&self, what: Credential, fleet: &FleetId) -> Result<Option<Rotation>>;
    /// Devices of a rotation, in the order of ids.
    async fn members(&self, id: i64, filter: &MemberFilter) -> Result<Vec<Member>>;

    /// Takes a rotation over from a driver of which nothing was heard since then, whatever the clocks say.
    async fn take_over(&self, id: i64, driver: &str, heard: OffsetDateTime) -> Result<Lease>;
    /// Takes a rotation that nobody drives, or whose driver has been silent for `silent`.
    async fn take(&self, id: i64, driver: &str, silent: Duration) -> Result<Lease>;
    /// Gives it back.
    async fn release(&self, id: i64, driver: &str) -> Result<()>;
    /// Says that the driver lives, judges the devices that were asked, and says how it stands. `seen_every` is how often a
    /// gateway writes whom it has heard.
    async fn beat(&self, id: i64, driver: &str, seen_every: Duration) -> Result<Beat>;
    /// Devices of a wave that wait, in the order of ids.
    async fn candidates(&self, id: i64, wave: u32, limit: u32) -> Result<Vec<Candidate>>;
    /// Gives devices their pending keys and notes that they were asked. Who has a pending key keeps that one; who may not
    /// connect is left out; who has changed meanwhile goes on waiting. `false`, and nothing was done, where the driver has
    /// lost the rotation or it has ended.
    async fn ask_for_keys(&self, id: i64, driver: &str, keys: &[(DeviceId, Option<NewKey>)]) -> Result<bool>;
    /// Asks devices to renew their certificates by then; otherwise as with keys. Who has a renewed one that it has not shown
    /// yet is not asked for another.
    async fn ask_for_certificates(
        &self,
        id: i64,
        driver: &str,
        devices: &[DeviceId],
        by: OffsetDateTime,
    ) -> Result<bool>;
    /// Every device was asked: the rotation is done.
    async fn finish(&self, id: i64, driver: &str) -> Result<bool>;

    /// Stops a running rotation. [`RegistryError::Refused`] for one that is done or undone.
    async fn stop(&self, id: i64, reason: &str) -> Result<Done>;
    /// Lets a stopped one go on: devices that have failed have their patience once more, and those whose key was retired
    /// wait for another one.
    async fn resume(&self, id: i64, max_failures: Option<u32>) -> Result<Done>;
    /// Gives a rotation up: who waits is not asked any more.
    async fn undo(&self, id: i64) -> Result<Done>;
    /// Of an undone rotation, takes back what no session can have brought to its device. Those of which it did, none when
    /// there are no more.
    async fn withdraw(&self, id: i64, limit: u32) -> Result<(Vec<DeviceId>, Mark)>;
    /// Notes that a bundle is about to carry this pending key, which is not taken back from then on.
    /// [`RegistryError::Refused`] where it has been taken back already.
    async fn hand_out(&self, device: &DeviceId, version: KeyVersion) -> Result<()>;
    /// Devices whose credential was taken back just as a session of theirs began, which may have brought it after all.
    async fn doubtful(&self, id: i64, limit: u32) -> Result<Vec<DeviceId>>;
}

/// A bundle would carry a key that opens nothing.
pub(super) fn not_held(device: &DeviceId, version: KeyVersion) -> RegistryError {
    RegistryError::Refused(format!(
        "key version {version} of '{device}' has just been retired: repeat the command"
    ))
}

impl RotationState {
    /// Whether it is to become another one, or is that one already.
    pub(super) fn may_become(self, id: i64, next: Self) -> Result<bool> {
        match (self, next) {
            (now, next) if now == next => Ok(false),
            (Self::Running | Self::Stopped, _) | (Self::Done, Self::Undone) => Ok(true),
            (now, _) => Err(RegistryError::Refused(format!("rotation {id} is {} already", now.as_str()))),
        }
    }
}

impl Share {
    /// How many of `all`: of a part that is not nothing at least one, and never more than there are.
    #[must_use]
    pub fn of(self, all: u64) -> u64 {
        match self {
            Self::Devices(n) => all.min(n.into()),
            Self::Percent(hundredths) => all.saturating_mul(hundredths.into()).div_ceil(10_000).min(all),
        }
    }

    /// Whether it is none at all.
    #[must_use]
    pub fn is_none(self) -> bool {
        matches!(self, Self::Devices(0) | Self::Percent(0))
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Devices(n) => write!(f, "{n}"),
            Self::Percent(hundredths) => match (hundredths / 100, hundredths % 100) {
                (whole, 0) => write!(f, "{whole}%"),
                (whole, part) if part % 10 == 0 => write!(f, "{whole}.{}%", part / 10),
                (whole, part) => write!(f, "{whole}.{part:02}%"),
            },
        }
    }
}

/// Not a part of a fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a number of devices (20), or a part of the fleet up to 100% (5%, 0.5%)")]
pub struct NoShare;

impl FromStr for Share {
    type Err = NoShare;

    fn from_str(text: &str) -> Result<Self, NoShare> {
        let number = |digits: &str, most: usize| {
            let plain = (1..=most).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| digits.parse::<u32>().ok()).flatten().ok_or(NoShare)
        };
        let Some(percent) = text.strip_suffix('%') else {
            return Ok(Self::Devices(number(text, 9)?));
        };
        let (whole, part) = percent.split_once('.').unwrap_or((percent, "0"));
        let scale = if part.len() == 1 { 10 } else { 1 };
        let hundredths = number(whole, 3)? * 100 + number(part, 2)? * scale;
        if hundredths > 10_000 { Err(NoShare) } else { Ok(Self::Percent(hundredths)) }
    }
}

impl Counts {
    /// Of all that are part of it.
    #[must_use]
    pub fn all(&self) -> u64 {
        self.waiting + self.asked + self.proven + self.failed + self.left_out + self.withdrawn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_ended_does_not_go_on() {
        use RotationState::{Done, Running, Stopped, Undone};
        for (now, next, outcome) in [
            (Running, Stopped, Some(true)),
            (Running, Undone, Some(true)),
            (Running, Running, Some(false)),
            (Stopped, Running, Some(true)),
            (Stopped, Stopped, Some(false)),
            (Stopped, Undone, Some(true)),
            (Done, Undone, Some(true)),
            (Done, Running, None),
            (Done, Stopped, None),
            (Undone, Undone, Some(false)),
            (Undone, Running, None),
            (Undone, Stopped, None),
        ] {
            assert_eq!(now.may_become(7, next).ok(), outcome, "{now:?} {next:?}");
        }
    }

    #[test]
    fn shares_are_read_and_written_alike() {
        for (text, all, part) in [
            ("0", 10, 0),
            ("3", 10, 3),
            ("30", 10, 10),
            ("0%", 10, 0),
            ("5%", 10, 1),
            ("5%", 10_000, 500),
            ("0.5%", 10_000, 50),
            ("0.05%", 10_000, 5),
            ("12.5%", 1000, 125),
            ("100%", 7, 7),
        ] {
            let share: Share = text.parse().unwrap();
            assert_eq!((share.to_string().as_str(), share.of(all)), (text, part));
            assert_eq!(share.is_none(), part == 0);
        }
        for text in
            ["", "%", "-1", "+5%", "101%", "100.01%", "1.234%", ".5%", "5 %", "five", "9999999999", "5.%"]
        {
            assert_eq!(text.parse::<Share>(), Err(NoShare), "{text}");
        }
    }
}
