//! A gateway that reads its configuration again: what live sessions go by from then on, and what they are told.

use std::sync::Arc;
use std::time::Duration;

use doorward_proto::close::Close;
use doorward_proto::limits::{Limits, Rate};
use doorward_proto::session::Settings;
use doorward_proto::verdict::{Refusal, Verdict};

use super::support::{Scene, at, grant, settings};

#[test]
fn the_device_is_told_what_has_changed_and_goes_by_it() {
    let mut scene = Scene::proven(grant());
    let mut limits = grant().limits;
    scene.session.reconfigure(limits, settings(), at(1.0));
    assert_eq!(scene.said(), (vec![], None), "nothing has");
    limits.max_message_bytes = 1024;
    limits.rate = Rate { per_second: 1, burst: 1 };
    scene.session.reconfigure(limits, settings(), at(1.0));
    let (messages, close) = scene.said();
    assert_eq!((messages.len(), close), (1, None));
    assert_eq!((&messages[0]["op"], &messages[0]["max_message_bytes"]), (&"limits".into(), &1024.into()));
    assert_eq!(messages[0]["rate"], serde_json::json!({ "per_second": 1, "burst": 1 }));
    assert!(messages[0].get("heartbeat").is_none());
    for (seq, verdict) in [(2, Verdict::Accepted), (3, Verdict::Refused(Refusal::RateLimited))] {
        let frame = scene.frame(seq, 1.0, r#""op":"hello""#);
        assert_eq!(scene.session.receive(&frame, at(1.0)), verdict);
    }
    scene.session.receive(&"x".repeat(1025), at(1.0));
    assert_eq!(scene.session.closing(), Some(Close::TooBig));
}

#[test]
fn who_has_not_proven_itself_is_told_once_it_has() {
    let mut scene = Scene::open(grant());
    let mut limits = grant().limits;
    limits.max_skew = Duration::from_secs(90);
    scene.session.reconfigure(limits, settings(), at(1.0));
    assert_eq!(scene.said(), (vec![], None));
    let hello = scene.frame(1, 1.0, r#""op":"hello""#);
    scene.session.receive(&hello, at(1.0));
    assert_eq!(scene.said().0[0]["max_skew"], 90);
}

#[test]
fn a_shorter_heartbeat_ends_nobody_for_a_silence_that_was_allowed() {
    let mut scene = Scene::proven(grant());
    let mut limits = grant().limits;
    limits.heartbeat = Duration::from_secs(2);
    // Pinged at 30 s, and not silent for as long as the old heartbeat allows.
    scene.session.tick(at(30.0));
    scene.session.reconfigure(limits, settings(), at(40.0));
    assert_eq!(scene.session.closing(), None);
    scene.session.tick(at(44.9));
    assert_eq!(scene.session.closing(), None);
    scene.session.tick(at(45.0));
    assert_eq!(scene.session.closing(), Some(Close::Silent));
}

#[test]
fn strikes_and_the_time_to_prove_are_the_new_ones() {
    let strict = |edit: fn(&mut Settings)| {
        let mut settings = Settings::new("gateway-1".into());
        edit(&mut settings);
        Arc::new(settings)
    };
    let mut scene = Scene::proven(grant());
    scene.session.receive("rubbish", at(0.0));
    let limits = Limits { strikes: 2, ..grant().limits };
    scene.session.reconfigure(limits, settings(), at(1.0));
    scene.session.receive("rubbish", at(1.0));
    assert_eq!(scene.session.closing(), Some(Close::Strikes));

    let mut scene = Scene::open(grant());
    let hasty = strict(|settings| settings.proof_within = Duration::from_secs(5));
    scene.session.reconfigure(grant().limits, Arc::clone(&hasty), at(4.9));
    assert_eq!(scene.session.closing(), None);
    scene.session.reconfigure(grant().limits, hasty, at(5.0));
    assert_eq!(scene.session.closing(), Some(Close::Unproven));
}
