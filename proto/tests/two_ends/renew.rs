//! A certificate on its way to the device: asked for in time, brought by the answer to `renew`, and what is left to one that
//! comes late.

use doorward_proto::channel::Filter;
use doorward_proto::close::Close;
use doorward_proto::ids::MessageId;
use doorward_proto::link::{Bounds, Event, Link, Outgoing};
use doorward_proto::session::{Grant, Output, Session};
use doorward_proto::uplink::CommandStatus;
use doorward_proto::verdict::{Refusal, Verdict};
use serde_json::json;

use super::support::{Scene, at, device, grant, keyring};

const RENEW: &str = r#""op":"renew","csr":"a request""#;

fn renewals(scene: &mut Scene) -> Vec<(u64, String)> {
    let of = |output| match output {
        Output::Renew { reference, csr } => Some((reference, csr.into_string())),
        _ => None,
    };
    scene.outputs().into_iter().filter_map(of).collect()
}

/// Asks from second 100 on; its certificate ends at 300.
fn asking() -> Grant {
    Grant { renew_from: Some(at(100.0).wall), certificate_expires: at(300.0).wall, ..grant() }
}

#[test]
fn a_request_is_handed_out_as_it_was_written_and_answered_once() {
    let mut scene = Scene::proven(grant());
    assert_eq!(scene.session.receive(&scene.frame(2, 0.0, RENEW), at(0.0)), Verdict::Accepted);
    assert_eq!(renewals(&mut scene), [(2, "a request".to_owned())]);
    scene.session.flush(at(0.0));
    assert_eq!(scene.ops(), (vec![], None), "no ack: the certificate is the answer");
    scene.session.certify(3, "another's", at(1.0).wall, at(1.0));
    assert_eq!(scene.ops(), (vec![], None), "nobody has asked with 3");
    scene.session.certify(2, "a chain", at(500.0).wall, at(1.0));
    scene.session.certify(2, "a chain", at(500.0).wall, at(1.0));
    let (said, _) = scene.said();
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(
        (&said[0]["op"], &said[0]["ref"], &said[0]["chain"]),
        (&json!("certificate"), &json!(2), &json!("a chain"))
    );
    assert_eq!(said[0]["expires"], json!(1_763_724_500));
}

#[test]
fn one_request_at_a_time_and_a_refusal_makes_room_for_the_next() {
    let mut scene = Scene::proven(grant());
    scene.session.receive(&scene.frame(2, 0.0, RENEW), at(0.0));
    let again = scene.session.receive(&scene.frame(3, 0.0, RENEW), at(0.0));
    assert_eq!(again, Verdict::Refused(Refusal::RateLimited));
    scene.outputs();
    scene.session.refuse_renewal(2, Refusal::Unavailable, "no issuer", Some(60), at(1.0));
    scene.session.refuse_renewal(2, Refusal::Unavailable, "no issuer", Some(60), at(1.0));
    let (said, _) = scene.said();
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!((&said[0]["ref"], &said[0]["retry_after"]), (&json!(2), &json!(60)));
    // Not before it was told to, in a row.
    let early = scene.session.receive(&scene.frame(4, 60.9, RENEW), at(60.9));
    assert_eq!(early, Verdict::Refused(Refusal::RateLimited));
    assert_eq!(scene.said().0[0]["retry_after"], json!(1));
    assert_eq!(scene.session.receive(&scene.frame(5, 61.0, RENEW), at(61.0)), Verdict::Accepted);
    scene.session.certify(5, "a chain", at(500.0).wall, at(61.0));
    let again = scene.session.receive(&scene.frame(6, 62.0, RENEW), at(62.0));
    assert_eq!(again, Verdict::Refused(Refusal::RateLimited));
    assert_eq!(scene.session.receive(&scene.frame(7, 66.0, RENEW), at(66.0)), Verdict::Accepted);
    // What cannot be read has cost a strike, and nothing else.
    scene.session.refuse_renewal(7, Refusal::BadMessage, "no request", None, at(66.0));
    assert_eq!(scene.session.receive(&scene.frame(8, 66.0, RENEW), at(66.0)), Verdict::Accepted);
}

