//! `cert crl`: a list of what is revoked, as OpenSSL reads it.

use std::fs;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use serde_json::{Value, json};

use crate::support::command::{Desk, mode, openssl};
use crate::support::database::{Database, Sql};

use super::on_both;

on_both!(
    what_is_revoked_is_refused_and_the_rest_is_not,
    numbers_go_up_and_are_in_the_audit,
    a_long_list_is_whole,
    reasons_are_named_and_superseded_ones_come_on_request,
);

/// Runs `cert crl --out FILE` with more words; its JSON.
fn list(desk: &Desk, words: &str) -> Value {
    desk.run(&format!("cert crl --out list.crl --json {words}")).json()
}

/// The list as text, once OpenSSL has verified its signature.
fn text(desk: &Desk, file: &str) -> String {
    let (done, text) =
        openssl(desk, &format!("crl -in {file} -noout -text -verify -CAfile home/pki/issuing.crt"));
    assert!(done && text.contains("verify OK"), "{text}");
    text
}

/// Whether OpenSSL takes a device's certificate with the list beside it.
fn takes(desk: &Desk, device: &str, file: &str) -> (bool, String) {
    let chain = "-CAfile home/pki/root.crt -untrusted home/pki/issuing.crt";
    openssl(
        desk,
        &format!("verify -x509_strict -crl_check {chain} -CRLfile {file} home/devices/{device}/device.crt"),
    )
}

fn serial(desk: &Desk, device: &str) -> String {
    let found = desk.run(&format!("cert list --device {device} --json")).json();
    found[0]["serial"].as_str().unwrap().to_owned()
}

