//! Who may do what in Postgres: each role tries what it may and what it may not.

use doorward::registry::{
    Access, Act, AuditFilter, Batch, DeviceFilter, Done, EventKind, Fate, MessageFilter, NewEvent,
    RegistryError, connect,
};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use super::{FAR, NOON, add, certificate_of, claim, connected, device, fleet, message, new_device};
use crate::support::database::Database;
use crate::support::house::{House, log};

/// Runs a statement and undoes it; the SQLSTATE of a refusal.
pub(super) async fn attempt(connection: &mut PgConnection, sql: &str) -> Result<(), String> {
    let mut transaction = connection.begin().await.unwrap();
    let done = transaction.execute(AssertSqlSafe(sql.to_owned())).await;
    transaction.rollback().await.unwrap();
    match done {
        Ok(_) => Ok(()),
        Err(error) => Err(error.as_database_error().unwrap().code().unwrap().into_owned()),
    }
}

/// A device with a key that waits and a message, for all to lay hands on.
async fn laid_out() -> Database {
    let db = Database::postgres().await;
    connected(&db.registry, &["a"]).await;
    db.registry.write(&Batch { messages: vec![message("a", "s1", "m1")], ..Batch::default() }).await.unwrap();
    for sql in [
        "INSERT INTO hmac_keys (device, version, sealed, state) SELECT device, 2, sealed, 'pending' FROM hmac_keys",
        "UPDATE certificates SET status = 'superseded', valid_until = now() + interval '1 day'",
        "INSERT INTO events (at, gateway, kind, peer, detail) VALUES (now(), 'g1', 'replay', '', '')",
    ] {
        db.execute(sql).await.unwrap();
    }
    db
}

