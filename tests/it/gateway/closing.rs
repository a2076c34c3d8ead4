//! Every close code, for its reason.

use std::time::Duration;

use doorward::registry::Act;
use doorward_proto::close::Close;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use super::hooked::{self, Failure};
use crate::support::database::Database;
use crate::support::device::{Device, problem_of, refused};
use crate::support::house::{House, eventually, from_now, log, seconds, stamp};

async fn proven() -> (House, Device) {
    let house = House::with(|config| config.limits.message_bytes = 4096).await;
    let credentials = house.add_device("press-7").await;
    let device = Device::prove(&house, &credentials).await;
    (house, device)
}

/// Sends bytes past the WebSocket client, which would not.
async fn send_bytes(device: &mut Device, bytes: &[u8]) {
    let stream = device.ws.get_mut();
    stream.write_all(bytes).await.unwrap();
    stream.flush().await.unwrap();
}

#[tokio::test]
async fn a_device_that_closes_is_answered() {
    let (house, mut device) = proven().await;
    let seq = device.publish("m1", json!(1)).await;
    device.acked(seq).await;
    let bye = CloseFrame { code: 1000.into(), reason: "".into() };
    device.send_frame(Message::Close(Some(bye))).await;
    assert_eq!(device.until_closed().await, (Some(1000), vec![]));
    eventually("the session has left", async || house.gateway.devices() == 0).await;
    assert_eq!(house.gateway.counters().closed_for(Close::Normal), 1);
}

#[tokio::test]
async fn a_peer_that_breaks_websocket_is_told_which_rule() {
    let masked = |first: u8, payload: &[u8]| {
        let length = 0x80 | u8::try_from(payload.len()).unwrap();
        [&[first, length, 0, 0, 0, 0], payload].concat()
    };
    for (bytes, code) in [
        (vec![0x81, 2, b'h', b'i'], 1002),   // not masked
        (masked(0x83, b"hi"), 1002),         // reserved opcode
        (masked(0xC1, b"hi"), 1002),         // reserved bit: no extension was agreed
        (masked(0x80, b"hi"), 1002),         // continues nothing
        (masked(0x09, b"hi"), 1002),         // a fragmented ping
        (masked(0x81, &[b'h', 0xff]), 1007), // not UTF-8
        (masked(0x82, b"hi"), 1003),         // binary
    ] {
        let (_house, mut device) = proven().await;
        send_bytes(&mut device, &bytes).await;
        assert_eq!(device.until_closed().await, (Some(code), vec![]), "{bytes:?}");
    }
}

#[tokio::test]
async fn a_message_in_fragments_is_one_message() {
    let (_house, mut device) = proven().await;
    let claims = device.claims(json!({ "op": "hello" }));
    let frame = device.signer.sign(claims.to_string().as_bytes());
    let (mut rest, mut first) = (frame.as_bytes(), 0x01);
    while !rest.is_empty() {
        let (part, left) = rest.split_at(rest.len().min(100));
        let end = if left.is_empty() { 0x80 } else { 0 };
        let header = [end | first, 0x80 | u8::try_from(part.len()).unwrap(), 0, 0, 0, 0];
        send_bytes(&mut device, &[&header, part].concat()).await;
        (rest, first) = (left, 0);
    }
    device.acked(device.seq).await;
}

#[tokio::test]
async fn a_message_too_big_ends_the_session_and_the_close_frame_arrives() {
    // Just over, and so much over that the gateway stops reading in its midst; whole and in fragments.
    for size in [4097, 1 << 20] {
        let (house, mut device) = proven().await;
        device.send_frame(Message::text("x".repeat(size))).await;
        assert_eq!(device.until_closed().await, (Some(1009), vec![]), "{size} bytes");
        assert_eq!(house.gateway.counters().closed_for(Close::TooBig), 1);
    }
    let (_house, mut device) = proven().await;
    for part in 0..50 {
        let first = if part == 0 { 0x01 } else { 0x00 };
        send_bytes(&mut device, &[&[first, 0xE4, 0, 0, 0, 0], &[b'x'; 100][..]].concat()).await;
    }
    assert_eq!(device.until_closed().await, (Some(1009), vec![]));
    // What is allowed is allowed to the byte.
    let (_house, mut device) = proven().await;
    device.send_frame(Message::text("x".repeat(4096))).await;
    assert_eq!(device.rejected().await.1, "bad_envelope");
}

#[tokio::test]
async fn a_certificate_that_expires_ends_the_session() {
    let house = House::start().await;
    let credentials = house.certify("press-7", |params| params.not_after = from_now(2));
    house.record("press-7", "default", &credentials).await;
    let mut device = Device::prove(&house, &credentials).await;
    device.closed_with_bye(4001).await;
    assert_eq!(problem_of(&refused(&house, &credentials).await), "certificate-expired");
}

