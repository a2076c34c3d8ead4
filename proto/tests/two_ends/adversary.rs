//! Who sends again what was seen on the wire, and what was never on it.

use doorward_proto::key::Key;

use super::{Event, World, count};
use crate::support::{key, payload};

/// A frame of the device, as somebody on the way has it.
pub(super) struct Captured {
    pub(super) connection: u64,
    pub(super) frame: String,
    pub(super) arrived: bool,
}

impl World {
    /// Somebody who has seen every frame, and holds no key of this device.
    pub(super) fn attack(&mut self) {
        let (Some(connection), false) = (self.current, self.captured.is_empty()) else { return };
        let at = self.random.usize(..self.captured.len());
        let seen = &self.captured[at];
        let frame = seen.frame.clone();
        match self.random.u32(..10) {
            // Not ahead of the original: a stream cipher's record cannot overtake.
            0..=3 if seen.connection != connection || seen.arrived => {
                count(&mut self.tally, "replays", true);
                self.later(0, Event::Up { connection, frame, honest: false });
            }
            4 if !self.overheard.is_empty() => {
                count(&mut self.tally, "replays", true);
                let frame = self.random.choice(&self.overheard).unwrap().clone();
                self.later(0, Event::Up { connection, frame, honest: false });
            }
            5..=7 => {
                count(&mut self.tally, "forgeries", true);
                let frame = self.forge(&frame);
                self.later(0, Event::Up { connection, frame, honest: false });
            }
            8 if self.link.sid().is_some() => {
                let frame = match self.random.bool() {
                    true => frame,
                    false => self.random.choice(&self.overheard).unwrap().clone(),
                };
                self.later(0, Event::Down { connection, frame, honest: false });
            }
            _ => {}
        }
    }

    fn forge(&mut self, frame: &str) -> String {
        if self.random.bool() {
            // The newest sid and a seq far ahead, signed with a key that is not the device's.
            let mut claims = payload(frame);
            claims["sid"] = self.link.sid().unwrap_or_default().into();
            claims["seq"] = 1_000_000_u64.into();
            let other = Key::new(key(1).version(), &[0xEE; 32]);
            return other.sign(claims.to_string().as_bytes());
        }
        let mut bytes = frame.as_bytes().to_vec();
        let at = self.random.usize(..bytes.len());
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        String::from_utf8(bytes).unwrap()
    }
}
