//! A device against a gateway: it is acknowledged, comes back, sends again under the same id, and knows when to stop.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is a test")]

mod support;

use std::time::Duration;

use doorward_client::backoff::BackoffOptions;
use doorward_client::connection::{ConnectError, Dial, Incoming};
use doorward_client::device::RequestError;
use doorward_client::target::Target;
use doorward_client::{Device, Options, State, Stop, clock, tls};
use doorward_proto::close::Close;
use doorward_proto::verdict::Refusal;
use serde_json::json;
use support::{Gateway, Setup};

fn quick() -> Options {
    let backoff = BackoffOptions {
        base: Duration::from_millis(20),
        cap: Duration::from_millis(100),
        ..BackoffOptions::default()
    };
    Options { backoff, connect_within: Duration::from_secs(10), ..Options::default() }
}

async fn stopped(device: &Device) -> Stop {
    let mut state = device.state();
    let state =
        tokio::time::timeout(Duration::from_secs(20), state.wait_for(|s| matches!(s, State::Stopped(_))));
    match *state.await.unwrap().unwrap() {
        State::Stopped(stop) => stop,
        _ => unreachable!(),
    }
}

async fn connected(device: &Device) {
    let mut state = device.state();
    let up =
        tokio::time::timeout(Duration::from_secs(20), state.wait_for(|s| matches!(s, State::Connected(_))));
    up.await.unwrap().unwrap();
}

#[tokio::test]
async fn it_publishes_subscribes_and_closes() {
    let gateway = Gateway::start(Setup::default()).await;
    let mut credentials = gateway.credentials().into_iter();
    let one = Device::connect(credentials.next().unwrap(), quick()).unwrap();
    let mut messages = one.messages();
    one.subscribe("devices/dev-00000/#").await.unwrap();
    one.publish("devices/dev-00000/t", &json!({"celsius": 21.5})).await.unwrap();
    // The first may have gone out ahead of the subscription; what follows an ack of both has not.
    one.publish("devices/dev-00000/t", &json!(2)).await.unwrap();
    let message = tokio::time::timeout(Duration::from_secs(5), messages.next()).await.unwrap().unwrap();
    assert_eq!(message.ch, "devices/dev-00000/t");
    let refused = one.publish("devices/other/t", &json!(1)).await.unwrap_err();
    assert!(matches!(refused, RequestError::Refused { refusal: Some(Refusal::Forbidden), .. }), "{refused}");
    assert!(matches!(one.publish("no channel", &json!(1)).await, Err(RequestError::Malformed(_))));
    let state = one.state();
    one.close().await;
    assert_eq!(*state.borrow(), State::Stopped(Stop::Closed));
    assert_eq!(gateway.stored().len(), 2);
}

#[tokio::test]
async fn it_comes_back_and_sends_the_unanswered_again_under_the_same_id() {
    let gateway = Gateway::start(Setup::default()).await;
    let device = Device::connect(gateway.credentials().remove(0), quick()).unwrap();
    connected(&device).await;
    gateway.deaf(true);
    let ended = async {
        while gateway.stored().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        gateway.deaf(false);
        gateway.end("dev-00000", Close::Internal);
    };
    let payload = json!(1);
    let (published, ()) = tokio::join!(device.publish("devices/dev-00000/t", &payload), ended);
    published.unwrap();
    let stored = gateway.stored();
    assert_eq!(stored.len(), 1, "one id: {stored:?}");
    assert_eq!(stored.values().sum::<usize>(), 2, "it came twice");
    assert_eq!(gateway.sessions(), 2);
}

#[tokio::test]
async fn only_revocation_stops_it() {
    let gateway = Gateway::start(Setup { devices: 2, ..Setup::default() }).await;
    let mut credentials = gateway.credentials().into_iter();
    let live = Device::connect(credentials.next().unwrap(), quick()).unwrap();
    for close in [Close::Kicked, Close::GoingAway, Close::Strikes, Close::Unproven, Close::SlowReader] {
        let before = gateway.sessions();
        connected(&live).await;
        gateway.end("dev-00000", close);
        while gateway.sessions() == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    live.publish("devices/dev-00000/t", &json!(1)).await.unwrap();
    gateway.revoke("dev-00000");
    assert_eq!(stopped(&live).await, Stop::Revoked);
    let late = live.publish("devices/dev-00000/t", &json!(1)).await;
    assert_eq!(late, Err(RequestError::Stopped(Stop::Revoked)));

    gateway.revoke("dev-00001");
    let refused = Device::connect(credentials.next().unwrap(), quick()).unwrap();
    assert_eq!(stopped(&refused).await, Stop::Revoked, "the 403 of an upgrade is as final");
}

#[tokio::test]
async fn a_device_alone_waits_in_bounded_time() {
    let gateway = Gateway::start(Setup::default()).await;
    let credentials = gateway.credentials().remove(0);
    drop(gateway);
    let options = Options { answer_within: Duration::from_millis(300), outbox: 1, ..quick() };
    let device = Device::connect(credentials, options).unwrap();
    assert_eq!(device.publish("devices/dev-00000/t", &json!(1)).await, Err(RequestError::Undecided));
    assert_eq!(device.publish("devices/dev-00000/t", &json!(2)).await, Err(RequestError::Undecided));
    let state = device.state().borrow().clone();
    assert!(matches!(state, State::Connecting { last: Some(_) }), "{state:?}");
    device.close().await;
}

#[tokio::test]
async fn a_connection_is_post_quantum_resumes_and_tells_refusals_apart() {
    let gateway = Gateway::start(Setup::default()).await;
    let credentials = gateway.credentials().remove(0);
    let dial = |url: &str| Dial {
        tls: tls::configuration(credentials.identity()).unwrap(),
        target: Target::parse(url).unwrap().into(),
        address: None,
        local: Some("127.0.0.9".parse().unwrap()),
        key: None,
        within: Duration::from_secs(10),
        max_message_bytes: 1 << 16,
    };
    let ours = dial(&gateway.url());
    let mut first = ours.connect().await.unwrap();
    assert_eq!(first.key_exchange(), Some(rustls::NamedGroup::X25519MLKEM768));
    assert!(matches!(first.receive().await.unwrap(), Incoming::Text(_)), "welcome, and with it the ticket");
    first.close(Close::Normal, Duration::from_secs(5)).await;
    let second = ours.connect().await.unwrap();
    assert!(second.is_resumed());

    let elsewhere = dial(&format!("wss://{}/elsewhere", gateway.address)).connect().await;
    let Err(ConnectError::Refused(refused)) = elsewhere else { panic!("{elsewhere:?}") };
    assert_eq!((refused.status, refused.is_final()), (404, false));
    assert!(refused.to_string().contains("not-found"), "{refused}");

    let stranger = Gateway::start(Setup::default()).await;
    let untrusted = dial(&stranger.url()).connect().await;
    assert!(matches!(untrusted, Err(ConnectError::Untrusted(_))), "{untrusted:?}");

    // A name that answers with silence costs no more than the deadline.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("wss://{}", silent.local_addr().unwrap());
    let began = clock::monotonic();
    let late = Dial { within: Duration::from_millis(200), ..dial(&url) }.connect().await;
    assert!(matches!(late, Err(ConnectError::Timeout(_))), "{late:?}");
    assert!(clock::monotonic() - began < Duration::from_secs(5));
}
