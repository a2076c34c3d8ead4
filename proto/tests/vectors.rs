//! The test vectors of `docs/protocol.md`, each of them through a session. They come from another program in another
//! language: what both agree on, the page says clearly enough.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use doorward_proto::ids::{DeviceId, FleetId, KeyVersion};
use doorward_proto::key::{KEY_BYTES, Key, Keyring};
use doorward_proto::limits::{Limits, Rate};
use doorward_proto::policy::Policy;
use doorward_proto::session::{Grant, Output, Session, Settings};
use doorward_proto::time::{Moment, NumericDate};
use doorward_proto::verdict::Verdict;
use serde::Deserialize;
use serde_json::{Value, json};

const PAGE: &str = include_str!("../../docs/protocol.md");

/// Fewer than this, and somebody has broken the page or this test's reading of it.
const FEWEST: usize = 60;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Context {
    context: String,
    device: DeviceId,
    fleet: FleetId,
    policy: Value,
    keys: Vec<KeyLine>,
    challenge: String,
    sid: String,
    now: i64,
    max_skew: u64,
    max_message_bytes: usize,
    last_seq: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyLine {
    version: KeyVersion,
    hmac: String,
    until: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vector {
    name: String,
    context: String,
    frame: String,
    verdict: String,
    /// Missing where a gateway may answer either way; then any is right.
    #[serde(default, rename = "ref", deserialize_with = "present")]
    reference: Option<Value>,
}

/// Tells `null` from nothing.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

fn read() -> (BTreeMap<String, Context>, Vec<Vector>) {
    let mut contexts = BTreeMap::new();
    let mut vectors = Vec::new();
    let mut within = false;
    for line in PAGE.lines() {
        if line.starts_with("```") {
            within = line == "```json vectors";
        } else if within && line.starts_with("{\"context\"") {
            let context: Context = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
            contexts.insert(context.context.clone(), context);
        } else if within {
            vectors.push(serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")));
        }
    }
    (contexts, vectors)
}

impl Context {
    fn now(&self) -> Moment {
        Moment { monotonic: Duration::from_secs(5), wall: NumericDate::from_seconds(self.now) }
    }

    fn keys(&self) -> impl Iterator<Item = (Key, Option<NumericDate>)> {
        self.keys.iter().map(|line| {
            let bytes: [u8; KEY_BYTES] = URL_SAFE_NO_PAD.decode(&line.hmac).unwrap().try_into().unwrap();
            (Key::new(line.version, &bytes), line.until.map(NumericDate::from_seconds))
        })
    }

    fn open(&self) -> Session {
        let mut keyring = Keyring::default();
        self.keys().for_each(|(key, until)| keyring.add(key, until));
        let (signer, _) = self.keys().next().unwrap();
        let limits = Limits {
            max_message_bytes: self.max_message_bytes,
            max_skew: Duration::from_secs(self.max_skew),
            heartbeat: Duration::from_secs(30),
            rate: Rate { per_second: 100, burst: 100 },
            ..Limits::default()
        };
        let grant = Grant {
            device: self.device.clone(),
            fleet: self.fleet.clone(),
            keyring,
            signer: signer.clone(),
            policy: Arc::new(Policy::parse(&self.policy.to_string()).unwrap()),
            schemas: None,
            limits,
            certificate_expires: NumericDate::from_seconds(self.now + 3600),
            grace_ends: None,
            renew_from: None,
            rotate_by: None,
            late: false,
            pending: None,
        };
        let challenge: Vec<u8> = (0..self.challenge.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&self.challenge[at..at + 2], 16).unwrap())
            .collect();
        let settings = Arc::new(Settings::new("gateway-1".into()));
        let mut session = Session::open(grant, settings, challenge.try_into().unwrap(), self.now());
        if self.last_seq > 0 {
            let hello = json!({"iss": self.device, "aud": "gateway", "sid": self.sid, "seq": self.last_seq,
                "iat": self.now, "op": "hello"});
            let frame = signer.sign(hello.to_string().as_bytes());
            assert_eq!(session.receive(&frame, self.now()), Verdict::Accepted, "the context's last_seq");
        }
        while session.poll().is_some() {}
        session
    }
}

/// The payload of what the session sent, if it sent one message.
fn only_message(session: &mut Session) -> Option<Value> {
    let mut messages = std::iter::from_fn(|| session.poll()).filter_map(|output| match output {
        Output::Send(frame) => {
            let payload = URL_SAFE_NO_PAD.decode(frame.split('.').nth(1).unwrap()).unwrap();
            Some(serde_json::from_slice(&payload).unwrap())
        }
        _ => None,
    });
    let first = messages.next();
    assert!(messages.next().is_none(), "one answer for one message");
    first
}

#[test]
fn every_vector_of_the_page_gets_its_verdict() {
    let (contexts, vectors) = read();
    assert!(vectors.len() >= FEWEST, "only {} vectors found", vectors.len());
    let mut wrong = Vec::new();
    for vector in &vectors {
        let context = &contexts[&vector.context];
        let mut session = context.open();
        let verdict = match session.receive(&vector.frame, context.now()) {
            Verdict::Accepted => "accepted".to_owned(),
            Verdict::Refused(refusal) => refusal.as_str().to_owned(),
            Verdict::Ignored => "ignored".to_owned(),
        };
        let reject = only_message(&mut session);
        let told = reject.as_ref().map_or("accepted", |reject| reject["error"].as_str().unwrap());
        let reference = reject.as_ref().map(|reject| reject["ref"].clone());
        if verdict != vector.verdict || told != verdict {
            wrong.push(format!("{}: {verdict} (told {told}), not {}", vector.name, vector.verdict));
        } else if vector.reference.is_some() && vector.reference != reference {
            wrong.push(format!("{}: ref {reference:?}, not {:?}", vector.name, vector.reference));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), vectors.len(), wrong.join("\n"));
}

/// What is judged alone above is judged in a row here: a refusal before the check of `seq` uses nothing up (R-15).
#[test]
fn refusals_leave_the_seq_free_for_the_message_that_is_right() {
    let (contexts, vectors) = read();
    let context = &contexts["running"];
    let good = vectors.iter().find(|vector| vector.name == "publish").unwrap();
    let early =
        ["bad_envelope", "bad_key", "bad_signature", "wrong_party", "wrong_session", "stale", "replayed"];
    for vector in vectors.iter().filter(|v| v.context == "running" && early.contains(&&*v.verdict)) {
        let mut session = context.open();
        session.receive(&vector.frame, context.now());
        assert_eq!(session.receive(&good.frame, context.now()), Verdict::Accepted, "after {}", vector.name);
    }
}

#[test]
fn every_word_of_refusal_before_the_rate_has_a_vector() {
    let (_, vectors) = read();
    let words = ["accepted", "bad_envelope", "bad_key", "bad_signature", "bad_message", "wrong_party"];
    for word in words.into_iter().chain(["wrong_session", "stale", "replayed", "forbidden"]) {
        assert!(vectors.iter().any(|vector| vector.verdict == word), "{word}");
    }
}

#[test]
fn the_worked_example_is_right() {
    let line = |name: &str| PAGE.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let key = Key::new(KeyVersion::FIRST, &[1; KEY_BYTES]);
    assert_eq!(key.sign(line("payload  ").as_bytes()), line("message  "));
}
