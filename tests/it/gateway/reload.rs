//! The configuration and its files, read again while devices publish: what is good is taken, what is broken is not, and
//! nobody who may stay is disturbed.

use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::time::Duration;

use doorward::home::{PUBLIC, SECRET, write_over};
use rustls::HandshakeKind;
use rustls::pki_types::CertificateDer;
use serde_json::json;

use crate::support::command::chmod;
use crate::support::device::{Device, TLS13, UPGRADE, dial, ranges, tls};
use crate::support::house::{Credentials, House, eventually, log, seconds};

const YEAR: time::Duration = time::Duration::days(365);
/// What the log says of a change that was taken, and of one that was not.
const TAKEN: &str = "configuration and certificates read again";
const NOT_TAKEN: &str = "a file has changed, and is not taken";

fn lines(words: &str) -> usize {
    log().lines().filter(|line| line.contains(words)).count()
}

/// The certificate that the gateway shows.
async fn shown(house: &House, credentials: &Credentials) -> CertificateDer<'static> {
    let stream = dial(house, Arc::new(tls(house, Some(credentials), TLS13))).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone()
}

fn write_pair(house: &House, (certificate, key): &(String, String)) {
    write_over(&house.file("pki/gateway.crt"), certificate, PUBLIC).unwrap();
    write_over(&house.file("pki/gateway.key"), key, SECRET).unwrap();
}

