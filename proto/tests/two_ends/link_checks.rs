//! What the device checks of each message of the gateway, and what it does with the answers.

use doorward_proto::downlink::Reject;
use doorward_proto::ids::MessageId;
use doorward_proto::link::{Event, Link, Outgoing, Violation};
use doorward_proto::verdict::Refusal;
use serde_json::{Value, json};

use super::support::{EPOCH, at, device, key, keyring, payload};

const SID: &str = "c2lkLW9mLXRoZS1zZXNzaW9u";

fn link() -> Link {
    Link::new(device(), keyring(&[1, 2]), Default::default())
}

fn claims(seq: u64, operation: Value) -> Value {
    let mut claims = json!({"iss": "gateway", "aud": "press-7", "sid": SID, "seq": seq, "iat": EPOCH});
    claims.as_object_mut().unwrap().extend(operation.as_object().unwrap().clone());
    claims
}

fn welcome() -> Value {
    json!({"op": "welcome", "max_message_bytes": 1024, "max_skew": 60, "heartbeat": 30,
        "rate": {"per_second": 10, "burst": 10}, "key": 1, "certificate_expires": EPOCH + 9, "gateway": "g",
        "a member of a later version": [1]})
}

fn sign(claims: &Value) -> String {
    key(1).sign(claims.to_string().as_bytes())
}

/// In a session, with one publish sent under `seq` 1.
fn open() -> (Link, MessageId) {
    let mut link = link();
    let outgoing = Outgoing::new([3; 16], "devices/press-7/x", "1").unwrap();
    let id = outgoing.id.clone();
    link.publish(outgoing).unwrap();
    link.receive(&sign(&claims(1, welcome())), at(0.0)).unwrap();
    assert!(matches!(link.poll(), Some(Event::Welcome(_))));
    assert_eq!(payload(&link.transmit(at(0.0)).unwrap())["seq"], 1);
    (link, id)
}

#[test]
fn the_first_message_must_be_a_valid_welcome_and_nothing_is_sent_before_it() {
    let good = claims(1, welcome());
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        sign(&claims)
    };
    for (why, frame) in [
        ("another operation", sign(&claims(1, json!({"op": "ack", "acks": []})))),
        ("an unknown operation", with("op", json!("hullo"))),
        ("iss", with("iss", json!("press-7"))),
        ("aud", with("aud", json!("press-8"))),
        ("sid empty", with("sid", json!(""))),
        ("sid too long", with("sid", json!("x".repeat(65)))),
        ("seq zero", with("seq", json!(0))),
        ("seq beyond 2^53-1", with("seq", json!(1_u64 << 53))),
        ("a member missing", with("rate", Value::Null)),
        (
            "another key",
            doorward_proto::key::Key::new(key(1).version(), &[8; 32]).sign(good.to_string().as_bytes()),
        ),
        ("a key version it does not hold", key(3).sign(good.to_string().as_bytes())),
        ("no JSON", key(1).sign(b"{")),
        ("no JWS", good.to_string()),
        ("too long", "x".repeat((1 << 20) + 1)),
    ] {
        let mut link = link();
        link.publish(Outgoing::new([1; 16], "a", "1").unwrap()).unwrap();
        assert!(link.receive(&frame, at(0.0)).is_err(), "{why}");
        assert_eq!((link.transmit(at(0.0)), link.poll().is_none()), (None, true), "{why}");
    }
    let frame = key(2).sign(good.to_string().as_bytes());
    assert_eq!(link().receive(&frame, at(0.0)), Ok(()), "each key version that it holds is taken");
}

#[test]
fn later_messages_are_of_the_same_session_and_in_sequence() {
    let ack = json!({"op": "ack", "acks": [[1, 1]]});
    let with = |name: &str, value: Value| {
        let mut claims = claims(2, ack.clone());
        claims[name] = value;
        sign(&claims)
    };
    for (frame, of) in [
        (with("sid", json!("another")), "'sid'"),
        (with("seq", json!(1)), "'seq'"),
        (with("aud", json!("gateway")), "'iss' and 'aud'"),
        (with("acks", json!([[2, 1]])), "an ack's range"),
        (with("acks", json!("all")), "its members"),
        (sign(&claims(2, welcome())), "the order: one 'welcome' a session"),
    ] {
        let (mut link, _) = open();
        assert_eq!(link.receive(&frame, at(0.0)), Err(Violation(of)));
        assert!(link.poll().is_none());
    }
    let (mut link, id) = open();
    let frame = with("seq", json!(77));
    assert_eq!(link.receive(&frame, at(0.0)), Ok(()));
    assert!(matches!(link.poll(), Some(Event::Acked(acked)) if acked == id));
    assert_eq!(link.receive(&frame, at(0.0)), Err(Violation("'seq'")), "the same once more");
}

#[test]
fn the_gateways_clock_is_taken_and_not_judged() {
    let (mut link, _) = open();
    link.publish(Outgoing::new([4; 16], "a", "1").unwrap()).unwrap();
    let frame = link.transmit(at(500.25)).unwrap();
    #[expect(clippy::cast_precision_loss, reason = "a date of this century")]
    let wanted = EPOCH as f64 + 500.25;
    assert_eq!(payload(&frame)["iat"], wanted);
    let mut late = claims(2, json!({"op": "an operation of a later version"}));
    late["iat"] = json!(0.5);
    assert_eq!(link.receive(&sign(&late), at(501.0)), Ok(()));
}

