//! What a revocation list is made of: since when what is revoked is so, and a number that no other list has.

use doorward::registry::{
    Access, Act, AuditFilter, Cause, NewCrl, NumberedCrl, RevokedCertificate, RevokedFilter, connect,
};
use serde_json::Value;
use time::macros::datetime;
use time::{Duration, OffsetDateTime};

use super::{NOON, add, certificate_of, contract, device, new_device};
use crate::support::database::{Database, Sql};

contract! {
    a_number_is_given_once,
    numbers_of_many_at_once_are_all_different,
    what_is_revoked_is_listed_with_its_time_and_cause,
    the_first_revocation_counts,
    pages_go_by_serial,
    since_when_is_noted_for_plain_sql_and_never_set,
}

fn new_crl(issuer: &str) -> NewCrl {
    NewCrl { issuer: issuer.to_owned(), above: 0, valid: Duration::WEEK, superseded: false }
}

fn filter(superseded: bool) -> RevokedFilter {
    let issuer = certificate_of("").issuer;
    RevokedFilter { issuer, at: NOON, superseded, after: String::new(), limit: 100 }
}

async fn listed(db: &Database, superseded: bool) -> Vec<RevokedCertificate> {
    db.registry.revoked(&filter(superseded)).await.unwrap()
}

/// Who is listed and why, in the order of names.
async fn causes(db: &Database, names: &[&str], superseded: bool) -> String {
    let listed = listed(db, superseded).await;
    let words = names.iter().filter_map(|name| {
        let found = listed.iter().find(|one| one.serial == certificate_of(name).serial)?;
        Some(match &found.cause {
            Cause::Superseded => format!("{name} superseded"),
            Cause::Revoked(reason) => format!("{name} {}", reason.as_deref().unwrap_or("-")),
        })
    });
    let words: Vec<_> = words.collect();
    assert_eq!(words.len(), listed.len(), "{listed:?}");
    words.join(", ")
}

async fn a_number_is_given_once(db: Database) {
    let registry = &db.registry;
    let number = async |crl: &NewCrl| registry.number_crl(crl).await.unwrap().number;
    let NumberedCrl { number: first, this_update, next_update } =
        registry.number_crl(&new_crl("aa")).await.unwrap();
    assert_eq!((first, next_update - this_update), (1, Duration::WEEK));
    assert_eq!(this_update.nanosecond(), 0);
    let rows = registry.audit(&AuditFilter { limit: 100, ..AuditFilter::default() }).await.unwrap();
    let act: Value = serde_json::from_slice(&rows.last().unwrap().body).unwrap();
    assert_eq!(
        (&act["action"], &act["subject"], &act["device"]),
        (&"crl.issue".into(), &"1".into(), &Value::Null)
    );
    let after = &act["after"];
    assert_eq!((&after["issuer"], &after["number"]), (&"aa".into(), &1.into()));
    assert_eq!(after["superseded"], Value::Bool(false));
    assert!(after["next_update"].as_str() > after["this_update"].as_str(), "{act}");

    assert_eq!(number(&new_crl("aa")).await, 2);
    assert_eq!(number(&new_crl("bb")).await, 1, "each authority counts for itself");
    // One that is known from elsewhere is not given again, and one from long ago changes nothing.
    assert_eq!(number(&NewCrl { above: 40, superseded: true, ..new_crl("aa") }).await, 41);
    assert_eq!(number(&NewCrl { above: 3, ..new_crl("aa") }).await, 42);
    assert_eq!(number(&NewCrl { above: 9, ..new_crl("cc") }).await, 10);
    assert_eq!(registry.audit_head().await.unwrap().count, rows.len() as i64 + 5);
    for sql in [
        "UPDATE crls SET number = 5 WHERE issuer = 'aa'",
        "UPDATE crls SET this_update = next_update",
        "UPDATE crls SET issuer = 'dd' WHERE issuer = 'aa'",
        "DELETE FROM crls",
        "INSERT INTO crls SELECT * FROM crls",
    ] {
        assert!(db.execute(sql).await.is_err(), "{sql}");
    }
    assert_eq!(number(&new_crl("aa")).await, 43);
    let taken = NewCrl { above: i64::MAX, ..new_crl("aa") };
    assert!(registry.number_crl(&taken).await.is_err());
    assert_eq!(number(&new_crl("aa")).await, 44, "and nothing has come of it");
}

async fn numbers_of_many_at_once_are_all_different(db: Database) {
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let registry = connect(&db.url, Access::Existing).unwrap();
        running.spawn(async move {
            let mut numbers = Vec::new();
            for _ in 0..4 {
                numbers.push(registry.number_crl(&new_crl("aa")).await.unwrap().number);
            }
            numbers
        });
    }
    let mut numbers: Vec<i64> = running.join_all().await.concat();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=20).collect::<Vec<_>>());
}

