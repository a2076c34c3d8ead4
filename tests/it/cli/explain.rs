//! `explain` names the first thing that is wrong, and the command that it names mends it.

use doorward::registry::{NewCertificate, NewDevice};
use doorward::{entropy, home};
use doorward_client::{Credentials, Device, Options, State};
use doorward_pki::{Authority, Fingerprint, MasterKey};
use doorward_proto::ids::{DeviceId, FleetId, KeyVersion};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose};
use serde_json::{Value, json};

use crate::support::command::{Desk, Ran, until};
use crate::support::database::{Database, Sql};
use crate::support::house::{authorities, certify, from_now, within};
use crate::support::running::Running;

use super::on_both_threaded;
use super::receipt::connected;

on_both_threaded! {
    what_is_not_there_is_3,
    without_a_gateway_nobody_connects,
    a_device_that_is_out_is_named_with_what_mends_it,
    a_certificate_that_does_not_hold_is_named_with_what_mends_it,
    a_certificate_that_never_was_a_devices_is_named,
    one_that_has_expired_may_renew_and_no_more,
    keys_that_open_nothing_are_named,
    a_policy_that_allows_nothing_lets_it_connect_alone,
    what_cannot_be_asked_here_is_not_guessed,
    security_events_are_shown,
    a_clock_that_is_off_is_named_with_what_mends_it,
    a_device_that_may_is_said_to,
    a_gateway_that_has_not_heard_is_not_spoken_for,
}

/// The answer, and the exit code that goes with it.
#[track_caller]
fn explained(desk: &Desk, line: &str) -> (i32, Value) {
    let ran = desk.run(&format!("explain {line} --json"));
    let value = serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:#?}"));
    assert_eq!(ran.err, "", "{ran:#?}");
    (ran.code.unwrap(), value)
}

/// What is wrong first.
#[track_caller]
fn first(desk: &Desk, id: &str) -> (i32, String, Value) {
    let (code, value) = explained(desk, id);
    let check = value["first"]["check"].as_str().unwrap_or_else(|| panic!("{value:#}")).to_owned();
    (code, check, value)
}

fn state_of<'a>(value: &'a Value, topic: &str) -> &'a str {
    let checks = value["checks"].as_array().unwrap();
    checks.iter().find(|check| check["check"] == topic).unwrap()["state"].as_str().unwrap()
}

/// Runs the command that an explanation names.
#[track_caller]
fn mend(desk: &Desk, value: &Value) -> Ran {
    let next = value["first"]["next"].as_str().unwrap_or_else(|| panic!("{value:#}"));
    let line = next.split([',', ':', '(']).next().unwrap();
    let line = line.strip_prefix("doorward ").unwrap_or_else(|| panic!("no command: {next}"));
    desk.run(&line.replace(" DIR", " mended").replace(" FILE", " policy.json")).done()
}

async fn what_is_not_there_is_3(_: Database, desk: Desk) {
    desk.run("explain press-7").fails(3, &["there is no device 'press-7'", "doorward device list"]);
    desk.run("device add press-7").done();
    desk.run("explain press-7 --gateway nobody")
        .fails(3, &["there is no gateway 'nobody'", "doorward gateway list"]);
    desk.run("explain").fails(2, &["<DEVICE>"]);
}

