//! What comes through the socket of a session, on both ends.

use doorward_proto::link::Link;
use doorward_proto::session::{Output, Session};
use doorward_proto::time::{Moment, NumericDate};
use doorward_proto::verdict::{Refusal, Verdict};

use crate::Outcome;
use crate::shared::choices::Choices;
use crate::shared::json::{self, Json, Kind};
use crate::shared::model::{Expected, Leaky, Model, open};
use crate::shared::play::{self, frames::signed};
use crate::shared::support::{DEVICE, EPOCH, at, device, grant, key, keyring, payload, settings};

/// A session that has just been opened, and the model of it.
fn fresh() -> (Session, Model) {
    let now = at(0.0);
    let grant = grant();
    let mut session = Session::open(grant.clone(), settings(), [9; 16], now);
    let Some(Output::Send(welcome)) = session.poll() else { panic!("no welcome") };
    let model = Model {
        device: DEVICE,
        sid: payload(&welcome)["sid"].as_str().expect("a sid").to_owned(),
        max_bytes: grant.limits.max_message_bytes,
        max_skew: grant.limits.max_skew,
        keys: vec![(1, [1; 32], None)],
        messages: Leaky::new(grant.limits.rate, now.monotonic),
        bytes: Leaky::new(grant.limits.bytes, now.monotonic),
        why: None,
        last: 0,
        late: false,
        publish_below: &["devices/press-7"],
        formed: false,
    };
    (session, model)
}

