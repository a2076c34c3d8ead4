//! How sessions end, and what a change of what a device may do does to them.

use std::time::Duration;

use doorward_proto::close::Close;
use doorward_proto::downlink::Message;
use doorward_proto::session::{Output, Receipt};
use doorward_proto::verdict::{Refusal, Verdict};
use serde_json::json;

use super::support::{POLICY, Scene, Stored, at, device, grant, key, keyring, policy};

const HELLO: &str = r#""op":"hello""#;
const PUBLISH: &str = r#""op":"publish","id":"m","ch":"devices/press-7/x","data":1"#;

/// Has a scene publish, and hands over the receipt.
fn publish(scene: &mut Scene, seq: u64, seconds: f64) -> Receipt {
    let frame = scene.frame(seq, seconds, PUBLISH);
    assert_eq!(scene.session.receive(&frame, at(seconds)), Verdict::Accepted);
    let store = scene.outputs().into_iter().find_map(|output| match output {
        Output::Store(accepted) => Some(accepted.into_parts().1),
        _ => None,
    });
    store.unwrap()
}

#[test]
fn the_fifth_strike_within_a_minute_closes_after_its_reject() {
    let mut scene = Scene::proven(grant());
    let receipt = publish(&mut scene, 2, 0.0);
    for strike in 0..4 {
        scene.session.receive("rubbish", at(f64::from(strike) * 14.0));
        assert_eq!(scene.ops(), (vec!["reject".to_owned()], None));
    }
    scene.session.settle(Stored(receipt));
    let verdict = scene.session.receive("rubbish", at(59.999));
    assert_eq!(verdict, Verdict::Refused(Refusal::BadEnvelope));
    let (ops, close) = scene.ops();
    assert_eq!((ops.join(" "), close), ("reject ack bye".to_owned(), Some(Close::Strikes)));
}