async fn a_device_that_may_is_said_to(_: Database, desk: Desk) {
    let gateway = Running::start(&desk);
    desk.run("device add press-8").done();
    until("it has heard of the device", || explained(&desk, "press-8").0 == 0);
    let (code, value) = explained(&desk, "press-8");
    assert_eq!((code, &value["may_connect"], &value["may_publish"]), (0, &json!(true), &json!(true)));
    assert_eq!((&value["first"], &value["answer"]), (&Value::Null, &Value::Null), "{value:#}");
    assert_eq!(state_of(&value, "session"), "note", "never seen");
    assert_eq!(value["publish"], json!({ "allowed": ["devices/press-8/#"], "except": [] }));
    assert_eq!(value["keys"], json!([{ "version": 1, "state": "active", "grace_until": null }]));
    assert_eq!(value["limits"]["rate_per_second"], 100);
    assert_eq!(value["clock"]["ahead_seconds"], 0.0);

    let device = connected(&desk, &gateway, "press-7").await;
    desk.run("fleet limits default --rate 7").done();
    let (code, value) = explained(&desk, "press-7 --gateway gateway-1");
    assert_eq!(code, 0, "the command has waited for its receipt: {value:#}");
    assert_eq!((&value["session"]["gateway"], state_of(&value, "session")), (&json!("gateway-1"), "ok"));
    assert_eq!(
        (&value["limits"]["rate_per_second"], &value["limits"]["of_the_fleet"]),
        (&json!(7), &json!({ "rate_per_second": 7 }))
    );
    let gateways = value["gateways"].as_array().unwrap();
    assert_eq!((gateways.len(), &gateways[0]["confirmed"]), (1, &json!(true)), "{value:#}");

    let words = desk.run("explain press-7").done();
    assert!(words.out.starts_with("device 'press-7' may connect and publish\n"), "{words:?}");
    for word in [
        "CHECK",
        "chain",
        "it may publish to devices/press-7/#",
        "7 messages a second (the fleet's)",
        "CERTIFICATE",
    ] {
        assert!(words.out.contains(word), "{word}: {words:#?}");
    }
    drop(device);
    gateway.ended_by("TERM");
    let (code, value) = explained(&desk, "press-7 --gateway gateway-1");
    assert_eq!((code, &value["first"]["check"]), (4, &json!("gateway")), "{value:#}");
    assert!(value["first"]["what"].as_str().unwrap().contains("has signed off"), "{value:#}");
}

async fn without_a_gateway_nobody_connects(_: Database, desk: Desk) {
    desk.run("device add press-7").done();
    let (code, check, value) = first(&desk, "press-7");
    assert_eq!((code, &*check, &value["may_connect"]), (4, "gateway", &json!(false)));
    assert_eq!(value["first"]["next"], "doorward gateway run");
    let words = desk.run("explain press-7");
    assert_eq!((words.code, &*words.err), (Some(4), ""), "{words:?}");
    assert!(words.out.starts_with(
        "device 'press-7' cannot connect: no gateway serves\nto mend it: doorward gateway run\n"
    ));
}

async fn a_device_that_is_out_is_named_with_what_mends_it(_: Database, desk: Desk) {
    desk.run("device add press-7").done();
    desk.run("device suspend press-7 --reason repair").done();
    let (code, check, value) = first(&desk, "press-7");
    assert_eq!((code, &*check), (4, "device"), "{value:#}");
    assert_eq!(
        (&value["answer"]["status"], &value["answer"]["type"]),
        (&json!(403), &json!("device-suspended"))
    );
    assert!(value["first"]["what"].as_str().unwrap().contains("repair"));
    mend(&desk, &value);
    assert_eq!(first(&desk, "press-7").1, "gateway", "nothing else is wrong");

    // Everything else may be wrong as well: what is final comes first, and nothing is advised that would be refused.
    let serial = value["certificates"][0]["serial"].as_str().unwrap();
    desk.run(&format!("cert revoke {serial} --reason lost")).done();
    desk.run("device revoke press-7 --reason stolen").done();
    let (code, check, value) = first(&desk, "press-7");
    assert_eq!((code, &*check), (4, "device"), "{value:#}");
    assert!(value["first"]["next"].as_str().unwrap().contains("under another id"));
    let others = value["checks"].as_array().unwrap().iter().skip(1);
    assert!(others.into_iter().all(|check| check["next"].is_null()), "{value:#}");
}

