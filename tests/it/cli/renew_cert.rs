//! `gateway renew-cert`, and a gateway that renews by itself.

use std::fs;

use doorward::entropy;
use doorward_pki::{Authority, Serial, key_to_pem};
use serde_json::json;
use time::Duration;

use crate::support::command::{Desk, chmod, mode, openssl, until};
use crate::support::running::Running;

fn subject_and_names(desk: &Desk) -> String {
    let (done, text) = openssl(desk, "x509 -in home/pki/gateway.crt -noout -subject -ext subjectAltName");
    assert!(done, "{text}");
    text
}

fn verifies(desk: &Desk) {
    let chain = "-CAfile home/pki/root.crt -untrusted home/pki/issuing.crt";
    let (valid, words) =
        openssl(desk, &format!("verify -x509_strict -purpose sslserver {chain} home/pki/gateway.crt"));
    assert!(valid, "{words}");
}

/// What a running gateway shows, as openssl fetches it.
fn shown(desk: &Desk, gateway: &Running) -> String {
    let line = format!("s_client -connect {} -servername localhost -showcerts", gateway.address);
    let (_, text) = openssl(desk, &line);
    first(&text)
}

/// The first certificate of a text, without what openssl says of it.
fn first(text: &str) -> String {
    let body = text.split("-----BEGIN CERTIFICATE-----").nth(1).unwrap_or_default();
    body.split("-----END").next().unwrap().to_owned()
}

/// Puts a certificate in place that this home's CA has signed and that is past two thirds of its lifetime.
fn make_old(desk: &Desk, passphrase: Option<&[u8]>) {
    let key = fs::read_to_string(desk.home("pki/issuing.key")).unwrap();
    let key = doorward_pki::key_file::open(&key, passphrase).unwrap();
    let issuing = Authority::load(&fs::read_to_string(desk.home("pki/issuing.crt")).unwrap(), &key).unwrap();
    let key = entropy::key_pair().unwrap();
    let hosts = ["localhost".parse().unwrap(), "10.0.0.7".parse().unwrap()];
    let serial = Serial::from_random(entropy::random().unwrap());
    let now = doorward::clock::utc();
    let leaf = issuing.issue_gateway("old-gate", &hosts, &key, serial, now, Duration::seconds(90)).unwrap();
    fs::write(desk.home("pki/gateway.crt"), format!("{}{}", leaf.pem(), issuing.certificate_pem())).unwrap();
    fs::write(desk.home("pki/gateway.key"), key_to_pem(&key).as_bytes()).unwrap();
}

#[test]
fn a_new_pair_is_like_the_old_one_and_a_running_gateway_takes_it() {
    let desk = Desk::new();
    let gateway = Running::start(&desk);
    let (names, key) = (subject_and_names(&desk), fs::read(desk.home("pki/gateway.key")).unwrap());
    let first = shown(&desk, &gateway);
    desk.run("gateway renew-cert").done().says(&["is renewed", "localhost", "127.0.0.1"]);
    assert_eq!(subject_and_names(&desk), names);
    verifies(&desk);
    assert_ne!(fs::read(desk.home("pki/gateway.key")).unwrap(), key);
    assert_eq!((mode(&desk.home("pki/gateway.key")), mode(&desk.home("pki/gateway.crt"))), (0o600, 0o644));
    until("the new certificate", || shown(&desk, &gateway) != first);
    let said = gateway.ended_by("TERM");
    let taken = said.lines().filter(|line| line.contains("read again")).count();
    assert!(taken == 1 && !said.contains("is not taken"), "{said}");
    assert!(!desk.modes("home/pki").iter().any(|file| file.contains(".next") || file.contains(".tmp")));
}