async fn what_is_revoked_is_listed_with_its_time_and_cause(db: Database) {
    let registry = &db.registry;
    let names = ["good", "cert", "dev", "susp", "old", "other", "grace", "over", "edge"];
    let mut devices: Vec<_> = names.iter().map(|name| new_device(name)).collect();
    devices[4].certificate.not_after = NOON - Duration::SECOND;
    devices[5].certificate.issuer = "cd34".repeat(10);
    devices[8].certificate.not_after = NOON;
    registry.add_devices(&devices).await.unwrap();
    assert_eq!(listed(&db, true).await, []);

    let before = now(&db).await;
    for name in ["cert", "old", "other", "edge"] {
        let fingerprint = certificate_of(name).fingerprint;
        registry.revoke_certificate(&fingerprint, "keyCompromise", false).await.unwrap();
    }
    registry.set_status(&device("dev"), Act::Revoke, Some("stolen")).await.unwrap();
    registry.set_status(&device("susp"), Act::Suspend, Some("dirty")).await.unwrap();
    for (name, until) in [("grace", "2099-01-01T00:00:00.000Z"), ("over", "2027-01-02T00:00:00.000Z")] {
        db.execute(&format!(
            "UPDATE certificates SET status = 'superseded', valid_until = '{until}' WHERE device = '{name}'"
        ))
        .await
        .unwrap();
    }
    let after = now(&db).await;

    let revoked = "cert keyCompromise, dev stolen, edge keyCompromise";
    assert_eq!(causes(&db, &names, false).await, revoked);
    let all = "cert keyCompromise, dev stolen, grace superseded, over superseded, edge keyCompromise";
    assert_eq!(causes(&db, &names, true).await, all);
    for one in listed(&db, true).await {
        assert!(before <= one.since && one.since <= after, "{before} {one:?} {after}");
    }
    let others = RevokedFilter { issuer: "cd34".repeat(10), ..filter(false) };
    let [other] = &registry.revoked(&others).await.unwrap()[..] else { panic!() };
    assert_eq!(other.serial, certificate_of("other").serial);
}

async fn the_first_revocation_counts(db: Database) {
    let registry = &db.registry;
    add(registry, &["a", "b", "c"]).await;
    let revoke = async |name: &str| {
        registry.revoke_certificate(&certificate_of(name).fingerprint, "certificate", false).await.unwrap();
    };
    let revoke_device = async |name: &str| {
        registry.set_status(&device(name), Act::Revoke, Some("device")).await.unwrap();
    };
    revoke("a").await;
    revoke_device("b").await;
    let first = listed(&db, false).await;
    while now(&db).await <= first.iter().map(|one| one.since).max().unwrap() {}
    revoke_device("a").await;
    revoke("b").await;
    // A superseded certificate of a revoked device is revoked.
    db.execute("UPDATE certificates SET status = 'superseded', valid_until = '2099-01-01T00:00:00.000Z' WHERE device = 'c'")
        .await
        .unwrap();
    revoke_device("c").await;
    assert_eq!(causes(&db, &["a", "b", "c"], false).await, "a certificate, b device, c device");
    let last = listed(&db, false).await;
    assert!(first.iter().all(|one| last.contains(one)), "{first:?} {last:?}");
}

async fn pages_go_by_serial(db: Database) {
    let ids: Vec<String> = (0..25).map(|n| format!("p{n}")).collect();
    add(&db.registry, &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    db.execute("UPDATE devices SET status = 'revoked' WHERE id <> 'p7'").await.unwrap();
    let (mut page, mut serials) = (RevokedFilter { limit: 10, ..filter(false) }, Vec::new());
    for size in [10, 10, 4, 0] {
        let found = db.registry.revoked(&page).await.unwrap();
        assert_eq!(found.len(), size);
        serials.extend(found.into_iter().map(|one| one.serial));
        page.after = serials.last().cloned().unwrap();
    }
    let mut due: Vec<_> = ids.iter().filter(|id| *id != "p7").map(|id| certificate_of(id).serial).collect();
    due.sort_unstable();
    assert_eq!(serials, due);
}

/// The database's clock.
async fn now(db: &Database) -> OffsetDateTime {
    let ms = match &db.sql {
        Sql::Sqlite(_) => db.number("SELECT CAST(round(unixepoch('now', 'subsec') * 1000) AS INTEGER)").await,
        Sql::Postgres(_) => {
            db.number("SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint").await
        }
    };
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).unwrap()
}

