//! `pki rewrap`: every key is sealed by another master key while gateways run, whatever cuts it short.

use std::fs;
use std::time::Duration;

use doorward_client::{Credentials, Device, Options, State};
use doorward_pki::{BulkLine, MasterKey};
use doorward_proto::ids::KeyVersion;

use crate::support::command::{Desk, Ran, mode};
use crate::support::database::{Database, Sql};
use crate::support::house::within;
use crate::support::running::Running;

use super::on_both;
use super::receipt::connected;

fn key(desk: &Desk, name: &str) -> MasterKey {
    MasterKey::parse(&fs::read_to_string(desk.home(&format!("pki/{name}"))).unwrap()).unwrap()
}

/// The files of master keys, with their modes.
fn files(desk: &Desk) -> Vec<String> {
    desk.modes("home/pki").into_iter().filter(|line| line.contains("/master")).collect()
}

/// How many keys a master key has sealed.
async fn sealed_by(database: &Database, key: &MasterKey) -> i64 {
    let id = match &database.sql {
        Sql::Sqlite(_) => "lower(hex(substr(sealed, 2, 8)))",
        Sql::Postgres(_) => "encode(substring(sealed FROM 2 FOR 8), 'hex')",
    };
    database.number(&format!("SELECT count(*) FROM hmac_keys WHERE {id} = '{}'", key.id())).await
}

async fn lets_in(desk: &Desk, gateway: &Running, id: &str) {
    let credentials = Credentials::load(desk.home(&format!("devices/{id}"))).unwrap();
    let device = Device::connect(credentials.with_url(&gateway.url()), Options::default()).unwrap();
    within("an ack", device.publish(&format!("devices/{id}/t"), &1)).await.unwrap();
}

async fn live_sessions_go_on_and_new_ones_come(database: Database, desk: Desk) {
    let gateway = Running::start(&desk);
    let device = connected(&desk, &gateway, "a").await;
    desk.run("device add b").done();
    let mut state = device.state();
    state.mark_unchanged();
    let old = key(&desk, "master.key");
    let done = desk.run("pki rewrap --json").json();
    let new = key(&desk, "master.key");
    assert_eq!((&done["old"], &done["new"]), (&old.id().into(), &new.id().into()));
    assert_eq!((&done["resealed"], &done["gateways"]), (&2.into(), &serde_json::json!(["gateway-1"])));
    assert_eq!(
        files(&desk),
        [format!("600 home/pki/master.{}.old.key", old.id()), "600 home/pki/master.key".to_owned(),]
    );
    assert_eq!((sealed_by(&database, &old).await, sealed_by(&database, &new).await), (0, 2));
    // Nothing was said to the device, and its session is the same.
    within("an ack", device.publish("devices/a/t", &2)).await.unwrap();
    assert!(!state.has_changed().unwrap() && matches!(*state.borrow(), State::Connected(_)));
    lets_in(&desk, &gateway, "b").await;
    desk.run("device add c").done();
    lets_in(&desk, &gateway, "c").await;
    desk.run("device rotate-key a").done();
    desk.run("device bundle b --out again").done();
    desk.run("audit verify").done();
    let resealed = desk.run("audit list --json").done().out.matches("key.reseal").count();
    assert_eq!(resealed, 2);
    drop(device);
    gateway.ended_by("TERM");
    let gateway = Running::start(&desk);
    lets_in(&desk, &gateway, "a").await;
    gateway.ended_by("TERM");

    // Whoever went on with the old key would give devices what no gateway opens.
    fs::write(desk.home("pki/master.key"), old.to_file().as_bytes()).unwrap();
    desk.run("device add d").fails(4, &["'doorward pki rewrap' has replaced", "pki/master.key"]);
    desk.run("device show d").fails(3, &[]);
}

async fn a_gateway_without_the_next_key_holds_it_up(database: Database, desk: Desk) {
    let other = Desk::empty().told(&database.url.to_string());
    fs::create_dir_all(other.home("pki")).unwrap();
    for name in ["config.toml", "pki/gateway.crt", "pki/gateway.key", "pki/issuing.crt", "pki/master.key"] {
        fs::copy(desk.home(name), other.home(name)).unwrap();
    }
    let config = fs::read_to_string(other.home("config.toml")).unwrap();
    fs::write(other.home("config.toml"), config.replace("\"gateway-1\"", "\"gateway-2\"")).unwrap();
    let (here, there) = (Running::start(&desk), Running::start(&other));
    desk.run("device add a").done();
    let old = key(&desk, "master.key");
    let refused = desk.run("pki rewrap --wait 3s").fails(
        4,
        &["do not hold the next master key: 'gateway-2'", "home/pki/master.next.key", "gateway remove"],
    );
    assert!(!refused.err.contains("'gateway-1' (version"), "{refused:?}");
    assert_eq!(sealed_by(&database, &old).await, 1, "nothing was sealed");
    let next = key(&desk, "master.next.key");
    desk.run("pki rewrap --prepare").done().says(&["is there already", &next.id()]);

    fs::copy(desk.home("pki/master.next.key"), other.home("pki/master.next.key")).unwrap();
    desk.run("pki rewrap").done().says(&[&next.id(), "1 keys", "mv pki/master.next.key pki/master.key"]);
    lets_in(&desk, &there, "a").await;
    lets_in(&desk, &here, "a").await;
    // There the files are all that is left to do, by hand or by the same command.
    other.run("device rotate-key a").fails(4, &["'doorward pki rewrap' has replaced"]);
    other.run("pki rewrap").done().says(&["0 keys were sealed again"]);
    assert_eq!(key(&other, "master.key").id(), next.id());
    lets_in(&desk, &there, "a").await;
    here.ended_by("TERM");
    there.ended_by("TERM");
}

