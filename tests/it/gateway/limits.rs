//! What a device may cost, however often it reconnects.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use doorward::registry::{Act, Renewal};
use doorward_proto::ids::FleetId;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;

use crate::support::device::{Device, Heard, TLS13, UPGRADE, ask, dial, problem_of, ranges, refused, tls};
use crate::support::house::{Credentials, House, eventually, within};

/// Says `hello` so often, all at once; how many were acked, and the refusals.
async fn hellos(device: &mut Device, many: u64) -> (u64, Vec<Value>) {
    device.say_at_once((0..many).map(|_| json!({ "op": "hello" })).collect()).await;
    let (mut acked, mut refusals) = (0, Vec::new());
    while acked + (refusals.len() as u64) < many {
        match device.next().await {
            Heard::Message(m) if m["op"] == "ack" => {
                acked += ranges(&m).iter().map(|(first, last)| last - first + 1).sum::<u64>();
            }
            Heard::Message(m) => refusals.push(m),
            closed @ Heard::Closed(_) => panic!("{closed:?}"),
        }
    }
    (acked, refusals)
}

#[tokio::test]
async fn who_reconnects_does_not_get_a_full_bucket() {
    let house =
        House::with(|config| (config.limits.rate_per_second, config.limits.rate_burst) = (1, 60)).await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::connect(&house, &credentials).await;
    assert!(hellos(&mut device, 60).await.0 >= 60);
    drop(device);
    // One token a second came back meanwhile: a minute has not passed.
    let mut again = Device::connect(&house, &credentials).await;
    let (acked, refusals) = hellos(&mut again, 60).await;
    assert!(acked < 60, "{acked}");
    assert!(refusals.iter().all(|reject| reject["error"] == "rate_limited"), "{refusals:?}");
    // Nor does who takes over from itself.
    let mut taken_over = Device::connect(&house, &credentials).await;
    let (acked, _) = hellos(&mut taken_over, 60).await;
    assert!(acked < 60, "{acked}");
    again.closed_with_bye(4009).await;
    // It is this device's alone.
    let mut other = Device::connect(&house, &house.add_device("press-8").await).await;
    assert_eq!(hellos(&mut other, 60).await.0, 60);
}

#[tokio::test]
async fn who_sends_on_over_its_rate_is_read_no_faster_than_it_is_refused() {
    let house =
        House::with(|config| (config.limits.rate_per_second, config.limits.rate_burst) = (1, 1)).await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::connect(&house, &credentials).await;
    let began = doorward::clock::now().monotonic;
    // Fifty refusals at once, and fifty a second: a hundred more take two seconds, however fast both ends are.
    let (_, refusals) = hellos(&mut device, 155).await;
    assert!(refusals.len() >= 150, "{}", refusals.len());
    assert!(refusals.iter().all(|reject| reject["error"] == "rate_limited"), "{refusals:?}");
    let took = doorward::clock::now().monotonic - began;
    assert!(took >= Duration::from_millis(1500), "{took:?}");
    // Meanwhile another is served as ever.
    let other = house.add_device("press-8").await;
    Device::prove(&house, &other).await;
}

#[tokio::test]
async fn bytes_have_a_rate_of_their_own_and_a_long_message_is_not_refused_for_ever() {
    let house = House::with(|config| {
        (config.limits.bytes_per_second, config.limits.bytes_burst) = (1024, 40_000);
    })
    .await;
    let mut device = Device::prove(&house, &house.add_device("press-7").await).await;
    let seq = device.publish("m1", json!("x".repeat(20_000))).await;
    device.acked(seq).await;
    let seq = device.publish("m2", json!("x".repeat(20_000))).await;
    let (reference, error, retry_after) = device.rejected().await;
    assert_eq!((reference, error.as_str()), (json!(seq), "rate_limited"));
    assert!((1..=40).contains(&retry_after.as_u64().unwrap()), "{retry_after}");
    // Longer than the burst: let through by a full bucket.
    let mut other = Device::connect(&house, &house.add_device("press-8").await).await;
    let seq = other.publish("m3", json!("x".repeat(45_000))).await;
    other.acked(seq).await;
    other.publish("m4", json!(1)).await;
    assert_eq!(other.rejected().await.1, "rate_limited");
}

