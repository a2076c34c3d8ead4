//! How the roles come to be: made by the migration, or by a superuser where that may not.

use doorward::registry::{Access, Batch, Done, Fate, connect};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use super::roles::attempt;
use super::{claim, message, new_device};
use crate::support::database::Database;

/// The roles' own part of the migration, for roles that are not there yet.
fn making_roles(prefix: &str) -> String {
    let text = include_str!("../../../migrations/postgres/0004_roles.sql");
    let begin = text.find("-- begin roles").unwrap();
    let end = text.find("-- end roles").unwrap();
    text[begin..end].replace("doorward_", prefix)
}

#[tokio::test]
async fn missing_roles_are_named_to_who_may_not_make_them() {
    let db = Database::bare_postgres().await;
    let mut weak = PgConnection::connect(&db.url_as("stranger").to_string()).await.unwrap();
    let error = weak.execute(AssertSqlSafe(making_roles("t_missing_"))).await.unwrap_err();
    let error = error.as_database_error().unwrap();
    assert_eq!(error.code().unwrap(), "42501");
    for words in [
        "t_missing_gateway, t_missing_issuer",
        "t_stranger may not create roles",
        "CREATE ROLE t_missing_auditor NOLOGIN",
    ] {
        assert!(error.message().contains(words), "{error}");
    }
}

#[tokio::test]
async fn roles_are_made_once_for_all_databases_at_the_same_time() {
    let prefix = format!("t_{}_", std::process::id());
    let databases = [Database::bare_postgres().await, Database::bare_postgres().await];
    let sql = making_roles(&prefix);
    // Process ids come again, and a run that failed leaves its roles behind.
    for name in ["gateway", "issuer", "operator", "auditor"] {
        databases[0].execute(&format!("DROP ROLE IF EXISTS {prefix}{name}")).await.unwrap();
    }
    let mut first = databases[0].pg().begin().await.unwrap();
    first.execute(AssertSqlSafe(sql.clone())).await.unwrap();
    let (other, text) = (databases[1].pg().clone(), sql.clone());
    let second = tokio::spawn(async move { other.execute(AssertSqlSafe(text)).await.map(drop) });
    // The second one waits for the first.
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%PREFIX%'"
            .replace("PREFIX", &prefix.replace('_', "\\_"));
    crate::support::house::eventually("the second migration waits", async || {
        databases[0].number(&waiting).await > 0
    })
    .await;
    first.commit().await.unwrap();
    second.await.unwrap().unwrap();
    databases[0].execute(&sql).await.unwrap();
    for name in ["gateway", "issuer", "operator", "auditor"] {
        databases[0].execute(&format!("DROP ROLE {prefix}{name}")).await.unwrap();
    }
}

/// Who owns the database need not be a superuser.
#[tokio::test]
async fn an_owner_migrates() {
    let db = Database::bare_postgres().await;
    db.execute(
        "DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO t_stranger', current_database()); END $$",
    )
    .await
    .unwrap();
    let owner = connect(&db.url_as("stranger"), Access::Existing).unwrap();
    assert_eq!(owner.migrate().await.unwrap(), Done::Changed);
    owner.add_devices(&[new_device("a")]).await.unwrap();
    assert_eq!(owner.excess_rights().await.unwrap().unwrap(), "'t_stranger' owns the registry's tables");
    let gateway = db.for_gateway();
    let batch = Batch {
        claims: vec![claim("a", "s1")],
        messages: vec![message("a", "s1", "m1")],
        ..Batch::default()
    };
    assert_eq!(gateway.write(&batch).await.unwrap(), [Fate::Stored]);
    // Whatever the owner's own rights: what is written is written.
    let mut hand = db.connected_as("stranger").await;
    for sql in [
        "UPDATE audit SET body = '{}'",
        "DELETE FROM audit",
        "TRUNCATE audit",
        "TRUNCATE audit_head",
        "DELETE FROM audit_staged",
    ] {
        assert_eq!(attempt(&mut hand, sql).await.unwrap_err(), "DW001", "{sql}");
    }
}
