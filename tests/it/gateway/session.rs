//! What a session says and refuses, over the socket.

use std::time::Duration;

use doorward::clock;
use doorward_proto::key::Key;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::support::database::Database;
use crate::support::device::{Device, Heard, ranges};
use crate::support::house::{House, eventually, seconds};

/// Each member of a table is named by its op.
fn members(message: &Value) -> Vec<&str> {
    let mut members: Vec<_> = message.as_object().unwrap().keys().map(String::as_str).collect();
    members.sort_unstable();
    members
}

#[tokio::test]
async fn a_welcome_states_the_limits_and_nothing_else() {
    let house = House::with(|config| {
        config.gateway.name = "gate-7".to_owned();
        config.limits.message_bytes = 5000;
        (config.limits.rate_per_second, config.limits.rate_burst) = (7, 11);
        (config.session.heartbeat, config.session.max_skew) = (seconds(9), seconds(45));
    })
    .await;
    let credentials = house.certify("press-7", |params| {
        params.not_after = crate::support::house::from_now(1000).replace_nanosecond(0).unwrap();
    });
    house.record("press-7", "default", &credentials).await;
    let (_, leaf) = x509_parser::parse_x509_certificate(&credentials.chain[0]).unwrap();
    let mut device = Device::upgrade(&house, &credentials, crate::support::device::UPGRADE).await;
    let welcome = device.expect("welcome").await;
    let all = [
        "aud",
        "certificate_expires",
        "gateway",
        "heartbeat",
        "iat",
        "iss",
        "key",
        "max_message_bytes",
        "max_skew",
        "op",
        "rate",
        "seq",
        "sid",
    ];
    assert_eq!(members(&welcome), all);
    assert_eq!(welcome["max_message_bytes"], 5000);
    assert_eq!(welcome["rate"], json!({ "per_second": 7, "burst": 11 }));
    assert_eq!((&welcome["heartbeat"], &welcome["max_skew"]), (&json!(9), &json!(45)));
    assert_eq!((&welcome["key"], &welcome["gateway"]), (&json!(1), &json!("gate-7")));
    assert_eq!(welcome["certificate_expires"], leaf.validity().not_after.timestamp());
    let now = clock::now().wall.as_duration().as_secs_f64();
    assert!((welcome["iat"].as_f64().unwrap() - now).abs() < 5.0);
    // 128 bits, base64url; another session's is another.
    let sid = welcome["sid"].as_str().unwrap().to_owned();
    assert_eq!(sid.len(), 22);
    let other = Device::connect(&house, &credentials).await;
    assert_ne!(other.sid, sid);
}

/// A session whose strikes do not end it.
async fn patient() -> (House, Device) {
    let house = House::with(|config| config.limits.strikes = 1000).await;
    let credentials = house.add_device("press-7").await;
    let device = Device::prove(&house, &credentials).await;
    (house, device)
}

#[tokio::test]
async fn what_is_not_authenticated_is_refused_without_a_ref() {
    let (_house, mut device) = patient().await;
    let null = |error: &str| (Value::Null, error.to_owned(), Value::Null);
    for frame in ["", "x", "a.b", "a.b.c", "a.b.c.d", "{}", "eyJhbGciOiJub25lIn0.e30."] {
        device.send_frame(Message::text(frame)).await;
        assert_eq!(device.rejected().await, null("bad_envelope"), "{frame:?}");
    }
    let claims = device.claims(json!({ "op": "hello" })).to_string();
    let hmac = device.credentials.hmac;
    for (version, bytes, error) in
        [("2", hmac, "bad_key"), ("1", [7; 32], "bad_signature"), ("1", [0; 32], "bad_signature")]
    {
        let frame = Key::new(version.parse().unwrap(), &bytes).sign(claims.as_bytes());
        device.send_frame(Message::text(frame)).await;
        assert_eq!(device.rejected().await, null(error));
    }
    // A changed byte of the payload; and the session is as good as before.
    let frame = device.signer.sign(claims.as_bytes());
    let other = frame.replacen(".ey", ".eY", 1);
    assert_ne!(other, frame);
    device.send_frame(Message::text(other)).await;
    assert_eq!(device.rejected().await, null("bad_signature"));
    device.hello().await;
}

