//! Follows the registry: what changes there changes the sessions that it concerns, and the registry is told once it has.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use doorward_pki::Fingerprint;
use doorward_proto::close::Close;
use doorward_proto::session::Grant;
use doorward_proto::time::Moment;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::Gateway;
use super::confirm::{Effect, Effects};
use super::mailbox::Ending;
use super::sessions::Handle;
use crate::clock;
use crate::identity::{self, Asked};
use crate::registry::cache::{Entry, Forgotten, Known};
use crate::registry::{
    Applied, Change, Enrolment, News, Position, QUERY_DEADLINE, Record, RegistryError, SchemaError,
};

/// The longest wait for a wake-up before the feed is read all the same: what a lost wake-up costs.
const POLL: Duration = Duration::from_millis(500);
/// Between tries while the registry does not answer.
const RETRY: Duration = Duration::from_millis(500);
/// How often a gateway that has nothing to confirm says that it lives.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// After a gap it takes a moment until the registry knows again which sessions are their devices' newest.
const GAP_HEALS_WITHIN: Duration = Duration::from_secs(60);
/// How long a transaction may be open in the database before that is worth a line.
const OPEN_FOR: Duration = Duration::from_secs(60);
/// Sessions whose records are looked up in one query.
const JUDGED_AT_ONCE: usize = 256;
/// What may pass between the last report and the moment at which the gateway knows that it is cut off.
const MARGIN: Duration = Duration::from_secs(REPORT_EVERY.as_secs() + 3 * QUERY_DEADLINE.as_secs());

/// How long a gateway may serve after its last report, whatever happens.
pub(super) fn may_serve(max_staleness: Duration) -> Duration {
    max_staleness + MARGIN
}

/// Sessions to be judged again, by name, so that each is judged once; and since when, on the monotonic clock.
type Marked = HashMap<Arc<str>, (Arc<Handle>, Duration)>;

/// Who follows the registry. Made before the door opens, so that what the gateway knows is never younger than where it
/// follows from.
pub(super) struct Follower {
    gateway: Arc<Gateway>,
    enrolment: Enrolment,
    /// This run has its place in the registry, and the sessions of an earlier one have been closed there.
    enrolled: bool,
    /// The registry may be an older one that does not know this run: it is to be told again.
    unknown: bool,
    /// When the feed last had a gap, on the monotonic clock.
    gap: Option<Duration>,
    /// `None` until the registry has been asked for the first time.
    position: Option<Position>,
    marked: Marked,
    /// What has taken effect has not been reported.
    due: bool,
    /// When it was last to be, on the monotonic clock.
    reported: Option<Duration>,
    /// Sessions whose end was decided, and not confirmed.
    ended: Vec<Arc<Handle>>,
    effects: Arc<Effects>,
    /// The registry does not answer, and that has been said.
    away: bool,
    /// What is known is too old, and that has been said.
    stale: bool,
    /// The oldest open transaction, since when it is that, and whether that has been said.
    open: Option<(i64, Duration, bool)>,
}

impl Follower {
    /// What its looks bring about, for whoever confirms it.
    pub(super) fn effects(&self) -> Arc<Effects> {
        Arc::clone(&self.effects)
    }

    /// Takes the gateway's place in the registry, and reads what has changed since an earlier run of it. Without the
    /// registry it begins with what that run has kept, where that may still serve.
    pub(super) async fn start(gateway: Arc<Gateway>, enrolment: Enrolment) -> Result<Self, RegistryError> {
        let known = gateway.cache.known().await;
        if known.is_none() {
            // Whatever is in it: nobody could say up to where it is right.
            gateway.cache.forget(&Forgotten::everything());
        }
        let mut follower = Self {
            gateway,
            enrolment,
            enrolled: false,
            unknown: false,
            gap: None,
            position: known.as_ref().map(|known| known.position.clone()),
            marked: Marked::new(),
            due: true,
            reported: None,
            ended: Vec::new(),
            effects: Arc::default(),
            away: false,
            stale: false,
            open: None,
        };
        loop {
            match follower.look().await {
                Ok(Looked::More) => {}
                Ok(Looked::End) => return Ok(follower),
                Err(error) => return follower.without_registry(known, error),
            }
        }
    }