async fn what_is_revoked_is_refused_and_the_rest_is_not(database: Database, desk: Desk) {
    for device in ["good", "held", "cert", "dev", "old", "other"] {
        desk.run(&format!("device add {device}")).done();
    }
    let empty = list(&desk, "");
    assert_eq!(
        (&empty["number"], &empty["entries"], &empty["file"]),
        (&json!(1), &json!(0), &json!("list.crl"))
    );
    assert!(text(&desk, "list.crl").contains("No Revoked Certificates."));
    let (taken, words) = takes(&desk, "cert", "list.crl");
    assert!(taken, "{words}");

    // Revoked all of them; one has expired, and one was signed by another CA.
    for device in ["dev", "old", "other"] {
        desk.run(&format!("device revoke {device} --reason stolen --no-wait")).done();
    }
    desk.run(&format!("cert revoke {} --reason exposed --no-wait", serial(&desk, "cert"))).done();
    desk.run("device suspend held --reason repair --no-wait").done();
    copied(
        &database,
        "old",
        "not_after = '2026-01-02T00:00:00.000Z', not_before = '2026-01-01T00:00:00.000Z'",
    )
    .await;
    copied(&database, "other", "issuer = 'abcd'").await;
    let full = list(&desk, "--days 30");
    assert_eq!((&full["number"], &full["entries"]), (&json!(2), &json!(2)));
    assert_eq!(mode(&desk.path("list.crl")), 0o644);
    let text = text(&desk, "list.crl");
    for device in ["cert", "dev"] {
        let (taken, words) = takes(&desk, device, "list.crl");
        assert!(!taken && words.contains("certificate revoked"), "{device}: {words}");
        assert!(text.contains(&serial(&desk, device).to_uppercase()), "{text}");
    }
    for device in ["good", "held"] {
        let (taken, words) = takes(&desk, device, "list.crl");
        assert!(taken, "{device}: {words}");
    }
    for words in [
        "Version 2 (0x1)",
        "X509v3 CRL Number",
        "X509v3 Authority Key Identifier",
        "X509v3 Issuing Distribution Point: critical",
        "Only User Certificates",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

/// Puts another certificate in the place of a device's own: what one says never changes, but a row that is not revoked may
/// be deleted.
async fn copied(database: &Database, device: &str, assignment: &str) {
    for sql in [
        "DROP TABLE IF EXISTS copy".to_owned(),
        format!("CREATE TABLE copy AS SELECT * FROM certificates WHERE device = '{device}'"),
        format!("DELETE FROM certificates WHERE device = '{device}'"),
        format!("UPDATE copy SET {assignment}"),
        "INSERT INTO certificates SELECT * FROM copy".to_owned(),
        "DROP TABLE copy".to_owned(),
    ] {
        database.execute(&sql).await.unwrap();
    }
}

async fn numbers_go_up_and_are_in_the_audit(database: Database, desk: Desk) {
    let first = list(&desk, "");
    let at = |value: &Value| {
        let text = value.as_str().unwrap();
        time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).unwrap()
    };
    assert_eq!(at(&first["next_update"]) - at(&first["this_update"]), time::Duration::WEEK);
    assert_eq!(first.as_object().unwrap().len(), 5, "{first}");
    desk.run("cert crl --out list.crl --der").done().says(&["list 2 names 0 certificates and holds until"]);
    assert!(fs::read(desk.path("list.crl")).unwrap().starts_with(&[0x30]));
    assert!(
        text(&desk, "list.crl").contains("CRL Number: \n                2\n"),
        "{}",
        text(&desk, "list.crl")
    );
    let acts = desk.run("audit list --json").json();
    let acts: Vec<_> = acts.as_array().unwrap().iter().filter(|act| act["action"] == "crl.issue").collect();
    let numbers: Vec<_> = acts.iter().map(|act| (&act["subject"], &act["after"]["number"])).collect();
    assert_eq!(numbers, [(&json!("1"), &json!(1)), (&json!("2"), &json!(2))]);
    assert_eq!(
        acts[0]["after"]["this_update"].as_str().map(|t| &t[..19]),
        first["this_update"].as_str().map(|t| &t[..19])
    );
    desk.run("audit verify").done();

    // A registry that was restored has forgotten numbers; the list that is there has not.
    desk.run("cert crl --out kept.crl").done();
    for sql in ["DROP TRIGGER crls_keep", "DROP TRIGGER keep ON crls"] {
        let _ = database.execute(sql).await;
    }
    database.execute("UPDATE crls SET number = 1").await.unwrap();
    assert_eq!(desk.run("cert crl --out kept.crl --json").json()["number"], 4);
    assert_eq!(list(&desk, "")["number"], 5);
    if let Sql::Postgres(_) = &database.sql {
        let operator = desk.told(&database.url_as("operator").to_string());
        assert_eq!(list(&operator, "")["number"], 6);
        let gateway = operator.told(&database.url_as("gateway").to_string());
        gateway.run("cert crl --out list.crl").fails(1, &["permission denied", "doorward_operator"]);
    }
}

async fn a_long_list_is_whole(database: Database, desk: Desk) {
    desk.run("device add --count 1203 --prefix p --out p.jsonl").done();
    database
        .execute("UPDATE devices SET status = 'revoked', reason = 'keyCompromise' WHERE id <> 'p000007'")
        .await
        .unwrap();
    assert_eq!(list(&desk, "")["entries"], 1202);
    let text = text(&desk, "list.crl");
    assert_eq!(text.matches("Serial Number: ").count(), 1202);
    assert_eq!(text.matches("Key Compromise").count(), 1202);
    assert!(!text.contains(&serial(&desk, "p000007").to_uppercase()));
}

async fn reasons_are_named_and_superseded_ones_come_on_request(database: Database, desk: Desk) {
    for (device, reason) in
        [("a", "key-compromise: in a forum"), ("b", "cessationOfOperation"), ("c", "stolen"), ("d", "")]
    {
        desk.run(&format!("device add {device}")).done();
        if !reason.is_empty() {
            desk.run(["device", "revoke", device, "--reason", reason, "--no-wait"]).done();
        }
    }
    database
        .execute("UPDATE certificates SET status = 'superseded', valid_until = '2098-01-01T00:00:00.000Z' WHERE device = 'd'")
        .await
        .unwrap();
    let after = |text: &str, device: &str| {
        let serial = serial(&desk, device).to_uppercase();
        let entry = text.split("Serial Number: ").find(|entry| entry.starts_with(&serial));
        let lines = entry.map(|entry| entry.lines().skip_while(|line| !line.contains("Reason Code")));
        lines.map(|mut lines| lines.nth(1).map(|line| line.trim().to_owned()))
    };
    assert_eq!(list(&desk, "")["entries"], 3);
    let plain = text(&desk, "list.crl");
    assert_eq!(after(&plain, "a"), Some(Some("Key Compromise".to_owned())));
    assert_eq!(after(&plain, "b"), Some(Some("Cessation Of Operation".to_owned())));
    assert_eq!(after(&plain, "d"), None);
    assert!(takes(&desk, "d", "list.crl").0);
    assert_eq!(list(&desk, "--superseded")["entries"], 4);
    let all = text(&desk, "list.crl");
    assert_eq!(after(&all, "d"), Some(Some("Superseded".to_owned())));
    assert_eq!(all.matches("Reason Code").count(), 3, "'stolen' names none: {all}");
    assert!(!takes(&desk, "d", "list.crl").0);

    list(&desk, "--url http://pki.example/doorward.crl");
    let text = text(&desk, "list.crl");
    assert!(text.contains("URI:http://pki.example/doorward.crl") && text.contains("Only User"), "{text}");
    let (taken, words) = takes(&desk, "a", "list.crl");
    assert!(!taken && words.to_lowercase().contains("different crl scope"), "as its help says: {words}");
}

#[test]
fn rustls_takes_a_plain_list() {
    let desk = Desk::new();
    for device in ["good", "bad"] {
        desk.run(&format!("device add {device}")).done();
    }
    desk.run("device revoke bad --reason stolen --no-wait").done();
    let der = |name: &str| CertificateDer::from_pem_file(desk.path(name)).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(der("home/pki/root.crt")).unwrap();
    let roots = Arc::new(roots);
    let judge = |device: &str| {
        let list = CertificateRevocationListDer::from_pem_file(desk.path("list.crl")).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider)
            .with_crls([list])
            .only_check_end_entity_revocation()
            .build();
        let leaf = der(&format!("home/devices/{device}/device.crt"));
        let verified = verifier.map(|verifier| {
            verifier.verify_client_cert(&leaf, &[der("home/pki/issuing.crt")], UnixTime::now())
        });
        format!("{verified:?}")
    };
    list(&desk, "--plain");
    assert!(judge("good").starts_with("Ok(Ok("), "{}", judge("good"));
    assert!(judge("bad").contains("Revoked"), "{}", judge("bad"));
    let text = text(&desk, "list.crl");
    assert!(!text.contains("Issuing Distribution Point"), "{text}");
    assert!(takes(&desk, "good", "list.crl").0 && !takes(&desk, "bad", "list.crl").0);
    // Why there is the option.
    list(&desk, "");
    assert!(judge("good").starts_with("Err("), "{}", judge("good"));
    desk.run("cert crl --out list.crl --plain --url http://a/b").fails(2, &["--plain", "--url"]);
}

