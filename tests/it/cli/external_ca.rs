//! `pki csr` and `pki import`: an issuing CA that somebody else signs, here OpenSSL.

use std::fs;

use serde_json::{Value, json};

use crate::support::command::{Desk, mode, openssl};
use crate::support::running::Running;

/// What a CA's certificate says.
const GOOD: &str = "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\n\
    subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n";

#[track_caller]
fn ssl(desk: &Desk, line: &str) -> String {
    let (done, words) = openssl(desk, line);
    assert!(done, "{line}: {words}");
    words
}

/// Signs a request by a root of these two files.
#[track_caller]
fn sign(desk: &Desk, root: (&str, &str), request: &str, says: &str, to: &str) {
    desk.write("says", says);
    ssl(
        desk,
        &format!(
            "x509 -req -in {request} -CA {} -CAkey {} -days 400 -extfile says -out {to}",
            root.0, root.1
        ),
    );
}

const HOME_ROOT: (&str, &str) = ("home/pki/root.crt", "home/pki/root.key");
const COMPANY_ROOT: (&str, &str) = ("company.crt", "company.key");

/// A root that is not the home's: RSA, as a company's often is.
fn company_root(desk: &Desk) {
    ssl(
        desk,
        "req -x509 -newkey rsa:2048 -noenc -keyout company.key -out company.crt -days 4000 -subj /CN=Company \
         -addext keyUsage=critical,keyCertSign,cRLSign",
    );
}

fn signs(desk: &Desk) -> Value {
    let status = desk.run("pki rollover status --json").json();
    let rows = status["authorities"].as_array().unwrap();
    rows.iter().find(|ca| ca["role"] == "signs").unwrap().clone()
}

fn nothing_written(desk: &Desk) {
    let names: Vec<String> = desk.modes("home/pki");
    assert_eq!(names.len(), 7, "{names:?}");
    assert!(!names.iter().any(|name| name.contains("next.key") || name.contains("issuing-")), "{names:?}");
}

#[test]
fn an_intermediate_signed_by_the_exported_root_issues() {
    let desk = Desk::new();
    desk.run("device add before").done();
    desk.run("pki export-root --out safe").done();
    let asked = desk.run("pki csr --out ca.csr --json").json();
    assert_eq!((&asked["csr"], &asked["new_key"]), (&json!("ca.csr"), &json!(true)));
    assert_eq!(mode(&desk.home("pki/csr.key")), 0o600);
    assert!(ssl(&desk, "req -in ca.csr -noout -text -verify").contains("CA:TRUE, pathlen:0"));
    desk.run("pki csr --out ca.csr").fails(4, &["ca.csr exists already"]);
    let key = fs::read(desk.home("pki/csr.key")).unwrap();
    assert_eq!(desk.run("pki csr --out again.csr --json").json()["new_key"], false);
    assert_eq!(fs::read(desk.home("pki/csr.key")).unwrap(), key, "nothing overwrites a key");

    sign(&desk, ("safe/root.crt", "safe/root.key"), "ca.csr", GOOD, "signed.crt");
    let old = signs(&desk)["key_id"].clone();
    let taken = desk.run("pki import --cert signed.crt --json").json();
    assert_eq!((&taken["changed"], &taken["old"]), (&json!(true), &json!([old])));
    assert_eq!(fs::read(desk.home("pki/issuing.key")).unwrap(), key);
    assert!(!desk.home("pki/csr.key").exists() && !desk.home("pki/next.key").exists());
    assert_eq!(desk.run("pki import --cert signed.crt --json").json()["changed"], false);
    desk.run("device add after").done();
    for device in ["before", "after"] {
        let file = format!("home/devices/{device}/device.crt");
        ssl(&desk, &format!("verify -x509_strict -CAfile home/pki/root.crt -untrusted {file} {file}"));
    }
    desk.run("cert crl --out list.crl").done();
    let trusted = fs::read(desk.home("devices/before/ca.crt")).unwrap();
    assert_eq!(fs::read(desk.home("devices/after/ca.crt")).unwrap(), trusted);
    desk.run("pki rollover finish").fails(4, &["1 live certificate"]);
    desk.run("device revoke before --reason old --no-wait").done();
    desk.run("pki rollover finish").done();
    Running::start(&desk).ended_by("TERM");
}