#[test]
fn the_gateway_asks_when_it_is_time_and_once() {
    let mut scene = Scene::proven(asking());
    assert_eq!(scene.session.deadline(at(99.0)).as_secs(), 30, "the heartbeat is sooner");
    for second in 1..100 {
        scene.session.heard(at(f64::from(second)));
        scene.session.tick(at(f64::from(second)));
    }
    assert_eq!(scene.ops(), (vec![], None));
    assert!(scene.session.deadline(at(99.5)) <= at(100.0).monotonic);
    scene.session.heard(at(100.0));
    scene.session.tick(at(100.0));
    let (said, _) = scene.said();
    assert_eq!((said.len(), &said[0]["op"], &said[0]["what"]), (1, &json!("rotate"), &json!("certificate")));
    assert_eq!(said[0]["by"], json!(1_763_724_300));
    scene.session.tick(at(101.0));
    scene.session.update(asking(), at(102.0));
    assert_eq!(scene.ops(), (vec![], None), "it has been said in this session");
    // The operator is in more of a hurry.
    scene.session.update(Grant { grace_ends: Some(at(200.0).wall), ..asking() }, at(103.0));
    let (said, _) = scene.said();
    assert_eq!(said.last().map(|said| &said["by"]), Some(&json!(1_763_724_200)));
    // An operator's wish is said, too, and another one; one that is late already is for the end.
    let sooner = Grant { grace_ends: Some(at(200.0).wall), ..asking() };
    for (wish, by) in [(150.0, 150), (160.0, 160), (50.0, 200)] {
        scene.session.update(Grant { rotate_by: Some(at(wish).wall), ..sooner.clone() }, at(104.0));
        scene.session.update(Grant { rotate_by: Some(at(wish).wall), ..sooner.clone() }, at(105.0));
        let (said, _) = scene.said();
        assert_eq!(said.len(), 1, "{said:?}");
        assert_eq!(said[0]["by"], json!(1_763_724_000 + by));
    }
}