/// Publishes without a pause until it is told to stop; how many were sent, each of which has been acked.
async fn publish_on(mut device: Device, stop: Arc<std::sync::atomic::AtomicBool>) -> (Device, u64) {
    use std::sync::atomic::Ordering;
    let mut sent = 0_u64;
    while !stop.load(Ordering::SeqCst) {
        let all: Vec<_> = (0..8).map(|n| device.to_publish(&format!("m-{sent}-{n}"), json!(n))).collect();
        device.say_at_once(all).await;
        sent += 8;
        let (last, mut acked) = (device.seq, 0);
        while acked < last {
            let message = match device.next().await {
                crate::support::device::Heard::Message(message) => message,
                closed => panic!("a session that may stay has ended: {closed:?}"),
            };
            match message["op"].as_str().unwrap() {
                "ack" => acked = ranges(&message).into_iter().map(|(_, last)| last).max().unwrap(),
                "limits" => {}
                other => panic!("'{other}' under a reload: {message}"),
            }
        }
    }
    (device, sent)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_sessions_publish_through_every_kind_of_reload_and_none_is_lost() {
    let house = House::with(|config| config.limits.rate_per_second = 1_000_000).await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut publishing = Vec::new();
    let mut everybody = Vec::new();
    for number in 0..8 {
        let credentials = house.add_device(&format!("d{number}")).await;
        let device = Device::prove(&house, &credentials).await;
        publishing.push(tokio::spawn(publish_on(device, Arc::clone(&stop))));
        everybody.push(credentials);
    }
    let first = shown(&house, &everybody[0]).await;
    for round in 0..4_u32 {
        write_pair(&house, &house.server_pair(YEAR));
        house.write_config(|config| {
            config.limits.rate_burst = 100_000 + round;
            config.limits.strikes = 7;
            config.tls.device_cas.push("pki/root.crt".into());
        });
        let reloaded = house.gateway.reload().await.unwrap();
        assert!(reloaded.changed.contains(&"limits.rate_burst".to_owned()), "{reloaded:?}");
        assert!(reloaded.changed.contains(&"pki/gateway.key".to_owned()), "{reloaded:?}");
        assert_eq!((reloaded.waiting.len(), reloaded.ended), (0, 0));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_ne!(shown(&house, &everybody[0]).await, first);
    let before: u64 = house.gateway.counters().totals().accepted;
    eventually("more messages", async || house.gateway.counters().totals().accepted > before + 100).await;
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    let (mut sent, mut devices) = (0, Vec::new());
    for publishing in publishing {
        let (mut device, published) = publishing.await.unwrap();
        // The very session that there was before.
        device.hello().await;
        sent += published;
        devices.push(device);
    }
    let totals = house.gateway.counters().totals();
    assert_eq!((totals.closed, totals.rejected), (0, 0));
    assert_eq!(house.stored().await.len() as u64, sent, "each that was acked is stored");
}

#[tokio::test]
async fn a_new_pair_is_taken_when_it_is_whole_and_no_half_of_it_is_complained_about() {
    let house = House::start().await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    let first = shown(&house, &credentials).await;
    let (certificate, key) = house.server_pair(YEAR);
    write_over(&house.file("pki/gateway.crt"), &certificate, PUBLIC).unwrap();
    // Longer than a look, and shorter than what a state may be broken.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    write_over(&house.file("pki/gateway.key"), &key, SECRET).unwrap();
    eventually("the new certificate", async || shown(&house, &credentials).await != first).await;
    eventually("a line that names what was taken", async || {
        log().lines().any(|line| {
            line.contains(TAKEN) && line.contains("pki/gateway.crt") && line.contains("pki/gateway.key")
        })
    })
    .await;
    assert_eq!(lines(NOT_TAKEN), 0);
    device.hello().await;
}

#[tokio::test]
async fn a_pair_that_stays_broken_is_told_once_and_taken_when_it_is_mended() {
    let house = House::start().await;
    let credentials = house.add_device("press-7").await;
    let first = shown(&house, &credentials).await;
    let (certificate, key) = house.server_pair(YEAR);
    write_over(&house.file("pki/gateway.crt"), &certificate, PUBLIC).unwrap();
    eventually("the complaint", async || lines(NOT_TAKEN) == 1).await;
    assert_eq!(shown(&house, &credentials).await, first, "the old state stands");
    // Said once for each state: a key that others may read is another one.
    write_over(&house.file("pki/gateway.key"), &key, 0o644).unwrap();
    eventually("the second complaint", async || lines(NOT_TAKEN) == 2).await;
    assert!(log().contains("chmod 600"), "{}", log());
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(lines(NOT_TAKEN), 2);
    chmod(&house.file("pki/gateway.key"), 0o600);
    eventually("the new certificate", async || shown(&house, &credentials).await != first).await;
    assert_eq!((lines(NOT_TAKEN), lines(TAKEN)), (2, 1));
}

#[tokio::test]
async fn a_link_that_is_turned_to_another_file_is_a_change() {
    let house = House::start().await;
    let credentials = house.add_device("press-7").await;
    let turn = |to: &str| {
        let (link, next) = (house.file("current"), house.file("next"));
        symlink(to, &next).unwrap();
        std::fs::rename(next, link).unwrap();
    };
    for name in ["one", "two"] {
        let (certificate, key) = house.server_pair(YEAR);
        std::fs::create_dir(house.file(name)).unwrap();
        write_over(&house.file(name).join("tls.crt"), certificate, PUBLIC).unwrap();
        write_over(&house.file(name).join("tls.key"), key, SECRET).unwrap();
    }
    turn("one");
    house.write_config(|config| {
        config.tls.certificate = "current/tls.crt".into();
        config.tls.key = "current/tls.key".into();
    });
    house.gateway.reload().await.unwrap();
    let first = shown(&house, &credentials).await;
    turn("two");
    eventually("the new certificate", async || shown(&house, &credentials).await != first).await;
}

#[tokio::test]
async fn what_is_configured_reaches_live_sessions_and_the_door() {
    let house = House::start().await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    house.write_config(|config| {
        config.limits.message_bytes = 2048;
        config.limits.rate_per_second = 7;
        config.session.heartbeat = seconds(20);
        config.limits.strikes = 2;
        config.gateway.origins = vec!["https://console.example".to_owned()];
    });
    // By the change of the file alone.
    let limits = device.expect("limits").await;
    assert_eq!(limits["max_message_bytes"], 2048);
    assert_eq!(limits["rate"], json!({ "per_second": 7, "burst": 1000 }));
    assert_eq!(limits["heartbeat"], 20);
    assert!(limits.get("max_skew").is_none(), "it is as it was: {limits}");
    for _ in 0..2 {
        device.send_frame(tokio_tungstenite::tungstenite::Message::text("rubbish")).await;
    }
    assert_eq!(device.until_closed().await.0, Some(4008), "the second strike");
    let mut next = Device::upgrade(
        &house,
        &credentials,
        &UPGRADE.replace("Host: localhost", "Host: localhost\r\nOrigin: https://console.example"),
    )
    .await;
    assert_eq!(next.expect("welcome").await["max_message_bytes"], 2048);
    next.hello().await;
    let long = json!("x".repeat(2048));
    next.publish("m", long).await;
    assert_eq!(next.until_closed().await.0, Some(1009));
}

#[tokio::test]
async fn a_live_session_takes_no_longer_messages_than_it_was_opened_for_and_is_not_told_so() {
    let house = House::with(|config| config.limits.message_bytes = 2048).await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    house.write_config(|config| {
        config.limits.message_bytes = 8192;
        config.session.max_skew = seconds(90);
    });
    house.gateway.reload().await.unwrap();
    let limits = device.expect("limits").await;
    assert_eq!((&limits["max_skew"], limits.get("max_message_bytes")), (&json!(90), None));
    let mut next = Device::upgrade(&house, &credentials, UPGRADE).await;
    assert_eq!(next.expect("welcome").await["max_message_bytes"], 8192);
}

#[tokio::test]
async fn a_fleets_limits_stay_the_fleets_when_the_gateways_change() {
    let house = House::start().await;
    house.db.execute("UPDATE fleets SET limits = '{\"rate_burst\":50}' WHERE id = 'default'").await.unwrap();
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    house.write_config(|config| {
        config.limits.rate_burst = 70;
        config.limits.rate_per_second = 80;
    });
    house.gateway.reload().await.unwrap();
    assert_eq!(device.expect("limits").await["rate"], json!({ "per_second": 80, "burst": 50 }));
    // The registry's next word does not bring the old ones back.
    house.db.execute("UPDATE fleets SET limits = '{\"rate_burst\":40}' WHERE id = 'default'").await.unwrap();
    assert_eq!(device.expect("limits").await["rate"], json!({ "per_second": 80, "burst": 40 }));
}

#[tokio::test]
async fn a_configuration_that_is_broken_changes_nothing() {
    let house = House::start().await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    let good = std::fs::read_to_string(house.file("config.toml")).unwrap();
    // One good change beside a bad one: neither is taken.
    let bad = good.replace("rate_burst = 1000", "rate_burst = 5").replace("strikes = 5", "strikes = 0");
    assert_ne!(bad, good);
    std::fs::write(house.file("config.toml"), &bad).unwrap();
    eventually("the complaint", async || lines(NOT_TAKEN) == 1).await;
    assert!(log().lines().any(|line| line.contains(NOT_TAKEN) && line.contains("limits.strikes is 0")));
    assert!(device.hears_nothing(Duration::from_millis(200)).await);
    // A file that is named and comes later mends it, too.
    std::fs::write(house.file("config.toml"), good.replace("pki/gateway.crt", "pki/other.crt")).unwrap();
    eventually("the second complaint", async || lines(NOT_TAKEN) == 2).await;
    std::fs::copy(house.file("pki/gateway.crt"), house.file("pki/other.crt")).unwrap();
    eventually("what is taken", async || lines(TAKEN) == 1).await;
    device.hello().await;
    Device::prove(&house, &credentials).await;
}

#[tokio::test]
async fn what_needs_a_restart_is_named_once_and_waits() {
    let house = House::start().await;
    house.write_config(|config| {
        config.limits.connections = 1;
        config.registry.max_staleness = seconds(60);
    });
    let words = "these keys have changed too";
    eventually("the line", async || lines(words) == 1).await;
    assert!(log().contains("limits.connections, registry.max_staleness"), "{}", log());
    // Another change does not say it again by itself.
    house.write_config(|config| {
        config.limits.connections = 1;
        config.registry.max_staleness = seconds(60);
        config.limits.strikes = 8;
    });
    eventually("what is taken", async || log().contains("changed=\"limits.strikes\"")).await;
    assert_eq!(lines(words), 1);
    let (one, two) = (house.add_device("one").await, house.add_device("two").await);
    let _one = Device::prove(&house, &one).await;
    Device::prove(&house, &two).await;
}

#[tokio::test]
async fn tickets_outlive_a_change_that_does_not_concern_them() {
    let house = House::start().await;
    let credentials = house.add_device("press-7").await;
    let config = Arc::new(tls(&house, Some(&credentials), TLS13));
    let connect = async || {
        let stream = dial(&house, Arc::clone(&config)).await.unwrap();
        let mut device = Device::upgrade_on(stream, &credentials, UPGRADE).await.unwrap();
        device.expect("welcome").await;
        device.ws.get_ref().get_ref().1.handshake_kind()
    };
    connect().await;
    house.write_config(|config| config.limits.strikes = 8);
    house.gateway.reload().await.unwrap();
    assert_eq!(connect().await, Some(HandshakeKind::Resumed));
    write_pair(&house, &house.server_pair(YEAR));
    house.gateway.reload().await.unwrap();
    assert_ne!(connect().await, Some(HandshakeKind::Resumed));
}

#[tokio::test]
async fn a_file_that_was_only_touched_is_no_news() {
    let house = House::start().await;
    let path = house.file("pki/gateway.crt");
    let same = std::fs::read(&path).unwrap();
    write_over(&path, same, PUBLIC).unwrap();
    assert_eq!(house.gateway.reload().await.unwrap(), doorward::gateway::Reloaded::default());
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!((lines(TAKEN), lines(NOT_TAKEN)), (0, 0));
    let credentials = house.add_device("press-7").await;
    Device::prove(&house, &credentials).await;
}

#[tokio::test]
async fn what_is_no_regular_file_is_refused_and_holds_nobody_up() {
    let house = House::start().await;
    let pipe = house.file("pki/pipe");
    assert!(std::process::Command::new("mkfifo").args(["-m", "600"]).arg(&pipe).status().unwrap().success());
    type Edit = fn(&mut doorward::config::Config);
    let edits: [Edit; 4] = [
        |config| config.tls.crls = vec!["pki/pipe".into()],
        |config| config.tls.device_cas = vec!["pki/pipe".into()],
        |config| config.tls.certificate = "pki/pipe".into(),
        |config| config.tls.key = "pki/pipe".into(),
    ];
    for edit in edits {
        house.write_config(edit);
        let reload = tokio::time::timeout(Duration::from_secs(5), house.gateway.reload());
        let error = reload.await.expect("an answer").unwrap_err().to_string();
        assert!(error.contains("pki/pipe") && error.contains("no regular file"), "{error}");
    }
    std::fs::rename(&pipe, house.file("config.toml")).unwrap();
    let reload = tokio::time::timeout(Duration::from_secs(5), house.gateway.reload());
    let error = reload.await.expect("an answer").unwrap_err().to_string();
    assert!(error.contains("config.toml") && error.contains("no regular file"), "{error}");
}

#[tokio::test]
async fn a_configuration_that_was_cut_to_nothing_is_refused() {
    let house = House::with(|config| config.tls.device_cas.push("pki/root.crt".into())).await;
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    for text in ["", "# all gone\n"] {
        std::fs::write(house.file("config.toml"), text).unwrap();
        let error = house.gateway.reload().await.unwrap_err().to_string();
        assert!(error.contains("has no section"), "{error}");
    }
    device.hello().await;
    assert_eq!(house.gateway.expiries().device_cas.len(), 2);
}

#[tokio::test]
async fn a_device_ca_is_taken_away_once_that_has_stood_and_at_a_signal_at_once() {
    let house = House::start().await;
    let (_, other) = crate::support::house::authorities("Other issuing CA");
    std::fs::write(house.file("pki/other.crt"), other.certificate_pem()).unwrap();
    let only_other = || {
        house.write_config(|config| config.tls.device_cas = vec!["pki/other.crt".into()]);
    };
    let credentials = house.add_device("press-7").await;
    let mut device = Device::prove(&house, &credentials).await;
    // For longer than a look, and shorter than it takes.
    let whole = std::fs::read(house.file("config.toml")).unwrap();
    only_other();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    std::fs::write(house.file("config.toml"), &whole).unwrap();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    device.hello().await;
    assert_eq!(lines(TAKEN), 0, "{}", log());
    // For good.
    only_other();
    device.closed_with_bye(4004).await;
    eventually("a line that says what it was", async || {
        log().lines().any(|line| line.contains("session closed") && line.contains("certificate-unknown"))
    })
    .await;
    // At once.
    std::fs::write(house.file("config.toml"), &whole).unwrap();
    house.gateway.reload().await.unwrap();
    let mut device = Device::prove(&house, &credentials).await;
    only_other();
    assert_eq!(house.gateway.reload().await.unwrap().ended, 1);
    device.closed_with_bye(4004).await;
}