async fn a_certificate_that_does_not_hold_is_named_with_what_mends_it(database: Database, desk: Desk) {
    desk.run("device add press-7").done();
    let (_, value) = explained(&desk, "press-7");
    let serial = value["certificates"][0]["serial"].as_str().unwrap();
    desk.run(&format!("cert revoke {serial} --reason lost")).done();
    let (code, check, value) = first(&desk, "press-7");
    assert_eq!((code, &*check, &value["answer"]["type"]), (4, "certificate", &json!("certificate-revoked")));
    assert!(value["first"]["what"].as_str().unwrap().contains("lost"), "{value:#}");
    mend(&desk, &value);
    let (_, check, value) = first(&desk, "press-7");
    assert_eq!((&*check, value["certificates"].as_array().unwrap().len()), ("gateway", 2), "{value:#}");
    assert_eq!(value["certificates"][0]["refusal"], Value::Null, "the one that counts comes first");
    assert_eq!(value["certificates"][1]["refusal"]["type"], "certificate-revoked");

    // One that another has taken the place of holds for its grace, and no longer.
    let at = |minutes: i32| match database.sql {
        Sql::Sqlite(_) => format!("strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '{minutes} minutes')"),
        Sql::Postgres(_) => format!("now() + interval '{minutes} minutes'"),
    };
    let supersede = |end: String| {
        format!(
            "UPDATE certificates SET status = 'superseded', valid_until = {end} WHERE status <> 'revoked'"
        )
    };
    database.execute(&supersede(at(60))).await.unwrap();
    let (_, check, value) = first(&desk, "press-7");
    assert_eq!((&*check, state_of(&value, "certificate")), ("gateway", "note"), "{value:#}");
    database.execute(&supersede(at(-1))).await.unwrap();
    let (code, check, value) = first(&desk, "press-7");
    assert_eq!(
        (code, &*check, &value["answer"]["type"]),
        (4, "certificate", &json!("certificate-superseded"))
    );
    std::fs::remove_dir_all(desk.path("mended")).unwrap();
    mend(&desk, &value);
    assert_eq!(first(&desk, "press-7").1, "gateway");
}

/// Registers a device with a certificate of its own making.
async fn register(
    database: &Database,
    desk: &Desk,
    authority: &Authority,
    id: &str,
    alter: impl FnOnce(&mut CertificateParams),
) {
    let credentials = certify(authority, id, alter);
    let id = DeviceId::new("press-7").unwrap();
    let der = credentials.chain[0].to_vec();
    let (_, read) = x509_parser::parse_x509_certificate(&der).unwrap();
    let certificate = NewCertificate {
        fingerprint: Fingerprint::of(&der),
        serial: read.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
        issuer: authority.key_id().to_owned(),
        not_before: read.validity().not_before.to_datetime(),
        not_after: read.validity().not_after.to_datetime(),
        der: der.clone(),
    };
    let master = MasterKey::parse(&home::read_secret(&desk.home("pki/master.key")).unwrap()).unwrap();
    let sealed_key = master.seal(&id, KeyVersion::FIRST, &credentials.hmac, entropy::random().unwrap());
    let device = NewDevice { fleet: FleetId::new("default").unwrap(), certificate, sealed_key, id };
    database.registry.add_devices(&[device]).await.unwrap();
}

fn issuing(desk: &Desk) -> Authority {
    let read = |name: &str| std::fs::read_to_string(desk.home(name)).unwrap();
    Authority::load(&read("pki/issuing.crt"), &read("pki/issuing.key")).unwrap()
}

async fn a_certificate_that_never_was_a_devices_is_named(database: Database, desk: Desk) {
    let (_, stranger) = authorities("Doorward issuing CA of somebody else");
    type Alter = fn(&mut CertificateParams);
    let cases: [(&str, Option<&Authority>, Alter, &str, Value); 4] = [
        (
            "press-7",
            None,
            |params| params.extended_key_usages.clear(),
            "certificate",
            json!("certificate-unfit"),
        ),
        ("press-8", None, |_| {}, "certificate", json!("certificate-mismatch")),
        ("press-7", Some(&stranger), |_| {}, "chain", Value::Null),
        (
            "press-7",
            None,
            |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
            "chain",
            Value::Null,
        ),
    ];
    let own = issuing(&desk);
    for (name, authority, alter, wanted, answer) in cases {
        register(&database, &desk, authority.unwrap_or(&own), name, alter).await;
        let (code, check, value) = first(&desk, "press-7");
        assert_eq!((code, &*check, &value["answer"]["type"]), (4, wanted, &answer), "{value:#}");
        mend(&desk, &value);
        assert_eq!(first(&desk, "press-7").1, "gateway", "a new certificate mends it");
        std::fs::remove_dir_all(desk.path("mended")).unwrap();
        // The next one begins afresh.
        for table in ["presence", "hmac_keys", "certificates"] {
            database.execute(&format!("DELETE FROM {table} WHERE device = 'press-7'")).await.unwrap();
        }
        database.execute("DELETE FROM devices WHERE id = 'press-7'").await.unwrap();
    }
}

