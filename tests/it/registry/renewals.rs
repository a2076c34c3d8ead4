//! Requests for certificates: each is answered once, the same key again is the same request, and nothing that does not hold
//! any more brings anything.

use std::sync::Arc;
use std::time::Duration;

use doorward::registry::renewals::{Decision, NewRequest, Requested, Shown};
use doorward::registry::{Act, CertificateStatus, Change, NewCertificate, NewKey, Registry, Renewal};
use doorward_pki::Fingerprint;
use doorward_proto::ids::KeyVersion;

use super::{add, certificate_of, contract, device};
use crate::support::database::Database;

contract!(
    a_request_is_answered_once,
    the_same_key_again_is_the_same_request,
    another_key_takes_the_place_of_the_one_that_waits,
    a_refusal_is_told_by_the_feed_and_may_be_asked_anew,
    a_device_that_asks_too_often_is_told,
    what_does_not_hold_renews_nothing,
    what_has_changed_since_it_asked_counts,
    a_request_ends,
    one_that_was_never_shown_makes_room,
    many_at_once_are_answered_in_their_order,
    what_is_decided_is_audited,
    old_requests_are_swept_away,
    a_key_that_will_never_do_is_told_so_at_once,
    operators_see_the_newest_first,
    what_many_have_shown_is_confirmed_at_once_and_each_for_itself,
);

const GRACE: Duration = Duration::from_secs(3600);

fn ask_for(holder: &str, key: &str) -> NewRequest {
    NewRequest {
        certificate: certificate_of(holder).fingerprint,
        public_key: Fingerprint::of(key.as_bytes()).to_string(),
        csr: key.as_bytes().to_vec(),
        gateway: "gateway-1".into(),
    }
}

async fn ask(registry: &Arc<dyn Registry>, holder: &str, key: &str) -> Requested {
    registry.request_renewals(&[ask_for(holder, key)]).await.unwrap().remove(0)
}

async fn waits(registry: &Arc<dyn Registry>, holder: &str, key: &str) -> i64 {
    match ask(registry, holder, key).await {
        Requested::Waiting(id) => id,
        other => panic!("{other:?}"),
    }
}

/// A certificate whose fingerprint is right.
fn issue(name: &str) -> Decision {
    let fingerprint = Fingerprint::of(name.as_bytes());
    let certificate = NewCertificate { fingerprint, der: name.as_bytes().to_vec(), ..certificate_of(name) };
    Decision::Issue { certificate: Box::new(certificate), chain: "above".into(), grace: GRACE }
}

async fn decide(registry: &Arc<dyn Registry>, id: i64, decision: Decision) -> Option<String> {
    registry.decide_requests(&[(id, decision)]).await.unwrap().remove(0)
}

async fn a_request_is_answered_once(db: Database) {
    let registry = &db.registry;
    add(registry, &["a", "b"]).await;
    let id = waits(registry, "a", "key").await;
    let waiting = registry.waiting_requests(10).await.unwrap();
    let [request] = &waiting[..] else { panic!("{waiting:?}") };
    assert_eq!((request.id, &request.device, &*request.csr), (id, &device("a"), &b"key"[..]));
    assert_eq!(request.public_key, Fingerprint::of(b"key").to_string());
    assert_eq!((request.fleet.as_str(), &*request.limits, &*request.gateway), ("default", "{}", "gateway-1"));
    assert_eq!(request.renews, (CertificateStatus::Active, None, certificate_of("a").not_after));
    assert_eq!(request.certificates, [b"a".to_vec()]);
    assert_eq!(registry.requested(&[id, 999]).await.unwrap(), [(id, Requested::Waiting(id))].into());

    assert_eq!(decide(registry, id, issue("a2")).await, None);
    let not_after = certificate_of("a2").not_after;
    let issued = Requested::Issued { der: b"a2".to_vec(), chain: "above".to_owned(), not_after };
    assert_eq!(registry.requested(&[id]).await.unwrap()[&id], issued);
    assert!(registry.waiting_requests(10).await.unwrap().is_empty());
    // A second issuer comes too late, whatever it says.
    let late = decide(registry, id, issue("a3")).await.unwrap();
    assert!(late.contains("waits no longer"), "{late}");
    assert!(decide(registry, id, Decision::Refuse("no".to_owned())).await.is_some());
    assert_eq!(registry.requested(&[id]).await.unwrap()[&id], issued);

    // The new one stands beside the old one until a session by it is proven.
    let detail = registry.device(&device("a")).await.unwrap().unwrap();
    assert_eq!(detail.certificates.len(), 2);
    assert!(detail.certificates.iter().all(|one| one.status == CertificateStatus::Active));
    let shown = (device("a"), Shown::Certificate(Fingerprint::of(b"a2")));
    assert_eq!(registry.confirm(&[shown]).await.unwrap(), [Ok(true)]);
    let old = registry.look_up(&certificate_of("a").fingerprint).await.unwrap().unwrap().certificate;
    let left = old.valid_until.unwrap() - doorward::clock::utc();
    assert_eq!(old.status, CertificateStatus::Superseded);
    assert!((3500..=3601).contains(&left.whole_seconds()), "{left}");
}

