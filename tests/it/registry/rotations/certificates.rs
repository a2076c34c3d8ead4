//! Rotations of certificates.

use super::*;

contract! {
    a_proven_session_by_a_renewed_certificate_proves_a_device,
    a_certificate_that_was_replaced_by_hand_is_no_proof,
    undone_nobody_is_asked_for_a_certificate_any_more,
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