#[tokio::test]
async fn each_role_may_do_its_own_and_no_more() {
    let db = laid_out().await;
    // Who may: g(ateway), i(ssuer), o(perator), a(uditor). A stranger may nothing.
    let everybody = ["gateway", "issuer", "operator", "auditor", "stranger"];
    for (may, sql) in [
        ("gio", "SELECT * FROM devices"),
        ("gio", "SELECT * FROM certificates"),
        ("gio", "SELECT * FROM fleets"),
        ("go", "SELECT sealed FROM hmac_keys"),
        ("go", "SELECT * FROM presence"),
        ("go", "SELECT * FROM changes"),
        ("go", "SELECT * FROM gateways"),
        ("o", "SELECT data FROM messages"),
        ("oa", "SELECT * FROM events"),
        ("a", "SELECT * FROM audit"),
        ("ga", "SELECT * FROM audit_head"),
        ("", "SELECT * FROM audit_staged"),
        ("o", "SELECT * FROM device_overview"),
        ("o", "SELECT * FROM expiring_certificates"),
        ("gioa", "SELECT * FROM _sqlx_migrations"),
        ("g", "UPDATE presence SET peer = 'x'"),
        ("g", "INSERT INTO events (at, gateway, kind, peer, detail) VALUES (now(), 'g1', 'replay', '', '')"),
        ("", "DELETE FROM events"),
        ("", "UPDATE events SET detail = ''"),
        ("", "DELETE FROM messages"),
        ("", "UPDATE messages SET data = '1'"),
        ("", "DELETE FROM presence"),
        ("", "DELETE FROM changes"),
        ("", "UPDATE feed SET pruned = '0'"),
        (
            "g",
            "INSERT INTO gateways (name, instance, version, address, may_serve) VALUES ('g1', 'i', '0', '', '1 h')",
        ),
        ("o", "DELETE FROM gateways"),
        ("o", "UPDATE devices SET status = 'revoked'"),
        ("o", "INSERT INTO devices (id, fleet) VALUES ('b', 'default')"),
        ("o", "UPDATE certificates SET status = 'revoked'"),
        ("o", "UPDATE fleets SET policy = '{}'"),
        ("o", "INSERT INTO fleets (id, policy) VALUES ('x', '{}')"),
        ("o", "UPDATE hmac_keys SET state = 'retired'"),
        ("o", "DELETE FROM hmac_keys"),
        ("o", "INSERT INTO changes (kind, subject) VALUES ('kick', 'a')"),
        ("", "INSERT INTO changes (kind, subject, xid) VALUES ('kick', 'a', '0')"),
        ("", "INSERT INTO audit (id, at, body, hash) VALUES (99, now(), '{}', sha256(''))"),
        ("", "UPDATE audit SET body = '{}'"),
        ("", "DELETE FROM audit"),
        ("", "TRUNCATE audit"),
        ("", "UPDATE audit_head SET count = 0"),
        ("", "TRUNCATE devices CASCADE"),
        ("", "ALTER TABLE audit DISABLE TRIGGER ALL"),
        ("", "DROP TABLE audit"),
        ("", "CREATE TABLE x (n integer)"),
        ("", "CREATE FUNCTION now() RETURNS timestamptz LANGUAGE sql AS 'SELECT NULL::timestamptz'"),
        ("", "SET session_replication_role = replica"),
        ("", "SET ROLE postgres"),
        ("o", "SELECT revoke_device('a', 'stolen')"),
        ("o", "SELECT suspend_device('a', 'dirty')"),
        ("o", "SELECT resume_device('a')"),
        ("", "SELECT set_device_status('a', 'revoked', 'x')"),
        ("g", "SELECT confirm_key('a', 2)"),
        ("g", "SELECT prune_messages(now(), 10)"),
        ("g", "SELECT prune_history(now(), 10)"),
        ("oa", "SELECT * FROM crls"),
        ("o", "SELECT number_crl('ab', 0, 60, false)"),
        ("", "INSERT INTO crls VALUES ('ab', 7, now(), now() + interval '1 day', false)"),
        ("", "UPDATE crls SET number = number + 1"),
        ("", "DELETE FROM crls"),
        ("gio", "SELECT * FROM requests"),
        ("g", "SELECT request_renewal('ab', 'ab', 'ab', 'g', interval '1 day')"),
        ("i", "SELECT issue_renewal(1, 'ab', 'ab', 'ab', 'ab', now(), now(), 60, 'ab')"),
        ("i", "SELECT refuse_renewal(1, 'ab', false)"),
        ("", "UPDATE requests SET state = 'refused'"),
        ("", "DELETE FROM requests"),
        ("go", "SELECT * FROM quarantines"),
        ("g", "SELECT quarantine('a', 'g1', 'x', 60)"),
        ("g", "SELECT end_quarantines()"),
        ("", "INSERT INTO quarantines (device, gateway) VALUES ('a', 'g1')"),
        ("", "UPDATE quarantines SET until = now()"),
        ("", "DELETE FROM quarantines"),
        ("oa", "SELECT * FROM rotations"),
        ("oa", "SELECT * FROM rotation_devices"),
        (
            "o",
            "INSERT INTO rotations (what, fleet, canary, wave, max_failures, patience_ms, grace_seconds, started_by)
             VALUES ('key', 'default', '5%', '25%', 0, 0, 1, 'x')",
        ),
        ("o", "UPDATE rotations SET state = 'stopped', reason = 'x'"),
        ("o", "UPDATE rotation_devices SET reason = 'x'"),
        ("", "DELETE FROM rotations"),
        ("", "DELETE FROM rotation_devices"),
        ("", "TRUNCATE rotation_devices"),
        ("", "SELECT old_enough(now(), '1 day')"),
    ] {
        for role in everybody {
            let mut connection = db.connected_as(role).await;
            let done = attempt(&mut connection, sql).await;
            let due = may.contains(&role[..1]) && role != "stranger";
            match done {
                Ok(()) => assert!(due, "{role} may: {sql}"),
                // A stranger does not even see the schema.
                Err(code) => assert!(
                    !due && ["42501", "42P01", "42883", "3F000"].contains(&code.as_str()),
                    "{role} gets {code}: {sql}"
                ),
            }
        }
    }
}