async fn the_same_key_again_is_the_same_request(db: Database) {
    let registry = &db.registry;
    add(registry, &["a"]).await;
    let id = waits(registry, "a", "key").await;
    assert_eq!(waits(registry, "a", "key").await, id);
    decide(registry, id, issue("a2")).await;
    let Requested::Issued { der, .. } = ask(registry, "a", "key").await else { panic!("not issued") };
    assert_eq!(der, b"a2");
    // Also from a session by the new one, and never once that is worth nothing.
    let by_the_new = NewRequest { certificate: Fingerprint::of(b"a2"), ..ask_for("a", "key") };
    let again = registry.request_renewals(std::slice::from_ref(&by_the_new)).await.unwrap().remove(0);
    assert!(matches!(again, Requested::Issued { .. }), "{again:?}");
    registry.revoke_certificate(&Fingerprint::of(b"a2"), "lost", false).await.unwrap();
    let Requested::Spent(why) = ask(registry, "a", "key").await else { panic!("not refused") };
    assert!(why.contains("make a new key"), "{why}");
    assert!(matches!(ask(registry, "a", "another").await, Requested::Waiting(_)));
}

async fn another_key_takes_the_place_of_the_one_that_waits(db: Database) {
    let registry = &db.registry;
    add(registry, &["a"]).await;
    let first = waits(registry, "a", "first").await;
    let second = waits(registry, "a", "second").await;
    let waiting = registry.waiting_requests(10).await.unwrap();
    assert_eq!(waiting.iter().map(|request| request.id).collect::<Vec<_>>(), [second]);
    assert!(decide(registry, first, issue("a1")).await.is_some());
    assert!(matches!(registry.requested(&[first]).await.unwrap()[&first], Requested::Refused(_)));
    assert_eq!(decide(registry, second, issue("a2")).await, None);
}

async fn a_refusal_is_told_by_the_feed_and_may_be_asked_anew(db: Database) {
    let registry = &db.registry;
    add(registry, &["a"]).await;
    let id = waits(registry, "a", "key").await;
    let mut position = registry.position().await.unwrap();
    assert_eq!(decide(registry, id, Decision::Refuse("not today".to_owned())).await, None);
    let news = registry.read_changes(&mut position).await.unwrap();
    assert_eq!(news.changes, [Change::Device(device("a"))]);
    assert_eq!(registry.requested(&[id]).await.unwrap()[&id], Requested::Refused("not today".to_owned()));
    assert_eq!(waits(registry, "a", "key").await, id, "asked anew");
    assert_eq!(registry.waiting_requests(10).await.unwrap().len(), 1);
    let mut position = registry.position().await.unwrap();
    decide(registry, id, issue("a2")).await;
    let news = registry.read_changes(&mut position).await.unwrap();
    assert_eq!(news.changes, [Change::Device(device("a"))]);
}

async fn a_device_that_asks_too_often_is_told(db: Database) {
    let registry = &db.registry;
    add(registry, &["a", "b", "c"]).await;
    for n in 0..10 {
        let id = waits(registry, "a", &n.to_string()).await;
        assert_eq!(decide(registry, id, issue(&format!("a-{n}"))).await, None);
    }
    assert_eq!(ask(registry, "a", "10").await, Requested::Limited);
    let again = ask(registry, "a", "9").await;
    assert!(matches!(again, Requested::Issued { .. }), "the same key is no new request: {again:?}");
    // A refusal may be an operator's mistake, so many of them keep nobody out for a day; not any number of them.
    for _ in 0..100 {
        let id = waits(registry, "b", "1").await;
        decide(registry, id, Decision::Refuse("no".to_owned())).await;
    }
    assert_eq!(ask(registry, "b", "1").await, Requested::Limited);
    waits(registry, "c", "1").await;
}

async fn what_does_not_hold_renews_nothing(db: Database) {
    let registry = &db.registry;
    add(registry, &["a", "b", "c"]).await;
    registry.set_status(&device("a"), Act::Suspend, Some("x")).await.unwrap();
    registry.revoke_certificate(&certificate_of("b").fingerprint, "x", false).await.unwrap();
    let renewal = Renewal { from: Some(certificate_of("c").fingerprint), grace: Duration::ZERO };
    registry.add_certificate(&device("c"), &certificate_of("c2"), &renewal).await.unwrap();
    for (holder, why) in
        [("a", "suspended"), ("b", "revoked"), ("c", "past its grace"), ("nobody", "unknown")]
    {
        let answer = ask(registry, holder, "key").await;
        assert!(
            matches!(&answer, Requested::Refused(words) if words.contains("does not hold")),
            "{why}: {answer:?}"
        );
    }
    assert!(registry.waiting_requests(10).await.unwrap().is_empty());
}