async fn what_an_operator_ends(db: Database) {
    let house = House::on(db, |_| {}).await;
    let registry = &house.db.registry;
    let set = async |id: &str, what: &str| {
        house.db.execute(&format!("UPDATE certificates SET {what} WHERE device = '{id}'")).await.unwrap();
    };
    for (id, code, retry_after) in [
        ("revoked", 4003, Value::Null),
        ("suspended", 4004, json!(3600)),
        ("certificate", 4004, json!(3600)),
        ("superseded", 4004, json!(3600)),
        ("kicked", 4005, Value::Null),
    ] {
        let credentials = house.add_device(id).await;
        let mut device = Device::prove(&house, &credentials).await;
        match id {
            "revoked" => drop(registry.set_status(&credentials.id, Act::Revoke, None).await.unwrap()),
            "suspended" => drop(registry.set_status(&credentials.id, Act::Suspend, None).await.unwrap()),
            "certificate" => set(id, "status = 'revoked'").await,
            "superseded" => {
                // Its grace ends while it is connected.
                let end = stamp(from_now(1));
                set(id, &format!("status = 'superseded', valid_until = '{end}'")).await;
            }
            _ => drop(registry.kick(&credentials.id).await.unwrap()),
        }
        assert_eq!(device.closed_with_bye(code).await, retry_after, "{id}");
    }
}

#[tokio::test]
async fn an_operators_act_ends_the_session_on_sqlite() {
    what_an_operator_ends(Database::sqlite().await).await;
}

#[tokio::test]
async fn an_operators_act_ends_the_session_on_postgres() {
    what_an_operator_ends(Database::postgres().await).await;
}

#[tokio::test]
async fn the_fifth_strike_ends_the_session_after_its_reject_and_is_an_event() {
    let (house, mut device) = proven().await;
    // What an honest device can earn is no strike.
    for _ in 0..6 {
        device.say(json!({ "op": "subscribe", "ch": "#" })).await;
        assert_eq!(device.rejected().await.1, "forbidden");
    }
    for _ in 0..5 {
        device.send_frame(Message::text("nonsense")).await;
    }
    let (code, messages) = device.until_closed().await;
    let ops: Vec<_> = messages.iter().map(|message| message["op"].as_str().unwrap()).collect();
    assert_eq!((code, ops), (Some(4008), vec!["reject", "reject", "reject", "reject", "reject", "bye"]));
    eventually("the event", async || {
        house.db.number("SELECT count(*) FROM events WHERE kind = 'strikes' AND device = 'press-7'").await
            == 1
    })
    .await;
}

#[tokio::test]
async fn a_newer_proven_session_takes_over() {
    let (house, mut older) = proven().await;
    let mut newer = Device::connect(&house, &older.credentials.clone()).await;
    assert!(older.hears_nothing(Duration::from_millis(200)).await, "not before it is proven");
    newer.hello().await;
    assert_eq!(older.closed_with_bye(4009).await, json!(60));
    let seq = newer.publish("m1", json!(1)).await;
    newer.acked(seq).await;
    eventually("the epoch", async || {
        house.db.number("SELECT coalesce(max(epoch), 0) FROM presence").await == 2
    })
    .await;
}

#[tokio::test]
async fn who_is_not_heard_for_two_heartbeats_and_a_half_is_closed() {
    let house = House::with(|config| config.session.heartbeat = seconds(1)).await;
    let credentials = house.add_device("silent").await;
    let mut silent = Device::prove(&house, &credentials).await;
    let credentials = house.add_device("answering").await;
    let mut answering = Device::prove(&house, &credentials).await;
    let start = doorward::clock::now().monotonic;
    // A client that reads answers pings; this one does not read until the gateway has given up.
    let reading = async { assert!(answering.hears_nothing(Duration::from_millis(3500)).await) };
    let given_up = async {
        let counters = house.gateway.counters();
        eventually("4010", async || counters.closed_for(Close::Silent) == 1).await;
        doorward::clock::now().monotonic - start
    };
    let ((), took) = tokio::join!(reading, given_up);
    assert!((2.2..3.5).contains(&took.as_secs_f64()), "{took:?}");
    silent.closed_with_bye(4010).await;
    answering.hello().await;
}

#[tokio::test]
async fn who_does_not_prove_itself_in_time_is_closed() {
    let house = House::with(|config| config.session.proof_within = seconds(1)).await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::connect(&house, &credentials).await;
    let mut proven = Device::prove(&house, &house.add_device("press-8").await).await;
    // Pings prove nothing.
    device.send_frame(Message::Ping(vec![1].into())).await;
    device.closed_with_bye(4011).await;
    proven.hello().await;
    assert_eq!(house.db.number("SELECT count(*) FROM presence WHERE device = 'press-7'").await, 0);
}