async fn one_that_has_expired_may_renew_and_no_more(database: Database, desk: Desk) {
    let ended = |params: &mut CertificateParams| {
        (params.not_before, params.not_after) = (from_now(-86_400), from_now(-600));
    };
    register(&database, &desk, &issuing(&desk), "press-7", ended).await;
    let (code, check, value) = first(&desk, "press-7");
    assert_eq!((code, &*check, &value["answer"]["type"]), (4, "certificate", &json!("certificate-expired")));
    assert_eq!(value["may_connect"], false);
    desk.run("fleet limits default --renew-after-expiry 1h").done();
    let (code, value) = explained(&desk, "press-7");
    assert_eq!((code, &value["first"]["check"], &value["answer"]), (4, &json!("certificate"), &Value::Null));
    assert_eq!(value["certificates"][0]["late"], true, "{value:#}");
    assert!(value["first"]["what"].as_str().unwrap().contains("nothing but renew it"), "{value:#}");
    mend(&desk, &value);
    assert_eq!(first(&desk, "press-7").1, "gateway");
}

async fn keys_that_open_nothing_are_named(database: Database, desk: Desk) {
    desk.run("device add press-7").done();
    database.execute("UPDATE hmac_keys SET state = 'retired'").await.unwrap();
    let (code, check, value) = first(&desk, "press-7");
    assert_eq!((code, &*check, &value["answer"]["type"]), (4, "key", &json!("key-unknown")), "{value:#}");
    mend(&desk, &value);
    assert_eq!(first(&desk, "press-7").1, "gateway");
    // Another home's master key.
    let other = Desk::new();
    std::fs::copy(other.home("pki/master.key"), desk.home("pki/master.key")).unwrap();
    let (code, check, value) = first(&desk, "press-7");
    assert_eq!((code, &*check), (4, "key"), "{value:#}");
    assert!(value["first"]["what"].as_str().unwrap().contains("was sealed with master key"), "{value:#}");
}

async fn a_policy_that_allows_nothing_lets_it_connect_alone(database: Database, desk: Desk) {
    let gateway = Running::start(&desk);
    desk.run("device add press-7").done();
    desk.write("nothing.json", "{}");
    desk.run("fleet policy default nothing.json").done();
    let (code, check, value) = first(&desk, "press-7");
    assert_eq!((code, &*check), (4, "policy"), "{value:#}");
    assert_eq!((&value["may_connect"], &value["may_publish"]), (&json!(true), &json!(false)));
    let words = desk.run("explain press-7");
    assert!(
        words.out.starts_with("device 'press-7' cannot publish: the policy of fleet 'default'"),
        "{words:?}"
    );
    desk.write("policy.json", doorward_proto::policy::DEFAULT);
    mend(&desk, &value);
    until("it has heard of the policy", || explained(&desk, "press-7").0 == 0);
    // By a hand in SQL.
    database.execute("UPDATE fleets SET policy = '{\"alow\":[]}'").await.unwrap();
    let (code, check, value) = first(&desk, "press-7");
    assert_eq!((code, &*check, &value["may_connect"]), (4, "policy", &json!(false)), "{value:#}");
    assert!(value["first"]["what"].as_str().unwrap().contains("unknown field `alow`"), "{value:#}");
    mend(&desk, &value);
    drop(gateway);
}

