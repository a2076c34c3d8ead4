//! Security events on their way into the registry. What is alike (one device, one kind) becomes one row: the first at once,
//! those that follow together, after a minute and then at intervals that double up to an hour. So a flood is seen when it
//! begins and costs a few rows, and nobody fills the disk with them ("What events cost" in docs/operations.md).

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use doorward_proto::ids::DeviceId;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::Gateway;
use crate::bucket::{Bucket, Rate, nanos};
use crate::clock;
use crate::fold;
use crate::registry::{EventKind, NewEvent};

/// How long alike events are gathered at first, and at most.
const FIRST: Duration = Duration::from_secs(60);
const LAST: Duration = Duration::from_secs(3600);
/// Devices and kinds that are told apart at a time; what is beyond is gathered by its kind alone.
const MOST: usize = 1024;
/// Rows of one kind at once, and a minute. What finds none waits, gathered with what follows.
const ROWS: Rate = Rate::every(6, 200);
/// How often it is looked whether something is due.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What is said where devices are not told apart any more.
const OTHERS: &str = "and others: too many devices at once to tell them apart";
/// A detail is cut here.
const MOST_WORDS: usize = 500;

/// What events have in common that are alike. `reason` is a word of this program.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    device: Option<DeviceId>,
    kind: EventKind,
    reason: &'static str,
}

/// Events that wait to be one row.
#[derive(Debug)]
struct Held {
    count: u64,
    since: OffsetDateTime,
    at: OffsetDateTime,
    peer: String,
    detail: String,
}

#[derive(Debug)]
struct Group {
    held: Option<Held>,
    /// On the monotonic clock.
    due: Duration,
    interval: Duration,
}

/// One event.
pub(crate) struct Event<'a> {
    pub(crate) kind: EventKind,
    pub(crate) device: Option<&'a DeviceId>,
    /// Of one kind, what is told apart.
    pub(crate) reason: &'static str,
    /// Put into words for the first of its like alone: refused messages come as fast as a device can send.
    pub(crate) peer: &'a dyn fmt::Display,
    pub(crate) detail: &'a dyn fmt::Display,
}

/// Events that are being gathered.
#[derive(Debug, Default)]
pub(crate) struct Events(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    groups: HashMap<Key, Group>,
    rows: HashMap<EventKind, Bucket>,
}

impl State {
    /// Takes a kind's right to one row more.
    fn may_write(&mut self, kind: EventKind, now: Duration) -> bool {
        self.rows.entry(kind).or_default().try_take(ROWS, nanos(now))
    }
}

impl Events {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An event; it comes back as a row where it is the first of its like.
    fn note(
        &self,
        name: &Arc<str>,
        event: Event<'_>,
        now: Duration,
        wall: OffsetDateTime,
    ) -> Option<NewEvent> {
        let Event { kind, device, reason, peer, detail } = event;
        let mut state = self.lock();
        let mut key = Key { device: device.cloned(), kind, reason };
        let others = state.groups.len() >= MOST && !state.groups.contains_key(&key);
        if others {
            key = Key { device: None, kind, reason: "others" };
        }
        let held = || Held {
            count: 0,
            since: wall,
            at: wall,
            peer: peer.to_string(),
            detail: match others {
                true => OTHERS.to_owned(),
                false => detail.to_string().chars().take(MOST_WORDS).collect(),
            },
        };
        if let Some(group) = state.groups.get_mut(&key) {
            let held = group.held.get_or_insert_with(held);
            held.count += 1;
            held.at = wall;
            return None;
        }
        let held = Held { count: 1, ..held() };
        let at_once = state.may_write(kind, now);
        let (row, held) = if at_once { (Some(row(name, &key, held)), None) } else { (None, Some(held)) };
        state.groups.insert(key, Group { held, due: now + FIRST, interval: FIRST });
        row
    }

    /// Rows whose time has come; `all`: whatever waits.
    fn due(&self, name: &Arc<str>, now: Duration, all: bool) -> Vec<NewEvent> {
        let mut state = self.lock();
        let mut groups = std::mem::take(&mut state.groups);
        let mut rows = Vec::new();
        groups.retain(|key, group| {
            if !all && group.due > now {
                return true;
            }
            let Some(held) = group.held.take() else { return false };
            if !all && !state.may_write(key.kind, now) {
                group.held = Some(held);
                return true;
            }
            rows.push(row(name, key, held));
            group.interval = (group.interval * 2).min(LAST);
            group.due = now + group.interval;
            true
        });
        state.groups = groups;
        rows
    }
}

