//! CA keys under a passphrase.

use std::fs;

use crate::support::command::{Desk, chmod, mode, openssl};

fn desk() -> Desk {
    let desk = Desk::empty();
    desk.write("right", "correct horse battery\nthis line is a note\n");
    desk.write("wrong", "tr0ub4dor\n");
    desk
}

fn first_line(desk: &Desk, name: &str) -> String {
    fs::read_to_string(desk.home(name)).unwrap().lines().next().unwrap().to_owned()
}

#[test]
fn the_ca_keys_are_encrypted_and_openssl_reads_them() {
    let desk = desk();
    let made = desk.run("init --passphrase-file right").done();
    assert!(!made.err.contains("correct horse"), "{}", made.err);
    for name in ["root", "issuing"] {
        let key = format!("pki/{name}.key");
        assert_eq!(first_line(&desk, &key), "-----BEGIN ENCRYPTED PRIVATE KEY-----");
        assert_eq!(mode(&desk.home(&key)), 0o600);
        let (parsed, words) = openssl(&desk, &format!("asn1parse -in home/{key}"));
        assert!(parsed && ["PBES2", "scrypt", "aes-256-cbc"].iter().all(|w| words.contains(w)), "{words}");
        let (opened, words) = openssl(&desk, &format!("pkcs8 -in home/{key} -passin file:right"));
        assert!(opened && words.contains("BEGIN PRIVATE KEY"), "{words}");
        let (opened, _) = openssl(&desk, &format!("pkcs8 -in home/{key} -passin file:wrong"));
        assert!(!opened);
    }
    assert_eq!(
        first_line(&desk, "pki/gateway.key"),
        "-----BEGIN PRIVATE KEY-----",
        "it starts without a person"
    );
    desk.run("config check").done();
}

#[test]
fn signing_needs_the_passphrase_and_nothing_else_does() {
    let desk = desk();
    desk.run("init --passphrase-file right").done();
    desk.run("device add press-7").fails(1, &["issuing.key", "encrypted", "--passphrase-file"]);
    desk.run("device add press-7 --passphrase-file wrong").fails(1, &["passphrase does not open"]);
    desk.run("device add press-7 --passphrase-file none").fails(1, &["passphrase file none does not exist"]);
    chmod(&desk.path("right"), 0o644);
    desk.run("device add press-7 --passphrase-file right").fails(1, &["0644", "chmod 600 right"]);
    chmod(&desk.path("right"), 0o600);
    assert!(!desk.home("devices").exists());
    desk.run("device add press-7 --passphrase-file right").done();
    let mut by_variable = desk.command("device add press-8");
    by_variable.env("DOORWARD_PASSPHRASE_FILE", "right");
    crate::support::command::Ran::of(&mut by_variable).done();
    desk.run("device add --count 3 --prefix p --out p.jsonl --passphrase-file right").done();
    desk.run("device suspend press-7 --reason repair").done();
    desk.run("init").done().says(&["nothing had to be made"]);
}

#[test]
fn a_passphrase_that_cannot_be_used_begins_nothing() {
    let desk = desk();
    desk.write("empty", "\nsecond line");
    desk.run("init --passphrase-file empty").fails(1, &["the passphrase is empty"]);
    desk.run("init --passphrase-file none").fails(1, &["none does not exist"]);
    assert!(!desk.path("home").exists());
}

#[test]
fn a_cut_short_init_goes_on_with_its_passphrase_alone() {
    let desk = desk();
    desk.run("init --passphrase-file right").done();
    for name in ["issuing.key", "issuing.crt", "gateway.key", "gateway.crt", "master.key"] {
        fs::remove_file(desk.home(&format!("pki/{name}"))).unwrap();
    }
    let root = fs::read(desk.home("pki/root.key")).unwrap();
    desk.run("init").fails(1, &["root.key", "encrypted", "--passphrase-file"]);
    assert!(!desk.home("pki/issuing.key").exists(), "no key in the clear beside an encrypted one");
    desk.run("init --passphrase-file wrong").fails(1, &["passphrase does not open"]);
    assert!(!desk.home("pki/issuing.key").exists(), "no key under another passphrase");
    desk.run("init --passphrase-file right").done();
    assert_eq!(first_line(&desk, "pki/issuing.key"), "-----BEGIN ENCRYPTED PRIVATE KEY-----");
    assert_eq!(fs::read(desk.home("pki/root.key")).unwrap(), root);
    desk.run("device add press-7 --passphrase-file right").done();
}

#[test]
fn keys_that_stand_in_the_clear_are_not_silently_left_so() {
    let desk = desk();
    desk.run("init").done().says(&["--passphrase-file"]);
    let key = fs::read(desk.home("pki/root.key")).unwrap();
    desk.run("init --passphrase-file right").done().says(&["the CA keys stand as they are"]);
    assert_eq!(fs::read(desk.home("pki/root.key")).unwrap(), key);
}

#[test]
fn a_new_issuing_key_is_encrypted_if_and_only_if_the_present_one_is() {
    let desk = desk();
    desk.run("init").done();
    let encrypt = |key: &str| {
        let line = format!("pkcs8 -topk8 -in home/pki/{key} -out sealed -passout file:right");
        let (done, words) = openssl(&desk, &line);
        assert!(done, "{words}");
        fs::copy(desk.path("sealed"), desk.home(&format!("pki/{key}"))).unwrap();
    };
    let (clear, sealed) = ("-----BEGIN PRIVATE KEY-----", "-----BEGIN ENCRYPTED PRIVATE KEY-----");
    // The passphrase is the root's alone: a gateway that signs by itself is not to need it from now on.
    encrypt("root.key");
    desk.run("pki rollover begin --passphrase-file right").done();
    assert_eq!(first_line(&desk, "pki/issuing.key"), clear);
    desk.run("device add press-7").done();
    desk.run("device revoke press-7 --reason test --no-wait").done();
    desk.run("pki rollover finish").done();

    encrypt("issuing.key");
    desk.run("pki csr --out a.csr").fails(1, &["encrypted", "--passphrase-file"]);
    desk.run("pki csr --out a.csr --passphrase-file right").done();
    assert_eq!(first_line(&desk, "pki/csr.key"), sealed);
    desk.run("pki rollover begin --passphrase-file right").done();
    assert_eq!(first_line(&desk, "pki/issuing.key"), sealed);
}
