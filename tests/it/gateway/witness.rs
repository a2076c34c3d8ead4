//! The gateway notes the head of the audit in its own home.

use doorward::registry::AuditHead;

use crate::support::database::{Database, Sql};
use crate::support::house::{House, eventually, log};

fn noted(house: &House) -> Vec<AuditHead> {
    let text = std::fs::read_to_string(house.copy().with_file_name("audit-heads")).unwrap_or_default();
    text.lines().map(|line| line.split_once(' ').unwrap().1.parse().unwrap()).collect()
}

async fn a_head_is_noted_and_a_cut_audit_is_found_out(db: Database) {
    let mut house = House::on(db, |_| {}).await;
    house.add_device("press-7").await;
    // It looks at its start, and every minute.
    house.restart().await;
    let head = house.db.registry.audit_head().await.unwrap();
    assert!(head.count > 0);
    eventually("the head", async || noted(&house).last() == Some(&head)).await;
    let words = "the audit is not the one that was noted";
    assert!(!log().contains(words));
    // The owner of the database can do this, and the chain itself fits again.
    let (off, zeros) = match &house.db.sql {
        Sql::Sqlite(_) => ("DROP TRIGGER audit_head_keep", format!("x'{}'", "00".repeat(32))),
        Sql::Postgres(_) => {
            ("ALTER TABLE audit_head DISABLE TRIGGER ALL", format!("'\\x{}'", "00".repeat(32)))
        }
    };
    house.db.execute(off).await.unwrap();
    house.db.execute(&format!("UPDATE audit_head SET count = 0, hash = {zeros}")).await.unwrap();
    house.restart().await;
    eventually("it says so", async || log().contains(words)).await;
    assert!(noted(&house).contains(&head), "what was noted stays");
}

#[tokio::test]
async fn a_head_is_noted_and_a_cut_audit_is_found_out_on_sqlite() {
    a_head_is_noted_and_a_cut_audit_is_found_out(Database::sqlite().await).await;
}

#[tokio::test]
async fn a_head_is_noted_and_a_cut_audit_is_found_out_on_postgres() {
    a_head_is_noted_and_a_cut_audit_is_found_out(Database::postgres().await).await;
}
