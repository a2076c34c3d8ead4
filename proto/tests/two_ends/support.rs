//! What the worlds and the single scenes share: one device, one gateway, their keys and limits.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use doorward_proto::close::Close;
use doorward_proto::ids::{DeviceId, FleetId, KeyVersion};
use doorward_proto::key::{Key, Keyring};
use doorward_proto::limits::{Limits, Rate};
use doorward_proto::policy::Policy;
use doorward_proto::session::{Durable, Grant, Output, Receipt, Session, Settings};
use doorward_proto::time::{Moment, NumericDate};
use serde_json::Value;

pub(crate) const DEVICE: &str = "press-7";

/// When virtual time begins, in seconds since 1970.
pub(crate) const EPOCH: u64 = 1_763_724_000;

pub(crate) const POLICY: &str = r#"{"allow":[{"actions":["publish"],"channels":["devices/${device}/#"]},
    {"actions":["subscribe"],"channels":["devices/${device}/#","fleets/${fleet}/#"]}]}"#;

pub(crate) fn key(version: u32) -> Key {
    let byte = u8::try_from(version).unwrap();
    Key::new(KeyVersion::from_number(version).unwrap(), &[byte; 32])
}

pub(crate) fn keyring(versions: &[u32]) -> Keyring {
    let mut keyring = Keyring::default();
    versions.iter().for_each(|version| keyring.add(key(*version), None));
    keyring
}

pub(crate) fn device() -> DeviceId {
    DeviceId::new(DEVICE).unwrap()
}

pub(crate) fn policy(text: &str) -> Arc<Policy> {
    Arc::new(Policy::parse(text).unwrap())
}

pub(crate) fn grant() -> Grant {
    Grant {
        device: device(),
        fleet: FleetId::new("hall").unwrap(),
        keyring: keyring(&[1]),
        signer: key(1),
        policy: policy(POLICY),
        schemas: None,
        limits: Limits {
            max_message_bytes: 4096,
            max_skew: Duration::from_secs(60),
            heartbeat: Duration::from_secs(30),
            rate: Rate { per_second: 100, burst: 100 },
            ..Limits::default()
        },
        certificate_expires: at(1e9).wall,
        grace_ends: None,
        renew_from: None,
        rotate_by: None,
        late: false,
        pending: None,
    }
}

pub(crate) fn settings() -> Arc<Settings> {
    Arc::new(Settings::new("gateway-1".into()))
}

/// The moment on the gateway's clocks, that many seconds after the beginning.
pub(crate) fn at(seconds: f64) -> Moment {
    at_duration(Duration::from_secs_f64(seconds))
}

pub(crate) fn at_duration(now: Duration) -> Moment {
    Moment { monotonic: now, wall: NumericDate::since_epoch(Duration::from_secs(EPOCH) + now) }
}

/// What a frame says, whoever signed it.
pub(crate) fn payload(frame: &str) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(frame.split('.').nth(1).unwrap()).unwrap()).unwrap()
}

/// Proof of what the model store has kept.
pub(crate) struct Stored(pub(crate) Receipt);

impl Durable for Stored {
    fn into_receipt(self) -> Receipt {
        self.0
    }
}

/// One session, and a hand-held device's end of it.
pub(crate) struct Scene {
    pub(crate) session: Session,
    pub(crate) sid: String,
}

impl Scene {
    pub(crate) fn open(grant: Grant) -> Self {
        let mut session = Session::open(grant, settings(), [9; 16], at(0.0));
        let Some(Output::Send(welcome)) = session.poll() else { panic!("no welcome") };
        Self { session, sid: payload(&welcome)["sid"].as_str().unwrap().to_owned() }
    }

    /// A proven one: its `seq` 1 is used up.
    pub(crate) fn proven(grant: Grant) -> Self {
        let mut scene = Self::open(grant);
        let hello = scene.frame(1, 0.0, r#""op":"hello""#);
        scene.session.receive(&hello, at(0.0));
        scene.session.flush(at(0.0));
        while scene.session.poll().is_some() {}
        scene
    }

    /// A frame that is right in all but perhaps its operation.
    pub(crate) fn frame(&self, seq: u64, seconds: f64, operation: &str) -> String {
        let iat = at(seconds).wall;
        let text = format!(
            r#"{{"iss":"{DEVICE}","aud":"gateway","sid":"{}","seq":{seq},"iat":{iat},{operation}}}"#,
            self.sid
        );
        key(1).sign(text.as_bytes())
    }

    pub(crate) fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.session.poll()).collect()
    }

    /// What was said since the last look, and the close if there was one.
    pub(crate) fn said(&mut self) -> (Vec<Value>, Option<Close>) {
        let (mut messages, mut closed) = (Vec::new(), None);
        for output in self.outputs() {
            assert_eq!(closed, None, "something came after the close");
            match output {
                Output::Send(frame) => messages.push(payload(&frame)),
                Output::Close(close) => closed = Some(close),
                _ => {}
            }
        }
        (messages, closed)
    }

    /// The operations said since the last look, and the close.
    pub(crate) fn ops(&mut self) -> (Vec<String>, Option<Close>) {
        let (messages, close) = self.said();
        (messages.iter().map(|message| message["op"].as_str().unwrap().to_owned()).collect(), close)
    }
}
