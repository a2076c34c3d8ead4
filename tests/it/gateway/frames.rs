//! WebSocket frames from a peer that plays with them (RFC 6455): what is allowed is let through, what is not ends the session
//! with a code that says which rule it was, and what brings no message may not come without end.

use std::sync::Arc;

use doorward_proto::close::Close;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::Message;

use crate::support::device::{Device, TLS13, UPGRADE, dial, tls};
use crate::support::house::{House, eventually, within};

pub(super) const FIN: u8 = 0x80;
pub(super) const CONTINUE: u8 = 0;
pub(super) const TEXT: u8 = 1;
pub(super) const CLOSE: u8 = 8;
pub(super) const PING: u8 = 9;
const PONG: u8 = 10;

async fn proven() -> (House, Device) {
    let house = House::with(|config| {
        config.limits.message_bytes = 4096;
        (config.limits.frames_per_second, config.limits.frames_burst) = (100, 200);
    })
    .await;
    let credentials = house.add_device("press-7").await;
    let device = Device::prove(&house, &credentials).await;
    (house, device)
}

/// A frame with a mask that changes nothing.
pub(super) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        0..126 => bytes.push(0x80 | u8::try_from(payload.len()).unwrap()),
        length => {
            bytes.push(0xfe);
            bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
    }
    bytes.extend([0; 4]);
    bytes.extend(payload);
    bytes
}

/// Sends bytes past the WebSocket client, which would not. Whether the gateway took them.
async fn send(device: &mut Device, bytes: &[u8]) -> bool {
    let stream = device.ws.get_mut();
    let sent = async {
        stream.write_all(bytes).await?;
        stream.flush().await
    };
    within("sending bytes", sent).await.is_ok()
}

/// A signed `hello`, which nobody has sent yet.
fn hello(device: &mut Device) -> Vec<u8> {
    let claims = device.claims(json!({ "op": "hello" }));
    device.signer.sign(claims.to_string().as_bytes()).into_bytes()
}

#[tokio::test]
async fn each_broken_rule_has_its_code() {
    for (bytes, code, rule) in [
        (frame(FIN | 0x20 | TEXT, b"hi"), 1002, "the second reserved bit"),
        (frame(FIN | 0x10 | TEXT, b"hi"), 1002, "the third reserved bit"),
        (frame(FIN | 0x40 | TEXT, b"hi"), 1002, "the first reserved bit: no compression was agreed on"),
        (frame(FIN | 0x0b, b"hi"), 1002, "a reserved control opcode"),
        (frame(FIN | 0x03, b"hi"), 1002, "a reserved opcode of data"),
        (vec![FIN | TEXT, 2, b'h', b'i'], 1002, "a frame without a mask"),
        (vec![FIN | PING, 0], 1002, "a ping without a mask"),
        (vec![FIN | CLOSE, 2, 3, 0xe8], 1002, "a close without a mask"),
        ([frame(TEXT, b"half"), vec![CONTINUE, 1, b'x']].concat(), 1002, "a second fragment without a mask"),
        (frame(FIN | CONTINUE, b"hi"), 1002, "the end of a message that has not begun"),
        ([frame(TEXT, b"a"), frame(PING, b"b")].concat(), 1002, "a ping in fragments within a message"),
        (frame(FIN | PING, &[b'x'; 126]), 1002, "a ping longer than 125 bytes"),
        (frame(CLOSE, &[3, 0xe8]), 1002, "a close in fragments"),
        (frame(PONG, b"hi"), 1002, "a pong in fragments"),
        ([frame(TEXT, b"a"), frame(FIN | TEXT, b"b")].concat(), 1002, "a message within a message"),
        (frame(FIN | CLOSE, &[3]), 1002, "a close with half a code"),
        (frame(FIN | CLOSE, &[0x03, 0xed]), 1002, "a close with a code that never travels (1005)"),
        (frame(FIN | CLOSE, &[0, 1]), 1002, "a close with a code that is none"),
        (
            [frame(TEXT, &[0xe2, 0x82]), frame(FIN, b"x")].concat(),
            1007,
            "half a character and something else",
        ),
        (frame(FIN | TEXT, &[0xed, 0xa0, 0x80]), 1007, "a surrogate"),
        (frame(FIN | TEXT, &[0xc0, 0xaf]), 1007, "a character written too long"),
    ] {
        let (house, mut device) = proven().await;
        assert!(send(&mut device, &bytes).await);
        let closed = device.until_closed().await;
        assert_eq!(closed, (Some(code), vec![]), "{rule}");
        eventually("the session has left", async || house.gateway.devices() == 0).await;
    }
}