    fn without_registry(mut self, known: Option<Known>, error: RegistryError) -> Result<Self, RegistryError> {
        let (Some(known), RegistryError::Unavailable(why) | RegistryError::Unknown(why)) = (known, &error)
        else {
            return Err(error);
        };
        let refused = |because| Err(RegistryError::Unavailable(format!("{why}; {because}")));
        if known.signed_off {
            return refused(
                "and this gateway has signed off since it last saw it: devices may have been revoked unheard",
            );
        }
        // A clock that runs behind what it has said before says nothing about how long ago that was.
        let now = clock::now().wall.as_duration();
        let Some(age) = now.checked_sub(known.known_at.as_duration()) else {
            return refused("and the clock is behind the last time this gateway saw it: set the clock");
        };
        // Receipts count it for as long as it has said then, whatever the configuration says now.
        let most = known.max_staleness.min(self.gateway.max_staleness());
        if age >= most {
            return refused("and what this gateway knows of it is older than registry.max_staleness");
        }
        warn!(%error, seconds = age.as_secs(), "the registry does not answer; devices are let in by what was known of it");
        self.gateway.sight.remember(age, most);
        self.away = true;
        Ok(self)
    }

    /// Follows until it is stopped, or until it may not: another gateway has taken the name, or the schema is another.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Result<(), RegistryError> {
        let gateway = Arc::clone(&self.gateway);
        loop {
            let looked = tokio::select! {
                looked = self.look() => looked,
                () = stop.cancelled() => return Ok(()),
            };
            let failed = match looked {
                Ok(Looked::More) => continue,
                Ok(Looked::End) => false,
                Err(error) if is_final(&error) => return Err(error),
                Err(error) => {
                    self.cut_off(&error).await;
                    true
                }
            };
            let wait = async {
                if failed || gateway.registry.changed(POLL).await.is_err() {
                    tokio::time::sleep(RETRY).await;
                }
            };
            tokio::select! {
                () = wait => {}
                () = gateway.look_at_feed.notified() => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    }
}

enum Looked {
    /// More is waiting.
    More,
    /// All that there is has taken effect.
    End,
}

/// Whether trying again is in vain, and serving on would be wrong.
fn is_final(error: &RegistryError) -> bool {
    // A schema that is not there at all may be one that is being restored.
    let other = |schema: &SchemaError| !matches!(schema, SchemaError::Missing);
    matches!(error, RegistryError::Refused(_))
        || matches!(error, RegistryError::Schema(schema) if other(schema))
}

impl Follower {
    /// Reads what is new and acts on it; whoever confirms is told once all of it has taken effect.
    async fn look(&mut self) -> Result<Looked, RegistryError> {
        let began = clock::now();
        let gateway = Arc::clone(&self.gateway);
        // The position first: what changes from here on is followed, what was before is read by look-ups.
        let mut position = match &self.position {
            Some(position) => position.clone(),
            None => gateway.registry.position().await?,
        };
        let enrols = !self.enrolled;
        if enrols {
            enrol(&gateway, &self.enrolment).await?;
            self.enrolled = true;
        }
        let News { changes, ages, gap, more, applied, open } =
            gateway.registry.read_changes(&mut position).await?;
        self.position = Some(position.clone());
        self.note_open(open, began.monotonic);
        self.due |= gap || !changes.is_empty();
        let forgotten = if gap { Forgotten::everything() } else { whose(&changes) };
        // Before and after the admissions are marked: one that has an older record in hand puts it into the copy before it is
        // marked, or not at all; and one that begins after it was marked does not find what is forgotten.
        gateway.cache.forget(&forgotten);
        if gap || !forgotten.devices.is_empty() {
            gateway.lookups.devices_changed();
        }
        if gap {
            warn!(
                "the registry's feed of changes has a gap (pruned, or a restored backup): every session is judged again"
            );
            self.mark(gateway.sessions.all_changed(), began.monotonic);
            // What is lost may be that these sessions are their devices' newest, and that this gateway serves.
            let name = &gateway.name;
            gateway.sessions.each_proven(|handle| gateway.sink.claim(handle.claim(name)));
            (self.unknown, self.gap) = (!enrols, Some(began.monotonic));
        }
        if gateway.cache.is_empty_again() {
            self.mark(gateway.sessions.all(), began.monotonic);
        }
        for (change, age) in changes.into_iter().zip(ages) {
            gateway.counters.change_read(age);
            self.act(change, began.monotonic.saturating_sub(age), began);
        }
        gateway.cache.forget(&forgotten);
        self.judge_suspects(began).await?;
        if more {
            return Ok(Looked::More);
        }
        if self.effects.has_lost_place() {
            // After a gap it is an older registry that does not know this run. Without one somebody has said so.
            if self.gap.is_none_or(|gap| began.monotonic.saturating_sub(gap) >= GAP_HEALS_WITHIN) {
                let name = &gateway.name;
                return Err(RegistryError::Refused(format!(
                    "this gateway was removed from the registry, or another one has taken the name '{name}'; give each its own \
                     gateway.name"
                )));
            }
            self.unknown = true;
        }
        // Who has not been heard for too long is not counted any more, and takes its place before anybody is let in.
        self.unknown |= !enrols && gateway.sight.is_unheard();
        if self.unknown {
            gateway.registry.enrol(&self.enrolment).await?;
        }
        gateway.sight.looked(began);
        if enrols || std::mem::take(&mut self.unknown) {
            // As good as a report: receipts wait for this gateway from then on.
            gateway.sight.reported(began);
            self.due = true;
        }
        self.conclude(position, applied, began);
        Ok(Looked::End)
    }