#[test]
fn other_hosts_are_said() {
    let desk = Desk::new();
    let ran = desk.run("gateway renew-cert --host gate.example.com --host 10.0.0.7 --json").json();
    assert_eq!(ran["hosts"], json!(["gate.example.com", "10.0.0.7"]));
    assert_eq!(ran["certificate"], "home/pki/gateway.crt");
    let names = subject_and_names(&desk);
    assert!(names.contains("gate.example.com") && names.contains("10.0.0.7"), "{names}");
    assert!(!names.contains("localhost"), "{names}");
    verifies(&desk);
    desk.run("gateway renew-cert --host http://x").fails(2, &["is not a host"]);
    // What was lost with its key can be made anew, where it is said for whom.
    fs::remove_file(desk.home("pki/gateway.crt")).unwrap();
    fs::remove_file(desk.home("pki/gateway.key")).unwrap();
    desk.run("gateway renew-cert").fails(1, &["gateway.crt does not exist"]);
    desk.run("gateway renew-cert --host gate.example.com").done();
    verifies(&desk);
}

#[test]
fn a_pair_for_another_host_goes_into_a_folder_and_this_homes_stands() {
    let desk = Desk::new();
    let own = fs::read(desk.home("pki/gateway.crt")).unwrap();
    desk.run("gateway renew-cert --out plant-2").fails(1, &["plant-2/gateway.crt does not exist"]);
    let ran = desk.run("gateway renew-cert --host gate2.example.com --out plant-2 --json").json();
    assert_eq!(
        (&ran["certificate"], &ran["key"]),
        (&json!("plant-2/gateway.crt"), &json!("plant-2/gateway.key"))
    );
    assert_eq!((mode(&desk.path("plant-2")), mode(&desk.path("plant-2/gateway.key"))), (0o700, 0o600));
    let first = fs::read(desk.path("plant-2/gateway.crt")).unwrap();
    // Again, like what is there.
    let ran = desk.run("gateway renew-cert --out plant-2 --json").json();
    assert_eq!(ran["hosts"], json!(["gate2.example.com"]));
    assert_ne!(fs::read(desk.path("plant-2/gateway.crt")).unwrap(), first);
    assert_eq!(fs::read(desk.home("pki/gateway.crt")).unwrap(), own);
}

#[test]
fn without_the_key_or_for_a_strangers_certificate_nothing_changes() {
    let desk = Desk::new();
    let (key, kept) = (desk.home("pki/issuing.key"), desk.path("kept.key"));
    let before =
        (fs::read(desk.home("pki/gateway.crt")).unwrap(), fs::read(desk.home("pki/gateway.key")).unwrap());
    fs::rename(&key, &kept).unwrap();
    desk.run("gateway renew-cert").fails(1, &["issuing.key does not exist", "put it back"]);
    fs::rename(&kept, &key).unwrap();
    chmod(&key, 0o644);
    desk.run("gateway renew-cert").fails(1, &["chmod 600"]);
    chmod(&key, 0o600);
    // Of another home's CA.
    let other = Desk::new();
    for name in ["pki/gateway.crt", "pki/gateway.key"] {
        fs::copy(other.home(name), desk.home(name)).unwrap();
    }
    desk.run("gateway renew-cert")
        .fails(4, &["was not signed by a CA of this home", "renew it where it comes from"]);
    assert_eq!(
        fs::read(desk.home("pki/gateway.crt")).unwrap(),
        fs::read(other.home("pki/gateway.crt")).unwrap()
    );
    assert_ne!(fs::read(desk.home("pki/gateway.crt")).unwrap(), before.0);
}

#[test]
fn an_encrypted_ca_key_wants_its_passphrase() {
    let desk = Desk::empty();
    let file = desk.write("passphrase", "correct horse\n");
    desk.run("init --passphrase-file passphrase").done();
    desk.run("gateway renew-cert").fails(1, &["encrypted", "--passphrase-file"]);
    desk.write("wrong", "battery staple\n");
    desk.run("gateway renew-cert --passphrase-file wrong").fails(1, &["passphrase"]);
    desk.run("gateway renew-cert --passphrase-file passphrase").done();
    verifies(&desk);
    // A gateway that is given none goes on with what it has, and says so.
    make_old(&desk, Some(b"correct horse"));
    let gateway = Running::start(&desk);
    let old = shown(&desk, &gateway);
    assert_eq!(old, pem_body(&desk));
    gateway.ended_by("TERM");
    // One that is given it renews before it listens.
    let mut command = desk.command("gateway run --listen 127.0.0.1:0");
    command.env("DOORWARD_PASSPHRASE_FILE", &file);
    let gateway = Running::spawn(&mut command);
    assert_ne!(shown(&desk, &gateway), old);
    assert!(subject_and_names(&desk).contains("old-gate"));
    verifies(&desk);
    let said = gateway.ended_by("TERM");
    assert!(!said.contains("correct horse"), "{said}");
}