#[tokio::test]
async fn control_frames_may_come_between_fragments_and_a_character_may_be_cut_in_two() {
    let (_house, mut device) = proven().await;
    let text = hello(&mut device);
    let (first, rest) = text.split_at(20);
    let (second, third) = rest.split_at(rest.len() / 2);
    for bytes in [
        frame(TEXT, first),
        frame(FIN | PING, b"are you there"),
        frame(CONTINUE, second),
        frame(FIN | PONG, b"nobody asked"),
        frame(CONTINUE, b""),
        frame(FIN, third),
    ] {
        send(&mut device, &bytes).await;
    }
    device.acked(device.seq).await;
    // It is no envelope, but it is UTF-8.
    send(&mut device, &[frame(TEXT, &[0xe2, 0x82]), frame(FIN, &[0xac])].concat()).await;
    assert_eq!(device.rejected().await.1, "bad_envelope");
}

/// Floods, more than any limit lets through at once or in the time that it takes; the code of the close.
async fn flood(device: &mut Device, bytes: &[u8]) -> Option<u16> {
    let many = bytes.repeat(5000);
    send(device, &many).await;
    device.until_closed().await.0
}

async fn ends_a_flood(what: &str, first: &[u8], bytes: &[u8]) {
    let (house, mut device) = proven().await;
    let mut neighbour = Device::prove(&house, &house.add_device("press-8").await).await;
    send(&mut device, first).await;
    assert_eq!(flood(&mut device, bytes).await, Some(4008), "{what}");
    assert_eq!(house.gateway.counters().closed_for(Close::Strikes), 1);
    let seq = neighbour.publish("m1", json!(1)).await;
    neighbour.acked(seq).await;
    let events = "SELECT count(*) FROM events WHERE kind = 'strikes' AND device = 'press-7'
        AND detail LIKE '%pings, pongs and small fragments%'";
    eventually("the event", async || house.db.number(events).await == 1).await;
}

#[tokio::test]
async fn a_flood_of_pings_ends_the_session() {
    ends_a_flood("pings", &[], &frame(FIN | PING, b"")).await;
}

#[tokio::test]
async fn a_flood_of_pongs_ends_the_session() {
    ends_a_flood("pongs", &[], &frame(FIN | PONG, &[b'x'; 125])).await;
}

#[tokio::test]
async fn a_message_in_empty_fragments_without_end_ends_the_session() {
    ends_a_flood("empty fragments", &frame(TEXT, b"x"), &frame(CONTINUE, b"")).await;
}

#[tokio::test]
async fn a_message_in_fragments_without_end_is_too_big_before_it_is_too_many() {
    let (house, mut device) = proven().await;
    // Far more than a message may have, in pieces that are each within every limit of frames.
    send(&mut device, &frame(TEXT, &[b'x'; 100])).await;
    for _ in 0..60 {
        if !send(&mut device, &frame(CONTINUE, &[b'x'; 100])).await {
            break;
        }
    }
    assert_eq!(device.until_closed().await.0, Some(1009));
    assert_eq!(house.gateway.counters().closed_for(Close::TooBig), 1);
    eventually("the session has left", async || house.gateway.devices() == 0).await;
}

#[tokio::test]
async fn a_mask_that_is_not_the_frames_is_a_strike_or_no_text() {
    let (_house, mut device) = proven().await;
    // Its mask is of ones, and it was never applied: what comes out is no UTF-8.
    let text = hello(&mut device);
    let mut bytes = frame(FIN | TEXT, &text[..100]);
    bytes[2..6].copy_from_slice(&[0xff; 4]);
    send(&mut device, &bytes).await;
    assert_eq!(device.until_closed().await, (Some(1007), vec![]));
    let (_house, mut device) = proven().await;
    // One that leaves it ASCII, and no envelope any more.
    let text = hello(&mut device);
    let mut bytes = frame(FIN | TEXT, &text[..100]);
    bytes[2..6].copy_from_slice(&[1; 4]);
    send(&mut device, &bytes).await;
    assert_eq!(device.rejected().await.1, "bad_envelope");
    device.hello().await;
}

#[tokio::test]
async fn a_flood_behind_the_upgrade_request_counts_too() {
    let house = House::with(|config| config.limits.frames_burst = 16).await;
    let credentials = house.add_device("press-7").await;
    let config = Arc::new(tls(&house, Some(&credentials), TLS13));
    let mut stream = dial(&house, config).await.unwrap();
    let pings: Vec<u8> = (0..100).flat_map(|_| frame(FIN | PING, b"")).collect();
    let bytes = [UPGRADE.as_bytes(), &pings].concat();
    stream.write_all(&bytes).await.unwrap();
    let mut device = Device::upgrade_on(stream, &credentials, "").await.unwrap();
    assert_eq!(device.until_closed().await.0, Some(4008));
}