    /// A transaction that stays open for long has been forgotten by somebody.
    fn note_open(&mut self, open: Option<i64>, now: Duration) {
        match (&mut self.open, open) {
            (Some((known, since, said)), Some(open)) if *known == open => {
                if !*said && now.saturating_sub(*since) >= OPEN_FOR {
                    *said = true;
                    warn!(
                        transaction = open,
                        "a transaction has been open in the registry's database for over a minute; no revocation waits for it, \
                         but the database cannot clean up: pg_stat_activity and pg_prepared_xacts name it"
                    );
                }
            }
            (known, open) => *known = open.map(|open| (open, now, false)),
        }
        self.gateway.counters.oldest_transaction(self.open.map(|(_, since, _)| since));
    }

    /// A change takes effect, or marks whom it concerns.
    fn act(&mut self, change: Change, since: Duration, began: Moment) {
        let gateway = Arc::clone(&self.gateway);
        match change {
            Change::Device(device) => {
                gateway.renewals.changed(&device);
                self.mark(gateway.sessions.device_changed(&device), since);
            }
            Change::Fleet(fleet) => self.mark(gateway.sessions.fleet_changed(&fleet), since),
            Change::Takeover { device, session, peer } => {
                // Unlike the others it says nothing new to an admission.
                if let Some(handle) = gateway.sessions.find(&device, &session) {
                    if gateway.sessions.taken_elsewhere(&handle, began.monotonic) {
                        let by = peer.as_deref().unwrap_or("another gateway");
                        gateway.possible_clone(&handle.id, &handle, by);
                    }
                    self.end(handle, Close::Superseded, since);
                }
            }
            Change::Kick(device) => {
                for handle in gateway.sessions.device_changed(&device) {
                    self.end(handle, Close::Kicked, since);
                }
            }
        }
    }

    /// Judges all that are marked, and those whose messages the store has refused.
    async fn judge_suspects(&mut self, began: Moment) -> Result<(), RegistryError> {
        let suspects = self.gateway.sessions.suspects();
        self.mark(suspects.clone(), began.monotonic);
        if let Err(error) = self.judge().await {
            // Not forgotten: the next look begins with them.
            suspects.iter().for_each(|suspect| suspect.suspect.store(true, Ordering::SeqCst));
            return Err(error);
        }
        let healing = self.gap.is_some_and(|gap| began.monotonic.saturating_sub(gap) < GAP_HEALS_WITHIN);
        for handle in suspects {
            handle.mailbox.put_ending(if healing {
                // The store was asked before it was told again; what it refused is for the device to send again, soon.
                Ending { close: Close::GoingAway, retry_after: Some(fastrand::u64(1..=10)), gently: false }
            } else {
                // The registry lets the device in, but another session is its newest: on another gateway.
                Ending::now(Close::Superseded)
            });
        }
        Ok(())
    }

    /// All that there is has taken effect.
    fn conclude(&mut self, position: Position, applied: Applied, began: Moment) {
        self.stale = false;
        if std::mem::take(&mut self.away) {
            info!("the registry answers again; its changes have been read");
        }
        let since = self.reported.map(|last| began.monotonic.saturating_sub(last));
        self.due |= since.is_none_or(|since| since >= self.report_every());
        if self.due {
            self.reported = Some(began.monotonic);
        }
        if self.due || self.effects.are_owed() || self.gateway.cache.has_news() {
            let ended = std::mem::take(&mut self.ended);
            let due = std::mem::take(&mut self.due);
            self.effects.put(Effect { position, applied, began, ended, due });
        }
    }

    /// What is known ages from a report on: where that may be short, they come more often.
    fn report_every(&self) -> Duration {
        match self.gateway.max_staleness() {
            Duration::ZERO => REPORT_EVERY,
            most => (most / 3).clamp(POLL, REPORT_EVERY),
        }
    }

    fn mark(&mut self, handles: Vec<Arc<Handle>>, since: Duration) {
        for handle in handles {
            // The oldest change is the one that counts.
            self.marked.entry(Arc::clone(&handle.id)).or_insert((handle, since));
        }
    }

