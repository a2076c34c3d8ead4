//! Each flood does what its name says, for as long as it is told to.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is a test")]

#[path = "../../client/tests/support/mod.rs"]
mod support;

use std::time::Duration;

use clap::ValueEnum as _;
use device_sim::flood::{Flood, Kind, Source, run};
use support::{Gateway, Setup};
use tokio_util::sync::CancellationToken;

fn flood(gateway: &Gateway, kind: Kind, source: Source) -> Flood {
    Flood {
        devices: gateway.credentials(),
        url: gateway.url(),
        kind,
        source,
        first_address: 0,
        at_once: 2,
        duration: Duration::from_millis(1500),
        cancel: CancellationToken::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_gets_as_far_as_its_attack_and_ends() {
    for kind in Kind::value_variants() {
        let gateway = Gateway::start(Setup::default()).await;
        let flood = run(flood(&gateway, *kind, Source::Each));
        let report = tokio::time::timeout(Duration::from_secs(30), flood).await.expect("it ends").unwrap();
        assert!(report.connections > report.turned_away, "{report}");
        let says_something = !matches!(kind, Kind::Connect | Kind::Silence);
        assert_eq!(report.frames > 0, says_something, "{report}");
        assert!(report.to_string().starts_with(&kind.to_string()), "{report}");
        assert!(gateway.shared.stored.lock().unwrap().values().all(|times| *times == 1), "{report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_without_devices_is_none_and_one_that_is_cancelled_ends() {
    let gateway = Gateway::start(Setup::default()).await;
    let nobody = Flood { devices: Vec::new(), ..flood(&gateway, Kind::Forge, Source::One) };
    assert!(run(nobody).await.unwrap_err().to_string().contains("at least 1 device"));
    let long = Flood { duration: Duration::from_secs(3600), ..flood(&gateway, Kind::Pings, Source::Many) };
    let cancel = long.cancel.clone();
    let (report, ()) = tokio::join!(run(long), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        cancel.cancel();
    });
    assert!(report.unwrap().seconds < 3000.0);
}
