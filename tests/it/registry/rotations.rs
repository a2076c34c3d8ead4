//! Rotations of fleets: who is asked, who drives, and what a person does to them.

mod certificates;
mod proof;
mod undo;

use std::time::Duration;

use doorward::clock;
use doorward::registry::renewals::Shown;
use doorward::registry::{
    Act, AuditFilter, Batch, Beat, Counts, Credential, Done, Lease, MANY_SESSIONS, MemberFilter, MemberState,
    NewCertificate, NewKey, NewRotation, Progress, RegistryError, Renewal, Rotation, RotationState,
    Rotations,
};
use doorward_proto::ids::KeyVersion;
use serde_json::Value;
use time::OffsetDateTime;

use super::{NOON, add, certificate_of, claim, contract, device, fleet, new_device};
use crate::support::database::{Database, Sql};
use crate::support::house::stamp;

contract! {
    waves_are_filled_with_connected_devices_first,
    nobody_is_asked_twice,
    one_drives_at_a_time,
    a_lost_driver_changes_nothing,
    one_of_a_kind_is_open_a_fleet,
    stopped_it_can_be_resumed_and_ended_it_cannot,
    acts_are_in_the_audit,
    plain_sql_stops_one_and_rewrites_none,
}

/// More than a session's last note may be old, so that notes do not matter.
const SEEN_EVERY: Duration = Duration::from_secs(30);
const SILENT: Duration = Duration::from_secs(3600);
const PATIENT: Duration = Duration::from_secs(3600);

fn plan(canary: &str, wave: &str, patience: Duration) -> NewRotation {
    NewRotation {
        what: Credential::Key,
        fleet: fleet("default"),
        canary: canary.parse().unwrap(),
        wave: wave.parse().unwrap(),
        max_failures: 1,
        patience,
        grace: Duration::from_secs(60),
    }
}

fn rotations(db: &Database) -> &dyn Rotations {
    db.registry.rotations()
}

/// Begun, and driven by `d1`.
async fn begun(db: &Database, canary: &str, wave: &str, patience: Duration) -> i64 {
    let id = rotations(db).start(&plan(canary, wave, patience)).await.unwrap();
    assert_eq!(rotations(db).take(id, "d1", SILENT).await.unwrap(), Lease::Taken);
    id
}

/// All devices of the fleet, asked.
async fn asked(db: &Database, patience: Duration) -> i64 {
    let id = begun(db, "0", "100%", patience).await;
    ask(db, id, 1).await;
    id
}

fn key(version: u32) -> NewKey {
    let version = KeyVersion::from_number(version).unwrap();
    NewKey { version, sealed: vec![9, 9], grace: Duration::from_secs(60) }
}

async fn ask(db: &Database, id: i64, wave: u32) {
    let candidates = rotations(db).candidates(id, wave, 100).await.unwrap();
    let keys: Vec<_> = candidates
        .into_iter()
        .map(|c| (c.device, if c.pending { None } else { Some(key(c.newest + 1)) }))
        .collect();
    assert!(rotations(db).ask_for_keys(id, "d1", &keys).await.unwrap());
}

async fn progress(db: &Database, id: i64) -> Progress {
    match rotations(db).beat(id, "d1", SEEN_EVERY).await.unwrap() {
        Beat::Running(progress) => progress,
        other => panic!("{other:?}"),
    }
}

async fn found(db: &Database, id: i64) -> Rotation {
    rotations(db).find(id).await.unwrap().unwrap()
}

/// `id state reason` of all devices, in the order of ids.
async fn members(db: &Database, id: i64) -> Vec<String> {
    use MemberState::{Asked, Failed, LeftOut, Proven, Waiting, Withdrawn};
    let states = vec![Waiting, Asked, Proven, Failed, LeftOut, Withdrawn];
    let members = rotations(db).members(id, &MemberFilter { states, after: None, limit: 100 }).await.unwrap();
    let words = members.iter().map(|m| {
        let words = format!("{} {} {}", m.device, m.state.as_str(), m.reason.as_deref().unwrap_or_default());
        words.trim_end().to_owned()
    });
    words.collect()
}

/// A new session of a device, proven now.
async fn session(db: &Database, id: &str, session: &str) {
    let claim = doorward::registry::Claim { at: clock::utc(), ..claim(id, session) };
    db.registry.write(&Batch { claims: vec![claim], ..Batch::default() }).await.unwrap();
}

async fn gone(db: &Database, id: &str) {
    db.execute(&format!("UPDATE presence SET session = NULL WHERE device = '{id}'")).await.unwrap();
}

