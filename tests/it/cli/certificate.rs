//! What a device's certificate says, as OpenSSL reads it.

use std::collections::HashSet;

use crate::support::command::{Desk, openssl};

const LEAF: &str = "home/devices/press-7/device.crt";

fn desk() -> Desk {
    let desk = Desk::new();
    desk.run("device add press-7 --days 30").done();
    desk
}

fn verify(desk: &Desk, purpose: &str) -> (bool, String) {
    let chain = "-CAfile home/pki/root.crt -untrusted home/pki/issuing.crt";
    openssl(desk, &format!("verify -x509_strict -purpose {purpose} {chain} {LEAF}"))
}

#[test]
fn it_verifies_as_a_client_and_as_nothing_else() {
    let desk = desk();
    let (valid, words) = verify(&desk, "sslclient");
    assert!(valid, "{words}");
    for purpose in ["sslserver", "smimesign", "timestampsign"] {
        let (valid, words) = verify(&desk, purpose);
        assert!(!valid, "{purpose}: {words}");
    }
    let (valid, words) = openssl(&desk, &format!("verify -x509_strict -CAfile home/pki/root.crt {LEAF}"));
    assert!(!valid, "not without the intermediate: {words}");
}

#[test]
fn it_has_the_profile_and_nothing_more() {
    let desk = desk();
    let (_, text) = openssl(&desk, &format!("x509 -in {LEAF} -noout -text"));
    for words in [
        "Version: 3",
        "Signature Algorithm: ecdsa-with-SHA256",
        "Public Key Algorithm: id-ecPublicKey",
        "NIST CURVE: P-256",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let (_, subject) = openssl(&desk, &format!("x509 -in {LEAF} -noout -subject -nameopt RFC2253"));
    assert_eq!(subject.trim(), "subject=CN=press-7");

    let extensions: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("            X509v3") || line.starts_with("            1."))
        .map(|line| line.trim().trim_end_matches(": "))
        .collect();
    let mut sorted: Vec<&str> = extensions.iter().map(|line| line.trim_end_matches(':')).collect();
    sorted.sort_unstable();
    assert_eq!(
        sorted,
        [
            "X509v3 Authority Key Identifier",
            "X509v3 Basic Constraints: critical",
            "X509v3 Extended Key Usage",
            "X509v3 Key Usage: critical",
            "X509v3 Subject Alternative Name",
            "X509v3 Subject Key Identifier",
        ]
    );
    let value = |name: &str| {
        let mut lines = text.lines().skip_while(|line| !line.contains(name));
        lines.nth(1).map(|line| line.trim().to_owned()).unwrap_or_default()
    };
    assert_eq!(value("Basic Constraints"), "CA:FALSE");
    assert_eq!(value("X509v3 Key Usage"), "Digital Signature");
    assert_eq!(value("Extended Key Usage"), "TLS Web Client Authentication");
    assert_eq!(value("Subject Alternative Name"), "URI:urn:doorward:device:press-7");
    let (_, issuer) = openssl(&desk, "x509 -in home/pki/issuing.crt -noout -ext subjectKeyIdentifier");
    assert!(issuer.contains(&value("Authority Key Identifier")), "{issuer}");
}

#[test]
fn it_is_valid_for_the_days_that_were_asked() {
    let desk = desk();
    let day = 24 * 3600;
    for (seconds, still) in [(30 * day - 600, true), (30 * day + 600, false)] {
        let (valid, _) = openssl(&desk, &format!("x509 -in {LEAF} -noout -checkend {seconds}"));
        assert_eq!(valid, still, "{seconds}");
    }
}

#[test]
fn serials_are_random() {
    let desk = Desk::new();
    desk.run("device add --count 40 --prefix p --out p.jsonl").done();
    let rows = desk.run("device list --json").json();
    let serials: HashSet<String> = rows
        .as_array()
        .unwrap()
        .iter()
        .take(10)
        .map(|row| {
            let shown = desk.run(&format!("device show {} --json", row["device"].as_str().unwrap())).json();
            shown["certificates"][0]["serial"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(serials.len(), 10);
    assert!(serials.iter().all(|serial| serial.len() == 32), "{serials:?}");
}

#[test]
fn the_intermediate_signs_devices_and_no_further_authority() {
    let desk = Desk::new();
    let (_, text) = openssl(&desk, "x509 -in home/pki/issuing.crt -noout -text");
    assert!(text.contains("CA:TRUE, pathlen:0"), "{text}");
    assert!(text.contains("Certificate Sign"), "{text}");
    let (_, text) = openssl(&desk, "x509 -in home/pki/root.crt -noout -text");
    assert!(text.contains("CA:TRUE") && text.contains("NIST CURVE: P-256"), "{text}");
    let decade = 10 * 365 * 24 * 3600 - 24 * 3600;
    assert!(openssl(&desk, &format!("x509 -in home/pki/root.crt -noout -checkend {decade}")).0);
}
