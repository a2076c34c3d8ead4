//! The model of what lies behind a session: a store that keeps one message for each device and id.

use std::collections::BTreeMap;
use std::time::Duration;

use doorward_proto::ids::MessageId;
use doorward_proto::session::{Publish, Receipt};

/// What the store will do with one message, drawn when it arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Kept,
    /// Nothing was kept, and the gateway says so.
    Unavailable,
    /// It was kept, and the gateway knows it not: it has to say `unavailable`.
    Unsure,
    /// It was kept, and the gateway died of it before it could say so.
    Crash,
}

/// A message on its way to the disk.
pub(crate) struct Job {
    pub(crate) connection: u64,
    pub(crate) publish: Publish,
    pub(crate) receipt: Receipt,
    pub(crate) seq: u64,
    pub(crate) fate: Fate,
}

#[derive(Default)]
pub(crate) struct Store {
    kept: BTreeMap<(String, MessageId), (Box<str>, Box<str>)>,
}

impl Store {
    /// Keeps a message; false for a second copy, which shares the first one's fate.
    pub(crate) fn keep(&mut self, publish: &Publish) -> bool {
        let name = (publish.device.to_string(), publish.id.clone());
        let mut first = false;
        self.kept.entry(name).or_insert_with(|| {
            first = true;
            (publish.channel.clone(), publish.data.clone())
        });
        first
    }

    pub(crate) fn has(&self, device: &str, id: &MessageId) -> bool {
        self.kept.contains_key(&(device.to_owned(), id.clone()))
    }

    pub(crate) fn len(&self) -> usize {
        self.kept.len()
    }
}

/// How long a write takes, and how it ends: mostly soon and well.
pub(crate) fn draw(random: &mut fastrand::Rng, faults: bool) -> (Duration, Fate) {
    let millis = match random.u32(..100) {
        0 if faults => random.u64(1_000..40_000),
        1..=9 if faults => random.u64(50..1_000),
        _ => random.u64(1..20),
    };
    let fate = match random.u32(..100) {
        0..=3 if faults => Fate::Unavailable,
        4..=6 if faults => Fate::Unsure,
        7 if faults => Fate::Crash,
        _ => Fate::Kept,
    };
    (Duration::from_millis(millis), fate)
}