fn row(name: &Arc<str>, key: &Key, held: Held) -> NewEvent {
    let Held { count, since, at, peer, detail } = held;
    NewEvent {
        at,
        since,
        count,
        gateway: Arc::clone(name),
        device: key.device.clone(),
        kind: key.kind,
        peer,
        detail,
    }
}

impl Gateway {
    /// Something for a security officer.
    pub(crate) fn note(&self, event: Event<'_>) {
        self.counters.event(event.kind);
        let now = clock::now().monotonic;
        if let Some(row) = self.events.note(&self.name, event, now, clock::utc()) {
            self.sink.event(row);
        }
    }

    fn write_events(&self, all: bool) {
        for row in self.events.due(&self.name, clock::now().monotonic, all) {
            self.sink.event(row);
        }
    }

    /// Says and writes what has been gathered: nothing more comes.
    pub(super) fn say_all(&self) {
        self.folds.say();
        self.write_events(true);
    }
}

/// Says what was folded and writes what was gathered when its time has come, until it is stopped.
pub(super) async fn run(gateway: Arc<Gateway>, stop: CancellationToken) {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    let mut folds = tokio::time::interval(fold::EVERY);
    loop {
        tokio::select! {
            _ = looks.tick() => gateway.write_events(false),
            _ = folds.tick() => gateway.folds.say(),
            () = stop.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use time::macros::datetime;

    use doorward_proto::verdict::Refusal;

    use super::*;

    const WALL: OffsetDateTime = datetime!(2027-03-01 12:00 UTC);
    const SECOND: Duration = Duration::from_secs(1);

    fn event(device: Option<&DeviceId>, kind: EventKind) -> Event<'_> {
        static LONG: LazyLock<String> = LazyLock::new(|| "x".repeat(MOST_WORDS + 1));
        Event { kind, device, reason: "", peer: &"192.0.2.7:1", detail: &*LONG }
    }

    fn name() -> Arc<str> {
        "g1".into()
    }

    #[test]
    fn a_flood_is_a_row_at_once_and_then_rows_that_come_ever_more_seldom() {
        let (events, device) = (Events::default(), DeviceId::new("a").unwrap());
        let (mut rows, mut told) = (Vec::new(), 0);
        for second in 0..4 * 3600 {
            let (now, wall) = (SECOND * second, WALL + SECOND * second);
            let row =
                events.note(&name(), event(Some(&device), EventKind::Message(Refusal::Forbidden)), now, wall);
            for row in row.into_iter().chain(events.due(&name(), now, false)) {
                told += row.count;
                assert_eq!(row.detail.len(), MOST_WORDS);
                rows.push(second);
            }
        }
        assert_eq!(rows, [0, 60, 180, 420, 900, 1860, 3780, 7380, 10_980]);
        told += events.due(&name(), Duration::MAX / 2, true).iter().map(|row| row.count).sum::<u64>();
        assert_eq!(told, 4 * 3600, "each is counted in one row");
    }

    #[test]
    fn what_is_quiet_is_forgotten_and_the_next_one_is_a_first_again() {
        let events = Events::default();
        let strike = |now| events.note(&name(), event(None, EventKind::Strikes), now, WALL);
        assert!(strike(SECOND).is_some());
        assert!(events.due(&name(), 61 * SECOND, false).is_empty());
        assert!(events.lock().groups.is_empty());
        assert!(strike(62 * SECOND).is_some());
    }

    #[test]
    fn many_devices_cost_a_bounded_number_of_rows_and_no_event_is_lost() {
        let events = Events::default();
        let devices: Vec<DeviceId> = (0..2000).map(|n| DeviceId::new(&format!("d{n}")).unwrap()).collect();
        let (mut rows, mut told) = (0, 0);
        for minute in 0..60 {
            let now = SECOND * 60 * minute;
            let mut written = Vec::new();
            for device in &devices {
                written.extend(events.note(
                    &name(),
                    event(Some(device), EventKind::Message(Refusal::Replayed)),
                    now,
                    WALL,
                ));
            }
            written.extend(events.due(&name(), now, false));
            rows += written.len();
            told += written.iter().map(|row| row.count).sum::<u64>();
            assert!(events.lock().groups.len() <= MOST + EventKind::ALL.len());
        }
        assert!((200..=200 + 60 * 10).contains(&rows), "{rows}");
        // Another kind has rows of its own.
        assert!(events.note(&name(), event(None, EventKind::PossibleClone), SECOND, WALL).is_some());
        let left = events.due(&name(), Duration::MAX / 2, true);
        assert!(left.iter().any(|row| row.device.is_none() && row.detail == OTHERS));
        told += left.iter().map(|row| row.count).sum::<u64>();
        assert_eq!(told, 2000 * 60, "each is counted in one row");
    }
}