    fn end(&mut self, handle: Arc<Handle>, close: Close, since: Duration) {
        let _ = handle.cut_since.set(since);
        handle.mailbox.put_ending(Ending::now(close));
        self.ended.push(handle);
    }

    /// Judges every marked session, each for itself: what one row holds keeps no other from being judged. Those that
    /// cannot be looked up stay marked, and are looked up again.
    async fn judge(&mut self) -> Result<(), RegistryError> {
        let gateway = Arc::clone(&self.gateway);
        while !self.marked.is_empty() {
            let some: Vec<_> = self.marked.values().take(JUDGED_AT_ONCE).cloned().collect();
            let certificates: HashSet<Fingerprint> =
                some.iter().map(|(handle, _)| handle.certificate).collect();
            let certificates: Vec<Fingerprint> = certificates.into_iter().collect();
            let records = gateway.registry.look_up_all(&certificates).await?;
            for (handle, since) in some {
                self.marked.remove(&handle.id);
                let record = records.get(&handle.certificate).cloned().transpose();
                match judge_again(&gateway, &handle, record) {
                    Ok(grant) => handle.mailbox.put_grant(grant),
                    Err(close) => self.end(handle, close, since),
                }
            }
        }
        Ok(())
    }

    /// What was known grows old: when it is too old, nobody is served by it any more.
    async fn cut_off(&mut self, error: &RegistryError) {
        let gateway = Arc::clone(&self.gateway);
        gateway.sight.lost();
        let new = !std::mem::replace(&mut self.away, true);
        gateway.lookups.give_up(error);
        if new && let Err(error) = gateway.cache.flush().await {
            warn!(%error, "what was heard last is not in the copy of records");
        }
        let stale = gateway.sight.is_stale();
        if new && !stale {
            warn!(%error, "the registry does not answer; sessions go on, and devices are let in by what was known of it");
        }
        if stale {
            if !std::mem::replace(&mut self.stale, true) {
                warn!(
                    %error, seconds = gateway.sight.age().as_secs(),
                    "the registry does not answer, and what is known of it is older than registry.max_staleness: every session ends"
                );
            }
            gateway.sessions.end_all(|| Ending {
                close: Close::GoingAway,
                // Spread: they all come back to a registry that has just been away.
                retry_after: Some(fastrand::u64(5..=60)),
                gently: false,
            });
        }
    }
}

/// Takes the gateway's place in the registry for this run: before the first device is let in, so that no act overlooks it.
async fn enrol(gateway: &Gateway, enrolment: &Enrolment) -> Result<(), RegistryError> {
    gateway.registry.check_schema().await?;
    gateway.registry.enrol(enrolment).await?;
    let left = gateway.registry.forget_sessions(&enrolment.name).await?;
    if left > 0 {
        info!(sessions = left, "sessions of an earlier run have been closed in the registry");
    }
    Ok(())
}

/// Whose records the changes concern.
fn whose(changes: &[Change]) -> Forgotten {
    let mut forgotten = Forgotten::default();
    for change in changes {
        match change {
            Change::Device(device) => drop(forgotten.devices.insert(device.clone())),
            Change::Fleet(fleet) => drop(forgotten.fleets.insert(fleet.clone())),
            Change::Kick(_) | Change::Takeover { .. } => {}
        }
    }
    forgotten
}

/// What the session may do from now on, or how it ends.
fn judge_again(
    gateway: &Gateway,
    handle: &Handle,
    record: Result<Option<Record>, RegistryError>,
) -> Result<Grant, Close> {
    let now = clock::now().wall;
    match record {
        // The certificate's row is gone, or another device's: nothing lets this session be.
        Ok(None) => Err(Close::Suspended),
        Ok(Some(record)) if record.device != handle.device => Err(Close::Suspended),
        Ok(Some(mut record)) => {
            record.end_by(handle.certificate_ends);
            handle.moved_to(&record.fleet);
            let asked = Asked { key: handle.key, asks_from: handle.asks_from };
            let judged = gateway
                .granter
                .lateness(&record)
                .and_then(|late| identity::judge_record(&record, now, late))
                .and_then(|()| gateway.granter.grant(&record, asked, now))
                .map_err(|denied| denied.problem.close())?;
            gateway.cache.put(&handle.certificate, Entry::of(&record));
            Ok(judged)
        }
        Err(error) => {
            error!(connection = %handle.id, device = %handle.device, %error, "the device's record cannot be read; its session ends");
            Err(Close::Internal)
        }
    }
}