async fn confirm(db: &Database, id: &str, version: u32) {
    let version = KeyVersion::from_number(version).unwrap();
    let shown = [(device(id), Shown::Key(version))];
    assert_eq!(db.registry.confirm(&shown).await.unwrap(), [Ok(true)]);
}

async fn keys_in(db: &Database, state: &str) -> i64 {
    db.number(&format!("SELECT count(*) FROM hmac_keys WHERE state = '{state}'")).await
}

async fn waves_are_filled_with_connected_devices_first(db: Database) {
    add(&db.registry, &["a", "b", "c", "d", "e", "f", "g", "h", "r", "s"]).await;
    for id in ["f", "h"] {
        session(&db, id, "s1").await;
    }
    db.registry.set_status(&device("r"), Act::Revoke, Some("x")).await.unwrap();
    db.registry.set_status(&device("s"), Act::Suspend, Some("x")).await.unwrap();
    let id = begun(&db, "20%", "50%", PATIENT).await;
    let waiting = MemberFilter { states: vec![MemberState::Waiting], after: None, limit: 100 };
    let members = rotations(&db).members(id, &waiting).await.unwrap();
    let in_wave =
        |wave| members.iter().filter(|m| m.wave == wave).map(|m| m.device.to_string()).collect::<Vec<_>>();
    // 20 % of eight are two, rounded up; half of the other six are three.
    assert_eq!(in_wave(0), ["f", "h"]);
    assert_eq!((in_wave(1).len(), in_wave(2).len(), in_wave(3).len()), (3, 3, 0));
    let rotation = found(&db, id).await;
    assert_eq!(rotation.counts, Counts { waiting: 8, left_out: 2, ..Counts::default() });
    assert_eq!((rotation.state, rotation.plan), (RotationState::Running, plan("20%", "50%", PATIENT)));
    assert_eq!(progress(&db, id).await.next, Some((0, false)));
    let page = MemberFilter { states: vec![MemberState::LeftOut], after: Some(device("r")), limit: 100 };
    let rest = rotations(&db).members(id, &page).await.unwrap();
    assert_eq!(rest.iter().map(|m| m.reason.as_deref()).collect::<Vec<_>>(), [Some("suspended")]);
    // Who comes later is no part of it.
    db.registry.add_devices(&[new_device("late")]).await.unwrap();
    assert_eq!(found(&db, id).await.counts.all(), 10);
}

async fn nobody_is_asked_twice(db: Database) {
    add(&db.registry, &["a", "b", "c", "d", "e"]).await;
    let id = begun(&db, "0", "100%", PATIENT).await;
    // Killed after the first of two batches.
    let candidates = rotations(&db).candidates(id, 1, 2).await.unwrap();
    let keys: Vec<_> = candidates.into_iter().map(|c| (c.device, Some(key(c.newest + 1)))).collect();
    for _ in 0..2 {
        assert!(rotations(&db).ask_for_keys(id, "d1", &keys).await.unwrap());
    }
    assert_eq!(progress(&db, id).await.next, Some((1, true)));
    ask(&db, id, 1).await;
    assert_eq!(rotations(&db).candidates(id, 1, 100).await.unwrap().len(), 0);
    assert_eq!((keys_in(&db, "pending").await, progress(&db, id).await.counts.asked), (5, 5));
    assert_eq!(db.number("SELECT count(*) FROM hmac_keys WHERE version > 2").await, 0);
}

async fn one_drives_at_a_time(db: Database) {
    add(&db.registry, &["a"]).await;
    let id = begun(&db, "0", "1", PATIENT).await;
    let Lease::Held(at) = rotations(&db).take(id, "d2", SILENT).await.unwrap() else { panic!() };
    assert!((clock::utc() - at).abs() < Duration::from_secs(60));
    assert_eq!(rotations(&db).take(id, "d1", SILENT).await.unwrap(), Lease::Taken);
    rotations(&db).release(id, "d2").await.unwrap();
    assert!(
        matches!(rotations(&db).take(id, "d2", SILENT).await.unwrap(), Lease::Held(_)),
        "not his to give"
    );
    rotations(&db).release(id, "d1").await.unwrap();
    assert_eq!(found(&db, id).await.heartbeat, None::<OffsetDateTime>);
    assert_eq!(rotations(&db).take(id, "d2", SILENT).await.unwrap(), Lease::Taken);
    // One that has been silent for long enough is gone.
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(rotations(&db).take(id, "d1", Duration::from_millis(1)).await.unwrap(), Lease::Taken);
    // Its clock was set back: what it has said last lies ahead. Who has watched it, takes it; nobody who has seen another word.
    let ahead = clock::utc() + 2 * SILENT;
    db.execute(&format!("UPDATE rotations SET heartbeat = '{}'", stamp(ahead))).await.unwrap();
    let Lease::Held(heard) = rotations(&db).take(id, "d2", SILENT).await.unwrap() else { panic!() };
    let stale = heard - Duration::from_secs(1);
    assert_eq!(rotations(&db).take_over(id, "d2", stale).await.unwrap(), Lease::Held(heard));
    assert_eq!(rotations(&db).take_over(id, "d2", heard).await.unwrap(), Lease::Taken);
    rotations(&db).stop(id, "x").await.unwrap();
    assert_eq!(rotations(&db).take(id, "d1", SILENT).await.unwrap(), Lease::Ended);
}