#[tokio::test]
async fn what_is_authenticated_is_refused_with_its_seq() {
    let (_house, mut device) = patient().await;
    let wall = clock::now().wall.as_duration().as_secs();
    let publish = device.to_publish("m1", json!(1));
    let other = |member: &str, value: Value| {
        let mut members = publish.clone();
        members.as_object_mut().unwrap().insert(member.to_owned(), value);
        members
    };
    let deep = |n| format!("{}1{}", "[".repeat(n), "]".repeat(n));
    let deep: Value = serde_json::from_str(&deep(65)).unwrap();
    for (members, error) in [
        (other("iss", json!("press-8")), "wrong_party"),
        (other("aud", json!("press-7")), "wrong_party"),
        (other("sid", json!("AAAAAAAAAAAAAAAAAAAAAA")), "wrong_session"),
        (other("iat", json!(wall - 120)), "stale"),
        (other("iat", json!(wall + 120)), "stale"),
        (other("iat", json!(-1)), "bad_message"),
        (other("op", json!("dance")), "bad_message"),
        (other("unknown", json!(1)), "bad_message"),
        (other("id", json!("no spaces")), "bad_message"),
        (other("ch", json!("devices/+/t")), "bad_message"),
        (other("data", deep), "bad_message"),
        (other("ch", json!("devices/press-8/t")), "forbidden"),
        (json!({ "op": "subscribe", "ch": "#" }), "forbidden"),
        (json!({ "op": "publish", "id": "m1" }), "bad_message"),
    ] {
        let seq = device.say(members.clone()).await;
        assert_eq!(device.rejected().await, (json!(seq), error.to_owned(), Value::Null), "{members}");
    }
    // A refused message has used its seq up where the checks up to it had passed, and only there.
    let seq = device.seq;
    for (seq, outcome) in [(seq, Some("replayed")), (seq - 1, Some("replayed")), (seq + 1, None)] {
        device.seq = seq - 1;
        device.say(json!({ "op": "hello" })).await;
        match outcome {
            Some(error) => assert_eq!(device.rejected().await, (json!(seq), error.to_owned(), Value::Null)),
            None => device.acked(seq).await,
        }
    }
    device.say(other("sid", json!("x"))).await;
    assert_eq!(device.rejected().await.1, "wrong_session");
    device.seq -= 1;
    device.hello().await;
}

#[tokio::test]
async fn a_stale_message_is_told_by_how_much() {
    let (_house, mut device) = patient().await;
    let wall = clock::now().wall.as_duration().as_secs();
    device.say(json!({ "op": "hello", "iat": wall - 100 })).await;
    let reject = device.expect("reject").await;
    assert_eq!(reject["error"], "stale");
    let detail = reject["detail"].as_str().unwrap();
    let off: f64 = detail.split(' ').find_map(|word| word.parse().ok()).expect("a number of seconds");
    assert!((99.0..105.0).contains(&off), "{detail}");
    assert!(reject["iat"].as_f64().unwrap() >= wall as f64, "the gateway's clock");
}

#[tokio::test]
async fn over_its_rate_a_device_is_told_when_to_go_on() {
    let house =
        House::with(|config| (config.limits.rate_per_second, config.limits.rate_burst) = (1, 3)).await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::connect(&house, &credentials).await;
    device.say_at_once((0..5).map(|_| json!({ "op": "hello" })).collect()).await;
    let (mut refused, mut acked) = (0, 0);
    while refused + acked < 5 {
        match device.next().await {
            Heard::Message(m) if m["op"] == "ack" => {
                acked += ranges(&m).iter().map(|(first, last)| last - first + 1).sum::<u64>();
            }
            Heard::Message(m) => {
                assert_eq!((&m["op"], &m["error"]), (&json!("reject"), &json!("rate_limited")));
                assert!(m["ref"].as_u64().unwrap() > 3);
                assert!((1..=3).contains(&m["retry_after"].as_u64().unwrap()));
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((acked, refused), (3, 2));
}

async fn unproven(db: Database) {
    let house = House::on(db, |config| config.limits.strikes = 100).await;
    let credentials = house.add_device("press-7").await;
    let mut proven = Device::prove(&house, &credentials).await;
    eventually("presence", async || {
        house.db.number("SELECT coalesce(max(epoch), 0) FROM presence").await == 1
    })
    .await;
    let session = "SELECT count(*) FROM presence WHERE epoch = 1 AND session IS NOT NULL";

    // Same certificate, no key: what a thief of the certificate alone gets.
    let mut thief = Device::connect(&house, &credentials).await;
    thief.signer = Key::new("1".parse().unwrap(), &[9; 32]);
    thief.say(json!({ "op": "subscribe", "ch": "devices/press-7/#" })).await;
    thief.publish("stolen", json!(1)).await;
    for _ in 0..2 {
        assert_eq!(thief.rejected().await.1, "bad_signature");
    }
    let seq = proven.publish("m1", json!(1)).await;
    proven.acked(seq).await;
    assert!(thief.hears_nothing(Duration::from_millis(300)).await, "it is not subscribed");
    assert_eq!(house.stored_as("stolen").await, 0);
    assert_eq!(house.db.number(session).await, 1, "presence is the proven session's");

    // The newer unproven session wins; the proven one is left alone.
    let newer = Device::connect(&house, &credentials).await;
    thief.closed_with_bye(4011).await;
    let seq = proven.publish("m2", json!(2)).await;
    proven.acked(seq).await;
    drop(newer);
    assert_eq!(house.db.number(session).await, 1);
}

#[tokio::test]
async fn an_unproven_session_gets_nothing_and_evicts_nobody_on_sqlite() {
    unproven(Database::sqlite().await).await;
}

#[tokio::test]
async fn an_unproven_session_gets_nothing_and_evicts_nobody_on_postgres() {
    unproven(Database::postgres().await).await;
}