#[tokio::test]
async fn who_was_closed_for_its_strikes_is_closed_at_the_next_one() {
    let house = House::with(|config| config.limits.strikes = 4).await;
    let credentials = house.add_device("press-7").await;
    let rubbish = async |device: &mut Device| {
        device.send_frame(Message::text("rubbish")).await;
        assert_eq!(device.rejected().await.1, "bad_envelope");
    };
    // A few in each of many sessions close none of them.
    for _ in 0..3 {
        let mut device = Device::prove(&house, &credentials).await;
        for _ in 0..3 {
            rubbish(&mut device).await;
        }
        device.hello().await;
    }
    let mut device = Device::prove(&house, &credentials).await;
    for _ in 0..4 {
        rubbish(&mut device).await;
    }
    device.closed_with_bye(4008).await;
    // Who earns none goes on, whatever was before.
    let mut device = Device::prove(&house, &credentials).await;
    device.hello().await;
    rubbish(&mut device).await;
    device.closed_with_bye(4008).await;
}

#[tokio::test]
async fn a_fleet_has_strikes_and_connections_of_its_own() {
    let house = House::start().await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    let limits = r#"{"strikes":1,"connects_per_minute":1,"connects_burst":1}"#;
    house.db.registry.set_limits(&FleetId::new("default").unwrap(), limits).await.unwrap();
    house.followed().await;
    device.hello().await;
    device.send_frame(Message::text("rubbish")).await;
    assert_eq!(device.rejected().await.1, "bad_envelope");
    device.closed_with_bye(4008).await;
    let config = Arc::new(tls(&house, Some(&credentials), TLS13));
    eventually("the fleet's own word", async || {
        turned_away(dial(&house, Arc::clone(&config)).await.unwrap()).await
    })
    .await;
}

/// Whether a connection is one too many.
async fn turned_away(mut stream: TlsStream<TcpStream>) -> bool {
    // An upgrade that succeeds brings no end of the answer.
    tokio::time::timeout(Duration::from_millis(500), ask(&mut stream, UPGRADE))
        .await
        .is_ok_and(|answer| answer.is_ok_and(|answer| answer.status == 429))
}

/// TLS from another address of this machine.
async fn dial_from(house: &House, credentials: &Credentials, from: Ipv4Addr) -> TlsStream<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    let tcp = socket.connect(house.address).await.unwrap();
    let config = Arc::new(tls(house, Some(credentials), TLS13));
    let name = ServerName::try_from("localhost").unwrap();
    within("the TLS handshake", TlsConnector::from(config).connect(name, tcp)).await.unwrap()
}

#[tokio::test]
async fn a_device_connects_no_more_often_than_it_may() {
    let house = House::with(|config| {
        (config.limits.connects_per_minute, config.limits.connects_burst) = (1, 3);
    })
    .await;
    let credentials = house.add_device("press-7").await;
    for _ in 0..3 {
        Device::connect(&house, &credentials).await;
    }
    let answer = refused(&house, &credentials).await;
    assert_eq!((answer.status, problem_of(&answer).as_str()), (429, "too-many"));
    let wait: u64 = answer.header("Retry-After").unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    assert_eq!(house.gateway.counters().refused_for("too-many"), 1);
    Device::prove(&house, &house.add_device("press-8").await).await;
}

