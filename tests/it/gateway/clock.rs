//! A clock that is wrong for sure: nobody is let in by it. A device's that is off: it is told, and so is the operator.

use doorward::clock;
use serde_json::json;
use time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::support::device::Device;
use crate::support::house::{House, eventually, log, within};
use crate::support::http::get;

#[tokio::test]
async fn who_comes_while_the_clock_is_behind_is_closed_without_a_word_until_it_is_right() {
    let house = House::start().await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    // The clock itself is not the test's to set: an hour back is what was an hour later before.
    house.gateway.believe_from(clock::utc() + Duration::HOUR);
    let mut tcp = TcpStream::connect(house.address).await.unwrap();
    let mut said = Vec::new();
    let _ = within("the close", tcp.read_to_end(&mut said)).await;
    assert!(said.is_empty());
    eventually("the count", async || house.gateway.counters().totals().clock_behind == 1).await;
    let lines = |words: &str| log().lines().filter(|line| line.contains(words)).count();
    eventually("the line", async || lines("the clock has stepped back") == 1).await;
    // Who is here goes on.
    device.hello().await;
    house.gateway.believe_from(clock::BUILT);
    Device::prove(&house, &credentials).await;
    eventually("the other line", async || lines("the clock is right again") == 1).await;
    assert_eq!(lines("the clock has stepped back"), 1);
}

/// The gateway's time, and so many seconds.
fn off(seconds: f64) -> serde_json::Value {
    let now = clock::now().wall.as_duration().as_secs_f64();
    json!(((now + seconds) * 1000.0).round() / 1000.0)
}

#[tokio::test]
async fn a_device_that_never_gets_in_for_its_clock_is_an_event_that_says_by_how_much() {
    let house = House::start().await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::connect(&house, &credentials).await;
    device.say(json!({ "op": "hello", "iat": off(-3600.0) })).await;
    assert_eq!(device.rejected().await.1, "stale");
    // What `welcome` took to be answered is not the clock's: an hour less that.
    let event = "SELECT count(*) FROM events WHERE kind = 'stale' AND device = 'press-7'
        AND (detail LIKE 'the device''s clock is 3600.0__ s behind the gateway''s; session %'
            OR detail LIKE 'the device''s clock is 359_.___ s behind the gateway''s; session %')";
    eventually("the event", async || house.db.number(event).await == 1).await;
    assert_eq!(house.db.number("SELECT count(*) FROM presence").await, 0);
    device.ws.close(None).await.unwrap();
    let closed =
        || log().lines().any(|line| line.contains("session closed") && line.contains("most_skew_ms=-3"));
    eventually("the line of its end", async || closed()).await;
}

#[tokio::test]
async fn a_clock_that_is_soon_off_too_far_is_an_event_once_a_session() {
    let house = House::start().await;
    let mut right = Device::prove(&house, &house.add_device("right").await).await;
    let mut fast = Device::connect(&house, &house.add_device("fast").await).await;
    for _ in 0..3 {
        let seq = fast.say(json!({ "op": "hello", "iat": off(45.0) })).await;
        fast.acked(seq).await;
        right.hello().await;
    }
    let event = "SELECT count(*) FROM events WHERE kind = 'clock_skew' AND device = 'fast'
        AND detail LIKE 'the device''s clock is 4_.___ s ahead of the gateway''s; session %'";
    eventually("the event", async || house.db.number(event).await == 1).await;
    // Counted at once, where rows gather.
    let page = get(house.admin().await, "/metrics").await;
    assert_eq!(page.value("doorward_events_total", "kind=\"clock_skew\""), 1.0);
    assert_eq!(house.db.number("SELECT count(*) FROM events WHERE kind = 'stale'").await, 0);
    // A signature that nobody made says nothing of a clock.
    let mut forged = Device::connect(&house, &house.add_device("forged").await).await;
    forged.signer = doorward_proto::key::Key::new(doorward_proto::ids::KeyVersion::FIRST, &[9; 32]);
    forged.say(json!({ "op": "hello", "iat": off(-3600.0) })).await;
    assert_eq!(forged.rejected().await.1, "bad_signature");
    let of_clocks = "SELECT count(*) FROM events WHERE device = 'forged' AND detail LIKE '%clock%'";
    eventually("its event", async || {
        house.db.number("SELECT count(*) FROM events WHERE device = 'forged'").await == 1
    })
    .await;
    assert_eq!(house.db.number(of_clocks).await, 0);
}