async fn what_cannot_be_asked_here_is_not_guessed(_: Database, desk: Desk) {
    let gateway = Running::start(&desk);
    desk.run("device add press-7").done();
    until("it has heard of the device", || explained(&desk, "press-7").0 == 0);
    for (file, topic) in [("pki/issuing.crt", "chain"), ("pki/master.key", "key")] {
        let aside = desk.path("aside");
        std::fs::rename(desk.home(file), &aside).unwrap();
        let (code, check, value) = first(&desk, "press-7");
        assert_eq!((code, &*check, state_of(&value, topic)), (1, topic, "unknown"), "{value:#}");
        assert_eq!((&value["may_connect"], &value["may_publish"]), (&Value::Null, &Value::Null));
        assert!(
            desk.run("explain press-7")
                .out
                .starts_with("whether device 'press-7' may connect cannot be told: ")
        );
        std::fs::rename(&aside, desk.home(file)).unwrap();
    }
    drop(gateway);
}

async fn security_events_are_shown(database: Database, desk: Desk) {
    desk.run("device add press-7").done();
    let (now, past) = match database.sql {
        Sql::Sqlite(_) => {
            ("strftime('%Y-%m-%dT%H:%M:%fZ', 'now')", "strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-2 hours')")
        }
        Sql::Postgres(_) => ("now()", "now() - interval '2 hours'"),
    };
    for (at, state) in [(past, "ok"), (now, "note")] {
        let insert = format!(
            "INSERT INTO events (at, gateway, device, kind, peer, detail)
             VALUES ({at}, 'gateway-1', 'press-7', 'strikes', '192.0.2.7:1', 'bad\nnews')"
        );
        database.execute(&insert).await.unwrap();
        let (_, value) = explained(&desk, "press-7");
        assert_eq!(state_of(&value, "events"), state, "{value:#}");
    }
    let (_, value) = explained(&desk, "press-7");
    let events = value["events"].as_array().unwrap();
    assert_eq!(
        (events.len(), &events[0]["kind"], &events[0]["peer"]),
        (2, &json!("strikes"), &json!("192.0.2.7:1"))
    );
    let words = desk.run("explain press-7").out;
    assert!(words.contains("bad\u{FFFD}news"), "{words}");
}

async fn a_clock_that_is_off_is_named_with_what_mends_it(database: Database, desk: Desk) {
    let gateway = Running::start(&desk);
    desk.run("device add press-7").done();
    until("it has heard of the device", || explained(&desk, "press-7").0 == 0);
    let (_, value) = explained(&desk, "press-7");
    assert_eq!((state_of(&value, "device clock"), &value["skew"]), ("ok", &Value::Null), "{value:#}");
    let ago = |seconds: u32| match database.sql {
        Sql::Sqlite(_) => format!("strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-{seconds} seconds')"),
        Sql::Postgres(_) => format!("now() - interval '{seconds} seconds'"),
    };
    let event = async |seconds, device: &str, kind: &str, detail: &str| {
        let insert = format!(
            "INSERT INTO events (at, gateway, device, kind, peer, detail)
             VALUES ({}, 'gateway-1', {device}, '{kind}', '192.0.2.7:1', '{}')",
            ago(seconds),
            detail.replace('\'', "''")
        );
        database.execute(&insert).await.unwrap();
    };
    // One that has said nothing yet, and neither has anybody else but that our certificate's dates do not please.
    event(0, "NULL", "tls_refused", "by_peer: received fatal alert: UnknownCA; subject -").await;
    assert_eq!(state_of(&explained(&desk, "press-7").1, "device clock"), "ok");
    for alert in ["BadCertificate", "CertificateUnknown", "CertificateExpired"] {
        let detail = format!("by_peer: received fatal alert: {alert}; subject -");
        event(0, "NULL", "tls_refused", &detail).await;
        let (code, value) = explained(&desk, "press-7");
        assert_eq!((code, state_of(&value, "device clock")), (0, "note"), "{value:#}");
        let skew = &value["skew"];
        assert_eq!(
            (&skew["refuses_the_gateway"], &skew["alert"]),
            (&json!(true), &json!(alert)),
            "{value:#}"
        );
    }
    // What it has said itself counts more; words of another kind say nothing.
    event(45, "'press-7'", "stale", "a message was refused; session x").await;
    event(40, "'press-7'", "clock_skew", "the device's clock is 45.000 s behind the gateway's; session x")
        .await;
    let (code, value) = explained(&desk, "press-7");
    assert_eq!((code, state_of(&value, "device clock")), (0, "note"), "{value:#}");
    event(30, "'press-7'", "stale", "the device's clock is 7200.000 s behind the gateway's; session x").await;
    event(20, "'press-7'", "stale", "the device's clock is 61.500 s behind the gateway's; session y").await;
    let (code, check, value) = first(&desk, "press-7");
    assert_eq!((code, &*check, &value["may_connect"]), (4, "device clock", &json!(false)), "{value:#}");
    assert!(value["first"]["next"].as_str().unwrap().contains("NTP"), "{value:#}");
    assert_eq!(
        (&value["skew"]["last_ms"], &value["skew"]["largest_ms"]),
        (&json!(-61_500), &json!(-7_200_000))
    );
    let words = desk.run("explain press-7").out;
    for part in ["61.500 s behind the gateway's", "the largest lately: 7200.000 s behind", "up to 60 s off"] {
        assert!(words.contains(part), "{part}: {words}");
    }
    // Let in since: that was then.
    let credentials = Credentials::load(desk.home("devices/press-7")).unwrap().with_url(&gateway.url());
    let device = Device::connect(credentials, Options::default()).unwrap();
    within("an ack", device.publish("devices/press-7/t", &1)).await.unwrap();
    until("its presence", || !explained(&desk, "press-7").1["session"].is_null());
    device.close().await;
    until("its end", || explained(&desk, "press-7").1["session"]["session"].is_null());
    let (code, value) = explained(&desk, "press-7");
    assert_eq!((code, state_of(&value, "device clock")), (0, "note"), "{value:#}");
    drop(gateway);
}