async fn what_has_changed_since_it_asked_counts(db: Database) {
    let registry = &db.registry;
    add(registry, &["a", "b"]).await;
    let (a, b) = (waits(registry, "a", "key").await, waits(registry, "b", "key").await);
    registry.set_status(&device("a"), Act::Suspend, Some("x")).await.unwrap();
    registry.revoke_certificate(&certificate_of("b").fingerprint, "x", false).await.unwrap();
    let why = decide(registry, a, issue("a2")).await.unwrap();
    assert!(why.contains("not active"), "{why}");
    let why = decide(registry, b, issue("b2")).await.unwrap();
    assert!(why.contains("does not hold"), "{why}");
    assert_eq!(db.number("SELECT count(*) FROM certificates").await, 2);
}

async fn a_request_ends(db: Database) {
    let registry = &db.registry;
    add(registry, &["a"]).await;
    let id = waits(registry, "a", "key").await;
    db.execute("UPDATE requests SET expires = '2020-01-01T00:00:00.000Z'").await.unwrap();
    assert!(registry.waiting_requests(10).await.unwrap().is_empty());
    assert!(decide(registry, id, issue("a2")).await.is_some());
    assert_eq!(waits(registry, "a", "key").await, id, "asked anew, it waits anew");
    assert_eq!(decide(registry, id, issue("a2")).await, None);
}

async fn one_that_was_never_shown_makes_room(db: Database) {
    let registry = &db.registry;
    add(registry, &["a"]).await;
    for (key, name) in [("lost", "a2"), ("found", "a3")] {
        let id = waits(registry, "a", key).await;
        assert_eq!(decide(registry, id, issue(name)).await, None);
    }
    let status = async |name: &str| {
        let found = registry.look_up(&Fingerprint::of(name.as_bytes())).await.unwrap().unwrap();
        found.certificate.status
    };
    assert_eq!(status("a").await, CertificateStatus::Active, "what the device has holds");
    assert_eq!(status("a2").await, CertificateStatus::Superseded);
    assert_eq!(status("a3").await, CertificateStatus::Active);
}

async fn many_at_once_are_answered_in_their_order(db: Database) {
    let registry = &db.registry;
    add(registry, &["c", "a", "b"]).await;
    let requests = ["c", "nobody", "a", "b"].map(|holder| ask_for(holder, "key"));
    let answers = registry.request_renewals(&requests).await.unwrap();
    assert!(matches!(answers[1], Requested::Refused(_)), "{answers:?}");
    let waiting = registry.waiting_requests(10).await.unwrap();
    for (place, holder) in [(0, "c"), (2, "a"), (3, "b")] {
        let Requested::Waiting(id) = answers[place] else { panic!("{answers:?}") };
        assert_eq!(waiting.iter().find(|request| request.id == id).unwrap().device, device(holder));
    }
    assert_eq!(registry.waiting_requests(2).await.unwrap().len(), 2);
    let decisions: Vec<_> =
        waiting.iter().map(|request| (request.id, issue(&format!("{}2", request.device)))).collect();
    assert_eq!(registry.decide_requests(&decisions).await.unwrap(), [None, None, None]);
}

async fn what_is_decided_is_audited(db: Database) {
    let registry = &db.registry;
    add(registry, &["a"]).await;
    let before = registry.audit_head().await.unwrap().count;
    let id = waits(registry, "a", "key").await;
    assert_eq!(registry.audit_head().await.unwrap().count, before, "a device is no person");
    decide(registry, id, Decision::Refuse("not today".to_owned())).await;
    waits(registry, "a", "key").await;
    decide(registry, id, issue("a2")).await;
    for (act, words) in
        [("renewal.refuse", "not today"), ("renewal.issue", "gateway-1"), ("certificate.add", "serial")]
    {
        let sql =
            format!("SELECT count(*) FROM audit WHERE body LIKE '%\"{act}\"%{words}%' AND id > {before}");
        assert_eq!(db.number(&sql).await, 1, "{act}");
    }
}