#[tokio::test]
async fn a_gateway_does_its_work_and_no_operators() {
    let db = Database::postgres().await;
    add(&db.registry, &["a"]).await;
    let gateway = db.for_gateway();
    gateway.check_schema().await.unwrap();
    let mut position = gateway.position().await.unwrap();
    assert!(gateway.look_up(&certificate_of("a").fingerprint).await.unwrap().is_some());
    let event = NewEvent {
        at: NOON,
        since: NOON,
        count: 1,
        gateway: "g1".into(),
        device: Some(device("a")),
        kind: EventKind::Message(doorward_proto::verdict::Refusal::Replayed),
        peer: String::new(),
        detail: String::new(),
    };
    let batch = Batch {
        claims: vec![claim("a", "s1")],
        messages: vec![message("a", "s1", "m1"), message("a", "s1", "m1")],
        seen: vec![(device("a"), "s1".into(), NOON)],
        releases: vec![(device("a"), "s0".into())],
        events: vec![event],
    };
    assert_eq!(gateway.write(&batch).await.unwrap(), [Fate::Stored, Fate::Duplicate]);
    assert_eq!(gateway.forget_sessions("g1").await.unwrap(), 1);
    gateway.read_changes(&mut position).await.unwrap();
    let first = DeviceFilter { limit: 1, ..DeviceFilter::default() };
    assert_eq!(gateway.devices(&first).await.unwrap().len(), 1);
    assert!(gateway.device(&device("a")).await.unwrap().is_some());
    // What is old goes. What is of the last minutes stays, whatever it asks for: it could wipe out its traces.
    db.execute("INSERT INTO messages (device, id, channel, data, received_at) VALUES ('a', 'fresh', 'c', '1', now())")
        .await
        .unwrap();
    db.execute("UPDATE events SET at = now() - interval '6 days'").await.unwrap();
    let (old, fresh) = (db.number("SELECT count(*) FROM messages WHERE received_at < now()").await, 1);
    assert_eq!(gateway.prune_messages(FAR, 100).await.unwrap() + fresh, u64::try_from(old).unwrap());
    assert_eq!(gateway.prune_history(FAR, 100).await.unwrap(), 0);
    db.execute("UPDATE events SET at = now() - interval '8 days'").await.unwrap();
    assert_eq!(gateway.prune_history(FAR, 100).await.unwrap(), 1);

    let all = MessageFilter { device: None, since: None, after: 0, limit: 1 };
    for error in [
        gateway.set_status(&device("a"), Act::Revoke, None).await.unwrap_err(),
        gateway.kick(&device("a")).await.unwrap_err(),
        gateway.add_devices(&[new_device("b")]).await.unwrap_err(),
        gateway.set_policy(&fleet("default"), "{}").await.unwrap_err(),
        gateway.messages(&all).await.unwrap_err(),
        gateway.audit(&AuditFilter { limit: 1, ..AuditFilter::default() }).await.unwrap_err(),
    ] {
        assert!(
            matches!(&error, RegistryError::Forbidden(words) if words.contains("permission denied")),
            "{error:?}"
        );
    }
    let stranger = connect(&db.url_as("stranger"), Access::Existing).unwrap();
    assert!(matches!(stranger.check_schema().await.unwrap_err(), RegistryError::Forbidden(_)));
}

