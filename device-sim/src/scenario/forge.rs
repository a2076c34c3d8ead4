//! Frames that nobody with the key has signed.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use doorward_proto::ids::KeyVersion;
use doorward_proto::key::Key;
use tokio::task::JoinSet;

use super::attacks::{Attacks, local, strike_out};
use super::{Cast, Context};
use crate::engine::probe::{Answer, Probe};

/// A way to forge: from the payload and the device's own key.
struct Forgery {
    name: &'static str,
    expected: &'static [&'static str],
    frame: fn(&str, &Key) -> String,
}

const FORGERIES: [Forgery; 8] = [
    Forgery { name: "tampered payload", expected: &["bad_signature"], frame: tampered },
    Forgery { name: "tampered signature", expected: &["bad_signature"], frame: tampered_signature },
    Forgery { name: "wrong key", expected: &["bad_signature"], frame: wrong_key },
    Forgery { name: "unknown kid", expected: &["bad_key"], frame: unknown_kid },
    Forgery { name: "alg none", expected: &["bad_envelope"], frame: alg_none },
    Forgery { name: "alg HS512", expected: &["bad_envelope"], frame: alg_other },
    Forgery { name: "empty signature", expected: &["bad_signature", "bad_envelope"], frame: empty_signature },
    Forgery { name: "stripped signature", expected: &["bad_envelope"], frame: stripped },
];

fn tampered(payload: &str, key: &Key) -> String {
    let frame = key.sign(payload.as_bytes());
    let changed = payload.replacen("\"attack\"", "\"tampered\"", 1);
    let parts: Vec<&str> = frame.split('.').collect();
    [parts[0], &URL_SAFE_NO_PAD.encode(changed), parts[2]].join(".")
}

fn tampered_signature(payload: &str, key: &Key) -> String {
    let mut frame = key.sign(payload.as_bytes());
    let at = frame.len() - 10;
    let other = if frame.as_bytes()[at] == b'A' { "B" } else { "A" };
    frame.replace_range(at..=at, other);
    frame
}

fn wrong_key(payload: &str, key: &Key) -> String {
    random_key(key.version()).sign(payload.as_bytes())
}

fn unknown_kid(payload: &str, key: &Key) -> String {
    let frame = key.sign(payload.as_bytes());
    let (_, rest) = frame.split_once('.').unwrap_or_default();
    // The signature does not fit this header either: the key version is asked first.
    format!("{}.{rest}", URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","kid":"999999999"}"#))
}

fn with_alg(payload: &str, key: &Key, alg: &str) -> String {
    let header = format!(r#"{{"alg":"{alg}","kid":"{}"}}"#, key.version());
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload))
}

/// RFC 8725 §2.1: the oldest of the attacks on JWTs.
fn alg_none(payload: &str, key: &Key) -> String {
    with_alg(payload, key, "none") + "."
}

fn alg_other(payload: &str, key: &Key) -> String {
    let frame = key.sign(payload.as_bytes());
    let signature = frame.rsplit('.').next().unwrap_or_default();
    format!("{}.{signature}", with_alg(payload, key, "HS512"))
}

fn empty_signature(payload: &str, key: &Key) -> String {
    stripped(payload, key) + "."
}

fn stripped(payload: &str, key: &Key) -> String {
    let frame = key.sign(payload.as_bytes());
    frame.rsplit_once('.').map(|(signed, _)| signed.to_owned()).unwrap_or_default()
}

/// A key of an attacker's own.
pub(crate) fn random_key(version: KeyVersion) -> Key {
    let mut bytes = [0; 32];
    fastrand::fill(&mut bytes);
    Key::new(version, &bytes)
}

pub(super) async fn attack(context: &Arc<Context>, cast: &Cast, attacks: &Arc<Attacks>) {
    let mut tasks = JoinSet::new();
    for (attacker, index) in cast.hostile.iter().copied().enumerate() {
        let (context, attacks) = (Arc::clone(context), Arc::clone(attacks));
        tasks.spawn(async move { one(&context, attacker, index, &attacks).await });
    }
    while tasks.join_next().await.is_some() {}
}

async fn one(context: &Context, attacker: usize, index: usize, attacks: &Attacks) {
    let member = &context.members[index];
    let (id, key) = (member.id(), member.credentials.key());
    let local = local(context, attacker);
    for forgery in &FORGERIES {
        // A session for each, so that no limit of strikes is met by all of them together.
        let mut probe = match Probe::open(context, &member.tls, local).await {
            Ok(probe) => probe,
            Err(error) => return attacks.untried(forgery.name, &forgery.expected.join(" or "), id, &error),
        };
        let now = probe.time();
        let (_, payload) = probe.publish(id, now);
        probe.send(&(forgery.frame)(&payload, key)).await;
        let answer = probe.answer().await;
        attacks.judge(forgery.name, forgery.expected, id, &answer);
        if let Answer::Said(said) = &answer {
            // protocol.md §4: what is not authenticated has no 'seq' that could be believed.
            let instead = said.reference.map(|seq| format!("ref {seq}"));
            attacks.saw("the ref of a forgery's reject", "null", id, instead);
        }
        // A refused message changes nothing: the device's own word still counts.
        let now = probe.time();
        let (seq, payload) = probe.publish(id, now);
        probe.send(&key.sign(payload.as_bytes())).await;
        let answer = probe.answer().await;
        let instead = (!answer.acks(seq)).then(|| answer.words());
        attacks.saw("a genuine message after a forgery", "ack", id, instead);
        probe.close().await;
    }
    let names = ("many forgeries", "the end of a forging session");
    match Probe::open(context, &member.tls, local).await {
        Ok(mut probe) => {
            let forge = |probe: &mut Probe| {
                let now = probe.time();
                wrong_key(&probe.publish(id, now).1, key)
            };
            strike_out(&mut probe, attacks, names, &["bad_signature"], id, forge).await;
        }
        Err(error) => attacks.untried(names.0, "bad_signature", id, &error),
    }
}