#[test]
fn what_cannot_be_done_is_said_and_takes_no_number() {
    let desk = Desk::empty();
    desk.write("right", "correct horse battery\n");
    desk.write("wrong", "tr0ub4dor\n");
    desk.run("init --passphrase-file right").done();
    let crl = "cert crl --out list.crl";
    desk.run("cert crl").fails(2, &["--out"]);
    desk.run(crl).fails(1, &["issuing.key", "encrypted", "--passphrase-file"]);
    desk.run(&format!("{crl} --passphrase-file wrong")).fails(1, &["passphrase does not open"]);
    let right = "--passphrase-file right";
    for days in ["0", "3651", "x"] {
        desk.run(&format!("{crl} {right} --days {days}")).fails(2, &["--days"]);
    }
    desk.run(&format!("{crl} {right} --url pki.example")).fails(2, &["http, https or ldap URL"]);
    desk.run(&format!("cert crl --out no/such/list.crl {right}")).fails(1, &["there is no folder no/such"]);
    desk.run(&format!("cert crl --out home {right}")).fails(1, &["home is a folder"]);
    desk.run(&format!("cert crl --out home/pki/issuing.key {right}"))
        .fails(4, &["issuing.key is no revocation list of this CA"]);
    desk.run(&format!("cert crl --out /dev/null {right}")).fails(4, &["/dev/null is no revocation list"]);
    // Another CA's list.
    let other = Desk::new();
    other.run(crl).done();
    desk.write("list.crl", fs::read(other.path("list.crl")).unwrap());
    desk.run(&format!("{crl} {right}")).fails(4, &["list.crl is no revocation list of this CA"]);
    assert_eq!(fs::read(desk.path("list.crl")).unwrap(), fs::read(other.path("list.crl")).unwrap());
    fs::remove_file(desk.path("list.crl")).unwrap();
    desk.run(&format!("{crl} {right} --database sqlite://nowhere.db")).fails(1, &["there is no database"]);

    assert_eq!(desk.run(&format!("{crl} {right} --json")).json()["number"], 1);
    fs::rename(desk.home("pki/issuing.key"), desk.path("away")).unwrap();
    desk.run(&format!("{crl} {right}")).fails(1, &["issuing.key does not exist", "put it back"]);
}

#[test]
fn of_several_at_once_the_newest_list_is_the_one_that_stays() {
    let desk = Desk::new();
    let running: Vec<_> =
        (0..6).map(|_| desk.command("cert crl --out list.crl --json").spawn().unwrap()).collect();
    let mut numbers: Vec<u64> = running
        .into_iter()
        .map(|child| crate::support::command::Ran::ended(child).json()["number"].as_u64().unwrap())
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6]);
    let written = text(&desk, "list.crl");
    assert!(written.contains("X509v3 CRL Number: \n                6\n"), "{written}");
}
