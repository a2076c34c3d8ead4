//! Rotations of fleets: who is asked, what counts as proof and as failure, who drives, and what can be taken back.

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
use crate::support::database::Database;
use crate::support::house::stamp;

contract! {
    waves_are_filled_with_connected_devices_first,
    a_signed_message_alone_proves_a_device,
    a_device_that_is_connected_for_long_enough_has_failed,
    one_that_is_not_connected_neither_fails_nor_holds_up,
    one_that_comes_again_and_again_and_never_proves_it_has_failed,
    who_may_not_connect_is_left_out,
    a_key_that_was_pending_already_is_this_ones,
    a_key_that_was_replaced_by_hand_is_no_failure,
    nobody_is_asked_twice,
    one_drives_at_a_time,
    a_lost_driver_changes_nothing,
    one_of_a_kind_is_open_a_fleet,
    stopped_it_can_be_resumed_and_ended_it_cannot,
    what_a_session_may_have_brought_is_never_taken_back,
    acts_are_in_the_audit,
    plain_sql_stops_one_and_rewrites_none,
    a_proven_session_by_a_renewed_certificate_proves_a_device,
    a_certificate_that_was_replaced_by_hand_is_no_proof,
    undone_nobody_is_asked_for_a_certificate_any_more,
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

async fn a_signed_message_alone_proves_a_device(db: Database) {
    add(&db.registry, &["a", "b"]).await;
    session(&db, "a", "s1").await;
    let id = begun(&db, "1", "1", PATIENT).await;
    ask(&db, id, 0).await;
    assert_eq!((keys_in(&db, "pending").await, keys_in(&db, "active").await), (1, 2));
    let now = progress(&db, id).await;
    assert_eq!((now.counts.asked, now.undecided, now.canaries, now.canaries_proven), (1, 1, 1, 0));
    assert_eq!(now.next, Some((1, false)));
    confirm(&db, "a", 2).await;
    let now = progress(&db, id).await;
    assert_eq!((now.counts.proven, now.undecided, now.canaries_proven), (1, 0, 1));
    ask(&db, id, 1).await;
    assert!(rotations(&db).finish(id, "d1").await.unwrap());
    assert_eq!(found(&db, id).await.state, RotationState::Done);
    // It comes long after the end, and is proven all the same.
    confirm(&db, "b", 2).await;
    assert_eq!(members(&db, id).await, ["a proven", "b proven"]);
}

async fn a_device_that_is_connected_for_long_enough_has_failed(db: Database) {
    add(&db.registry, &["a", "b"]).await;
    session(&db, "a", "s1").await;
    let id = asked(&db, PATIENT).await;
    let now = progress(&db, id).await;
    assert_eq!((now.counts.asked, now.counts.failed, now.undecided), (2, 0, 1));
    rotations(&db).stop(id, "x").await.unwrap();
    rotations(&db).undo(id).await.unwrap();

    let id = asked(&db, Duration::ZERO).await;
    let now = progress(&db, id).await;
    assert_eq!((now.counts.asked, now.counts.failed, now.undecided), (1, 1, 0));
    assert_eq!(
        members(&db, id).await,
        ["a failed it was connected for long enough, and has not shown it", "b asked"]
    );
    // Late, but proven.
    confirm(&db, "a", 2).await;
    assert_eq!(members(&db, id).await, ["a proven", "b asked"]);
}

async fn one_that_is_not_connected_neither_fails_nor_holds_up(db: Database) {
    add(&db.registry, &["a", "b", "c"]).await;
    session(&db, "b", "s1").await;
    gone(&db, "b").await;
    session(&db, "c", "s1").await;
    let id = asked(&db, Duration::ZERO).await;
    // Its gateway was killed: the row says that it is connected, and nobody has heard it since.
    let long_ago = clock::utc() - Duration::from_secs(600);
    let ago = stamp(long_ago);
    db.execute(&format!("UPDATE presence SET since = '{ago}', last_seen = '{ago}' WHERE device = 'c'"))
        .await
        .unwrap();
    let now = progress(&db, id).await;
    assert_eq!((now.counts.asked, now.counts.failed, now.undecided, now.next), (3, 0, 0, None));
}

async fn one_that_comes_again_and_again_and_never_proves_it_has_failed(db: Database) {
    add(&db.registry, &["a", "b"]).await;
    let id = asked(&db, Duration::from_millis(1)).await;
    for n in 1..=MANY_SESSIONS {
        assert_eq!(progress(&db, id).await.counts.failed, 0);
        session(&db, "a", &format!("s{n}")).await;
        gone(&db, "a").await;
    }
    assert_eq!(progress(&db, id).await.counts.failed, 1);
    assert_eq!(members(&db, id).await[0], "a failed it had 5 sessions, and has shown it in none");
}

async fn who_may_not_connect_is_left_out(db: Database) {
    add(&db.registry, &["a", "b", "c"]).await;
    let id = begun(&db, "0", "100%", PATIENT).await;
    db.registry.set_status(&device("a"), Act::Suspend, Some("x")).await.unwrap();
    ask(&db, id, 1).await;
    db.registry.set_status(&device("b"), Act::Revoke, Some("x")).await.unwrap();
    db.registry.set_status(&device("c"), Act::Suspend, Some("x")).await.unwrap();
    progress(&db, id).await;
    // A suspended one that was asked gets it when it is resumed.
    assert_eq!(members(&db, id).await, ["a left_out suspended", "b left_out revoked", "c asked"]);
    assert_eq!(keys_in(&db, "pending").await, 2);
    for id in ["a", "b", "c"] {
        db.registry.set_status(&device(id), Act::Revoke, Some("x")).await.unwrap();
    }
    rotations(&db).undo(id).await.unwrap();
    let refused = rotations(&db).start(&plan("0", "1", PATIENT)).await;
    assert!(matches!(refused, Err(RegistryError::Refused(_))), "{refused:?}");
}

async fn a_key_that_was_pending_already_is_this_ones(db: Database) {
    add(&db.registry, &["a", "b"]).await;
    db.registry.add_key(&device("a"), &key(2)).await.unwrap();
    let id = begun(&db, "0", "100%", PATIENT).await;
    let candidates = rotations(&db).candidates(id, 1, 100).await.unwrap();
    let seen: Vec<_> = candidates.iter().map(|c| (c.device.as_str(), c.newest, c.pending)).collect();
    assert_eq!(seen, [("a", 2, true), ("b", 1, false)]);
    assert_eq!(candidates[1].sealed.as_ref().unwrap().1, [7, 0, 255]);
    // Between the look and the asking somebody rotates b by hand, too.
    let keys: Vec<_> = candidates.into_iter().map(|c| (c.device, Some(key(2)))).collect();
    db.registry.add_key(&device("b"), &key(2)).await.unwrap();
    assert!(rotations(&db).ask_for_keys(id, "d1", &keys).await.unwrap());
    assert_eq!(members(&db, id).await, ["a asked", "b asked"]);
    assert_eq!(keys_in(&db, "pending").await, 2);
    confirm(&db, "a", 2).await;
    // Whoever made it may have handed it out: it is not taken back.
    rotations(&db).undo(id).await.unwrap();
    assert_eq!(rotations(&db).withdraw(id, 100).await.unwrap().0, []);
    assert_eq!(members(&db, id).await, ["a proven", "b asked"]);
}

async fn a_key_that_was_replaced_by_hand_is_no_failure(db: Database) {
    add(&db.registry, &["a", "b", "c"]).await;
    let id = asked(&db, PATIENT).await;
    let leaked = NewKey { grace: Duration::ZERO, ..key(3) };
    db.registry.add_key(&device("a"), &leaked).await.unwrap();
    db.execute("UPDATE hmac_keys SET state = 'retired' WHERE device = 'b' AND version = 2").await.unwrap();
    progress(&db, id).await;
    assert_eq!(
        members(&db, id).await,
        ["a left_out its key was replaced by hand", "b failed its new key was retired", "c asked"]
    );
    // A version that came between the look and the asking is not written over: the device waits for the next look.
    rotations(&db).undo(id).await.unwrap();
    let id = begun(&db, "0", "100%", PATIENT).await;
    let stale = [(device("a"), Some(key(3))), (device("b"), Some(key(3)))];
    assert!(rotations(&db).ask_for_keys(id, "d1", &stale).await.unwrap());
    assert_eq!(members(&db, id).await, ["a waiting", "b asked", "c waiting"]);
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

async fn what_a_session_may_have_brought_is_never_taken_back(db: Database) {
    add(&db.registry, &["away", "here", "late", "new", "once", "proven"]).await;
    session(&db, "here", "s1").await;
    session(&db, "once", "s1").await;
    gone(&db, "once").await;
    let id = asked(&db, PATIENT).await;
    // One came and left, one is here for the first time, one has shown it.
    session(&db, "once", "s2").await;
    gone(&db, "once").await;
    session(&db, "new", "s1").await;
    gone(&db, "here").await;
    confirm(&db, "proven", 2).await;
    assert_eq!(rotations(&db).withdraw(id, 100).await.unwrap().0, [], "it is not undone");
    assert_eq!(rotations(&db).undo(id).await.unwrap(), Done::Changed);
    let mut taken = Vec::new();
    loop {
        let (devices, _) = rotations(&db).withdraw(id, 1).await.unwrap();
        if devices.is_empty() {
            break;
        }
        taken.extend(devices);
    }
    assert_eq!(taken, [device("away"), device("late")]);
    assert_eq!(
        members(&db, id).await,
        ["away withdrawn", "here asked", "late withdrawn", "new asked", "once asked", "proven proven"]
    );
    assert_eq!((keys_in(&db, "retired").await, keys_in(&db, "pending").await), (2, 3));
    // What was handed out still proves itself.
    confirm(&db, "here", 2).await;
    // A session that was on its way when the key was taken back may have brought it: it is named. A later one is not.
    assert_eq!(rotations(&db).doubtful(id, 100).await.unwrap(), []);
    session(&db, "late", "s1").await;
    assert_eq!(rotations(&db).doubtful(id, 100).await.unwrap(), [device("late")]);
    let later = stamp(clock::utc() + Duration::from_secs(60));
    db.execute(&format!("UPDATE presence SET since = '{later}' WHERE device = 'late'")).await.unwrap();
    assert_eq!(rotations(&db).doubtful(id, 100).await.unwrap(), []);
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

/// A rotation of certificates of which all devices were asked.
async fn asked_to_renew(db: &Database, devices: &[&str]) -> i64 {
    let new = NewRotation { what: Credential::Certificate, ..plan("0", "100%", PATIENT) };
    let id = rotations(db).start(&new).await.unwrap();
    rotations(db).take(id, "d1", SILENT).await.unwrap();
    let devices: Vec<_> = devices.iter().map(|id| device(id)).collect();
    assert!(rotations(db).ask_for_certificates(id, "d1", &devices, NOON).await.unwrap());
    id
}

/// A certificate `of` a device, renewed from the one that it was registered with.
async fn renew(db: &Database, id: &str, of: &str, grace: Duration) -> NewCertificate {
    let new = NewCertificate { not_before: NOON - Duration::from_secs(1), ..certificate_of(of) };
    let renewal = Renewal { from: Some(certificate_of(id).fingerprint), grace };
    db.registry.add_certificate(&device(id), &new, &renewal).await.unwrap();
    new
}

const ASKED: &str = "SELECT count(*) FROM certificates WHERE rotate_by IS NOT NULL";

async fn a_proven_session_by_a_renewed_certificate_proves_a_device(db: Database) {
    add(&db.registry, &["a", "b", "c", "d"]).await;
    // One has a new one already, and has not shown it: that one counts.
    let b2 = renew(&db, "b", "b2", Duration::from_secs(60)).await;
    db.registry.set_status(&device("c"), Act::Suspend, Some("x")).await.unwrap();
    db.execute("UPDATE certificates SET status = 'revoked', reason = 'x' WHERE device = 'd'").await.unwrap();
    let id = asked_to_renew(&db, &["a", "b", "c", "d"]).await;
    let due = ["a asked", "b asked", "c left_out suspended", "d left_out it has no active certificate"];
    assert_eq!(members(&db, id).await, due);
    let old = |id: &str| format!("{ASKED} AND fingerprint = '{}'", certificate_of(id).fingerprint);
    assert_eq!((db.number(ASKED).await, db.number(&old("a")).await, db.number(&old("b")).await), (2, 1, 1));
    let record = db.registry.look_up(&certificate_of("a").fingerprint).await.unwrap().unwrap();
    assert_eq!(record.certificate.rotate_by, Some(NOON));
    // That it has been issued proves nothing.
    let a2 = renew(&db, "a", "a2", Duration::from_secs(60)).await;
    assert_eq!(progress(&db, id).await.counts.asked, 2);
    for (id, certificate) in [("a", &a2), ("b", &b2)] {
        let shown = [(device(id), Shown::Certificate(certificate.fingerprint))];
        assert_eq!(db.registry.confirm(&shown).await.unwrap(), [Ok(true)]);
    }
    assert_eq!(members(&db, id).await[..2], ["a proven", "b proven"]);
}

async fn a_certificate_that_was_replaced_by_hand_is_no_proof(db: Database) {
    add(&db.registry, &["a", "b"]).await;
    let id = asked_to_renew(&db, &["a", "b"]).await;
    renew(&db, "a", "a2", Duration::ZERO).await;
    db.registry.revoke_certificate(&certificate_of("b").fingerprint, "x", true).await.unwrap();
    progress(&db, id).await;
    assert_eq!(
        members(&db, id).await,
        ["a left_out its certificate was replaced by hand", "b left_out its certificate was revoked"]
    );
}

async fn undone_nobody_is_asked_for_a_certificate_any_more(db: Database) {
    add(&db.registry, &["a", "b", "c"]).await;
    session(&db, "a", "s1").await;
    let id = asked_to_renew(&db, &["a", "b", "c"]).await;
    let b2 = renew(&db, "b", "b2", Duration::from_secs(60)).await;
    rotations(&db).undo(id).await.unwrap();
    let taken = rotations(&db).withdraw(id, 100).await.unwrap().0;
    assert_eq!((taken.len(), db.number(ASKED).await), (3, 0));
    assert_eq!(rotations(&db).doubtful(id, 100).await.unwrap(), []);
    // Who has renewed meanwhile goes on with what he has been given.
    let shown = [(device("b"), Shown::Certificate(b2.fingerprint))];
    assert_eq!(db.registry.confirm(&shown).await.unwrap(), [Ok(true)]);
    assert_eq!(members(&db, id).await, ["a withdrawn", "b withdrawn", "c withdrawn"]);
}
