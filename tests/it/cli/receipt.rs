//! The receipt of an act: who has confirmed it, and who may not have heard.

use std::time::Duration;

use doorward_client::{Credentials, Device, Options, State};
use serde_json::{Value, json};

use crate::support::command::{Desk, until};
use crate::support::database::Database;
use crate::support::house::within;
use crate::support::running::Running;

use super::on_both;

pub(super) async fn connected(desk: &Desk, gateway: &Running, id: &str) -> Device {
    desk.run(&format!("device add {id}")).done();
    let credentials = Credentials::load(desk.home(&format!("devices/{id}"))).unwrap();
    let device = Device::connect(credentials.with_url(&gateway.url()), Options::default()).unwrap();
    within("an ack", device.publish(&format!("devices/{id}/t"), &1)).await.unwrap();
    until("the session in the list", || desk.run("session list --json").json().to_string().contains(id));
    device
}

fn state_of(desk: &Desk, name: &str) -> Value {
    let gateways = desk.run("gateway list --json").json();
    let found = gateways.as_array().unwrap().iter().find(|gateway| gateway["gateway"] == name);
    found.map_or(Value::Null, |gateway| gateway["state"].clone())
}

async fn it_says_where_an_act_has_taken_effect(_: Database, desk: Desk) {
    assert_eq!(desk.run("gateway list --json").json(), json!([]));
    let gateway = Running::start(&desk);
    let devices = [
        connected(&desk, &gateway, "a").await,
        connected(&desk, &gateway, "b").await,
        connected(&desk, &gateway, "c").await,
    ];
    for line in ["device suspend a --reason x", "device kick b", "device revoke c --reason x"] {
        let told = desk.run(&format!("{line} --json")).json();
        let receipt = &told["receipt"];
        let whole = (&receipt["sessions_ended"], &receipt["confirmed"], &receipt["complete"]);
        assert_eq!(whole, (&json!(1), &json!(1), &json!(true)), "{line}: {told}");
        assert!(
            receipt["slowest_ms"].as_u64().unwrap() < 5000 && receipt["unconfirmed"] == json!([]),
            "{told}"
        );
    }
    for device in &devices {
        let mut state = device.state();
        let gone = |state: &State| !matches!(state, State::Connected(_));
        within("the end of its session", state.wait_for(gone)).await.unwrap();
    }
    desk.run("device revoke c --reason x")
        .done()
        .says(&["was revoked already; no session ended, confirmed by 1 gateway after"]);
    desk.run("device revoke c --reason x --no-wait").done().says(&["nobody was waited for"]);
    assert_eq!(desk.run("device revoke c --reason x --no-wait --json").json()["receipt"], Value::Null);
    desk.run("device kick b --wait soon").fails(2, &["--wait"]);
    desk.write("policy.json", "{}");
    desk.run("fleet policy default policy.json")
        .done()
        .says(&["follows its new policy; confirmed by 1 gateway"]);

    assert_eq!(state_of(&desk, "gateway-1"), "serving");
    let table = desk.run("gateway list").done().out;
    assert!(table.contains(&gateway.address) && table.contains(env!("CARGO_PKG_VERSION")), "{table}");
    gateway.ended_by("TERM");
    assert_eq!(state_of(&desk, "gateway-1"), "ended");
    desk.run("device kick b").done().says(&["no gateway serves now"]);
}