async fn a_lost_driver_changes_nothing(db: Database) {
    add(&db.registry, &["a"]).await;
    let id = begun(&db, "0", "1", PATIENT).await;
    let keys = [(device("a"), Some(key(2)))];
    rotations(&db).release(id, "d1").await.unwrap();
    rotations(&db).take(id, "d2", SILENT).await.unwrap();
    assert_eq!(rotations(&db).beat(id, "d1", SEEN_EVERY).await.unwrap(), Beat::Lost);
    assert!(!rotations(&db).ask_for_keys(id, "d1", &keys).await.unwrap());
    assert!(!rotations(&db).finish(id, "d1").await.unwrap());
    rotations(&db).stop(id, "the hall is on fire").await.unwrap();
    assert_eq!(
        rotations(&db).beat(id, "d2", SEEN_EVERY).await.unwrap(),
        Beat::Ended(RotationState::Stopped, Some("the hall is on fire".to_owned()))
    );
    assert!(!rotations(&db).ask_for_keys(id, "d2", &keys).await.unwrap());
    assert_eq!((keys_in(&db, "pending").await, members(&db, id).await), (0, vec!["a waiting".to_owned()]));
}

async fn one_of_a_kind_is_open_a_fleet(db: Database) {
    add(&db.registry, &["a"]).await;
    db.registry.add_fleet(&fleet("other"), "{}").await.unwrap();
    let mut b = new_device("b");
    b.fleet = fleet("other");
    db.registry.add_devices(&[b]).await.unwrap();
    let new = plan("0", "1", PATIENT);
    let first = rotations(&db).start(&new).await.unwrap();
    let again = async || rotations(&db).start(&new).await;
    assert!(matches!(again().await, Err(RegistryError::Exists { kind: "rotation", .. })));
    let other = NewRotation { fleet: fleet("other"), ..new.clone() };
    let second = rotations(&db).start(&other).await.unwrap();
    // One that was stopped is for a person to decide about.
    rotations(&db).stop(first, "x").await.unwrap();
    assert!(matches!(again().await, Err(RegistryError::Exists { .. })));
    assert_eq!(rotations(&db).open(Credential::Key, &new.fleet).await.unwrap().unwrap().id, first);
    assert!(rotations(&db).open(Credential::Certificate, &new.fleet).await.unwrap().is_none());
    rotations(&db).undo(first).await.unwrap();
    let third = again().await.unwrap();
    let listed: Vec<i64> = rotations(&db).list(10).await.unwrap().iter().map(|r| r.id).collect();
    assert_eq!(listed, [third, second, first]);
    assert!(rotations(&db).find(999).await.unwrap().is_none());
}

async fn stopped_it_can_be_resumed_and_ended_it_cannot(db: Database) {
    add(&db.registry, &["a", "b"]).await;
    session(&db, "a", "s1").await;
    let id = begun(&db, "1", "1", Duration::ZERO).await;
    ask(&db, id, 0).await;
    assert_eq!(progress(&db, id).await.counts.failed, 1);
    assert_eq!(rotations(&db).stop(id, "x").await.unwrap(), Done::Changed);
    assert_eq!(rotations(&db).stop(id, "y").await.unwrap(), Done::Already);
    let stopped = found(&db, id).await;
    assert_eq!(
        (stopped.reason.as_deref(), stopped.ended.is_some(), stopped.heartbeat),
        (Some("x"), true, None)
    );
    // Who has failed has his time once more.
    assert_eq!(rotations(&db).resume(id, Some(7)).await.unwrap(), Done::Changed);
    let running = found(&db, id).await;
    assert_eq!((running.reason, running.ended, running.plan.max_failures), (None, None, 7));
    assert_eq!(members(&db, id).await, ["a asked", "b waiting"]);
    assert_eq!(rotations(&db).resume(id, None).await.unwrap(), Done::Already);
    assert_eq!(rotations(&db).resume(id, Some(8)).await.unwrap(), Done::Already);
    assert_eq!(found(&db, id).await.plan.max_failures, 8);
    rotations(&db).take(id, "d1", SILENT).await.unwrap();
    assert!(rotations(&db).finish(id, "d1").await.unwrap());
    for outcome in [rotations(&db).resume(id, None).await, rotations(&db).stop(id, "x").await] {
        assert!(matches!(outcome, Err(RegistryError::Refused(_))), "{outcome:?}");
    }
    assert_eq!(rotations(&db).undo(id).await.unwrap(), Done::Changed);
    assert_eq!(rotations(&db).undo(id).await.unwrap(), Done::Already);
    assert!(matches!(rotations(&db).resume(id, None).await, Err(RegistryError::Refused(_))));
    for outcome in [rotations(&db).resume(999, None).await, rotations(&db).undo(999).await] {
        assert!(matches!(outcome, Err(RegistryError::NotFound { kind: "rotation", .. })), "{outcome:?}");
    }
}