async fn a_gateway_that_has_not_heard_is_not_spoken_for(database: Database, desk: Desk) {
    let gateway = Running::start(&desk);
    desk.run("device add press-7").done();
    until("it has caught up", || explained(&desk, "press-7").0 == 0);
    gateway.signal("STOP");
    desk.run("device suspend press-7 --reason x --no-wait").done();
    desk.run("device resume press-7").done();
    let (code, check, value) = first(&desk, "press-7");
    assert_eq!(
        (code, &*check, &value["gateways"][0]["confirmed"]),
        (1, "gateway", &json!(false)),
        "{value:#}"
    );
    assert!(value["gateways"][0]["behind"].as_u64().unwrap() >= 2, "{value:#}");
    // For a while it may be cut off and serve on; after that it may not.
    let ago = |seconds: u32| match database.sql {
        Sql::Sqlite(_) => format!("strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-{seconds} seconds')"),
        Sql::Postgres(_) => format!("now() - interval '{seconds} seconds'"),
    };
    for (seconds, code) in [(60, 1), (200_000, 4)] {
        database.execute(&format!("UPDATE gateways SET heartbeat = {}", ago(seconds))).await.unwrap();
        let (said, check, value) = first(&desk, "press-7");
        assert_eq!((said, &*check), (code, "gateway"), "{value:#}");
        let (said, value) = explained(&desk, "press-7 --gateway gateway-1");
        assert_eq!(said, code, "{value:#}");
        assert!(value["first"]["what"].as_str().unwrap().contains("has been silent since"), "{value:#}");
    }
    gateway.signal("CONT");
    until("it has caught up", || explained(&desk, "press-7").0 == 0);

    // What the gateway itself answers is what was said that it would.
    desk.run("device suspend press-7 --reason x").done();
    let (_, value) = explained(&desk, "press-7");
    assert_eq!(value["answer"]["type"], "device-suspended");
    let credentials = Credentials::load(desk.home("devices/press-7")).unwrap().with_url(&gateway.url());
    let device = Device::connect(credentials, Options::default()).unwrap();
    let mut state = device.state();
    let refused = |state: &State| format!("{state:?}").contains("suspended");
    within("its refusal", state.wait_for(refused)).await.unwrap();
}
