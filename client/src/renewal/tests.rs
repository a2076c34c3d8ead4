use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};

use super::*;

const SECOND: Duration = Duration::from_secs(1);
/// Between 2020 and 2030, in which the pairs of these tests hold.
const TODAY: i64 = 1_600_000_000;

fn today() -> NumericDate {
    NumericDate::from_seconds(TODAY)
}

/// A key and its certificate, as PEM.
#[derive(Clone)]
struct Written {
    key: String,
    chain: String,
}

impl Written {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "press-7");
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
        params.serial_number = Some(fastrand::u64(1 << 32..).into());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let chain = params.self_signed(&key).unwrap().pem();
        Self { key: key.serialize_pem(), chain }
    }

    fn both(&self) -> String {
        format!("{}{}", self.key, self.chain)
    }
}

/// A bundle with these files beside `device.json` and `ca.crt`.
fn bundle(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let json = serde_json::json!({
        "device": "press-7", "fleet": "hall", "url": "wss://localhost:8443/v1/device",
        "key": {"version": 1, "hmac": URL_SAFE_NO_PAD.encode([7; 32])},
    });
    fs::write(folder.path().join("device.json"), json.to_string()).unwrap();
    fs::write(folder.path().join("ca.crt"), Written::new().chain).unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn options() -> RenewalOptions {
    RenewalOptions { spread: 10 * SECOND, retry: 60 * SECOND, ..RenewalOptions::default() }
}

fn open(folder: &Path) -> Renewal {
    let credentials = Credentials::load(folder).unwrap();
    let tls = tls::configuration(credentials.identity()).unwrap();
    Renewal::open(&credentials, tls, options())
}

fn welcome(expires: i64) -> Welcome {
    serde_json::from_value(serde_json::json!({
        "max_message_bytes": 65536, "max_skew": 60, "heartbeat": 30, "rate": {"per_second": 1, "burst": 1},
        "key": 1, "certificate_expires": expires, "gateway": "g",
    }))
    .unwrap()
}

fn is_bundle_of(folder: &Path, pair: &Written) -> bool {
    fs::read_to_string(folder.join("device.crt")).unwrap() == pair.chain
        && fs::read_to_string(folder.join("device.key")).unwrap() == pair.key
        && fs::read_dir(folder).unwrap().count() == 4
}

/// The first part of a text.
fn half(text: &str) -> &str {
    &text[..text.len() / 2]
}

#[test]
fn every_state_that_a_power_cut_can_leave_holds_a_whole_pair_and_goes_on_from_it() {
    let (old, new) = (Written::new(), Written::new());
    let both = new.both();
    let (key, chain) = (("device.key", &*old.key), ("device.crt", &*old.chain));
    let (new_key, new_chain) = (("device.key", &*new.key), ("device.crt", &*new.chain));
    let renewal = ("renewal.pem", &*both);
    // What lies beside, and which pair the device shows first.
    let states: &[(&[(&str, &str)], &Written)] = &[
        (&[key, chain], &old),
        (&[key, chain, ("renewal.pem.new", "")], &old),
        (&[key, chain, ("renewal.pem.new", half(&new.key))], &old),
        (&[key, chain, ("renewal.pem.new", &new.key)], &old),
        // A rename that came before the bytes, where the file system lets it.
        (&[key, chain, ("renewal.pem", "")], &old),
        (&[key, chain, ("renewal.pem", half(&new.key))], &old),
        (&[key, chain, ("renewal.pem", &new.key)], &old),
        (&[key, chain, ("renewal.pem", &new.key), ("renewal.pem.new", half(&both))], &old),
        (&[key, chain, ("renewal.pem", &new.key), ("renewal.pem.new", &both)], &old),
        (&[key, chain, ("renewal.pem", &both[..both.len() - 40])], &old),
        (&[key, chain, renewal], &new),
        (&[key, chain, renewal, ("device.key.new", half(&new.key))], &new),
        (&[key, chain, renewal, ("device.key.new", &new.key), ("device.crt.new", "")], &new),
        (&[key, chain, renewal, ("device.key.new", &new.key), ("device.crt.new", &new.chain)], &new),
        (&[new_key, chain, renewal, ("device.crt.new", &new.chain)], &new),
        // The disk need not keep the order of two renames.
        (&[key, new_chain, renewal, ("device.key.new", &new.key)], &new),
        (&[new_key, new_chain, renewal], &new),
        (&[new_key, new_chain], &new),
    ];
    for (files, shown) in states {
        let folder = bundle(files);
        let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
        let mut renewal = open(folder.path());
        let shows = match &renewal.next {
            Next::Unproven(next) if renewal.shows_next => &next.granted.pair,
            _ => &renewal.current,
        };
        let pem = doorward_pki::certificate_to_pem(&shows.identity.chain()[0]);
        assert!(pem == shown.chain, "{names:?}");
        assert!(
            !fs::read_dir(folder.path())
                .unwrap()
                .any(|file| { file.unwrap().file_name().to_string_lossy().ends_with(".new") })
        );
        renewal.welcomed(&welcome(TODAY + 1_000_000), today(), SECOND);
        let asked = matches!(renewal.next, Next::Asked(_));
        assert_eq!(asked, files.contains(&("renewal.pem", &new.key)), "{names:?}");
        if !asked {
            // What is torn is no pair, and stays until the next key takes its place.
            let _ = fs::remove_file(folder.path().join("renewal.pem"));
            assert!(is_bundle_of(folder.path(), shown), "{names:?}");
        }
    }
}

#[test]
fn a_pair_that_came_is_not_forgotten_while_there_is_no_room_for_it() {
    let (old, new) = (Written::new(), Written::new());
    let folder =
        bundle(&[("device.key", &old.key), ("device.crt", &old.chain), ("renewal.pem", &new.both())]);
    let mut renewal = open(folder.path());
    // Not a mode: those do not hold for root.
    let in_the_way = folder.path().join("device.crt.new");
    fs::create_dir_all(in_the_way.join("x")).unwrap();
    renewal.welcomed(&welcome(TODAY + 1_000_000), today(), SECOND);
    let status = renewal.status().borrow().clone();
    assert_eq!(status.renewed, 1, "it is in all the same");
    assert!(
        matches!(&status.renewal, RenewalState::Refused(why) if why.contains("device.crt")),
        "{status:?}"
    );

    // Another renewal would take the place of the only pair on the disk that is let in.
    let rotate = Rotate { what: "certificate".to_owned(), by: today() };
    renewal.rotate(&rotate, today(), 2 * SECOND);
    assert_eq!(renewal.poll(2 * SECOND), None);
    assert_eq!(fs::read_to_string(folder.path().join("renewal.pem")).unwrap(), new.both());
    assert_eq!(open(folder.path()).current.named(), open(folder.path()).status().borrow().current);

    fs::remove_dir_all(in_the_way).unwrap();
    let at = renewal.deadline().unwrap();
    assert!(at >= 30 * SECOND, "not at once");
    assert!(matches!(renewal.poll(at), Some(Act::Ask(_))));
    assert_eq!(fs::read_to_string(folder.path().join("device.crt")).unwrap(), new.chain);
}

fn renewal() -> (tempfile::TempDir, Renewal) {
    let pair = Written::new();
    let folder = bundle(&[("device.key", &pair.key), ("device.crt", &pair.chain)]);
    let renewal = open(folder.path());
    (folder, renewal)
}

#[test]
fn nobody_need_ask_from_two_thirds_of_the_lifetime_on() {
    let (_folder, mut renewal) = renewal();
    let (begins, ends) = (1_577_836_800, 1_893_456_000);
    let from = renewal.current.renew_from().unwrap().as_duration().as_secs_f64();
    let lifetime = f64::from(ends - begins);
    let part = (from - f64::from(begins)) / lifetime;
    assert!((2.0 / 3.0..5.0 / 6.0).contains(&part), "{part}");

    renewal.welcomed(&welcome(ends.into()), today(), SECOND);
    #[expect(clippy::cast_precision_loss, reason = "a date")]
    let wait = from - TODAY as f64;
    let at = renewal.deadline().unwrap().as_secs_f64();
    assert!((at - 1.0 - wait).abs() < 1.0, "{at} {wait}");
    assert_eq!(renewal.poll(SECOND), None);

    // After that each session asks soon, and not all at once.
    let late = NumericDate::from_seconds(1_880_000_000);
    renewal.welcomed(&welcome(ends.into()), late, SECOND);
    assert!(renewal.deadline().unwrap() <= 11 * SECOND);
    // One that has come too late for anything else has nothing to wait for.
    let expired = NumericDate::from_seconds(i64::from(ends) + 1);
    renewal.welcomed(&welcome(ends.into()), expired, SECOND);
    assert_eq!(renewal.deadline(), Some(SECOND));
}

#[test]
fn certificates_of_one_hour_are_renewed_at_many_places() {
    let places: std::collections::BTreeSet<_> =
        (0..20).map(|_| renewal().1.current.renew_from().unwrap()).collect();
    assert!(places.len() > 10, "{}", places.len());
}

#[test]
fn what_was_refused_is_asked_for_again_with_growing_waits_up_to_an_hour() {
    let (_folder, mut renewal) = renewal();
    let (mut now, far) = (SECOND, NumericDate::from_seconds(TODAY + 1_000_000));
    let rotate = Rotate { what: "certificate".to_owned(), by: far };
    renewal.welcomed(&welcome(1_893_456_000), today(), now);
    renewal.rotate(&Rotate { what: "something else".to_owned(), by: today() }, today(), now);
    assert!(renewal.deadline().unwrap() > 1000 * SECOND);
    renewal.rotate(&rotate, today(), now);
    let at = renewal.deadline().unwrap();
    assert!(at <= now + 10 * SECOND);
    now = at;
    for longest in [60, 120, 240, 480, 960, 1920, 3600, 3600] {
        assert!(matches!(renewal.poll(now), Some(Act::Ask(_))));
        assert_eq!(renewal.poll(now), None, "once");
        renewal.not_renewed(Some(Refusal::Forbidden), "no", now);
        // Neither the gateway's asking nor a new session makes it sooner.
        renewal.rotate(&rotate, today(), now);
        renewal.ended(Cause::Other, "");
        assert_eq!(renewal.deadline(), None, "without a session there is nobody to ask");
        renewal.welcomed(&welcome(1_893_456_000), today(), now);
        let at = renewal.deadline().unwrap();
        let wait = (at - now).as_secs_f64();
        assert!((f64::from(longest) / 2.0..=f64::from(longest)).contains(&wait), "{wait} of {longest}");
        now = at;
    }
}

#[test]
fn a_request_in_a_hurry_is_not_spread_over_its_end() {
    let (_folder, mut renewal) = renewal();
    renewal.welcomed(&welcome(1_893_456_000), today(), SECOND);
    let by = NumericDate::from_seconds(TODAY + 2);
    renewal.rotate(&Rotate { what: "certificate".to_owned(), by }, today(), SECOND);
    assert!(renewal.deadline().unwrap() <= 2 * SECOND);
}

#[test]
fn a_certificate_that_nobody_asked_for_changes_nothing() {
    let (folder, mut renewal) = renewal();
    renewal.welcomed(&welcome(1_893_456_000), today(), SECOND);
    let new = Certificate { reference: 1, chain: Written::new().chain, expires: today() };
    assert_eq!(renewal.certificate(&new, today(), SECOND), None);
    assert_eq!(renewal.status().borrow().renewal, RenewalState::None);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4);
}