async fn acts_are_in_the_audit(db: Database) {
    add(&db.registry, &["a"]).await;
    let id = asked(&db, PATIENT).await;
    progress(&db, id).await;
    rotations(&db).stop(id, "a \"reason\"").await.unwrap();
    rotations(&db).resume(id, None).await.unwrap();
    rotations(&db).take(id, "d1", SILENT).await.unwrap();
    rotations(&db).finish(id, "d1").await.unwrap();
    rotations(&db).undo(id).await.unwrap();
    rotations(&db).withdraw(id, 10).await.unwrap();
    let rows = db.registry.audit(&AuditFilter { limit: 100, ..AuditFilter::default() }).await.unwrap();
    let acts: Vec<Value> = rows.iter().map(|row| serde_json::from_slice(&row.body).unwrap()).collect();
    let named: Vec<_> = acts.iter().map(|act| act["action"].as_str().unwrap()).collect();
    assert_eq!(
        named,
        [
            "device.add",
            "rotation.start",
            "key.add",
            "rotation.stop",
            "rotation.resume",
            "rotation.finish",
            "rotation.undo",
            "key.retire"
        ]
    );
    let stop = &acts[3];
    assert_eq!((&stop["subject"], &stop["reason"]), (&id.to_string().into(), &"a \"reason\"".into()));
    assert_eq!((&stop["before"]["state"], &stop["after"]["state"]), (&"running".into(), &"stopped".into()));
    assert_eq!((&acts[1]["after"]["fleet"], &acts[1]["after"]["what"]), (&"default".into(), &"key".into()));
    assert!(rows.iter().all(|row| row.hash.is_some()));
}

async fn plain_sql_stops_one_and_rewrites_none(db: Database) {
    add(&db.registry, &["a"]).await;
    let id = begun(&db, "0", "1", PATIENT).await;
    for sql in [
        "UPDATE rotations SET fleet = 'x'",
        "UPDATE rotations SET what = 'certificate'",
        "UPDATE rotations SET state = 'stopped'",
        "UPDATE rotation_devices SET state = 'asked'",
        "UPDATE rotation_devices SET state = 'proven'",
        "INSERT INTO rotations (what, fleet, canary, wave, max_failures, patience_ms, grace_seconds, started_by)
         VALUES ('key', 'default', '5%', '25%', 0, 0, 1, 'x')",
        "INSERT INTO rotations (what, fleet, canary, wave, max_failures, patience_ms, grace_seconds, started_by)
         VALUES ('key', 'default', 'some', '25%', 0, 0, 1, 'x')",
    ] {
        assert!(db.execute(sql).await.is_err(), "{sql}");
    }
    db.execute("UPDATE rotations SET state = 'stopped', reason = 'by hand'").await.unwrap();
    assert_eq!(
        rotations(&db).beat(id, "d1", SEEN_EVERY).await.unwrap(),
        Beat::Ended(RotationState::Stopped, Some("by hand".to_owned()))
    );
    db.execute("UPDATE rotations SET state = 'undone'").await.unwrap();
    assert!(db.execute("UPDATE rotations SET state = 'running'").await.is_err());
}

/// The one writer is the gateway's too.
#[tokio::test]
async fn on_sqlite_a_look_that_changes_nothing_waits_for_no_writer() {
    let db = Database::sqlite().await;
    add(&db.registry, &["a"]).await;
    let id = asked(&db, PATIENT).await;
    let ahead = stamp(clock::utc() + Duration::from_millis(900));
    db.execute(&format!("UPDATE rotations SET heartbeat = '{ahead}'")).await.unwrap();
    let Sql::Sqlite(pool) = &db.sql else { panic!() };
    let mut held = pool.acquire().await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut *held).await.unwrap();
    assert_eq!(progress(&db, id).await.counts.asked, 1);
    sqlx::query("ROLLBACK").execute(&mut *held).await.unwrap();
}
