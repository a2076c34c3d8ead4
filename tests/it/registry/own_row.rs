//! A gateway's row in `gateways` is its own: two login roles of one Postgres try each other's.

use std::sync::Arc;
use std::time::Duration;

use doorward::registry::{Access, Applied, Enrolment, Registry, RegistryError, connect};
use sqlx::{AssertSqlSafe, Executor as _};

use super::roles::attempt;
use crate::support::database::Database;

fn enrolment(name: &str, home: &str) -> Enrolment {
    Enrolment {
        name: name.into(),
        instance: format!("{home}.run"),
        version: "0",
        address: String::new(),
        may_serve: Duration::from_secs(3600),
    }
}

async fn applied(registry: &Arc<dyn Registry>) -> Applied {
    let mut position = registry.position().await.unwrap();
    registry.read_changes(&mut position).await.unwrap().applied
}

/// Two gateways, each under its own login role and enrolled under its own name.
async fn two() -> (Database, [Arc<dyn Registry>; 2]) {
    let db = Database::postgres().await;
    let gateways = ["gateway", "gateway_2"].map(|role| connect(&db.url_as(role), Access::Existing).unwrap());
    gateways[0].enrol(&enrolment("one", "home-1")).await.unwrap();
    gateways[1].enrol(&enrolment("two", "home-2")).await.unwrap();
    (db, gateways)
}

/// The whole row of the first gateway.
async fn first_row(db: &Database) -> String {
    sqlx::query_scalar("SELECT g::text FROM gateways g WHERE name = 'one'").fetch_one(db.pg()).await.unwrap()
}

fn is_taken(refused: Result<(), RegistryError>) -> bool {
    matches!(refused, Err(RegistryError::Refused(words)) if words.contains("has the name 'one'"))
}

#[tokio::test]
async fn a_gateway_writes_its_own_row_and_no_other() {
    let (db, [first, second]) = two().await;
    let applied = applied(&first).await;
    assert!(first.report("one", "home-1.run", &applied).await.unwrap());
    let before = first_row(&db).await;

    // As the program does it: neither in its name, nor under its name, nor as another run of its home.
    assert!(!second.report("one", "home-1.run", &applied).await.unwrap());
    second.sign_off("one", "home-1.run").await.unwrap();
    assert!(is_taken(second.enrol(&enrolment("one", "home-1")).await));

    // As a hand with its password does it.
    let insert =
        "INSERT INTO gateways (name, instance, version, address, may_serve) VALUES ('one', 'x', '', '', '0')";
    for role in ["", "SET ROLE doorward_gateway"] {
        let mut hand = db.connected_as("gateway_2").await;
        hand.execute(role).await.unwrap();
        for (sql, due) in [
            ("UPDATE gateways SET signed_off = now()", Ok(())),
            ("UPDATE gateways SET heartbeat = '2001-01-01' WHERE name = 'one'", Ok(())),
            ("UPDATE gateways SET applied = pg_current_snapshot() WHERE name = 'one'", Ok(())),
            ("UPDATE gateways SET owner = session_user WHERE name = 'one'", Ok(())),
            ("UPDATE gateways SET name = 'one' WHERE name = 'two'", Err("23505")),
            ("DELETE FROM gateways", Err("42501")),
            ("TRUNCATE gateways", Err("42501")),
            (insert, Err("23505")),
            (&format!("{insert} ON CONFLICT (name) DO UPDATE SET signed_off = now()"), Err("42501")),
            ("SET row_security = off; UPDATE gateways SET signed_off = now()", Err("42501")),
            ("ALTER TABLE gateways DISABLE ROW LEVEL SECURITY", Err("42501")),
            ("ALTER TABLE gateways DISABLE TRIGGER own", Err("42501")),
        ] {
            // Committed, where it is no error.
            let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut hand).await.map(drop);
            let done = done.map_err(|error| error.as_database_error().unwrap().code().unwrap().into_owned());
            assert_eq!(done, due.map_err(str::to_owned), "{sql}");
            assert_eq!(first_row(&db).await, before, "{sql}");
            hand.execute("RESET row_security").await.unwrap();
        }
        // Its own it may write, and makes nobody else's of it.
        hand.execute("UPDATE gateways SET owner = 't_gateway', signed_off = NULL WHERE name = 'two'")
            .await
            .unwrap();
        hand.execute(AssertSqlSafe(insert.replace("'one'", "'three'"))).await.unwrap();
        hand.execute("UPDATE gateways SET owner = NULL WHERE name = 'three'").await.unwrap();
        assert_eq!(db.number("SELECT count(*) FROM gateways WHERE owner = 't_gateway_2'").await, 2);
        let all = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM gateways").fetch_one(&mut hand).await;
        assert_eq!(all.unwrap(), 3, "it reads all of them");
        db.execute("DELETE FROM gateways WHERE name = 'three'").await.unwrap();
    }
    assert!(first.report("one", "home-1.run", &applied).await.unwrap());
    assert!(first_row(&db).await.contains(",t_gateway,,)"), "{}", first_row(&db).await);
}