async fn killed_and_repeated_it_goes_on(database: Database, desk: Desk) {
    const MANY: usize = 1200;
    desk.run(&format!("device add --count {MANY} --prefix p- --out p.jsonl")).done();
    desk.run("pki rewrap --prepare").done();
    let (old, next) = (key(&desk, "master.key"), key(&desk, "master.next.key"));
    for _ in 0..6 {
        let mut child = desk.command("pki rewrap").spawn().unwrap();
        std::thread::sleep(Duration::from_millis(fastrand::u64(5..400)));
        let _ = child.kill();
        child.wait().unwrap();
        if key(&desk, "master.key").id() != old.id() {
            break;
        }
        assert_eq!(key(&desk, "master.next.key").id(), next.id(), "the one that was begun with");
        // Whatever is done, one of the two opens it.
        let both = sealed_by(&database, &old).await + sealed_by(&database, &next).await;
        assert_eq!(both, i64::try_from(MANY).unwrap());
    }
    if key(&desk, "master.key").id() == old.id() {
        desk.run("pki rewrap").done();
    }
    assert_eq!(key(&desk, "master.key").id(), next.id());
    assert_eq!(sealed_by(&database, &next).await, i64::try_from(MANY).unwrap());
    let lines = fs::read_to_string(desk.path("p.jsonl")).unwrap();
    for line in lines.lines().step_by(97).map(|line| serde_json::from_str::<BulkLine>(line).unwrap()) {
        let device = database.registry.device(&line.device).await.unwrap().unwrap();
        let opened = next.open(&line.device, KeyVersion::FIRST, &device.keys[0].sealed).unwrap();
        assert_eq!(*opened, *line.key.hmac.as_bytes());
    }
    desk.run("audit verify").done();
}

async fn what_no_master_key_opens_is_named_and_left_on_request(database: Database, desk: Desk) {
    for id in ["a", "b"] {
        desk.run(&format!("device add {id}")).done();
    }
    // One device's row over another's.
    database
        .execute("UPDATE hmac_keys SET sealed = (SELECT sealed FROM hmac_keys WHERE device = 'a') WHERE device = 'b'")
        .await
        .unwrap();
    let old = key(&desk, "master.key");
    desk.run("pki rewrap").fails(1, &["1 keys", "b (version 1)", "--skip-damaged"]);
    assert_eq!(key(&desk, "master.key").id(), old.id());
    desk.run("pki rewrap --skip-damaged").done().says(&["warning: 1 damaged keys"]);
    let new = key(&desk, "master.key");
    assert_eq!((sealed_by(&database, &old).await, sealed_by(&database, &new).await), (1, 1));
}

on_both!(
    live_sessions_go_on_and_new_ones_come,
    a_gateway_without_the_next_key_holds_it_up,
    killed_and_repeated_it_goes_on,
    what_no_master_key_opens_is_named_and_left_on_request,
);

#[test]
fn only_a_file_of_the_home_is_replaced() {
    let desk = Desk::new();
    let mut handed = desk.command("pki rewrap");
    handed.env("DOORWARD_MASTER_KEY", fs::read_to_string(desk.home("pki/master.key")).unwrap().trim());
    Ran::of(&mut handed).fails(4, &["handed to this process", "pki/master.key"]);
    assert!(!desk.home("pki/master.next.key").exists());

    let made = desk.run("pki rewrap --prepare --json").json();
    assert_eq!((&made["state"], &made["made"]), (&"prepared".into(), &true.into()));
    assert_eq!(mode(&desk.home("pki/master.next.key")), 0o600);
    assert_eq!(desk.run("pki rewrap --prepare --json").json()["made"], false);
    fs::copy(desk.home("pki/master.key"), desk.home("pki/master.next.key")).unwrap();
    desk.run("pki rewrap").fails(4, &["hold the same key", "remove pki/master.next.key"]);
    fs::write(desk.home("pki/master.next.key"), "junk").unwrap();
    desk.run("pki rewrap").fails(1, &["master.next.key", "one line"]);
    fs::remove_file(desk.home("pki/master.next.key")).unwrap();
    // No device yet: there is nothing to seal, and the key is another all the same.
    desk.run("pki rewrap").done().says(&["0 keys were sealed again"]);

    // Another registry's keys are nothing to seal.
    desk.run("device add a").done();
    fs::write(desk.home("pki/master.key"), MasterKey::from_bytes([7; 32]).to_file().as_bytes()).unwrap();
    desk.run("pki rewrap")
        .fails(4, &["the registry's keys are sealed by master key", "put the pki/master.key"]);
}
