//! Every kind of certificate that is issued, and the revocation list, as a linter sees them that nobody here wrote: pkilint, by
//! RFC 5280. What it finds is mended, or accepted here and explained in docs/operations.md.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::command::{Desk, openssl};

/// A method of RFC 7093 that the linter does not know. RFC 5280 section 4.2.1.2 leaves the method open.
const KEY_ID: &str = "pkix.unknown_subject_key_identifier_calculation_method";
/// It knows URLs alone, and a URN (RFC 8141) is a URI.
const URN: &str = "pkix.invalid_uri_syntax: Invalid URI syntax: \"urn:doorward:device:press-7\"";
/// A name without a dot is one that only a local network knows, and it stands in the certificate where it was asked for.
const LOCAL: &str = "pkix.invalid_domain_name_syntax: Invalid domain name syntax: \"localhost\"";

fn linter(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv-lint/bin").join(name);
    assert!(path.exists(), "{} is missing: ./test.sh installs it", path.display());
    path
}

/// What a linter finds, each as `code` or `code: message`.
fn findings(desk: &Desk, name: &str, words: &str) -> BTreeSet<String> {
    let mut command = Command::new(linter(name));
    command
        .args(["lint", "-s", "INFO", "-f", "JSON"])
        .args(words.split_whitespace())
        .current_dir(desk.path("."));
    let output = command.output().unwrap();
    let shown = String::from_utf8_lossy(&output.stderr).into_owned();
    let report: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {shown}"));
    let results = report["results"].as_array().unwrap_or_else(|| panic!("{report} {shown}"));
    let found = results.iter().flat_map(|result| result["finding_descriptions"].as_array().unwrap());
    found
        .map(|finding| {
            let code = finding["code"].as_str().unwrap();
            finding["message"]
                .as_str()
                .map_or_else(|| code.to_owned(), |message| format!("{code}: {message}"))
        })
        .collect()
}

fn accepted(findings: &[&str]) -> BTreeSet<String> {
    findings.iter().map(|finding| (*finding).to_owned()).collect()
}

/// The first certificate of a file, by itself.
fn leaf(desk: &Desk, from: &str, to: &str) {
    let (done, words) = openssl(desk, &format!("x509 -in {from} -out {to}"));
    assert!(done, "{words}");
}

/// Whether a device's certificate is like all others, wherever it was signed.
pub(crate) fn is_a_devices(desk: &Desk, file: &str) -> bool {
    leaf(desk, file, "linted.pem");
    let (certificate, chain) = (
        findings(desk, "lint_pkix_cert", "linted.pem"),
        findings(desk, "lint_pkix_signer_signee_cert_chain", "home/pki/issuing.crt linted.pem"),
    );
    certificate == accepted(&[KEY_ID, URN]) && chain.is_empty()
}

#[test]
fn every_certificate_has_the_findings_that_are_explained_and_no_other() {
    let desk = Desk::empty();
    desk.run("init --host gate.example.com --host 192.0.2.7 --host 2001:db8::7").done();
    desk.run("device add press-7").done();
    desk.run("device rotate-cert press-7 --out renewed").done();
    let local = Desk::empty();
    local.run("init --host localhost").done();
    leaf(&desk, "home/devices/press-7/device.crt", "device.pem");
    leaf(&desk, "renewed/press-7/device.crt", "renewed.pem");
    leaf(&desk, "home/pki/gateway.crt", "gateway.pem");
    leaf(&local, "home/pki/gateway.crt", "gateway.pem");
    for (desk, file, right) in [
        (&desk, "home/pki/root.crt", &[KEY_ID][..]),
        (&desk, "home/pki/issuing.crt", &[KEY_ID]),
        (&desk, "gateway.pem", &[KEY_ID]),
        (&local, "gateway.pem", &[KEY_ID, LOCAL]),
        (&desk, "device.pem", &[KEY_ID, URN]),
        (&desk, "renewed.pem", &[KEY_ID, URN]),
    ] {
        assert_eq!(findings(desk, "lint_pkix_cert", file), accepted(right), "{file}");
    }
    for pair in [
        "home/pki/root.crt home/pki/issuing.crt",
        "home/pki/issuing.crt gateway.pem",
        "home/pki/issuing.crt device.pem",
        "home/pki/issuing.crt renewed.pem",
    ] {
        assert_eq!(findings(&desk, "lint_pkix_signer_signee_cert_chain", pair), accepted(&[]), "{pair}");
    }
    // It does find what is wrong.
    assert!(
        !findings(&desk, "lint_pkix_signer_signee_cert_chain", "home/pki/root.crt device.pem").is_empty()
    );
}

#[test]
fn revocation_lists_have_no_findings() {
    let desk = Desk::new();
    for id in ["a", "b", "c"] {
        desk.run(&format!("device add {id}")).done();
    }
    desk.run(["device", "revoke", "a", "--reason", "key compromise"]).done();
    desk.run("device suspend b --reason repair").done();
    for (file, more) in [
        ("users.crl", ""),
        ("plain.crl", "--plain"),
        ("point.crl", "--url http://pki.example.com/doorward.crl"),
    ] {
        desk.run(&format!("cert crl --out {file} {more}")).done();
        assert_eq!(findings(&desk, "lint_crl", &format!("-t CRL -p PKIX {file}")), accepted(&[]), "{file}");
    }
    let list = fs::read(desk.path("plain.crl")).unwrap();
    assert!(list.starts_with(b"-----BEGIN X509 CRL-----"));
}
