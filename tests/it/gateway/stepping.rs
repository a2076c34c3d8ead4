//! A time of day that steps back and forth by an hour while devices publish (protocol.md §2): what was taken once is taken
//! never again, what is honest arrives once it has the gateway's time, and limits end by the clock that never steps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration as Span;

use doorward::clock;
use doorward_proto::close::Close;
use serde_json::{Value, json};
use time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use crate::support::device::{Device, Heard, TLS13, ranges, secure, tcp_from, tls};
use crate::support::house::{House, eventually, seconds, within};

const STEPS: [Duration; 4] = [Duration::HOUR, Duration::ZERO, Duration::hours(-1), Duration::ZERO];

/// A device's own clock: it ran with the gateway's once and knows what the gateway has told it since.
struct Watch {
    start: Span,
    /// The time of day at the start, in seconds.
    told: f64,
}

impl Watch {
    fn told(iat: &Value) -> Self {
        Self { start: clock::now().monotonic, told: iat.as_f64().unwrap() }
    }

    fn now(&self) -> Value {
        let now = self.told + (clock::now().monotonic - self.start).as_secs_f64();
        json!((now * 1000.0).round() / 1000.0)
    }
}

/// Publishes one message after the other, each until it is acked; how many, and how often the clock was wrong.
async fn publish_until(mut device: Device, over: Arc<AtomicBool>, acked: Arc<AtomicU64>) -> (u64, u64) {
    let mut watch = Watch::told(&json!(clock::now().wall));
    let (mut done, mut stale) = (0, 0);
    while !over.load(Ordering::SeqCst) || done == 0 {
        let mut members = device.to_publish(&format!("m{done}"), json!(done));
        members["iat"] = watch.now();
        let seq = device.say(members).await;
        match device.next().await {
            Heard::Message(ack) if ack["op"] == "ack" => {
                assert_eq!(ranges(&ack), [(seq, seq)]);
                done += 1;
                acked.fetch_add(1, Ordering::SeqCst);
            }
            Heard::Message(reject) => {
                assert_eq!(
                    (&reject["op"], &reject["error"]),
                    (&json!("reject"), &json!("stale")),
                    "{reject}"
                );
                // "`iat` of this very reject tells the time".
                watch = Watch::told(&reject["iat"]);
                stale += 1;
            }
            closed @ Heard::Closed(_) => panic!("{closed:?}"),
        }
    }
    (done, stale)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_steps_by_an_hour_loses_nothing_honest_and_lets_nothing_in_twice() {
    let house = House::with(|config| {
        config.limits.strikes = 1000;
        // They publish as fast as they can.
        (config.limits.rate_per_second, config.limits.rate_burst) = (100_000, 100_000);
    })
    .await;
    let (over, acked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut load = JoinSet::new();
    for n in 0..6 {
        let device = Device::prove(&house, &house.add_device(&format!("d{n}")).await).await;
        load.spawn(publish_until(device, Arc::clone(&over), Arc::clone(&acked)));
    }
    let credentials = house.add_device("replayed").await;
    let mut device = Device::prove(&house, &credentials).await;
    let again = async |device: &mut Device, frame: &str| {
        device.send_frame(Message::text(frame.to_owned())).await;
        device.rejected().await.1
    };
    let frame = |device: &mut Device, id: &str| {
        let members = device.to_publish(id, json!(1));
        let claims = device.claims(members);
        (device.seq, device.signer.sign(claims.to_string().as_bytes()))
    };
    let (seq, taken) = frame(&mut device, "taken");
    device.send_frame(Message::text(taken.clone())).await;
    device.acked(seq).await;
    for round in 0..3 {
        for (number, step) in STEPS.into_iter().enumerate() {
            clock::step_to(step);
            let before = acked.load(Ordering::SeqCst);
            // What was taken before the step is not taken after it, and neither is what is taken now.
            let why = again(&mut device, &taken).await;
            assert_eq!(why, if step.is_zero() { "replayed" } else { "stale" });
            let (seq, frame) = frame(&mut device, &format!("r{round}s{number}"));
            device.send_frame(Message::text(frame.clone())).await;
            device.acked(seq).await;
            assert_eq!(again(&mut device, &frame).await, "replayed");
            eventually("honest ones go on", async || acked.load(Ordering::SeqCst) >= before + 12).await;
        }
    }
    // A message that was held back is in time again when the clock is: it is this session's next, and it is taken once.
    let (seq, held) = frame(&mut device, "held");
    clock::step_to(Duration::HOUR);
    assert_eq!(again(&mut device, &held).await, "stale");
    clock::step_to(Duration::ZERO);
    device.send_frame(Message::text(held.clone())).await;
    device.acked(seq).await;
    assert_eq!(again(&mut device, &held).await, "replayed");
    // In another session of the same device no time makes it good.
    let mut other = Device::prove(&house, &credentials).await;
    for step in STEPS {
        clock::step_to(step);
        assert_eq!(again(&mut other, &held).await, "wrong_session");
    }

    over.store(true, Ordering::SeqCst);
    let (mut all, mut stale) = (0, 0);
    while let Some(ended) = load.join_next().await {
        let (done, was_stale) = ended.unwrap();
        (all, stale) = (all + done, stale + was_stale);
    }
    assert!(stale >= 12, "the steps were noticed: {stale}");
    let stored = house.stored().await;
    // Those of the load, and of the other device `taken`, `held` and one a step.
    assert_eq!(stored.len() as u64, all + 14, "each that was acked, once");
    for close in [Close::Silent, Close::Strikes, Close::CertificateExpired, Close::Internal] {
        assert_eq!(house.gateway.counters().closed_for(close), 0, "{close:?}");
    }
}

#[tokio::test]
async fn rates_fill_up_by_the_clock_that_does_not_step() {
    let house =
        House::with(|config| (config.limits.rate_per_second, config.limits.rate_burst) = (1, 30)).await;
    let mut device = Device::connect(&house, &house.add_device("press-7").await).await;
    let mut hellos = async |many: usize| {
        let mut refused = 0;
        for _ in 0..many {
            let seq = device.say(json!({ "op": "hello" })).await;
            match device.next().await {
                Heard::Message(message) if message["op"] == "ack" => {
                    assert_eq!(ranges(&message), [(seq, seq)])
                }
                Heard::Message(message) => {
                    assert_eq!(message["error"], "rate_limited", "{message}");
                    refused += 1;
                }
                closed @ Heard::Closed(_) => panic!("{closed:?}"),
            }
        }
        refused
    };
    assert!(hellos(60).await > 0);
    // An hour at this rate would have filled it.
    clock::step_to(Duration::HOUR);
    assert!(hellos(60).await > 30);
    // An hour back takes nothing away: a second later there is one more.
    clock::step_to(Duration::hours(-1));
    let begin = clock::now().monotonic;
    eventually("a token", async || hellos(1).await == 0).await;
    assert!(clock::now().monotonic - begin < Span::from_secs(60));
}

#[tokio::test]
async fn a_block_ends_by_the_clock_that_does_not_step() {
    let house = House::with(|config| {
        (config.addresses.failures, config.addresses.block) = (4, seconds(5));
    })
    .await;
    let bad = [127, 9, 0, 1];
    let nobody = Arc::new(tls(&house, None, TLS13));
    for _ in 0..4 {
        let tcp = tcp_from(&house, bad).await.unwrap();
        if let Ok(mut stream) = secure(tcp, Arc::clone(&nobody)).await {
            let _ = within("the alert", stream.read_u8()).await;
        }
    }
    let door = house.gateway.counters().door();
    eventually("the block", async || door.blocks() == 1).await;
    for step in [Duration::HOUR, Duration::hours(-1)] {
        clock::step_to(step);
        let mut tcp = tcp_from(&house, bad).await.unwrap();
        let mut said = Vec::new();
        let _ = within("the close", tcp.read_to_end(&mut said)).await;
    }
    assert_eq!(door.closed_for("blocked"), 2);
    // An hour back does not make it an hour longer: it waits for its turn again, as who has failed does.
    let slowed = door.slowed();
    eventually("the end of the block", async || {
        tokio::time::sleep(Span::from_millis(400)).await;
        drop(tcp_from(&house, bad).await.unwrap());
        door.slowed() > slowed
    })
    .await;
}