#[tokio::test]
async fn what_an_honest_device_sends_is_within_the_limits() {
    let (house, mut device) = proven().await;
    // As many as may come at once: pings, and a message in parts of some bytes.
    for _ in 0..50 {
        device.send_frame(Message::Ping(vec![1; 125].into())).await;
    }
    let text = hello(&mut device);
    let parts: Vec<&[u8]> = text.chunks(4).collect();
    assert!(parts.len() > 50 && parts.len() < 140, "{}", parts.len());
    for (n, part) in parts.iter().enumerate() {
        let first = if n == 0 { TEXT } else { CONTINUE };
        let fin = if n + 1 == parts.len() { FIN } else { 0 };
        send(&mut device, &frame(fin | first, part)).await;
    }
    device.acked(device.seq).await;
    // What brings messages does not count here, however many there are.
    for _ in 0..5 {
        device.say_at_once((0..100).map(|_| json!({ "op": "hello" })).collect()).await;
        device.acked(device.seq).await;
    }
    assert_eq!(house.gateway.counters().closed_for(Close::Strikes), 0);
}

#[tokio::test]
async fn nothing_behind_a_close_counts() {
    let (house, mut device) = proven().await;
    let members = device.to_publish("late", json!(1));
    let claims = device.claims(members);
    let late = device.signer.sign(claims.to_string().as_bytes());
    let bytes = [frame(FIN | CLOSE, &[3, 0xe8]), frame(FIN | TEXT, late.as_bytes())].concat();
    send(&mut device, &bytes).await;
    assert_eq!(device.until_closed().await, (Some(1000), vec![]));
    eventually("the session has left", async || house.gateway.devices() == 0).await;
    assert_eq!(house.stored_as("late").await, 0);
}

#[tokio::test]
async fn both_ends_may_close_at_once() {
    for _ in 0..10 {
        let (house, mut device) = proven().await;
        let credentials = device.credentials.clone();
        let kick = house.db.registry.kick(&credentials.id);
        let (kicked, sent) =
            tokio::join!(kick, async { send(&mut device, &frame(FIN | CLOSE, &[3, 0xe8])).await });
        kicked.unwrap();
        assert!(sent);
        let (code, messages) = device.until_closed().await;
        let bye = messages.iter().all(|message| message["op"] == "bye");
        assert!(matches!(code, Some(1000 | 4005)) && bye, "{code:?} {messages:?}");
        eventually("the session has left", async || house.gateway.devices() == 0).await;
    }
}

#[tokio::test]
async fn who_goes_on_sending_after_a_close_is_not_read_to_the_end() {
    let (_house, mut device) = proven().await;
    // A frame of a tebibyte begins, and goes on.
    let header = [&[FIN | TEXT, 0xff][..], &(1_u64 << 40).to_be_bytes(), &[0; 4]].concat();
    assert!(send(&mut device, &header).await);
    let part = vec![b'x'; 64 << 10];
    for _ in 0..2048 {
        if !send(&mut device, &part).await {
            return;
        }
    }
    panic!("it has read 128 MiB of what it had refused");
}

#[tokio::test]
async fn who_never_answers_a_close_is_cut() {
    let (house, mut device) = proven().await;
    house.db.registry.kick(&device.credentials.id).await.unwrap();
    eventually("the session has left", async || house.gateway.devices() == 0).await;
    // It reads what was said and says nothing; the gateway hangs up by itself.
    let mut rest = Vec::new();
    let _ = within("the end", device.ws.get_mut().read_to_end(&mut rest)).await;
    assert!(!rest.is_empty());
}

#[tokio::test]
async fn a_close_in_the_middle_of_a_message_is_a_close() {
    let (house, mut device) = proven().await;
    send(&mut device, &[frame(TEXT, b"half"), frame(FIN | CLOSE, &[3, 0xe8])].concat()).await;
    assert_eq!(device.until_closed().await, (Some(1000), vec![]));
    eventually("the session has left", async || house.gateway.devices() == 0).await;
    assert_eq!(house.gateway.counters().totals().rejected, 0);
}

#[tokio::test]
async fn a_ping_is_answered_with_what_it_said() {
    let (_house, mut device) = proven().await;
    device.send_frame(Message::Ping(b"42".to_vec().into())).await;
    use futures_util::StreamExt as _;
    let pong = within("the pong", device.ws.next()).await.unwrap().unwrap();
    assert_eq!(pong, Message::Pong(b"42".to_vec().into()));
    device.hello().await;
}