async fn operators_see_the_newest_first(db: Database) {
    let registry = &db.registry;
    add(registry, &["a", "b"]).await;
    let first = waits(registry, "a", "1").await;
    let issued = waits(registry, "b", "2").await;
    let last = waits(registry, "a", "3").await;
    decide(registry, issued, issue("b2")).await;
    db.execute("UPDATE requests SET asked = '2026-01-01T00:00:00.000Z' WHERE device = 'b'").await.unwrap();
    let seen = async |id: Option<&str>, waiting, limit| {
        let id = id.map(device);
        let found = registry.requests(id.as_ref(), waiting, limit).await.unwrap();
        found.into_iter().map(|request| (request.id, request.state, request.issued)).collect::<Vec<_>>()
    };
    let (refused, waiting) = ((first, "refused".to_owned(), None), (last, "waiting".to_owned(), None));
    let brought = (issued, "issued".to_owned(), Some(certificate_of("b2").serial));
    assert_eq!(seen(None, false, 10).await, [waiting.clone(), refused.clone(), brought.clone()]);
    assert_eq!(seen(None, false, 1).await, std::slice::from_ref(&waiting));
    assert_eq!(seen(Some("a"), false, 10).await, [waiting.clone(), refused]);
    assert_eq!(seen(Some("b"), false, 10).await, [brought]);
    assert_eq!(seen(None, true, 10).await, [waiting]);
    db.execute("UPDATE requests SET expires = '2026-01-01T00:00:00.000Z' WHERE state = 'waiting'")
        .await
        .unwrap();
    assert!(seen(None, true, 10).await.is_empty());
    assert_eq!(seen(None, false, 1).await, [(last, "expired".to_owned(), None)]);
}

async fn a_key_that_will_never_do_is_told_so_at_once(db: Database) {
    let registry = &db.registry;
    add(registry, &["a"]).await;
    let id = waits(registry, "a", "used").await;
    decide(registry, id, Decision::RefuseKey("used before".to_owned())).await;
    let spent = Requested::Spent("used before".to_owned());
    assert_eq!(registry.requested(&[id]).await.unwrap()[&id], spent);
    for _ in 0..12 {
        assert_eq!(ask(registry, "a", "used").await, spent, "no try, and no work for an issuer");
    }
    assert!(registry.waiting_requests(10).await.unwrap().is_empty());
    waits(registry, "a", "another").await;
}

async fn old_requests_are_swept_away(db: Database) {
    let registry = &db.registry;
    add(registry, &["a", "b"]).await;
    let id = waits(registry, "a", "key").await;
    decide(registry, id, issue("a2")).await;
    waits(registry, "b", "key").await;
    db.execute("UPDATE requests SET asked = '2020-01-01T00:00:00.000Z'").await.unwrap();
    db.execute("UPDATE requests SET expires = '2020-01-02T00:00:00.000Z' WHERE state = 'issued'")
        .await
        .unwrap();
    let kept = async || {
        registry.prune_history(doorward::clock::utc(), 1000).await.unwrap();
        db.number("SELECT count(*) FROM requests").await
    };
    assert_eq!(kept().await, 2, "what waits waits, and what may bring the same chain again may");
    registry.revoke_certificate(&Fingerprint::of(b"a2"), "lost", false).await.unwrap();
    assert_eq!(kept().await, 1);
}

async fn what_many_have_shown_is_confirmed_at_once_and_each_for_itself(db: Database) {
    let registry = &db.registry;
    add(registry, &["a", "b", "c", "d"]).await;
    let version = KeyVersion::from_number(2).unwrap();
    let key = NewKey { version, sealed: vec![1], grace: GRACE };
    for id in ["a", "c", "d"] {
        registry.add_key(&device(id), &key).await.unwrap();
    }
    let renewal = Renewal { from: Some(certificate_of("a").fingerprint), grace: GRACE };
    registry.add_certificate(&device("a"), &certificate_of("a2"), &renewal).await.unwrap();
    registry.set_status(&device("c"), Act::Suspend, Some("x")).await.unwrap();
    let shown = [
        (device("d"), Shown::Key(version)),
        (device("a"), Shown::Key(version)),
        (device("b"), Shown::Key(version)),
        (device("c"), Shown::Key(version)),
        (device("a"), Shown::Certificate(certificate_of("a2").fingerprint)),
        (device("a"), Shown::Certificate(Fingerprint::of(b"unknown"))),
        (device("a"), Shown::Key(version)),
    ];
    let before = registry.audit_head().await.unwrap().count;
    let outcomes = registry.confirm(&shown).await.unwrap();
    let words: Vec<_> = outcomes.iter().map(|outcome| outcome.as_ref().map_err(|_| "no")).collect();
    assert_eq!(
        words,
        [Ok(&true), Ok(&true), Err("no"), Err("no"), Ok(&true), Err("no"), Ok(&false)],
        "{outcomes:?}"
    );
    assert_eq!(
        registry.audit_head().await.unwrap().count - before,
        5,
        "two keys, two that they follow, one certificate"
    );
    assert_eq!(registry.confirm(&[]).await.unwrap(), []);
    assert_eq!(registry.confirm(&shown[..2]).await.unwrap(), [Ok(false), Ok(false)]);
}
