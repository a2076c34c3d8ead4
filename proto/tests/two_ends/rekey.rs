//! A pending key: handed out once a session to whom has shown the key before, confirmed by the first message that it signs.

use std::time::Duration;

use doorward_proto::session::{Grant, Output, PendingKey};
use doorward_proto::verdict::{Refusal, Verdict};
use serde_json::json;
use zeroize::Zeroizing;

use super::support::{DEVICE, Scene, at, grant, key, keyring};

fn with_pending() -> Grant {
    let pending = PendingKey {
        version: key(2).version(),
        key: Zeroizing::new([2; 32]),
        grace: Duration::from_secs(3600),
    };
    Grant { keyring: keyring(&[1, 2]), pending: Some(Box::new(pending)), ..grant() }
}

fn hello(scene: &Scene, seq: u64, version: u32) -> String {
    let text = format!(
        r#"{{"iss":"{DEVICE}","aud":"gateway","sid":"{}","seq":{seq},"iat":{},"op":"hello"}}"#,
        scene.sid,
        at(0.0).wall
    );
    key(version).sign(text.as_bytes())
}

fn confirmed(scene: &mut Scene) -> Vec<u32> {
    let of = |output| match output {
        Output::Confirmed(version) => Some(version.get()),
        _ => None,
    };
    scene.outputs().into_iter().filter_map(of).collect()
}

#[test]
fn it_comes_after_the_proof_and_once_a_session() {
    let mut scene = Scene::open(with_pending());
    assert_eq!(scene.ops(), (vec![], None), "a certificate alone is given no key (R-19)");
    assert_eq!(scene.session.receive(&hello(&scene, 1, 1), at(0.0)), Verdict::Accepted);
    let (said, _) = scene.said();
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(said[0]["op"], "rekey");
    assert_eq!((&said[0]["version"], &said[0]["grace"]), (&json!(2), &json!(3600)));
    assert_eq!(said[0]["key"], "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI");
    scene.session.receive(&hello(&scene, 2, 1), at(0.0));
    scene.session.update(with_pending(), at(1.0));
    assert_eq!(scene.ops(), (vec![], None), "it has been said in this session");
}

#[test]
fn it_comes_in_the_middle_of_a_session_too() {
    let mut scene = Scene::proven(grant());
    scene.session.update(with_pending(), at(1.0));
    assert_eq!(scene.ops(), (vec!["rekey".to_owned()], None));
}

#[test]
fn the_first_message_that_it_signs_confirms_it_and_no_other_does() {
    let mut scene = Scene::proven(with_pending());
    scene.outputs();
    let forged = key(3).sign(br#"{"op":"hello"}"#).replacen(
        "eyJhbGciOiJIUzI1NiIsImtpZCI6IjMifQ",
        "eyJhbGciOiJIUzI1NiIsImtpZCI6IjIifQ",
        1,
    );
    assert_eq!(scene.session.receive(&forged, at(0.0)), Verdict::Refused(Refusal::BadSignature));
    assert_eq!(scene.session.receive(&hello(&scene, 1, 2), at(0.0)), Verdict::Refused(Refusal::Replayed));
    assert_eq!(scene.session.receive(&hello(&scene, 2, 1), at(0.0)), Verdict::Accepted);
    assert!(confirmed(&mut scene).is_empty());
    assert_eq!(scene.session.receive(&hello(&scene, 3, 2), at(0.0)), Verdict::Accepted);
    assert_eq!(scene.session.receive(&hello(&scene, 4, 2), at(0.0)), Verdict::Accepted);
    assert_eq!(confirmed(&mut scene), vec![2_u32], "said once");
    // What the registry makes of it.
    let active = Grant { keyring: keyring(&[1, 2]), signer: key(2), ..grant() };
    scene.session.flush(at(0.0));
    scene.outputs();
    scene.session.update(active, at(1.0));
    let (said, _) = scene.said();
    assert_eq!((said.len(), &said[0]["op"], &said[0]["key"]), (1, &json!("limits"), &json!(2)));
}

#[test]
fn a_device_that_has_it_by_its_bundle_is_given_none() {
    let mut scene = Scene::open(with_pending());
    scene.session.receive(&hello(&scene, 1, 2), at(0.0));
    let outputs = scene.outputs();
    assert!(matches!(outputs[..], [Output::Proven, Output::Confirmed(_)]), "{outputs:?}");
}

#[test]
fn another_one_is_handed_out_when_it_takes_the_place() {
    let mut scene = Scene::proven(with_pending());
    let mut other = with_pending();
    let pending =
        PendingKey { version: key(3).version(), key: Zeroizing::new([3; 32]), grace: Duration::ZERO };
    (other.keyring, other.pending) = (keyring(&[1, 3]), Some(Box::new(pending)));
    scene.session.update(other, at(1.0));
    let (said, _) = scene.said();
    assert_eq!((said.len(), &said[0]["version"]), (1, &json!(3)));
    assert_eq!(format!("{:?}", with_pending().pending), "Some(PendingKey(version 2, redacted))");
}