#[tokio::test]
async fn a_name_is_free_once_its_holder_may_serve_no_more() {
    let (db, [first, second]) = two().await;
    let applied = applied(&first).await;
    db.execute("UPDATE gateways SET heartbeat = now() - interval '59 min' WHERE name = 'one'").await.unwrap();
    assert!(is_taken(second.enrol(&enrolment("one", "home-2")).await));
    db.execute("UPDATE gateways SET heartbeat = now() - interval '61 min' WHERE name = 'one'").await.unwrap();
    second.enrol(&enrolment("one", "home-2")).await.unwrap();
    assert!(!first.report("one", "home-1.run", &applied).await.unwrap());
    assert!(is_taken(first.enrol(&enrolment("one", "home-1")).await));
    // And back, once it has signed off.
    second.sign_off("one", "home-2.run").await.unwrap();
    first.enrol(&enrolment("one", "home-1")).await.unwrap();
    assert!(first.report("one", "home-1.run", &applied).await.unwrap());
    assert!(!second.report("one", "home-2.run", &applied).await.unwrap());
}

#[tokio::test]
async fn a_row_from_before_is_its_homes() {
    let (db, [first, second]) = two().await;
    let applied = applied(&first).await;
    let nobodys = "UPDATE gateways SET owner = NULL WHERE name = 'one'";
    db.execute(nobodys).await.unwrap();
    assert!(is_taken(second.enrol(&enrolment("one", "home-2")).await));
    // A run that goes on has it by its next report, one that starts again by enrolling.
    assert!(first.report("one", "home-1.run", &applied).await.unwrap());
    assert!(!second.report("one", "home-1.run", &applied).await.unwrap());
    db.execute(nobodys).await.unwrap();
    first.enrol(&enrolment("one", "home-1")).await.unwrap();
    assert!(is_taken(second.enrol(&enrolment("one", "home-1")).await));
    assert!(!second.report("one", "home-1.run", &applied).await.unwrap());
}

#[tokio::test]
async fn operators_see_every_row_and_remove_it() {
    let (db, [first, _]) = two().await;
    let operator = connect(&db.url_as("operator"), Access::Existing).unwrap();
    let names: Vec<String> =
        operator.gateways(None).await.unwrap().into_iter().map(|gateway| gateway.name).collect();
    assert_eq!(names, ["one", "two"]);
    let mut hand = db.connected_as("operator").await;
    assert_eq!(attempt(&mut hand, "UPDATE gateways SET signed_off = now()").await.unwrap_err(), "42501");
    operator.remove_gateway("one").await.unwrap();
    assert_eq!(operator.gateways(None).await.unwrap().len(), 1);
    let applied = applied(&first).await;
    assert!(!first.report("one", "home-1.run", &applied).await.unwrap());
    first.enrol(&enrolment("one", "home-1")).await.unwrap();
}
