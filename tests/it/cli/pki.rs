//! The root moved away; CAs that end; keys that are not as they should be.

use std::fs;

use doorward::{clock, entropy};
use doorward_pki::{Authority, Serial};
use serde_json::json;
use time::Duration;

use crate::support::command::{Desk, chmod, mode, openssl};
use crate::support::running::Running;

/// A home whose root was made so many days ago, and its issuing CA so many, and half a day.
fn aged(root_days: i64, issuing_days: i64) -> Desk {
    let desk = Desk::new();
    let key = || entropy::key_pair().unwrap();
    let serial = || Serial::from_random(entropy::random().unwrap());
    // Half a day more, so that what is left is never a whole number of days.
    let ago = |days| clock::utc() - Duration::days(days) - Duration::hours(12);
    let root = Authority::root("Aged root CA", key(), serial(), ago(root_days)).unwrap();
    let issuing = root.issuing("Aged issuing CA", key(), serial(), ago(issuing_days)).unwrap();
    for (name, authority) in [("root", root), ("issuing", issuing)] {
        fs::write(desk.home(&format!("pki/{name}.crt")), authority.certificate_pem()).unwrap();
        fs::write(desk.home(&format!("pki/{name}.key")), &*authority.key_pem()).unwrap();
    }
    desk
}

#[test]
fn the_roots_key_moves_away_and_what_needs_it_says_so() {
    let desk = Desk::new();
    let (key, certificate) = (desk.home("pki/root.key"), desk.home("pki/root.crt"));
    let (secret, text) = (fs::read(&key).unwrap(), fs::read(&certificate).unwrap());
    let moved = desk.run("pki export-root --out safe --json").json();
    assert_eq!(moved, json!({ "root_key": "safe/root.key", "changed": true }));
    assert!(!key.exists() && certificate.exists());
    assert_eq!(fs::read(desk.path("safe/root.key")).unwrap(), secret);
    assert_eq!(fs::read(desk.path("safe/root.crt")).unwrap(), text);
    assert_eq!(desk.modes("safe"), ["644 safe/root.crt", "600 safe/root.key"]);
    assert_eq!(mode(&desk.path("safe")), 0o700);
    assert_eq!(desk.run("pki export-root --out safe --json").json()["changed"], false);
    desk.run("pki export-root --out elsewhere").fails(4, &["has been moved away already"]);
    assert!(!desk.path("elsewhere").exists());

    // Nothing is made anew in its place, and what needs no root works.
    let again = desk.run("init --json").json();
    assert_eq!(again["made"], json!([]));
    assert!(!key.exists());
    for line in ["device add press-7", "cert crl --out list.crl", "config check", "pki rollover status"] {
        desk.run(line).done();
    }
    let status = desk.run("pki rollover status --json").json();
    assert_eq!(status["root_key"], false);

    let before = fs::read(desk.home("pki/issuing.crt")).unwrap();
    desk.run("pki rollover begin")
        .fails(1, &["root.key does not exist", "kept elsewhere", "--root-key FILE"]);
    chmod(&desk.path("safe/root.key"), 0o640);
    let begin = "pki rollover begin --root-key safe/root.key";
    desk.run(begin).fails(1, &["0640", "chmod 600 safe/root.key"]);
    desk.run("pki rollover begin --root-key safe/none").fails(1, &["safe/none does not exist"]);
    desk.run("pki rollover begin --root-key home/pki/gateway.key")
        .fails(1, &["root.crt with home/pki/gateway.key", "different authorities"]);
    assert_eq!(fs::read(desk.home("pki/issuing.crt")).unwrap(), before);
    assert!(!desk.home("pki/next.key").exists());
    chmod(&desk.path("safe/root.key"), 0o600);
    desk.run(begin).done();
    assert!(!key.exists(), "it was borrowed");
}

#[test]
fn a_cut_short_export_goes_on_and_overwrites_nothing() {
    let desk = Desk::new();
    let key = desk.home("pki/root.key");
    let secret = fs::read(&key).unwrap();
    // Another root's.
    fs::create_dir(desk.path("safe")).unwrap();
    desk.write("safe/root.key", "somebody's");
    desk.run("pki export-root --out safe").fails(4, &["safe/root.key exists already"]);
    assert_eq!(fs::read(&key).unwrap(), secret);
    assert_eq!(fs::read(desk.path("safe/root.key")).unwrap(), b"somebody's");
    // Written, and not removed yet; another run was killed before that when it had linked the key.
    desk.write("safe/root.key", &secret);
    let leftover = desk.home("pki/root.key.4711.tmp");
    fs::hard_link(&key, &leftover).unwrap();
    desk.run("pki export-root --out safe").done();
    assert!(!key.exists() && !leftover.exists());
    // Written so that others may read it: the one that is kept stays.
    fs::copy(desk.path("safe/root.key"), &key).unwrap();
    chmod(&desk.path("safe/root.key"), 0o644);
    desk.run("pki export-root --out safe").fails(1, &["chmod 600 safe/root.key"]);
    assert!(key.exists());
    desk.run("pki export-root --out home/pki/deeper").fails(2, &["is in the home"]);
    assert!(!desk.home("pki/deeper").exists());
    desk.run("pki export-root --out home/pki").fails(2, &["is in the home"]);
    desk.write("file", "");
    desk.run("pki export-root --out file/below").fails(1, &["cannot write file"]);
    // A key that is not the root's is not moved as if it were.
    fs::copy(desk.home("pki/issuing.key"), &key).unwrap();
    desk.run("pki export-root --out other").fails(1, &["root.key", "different authorities"]);
    assert!(key.exists() && !desk.path("other").exists());
}

