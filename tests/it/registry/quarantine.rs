//! Quarantine: a narrow door for gateways, and what people say afterwards counts.

use std::time::Duration;

use doorward::registry::{Act, AuditFilter, Done};

use super::{add, contract, device};
use crate::support::database::Database;
use crate::support::house::{from_now, stamp};

const HOUR: Option<Duration> = Some(Duration::from_secs(3600));

async fn status(db: &Database, id: &str) -> (String, Option<String>) {
    let summary = db.registry.device(&device(id)).await.unwrap().unwrap().summary;
    (format!("{:?}", summary.status).to_lowercase(), summary.reason)
}

async fn make_due(db: &Database) {
    let past = stamp(from_now(-1));
    db.execute(&format!("UPDATE quarantines SET until = '{past}'")).await.unwrap();
}

async fn a_gateway_suspends_active_devices_alone(db: Database) {
    add(&db.registry, &["a", "b", "c"]).await;
    let gateway = db.for_gateway();
    let quarantine = async |id: &str, lasts| gateway.quarantine(&device(id), "g1", "too much", lasts).await;
    db.registry.set_status(&device("b"), Act::Suspend, Some("by hand")).await.unwrap();
    db.registry.set_status(&device("c"), Act::Revoke, Some("stolen")).await.unwrap();
    assert!(quarantine("a", HOUR).await.unwrap());
    for id in ["a", "b", "c", "nobody"] {
        assert!(!quarantine(id, HOUR).await.unwrap(), "{id}");
    }
    assert_eq!(status(&db, "a").await, ("suspended".to_owned(), Some("too much".to_owned())));
    assert_eq!(status(&db, "b").await.1.as_deref(), Some("by hand"));
    assert_eq!(status(&db, "c").await.0, "revoked");
    assert_eq!(gateway.end_quarantines().await.unwrap(), 0, "not yet");
    make_due(&db).await;
    assert_eq!(gateway.end_quarantines().await.unwrap(), 1);
    assert_eq!(gateway.end_quarantines().await.unwrap(), 0);
    assert_eq!(status(&db, "a").await, ("active".to_owned(), None));
    assert_eq!(status(&db, "b").await.0, "suspended", "that was a person's act");

    let rows = db.registry.audit(&AuditFilter { limit: 100, ..Default::default() }).await.unwrap();
    let acts: Vec<(String, String)> = rows
        .iter()
        .map(|row| serde_json::from_slice::<serde_json::Value>(&row.body).unwrap())
        .filter(|body| body["actor"] == "gateway")
        .map(|body| {
            (body["action"].as_str().unwrap().to_owned(), body["device"].as_str().unwrap().to_owned())
        })
        .collect();
    let act = |action: &str| (action.to_owned(), "a".to_owned());
    assert_eq!(acts, [act("device.suspend"), act("device.resume")]);
}

async fn until_it_is_resumed_is_for_good(db: Database) {
    add(&db.registry, &["a"]).await;
    assert!(db.registry.quarantine(&device("a"), "g1", "too much", None).await.unwrap());
    assert_eq!(db.number("SELECT count(*) FROM quarantines WHERE until IS NULL").await, 1);
    assert_eq!(db.registry.end_quarantines().await.unwrap(), 0);
    let acted = db.registry.set_status(&device("a"), Act::Resume, None).await.unwrap();
    assert_eq!(acted.done, Done::Changed);
    assert_eq!(db.number("SELECT count(*) FROM quarantines").await, 0);
    assert!(
        db.registry.quarantine(&device("a"), "g1", "again", None).await.unwrap(),
        "and it may come again"
    );
}

/// Whoever suspends a device that is in quarantine means it: it does not come back by itself.
async fn a_suspension_by_hand_takes_the_place_of_a_quarantine(db: Database) {
    add(&db.registry, &["a", "b"]).await;
    for id in ["a", "b"] {
        assert!(db.registry.quarantine(&device(id), "g1", "too much", HOUR).await.unwrap());
    }
    let suspend =
        async || db.registry.set_status(&device("a"), Act::Suspend, Some("by hand")).await.unwrap().done;
    assert_eq!(suspend().await, Done::Changed);
    assert_eq!(suspend().await, Done::Already);
    assert_eq!(status(&db, "a").await.1.as_deref(), Some("by hand"));
    // By plain SQL, too, though it sets what is so already.
    db.execute("UPDATE devices SET status = 'suspended' WHERE id = 'b'").await.unwrap();
    make_due(&db).await;
    assert_eq!(db.registry.end_quarantines().await.unwrap(), 0);
    assert_eq!(
        (status(&db, "a").await.0, status(&db, "b").await.0),
        ("suspended".into(), "suspended".into())
    );
}

async fn a_revoked_device_does_not_come_back(db: Database) {
    add(&db.registry, &["a"]).await;
    assert!(db.registry.quarantine(&device("a"), "g1", "too much", HOUR).await.unwrap());
    make_due(&db).await;
    db.registry.set_status(&device("a"), Act::Revoke, Some("stolen")).await.unwrap();
    assert_eq!(db.registry.end_quarantines().await.unwrap(), 0);
    assert_eq!(status(&db, "a").await.0, "revoked");
}

contract!(
    a_gateway_suspends_active_devices_alone,
    until_it_is_resumed_is_for_good,
    a_suspension_by_hand_takes_the_place_of_a_quarantine,
    a_revoked_device_does_not_come_back,
);

#[tokio::test]
async fn the_function_that_operators_have_ends_a_quarantine_as_well() {
    let db = Database::postgres().await;
    add(&db.registry, &["a"]).await;
    assert!(db.registry.quarantine(&device("a"), "g1", "too much", HOUR).await.unwrap());
    let said = "SELECT suspend_device('a', 'by hand')::integer::bigint";
    assert_eq!((db.number(said).await, db.number(said).await), (1, 0));
    assert_eq!(db.number("SELECT count(*) FROM quarantines").await, 0);
    for (sql, words) in [
        ("SELECT quarantine('a', 'g', '', 60)", "a reason is"),
        ("SELECT quarantine('a', 'g', 'x', 0)", "a quarantine is for"),
        ("SELECT quarantine('a', 'g', 'x', 99999999999)", "a quarantine is for"),
    ] {
        let error = db.execute(sql).await.unwrap_err();
        assert!(error.contains(words), "{sql}: {error}");
    }
}
