//! Fleets and devices: adding, finding, changing; and every refusal.

use doorward::registry::{Act, CertificateStatus, DeviceFilter, DeviceStatus, Done, KeyState, RegistryError};
use doorward_proto::ids::KeyVersion;
use doorward_proto::limits::FleetLimits;

use super::{NOON, add, certificate_of, connected, contract, device, fleet, new_device};
use crate::support::database::Database;

contract!(
    fleets_hold_a_policy,
    a_device_comes_whole,
    what_exists_cannot_be_added,
    one_of_two_that_add_an_id_is_told,
    many_devices_at_once,
    lists_go_by_id_and_by_page,
    acts_lead_where_they_should,
    revoked_is_final_in_sql_too,
    what_a_row_says_stays,
    the_schema_refuses_nonsense,
    a_kick_needs_a_device,
    changes_of_limits_at_the_same_time_are_all_made,
    limits_that_no_gateway_reads_are_refused,
);

async fn fleets_hold_a_policy(db: Database) {
    let registry = &db.registry;
    let default = registry.fleet(&fleet("default")).await.unwrap().unwrap();
    assert_eq!(
        default.policy,
        r#"{"allow":[{"actions":["publish"],"channels":["devices/${device}/#"]},{"actions":["subscribe"],"channels":["devices/${device}/#","fleets/${fleet}/#"]}],"deny":[]}"#
    );

    registry.add_fleet(&fleet("line-2"), r#"{"allow": [ ]}"#).await.unwrap();
    for taken in ["line-2", "LINE-2"] {
        let error = registry.add_fleet(&fleet(taken), "{}").await.unwrap_err();
        assert!(matches!(&error, RegistryError::Exists { kind: "fleet", id } if id == taken), "{error:?}");
    }
    assert!(registry.add_fleet(&fleet("bad"), "no JSON").await.is_err());
    assert!(registry.fleet(&fleet("bad")).await.unwrap().is_none());

    let policy = r#"{"deny":[]}"#;
    assert_eq!(registry.set_policy(&fleet("line-2"), policy).await.unwrap().done, Done::Changed);
    assert_eq!(registry.set_policy(&fleet("line-2"), policy).await.unwrap().done, Done::Already);
    let error = registry.set_policy(&fleet("line-3"), policy).await.unwrap_err();
    assert!(matches!(&error, RegistryError::NotFound { kind: "fleet", id } if id == "line-3"), "{error:?}");

    add(registry, &["a", "b", "c"]).await;
    registry.set_status(&device("b"), Act::Suspend, None).await.unwrap();
    registry.set_status(&device("c"), Act::Revoke, None).await.unwrap();
    let fleets = registry.fleets().await.unwrap();
    let seen: Vec<_> = fleets.iter().map(|f| (f.id.as_str(), f.policy.as_str(), f.devices)).collect();
    assert_eq!(seen, [("default", default.policy.as_str(), [1, 1, 1]), ("line-2", policy, [0, 0, 0])]);
}

async fn a_device_comes_whole(db: Database) {
    let registry = &db.registry;
    add(registry, &["press-7", "press-8"]).await;
    let certificate = certificate_of("press-7");
    let record = registry.look_up(&certificate.fingerprint).await.unwrap().unwrap();
    assert_eq!(record.device, device("press-7"));
    assert_eq!(record.fleet, fleet("default"));
    assert_eq!(record.status, DeviceStatus::Active);
    assert_eq!(record.reason, None);
    assert!(record.policy.starts_with("{\"allow\""));
    assert_eq!(record.certificate.not_after, certificate.not_after);
    assert_eq!(record.certificate.status, CertificateStatus::Active);
    assert_eq!(record.keys.len(), 1);
    assert_eq!((record.keys[0].version, record.keys[0].state), (KeyVersion::FIRST, KeyState::Active));
    assert_eq!(record.keys[0].sealed, [7, 0, 255]);
    assert!(registry.look_up(&certificate_of("press-9").fingerprint).await.unwrap().is_none());

    // Many at once, and what nobody has recorded is not among them.
    let asked = ["press-8", "press-9", "press-7"].map(|id| certificate_of(id).fingerprint);
    let mut found = registry.look_up_all(&asked).await.unwrap();
    assert_eq!(found.len(), 2);
    assert_eq!(found.remove(&asked[2]).unwrap().unwrap(), record);
    assert_eq!(found.remove(&asked[0]).unwrap().unwrap().device, device("press-8"));
    assert!(registry.look_up_all(&[]).await.unwrap().is_empty());

    // Keys in order; a retired one opens nothing and is not handed out.
    for sql in [
        "UPDATE hmac_keys SET state = 'grace', grace_until = '2027-05-01T00:00:00.000Z' WHERE device = 'press-7'",
        "INSERT INTO hmac_keys (device, version, sealed, state) SELECT device, 2, sealed, 'active' FROM hmac_keys WHERE device = 'press-7'",
        "INSERT INTO hmac_keys (device, version, sealed, state) SELECT device, 3, sealed, 'pending' FROM hmac_keys WHERE device = 'press-7' AND version = 1",
        "INSERT INTO hmac_keys (device, version, sealed, state) SELECT device, 4, sealed, 'retired' FROM hmac_keys WHERE device = 'press-7' AND version = 1",
    ] {
        db.execute(sql).await.unwrap();
    }
    let record = registry.look_up(&certificate.fingerprint).await.unwrap().unwrap();
    let keys: Vec<_> = record.keys.iter().map(|key| (key.version.get(), key.state)).collect();
    assert_eq!(keys, [(1, KeyState::Grace), (2, KeyState::Active), (3, KeyState::Pending)]);
    assert_eq!(record.keys[0].grace_until, Some(time::macros::datetime!(2027-05-01 00:00 UTC)));

    let detail = registry.device(&device("press-7")).await.unwrap().unwrap();
    assert_eq!(detail.keys.len(), 4);
    let [recorded] = &detail.certificates[..] else { panic!("one certificate: {:?}", detail.certificates) };
    assert_eq!(recorded.fingerprint, certificate.fingerprint);
    assert_eq!((&recorded.serial, &recorded.issuer), (&certificate.serial, &certificate.issuer));
    assert_eq!(recorded.der, certificate.der);
    assert_eq!((recorded.not_before, recorded.not_after), (certificate.not_before, certificate.not_after));
    assert_eq!(detail.summary.certificate_expires, Some(certificate.not_after));
    assert_eq!(detail.summary.key.map(KeyVersion::get), Some(2));
    assert!(detail.presence.is_none() && detail.summary.last_seen.is_none());
    assert!(registry.device(&device("press-9")).await.unwrap().is_none());

    let known = registry.known(&[device("PRESS-7"), device("press-9"), device("press-8")]).await.unwrap();
    let fingerprint = |id| vec![certificate_of(id).fingerprint];
    assert_eq!(
        known,
        [(device("press-7"), fingerprint("press-7")), (device("press-8"), fingerprint("press-8"))]
    );
}

async fn what_exists_cannot_be_added(db: Database) {
    let registry = &db.registry;
    add(registry, &["press-7"]).await;
    let other = |id: &str| {
        let mut new = new_device(id);
        new.certificate = certificate_of(&format!("other {id}"));
        new
    };
    // All or none: the first of each list is new, and stays unknown.
    let refused = async |second| registry.add_devices(&[other("fresh"), second]).await.unwrap_err();

    for taken in ["press-7", "Press-7", "FRESH"] {
        let error = refused(other(taken)).await;
        assert!(
            matches!(&error, RegistryError::Exists { kind: "device", id } if id == taken),
            "{taken}: {error:?}"
        );
    }
    let mut homeless = other("press-9");
    homeless.fleet = fleet("nowhere");
    let error = refused(homeless).await;
    assert!(matches!(&error, RegistryError::NotFound { kind: "fleet", id } if id == "nowhere"), "{error:?}");

    let mut same_certificate = new_device("press-9");
    same_certificate.certificate = certificate_of("press-7");
    let mut same_serial = other("press-9");
    same_serial.certificate.serial = certificate_of("press-7").serial;
    let mut twice = other("press-9");
    twice.certificate = certificate_of("other fresh");
    for new in [same_certificate, same_serial, twice] {
        let serial = new.certificate.serial.clone();
        let error = refused(new).await;
        assert!(
            matches!(&error, RegistryError::Exists { kind: "certificate", id } if *id == serial),
            "{error:?}"
        );
    }
    assert!(registry.device(&device("fresh")).await.unwrap().is_none());
    assert_eq!(db.number("SELECT count(*) FROM certificates").await, 1);
    assert_eq!(db.number("SELECT count(*) FROM hmac_keys").await, 1);
}

async fn one_of_two_that_add_an_id_is_told(db: Database) {
    for round in 0..10 {
        let id = format!("d{round}");
        let mut upper = new_device(&id.to_uppercase());
        upper.certificate = certificate_of(&format!("other {id}"));
        let lower = [new_device(&id)];
        let upper = [upper];
        let (one, two) = tokio::join!(db.registry.add_devices(&lower), db.registry.add_devices(&upper));
        let told = match (one, two) {
            (Ok(()), Err(error)) | (Err(error), Ok(())) => error,
            both => panic!("{both:?}"),
        };
        assert!(matches!(told, RegistryError::Exists { kind: "device", .. }), "{told:?}");
    }
}

async fn many_devices_at_once(db: Database) {
    let ids: Vec<String> = (0..2000).map(|n| format!("p{n:06}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let before = db.number("SELECT count(*) FROM changes").await;
    add(&db.registry, &ids).await;
    assert_eq!(db.number("SELECT count(*) FROM hmac_keys").await, 2000);
    // One change for each, not three: bulk issuing is cheap for every gateway.
    assert_eq!(db.number("SELECT count(*) FROM changes").await - before, 2000);
    // What is issued later is heard of.
    db.execute("INSERT INTO hmac_keys (device, version, sealed, state) SELECT device, 2, sealed, 'pending' FROM hmac_keys WHERE device < 'p000010'")
        .await
        .unwrap();
    assert_eq!(db.number("SELECT count(*) FROM changes").await - before, 2010);
    db.registry.add_devices(&[]).await.unwrap();
}

async fn lists_go_by_id_and_by_page(db: Database) {
    let registry = &db.registry;
    registry.add_fleet(&fleet("other"), "{}").await.unwrap();
    connected(registry, &["b", "B2", "a", "x", "c"]).await;
    let mut d = new_device("d");
    d.fleet = fleet("other");
    registry.add_devices(&[d]).await.unwrap();
    registry.set_status(&device("c"), Act::Suspend, Some("dirty")).await.unwrap();

    let ids = async |filter: DeviceFilter| {
        let page = registry.devices(&filter).await.unwrap();
        page.iter().map(|line| line.id.to_string()).collect::<Vec<_>>().join(" ")
    };
    let all = DeviceFilter { limit: 100, ..DeviceFilter::default() };
    // By bytes, in both: a page goes on where the last one ended, whatever the database's locale.
    assert_eq!(ids(all.clone()).await, "B2 a b c d x");
    assert_eq!(ids(DeviceFilter { limit: 2, ..all.clone() }).await, "B2 a");
    assert_eq!(ids(DeviceFilter { limit: 2, after: Some(device("a")), ..all.clone() }).await, "b c");
    assert_eq!(ids(DeviceFilter { fleet: Some(fleet("other")), ..all.clone() }).await, "d");
    assert_eq!(ids(DeviceFilter { status: Some(DeviceStatus::Suspended), ..all.clone() }).await, "c");

    let lines = registry.devices(&all).await.unwrap();
    let c = lines.iter().find(|line| line.id == device("c")).unwrap();
    assert_eq!((c.status, c.reason.as_deref()), (DeviceStatus::Suspended, Some("dirty")));
    assert_eq!(c.key, Some(KeyVersion::FIRST));
    assert_eq!(c.certificate_expires, Some(certificate_of("c").not_after));
    assert_eq!(c.last_seen, Some(NOON));
}

async fn acts_lead_where_they_should(db: Database) {
    let registry = &db.registry;
    add(registry, &["a"]).await;
    let a = device("a");
    let status = async || {
        let line = registry.device(&a).await.unwrap().unwrap().summary;
        (line.status, line.reason)
    };
    for (act, reason, done, after) in [
        (Act::Resume, None, Done::Already, (DeviceStatus::Active, None)),
        (Act::Suspend, Some("dirty"), Done::Changed, (DeviceStatus::Suspended, Some("dirty".to_owned()))),
        (Act::Suspend, Some("again"), Done::Already, (DeviceStatus::Suspended, Some("dirty".to_owned()))),
        (Act::Resume, Some("clean"), Done::Changed, (DeviceStatus::Active, None)),
        (Act::Revoke, Some("stolen"), Done::Changed, (DeviceStatus::Revoked, Some("stolen".to_owned()))),
        (Act::Revoke, Some("again"), Done::Already, (DeviceStatus::Revoked, Some("stolen".to_owned()))),
    ] {
        assert_eq!(registry.set_status(&a, act, reason).await.unwrap().done, done, "{act:?}");
        assert_eq!(status().await, after, "{act:?}");
    }
    for act in [Act::Suspend, Act::Resume] {
        let error = registry.set_status(&a, act, None).await.unwrap_err();
        assert!(
            matches!(&error, RegistryError::Refused(words) if words.contains("'a' is revoked")),
            "{error:?}"
        );
    }
    let error = registry.set_status(&device("b"), Act::Revoke, None).await.unwrap_err();
    assert!(matches!(&error, RegistryError::NotFound { kind: "device", id } if id == "b"), "{error:?}");
    // The door still knows the device, and why it is closed.
    let record = registry.look_up(&certificate_of("a").fingerprint).await.unwrap().unwrap();
    assert_eq!((record.status, record.reason.as_deref()), (DeviceStatus::Revoked, Some("stolen")));
}

async fn revoked_is_final_in_sql_too(db: Database) {
    add(&db.registry, &["a", "b"]).await;
    db.execute("UPDATE devices SET status = 'revoked', reason = 'stolen' WHERE id = 'a'").await.unwrap();
    db.execute("UPDATE certificates SET status = 'revoked' WHERE device = 'b'").await.unwrap();
    db.execute("UPDATE hmac_keys SET state = 'retired' WHERE device = 'b'").await.unwrap();
    for sql in [
        "UPDATE devices SET status = 'active' WHERE id = 'a'",
        "UPDATE devices SET status = 'suspended'",
        "UPDATE certificates SET status = 'active' WHERE device = 'b'",
        "UPDATE certificates SET status = 'superseded', valid_until = '2027-05-01T00:00:00.000Z'",
        "DELETE FROM certificates WHERE device = 'b'",
        "UPDATE hmac_keys SET state = 'active' WHERE device = 'b'",
    ] {
        let words = db.execute(sql).await.unwrap_err();
        assert!(words.contains("that is final"), "{sql}: {words}");
    }
    // A row that is gone would leave the id free for another.
    for sql in ["DELETE FROM hmac_keys WHERE device = 'a'", "DELETE FROM certificates WHERE device = 'a'"] {
        db.execute(sql).await.unwrap();
    }
    let words = db.execute("DELETE FROM devices WHERE id = 'a'").await.unwrap_err();
    assert!(words.contains("that is final"), "{words}");
    // What it says besides may be put right.
    db.execute("UPDATE devices SET reason = 'lost, not stolen' WHERE id = 'a'").await.unwrap();
    let detail = db.registry.device(&device("b")).await.unwrap().unwrap();
    assert_eq!(detail.certificates[0].status, CertificateStatus::Revoked);
}

async fn what_a_row_says_stays(db: Database) {
    add(&db.registry, &["a", "b"]).await;
    for sql in [
        "UPDATE devices SET id = 'c' WHERE id = 'a'",
        "UPDATE certificates SET device = 'b' WHERE device = 'a'",
        "UPDATE certificates SET not_after = '2099-01-01T00:00:00.000Z' WHERE device = 'a'",
        "UPDATE certificates SET serial = '00000000000000000000000000000000' WHERE device = 'a'",
        "UPDATE certificates SET renewed_from = fingerprint WHERE device = 'a'",
        "UPDATE hmac_keys SET device = 'b', version = 2 WHERE device = 'a'",
        "UPDATE fleets SET id = 'renamed'",
        "UPDATE changes SET subject = 'b'",
    ] {
        let words = db.execute(sql).await.unwrap_err();
        assert!(words.contains("never change"), "{sql}: {words}");
    }
}

async fn the_schema_refuses_nonsense(db: Database) {
    add(&db.registry, &["a"]).await;
    let hex = "0".repeat(64);
    for sql in [
        "INSERT INTO devices (id, fleet) VALUES ('Gateway', 'default')",
        "INSERT INTO devices (id, fleet) VALUES ('-x', 'default')",
        "INSERT INTO devices (id, fleet) VALUES ('', 'default')",
        "INSERT INTO devices (id, fleet) VALUES ('a b', 'default')",
        "INSERT INTO devices (id, fleet) VALUES ('é', 'default')",
        "INSERT INTO devices (id, fleet) VALUES ('x\n', 'default')",
        "INSERT INTO devices (id, fleet) VALUES ('A', 'default')",
        "INSERT INTO devices (id, fleet) VALUES ('x', 'nowhere')",
        "INSERT INTO devices (id, fleet, status) VALUES ('x', 'default', 'happy')",
        "INSERT INTO devices (id, fleet, attributes) VALUES ('x', 'default', '[]')",
        &format!("INSERT INTO devices (id, fleet) VALUES ('{hex}0', 'default')"),
        "INSERT INTO fleets (id, policy) VALUES ('x', 'nonsense')",
        "INSERT INTO fleets (id, policy) VALUES ('DEFAULT', '{}')",
        "UPDATE devices SET fleet = 'nowhere'",
        "DELETE FROM fleets",
        "DELETE FROM devices",
        "UPDATE certificates SET status = 'superseded'",
        "UPDATE hmac_keys SET state = 'grace'",
        "INSERT INTO hmac_keys (device, version, sealed, state) SELECT device, 2, sealed, 'active' FROM hmac_keys",
        "INSERT INTO hmac_keys (device, version, sealed, state) SELECT device, 0, sealed, 'retired' FROM hmac_keys",
        "INSERT INTO hmac_keys (device, version, sealed, state) SELECT 'x', 2, sealed, 'retired' FROM hmac_keys",
    ] {
        assert!(db.execute(sql).await.is_err(), "{sql}");
    }
}

async fn a_kick_needs_a_device(db: Database) {
    let registry = &db.registry;
    connected(registry, &["a"]).await;
    registry.kick(&device("a")).await.unwrap();
    let error = registry.kick(&device("b")).await.unwrap_err();
    assert!(matches!(error, RegistryError::NotFound { kind: "device", .. }), "{error:?}");
    registry.set_status(&device("a"), Act::Revoke, None).await.unwrap();
    let error = registry.kick(&device("a")).await.unwrap_err();
    assert!(matches!(error, RegistryError::Refused(_)), "{error:?}");
}

/// Each reads what the one before it wrote: nobody's change is lost.
async fn changes_of_limits_at_the_same_time_are_all_made(db: Database) {
    let fleet = fleet("default");
    let change = |text: &str| {
        let mut limits = FleetLimits::parse(text).unwrap();
        limits.strikes = Some(limits.strikes.unwrap_or(0) + 1);
        Ok(serde_json::to_string(&limits).unwrap())
    };
    let all = (0..20).map(|_| db.registry.change_limits(&fleet, &change));
    for acted in futures_util::future::join_all(all).await {
        assert_eq!(acted.unwrap().done, Done::Changed);
    }
    assert_eq!(db.registry.fleet(&fleet).await.unwrap().unwrap().limits, r#"{"strikes":20}"#);
    let refused = |_: &str| Err(RegistryError::Refused("no".to_owned()));
    assert!(matches!(db.registry.change_limits(&fleet, &refused).await, Err(RegistryError::Refused(_))));
    assert_eq!(db.registry.fleet(&fleet).await.unwrap().unwrap().limits, r#"{"strikes":20}"#);
}

async fn limits_that_no_gateway_reads_are_refused(db: Database) {
    let set = async |limits: &str| {
        let update = db.execute(&format!("UPDATE fleets SET limits = '{limits}'")).await;
        let insert = db
            .execute(&format!("INSERT INTO fleets (id, policy, limits) VALUES ('f', '{{}}', '{limits}')"))
            .await;
        assert_eq!(update.is_ok(), insert.is_ok(), "{limits}: {update:?} {insert:?}");
        db.execute("DELETE FROM fleets WHERE id = 'f'").await.unwrap();
        let readable = doorward_proto::limits::FleetLimits::parse(limits).is_ok();
        assert_eq!(update.is_ok(), readable, "{limits}: {update:?}");
        readable
    };
    for limits in [
        "{}",
        r#"{"rate_per_second":1}"#,
        r#"{"rate_per_second":1000000,"rate_burst":1000000,"message_bytes":16777216}"#,
        r#" { "message_bytes" : 1024 } "#,
        r#"{"bytes_per_second":1024,"bytes_burst":1073741824,"outgoing_bytes":67108864}"#,
        r#"{"strikes":1000,"connects_per_minute":1,"connects_burst":1000000,"renew_after_expiry":0}"#,
    ] {
        assert!(set(limits).await, "{limits}");
    }
    for limits in [
        "[]",
        "1",
        "{",
        r#"{"rate_burst":"x"}"#,
        r#"{"rate_burst":0}"#,
        r#"{"rate_burst":-4}"#,
        r#"{"rate_burst":1e2}"#,
        r#"{"rate_burst":1e20}"#,
        r#"{"rate_burst":0.5}"#,
        r#"{"rate_burst":1000001}"#,
        r#"{"rate_burst":99999999999999999999}"#,
        r#"{"rate_burst":1,"rate_burst":2}"#,
        r#"{"message_bytes":1023}"#,
        r#"{"bytes_per_second":1023}"#,
        r#"{"bytes_burst":1073741825}"#,
        r#"{"bytes_burst":0}"#,
        r#"{"outgoing_bytes":4095}"#,
        r#"{"outgoing_bytes":67108865}"#,
        r#"{"strikes":0}"#,
        r#"{"strikes":1001}"#,
        r#"{"connects_per_minute":0}"#,
        r#"{"connects_burst":1000001}"#,
        r#"{"renew_after_expiry":31536001}"#,
        r#"{"rate":1}"#,
        r#"{"rate_burst":[1]}"#,
        r#"{"rate_burst":true}"#,
    ] {
        assert!(!set(limits).await, "{limits}");
    }
}