#[tokio::test]
async fn an_operator_manages_and_an_auditor_reads() {
    let db = Database::postgres().await;
    let operator = connect(&db.url_as("operator"), Access::Existing).unwrap();
    operator.add_fleet(&fleet("x"), "{}").await.unwrap();
    operator.set_policy(&fleet("x"), r#"{"allow": []}"#).await.unwrap();
    operator.add_devices(&[new_device("a")]).await.unwrap();
    operator.add_devices(&[new_device("a")]).await.unwrap_err();
    operator.kick(&device("a")).await.unwrap();
    operator.set_status(&device("a"), Act::Suspend, Some("dirty")).await.unwrap();
    operator.set_status(&device("a"), Act::Revoke, Some("stolen")).await.unwrap();
    assert!(operator.device(&device("a")).await.unwrap().is_some());
    assert_eq!(operator.fleets().await.unwrap().len(), 2);
    operator.sessions(NOON).await.unwrap();
    let filter = AuditFilter { limit: 100, ..AuditFilter::default() };
    assert!(matches!(operator.audit(&filter).await.unwrap_err(), RegistryError::Forbidden(_)));

    let auditor = connect(&db.url_as("auditor"), Access::Existing).unwrap();
    auditor.check_schema().await.unwrap();
    let rows = auditor.audit(&filter).await.unwrap();
    assert_eq!(rows.len(), 6);
    for row in rows {
        let body: Value = serde_json::from_slice(&row.body).unwrap();
        assert_eq!(body["role"], "t_operator");
    }
    // Neither SET ROLE nor a function that runs as its owner hides who it is.
    let mut hand = db.connected_as("operator").await;
    for sql in [
        "INSERT INTO devices (id, fleet) VALUES ('b', 'x')",
        "SET ROLE doorward_operator",
        "SELECT suspend_device('b', 'dirty')",
    ] {
        hand.execute(sql).await.unwrap();
    }
    assert_eq!(auditor.audit_head().await.unwrap().count, 8);
    let seen = "SELECT count(*) FROM audit WHERE body::json->>'role' = 't_operator' AND body::json->>'actor' = 'sql'";
    assert_eq!(db.number(seen).await, 2);
}

#[tokio::test]
async fn a_gateway_with_too_many_rights_is_told_so() {
    let db = Database::postgres().await;
    let rights = async |role: &str| {
        let url = if role == "postgres" { db.url.clone() } else { db.url_as(role) };
        connect(&url, Access::Existing).unwrap().excess_rights().await.unwrap()
    };
    assert_eq!(rights("gateway").await, None);
    assert_eq!(rights("postgres").await.unwrap(), "'postgres' is a superuser");
    assert_eq!(rights("operator").await.unwrap(), "'t_operator' has the rights of doorward_operator");
    db.execute("GRANT UPDATE ON devices TO t_gateway").await.unwrap();
    assert_eq!(rights("gateway").await.unwrap(), "'t_gateway' may change devices");
    db.execute("REVOKE UPDATE ON devices FROM t_gateway").await.unwrap();

    let warning = "database role 'postgres' is a superuser; it needs doorward_gateway alone";
    let house = House::on(db, |_| {}).await;
    assert!(!log().contains("database role"), "{}", log());
    let registry = std::sync::Arc::clone(&house.db.registry);
    let house = House::behind(Database::postgres().await, registry, |_| {}).await;
    assert_eq!(log().matches(warning).count(), 1, "{}", log());
    drop(house);
}

/// The last row of the audit, without its time and who acted.
async fn last_act(db: &Database) -> Value {
    let filter = AuditFilter { limit: 1000, ..AuditFilter::default() };
    let rows = db.registry.audit(&filter).await.unwrap();
    let mut body: Value = serde_json::from_slice(&rows.last().unwrap().body).unwrap();
    for name in ["at", "actor", "subject", "device"] {
        body[name].take();
    }
    body
}

#[tokio::test]
async fn the_functions_do_what_the_commands_do() {
    let db = Database::postgres().await;
    add(&db.registry, &["cmd", "sql"]).await;
    let mut hand = db.connected_as("operator").await;
    let mut call = async |sql: &str| {
        sqlx::query_scalar::<_, bool>(AssertSqlSafe(sql.to_owned())).fetch_one(&mut hand).await
    };
    for (act, reason, sql) in [
        (Act::Suspend, Some("dirty"), "SELECT doorward.suspend_device('sql', 'dirty')"),
        (Act::Suspend, Some("again"), "SELECT doorward.suspend_device('sql', 'again')"),
        (Act::Resume, None, "SELECT doorward.resume_device('sql')"),
        (Act::Resume, None, "SELECT doorward.resume_device('sql')"),
        (Act::Revoke, Some("stolen"), "SELECT doorward.revoke_device('sql', 'stolen')"),
        (Act::Revoke, Some("again"), "SELECT doorward.revoke_device('sql', 'again')"),
    ] {
        let done = db.registry.set_status(&device("cmd"), act, reason).await.unwrap().done;
        let mut by_command = last_act(&db).await;
        let count = db.registry.audit_head().await.unwrap().count;
        assert_eq!(call(sql).await.unwrap(), done == Done::Changed, "{sql}");
        let mut by_sql = last_act(&db).await;
        if done == Done::Changed {
            assert_eq!(
                (by_command["role"].take(), by_sql["role"].take()),
                ("postgres".into(), "t_operator".into())
            );
            assert_eq!(by_command, by_sql);
        }
        let more = db.registry.audit_head().await.unwrap().count - count;
        assert_eq!(more, i64::from(done == Done::Changed), "{sql}");
    }
    for (sql, code, words) in [
        ("SELECT suspend_device('sql', 'x')", "DW001", "device 'sql' is revoked, and that is final"),
        ("SELECT resume_device('sql')", "DW001", "device 'sql' is revoked, and that is final"),
        ("SELECT revoke_device('nobody', 'x')", "P0002", "there is no device 'nobody'"),
        ("SELECT revoke_device('cmd', '')", "22023", "a reason is 1 to 256 bytes"),
        ("SELECT revoke_device('cmd', NULL)", "22023", "a reason is 1 to 256 bytes"),
        ("SELECT revoke_device('cmd', E'a\\nb')", "22023", "without control characters"),
        ("SELECT revoke_device('cmd', repeat('ä', 129))", "22023", "a reason is 1 to 256 bytes"),
    ] {
        let error = call(sql).await.unwrap_err();
        let error = error.as_database_error().unwrap();
        assert_eq!(error.code().unwrap(), code, "{sql}: {error}");
        assert!(error.message().contains(words), "{sql}: {error}");
    }
}

/// `a` has a certificate, its renewal, and the renewal's renewal; and one beside them.
async fn renewed(db: &Database) -> [String; 4] {
    add(&db.registry, &["a", "b"]).await;
    for (id, from) in [("a2", "a"), ("a3", "a2"), ("aside", "")] {
        let (new, from) = (certificate_of(id), certificate_of(from).fingerprint);
        let from = if id == "aside" { "NULL".to_owned() } else { format!("'{from}'") };
        let sql = format!(
            "INSERT INTO certificates (fingerprint, serial, issuer, der, device, renewed_from, not_before, not_after)
             VALUES ('{}', '{}', 'ab12', '\\x00', 'a', {from}, now(), now() + interval '1 year')",
            new.fingerprint, new.serial
        );
        db.execute(&sql).await.unwrap();
    }
    ["a", "a2", "a3", "aside"].map(|id| certificate_of(id).serial)
}

#[tokio::test]
async fn a_certificate_is_revoked_with_its_renewals() {
    let db = Database::postgres().await;
    let [first, second, _, aside] = renewed(&db).await;
    let mut hand = db.connected_as("operator").await;
    let mut call =
        async |sql: String| sqlx::query_scalar::<_, i32>(AssertSqlSafe(sql)).fetch_one(&mut hand).await;
    let revoked = "SELECT count(*) FROM certificates WHERE status = 'revoked'";
    assert_eq!(call(format!("SELECT revoke_certificate('{second}', 'lost', true)")).await.unwrap(), 1);
    assert_eq!(db.number(revoked).await, 1);
    assert_eq!(call(format!("SELECT revoke_certificate('{first}', 'leaked')")).await.unwrap(), 2);
    assert_eq!(call(format!("SELECT revoke_certificate('{first}', 'leaked')")).await.unwrap(), 0);
    assert_eq!(db.number(revoked).await, 3);
    // The one that was revoked before keeps its reason; those beside it hold.
    let reasons = format!("SELECT count(*) FROM certificates WHERE reason = 'lost' AND serial = '{second}'");
    assert_eq!(db.number(&reasons).await, 1);
    assert_eq!(
        db.number(&format!(
            "SELECT count(*) FROM certificates WHERE status = 'active' AND serial = '{aside}'"
        ))
        .await,
        1
    );
    let acts = "SELECT count(*) FROM audit WHERE body::json->>'action' = 'certificate.revoke' AND body::json->>'device' = 'a'";
    assert_eq!(db.number(acts).await, 3);
    let error = call("SELECT revoke_certificate('00', 'x')".to_owned()).await.unwrap_err();
    assert!(error.to_string().contains("there is no certificate '00'"), "{error}");
}

#[tokio::test]
async fn an_issuer_records_successors_alone() {
    let db = Database::postgres().await;
    add(&db.registry, &["a", "b", "gone"]).await;
    db.registry.set_status(&device("gone"), Act::Revoke, Some("stolen")).await.unwrap();
    let mut issuer = db.connected_as("issuer").await;
    let record = |der: &str, device: &str, from: &str| {
        let from = certificate_of(from).fingerprint;
        format!(
            "SELECT record_certificate(encode(sha256('{der}'), 'hex'), left(encode(sha256('{der}'), 'hex'), 32), 'ab12',
                '{der}', '{device}', '{from}', '2027-01-01', '2030-01-01')"
        )
    };
    for (sql, words) in [
        (record("n1", "a", "b"), "successor to one of device 'a'"),
        (record("n1", "b", "nothing"), "successor to one of device 'b'"),
        (record("n1", "gone", "gone"), "no active device 'gone'"),
        (record("n1", "none", "a"), "no active device 'none'"),
        (record("n1", "a", "a").replacen("sha256('n1')", "sha256('n2')", 1), "fingerprint is not that"),
        ("INSERT INTO certificates SELECT * FROM certificates".to_owned(), "permission denied"),
    ] {
        let error = issuer.execute(AssertSqlSafe(sql.clone())).await.unwrap_err();
        assert!(error.to_string().contains(words), "{sql}: {error}");
    }
    issuer.execute(AssertSqlSafe(record("n1", "a", "a"))).await.unwrap();
    for (sql, holds) in [
        (
            "UPDATE certificates SET status = 'superseded', valid_until = now() + interval '1 day' WHERE fingerprint = $1",
            true,
        ),
        (
            "UPDATE certificates SET status = 'superseded', valid_until = now() - interval '1 s' WHERE fingerprint = $1",
            false,
        ),
        ("UPDATE certificates SET status = 'revoked' WHERE fingerprint = $1", false),
    ] {
        let from = format!("'{}'", certificate_of("a").fingerprint);
        db.execute(&sql.replace("$1", &from)).await.unwrap();
        let done = attempt(&mut issuer, &record("n2", "a", "a")).await;
        assert_eq!(done.is_ok(), holds, "{sql}: {done:?}");
    }
    let act = last_act(&db).await;
    assert_eq!(act["action"], "certificate.revoke");
    let added = "SELECT count(*) FROM audit WHERE body::json->>'action' = 'certificate.add' AND body::json->>'role' = 't_issuer'";
    assert_eq!(db.number(added).await, 1);
}