#[test]
fn replays_and_messages_of_another_session_are_strikes_too() {
    let mut scene = Scene::proven(grant());
    let replay = scene.frame(1, 0.0, HELLO);
    let elsewhere = Scene { sid: "another".to_owned(), ..Scene::open(grant()) }.frame(2, 0.0, HELLO);
    let malformed = scene.frame(2, 0.0, r#""op":"hello","ch":"x""#);
    let stranger = replay.replace('.', "A.");
    for frame in [&replay, &elsewhere, &malformed, &stranger] {
        scene.session.receive(frame, at(0.0));
    }
    assert_eq!(scene.session.closing(), None);
    assert_eq!(scene.session.receive(&replay, at(0.0)), Verdict::Refused(Refusal::Replayed));
    assert_eq!(scene.session.closing(), Some(Close::Strikes));
}

#[test]
fn strikes_that_are_spread_out_close_nothing() {
    let mut scene = Scene::proven(grant());
    for strike in 0..50 {
        let now = at(f64::from(strike) * 15.0);
        scene.session.receive("rubbish", now);
        assert_eq!(scene.ops(), (vec!["reject".to_owned()], None), "strike {strike}");
    }
}

#[test]
fn refusals_that_honest_devices_earn_are_no_strikes() {
    let mut grant = grant();
    grant.limits.rate.burst = 6;
    let mut scene = Scene::proven(grant);
    for seq in 2..40 {
        let seconds = if seq % 3 == 0 { 500.0 } else { 0.0 };
        let frame = scene.frame(seq, seconds, r##""op":"subscribe","ch":"#""##);
        scene.session.receive(&frame, at(0.0));
    }
    let (messages, close) = scene.said();
    let errors: Vec<_> = messages.iter().map(|message| message["error"].as_str().unwrap()).collect();
    assert_eq!(close, None);
    for error in ["stale", "forbidden", "rate_limited"] {
        assert!(errors.contains(&error), "{error}");
    }
}

#[test]
fn a_session_that_nobody_proves_ends_after_thirty_seconds_and_has_heard_nothing_but_welcome() {
    let mut scene = Scene::open(grant());
    let mut narrow = grant();
    narrow.limits.heartbeat = Duration::from_secs(45);
    scene.session.update(narrow, at(1.0));
    let message = Message {
        ch: "devices/press-7/x".to_owned(),
        data: serde_json::from_str("1").unwrap(),
        id: "m".parse().unwrap(),
        from: device(),
    };
    scene.session.deliver(&message, at(1.0));
    scene.session.tick(at(29.999));
    assert_eq!(scene.ops(), (vec![], None));
    assert_eq!(scene.session.deadline(at(29.0)), at(30.0).monotonic);
    scene.session.tick(at(30.0));
    assert_eq!(scene.ops(), (vec!["bye".to_owned()], Some(Close::Unproven)));
    assert!(!scene.session.is_proven());
}

/// R-34: the device would otherwise keep to limits that no longer hold.
#[test]
fn what_changed_before_the_proof_is_told_right_after_it() {
    let mut scene = Scene::open(grant());
    let mut narrow = grant();
    narrow.limits.rate.burst = 7;
    scene.session.update(narrow.clone(), at(1.0));
    narrow.limits.max_skew = Duration::from_millis(500);
    scene.session.update(narrow, at(2.0));
    let hello = scene.frame(1, 2.0, HELLO);
    scene.session.receive(&hello, at(2.0));
    let (messages, _) = scene.said();
    assert_eq!(messages.len(), 1);
    assert_eq!(messages[0]["rate"], json!({"per_second": 100, "burst": 7}));
    assert_eq!(messages[0]["max_skew"], 0.5);
    assert_eq!(messages[0].get("heartbeat"), None);
}

#[test]
fn a_message_refused_after_its_seq_proves_the_session_and_one_refused_before_does_not() {
    for (operation, seconds, proven) in
        [(r#""op":"no""#, 0.0, true), (r#""op":"subscribe","ch":"x""#, 0.0, true), (HELLO, 61.0, false)]
    {
        let mut scene = Scene::open(grant());
        let frame = scene.frame(1, seconds, operation);
        assert!(matches!(scene.session.receive(&frame, at(0.0)), Verdict::Refused(_)));
        assert_eq!(scene.session.is_proven(), proven, "{operation}");
    }
}

#[test]
fn silence_for_two_heartbeats_and_a_half_ends_a_session_and_any_sign_of_life_prolongs_it() {
    let mut scene = Scene::proven(grant());
    scene.session.tick(at(30.0));
    assert!(matches!(scene.session.poll(), Some(Output::Ping)));
    scene.session.heard(at(31.0));
    scene.session.tick(at(31.0 + 74.999));
    assert!(matches!(scene.session.poll(), Some(Output::Ping)));
    scene.session.tick(at(31.0 + 75.0));
    assert_eq!(scene.ops(), (vec!["bye".to_owned()], Some(Close::Silent)));
}

#[test]
fn a_certificate_ends_its_session_at_its_end() {
    let mut short = grant();
    short.certificate_expires = at(20.5).wall;
    let mut scene = Scene::proven(short);
    assert_eq!(scene.session.deadline(at(10.0)), at(20.5).monotonic);
    scene.session.tick(at(20.499));
    assert_eq!(scene.session.closing(), None);
    scene.session.tick(at(20.5));
    assert_eq!(scene.ops(), (vec!["bye".to_owned()], Some(Close::CertificateExpired)));
}

#[test]
fn no_message_slips_in_between_a_certificates_end_and_a_late_timer() {
    let mut short = grant();
    short.certificate_expires = at(20.0).wall;
    let mut scene = Scene::proven(short);
    let frame = scene.frame(2, 20.0, PUBLISH);
    assert_eq!(scene.session.receive(&frame, at(20.0)), Verdict::Ignored);
    assert_eq!(scene.ops(), (vec!["bye".to_owned()], Some(Close::CertificateExpired)));
}

#[test]
fn the_end_of_a_grace_ends_the_session_with_words_on_when_to_come_back() {
    let mut scene = Scene::proven(grant());
    let mut superseded = grant();
    superseded.grace_ends = Some(at(40.0).wall);
    scene.session.update(superseded, at(5.0));
    assert_eq!(scene.ops(), (vec![], None), "a grace is no limit of the welcome");
    scene.session.heard(at(39.0));
    scene.session.tick(at(40.0));
    let (messages, close) = scene.said();
    assert_eq!((messages[0]["retry_after"].as_u64(), close), (Some(3600), Some(Close::Suspended)));
}

#[test]
fn a_narrower_policy_ends_a_subscription_under_the_seq_of_its_subscribe() {
    let mut scene = Scene::proven(grant());
    for (seq, filter) in [(2, "devices/press-7/#"), (9, "fleets/hall/#")] {
        let frame = scene.frame(seq, 0.0, &format!(r#""op":"subscribe","ch":"{filter}""#));
        assert_eq!(scene.session.receive(&frame, at(0.0)), Verdict::Accepted);
    }
    scene.session.flush(at(0.0));
    scene.outputs();
    let mut narrow = grant();
    narrow.policy = policy(&POLICY.replace(r##","fleets/${fleet}/#""##, ""));
    scene.session.update(narrow, at(1.0));
    let outputs = scene.outputs();
    assert!(matches!(&outputs[0], Output::Unsubscribe(filter) if filter.as_str() == "fleets/hall/#"));
    let Output::Send(reject) = &outputs[1] else { panic!("{outputs:?}") };
    let reject = super::support::payload(reject);
    assert_eq!((&reject["error"], &reject["ref"]), (&json!("forbidden"), &json!(9)));
    assert_eq!(outputs.len(), 2);
    assert_eq!(
        scene.session.subscriptions().map(ToString::to_string).collect::<Vec<_>>(),
        ["devices/press-7/#"]
    );
}

#[test]
fn limits_name_only_what_changed() {
    let mut scene = Scene::proven(grant());
    scene.session.update(grant(), at(1.0));
    assert_eq!(scene.said(), (vec![], None));
    let mut changed = grant();
    changed.limits.heartbeat = Duration::from_secs(10);
    changed.certificate_expires = at(5e8).wall;
    scene.session.update(changed, at(2.0));
    let (messages, _) = scene.said();
    let mut names: Vec<_> = messages[0].as_object().unwrap().keys().map(String::as_str).collect();
    names.retain(|name| !["iss", "aud", "sid", "seq", "iat", "op"].contains(name));
    assert_eq!(names, ["certificate_expires", "heartbeat"]);
    assert!(messages[0]["heartbeat"].is_u64(), "whole seconds are whole numbers");
}

#[test]
fn a_retired_key_closes_its_session_and_the_last_word_is_one_that_the_device_can_check() {
    let mut scene = Scene::proven(grant());
    let mut rotated = grant();
    (rotated.keyring, rotated.signer) = (keyring(&[2]), key(2));
    scene.session.update(rotated, at(1.0));
    let outputs = scene.outputs();
    let Output::Send(bye) = &outputs[0] else { panic!("{outputs:?}") };
    assert!(matches!(outputs[1], Output::Close(Close::Kicked)));
    let mut link = doorward_proto::link::Link::new(device(), keyring(&[1]), Default::default());
    let order = link.receive(bye, at(1.0)).unwrap_err().0;
    assert!(order.starts_with("the order"), "signed with a key that the device holds: {order}");
}

#[test]
fn nothing_is_looked_at_after_the_decision_to_close() {
    let mut scene = Scene::proven(grant());
    let receipt = publish(&mut scene, 2, 0.0);
    let kept = publish(&mut scene, 3, 0.0);
    scene.session.end(Close::Kicked, None, at(1.0));
    assert_eq!(scene.ops(), (vec!["bye".to_owned()], Some(Close::Kicked)));
    let frame = scene.frame(4, 1.0, HELLO);
    assert_eq!(scene.session.receive(&frame, at(1.0)), Verdict::Ignored);
    assert_eq!(scene.session.receive("rubbish", at(1.0)), Verdict::Ignored);
    scene.session.refuse(receipt, Refusal::Unavailable, "", Some(1), at(1.0));
    scene.session.settle(Stored(kept));
    scene.session.flush(at(1.0));
    scene.session.update(grant(), at(2.0));
    scene.session.tick(at(1e6));
    scene.session.end(Close::Revoked, None, at(3.0));
    assert!(scene.outputs().is_empty(), "the first reason stands, and it is the last word");
    assert_eq!(scene.session.closing(), Some(Close::Kicked));
}

#[test]
fn a_message_too_long_closes_without_a_reject() {
    let mut scene = Scene::proven(grant());
    scene.session.receive(&"x".repeat(4096), at(0.0));
    assert_eq!(scene.ops(), (vec!["reject".to_owned()], None), "as long as it may be");
    scene.session.receive(&"x".repeat(4097), at(0.0));
    assert_eq!(scene.ops(), (vec![], Some(Close::TooBig)));
}

#[test]
fn acks_cover_what_is_stored_and_never_what_is_refused_or_undecided() {
    let mut scene = Scene::proven(grant());
    let mut receipts: Vec<_> = (2..9).map(|seq| Some(publish(&mut scene, seq, 0.0))).collect();
    for seq in [8, 3, 2, 5] {
        scene.session.settle(Stored(receipts[seq - 2].take().unwrap()));
    }
    let refused = receipts[2].take().unwrap();
    scene.session.refuse(refused, Refusal::Unavailable, "later", Some(2), at(0.0));
    scene.session.flush(at(0.0));
    let (messages, _) = scene.said();
    assert_eq!((&messages[0]["ref"], &messages[0]["retry_after"]), (&json!(4), &json!(2)));
    assert_eq!(messages[1]["acks"], json!([[2, 3], [5, 5], [8, 8]]));
    assert_eq!(scene.session.undecided(), 2);
}

/// Many gaps make many ranges; the device refuses a message that is longer than it takes.
#[test]
fn an_ack_never_outgrows_a_message() {
    let mut scene = Scene::proven(grant());
    for step in 1..400_u32 {
        let now = f64::from(step);
        let frame = scene.frame(9_007_199_254_000_000 + 2 * u64::from(step), now, HELLO);
        assert_eq!(scene.session.receive(&frame, at(now)), Verdict::Accepted);
    }
    scene.session.flush(at(400.0));
    let frames: Vec<_> = scene.outputs();
    assert_eq!(frames.len(), 4);
    for frame in frames {
        assert!(matches!(frame, Output::Send(text) if text.len() < 6000));
    }
}