#[test]
fn what_somebody_puts_into_the_folder_is_taken_up_and_the_renewal_is_kept() {
    let (old, new, third) = (Written::new(), Written::new(), Written::new());
    let folder =
        bundle(&[("device.key", &old.key), ("device.crt", &old.chain), ("renewal.pem", &new.both())]);
    let credentials = Credentials::load(folder.path()).unwrap();
    let mut renewal = open(folder.path());
    assert!(renewal.reload(&credentials).is_none(), "nobody has");
    fs::write(folder.path().join("device.key"), &third.key).unwrap();
    fs::write(folder.path().join("device.crt"), &third.chain).unwrap();
    assert!(renewal.reload(&credentials).is_some());
    assert!(!renewal.shows_next && matches!(renewal.next, Next::Unproven(_)));
    assert!(renewal.ended(Cause::Certificate, "turned away"), "by turns");
}

#[test]
fn a_pair_that_found_no_room_is_not_put_over_what_somebody_has_installed_since() {
    let (old, new, third) = (Written::new(), Written::new(), Written::new());
    let folder =
        bundle(&[("device.key", &old.key), ("device.crt", &old.chain), ("renewal.pem", &new.both())]);
    let credentials = Credentials::load(folder.path()).unwrap();
    let mut renewal = open(folder.path());
    // In place of the key there is a folder: nothing can be renamed over that.
    fs::remove_file(folder.path().join("device.key")).unwrap();
    fs::create_dir_all(folder.path().join("device.key/in-the-way")).unwrap();
    renewal.welcomed(&welcome(1_893_456_000), today(), SECOND);
    assert!(renewal.unplaced.is_some());
    renewal.ended(Cause::Certificate, "revoked");
    fs::remove_dir_all(folder.path().join("device.key")).unwrap();
    fs::write(folder.path().join("device.key"), &old.key).unwrap();
    assert!(renewal.reload(&credentials).is_none(), "the old one is nobody's new one");

    fs::write(folder.path().join("device.key"), &third.key).unwrap();
    fs::write(folder.path().join("device.crt"), &third.chain).unwrap();
    assert!(renewal.reload(&credentials).is_some());
    renewal.welcomed(&welcome(1_893_456_000), today(), 2 * SECOND);
    for left in ["device.key.new", "device.crt.new"] {
        let _ = fs::remove_file(folder.path().join(left));
    }
    assert!(
        is_bundle_of(folder.path(), &third),
        "{:?}",
        fs::read_dir(folder.path()).unwrap().collect::<Vec<_>>()
    );
}

#[test]
fn a_gateway_that_can_ask_nobody_is_shown_the_old_pair_too_and_the_new_one_is_not_blamed() {
    let (old, new) = (Written::new(), Written::new());
    let folder =
        bundle(&[("device.key", &old.key), ("device.crt", &old.chain), ("renewal.pem", &new.both())]);
    let mut renewal = open(folder.path());
    for _ in 0..20 {
        assert!(renewal.shows_next);
        renewal.ended(Cause::Away, "unavailable");
        assert!(!renewal.shows_next);
        renewal.welcomed(&welcome(1_893_456_000), today(), SECOND);
        assert!(renewal.is_unproven(), "it is not given up");
        renewal.ended(Cause::Certificate, "revoked");
    }
}