#[test]
fn a_range_as_long_as_numbers_go_costs_no_more_than_what_waits() {
    let (mut link, _) = open();
    let ack = claims(2, json!({"op": "ack", "acks": [[1, 9_007_199_254_740_991_u64], [0, u64::MAX]]}));
    assert_eq!(link.receive(&sign(&ack), at(0.0)), Ok(()));
    assert!(matches!(link.poll(), Some(Event::Acked(_))));
    assert_eq!(link.unanswered(), 0);
}

fn rejected(link: &mut Link, seq: u64, error: &str, retry_after: Option<u64>, seconds: f64) {
    let mut reject = json!({"op": "reject", "ref": 1, "error": error, "detail": "because"});
    if let Some(wait) = retry_after {
        reject["retry_after"] = json!(wait);
    }
    link.receive(&sign(&claims(seq, reject)), at(seconds)).unwrap();
}

#[test]
fn what_waiting_helps_is_signed_anew_under_the_same_id() {
    for (error, wait) in [("stale", 0.0), ("rate_limited", 3.0), ("unavailable", 3.0)] {
        let (mut link, id) = open();
        rejected(&mut link, 2, error, Some(3), 10.0);
        if wait > 0.0 {
            assert_eq!(link.transmit(at(9.9 + wait)), None, "{error}");
            assert_eq!(link.deadline(), Some(at(10.0 + wait).monotonic), "{error}");
        }
        let again = payload(&link.transmit(at(10.0 + wait)).unwrap());
        assert_eq!((&again["seq"], &again["id"]), (&json!(2), &json!(id.as_str())), "{error}");
        assert!(link.poll().is_none());
    }
}

#[test]
fn what_waiting_does_not_help_is_given_up() {
    for error in ["forbidden", "bad_message", "a word of a later version"] {
        let (mut link, id) = open();
        rejected(&mut link, 2, error, None, 0.0);
        assert!(matches!(link.poll(), Some(Event::Refused { id: given_up, refusal, .. })
            if given_up == id && refusal == Refusal::from_word(error)));
        assert_eq!(link.unanswered(), 0);
    }
}

/// Such a refusal is of a captured message, whose `seq` one of this session's may share.
#[test]
fn the_refusal_of_a_replay_does_not_lose_the_message_that_has_its_seq() {
    for error in ["replayed", "wrong_session", "wrong_party"] {
        let (mut link, id) = open();
        rejected(&mut link, 2, error, None, 0.0);
        assert!(matches!(link.poll(), Some(Event::Rejected(Reject { reference: Some(1), .. }))));
        link.receive(&sign(&claims(3, json!({"op": "ack", "acks": [[1, 1]]}))), at(0.0)).unwrap();
        assert!(matches!(link.poll(), Some(Event::Acked(acked)) if acked == id));
    }
}

#[test]
fn a_message_too_long_for_the_gateway_is_given_up_and_not_sent_in_vain_for_ever() {
    let (mut link, _) = open();
    link.publish(Outgoing::new([5; 16], "a", &format!("\"{}\"", "x".repeat(1024))).unwrap()).unwrap();
    link.publish(Outgoing::new([6; 16], "a", "1").unwrap()).unwrap();
    assert_eq!(payload(&link.transmit(at(0.0)).unwrap())["seq"], 2, "the one behind it goes ahead");
    assert!(matches!(link.poll(), Some(Event::Refused { refusal: None, .. })));
}

#[test]
fn a_full_window_wakes_nobody_for_a_retry_that_could_not_be_sent() {
    let bounds = doorward_proto::link::Bounds { window: 1, ..Default::default() };
    let mut link = Link::new(device(), keyring(&[1]), bounds);
    for id in [1, 2] {
        link.publish(Outgoing::new([id; 16], "a", "1").unwrap()).unwrap();
    }
    link.receive(&sign(&claims(1, welcome())), at(0.0)).unwrap();
    link.transmit(at(0.0)).unwrap();
    rejected(&mut link, 2, "unavailable", Some(5), 0.0);
    link.transmit(at(0.0)).unwrap();
    assert_eq!(link.transmit(at(6.0)), None);
    assert_eq!(
        link.deadline(),
        Some(at(75.0).monotonic),
        "the retry of the fifth second is not what is waited for"
    );
}

#[test]
fn a_new_key_is_shown_at_once_by_a_device_that_has_nothing_to_say() {
    let (mut link, _) = open();
    assert_eq!(link.transmit(at(0.0)), None);
    link.add_key(key(3));
    let frame = link.transmit(at(0.0)).unwrap();
    assert_eq!((payload(&frame)["op"].clone(), kid_of(&frame)), (json!("hello"), "3".to_owned()));
    assert_eq!(link.transmit(at(0.0)), None);
    // One that has something to say shows it by that.
    let (mut link, _) = open();
    link.publish(Outgoing::new([4; 16], "devices/press-7/x", "2").unwrap()).unwrap();
    link.add_key(key(3));
    let frame = link.transmit(at(0.0)).unwrap();
    assert_eq!((payload(&frame)["op"].clone(), kid_of(&frame)), (json!("publish"), "3".to_owned()));
    assert_eq!(link.transmit(at(0.0)), None);
    // Outside a session there is nobody to show it to: the first message of the next one does.
    let mut link = self::link();
    link.add_key(key(3));
    assert_eq!(link.transmit(at(0.0)), None);
}

fn kid_of(frame: &str) -> String {
    use base64::Engine as _;
    let header = frame.split('.').next().unwrap();
    let header = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(header).unwrap();
    let header: Value = serde_json::from_slice(&header).unwrap();
    header["kid"].as_str().unwrap().to_owned()
}
