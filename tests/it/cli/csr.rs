//! `device add --csr`: a stranger's wish list, of which the proven key alone is believed.

use std::fs;

use crate::support::command::{Desk, openssl};

const P256: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1";

fn request(desk: &Desk, name: &str, options: &str) {
    let line = format!("req -new -nodes -keyout {name}.key -out {name}.csr {options}");
    let (made, words) = openssl(desk, &line);
    assert!(made, "{words}");
}

/// Refused: nothing is registered and nothing written.
#[track_caller]
fn refused(desk: &Desk, id: &str, file: &str, words: &[&str]) {
    desk.run(&format!("device add {id} --csr {file}")).fails(1, words);
    desk.run(&format!("device show {id}")).fails(3, &[]);
    assert!(!desk.home("devices").join(id).exists());
}

#[test]
fn the_device_keeps_its_key_to_itself() {
    let desk = Desk::new();
    request(&desk, "cam", &format!("{P256} -subj /CN=cam-1"));
    desk.run("device add cam-1 --csr cam.csr --json").json();
    let files = desk.modes("home/devices/cam-1");
    assert_eq!(files.len(), 3, "{files:?}");
    assert!(!desk.home("devices/cam-1/device.key").exists());
    let (_, own) = openssl(&desk, "pkey -in cam.key -pubout");
    let (_, signed) = openssl(&desk, "x509 -in home/devices/cam-1/device.crt -noout -pubkey");
    assert_eq!(own, signed);
    // DER is as good as PEM.
    request(&desk, "der", &format!("{P256} -subj /CN=cam-2 -outform DER"));
    desk.run("device add cam-2 --csr der.csr").done();
}

#[test]
fn a_request_for_something_else_is_refused() {
    let desk = Desk::new();
    request(&desk, "other", &format!("{P256} -subj /CN=cam-1"));
    refused(&desk, "cam-2", "other.csr", &["other.csr", "for 'cam-1'", "CN=cam-2"]);
    request(&desk, "two", &format!("{P256} -subj /CN=cam-2/CN=cam-3"));
    refused(&desk, "cam-2", "two.csr", &["exactly one common name"]);
    request(&desk, "none", &format!("{P256} -subj /O=cam-2"));
    refused(&desk, "cam-2", "none.csr", &["exactly one common name"]);
}

#[test]
fn another_kind_of_key_is_refused() {
    let desk = Desk::new();
    for (name, options, words) in [
        ("rsa", "-newkey rsa:2048", "the request's key is RSA"),
        ("p384", "-newkey ec -pkeyopt ec_paramgen_curve:secp384r1", "P-384"),
        ("ed", "-newkey ed25519", "Ed25519"),
    ] {
        request(&desk, name, &format!("{options} -subj /CN=cam-1"));
        refused(&desk, "cam-1", &format!("{name}.csr"), &[words, "P-256"]);
    }
}

#[test]
fn a_signature_that_does_not_prove_the_key_is_refused() {
    let desk = Desk::new();
    request(&desk, "bad", &format!("{P256} -subj /CN=cam-1 -outform DER"));
    let mut der = fs::read(desk.path("bad.csr")).unwrap();
    let last = der.len() - 1;
    der[last] ^= 1;
    fs::write(desk.path("bad.csr"), der).unwrap();
    refused(&desk, "cam-1", "bad.csr", &["possession of the private key is not proven"]);
}

#[test]
fn wishes_are_not_granted() {
    let desk = Desk::new();
    desk.write(
        "wishes.cnf",
        "[req]\ndistinguished_name = dn\nreq_extensions = ext\nprompt = no\n[dn]\nCN = cam-1\nO = Root Inc\n[ext]\n\
         basicConstraints = critical,CA:TRUE\nkeyUsage = critical,keyCertSign,cRLSign\n\
         extendedKeyUsage = serverAuth,codeSigning\n\
         subjectAltName = URI:urn:doorward:device:other,DNS:gateway.example\n",
    );
    request(&desk, "hostile", &format!("{P256} -config wishes.cnf"));
    desk.run("device add cam-1 --csr hostile.csr").done();
    let (_, text) = openssl(&desk, "x509 -in home/devices/cam-1/device.crt -noout -text");
    for granted in [
        "CA:TRUE",
        "Certificate Sign",
        "Server Authentication",
        "Code Signing",
        "other",
        "gateway.example",
        "Root Inc",
    ] {
        assert!(!text.contains(granted), "{granted}: {text}");
    }
    assert!(text.contains("URI:urn:doorward:device:cam-1") && text.contains("CA:FALSE"), "{text}");
}

#[test]
fn what_is_no_request_is_refused() {
    let desk = Desk::new();
    desk.write("garbage", "garbage");
    desk.write("empty", "");
    desk.write("binary", [0x30, 0x82, 0xff, 0xff, 0x00]);
    desk.write("huge", vec![b'A'; 10 << 20]);
    for name in ["garbage", "empty", "binary", "home/pki/root.crt"] {
        refused(&desk, "cam-1", name, &[name, "not a certificate signing request"]);
    }
    refused(&desk, "cam-1", "huge", &["huge", "at most 65536"]);
    refused(&desk, "cam-1", "/dev/zero", &["at most 65536"]);
    refused(&desk, "cam-1", "missing", &["cannot read missing"]);
    refused(&desk, "cam-1", "home", &["cannot read home"]);
    desk.run("device add --count 3 --prefix p --out p.jsonl --csr garbage").fails(2, &["--csr"]);
}