fn pem_body(desk: &Desk) -> String {
    first(&fs::read_to_string(desk.home("pki/gateway.crt")).unwrap())
}

#[test]
fn a_gateway_renews_what_is_old_before_it_listens_and_finishes_what_was_cut_short() {
    let desk = Desk::new();
    make_old(&desk, None);
    let old = pem_body(&desk);
    let gateway = Running::start(&desk);
    let new = pem_body(&desk);
    assert_ne!(new, old);
    assert_eq!(shown(&desk, &gateway), new);
    gateway.ended_by("TERM");

    // As a kill leaves it between the two files: the key is the new one, its certificate waits.
    let pair = ["pki/gateway.crt", "pki/gateway.key"]
        .map(|name| (desk.home(name), fs::read(desk.home(name)).unwrap()));
    desk.run("gateway renew-cert").done();
    let newest = fs::read(desk.home("pki/gateway.crt")).unwrap();
    fs::write(desk.home("pki/gateway.crt.next"), &newest).unwrap();
    fs::write(&pair[0].0, &pair[0].1).unwrap();
    desk.run("config check").fails(1, &["do not make a server certificate"]);
    let gateway = Running::start(&desk);
    assert_eq!(fs::read(desk.home("pki/gateway.crt")).unwrap(), newest);
    assert!(!desk.home("pki/gateway.crt.next").exists());
    // The same while it runs: finished, and never complained about.
    let key = fs::read(desk.home("pki/gateway.key")).unwrap();
    desk.run("gateway renew-cert").done();
    fs::write(desk.home("pki/gateway.crt.next"), fs::read(desk.home("pki/gateway.crt")).unwrap()).unwrap();
    fs::write(desk.home("pki/gateway.crt"), &newest).unwrap();
    assert_ne!(fs::read(desk.home("pki/gateway.key")).unwrap(), key);
    until("the end of the renewal", || !desk.home("pki/gateway.crt.next").exists());
    verifies(&desk);
    let said = gateway.ended_by("TERM");
    assert!(!said.contains("is not taken"), "{said}");
}

#[test]
fn one_that_has_expired_is_named_and_the_gateway_serves() {
    let desk = Desk::new();
    let key = fs::read_to_string(desk.home("pki/issuing.key")).unwrap();
    let issuing = Authority::load(&fs::read_to_string(desk.home("pki/issuing.crt")).unwrap(), &key).unwrap();
    let key = entropy::key_pair().unwrap();
    let serial = Serial::from_random(entropy::random().unwrap());
    let hosts = ["localhost".parse().unwrap()];
    let now = doorward::clock::utc();
    let leaf = issuing.issue_gateway("gate", &hosts, &key, serial, now, Duration::SECOND).unwrap();
    fs::write(desk.home("pki/gateway.crt"), format!("{}{}", leaf.pem(), issuing.certificate_pem())).unwrap();
    fs::write(desk.home("pki/gateway.key"), key_to_pem(&key).as_bytes()).unwrap();
    fs::remove_file(desk.home("pki/issuing.key")).unwrap();
    until("its end", || doorward::clock::utc() > now + Duration::seconds(2));
    let mut command = desk.command("gateway run --listen 127.0.0.1:0");
    command.env("DOORWARD_LOG", "info");
    let gateway = Running::spawn(&mut command);
    assert!(gateway.said.contains("has expired: devices refuse this gateway"), "{}", gateway.said);
    assert!(gateway.said.contains("doorward gateway renew-cert"), "{}", gateway.said);
    assert_eq!(shown(&desk, &gateway), pem_body(&desk));
    gateway.ended_by("TERM");
}
