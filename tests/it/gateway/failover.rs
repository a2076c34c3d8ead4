//! A registry in Postgres whose server fails over to a standby that has missed the last commits: what the gateway knew runs
//! ahead of what the registry says now, and every live session is judged by what it says now.

use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use doorward::registry::Act;

use crate::support::database::Database;
use crate::support::device::{Device, Heard, problem_of, refused};
use crate::support::house::{eventually, log};
use crate::support::wire::{self, Wire};

/// A database as it was, and the way to put it in the place of what it has become.
struct Standby {
    admin: PgConnection,
    name: String,
}

impl Standby {
    /// Ends all connections to the database: one in use cannot be copied.
    async fn of(db: &Database, wire: &Wire) -> Self {
        let url = db.url.to_string();
        let (server, name) = url.rsplit_once('/').unwrap();
        let mut admin = PgConnection::connect(&format!("{server}/postgres")).await.unwrap();
        // Process ids come again while the server stays.
        for old in ["standby", "lost"] {
            let drop = format!("DROP DATABASE IF EXISTS {name}_{old} WITH (FORCE)");
            sqlx::query(AssertSqlSafe(drop)).execute(&mut admin).await.unwrap();
        }
        let mut standby = Self { admin, name: name.to_owned() };
        wire.cut();
        standby.alone(&format!("CREATE DATABASE {name}_standby TEMPLATE {name}")).await;
        wire.mend();
        standby
    }

    /// From now on the database's name leads to the copy, to which a statement is done first.
    async fn takes_over(mut self, db: &Database, wire: &Wire, sql: &str) {
        let name = self.name.clone();
        wire.cut();
        self.alone(&format!("ALTER DATABASE {name} RENAME TO {name}_lost")).await;
        self.alone(&format!("ALTER DATABASE {name}_standby RENAME TO {name}")).await;
        // The test's own connections were to the other one.
        eventually("the copy", async || db.execute(sql).await.is_ok()).await;
        wire.mend();
    }

    async fn alone(&mut self, sql: &str) {
        let others = format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{}'",
            self.name
        );
        eventually(sql, async || {
            sqlx::query(AssertSqlSafe(others.clone())).execute(&mut self.admin).await.unwrap();
            sqlx::query(AssertSqlSafe(sql.to_owned())).execute(&mut self.admin).await.is_ok()
        })
        .await;
    }
}

/// `before` is done to the standby before anybody looks at it.
async fn a_standby_that_missed_the_last_commits(before: &str) {
    let (house, wire) = wire::house(|_| {}).await;
    let registry = &house.db.registry;
    let mut honest = Device::prove(&house, &house.add_device("honest").await).await;
    let seq = honest.publish("m1", json!(1)).await;
    honest.acked(seq).await;
    let repaired = house.add_device("repaired").await;
    registry.set_status(&repaired.id, Act::Suspend, None).await.unwrap();
    let thief = house.add_device("thief").await;
    let mut stolen = Device::prove(&house, &thief).await;
    house.followed().await;

    let standby = Standby::of(&house.db, &wire).await;
    house.followed().await;
    let seq = honest.publish("m2", json!(2)).await;
    honest.acked(seq).await;
    registry.set_status(&repaired.id, Act::Resume, None).await.unwrap();
    let mut repaired = Device::prove(&house, &repaired).await;
    let mut unheard_of = Device::prove(&house, &house.add_device("unheard-of").await).await;
    registry.set_status(&thief.id, Act::Revoke, None).await.unwrap();
    stolen.closed_with_bye(4003).await;
    house.followed().await;
    assert!(!log().contains("has a gap"));

    standby.takes_over(&house.db, &wire, before).await;
    // By what the registry says now: one is suspended, the other nobody knows.
    repaired.closed_with_bye(4004).await;
    unheard_of.closed_with_bye(4004).await;
    assert!(log().contains("the registry's feed of changes has a gap"));
    // What was acked and not replicated is for replication to keep; what is acked from now on is there.
    let seq = honest.publish("m3", json!(3)).await;
    honest.acked(seq).await;
    assert_eq!((house.stored_as("m1").await, house.stored_as("m3").await), (1, 1));
    // From here on it is followed as ever.
    registry.set_status(&thief.id, Act::Revoke, None).await.unwrap();
    assert_eq!(problem_of(&refused(&house, &thief).await), "device-revoked");
    registry.set_status(&honest.credentials.id.clone(), Act::Suspend, None).await.unwrap();
    honest.closed_with_bye(4004).await;
    house.followed().await;
}