#[test]
fn an_encrypted_root_stays_encrypted_where_it_goes() {
    let desk = Desk::empty();
    desk.write("right", "correct horse\n");
    desk.write("wrong", "tr0ub4dor\n");
    desk.run("init --passphrase-file right").done();
    desk.run("pki export-root --out safe --passphrase-file wrong").fails(1, &["passphrase does not open"]);
    assert!(!desk.path("safe").exists());
    desk.run("pki export-root --out safe").done();
    let (opened, words) = openssl(&desk, "pkcs8 -in safe/root.key -passin file:right");
    assert!(opened && words.contains("BEGIN PRIVATE KEY"), "{words}");

    let begin = "pki rollover begin --root-key safe/root.key";
    desk.run(begin).fails(1, &["issuing.key", "encrypted", "--passphrase-file"]);
    desk.run(&format!("{begin} --passphrase-file wrong")).fails(1, &["passphrase does not open"]);
    assert!(!desk.home("pki/next.key").exists());
    desk.run(&format!("{begin} --passphrase-file right --trust-only")).done();
    let (opened, _) = openssl(&desk, "pkcs8 -in home/pki/next.key -passin file:right");
    assert!(opened, "the next key is under the passphrase, too");
    assert!(fs::read_to_string(desk.home("pki/next.key")).unwrap().starts_with("-----BEGIN ENCRYPTED"));
    // Who has no passphrase sees how it stands, and changes nothing.
    desk.run("pki rollover status").done().says(&["a rollover has begun"]);
    desk.run("pki rollover finish").fails(1, &["encrypted"]);
    desk.run("pki csr --out ca.csr").fails(1, &["encrypted", "--passphrase-file"]);
    assert!(!desk.home("pki/csr.key").exists() && !desk.path("ca.csr").exists());
}

#[test]
fn a_key_that_others_may_read_is_refused_with_the_command_that_mends_it() {
    let desk = Desk::new();
    for (name, line) in [
        ("root.key", "pki export-root --out safe"),
        ("root.key", "pki rollover begin"),
        ("issuing.key", "pki rollover begin"),
        ("issuing.key", "pki rollover finish"),
        ("issuing.key", "pki csr --out ca.csr"),
    ] {
        chmod(&desk.home(&format!("pki/{name}")), 0o644);
        desk.run(line).fails(1, &["0644", &format!("chmod 600 home/pki/{name}")]);
        chmod(&desk.home(&format!("pki/{name}")), 0o600);
    }
    desk.run("pki rollover begin --trust-only").done();
    chmod(&desk.home("pki/next.key"), 0o604);
    desk.run("pki rollover begin").fails(1, &["chmod 600 home/pki/next.key"]);
    chmod(&desk.home("pki/next.key"), 0o600);
    fs::copy(desk.home("pki/root.key"), desk.home("pki/issuing.key")).unwrap();
    desk.run("pki rollover begin").fails(1, &["issuing.crt", "different authorities"]);
    assert!(!desk.path("safe").exists());
}

#[test]
fn a_ca_that_ends_soon_is_a_warning_wherever_it_is_used() {
    // 1,826 days from the day that it was made on.
    let desk = aged(1800, 1780);
    desk.run("device add press-7").done().says(&[
        "warning: the issuing CA ends at",
        "in 45 days",
        "rollover begin",
    ]);
    desk.run("pki rollover status").done().says(&["warning: CA", "Aged issuing CA", "in 45 days"]);
    let said = Running::start(&desk).said.clone();
    assert!(said.contains("this device CA ends soon") && said.contains("days=45"), "{said}");
    desk.run("pki rollover begin").done();
    let quiet = desk.run("device add press-8").done();
    assert!(!quiet.err.contains("warning"), "{quiet:?}");
}

#[test]
fn an_expired_ca_signs_nothing_and_names_the_way_out() {
    let desk = aged(1900, 1830);
    desk.run("device add press-7").fails(4, &["issuing certificate expired at", "pki rollover begin"]);
    desk.run("pki rollover status").done().says(&["warning: CA", "expired at"]);
    let said = Running::start(&desk).said.clone();
    assert!(said.contains("this device CA has expired"), "it serves what else it trusts: {said}");
    desk.run("pki rollover begin").done();
    desk.run("device add press-7").done();
    desk.run("pki rollover finish").done();

    let desk = aged(3700, 3690);
    desk.run("pki rollover begin").fails(4, &["the root home/pki/root.crt expired at", "new home"]);
    assert!(!desk.home("pki/next.key").exists());
    desk.run("pki rollover status").done().says(&["Aged root CA) expired at"]);
    let said = Running::start(&desk).said.clone();
    assert!(said.contains("the root by which devices trust this gateway"), "{said}");
}