/// One frame for a fresh session, as text or built from a header and a payload that the device's key signs: the verdict is the
/// model's, and what no key of the device has signed is never accepted.
pub fn envelope(data: &[u8]) -> Outcome {
    let mut choices = Choices(data);
    let frame = match choices.below(4) {
        0 | 1 => match std::str::from_utf8(choices.0) {
            Ok(text) => text.to_owned(),
            // Not UTF-8: the WebSocket closes with 1007 before a session sees it.
            Err(_) => return Outcome::of("no text"),
        },
        2 => {
            let header = choices.piece();
            signed(header, choices.0)
        }
        _ => {
            // What a key of the device has signed, with one character changed.
            let at = usize::from(choices.byte());
            let byte = choices.byte() & 0x7F;
            let mut bytes = signed(br#"{"alg":"HS256","kid":"1"}"#, choices.0).into_bytes();
            let at = at % bytes.len();
            bytes[at] = byte;
            String::from_utf8(bytes).expect("ASCII")
        }
    };
    judged(&frame)
}

/// A payload that the device's own key signs: everything behind the HMAC.
pub fn claims(data: &[u8]) -> Outcome {
    judged(&key(1).sign(data))
}

fn judged(frame: &str) -> Outcome {
    let (mut session, mut model) = fresh();
    let now = at(0.0);
    let verdict = session.receive(frame, now);
    if frame.len() > model.max_bytes {
        assert_eq!(verdict, Verdict::Refused(Refusal::BadEnvelope));
        return Outcome::of("too long");
    }
    let signed = open(&model.keys, frame, now.wall).is_ok();
    let judgement = model.judge(frame, now);
    let rejects = std::iter::from_fn(|| session.poll())
        .filter_map(|output| match output {
            Output::Send(frame) => Some(payload(&frame)),
            _ => None,
        })
        .filter(|said| said["op"] == "reject")
        .collect::<Vec<_>>();
    match (&judgement.expected, verdict) {
        (Expected::Refused(refusal), said) => {
            assert_eq!(said, Verdict::Refused(*refusal), "{frame}");
            let [reject] = rejects.as_slice() else { panic!("one reject, not {rejects:?}") };
            assert_eq!(reject["error"], refusal.as_str());
            if let Some(reference) = judgement.reference {
                assert_eq!(reject["ref"].as_u64(), reference);
            }
        }
        (Expected::Operation(_), Verdict::Accepted) => {
            assert!(signed && rejects.is_empty(), "{frame}");
        }
        // A filter that the policy denies is beyond the model.
        (Expected::Operation(operation), Verdict::Refused(Refusal::Forbidden)) => {
            assert!(signed && format!("{operation:?}").starts_with("Subscribe"), "{operation:?}");
        }
        (expected, verdict) => panic!("{verdict:?}, and not {expected:?}: {frame}"),
    }
    // Once: what was accepted is refused when it comes again.
    if verdict == Verdict::Accepted {
        assert_eq!(session.receive(frame, now), Verdict::Refused(Refusal::Replayed));
        let late = Moment { monotonic: now.monotonic, wall: NumericDate::from_seconds(0) };
        let (mut other, _) = fresh();
        assert_eq!(other.receive(frame, late), Verdict::Refused(Refusal::Stale), "in time");
    }
    Outcome::of((format!("{verdict:?}"), rejects.first().map(|reject| words(&reject["detail"]))))
}

/// Without what is the input's own.
fn words(detail: &serde_json::Value) -> String {
    let detail = detail.as_str().unwrap_or_default();
    detail.chars().filter(char::is_ascii_alphabetic).take(32).collect()
}

/// A story of a session: `properties/play.rs` of the protocol's tests.
pub fn session(data: &[u8]) -> Outcome {
    let tally = play::play(data);
    Outcome::of(tally.into_iter().map(|(what, times)| (what, times.ilog2())).collect::<Vec<_>>())
}

/// A payload that the gateway's key signs, for a device in a session or before its welcome: nothing is taken that is not of
/// this session and in sequence, and whatever is taken leaves a device that goes on.
pub fn downlink(data: &[u8]) -> Outcome {
    const SID: &str = "c2lkLW9mLXRoZS1zZXNzaW9u";
    let mut choices = Choices(data);
    let in_session = choices.byte() & 1 == 1;
    let mut link = Link::new(device(), keyring(&[1]), Default::default());
    if in_session {
        let welcome = format!(
            r#"{{"iss":"gateway","aud":"{DEVICE}","sid":"{SID}","seq":1,"iat":{EPOCH},"op":"welcome","max_message_bytes":1024,
                "max_skew":60,"heartbeat":30,"rate":{{"per_second":10,"burst":10}},"key":1,"certificate_expires":{EPOCH},"gateway":"g"}}"#
        );
        link.receive(&key(1).sign(welcome.as_bytes()), at(0.0)).expect("a welcome");
    }
    let frame = key(1).sign(choices.0);
    let verdict = link.receive(&frame, at(1.0));
    let mut events = Vec::new();
    while let Some(event) = link.poll() {
        // Of a secret no more than its kind.
        events.push(std::mem::discriminant(&event));
    }
    if verdict.is_ok() {
        let text = std::str::from_utf8(choices.0).expect("text");
        // In an operation that a device does not know a surrogate may stand alone: it is passed over with the rest.
        let Some((Json { kind: Kind::Object(members), .. }, _)) = json::read_all(text) else {
            panic!("not an object: {text}")
        };
        let one = |name: &str| members.iter().find(|(of, _)| of == name).map(|(_, value)| value);
        assert_eq!(one("iss").and_then(Json::text), Some("gateway"));
        assert_eq!(one("aud").and_then(Json::text), Some(DEVICE));
        let sid = one("sid").and_then(Json::text).expect("a sid");
        let seq: u64 = one("seq").expect("a seq").raw.parse().expect("a number");
        if in_session {
            assert!(sid == SID && seq > 1, "of this session, once");
        } else {
            assert_eq!(one("op").and_then(Json::text), Some("welcome"), "nothing comes before it");
        }
        assert!(link.receive(&frame, at(1.0)).is_err(), "the same once more");
    } else {
        assert!(events.len() <= usize::from(in_session), "brought by what failed a check");
    }
    Outcome::of((in_session, format!("{verdict:?}"), events.len()))
}
