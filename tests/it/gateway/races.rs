//! Closes that meet something else: each session ends once, leaves nothing behind, and what was acked is stored.

use std::time::Duration;

use doorward::registry::Act;
use doorward_proto::close::Close;
use futures_util::SinkExt as _;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::hooked;
use crate::support::device::{Device, Heard, ranges};
use crate::support::house::{House, eventually, within};
use crate::support::http::get;

/// A close frame, masked with zeros: 1000.
const CLOSE: &[u8] = &[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8];

/// Nobody is left, by the table of sessions, by the gauges, and in the registry.
async fn all_have_left(house: &House, ended: u32) {
    eventually("the sessions have left", async || house.gateway.devices() == 0).await;
    let admin = house.admin().await;
    eventually("the gauges are back", async || {
        let page = get(admin, "/metrics").await;
        page.value("doorward_sessions", "") == 0.0 && page.value("doorward_connections", "") == 0.0
    })
    .await;
    let page = get(admin, "/metrics").await;
    let closes = page.value("doorward_sessions_closed_total", "");
    assert_eq!(closes, f64::from(ended), "each session ends once");
    let places = "SELECT count(*) FROM presence WHERE session IS NOT NULL";
    eventually("its place is free", async || house.db.number(places).await == 0).await;
}

/// Reads what is there until the end, whatever end that is; the `seq`s that were acked, and the code of the close.
async fn the_rest(device: &mut Device) -> (Vec<u64>, Option<u16>) {
    let mut acked = Vec::new();
    loop {
        match device.next().await {
            Heard::Message(message) if message["op"] == "ack" => {
                ranges(&message).into_iter().for_each(|(first, last)| acked.extend(first..=last));
            }
            Heard::Message(_) => {}
            Heard::Closed(code) => return (acked, code),
        }
    }
}

async fn raw(device: &mut Device, bytes: &[u8]) {
    let stream = device.ws.get_mut();
    let _ = stream.write_all(bytes).await;
    let _ = stream.flush().await;
}

#[tokio::test]
async fn a_close_while_its_publishes_are_being_stored_loses_none_that_was_acked() {
    let (house, hooked) = hooked::house(|_| {}).await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    let first = device.publish("m1", json!(1)).await;
    device.acked(first).await;
    hooked.writes.close();
    let all: Vec<_> = (2..12).map(|n| device.to_publish(&format!("m{n}"), json!(n))).collect();
    device.say_at_once(all).await;
    hooked.writes.reached().await;
    raw(&mut device, CLOSE).await;
    // The gateway has answered the close, and the store is still at it.
    let (acked, code) = the_rest(&mut device).await;
    assert_eq!((acked, code), (vec![], Some(1000)), "nothing is acked that is not stored");
    eventually("the session has left", async || house.gateway.devices() == 0).await;
    hooked.writes.open();
    // It asks again under the same ids: each is stored once, whatever the store has made of the first tries.
    let mut again = Device::prove(&house, &credentials).await;
    for n in 2..12 {
        let seq = again.publish(&format!("m{n}"), json!(n)).await;
        again.acked(seq).await;
    }
    assert_eq!(house.stored().await.len(), 11);
    again.ws.close(None).await.unwrap();
    the_rest(&mut again).await;
    all_have_left(&house, 2).await;
}

#[tokio::test]
async fn a_revocation_meets_a_close_and_the_session_ends_once() {
    let house = House::start().await;
    for n in 0..10 {
        let credentials = house.add_device(&format!("d{n}")).await;
        let mut device = Device::prove(&house, &credentials).await;
        let seq = device.publish("m1", json!(n)).await;
        let revoke = async {
            // Now before the other, now after.
            tokio::time::sleep(Duration::from_millis(n % 3 * 25)).await;
            house.db.registry.set_status(&credentials.id, Act::Revoke, Some("race")).await.unwrap();
        };
        let close = async {
            tokio::time::sleep(Duration::from_millis((n + 1) % 3 * 25)).await;
            raw(&mut device, CLOSE).await;
        };
        tokio::join!(revoke, close);
        let (acked, code) = the_rest(&mut device).await;
        assert!(matches!(code, None | Some(1000 | 4003)), "{code:?}");
        if acked.contains(&seq) {
            let stored = format!("SELECT count(*) FROM messages WHERE device = 'd{n}'");
            assert_eq!(house.db.number(&stored).await, 1, "it was acked");
        }
    }
    all_have_left(&house, 10).await;
}

#[tokio::test]
async fn what_comes_behind_a_close_of_ours_is_neither_judged_nor_stored() {
    let house = House::start().await;
    let mut device = Device::prove(&house, &house.add_device("press-7").await).await;
    house.db.registry.kick(&device.credentials.id.clone()).await.unwrap();
    eventually("its end is decided", async || house.gateway.devices() == 0).await;
    let before = house.gateway.counters().totals();
    // It has not read the close yet, and goes on; then it answers, and goes on.
    let all: Vec<_> = (0..20).map(|n| device.to_publish(&format!("late{n}"), json!(n))).collect();
    device.say_at_once(all.clone()).await;
    raw(&mut device, CLOSE).await;
    for members in all {
        let claims = device.claims(members);
        let text = device.signer.sign(claims.to_string().as_bytes());
        device.send_frame(Message::text(text)).await;
    }
    let (acked, code) = the_rest_of_a_broken_one(&mut device).await;
    assert!(acked.is_empty() && matches!(code, None | Some(4005)), "{acked:?} {code:?}");
    all_have_left(&house, 1).await;
    let after = house.gateway.counters().totals();
    assert_eq!((after.accepted, after.rejected), (before.accepted, before.rejected));
    assert_eq!(house.stored().await, []);
}

/// The same where the network may break under it.
async fn the_rest_of_a_broken_one(device: &mut Device) -> (Vec<u64>, Option<u16>) {
    use futures_util::StreamExt as _;
    let mut code = None;
    while let Some(Ok(frame)) = within("the end", device.ws.next()).await {
        match frame {
            Message::Close(frame) => code = frame.map(|frame| frame.code.into()),
            Message::Text(text) => assert!(!text.is_empty()),
            _ => {}
        }
    }
    (Vec::new(), code)
}

#[tokio::test]
async fn a_reset_in_the_middle_of_a_close_leaves_nothing_behind() {
    let house = House::start().await;
    for n in 0..10 {
        let mut device = Device::prove(&house, &house.add_device(&format!("d{n}")).await).await;
        let seq = device.publish("m1", json!(n)).await;
        device.acked(seq).await;
        match n % 3 {
            // Its own close is on its way.
            0 => raw(&mut device, CLOSE).await,
            // Half of it is.
            1 => raw(&mut device, &CLOSE[..3]).await,
            // The gateway's is, and so is its own with another code.
            _ => {
                let id = device.credentials.id.clone();
                house.db.registry.kick(&id).await.unwrap();
                let frame = CloseFrame { code: CloseCode::Away, reason: "".into() };
                let _ = within("sending a close", device.ws.send(Message::Close(Some(frame)))).await;
            }
        }
        // Closing with linger 0 is a reset.
        device.ws.get_ref().get_ref().0.set_zero_linger().unwrap();
        drop(device);
    }
    all_have_left(&house, 10).await;
    assert_eq!(house.stored().await.len(), 10, "each that was acked");
    assert_eq!(house.gateway.counters().closed_for(Close::Internal), 0);
    // And everybody may come again.
    Device::prove(&house, &house.add_device("next").await).await;
}
