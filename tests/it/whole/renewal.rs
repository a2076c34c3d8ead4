//! Certificates that devices get themselves, over the whole path: asked, signed, proven, and nothing lost meanwhile.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use device_sim::{Plan, Rotation, Scenario};
use doorward_client::{CertificateStatus, Credentials, Device, Options, Renew, RenewalOptions, RenewalState};
use serde_json::json;

use super::{array, bundle, connected, device_py};
use crate::cli::{on_both, profiles};
use crate::support::command::{Desk, openssl};
use crate::support::database::{Database, Sql};
use crate::support::house::{eventually, from_now, stamp, within};
use crate::support::running::Running;

/// Who signs, where the gateway's database role may not.
struct Issuer(Option<Child>);

impl Issuer {
    fn start(database: &Database, desk: &Desk) -> Self {
        let alone = matches!(database.sql, Sql::Postgres(_));
        let mut command: Command = desk.command("issuer run");
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Self(alone.then(|| command.spawn().unwrap()))
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

/// The operator wants these devices' certificates renewed.
pub(crate) async fn asked(database: &Database, devices: &str) {
    let by = stamp(from_now(86_400));
    let sql = format!("UPDATE certificates SET rotate_by = '{by}' WHERE device LIKE '{devices}'");
    database.execute(&sql).await.unwrap();
}

pub(crate) fn at_once() -> Options {
    let renewal = RenewalOptions { spread: Duration::ZERO, ..RenewalOptions::default() };
    Options { renewal, ..Options::default() }
}

fn statuses(desk: &Desk, device: &str) -> Vec<String> {
    let listed = desk.run(&format!("cert list --device {device} --json")).json();
    let mut statuses: Vec<String> =
        array(&listed).iter().map(|row| row["status"].as_str().unwrap().to_owned()).collect();
    statuses.sort();
    statuses
}

fn files(desk: &Desk, device: &str) -> Vec<String> {
    let folder = std::fs::read_dir(desk.home(&format!("devices/{device}"))).unwrap();
    let mut names: Vec<String> =
        folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

async fn a_device_renews_while_it_publishes(database: Database, desk: Desk) {
    let gateway = Running::start(&desk);
    let _issuer = Issuer::start(&database, &desk);
    let device = Device::connect(bundle(&desk, "press-7", &gateway), at_once()).unwrap();
    connected(&device).await;
    asked(&database, "press-7").await;
    let mut published = 0;
    eventually("the new certificate is in force", async || {
        published += 1;
        within("an ack", device.publish("devices/press-7/t", &published)).await.unwrap();
        device.certificate().borrow().renewed == 1
    })
    .await;
    within("an ack", device.publish("devices/press-7/t", &json!("by the new one"))).await.unwrap();
    let serial = device.certificate().borrow().current.clone().unwrap().serial;
    device.close().await;
    eventually("the old one is superseded", async || statuses(&desk, "press-7") == ["active", "superseded"])
        .await;
    desk.run(&format!("cert show {serial} --json")).done();
    assert!(profiles::is_a_devices(&desk, "home/devices/press-7/device.crt"));
    assert_eq!(files(&desk, "press-7"), ["ca.crt", "device.crt", "device.json", "device.key"]);

    // What it has stored is what it comes back with.
    let again = Credentials::load(desk.home("devices/press-7")).unwrap().with_url(&gateway.url());
    let device = Device::connect(again, at_once()).unwrap();
    within("an ack", device.publish("devices/press-7/t", &0)).await.unwrap();
    let rows = desk.run("message list --device press-7 --json").json();
    assert_eq!(array(&rows).len(), published + 2, "nothing was lost, and nothing stored twice");
    device.close().await;
    gateway.ended_by("TERM");
}

async fn a_device_that_is_not_ours_renews(database: Database, desk: Desk) {
    let gateway = Running::start(&desk);
    let _issuer = Issuer::start(&database, &desk);
    desk.run("device add press-7").done();
    let certificate = || std::fs::read_to_string(desk.home("devices/press-7/device.crt")).unwrap();
    let mut before = certificate();
    // By itself, and then because it is asked to.
    for (words, stored) in
        [(vec!["home/devices/press-7", "3", "--renew"], 3), (vec!["home/devices/press-7", "5"], 8)]
    {
        if stored == 8 {
            asked(&database, "press-7").await;
        }
        let ran = device_py(&desk, &gateway, &words).done();
        assert!(ran.out.lines().any(|line| line == "renewed"), "{ran:#?}");
        assert_eq!(ran.out.lines().filter(|line| line.starts_with("connected ")).count(), 2, "{ran:#?}");
        assert_eq!(array(&desk.run("message list --device press-7 --json").json()).len(), stored);
        assert_ne!(certificate(), before);
        assert_eq!(files(&desk, "press-7"), ["ca.crt", "device.crt", "device.json", "device.key"]);
        let modes = ["644 ca.crt", "644 device.crt", "600 device.json", "600 device.key"];
        assert_eq!(
            desk.modes("home/devices/press-7"),
            modes.map(|mode| mode.replace(' ', " home/devices/press-7/"))
        );
        before = certificate();
    }
    let expected = ["active", "superseded", "superseded"];
    eventually("the old ones are superseded", async || statuses(&desk, "press-7") == expected).await;
    let (fits, said) = openssl(
        &desk,
        "verify -x509_strict -purpose sslclient -CAfile home/pki/root.crt -untrusted home/devices/press-7/device.crt home/devices/press-7/device.crt",
    );
    assert!(fits, "{said}");
    // A device of ours takes the bundle over as it is.
    let credentials = Credentials::load(desk.home("devices/press-7")).unwrap().with_url(&gateway.url());
    let device = Device::connect(credentials, at_once()).unwrap();
    within("an ack", device.publish("devices/press-7/t", &0)).await.unwrap();
    device.close().await;
    gateway.ended_by("TERM");
}

/// A device that was killed when its new certificate had come: the new pair lies beside the old one.
fn unproven(desk: &Desk, device: &str) -> String {
    desk.run(&format!("device add {device}")).done();
    desk.run(&format!("device rotate-cert {device} --out new")).done();
    let read = |name: &str| std::fs::read_to_string(desk.path(&format!("new/{device}/{name}"))).unwrap();
    let both = read("device.key") + &read("device.crt");
    let folder = desk.home(&format!("devices/{device}"));
    std::fs::write(folder.join("renewal.pem"), both).unwrap();
    let leaf = Credentials::load(desk.path(&format!("new/{device}"))).unwrap();
    doorward_pki::Leaf::parse(&leaf.identity().chain()[0]).unwrap().serial().to_owned()
}

fn old_serial(desk: &Desk, device: &str) -> String {
    let leaf = Credentials::load(desk.home(&format!("devices/{device}"))).unwrap();
    doorward_pki::Leaf::parse(&leaf.identity().chain()[0]).unwrap().serial().to_owned()
}

async fn whichever_of_two_certificates_is_revoked_the_other_lets_it_in(_: Database, desk: Desk) {
    let gateway = Running::start(&desk);
    for ours in [true, false] {
        let (kept, taken) = if ours { ("press-1", "press-2") } else { ("press-3", "press-4") };
        let new = unproven(&desk, kept);
        desk.run(&format!("cert revoke {new} --reason lost")).done();
        unproven(&desk, taken);
        let old = old_serial(&desk, taken);
        desk.run(&format!("cert revoke {old} --reason lost --only")).done();
        for device in [kept, taken] {
            if ours {
                let retry = Duration::from_millis(20);
                let renewal = RenewalOptions { retry, give_up_after: 2, ..at_once().renewal };
                let credentials = Credentials::load(desk.home(&format!("devices/{device}"))).unwrap();
                let options = Options { renewal, ..at_once() };
                let live = Device::connect(credentials.with_url(&gateway.url()), options).unwrap();
                within("an ack", live.publish(&format!("devices/{device}/t"), &1)).await.unwrap();
                let mut status = live.certificate();
                let over = |status: &CertificateStatus| match &status.renewal {
                    RenewalState::GivenUp(why) => device == kept && why.contains("certificate-revoked"),
                    RenewalState::None => device == taken,
                    _ => false,
                };
                within("its end", status.wait_for(over)).await.unwrap();
                live.close().await;
            } else {
                let ran = device_py(&desk, &gateway, &[&format!("home/devices/{device}"), "2"]);
                if ran.code != Some(0) {
                    panic!("{ran:#?} {}", gateway.ended_by("TERM"));
                }
                assert_eq!(ran.out.lines().filter(|line| line.starts_with("stored ")).count(), 2, "{ran:#?}");
                assert_eq!(ran.out.contains("renewed"), device == taken, "{ran:#?}");
            }
        }
        assert_ne!(old_serial(&desk, taken), old, "{taken} has the new one");
        assert_eq!(files(&desk, taken), ["ca.crt", "device.crt", "device.json", "device.key"]);
    }
    for device in ["press-1", "press-3"] {
        assert!(!files(&desk, device).contains(&"renewal.pem".to_owned()), "{device} has given it up");
    }
    // Whatever lies there keeps no device from its work.
    std::fs::write(desk.home("devices/press-3/renewal.pem"), "-----BEGIN CERTIFICATE-----\njunk").unwrap();
    let ran = device_py(&desk, &gateway, &["home/devices/press-3", "1"]);
    assert!(ran.code == Some(0) && ran.out.contains("stored "), "{ran:#?}");
    gateway.ended_by("TERM");
}

async fn a_fleet_renews_under_load_and_loses_nothing(database: Database, desk: Desk) {
    let gateway = Running::start(&desk);
    let _issuer = Issuer::start(&database, &desk);
    desk.run("device add --count 24 --prefix s- --out s.jsonl").done();
    let devices = device_sim::fleet::load(&desk.path("s.jsonl")).unwrap();
    let mut plan = Plan::new(devices, &gateway.url(), Scenario::Steady);
    plan.rate = Some(240.0);
    plan.duration = Duration::from_secs(6);
    plan.renew = Renew::InMemory;
    plan.renew_spread = Duration::from_secs(1);
    let run = tokio::spawn(device_sim::run(plan));
    eventually("all are up", async || array(&desk.run("session list --json").json()).len() == 24).await;
    asked(&database, "s-%").await;
    let report = run.await.unwrap().unwrap();
    assert!(report.met, "{report:#?}");
    assert_eq!(report.rotation, Rotation { renewed: 24, rekeyed: 0, failed: 0 }, "{report:#?}");
    let stored = database.number("SELECT count(*) FROM messages").await;
    assert_eq!(u64::try_from(stored).unwrap(), report.messages.accepted, "{report:#?}");
    assert_eq!(report.messages.accepted, report.messages.sent);
    gateway.ended_by("TERM");
}

on_both!(
    a_device_renews_while_it_publishes,
    a_device_that_is_not_ours_renews,
    whichever_of_two_certificates_is_revoked_the_other_lets_it_in,
    a_fleet_renews_under_load_and_loses_nothing,
);
