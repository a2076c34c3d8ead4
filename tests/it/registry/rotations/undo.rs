//! What can be taken back.

use super::*;

contract! {
    what_a_session_may_have_brought_is_never_taken_back,
    what_a_bundle_has_carried_is_never_taken_back,
    what_a_newer_rotation_relies_on_is_not_taken_back,
    resumed_a_device_has_its_sessions_once_more,
    resumed_a_device_whose_key_was_retired_is_asked_with_another,
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

async fn what_a_bundle_has_carried_is_never_taken_back(db: Database) {
    add(&db.registry, &["a", "b"]).await;
    let id = asked(&db, PATIENT).await;
    let second = KeyVersion::from_number(2).unwrap();
    rotations(&db).hand_out(&device("a"), second).await.unwrap();
    rotations(&db).undo(id).await.unwrap();
    assert_eq!(rotations(&db).withdraw(id, 100).await.unwrap().0, [device("b")]);
    assert_eq!(members(&db, id).await, ["a asked", "b withdrawn"]);
    confirm(&db, "a", 2).await;
    // Taken back first: then there is no bundle with it.
    let refused = rotations(&db).hand_out(&device("b"), second).await;
    assert!(matches!(refused, Err(RegistryError::Refused(_))), "{refused:?}");
}

async fn what_a_newer_rotation_relies_on_is_not_taken_back(db: Database) {
    add(&db.registry, &["a", "b"]).await;
    let older = asked(&db, PATIENT).await;
    assert!(rotations(&db).finish(older, "d1").await.unwrap());
    let newer = asked(&db, PATIENT).await;
    rotations(&db).undo(older).await.unwrap();
    assert_eq!(rotations(&db).withdraw(older, 100).await.unwrap().0, []);
    assert_eq!((keys_in(&db, "pending").await, members(&db, newer).await.len()), (2, 2));
    confirm(&db, "a", 2).await;
    assert_eq!(members(&db, newer).await, ["a proven", "b asked"]);
    // Nobody relies on it any more.
    rotations(&db).undo(newer).await.unwrap();
    assert_eq!(rotations(&db).withdraw(older, 100).await.unwrap().0, [device("b")]);
}

async fn resumed_a_device_has_its_sessions_once_more(db: Database) {
    add(&db.registry, &["a"]).await;
    let id = asked(&db, PATIENT).await;
    let ago = stamp(clock::utc() - 2 * PATIENT);
    let long_ago = async || {
        db.execute(&format!("UPDATE rotation_devices SET asked = '{ago}'")).await.unwrap();
    };
    long_ago().await;
    for n in 1..=MANY_SESSIONS {
        session(&db, "a", &format!("s{n}")).await;
    }
    assert_eq!(progress(&db, id).await.counts.failed, 1);
    rotations(&db).stop(id, "x").await.unwrap();
    rotations(&db).resume(id, None).await.unwrap();
    rotations(&db).take(id, "d1", SILENT).await.unwrap();
    long_ago().await;
    let now = progress(&db, id).await;
    assert_eq!((now.counts.failed, now.undecided), (0, 1));
    // What its sessions may have brought before stays with it.
    gone(&db, "a").await;
    rotations(&db).undo(id).await.unwrap();
    assert_eq!(rotations(&db).withdraw(id, 100).await.unwrap().0, []);
}

async fn resumed_a_device_whose_key_was_retired_is_asked_with_another(db: Database) {
    add(&db.registry, &["a"]).await;
    let id = asked(&db, PATIENT).await;
    db.execute("UPDATE hmac_keys SET state = 'retired' WHERE state = 'pending'").await.unwrap();
    progress(&db, id).await;
    assert_eq!(members(&db, id).await, ["a failed its new key was retired"]);
    rotations(&db).stop(id, "x").await.unwrap();
    rotations(&db).resume(id, None).await.unwrap();
    assert_eq!(members(&db, id).await, ["a waiting"]);
    rotations(&db).take(id, "d1", SILENT).await.unwrap();
    ask(&db, id, 1).await;
    confirm(&db, "a", 3).await;
    assert_eq!(members(&db, id).await, ["a proven"]);
}
