//! What depends on an authority.

use std::time::Duration;

use doorward::clock;
use doorward::registry::{Act, CertificateFilter, IssuerUse, NewDevice};
use doorward_pki::Fingerprint;
use time::macros::datetime;

use crate::support::database::Database;

use super::{NOON, certificate_of, contract, device, fleet, new_device};

contract!(live_certificates_are_counted_by_who_signed_them, a_list_is_of_one_authority_and_of_what_is_live);

const OLD: &str = "0a11";
const NEW: &str = "0b22";

fn signed_by(id: &str, issuer: &str) -> NewDevice {
    let mut new = new_device(id);
    new.certificate.issuer = issuer.to_owned();
    new
}

/// Of each kind one, by the old authority; one by the new.
async fn fill(database: &Database) {
    let mut expired = signed_by("expired", OLD);
    expired.certificate.not_before = datetime!(2025-01-01 00:00 UTC);
    // Within a year of any day that this is run on.
    expired.certificate.not_after = clock::utc().replace_nanosecond(0).unwrap() - time::Duration::days(30);
    let mut expired_revoked = signed_by("expired-gone", OLD);
    expired_revoked.certificate.not_before = datetime!(2025-01-01 00:00 UTC);
    expired_revoked.certificate.not_after = datetime!(2026-01-01 00:00 UTC);
    let of = |id| signed_by(id, OLD);
    let devices = [
        of("active"),
        of("suspended"),
        of("gone"),
        of("revoked"),
        of("grace"),
        of("past"),
        expired,
        expired_revoked,
        signed_by("next", NEW),
    ];
    database.registry.add_devices(&devices).await.unwrap();
    database.registry.set_status(&device("suspended"), Act::Suspend, None).await.unwrap();
    for id in ["gone", "expired-gone"] {
        database.registry.set_status(&device(id), Act::Revoke, None).await.unwrap();
    }
    database.registry.revoke_certificate(&Fingerprint::of(b"revoked"), "lost", true).await.unwrap();
    for (id, until) in [("grace", "2998-01-01T00:00:00.000Z"), ("past", "2026-01-01T00:00:00.000Z")] {
        let sql = format!(
            "UPDATE certificates SET status = 'superseded', valid_until = '{until}' WHERE device = '{id}'"
        );
        database.execute(&sql).await.unwrap();
    }
}

async fn live_certificates_are_counted_by_who_signed_them(database: Database) {
    assert_eq!(database.registry.issuers(Duration::ZERO).await.unwrap(), []);
    fill(&database).await;
    let counted = |issuer: &str, live, expired| IssuerUse { issuer: issuer.to_owned(), live, expired };
    assert_eq!(
        database.registry.issuers(Duration::ZERO).await.unwrap(),
        [counted(OLD, 3, 1), counted(NEW, 1, 0)]
    );
    database.registry.set_status(&device("suspended"), Act::Revoke, None).await.unwrap();
    assert_eq!(database.registry.issuers(Duration::ZERO).await.unwrap()[0], counted(OLD, 2, 1));
    // What may still renew itself depends on its CA, too; a fleet has the last word.
    let long = Duration::from_secs(1000 * 86_400);
    assert_eq!(database.registry.issuers(long).await.unwrap()[0], counted(OLD, 3, 0));
    let limits = |seconds: u64| format!(r#"{{"renew_after_expiry": {seconds}}}"#);
    database.registry.set_limits(&fleet("default"), &limits(60)).await.unwrap();
    assert_eq!(database.registry.issuers(long).await.unwrap()[0], counted(OLD, 2, 1));
    database.registry.set_limits(&fleet("default"), &limits(31_536_000)).await.unwrap();
    assert_eq!(database.registry.issuers(Duration::ZERO).await.unwrap()[0], counted(OLD, 3, 0));
}

async fn a_list_is_of_one_authority_and_of_what_is_live(database: Database) {
    fill(&database).await;
    let list = async |issuer: Option<&str>, live: bool| {
        let live = live.then_some(Duration::ZERO);
        let filter =
            CertificateFilter { issuer: issuer.map(str::to_owned), live, ..CertificateFilter::default() };
        let found = database.registry.certificates(&filter).await.unwrap();
        let mut ids: Vec<String> = found.into_iter().map(|(device, _)| device.to_string()).collect();
        ids.sort();
        ids
    };
    assert_eq!(list(Some(OLD), false).await.len(), 8);
    assert_eq!(list(Some(OLD), true).await, ["active", "grace", "suspended"]);
    assert_eq!(list(None, true).await, ["active", "grace", "next", "suspended"]);
    assert_eq!(list(Some(NEW), false).await, ["next"]);
    assert_eq!(list(Some("0c33"), false).await, [""; 0]);
    let late =
        CertificateFilter { live: Some(Duration::from_secs(31 * 86_400)), ..CertificateFilter::default() };
    let late = database.registry.certificates(&late).await.unwrap();
    assert!(late.len() == 5 && late.iter().any(|(id, _)| *id == device("expired")), "{late:?}");
    // As the count has it, and with the other filters.
    let filter = CertificateFilter {
        issuer: Some(OLD.to_owned()),
        device: Some(device("active")),
        expiring_before: Some(certificate_of("active").not_after + (NOON - datetime!(2027-01-01 00:00 UTC))),
        ..CertificateFilter::default()
    };
    assert_eq!(database.registry.certificates(&filter).await.unwrap().len(), 1);
}