async fn since_when_is_noted_for_plain_sql_and_never_set(db: Database) {
    add(&db.registry, &["a", "b"]).await;
    assert_eq!(db.number("SELECT count(*) FROM devices WHERE status_since IS NOT NULL").await, 0);
    let before = now(&db).await;
    let changes = db.number("SELECT count(*) FROM changes").await;
    db.execute("UPDATE certificates SET status = 'revoked', reason = 'x' WHERE device = 'a'").await.unwrap();
    db.execute("UPDATE devices SET status = 'revoked', reason = 'x' WHERE id = 'b'").await.unwrap();
    // Noting the time is no news of its own.
    assert_eq!(db.number("SELECT count(*) FROM changes").await - changes, 2);
    let first = listed(&db, false).await;
    assert!(first.len() == 2 && first.iter().all(|one| one.since >= before), "{before} {first:?}");
    for table in ["devices", "certificates"] {
        for value in ["NULL", "'2020-01-01T00:00:00.000Z'"] {
            let sql = format!("UPDATE {table} SET status_since = {value} WHERE status = 'revoked'");
            assert!(db.execute(&sql).await.unwrap_err().contains("never changes by itself"), "{sql}");
        }
    }
    // What else is put right does not move it.
    db.execute("UPDATE devices SET reason = 'y'").await.unwrap();
    db.execute("UPDATE certificates SET reason = 'y'").await.unwrap();
    let last = listed(&db, false).await;
    assert_eq!(
        first.iter().map(|one| one.since).collect::<Vec<_>>(),
        last.iter().map(|one| one.since).collect::<Vec<_>>()
    );
    // One that is revoked from the beginning is so since then, whatever it says.
    db.execute(
        "INSERT INTO certificates (fingerprint, serial, issuer, der, device, not_before, not_after, status, status_since)
         SELECT '0000' || substr(fingerprint, 5), '0000' || substr(serial, 5), issuer, der, device, not_before, not_after, 'revoked',
             not_before
         FROM certificates WHERE device = 'a'",
    )
    .await
    .unwrap();
    let [inserted, ..] = &listed(&db, false).await[..] else { panic!() };
    assert!(inserted.serial.starts_with("0000") && inserted.since >= before, "{inserted:?}");
}

/// A registry as the version before lists left it.
async fn of_version_6(db: &Database) {
    macro_rules! texts {
        ($kind:literal) => {
            [
                include_str!(concat!("../../../migrations/", $kind, "/0001_registry.sql")),
                include_str!(concat!("../../../migrations/", $kind, "/0002_gateways.sql")),
                include_str!(concat!("../../../migrations/", $kind, "/0003_audit.sql")),
                include_str!(concat!("../../../migrations/", $kind, "/0004_roles.sql")),
                include_str!(concat!("../../../migrations/", $kind, "/0005_amendments.sql")),
                include_str!(concat!("../../../migrations/", $kind, "/0006_limits.sql")),
                include_str!(concat!("../../../migrations/", $kind, "/0007_crl.sql")),
            ]
        };
    }
    let texts = match &db.sql {
        Sql::Sqlite(_) => texts!("sqlite"),
        Sql::Postgres(_) => {
            // The fourth speaks of the migrator's own table.
            for sql in ["CREATE SCHEMA doorward", "CREATE TABLE _sqlx_migrations (version bigint)"] {
                db.execute(sql).await.unwrap();
            }
            texts!("postgres")
        }
    };
    let (before, this) = texts.split_at(6);
    for text in before {
        db.execute(text).await.unwrap();
    }
    let moment = "'2027-01-01T00:00:00.000Z'";
    for (id, status) in [("a", "active"), ("b", "revoked")] {
        let fingerprint = certificate_of(id).fingerprint;
        let der = if matches!(db.sql, Sql::Sqlite(_)) { "x'00'" } else { "'\\x00'" };
        for sql in [
            format!("INSERT INTO devices (id, fleet, status) VALUES ('{id}', 'default', '{status}')"),
            format!(
                "INSERT INTO certificates (fingerprint, serial, issuer, der, device, not_before, not_after)
                 VALUES ('{fingerprint}', '{}', '{}', {der}, '{id}', {moment}, '2099-01-01T00:00:00.000Z')",
                certificate_of(id).serial,
                certificate_of(id).issuer
            ),
        ] {
            db.execute(&sql).await.unwrap();
        }
    }
    db.execute(this[0]).await.unwrap();
}

#[tokio::test]
async fn what_was_revoked_before_is_so_since_the_migration() {
    for db in [Database::bare_sqlite().await, Database::bare_postgres().await] {
        let begun = now(&db).await;
        of_version_6(&db).await;
        let ended = now(&db).await;
        let [b] = &listed(&db, false).await[..] else { panic!() };
        assert_eq!(b.serial, certificate_of("b").serial);
        assert!(begun <= b.since && b.since <= ended, "{begun} {b:?} {ended}");
        assert!(b.since != datetime!(2027-01-01 00:00 UTC));
        assert_eq!(db.number("SELECT count(*) FROM devices WHERE status_since IS NULL").await, 1);
        // The audit is of acts, and this was none.
        assert_eq!(
            db.registry.audit_head().await.unwrap().count,
            if matches!(db.sql, Sql::Sqlite(_)) { 0 } else { 4 }
        );
    }
}