async fn who_has_not_heard_is_named(_: Database, desk: Desk) {
    let gateway = Running::start(&desk);
    let device = connected(&desk, &gateway, "a").await;
    gateway.signal("STOP");
    let told = desk.run("device revoke a --reason x --wait 300ms");
    assert_eq!(told.code, Some(1), "{told:?}");
    assert!(told.err.starts_with("committed, not confirmed: device 'a' is revoked for good"), "{told:?}");
    let told = told.says(&["gateway 'gateway-1' may serve until 20", "then repeat the command"]);
    assert_eq!(told.out, "");
    let told = desk.run("device revoke a --reason x --wait 300ms --json");
    let json: Value = serde_json::from_str(&told.out).unwrap();
    assert_eq!((told.code, &json["receipt"]["complete"]), (Some(1), &json!(false)), "{told:?}");
    assert_eq!(json["receipt"]["unconfirmed"][0]["gateway"], "gateway-1");
    gateway.signal("CONT");
    desk.run("device revoke a --reason x").done().says(&["confirmed by 1 gateway"]);
    let mut state = device.state();
    within("the device's end", state.wait_for(|state| matches!(state, State::Stopped(_)))).await.unwrap();

    // One that was killed may still run somewhere, for all that is known; a person may know better.
    gateway.kill();
    desk.run("device add b").done();
    desk.run("device kick b --wait 100ms").says(&["committed, not confirmed"]);
    desk.run("gateway remove nobody").fails(3, &["there is no gateway 'nobody'", "gateway list"]);
    desk.run("gateway remove gateway-1").done().says(&["cut off from it, it may serve until 20"]);
    desk.run("device kick b").done().says(&["no gateway serves now"]);
}

async fn a_name_is_one_gateways(database: Database, desk: Desk) {
    let gateway = Running::start(&desk);
    desk.run("gateway run --listen 127.0.0.1:0").fails(4, &["a gateway runs on home already"]);
    // Another home on the same registry; it is told the other's master key, as a home for another host would have.
    let other = Desk::empty().told(&database.url.to_string());
    std::fs::create_dir_all(other.home("pki")).unwrap();
    for name in ["config.toml", "pki/gateway.crt", "pki/gateway.key", "pki/issuing.crt", "pki/master.key"] {
        std::fs::copy(desk.home(name), other.home(name)).unwrap();
    }
    other
        .run("gateway run --listen 127.0.0.1:0")
        .fails(4, &["another home or database role has the name 'gateway-1'", "gateway remove gateway-1"]);
    let config = std::fs::read_to_string(other.home("config.toml")).unwrap();
    std::fs::write(other.home("config.toml"), config.replace("\"gateway-1\"", "\"gateway-2\"")).unwrap();
    let second = Running::start(&other);
    let device = connected(&desk, &gateway, "a").await;
    desk.run("device kick a").done().says(&["1 session ended, confirmed by 2 gateways, the slowest after"]);
    drop(device);
    // Taken away from it, the name is worth nothing any more: it ends, and says why.
    desk.run("gateway remove gateway-2").done();
    let said = second.ends_by_itself(Duration::from_secs(20));
    assert!(said.contains("this gateway was removed from the registry"), "{said}");
    // A restart takes its own place again, though the last run could not sign off.
    gateway.kill();
    let gateway = Running::start(&desk);
    assert_eq!(state_of(&desk, "gateway-1"), "serving");
    gateway.ended_by("TERM");
}

#[tokio::test]
async fn transactions_that_idle_delay_nothing() {
    let database = Database::bare_postgres().await;
    let desk = Desk::on(&database);
    let gateway = Running::start(&desk);
    let _device = connected(&desk, &gateway, "a").await;
    let mut idle = database.pg().begin().await.unwrap();
    sqlx::query("SELECT pg_current_xact_id()").execute(&mut *idle).await.unwrap();
    let mut prepared = database.pg().acquire().await.unwrap();
    for sql in ["BEGIN", "SELECT pg_current_xact_id()", "PREPARE TRANSACTION 'forgotten'"] {
        sqlx::query(sql).execute(&mut *prepared).await.unwrap();
    }
    desk.run("device revoke a --reason x").done().says(&["1 session ended, confirmed by 1 gateway"]);
    sqlx::query("ROLLBACK PREPARED 'forgotten'").execute(&mut *prepared).await.unwrap();
    gateway.ended_by("TERM");
}

on_both!(it_says_where_an_act_has_taken_effect, who_has_not_heard_is_named, a_name_is_one_gateways);