#[test]
fn cut_short_an_import_goes_on() {
    let desk = Desk::new();
    desk.run("pki csr --out ca.csr").done();
    sign(&desk, HOME_ROOT, "ca.csr", GOOD, "signed.crt");
    let own = fs::read_to_string(desk.home("pki/issuing.crt")).unwrap();
    // The key has its place, and nothing trusts its CA.
    fs::rename(desk.home("pki/csr.key"), desk.home("pki/next.key")).unwrap();
    desk.run("device add one").done();
    desk.run("pki import --cert signed.crt --trust-only").done().says(&["signs nothing yet"]);
    assert!(fs::read_to_string(desk.home("pki/issuing.crt")).unwrap().starts_with(&own));
    assert_eq!(desk.run("pki import --cert signed.crt --trust-only --json").json()["changed"], false);
    // Trusted, and not moved over: both commands go on.
    desk.run("pki rollover begin").done();
    assert_eq!(desk.run("pki import --cert signed.crt --json").json()["changed"], false);
    // Another one has to wait for its end.
    desk.run("pki csr --out next.csr").done();
    sign(&desk, HOME_ROOT, "next.csr", GOOD, "next.crt");
    desk.run("pki import --cert next.crt").fails(4, &["another rollover is under way", "finish"]);
    desk.run("device revoke one --reason old --no-wait").done();
    desk.run("pki rollover finish").done();
    desk.run("pki import --cert next.crt --trust-only").done();
    desk.run("pki csr --out third.csr").done();
    sign(&desk, HOME_ROOT, "third.csr", GOOD, "third.crt");
    desk.run("pki import --cert third.crt").fails(4, &["another rollover"]);
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_written() {
    let desk = Desk::new();
    desk.run("pki csr --out ca.csr --name Refused").done();
    let refused = |says: &str, code: i32, words: &[&str]| {
        let _ = fs::remove_file(desk.path("signed.crt"));
        sign(&desk, HOME_ROOT, "ca.csr", says, "signed.crt");
        desk.run("pki import --cert signed.crt").fails(code, words);
        assert_eq!(desk.modes("home/pki").len(), 8, "csr.key besides what init made");
    };
    refused(
        "basicConstraints=critical,CA:FALSE\nkeyUsage=keyCertSign\n",
        1,
        &["Refused", "CA:TRUE is missing"],
    );
    refused("basicConstraints=critical,CA:TRUE\nkeyUsage=cRLSign\n", 1, &["keyCertSign is missing"]);
    refused(
        "basicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign\nsubjectKeyIdentifier=none\n",
        1,
        &["no subject key identifier"],
    );
    let other = Desk::new();
    let key = other.home("pki/root.key");
    desk.write("other.key", fs::read(key).unwrap());
    desk.write("other.crt", fs::read(other.home("pki/root.crt")).unwrap());
    sign(&desk, ("other.crt", "other.key"), "ca.csr", GOOD, "foreign.crt");
    desk.run("pki import --cert foreign.crt").fails(1, &["signed by none of these roots", "--root FILE"]);
    desk.run("pki import --cert foreign.crt --root home/pki/issuing.crt").fails(1, &["signed by none of"]);
    // Below a CA that may sign no CA, and is no root.
    sign(&desk, ("home/pki/issuing.crt", "home/pki/issuing.key"), "ca.csr", GOOD, "deep.crt");
    desk.run("pki import --cert deep.crt --root home/pki/issuing.crt").fails(1, &["not self-signed"]);
    // A pair that is none, and files that are nothing.
    sign(&desk, HOME_ROOT, "ca.csr", GOOD, "good.crt");
    desk.run("pki import --cert good.crt --key other.key").fails(1, &["good.crt", "different authorities"]);
    fs::rename(desk.home("pki/csr.key"), desk.path("away.key")).unwrap();
    desk.run("pki import --cert good.crt").fails(1, &["its private key is not in this home", "--key FILE"]);
    desk.run("pki import --cert none.crt").fails(1, &["none.crt does not exist"]);
    desk.run("pki import --cert says").fails(1, &["no readable certificate"]);
    desk.run("pki import --cert home/pki/root.crt --key home/pki/root.key")
        .fails(1, &["name of the CA that signed it"]);
    nothing_written(&desk);
    desk.run("pki import --cert good.crt --key away.key").done();
}

#[test]
fn a_ca_whose_certificates_nobody_would_accept_is_refused_and_nothing_is_written() {
    let desk = Desk::new();
    desk.run("pki csr --out ca.csr --name Worthless").done();
    for (says, words) in [
        ("extendedKeyUsage=serverAuth", ["a gateway would refuse every device", "Worthless"]),
        ("extendedKeyUsage=clientAuth", ["a device would refuse a gateway at 'localhost'", "Worthless"]),
        ("nameConstraints=critical,permitted;DNS:example.com", ["at 'localhost'", "name constraints"]),
        (
            "nameConstraints=critical,excluded;IP:127.0.0.0/255.0.0.0",
            ["a device would refuse", "name constraints"],
        ),
        ("1.2.3.4=critical,ASN1:UTF8String:unheard of", ["Worthless", "ritical"]),
    ] {
        let _ = fs::remove_file(desk.path("signed.crt"));
        sign(&desk, HOME_ROOT, "ca.csr", &format!("{GOOD}{says}\n"), "signed.crt");
        desk.run("pki import --cert signed.crt").fails(1, &words);
        desk.run("pki import --cert signed.crt --trust-only").fails(1, &words);
        assert_eq!(desk.modes("home/pki").len(), 8, "csr.key besides what init made");
    }
    // Constraints are no fault as long as what is signed here keeps to them.
    let _ = fs::remove_file(desk.path("signed.crt"));
    let says =
        format!("{GOOD}extendedKeyUsage=serverAuth,clientAuth\nnameConstraints=excluded;DNS:example.com\n");
    sign(&desk, HOME_ROOT, "ca.csr", &says, "signed.crt");
    desk.run("pki import --cert signed.crt").done();
    desk.run("gateway renew-cert --host gate.example.com")
        .fails(4, &["lock every device out", "name constraints"]);
    desk.run("gateway renew-cert").done();
}

#[test]
fn a_ca_that_may_sign_no_lists_is_taken_with_a_warning() {
    let desk = Desk::new();
    desk.run("pki csr --out ca.csr").done();
    let says = GOOD.replace(",cRLSign", "");
    sign(&desk, HOME_ROOT, "ca.csr", &says, "signed.crt");
    desk.run("pki import --cert signed.crt").done().says(&["warning", "cRLSign is missing"]);
    desk.run("device add press-7").done();
    desk.run("cert crl --out list.crl").fails(1, &["may not sign revocation lists"]);
}

#[test]
fn an_external_root_is_for_a_home_that_locks_nobody_out() {
    let desk = Desk::new();
    company_root(&desk);
    desk.run("pki csr --out ca.csr").done();
    sign(&desk, COMPANY_ROOT, "ca.csr", GOOD, "signed.crt");
    let import = "pki import --cert signed.crt --root company.crt";
    desk.run("device add early").done();
    desk.run("device suspend early --reason repair --no-wait").done();
    let root = fs::read_to_string(desk.home("pki/root.crt")).unwrap();
    desk.run(import).fails(4, &["early", "would be locked out"]);
    assert_eq!(fs::read_to_string(desk.home("pki/root.crt")).unwrap(), root);
    assert!(!desk.home("pki/next.key").exists());
    desk.run("device revoke early --reason test --no-wait").done();

    desk.run(import).done();
    let both = fs::read_to_string(desk.home("pki/root.crt")).unwrap();
    assert!(both.starts_with(&root) && both.len() > root.len());
    assert_eq!(desk.run(&format!("{import} --json")).json()["changed"], false);
    assert_eq!(fs::read_to_string(desk.home("pki/root.crt")).unwrap(), both);
    desk.run("pki rollover finish").done();
    // A device trusts the gateway as it is, and as it will be; its own chain ends at the company's root.
    desk.run("device add press-7").done();
    let folder = "home/devices/press-7";
    assert_eq!(fs::read_to_string(desk.path(&format!("{folder}/ca.crt"))).unwrap(), both);
    ssl(
        &desk,
        &format!(
            "verify -x509_strict -CAfile company.crt -untrusted {folder}/device.crt {folder}/device.crt"
        ),
    );
    ssl(
        &desk,
        &format!(
            "verify -x509_strict -purpose sslserver -CAfile {folder}/ca.crt -untrusted home/pki/gateway.crt home/pki/gateway.crt"
        ),
    );
    Running::start(&desk).ended_by("TERM");
    // The next one comes from there, too, unless the operator names the other root.
    desk.run("pki rollover begin").fails(4, &["was signed elsewhere", "pki csr", "--root-key"]);
    desk.run("pki rollover begin --root-key home/pki/root.key").done();
}

#[test]
fn two_cas_of_one_name_live_side_by_side() {
    let desk = Desk::new();
    desk.run("pki rollover begin --name Twin").done();
    desk.run("pki rollover finish").done();
    desk.run("device add one").done();
    desk.run("pki rollover begin --name Twin").done();
    desk.run("device add two").done();
    let status = desk.run("pki rollover status --json").json();
    let rows = status["authorities"].as_array().unwrap();
    assert_eq!(rows.iter().map(|ca| &ca["subject"]).collect::<Vec<_>>(), ["CN=Twin", "CN=Twin"]);
    assert_eq!(rows.iter().map(|ca| ca["live"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 1]);
    for device in ["one", "two"] {
        let file = format!("home/devices/{device}/device.crt");
        ssl(&desk, &format!("verify -x509_strict -CAfile home/pki/root.crt -untrusted {file} {file}"));
    }
    let old = rows.iter().find(|ca| ca["role"] == "old").unwrap()["key_id"].as_str().unwrap();
    desk.run(&format!("cert crl --out old.crl --issuer {old}")).done();
    desk.run("cert crl --out new.crl").done();
    desk.run("cert crl --out old.crl").fails(
        4,
        &["no revocation list of this CA", &format!("--issuer {old} --out old.crl"), "cert crl --out old-"],
    );
}