#[tokio::test]
async fn who_has_the_certificate_alone_does_not_keep_the_device_out() {
    let house = House::with(|config| {
        (config.limits.connects_per_minute, config.limits.connects_burst) = (1, 3);
    })
    .await;
    let credentials = house.add_device("press-7").await;
    Device::prove(&house, &credentials).await;
    let thief = Ipv4Addr::new(127, 0, 0, 9);
    eventually("the thief is refused", async || {
        turned_away(dial_from(&house, &credentials, thief).await).await
    })
    .await;
    Device::prove(&house, &credentials).await;
    // The thief's waiting is not the device's.
    assert!(turned_away(dial_from(&house, &credentials, thief).await).await);
}

#[tokio::test]
async fn an_upgrade_that_was_refused_is_no_connection() {
    let house = House::with(|config| {
        (config.limits.connects_per_minute, config.limits.connects_burst) = (1, 1);
    })
    .await;
    let credentials = house.add_device("press-7").await;
    for _ in 0..3 {
        let mut stream = dial(&house, Arc::new(tls(&house, Some(&credentials), TLS13))).await.unwrap();
        let answer = ask(&mut stream, &UPGRADE.replace("/v1/device", "/v2/device")).await.unwrap();
        assert_eq!(answer.status, 404);
    }
    Device::prove(&house, &credentials).await;
}

#[tokio::test]
async fn who_is_refused_again_and_again_is_not_looked_up_each_time_until_its_record_changes() {
    let house = House::start().await;
    let credentials = house.add_device("press-7").await;
    let act = async |act| {
        house.db.registry.set_status(&credentials.id, act, None).await.unwrap();
        house.followed().await;
    };
    act(Act::Suspend).await;
    let repeated = || house.gateway.counters().door().repeated();
    let mut told = 0;
    eventually("it is answered from memory", async || {
        let answer = refused(&house, &credentials).await;
        assert_eq!((answer.status, problem_of(&answer).as_str()), (403, "device-suspended"));
        told += 1;
        repeated() > 0
    })
    .await;
    assert!(told > 20, "a device that tries now and then is always looked up: {told}");
    act(Act::Resume).await;
    drop(Device::prove(&house, &credentials).await);
    act(Act::Revoke).await;
    let before = repeated();
    assert_eq!(problem_of(&refused(&house, &credentials).await), "device-revoked");
    assert_eq!(repeated(), before);
    assert_eq!(house.gateway.counters().door().failures(), 0, "its site is not slowed for it");
}

#[tokio::test]
async fn neither_an_old_certificate_nor_one_that_nobody_recorded_keeps_the_device_out() {
    // What nobody recorded is a failure of its address, which is not what this is about.
    let house = House::with(|config| config.addresses.failures = 1000).await;
    let credentials = house.add_device("press-7").await;
    let stolen = house.certify("press-7", |_| {});
    let row = house.row_of(&stolen);
    let renewal = Renewal { from: None, grace: Duration::from_secs(3600) };
    house.db.registry.add_certificate(&credentials.id, &row, &renewal).await.unwrap();
    house.db.registry.revoke_certificate(&row.fingerprint, "stolen", true).await.unwrap();
    house.followed().await;
    eventually("the thief is answered from memory", async || {
        assert_eq!(problem_of(&refused(&house, &stolen).await), "certificate-revoked");
        house.gateway.counters().door().repeated() > 0
    })
    .await;
    Device::prove(&house, &credentials).await;
    let forged = house.certify("press-7", |_| {});
    for _ in 0..25 {
        assert_eq!(problem_of(&refused(&house, &forged).await), "certificate-unknown");
    }
    Device::prove(&house, &credentials).await;
}

#[tokio::test]
async fn where_a_device_was_proven_is_still_known_after_a_restart() {
    let mut house = House::with(|config| {
        (config.limits.connects_per_minute, config.limits.connects_burst) = (1, 3);
    })
    .await;
    let credentials = house.add_device("press-7").await;
    drop(Device::prove(&house, &credentials).await);
    house.restart().await;
    let thief = Ipv4Addr::new(127, 0, 0, 9);
    eventually("the thief is refused", async || {
        turned_away(dial_from(&house, &credentials, thief).await).await
    })
    .await;
    Device::prove(&house, &credentials).await;
}