#[tokio::test]
async fn a_standby_that_missed_the_last_commits_has_the_last_word() {
    a_standby_that_missed_the_last_commits("SELECT 1").await;
}

const GONE_ON: &str = "SELECT setval('changes_id_seq', (SELECT last_value + 32 FROM changes_id_seq))";

/// A promoted standby leaves out the numbers that its server had in reserve, so that they seem to have gone on; and
/// transactions that change no device have taken the ids of those that are lost.
#[tokio::test]
async fn a_standby_whose_numbers_have_gone_on_is_noticed_too() {
    a_standby_that_missed_the_last_commits(GONE_ON).await;
}

/// What is lost is the gateway's own: its row, and that a session is its device's newest.
#[tokio::test]
async fn a_standby_that_does_not_know_the_gateway_is_told_of_it() {
    let (house, wire) = wire::house(|_| {}).await;
    let idle = house.add_device("idle").await;
    let busy = house.add_device("busy").await;
    house.followed().await;
    let standby = Standby::of(&house.db, &wire).await;
    house.followed().await;
    let mut idle = Device::prove(&house, &idle).await;
    let mut busy = Device::prove(&house, &busy).await;
    for device in [&mut idle, &mut busy] {
        let seq = device.publish("m1", json!(1)).await;
        device.acked(seq).await;
    }
    house.followed().await;

    wire.cut();
    // Waits for the store, and is the first that the standby hears of.
    busy.publish("m2", json!(2)).await;
    standby.takes_over(&house.db, &wire, "DELETE FROM gateways").await;
    eventually("the gap", async || log().contains("the registry's feed of changes has a gap")).await;
    house.followed().await;
    assert_eq!(house.db.number("SELECT count(*) FROM gateways WHERE signed_off IS NULL").await, 1);
    let seq = idle.publish("m2", json!(2)).await;
    idle.acked(seq).await;
    // Stored, or ended so that it comes back soon: never left without an answer, never taken for a clone.
    let mut answers = Vec::new();
    loop {
        match busy.next().await {
            Heard::Message(m) if m["op"] == "ack" => break,
            Heard::Message(m) => answers.push(m),
            Heard::Closed(code) => {
                assert_eq!(code, Some(1001), "{answers:?}");
                assert!(answers.last().unwrap()["retry_after"].as_u64().unwrap() <= 10, "{answers:?}");
                busy = Device::prove(&house, &busy.credentials).await;
                busy.publish("m2", json!(2)).await;
            }
        }
    }
    assert_eq!(house.stored_as("m2").await, 2);
}

/// A restart remembers by what it would know.
#[tokio::test]
async fn a_gateway_that_was_down_meanwhile_notices_too() {
    let (mut house, wire) = wire::house(|_| {}).await;
    house.followed().await;
    let standby = Standby::of(&house.db, &wire).await;
    house.followed().await;
    // What it keeps of the registry is from after the copy.
    let last = house.db.number("SELECT max(id) FROM changes").await;
    let device = house.add_device("unheard-of").await;
    Device::prove(&house, &device).await;
    let kept = sqlx::SqlitePool::connect(&format!("sqlite://{}", house.copy().display())).await.unwrap();
    eventually("a position that is kept", async || {
        let position = sqlx::query_scalar("SELECT coalesce(position ->> 2, 0) FROM known");
        position.fetch_one(&kept).await.is_ok_and(|id: i64| id > last)
    })
    .await;
    kept.close().await;
    house.shut_down();
    house.ended().await;
    assert!(!log().contains("has a gap"));
    standby.takes_over(&house.db, &wire, GONE_ON).await;
    house.reopen().await;
    eventually("its notice", async || log().contains("the registry's feed of changes has a gap")).await;
    assert_eq!(problem_of(&refused(&house, &device).await), "certificate-unknown");
}