#[tokio::test]
async fn a_gateway_confirms_a_pending_key() {
    let db = laid_out().await;
    let mut gateway = db.connected_as("gateway").await;
    let mut call = async |version: i32| {
        sqlx::query_scalar::<_, bool>("SELECT confirm_key('a', $1)")
            .bind(version)
            .fetch_one(&mut gateway)
            .await
    };
    for unknown in [3, 0] {
        assert!(call(unknown).await.unwrap_err().to_string().contains("is not pending but unknown"));
    }
    assert!(!call(1).await.unwrap(), "it is active already");
    assert!(call(2).await.unwrap());
    assert!(!call(2).await.unwrap());
    assert!(call(1).await.unwrap_err().to_string().contains("is not pending but grace"));
    let states = "SELECT count(*) FROM hmac_keys WHERE version = 1 AND state = 'grace' AND grace_until > now() + interval '6 days'
        OR version = 2 AND state = 'active'";
    assert_eq!(db.number(states).await, 2);
    db.registry.set_status(&device("a"), Act::Revoke, None).await.unwrap();
    assert!(call(2).await.unwrap_err().to_string().contains("no active device"));
}

#[tokio::test]
async fn views_for_people() {
    let db = laid_out().await;
    add(&db.registry, &["b"]).await;
    let seen = "SELECT count(*) FROM device_overview WHERE id = 'a' AND connected AND gateway = 'g1' AND key_version = 1
        OR id = 'b' AND NOT connected AND gateway IS NULL AND certificate_expires IS NOT NULL";
    assert_eq!(db.number(seen).await, 2);
    // `a` ends with its grace tomorrow, `b` in years.
    let soon = "SELECT count(*) FROM expiring_certificates";
    assert_eq!(db.number(&format!("{soon} WHERE device = 'a' AND expires_in < interval '1 day'")).await, 1);
    assert_eq!(db.number(soon).await, 1);
    db.registry.set_status(&device("a"), Act::Revoke, None).await.unwrap();
    assert_eq!(db.number(soon).await, 0);
}

/// For migrations to come: a new function is everybody's until its migration says otherwise.
#[tokio::test]
async fn no_function_is_everybodys_and_each_definers_path_is_pinned() {
    let db = Database::postgres().await;
    let ours = "SELECT count(*) FROM pg_proc p WHERE pronamespace = 'doorward'::regnamespace";
    assert!(db.number(ours).await > 20);
    let open = format!(
        "{ours} AND EXISTS (SELECT FROM aclexplode(coalesce(proacl, acldefault('f', proowner))) AS a WHERE a.grantee = 0)"
    );
    assert_eq!(db.number(&open).await, 0);
    let loose = format!(
        "{ours} AND prosecdef AND NOT EXISTS (SELECT FROM unnest(proconfig) AS c WHERE c = 'search_path=doorward, pg_temp')"
    );
    assert_eq!(db.number(&loose).await, 0);
    let tables = "SELECT count(*) FROM pg_class c, aclexplode(c.relacl) AS a
        WHERE relnamespace = 'doorward'::regnamespace AND a.grantee = 0";
    assert_eq!(db.number(tables).await, 0);
}