#[test]
fn nobody_is_asked_before_he_has_shown_his_key() {
    let mut scene = Scene::open(Grant { renew_from: Some(at(0.0).wall), ..grant() });
    scene.session.tick(at(1.0));
    assert_eq!(scene.ops(), (vec![], None));
    scene.session.receive(&scene.frame(1, 1.0, r#""op":"hello""#), at(1.0));
    assert_eq!(scene.ops(), (vec!["rotate".to_owned()], None));
}

fn late() -> Grant {
    let ends = Some(at(600.0).wall);
    Grant {
        late: true,
        grace_ends: ends,
        certificate_expires: at(-0.0).wall,
        renew_from: Some(at(0.0).wall),
        ..grant()
    }
}

#[test]
fn a_late_session_can_do_nothing_but_renew() {
    let mut scene = Scene::open(late());
    let publish = r#""op":"publish","id":"1","ch":"devices/press-7/t","data":1"#;
    let subscribe = r#""op":"subscribe","ch":"devices/press-7/t""#;
    let result = r#""op":"result","id":"1","status":"ok""#;
    for (seq, refused) in [(1, publish), (2, subscribe), (3, result), (4, r#""op":"unsubscribe","ch":"a""#)] {
        let verdict = scene.session.receive(&scene.frame(seq, 0.0, refused), at(0.0));
        assert_eq!(verdict, Verdict::Refused(Refusal::Forbidden), "{refused}");
    }
    assert_eq!(scene.session.receive(&scene.frame(5, 0.0, r#""op":"hello""#), at(0.0)), Verdict::Accepted);
    assert_eq!(scene.session.receive(&scene.frame(6, 0.0, RENEW), at(0.0)), Verdict::Accepted);
    assert_eq!(renewals(&mut scene).len(), 1);
    // What the registry says meanwhile does not begin its time anew.
    scene.session.heard(at(300.0));
    scene.session.update(Grant { grace_ends: Some(at(1200.0).wall), ..late() }, at(300.0));
    scene.session.heard(at(599.9));
    scene.session.tick(at(599.9));
    assert_eq!(scene.session.closing(), None);
    scene.session.tick(at(600.0));
    assert_eq!(scene.session.closing(), Some(Close::CertificateExpired), "it has had its time");
}

#[test]
fn a_session_whose_certificate_ends_does_not_become_a_late_one() {
    let mut scene = Scene::proven(grant());
    scene.session.update(late(), at(1.0));
    assert_eq!(scene.session.closing(), Some(Close::CertificateExpired));
}

#[test]
fn a_device_asks_in_its_session_and_is_told_what_became_of_it() {
    let mut link = Link::new(device(), keyring(&[1]), Bounds::default());
    link.renew("too early");
    let mut scene = Scene::open(grant());
    let welcome = {
        let mut session =
            doorward_proto::session::Session::open(grant(), super::support::settings(), [9; 16], at(0.0));
        let Some(Output::Send(welcome)) = session.poll() else { panic!("no welcome") };
        scene.session = session;
        welcome
    };
    link.receive(&welcome, at(0.0)).unwrap();
    let hello = link.transmit(at(0.0)).unwrap();
    assert_eq!(scene.session.receive(&hello, at(0.0)), Verdict::Accepted);
    assert!(link.transmit(at(0.0)).is_none(), "what was asked without a session is forgotten");

    link.renew("first");
    link.renew("second");
    let frame = link.transmit(at(0.0)).unwrap();
    assert_eq!(scene.session.receive(&frame, at(0.0)), Verdict::Accepted);
    scene.session.flush(at(0.0));
    assert_eq!(link.transmit(at(0.0)), None);
    let asked = scene.outputs().into_iter().find_map(|output| match output {
        Output::Renew { reference, csr } => Some((reference, csr)),
        _ => None,
    });
    let (reference, csr) = asked.unwrap();
    assert_eq!(&*csr, "second");

    // Not now: the link asks again by itself when it is time.
    scene.session.refuse_renewal(reference, Refusal::Unavailable, "no issuer", Some(60), at(1.0));
    bring(&mut link, &mut scene, 1.0);
    assert_eq!(link.transmit(at(60.9)), None);
    let again = link.transmit(at(61.0)).unwrap();
    scene.session.receive(&again, at(61.0));
    let reference = renewals(&mut scene)[0].0;
    scene.session.certify(reference, "a chain", at(500.0).wall, at(61.0));
    let events = bring(&mut link, &mut scene, 61.0);
    assert!(matches!(&events[..], [Event::Certificate(new)] if new.chain == "a chain"), "{events:?}");

    link.renew("third");
    let frame = link.transmit(at(66.0)).unwrap();
    scene.session.receive(&frame, at(66.0));
    let reference = renewals(&mut scene)[0].0;
    scene.session.refuse_renewal(reference, Refusal::BadMessage, "not yours", None, at(66.0));
    let events = bring(&mut link, &mut scene, 66.0);
    assert!(
        matches!(&events[..], [Event::NotRenewed { refusal: Some(Refusal::BadMessage), .. }]),
        "{events:?}"
    );
}

#[test]
fn a_late_device_proves_itself_asks_and_keeps_the_rest_for_the_next_session() {
    let mut link = Link::new(device(), keyring(&[1]), Bounds::default());
    link.publish(Outgoing::new([1; 16], "devices/press-7/t", "1").unwrap()).unwrap();
    link.subscribe(Filter::new("devices/press-7/#").unwrap());
    link.result(MessageId::new("c-1").unwrap(), CommandStatus::Ok, None).unwrap();
    let mut scene = unheard(late());
    bring(&mut link, &mut scene, 0.0);
    assert_eq!(link.gateway_time(at(7.0)), Some(at(7.0).wall));
    link.renew("a request");
    let said = std::iter::from_fn(|| link.transmit(at(1.0)));
    let verdicts: Vec<Verdict> = said.map(|frame| scene.session.receive(&frame, at(1.0))).collect();
    assert_eq!(verdicts, [Verdict::Accepted; 2], "hello and renew");
    assert_eq!(renewals(&mut scene).len(), 1);

    link.disconnected();
    let mut scene = unheard(grant());
    bring(&mut link, &mut scene, 2.0);
    let said = std::iter::from_fn(|| link.transmit(at(2.0)));
    let verdicts: Vec<Verdict> = said.map(|frame| scene.session.receive(&frame, at(2.0))).collect();
    assert_eq!(verdicts, [Verdict::Accepted; 3], "what had waited: subscription, publish and result");
    assert_eq!(link.unanswered(), 1);
}

/// A session whose `welcome` the device has still to hear.
fn unheard(grant: Grant) -> Scene {
    let mut scene = Scene::open(grant.clone());
    scene.session = Session::open(grant, super::support::settings(), [9; 16], at(0.0));
    scene
}

/// Hands the device what its gateway has said.
fn bring(link: &mut Link, scene: &mut Scene, seconds: f64) -> Vec<Event> {
    for output in scene.outputs() {
        if let Output::Send(frame) = output {
            link.receive(&frame, at(seconds)).unwrap();
        }
    }
    std::iter::from_fn(|| link.poll()).filter(|event| !matches!(event, Event::Welcome(_))).collect()
}
