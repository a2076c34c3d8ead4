//! Who is proven, who has failed, and who is left out.

use super::*;

contract! {
    a_signed_message_alone_proves_a_device,
    a_device_that_is_connected_for_long_enough_has_failed,
    one_that_is_not_connected_neither_fails_nor_holds_up,
    one_that_comes_again_and_again_and_never_proves_it_has_failed,
    one_that_goes_away_with_what_it_was_given_is_waited_for_and_fails,
    canaries_that_were_left_out_are_none,
    who_may_not_connect_is_left_out,
    a_key_that_was_pending_already_is_this_ones,
    a_key_that_was_replaced_by_hand_is_no_failure,
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
    // Its gateway was killed: the row says that it is connected, and nobody has heard it since.
    let long_ago = clock::utc() - Duration::from_secs(600);
    let ago = stamp(long_ago);
    db.execute(&format!("UPDATE presence SET since = '{ago}', last_seen = '{ago}' WHERE device = 'c'"))
        .await
        .unwrap();
    let id = asked(&db, Duration::ZERO).await;
    let now = progress(&db, id).await;
    assert_eq!((now.counts.asked, now.counts.failed, now.undecided, now.next), (3, 0, 0, None));
}

async fn one_that_comes_again_and_again_and_never_proves_it_has_failed(db: Database) {
    add(&db.registry, &["a", "b"]).await;
    let id = asked(&db, PATIENT).await;
    let ago = stamp(clock::utc() - 2 * PATIENT);
    db.execute(&format!("UPDATE rotation_devices SET asked = '{ago}'")).await.unwrap();
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

async fn one_that_goes_away_with_what_it_was_given_is_waited_for_and_fails(db: Database) {
    add(&db.registry, &["a", "b", "c", "d"]).await;
    session(&db, "a", "s1").await;
    session(&db, "d", "s1").await;
    let id = asked(&db, PATIENT).await;
    // One breaks at once; one comes later, and is gone before anybody has looked; one is as it was; one shows it.
    gone(&db, "a").await;
    session(&db, "b", "s1").await;
    gone(&db, "b").await;
    confirm(&db, "d", 2).await;
    let now = progress(&db, id).await;
    assert_eq!((now.counts.asked, now.counts.failed, now.undecided), (3, 0, 2));
    let ago = stamp(clock::utc() - 2 * PATIENT);
    db.execute(&format!("UPDATE rotation_devices SET came = '{ago}' WHERE came IS NOT NULL")).await.unwrap();
    let now = progress(&db, id).await;
    assert_eq!((now.counts.asked, now.counts.failed, now.undecided), (1, 2, 0));
    let why = "it has gone away, and has not shown it";
    let expected =
        [format!("a failed {why}"), format!("b failed {why}"), "c asked".into(), "d proven".into()];
    assert_eq!(members(&db, id).await, expected);
    // Asked once more, it is waited for once more, although it has not come again.
    rotations(&db).stop(id, "x").await.unwrap();
    rotations(&db).resume(id, None).await.unwrap();
    rotations(&db).take(id, "d1", SILENT).await.unwrap();
    assert_eq!(progress(&db, id).await.undecided, 2);
}

async fn canaries_that_were_left_out_are_none(db: Database) {
    add(&db.registry, &["a", "b"]).await;
    let id = begun(&db, "1", "1", PATIENT).await;
    ask(&db, id, 0).await;
    assert_eq!(progress(&db, id).await.canaries, 1);
    let first = MemberFilter { states: vec![MemberState::Asked], after: None, limit: 1 };
    let canary = rotations(&db).members(id, &first).await.unwrap().remove(0).device;
    db.registry.set_status(&canary, Act::Revoke, Some("x")).await.unwrap();
    let now = progress(&db, id).await;
    assert_eq!((now.canaries, now.next.map(|(wave, _)| wave)), (0, Some(1)));
    ask(&db, id, 1).await;
    assert_eq!((progress(&db, id).await.canaries, progress(&db, id).await.canaries_proven), (1, 0));
    confirm(&db, if canary == device("a") { "b" } else { "a" }, 2).await;
    assert_eq!(progress(&db, id).await.canaries_proven, 1);
}