#[tokio::test]
async fn who_does_not_read_what_it_subscribed_to_is_closed() {
    let house = House::with(|config| {
        (config.limits.outgoing_bytes, config.limits.message_bytes) = (65_536, 32_768);
        (config.limits.rate_per_second, config.limits.rate_burst) = (100_000, 100_000);
        // What is over its rate is left unread, and the reset of the rest may overtake the close.
        (config.limits.bytes_per_second, config.limits.bytes_burst) = (1 << 30, 1 << 30);
    })
    .await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    let seq = device.say(json!({ "op": "subscribe", "ch": "devices/press-7/#" })).await;
    device.acked(seq).await;
    let counters = house.gateway.counters();
    let text = "x".repeat(20_000);
    // Until the kernel's buffers and the gateway's are full.
    for n in 0..2000 {
        if counters.closed_for(Close::SlowReader) == 1 {
            break;
        }
        let members = device.to_publish(&format!("m{n}"), json!(text));
        let claims = device.claims(members).to_string();
        let frame = Message::text(device.signer.sign(claims.as_bytes()));
        use futures_util::SinkExt as _;
        let sent = tokio::time::timeout(Duration::from_millis(500), device.ws.send(frame)).await;
        if !matches!(sent, Ok(Ok(()))) {
            break;
        }
    }
    eventually("4029", async || counters.closed_for(Close::SlowReader) == 1).await;
    let (code, messages) = device.until_closed().await;
    assert_eq!(code, Some(4029));
    assert!(messages.iter().all(|message| message["op"] != "bye"), "it would not have read that either");
    assert!(log().contains("slow_reader"));
}

#[tokio::test]
async fn a_commit_whose_outcome_stays_unknown_ends_the_session_and_says_nothing_of_the_message() {
    let (house, hooked) = hooked::house(|config| config.session.max_skew = seconds(20)).await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    *hooked.fail_writes.lock().unwrap() = Some(Failure::UnknownAfterCommit);
    device.publish("m1", json!(1)).await;
    let (code, messages) = device.until_closed().await;
    assert_eq!(code, Some(1011));
    assert!(messages.iter().all(|message| message["op"] == "bye"), "{messages:?}");
    // It asks again under the same id, and is answered; one copy is stored.
    *hooked.fail_writes.lock().unwrap() = None;
    let mut device = Device::prove(&house, &credentials).await;
    let seq = device.publish("m1", json!(1)).await;
    device.acked(seq).await;
    assert_eq!(house.stored_as("m1").await, 1);
}

#[tokio::test]
async fn the_parts_of_a_message_are_signs_of_life() {
    use tokio_tungstenite::tungstenite::protocol::frame::Frame;
    use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
    let house = House::with(|config| config.session.heartbeat = seconds(1)).await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    let members = device.to_publish("m1", json!(1));
    let claims = device.claims(members).to_string();
    let frame = device.signer.sign(claims.as_bytes());
    // It answers no ping meanwhile: it is in the middle of its own frame.
    let parts: Vec<&[u8]> = frame.as_bytes().chunks(frame.len() / 9).collect();
    for (n, part) in parts.iter().enumerate() {
        let code = OpCode::Data(if n == 0 { Data::Text } else { Data::Continue });
        let part = Frame::message(part.to_vec(), code, n + 1 == parts.len());
        device.send_frame(Message::Frame(part)).await;
        tokio::time::sleep(Duration::from_millis(450)).await;
    }
    device.expect("ack").await;
}

#[tokio::test]
async fn a_device_that_is_taken_over_again_and_again_is_an_event_and_slowed_down() {
    let house = House::start().await;
    let credentials = house.add_device("press-7").await;
    let mut last = Device::prove(&house, &credentials).await;
    for _ in 0..4 {
        let next = Device::prove(&house, &credentials).await;
        last.closed_with_bye(4009).await;
        last = next;
    }
    let answer = refused(&house, &credentials).await;
    assert_eq!((answer.status, problem_of(&answer)), (429, "too-many".to_owned()));
    let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((50..=61).contains(&wait), "{wait}");
    // Who has the session keeps it; other devices notice nothing.
    let seq = last.publish("m1", json!(1)).await;
    last.acked(seq).await;
    Device::prove(&house, &house.add_device("press-8").await).await;
    let events = "SELECT count(*) FROM events WHERE kind = 'possible_clone' AND device = 'press-7'
        AND detail LIKE '%from 127.0.0.1:% by 127.0.0.1:%'";
    eventually("the event", async || house.db.number(events).await == 1).await;
}
