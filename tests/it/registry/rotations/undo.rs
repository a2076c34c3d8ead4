//! What can be taken back.

use super::*;

contract! {
    what_a_session_may_have_brought_is_never_taken_back,
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
